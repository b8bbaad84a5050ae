//! The store: the truth, spoken to in verbs. One Diesel code for SQLite and Postgres; the backend is chosen by URL scheme.
//!
//! All writes are [`Transition`]s and go through the ledger ([`crate::ledger`]), which commits them in batches under the
//! leader's epoch. Each transition carries its own guard (expected state, attempt); the row count proves it, and a guard
//! that does not hold is a [`Refusal`] that changes nothing. Reads may run on any thread that may block.
//!
//! An array is a range plus exceptions: `jobs.next_fresh` says which tasks never left the waiting state
//! (`next_fresh..=last`), `live_tasks` has a row for each task that is assigned, started or waits for another attempt,
//! `attempts` a row for each ended attempt (at most one per task is final, a unique index says so), and `ended_ranges`
//! a row for each range that ended without ever running.

mod commit;
#[cfg(test)]
pub(crate) mod conformance;
mod connect;
mod db;
mod faults;
#[cfg(test)]
pub(crate) mod injected;
mod postgres;
mod read;
mod records;
mod schema;
mod sqlite;
mod sqltypes;
mod transition;
mod verdict;

pub use connect::{OpenError, Source};
pub use db::Db;
pub use records::{
    AttemptRecord, ImageRecord, JobFilter, JobRecord, LateReport, LivePhase, LiveTask, Prepared, RefreshRecord,
    ScheduleRecord, Snapshot, TaskRecord, UserRecord, WorkerRecord,
};
pub use sqlite::{BackupError, backup};
pub use transition::{AttemptEnd, NewImage, NewJob, NewSchedule, NewUser, Next, SENT_MAX, Transition, Work};
pub use verdict::{Applied, Refusal, Verdict};

use swarm_protocol::{
    AttemptId, Digest, Epoch, GroupId, JobId, ScheduleId, SwarmId, TaskId, TaskIndex, TaskRange, Timestamp,
};

