//! Tasks and attempts as records.

use std::collections::HashMap;

use diesel::prelude::*;
use swarm_protocol::{AttemptId, JobId, Outcome, TaskId, TaskIndex, TaskRange, WorkerId};

use super::super::connect::{Conn, both};
use super::super::schema::{attempts, ended_ranges, jobs, live_tasks, superseded, workers};
use super::super::sqltypes::{AttemptRow, EndedRow, Fault, LiveRow, from_json, instant, int, maybe_instant, number};
use super::super::{AttemptRecord, LateReport, LivePhase, LiveTask, TaskRecord};

pub(in crate::store) fn live(conn: &mut Conn, task: TaskId) -> Result<Option<LiveTask>, Fault> {
    let row: Option<LiveRow> = both!(conn, c => live_tasks::table
        .find((int(task.job.0), i64::from(task.task)))
        .select(LiveRow::as_select())
        .first(c)
        .optional())?;
    row.as_ref().map(LiveRow::read).transpose()
}

/// Live rows after that of `after`, by job and task.
pub(in crate::store) fn live_after(conn: &mut Conn, after: Option<TaskId>, limit: u32) -> Result<Vec<LiveTask>, Fault> {
    // Numbers of jobs begin with 1.
    let (job, task) = after.map_or((0, 0), |after| (int(after.job.0), i64::from(after.task)));
    let rows: Vec<LiveRow> = both!(conn, c => live_tasks::table
        .filter(live_tasks::job_id.ge(job))
        .filter(live_tasks::job_id.gt(job).or(live_tasks::task.gt(task)))
        .order((live_tasks::job_id, live_tasks::task))
        .limit(limit.into())
        .select(LiveRow::as_select())
        .load(c))?;
    rows.iter().map(LiveRow::read).collect()
}

pub(in crate::store) fn attempt(conn: &mut Conn, attempt: AttemptId) -> Result<Option<AttemptRecord>, Fault> {
    let row: Option<(AttemptRow, String)> = both!(conn, c => attempts::table
        .inner_join(workers::table)
        .filter(attempts::job_id.eq(int(attempt.job.0)))
        .filter(attempts::task.eq(i64::from(attempt.task)))
        .filter(attempts::attempt.eq(i32::from(attempt.attempt)))
        .select((AttemptRow::as_select(), workers::name))
        .first(c)
        .optional())?;
    if let Some((row, worker_name)) = row {
        return ended(&row, worker_name).map(Some);
    }
    match live(conn, attempt.task_id())? {
        Some(task) if task.attempt == attempt.attempt => running(conn, attempt, &task),
        _ => Ok(None),
    }
}

/// The record of an attempt that is still on its worker; none for one that still waits for a worker.
fn running(conn: &mut Conn, id: AttemptId, task: &LiveTask) -> Result<Option<AttemptRecord>, Fault> {
    let (worker, assigned_at, started_at) = match task.phase {
        LivePhase::Waiting { .. } => return Ok(None),
        LivePhase::Assigned { worker, at } => (worker, at, None),
        LivePhase::Started { worker, at, started_at } => (worker, at, Some(started_at)),
    };
    let worker_name = both!(conn, c => workers::table.find(int(worker.0)).select(workers::name).first(c))?;
    Ok(Some(AttemptRecord {
        id,
        worker,
        worker_name,
        assigned_at,
        started_at,
        ended_at: None,
        ran_ms: None,
        outcome: None,
        is_final: false,
        may_have_run: started_at.is_some(),
        log_bytes: 0,
        log_cut_bytes: 0,
        outputs: Vec::new(),
        usage: None,
    }))
}

fn ended(row: &AttemptRow, worker_name: String) -> Result<AttemptRecord, Fault> {
    Ok(AttemptRecord {
        id: AttemptId {
            job: JobId(number(row.job_id, "attempts.job_id")?),
            task: number(row.task, "attempts.task")?,
            attempt: number(row.attempt.into(), "attempts.attempt")?,
        },
        worker: WorkerId(number(row.worker_id, "attempts.worker_id")?),
        worker_name,
        assigned_at: instant(row.assigned_at, "attempts.assigned_at")?,
        started_at: maybe_instant(row.started_at, "attempts.started_at")?,
        ended_at: Some(instant(row.ended_at, "attempts.ended_at")?),
        ran_ms: row.ran_ms.map(|ms| number(ms, "attempts.ran_ms")).transpose()?,
        outcome: Some(from_json(&row.outcome, "attempts.outcome")?),
        is_final: row.is_final,
        may_have_run: row.may_have_run,
        log_bytes: number(row.log_bytes, "attempts.log_bytes")?,
        log_cut_bytes: number(row.log_cut_bytes, "attempts.log_cut_bytes")?,
        outputs: from_json(&row.outputs, "attempts.outputs")?,
        usage: row.usage.as_deref().map(|text| from_json(text, "attempts.usage")).transpose()?,
    })
}

