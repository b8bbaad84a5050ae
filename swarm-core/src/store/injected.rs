//! Makes one statement of what this thread does in the store fail, in tests alone. Where the database can be brought to
//! fail by itself it is; what it says and what becomes of the transaction is then its own.

use std::cell::Cell;

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::sqlite::SqliteConnection;

/// How a statement fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Injected {
    /// It breaks a constraint.
    Refused,
    /// SQLSTATE 40001; on SQLite its lock is another's (5).
    Contended,
    /// SQLSTATE 40P01; on SQLite the disk is full (13).
    Aborted,
    /// SQLSTATE 57P01, and the connection with it; on SQLite an I/O error (10).
    Gone,
    /// It is carried out, and then the connection is lost before the answer.
    AnswerLost,
}

impl Injected {
    pub(crate) const ALL: [Self; 5] = [Self::Refused, Self::Contended, Self::Aborted, Self::Gone, Self::AnswerLost];
}

thread_local! {
    static AHEAD: Cell<Option<(Injected, u32)>> = const { Cell::new(None) };
}

/// From here on the statement after `passing` others fails.
pub(crate) fn arm(fault: Injected, passing: u32) {
    AHEAD.set(Some((fault, passing)));
}

/// No statement fails any more. Whether one did.
pub(crate) fn disarm() -> bool {
    AHEAD.take().is_none()
}

/// Before each statement.
pub(super) fn before(conn: &mut impl Victim) -> QueryResult<()> {
    match AHEAD.get() {
        None | Some((Injected::AnswerLost, 0)) => Ok(()),
        Some((fault, 0)) => {
            AHEAD.set(None);
            Err(conn.strike(fault))
        }
        Some((fault, passing)) => {
            // One too many for what is lost only after it, and `after` is called for this statement, too.
            AHEAD.set(Some((fault, passing - u32::from(fault != Injected::AnswerLost))));
            Ok(())
        }
    }
}

/// After each statement that was let through.
pub(super) fn after<T>(conn: &mut impl Victim, answer: QueryResult<T>) -> QueryResult<T> {
    match AHEAD.get() {
        Some((Injected::AnswerLost, 0)) => {
            AHEAD.set(None);
            Err(conn.strike(Injected::AnswerLost))
        }
        Some((Injected::AnswerLost, passing)) => {
            AHEAD.set(Some((Injected::AnswerLost, passing - 1)));
            answer
        }
        _ => answer,
    }
}

/// What can be brought to fail.
pub(super) trait Victim {
    fn strike(&mut self, fault: Injected) -> DieselError;
}

impl Victim for PgConnection {
    fn strike(&mut self, fault: Injected) -> DieselError {
        let raise = |state| format!("DO $$ BEGIN RAISE EXCEPTION 'by a fault' USING ERRCODE = '{state}'; END $$");
        let statement = match fault {
            Injected::Refused => raise("check_violation"),
            Injected::Contended => raise("serialization_failure"),
            // Its SQLSTATE is not passed on to us, so its text has to be the server's own.
            Injected::Aborted => raise("deadlock_detected").replace("by a fault", "deadlock detected"),
            Injected::Gone | Injected::AnswerLost => "SELECT pg_terminate_backend(pg_backend_pid())".to_owned(),
        };
        self.batch_execute(&statement).expect_err("the server fails it")
    }
}

impl Victim for SqliteConnection {
    fn strike(&mut self, fault: Injected) -> DieselError {
        let says = |text: &str| DieselError::DatabaseError(DatabaseErrorKind::Unknown, Box::new(text.to_owned()));
        match fault {
            Injected::Refused => self
                .batch_execute("INSERT INTO epoch (id, current) SELECT id, current FROM epoch")
                .expect_err("the key is taken"),
            Injected::Contended => says("database is locked"),
            Injected::Aborted => {
                self.batch_execute("PRAGMA max_page_count = 1").expect("it is set to what there is");
                let fill = "CREATE TABLE injected AS SELECT zeroblob(1000000)";
                let error = self.batch_execute(fill).expect_err("there is no room");
                self.batch_execute("PRAGMA max_page_count = 1073741823").expect("it is set back");
                error
            }
            Injected::Gone | Injected::AnswerLost => says("disk I/O error"),
        }
    }
}
