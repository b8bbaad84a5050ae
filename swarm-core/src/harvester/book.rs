//! What the harvester knows of every live attempt, and what follows from an event. Pure: no clock, no channel, no store;
//! each event returns the acts to carry out.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::TimeDelta;
use swarm_protocol::link::{FinalReport, HeldAttempt, HeldPhase, LiveSet, ToWorker, live_hash};
use swarm_protocol::spec::Resources;
use swarm_protocol::{AttemptId, BootId, LossReason, Outcome, SessionId, Timestamp, WorkerId};

use super::retry;
use crate::messages::Expected;
use crate::store::{AttemptEnd, Transition};

/// How long the report of an attempt that is said to have ended is awaited, at least, in milliseconds: ten times what a
/// worker lets pass between its repetitions.
const REPORT_MIN_MS: u64 = 300_000;

/// How long a cancel waits for the word that its attempt was assigned, in milliseconds; that word is on its way.
const EARLY_CANCEL_MS: u64 = 600_000;

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
    /// SIGTERM to SIGKILL when a job is cancelled, as the worker counts.
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
    /// Check the report's log and outputs, then hand it to [`Book::verified`].
    Verify(WorkerId, Box<FinalReport>),
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Committed, perhaps sent; nothing heard.
    Sent,
    /// The worker has it.
    Accepted,
    /// Its container runs.
    Started(Timestamp),
    /// A report or a verdict is being committed: nothing else may judge it.
    Ending,
}

/// What the worker has of an attempt, as far as it has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// Nothing.
    No,
    /// In its live set: accepted and not ended.
    Live,
    /// Its container is gone; its log and its report are on their way.
    Ended,
}

/// Why an attempt is given up, in one word and in several.
type Expiry = (LossReason, String);

#[derive(Debug)]
struct Followed {
    expected: Expected,
    phase: Phase,
    held: Held,
    since_ms: u64,
    /// The worker's last word of its end: its state in the first report of a link, or a piece of its log.
    word_ms: u64,
    cancelled: bool,
    recall_sent: bool,
    /// The session its order goes out on: a state report of that session may have crossed it on the way.
    sent_on: Option<SessionId>,
    /// The worker's life that asked to start this at-most-once attempt; its start is being committed.
    starting: Option<BootId>,
    /// The worker's life that was allowed to start it.
    allowed: Option<BootId>,
    /// Where it stood before [`Phase::Ending`].
    before: (Phase, Held),
    /// Whether its lease began anew when the database refused its end.
    reprieved: bool,
}

impl Followed {
    fn ending(&mut self) {
        self.before = (self.phase, self.held);
        (self.phase, self.held) = (Phase::Ending, Held::No);
    }

    /// Why it is to be given up, if it is. `renewed_ms` is its worker's last renewal.
    fn expiry(&self, renewed_ms: Option<u64>, patience: &Patience, now_ms: u64) -> Option<Expiry> {
        // A renewal counts for what the worker said it holds; the rest runs from its assignment.
        let renewed_ms = renewed_ms.filter(|_| self.held != Held::No).unwrap_or(0);
        let silent_ms = now_ms.saturating_sub(renewed_ms.max(self.since_ms));
        let wordless_ms = now_ms.saturating_sub(self.word_ms.max(self.since_ms));
        let preparing_ms = now_ms.saturating_sub(self.since_ms);
        let lease_ms = self.expected.lease_ms;
        let lease = |detail| Some((LossReason::LeaseExpired, detail));
        if silent_ms > lease_ms + patience.lease_margin_ms {
            lease(format!("no renewal for {} s", silent_ms / 1000))
        } else if self.held == Held::Ended && wordless_ms > lease_ms.max(REPORT_MIN_MS) + patience.lease_margin_ms {
            lease(format!("it ended, and no report of it could be kept for {} s", wordless_ms / 1000))
        } else if self.expected.job.spec.eager && self.held != Held::No && silent_ms > patience.suspect_after_ms {
            lease(format!("suspected after {} s, and the job is eager", silent_ms / 1000))
        } else if self.phase == Phase::Accepted
            && self.held == Held::Live
            && preparing_ms > patience.prepare_deadline_ms
        {
            let detail = format!("its worker had it for {} s without starting it", preparing_ms / 1000);
            Some((LossReason::StartDeadline, detail))
        } else {
            None
        }
    }
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
    workers: HashMap<WorkerId, Worker>,
    /// Cancels that overtook the word that their attempts were assigned, by when they came: gone when that word comes, or
    /// when it is clear that the attempt had ended before.
    early_cancels: HashMap<AttemptId, u64>,
}

