//! Tasks on their way: assign, start, recall, end.

use std::collections::BTreeMap;

use diesel::prelude::*;
use swarm_protocol::{
    AttemptId, AttemptNo, JobId, LossReason, Outcome, OutcomeKind, TaskIndex, TaskRange, TaskSet, Timestamp, WorkerId,
};

use super::super::connect::{Conn, both};
use super::super::schema::{attempts, jobs, live_tasks, superseded as late_reports, workers};
use super::super::sqltypes::{
    ASSIGNED, AttemptRow, Fault, JobRow, LiveRow, STARTED, WAITING, corrupt, int, json, micros, number,
};
use super::super::{Applied, AttemptEnd, Next, Work};
use super::{ROWS_MAX, Step, content, jobs as job_rows, not_found, outputs, stale};

pub(super) fn assign(conn: &mut Conn, job: JobId, work: &Work, worker: WorkerId, at: Timestamp) -> Step {
    let known: i64 = both!(conn, c => workers::table
        .filter(workers::id.eq(int(worker.0)))
        .filter(workers::revoked.eq(false))
        .count()
        .get_result(c))?;
    if known == 0 {
        return stale(format!("worker {worker} is unknown, or its key was revoked"));
    }
    match work {
        Work::Fresh(range) => assign_fresh(conn, job, *range, worker, at),
        Work::Again(tasks) => assign_again(conn, job, tasks, worker, at),
    }
}

fn assign_fresh(conn: &mut Conn, job: JobId, range: TaskRange, worker: WorkerId, at: Timestamp) -> Step {
    let (id, worker) = (int(job.0), int(worker.0));
    let (first, last) = (i64::from(range.first), i64::from(range.last));
    let guard = jobs::table
        .find(id)
        .filter(jobs::next_fresh.eq(first))
        .filter(jobs::last_task.ge(last))
        .filter(jobs::cancel_requested.eq(false))
        .filter(jobs::ended_at.is_null());
    let taken = both!(conn, c => diesel::update(guard)
        .set((jobs::next_fresh.eq(last + 1), jobs::live.eq(jobs::live + int(range.count()))))
        .execute(c))?;
    if taken == 0 {
        return stale(format!("tasks {range} of job {job} are not the next fresh ones of an open job"));
    }
    let row = |task: TaskIndex| LiveRow {
        job_id: id,
        task: task.into(),
        attempt: 1,
        phase: ASSIGNED,
        not_before: None,
        worker_id: Some(worker),
        assigned_at: Some(micros(at)),
        started_at: None,
        losses: 0,
        failures: 0,
    };
    let mut tasks = range.iter();
    loop {
        let rows: Vec<LiveRow> = tasks.by_ref().take(ROWS_MAX).map(row).collect();
        if rows.is_empty() {
            return Ok(Ok(Applied::Done));
        }
        both!(conn, c => diesel::insert_into(live_tasks::table).values(&rows).execute(c))?;
    }
}

fn assign_again(
    conn: &mut Conn,
    job: JobId,
    tasks: &[(TaskIndex, AttemptNo)],
    worker: WorkerId,
    at: Timestamp,
) -> Step {
    let id = int(job.0);
    let wanted: BTreeMap<i64, i32> =
        tasks.iter().map(|&(task, attempt)| (i64::from(task), i32::from(attempt))).collect();
    let indices: Vec<i64> = wanted.keys().copied().collect();
    let mut found = BTreeMap::new();
    for some in indices.chunks(ROWS_MAX) {
        let rows: Vec<(i64, i32)> = both!(conn, c => live_tasks::table
            .filter(live_tasks::job_id.eq(id))
            .filter(live_tasks::task.eq_any(some))
            .filter(live_tasks::phase.eq(WAITING))
            .select((live_tasks::task, live_tasks::attempt))
            .load(c))?;
        found.extend(rows);
    }
    if tasks.is_empty() || wanted.len() != tasks.len() || found != wanted {
        return stale(format!("not all of these tasks of job {job} wait for the attempt named"));
    }
    let open = jobs::table.find(id).filter(jobs::cancel_requested.eq(false)).filter(jobs::ended_at.is_null());
    let taken = both!(conn, c => diesel::update(open)
        .set(jobs::live.eq(jobs::live + int(tasks.len())))
        .execute(c))?;
    if taken == 0 {
        return stale(format!("job {job} is cancelled or over"));
    }
    for some in indices.chunks(ROWS_MAX) {
        both!(conn, c => diesel::update(live_tasks::table)
            .filter(live_tasks::job_id.eq(id))
            .filter(live_tasks::task.eq_any(some))
            .set((
                live_tasks::phase.eq(ASSIGNED),
                live_tasks::not_before.eq(None::<i64>),
                live_tasks::worker_id.eq(int(worker.0)),
                live_tasks::assigned_at.eq(micros(at)),
            ))
            .execute(c))?;
    }
    Ok(Ok(Applied::Done))
}

