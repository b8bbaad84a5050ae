//! Final reports about attempts that are not followed: repetitions, or too late. A worker may send any number of them,
//! and each costs a read and perhaps a commit; so each worker's are settled one after the other, and few may wait.

use std::collections::{HashMap, VecDeque};

use swarm_protocol::link::FinalReport;
use swarm_protocol::{AttemptId, Outcome, WorkerId};

/// Reports of one worker that may wait. What comes beyond is not answered, so that its worker repeats it.
const WAITING_MAX: usize = 64;

/// What is left of a late report.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LateReport {
    /// Whose end.
    pub(super) attempt: AttemptId,
    /// What its worker said of it.
    pub(super) outcome: Outcome,
}

/// The queues of all workers.
#[derive(Debug, Default)]
pub(super) struct Late {
    /// There is an entry while a report of the worker is being settled.
    waiting: HashMap<WorkerId, VecDeque<LateReport>>,
}

impl Late {
    /// Takes in a report; the answer is to be settled now.
    pub(super) fn add(&mut self, worker: WorkerId, report: FinalReport) -> Option<LateReport> {
        let late = LateReport { attempt: report.attempt, outcome: report.outcome };
        let Some(waiting) = self.waiting.get_mut(&worker) else {
            self.waiting.insert(worker, VecDeque::new());
            return Some(late);
        };
        if waiting.len() >= WAITING_MAX {
            tracing::debug!(%worker, attempt = %late.attempt, "too many late reports at once: this one is not heard");
        } else if waiting.iter().all(|before| before.attempt != late.attempt) {
            waiting.push_back(late);
        }
        None
    }

    /// A report of `worker` is settled; the answer is its next one.
    pub(super) fn settled(&mut self, worker: WorkerId) -> Option<LateReport> {
        let next = self.waiting.get_mut(&worker)?.pop_front();
        if next.is_none() {
            self.waiting.remove(&worker);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use swarm_protocol::JobId;

    use super::*;
    use crate::testing::report;

    fn of(job: u64) -> FinalReport {
        report(AttemptId { job: JobId(job), task: 0, attempt: 1 }, Outcome::Succeeded)
    }

    #[test]
    fn one_is_settled_at_a_time_and_few_wait() {
        let (mut late, worker) = (Late::default(), WorkerId(1));
        assert_eq!(late.add(worker, of(0)).unwrap().attempt.job, JobId(0));
        for job in 1..1000 {
            assert_eq!(late.add(worker, of(job)), None);
            assert_eq!(late.add(worker, of(job)), None, "doubled");
        }
        assert!(late.add(WorkerId(2), of(7)).is_some(), "another worker does not wait for this one");
        let settled: Vec<u64> = std::iter::from_fn(|| late.settled(worker)).map(|late| late.attempt.job.0).collect();
        assert_eq!(settled, (1..=WAITING_MAX as u64).collect::<Vec<_>>());
        assert!(late.add(worker, of(999)).is_some(), "repeated, it has its turn");
    }
}
