//! What concerns the file of a SQLite store: whether it is whole after a core that did not end in order, and copies of it
//! while it is in use.

use std::path::{Path, PathBuf};

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;

use super::connect::{Location, OpenError, Purpose, Source};

/// Up to this size indexes are compared with their tables, too. Measured over 542 MB with two indexes, on 2 busy cores:
/// 41 s for that, 2.2 s for the pages alone.
const WHOLE_CHECK_BYTES_MAX: u64 = 32 << 20;
/// Beside a database that is still to be checked.
const UNCHECKED: &str = "-unchecked";

/// Whether the database at `path` was left without being closed, and not checked since: a store that is closed in order
/// empties its write-ahead log.
pub(super) fn was_left_open(path: &Path) -> bool {
    has_log(path) || beside(path, UNCHECKED).exists()
}

fn has_log(path: &Path) -> bool {
    std::fs::metadata(beside(path, "-wal")).is_ok_and(|log| log.len() > 0)
}

/// Keeps in mind, over a crash too, that the database is to be checked.
pub(super) fn note_unchecked(path: &Path) -> std::io::Result<()> {
    std::fs::File::create(beside(path, UNCHECKED))?.sync_all()?;
    std::fs::File::open(dir_of(path))?.sync_all()
}

/// The database was found whole.
pub(super) fn note_checked(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(beside(path, UNCHECKED)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Keeps in mind that a database was left open while it is read: whoever closes it last removes the log that tells.
struct Unchecked<'a>(Option<&'a Path>);

impl<'a> Unchecked<'a> {
    fn of(path: &'a Path) -> std::io::Result<Self> {
        if !was_left_open(path) || beside(path, UNCHECKED).exists() {
            return Ok(Self(None));
        }
        note_unchecked(path)?;
        Ok(Self(Some(path)))
    }
}

impl Drop for Unchecked<'_> {
    /// A log that is still there tells by itself; it is in use, as a rule.
    fn drop(&mut self) {
        if let Some(path) = self.0.filter(|path| has_log(path)) {
            let _ = note_checked(path);
        }
    }
}

fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Reads the whole database at `path`.
///
/// # Errors
/// [`OpenError::Damaged`] with the first fault found; [`OpenError::Connect`] when it cannot be read.
pub(super) fn check(path: &Path, conn: &mut SqliteConnection) -> Result<(), OpenError> {
    let at = path.display().to_string();
    let size = std::fs::metadata(path).map_or(0, |file| file.len());
    let pragma = if size > WHOLE_CHECK_BYTES_MAX { "quick_check" } else { "integrity_check" };
    let query = format!("SELECT {pragma} AS text FROM pragma_{pragma} LIMIT 1");
    let found = match diesel::sql_query(query).load::<Finding>(conn) {
        Ok(findings) => findings.into_iter().map(|finding| finding.text).find(|text| text != "ok"),
        Err(error) => return Err(cannot_open(at, error)),
    };
    found.map_or(Ok(()), |found| Err(OpenError::Damaged { at, found: found.trim().replace('\n', ", ") }))
}

/// Why the store at `at` cannot be opened: SQLite has its own words for a file that is no whole database (`sqlite3ErrStr` of
/// SQLITE_CORRUPT and SQLITE_NOTADB).
pub(super) fn cannot_open(at: String, error: diesel::result::Error) -> OpenError {
    let text = error.to_string();
    let is_damage = ["database disk image is malformed", "malformed database schema", "file is not a database"];
    if is_damage.iter().any(|words| text.starts_with(words)) {
        OpenError::Damaged { at, found: text }
    } else {
        OpenError::Connect { at, source: error.into() }
    }
}

