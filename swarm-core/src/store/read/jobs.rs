//! Jobs as records.

use diesel::prelude::*;
use swarm_protocol::api::Launch;
use swarm_protocol::state::{JobState, TaskCounts};
use swarm_protocol::{GroupId, JobId, ScheduleId, TaskRange, Timestamp, UserId};

use super::super::connect::{Conn, both};
use super::super::schema::{jobs, owner_groups, users};
use super::super::sqltypes::{Fault, JobRow, from_json, instant, int, maybe_instant, micros, number};
use super::super::{JobFilter, JobRecord};

/// A job's row, its owner's name, its group's name, and whether the group allows root.
type Row = (JobRow, String, String, bool);

/// One expression for all reads of jobs, as a macro since its type differs by backend.
macro_rules! select {
    () => {
        jobs::table.inner_join(users::table).inner_join(owner_groups::table).select((
            JobRow::as_select(),
            users::name,
            owner_groups::name,
            owner_groups::allow_root,
        ))
    };
}

pub(in crate::store) fn one(conn: &mut Conn, job: JobId) -> Result<Option<JobRecord>, Fault> {
    let row: Option<Row> = both!(conn, c => select!().filter(jobs::id.eq(int(job.0))).first(c).optional())?;
    row.map(record).transpose()
}

pub(in crate::store) fn of_key(conn: &mut Conn, group: GroupId, key: &str) -> Result<Option<JobId>, Fault> {
    let id: Option<i64> = both!(conn, c => jobs::table
        .filter(jobs::group_id.eq(int(group.0)))
        .filter(jobs::idempotency_key.eq(key))
        .select(jobs::id)
        .first(c)
        .optional())?;
    id.map(|id| number(id, "jobs.id").map(JobId)).transpose()
}

pub(in crate::store) fn unfinished(conn: &mut Conn) -> Result<Vec<JobRecord>, Fault> {
    let rows: Vec<Row> = both!(conn, c => select!().filter(jobs::ended_at.is_null()).order(jobs::id).load(c))?;
    rows.into_iter().map(record).collect()
}

/// Jobs above `after` with the tasks that never left the waiting state and may run at `now`.
pub(in crate::store) fn fresh(
    conn: &mut Conn,
    after: Option<JobId>,
    now: Timestamp,
    limit: u32,
) -> Result<Vec<(JobId, TaskRange)>, Fault> {
    let rows: Vec<(i64, i64, i64)> = both!(conn, c => jobs::table
        .filter(jobs::id.gt(after.map_or(0, |after| int(after.0))))
        .filter(jobs::ended_at.is_null())
        .filter(jobs::cancel_requested.eq(false))
        .filter(jobs::next_fresh.le(jobs::last_task))
        .filter(jobs::start_at.is_null().or(jobs::start_at.le(micros(now))))
        .order(jobs::id)
        .limit(limit.into())
        .select((jobs::id, jobs::next_fresh, jobs::last_task))
        .load(c))?;
    let read = |(id, first, last): (i64, i64, i64)| {
        let range = TaskRange { first: number(first, "jobs.next_fresh")?, last: number(last, "jobs.last_task")? };
        Ok((JobId(number(id, "jobs.id")?), range))
    };
    rows.into_iter().map(read).collect()
}

pub(in crate::store) fn list(conn: &mut Conn, filter: &JobFilter) -> Result<Vec<JobRecord>, Fault> {
    let rows: Vec<Row> = both!(conn, c => {
        let mut query = select!().order(jobs::id.desc()).limit(filter.limit.max(1).into()).into_boxed();
        if let Some(group) = filter.group {
            query = query.filter(jobs::group_id.eq(int(group.0)));
        }
        if let Some(name) = &filter.name {
            query = query.filter(jobs::name.eq(name));
        }
        if let Some(before) = filter.before {
            query = query.filter(jobs::id.lt(int(before.0)));
        }
        // The same distinctions as `TaskCounts::job_state` makes.
        let now = micros(filter.now);
        query = match filter.state {
            None => query,
            Some(JobState::Running) => query.filter(jobs::live.gt(0)),
            Some(JobState::Delayed) => query
                .filter(jobs::ended_at.is_null())
                .filter(jobs::live.eq(0))
                .filter(jobs::start_at.gt(now)),
            Some(JobState::Waiting) => query
                .filter(jobs::ended_at.is_null())
                .filter(jobs::live.eq(0))
                .filter(jobs::start_at.is_null().or(jobs::start_at.le(now))),
            Some(JobState::Failed) => query.filter(jobs::ended_at.is_not_null()).filter(jobs::failed.gt(0)),
            Some(JobState::Cancelled) => query
                .filter(jobs::ended_at.is_not_null())
                .filter(jobs::failed.eq(0))
                .filter(jobs::cancelled.gt(0)),
            Some(JobState::Succeeded) => query
                .filter(jobs::ended_at.is_not_null())
                .filter(jobs::failed.eq(0))
                .filter(jobs::cancelled.eq(0)),
        };
        query.load(c)
    })?;
    rows.into_iter().map(record).collect()
}

fn record((row, owner_name, group_name, allow_root): Row) -> Result<JobRecord, Fault> {
    let total = row.last_task - row.first_task + 1;
    let waiting = total - row.live - row.succeeded - row.failed - row.cancelled;
    let launch = match row.schedule_id.zip(row.nominal_at) {
        None => None,
        Some((schedule, at)) => Some(Launch {
            schedule: ScheduleId(number(schedule, "jobs.schedule_id")?),
            nominal_at: instant(at, "jobs.nominal_at")?,
        }),
    };
    Ok(JobRecord {
        id: JobId(number(row.id, "jobs.id")?),
        owner: UserId(number(row.owner_id, "jobs.owner_id")?),
        owner_name,
        group: GroupId(number(row.group_id, "jobs.group_id")?),
        group_name,
        allow_root,
        spec: from_json(&row.spec, "jobs.spec")?,
        image: from_json(&row.image, "jobs.image")?,
        input_bytes: from_json(&row.input_bytes, "jobs.input_bytes")?,
        counts: TaskCounts {
            total: number(total, "jobs.last_task")?,
            waiting: number(waiting, "jobs.live")?,
            live: number(row.live, "jobs.live")?,
            succeeded: number(row.succeeded, "jobs.succeeded")?,
            failed: number(row.failed, "jobs.failed")?,
            cancelled: number(row.cancelled, "jobs.cancelled")?,
        },
        next_fresh: number(row.next_fresh, "jobs.next_fresh")?,
        submitted_at: instant(row.submitted_at, "jobs.submitted_at")?,
        ended_at: maybe_instant(row.ended_at, "jobs.ended_at")?,
        cancel_requested: row.cancel_requested,
        launch,
    })
}