pub(in crate::store) fn list(
    conn: &mut Conn,
    job: JobId,
    from: TaskIndex,
    limit: u32,
) -> Result<Vec<TaskRecord>, Fault> {
    let id = int(job.0);
    let bounds: Option<(i64, i64)> = both!(conn, c => jobs::table
        .find(id)
        .select((jobs::first_task, jobs::last_task))
        .first(c)
        .optional())?;
    let Some((first, last)) = bounds else { return Ok(Vec::new()) };
    let first = first.max(from.into());
    let last = last.min(first + i64::from(limit) - 1);
    if first > last {
        return Ok(Vec::new());
    }
    let page = TaskRange { first: number(first, "jobs.first_task")?, last: number(last, "jobs.last_task")? };
    let mut live = live_in(conn, id, page)?;
    let mut attempts = attempts_in(conn, id, page)?;
    let ranges = ended_in(conn, id, page)?;
    let mut late = late_in(conn, id, page)?;
    Ok(page
        .iter()
        .map(|task| {
            let attempts = attempts.remove(&task).unwrap_or_default();
            let last = attempts.iter().find(|attempt| attempt.is_final).and_then(|attempt| attempt.outcome.clone());
            let unrun = || ranges.iter().find(|(range, _)| range.contains(task)).map(|(_, outcome)| outcome.clone());
            let (live, late) = (live.remove(&task), late.remove(&task).unwrap_or_default());
            TaskRecord { task, live, outcome: last.or_else(unrun), attempts, late }
        })
        .collect())
}

fn late_in(conn: &mut Conn, job: i64, page: TaskRange) -> Result<HashMap<TaskIndex, Vec<LateReport>>, Fault> {
    let rows: Vec<(i64, i32, String, String, i64)> = both!(conn, c => superseded::table
        .inner_join(workers::table)
        .filter(superseded::job_id.eq(job))
        .filter(superseded::task.between(i64::from(page.first), i64::from(page.last)))
        .order((superseded::task, superseded::reported_at, superseded::attempt, superseded::worker_id))
        .select((superseded::task, superseded::attempt, workers::name, superseded::outcome, superseded::reported_at))
        .load(c))?;
    let mut by_task: HashMap<TaskIndex, Vec<LateReport>> = HashMap::new();
    for (task, attempt, worker_name, outcome, at) in rows {
        let report = LateReport {
            attempt: number(attempt.into(), "superseded.attempt")?,
            worker_name,
            outcome: from_json(&outcome, "superseded.outcome")?,
            reported_at: instant(at, "superseded.reported_at")?,
        };
        by_task.entry(number(task, "superseded.task")?).or_default().push(report);
    }
    Ok(by_task)
}

fn live_in(conn: &mut Conn, job: i64, page: TaskRange) -> Result<HashMap<TaskIndex, LiveTask>, Fault> {
    let rows: Vec<LiveRow> = both!(conn, c => live_tasks::table
        .filter(live_tasks::job_id.eq(job))
        .filter(live_tasks::task.between(i64::from(page.first), i64::from(page.last)))
        .select(LiveRow::as_select())
        .load(c))?;
    rows.iter().map(|row| row.read().map(|task| (task.task, task))).collect()
}

fn attempts_in(conn: &mut Conn, job: i64, page: TaskRange) -> Result<HashMap<TaskIndex, Vec<AttemptRecord>>, Fault> {
    let rows: Vec<(AttemptRow, String)> = both!(conn, c => attempts::table
        .inner_join(workers::table)
        .filter(attempts::job_id.eq(job))
        .filter(attempts::task.between(i64::from(page.first), i64::from(page.last)))
        .order((attempts::task, attempts::attempt))
        .select((AttemptRow::as_select(), workers::name))
        .load(c))?;
    let mut by_task: HashMap<TaskIndex, Vec<AttemptRecord>> = HashMap::new();
    for (row, worker_name) in rows {
        let record = ended(&row, worker_name)?;
        by_task.entry(record.id.task).or_default().push(record);
    }
    Ok(by_task)
}

fn ended_in(conn: &mut Conn, job: i64, page: TaskRange) -> Result<Vec<(TaskRange, Outcome)>, Fault> {
    let rows: Vec<EndedRow> = both!(conn, c => ended_ranges::table
        .filter(ended_ranges::job_id.eq(job))
        .filter(ended_ranges::first_task.le(i64::from(page.last)))
        .filter(ended_ranges::last_task.ge(i64::from(page.first)))
        .select(EndedRow::as_select())
        .load(c))?;
    let read = |row: &EndedRow| {
        let first = number(row.first_task, "ended_ranges.first_task")?;
        let last = number(row.last_task, "ended_ranges.last_task")?;
        Ok((TaskRange { first, last }, from_json(&row.outcome, "ended_ranges.outcome")?))
    };
    rows.iter().map(read).collect()
}