#[derive(QueryableByName)]
struct Finding {
    #[diesel(sql_type = diesel::sql_types::Text)]
    text: String,
}

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Postgres has a tool of its own for that.
    #[error("the store is in Postgres, which has its own tool: pg_dump --format=custom --file=FILE {0}")]
    Postgres(String),
    /// Nothing to copy.
    #[error("there is no database at {}; name the core's data directory by --data-dir, or its --config", .0.display())]
    Missing(PathBuf),
    /// A copy is never written over.
    #[error("{} exists already; give the copy a new name", .0.display())]
    Exists(PathBuf),
    /// The store cannot be opened, or is damaged.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The copy cannot be made.
    #[error("{} cannot be written", .at.display())]
    Write {
        /// The copy.
        at: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// How far the numbers of new jobs lie above those of a copy: more jobs than are submitted between a copy and its use. Logs
/// of jobs that the copy does not know may lie beside it, and no later job may have their numbers.
const NUMBERS_AHEAD: i64 = 1_000_000;

/// Copies the SQLite database at `source`, which may be in use, to the new file `to`, readable by its owner alone. The copy
/// is one state of the store, checked and synced before it gets its name. Gives its size in bytes. Blocks.
///
/// # Errors
/// [`BackupError`].
pub fn backup(source: &Source, to: &Path) -> Result<u64, BackupError> {
    let location = Location::parse(source)?;
    let path = match &location {
        Location::Sqlite(path) => path,
        Location::Postgres(server) => return Err(BackupError::Postgres(server.dump_flags())),
    };
    if !path.exists() {
        return Err(BackupError::Missing(path.clone()));
    }
    if to.exists() {
        return Err(BackupError::Exists(to.to_owned()));
    }
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| BackupError::Write { at: to.to_owned(), source };
    let dir = dir_of(to);
    // Ends after the connection that is made next.
    let _unchecked =
        Unchecked::of(path).map_err(|source| OpenError::Connect { at: location.to_string(), source: source.into() })?;
    let part = tempfile::Builder::new().prefix(".backup-").tempfile_in(dir).map_err(|error| failed(error.into()))?;
    let mut conn = location.connect(Purpose::Write).map_err(|error| failed(error.into()))?;
    let name = part.path().to_string_lossy().replace('\'', "''");
    conn.execute(&format!("VACUUM INTO '{name}'")).map_err(|error| failed(error.into()))?;
    let mut copy = SqliteConnection::establish(&part.path().to_string_lossy()).map_err(|error| failed(error.into()))?;
    check(part.path(), &mut copy).map_err(|error| match error {
        OpenError::Damaged { found, .. } => OpenError::Damaged { at: path.display().to_string(), found },
        other => other,
    })?;
    copy.batch_execute(&format!("UPDATE counters SET value = value + {NUMBERS_AHEAD} WHERE name = 'job'"))
        .map_err(|error| failed(error.into()))?;
    drop(copy);
    let file = part.as_file();
    file.sync_all().map_err(|error| failed(error.into()))?;
    let bytes = file.metadata().map_err(|error| failed(error.into()))?.len();
    part.persist_noclobber(to).map_err(|error| failed(error.error.into()))?;
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| failed(error.into()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::Db;
    use super::*;

    /// What a crash leaves of a store with this change: database and log, and nobody who has them open.
    fn crashed(change: &str, to: &Path) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swarm.db");
        drop(Db::open(path.display().to_string().as_str()).unwrap());
        let mut open = SqliteConnection::establish(&path.display().to_string()).unwrap();
        open.batch_execute("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0").unwrap();
        open.batch_execute(change).unwrap();
        for suffix in ["", "-wal"] {
            std::fs::copy(beside(&path, suffix), beside(to, suffix)).unwrap();
        }
    }

    #[test]
    fn a_backup_after_a_crash_leaves_the_check_to_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let [damaged, again, whole] = ["damaged.db", "again.db", "whole.db"].map(|name| dir.path().join(name));
        let open = |path: &Path| Db::open(path.display().to_string().as_str()).map(drop);
        let copy = |path: &Path| backup(&path.display().to_string().as_str().into(), &beside(path, ".copy"));
        // An index that lacks a row.
        let damage = "CREATE TABLE t(a); INSERT INTO t VALUES (1); CREATE INDEX t_a ON t(a) WHERE a > 1; \
             PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = 'CREATE INDEX t_a ON t(a)' WHERE name = 't_a'";
        crashed(damage, &damaged);
        assert!(matches!(copy(&damaged), Err(BackupError::Open(OpenError::Damaged { .. }))));
        assert!(matches!(open(&damaged), Err(OpenError::Damaged { .. })), "it is checked");
        assert!(matches!(open(&damaged), Err(OpenError::Damaged { .. })), "as long as it is damaged");
        crashed(damage, &again);
        for _ in 0..2 {
            assert!(matches!(open(&again), Err(OpenError::Damaged { .. })), "being refused once is no check");
        }
        crashed("CREATE TABLE t(a)", &whole);
        copy(&whole).unwrap();
        open(&whole).unwrap();
        assert!(!was_left_open(&whole), "it was checked and closed");
        std::fs::remove_file(beside(&whole, ".copy")).unwrap();
        copy(&whole).unwrap();
        assert!(!was_left_open(&whole), "it was closed in order");
    }
}
