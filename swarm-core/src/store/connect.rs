//! Where the store is and how to reach it: URLs, connections of either backend, session settings, migrations.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use diesel::connection::SimpleConnection;
use diesel::migration::MigrationSource;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::r2d2::ManageConnection;
use diesel::sqlite::{Sqlite, SqliteConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::schema::swarm;

const SQLITE_MIGRATIONS: EmbeddedMigrations = embed_migrations!("../migrations/sqlite");
const POSTGRES_MIGRATIONS: EmbeddedMigrations = embed_migrations!("../migrations/postgres");

/// How long SQLite waits for another process's lock, in milliseconds.
const BUSY_TIMEOUT_MS: u32 = 10_000;
/// Two cores that start at once migrate one after the other; any number does that no one else uses in this database.
const MIGRATION_LOCK: i64 = 0x7377_6172_6d31;

/// Runs one Diesel expression on whichever backend `$conn` is; it is compiled once for each.
macro_rules! both {
    ($conn:expr, $c:ident => $body:expr) => {
        match $conn {
            $crate::store::connect::Conn::Postgres($c) => $body,
            $crate::store::connect::Conn::Sqlite($c) => $body,
        }
    };
}
pub(super) use both;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is not one.
    #[error("store URL: {0}")]
    Url(String),
    /// The database cannot be reached or read.
    #[error("cannot open the store at {at}")]
    Connect {
        /// Path, or host and database.
        at: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The tables cannot be brought up to date.
    #[error("cannot bring the tables of the store at {at} up to date")]
    Migrate {
        /// Path, or host and database.
        at: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A connection of either backend.
pub(super) enum Conn {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Conn {
    /// Runs statements that give nothing back.
    pub(super) fn execute(&mut self, statements: &str) -> QueryResult<()> {
        both!(self, c => c.batch_execute(statements))
    }
}

/// Where the store is.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Location {
    /// The path of the database file.
    Sqlite(PathBuf),
    /// A checked libpq URL.
    Postgres(String),
}

/// Never with the password.
impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Postgres(url) => {
                let parsed = url::Url::parse(url).ok();
                let part = |get: fn(&url::Url) -> Option<&str>| parsed.as_ref().and_then(get).unwrap_or_default();
                write!(f, "postgres://{}{}", part(url::Url::host_str), part(|url| Some(url.path())))
            }
        }
    }
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Write,
    Read,
}

impl Location {
    /// Reads `sqlite:///path`, a plain path, or `postgres://…`.
    pub(super) fn parse(text: &str) -> Result<Self, OpenError> {
        match text.split_once("://") {
            Some(("sqlite", path)) => Self::sqlite(path),
            Some(("postgres" | "postgresql", _)) => check_postgres(text).map(|()| Self::Postgres(text.to_owned())),
            Some((scheme, _)) => Err(OpenError::Url(format!(
                "`{scheme}://` is no kind of store; use sqlite:///path/to/file or postgres://user@localhost/database"
            ))),
            None => Self::sqlite(text),
        }
    }

    fn sqlite(path: &str) -> Result<Self, OpenError> {
        if path.is_empty() || path.starts_with(':') || path.starts_with("file:") || path.contains('?') {
            return Err(OpenError::Url(format!("`{path}` is no path of a file; use sqlite:///path/to/file")));
        }
        Ok(Self::Sqlite(PathBuf::from(path)))
    }

    /// A new connection, set up for its purpose.
    pub(super) fn connect(&self, purpose: Purpose) -> Result<Conn, diesel::result::Error> {
        let refused = |error: ConnectionError| match error {
            ConnectionError::CouldntSetupConfiguration(error) => error,
            other => diesel::result::Error::QueryBuilderError(Box::new(other)),
        };
        match self {
            Self::Sqlite(path) => {
                let mut conn = SqliteConnection::establish(&path.to_string_lossy()).map_err(refused)?;
                conn.batch_execute(&format!("PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}; PRAGMA foreign_keys = ON;"))?;
                conn.batch_execute(match purpose {
                    // FULL, for NORMAL does not sync the log at commit.
                    Purpose::Write => "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;",
                    Purpose::Read => "PRAGMA query_only = ON;",
                })?;
                Ok(Conn::Sqlite(conn))
            }
            Self::Postgres(url) => {
                let mut conn = PgConnection::establish(url).map_err(refused)?;
                // A core that stalls inside a transaction must not hold the epoch row against its successor for long.
                conn.batch_execute(
                    "SET synchronous_commit = on; SET client_min_messages = warning; \
                     SET idle_in_transaction_session_timeout = '30s';",
                )?;
                // Errors are told apart by their English text, which only a superuser may ask for.
                conn.batch_execute(
                    "SELECT set_config('lc_messages', 'C', false) FROM pg_roles \
                     WHERE rolname = current_user AND rolsuper;",
                )?;
                if purpose == Purpose::Read {
                    conn.batch_execute("SET default_transaction_read_only = on;")?;
                }
                Ok(Conn::Postgres(conn))
            }
        }
    }

