//! The rows the checker judges, as plain data.

use std::collections::BTreeMap;

use swarm_protocol::{AttemptId, JobId, TaskId};

/// Everything read from the store. Instants are Unix time in microseconds.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// The installation's id, as containers are labelled with it.
    pub swarm: Option<String>,
    /// By number.
    pub jobs: BTreeMap<JobId, JobRow>,
    /// Tasks that are live or wait for another attempt.
    pub live: BTreeMap<TaskId, LiveRow>,
    /// Ended attempts.
    pub attempts: BTreeMap<AttemptId, AttemptRow>,
    /// Ranges that ended without running.
    pub ended: Vec<EndedRow>,
    /// Launches of schedules.
    pub launches: Vec<LaunchRow>,
}

/// A row of `jobs`.
#[derive(Debug, Clone, Default)]
pub struct JobRow {
    /// First index.
    pub first_task: u64,
    /// Last index.
    pub last_task: u64,
    /// Tasks from here to the last never left the waiting state.
    pub next_fresh: u64,
    /// Assigned or started.
    pub live: u64,
    /// Ended well.
    pub succeeded: u64,
    /// Ended otherwise.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
    /// When it was accepted.
    pub submitted_us: i64,
    /// When its last task ended.
    pub ended_us: Option<i64>,
    /// The schedule and the nominal instant that made it.
    pub launch: Option<(u64, i64)>,
    /// The key it was submitted with.
    pub key: Option<String>,
    /// From the spec.
    pub at_most_once: bool,
    /// From the spec.
    pub eager: bool,
}

/// A row of `live_tasks`.
#[derive(Debug, Clone, Default)]
pub struct LiveRow {
    /// Current, or the next one when waiting.
    pub attempt: u16,
    /// 0 waiting, 1 assigned, 2 started.
    pub phase: u8,
}

/// A row of `attempts`.
#[derive(Debug, Clone, Default)]
pub struct AttemptRow {
    /// Where it ran.
    pub worker: u64,
    /// The outcome's word, for instance `succeeded`.
    pub outcome: String,
    /// The reason's word when it was lost.
    pub loss: Option<String>,
    /// When it was committed to the worker.
    pub assigned_us: i64,
    /// The engine's stamp.
    pub started_us: Option<i64>,
    /// The engine's stamp, or when it was given up.
    pub ended_us: i64,
    /// By a monotonic clock.
    pub ran_ms: Option<u64>,
    /// The task's one final record?
    pub is_final: bool,
    /// Invariant I7.
    pub may_have_run: bool,
    /// Bytes dropped from its log.
    pub log_cut_bytes: u64,
}

/// A row of `ended_ranges`.
#[derive(Debug, Clone)]
pub struct EndedRow {
    /// The job.
    pub job: JobId,
    /// First index.
    pub first: u64,
    /// Last index.
    pub last: u64,
    /// The outcome's word.
    pub outcome: String,
}

/// A row of `launches`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchRow {
    /// The schedule.
    pub schedule: u64,
    /// When it was due.
    pub nominal_us: i64,
    /// The job made.
    pub job: JobId,
}

impl World {
    /// The attempts of one task, ascending.
    pub(crate) fn attempts_of(&self, task: TaskId) -> impl Iterator<Item = (AttemptId, &AttemptRow)> {
        let bound = |attempt| AttemptId { job: task.job, task: task.task, attempt };
        self.attempts.range(bound(0)..=bound(u16::MAX)).map(|(id, row)| (*id, row))
    }

    /// The attempts of one job, ascending.
    pub(crate) fn attempts_in(&self, job: JobId) -> impl Iterator<Item = (AttemptId, &AttemptRow)> {
        let low = AttemptId { job, task: 0, attempt: 0 };
        let high = AttemptId { job, task: u32::MAX, attempt: u16::MAX };
        self.attempts.range(low..=high).map(|(id, row)| (*id, row))
    }

    /// The live rows of one job, ascending.
    pub(crate) fn live_in(&self, job: JobId) -> impl Iterator<Item = (TaskId, &LiveRow)> {
        let (low, high) = (TaskId { job, task: 0 }, TaskId { job, task: u32::MAX });
        self.live.range(low..=high).map(|(id, row)| (*id, row))
    }

    /// Whether the store knows this attempt as assigned or started.
    pub(crate) fn is_live(&self, attempt: AttemptId) -> bool {
        self.live.get(&attempt.task_id()).is_some_and(|row| row.phase > 0 && row.attempt == attempt.attempt)
    }
}
