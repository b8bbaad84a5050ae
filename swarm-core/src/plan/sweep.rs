//! What nobody looks after: tasks that wait by the store's word but lie in no queue, and attempts on workers that nobody
//! follows. The rest of the core may lose either when the database refuses a change that should have held.
//!
//! A task on its way from one module to the next lies in no queue for a moment, hence only what was found at two looks in
//! a row is taken up. Should one be taken up too soon all the same, nothing is doubled: queues hold a task once, and the
//! ledger's guards refuse what is assigned already.

use std::collections::{BTreeMap, BTreeSet};

use swarm_protocol::{AttemptId, AttemptNo, JobId, TaskIndex, TaskSet};

use crate::store::Work;

/// Finds remembered from one look to the next; what is beyond is found by a later look.
const KEPT_MAX: usize = 10_000;

/// Waiting tasks of any number of jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tasks {
    /// Those that never ran.
    fresh: BTreeMap<JobId, TaskSet>,
    /// Others, with the number of their next attempt.
    again: BTreeSet<(JobId, TaskIndex, AttemptNo)>,
}

impl Tasks {
    /// Adds tasks of a job.
    pub fn add(&mut self, job: JobId, work: &Work) {
        match work {
            Work::Fresh(range) => self.fresh.entry(job).or_default().insert(*range),
            Work::Again(tasks) => self.again.extend(tasks.iter().map(|&(task, attempt)| (job, task, attempt))),
        }
    }

    /// Takes out tasks that are looked after.
    pub fn remove(&mut self, job: JobId, work: &Work) {
        match work {
            Work::Fresh(range) => {
                if let Some(fresh) = self.fresh.get_mut(&job) {
                    fresh.remove(*range);
                    if fresh.is_empty() {
                        self.fresh.remove(&job);
                    }
                }
            }
            Work::Again(tasks) => tasks.iter().for_each(|&(task, attempt)| {
                self.again.remove(&(job, task, attempt));
            }),
        }
    }

    /// Takes out the tasks of a job that wait for the attempt which `held` says.
    pub fn remove_again(&mut self, job: JobId, held: impl Fn(TaskIndex) -> Option<AttemptNo>) {
        let of_job = (job, TaskIndex::MIN, AttemptNo::MIN)..=(job, TaskIndex::MAX, AttemptNo::MAX);
        self.again.extract_if(of_job, |&(_, task, attempt)| held(task) == Some(attempt)).for_each(drop);
    }

    /// Whose tasks these are, ascending.
    #[must_use]
    pub fn jobs(&self) -> BTreeSet<JobId> {
        self.fresh.keys().copied().chain(self.again.iter().map(|(job, ..)| *job)).collect()
    }

    /// The tasks as they are handed on, by job.
    #[must_use]
    pub fn works(&self) -> BTreeMap<JobId, Vec<Work>> {
        let mut works: BTreeMap<JobId, Vec<Work>> = BTreeMap::new();
        for (job, fresh) in &self.fresh {
            works.entry(*job).or_default().extend(fresh.ranges().iter().copied().map(Work::Fresh));
        }
        let mut again: BTreeMap<JobId, Vec<_>> = BTreeMap::new();
        for &(job, task, attempt) in &self.again {
            again.entry(job).or_default().push((task, attempt));
        }
        again.into_iter().for_each(|(job, tasks)| works.entry(job).or_default().push(Work::Again(tasks)));
        works
    }

    /// Takes out what `other` holds, and gives it.
    fn take_common(&mut self, other: &Self) -> Self {
        let mut rest = self.clone();
        for (job, works) in other.works() {
            works.iter().for_each(|work| rest.remove(job, work));
        }
        let mut common = std::mem::replace(self, rest);
        for (job, works) in self.works() {
            works.iter().for_each(|work| common.remove(job, work));
        }
        common
    }

    fn extend(&mut self, other: Self) {
        for (job, works) in other.works() {
            works.iter().for_each(|work| self.add(job, work));
        }
    }

    /// What it takes up in memory, about.
    fn size(&self) -> usize {
        self.fresh.values().map(|fresh| fresh.ranges().len()).sum::<usize>() + self.again.len()
    }
}

/// What the last look and this one found.
#[derive(Debug, Default)]
pub struct Looks {
    last: Found,
    this: Found,
}

#[derive(Debug, Default)]
struct Found {
    tasks: Tasks,
    attempts: BTreeSet<AttemptId>,
}

