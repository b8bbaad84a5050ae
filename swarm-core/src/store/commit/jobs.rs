//! Jobs: accept, cancel, count.

use diesel::prelude::*;
use swarm_protocol::{AttemptId, JobId, Outcome, OutcomeKind, TaskIndex, TaskRange, TaskSet, Timestamp, WorkerId};

use super::super::connect::{Conn, both};
use super::super::schema::{ended_ranges, jobs, launches, live_tasks};
use super::super::sqltypes::{EndedRow, Fault, JobRow, LiveRow, WAITING, int, json, micros, number};
use super::super::{Applied, NewJob, Refusal, Verdict};
use super::{ROWS_MAX, Step, conflict, next_number, not_found, schedules};

/// A job row by number.
pub(super) fn find(conn: &mut Conn, job: JobId) -> Result<Option<JobRow>, Fault> {
    Ok(both!(conn, c => jobs::table.find(int(job.0)).select(JobRow::as_select()).first(c).optional())?)
}

pub(super) fn create(conn: &mut Conn, new: &NewJob) -> Step {
    if let Some(verdict) = repeated(conn, new)? {
        return Ok(verdict);
    }
    if let Some(launch) = &new.launch
        && let Some(refusal) = schedules::refuse_launch(conn, launch)?
    {
        return Ok(Err(refusal));
    }
    let id = next_number(conn, "job")?;
    let tasks = new.job.spec.tasks();
    let row = JobRow {
        id,
        owner_id: int(new.owner.0),
        group_id: int(new.group.0),
        name: new.job.spec.name.clone(),
        spec: json(&new.job.spec),
        image: json(&new.job.image),
        input_bytes: json(&new.job.input_bytes),
        first_task: tasks.first.into(),
        last_task: tasks.last.into(),
        next_fresh: tasks.first.into(),
        live: 0,
        succeeded: 0,
        failed: 0,
        cancelled: 0,
        submitted_at: micros(new.submitted_at),
        start_at: new.job.spec.start_at.map(micros),
        ended_at: None,
        cancel_requested: false,
        schedule_id: new.launch.as_ref().map(|launch| int(launch.schedule.0)),
        nominal_at: new.launch.as_ref().map(|launch| micros(launch.nominal_at)),
        idempotency_key: new.idempotency.as_ref().map(|(key, _)| key.clone()),
        idempotency_digest: new.idempotency.as_ref().map(|(_, digest)| digest.0.to_vec()),
    };
    both!(conn, c => diesel::insert_into(jobs::table).values(&row).execute(c))?;
    if let Some(launch) = &new.launch {
        let row = (
            launches::schedule_id.eq(int(launch.schedule.0)),
            launches::nominal_at.eq(micros(launch.nominal_at)),
            launches::job_id.eq(id),
        );
        both!(conn, c => diesel::insert_into(launches::table).values(row).execute(c))?;
        schedules::note_launch(conn, launch, id)?;
    }
    Ok(Ok(Applied::Job { job: JobId(number(id, "jobs.id")?), repeated: false }))
}

/// The verdict on a submit whose idempotency key is known.
fn repeated(conn: &mut Conn, new: &NewJob) -> Result<Option<Verdict>, Fault> {
    let Some((key, digest)) = &new.idempotency else { return Ok(None) };
    let known: Option<(i64, Option<Vec<u8>>)> = both!(conn, c => jobs::table
        .filter(jobs::group_id.eq(int(new.group.0)))
        .filter(jobs::idempotency_key.eq(key))
        .select((jobs::id, jobs::idempotency_digest))
        .first(c)
        .optional())?;
    let Some((job, earlier)) = known else { return Ok(None) };
    if earlier.as_deref() != Some(digest.0.as_slice()) {
        let why = format!("the idempotency key `{key}` was used for another request, which made job {job}");
        return Ok(Some(Err(Refusal::Conflict(why))));
    }
    Ok(Some(Ok(Applied::Job { job: JobId(number(job, "jobs.id")?), repeated: true })))
}

