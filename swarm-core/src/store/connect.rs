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

use super::postgres::{self, Server};
use super::schema::swarm;

const SQLITE_MIGRATIONS: EmbeddedMigrations = embed_migrations!("../migrations/sqlite");
const POSTGRES_MIGRATIONS: EmbeddedMigrations = embed_migrations!("../migrations/postgres");

/// How long SQLite waits for another process's lock, in milliseconds.
const BUSY_TIMEOUT_MS: u32 = 10_000;
/// Runs one Diesel expression on whichever backend `$conn` is; it is compiled once for each, or written once for each.
/// Every statement of a verb passes here, and tests have it fail here.
macro_rules! both {
    ($conn:expr, $c:ident => $body:expr) => { $crate::store::connect::both!($conn, $c => $body, $c => $body) };
    ($conn:expr, $p:ident => $postgres:expr, $s:ident => $sqlite:expr) => {
        match $conn {
            $crate::store::connect::Conn::Postgres($p) => $crate::store::connect::statement!($p, $postgres),
            $crate::store::connect::Conn::Sqlite($s) => $crate::store::connect::statement!($s, $sqlite),
        }
    };
}
pub(super) use both;

/// One statement on `$c`.
#[cfg(not(test))]
macro_rules! statement {
    ($c:ident, $body:expr) => {
        $body
    };
}
/// One statement on `$c`, unless it is the one that is to fail.
#[cfg(test)]
macro_rules! statement {
    ($c:ident, $body:expr) => {
        match $crate::store::injected::before($c) {
            Ok(()) => {
                let answer = $body;
                $crate::store::injected::after($c, answer)
            }
            Err(error) => Err(error),
        }
    };
}
pub(super) use statement;

/// Which store to open, and how.
#[derive(Clone)]
pub struct Source {
    /// `sqlite:///path`, the plain path of a file, or `postgres://…`.
    pub url: String,
    /// The schema in a Postgres, made if it is missing; what the URL or the role says when absent.
    pub schema: Option<String>,
    /// Whether the link to a Postgres on another host may go without encryption or verification.
    pub plaintext: bool,
}

impl From<&str> for Source {
    fn from(url: &str) -> Self {
        Self { url: url.to_owned(), schema: None, plaintext: false }
    }
}

impl From<&String> for Source {
    fn from(url: &String) -> Self {
        url.as_str().into()
    }
}

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
    /// A SQLite database lost its integrity.
    #[error(
        "the database at {at} is damaged: {found}; it is left as it is. Put back a copy made by `swarm core backup`, or \
         take out of it what can be read: sqlite3 {at} .recover"
    )]
    Damaged {
        /// Path.
        at: String,
        /// What the check found first.
        found: String,
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
    Postgres(Server),
}

/// Never with the password.
impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Postgres(server) => server.fmt(f),
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
    pub(super) fn parse(source: &Source) -> Result<Self, OpenError> {
        let text = source.url.as_str();
        match text.split_once("://") {
            Some(("postgres" | "postgresql", _)) => {
                Server::parse(text, source.schema.as_deref(), source.plaintext).map(Self::Postgres)
            }
            _ if source.schema.is_some() => Err(OpenError::Url(
                "database_schema is for Postgres: a SQLite store has its file for itself".to_owned(),
            )),
            Some(("sqlite", path)) => Self::sqlite(path),
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
            Self::Postgres(server) => server.connect(purpose).map(Conn::Postgres).map_err(refused),
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

/// Brings the tables of `location`, to which `conn` leads, up to date and draws the swarm's id if it has none.
pub(super) fn migrate(location: &Location, conn: &mut Conn, created_at: i64) -> diesel::migration::Result<()> {
    match conn {
        Conn::Postgres(c) => {
            let schema = if let Location::Postgres(server) = location { server.schema() } else { None };
            postgres::alone(c, schema, |c| run_migrations::<Pg, _>(c, POSTGRES_MIGRATIONS))?;
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
        // A transaction that could not be rolled back is still open, and then there is none to begin.
        conn.execute("BEGIN; ROLLBACK").map_err(diesel::r2d2::Error::QueryError)
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
            assert!(
                matches!(Location::parse(&text.into()), Ok(Location::Sqlite(found)) if found == Path::new(path)),
                "{text}"
            );
        }
        for text in ["", ":memory:", "file:x.db", "mysql://localhost/x", "sqlite://"] {
            assert!(Location::parse(&text.into()).is_err(), "{text}");
        }
    }
}