impl Looks {
    /// Notes tasks that wait and that nobody holds; those of which this was also so at the last look are to be queued.
    pub fn unheld(&mut self, mut tasks: Tasks) -> Tasks {
        let again = tasks.take_common(&self.last.tasks);
        if self.this.tasks.size() + tasks.size() <= KEPT_MAX {
            self.this.tasks.extend(tasks);
        }
        again
    }

    /// Notes attempts on workers that nobody follows; those of which this was also so at the last look are to be.
    pub fn unfollowed(&mut self, attempts: Vec<AttemptId>) -> Vec<AttemptId> {
        let (again, new): (Vec<_>, Vec<_>) =
            attempts.into_iter().partition(|attempt| self.last.attempts.contains(attempt));
        let room = KEPT_MAX.saturating_sub(self.this.attempts.len());
        self.this.attempts.extend(new.into_iter().take(room));
        again
    }

    /// The look is over, and saw everything.
    pub fn turn(&mut self) {
        self.last = std::mem::take(&mut self.this);
    }

    /// The look broke off: what it found counts for nothing.
    pub fn forget(&mut self) {
        self.this = Found::default();
    }
}

#[cfg(test)]
mod tests {
    use swarm_protocol::TaskRange;

    use super::*;

    fn fresh(first: TaskIndex, last: TaskIndex) -> Work {
        Work::Fresh(TaskRange { first, last })
    }

    fn tasks(works: &[(u64, Work)]) -> Tasks {
        let mut tasks = Tasks::default();
        works.iter().for_each(|(job, work)| tasks.add(JobId(*job), work));
        tasks
    }

    #[test]
    fn what_is_held_is_taken_out_task_by_task() {
        let mut unheld =
            tasks(&[(1, fresh(0, 9)), (1, Work::Again(vec![(20, 2), (21, 3)])), (2, Work::Again(vec![(20, 2)]))]);
        unheld.remove(JobId(1), &fresh(3, 5));
        unheld.remove_again(JobId(1), |task| (task == 20).then_some(2));
        unheld.remove_again(JobId(2), |_| Some(9));
        let left =
            [(1, fresh(0, 2)), (1, fresh(6, 9)), (1, Work::Again(vec![(21, 3)])), (2, Work::Again(vec![(20, 2)]))];
        assert_eq!(unheld, tasks(&left));
        assert_eq!(unheld.jobs(), BTreeSet::from([JobId(1), JobId(2)]));
        unheld.remove(JobId(1), &fresh(0, 99));
        assert_eq!(unheld.works()[&JobId(1)], [Work::Again(vec![(21, 3)])]);
    }

    #[test]
    fn only_what_two_looks_in_a_row_found_is_taken_up_and_only_once() {
        let mut looks = Looks::default();
        let nothing = Tasks::default();
        assert_eq!(looks.unheld(tasks(&[(1, fresh(0, 9)), (2, Work::Again(vec![(0, 2)]))])), nothing);
        assert_eq!(looks.unheld(tasks(&[(3, fresh(0, 0))])), nothing, "another page of the same look");
        looks.turn();
        let again = looks.unheld(tasks(&[(1, fresh(5, 12)), (2, Work::Again(vec![(0, 3)]))]));
        assert_eq!(again, tasks(&[(1, fresh(5, 9))]), "not a later attempt, nor what was held then");
        looks.turn();
        assert_eq!(looks.unheld(tasks(&[(1, fresh(5, 12)), (3, fresh(0, 0))])), tasks(&[(1, fresh(10, 12))]));
    }

    #[test]
    fn a_look_that_broke_off_counts_for_nothing() {
        let id = AttemptId { job: JobId(1), task: 0, attempt: 1 };
        let mut looks = Looks::default();
        looks.unfollowed(vec![id]);
        looks.forget();
        looks.turn();
        assert!(looks.unfollowed(vec![id]).is_empty());
        looks.turn();
        assert_eq!(looks.unfollowed(vec![id]), [id]);
        looks.turn();
        assert!(looks.unfollowed(vec![id]).is_empty(), "once");
    }

    #[test]
    fn memory_is_bounded() {
        let mut looks = Looks::default();
        let page = |job: u64| tasks(&[(job, Work::Again((0..6_000).map(|task| (task, 2)).collect()))]);
        looks.unheld(page(1));
        looks.unheld(page(2));
        looks.turn();
        assert_eq!(looks.unheld(page(1)), page(1));
        assert_eq!(looks.unheld(page(2)), Tasks::default(), "left to a later look");
    }
}
