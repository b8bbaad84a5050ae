//! One live attempt, and when it is given up.

use swarm_protocol::{BootId, LossReason, SessionId, Timestamp};

use super::Patience;
use crate::messages::Expected;

/// How long the report of an attempt that is said to have ended is awaited, at least, in milliseconds: ten times what a
/// worker lets pass between its repetitions.
const REPORT_MIN_MS: u64 = 300_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
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
pub(super) enum Held {
    /// Nothing.
    No,
    /// In its live set: accepted and not ended.
    Live,
    /// Its container is gone; its log and its report are on their way.
    Ended,
}

/// Why an attempt is given up, in one word and in several.
pub(super) type Expiry = (LossReason, String);

#[derive(Debug)]
pub(super) struct Followed {
    pub(super) expected: Expected,
    pub(super) phase: Phase,
    pub(super) held: Held,
    pub(super) since_ms: u64,
    /// The worker's last word of its end: its state in the first report of a link, a piece of its log, or a final report
    /// that the core could not check.
    pub(super) word_ms: u64,
    pub(super) cancelled: bool,
    pub(super) recall_sent: bool,
    /// It was given back, the database refused that, and this is when it is tried again.
    pub(super) recall_at_ms: Option<u64>,
    /// The session its order goes out on: a state report of that session may have crossed it on the way.
    pub(super) sent_on: Option<SessionId>,
    /// The worker's life that asked to start this at-most-once attempt; its start is being committed.
    pub(super) starting: Option<BootId>,
    /// The worker's life that was allowed to start it.
    pub(super) allowed: Option<BootId>,
    /// Where it stood before [`Phase::Ending`].
    pub(super) before: (Phase, Held),
    /// Whether its lease began anew when the database refused its end.
    pub(super) reprieved: bool,
}

impl Followed {
    pub(super) fn ending(&mut self) {
        self.before = (self.phase, self.held);
        (self.phase, self.held) = (Phase::Ending, Held::No);
    }

    /// Why it is to be given up, if it is. `renewed_ms` is its worker's last renewal.
    pub(super) fn expiry(&self, renewed_ms: Option<u64>, patience: &Patience, now_ms: u64) -> Option<Expiry> {
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
