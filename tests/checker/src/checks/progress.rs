//! I5: what was seen once is never unseen. Only reads that did not overlap in time are compared.

use std::collections::BTreeMap;

use swarm_protocol::{JobId, TaskId};

use crate::history::{Entry, JobSeen, Op, Seen, TaskSeen, Verdict};
use crate::report::{Finding, Invariant, Report};
use crate::world::World;

type Reads<'a, T> = Vec<(&'a Entry, &'a T)>;

pub(super) fn check(history: &[Entry], world: Option<&World>, report: &mut Report) {
    let (mut jobs, mut tasks) =
        (BTreeMap::<u64, Reads<JobSeen>>::new(), BTreeMap::<(u64, u32), Reads<TaskSeen>>::new());
    let finding = report.at(Invariant::I5);
    for entry in history {
        match (&entry.op, entry.result) {
            (Op::Job(seen), Verdict::Ok) => jobs.entry(seen.job).or_default().push((entry, seen)),
            (Op::Task(seen), Verdict::Ok) => tasks.entry((seen.job, seen.task)).or_default().push((entry, seen)),
            (Op::Job(_) | Op::Task(_), _) => finding.unknown += 1,
            _ => {}
        }
    }
    for reads in jobs.values() {
        compare(reads, job_went_back, finding);
    }
    for reads in tasks.values() {
        compare(reads, task_went_back, finding);
    }
    if let Some(world) = world {
        jobs.values().flatten().for_each(|(_, seen)| job_is_kept(world, seen, finding));
        tasks.values().flatten().for_each(|(_, seen)| task_is_kept(world, seen, finding));
    }
}

/// Compares each read with every one that had ended before it began: the last of them is not enough, since it may have
/// overlapped with one that saw more.
fn compare<T>(reads: &Reads<T>, back: fn(&T, &T) -> Option<String>, finding: &mut Finding) {
    let mut by_end = reads.clone();
    by_end.sort_by_key(|(entry, _)| entry.end_us);
    for (entry, seen) in reads {
        let before = by_end.partition_point(|(other, _)| other.end_us <= entry.start_us);
        let fault = by_end[..before].iter().rev().find_map(|(_, earlier)| back(earlier, seen));
        finding.expect(fault.is_none(), || fault.clone().unwrap_or_default());
    }
}

fn job_went_back(old: &JobSeen, new: &JobSeen) -> Option<String> {
    let counts = |seen: &JobSeen| [seen.succeeded, seen.failed, seen.cancelled];
    let fewer = counts(old).iter().zip(counts(new)).any(|(old, new)| new < *old);
    let changed = old.seen == Seen::Ended && old.state != new.state;
    (new.seen < old.seen || fewer || changed).then(|| {
        format!("job {} went from {} {:?} to {} {:?}", new.job, old.state, counts(old), new.state, counts(new))
    })
}

fn task_went_back(old: &TaskSeen, new: &TaskSeen) -> Option<String> {
    let fewer = new.ended_attempts < old.ended_attempts;
    // An attempt that was assigned and recalled may vanish; one that was seen to start may not.
    let unstarted = old.started && (new.attempt < old.attempt || (new.attempt == old.attempt && !new.started));
    let changed = old.outcome.is_some() && (old.outcome != new.outcome || old.attempt != new.attempt);
    (fewer || unstarted || changed).then(|| {
        let show = |seen: &TaskSeen| {
            let TaskSeen { attempt, started, ended_attempts, outcome, .. } = seen;
            format!("attempt {attempt} (started {started}, {ended_attempts} ended, outcome {outcome:?})")
        };
        format!("task {}.{} went from {} to {}", new.job, new.task, show(old), show(new))
    })
}

fn job_is_kept(world: &World, seen: &JobSeen, finding: &mut Finding) {
    if seen.seen != Seen::Ended {
        return;
    }
    let row = world.jobs.get(&JobId(seen.job));
    let kept = row.is_some_and(|row| {
        row.ended_us.is_some()
            && (row.succeeded, row.failed, row.cancelled) == (seen.succeeded, seen.failed, seen.cancelled)
    });
    finding.expect(kept, || format!("job {} was seen as {} and the store says otherwise", seen.job, seen.state));
}

