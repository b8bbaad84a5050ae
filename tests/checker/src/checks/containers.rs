//! I4 and I8, and what the engine's stamps add to I3, I7 and I11.

use std::collections::BTreeMap;

use swarm_protocol::TaskId;

use super::{Evidence, Frozen};
use crate::report::{Invariant, Report};
use crate::stamps::{Span, Stamps};
use crate::world::World;

/// How long a container may outlive its attempt.
const GRACE_US: i64 = 60_000_000;
/// How long it may take to kill a container once its engine answers again.
const KILL_US: i64 = 10_000_000;
/// Stamps of one clock, taken by different parts.
const RAN_TOLERANCE_MS: i64 = 2_000;

pub(super) fn check(world: &World, stamps: &Stamps, evidence: &Evidence, report: &mut Report) {
    let spans = stamps.spans();
    let mut tasks = BTreeMap::<TaskId, Vec<&Span>>::new();
    for span in &spans {
        tasks.entry(span.attempt.task_id()).or_default().push(span);
        one(world, span, evidence, report);
    }
    for (task, spans) in &tasks {
        overlaps(world, *task, spans, &evidence.frozen, report);
        once(world, *task, spans, report);
    }
    for (stamp, listed) in stamps.listing() {
        let id = stamp.attempt_id();
        let finding = report.at(Invariant::I8);
        if world.is_live(id) {
            finding.checked += 1;
            continue;
        }
        let since = world.attempts.get(&id).map_or(listed.created_us, |attempt| attempt.ended_us);
        if stamp.at_us - since <= GRACE_US || evidence.clocks_differ {
            finding.unknown += 1;
        } else {
            let over_s = (stamp.at_us - since) / 1_000_000;
            let container = &stamp.container;
            finding
                .expect(false, || format!("container {container} of {id} is there {over_s} s after its attempt ended"));
        }
    }
}

/// What one run of a container says about its attempt's record.
fn one(world: &World, span: &Span, evidence: &Evidence, report: &mut Report) {
    let (id, container) = (span.attempt, &span.container);
    let Some(attempt) = world.attempts.get(&id) else {
        let known = world.is_live(id);
        report.at(Invariant::I8).expect(known, || format!("container {container} ran for {id}, which does not exist"));
        return;
    };
    let same = attempt.worker == span.worker;
    let text = || format!("{id} is recorded for worker {} and ran on worker {}", attempt.worker, span.worker);
    report.at(Invariant::I3).expect(same, text);
    if attempt.outcome == "lost" {
        let text = || format!("{id} was lost, its container {container} had started, and it is not marked");
        report.at(Invariant::I7).expect(attempt.may_have_run, text);
    }
    if let Some(ended) = span.ended_us {
        let late = ended - attempt.ended_us;
        let text =
            || format!("container {container} of {id} ran on for {} s after its attempt ended", late / 1_000_000);
        let over_us = attempt.ended_us + GRACE_US;
        let hindrances = evidence.frozen.iter().filter(|one| {
            one.worker == span.worker && one.from_us <= over_us && one.until_us + KILL_US >= attempt.ended_us
        });
        // An excuse for as long as it lasted, and for the time that the end takes then.
        let hindered_us = hindrances.map(|one| one.until_us).max();
        let could_end = hindered_us.is_none_or(|until_us| ended > until_us.saturating_add(GRACE_US + KILL_US));
        if evidence.clocks_differ {
            report.at(Invariant::I8).unknown += 1;
        } else if late > GRACE_US && !could_end {
            report.at(Invariant::I8).excepted += 1;
        } else {
            report.at(Invariant::I8).expect(late <= GRACE_US, text);
        }
        if let Some(ran) = attempt.ran_ms {
            let by_engine = (ended - span.started_us) / 1000;
            let off = (by_engine - i64::try_from(ran).unwrap_or(i64::MAX)).abs();
            let text = || format!("{id} is recorded with {ran} ms and ran {by_engine} ms by the engine's events");
            report.at(Invariant::I11).expect(off <= RAN_TOLERANCE_MS, text);
        }
    }
}

