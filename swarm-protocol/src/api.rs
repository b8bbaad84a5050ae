//! The types of the HTTP API under `/api/v1`. JSON; unknown fields in requests are refused.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Timestamp;
use crate::ids::{AttemptNo, Digest, JobId, ScheduleId, TaskIndex, UserId, WorkerId};
use crate::labels::Labels;
use crate::link::WorkerFacts;
use crate::outcome::OutcomeKind;
use crate::spec::JobSpec;
use crate::state::{JobState, TaskCounts};
use crate::usage::Usage;

/// What a user may do; each role includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Sees the group's jobs.
    Viewer,
    /// Submits and cancels the group's jobs.
    Consumer,
    /// Steers workers and modules, sees every group's jobs.
    Operator,
    /// Manages users, tokens and configuration.
    Admin,
}

impl Role {
    /// Every role, for tables and tests.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Consumer, Self::Operator, Self::Admin];

    /// The word used in JSON, tokens and databases.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Consumer => "consumer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// The role written as `word`, if there is one.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == word)
    }
}

/// `POST /login`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    /// The account's name.
    pub user: String,
    /// Its password.
    pub password: String,
}

/// `POST /refresh`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RefreshRequest {
    /// From the last login or refresh; good for one use.
    pub refresh_token: String,
}

/// Answer to a login or a refresh.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Tokens {
    /// A JWT for `Authorization: Bearer`.
    pub access_token: String,
    /// Its life in seconds.
    pub expires_in_s: u64,
    /// For the next refresh.
    pub refresh_token: String,
}

/// `GET /whoami`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Whoami {
    /// The account's number.
    pub id: UserId,
    /// Its name.
    pub user: String,
    /// Its owner group's name.
    pub group: String,
    /// Its role.
    pub role: Role,
}

/// `POST /users`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserRequest {
    /// The new account's name.
    pub user: String,
    /// Its password, at least 12 characters.
    pub password: String,
    /// Its role.
    pub role: Role,
    /// Its owner group; made if it does not exist. The account's own name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// `POST /users/{id}/reset`: ends every session of the account.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserResetRequest {
    /// Its new password, at least 12 characters; the present one stays when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

/// One account in `GET /users`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UserView {
    /// The account's number.
    pub id: UserId,
    /// Its name.
    pub user: String,
    /// Its owner group's name.
    pub group: String,
    /// Its role.
    pub role: Role,
    /// When it was made.
    pub created_at: Timestamp,
}

/// `POST /workers/tokens`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinTokenRequest {
    /// The name the worker will have; the token is good for no other.
    pub worker: String,
    /// Life in seconds, at most 900.
    #[serde(default = "default_join_s")]
    pub expires_in_s: u64,
}

fn default_join_s() -> u64 {
    900
}

/// Answer to `POST /workers/tokens`; shown once.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JoinToken {
    /// The token.
    pub token: String,
    /// The worker it is for.
    pub worker: String,
    /// When it stops working.
    pub expires_at: Timestamp,
}

/// `POST /workers/join`, unauthenticated but for the token.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// From `POST /workers/tokens`.
    pub token: String,
    /// Must be the token's worker.
    pub worker: String,
}

/// Answer to a join; the key is shown once and is what the worker uses from then on.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JoinAnswer {
    /// The worker's number.
    pub worker: WorkerId,
    /// For `Authorization: Bearer` on the link and the worker's file routes.
    pub key: String,
}

/// Answer to a submit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Submitted {
    /// The job's number.
    pub job: JobId,
    /// True when the Idempotency-Key was known and this is the earlier job.
    #[serde(default)]
    pub repeated: bool,
    /// What may keep the job from running, though it was accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
}

/// What would become of a job, were it submitted at this moment; nothing of it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// The config digest behind the image's name.
    pub image: Digest,
    /// How many tasks it would have.
    pub tasks: u64,
    /// Why none of them could start at once; empty when a worker has room.
    pub reasons: Vec<WhyReason>,
    /// What would let it start sooner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What would keep it from ever running, though it would be accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
}

