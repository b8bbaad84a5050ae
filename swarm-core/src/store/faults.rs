//! Whose fault a failed statement is: its own, so that it fails every time, or the database's, so that it may well succeed
//! later. What is taken for the statement's own fault is given up, so in doubt the database is blamed.

use diesel::result::{DatabaseErrorKind, Error as DieselError};

use super::StoreError;
use super::sqltypes::Fault;

/// The database is to blame: the same may succeed later.
pub(super) fn lost(error: DieselError) -> StoreError {
    StoreError::Connection(Box::new(error))
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Corrupt(what) => Self::Corrupt { what },
            Fault::Database(error) if passes(&error) => lost(error),
            Fault::Database(error) => Self::Statement(Box::new(error)),
        }
    }
}

/// SQLite's texts for what is wrong with its file, disk, memory or locks (`sqlite3ErrStr`).
const SQLITE: [&str; 9] = [
    "attempt to write a readonly database",
    "callback requested query abort",
    "database is locked",
    "database or disk is full",
    "database table is locked",
    "disk I/O error",
    "interrupted",
    "out of memory",
    "unable to open database file",
];
/// What Postgres says of its disk, memory, locks, and administrators: SQLSTATE classes 40, 53, 55, 57 and 58.
const POSTGRES: [&str; 16] = [
    "No space left on device",
    "Disk quota exceeded",
    "Input/output error",
    "Read-only file system",
    "could not extend file",
    "could not resize shared memory",
    "could not read block",
    "could not write",
    "out of memory",
    "out of shared memory",
    "canceling statement",
    "terminating connection",
    "deadlock detected",
    "could not obtain lock",
    "database is not accepting commands",
    "temporary file size exceeds",
];

/// Whether `error` is no fault of the statement. Diesel names some kinds and passes on no SQLSTATE, so the rest is told by
/// its text: SQLite's is fixed, and Postgres is asked for English where it lets us (see `connect`). What this misses is
/// tried again by the ledger before it is given up.
fn passes(error: &DieselError) -> bool {
    let DieselError::DatabaseError(kind, info) = error else { return false };
    match kind {
        DatabaseErrorKind::ClosedConnection
        | DatabaseErrorKind::SerializationFailure
        | DatabaseErrorKind::ReadOnlyTransaction => true,
        DatabaseErrorKind::UniqueViolation
        | DatabaseErrorKind::ForeignKeyViolation
        | DatabaseErrorKind::NotNullViolation
        | DatabaseErrorKind::CheckViolation
        | DatabaseErrorKind::RestrictViolation
        | DatabaseErrorKind::ExclusionViolation => false,
        _ => SQLITE.contains(&info.message()) || POSTGRES.iter().any(|text| info.message().contains(text)),
    }
}
