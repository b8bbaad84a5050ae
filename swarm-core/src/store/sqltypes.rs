//! How values look in the tables: instants as Unix microseconds, digests and UUIDs as raw bytes, composite values as
//! JSON text, all of which both backends keep alike. Also the rows themselves.

use diesel::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use swarm_protocol::{Digest, Timestamp, WorkerId};

use super::schema::{attempts, ended_ranges, jobs, live_tasks};
use super::{LivePhase, LiveTask};

/// Why a verb failed before its outcome was known.
#[derive(Debug)]
pub(super) enum Fault {
    /// The database's word.
    Database(diesel::result::Error),
    /// A stored value cannot be read back: table and column.
    Corrupt(String),
}

impl From<diesel::result::Error> for Fault {
    fn from(error: diesel::result::Error) -> Self {
        Self::Database(error)
    }
}

/// A value of `what` (table and column) that no code of ours can have written.
pub(super) fn corrupt(what: impl Into<String>) -> Fault {
    Fault::Corrupt(what.into())
}

/// Any unsigned number as the tables keep it. What is over 2^63 - 1 is no id, count or size that can exist, so it
/// becomes the largest one, which finds nothing.
pub(super) fn int(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

/// The number of `what`.
pub(super) fn number<N: TryFrom<i64>>(value: i64, what: &str) -> Result<N, Fault> {
    N::try_from(value).map_err(|_| corrupt(what))
}

/// An instant in Unix microseconds.
pub(super) fn micros(at: Timestamp) -> i64 {
    at.timestamp_micros()
}

/// The instant of `what`.
pub(super) fn instant(value: i64, what: &str) -> Result<Timestamp, Fault> {
    Timestamp::from_timestamp_micros(value).ok_or_else(|| corrupt(what))
}

/// The instant of `what`, if there is one.
pub(super) fn maybe_instant(value: Option<i64>, what: &str) -> Result<Option<Timestamp>, Fault> {
    value.map(|value| instant(value, what)).transpose()
}

/// The JSON text of plain data.
pub(super) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain data encodes")
}

/// The value of `what`.
pub(super) fn from_json<T: DeserializeOwned>(text: &str, what: &str) -> Result<T, Fault> {
    serde_json::from_str(text).map_err(|error| corrupt(format!("{what}: {error}")))
}

/// The digest of `what`.
pub(super) fn digest(bytes: &[u8], what: &str) -> Result<Digest, Fault> {
    bytes.try_into().map(Digest).map_err(|_| corrupt(what))
}

/// The UUID of `what`.
pub(super) fn uuid(bytes: &[u8], what: &str) -> Result<uuid::Uuid, Fault> {
    uuid::Uuid::from_slice(bytes).map_err(|_| corrupt(what))
}

/// `live_tasks.phase`: for another attempt.
pub(super) const WAITING: i32 = 0;
/// `live_tasks.phase`: on a worker, not known to have started.
pub(super) const ASSIGNED: i32 = 1;
/// `live_tasks.phase`: its container started.
pub(super) const STARTED: i32 = 2;

/// A row of `jobs`.
#[derive(Debug, Clone, Queryable, Selectable, Insertable)]
#[diesel(table_name = jobs, treat_none_as_default_value = false)]
pub(super) struct JobRow {
    pub(super) id: i64,
    pub(super) owner_id: i64,
    pub(super) group_id: i64,
    pub(super) name: Option<String>,
    pub(super) spec: String,
    pub(super) image: String,
    pub(super) input_bytes: String,
    pub(super) first_task: i64,
    pub(super) last_task: i64,
    pub(super) next_fresh: i64,
    pub(super) live: i64,
    pub(super) succeeded: i64,
    pub(super) failed: i64,
    pub(super) cancelled: i64,
    pub(super) submitted_at: i64,
    pub(super) start_at: Option<i64>,
    pub(super) ended_at: Option<i64>,
    pub(super) cancel_requested: bool,
    pub(super) schedule_id: Option<i64>,
    pub(super) nominal_at: Option<i64>,
    pub(super) idempotency_key: Option<String>,
    pub(super) idempotency_digest: Option<Vec<u8>>,
}

/// A row of `live_tasks`.
#[derive(Debug, Clone, Queryable, Selectable, Insertable)]
#[diesel(table_name = live_tasks, treat_none_as_default_value = false)]
pub(super) struct LiveRow {
    pub(super) job_id: i64,
    pub(super) task: i64,
    pub(super) attempt: i32,
    pub(super) phase: i32,
    pub(super) not_before: Option<i64>,
    pub(super) worker_id: Option<i64>,
    pub(super) assigned_at: Option<i64>,
    pub(super) started_at: Option<i64>,
    pub(super) losses: i32,
    pub(super) failures: i32,
}

impl LiveRow {
    /// As the verbs give it.
    pub(super) fn read(&self) -> Result<LiveTask, Fault> {
        let on_worker = || -> Result<(WorkerId, Timestamp), Fault> {
            let (worker, at) = self.worker_id.zip(self.assigned_at).ok_or_else(|| corrupt("live_tasks.worker_id"))?;
            Ok((WorkerId(number(worker, "live_tasks.worker_id")?), instant(at, "live_tasks.assigned_at")?))
        };
        let phase = match (self.phase, self.not_before, self.started_at) {
            (WAITING, Some(at), _) => LivePhase::Waiting { not_before: instant(at, "live_tasks.not_before")? },
            (ASSIGNED, ..) => {
                let (worker, at) = on_worker()?;
                LivePhase::Assigned { worker, at }
            }
            (STARTED, _, Some(started_at)) => {
                let (worker, at) = on_worker()?;
                LivePhase::Started { worker, at, started_at: instant(started_at, "live_tasks.started_at")? }
            }
            _ => return Err(corrupt("live_tasks.phase")),
        };
        Ok(LiveTask {
            job: swarm_protocol::JobId(number(self.job_id, "live_tasks.job_id")?),
            task: number(self.task, "live_tasks.task")?,
            attempt: number(self.attempt.into(), "live_tasks.attempt")?,
            phase,
            losses: number(self.losses.into(), "live_tasks.losses")?,
            failures: number(self.failures.into(), "live_tasks.failures")?,
        })
    }
}

/// A row of `attempts`.
#[derive(Debug, Clone, Queryable, Selectable, Insertable)]
#[diesel(table_name = attempts, treat_none_as_default_value = false)]
pub(super) struct AttemptRow {
    pub(super) job_id: i64,
    pub(super) task: i64,
    pub(super) attempt: i32,
    pub(super) worker_id: i64,
    pub(super) assigned_at: i64,
    pub(super) started_at: Option<i64>,
    pub(super) ended_at: i64,
    pub(super) ran_ms: Option<i64>,
    pub(super) outcome: String,
    pub(super) is_final: bool,
    pub(super) may_have_run: bool,
    pub(super) log_bytes: i64,
    pub(super) log_cut_bytes: i64,
    pub(super) outputs: String,
    pub(super) usage: Option<String>,
}

/// A row of `ended_ranges`.
#[derive(Debug, Clone, Queryable, Selectable, Insertable)]
#[diesel(table_name = ended_ranges, treat_none_as_default_value = false)]
pub(super) struct EndedRow {
    pub(super) job_id: i64,
    pub(super) first_task: i64,
    pub(super) last_task: i64,
    pub(super) outcome: String,
    pub(super) ended_at: i64,
}
