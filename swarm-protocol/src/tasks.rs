//! Ranges and run-length sets of task indices: a million waiting tasks are a few numbers, not a million rows.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::TaskIndex;

/// An inclusive, never empty range of task indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskRange {
    /// The first index.
    pub first: TaskIndex,
    /// The last index, `>= first`.
    pub last: TaskIndex,
}

impl TaskRange {
    /// The range `first..=last`, or `None` when it would be empty.
    #[must_use]
    pub const fn new(first: TaskIndex, last: TaskIndex) -> Option<Self> {
        if first <= last { Some(Self { first, last }) } else { None }
    }

    /// The range that holds one task.
    #[must_use]
    pub const fn one(task: TaskIndex) -> Self {
        Self { first: task, last: task }
    }

    /// How many tasks it holds, at least 1.
    #[must_use]
    pub const fn count(self) -> u64 {
        self.last as u64 - self.first as u64 + 1
    }

    /// Whether `task` is in it.
    #[must_use]
    pub const fn contains(self, task: TaskIndex) -> bool {
        self.first <= task && task <= self.last
    }

    /// Its tasks in ascending order.
    pub fn iter(self) -> impl Iterator<Item = TaskIndex> {
        self.first..=self.last
    }
}

impl fmt::Display for TaskRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// A run-length set of task indices: sorted, disjoint, non-adjacent ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskSet(Vec<TaskRange>);

impl TaskSet {
    /// The set that holds exactly `range`.
    #[must_use]
    pub fn from_range(range: TaskRange) -> Self {
        Self(vec![range])
    }

    /// Whether no task is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many tasks are in it.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|range| range.count()).sum()
    }

    /// The runs, ascending.
    #[must_use]
    pub fn ranges(&self) -> &[TaskRange] {
        &self.0
    }

    /// Whether `task` is in it.
    #[must_use]
    pub fn contains(&self, task: TaskIndex) -> bool {
        let at = self.0.partition_point(|range| range.last < task);
        self.0.get(at).is_some_and(|range| range.contains(task))
    }

    /// Adds every task of `range`, merging touching runs.
    pub fn insert(&mut self, range: TaskRange) {
        let from = self.0.partition_point(|run| u64::from(run.last) + 1 < u64::from(range.first));
        let to = self.0.partition_point(|run| u64::from(run.first) <= u64::from(range.last) + 1);
        let merged = self.0[from..to]
            .iter()
            .fold(range, |all, run| TaskRange { first: all.first.min(run.first), last: all.last.max(run.last) });
        self.0.splice(from..to, [merged]);
    }

    /// Removes every task of `range` that is in the set.
    pub fn remove(&mut self, range: TaskRange) {
        let from = self.0.partition_point(|run| run.last < range.first);
        let to = self.0.partition_point(|run| run.first <= range.last);
        if from >= to {
            return;
        }
        let left = range.first.checked_sub(1).and_then(|last| TaskRange::new(self.0[from].first, last));
        let right = range.last.checked_add(1).and_then(|first| TaskRange::new(first, self.0[to - 1].last));
        self.0.splice(from..to, left.into_iter().chain(right));
    }

    /// Takes up to `count` of the lowest tasks out of the set.
    pub fn take_lowest(&mut self, count: u64) -> Self {
        let mut taken = Self::default();
        let mut left = count;
        while left > 0 && !self.0.is_empty() {
            let run = self.0[0];
            let size = run.count().min(left);
            // `size <= run.count()`, so the sum stays within the run and within u32.
            let part = TaskRange { first: run.first, last: run.first + (size - 1) as TaskIndex };
            self.remove(part);
            taken.insert(part);
            left -= size;
        }
        taken
    }

    /// Its tasks in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = TaskIndex> + '_ {
        self.0.iter().flat_map(|range| range.iter())
    }
}

impl FromIterator<TaskIndex> for TaskSet {
    fn from_iter<I: IntoIterator<Item = TaskIndex>>(tasks: I) -> Self {
        let mut set = Self::default();
        for task in tasks {
            set.insert(TaskRange::one(task));
        }
        set
    }
}

impl fmt::Display for TaskSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            range.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The run-length set behaves as a plain set of numbers under any sequence of operations.
        #[test]
        fn behaves_as_a_plain_set(ops in prop::collection::vec((0u8..3, 0u32..60, 0u32..12), 0..60)) {
            let (mut runs, mut plain) = (TaskSet::default(), BTreeSet::new());
            for (op, first, len) in ops {
                let range = TaskRange { first, last: first + len };
                match op {
                    0 => { runs.insert(range); plain.extend(range.iter()); }
                    1 => { runs.remove(range); plain.retain(|task| !range.contains(*task)); }
                    _ => {
                        let taken = runs.take_lowest(u64::from(len));
                        for task in taken.iter() {
                            prop_assert_eq!(plain.pop_first(), Some(task));
                        }
                    }
                }
                prop_assert_eq!(runs.iter().collect::<Vec<_>>(), plain.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(runs.count(), plain.len() as u64);
                prop_assert!(runs.ranges().windows(2).all(|pair| pair[0].last + 1 < pair[1].first));
            }
        }
    }

    #[test]
    fn reaches_the_ends_of_the_index_space() {
        let mut set = TaskSet::from_range(TaskRange { first: 0, last: u32::MAX });
        assert_eq!(set.count(), 1 << 32);
        set.remove(TaskRange::one(u32::MAX));
        set.remove(TaskRange::one(0));
        assert_eq!(set.to_string(), "1-4294967294");
        set.insert(TaskRange::one(u32::MAX));
        set.insert(TaskRange::one(0));
        assert_eq!(set.ranges().len(), 1);
    }
}
