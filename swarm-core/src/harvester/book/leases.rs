//! Leases: what renews them, and what has run out.

use swarm_protocol::link::{LiveSet, ToWorker, live_hash};
use swarm_protocol::{AttemptId, SessionId, Timestamp, WorkerId};

use super::followed::{Held, Phase};
use super::{Act, Book};
use crate::messages::Expected;

/// How long a cancel waits for the word that its attempt was assigned, in milliseconds; that word is on its way.
const EARLY_CANCEL_MS: u64 = 600_000;

impl Book {
    /// Renews the leases of all that the worker holds, if its live set is what the worker says it is. What has ended is
    /// not in that set, but its worker is there and will report.
    pub fn renew(&mut self, worker: WorkerId, session: SessionId, live: LiveSet, now_ms: u64) -> bool {
        let is_live = |attempt: &&AttemptId| self.attempts.get(attempt).is_some_and(|f| f.held == Held::Live);
        let ours = live_hash(self.on.get(&worker).into_iter().flatten().filter(is_live));
        let Some(entry) = self.workers.get_mut(&worker) else { return false };
        let matched = entry.session == Some(session) && entry.judged && ours == live;
        if matched {
            entry.renewed_ms = now_ms;
        }
        matched
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
        for followed in self.attempts.values_mut() {
            if followed.phase == Phase::Ending {
                let due = followed.recall_at_ms.take_if(|at_ms| *at_ms <= now_ms);
                acts.extend(due.map(|_| Act::Recall(Box::new(followed.expected.clone()))));
                continue;
            }
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
}