fn task_is_kept(world: &World, seen: &TaskSeen, finding: &mut Finding) {
    let Some(outcome) = &seen.outcome else { return };
    let task = TaskId { job: JobId(seen.job), task: seen.task };
    let index = u64::from(seen.task);
    let range = world.ended.iter().find(|e| e.job == task.job && e.first <= index && index <= e.last);
    let stored = world.attempts_of(task).find(|(_, row)| row.is_final).map(|(_, row)| row.outcome.as_str());
    let stored = stored.or(range.map(|ended| ended.outcome.as_str()));
    finding
        .expect(stored == Some(outcome), || format!("task {task} was seen as {outcome} and is stored as {stored:?}"));
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn job(seen: Seen, succeeded: u64) -> Op {
        let state = if seen == Seen::Ended { "succeeded" } else { "running" };
        Op::Job(JobSeen { job: 1, seen, state: state.into(), succeeded, failed: 0, cancelled: 0 })
    }

    fn task(attempt: u16, started: bool, ended_attempts: u32, outcome: Option<&str>) -> Op {
        let outcome = outcome.map(str::to_owned);
        Op::Task(TaskSeen { job: 1, task: 0, attempt, started, ended_attempts, outcome })
    }

    #[test]
    fn a_normal_life_is_clean() {
        let (world, stamps) = good();
        let history = vec![
            entry(1, job(Seen::Delayed, 0)),
            entry(2, job(Seen::Open, 0)),
            entry(3, task(1, false, 0, None)),
            entry(4, task(1, true, 0, None)),
            entry(21, task(1, true, 1, None)),
            entry(23, task(2, true, 1, None)),
            entry(41, task(2, true, 2, Some("succeeded"))),
            entry(42, job(Seen::Ended, 1)),
        ];
        let report = judge(history, world, stamps);
        assert!(report.is_clean(), "{report}");
        assert!(report.of(Invariant::I5).checked >= 8);
    }

    #[test]
    fn steps_back_are_found() {
        let pairs = [
            (job(Seen::Ended, 1), job(Seen::Open, 1)),
            (job(Seen::Open, 1), job(Seen::Open, 0)),
            (job(Seen::Open, 0), job(Seen::Delayed, 0)),
            (task(1, true, 0, None), task(1, false, 0, None)),
            (task(1, true, 1, None), task(1, true, 0, None)),
            (task(2, true, 1, None), task(1, true, 1, None)),
            (task(2, true, 2, Some("succeeded")), task(2, true, 2, None)),
        ];
        for (old, new) in pairs {
            broken(&[Invariant::I5], |history, _, _| history.extend([entry(1, old), entry(2, new)]));
        }
    }

    #[test]
    fn a_step_back_behind_a_late_answer_is_found() {
        // The second read overlaps with the first, knows less, and ends last before the third.
        let mut late = entry(1, job(Seen::Open, 0));
        late.end_us = 3 * S;
        let history = [entry(2, job(Seen::Ended, 1)), late, entry(4, job(Seen::Open, 1))];
        broken(&[Invariant::I5], |all, _, _| all.extend(history));
    }

    #[test]
    fn a_result_that_was_seen_and_not_kept_is_found() {
        broken(&[Invariant::I5], |history, _, _| history.push(entry(1, task(2, true, 2, Some("failed")))));
        broken(&[Invariant::I5], |history, _, _| history.push(entry(1, job(Seen::Ended, 0))));
    }

    #[test]
    fn reads_at_the_same_time_are_not_ordered_and_failed_ones_are_unknown() {
        let (world, stamps) = good();
        let mut long = entry(1, task(1, false, 0, None));
        long.end_us = 30 * S;
        let mut failed = entry(6, job(Seen::Open, 0));
        failed.result = Verdict::Unknown;
        let report = judge(vec![entry(5, task(1, true, 0, None)), long, failed], world, stamps);
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.of(Invariant::I5).unknown, 1);
    }
}
