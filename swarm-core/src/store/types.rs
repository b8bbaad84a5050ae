//! What the store takes and gives.

use swarm_protocol::link::{ImageOrder, OutputReport};
use swarm_protocol::spec::{JobSpec, Resources};
use swarm_protocol::state::TaskCounts;
use swarm_protocol::{
    AttemptId, AttemptNo, Digest, GroupId, JobId, Outcome, ScheduleId, TaskIndex, TaskRange, Timestamp, UserId,
    WorkerId,
};

use swarm_protocol::api::{Launch, Role};

/// One guarded change. The ledger is the only one who commits them.
#[derive(Debug, Clone)]
pub enum Transition {
    /// Accept a job. Applied as [`Applied::Job`]; a known idempotency key with the same spec digest repeats the earlier
    /// job, with another one it is refused as [`Refusal::Conflict`]. With `launch`, the launch row
    /// (schedule, instant) is inserted in the same transaction and its primary key is the guard (I6):
    /// a second one is [`Refusal::Conflict`]. A launch moves the schedule's `considered_until` forward to its instant;
    /// a paused schedule refuses it as [`Refusal::Stale`], a deleted one as [`Refusal::NotFound`].
    CreateJob(Box<NewJob>),
    /// Give tasks to a worker. Fresh tasks must begin at the job's `next_fresh`; others must be waiting live rows whose
    /// next attempt is the one named. A cancelled or ended job refuses.
    Assign {
        /// The job.
        job: JobId,
        /// Which tasks.
        work: Work,
        /// To whom.
        worker: WorkerId,
        /// When.
        at: Timestamp,
    },
    /// Assigned → started.
    Start {
        /// Must be the task's current attempt.
        attempt: AttemptId,
        /// Must be its worker.
        worker: WorkerId,
        /// The engine's stamp.
        started_at: Timestamp,
    },
    /// Assigned → waiting, unstarted; the next attempt's number is one higher, no retry budget is used. A task of a
    /// cancelled job ends as cancelled instead, applied as [`Applied::Ended`].
    Recall {
        /// Must be the task's current attempt, in state assigned.
        attempt: AttemptId,
        /// Must be its worker.
        worker: WorkerId,
        /// When.
        at: Timestamp,
    },
    /// Assigned or started → waiting (retry) or ended. Writes the attempt's one row.
    End(Box<AttemptEnd>),
    /// A report that came too late to count: the first of each worker about each attempt is kept; changes nothing else.
    Superseded {
        /// Which attempt it was about.
        attempt: AttemptId,
        /// Who sent it.
        worker: WorkerId,
        /// What it said.
        outcome: Outcome,
        /// When it came.
        at: Timestamp,
    },
    /// Marks the job as cancelled and ends its waiting tasks. Idempotent; a job that is over stays as it is. Applied as
    /// [`Applied::Cancelled`].
    Cancel {
        /// The job.
        job: JobId,
        /// When.
        at: Timestamp,
    },
    /// New schedule; a taken (group, name) is [`Refusal::Conflict`].
    CreateSchedule(Box<NewSchedule>),
    /// Pause or resume.
    PauseSchedule {
        /// The schedule.
        schedule: ScheduleId,
        /// Paused from now on?
        paused: bool,
        /// When: instants before a resume are not launched later.
        at: Timestamp,
    },
    /// Removes a schedule; its jobs and launches stay.
    DeleteSchedule {
        /// The schedule.
        schedule: ScheduleId,
    },
    /// Adds to the count of instants that passed unlaunched and moves `considered_until` forward.
    MissLaunches {
        /// The schedule.
        schedule: ScheduleId,
        /// How many.
        missed: u64,
        /// All instants up to here have been launched or counted.
        until: Timestamp,
    },
    /// Lets `group` read a stored blob.
    LinkBlob {
        /// The group.
        group: GroupId,
        /// The blob.
        digest: Digest,
        /// Its bytes.
        size_bytes: u64,
        /// When.
        at: Timestamp,
    },
    /// Names an image for a group (moving the name if it is taken) and links all its blobs.
    TagImage(Box<NewImage>),
    /// Takes a name away.
    UntagImage {
        /// The group.
        group: GroupId,
        /// `name:tag`.
        name: String,
    },
    /// New account; a taken name is [`Refusal::Conflict`]. The group is made if needed.
    CreateUser(Box<NewUser>),
    /// Raises the account's token version (all its JWTs die), revokes its refresh tokens, and optionally sets a new
    /// password hash, which also clears the count of failed logins.
    ResetUser {
        /// The account.
        user: UserId,
        /// PHC string.
        password_hash: Option<String>,
    },
    /// Counts a failed login, or clears the count.
    NoteLogin {
        /// The account.
        user: UserId,
        /// Whether it failed.
        failed: bool,
        /// When.
        at: Timestamp,
    },
    /// A new refresh token; with `replaces`, that one must be unused and is marked used in the same step
    /// ([`Refusal::Stale`] otherwise: the caller then revokes the family).
    IssueRefresh {
        /// SHA-256 of the token.
        hash: Digest,
        /// Tokens of one login share a family.
        family: uuid::Uuid,
        /// The account.
        user: UserId,
        /// When it stops working.
        expires_at: Timestamp,
        /// The token it was exchanged for.
        replaces: Option<Digest>,
    },
    /// Revokes every refresh token of a family.
    RevokeFamily {
        /// The family.
        family: uuid::Uuid,
    },
    /// Revokes one JWT by its id until it would have expired anyway.
    RevokeJwt {
        /// The `jti`.
        jti: uuid::Uuid,
        /// When the JWT expires.
        expires_at: Timestamp,
    },
    /// A join token for a worker's name.
    CreateJoinToken {
        /// SHA-256 of the token.
        hash: Digest,
        /// The only name it is good for.
        worker: String,
        /// When it stops working.
        expires_at: Timestamp,
    },
    /// Uses a join token up: it must exist, be unused, unexpired at `at` and for this name ([`Refusal::Stale`]
    /// otherwise). The worker is made, or, if the name is known and not revoked, gets the new key; a revoked name, or
    /// the key of another worker, is [`Refusal::Conflict`] and leaves the token unused.
    /// Applied as [`Applied::Worker`].
    JoinWorker {
        /// SHA-256 of the token.
        token: Digest,
        /// The name.
        worker: String,
        /// SHA-256 of the worker's key.
        key: Digest,
        /// When.
        at: Timestamp,
    },
    /// Makes a worker without a token: the embedded one of `swarm up`. As `JoinWorker` otherwise.
    AddWorker {
        /// The name.
        worker: String,
        /// SHA-256 of the worker's key.
        key: Digest,
        /// When.
        at: Timestamp,
    },
    /// A worker's key stops working for good.
    RevokeWorker {
        /// The worker.
        worker: WorkerId,
    },
    /// Sets whether a worker takes new work.
    DrainWorker {
        /// The worker.
        worker: WorkerId,
        /// Draining from now on?
        draining: bool,
    },
}