impl Book {
    /// An empty book.
    pub fn new(patience: Patience) -> Self {
        Self { patience, attempts: BTreeMap::new(), workers: HashMap::new(), early_cancels: HashMap::new() }
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
                sent_on: self.workers.get(&expected.worker).and_then(|entry| entry.session),
                starting: None,
                allowed: None,
                before: (Phase::Sent, Held::No),
                reprieved: false,
                expected,
            };
            self.attempts.insert(followed.expected.attempt, followed);
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

    /// A final report arrived; its log and outputs are to be checked first.
    pub fn finished(&mut self, worker: WorkerId, mut report: Box<FinalReport>) -> Vec<Act> {
        match self.own(worker, report.attempt) {
            Some(followed) if followed.phase != Phase::Ending => {
                // A worker that restarted and finds nothing left may not know of the start that was reported before.
                if let (Phase::Started(at), None, true) =
                    (followed.phase, report.started_at_us, report.outcome.is_lost())
                {
                    report.started_at_us = u64::try_from(at.timestamp_micros()).ok();
                }
                followed.held = Held::Ended;
                followed.ending();
                vec![Act::Verify(worker, report)]
            }
            // It is being committed: the acknowledgement follows.
            Some(_) => Vec::new(),
            None => vec![Act::Supersede(worker, report)],
        }
    }

    /// The report's log and outputs are there, or `problem` says what is not.
    pub fn verified(
        &mut self,
        worker: WorkerId,
        report: FinalReport,
        problem: Option<String>,
        now: Timestamp,
    ) -> Vec<Act> {
        let Some(followed) = self.own(worker, report.attempt) else {
            return vec![Act::Supersede(worker, Box::new(report))];
        };
        let problem = problem.or_else(|| misnamed(&followed.expected, &report));
        // Nothing is handed out of a report that does not hold.
        let (outcome, outputs) = match problem {
            None => (report.outcome, report.outputs),
            Some(detail) => (Outcome::Lost { reason: LossReason::Transfer, detail }, Vec::new()),
        };
        let stamp =
            |us: Option<u64>| us.and_then(|us| chrono::DateTime::from_timestamp_micros(i64::try_from(us).ok()?));
        let started_at = stamp(report.started_at_us);
        let expected = followed.expected.clone();
        // Without a commit before the start, a worker that restarted cannot know that its former self did not start it.
        let unseen = matches!(outcome, Outcome::Lost { reason: LossReason::WorkerRestarted, .. });
        let may_have_run = outcome.is_lost() && (started_at.is_some() || (unseen && !expected.job.spec.at_most_once));
        // The engine stamps the start of a short container after its end now and then.
        let ended_at = stamp(report.finished_at_us).unwrap_or(now);
        let ended_at = started_at.map_or(ended_at, |started_at| ended_at.max(started_at));
        let end = AttemptEnd {
            attempt: report.attempt,
            worker,
            next: retry::after(&expected, &outcome, may_have_run, now),
            outcome,
            started_at,
            ended_at,
            ran_ms: report.ran_ms,
            may_have_run,
            log_bytes: report.log_bytes,
            log_cut_bytes: report.log_cut_bytes,
            outputs,
            usage: Some(report.usage),
        };
        vec![Act::End { expected: Box::new(expected), end: Box::new(end), acknowledge: true }]
    }

    /// The worker gave it back unstarted.
    pub fn given_back(&mut self, worker: WorkerId, attempt: AttemptId) -> Vec<Act> {
        match self.own(worker, attempt) {
            Some(followed) if matches!(followed.phase, Phase::Sent | Phase::Accepted) => {
                followed.ending();
                vec![Act::Recall(Box::new(followed.expected.clone()))]
            }
            _ => Vec::new(),
        }
    }

    /// Everything the worker holds, judged: what it should hold and does not is freed, what it holds and should not is
    /// abandoned, the rest goes on.
    pub fn state_report(
        &mut self,
        worker: WorkerId,
        session: SessionId,
        seq: u64,
        held: &[HeldAttempt],
        now_ms: u64,
        now: Timestamp,
    ) -> Vec<Act> {
        let mut acts = Vec::new();
        let reported: HashMap<_, _> = held.iter().map(|held| (held.attempt, held.phase)).collect();
        let is_first = self.workers.get(&worker).is_some_and(|entry| !entry.judged);
        let followed: Vec<_> = self.followed_on(worker);
        for attempt in followed {
            match reported.get(&attempt) {
                Some(phase) => {
                    acts.extend(self.still_held(worker, attempt, *phase));
                    self.note_end(attempt, *phase, is_first, now_ms);
                }
                None => acts.extend(self.not_held(worker, session, attempt, now)),
            }
        }
        // Ended ones are not abandoned: their final report follows and is kept as superseded.
        let unknown = |held: &&HeldAttempt| held.phase != HeldPhase::Ended && !self.is_own(worker, held.attempt);
        let abandon = held.iter().filter(unknown).map(|held| held.attempt).collect();
        acts.push(Act::Send(worker, ToWorker::StateJudged { seq, abandon }));
        if let Some(entry) = self.workers.get_mut(&worker) {
            entry.judged = true;
            entry.renewed_ms = now_ms;
        }
        let needs = |attempt: AttemptId| self.attempts.get(&attempt).map(|f| (attempt, f.expected.needs));
        let held = self.followed_on(worker).into_iter().filter_map(needs).collect();
        acts.push(Act::Ready { worker, session, held });
        acts
    }

