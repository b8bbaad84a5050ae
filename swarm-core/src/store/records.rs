//! What the store answers with.

use swarm_protocol::api::{Launch, Role};
use swarm_protocol::labels::Labels;
use swarm_protocol::link::{ImageOrder, OutputReport, WorkerFacts};
use swarm_protocol::spec::{JobSpec, Resources};
use swarm_protocol::state::TaskCounts;
use swarm_protocol::{
    AttemptId, AttemptNo, Digest, GroupId, JobId, Outcome, ScheduleId, TaskIndex, TaskRange, Timestamp, UserId,
    WorkerId,
};

/// What a job runs, checked and looked up.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// What; already validated.
    pub spec: JobSpec,
    /// The image, pinned: whatever happens to its name.
    pub image: ImageOrder,
    /// Sizes of the inputs in the spec's order.
    pub input_bytes: Vec<u64>,
}

/// A job as stored.
#[derive(Debug, Clone)]
pub struct JobRecord {
    /// Its number.
    pub id: JobId,
    /// Who.
    pub owner: UserId,
    /// The owner's name.
    pub owner_name: String,
    /// Whose.
    pub group: GroupId,
    /// The group's name.
    pub group_name: String,
    /// Whether the group's policy allows root.
    pub allow_root: bool,
    /// As accepted.
    pub spec: JobSpec,
    /// As resolved.
    pub image: ImageOrder,
    /// Sizes of the inputs in the spec's order.
    pub input_bytes: Vec<u64>,
    /// Where its tasks stand.
    pub counts: TaskCounts,
    /// The lowest task that never left the waiting state; `last + 1` when there is none.
    pub next_fresh: u64,
    /// When it was accepted.
    pub submitted_at: Timestamp,
    /// When its last task ended.
    pub ended_at: Option<Timestamp>,
    /// Whether it was cancelled.
    pub cancel_requested: bool,
    /// What made it.
    pub launch: Option<Launch>,
}

impl JobRecord {
    /// What one task needs.
    #[must_use]
    pub fn needs(&self) -> Resources {
        self.spec.resources
    }

    /// What its age counts from. By a clock that was set back since, this may lie ahead: what has no start of its own to
    /// wait for may run all the same.
    #[must_use]
    pub fn runnable_since(&self) -> Timestamp {
        self.spec.start_at.unwrap_or(self.submitted_at).max(self.submitted_at)
    }

    /// The tasks that never left the waiting state.
    #[must_use]
    pub fn fresh(&self) -> Option<TaskRange> {
        let first = u32::try_from(self.next_fresh).ok()?;
        TaskRange::new(first, self.spec.tasks().last)
    }
}

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Of this group; of all with `None`.
    pub group: Option<GroupId>,
    /// In this state.
    pub state: Option<swarm_protocol::state::JobState>,
    /// With exactly this name.
    pub name: Option<String>,
    /// With a lower number than this.
    pub before: Option<JobId>,
    /// At most this many, at least 1.
    pub limit: u32,
    /// Now: tells delayed from waiting.
    pub now: Timestamp,
}

/// A row of `live_tasks`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveTask {
    /// The job.
    pub job: JobId,
    /// The task.
    pub task: TaskIndex,
    /// The current attempt, or the next one when waiting.
    pub attempt: AttemptNo,
    /// Where it stands.
    pub phase: LivePhase,
    /// Ends by loss of infrastructure so far.
    pub losses: u16,
    /// Ends by its own failure so far.
    pub failures: u16,
}

/// Where a live task stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LivePhase {
    /// For another attempt.
    Waiting {
        /// Backoff.
        not_before: Timestamp,
    },
    /// On a worker, not known to have started.
    Assigned {
        /// The worker.
        worker: WorkerId,
        /// When.
        at: Timestamp,
    },
    /// Its container started.
    Started {
        /// The worker.
        worker: WorkerId,
        /// When it was assigned.
        at: Timestamp,
        /// The engine's stamp.
        started_at: Timestamp,
    },
}

/// What memory is rebuilt from at start.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Every job that is not final.
    pub jobs: Vec<JobRecord>,
    /// Every live task.
    pub live: Vec<LiveTask>,
    /// Every schedule.
    pub schedules: Vec<ScheduleRecord>,
}

