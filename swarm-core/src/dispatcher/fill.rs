//! Filling the workers: next, place, commit; and when that is done: expect, send.

use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_protocol::link::ToWorker;
use swarm_protocol::{AttemptId, WorkerId};
use tokio::sync::mpsc::Permit;
use tokio::sync::oneshot;

use super::Dispatcher;
use super::orders::order;
use super::under_way::{Assignment, Back};
use crate::cache::WorkerTable;
use crate::messages::{Expected, HarvesterMsg, LedgerEntry, Runnable, SchedulerMsg, Shape, Stopping};
use crate::plan::place::{Candidate, place};
use crate::plan::queue::split;
use crate::recover::expected;
use crate::store::{Transition, Work};

/// Tasks whose assignments are under way at one time.
const TASKS_MAX: u64 = 1024;
/// Jobs looked at before messages are let through again.
const JOBS_MAX: usize = 256;
/// Beyond this many parked shapes, all are offered anew at the next sweep; those of jobs that are gone vanish so.
const PARKED_MAX: usize = 4096;

impl Dispatcher {
    /// Offers parked shapes that fit somewhere, whatever nudge got lost, and keeps what workers said of themselves.
    pub(super) async fn sweep(&mut self) -> Result<(), Stopping> {
        self.note();
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
        for _ in 0..JOBS_MAX {
            let free: u64 = workers.iter().map(|worker| u64::from(worker.capacity.minus(worker.used).slots)).sum();
            let tasks_max = free.min(TASKS_MAX.saturating_sub(self.under_way.tasks()));
            if tasks_max == 0 {
                self.is_held_up = free > 0;
                return Ok(false);
            }
            // A job may be shared out to every worker. A ledger without room for that has enough to do.
            let shares_max = workers.len().min(tasks_max as usize);
            let ledger = self.ledger.0.clone();
            let Ok(places) = ledger.try_reserve_many(shares_max) else {
                self.is_held_up = true;
                return Ok(false);
            };
            let Some(runnable) = self.next(tasks_max).await? else { return Ok(false) };
            if !self.assign(runnable, &mut workers, places).await? {
                return Ok(false);
            }
        }
        Ok(true)
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
        places: impl Iterator<Item = Permit<'_, LedgerEntry>>,
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
        for ((worker, work), place) in share_out(placed, work).into_iter().zip(places) {
            let attempts = work.attempts(runnable.job);
            self.picture.promise(worker, &attempts, needs);
            if let Some(candidate) = workers.iter_mut().find(|candidate| candidate.worker == worker) {
                attempts.iter().for_each(|_| candidate.used.add(needs));
            }
            let transition = Transition::Assign { job: runnable.job, work, worker, at: self.clock.now() };
            let (reply, verdict) = oneshot::channel();
            place.send(LedgerEntry { transition, reply });
            let (shape, prepared) = (runnable.shape.clone(), Arc::clone(&prepared));
            self.under_way.add(Assignment { worker, attempts, shape, prepared }, verdict);
        }
        Ok(true)
    }

    /// Only what is committed is told to the harvester, and only then sent. True when workers may be given something
    /// else.
    pub(super) async fn settle(&mut self, all: Vec<Back>) -> Result<bool, Stopping> {
        let (mut granted, mut has_room) = (Vec::new(), std::mem::take(&mut self.is_held_up));
        for back in all {
            match back {
                Back::Judged(_, None) => return Err(Stopping),
                Back::Judged(assignment, Some(Ok(_))) => granted.push(assignment),
                // Cancelled in the meantime, as a rule: then nobody waits for these tasks any more.
                Back::Judged(Assignment { worker, attempts, prepared, .. }, Some(Err(refusal))) => {
                    tracing::info!(job = %prepared.job.id, %worker, "an assignment was refused: {refusal}");
                    self.picture.release(worker, &attempts);
                    has_room = true;
                }
                Back::Settled(reply) => {
                    self.carry_out(std::mem::take(&mut granted)).await?;
                    let _ = reply.send(());
                }
            }
        }
        self.carry_out(granted).await?;
        Ok(has_room)
    }

    async fn carry_out(&mut self, granted: Vec<Assignment>) -> Result<(), Stopping> {
        if granted.is_empty() {
            return Ok(());
        }
        let told: Vec<Expected> = granted.iter().flat_map(Assignment::expected).collect();
        self.tell(HarvesterMsg::Expect(told)).await?;
        let mut unsent = Vec::new();
        for Assignment { worker, attempts, shape, prepared } in granted {
            self.picture.granted(worker, &attempts);
            // A worker that came back as another one meanwhile gets no order that was placed by what it was before.
            if !self.picture.takes(worker, &shape) {
                tracing::info!(job = %prepared.job.id, %worker, "orders are not sent: the worker is gone or has changed");
                unsent.extend(attempts);
                continue;
            }
            for attempt in attempts {
                let order = order(&prepared.job, attempt, self.config.limits);
                self.send(worker, ToWorker::Assign(Box::new(order))).await?;
            }
        }
        if unsent.is_empty() { Ok(()) } else { self.tell(HarvesterMsg::Unsent(unsent)).await }
    }
}

impl Assignment {
    fn expected(&self) -> impl Iterator<Item = Expected> {
        let ends = |attempt: &AttemptId| self.prepared.ends.get(&attempt.task).copied().unwrap_or_default();
        self.attempts.iter().map(move |attempt| {
            let (losses, failures) = ends(attempt);
            expected(&self.prepared.job, *attempt, self.worker, losses, failures)
        })
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