/// What may keep an accepted job from running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Warning {
    /// A stable word: `no-worker`, or `no-worker-fits`.
    pub code: String,
    /// The field of the spec it is about.
    pub field: String,
    /// What stands against it.
    pub problem: String,
    /// What to try.
    pub hint: String,
}

/// A job in lists and by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    /// Its number.
    pub id: JobId,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Derived from the counts.
    pub state: JobState,
    /// Where its tasks stand.
    pub tasks: TaskCounts,
    /// Who submitted it.
    pub owner: String,
    /// Whose it is.
    pub group: String,
    /// As submitted.
    pub image: String,
    /// What the image was resolved to.
    pub image_digest: Digest,
    /// Higher runs earlier.
    pub priority: i32,
    /// When it was accepted.
    pub submitted_at: Timestamp,
    /// Not before this instant.
    pub start_at: Option<Timestamp>,
    /// When its last task ended.
    pub ended_at: Option<Timestamp>,
    /// Whether a cancel was asked for.
    pub cancel_requested: bool,
    /// The schedule that made it, and the nominal instant.
    pub launched_by: Option<Launch>,
}

/// Which schedule made a job, and for when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Launch {
    /// The schedule.
    pub schedule: ScheduleId,
    /// The instant it was due.
    pub nominal_at: Timestamp,
}

/// `GET /jobs/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobDetail {
    /// The job.
    #[serde(flatten)]
    pub job: JobView,
    /// The spec as accepted.
    pub spec: JobSpec,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The entries.
    pub items: Vec<T>,
    /// For the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Where one task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskPhase {
    /// See [`crate::state::TaskState::Waiting`].
    Waiting,
    /// See [`crate::state::TaskState::Assigned`].
    Assigned,
    /// See [`crate::state::TaskState::Started`].
    Started,
    /// See [`crate::state::TaskState::Ended`].
    Ended,
}

/// One task in `GET /jobs/{id}/tasks`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskView {
    /// Its index.
    pub task: TaskIndex,
    /// Where it stands.
    pub phase: TaskPhase,
    /// How it ended.
    pub outcome: Option<OutcomeKind>,
    /// The container's exit code.
    pub exit_code: Option<i32>,
    /// Why, where the outcome alone does not say it.
    pub detail: Option<String>,
    /// Every attempt, the first one first.
    pub attempts: Vec<AttemptView>,
    /// Reports that came too late to count, in the order they came: the first of each worker about each attempt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub late_reports: Vec<LateReportView>,
}

/// What a worker said of an attempt when it did not count any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LateReportView {
    /// The attempt it was about.
    pub attempt: AttemptNo,
    /// Who said it.
    pub worker: String,
    /// How it says the attempt ended.
    pub outcome: OutcomeKind,
    /// The container's exit code.
    pub exit_code: Option<i32>,
    /// Why, where the outcome alone does not say it.
    pub detail: Option<String>,
    /// When it came.
    pub reported_at: Timestamp,
}

/// One attempt of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttemptView {
    /// Counted from 1.
    pub attempt: AttemptNo,
    /// Where.
    pub worker: String,
    /// How far.
    pub phase: TaskPhase,
    /// When it was committed to the worker.
    pub assigned_at: Timestamp,
    /// The engine's stamp of the start.
    pub started_at: Option<Timestamp>,
    /// The engine's stamp of the end, or when it was given up.
    pub ended_at: Option<Timestamp>,
    /// How long the container ran, by a monotonic clock.
    pub ran_ms: Option<u64>,
    /// How it ended.
    pub outcome: Option<OutcomeKind>,
    /// The container's exit code.
    pub exit_code: Option<i32>,
    /// Why, where the outcome alone does not say it.
    pub detail: Option<String>,
    /// Whether it is the one final record of its task.
    pub is_final: bool,
    /// Whether it may have run without the core knowing how far (invariant I7).
    pub may_have_run: bool,
    /// Bytes of the encoded log.
    pub log_bytes: u64,
    /// Bytes of log dropped at a bound.
    pub log_cut_bytes: u64,
    /// What it handed back.
    pub outputs: Vec<OutputView>,
    /// What it used; none while it runs, and none for one that was given up.
    pub usage: Option<Usage>,
}

