//! Schedules and their launches.

use diesel::prelude::*;
use swarm_protocol::api::Launch;
use swarm_protocol::{ScheduleId, Timestamp};

use super::super::connect::{Conn, both};
use super::super::schema::{launches, schedules};
use super::super::sqltypes::{Fault, int, json, micros, number};
use super::super::{Applied, NewSchedule, Refusal};
use super::{Step, conflict, done_or_not_found, next_number};

pub(super) fn create(conn: &mut Conn, new: &NewSchedule) -> Step {
    let taken: i64 = both!(conn, c => schedules::table
        .filter(schedules::group_id.eq(int(new.group.0)))
        .filter(schedules::name.eq(&new.name))
        .count()
        .get_result(c))?;
    if taken > 0 {
        return conflict(format!("a schedule named `{}` exists already", new.name));
    }
    let id = next_number(conn, "schedule")?;
    let row = (
        schedules::id.eq(id),
        schedules::owner_id.eq(int(new.owner.0)),
        schedules::group_id.eq(int(new.group.0)),
        schedules::name.eq(&new.name),
        schedules::cron.eq(&new.cron),
        schedules::zone.eq(&new.zone),
        schedules::spec.eq(json(&new.job.spec)),
        schedules::image.eq(json(&new.job.image)),
        schedules::input_bytes.eq(json(&new.job.input_bytes)),
        schedules::paused.eq(false),
        schedules::considered_until.eq(micros(new.created_at)),
        schedules::missed.eq(0_i64),
    );
    both!(conn, c => diesel::insert_into(schedules::table).values(row).execute(c))?;
    Ok(Ok(Applied::Schedule(ScheduleId(number(id, "schedules.id")?))))
}

pub(super) fn pause(conn: &mut Conn, schedule: ScheduleId, paused: bool, at: Timestamp) -> Step {
    let rows = both!(conn, c => diesel::update(schedules::table.find(int(schedule.0)))
        .set(schedules::paused.eq(paused))
        .execute(c))?;
    if rows == 1 && !paused {
        consider(conn, schedule, at)?;
    }
    done_or_not_found(rows, || format!("schedule {schedule}"))
}

pub(super) fn delete(conn: &mut Conn, schedule: ScheduleId) -> Step {
    let rows = both!(conn, c => diesel::delete(schedules::table.find(int(schedule.0))).execute(c))?;
    done_or_not_found(rows, || format!("schedule {schedule}"))
}

pub(super) fn miss(conn: &mut Conn, schedule: ScheduleId, missed: u64, until: Timestamp) -> Step {
    let missed = i64::from(u32::try_from(missed).unwrap_or(u32::MAX));
    let rows = both!(conn, c => diesel::update(schedules::table.find(int(schedule.0)))
        .set(schedules::missed.eq(schedules::missed + missed))
        .execute(c))?;
    consider(conn, schedule, until)?;
    done_or_not_found(rows, || format!("schedule {schedule}"))
}

/// Moves `considered_until` forward, never back.
fn consider(conn: &mut Conn, schedule: ScheduleId, until: Timestamp) -> Result<(), Fault> {
    let earlier = schedules::table.find(int(schedule.0)).filter(schedules::considered_until.lt(micros(until)));
    both!(conn, c => diesel::update(earlier).set(schedules::considered_until.eq(micros(until))).execute(c))?;
    Ok(())
}

/// Why this launch may not be made, if so.
pub(super) fn refuse_launch(conn: &mut Conn, launch: &Launch) -> Result<Option<Refusal>, Fault> {
    let (schedule, at) = (launch.schedule, launch.nominal_at);
    let earlier: Option<i64> = both!(conn, c => launches::table
        .find((int(schedule.0), micros(at)))
        .select(launches::job_id)
        .first(c)
        .optional())?;
    if let Some(job) = earlier {
        return Ok(Some(Refusal::Conflict(format!("schedule {schedule} was launched for {at} already, as job {job}"))));
    }
    let paused: Option<bool> = both!(conn, c => schedules::table
        .find(int(schedule.0))
        .select(schedules::paused)
        .first(c)
        .optional())?;
    Ok(match paused {
        None => Some(Refusal::NotFound(format!("schedule {schedule}"))),
        Some(true) => Some(Refusal::Stale(format!("schedule {schedule} is paused"))),
        Some(false) => None,
    })
}

/// Remembers a launch as the last one.
pub(super) fn note_launch(conn: &mut Conn, launch: &Launch, job: i64) -> Result<(), Fault> {
    both!(conn, c => diesel::update(schedules::table.find(int(launch.schedule.0)))
        .set((schedules::last_nominal_at.eq(micros(launch.nominal_at)), schedules::last_job_id.eq(job)))
        .execute(c))?;
    consider(conn, launch.schedule, launch.nominal_at)
}
