//! What travels between the parts of swarm-sync: identifiers, the job spec, states, API types, link frames and sealed
//! heartbeats. No sockets and no database: everything here is pure and can be tested without either.

pub mod api;
pub mod globs;
pub mod heartbeat;
pub mod ids;
pub mod labels;
pub mod link;
pub mod logs;
pub mod outcome;
pub mod problem;
pub mod spec;
pub mod state;
pub mod tasks;
pub mod text;
pub mod usage;
pub mod validate;

pub use ids::{
    AttemptId, AttemptNo, BootId, Digest, Epoch, GroupId, JobId, ScheduleId, SessionId, SwarmId, TaskId, TaskIndex,
    UserId, WorkerId,
};
pub use outcome::{LossReason, Outcome, OutcomeKind};
pub use tasks::{TaskRange, TaskSet};
pub use usage::Usage;

/// A point in wall-clock time, UTC, in whole microseconds (what both databases keep).
pub type Timestamp = chrono::DateTime<chrono::Utc>;
