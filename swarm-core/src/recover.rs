//! What the modules begin with when the core starts: the store's snapshot, sorted by who looks after what. Pure.
//!
//! Everything that is not final has exactly one owner afterwards: tasks that may run go to the scheduler, tasks that
//! wait for an instant to the hibernator, attempts on workers to the harvester.

use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_protocol::{AttemptId, AttemptNo, JobId, TaskIndex, Timestamp};

use crate::harvester::retry;
use crate::messages::{Expected, Runnable, Shape};
use crate::store::{JobRecord, LivePhase, LiveTask, Snapshot, Work};

/// Who begins with what.
#[derive(Debug, Default)]
pub struct Recovered {
    /// For the scheduler.
    pub runnable: Vec<Runnable>,
    /// For the hibernator: until when, and what.
    pub delayed: Vec<(Timestamp, Runnable)>,
    /// For the harvester: attempts on workers, by worker, each with its start if that is known. Attempts of cancelled
    /// jobs are among them; their jobs say so.
    pub live: Vec<(Expected, Option<Timestamp>)>,
    /// Live rows without a job that is not final: the store is damaged if there are any.
    pub orphans: Vec<AttemptId>,
}

/// Sorts a snapshot at `now`.
#[must_use]
pub fn plan(jobs: Vec<JobRecord>, live: &[LiveTask], now: Timestamp) -> Recovered {
    let jobs: BTreeMap<JobId, Arc<JobRecord>> = jobs.into_iter().map(|job| (job.id, Arc::new(job))).collect();
    let mut recovered = Recovered::default();
    for job in jobs.values().filter(|job| !job.cancel_requested) {
        if let Some(range) = job.fresh() {
            recovered.add(job.spec.start_at.unwrap_or(now), work_of(job, Work::Fresh(range)), now);
        }
    }
    let mut again: BTreeMap<(JobId, Timestamp), Vec<(TaskIndex, AttemptNo)>> = BTreeMap::new();
    for task in live {
        let attempt = AttemptId { job: task.job, task: task.task, attempt: task.attempt };
        let Some(job) = jobs.get(&task.job) else {
            recovered.orphans.push(attempt);
            continue;
        };
        let (worker, started_at) = match task.phase {
            LivePhase::Waiting { not_before } => {
                again.entry((task.job, not_before)).or_default().push((task.task, task.attempt));
                continue;
            }
            LivePhase::Assigned { worker, .. } => (worker, None),
            LivePhase::Started { worker, started_at, .. } => (worker, Some(started_at)),
        };
        let (losses, failures) = (task.losses, task.failures);
        recovered.live.push((expected(job, attempt, worker, losses, failures), started_at));
    }
    for ((job, not_before), tasks) in again {
        if let Some(job) = jobs.get(&job).filter(|job| !job.cancel_requested) {
            recovered.add(retry::due(not_before, now), work_of(job, Work::Again(tasks)), now);
        }
    }
    recovered.runnable.sort_by_key(|work| work.job);
    recovered.delayed.sort_by_key(|(until, work)| (*until, work.job));
    recovered.live.sort_by_key(|(expected, _)| (expected.worker, expected.attempt));
    recovered
}

/// [`plan`] for a whole snapshot; its schedules go to the hibernator as they are.
#[must_use]
pub fn plan_snapshot(snapshot: Snapshot, now: Timestamp) -> (Recovered, Vec<crate::store::ScheduleRecord>) {
    (plan(snapshot.jobs, &snapshot.live, now), snapshot.schedules)
}

impl Recovered {
    fn add(&mut self, until: Timestamp, work: Runnable, now: Timestamp) {
        if until > now {
            self.delayed.push((until, work));
        } else {
            self.runnable.push(work);
        }
    }
}

