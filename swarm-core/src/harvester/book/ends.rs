//! How attempts end: by a report, by being given back, or by a verdict of the core.

use std::sync::Arc;

use swarm_protocol::link::FinalReport;
use swarm_protocol::{AttemptId, LossReason, Outcome, Timestamp, WorkerId};

use super::followed::{Held, Phase};
use super::{Act, Book};
use crate::harvester::retry;
use crate::store::AttemptEnd;

/// Until a recall that the database refused is repeated, in milliseconds; each one that it refuses holds up the ledger.
const RECALL_AGAIN_MS: u64 = 10_000;

impl Book {
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
                vec![Act::Verify(worker, report, Arc::clone(&followed.expected.job))]
            }
            // It is being committed: the acknowledgement follows.
            Some(_) => Vec::new(),
            None => vec![Act::Supersede(worker, report)],
        }
    }

    /// The report's log and outputs are there and are those of the job, or `problem` says what is not.
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

    /// Its order was not sent and will not be: the task waits again, and no attempt was lost.
    pub fn unsent(&mut self, attempt: AttemptId) -> Vec<Act> {
        let worker = self.worker_of(attempt);
        let was_sent_only = self.attempts.get(&attempt).is_some_and(|followed| followed.phase == Phase::Sent);
        worker.filter(|_| was_sent_only).map(|worker| self.given_back(worker, attempt)).unwrap_or_default()
    }

    /// Ends an attempt by a verdict of the core.
    pub(super) fn lose(
        &mut self,
        attempt: AttemptId,
        reason: LossReason,
        detail: String,
        now: Timestamp,
    ) -> Option<Act> {
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
            // Whoever commits it looks what is kept; nobody knows how much it lacks.
            log_bytes: 0,
            log_cut_bytes: may_have_run.into(),
            outputs: Vec::new(),
            usage: None,
        };
        Some(Act::End { expected: Box::new(expected), end: Box::new(end), acknowledge: false })
    }

    /// An operator's word that a worker is gone for good.
    pub fn declare_lost(&mut self, worker: WorkerId, now: Timestamp) -> Vec<Act> {
        let detail = "an operator declared the worker lost; its containers may still run";
        let ending = |attempt: &AttemptId| self.attempts[attempt].phase == Phase::Ending;
        let attempts: Vec<_> = self.followed_on(worker).into_iter().filter(|attempt| !ending(attempt)).collect();
        let lose = |attempt| self.lose(attempt, LossReason::DeclaredLost, detail.to_owned(), now);
        attempts.into_iter().filter_map(lose).collect()
    }

    /// The end or recall is committed, or refused because something overtook it: it is followed no more.
    pub fn settled(&mut self, attempt: AttemptId) {
        let Some(followed) = self.attempts.remove(&attempt) else { return };
        let worker = followed.expected.worker;
        if let Some(on) = self.on.get_mut(&worker) {
            on.remove(&attempt);
            if on.is_empty() {
                self.on.remove(&worker);
            }
        }
    }

    /// The core cannot read now what the report is about: it is followed as before, and its worker had its word.
    pub fn unread(&mut self, attempt: AttemptId, now_ms: u64) {
        self.refused(attempt, now_ms);
        if let Some(followed) = self.attempts.get_mut(&attempt) {
            followed.word_ms = now_ms;
        }
    }

    /// The database refuses its recall. It was given back all the same, so nothing that its worker says or leaves unsaid
    /// is held against it: the recall is repeated until it holds.
    pub fn recall_refused(&mut self, attempt: AttemptId, now_ms: u64) {
        if let Some(followed) = self.attempts.get_mut(&attempt) {
            followed.recall_at_ms = Some(now_ms + RECALL_AGAIN_MS);
        }
    }

    /// The database refuses its end: it is followed as before. A lease begins anew, so that its worker can
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
}