pub(super) fn start(conn: &mut Conn, attempt: AttemptId, worker: WorkerId, started_at: Timestamp) -> Step {
    let guard = live_tasks::table
        .find((int(attempt.job.0), i64::from(attempt.task)))
        .filter(live_tasks::attempt.eq(i32::from(attempt.attempt)))
        .filter(live_tasks::worker_id.eq(int(worker.0)))
        .filter(live_tasks::phase.eq(ASSIGNED));
    let rows = both!(conn, c => diesel::update(guard)
        .set((live_tasks::phase.eq(STARTED), live_tasks::started_at.eq(micros(started_at))))
        .execute(c))?;
    if rows == 0 {
        stale(format!("attempt {attempt} is not assigned to worker {worker}"))
    } else {
        Ok(Ok(Applied::Done))
    }
}

/// The live row of an attempt on that worker, with its job.
pub(super) fn held(conn: &mut Conn, attempt: AttemptId, worker: WorkerId) -> Result<Option<(LiveRow, JobRow)>, Fault> {
    Ok(both!(conn, c => live_tasks::table
        .inner_join(jobs::table)
        .filter(live_tasks::job_id.eq(int(attempt.job.0)))
        .filter(live_tasks::task.eq(i64::from(attempt.task)))
        .filter(live_tasks::attempt.eq(i32::from(attempt.attempt)))
        .filter(live_tasks::worker_id.eq(int(worker.0)))
        .filter(live_tasks::phase.ne(WAITING))
        .select((LiveRow::as_select(), JobRow::as_select()))
        .first(c)
        .optional())?)
}

pub(super) fn recall(conn: &mut Conn, attempt: AttemptId, worker: WorkerId, at: Timestamp) -> Step {
    let (row, job) = match held(conn, attempt, worker)? {
        Some((row, job)) if row.phase == ASSIGNED => (row, job),
        _ => return stale(format!("attempt {attempt} is not unstarted on worker {worker}")),
    };
    if job.cancel_requested {
        outputs::forget(conn, attempt)?;
        remove(conn, &row)?;
        job_rows::end_waiting(conn, job.id, &TaskSet::from_range(TaskRange::one(attempt.task)), at)?;
        let job_ended = job_rows::count(conn, job.id, -1, OutcomeKind::Cancelled, 1, at)?;
        return Ok(Ok(Applied::Ended { job_ended }));
    }
    if attempt.attempt == AttemptNo::MAX {
        return end(conn, &given_up(attempt, worker, at));
    }
    outputs::forget(conn, attempt)?;
    wait_again(conn, &row, at, row.losses, row.failures)?;
    Ok(Ok(Applied::Done))
}

pub(super) fn end(conn: &mut Conn, end: &AttemptEnd) -> Step {
    let Some((row, job)) = held(conn, end.attempt, end.worker)? else {
        return stale(format!("attempt {} is not on worker {}", end.attempt, end.worker));
    };
    let again = match end.next {
        Next::Retry { not_before } if !job.cancel_requested && end.attempt.attempt != AttemptNo::MAX => {
            Some(not_before)
        }
        _ => None,
    };
    let record = AttemptRow {
        job_id: row.job_id,
        task: row.task,
        attempt: row.attempt,
        worker_id: int(end.worker.0),
        assigned_at: row.assigned_at.ok_or_else(|| corrupt("live_tasks.assigned_at"))?,
        started_at: end.started_at.map(micros).or(row.started_at),
        ended_at: micros(end.ended_at),
        ran_ms: end.ran_ms.map(int),
        outcome: json(&end.outcome),
        is_final: again.is_none(),
        may_have_run: end.may_have_run,
        log_bytes: int(end.log_bytes),
        log_cut_bytes: int(end.log_cut_bytes),
        outputs: json(&end.outputs),
        usage: end.usage.as_ref().map(json),
    };
    both!(conn, c => diesel::insert_into(attempts::table).values(&record).execute(c))?;
    outputs::forget(conn, end.attempt)?;
    let group = swarm_protocol::GroupId(number(job.group_id, "jobs.group_id")?);
    for output in &end.outputs {
        content::link(conn, group, &output.digest, output.size_bytes, end.ended_at)?;
    }
    let job_ended = if let Some(not_before) = again {
        let lost = i32::from(end.outcome.is_lost());
        wait_again(conn, &row, not_before, bump(row.losses, lost), bump(row.failures, 1 - lost))?;
        false
    } else {
        remove(conn, &row)?;
        job_rows::count(conn, job.id, -1, end.outcome.kind(), 1, end.ended_at)?
    };
    Ok(Ok(Applied::Ended { job_ended }))
}

