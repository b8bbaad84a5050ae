//! Schedules as records.

use diesel::prelude::*;
use swarm_protocol::{GroupId, JobId, ScheduleId, UserId};

use super::super::connect::{Conn, both};
use super::super::schema::{schedules, users};
use super::super::sqltypes::{Fault, from_json, instant, int, number};
use super::super::{Prepared, ScheduleRecord};

#[derive(Queryable, Selectable)]
#[diesel(table_name = schedules)]
struct ScheduleRow {
    id: i64,
    owner_id: i64,
    group_id: i64,
    name: String,
    cron: String,
    zone: String,
    spec: String,
    image: String,
    input_bytes: String,
    paused: bool,
    considered_until: i64,
    missed: i64,
    last_nominal_at: Option<i64>,
    last_job_id: Option<i64>,
}

pub(in crate::store) fn one(conn: &mut Conn, schedule: ScheduleId) -> Result<Option<ScheduleRecord>, Fault> {
    let row: Option<(ScheduleRow, String)> = both!(conn, c => schedules::table
        .inner_join(users::table)
        .filter(schedules::id.eq(int(schedule.0)))
        .select((ScheduleRow::as_select(), users::name))
        .first(c)
        .optional())?;
    row.map(record).transpose()
}

pub(in crate::store) fn list(conn: &mut Conn, group: Option<GroupId>) -> Result<Vec<ScheduleRecord>, Fault> {
    let rows: Vec<(ScheduleRow, String)> = both!(conn, c => {
        let mut query = schedules::table
            .inner_join(users::table)
            .order(schedules::id)
            .select((ScheduleRow::as_select(), users::name))
            .into_boxed();
        if let Some(group) = group {
            query = query.filter(schedules::group_id.eq(int(group.0)));
        }
        query.load(c)
    })?;
    rows.into_iter().map(record).collect()
}

fn record((row, owner_name): (ScheduleRow, String)) -> Result<ScheduleRecord, Fault> {
    let last = match row.last_nominal_at.zip(row.last_job_id) {
        None => None,
        Some((at, job)) => {
            Some((instant(at, "schedules.last_nominal_at")?, JobId(number(job, "schedules.last_job_id")?)))
        }
    };
    Ok(ScheduleRecord {
        id: ScheduleId(number(row.id, "schedules.id")?),
        owner: UserId(number(row.owner_id, "schedules.owner_id")?),
        owner_name,
        group: GroupId(number(row.group_id, "schedules.group_id")?),
        name: row.name,
        cron: row.cron,
        zone: row.zone,
        job: Prepared {
            spec: from_json(&row.spec, "schedules.spec")?,
            image: from_json(&row.image, "schedules.image")?,
            input_bytes: from_json(&row.input_bytes, "schedules.input_bytes")?,
        },
        paused: row.paused,
        considered_until: instant(row.considered_until, "schedules.considered_until")?,
        missed: number(row.missed, "schedules.missed")?,
        last,
    })
}
