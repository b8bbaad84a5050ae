//! The harvester follows each attempt it was told of: acceptance, start, lease, log, final report. It verifies digests,
//! writes the one final record, and decides on retry.
//!
//! It owns the [`book`] of live attempts. It is woken by link frames, heartbeats and a sweep a second, and promises:
//! an attempt ends by its own worker's report, by that worker's word that it is gone, by the end of its lease or of
//! the time to start, or by an operator's word, and by nothing else; a report is acknowledged only after its commit.

pub mod book;
mod commits;
mod late;
pub mod logs;
mod outputs;
pub mod retry;
#[cfg(test)]
mod tests;
mod words;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use swarm_protocol::link::{FinalReport, ToCore, ToWorker};
use swarm_protocol::{AttemptId, SessionId, Timestamp, WorkerId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::blobs::BlobStore;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::dispatcher::Sessions;
use crate::messages::{DispatcherMsg, Expected, HarvesterMsg, HibernatorMsg, LedgerHandle, LinkTx, SchedulerMsg};
use crate::store::Store;
use crate::supervise::Gauge;
use book::{Act, Book, Patience};
use commits::{check_names, commit_end, commit_recall, commit_start, commit_superseded, give_up};
use late::{Late, LateReport};
use logs::{Checked, LogWork};

/// Pause between sweeps.
const SWEEP: Duration = Duration::from_secs(1);
/// A sweep this late says that the core itself was away.
const STALLED_MS: u64 = 3_000;

/// What the harvester works with.
#[derive(Clone)]
pub struct Deps {
    /// Where transitions go.
    pub ledger: LedgerHandle,
    /// To tell a doubled report from a late one, and what an attempt has sent.
    pub store: Arc<dyn Store>,
    /// Where logs and outputs are.
    pub blobs: Arc<dyn BlobStore>,
    /// Told of freed room and judged workers.
    pub dispatcher: mpsc::Sender<DispatcherMsg>,
    /// Told of tasks that were given back.
    pub scheduler: mpsc::Sender<SchedulerMsg>,
    /// Told of tasks that wait for a retry.
    pub hibernator: mpsc::Sender<HibernatorMsg>,
    /// Told of stored bytes of logs and of ended attempts, for who follows them.
    pub cache: Arc<dyn Cache>,
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
    /// The end of the attempt cannot be checked or stored; it is followed on.
    Refused(AttemptId, String),
    /// That the attempt was given back cannot be stored; it is tried again.
    Unrecalled(AttemptId, String),
    /// The start that an at-most-once attempt asked for is committed, or refused.
    Start { attempt: AttemptId, worker: WorkerId, committed: bool },
    /// Log and outputs were checked.
    Checked(WorkerId, Box<FinalReport>, Checked),
    /// A late report of this worker is settled.
    Late(WorkerId),
    /// Nothing to do.
    Nothing,
}

/// Runs until `stop`; `restored` are the attempts that were live when the core started, with their starts.
///
/// # Errors
/// When the thread for logs cannot be started, or the task that gives it work ended.
pub async fn run(
    mut inbox: mpsc::Receiver<HarvesterMsg>,
    deps: Deps,
    restored: Vec<(Expected, Option<Timestamp>)>,
    gauge: Gauge,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (logs, writer) = logs::start(&deps, gauge.clone())?;
    let mut harvester = Harvester {
        book: Book::new(deps.patience),
        late: Late::default(),
        links: HashMap::new(),
        logs,
        tasks: JoinSet::new(),
        deps,
        gauge,
    };
    harvester.book.restore(restored, harvester.deps.clock.boot_ms());
    let ended = serve(&mut inbox, &mut harvester, &stop).await;
    // What is being committed is let finish: the ledger drains its queue before it ends.
    while harvester.tasks.join_next().await.is_some() {}
    drop(harvester);
    // A core that starts anew in this process must find no log held by the one before it.
    ended.and(writer.await.context("the writer of logs failed"))
}

async fn serve(
    inbox: &mut mpsc::Receiver<HarvesterMsg>,
    harvester: &mut Harvester,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut swept_ms = harvester.deps.clock.boot_ms();
    loop {
        // What comes from the links may flood, so it is looked at last. The others wait for it: a sweep comes once a second,
        // and there are no more tasks than attempts and workers.
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = harvester.logs.closed() => anyhow::bail!("the writer of logs ended"),
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
            Some(back) = harvester.tasks.join_next() => harvester.come_back(back?).await,
            message = inbox.recv() => match message {
                Some(message) => harvester.handle(message).await,
                None => return Ok(()),
            },
        }
    }
}