/// Whether the engine could not end a run in time before `later` began: what hindered it began before the run was given up.
fn is_frozen(world: &World, frozen: &[Frozen], earlier: &Span, later: &Span) -> bool {
    let given_up_us = world.attempts.get(&earlier.attempt).map_or(later.started_us, |attempt| attempt.ended_us);
    let since_us = given_up_us.min(later.started_us);
    let matters = |one: &&Frozen| one.until_us + KILL_US >= later.started_us && one.from_us <= since_us;
    frozen.iter().filter(matters).any(|one| one.worker == earlier.worker)
}

/// I7, whatever the records say: a task that runs at most once has started once.
fn once(world: &World, task: TaskId, spans: &[&Span], report: &mut Report) {
    if world.jobs.get(&task.job).is_some_and(|job| job.at_most_once) {
        let attempts: Vec<_> = spans.iter().map(|span| span.attempt.attempt).collect();
        let text = || format!("task {task} runs at most once, and containers of attempts {attempts:?} have started");
        report.at(Invariant::I7).expect(spans.len() == 1, text);
    }
}

/// I4: the runs of one task do not overlap; `eager` jobs, declared losses and frozen engines are counted apart.
fn overlaps(world: &World, task: TaskId, spans: &[&Span], frozen: &[Frozen], report: &mut Report) {
    let finding = report.at(Invariant::I4);
    finding.checked += 1;
    let eager = world.jobs.get(&task.job).is_some_and(|job| job.eager);
    for (at, earlier) in spans.iter().enumerate() {
        for later in &spans[at + 1..] {
            if earlier.ended_us.is_some_and(|ended| ended <= later.started_us) {
                continue;
            }
            let declared =
                world.attempts.get(&earlier.attempt).is_some_and(|a| a.loss.as_deref() == Some("declared-lost"));
            if eager || declared || is_frozen(world, frozen, earlier, later) {
                finding.excepted += 1;
                continue;
            }
            let over = match earlier.ended_us {
                Some(ended) => format!("overlapped for {} ms", (ended - later.started_us) / 1000),
                None => "overlap: the first was never seen to end".to_owned(),
            };
            finding.violations.push(format!("containers of {} and {} {over}", earlier.attempt, later.attempt));
        }
    }
}

#[cfg(test)]
mod tests {
    use swarm_protocol::JobId;

    use super::super::testing::*;
    use super::*;
    use crate::stamps::{Action, Listed};

    #[test]
    fn an_overlap_while_the_engine_was_frozen_is_counted_apart() {
        let overlapped = |frozen: &[Frozen]| {
            let (world, mut stamps) = good();
            stamps.0[1].at_us = 23 * S;
            let evidence =
                Evidence { world: Some(world), stamps: Some(stamps), frozen: frozen.to_vec(), ..Evidence::default() };
            let report = super::super::check(&evidence);
            let found = report.of(Invariant::I4);
            (found.violations.len(), found.excepted)
        };
        let frozen = |worker, until_s| Frozen { worker, from_us: S, until_us: until_s * S };
        assert_eq!(overlapped(&[frozen(1, 20)]), (0, 1));
        assert_eq!(overlapped(&[frozen(1, 5)]), (1, 0), "it had time to end it");
        assert_eq!(overlapped(&[frozen(2, 20)]), (1, 0), "another engine");
        let late = Frozen { from_us: 21 * S, ..frozen(1, 30) };
        assert_eq!(overlapped(&[late]), (1, 0), "it had been given up before");
    }

