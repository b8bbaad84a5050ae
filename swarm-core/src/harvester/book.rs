//! What the harvester knows of every live attempt, and what follows from an event. Pure: no clock, no channel, no store;
//! each event returns the acts to carry out.

mod ends;
mod followed;
mod leases;
mod report;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use swarm_protocol::link::{FinalReport, ToWorker};
use swarm_protocol::spec::Resources;
use swarm_protocol::{AttemptId, BootId, LossReason, SessionId, Timestamp, WorkerId};

use crate::messages::Expected;
use crate::store::{AttemptEnd, JobRecord, Transition};
use followed::{Followed, Held, Phase};

/// How patient the book is. All in milliseconds, but for the last of CLOCK_BOOTTIME.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Added to every lease before it is judged.
    pub lease_margin_ms: u64,
    /// How long a linked worker may take to accept an order before it is asked for it back.
    pub start_deadline_ms: u64,
    /// How long from its assignment a worker may prepare an attempt that it accepted: slot, image and inputs included.
    pub prepare_deadline_ms: u64,
    /// After how much silence an `eager` job runs again.
    pub suspect_after_ms: u64,
    /// From the image's STOPSIGNAL to SIGKILL when a job is cancelled, as the worker counts.
    pub cancel_grace_ms: u32,
}

/// What to do next, in this order.
#[derive(Debug)]
pub enum Act {
    /// A frame for a worker, if it is linked.
    Send(WorkerId, ToWorker),
    /// Commit a start; then, for an at-most-once attempt, allow it.
    Start {
        /// [`Transition::Start`].
        transition: Transition,
        /// Which attempt is to be told `StartCommitted`, and where.
        allow: Option<(AttemptId, WorkerId)>,
    },
    /// Commit that a worker gave it back; then it is runnable again.
    Recall(Box<Expected>),
    /// Commit an end; then free the room, and acknowledge if it was reported.
    End {
        /// What was expected.
        expected: Box<Expected>,
        /// What to commit.
        end: Box<AttemptEnd>,
        /// Whether the worker waits for `FinishStored`.
        acknowledge: bool,
    },
    /// Check the report's log and outputs, which are to be those of the job, then hand it to [`Book::verified`].
    Verify(WorkerId, Box<FinalReport>, Arc<JobRecord>),
    /// The report is about an attempt that is not followed: keep it as superseded and acknowledge.
    Supersede(WorkerId, Box<FinalReport>),
    /// Tell the dispatcher that the worker's report is judged.
    Ready {
        /// The worker.
        worker: WorkerId,
        /// Its session.
        session: SessionId,
        /// What it keeps.
        held: Vec<(AttemptId, Resources)>,
    },
}

#[derive(Debug, Default)]
struct Worker {
    boot: Option<BootId>,
    session: Option<SessionId>,
    /// Whether the state report of this session was judged.
    judged: bool,
    renewed_ms: u64,
}

/// All live attempts.
#[derive(Debug)]
pub struct Book {
    patience: Patience,
    attempts: BTreeMap<AttemptId, Followed>,
    /// Which of them are on a worker.
    on: HashMap<WorkerId, BTreeSet<AttemptId>>,
    workers: HashMap<WorkerId, Worker>,
    /// Cancels that overtook the word that their attempts were assigned, by when they came: gone when that word comes, or
    /// when it is clear that the attempt had ended before.
    early_cancels: HashMap<AttemptId, u64>,
}

impl Book {
    /// An empty book.
    pub fn new(patience: Patience) -> Self {
        Self {
            patience,
            attempts: BTreeMap::new(),
            on: HashMap::new(),
            workers: HashMap::new(),
            early_cancels: HashMap::new(),
        }
    }

