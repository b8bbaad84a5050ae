//! The harvester follows each attempt it was told of: acceptance, start, lease, log, final report. It verifies digests,
//! writes the one final record, and decides on retry.
//!
//! It owns the [`book`] of live attempts. It is woken by link frames, heartbeats and a sweep a second, and promises:
//! an attempt ends by its own worker's report, by that worker's word that it is gone, by the end of its lease, or by an
//! admin's word, and by nothing else; a report is acknowledged only after its commit.

pub mod book;
pub mod logs;
pub mod retry;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use swarm_protocol::link::{FinalReport, ToCore, ToWorker};
use swarm_protocol::{AttemptId, SessionId, Timestamp, WorkerId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::blobs::BlobStore;
use crate::clock::Clock;
use crate::dispatcher::Sessions;
use crate::messages::{DispatcherMsg, Expected, HarvesterMsg, HibernatorMsg, LedgerHandle, LinkTx, Runnable, Shape};
use crate::messages::{SchedulerMsg, Stopping};
use crate::store::{Applied, AttemptEnd, Next, Refusal, Store, Transition, Work};
use crate::supervise::Gauge;
use book::{Act, Book, Patience};
use logs::LogWork;

/// SIGTERM to SIGKILL when a job is cancelled, in milliseconds; as docker's default.
pub const CANCEL_GRACE_MS: u32 = 10_000;
/// Pause between sweeps.
const SWEEP: Duration = Duration::from_secs(1);
/// A sweep this late says that the core itself was away.
const STALLED_MS: u64 = 3_000;

/// What the harvester works with.
#[derive(Clone)]
pub struct Deps {
    /// Where transitions go.
    pub ledger: LedgerHandle,
    /// To tell a doubled report from a late one.
    pub store: Arc<dyn Store>,
    /// Where logs and outputs are.
    pub blobs: Arc<dyn BlobStore>,
    /// Told of freed room and judged workers.
    pub dispatcher: mpsc::Sender<DispatcherMsg>,
    /// Told of tasks that were given back.
    pub scheduler: mpsc::Sender<SchedulerMsg>,
    /// Told of tasks that wait for a retry.
    pub hibernator: mpsc::Sender<HibernatorMsg>,
    /// Judges leases.
    pub clock: Arc<dyn Clock>,
    /// How long to wait for what.
    pub patience: Patience,
    /// Bound of one attempt's encoded log.
    pub log_bytes_max: u64,
    /// Frames are signs of life, too.
    pub sessions: Arc<Sessions>,
}

/// What a short task reports back into the loop.
enum Back {
    /// The attempt is followed no more.
    Settled(AttemptId),
    /// Log and outputs were checked.
    Verified(WorkerId, Box<FinalReport>, Option<String>),
    /// Nothing to do.
    Nothing,
}

/// Runs until `stop`; `restored` are the attempts that were live when the core started, with their starts.
///
/// # Errors
/// When the thread for logs cannot be started.
pub async fn run(
    mut inbox: mpsc::Receiver<HarvesterMsg>,
    deps: Deps,
    restored: Vec<(Expected, Option<Timestamp>)>,
    gauge: Gauge,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let logs = logs::start(Arc::clone(&deps.blobs), deps.log_bytes_max)?;
    let mut harvester =
        Harvester { book: Book::new(deps.patience), links: HashMap::new(), logs, tasks: JoinSet::new(), deps, gauge };
    harvester.book.restore(restored, harvester.deps.clock.boot_ms());
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut swept_ms = harvester.deps.clock.boot_ms();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            message = inbox.recv() => match message {
                Some(message) => harvester.handle(message).await,
                None => break,
            },
            Some(back) = harvester.tasks.join_next() => harvester.come_back(back?).await,
            _ = sweep.tick() => {
                let now_ms = harvester.deps.clock.boot_ms();
                if now_ms.saturating_sub(swept_ms) > SWEEP.as_millis() as u64 + STALLED_MS {
                    tracing::warn!("the core was away for {} ms: all leases begin anew", now_ms - swept_ms);
                    harvester.book.forgive(now_ms);
                }
                swept_ms = now_ms;
                let acts = harvester.book.sweep(now_ms, harvester.deps.clock.now());
                harvester.carry_out(acts).await;
            }
        }
    }
    // What is being committed is let finish: the ledger drains its queue before it ends.
    while harvester.tasks.join_next().await.is_some() {}
    Ok(())
}

struct Harvester {
    book: Book,
    links: HashMap<WorkerId, (SessionId, LinkTx)>,
    logs: mpsc::Sender<LogWork>,
    /// One for each commit or check under way: bounded by the number of live attempts.
    tasks: JoinSet<Back>,
    deps: Deps,
    gauge: Gauge,
}