    /// An attempt that ended at 20 s, and its container later.
    #[test]
    fn what_hindered_the_end_of_a_container_excuses_it_for_that_long_and_no_longer() {
        let ran_on = |died_s, frozen: &[Frozen]| {
            let (mut world, mut stamps) = good();
            world.attempts.get_mut(&attempt(1, 0, 1)).unwrap().loss = Some("declared-lost".into());
            stamps.0[1].at_us = died_s * S;
            let evidence =
                Evidence { world: Some(world), stamps: Some(stamps), frozen: frozen.to_vec(), ..Evidence::default() };
            let report = super::super::check(&evidence);
            let found = report.of(Invariant::I8);
            (found.violations.len(), found.excepted)
        };
        let frozen = [Frozen { worker: 1, from_us: 10 * S, until_us: 100 * S }];
        assert_eq!(ran_on(79, &[]), (0, 0));
        assert_eq!(ran_on(160, &[]), (1, 0));
        assert_eq!(ran_on(160, &frozen), (0, 1));
        assert_eq!(ran_on(171, &frozen), (1, 0), "there was time since");
    }

    #[test]
    fn overlapping_containers_are_found() {
        broken(&[Invariant::I4], |_, _, stamps| stamps[1].at_us = 23 * S);
        broken(&[Invariant::I4], |_, _, stamps| drop(stamps.remove(1)));
    }

    #[test]
    fn an_eager_or_declared_overlap_is_counted_and_not_a_violation() {
        for eager in [true, false] {
            let (mut world, mut stamps) = good();
            stamps.0[1].at_us = 23 * S;
            world.jobs.get_mut(&JobId(1)).unwrap().eager = eager;
            if !eager {
                world.attempts.get_mut(&attempt(1, 0, 1)).unwrap().loss = Some("declared-lost".into());
            }
            let report = judge(Vec::new(), world, stamps);
            assert!(report.is_clean(), "{report}");
            assert_eq!(report.of(Invariant::I4).excepted, 1);
        }
    }

    #[test]
    fn a_record_of_another_worker_is_found() {
        broken(&[Invariant::I3], |_, _, stamps| stamps[2].worker = 9);
    }

    #[test]
    fn a_container_of_no_attempt_is_found() {
        let zombie = attempt(5, 0, 1);
        broken(&[Invariant::I8], |_, _, stamps| stamps.push(stamp(zombie, "z", 1, Action::Start)));
    }

    #[test]
    fn a_container_that_outlives_its_attempt_is_found() {
        broken(&[Invariant::I8], |_, _, stamps| {
            let mut left = stamp(attempt(1, 0, 1), "a", 90, Action::Create);
            left.action = None;
            left.listed = Some(Listed { created_us: S, running: false });
            stamps.push(left);
        });
        let (world, mut stamps) = good();
        let mut left = stamp(attempt(1, 0, 2), "b", 90, Action::Create);
        left.action = None;
        left.listed = Some(Listed { created_us: S, running: false });
        stamps.0.push(left);
        let report = judge(Vec::new(), world, stamps);
        assert_eq!((report.violations(), report.of(Invariant::I8).unknown), (0, 1), "{report}");
    }

    #[test]
    fn a_second_start_of_an_at_most_once_task_is_found_even_if_the_first_is_recorded_as_none() {
        broken(&[], |_, world, stamps| {
            world.jobs.get_mut(&JobId(1)).unwrap().at_most_once = true;
            world.attempts.get_mut(&attempt(1, 0, 1)).unwrap().started_us = None;
            world.attempts.get_mut(&attempt(1, 0, 1)).unwrap().may_have_run = false;
            stamps.drain(..2);
        });
        broken(&[Invariant::I7], |_, world, _| {
            world.jobs.get_mut(&JobId(1)).unwrap().at_most_once = true;
            let first = world.attempts.get_mut(&attempt(1, 0, 1)).unwrap();
            (first.outcome, first.started_us, first.may_have_run) = ("refused".into(), None, false);
        });
    }

    #[test]
    fn an_unmarked_run_is_found() {
        broken(&[Invariant::I7], |_, world, _| {
            let first = world.attempts.get_mut(&attempt(1, 0, 1)).unwrap();
            first.started_us = None;
            first.may_have_run = false;
        });
    }
}
