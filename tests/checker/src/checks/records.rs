//! I2, I3, I7 and I11, as far as the store alone tells.

use std::collections::BTreeMap;

use swarm_protocol::{AttemptId, JobId, TaskId};

use crate::report::{Finding, Invariant, Report};
use crate::world::{AttemptRow, JobRow, World};

/// The engine's wall-clock stamps and a monotonic duration differ by the engine's own delays.
const RAN_TOLERANCE_MS: i64 = 2_000;
/// Core and engine read one clock at different moments.
const ORDER_TOLERANCE_US: i64 = 1_000_000;

pub(super) fn check(world: &World, all_ended: bool, clocks_differ: bool, report: &mut Report) {
    for (job, row) in &world.jobs {
        let pieces = pieces(world, *job, row);
        let finding = report.at(Invariant::I2);
        covers(*job, row, pieces, finding);
        counts(world, *job, row, finding);
        if row.ended_us.is_none() {
            if all_ended {
                finding.expect(false, || format!("job {job} has not ended"));
            } else {
                finding.unknown += 1;
            }
        }
    }
    for (task, _) in world.live.iter().filter(|(task, _)| !world.jobs.contains_key(&task.job)) {
        report.at(Invariant::I2).expect(false, || format!("task {task} is live and its job does not exist"));
    }
    for (id, row) in &world.attempts {
        current(world, *id, row, report.at(Invariant::I3));
        may_have_run(world, *id, row, report.at(Invariant::I7));
        durations(*id, row, clocks_differ, report.at(Invariant::I11));
    }
    if !clocks_differ {
        order(world, report.at(Invariant::I11));
    }
}

/// Instants that the core noted come before later ones that the engine noted.
fn order(world: &World, finding: &mut Finding) {
    for (id, row) in &world.attempts {
        let ordered = row.ended_us + ORDER_TOLERANCE_US >= row.assigned_us;
        finding.expect(ordered, || format!("attempt {id} ended before it was assigned"));
    }
    for (job, row) in &world.jobs {
        if let Some(ended) = row.ended_us {
            let holds = ended + ORDER_TOLERANCE_US >= row.submitted_us;
            finding.expect(holds, || format!("job {job} ended before it was submitted"));
        }
    }
}

/// Where the tasks of a job are, as ranges: each task belongs to exactly one.
fn pieces(world: &World, job: JobId, row: &JobRow) -> Vec<(u64, u64, &'static str)> {
    let one = |task: u32, what| (u64::from(task), u64::from(task), what);
    let mut pieces: Vec<_> = world.live_in(job).map(|(id, _)| one(id.task, "live")).collect();
    let finals = world.attempts_in(job).filter(|(_, attempt)| attempt.is_final);
    pieces.extend(finals.map(|(id, _)| one(id.task, "final")));
    pieces.extend(world.ended.iter().filter(|ended| ended.job == job).map(|e| (e.first, e.last, "ended unrun")));
    if row.next_fresh <= row.last_task {
        pieces.push((row.next_fresh, row.last_task, "fresh"));
    }
    pieces.sort_unstable();
    pieces
}