    /// Follows these attempts from now on: no lease is judged before it has run its full length from here.
    pub fn expect(&mut self, attempts: Vec<Expected>, now_ms: u64) {
        for expected in attempts {
            let followed = Followed {
                phase: Phase::Sent,
                held: Held::No,
                since_ms: now_ms,
                word_ms: now_ms,
                cancelled: self.early_cancels.remove(&expected.attempt).is_some(),
                recall_sent: false,
                recall_at_ms: None,
                sent_on: self.workers.get(&expected.worker).and_then(|entry| entry.session),
                starting: None,
                allowed: None,
                before: (Phase::Sent, Held::No),
                reprieved: false,
                expected,
            };
            let Expected { attempt, worker, .. } = followed.expected;
            self.on.entry(worker).or_default().insert(attempt);
            self.attempts.insert(attempt, followed);
        }
    }

    /// As [`expect`](Self::expect), for attempts known from the store that are not followed: all of them after a
    /// restart, later what got lost.
    pub fn restore(&mut self, attempts: Vec<(Expected, Option<Timestamp>)>, now_ms: u64) {
        for (expected, started_at) in attempts {
            let (id, worker, cancelled) = (expected.attempt, expected.worker, expected.job.cancel_requested);
            if self.attempts.contains_key(&id) {
                continue;
            }
            self.expect(vec![expected], now_ms);
            if let Some(followed) = self.attempts.get_mut(&id) {
                // What is only assigned may have been sent and accepted: never taken for unsent without a report.
                followed.phase = started_at.map_or(Phase::Sent, Phase::Started);
                followed.cancelled |= cancelled;
                followed.sent_on = None;
                // A worker that is linked is to report its state: a renewal without this attempt does not match.
                let is_judged = self.workers.get(&worker).is_some_and(|entry| entry.judged);
                followed.held = if is_judged { Held::Live } else { Held::No };
            }
        }
    }

    /// A link came up.
    pub fn link_up(&mut self, worker: WorkerId, boot: BootId, session: SessionId, now_ms: u64) {
        let entry = self.workers.entry(worker).or_insert_with(|| Worker { renewed_ms: now_ms, ..Worker::default() });
        entry.session = Some(session);
        entry.judged = false;
        entry.boot = Some(boot);
    }

    /// A link closed; its leases run on.
    pub fn link_down(&mut self, worker: WorkerId, session: SessionId) {
        if let Some(entry) = self.workers.get_mut(&worker)
            && entry.session == Some(session)
        {
            entry.session = None;
            entry.judged = false;
        }
    }

    /// Whether frames of this session are still to be heard.
    pub fn is_current(&self, worker: WorkerId, session: SessionId) -> bool {
        self.workers.get(&worker).is_some_and(|entry| entry.session == Some(session))
    }

    fn followed_on(&self, worker: WorkerId) -> Vec<AttemptId> {
        self.on.get(&worker).into_iter().flatten().copied().collect()
    }

    fn own(&mut self, worker: WorkerId, attempt: AttemptId) -> Option<&mut Followed> {
        self.attempts.get_mut(&attempt).filter(|followed| followed.expected.worker == worker)
    }

    /// The worker has it in its spool.
    pub fn accepted(&mut self, worker: WorkerId, attempt: AttemptId) -> Vec<Act> {
        let grace_ms = self.patience.cancel_grace_ms;
        match self.own(worker, attempt) {
            Some(followed) if followed.phase != Phase::Ending => {
                followed.held = Held::Live;
                if followed.phase == Phase::Sent {
                    followed.phase = Phase::Accepted;
                }
                if followed.cancelled { vec![cancel(worker, attempt, grace_ms)] } else { Vec::new() }
            }
            _ => vec![Act::Send(worker, ToWorker::Abandon { attempt })],
        }
    }

