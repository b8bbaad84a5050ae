//! What came of a change.

use swarm_protocol::{AttemptId, GroupId, JobId, ScheduleId, UserId, WorkerId};

/// What a transition did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// Nothing more to say.
    Done,
    /// The job made, or with `repeated` the earlier one of the same idempotency key.
    Job {
        /// Its number.
        job: JobId,
        /// Whether it is the earlier one.
        repeated: bool,
    },
    /// The attempt ended; with `job_ended` it was the last task of its job.
    Ended {
        /// Whether the whole job is final now.
        job_ended: bool,
    },
    /// The job is cancelled; these attempts are still live and must be told.
    Cancelled {
        /// Attempts on workers.
        live: Vec<(AttemptId, WorkerId)>,
        /// Whether the whole job is final now.
        job_ended: bool,
    },
    /// So many rows are gone.
    Purged(u64),
    /// The schedule made.
    Schedule(ScheduleId),
    /// The user made.
    User(UserId, GroupId),
    /// The worker made or found.
    Worker(WorkerId),
}

/// Why a transition changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The guard did not hold: late, doubled or overtaken.
    #[error("overtaken: {0}")]
    Stale(String),
    /// There is no such thing.
    #[error("{0} does not exist")]
    NotFound(String),
    /// It clashes with something that exists.
    #[error("{0}")]
    Conflict(String),
    /// The database refuses it every time.
    #[error("the database refuses it: {0}")]
    Broken(String),
}

/// The store's answer to one transition.
pub type Verdict = Result<Applied, Refusal>;