impl Harvester {
    async fn handle(&mut self, message: HarvesterMsg) {
        self.gauge.handled();
        let (now_ms, now) = (self.deps.clock.boot_ms(), self.deps.clock.now());
        let acts = match message {
            HarvesterMsg::Expect(attempts) => {
                self.book.expect(attempts, now_ms);
                Vec::new()
            }
            HarvesterMsg::LinkUp { worker, boot, session, link } => {
                self.book.link_up(worker, boot, session, now_ms);
                self.links.insert(worker, (session, link));
                Vec::new()
            }
            HarvesterMsg::LinkDown { worker, session } => {
                self.book.link_down(worker, session);
                if self.links.get(&worker).is_some_and(|(current, _)| *current == session) {
                    self.links.remove(&worker);
                }
                Vec::new()
            }
            HarvesterMsg::Frames { worker, session, frames } => {
                if !self.book.is_current(worker, session) {
                    return;
                }
                self.deps.sessions.touch(session, now_ms, now);
                for frame in frames {
                    let acts = self.frame(worker, session, frame).await;
                    self.carry_out(acts).await;
                }
                Vec::new()
            }
            HarvesterMsg::Renew { worker, session, live, reply } => {
                let _ = reply.send(self.book.renew(worker, session, live, now_ms));
                Vec::new()
            }
            HarvesterMsg::Cancel(attempts) => self.book.cancel(&attempts),
            HarvesterMsg::DeclareLost { worker, reply } => {
                let acts = self.book.declare_lost(worker, now);
                let _ = reply.send(acts.len() as u64);
                acts
            }
        };
        self.carry_out(acts).await;
    }

    async fn frame(&mut self, worker: WorkerId, session: SessionId, frame: ToCore) -> Vec<Act> {
        let (now_ms, now) = (self.deps.clock.boot_ms(), self.deps.clock.now());
        match frame {
            ToCore::Accepted { attempt } => self.book.accepted(worker, attempt),
            ToCore::MayStart { attempt } => self.book.may_start(worker, attempt, now),
            ToCore::Started { attempt, started_at_us } => {
                let at = i64::try_from(started_at_us).ok().and_then(chrono::DateTime::from_timestamp_micros);
                self.book.started(worker, attempt, at.unwrap_or(now))
            }
            ToCore::Log { attempt, offset, bytes } => {
                if self.book.worker_of(attempt) == Some(worker)
                    && let Some((_, link)) = self.links.get(&worker)
                {
                    let work = LogWork::Append { attempt, offset, bytes, link: link.clone() };
                    drop(self.logs.send(work).await);
                }
                Vec::new()
            }
            ToCore::Finished(report) => self.book.finished(worker, report),
            ToCore::Recalled { attempts } => {
                attempts.into_iter().flat_map(|attempt| self.book.given_back(worker, attempt)).collect()
            }
            ToCore::Declined { attempt, reason } => {
                tracing::debug!(%worker, %attempt, reason = swarm_protocol::text::sanitise(&reason, false), "declined");
                self.book.given_back(worker, attempt)
            }
            ToCore::Renew { seq, live } => {
                let matched = self.book.renew(worker, session, live, now_ms);
                vec![Act::Send(worker, ToWorker::Renewed { seq, matched })]
            }
            ToCore::StateReport { seq, attempts } => {
                self.book.state_report(worker, session, seq, &attempts, now_ms, now)
            }
        }
    }

    async fn come_back(&mut self, back: Back) {
        match back {
            Back::Nothing => {}
            Back::Settled(attempt) => self.book.settled(attempt),
            Back::Verified(worker, report, problem) => {
                let acts = self.book.verified(worker, *report, problem, self.deps.clock.now());
                self.carry_out(acts).await;
            }
        }
    }

    async fn carry_out(&mut self, acts: Vec<Act>) {
        for act in acts {
            let deps = self.deps.clone();
            match act {
                Act::Send(worker, frame) => self.send(worker, frame),
                Act::Start { transition, allow } => {
                    let link = allow.and_then(|(attempt, worker)| Some((attempt, self.links.get(&worker)?.1.clone())));
                    self.tasks.spawn(commit_start(deps, transition, link));
                }
                Act::Recall(expected) => drop(self.tasks.spawn(commit_recall(deps, *expected))),
                Act::End { expected, end, acknowledge } => {
                    let link = self.links.get(&expected.worker).filter(|_| acknowledge).map(|(_, link)| link.clone());
                    self.tasks.spawn(commit_end(deps, *expected, *end, link));
                }
                Act::Verify(worker, report) => {
                    let (reply, answer) = oneshot::channel();
                    drop(self.logs.send(LogWork::Verify { worker, report, reply }).await);
                    self.tasks.spawn(async move {
                        answer.await.map_or(Back::Nothing, |(worker, report, problem)| {
                            Back::Verified(worker, Box::new(report), problem)
                        })
                    });
                }
                Act::Supersede(worker, report) => {
                    let link = self.links.get(&worker).map(|(_, link)| link.clone());
                    self.tasks.spawn(commit_superseded(deps, worker, *report, link));
                }
                Act::Ready { worker, session, held } => {
                    self.tasks.spawn(async move {
                        drop(deps.dispatcher.send(DispatcherMsg::Ready { worker, session, held }).await);
                        Back::Nothing
                    });
                }
            }
        }
    }