    fn is_own(&self, worker: WorkerId, attempt: AttemptId) -> bool {
        self.attempts.get(&attempt).is_some_and(|followed| followed.expected.worker == worker)
    }

    fn followed_on(&self, worker: WorkerId) -> Vec<AttemptId> {
        self.attempts.values().filter(|f| f.expected.worker == worker).map(|f| f.expected.attempt).collect()
    }

    fn still_held(&mut self, worker: WorkerId, attempt: AttemptId, phase: HeldPhase) -> Vec<Act> {
        let grace_ms = self.patience.cancel_grace_ms;
        let Some(followed) = self.own(worker, attempt) else { return Vec::new() };
        if followed.phase == Phase::Ending {
            return Vec::new();
        }
        let mut acts = Vec::new();
        if let HeldPhase::Running { started_at_us } = phase
            && !matches!(followed.phase, Phase::Started(_))
            && let Some(at) = i64::try_from(started_at_us).ok().and_then(chrono::DateTime::from_timestamp_micros)
        {
            followed.phase = Phase::Started(at);
            let transition = Transition::Start { attempt, worker, started_at: at };
            acts.push(Act::Start { transition, allow: None });
        } else if followed.phase == Phase::Sent {
            followed.phase = Phase::Accepted;
        }
        if followed.cancelled && phase != HeldPhase::Ended {
            acts.push(cancel(worker, attempt, grace_ms));
        }
        acts
    }

    /// Whether a reported attempt has ended. The first report that says so, and the first of each link, begin the wait
    /// for the final report anew; others would let a worker that cannot read its own log be waited for without end.
    fn note_end(&mut self, attempt: AttemptId, phase: HeldPhase, is_first: bool, now_ms: u64) {
        let Some(followed) = self.attempts.get_mut(&attempt).filter(|followed| followed.phase != Phase::Ending) else {
            return;
        };
        let held = if phase == HeldPhase::Ended { Held::Ended } else { Held::Live };
        if is_first || followed.held != held {
            followed.word_ms = now_ms;
        }
        followed.held = held;
    }

    /// The worker's own word that it does not have it. What was never accepted never began; what was accepted is gone
    /// with the worker's former life.
    fn not_held(&mut self, worker: WorkerId, session: SessionId, attempt: AttemptId, now: Timestamp) -> Vec<Act> {
        let Some(followed) = self.own(worker, attempt) else { return Vec::new() };
        match followed.phase {
            Phase::Ending => Vec::new(),
            // The report was written before the order arrived; the start deadline looks after an order that got lost.
            Phase::Sent if followed.sent_on == Some(session) => Vec::new(),
            Phase::Sent => self.given_back(worker, attempt),
            Phase::Accepted | Phase::Started(_) => {
                let detail = "the worker came back without it".to_owned();
                self.lose(attempt, LossReason::WorkerRestarted, detail, now).into_iter().collect()
            }
        }
    }

    /// Ends an attempt by a verdict of the core.
    fn lose(&mut self, attempt: AttemptId, reason: LossReason, detail: String, now: Timestamp) -> Option<Act> {
        let followed = self.attempts.get_mut(&attempt)?;
        let started_at = if let Phase::Started(at) = followed.phase { Some(at) } else { None };
        followed.ending();
        followed.reprieved = false;
        let expected = followed.expected.clone();
        // A committed order may have reached the worker, and the worker may have started it; only the start of an
        // at-most-once attempt is known to wait for its own commit.
        let may_have_run = !expected.job.spec.at_most_once || started_at.is_some();
        let outcome = Outcome::Lost { reason, detail };
        let end = AttemptEnd {
            attempt,
            worker: expected.worker,
            next: retry::after(&expected, &outcome, may_have_run, now),
            outcome,
            started_at,
            ended_at: now,
            ran_ms: None,
            may_have_run,
            log_bytes: 0,
            log_cut_bytes: 0,
            outputs: Vec::new(),
            usage: None,
        };
        Some(Act::End { expected: Box::new(expected), end: Box::new(end), acknowledge: false })
    }