/// A task as stored.
#[derive(Debug, Clone)]
pub struct TaskRecord {
    /// Its index.
    pub task: TaskIndex,
    /// Its live row, unless it is fresh or ended.
    pub live: Option<LiveTask>,
    /// How it ended: from its final attempt, or from the range that ended without running.
    pub outcome: Option<Outcome>,
    /// Its ended attempts, the first one first.
    pub attempts: Vec<AttemptRecord>,
    /// Reports that came too late to count, in the order they came.
    pub late: Vec<LateReport>,
}

/// A report that came too late to count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateReport {
    /// The attempt it was about.
    pub attempt: AttemptNo,
    /// The name of the worker that sent it.
    pub worker_name: String,
    /// What it said.
    pub outcome: Outcome,
    /// When it came.
    pub reported_at: Timestamp,
}

/// An attempt as stored: an ended one, or made from the live row.
#[derive(Debug, Clone)]
pub struct AttemptRecord {
    /// Which.
    pub id: AttemptId,
    /// Where.
    pub worker: WorkerId,
    /// The worker's name.
    pub worker_name: String,
    /// When it was committed to the worker.
    pub assigned_at: Timestamp,
    /// The engine's stamp of the start.
    pub started_at: Option<Timestamp>,
    /// The engine's stamp of the end, or when it was given up; none while live.
    pub ended_at: Option<Timestamp>,
    /// By a monotonic clock.
    pub ran_ms: Option<u64>,
    /// How it ended; none while live.
    pub outcome: Option<Outcome>,
    /// Whether it is its task's one final record.
    pub is_final: bool,
    /// Invariant I7.
    pub may_have_run: bool,
    /// Bytes of the encoded log.
    pub log_bytes: u64,
    /// Bytes dropped at a bound.
    pub log_cut_bytes: u64,
    /// Collected outputs.
    pub outputs: Vec<OutputReport>,
    /// What it used; none while live, and for one that was given up.
    pub usage: Option<swarm_protocol::Usage>,
}

/// An image's name as stored.
#[derive(Debug, Clone)]
pub struct ImageRecord {
    /// `name:tag`.
    pub name: String,
    /// Its blobs.
    pub image: ImageOrder,
    /// For instance `linux/amd64`.
    pub platform: String,
    /// When.
    pub pushed_at: Timestamp,
}

/// A schedule as stored.
#[derive(Debug, Clone)]
pub struct ScheduleRecord {
    /// Its number.
    pub id: ScheduleId,
    /// Who.
    pub owner: UserId,
    /// The owner's name.
    pub owner_name: String,
    /// Whose.
    pub group: GroupId,
    /// Its name.
    pub name: String,
    /// Five fields.
    pub cron: String,
    /// An IANA zone.
    pub zone: String,
    /// The job it makes.
    pub job: Prepared,
    /// Whether it is paused.
    pub paused: bool,
    /// All instants up to here have been launched or counted as missed.
    pub considered_until: Timestamp,
    /// Instants that passed unlaunched.
    pub missed: u64,
    /// Its last launch.
    pub last: Option<(Timestamp, JobId)>,
}

/// An account as stored.
#[derive(Debug, Clone)]
pub struct UserRecord {
    /// Its number.
    pub id: UserId,
    /// Its name.
    pub name: String,
    /// PHC string.
    pub password_hash: String,
    /// Its role.
    pub role: Role,
    /// Its group.
    pub group: GroupId,
    /// The group's name.
    pub group_name: String,
    /// JWTs with a lower version are dead.
    pub token_version: u32,
    /// Failed logins in a row.
    pub failed_logins: u32,
    /// When the last one failed.
    pub last_failed_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A refresh token as stored.
#[derive(Debug, Clone)]
pub struct RefreshRecord {
    /// Its family.
    pub family: uuid::Uuid,
    /// The account's name.
    pub user_name: String,
    /// When it stops working.
    pub expires_at: Timestamp,
    /// Whether it was exchanged already.
    pub used: bool,
    /// Whether its family was revoked.
    pub revoked: bool,
}

/// A worker as stored.
#[derive(Debug, Clone)]
pub struct WorkerRecord {
    /// Its number.
    pub id: WorkerId,
    /// Its name.
    pub name: String,
    /// SHA-256 of its key.
    pub key: Digest,
    /// Whether the key was revoked.
    pub revoked: bool,
    /// Whether it takes no new work.
    pub draining: bool,
    /// What it last said it is and has; none before its first link.
    pub facts: Option<WorkerFacts>,
    /// The labels it last said it has; none before it ever said.
    pub labels: Option<Labels>,
}