/// Tasks of a job as something to run. All are as old as the job, however often they ran before.
pub(crate) fn work_of(job: &JobRecord, work: Work) -> Runnable {
    let (priority, runnable_since, shape) = (job.spec.priority, job.runnable_since(), Shape::of(&job.spec));
    Runnable { job: job.id, group: job.group, priority, runnable_since, shape, work }
}

/// What the harvester is told of an attempt.
pub(crate) fn expected(
    job: &Arc<JobRecord>,
    attempt: AttemptId,
    worker: swarm_protocol::WorkerId,
    losses: u16,
    failures: u16,
) -> Expected {
    let lease_ms = job.spec.lease_s.saturating_mul(1000);
    Expected { attempt, worker, needs: job.needs(), lease_ms, losses, failures, job: Arc::clone(job) }
}

#[cfg(test)]
mod tests {
    use swarm_protocol::{TaskRange, WorkerId};

    use super::*;
    use crate::testing::{at, job_record};

    fn live(job: u64, task: u32, attempt: u16, phase: LivePhase) -> LiveTask {
        LiveTask { job: JobId(job), task, attempt, phase, losses: 1, failures: 0 }
    }

    #[test]
    fn a_clock_that_was_set_back_delays_no_job_and_a_retry_by_a_backoff_at_most() {
        let mut job = job_record(1);
        (job.submitted_at, job.spec.array, job.next_fresh) = (at(9000), TaskRange::new(0, 9), 1);
        let waiting = live(1, 0, 2, LivePhase::Waiting { not_before: at(9000) });
        let plan = plan(vec![job], &[waiting], at(1000));
        let works: Vec<_> = plan.runnable.iter().map(|work| work.work.clone()).collect();
        assert_eq!(works, [Work::Fresh(TaskRange { first: 1, last: 9 })]);
        let delayed: Vec<_> = plan.delayed.iter().map(|(until, work)| (*until, work.work.clone())).collect();
        assert_eq!(delayed, [(at(1300), Work::Again(vec![(0, 2)]))]);
    }

    #[test]
    fn everything_that_is_not_final_gets_exactly_one_owner() {
        let now = at(1000);
        let mut array = job_record(1);
        array.spec.array = TaskRange::new(0, 9);
        array.next_fresh = 6;
        let mut delayed = job_record(2);
        delayed.spec.start_at = Some(at(5000));
        let mut cancelled = job_record(3);
        cancelled.cancel_requested = true;
        let rows = [
            live(1, 0, 2, LivePhase::Waiting { not_before: at(900) }),
            live(1, 1, 3, LivePhase::Waiting { not_before: at(1001) }),
            live(1, 2, 1, LivePhase::Assigned { worker: WorkerId(7), at: at(10) }),
            live(3, 0, 1, LivePhase::Started { worker: WorkerId(4), at: at(10), started_at: at(20) }),
            live(9, 0, 1, LivePhase::Assigned { worker: WorkerId(7), at: at(10) }),
        ];
        let plan = plan(vec![array, delayed, cancelled], &rows, now);
        let works: Vec<_> = plan.runnable.iter().map(|work| (work.job.0, work.work.clone())).collect();
        assert_eq!(works, [(1, Work::Fresh(TaskRange { first: 6, last: 9 })), (1, Work::Again(vec![(0, 2)]))]);
        let delayed: Vec<_> = plan.delayed.iter().map(|(until, work)| (*until, work.job.0)).collect();
        assert_eq!(delayed, [(at(1001), 1), (at(5000), 2)]);
        let ages: Vec<_> = plan.runnable.iter().chain([&plan.delayed[0].1]).map(|work| work.runnable_since).collect();
        assert_eq!(ages, [at(0); 3], "what runs again is as old as its job");
        let live: Vec<_> = plan.live.iter().map(|(e, s)| (e.worker.0, e.attempt.job.0, e.losses, *s)).collect();
        assert_eq!(live, [(4, 3, 1, Some(at(20))), (7, 1, 1, None)]);
        assert_eq!(plan.orphans.len(), 1);
    }
}
