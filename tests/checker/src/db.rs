//! Reads the store's tables, from SQLite or Postgres, in one consistent transaction.

use diesel::connection::SimpleConnection as _;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use swarm_protocol::spec::JobSpec;
use swarm_protocol::{AttemptId, JobId, Outcome, TaskId};

use crate::rows::{Attempt, Ended, Job, Launch, Live, Swarm, is_postgres, postgres, read, sqlite};
use crate::world::{AttemptRow, EndedRow, JobRow, LaunchRow, LiveRow, World};

/// Why a store cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be opened.
    #[error("the store cannot be opened")]
    Open(#[from] ConnectionError),
    /// A table cannot be read.
    #[error("the store cannot be read")]
    Read(#[from] diesel::result::Error),
    /// A value makes no sense.
    #[error("{0} holds something unreadable")]
    Corrupt(String),
}

struct Rows {
    swarm: Vec<Swarm>,
    jobs: Vec<Job>,
    live: Vec<Live>,
    attempts: Vec<Attempt>,
    ended: Vec<Ended>,
    launches: Vec<Launch>,
}

/// Makes an empty database beside the one of `server` (a Postgres URL) and gives its URL.
///
/// # Errors
/// [`LoadError`]; the name must be plain lower-case letters, digits and `_`.
pub fn create_database(server: &str, name: &str) -> Result<String, LoadError> {
    let mut conn = PgConnection::establish(server)?;
    diesel::sql_query(format!("CREATE DATABASE {}", plain(name)?)).execute(&mut conn)?;
    let (base, _) = server.rsplit_once('/').ok_or_else(|| LoadError::Corrupt("the server's URL".into()))?;
    Ok(format!("{base}/{name}"))
}

/// Removes a database again, whoever is still connected to it.
///
/// # Errors
/// As [`create_database`].
pub fn drop_database(server: &str, name: &str) -> Result<(), LoadError> {
    let mut conn = PgConnection::establish(server)?;
    diesel::sql_query(format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", plain(name)?)).execute(&mut conn)?;
    Ok(())
}

/// What somebody else has locked in a store, until it is dropped.
pub struct Held(#[expect(dead_code, reason = "it is kept for what ends with it")] Box<dyn Send>);

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}

impl Held {
    /// A session of its own that has carried out `statements` in the store at `location`; what they lock is free again
    /// once the session ends.
    ///
    /// # Errors
    /// When the store cannot be opened, or refuses them.
    pub fn by(location: &str, statements: &str) -> Result<Self, LoadError> {
        if is_postgres(location) {
            let mut conn = postgres(location)?;
            conn.batch_execute(statements)?;
            return Ok(Self(Box::new(conn)));
        }
        let mut conn = sqlite(location)?;
        conn.batch_execute(statements)?;
        Ok(Self(Box::new(conn)))
    }
}

fn plain(name: &str) -> Result<&str, LoadError> {
    let fits = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if fits && !name.is_empty() { Ok(name) } else { Err(LoadError::Corrupt(format!("the name {name:?}"))) }
}

/// Reads the store at `location`: a path, `sqlite:PATH`, `sqlite://PATH` or `postgres://…`.
///
/// # Errors
/// [`LoadError`].
pub fn load(location: &str) -> Result<World, LoadError> {
    let rows = read!(location, |conn| Rows {
        swarm: diesel::sql_query("SELECT * FROM swarm").load(conn)?,
        jobs: diesel::sql_query("SELECT * FROM jobs").load(conn)?,
        live: diesel::sql_query("SELECT * FROM live_tasks").load(conn)?,
        attempts: diesel::sql_query("SELECT * FROM attempts").load(conn)?,
        ended: diesel::sql_query("SELECT * FROM ended_ranges").load(conn)?,
        launches: diesel::sql_query("SELECT * FROM launches").load(conn)?,
    });
    world(rows)
}

fn world(rows: Rows) -> Result<World, LoadError> {
    let mut world = World::default();
    for row in rows.swarm {
        let id = uuid::Uuid::from_slice(&row.swarm_id).map_err(|_| LoadError::Corrupt("swarm.swarm_id".into()))?;
        world.swarm = Some(id.to_string());
    }
    for row in rows.jobs {
        let spec: JobSpec = json(&row.spec, "jobs.spec")?;
        let job = JobRow {
            first_task: number(row.first_task, "jobs.first_task")?,
            last_task: number(row.last_task, "jobs.last_task")?,
            next_fresh: number(row.next_fresh, "jobs.next_fresh")?,
            live: number(row.live, "jobs.live")?,
            succeeded: number(row.succeeded, "jobs.succeeded")?,
            failed: number(row.failed, "jobs.failed")?,
            cancelled: number(row.cancelled, "jobs.cancelled")?,
            submitted_us: row.submitted_at,
            ended_us: row.ended_at,
            launch: match (row.schedule_id, row.nominal_at) {
                (Some(schedule), Some(nominal)) => Some((number(schedule, "jobs.schedule_id")?, nominal)),
                _ => None,
            },
            key: row.idempotency_key,
            at_most_once: spec.at_most_once,
            eager: spec.eager,
        };
        world.jobs.insert(JobId(number(row.id, "jobs.id")?), job);
    }
    for row in rows.live {
        let task =
            TaskId { job: JobId(number(row.job_id, "live_tasks.job_id")?), task: number(row.task, "live_tasks.task")? };
        let live = LiveRow {
            attempt: number(row.attempt.into(), "live_tasks.attempt")?,
            phase: number(row.phase.into(), "live_tasks.phase")?,
        };
        world.live.insert(task, live);
    }
    for row in rows.attempts {
        let (id, attempt) = attempt(row)?;
        world.attempts.insert(id, attempt);
    }
    for row in rows.ended {
        let outcome: Outcome = json(&row.outcome, "ended_ranges.outcome")?;
        world.ended.push(EndedRow {
            job: JobId(number(row.job_id, "ended_ranges.job_id")?),
            first: number(row.first_task, "ended_ranges.first_task")?,
            last: number(row.last_task, "ended_ranges.last_task")?,
            outcome: outcome.kind().as_str().to_owned(),
        });
    }
    for row in rows.launches {
        world.launches.push(LaunchRow {
            schedule: number(row.schedule_id, "launches.schedule_id")?,
            nominal_us: row.nominal_at,
            job: JobId(number(row.job_id, "launches.job_id")?),
        });
    }
    Ok(world)
}

fn attempt(row: Attempt) -> Result<(AttemptId, AttemptRow), LoadError> {
    let outcome: Outcome = json(&row.outcome, "attempts.outcome")?;
    let id = AttemptId {
        job: JobId(number(row.job_id, "attempts.job_id")?),
        task: number(row.task, "attempts.task")?,
        attempt: number(row.attempt.into(), "attempts.attempt")?,
    };
    let attempt = AttemptRow {
        worker: number(row.worker_id, "attempts.worker_id")?,
        loss: match &outcome {
            Outcome::Lost { reason, .. } => Some(reason.as_str().to_owned()),
            _ => None,
        },
        outcome: outcome.kind().as_str().to_owned(),
        assigned_us: row.assigned_at,
        started_us: row.started_at,
        ended_us: row.ended_at,
        ran_ms: row.ran_ms.map(|ms| number(ms, "attempts.ran_ms")).transpose()?,
        is_final: row.is_final,
        may_have_run: row.may_have_run,
        log_cut_bytes: number(row.log_cut_bytes, "attempts.log_cut_bytes")?,
    };
    Ok((id, attempt))
}

pub(crate) fn number<N: TryFrom<i64>>(value: i64, what: &str) -> Result<N, LoadError> {
    N::try_from(value).map_err(|_| LoadError::Corrupt(format!("{what} ({value})")))
}

pub(crate) fn json<T: serde::de::DeserializeOwned>(text: &str, what: &str) -> Result<T, LoadError> {
    serde_json::from_str(text).map_err(|error| LoadError::Corrupt(format!("{what} ({error})")))
}

#[cfg(test)]
pub(crate) const TABLES: &str = include_str!("../../../migrations/sqlite/2026-01-01-000001_store/up.sql");

#[cfg(test)]
mod tests {
    use diesel::connection::SimpleConnection as _;
    use diesel::sqlite::SqliteConnection;

    use super::*;

    #[test]
    fn the_real_tables_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swarm.db");
        let mut conn = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
        conn.batch_execute(TABLES).unwrap();
        let mut spec = JobSpec::new("x");
        spec.at_most_once = true;
        let outcome = Outcome::Lost { reason: swarm_protocol::LossReason::Engine, detail: String::new() };
        conn.batch_execute(&format!(
            "PRAGMA foreign_keys = OFF;
             INSERT INTO swarm VALUES (1, x'00112233445566778899aabbccddeeff', 1);
             INSERT INTO jobs VALUES (1, 1, 1, NULL, '{}', '', '[]', 0, 9, 10, 0, 0, 1, 9, 5, NULL, 7, 1, 3, 4, 'k', x'00');
             INSERT INTO attempts VALUES (1, 0, 1, 8, 5, 6, 7, NULL, '{}', 1, 1, 0, 4, '[]');
             INSERT INTO ended_ranges VALUES (1, 1, 9, '\"Cancelled\"', 7);
             INSERT INTO live_tasks VALUES (2, 0, 2, 0, 5, NULL, NULL, NULL, 0, 0);
             INSERT INTO launches VALUES (3, 4, 1);",
            serde_json::to_string(&spec).unwrap(),
            serde_json::to_string(&outcome).unwrap(),
        ))
        .unwrap();
        let world = load(path.to_str().unwrap()).unwrap();
        assert_eq!(world.swarm.as_deref(), Some("00112233-4455-6677-8899-aabbccddeeff"));
        let job = &world.jobs[&JobId(1)];
        assert_eq!((job.last_task, job.launch, job.key.as_deref()), (9, Some((3, 4)), Some("k")));
        assert!(job.at_most_once && !job.eager);
        let (id, attempt) = world.attempts.first_key_value().unwrap();
        assert_eq!(id.to_string(), "1.0.1");
        assert_eq!((attempt.outcome.as_str(), attempt.loss.as_deref()), ("lost", Some("engine")));
        assert!(attempt.is_final && attempt.may_have_run);
        assert_eq!((world.ended[0].outcome.as_str(), world.live.len(), world.launches.len()), ("cancelled", 1, 1));
        assert!(load("sqlite:///nowhere/at/all.db").is_err());
    }
}