/// The end of a task that was given back so often that there is no number left for another attempt.
fn given_up(attempt: AttemptId, worker: WorkerId, at: Timestamp) -> AttemptEnd {
    let detail = "it was given back unstarted, and no attempt number is left".to_owned();
    AttemptEnd {
        attempt,
        worker,
        outcome: Outcome::Lost { reason: LossReason::StartDeadline, detail },
        started_at: None,
        ended_at: at,
        ran_ms: None,
        may_have_run: false,
        log_bytes: 0,
        log_cut_bytes: 0,
        outputs: Vec::new(),
        usage: None,
        next: Next::Final,
    }
}

/// A count of retries as `LiveTask` can hold it.
fn bump(count: i32, by: i32) -> i32 {
    (count + by).min(u16::MAX.into())
}

/// A live task waits for its next attempt.
fn wait_again(conn: &mut Conn, row: &LiveRow, not_before: Timestamp, losses: i32, failures: i32) -> Result<(), Fault> {
    both!(conn, c => diesel::update(live_tasks::table.find((row.job_id, row.task)))
        .set((
            live_tasks::attempt.eq(row.attempt + 1),
            live_tasks::phase.eq(WAITING),
            live_tasks::not_before.eq(micros(not_before)),
            live_tasks::worker_id.eq(None::<i64>),
            live_tasks::assigned_at.eq(None::<i64>),
            live_tasks::started_at.eq(None::<i64>),
            live_tasks::losses.eq(losses),
            live_tasks::failures.eq(failures),
        ))
        .execute(c))?;
    both!(conn, c => diesel::update(jobs::table.find(row.job_id)).set(jobs::live.eq(jobs::live - 1)).execute(c))?;
    Ok(())
}

fn remove(conn: &mut Conn, row: &LiveRow) -> Result<(), Fault> {
    both!(conn, c => diesel::delete(live_tasks::table.find((row.job_id, row.task))).execute(c))?;
    Ok(())
}

/// Whether the attempt is on this worker, or ended there. Of one that was given back unstarted nobody has a report.
fn was_on(conn: &mut Conn, attempt: AttemptId, worker: WorkerId) -> Result<bool, Fault> {
    let (job, task) = (int(attempt.job.0), i64::from(attempt.task));
    let ended: i64 = both!(conn, c => attempts::table
        .find((job, task, i32::from(attempt.attempt)))
        .filter(attempts::worker_id.eq(int(worker.0)))
        .count()
        .get_result(c))?;
    Ok(ended > 0 || held(conn, attempt, worker)?.is_some())
}

/// Keeps the first late report about each attempt, and only of the worker that had it, so that no worker can fill the
/// store with them, or speak of what is not its own.
pub(super) fn superseded(
    conn: &mut Conn,
    attempt: AttemptId,
    worker: WorkerId,
    outcome: &Outcome,
    at: Timestamp,
) -> Step {
    if !was_on(conn, attempt, worker)? {
        return not_found(format!("attempt {attempt} on worker {worker}"));
    }
    let row = (
        late_reports::job_id.eq(int(attempt.job.0)),
        late_reports::task.eq(i64::from(attempt.task)),
        late_reports::attempt.eq(i32::from(attempt.attempt)),
        late_reports::worker_id.eq(int(worker.0)),
        late_reports::outcome.eq(json(outcome)),
        late_reports::reported_at.eq(micros(at)),
    );
    both!(conn, c => diesel::insert_into(late_reports::table).values(row).on_conflict_do_nothing().execute(c))?;
    Ok(Ok(Applied::Done))
}