/// Which tasks of one job are meant, and with which attempt numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Tasks that never ran; their attempt is 1.
    Fresh(TaskRange),
    /// Tasks that wait for another attempt, with its number.
    Again(Vec<(TaskIndex, AttemptNo)>),
}

impl Work {
    /// How many tasks, at least 1.
    #[must_use]
    pub fn count(&self) -> u64 {
        match self {
            Self::Fresh(range) => range.count(),
            Self::Again(tasks) => tasks.len() as u64,
        }
    }

    /// The attempts, ascending for fresh tasks.
    #[must_use]
    pub fn attempts(&self, job: JobId) -> Vec<AttemptId> {
        match self {
            Self::Fresh(range) => range.iter().map(|task| AttemptId { job, task, attempt: 1 }).collect(),
            Self::Again(tasks) => tasks.iter().map(|&(task, attempt)| AttemptId { job, task, attempt }).collect(),
        }
    }
}

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

/// A job to accept.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Who.
    pub owner: UserId,
    /// Whose.
    pub group: GroupId,
    /// What; already validated.
    pub spec: JobSpec,
    /// The image as resolved: pinned, whatever happens to the name.
    pub image: ImageOrder,
    /// Sizes of the inputs in the spec's order.
    pub input_bytes: Vec<u64>,
    /// When.
    pub submitted_at: Timestamp,
    /// `(key, SHA-256 of the request body)`; unique per group.
    pub idempotency: Option<(String, Digest)>,
    /// The schedule's launch that makes it.
    pub launch: Option<Launch>,
}

/// The end of an attempt.
#[derive(Debug, Clone)]
pub struct AttemptEnd {
    /// Must be the task's current attempt.
    pub attempt: AttemptId,
    /// Must be its worker.
    pub worker: WorkerId,
    /// How.
    pub outcome: Outcome,
    /// What comes next.
    pub next: Next,
    /// The engine's stamp of the start.
    pub started_at: Option<Timestamp>,
    /// The engine's stamp of the end, or when it was given up.
    pub ended_at: Timestamp,
    /// By a monotonic clock.
    pub ran_ms: Option<u64>,
    /// Whether the container may have run without the core knowing how far.
    pub may_have_run: bool,
    /// Bytes of the encoded log that are stored.
    pub log_bytes: u64,
    /// Bytes dropped at a bound.
    pub log_cut_bytes: u64,
    /// Collected outputs; their blobs are linked to the job's group.
    pub outputs: Vec<OutputReport>,
}

/// What follows the end of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This is the task's one final record.
    Final,
    /// Another attempt, not before this instant. A job that was cancelled meanwhile gets no other attempt: the store
    /// makes the record final then.
    Retry {
        /// Backoff.
        not_before: Timestamp,
    },
}

/// A schedule to make.
#[derive(Debug, Clone)]
pub struct NewSchedule {
    /// Who.
    pub owner: UserId,
    /// Whose.
    pub group: GroupId,
    /// Unique within the group.
    pub name: String,
    /// Five fields.
    pub cron: String,
    /// An IANA zone.
    pub zone: String,
    /// The job it makes.
    pub spec: JobSpec,
    /// The image, pinned.
    pub image: ImageOrder,
    /// Sizes of the inputs in the spec's order.
    pub input_bytes: Vec<u64>,
    /// When; instants up to here are not considered.
    pub created_at: Timestamp,
}

/// An image to name.
#[derive(Debug, Clone)]
pub struct NewImage {
    /// Whose.
    pub group: GroupId,
    /// `name:tag`.
    pub name: String,
    /// Its blobs.
    pub image: ImageOrder,
    /// For instance `linux/amd64`.
    pub platform: String,
    /// When.
    pub pushed_at: Timestamp,
}

/// An account to make.
#[derive(Debug, Clone)]
pub struct NewUser {
    /// Its name.
    pub name: String,
    /// PHC string.
    pub password_hash: String,
    /// Its role.
    pub role: Role,
    /// Its group's name.
    pub group: String,
    /// Whether the group's jobs may run as root; used when the group is made.
    pub allow_root: bool,
    /// When.
    pub created_at: Timestamp,
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
    pub spec: JobSpec,
    /// The image, pinned.
    pub image: ImageOrder,
    /// Sizes of the inputs in the spec's order.
    pub input_bytes: Vec<u64>,
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
}
