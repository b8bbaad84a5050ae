//! What the modules of the core say to each other: closed lists, bounded channels, answers by oneshot.
//!
//! ```text
//!  http ─▶ receiver ─▶ scheduler ◀─ Next/PutBack ─ dispatcher ─ link frames ─▶ worker
//!             │            ▲                         │    ▲                      │
//!             └▶ hibernator┘                  Expect │    │ Ready/Freed          │
//!                                                    ▼    │                      │
//!  http ◀─ archive ◀── store, blobs ◀──────────── harvester ◀─── link frames ────┘
//! ```
//! Every module writes through the ledger and promises nothing to the outside before its commit.

use std::sync::Arc;

use swarm_protocol::api::{Warning, WhyReason, WorkerView};
use swarm_protocol::labels::Labels;
use swarm_protocol::link::{DIRECTORIES_SINCE, Hello, LiveSet, ToCore, ToWorker, Welcome};
use swarm_protocol::spec::{JobSpec, Resources};
use swarm_protocol::{AttemptId, BootId, GroupId, JobId, SessionId, Timestamp, WorkerId};
use tokio::sync::{mpsc, oneshot};

use crate::plan::sweep::Tasks;
use crate::store::{JobRecord, NewJob, Transition, Verdict, Work};

/// The module is stopping; nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the core is stopping")]
pub struct Stopping;

// ── ledger ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/// One transition on its way to the store.
#[derive(Debug)]
pub struct LedgerEntry {
    /// What.
    pub transition: Transition,
    /// Told after the commit; dropped unanswered when the core stops first.
    pub reply: oneshot::Sender<Verdict>,
}

/// Where every module sends its transitions. Bounded: a full ledger is backpressure.
#[derive(Debug, Clone)]
pub struct LedgerHandle(pub mpsc::Sender<LedgerEntry>);

impl LedgerHandle {
    /// Commits one transition; the answer comes after its batch is durable.
    ///
    /// # Errors
    /// [`Stopping`] when the core stops first: whether it was committed is then unknown to the caller.
    pub async fn commit(&self, transition: Transition) -> Result<Verdict, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.0.send(LedgerEntry { transition, reply }).await.map_err(|_| Stopping)?;
        answer.await.map_err(|_| Stopping)
    }

    /// Queues one transition and returns at once with the receiver of its verdict, so that a caller can queue several
    /// and have them share a batch.
    ///
    /// # Errors
    /// [`Stopping`].
    pub async fn queue(&self, transition: Transition) -> Result<oneshot::Receiver<Verdict>, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.0.send(LedgerEntry { transition, reply }).await.map_err(|_| Stopping)?;
        Ok(answer)
    }
}

// ── scheduler ───────────────────────────────────────────────────────────────────────────────────────────────────────

/// What a task asks of a worker; jobs of equal shape are parked together.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape {
    /// What it takes up there.
    pub needs: Resources,
    /// Labels that the worker must have.
    pub require: Arc<Labels>,
    /// The oldest link version whose workers understand the order; 0 when all do.
    pub link_version: u8,
}

impl Shape {
    /// As the spec says.
    #[must_use]
    pub fn of(spec: &JobSpec) -> Self {
        let link_version = if spec.inputs.iter().any(|input| input.unpack) { DIRECTORIES_SINCE } else { 0 };
        Self { needs: spec.resources, require: Arc::new(spec.require.clone()), link_version }
    }
}

/// A job, or part of one, that may run now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runnable {
    /// The job.
    pub job: JobId,
    /// Whose it is.
    pub group: GroupId,
    /// Higher runs earlier.
    pub priority: i32,
    /// Since when it may run.
    pub runnable_since: Timestamp,
    /// What each of its tasks needs.
    pub shape: Shape,
    /// Its tasks.
    pub work: Work,
}

