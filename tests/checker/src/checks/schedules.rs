//! I6: each instant of a schedule is launched once.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Entry, Op, Verdict};
use crate::report::{Invariant, Report};
use crate::world::World;

pub(super) fn check(history: &[Entry], world: &World, report: &mut Report) {
    stored(world, report);
    let finding = report.at(Invariant::I6);
    let mut by_hand = BTreeSet::new();
    for entry in history {
        if let Op::Trigger { job, .. } = &entry.op {
            match (entry.result, job) {
                (Verdict::Ok, Some(job)) => {
                    by_hand.insert(*job);
                    let there = world.jobs.keys().any(|id| id.0 == *job);
                    finding.expect(there, || format!("job {job} of a trigger is not in the store"));
                }
                (Verdict::Unknown, _) => finding.unknown += 1,
                _ => {}
            }
        }
    }
    for entry in history {
        let Op::Schedule(expected) = &entry.op else { continue };
        let due: BTreeSet<i64> = expected.due_us.iter().copied().collect();
        let launches =
            || world.launches.iter().filter(|l| l.schedule == expected.schedule && !by_hand.contains(&l.job.0));
        for at in &due {
            let times = launches().filter(|launch| launch.nominal_us == *at).count();
            let text = || format!("schedule {} was due at {at} µs and launched {times} times", expected.schedule);
            finding.expect(times == 1, text);
        }
        for extra in launches().filter(|launch| !due.contains(&launch.nominal_us)) {
            let (schedule, at) = (extra.schedule, extra.nominal_us);
            finding.expect(false, || format!("schedule {schedule} launched job {} at {at} µs, not due", extra.job));
        }
    }
}

/// What the store alone tells: launches and jobs belong to each other one to one.
fn stored(world: &World, report: &mut Report) {
    let finding = report.at(Invariant::I6);
    let mut seen = BTreeMap::new();
    for launch in &world.launches {
        let instant = (launch.schedule, launch.nominal_us);
        if let Some(other) = seen.insert(instant, launch.job) {
            finding.expect(false, || format!("{instant:?} launched jobs {other} and {}", launch.job));
        }
        let says = world.jobs.get(&launch.job).and_then(|job| job.launch);
        finding.expect(says == Some(instant), || format!("job {} of launch {instant:?} says {says:?}", launch.job));
    }
    for (job, row) in &world.jobs {
        if let Some(instant) = row.launch {
            let holds = seen.get(&instant) == Some(job);
            finding.expect(holds, || {
                format!("job {job} says it was launched by {instant:?}, which made {:?}", seen.get(&instant))
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use swarm_protocol::JobId;

    use super::super::testing::*;
    use super::*;
    use crate::history::Expectation;
    use crate::world::LaunchRow;

    fn launched(world: &mut World, nominal_us: i64) {
        world.jobs.get_mut(&JobId(1)).unwrap().launch = Some((3, nominal_us));
        world.launches.push(LaunchRow { schedule: 3, nominal_us, job: JobId(1) });
    }

    fn due(instants: &[i64]) -> Entry {
        entry(1, Op::Schedule(Expectation { schedule: 3, due_us: instants.to_vec() }))
    }

    #[test]
    fn a_launch_on_time_is_clean() {
        broken(&[], |history, world, _| {
            launched(world, 60 * S);
            history.push(due(&[60 * S]));
        });
        broken(&[], |history, world, _| {
            launched(world, 61 * S);
            history.push(entry(1, Op::Trigger { schedule: 3, job: Some(1) }));
            history.push(due(&[]));
        });
    }

    #[test]
    fn missed_extra_and_doubled_launches_are_found() {
        broken(&[Invariant::I6], |history, _, _| history.push(due(&[60 * S])));
        broken(&[Invariant::I6], |history, world, _| {
            launched(world, 60 * S);
            history.push(due(&[]));
        });
        broken(&[Invariant::I6], |_, world, _| {
            launched(world, 60 * S);
            world.launches.push(LaunchRow { schedule: 3, nominal_us: 60 * S, job: JobId(1) });
        });
        broken(&[Invariant::I6], |_, world, _| {
            world.jobs.get_mut(&JobId(1)).unwrap().launch = Some((3, 60 * S));
        });
    }
}
