//! What may be said or begun after its commit only, each time it is said or begun compared with what the store holds. An
//! end that looks right does not tell whether somebody was promised something too early: that shows only where a crash
//! falls into the gap, and gaps are short.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use swarm_core::store::{Applied, Refusal, Transition, Verdict};
use swarm_protocol::link::{ToWorker, VERSION, decode};
use swarm_protocol::{AttemptId, Epoch, JobId, ScheduleId, Timestamp, WorkerId};

use crate::calls::Answer;
use crate::time::trace;

/// See the module; clones are the same. Outlives the core.
#[derive(Clone, Default)]
pub(crate) struct Promises(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    /// None before the first core.
    epoch: Option<Epoch>,
    jobs: BTreeSet<JobId>,
    at_most_once: BTreeSet<JobId>,
    cancelled: BTreeSet<JobId>,
    assigned: BTreeSet<AttemptId>,
    started: BTreeSet<AttemptId>,
    /// Ended, given back, or with a late report that is kept.
    settled: BTreeSet<AttemptId>,
    /// Their names.
    workers: BTreeMap<WorkerId, String>,
    /// When each was made and first paused, by the core's clock.
    schedules: BTreeMap<ScheduleId, (Timestamp, Option<Timestamp>)>,
    broken: Vec<String>,
}

impl Promises {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A core has taken over: earlier ones may write no more.
    pub(crate) fn taken_over(&self, epoch: Epoch) {
        self.lock().epoch = Some(epoch);
    }

    /// These are in the store now.
    pub(crate) fn committed(&self, epoch: Epoch, transitions: &[Transition], verdicts: &[Verdict]) {
        let mut inner = self.lock();
        let now = inner.epoch.unwrap_or(epoch);
        inner.expect(now == epoch, || format!("a core of epoch {epoch} has written in epoch {now}"));
        for (transition, verdict) in transitions.iter().zip(verdicts) {
            inner.note(transition, verdict);
        }
    }

    /// The core says this to a worker.
    pub(crate) fn said(&self, message: &[u8]) {
        for frame in decode::<ToWorker>(VERSION, message).unwrap_or_default() {
            let inner = &mut *self.lock();
            let (holds, what) = match &frame {
                ToWorker::Assign(order) => (inner.assigned.contains(&order.attempt), "an order"),
                ToWorker::StartCommitted { attempt } => (inner.started.contains(attempt), "a start"),
                ToWorker::FinishStored { attempt } => {
                    let is_open = inner.assigned.contains(attempt) && !inner.settled.contains(attempt);
                    (!is_open, "a report")
                }
                ToWorker::Cancel { attempt, .. } => (inner.cancelled.contains(&attempt.job), "a cancel"),
                _ => continue,
            };
            inner.expect(holds, || format!("{what} was told before its commit: {}", crate::show::short(&frame)));
        }
    }

    /// The core answers this to whoever asked.
    pub(crate) fn answered(&self, answer: &Answer) {
        if let Answer::Accepted(job, _) = answer {
            let mut inner = self.lock();
            let holds = inner.jobs.contains(job);
            inner.expect(holds, || format!("job {job} was acknowledged before its commit"));
        }
    }

    /// An engine has started a container of this attempt.
    pub(crate) fn container_started(&self, attempt: AttemptId) {
        let mut inner = self.lock();
        let holds = !inner.at_most_once.contains(&attempt.job) || inner.started.contains(&attempt);
        inner.expect(holds, || format!("{attempt} runs at most once, and its start is not committed"));
        let holds = inner.assigned.contains(&attempt);
        inner.expect(holds, || format!("a container of {attempt} started, which is not assigned"));
    }

    /// The place of a worker in the list: its name has it.
    pub(crate) fn place_of(&self, worker: WorkerId) -> Option<usize> {
        let number: usize = self.lock().workers.get(&worker)?.strip_prefix('w')?.parse().ok()?;
        number.checked_sub(1)
    }

    /// When a schedule was made and first paused, by the core's clock.
    pub(crate) fn life_of(&self, schedule: ScheduleId) -> Option<(Timestamp, Option<Timestamp>)> {
        self.lock().schedules.get(&schedule).copied()
    }

    /// Something else is wrong.
    pub(crate) fn note(&self, problem: String) {
        self.lock().expect(false, || problem);
    }

    /// What did not hold.
    pub(crate) fn broken(&self) -> Vec<String> {
        self.lock().broken.clone()
    }
}

impl Inner {
    fn note(&mut self, transition: &Transition, verdict: &Verdict) {
        match (transition, verdict) {
            (Transition::CreateJob(new), Ok(Applied::Job { job, .. })) => {
                self.jobs.insert(*job);
                if new.job.spec.at_most_once {
                    self.at_most_once.insert(*job);
                }
            }
            (Transition::Assign { job, work, .. }, Ok(_)) => self.assigned.extend(work.attempts(*job)),
            (Transition::Start { attempt, .. }, Ok(_)) => drop(self.started.insert(*attempt)),
            (Transition::End(end), Ok(_)) => drop(self.settled.insert(end.attempt)),
            // A late report of what was never that worker's is of no use to anybody.
            (Transition::Superseded { attempt, .. }, Ok(_) | Err(Refusal::NotFound(_)))
            | (Transition::Recall { attempt, .. }, Ok(_)) => drop(self.settled.insert(*attempt)),
            (Transition::JoinWorker { worker: name, .. }, Ok(Applied::Worker(worker))) => {
                self.workers.insert(*worker, name.clone());
            }
            (Transition::CreateSchedule(new), Ok(Applied::Schedule(schedule))) => {
                self.schedules.insert(*schedule, (new.created_at, None));
            }
            (Transition::PauseSchedule { schedule, at, .. }, Ok(_)) => {
                if let Some((_, paused)) = self.schedules.get_mut(schedule) {
                    paused.get_or_insert(*at);
                }
            }
            (Transition::Cancel { job, .. }, Ok(_)) => drop(self.cancelled.insert(*job)),
            _ => {}
        }
    }

    fn expect(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        if !holds {
            let problem = problem();
            trace(format_args!("BROKEN: {problem}"));
            self.broken.push(problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use swarm_protocol::link::encode;

    use super::*;

    fn attempt() -> AttemptId {
        AttemptId { job: JobId(1), task: 0, attempt: 1 }
    }

    #[test]
    fn what_is_said_before_its_commit_is_found() {
        let (promises, said) =
            (Promises::default(), encode(VERSION, &[ToWorker::StartCommitted { attempt: attempt() }]));
        promises.said(&said);
        promises.answered(&Answer::Accepted(JobId(1), false));
        assert_eq!(promises.broken().len(), 2);
        let (worker, started_at) = (WorkerId(1), Timestamp::default());
        let start = Transition::Start { attempt: attempt(), worker, started_at };
        promises.committed(Epoch(0), std::slice::from_ref(&start), &[Err(Refusal::Stale(String::new()))]);
        promises.said(&said);
        assert_eq!(promises.broken().len(), 3, "a refused start is none");
        promises.committed(Epoch(0), &[start], &[Ok(Applied::Done)]);
        promises.said(&said);
        assert_eq!(promises.broken().len(), 3);
    }
}