    /// Makes the file of a SQLite store, readable by its owner alone, since it holds password hashes. Until the answer is
    /// dropped, no one else opens a store in the same directory: SQLite does not wait for its turn to switch to a
    /// write-ahead log, and closing a file that it has open elsewhere in this process would drop its locks.
    pub(super) fn prepare(&self) -> std::io::Result<Option<fs::File>> {
        let Self::Sqlite(path) = self else { return Ok(None) };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = fs::File::open(parent)?;
        folder.lock()?;
        match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(file) => {
                file.sync_all()?;
                folder.sync_all()?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Ok(Some(folder))
    }
}

/// The link to Postgres is not encrypted, so it must not leave the machine.
fn check_postgres(text: &str) -> Result<(), OpenError> {
    let refuse = |why: &str| {
        OpenError::Url(format!("{why}; use postgres://user@localhost/database or ?host=/directory/of/the/socket"))
    };
    let url = url::Url::parse(text).map_err(|error| refuse(&format!("not a URL: {error}")))?;
    let mut socket = false;
    for (key, value) in url.query_pairs() {
        match key.as_ref() {
            "host" if value.starts_with('/') => socket = true,
            "options" | "application_name" | "connect_timeout" => {}
            "host" | "hostaddr" => return Err(refuse(&format!("`{key}` in the query must be a socket's directory"))),
            _ => return Err(refuse(&format!("the parameter `{key}` is not supported"))),
        }
    }
    let loopback = match url.host_str().filter(|host| !host.is_empty()) {
        None => socket,
        Some("localhost") => true,
        Some(host) => {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    };
    if loopback {
        Ok(())
    } else {
        Err(refuse(
            "a Postgres server on another host is refused, since the connection to it would not be encrypted: run it on \
             the core's own host, or bring it there through an encrypted tunnel",
        ))
    }
}

/// Brings the tables up to date and draws the swarm's id if it has none.
pub(super) fn migrate(conn: &mut Conn, created_at: i64) -> diesel::migration::Result<()> {
    match conn {
        Conn::Postgres(c) => {
            diesel::sql_query(format!("SELECT pg_advisory_lock({MIGRATION_LOCK})")).execute(c)?;
            let done = run_migrations::<Pg, _>(c, POSTGRES_MIGRATIONS);
            diesel::sql_query(format!("SELECT pg_advisory_unlock({MIGRATION_LOCK})")).execute(c)?;
            done?;
        }
        Conn::Sqlite(c) => c.immediate_transaction(|c| run_migrations::<Sqlite, _>(c, SQLITE_MIGRATIONS))?,
    }
    let id = uuid::Uuid::new_v4();
    both!(conn, c => diesel::insert_into(swarm::table)
        .values((swarm::id.eq(1_i64), swarm::swarm_id.eq(id.as_bytes().to_vec()), swarm::created_at.eq(created_at)))
        .on_conflict(swarm::id)
        .do_nothing()
        .execute(c))?;
    Ok(())
}

/// A store that knows migrations we do not was made by a newer release, whose tables we would misread.
fn run_migrations<DB, C>(conn: &mut C, known: EmbeddedMigrations) -> diesel::migration::Result<()>
where
    DB: diesel::backend::Backend,
    C: MigrationHarness<DB>,
    EmbeddedMigrations: MigrationSource<DB>,
{
    let ours: Vec<String> = MigrationSource::<DB>::migrations(&known)?
        .iter()
        .map(|migration| migration.name().version().to_string())
        .collect();
    conn.run_pending_migrations(known)?;
    match conn.applied_migrations()?.into_iter().find(|version| !ours.contains(&version.to_string())) {
        None => Ok(()),
        Some(newer) => {
            Err(format!("it holds migration {newer}, which this release does not know: use a newer one").into())
        }
    }
}

/// Makes and checks the connections of the pool of readers.
pub(super) struct Readers(pub(super) Location);

impl ManageConnection for Readers {
    type Connection = Conn;
    type Error = diesel::r2d2::Error;

    fn connect(&self) -> Result<Conn, Self::Error> {
        self.0.connect(Purpose::Read).map_err(diesel::r2d2::Error::QueryError)
    }

    fn is_valid(&self, conn: &mut Conn) -> Result<(), Self::Error> {
        conn.execute("SELECT 1").map_err(diesel::r2d2::Error::QueryError)
    }

    fn has_broken(&self, _conn: &mut Conn) -> bool {
        // Asked when a connection comes back; `is_valid` is asked before it goes out again.
        std::thread::panicking()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_both_backends_are_told_apart() {
        for (text, path) in [("sqlite:///var/x.db", "/var/x.db"), ("/var/x.db", "/var/x.db"), ("x.db", "x.db")] {
            assert!(matches!(Location::parse(text), Ok(Location::Sqlite(found)) if found == Path::new(path)), "{text}");
        }
        for text in ["", ":memory:", "file:x.db", "mysql://localhost/x", "sqlite://"] {
            assert!(Location::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn postgres_must_be_on_this_machine() {
        let local = [
            "postgres://a:b@localhost/x",
            "postgresql://127.0.0.1:5433/x",
            "postgres://[::1]/x",
            "postgres:///x?host=/run/postgresql",
            "postgres://localhost/x?options=-csearch_path%3Da",
        ];
        for text in local {
            assert!(Location::parse(text).is_ok(), "{text}");
        }
        let elsewhere = [
            "postgres://db.example/x",
            "postgres://10.0.0.1/x",
            "postgres://127.0.0.1,10.0.0.1/x",
            "postgres://localhost/x?host=10.0.0.1",
            "postgres://localhost/x?hostaddr=10.0.0.1",
            "postgres://localhost/x?service=other",
            "postgres:///x",
        ];
        for text in elsewhere {
            assert!(Location::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_location_never_shows_its_password() {
        let location = Location::parse("postgres://swarm:hunter2@localhost/x").unwrap();
        assert_eq!(location.to_string(), "postgres://localhost/x");
    }
}