/// The scheduler's inbox.
#[derive(Debug)]
pub enum SchedulerMsg {
    /// These tasks may run. Fresh tasks of one job are announced once, as one range.
    Enqueue(Runnable),
    /// The dispatcher asks for the next job whose shape is not parked, at most `tasks_max` of its tasks.
    Next {
        /// At most this many tasks.
        tasks_max: u64,
        /// `None`: nothing that could fit.
        reply: oneshot::Sender<Option<Runnable>>,
    },
    /// The dispatcher could not place these; they go back to the front.
    PutBack(Runnable),
    /// No worker has room for this shape now: skip its jobs.
    Park(Shape),
    /// Room may have come for these shapes.
    Unpark(Vec<Shape>),
    /// The job was cancelled.
    Remove(JobId),
    /// Which of these tasks are not queued here?
    Unheld {
        /// What to look for.
        tasks: Tasks,
        /// What was not found.
        reply: oneshot::Sender<Tasks>,
    },
    /// How many runnable jobs would be offered before this one; `None` when it is not queued here.
    Position {
        /// The job.
        job: JobId,
        /// The answer.
        reply: oneshot::Sender<Option<u64>>,
    },
}

// ── hibernator ──────────────────────────────────────────────────────────────────────────────────────────────────────

/// The hibernator's inbox. What it holds is in the store; a message only says that it changed.
#[derive(Debug)]
pub enum HibernatorMsg {
    /// Hold these until `until`, then enqueue them.
    Hold {
        /// When to release, wall clock.
        until: Timestamp,
        /// What to release.
        work: Runnable,
    },
    /// The job was cancelled.
    Remove(JobId),
    /// Which of these tasks are not held here?
    Unheld {
        /// What to look for.
        tasks: Tasks,
        /// What was not found.
        reply: oneshot::Sender<Tasks>,
    },
    /// A schedule was made, paused, resumed or deleted: read it again.
    ScheduleChanged(swarm_protocol::ScheduleId),
}

// ── receiver ────────────────────────────────────────────────────────────────────────────────────────────────────────

/// The receiver's inbox.
#[derive(Debug)]
pub enum ReceiverMsg {
    /// Accept a job: validated, resolved, ready to be committed. Answered after the commit; then it is enqueued or held.
    Submit {
        /// The job.
        new: Box<NewJob>,
        /// The verdict of the ledger.
        reply: oneshot::Sender<Verdict>,
    },
    /// Cancel a job: answered after the commit; the queue is cleared and live attempts are told.
    Cancel {
        /// The job.
        job: JobId,
        /// The verdict of the ledger.
        reply: oneshot::Sender<Verdict>,
    },
}

// ── dispatcher ──────────────────────────────────────────────────────────────────────────────────────────────────────

/// Frames to one worker; full means that the worker does not read: the link is closed.
pub type LinkTx = mpsc::Sender<ToWorker>;

/// The dispatcher's inbox.
#[derive(Debug)]
pub enum DispatcherMsg {
    /// The scheduler has something new.
    WorkAvailable,
    /// A worker's handshake. The dispatcher draws the session, its keys and its answer; a worker already linked is
    /// replaced (its old sender is dropped).
    Connect {
        /// From its key.
        worker: WorkerId,
        /// Its name.
        name: String,
        /// What it said.
        hello: Box<Hello>,
        /// Where its frames go.
        link: LinkTx,
        /// The answer, and the session when accepted.
        reply: oneshot::Sender<Welcome>,
    },
    /// The link of that session closed.
    Disconnected {
        /// The worker.
        worker: WorkerId,
        /// The session.
        session: SessionId,
    },
    /// The harvester judged the worker's state report: new work may go there. `held` is what it keeps.
    Ready {
        /// The worker.
        worker: WorkerId,
        /// The session.
        session: SessionId,
        /// Attempts on it with their needs.
        held: Vec<(AttemptId, Resources)>,
    },
    /// An attempt left its worker: its resources are free.
    Freed {
        /// The worker.
        worker: WorkerId,
        /// The attempt.
        attempt: AttemptId,
    },
    /// The worker refused an order: for a while it is given nothing.
    Declined(WorkerId),
    /// A worker said which labels it has.
    Labels {
        /// The worker.
        worker: WorkerId,
        /// The session.
        session: SessionId,
        /// All of them, as they came.
        labels: Labels,
    },
    /// An operator's word.
    Drain {
        /// The worker.
        worker: WorkerId,
        /// Draining from now on?
        draining: bool,
    },
    /// The worker's key was revoked: cut its link.
    Revoked(WorkerId),
    /// Send a frame to a worker if it is linked.
    Send {
        /// The worker.
        worker: WorkerId,
        /// The frame.
        frame: Box<ToWorker>,
    },
    /// Why tasks of this shape are not placed now: every worker with its reason.
    Why {
        /// The shape.
        shape: Shape,
        /// The reasons; empty when it would fit.
        reply: oneshot::Sender<Vec<WhyReason>>,
    },
    /// Why no worker could ever run tasks of this shape, even if it were idle.
    Misfit {
        /// The shape.
        shape: Shape,
        /// `None` when one could, as far as is known.
        reply: oneshot::Sender<Option<Warning>>,
    },
    /// Answered when nothing that the scheduler handed out before is on its way any more: it is assigned and expected,
    /// back in the queue, or refused.
    Settled {
        /// Told then.
        reply: oneshot::Sender<()>,
    },
    /// The picture of the workers.
    Workers {
        /// By number.
        reply: oneshot::Sender<Vec<WorkerView>>,
    },
}