/// What went wrong below the verbs.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another core has taken over: this one must stop at once.
    #[error("epoch {ours} is over, the store is at epoch {theirs}")]
    Deposed {
        /// The epoch of this core.
        ours: Epoch,
        /// The epoch in the store.
        theirs: Epoch,
    },
    /// The database cannot be reached, or cannot write now; nothing was done, and the same may succeed later.
    #[error("the database cannot be reached")]
    Connection(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The connection failed while the database was committing; whether it did is to be found out by
    /// [`Store::batch_committed`].
    #[error("the database connection failed during a commit")]
    CommitUnknown {
        /// What holds if it did commit.
        verdicts: Vec<Verdict>,
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A statement failed; the transaction was rolled back.
    #[error("the database refused a statement")]
    Statement(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A stored value cannot be read back.
    #[error("the database holds something unreadable in {what}")]
    Corrupt {
        /// Table and column.
        what: String,
    },
}

/// The verbs. Object-safe; implementations are cheap to share. Every method may block on the database.
pub trait Store: Send + Sync + 'static {
    /// Raises the epoch, commits that, and returns the new epoch: from then on every other core's writes are refused.
    ///
    /// # Errors
    /// [`StoreError`].
    fn take_over(&self) -> Result<Epoch, StoreError>;

    /// The epoch in the store: that of the core that leads.
    ///
    /// # Errors
    /// [`StoreError`].
    fn epoch(&self) -> Result<Epoch, StoreError>;

    /// This installation's id, drawn when the store was made. It is read each time: whether the core is ready is judged by
    /// it.
    ///
    /// # Errors
    /// [`StoreError`].
    fn swarm_id(&self) -> Result<SwarmId, StoreError>;

    /// Commits `transitions` in order, in one transaction that first locks the epoch row and ends by writing
    /// `(epoch, number)`. Either all that are not refused are durable, or an error says that nothing is.
    /// Only the ledger calls this.
    ///
    /// # Errors
    /// [`StoreError::Deposed`]; [`StoreError::Statement`] or [`StoreError::Corrupt`] when one transition broke the
    /// transaction (the ledger bisects); [`StoreError::Connection`]; [`StoreError::CommitUnknown`].
    fn commit(&self, epoch: Epoch, number: u64, transitions: &[Transition]) -> Result<Vec<Verdict>, StoreError>;

    /// Whether batch `number` of `epoch` is the last committed one: asked after a lost connection.
    ///
    /// # Errors
    /// [`StoreError::Deposed`] when `epoch` is over; [`StoreError`].
    fn batch_committed(&self, epoch: Epoch, number: u64) -> Result<bool, StoreError>;

    /// Everything that is not final: what memory is rebuilt from at start.
    ///
    /// # Errors
    /// [`StoreError`].
    fn load(&self) -> Result<Snapshot, StoreError>;

    /// One job.
    ///
    /// # Errors
    /// [`StoreError`].
    fn job(&self, job: JobId) -> Result<Option<JobRecord>, StoreError>;

    /// The job that a submit of `group` with this idempotency key made.
    ///
    /// # Errors
    /// [`StoreError`].
    fn job_of_key(&self, group: GroupId, key: &str) -> Result<Option<JobId>, StoreError>;

    /// Jobs by `filter`, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobRecord>, StoreError>;

    /// Up to `limit` tasks of a job from index `from` on, ascending, with all their attempts.
    ///
    /// # Errors
    /// [`StoreError`].
    fn tasks(&self, job: JobId, from: TaskIndex, limit: u32) -> Result<Vec<TaskRecord>, StoreError>;

    /// One attempt, live or ended.
    ///
    /// # Errors
    /// [`StoreError`].
    fn attempt(&self, attempt: AttemptId) -> Result<Option<AttemptRecord>, StoreError>;

    /// The live row of a task, if it has one.
    ///
    /// # Errors
    /// [`StoreError`].
    fn live_task(&self, task: TaskId) -> Result<Option<LiveTask>, StoreError>;

    /// Up to `limit` jobs above `after` by number that have tasks which never left the waiting state and may run at
    /// `now`, with those tasks; not of cancelled jobs.
    ///
    /// # Errors
    /// [`StoreError`].
    fn fresh_tasks(
        &self,
        after: Option<JobId>,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<(JobId, TaskRange)>, StoreError>;

    /// Up to `limit` live rows after that of `after`, by job and task.
    ///
    /// # Errors
    /// [`StoreError`].
    fn live_tasks(&self, after: Option<TaskId>, limit: u32) -> Result<Vec<LiveTask>, StoreError>;

    /// The blobs that a live attempt has sent as its outputs, with their sizes in bytes.
    ///
    /// # Errors
    /// [`StoreError`].
    fn sent_outputs(&self, attempt: AttemptId) -> Result<Vec<(Digest, u64)>, StoreError>;

    /// Whether `group` may read blob `digest`, and its size.
    ///
    /// # Errors
    /// [`StoreError`].
    fn linked_blob(&self, group: GroupId, digest: &Digest) -> Result<Option<u64>, StoreError>;

    /// An image of `group` by `name:tag` or by config digest text.
    ///
    /// # Errors
    /// [`StoreError`].
    fn image(&self, group: GroupId, reference: &str) -> Result<Option<ImageRecord>, StoreError>;

    /// All names of images of `group`, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    fn images(&self, group: GroupId) -> Result<Vec<ImageRecord>, StoreError>;

    /// Schedules of `group` (all groups' with `None`), by number.
    ///
    /// # Errors
    /// [`StoreError`].
    fn schedules(&self, group: Option<GroupId>) -> Result<Vec<ScheduleRecord>, StoreError>;

    /// One schedule.
    ///
    /// # Errors
    /// [`StoreError`].
    fn schedule(&self, schedule: ScheduleId) -> Result<Option<ScheduleRecord>, StoreError>;

    /// A user by name.
    ///
    /// # Errors
    /// [`StoreError`].
    fn user(&self, name: &str) -> Result<Option<UserRecord>, StoreError>;

    /// All users, by number.
    ///
    /// # Errors
    /// [`StoreError`].
    fn users(&self) -> Result<Vec<UserRecord>, StoreError>;

    /// A refresh token by its hash.
    ///
    /// # Errors
    /// [`StoreError`].
    fn refresh_token(&self, hash: &Digest) -> Result<Option<RefreshRecord>, StoreError>;

    /// Revoked JWT ids that have not expired at `now`, and when they do.
    ///
    /// # Errors
    /// [`StoreError`].
    fn revoked_jwts(&self, now: Timestamp) -> Result<Vec<(uuid::Uuid, Timestamp)>, StoreError>;

    /// All workers, revoked ones included, by number.
    ///
    /// # Errors
    /// [`StoreError`].
    fn workers(&self) -> Result<Vec<WorkerRecord>, StoreError>;
}
