//! The store's tables as they are read: rows, and connections to SQLite or Postgres that see one consistent state.

use diesel::connection::SimpleConnection as _;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Bool, Integer, Nullable, Text};
use diesel::sqlite::SqliteConnection;

use crate::db::LoadError;

#[derive(QueryableByName)]
pub(crate) struct Job {
    #[diesel(sql_type = BigInt)]
    pub(crate) id: i64,
    #[diesel(sql_type = Text)]
    pub(crate) spec: String,
    #[diesel(sql_type = BigInt)]
    pub(crate) first_task: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) last_task: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) next_fresh: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) live: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) succeeded: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) failed: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) cancelled: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) submitted_at: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(crate) ended_at: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(crate) schedule_id: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(crate) nominal_at: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    pub(crate) idempotency_key: Option<String>,
}

#[derive(QueryableByName)]
pub(crate) struct Live {
    #[diesel(sql_type = BigInt)]
    pub(crate) job_id: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) task: i64,
    #[diesel(sql_type = Integer)]
    pub(crate) attempt: i32,
    #[diesel(sql_type = Integer)]
    pub(crate) phase: i32,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(crate) not_before: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(crate) assigned_at: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(crate) started_at: Option<i64>,
}

#[derive(QueryableByName)]
pub(crate) struct Attempt {
    #[diesel(sql_type = BigInt)]
    pub(crate) job_id: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) task: i64,
    #[diesel(sql_type = Integer)]
    pub(crate) attempt: i32,
    #[diesel(sql_type = BigInt)]
    pub(crate) worker_id: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) assigned_at: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(crate) started_at: Option<i64>,
    #[diesel(sql_type = BigInt)]
    pub(crate) ended_at: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(crate) ran_ms: Option<i64>,
    #[diesel(sql_type = Text)]
    pub(crate) outcome: String,
    #[diesel(sql_type = Bool)]
    pub(crate) is_final: bool,
    #[diesel(sql_type = Bool)]
    pub(crate) may_have_run: bool,
    #[diesel(sql_type = BigInt)]
    pub(crate) log_cut_bytes: i64,
}

#[derive(QueryableByName)]
pub(crate) struct Ended {
    #[diesel(sql_type = BigInt)]
    pub(crate) job_id: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) first_task: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) last_task: i64,
    #[diesel(sql_type = Text)]
    pub(crate) outcome: String,
}

#[derive(QueryableByName)]
pub(crate) struct Launch {
    #[diesel(sql_type = BigInt)]
    pub(crate) schedule_id: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) nominal_at: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) job_id: i64,
}

#[derive(QueryableByName)]
pub(crate) struct Swarm {
    #[diesel(sql_type = Binary)]
    pub(crate) swarm_id: Vec<u8>,
}

/// Evaluates `$rows` with a connection `$conn` to the store at `$location`, in one transaction. Both databases answer the
/// same statements; only their connections' types differ.
macro_rules! read {
    ($location:expr, |$conn:ident| $rows:expr) => {
        if $crate::rows::is_postgres($location) {
            $crate::rows::postgres($location)?.transaction(|$conn| Ok::<_, diesel::result::Error>($rows))?
        } else {
            $crate::rows::sqlite($location)?.transaction(|$conn| Ok::<_, diesel::result::Error>($rows))?
        }
    };
}
pub(crate) use read;

pub(crate) fn is_postgres(location: &str) -> bool {
    location.starts_with("postgres://") || location.starts_with("postgresql://")
}

pub(crate) fn postgres(url: &str) -> Result<PgConnection, LoadError> {
    let mut conn = PgConnection::establish(url)?;
    conn.batch_execute("SET default_transaction_isolation = 'repeatable read'")?;
    Ok(conn)
}

/// A store in SQLite: a path, `sqlite:PATH` or `sqlite://PATH`.
pub(crate) fn sqlite(location: &str) -> Result<SqliteConnection, LoadError> {
    let path = location.strip_prefix("sqlite:").unwrap_or(location);
    let path = path.strip_prefix("//").unwrap_or(path);
    if !std::path::Path::new(path).is_file() {
        return Err(LoadError::Corrupt(format!("{path} (no such file)")));
    }
    let mut conn = SqliteConnection::establish(path)?;
    conn.batch_execute("PRAGMA busy_timeout = 10000")?;
    Ok(conn)
}