// ── harvester ───────────────────────────────────────────────────────────────────────────────────────────────────────

/// An attempt that was committed to a worker and is about to be sent.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Which.
    pub attempt: AttemptId,
    /// Where.
    pub worker: WorkerId,
    /// What it takes up there.
    pub needs: Resources,
    /// How long its lease is, in milliseconds.
    pub lease_ms: u64,
    /// Losses of infrastructure so far.
    pub losses: u16,
    /// Own failures so far.
    pub failures: u16,
    /// Its job: retries, group, flags.
    pub job: Arc<JobRecord>,
}

/// The harvester's inbox.
#[derive(Debug)]
pub enum HarvesterMsg {
    /// Attempts to follow; always said before their orders are sent.
    Expect(Vec<Expected>),
    /// Of the attempts expected, those whose orders were not sent and will not be.
    Unsent(Vec<AttemptId>),
    /// A link came up; its state report follows in `Frames`.
    LinkUp {
        /// The worker.
        worker: WorkerId,
        /// Its process start.
        boot: BootId,
        /// The session.
        session: SessionId,
        /// Where answers go.
        link: LinkTx,
    },
    /// The link of that session closed.
    LinkDown {
        /// The worker.
        worker: WorkerId,
        /// The session.
        session: SessionId,
    },
    /// Frames in the order they came.
    Frames {
        /// The worker.
        worker: WorkerId,
        /// The session.
        session: SessionId,
        /// The frames.
        frames: Vec<ToCore>,
    },
    /// A sealed heartbeat was opened: renew the worker's leases if `live` is what it should hold.
    Renew {
        /// The worker.
        worker: WorkerId,
        /// The session.
        session: SessionId,
        /// What it holds.
        live: LiveSet,
        /// Whether it matched.
        reply: oneshot::Sender<bool>,
    },
    /// Tell these attempts' workers to stop them (the cancel is committed).
    Cancel(Vec<(AttemptId, WorkerId)>),
    /// Which of these attempts are not followed?
    Unfollowed {
        /// What to look for.
        attempts: Vec<AttemptId>,
        /// What was not found.
        reply: oneshot::Sender<Vec<AttemptId>>,
    },
    /// Attempts that are on workers by the store's word: to be followed, each with its start if that is known, unless
    /// they are.
    Follow(Vec<(Expected, Option<Timestamp>)>),
    /// An operator declares a worker lost: its attempts end now, though they may still be running.
    DeclareLost {
        /// The worker.
        worker: WorkerId,
        /// How many attempts ended.
        reply: oneshot::Sender<u64>,
    },
}

/// The senders of all modules, as HTTP and the modules hold them.
#[derive(Debug, Clone)]
pub struct Handles {
    /// The ledger.
    pub ledger: LedgerHandle,
    /// The receiver.
    pub receiver: mpsc::Sender<ReceiverMsg>,
    /// The scheduler.
    pub scheduler: mpsc::Sender<SchedulerMsg>,
    /// The hibernator.
    pub hibernator: mpsc::Sender<HibernatorMsg>,
    /// The dispatcher.
    pub dispatcher: mpsc::Sender<DispatcherMsg>,
    /// The harvester.
    pub harvester: mpsc::Sender<HarvesterMsg>,
}
