//! The run queue: runnable jobs ordered by policy key, in one lane per shape.
//!
//! A shape for which no worker has room is parked as a whole, so a big job that fits nowhere now keeps its place without
//! holding up anything smaller. Each job has at most one entry; its waiting tasks are a run-length set and a map of
//! retries, so a million fresh tasks are one entry, and every operation but [`RunQueue::position`] costs O(log n).

use std::collections::{BTreeMap, HashMap};

use swarm_protocol::{AttemptNo, GroupId, JobId, TaskIndex, TaskRange, TaskSet, Timestamp};

use super::policy::{Candidate, Key, Policy};
use super::sweep::Tasks;
use crate::messages::{Runnable, Shape};
use crate::store::Work;

/// Runnable jobs in the order in which they are to be offered.
pub struct RunQueue {
    policy: Box<dyn Policy>,
    lanes: HashMap<Shape, Lane>,
    jobs: HashMap<JobId, (Shape, Key)>,
    /// The first job of every lane that is not parked.
    heads: BTreeMap<Key, Shape>,
}

#[derive(Default)]
struct Lane {
    parked: bool,
    entries: BTreeMap<Key, Entry>,
}

/// The waiting tasks of one job.
struct Entry {
    job: JobId,
    group: GroupId,
    priority: i32,
    runnable_since: Timestamp,
    fresh: TaskSet,
    again: BTreeMap<TaskIndex, AttemptNo>,
}

impl Entry {
    fn of(runnable: &Runnable) -> Self {
        let mut entry = Self {
            job: runnable.job,
            group: runnable.group,
            priority: runnable.priority,
            runnable_since: runnable.runnable_since,
            fresh: TaskSet::default(),
            again: BTreeMap::new(),
        };
        entry.add(&runnable.work);
        entry
    }

    fn add(&mut self, work: &Work) {
        match work {
            Work::Fresh(range) => self.fresh.insert(*range),
            Work::Again(tasks) => self.again.extend(tasks.iter().copied()),
        }
    }

    fn merge(&mut self, other: Self) {
        self.runnable_since = self.runnable_since.min(other.runnable_since);
        for range in other.fresh.ranges() {
            self.fresh.insert(*range);
        }
        self.again.extend(other.again);
    }

    fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.again.is_empty()
    }

    /// Takes up to `tasks_max` tasks: retries first, since they have waited longer; then the lowest fresh ones.
    fn take(&mut self, tasks_max: u64) -> Option<Work> {
        if self.again.is_empty() {
            let run = *self.fresh.ranges().first()?;
            let taken = self.fresh.take_lowest(run.count().min(tasks_max));
            return taken.ranges().first().map(|range| Work::Fresh(*range));
        }
        let mut tasks = Vec::new();
        while (tasks.len() as u64) < tasks_max {
            let Some(task) = self.again.pop_first() else { break };
            tasks.push(task);
        }
        Some(Work::Again(tasks))
    }
}

impl RunQueue {
    /// An empty queue in the order of `policy`.
    #[must_use]
    pub fn new(policy: Box<dyn Policy>) -> Self {
        Self { policy, lanes: HashMap::new(), jobs: HashMap::new(), heads: BTreeMap::new() }
    }

    /// Adds tasks, merging them with what already waits of their job. Adding a task twice is adding it once. A job keeps
    /// the earliest time since which it waits.
    pub fn enqueue(&mut self, runnable: &Runnable) {
        let mut entry = Entry::of(runnable);
        let shape = match self.take_out(runnable.job) {
            Some((shape, mut waiting)) => {
                waiting.merge(entry);
                entry = waiting;
                shape
            }
            None => runnable.shape.clone(),
        };
        self.put_in(shape, entry);
    }

    /// Takes the next tasks of the best job whose shape is not parked, at most `tasks_max`. Fresh tasks of one job come
    /// out in ascending order; what is left of the job keeps its place.
    pub fn next(&mut self, tasks_max: u64) -> Option<Runnable> {
        if tasks_max == 0 {
            return None;
        }
        let (&key, shape) = self.heads.first_key_value()?;
        let shape = shape.clone();
        let entry = self.lanes.get_mut(&shape)?.entries.get_mut(&key)?;
        let work = entry.take(tasks_max)?;
        let Entry { job, group, priority, runnable_since, .. } = *entry;
        if entry.is_empty() {
            self.remove(job);
        }
        Some(Runnable { job, group, priority, runnable_since, shape, work })
    }