    /// Renews the leases of all that the worker holds, if its live set is what the worker says it is. What has ended is
    /// not in that set, but its worker is there and will report.
    pub fn renew(&mut self, worker: WorkerId, session: SessionId, live: LiveSet, now_ms: u64) -> bool {
        let own = self.attempts.values().filter(|f| f.held == Held::Live && f.expected.worker == worker);
        let ours = live_hash(own.map(|followed| &followed.expected.attempt));
        let Some(entry) = self.workers.get_mut(&worker) else { return false };
        let matched = entry.session == Some(session) && entry.judged && ours == live;
        if matched {
            entry.renewed_ms = now_ms;
        }
        matched
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

    /// An admin's word that a worker is gone for good.
    pub fn declare_lost(&mut self, worker: WorkerId, now: Timestamp) -> Vec<Act> {
        let detail = "an admin declared the worker lost; its containers may still run";
        let ending = |attempt: &AttemptId| self.attempts[attempt].phase == Phase::Ending;
        let attempts: Vec<_> = self.followed_on(worker).into_iter().filter(|attempt| !ending(attempt)).collect();
        let lose = |attempt| self.lose(attempt, LossReason::DeclaredLost, detail.to_owned(), now);
        attempts.into_iter().filter_map(lose).collect()
    }

    /// The core itself was away: every lease begins anew, for its silence proves nothing about the workers.
    pub fn forgive(&mut self, now_ms: u64) {
        for followed in self.attempts.values_mut() {
            followed.since_ms = now_ms;
        }
        for worker in self.workers.values_mut() {
            worker.renewed_ms = now_ms;
        }
    }

    /// Judges what has run out. Called about once a second.
    pub fn sweep(&mut self, now_ms: u64, now: Timestamp) -> Vec<Act> {
        let mut acts = Vec::new();
        let mut expired = Vec::new();
        self.early_cancels.retain(|_, came_ms| now_ms.saturating_sub(*came_ms) <= EARLY_CANCEL_MS);
        for followed in self.attempts.values_mut().filter(|followed| followed.phase != Phase::Ending) {
            let Expected { attempt, worker, .. } = followed.expected;
            let entry = self.workers.get(&worker);
            if let Some((reason, detail)) = followed.expiry(entry.map(|entry| entry.renewed_ms), &self.patience, now_ms)
            {
                expired.push((attempt, reason, detail));
            } else if followed.phase == Phase::Sent
                && !followed.recall_sent
                && entry.is_some_and(|entry| entry.judged)
                && now_ms.saturating_sub(followed.since_ms) > self.patience.start_deadline_ms
            {
                followed.recall_sent = true;
                acts.push(Act::Send(worker, ToWorker::Recall { attempts: vec![attempt] }));
            }
        }
        for (attempt, reason, detail) in expired {
            acts.extend(self.lose(attempt, reason, detail, now));
        }
        acts
    }

    /// The end or recall is committed, or refused because something overtook it: it is followed no more.
    pub fn settled(&mut self, attempt: AttemptId) {
        self.attempts.remove(&attempt);
    }

    /// The database refuses its end or recall: it is followed as before. A lease begins anew, so that its worker can
    /// repeat its report, but reports that are refused again do not prolong that.
    pub fn refused(&mut self, attempt: AttemptId, now_ms: u64) {
        if let Some(followed) = self.attempts.get_mut(&attempt) {
            (followed.phase, followed.held) = followed.before;
            followed.recall_sent = false;
            if !std::mem::replace(&mut followed.reprieved, true) {
                followed.since_ms = now_ms;
            }
        }
    }

    /// The worker an attempt is followed on.
    pub fn worker_of(&self, attempt: AttemptId) -> Option<WorkerId> {
        self.attempts.get(&attempt).map(|followed| followed.expected.worker)
    }
}

/// What is wrong with the paths of a report's outputs: they are those of the job, or none when it did not succeed.
fn misnamed(expected: &Expected, report: &FinalReport) -> Option<String> {
    let wanted: BTreeSet<_> = expected.job.spec.outputs.iter().map(|output| output.path.as_str()).collect();
    let named: BTreeSet<_> = report.outputs.iter().map(|output| output.path.as_str()).collect();
    if named.len() != report.outputs.len() || !named.is_subset(&wanted) {
        return Some("it reports outputs that the job does not have".to_owned());
    }
    let missing = wanted.difference(&named).next().filter(|_| report.outcome == Outcome::Succeeded);
    missing.map(|path| format!("its output {path} is missing from the report"))
}

fn cancel(worker: WorkerId, attempt: AttemptId, grace_ms: u32) -> Act {
    Act::Send(worker, ToWorker::Cancel { attempt, grace_ms })
}

/// `ms` milliseconds as a time difference.
pub(super) fn delta_ms(ms: u64) -> TimeDelta {
    TimeDelta::milliseconds(i64::try_from(ms).unwrap_or(i64::MAX / 2))
}
