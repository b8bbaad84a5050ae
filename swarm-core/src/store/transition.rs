//! What the store is asked to change.

use swarm_protocol::api::{Launch, Role};
use swarm_protocol::labels::Labels;
use swarm_protocol::link::{ImageOrder, OutputReport, WorkerFacts};
use swarm_protocol::{
    AttemptId, AttemptNo, Digest, GroupId, JobId, Outcome, ScheduleId, TaskIndex, TaskRange, Timestamp, UserId,
    WorkerId,
};

use super::Prepared;
#[cfg(doc)]
use super::{Applied, Refusal};

/// Blobs that one attempt may send: as many as it may hand back, twice over for workers that restart.
pub const SENT_MAX: usize = 2 * swarm_protocol::validate::bounds::COLLECTED_MAX;

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
    /// cancelled job ends as cancelled instead, and one without a further attempt number as lost; both are applied as
    /// [`Applied::Ended`].
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
    /// A worker sent a blob as an output of an attempt it holds, at most [`SENT_MAX`] of them ([`Refusal::Conflict`]
    /// beyond): what it may name in its report.
    SendOutput {
        /// Must be the task's current attempt.
        attempt: AttemptId,
        /// Must be its worker.
        worker: WorkerId,
        /// The blob, which has arrived whole; it is stored before its worker is answered.
        digest: Digest,
        /// Its bytes.
        size_bytes: u64,
    },
    /// A report that came too late to count: the first about each attempt is kept, if it is of the worker that had the
    /// attempt; changes nothing else.
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
    /// Sets whether a group's jobs may run as root.
    AllowRoot {
        /// The group.
        group: GroupId,
        /// Whether.
        allow_root: bool,
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
    /// ([`Refusal::Stale`] otherwise: the caller then revokes the family). An account that was reset meanwhile is
    /// [`Refusal::Stale`], too.
    IssueRefresh {
        /// SHA-256 of the token.
        hash: Digest,
        /// Tokens of one login share a family.
        family: uuid::Uuid,
        /// The account.
        user: UserId,
        /// Must be the account's.
        token_version: u32,
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
    /// Removes refresh tokens, join tokens and revocations of JWTs that expired before `before`, at most `rows_max` of
    /// each. Applied as [`Applied::Purged`].
    PurgeExpired {
        /// Not later than now.
        before: Timestamp,
        /// At most so many of each kind.
        rows_max: u32,
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
    /// Keeps what a worker says it is and has.
    NoteFacts {
        /// The worker.
        worker: WorkerId,
        /// Its words, made harmless.
        facts: WorkerFacts,
    },
    /// Keeps the labels a worker says it has.
    NoteLabels {
        /// The worker.
        worker: WorkerId,
        /// All of them, made harmless.
        labels: Labels,
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

/// A job to accept.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Who.
    pub owner: UserId,
    /// Whose.
    pub group: GroupId,
    /// What.
    pub job: Prepared,
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
    /// What it used, where its worker reported.
    pub usage: Option<swarm_protocol::Usage>,
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
    pub job: Prepared,
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
