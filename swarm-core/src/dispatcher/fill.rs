//! Filling the workers: next, place, commit, expect, send.

use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_protocol::link::ToWorker;
use swarm_protocol::{AttemptId, WorkerId};
use tokio::sync::oneshot;

use super::Dispatcher;
use super::orders::order;
use super::records::Prepared;
use crate::cache::WorkerTable;
use crate::messages::{Expected, HarvesterMsg, Runnable, SchedulerMsg, Shape, Stopping};
use crate::plan::place::{Candidate, place};
use crate::plan::queue::split;
use crate::recover::expected;
use crate::store::{Transition, Verdict, Work};

/// Tasks that share a batch of the ledger, and jobs looked at for it, before messages are let through again.
const TASKS_MAX: u64 = 1024;
const JOBS_MAX: usize = 256;
/// Beyond this many parked shapes, all are offered anew at the next sweep; those of jobs that are gone vanish so.
const PARKED_MAX: usize = 4096;

/// Tasks of one job on their way to one worker.
struct Assignment {
    worker: WorkerId,
    attempts: Vec<AttemptId>,
    prepared: Arc<Prepared>,
    verdict: oneshot::Receiver<Verdict>,
}

impl Dispatcher {
    /// Offers parked shapes that fit somewhere, whatever nudge got lost, and keeps what workers said of themselves.
    pub(super) async fn sweep(&mut self) -> Result<(), Stopping> {
        self.note().await?;
        let workers = self.picture.rows(&self.sessions, self.silence());
        self.cache.show_workers(WorkerTable { epoch: self.epoch, workers });
        let workers = self.picture.candidates(&self.sessions, self.silence());
        if self.parked.len() > PARKED_MAX {
            let all = std::mem::take(&mut self.parked).into_iter().collect();
            return self.ask(SchedulerMsg::Unpark(all)).await;
        }
        self.unpark(&workers).await
    }

    /// Gives workers with room what they can take; true when there may be more to give.
    pub(super) async fn fill(&mut self) -> Result<bool, Stopping> {
        let mut workers = self.picture.candidates(&self.sessions, self.silence());
        let roomier = self.picture.take_roomier();
        let roomier: Vec<_> = workers.iter().filter(|worker| roomier.contains(&worker.worker)).cloned().collect();
        self.unpark(&roomier).await?;
        let (mut assignments, mut tasks, mut more) = (Vec::new(), 0, true);
        for _ in 0..JOBS_MAX {
            let free: u64 = workers.iter().map(|worker| u64::from(worker.capacity.minus(worker.used).slots)).sum();
            let tasks_max = free.min(TASKS_MAX - tasks);
            if tasks_max == 0 {
                more = free > 0;
                break;
            }
            let Some(runnable) = self.next(tasks_max).await? else {
                more = false;
                break;
            };
            tasks += runnable.work.count();
            if !self.assign(runnable, &mut workers, &mut assignments).await? {
                more = false;
                break;
            }
        }
        self.carry_out(assignments).await?;
        Ok(more)
    }

    async fn unpark(&mut self, workers: &[Candidate]) -> Result<(), Stopping> {
        let fits = |shape: &Shape| workers.iter().any(|worker| worker.fits(shape));
        let shapes: Vec<Shape> = self.parked.extract_if(.., fits).collect();
        if shapes.is_empty() { Ok(()) } else { self.ask(SchedulerMsg::Unpark(shapes)).await }
    }

    async fn next(&self, tasks_max: u64) -> Result<Option<Runnable>, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.ask(SchedulerMsg::Next { tasks_max, reply }).await?;
        answer.await.map_err(|_| Stopping)
    }

    /// Places one job's tasks, promises the room and queues the commits; what fits nowhere goes back. False when the
    /// store cannot be read: then the next sweep tries again.
    async fn assign(
        &mut self,
        runnable: Runnable,
        workers: &mut [Candidate],
        assignments: &mut Vec<Assignment>,
    ) -> Result<bool, Stopping> {
        let needs = runnable.shape.needs;
        let placed = place(workers, &runnable.shape, runnable.work.count());
        let count = placed.values().sum();
        let (fitting, left) = split(runnable.work.clone(), count);
        if let Some(work) = left {
            self.ask(SchedulerMsg::PutBack(Runnable { work, ..runnable.clone() })).await?;
            self.ask(SchedulerMsg::Park(runnable.shape.clone())).await?;
            self.parked.insert(runnable.shape.clone());
        }
        let Some(work) = fitting else { return Ok(true) };
        let prepared = match self.records.prepare(runnable.job, &work).await {
            Ok(Some(prepared)) => Arc::new(prepared),
            Ok(None) => {
                tracing::warn!(job = %runnable.job, "a queued job is not in the store and is dropped");
                return Ok(true);
            }
            Err(error) => {
                tracing::error!(job = %runnable.job, "a job could not be read and stays queued: {error:#}");
                self.gauge.error(&error);
                self.ask(SchedulerMsg::PutBack(Runnable { work, ..runnable })).await?;
                return Ok(false);
            }
        };
        for (worker, work) in share_out(placed, work) {
            let attempts = work.attempts(runnable.job);
            self.picture.promise(worker, &attempts, needs);
            if let Some(candidate) = workers.iter_mut().find(|candidate| candidate.worker == worker) {
                attempts.iter().for_each(|_| candidate.used.add(needs));
            }
            let transition = Transition::Assign { job: runnable.job, work, worker, at: self.clock.now() };
            let verdict = self.ledger.queue(transition).await?;
            assignments.push(Assignment { worker, attempts, prepared: Arc::clone(&prepared), verdict });
        }
        Ok(true)
    }

    /// Awaits the commits; only then tells the harvester, and only then sends.
    async fn carry_out(&mut self, assignments: Vec<Assignment>) -> Result<(), Stopping> {
        let mut granted: Vec<Expected> = Vec::new();
        for Assignment { worker, attempts, prepared, verdict } in assignments {
            match verdict.await.map_err(|_| Stopping)? {
                Ok(_) => granted.extend(attempts.into_iter().map(|attempt| {
                    let (losses, failures) = prepared.ends.get(&attempt.task).copied().unwrap_or_default();
                    expected(&prepared.job, attempt, worker, losses, failures)
                })),
                // Cancelled in the meantime, as a rule: then nobody waits for these tasks any more.
                Err(refusal) => {
                    tracing::info!(job = %prepared.job.id, %worker, "an assignment was refused: {refusal}");
                    self.picture.release(worker, &attempts);
                }
            }
        }
        if granted.is_empty() {
            return Ok(());
        }
        self.tell(HarvesterMsg::Expect(granted.clone())).await?;
        for Expected { attempt, worker, job, .. } in granted {
            let order = order(&job, attempt, self.config.limits);
            self.send(worker, ToWorker::Assign(Box::new(order))).await?;
        }
        Ok(())
    }
}

/// Splits work among workers by count, in order, so that fresh tasks are committed ascending.
fn share_out(placed: BTreeMap<WorkerId, u64>, work: Work) -> Vec<(WorkerId, Work)> {
    let (mut shares, mut rest) = (Vec::with_capacity(placed.len()), Some(work));
    for (worker, count) in placed {
        let Some(work) = rest.take() else { break };
        let (share, left) = split(work, count);
        shares.extend(share.map(|share| (worker, share)));
        rest = left;
    }
    shares
}