    /// Takes back tasks that could not be placed.
    pub fn put_back(&mut self, runnable: &Runnable) {
        self.enqueue(runnable);
    }

    /// Skips the jobs of a shape until [`RunQueue::unpark`]. A shape nothing waits for is not parked: its next job is
    /// worth a look.
    pub fn park(&mut self, shape: &Shape) {
        if let Some(lane) = self.lanes.get_mut(shape) {
            lane.parked = true;
            if let Some(&key) = lane.entries.keys().next() {
                self.heads.remove(&key);
            }
        }
    }

    /// Offers the jobs of a shape again; true when it was parked.
    pub fn unpark(&mut self, shape: Shape) -> bool {
        let Some(lane) = self.lanes.get_mut(&shape) else { return false };
        if let Some(&key) = lane.entries.keys().next() {
            self.heads.insert(key, shape);
        }
        std::mem::replace(&mut lane.parked, false)
    }

    /// Forgets a job; true when it waited here.
    pub fn remove(&mut self, job: JobId) -> bool {
        let Some((shape, _)) = self.take_out(job) else { return false };
        // A lane lives as long as its jobs, which bounds the lanes, parked ones too, by the jobs.
        if self.lanes.get(&shape).is_some_and(|lane| lane.entries.is_empty()) {
            self.lanes.remove(&shape);
        }
        true
    }

    /// Takes out of `tasks` what waits here.
    pub fn take_held(&self, tasks: &mut Tasks) {
        for job in tasks.jobs() {
            let Some((shape, key)) = self.jobs.get(&job) else { continue };
            let Some(entry) = self.lanes.get(shape).and_then(|lane| lane.entries.get(key)) else { continue };
            entry.fresh.ranges().iter().for_each(|range| tasks.remove(job, &Work::Fresh(*range)));
            tasks.remove_again(job, |task| entry.again.get(&task).copied());
        }
    }

    /// How many jobs are before this one: all with a better key, but for those parked in other lanes. O(n).
    #[must_use]
    pub fn position(&self, job: JobId) -> Option<u64> {
        let (own, key) = self.jobs.get(&job)?;
        let rivals = self.lanes.iter().filter(|(shape, lane)| *shape == own || !lane.parked);
        Some(rivals.map(|(_, lane)| lane.entries.range(..key).count() as u64).sum())
    }

    fn key(&self, entry: &Entry) -> Key {
        // Times before 1970 do not occur; they would count as 1970.
        let queued_at_ms = u64::try_from(entry.runnable_since.timestamp_millis()).unwrap_or(0);
        self.policy.key(&Candidate { job: entry.job, priority: entry.priority, queued_at_ms })
    }

    /// Takes a job's entry out and leaves its lane, which the caller fills again or removes.
    fn take_out(&mut self, job: JobId) -> Option<(Shape, Entry)> {
        let (shape, key) = self.jobs.remove(&job)?;
        let lane = self.lanes.get_mut(&shape)?;
        let entry = lane.entries.remove(&key)?;
        if self.heads.remove(&key).is_some()
            && let Some(&next) = lane.entries.keys().next()
        {
            self.heads.insert(next, shape.clone());
        }
        Some((shape, entry))
    }

    fn put_in(&mut self, shape: Shape, entry: Entry) {
        let key = self.key(&entry);
        self.jobs.insert(entry.job, (shape.clone(), key));
        let lane = self.lanes.entry(shape.clone()).or_default();
        let head = lane.entries.keys().next().copied();
        lane.entries.insert(key, entry);
        if !lane.parked && head.is_none_or(|head| key < head) {
            if let Some(head) = head {
                self.heads.remove(&head);
            }
            self.heads.insert(key, shape);
        }
    }
}

