//! Which worker gets a task: the fitting one that is least loaded once it has it.
//!
//! Load is the fullest of the worker's three measures (cores, memory, slots), so a worker short of memory is not chosen
//! for its idle cores. Nothing is promised twice: a worker never gets more than it offers. There is no prefetching: a
//! worker holds as many tasks as it has slots ([`PREFETCH`]), so a task never waits on one worker while another idles.
//! A worker without the labels that a task requires, or whose link is too old for its order, is none for it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use swarm_protocol::WorkerId;
use swarm_protocol::labels::{Labels, has_all};
use swarm_protocol::spec::Resources;

use crate::messages::Shape;

/// Tasks a worker holds beyond its slots.
pub const PREFETCH: u32 = 0;

/// What a worker offers, or has promised to tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Thousandths of cores.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Tasks.
    pub slots: u32,
}

impl Amount {
    /// One more task of these needs.
    pub fn add(&mut self, needs: Resources) {
        self.cpu_millis += u64::from(needs.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_add(needs.memory_bytes);
        self.slots += 1;
    }

    /// What is left of `self` when `used` is promised.
    #[must_use]
    pub fn minus(self, used: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(used.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(used.memory_bytes),
            slots: self.slots.saturating_sub(used.slots),
        }
    }

    /// Whether one task of these needs fits.
    #[must_use]
    pub fn fits(self, needs: Resources) -> bool {
        self.slots > 0 && self.cpu_millis >= u64::from(needs.cpu_millis) && self.memory_bytes >= needs.memory_bytes
    }
}

/// A worker that takes new work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The worker.
    pub worker: WorkerId,
    /// What it offers.
    pub capacity: Amount,
    /// What it has promised.
    pub used: Amount,
    /// What it is known by.
    pub labels: Arc<Labels>,
    /// What its link speaks.
    pub link_version: u8,
}

impl Candidate {
    /// Whether one task of this shape fits.
    #[must_use]
    pub fn fits(&self, shape: &Shape) -> bool {
        self.link_version >= shape.link_version
            && self.capacity.minus(self.used).fits(shape.needs)
            && has_all(&self.labels, &shape.require)
    }

    /// How loaded it would be with one more task, in billionths of its fullest measure.
    fn load_with(&self, needs: Resources) -> u64 {
        let mut used = self.used;
        used.add(needs);
        let part = |used: u64, of: u64| (u128::from(used) * 1_000_000_000 / u128::from(of.max(1))) as u64;
        part(used.cpu_millis, self.capacity.cpu_millis)
            .max(part(used.memory_bytes, self.capacity.memory_bytes))
            .max(part(u64::from(used.slots), u64::from(self.capacity.slots)))
    }
}

