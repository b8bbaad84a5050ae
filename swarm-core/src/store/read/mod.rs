//! Reads. Each runs in one transaction that sees one state of the store.

pub(super) mod content;
pub(super) mod identity;
pub(super) mod jobs;
pub(super) mod schedules;
pub(super) mod tasks;

use diesel::prelude::*;

use super::Snapshot;
use super::connect::{Conn, both};
use super::schema::live_tasks;
use super::sqltypes::{Fault, LiveRow};

/// Everything that is not final.
pub(super) fn snapshot(conn: &mut Conn) -> Result<Snapshot, Fault> {
    let rows: Vec<LiveRow> = both!(conn, c => live_tasks::table
        .order((live_tasks::job_id, live_tasks::task))
        .select(LiveRow::as_select())
        .load(c))?;
    Ok(Snapshot {
        jobs: jobs::unfinished(conn)?,
        live: rows.iter().map(LiveRow::read).collect::<Result<_, _>>()?,
        schedules: schedules::list(conn, None)?,
    })
}