struct Harvester {
    book: Book,
    late: Late,
    links: HashMap<WorkerId, (SessionId, LinkTx)>,
    logs: mpsc::Sender<LogWork>,
    /// One for each commit or check under way: bounded by the number of live attempts and of workers.
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
            HarvesterMsg::Unsent(attempts) => {
                attempts.into_iter().flat_map(|attempt| self.book.unsent(attempt)).collect()
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
            HarvesterMsg::Cancel(attempts) => self.book.cancel(&attempts, now_ms),
            HarvesterMsg::Unfollowed { mut attempts, reply } => {
                attempts.retain(|attempt| self.book.worker_of(*attempt).is_none());
                let _ = reply.send(attempts);
                Vec::new()
            }
            HarvesterMsg::Follow(attempts) => {
                self.book.restore(attempts, now_ms);
                Vec::new()
            }
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
                if self.book.log_came(worker, attempt, now_ms)
                    && let Some((_, link)) = self.links.get(&worker)
                {
                    let work = LogWork::Append { attempt, offset, bytes, link: link.clone() };
                    drop(self.logs.send(work).await);
                }
                Vec::new()
            }
            ToCore::Finished(mut report) => {
                report.outcome = words::cut_outcome(report.outcome);
                self.book.finished(worker, report)
            }
            ToCore::Recalled { attempts } => {
                attempts.into_iter().flat_map(|attempt| self.book.given_back(worker, attempt)).collect()
            }
            ToCore::Declined { attempt, reason } => {
                let acts = self.book.given_back(worker, attempt);
                if !acts.is_empty() {
                    let reason = swarm_protocol::text::sanitise(&words::cut(reason), false);
                    tracing::warn!(%worker, %attempt, reason, "the worker refuses an order");
                    // A full inbox costs another order that is refused.
                    let _ = self.deps.dispatcher.try_send(DispatcherMsg::Declined(worker));
                }
                acts
            }
            ToCore::Renew { seq, live } => {
                let matched = self.book.renew(worker, session, live, now_ms);
                vec![Act::Send(worker, ToWorker::Renewed { seq, matched })]
            }
            // Whoever reads the link gives them to the dispatcher.
            ToCore::Labels { .. } => Vec::new(),
            ToCore::StateReport { seq, attempts } => {
                self.book.state_report(worker, session, seq, &attempts, now_ms, now)
            }
        }
    }

    async fn come_back(&mut self, back: Back) {
        match back {
            Back::Nothing => {}
            Back::Late(worker) => {
                if let Some(next) = self.late.settled(worker) {
                    self.settle_late(worker, next);
                }
            }
            Back::Settled(attempt) => {
                self.book.settled(attempt);
                drop(self.logs.send(LogWork::Forget(attempt)).await);
            }
            Back::Refused(attempt, reason) => {
                self.gauge.error(&format_args!("the end of attempt {attempt} cannot be stored: {reason}"));
                self.book.refused(attempt, self.deps.clock.boot_ms());
            }
            Back::Unrecalled(attempt, reason) => {
                self.gauge.error(&format_args!("that attempt {attempt} was given back cannot be stored: {reason}"));
                self.book.recall_refused(attempt, self.deps.clock.boot_ms());
            }
            Back::Start { attempt, worker, committed: true } => {
                if self.book.start_committed(worker, attempt) {
                    self.allow(attempt, worker);
                }
            }
            Back::Start { attempt, worker, committed: false } => {
                let acts = self.book.start_refused(worker, attempt);
                self.carry_out(acts).await;
            }
            Back::Checked(worker, report, found) => self.checked(worker, *report, found).await,
        }
    }

    /// A report whose log or outputs cannot be found now is followed on: its worker repeats both.
    async fn checked(&mut self, worker: WorkerId, report: FinalReport, found: Checked) {
        let (attempt, now_ms) = (report.attempt, self.deps.clock.boot_ms());
        let problem = match found {
            Checked::Whole => None,
            Checked::Wrong(problem) => Some(problem),
            Checked::Short(have) => {
                tracing::info!(%attempt, have, of = report.log_bytes, "a report came ahead of its log");
                self.send(worker, ToWorker::LogStored { attempt, offset: have });
                return self.book.refused(attempt, now_ms);
            }
            Checked::Unread(error) => {
                tracing::warn!(%attempt, "a report cannot be checked now: {error}");
                self.gauge.error(&format_args!("the report of attempt {attempt} cannot be checked: {error}"));
                return self.book.unread(attempt, now_ms);
            }
        };
        let acts = self.book.verified(worker, report, problem, self.deps.clock.now());
        self.carry_out(acts).await;
    }

    async fn carry_out(&mut self, acts: Vec<Act>) {
        for act in acts {
            let deps = self.deps.clone();
            match act {
                Act::Send(worker, frame) => self.send(worker, frame),
                Act::Start { transition, allow } => {
                    self.tasks.spawn(commit_start(deps, transition, allow));
                }
                Act::Recall(expected) => drop(self.tasks.spawn(commit_recall(deps, *expected))),
                Act::End { expected, end, acknowledge } => {
                    let link = self.links.get(&expected.worker).filter(|_| acknowledge).map(|(_, link)| link.clone());
                    if acknowledge || end.log_cut_bytes == 0 {
                        self.tasks.spawn(commit_end(deps, *expected, *end, link));
                        continue;
                    }
                    let (reply, kept_bytes) = oneshot::channel();
                    drop(self.logs.send(LogWork::Left { attempt: end.attempt, reply }).await);
                    self.tasks.spawn(give_up(deps, *expected, *end, kept_bytes, self.logs.clone()));
                }
                Act::Verify(worker, report, job) => {
                    let (reply, answer) = oneshot::channel();
                    drop(self.logs.send(LogWork::Verify { worker, report, reply }).await);
                    self.tasks.spawn(check_names(answer, job));
                }
                Act::Supersede(worker, report) => {
                    if let Some(first) = self.late.add(worker, *report) {
                        self.settle_late(worker, first);
                    }
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

    fn settle_late(&mut self, worker: WorkerId, late: LateReport) {
        let link = self.links.get(&worker).map(|(_, link)| link.clone());
        self.tasks.spawn(commit_superseded(self.deps.clone(), worker, late, link));
    }

    /// Tells a worker that its start is committed; it asks again only on another link, so a full queue is waited for.
    fn allow(&mut self, attempt: AttemptId, worker: WorkerId) {
        if let Some((_, link)) = self.links.get(&worker) {
            let link = link.clone();
            self.tasks.spawn(async move {
                drop(link.send(ToWorker::StartCommitted { attempt }).await);
                Back::Nothing
            });
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