/// One output of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OutputView {
    /// Its path in the container.
    pub path: String,
    /// Its blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size_bytes: u64,
    /// A directory, kept as a tar archive.
    pub is_dir: bool,
    /// Permission bits.
    pub mode: u32,
}

/// `GET /jobs/{id}/why`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Why {
    /// The job's state.
    pub state: JobState,
    /// One sentence that answers the question.
    pub summary: String,
    /// Every reason, most important first.
    pub reasons: Vec<WhyReason>,
    /// What would change it.
    pub hint: Option<String>,
}

/// One reason of a [`Why`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WhyReason {
    /// A stable word, for instance `memory`, `cpu`, `slots`, `no-worker`, `delayed`, `behind`.
    pub code: String,
    /// In words.
    pub text: String,
    /// The worker it is about, if any.
    pub worker: Option<String>,
}

/// `POST /schedules`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleRequest {
    /// Unique within the owner group.
    pub name: String,
    /// Five fields: minute, hour, day of month, month, day of week.
    pub cron: String,
    /// An IANA time zone; `UTC` when absent.
    #[serde(default = "default_zone")]
    pub zone: String,
    /// What to run.
    pub spec: JobSpec,
}

fn default_zone() -> String {
    "UTC".into()
}

/// A schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ScheduleView {
    /// Its number.
    pub id: ScheduleId,
    /// Its name.
    pub name: String,
    /// Five fields.
    pub cron: String,
    /// An IANA time zone.
    pub zone: String,
    /// Whether it is paused.
    pub paused: bool,
    /// Who made it.
    pub owner: String,
    /// The next few instants it will fire at; none while paused.
    pub next: Vec<Timestamp>,
    /// Its last launch.
    pub last: Option<LaunchView>,
    /// Instants that passed unlaunched while no core ran.
    pub missed: u64,
    /// What it runs.
    pub spec: JobSpec,
}

/// A launch of a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LaunchView {
    /// The instant it was due.
    pub nominal_at: Timestamp,
    /// The job it made.
    pub job: JobId,
}

/// An image the caller may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageView {
    /// `name:tag`.
    pub name: String,
    /// Its identity.
    pub config_digest: Digest,
    /// Bytes of all layers as stored.
    pub size_bytes: u64,
    /// For instance `linux/amd64`.
    pub platform: String,
    /// When it was pushed.
    pub pushed_at: Timestamp,
}

/// An uploaded file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileView {
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its length.
    pub size_bytes: u64,
}

/// An upload that broke off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UploadView {
    /// Bytes of it that are there; 0 when there is none.
    pub offset: u64,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkerView {
    /// Its number.
    pub id: WorkerId,
    /// Its name.
    pub name: String,
    /// `ready`, `suspect`, `draining`, `offline` or `revoked`.
    pub state: String,
    /// What it is and has.
    pub facts: WorkerFacts,
    /// What it is known by, for jobs that require it.
    #[serde(default)]
    pub labels: Labels,
    /// Tasks it holds.
    pub live: u32,
    /// Thousandths of cores promised to them.
    pub used_cpu_millis: u32,
    /// Bytes of memory promised to them.
    pub used_memory_bytes: u64,
    /// Slots without a task, by its last heartbeat.
    #[serde(default)]
    pub free_slots: Option<u32>,
    /// One-minute load average of its machine in thousandths, by its last heartbeat.
    #[serde(default)]
    pub load_millis: Option<u32>,
    /// When it was last heard.
    pub heard_at: Option<Timestamp>,
}

/// One module of the core in `GET /modules`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModuleView {
    /// Its name.
    pub name: String,
    /// `running`, `degraded` (it works without something it would like to have), `stopping`, `stopped` or `failed`.
    pub state: String,
    /// How it is, where there is more to say of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Messages waiting in its inbox.
    pub queue_depth: u64,
    /// How many fit.
    pub queue_capacity: u64,
    /// Messages handled since the start.
    pub handled: u64,
    /// Messages a second over the last minute.
    pub rate_per_s: f64,
    /// Errors since the start.
    pub errors: u64,
    /// The last error, if any.
    pub last_error: Option<String>,
    /// Restarts since the process began.
    pub restarts: u64,
}