/// Distributes up to `tasks` tasks of equal shape: how many each worker gets, workers with none left out. What is
/// missing from the sum fits nowhere. Ties go to the worker with fewer tasks, then to the lower number.
#[must_use]
pub fn place(workers: &[Candidate], shape: &Shape, tasks: u64) -> BTreeMap<WorkerId, u64> {
    let needs = shape.needs;
    let rank = |worker: &Candidate| Reverse((worker.load_with(needs), worker.used.slots, worker.worker));
    let mut workers: Vec<Candidate> = workers.to_vec();
    let fitting = workers.iter().enumerate().filter(|(_, worker)| worker.fits(shape));
    let mut heap: BinaryHeap<_> = fitting.map(|(at, worker)| (rank(worker), at)).collect();
    let mut placed = BTreeMap::new();
    for _ in 0..tasks {
        let Some((_, at)) = heap.pop() else { break };
        let worker = &mut workers[at];
        worker.used.add(needs);
        *placed.entry(worker.worker).or_default() += 1;
        if worker.fits(shape) {
            heap.push((rank(worker), at));
        }
    }
    placed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::labels;

    const GIB: u64 = 1 << 30;

    fn worker(id: u64, cores: u64, gib: u64, slots: u32) -> Candidate {
        let capacity = Amount { cpu_millis: cores * 1000, memory_bytes: gib * GIB, slots };
        Candidate { worker: WorkerId(id), capacity, used: Amount::default(), labels: Arc::default(), link_version: 3 }
    }

    fn needs(cpu_millis: u32, memory_bytes: u64) -> Shape {
        Shape { needs: Resources { cpu_millis, memory_bytes }, ..Shape::default() }
    }

    fn counts(placed: BTreeMap<WorkerId, u64>) -> Vec<(u64, u64)> {
        placed.into_iter().map(|(worker, count)| (worker.0, count)).collect()
    }

    #[test]
    fn tasks_spread_in_proportion_to_what_workers_offer() {
        let workers = [worker(1, 4, 16, 8), worker(2, 8, 32, 16)];
        assert_eq!(counts(place(&workers, &needs(1000, GIB), 6)), [(1, 2), (2, 4)]);
        assert_eq!(counts(place(&workers, &needs(1000, GIB), 99)), [(1, 4), (2, 8)]);
        assert_eq!(counts(place(&workers, &needs(100, 1), 1)), [(2, 1)]);
    }

    #[test]
    fn the_scarcest_measure_decides_and_equals_go_by_number() {
        let mut short_of_memory = worker(1, 64, 4, 8);
        short_of_memory.used.memory_bytes = 3 * GIB;
        assert_eq!(counts(place(&[short_of_memory, worker(2, 4, 4, 8)], &needs(1000, GIB), 1)), [(2, 1)]);
        assert_eq!(counts(place(&[worker(9, 4, 4, 4), worker(3, 4, 4, 4)], &needs(1000, GIB), 1)), [(3, 1)]);
        assert!(place(&[worker(1, 4, 4, 0)], &needs(1, 1), 1).is_empty());
        assert!(place(&[worker(1, 4, 4, 4)], &needs(1, 5 * GIB), 1).is_empty());
    }

    #[test]
    fn only_workers_with_every_label_required_get_tasks() {
        let workers = [
            Candidate { labels: labels(&[("zone", "a")]), ..worker(1, 2, 4, 2) },
            Candidate { labels: labels(&[("zone", "b"), ("gpu", "nvidia")]), ..worker(2, 64, 64, 64) },
            worker(3, 64, 64, 64),
        ];
        let require = |pairs: &[(&str, &str)]| Shape { require: labels(pairs), ..needs(1000, GIB) };
        assert_eq!(counts(place(&workers, &require(&[("zone", "a")]), 9)), [(1, 2)]);
        assert_eq!(counts(place(&workers, &require(&[("zone", "b"), ("gpu", "nvidia")]), 3)), [(2, 3)]);
        assert!(place(&workers, &require(&[("zone", "a"), ("gpu", "nvidia")]), 1).is_empty());
    }

    #[test]
    fn only_workers_that_understand_the_order_get_it() {
        let workers = [Candidate { link_version: 4, ..worker(1, 2, 4, 2) }, worker(2, 64, 64, 64)];
        let shape = Shape { link_version: 4, ..needs(1000, GIB) };
        assert_eq!(counts(place(&workers, &shape, 9)), [(1, 2)]);
    }

    proptest! {
        /// No worker is promised more than it offers, and what is left over really fits nowhere.
        #[test]
        fn never_overcommits_and_leaves_nothing_that_fits(
            workers in prop::collection::vec((0u64..9000, 0u64..9000, 0u32..12, 0u64..9000, 0u64..9000, 0u32..12), 0..8),
            cpu in 0u32..4000, memory in 0u64..4000, tasks in 0u64..60,
        ) {
            let shape = needs(cpu, memory);
            let workers: Vec<Candidate> = workers.iter().enumerate().map(|(id, w)| Candidate {
                worker: WorkerId(id as u64),
                capacity: Amount { cpu_millis: w.0, memory_bytes: w.1, slots: w.2 },
                used: Amount { cpu_millis: w.3, memory_bytes: w.4, slots: w.5 },
                labels: Arc::default(),
                link_version: 3,
            }).collect();
            let placed = place(&workers, &shape, tasks);
            let mut after = workers.clone();
            for worker in &mut after {
                for _ in 0..placed.get(&worker.worker).copied().unwrap_or(0) {
                    prop_assert!(worker.fits(&shape));
                    worker.used.add(shape.needs);
                }
            }
            let total: u64 = placed.values().sum();
            prop_assert!(total <= tasks);
            if total < tasks {
                prop_assert!(after.iter().all(|worker| !worker.fits(&shape)));
            }
            prop_assert!(placed.values().all(|count| *count > 0));
        }
    }
}