    /// A link whose queue is full is a worker that does not read; the frame is repeated after its next state report.
    fn send(&self, worker: WorkerId, frame: ToWorker) {
        if let Some((_, link)) = self.links.get(&worker)
            && let Err(error) = link.try_send(frame)
        {
            tracing::debug!(%worker, "a frame was not sent: {error}");
        }
    }
}

async fn commit_start(deps: Deps, transition: Transition, allow: Option<(AttemptId, LinkTx)>) -> Back {
    match deps.ledger.commit(transition).await {
        Ok(Ok(_)) => {
            if let Some((attempt, link)) = allow {
                drop(link.send(ToWorker::StartCommitted { attempt }).await);
            }
        }
        Ok(Err(refusal)) => tracing::debug!("a start was refused: {refusal}"),
        Err(Stopping) => {}
    }
    Back::Nothing
}

async fn commit_recall(deps: Deps, expected: Expected) -> Back {
    let Expected { attempt, worker, .. } = expected;
    match deps.ledger.commit(Transition::Recall { attempt, worker, at: deps.clock.now() }).await {
        // Its job was cancelled meanwhile: the recall ended the task.
        Ok(Ok(Applied::Ended { .. })) => {}
        Ok(Ok(_)) => {
            if let Some(work) = next_attempt(&expected, deps.clock.now()) {
                drop(deps.scheduler.send(SchedulerMsg::Enqueue(work)).await);
            }
        }
        Ok(Err(refusal)) => tracing::debug!(%attempt, "a recall was refused: {refusal}"),
        Err(Stopping) => return Back::Nothing,
    }
    drop(deps.dispatcher.send(DispatcherMsg::Freed { worker, attempt }).await);
    Back::Settled(attempt)
}

async fn commit_end(deps: Deps, expected: Expected, end: AttemptEnd, link: Option<LinkTx>) -> Back {
    let (attempt, worker, next, outcome) = (end.attempt, end.worker, end.next, end.outcome.clone());
    match deps.ledger.commit(Transition::End(Box::new(end))).await {
        Ok(Ok(Applied::Ended { job_ended })) => {
            tracing::info!(%attempt, %worker, outcome = outcome.kind().as_str(), job_ended, "attempt ended");
            if let Next::Retry { not_before } = next
                && let Some(work) = next_attempt(&expected, not_before)
            {
                drop(deps.hibernator.send(HibernatorMsg::Hold { until: not_before, work }).await);
            }
        }
        Ok(Ok(_)) => {}
        Ok(Err(Refusal::Broken(reason))) => {
            tracing::error!(%attempt, "the end of an attempt cannot be stored: {reason}");
        }
        Ok(Err(refusal)) => {
            tracing::info!(%attempt, "a report was overtaken: {refusal}");
            let at = deps.clock.now();
            let kept = deps.ledger.commit(Transition::Superseded { attempt, worker, outcome, at }).await;
            if kept.is_err() {
                return Back::Nothing;
            }
        }
        // Not committed as far as we know, so not acknowledged: the worker repeats it.
        Err(Stopping) => return Back::Nothing,
    }
    drop(deps.dispatcher.send(DispatcherMsg::Freed { worker, attempt }).await);
    if let Some(link) = link {
        drop(link.send(ToWorker::FinishStored { attempt }).await);
    }
    Back::Settled(attempt)
}

/// A report about an attempt that is not followed: a repetition of what is recorded, or too late.
async fn commit_superseded(deps: Deps, worker: WorkerId, report: FinalReport, link: Option<LinkTx>) -> Back {
    let (attempt, outcome) = (report.attempt, report.outcome);
    let store = Arc::clone(&deps.store);
    let known = tokio::task::spawn_blocking(move || store.attempt(attempt)).await;
    let repeated =
        matches!(&known, Ok(Ok(Some(record))) if record.worker == worker && record.outcome == Some(outcome.clone()));
    if !repeated {
        let at = deps.clock.now();
        if deps.ledger.commit(Transition::Superseded { attempt, worker, outcome, at }).await.is_err() {
            return Back::Nothing;
        }
    }
    if let Some(link) = link {
        drop(link.send(ToWorker::FinishStored { attempt }).await);
    }
    Back::Nothing
}

/// The task's next attempt as something to run.
fn next_attempt(expected: &Expected, runnable_since: Timestamp) -> Option<Runnable> {
    let AttemptId { job, task, attempt } = expected.attempt;
    Some(Runnable {
        job,
        group: expected.job.group,
        priority: expected.job.spec.priority,
        runnable_since,
        shape: Shape(expected.needs),
        work: Work::Again(vec![(task, attempt.checked_add(1)?)]),
    })
}