pub(super) fn cancel(conn: &mut Conn, job: JobId, at: Timestamp) -> Step {
    let Some(row) = find(conn, job)? else { return not_found(format!("job {job}")) };
    if row.ended_at.is_some() {
        return Ok(Ok(Applied::Cancelled { live: Vec::new(), job_ended: true }));
    }
    let mut waiting = TaskSet::default();
    let mut live = Vec::new();
    for task in live_rows(conn, row.id)? {
        let index: TaskIndex = number(task.task, "live_tasks.task")?;
        match (task.phase, task.worker_id) {
            (WAITING, _) => waiting.insert(TaskRange::one(index)),
            (_, Some(worker)) => {
                let attempt = number(task.attempt.into(), "live_tasks.attempt")?;
                let worker = WorkerId(number(worker, "live_tasks.worker_id")?);
                live.push((AttemptId { job, task: index, attempt }, worker));
            }
            (_, None) => return conflict(format!("task {job}.{index} is on no worker")),
        }
    }
    both!(conn, c => diesel::delete(live_tasks::table)
        .filter(live_tasks::job_id.eq(row.id))
        .filter(live_tasks::phase.eq(WAITING))
        .execute(c))?;
    if row.next_fresh <= row.last_task {
        let (first, last) = (number(row.next_fresh, "jobs.next_fresh")?, number(row.last_task, "jobs.last_task")?);
        waiting.insert(TaskRange { first, last });
    }
    end_waiting(conn, row.id, &waiting, at)?;
    both!(conn, c => diesel::update(jobs::table.find(row.id))
        .set((jobs::cancel_requested.eq(true), jobs::next_fresh.eq(jobs::last_task + 1)))
        .execute(c))?;
    let job_ended = count(conn, row.id, 0, OutcomeKind::Cancelled, int(waiting.count()), at)?;
    Ok(Ok(Applied::Cancelled { live, job_ended }))
}

fn live_rows(conn: &mut Conn, job: i64) -> Result<Vec<LiveRow>, Fault> {
    Ok(both!(conn, c => live_tasks::table
        .filter(live_tasks::job_id.eq(job))
        .order(live_tasks::task)
        .select(LiveRow::as_select())
        .load(c))?)
}

/// Writes the ends of tasks that were cancelled while they waited.
pub(super) fn end_waiting(conn: &mut Conn, job: i64, tasks: &TaskSet, at: Timestamp) -> Result<(), Fault> {
    let outcome = json(&Outcome::Cancelled);
    let row = |range: &TaskRange| EndedRow {
        job_id: job,
        first_task: range.first.into(),
        last_task: range.last.into(),
        outcome: outcome.clone(),
        ended_at: micros(at),
    };
    for ranges in tasks.ranges().chunks(ROWS_MAX) {
        let rows: Vec<EndedRow> = ranges.iter().map(row).collect();
        both!(conn, c => diesel::insert_into(ended_ranges::table).values(&rows).execute(c))?;
    }
    Ok(())
}

/// Counts `ended` tasks of `job` as ended with `kind`, changes its live count by `live`, and ends the job at `at` when
/// none is left open. Says whether that is so; only for jobs that have not ended yet.
pub(super) fn count(
    conn: &mut Conn,
    job: i64,
    live: i64,
    kind: OutcomeKind,
    ended: i64,
    at: Timestamp,
) -> Result<bool, Fault> {
    let (succeeded, failed, cancelled) = match kind {
        OutcomeKind::Succeeded => (ended, 0, 0),
        OutcomeKind::Cancelled => (0, 0, ended),
        _ => (0, ended, 0),
    };
    let open: i64 = both!(conn, c => diesel::update(jobs::table.find(job))
        .set((
            jobs::live.eq(jobs::live + live),
            jobs::succeeded.eq(jobs::succeeded + succeeded),
            jobs::failed.eq(jobs::failed + failed),
            jobs::cancelled.eq(jobs::cancelled + cancelled),
        ))
        .returning(jobs::last_task - jobs::first_task + 1 - jobs::succeeded - jobs::failed - jobs::cancelled)
        .get_result(c))?;
    if open > 0 {
        return Ok(false);
    }
    both!(conn, c => diesel::update(jobs::table.find(job)).set(jobs::ended_at.eq(micros(at))).execute(c))?;
    Ok(true)
}
