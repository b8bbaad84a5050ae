//! Job records the dispatcher needs again and again: a bounded memory of the store.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use swarm_host::blocking;
use swarm_protocol::{JobId, TaskId, TaskIndex};

use crate::store::{JobRecord, Store, StoreError, Work};

/// Records kept.
const KEPT_MAX: usize = 512;

/// Records by job, the oldest one forgotten first. What may change of a record (counts, cancel) is not relied on: the
/// ledger guards each assignment.
pub(super) struct Records {
    store: Arc<dyn Store>,
    kept: HashMap<JobId, Arc<JobRecord>>,
    order: VecDeque<JobId>,
}

/// Losses and own failures of a task so far.
pub(super) type Ends = (u16, u16);

/// What is needed to give work of one job to workers.
pub(super) struct Prepared {
    pub(super) job: Arc<JobRecord>,
    /// For tasks that are not fresh.
    pub(super) ends: HashMap<TaskIndex, Ends>,
}

impl Records {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, kept: HashMap::new(), order: VecDeque::new() }
    }

    /// The job's record, and how its tasks that ran before ended so far; `None` when there is no such job.
    pub(super) async fn prepare(&mut self, job: JobId, work: &Work) -> Result<Option<Prepared>, StoreError> {
        let kept = self.kept.get(&job).map(Arc::clone);
        let again: Vec<TaskIndex> = match work {
            Work::Fresh(_) => Vec::new(),
            Work::Again(tasks) => tasks.iter().map(|(task, _)| *task).collect(),
        };
        if let (Some(job), true) = (&kept, again.is_empty()) {
            return Ok(Some(Prepared { job: Arc::clone(job), ends: HashMap::new() }));
        }
        let store = Arc::clone(&self.store);
        let read = blocking::run(move || -> Result<_, StoreError> {
            let record = match kept {
                Some(record) => Some(record),
                None => store.job(job)?.map(Arc::new),
            };
            let mut ends = HashMap::new();
            for task in again {
                if let Some(row) = store.live_task(TaskId { job, task })? {
                    ends.insert(task, (row.losses, row.failures));
                }
            }
            Ok(record.map(|job| Prepared { job, ends }))
        });
        let prepared = read.await?;
        if let Some(prepared) = &prepared {
            self.keep(Arc::clone(&prepared.job));
        }
        Ok(prepared)
    }

    fn keep(&mut self, record: Arc<JobRecord>) {
        let job = record.id;
        if self.kept.insert(job, record).is_none() {
            self.order.push_back(job);
        }
        while self.order.len() > KEPT_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.kept.remove(&oldest);
            }
        }
    }
}