/// Splits the first `count` tasks off; the rest is `None` when nothing is left, the first when `count` is 0.
#[must_use]
pub fn split(work: Work, count: u64) -> (Option<Work>, Option<Work>) {
    match work {
        Work::Fresh(range) => {
            // Saturates at `last`: then everything is in the first part.
            let cut = u64::from(range.first) + count;
            let Ok(cut) = u32::try_from(cut) else { return (Some(Work::Fresh(range)), None) };
            let head = cut.checked_sub(1).and_then(|last| TaskRange::new(range.first, last.min(range.last)));
            (head.map(Work::Fresh), TaskRange::new(cut, range.last).map(Work::Fresh))
        }
        Work::Again(mut tasks) => {
            let rest = tasks.split_off(tasks.len().min(usize::try_from(count).unwrap_or(usize::MAX)));
            let some = |tasks: Vec<_>| (!tasks.is_empty()).then_some(Work::Again(tasks));
            (some(tasks), some(rest))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use swarm_protocol::spec::Resources;

    use super::super::policy::PriorityAgeing;
    use super::*;

    fn queue() -> RunQueue {
        RunQueue::new(Box::new(PriorityAgeing { points_per_hour: 60 }))
    }

    fn shape(cpu_millis: u32) -> Shape {
        Shape { needs: Resources { cpu_millis, memory_bytes: 1 }, ..Shape::default() }
    }

    fn runnable(job: u64, priority: i32, cpu_millis: u32, work: Work) -> Runnable {
        let runnable_since = Timestamp::from_timestamp(1_800_000_000, 0).unwrap();
        Runnable { job: JobId(job), group: GroupId(1), priority, runnable_since, shape: shape(cpu_millis), work }
    }

    fn fresh(first: u32, last: u32) -> Work {
        Work::Fresh(TaskRange { first, last })
    }

    #[test]
    fn a_range_is_handed_out_in_pieces_and_what_comes_back_comes_first() {
        let mut queue = queue();
        queue.enqueue(&runnable(1, 0, 1, fresh(0, 9)));
        assert_eq!(queue.next(4).unwrap().work, fresh(0, 3));
        let second = queue.next(4).unwrap();
        assert_eq!(second.work, fresh(4, 7));
        queue.put_back(&second);
        assert_eq!(queue.next(100).unwrap().work, fresh(4, 9));
        assert_eq!(queue.next(100), None);
        assert!(queue.lanes.is_empty() && queue.heads.is_empty() && queue.jobs.is_empty());
    }

    #[test]
    fn the_better_job_is_first_and_a_parked_shape_holds_up_nobody_else() {
        let mut queue = queue();
        queue.enqueue(&runnable(1, 0, 1, fresh(0, 0)));
        queue.enqueue(&runnable(2, 50, 8, fresh(0, 0)));
        assert_eq!(queue.position(JobId(1)), Some(1));
        let big = queue.next(1).unwrap();
        assert_eq!(big.job, JobId(2));
        queue.put_back(&big);
        queue.park(&shape(8));
        assert_eq!(queue.position(JobId(1)), Some(0));
        assert_eq!(queue.next(1).unwrap().job, JobId(1));
        assert_eq!(queue.next(1), None);
        queue.enqueue(&runnable(3, 90, 8, fresh(0, 0)));
        assert_eq!(queue.next(1), None, "a better job of a parked shape waits too");
        assert!(queue.unpark(shape(8)));
        assert_eq!(queue.next(1).unwrap().job, JobId(3));
        assert!(queue.remove(JobId(2)));
        assert_eq!(queue.next(1), None);
        assert_eq!(queue.position(JobId(2)), None);
    }

    #[test]
    fn it_says_what_it_holds() {
        let mut queue = queue();
        queue.enqueue(&runnable(1, 0, 1, fresh(0, 9)));
        queue.enqueue(&runnable(1, 0, 1, Work::Again(vec![(20, 3)])));
        queue.enqueue(&runnable(2, 0, 1, fresh(0, 0)));
        queue.park(&shape(1));
        let mut asked = Tasks::default();
        let asking =
            [(1, fresh(8, 11)), (1, Work::Again(vec![(20, 3), (20, 4), (21, 2)])), (2, fresh(0, 0)), (3, fresh(1, 1))];
        asking.iter().for_each(|(job, work)| asked.add(JobId(*job), work));
        queue.take_held(&mut asked);
        let mut left = Tasks::default();
        let lost = [(1, fresh(10, 11)), (1, Work::Again(vec![(20, 4), (21, 2)])), (3, fresh(1, 1))];
        lost.iter().for_each(|(job, work)| left.add(JobId(*job), work));
        assert_eq!(asked, left);
    }

    #[test]
    fn work_splits_at_any_count() {
        assert_eq!(split(fresh(3, 5), 0), (None, Some(fresh(3, 5))));
        assert_eq!(split(fresh(0, 5), 0), (None, Some(fresh(0, 5))));
        assert_eq!(split(fresh(3, 5), 2), (Some(fresh(3, 4)), Some(fresh(5, 5))));
        assert_eq!(split(fresh(3, 5), 9), (Some(fresh(3, 5)), None));
        assert_eq!(split(fresh(3, u32::MAX), u64::from(u32::MAX)), (Some(fresh(3, u32::MAX)), None));
        let again = Work::Again(vec![(1, 2), (4, 3)]);
        assert_eq!(split(again, 1), (Some(Work::Again(vec![(1, 2)])), Some(Work::Again(vec![(4, 3)]))));
    }

    /// Does to a plain list what is done to the queue, and compares.
    #[derive(Default)]
    struct Model {
        waiting: BTreeSet<(u64, TaskIndex, AttemptNo)>,
        parked: BTreeSet<u32>,
        out: Vec<Runnable>,
    }

    /// The shape and the priority of a job are fixed.
    fn of_job(job: u64, work: Work) -> Runnable {
        runnable(job, (job * 7 % 5) as i32 * 10, (job % 3) as u32, work)
    }

    fn attempts(runnable: &Runnable) -> Vec<(u64, TaskIndex, AttemptNo)> {
        runnable.work.attempts(runnable.job).iter().map(|id| (id.job.0, id.task, id.attempt)).collect()
    }

    proptest! {
        /// Whatever happens: no task is lost or doubled, the best unparked job comes out, fresh tasks ascend.
        #[test]
        fn behaves_as_a_plain_list(ops in prop::collection::vec((0u8..7, 0u64..6, 1u64..6), 0..120)) {
            let (mut queue, mut model) = (queue(), Model::default());
            for (op, job, number) in ops {
                let lane = (job % 3) as u32;
                match op {
                    // Fresh tasks of a job are announced once.
                    0 if model.waiting.iter().all(|task| task.0 != job)
                        && model.out.iter().all(|out| out.job.0 != job) => {
                        let new = of_job(job, fresh(0, number as u32 * 3));
                        model.waiting.extend(attempts(&new));
                        queue.enqueue(&new);
                        if model.waiting.iter().all(|task| task.0 == job || (task.0 % 3) as u32 != lane) {
                            model.parked.remove(&lane);
                        }
                    }
                    1 => {
                        let again = of_job(job, Work::Again(vec![(100 + number as u32, 2)]));
                        if model.out.iter().all(|out| attempts(out) != attempts(&again)) {
                            if model.waiting.iter().all(|task| (task.0 % 3) as u32 != lane) {
                                model.parked.remove(&lane);
                            }
                            model.waiting.extend(attempts(&again));
                            queue.enqueue(&again);
                        }
                    }
                    2 => {
                        if model.waiting.iter().any(|task| (task.0 % 3) as u32 == lane) {
                            model.parked.insert(lane);
                        }
                        queue.park(&shape(lane));
                    }
                    3 => { prop_assert_eq!(queue.unpark(shape(lane)), model.parked.remove(&lane)); }
                    4 => {
                        let known = model.waiting.iter().any(|task| task.0 == job);
                        prop_assert_eq!(queue.remove(JobId(job)), known);
                        model.waiting.retain(|task| task.0 != job);
                    }
                    // Only the last one handed out comes back, as the dispatcher does it.
                    5 => if let Some(back) = model.out.pop() {
                        if model.waiting.iter().all(|task| task.0 % 3 != back.job.0 % 3) {
                            model.parked.remove(&((back.job.0 % 3) as u32));
                        }
                        model.waiting.extend(attempts(&back));
                        queue.put_back(&back);
                    },
                    _ => {
                        let offered = |task: &&(u64, u32, u16)| !model.parked.contains(&((task.0 % 3) as u32));
                        let rank = |job: u64| (-of_job(job, fresh(0, 0)).priority, job);
                        let best = model.waiting.iter().filter(offered).map(|task| task.0).min_by_key(|job| rank(*job));
                        let next = queue.next(number);
                        prop_assert_eq!(next.as_ref().map(|next| next.job.0), best);
                        if let Some(next) = next {
                            prop_assert!(next.work.count() <= number);
                            if let Work::Fresh(range) = next.work {
                                let lowest = model.waiting.iter().find(|task| task.0 == next.job.0 && task.2 == 1);
                                prop_assert_eq!(lowest.map(|task| task.1), Some(range.first));
                            }
                            for task in attempts(&next) {
                                prop_assert!(model.waiting.remove(&task), "{task:?} was not waiting");
                            }
                            model.out.push(next);
                        }
                    }
                }
                model.parked.retain(|lane| model.waiting.iter().any(|task| (task.0 % 3) as u32 == *lane));
                let held: usize = queue.lanes.values().flat_map(|lane| lane.entries.values())
                    .map(|entry| entry.fresh.count() as usize + entry.again.len()).sum();
                prop_assert_eq!(held, model.waiting.len());
            }
        }
    }
}