    /// An at-most-once attempt asks whether it may start. It may once in one life of the worker: a later life cannot know
    /// whether the earlier one started it.
    pub fn may_start(&mut self, worker: WorkerId, attempt: AttemptId, now: Timestamp) -> Vec<Act> {
        let grace_ms = self.patience.cancel_grace_ms;
        let boot = self.workers.get(&worker).and_then(|entry| entry.boot);
        match self.own(worker, attempt) {
            Some(followed) if followed.cancelled => vec![cancel(worker, attempt, grace_ms)],
            Some(followed) if matches!(followed.phase, Phase::Accepted | Phase::Sent) => {
                followed.phase = Phase::Started(now);
                followed.starting = boot;
                let transition = Transition::Start { attempt, worker, started_at: now };
                vec![Act::Start { transition, allow: Some((attempt, worker)) }]
            }
            // The answer follows the commit.
            Some(Followed { phase: Phase::Started(_), starting, .. }) if starting.is_some() && *starting == boot => {
                Vec::new()
            }
            Some(Followed { phase: Phase::Started(_), allowed, .. }) if allowed.is_some() && *allowed == boot => {
                vec![Act::Send(worker, ToWorker::StartCommitted { attempt })]
            }
            Some(Followed { phase: Phase::Started(_), .. }) => {
                let detail = "it was allowed to start before, and may have run".to_owned();
                let mut acts = vec![Act::Send(worker, ToWorker::Abandon { attempt })];
                acts.extend(self.lose(attempt, LossReason::WorkerRestarted, detail, now));
                acts
            }
            _ => vec![Act::Send(worker, ToWorker::Abandon { attempt })],
        }
    }

    /// The start that an at-most-once attempt asked for is committed: whether the worker that asked may be told.
    pub fn start_committed(&mut self, worker: WorkerId, attempt: AttemptId) -> bool {
        let boot = self.workers.get(&worker).and_then(|entry| entry.boot);
        let Some(followed) = self.own(worker, attempt) else { return false };
        followed.allowed = followed.starting.take();
        followed.allowed == boot && matches!(followed.phase, Phase::Started(_))
    }

    /// The store refuses the start that an at-most-once attempt asked for. Without a word of the core it never starts,
    /// so it counts as given back.
    pub fn start_refused(&mut self, worker: WorkerId, attempt: AttemptId) -> Vec<Act> {
        let Some(followed) = self.own(worker, attempt) else { return Vec::new() };
        if followed.starting.take().is_none() || !matches!(followed.phase, Phase::Started(_)) {
            return Vec::new();
        }
        followed.phase = Phase::Accepted;
        let mut acts = vec![Act::Send(worker, ToWorker::Abandon { attempt })];
        acts.extend(self.given_back(worker, attempt));
        acts
    }

    /// Its container runs.
    pub fn started(&mut self, worker: WorkerId, attempt: AttemptId, at: Timestamp) -> Vec<Act> {
        match self.own(worker, attempt) {
            Some(followed) if matches!(followed.phase, Phase::Sent | Phase::Accepted) => {
                followed.phase = Phase::Started(at);
                vec![Act::Start { transition: Transition::Start { attempt, worker, started_at: at }, allow: None }]
            }
            Some(_) => Vec::new(),
            None => vec![Act::Send(worker, ToWorker::Abandon { attempt })],
        }
    }

    /// A piece of its log arrived: whether it is to be kept.
    pub fn log_came(&mut self, worker: WorkerId, attempt: AttemptId, now_ms: u64) -> bool {
        self.own(worker, attempt).map(|followed| followed.word_ms = now_ms).is_some()
    }

    /// The cancel of these attempts is committed.
    pub fn cancel(&mut self, attempts: &[(AttemptId, WorkerId)], now_ms: u64) -> Vec<Act> {
        let grace_ms = self.patience.cancel_grace_ms;
        let mut acts = Vec::new();
        for &(attempt, worker) in attempts {
            if let Some(followed) = self.own(worker, attempt) {
                followed.cancelled = true;
                acts.push(cancel(worker, attempt, grace_ms));
            } else {
                self.early_cancels.insert(attempt, now_ms);
            }
        }
        acts
    }

    /// The worker an attempt is followed on.
    pub fn worker_of(&self, attempt: AttemptId) -> Option<WorkerId> {
        self.attempts.get(&attempt).map(|followed| followed.expected.worker)
    }
}

fn cancel(worker: WorkerId, attempt: AttemptId, grace_ms: u32) -> Act {
    Act::Send(worker, ToWorker::Cancel { attempt, grace_ms })
}
