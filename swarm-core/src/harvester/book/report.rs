//! What a worker says it holds, judged.

use std::collections::HashMap;

use swarm_protocol::link::{HeldAttempt, HeldPhase, ToWorker};
use swarm_protocol::{AttemptId, LossReason, SessionId, Timestamp, WorkerId};

use super::followed::{Held, Phase};
use super::{Act, Book, cancel};
use crate::store::Transition;

impl Book {
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
}