/// Conservation: accepted = ended + live, for every job at every moment.
fn covers(job: JobId, row: &JobRow, pieces: Vec<(u64, u64, &'static str)>, finding: &mut Finding) {
    let mut next = row.first_task;
    for (first, last, what) in pieces {
        if first < next {
            finding.expect(false, || format!("task {job}.{first} ({what}) is recorded more than once"));
        }
        if first > next {
            finding.expect(false, || format!("tasks {job}.{next} to {} are nowhere", first - 1));
        }
        if last > row.last_task {
            finding.expect(false, || format!("task {job}.{last} ({what}) is beyond the job's {}", row.last_task));
        }
        if row.ended_us.is_some() && matches!(what, "live" | "fresh") {
            finding.expect(false, || format!("job {job} has ended and its task {first} is {what}"));
        }
        next = next.max(last + 1);
    }
    finding.expect(next > row.last_task, || format!("tasks {job}.{next} to {} are nowhere", row.last_task));
    finding.checked += row.last_task - row.first_task;
}

fn counts(world: &World, job: JobId, row: &JobRow, finding: &mut Finding) {
    let mut counted = BTreeMap::<&str, u64>::new();
    let column = |outcome: &str| match outcome {
        "succeeded" => "succeeded",
        "cancelled" => "cancelled",
        _ => "failed",
    };
    for (_, attempt) in world.attempts_in(job).filter(|(_, attempt)| attempt.is_final) {
        *counted.entry(column(&attempt.outcome)).or_default() += 1;
    }
    for ended in world.ended.iter().filter(|ended| ended.job == job) {
        *counted.entry(column(&ended.outcome)).or_default() += ended.last - ended.first + 1;
    }
    let live = world.live_in(job).filter(|(_, live)| live.phase > 0).count() as u64;
    let columns =
        [("succeeded", row.succeeded), ("failed", row.failed), ("cancelled", row.cancelled), ("live", row.live)];
    for (name, stored) in columns {
        let actual = if name == "live" { live } else { counted.get(name).copied().unwrap_or(0) };
        finding
            .expect(stored == actual, || format!("job {job} counts {stored} {name} tasks, its records say {actual}"));
    }
}

/// I3: nothing follows a final record, and every other attempt is followed by something.
fn current(world: &World, id: AttemptId, row: &AttemptRow, finding: &mut Finding) {
    let task = id.task_id();
    let latest = world.attempts_of(task).last().map_or(0, |(id, _)| id.attempt);
    let live = world.live.get(&task);
    if row.is_final {
        finding.expect(latest == id.attempt, || format!("attempt {id} is final and attempt {latest} came after it"));
        let text = || format!("attempt {id} is final and task {task} is live");
        finding.expect(live.is_none(), text);
    } else {
        let followed =
            latest > id.attempt || live.is_some_and(|live| live.attempt > id.attempt) || cancelled(world, task);
        finding.expect(followed, || format!("attempt {id} is not final and nothing follows it"));
    }
}

/// A task that waited for a retry when its job was cancelled ends as a range.
fn cancelled(world: &World, task: TaskId) -> bool {
    let index = u64::from(task.task);
    world.ended.iter().any(|ended| ended.job == task.job && ended.first <= index && index <= ended.last)
}

fn may_have_run(world: &World, id: AttemptId, row: &AttemptRow, finding: &mut Finding) {
    if row.outcome == "lost" && row.started_us.is_some() {
        finding.expect(row.may_have_run, || format!("attempt {id} had started, was lost, and is not marked"));
    }
    let at_most_once = world.jobs.get(&id.job).is_some_and(|job| job.at_most_once);
    if at_most_once && (row.may_have_run || row.started_us.is_some()) {
        let task = id.task_id();
        let later = world.attempts_of(task).last().is_some_and(|(last, _)| last.attempt > id.attempt);
        let waits = world.live.get(&task).is_some_and(|live| live.attempt > id.attempt);
        finding.expect(!later && !waits, || format!("attempt {id} may have run, and its at-most-once task goes on"));
    }
}

fn durations(id: AttemptId, row: &AttemptRow, clocks_differ: bool, finding: &mut Finding) {
    let Some(started) = row.started_us else {
        finding
            .expect(row.ran_ms.unwrap_or(0) == 0, || format!("attempt {id} never started and ran {:?} ms", row.ran_ms));
        return;
    };
    // The core's clock says when an at-most-once attempt may start, and when one was given up.
    finding.expect(row.ended_us >= started || clocks_differ, || format!("attempt {id} ended before it started"));
    if let Some(ran) = row.ran_ms {
        let by_stamps = (row.ended_us - started) / 1000;
        let off = (by_stamps - i64::try_from(ran).unwrap_or(i64::MAX)).abs();
        let text = || format!("attempt {id} ran {ran} ms by its clock and {by_stamps} ms by the engine's stamps");
        finding.expect(off <= RAN_TOLERANCE_MS, text);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::world::{EndedRow, LiveRow};

    fn row(world: &mut World, number: u16) -> &mut AttemptRow {
        world.attempts.get_mut(&attempt(1, 0, number)).unwrap()
    }

    fn job(world: &mut World) -> &mut JobRow {
        world.jobs.get_mut(&JobId(1)).unwrap()
    }

    #[test]
    fn a_task_without_a_record_is_found() {
        broken(&[Invariant::I2], |_, world, _| job(world).last_task = 1);
        broken(&[Invariant::I2], |_, world, _| {
            job(world).last_task = 3;
            job(world).next_fresh = 4;
            job(world).cancelled = 2;
            world.ended.push(EndedRow { job: JobId(1), first: 2, last: 3, outcome: "cancelled".into() });
        });
    }

    #[test]
    fn a_task_with_two_records_is_found() {
        broken(&[Invariant::I2], |_, world, _| {
            job(world).cancelled = 1;
            world.ended.push(EndedRow { job: JobId(1), first: 0, last: 0, outcome: "cancelled".into() });
        });
    }

    #[test]
    fn wrong_counts_and_open_jobs_are_found() {
        broken(&[Invariant::I2], |_, world, _| job(world).succeeded = 0);
        broken(&[Invariant::I2], |_, world, _| job(world).ended_us = None);
        let (mut world, _) = good();
        job(&mut world).ended_us = None;
        let report = super::super::check(&super::super::Evidence { world: Some(world), ..Default::default() });
        assert_eq!((report.violations(), report.of(Invariant::I2).unknown), (0, 1), "{report}");
    }

    #[test]
    fn a_final_record_of_an_old_attempt_is_found() {
        broken(&[Invariant::I3], |_, world, _| {
            row(world, 1).is_final = true;
            row(world, 2).is_final = false;
            job(world).succeeded = 0;
            job(world).failed = 1;
        });
    }

    #[test]
    fn a_live_task_with_a_final_record_is_found() {
        broken(&[Invariant::I2, Invariant::I3], |_, world, _| {
            world.live.insert(attempt(1, 0, 1).task_id(), LiveRow { attempt: 3, phase: 0 });
        });
    }

    #[test]
    fn an_unmarked_loss_and_a_repeated_at_most_once_task_are_found() {
        broken(&[Invariant::I7], |_, world, _| row(world, 1).may_have_run = false);
        broken(&[Invariant::I7], |_, world, _| job(world).at_most_once = true);
    }

    #[test]
    fn impossible_durations_are_found() {
        broken(&[Invariant::I11], |_, world, _| row(world, 2).ended_us = 21 * S);
        broken(&[Invariant::I11], |_, world, _| row(world, 2).ran_ms = Some(60_000));
        broken(&[Invariant::I11], |_, world, _| job(world).submitted_us = 50 * S);
    }

    #[test]
    fn clocks_that_differ_excuse_the_order_of_instants_and_no_duration() {
        let judged = |change: fn(&mut World)| {
            let (mut world, _) = good();
            change(&mut world);
            let evidence = super::super::Evidence { world: Some(world), clocks_differ: true, ..Default::default() };
            super::super::check(&evidence).of(Invariant::I11).violations.len()
        };
        assert_eq!(judged(|world| job(world).submitted_us = 50 * S), 0);
        assert_eq!(judged(|world| row(world, 2).assigned_us = 50 * S), 0);
        assert_eq!(judged(|world| row(world, 2).ran_ms = Some(60_000)), 1);
    }
}
