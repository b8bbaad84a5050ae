//! The checks, one file for what belongs together.

mod containers;
mod logs;
mod probes;
mod progress;
mod records;
mod schedules;
mod submits;

use crate::history::Entry;
use crate::report::Report;
use crate::stamps::Stamps;
use crate::world::World;

/// Everything that can be judged. What is absent is not checked, and the report says so.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// What the test observed.
    pub history: Vec<Entry>,
    /// What the store holds.
    pub world: Option<World>,
    /// What the engine did.
    pub stamps: Option<Stamps>,
    /// Whether every accepted job must have ended; otherwise the open ones count as unknown.
    pub all_ended: bool,
    /// Whether core and engine had wall clocks that differ or jump. Instants of the one are not compared with those of the
    /// other then; durations are, all the same.
    pub clocks_differ: bool,
    /// When engines did not do as they were told, or nobody was there to tell them.
    pub frozen: Vec<Frozen>,
}

/// A time in which a worker's engine did not answer, or not as it should, or in which its watchdog was gone.
#[derive(Debug, Clone, Copy)]
pub struct Frozen {
    /// The worker's number.
    pub worker: u64,
    /// Unix time in microseconds.
    pub from_us: i64,
    /// Unix time in microseconds.
    pub until_us: i64,
}

/// Checks every invariant as far as the evidence reaches. I10 needs a cache outside the process and is not exercised.
#[must_use]
pub fn check(evidence: &Evidence) -> Report {
    let mut report = Report::default();
    let Evidence { history, world, stamps, all_ended, clocks_differ, .. } = evidence;
    if let Some(world) = world {
        submits::check(history, world, &mut report);
        records::check(world, *all_ended, *clocks_differ, &mut report);
        schedules::check(history, world, &mut report);
    }
    if let (Some(world), Some(stamps)) = (world, stamps) {
        containers::check(world, stamps, evidence, &mut report);
    }
    progress::check(history, world.as_ref(), &mut report);
    logs::check(history, world.as_ref(), &mut report);
    probes::check(history, &mut report);
    report
}

#[cfg(test)]
mod testing {
    //! A small swarm in which everything is right; each test breaks one thing.

    use swarm_protocol::{AttemptId, JobId};

    use super::*;
    use crate::history::{Op, Verdict};
    use crate::report::Invariant;
    use crate::stamps::{Action, Stamp};
    use crate::world::{AttemptRow, JobRow};

    pub(super) const S: i64 = 1_000_000;

    pub(super) fn attempt(job: u64, task: u32, attempt: u16) -> AttemptId {
        AttemptId { job: JobId(job), task, attempt }
    }

    pub(super) fn entry(at_s: i64, op: Op) -> Entry {
        Entry { start_us: at_s * S, end_us: at_s * S + 10, result: Verdict::Ok, op }
    }

    pub(super) fn stamp(id: AttemptId, container: &str, at_s: i64, action: Action) -> Stamp {
        Stamp {
            container: container.to_owned(),
            job: id.job.0,
            task: id.task,
            attempt: id.attempt,
            worker: 1,
            at_us: at_s * S,
            action: Some(action),
            listed: None,
        }
    }

    /// Job 1, one task: attempt 1 was lost after its start, attempt 2 succeeded.
    pub(super) fn good() -> (World, Stamps) {
        let mut world = World::default();
        let job = JobRow { next_fresh: 1, succeeded: 1, ended_us: Some(40 * S), ..JobRow::default() };
        world.jobs.insert(JobId(1), job);
        let first = AttemptRow {
            worker: 1,
            outcome: "lost".into(),
            loss: Some("lease-expired".into()),
            assigned_us: S,
            started_us: Some(2 * S),
            ended_us: 20 * S,
            may_have_run: true,
            ..AttemptRow::default()
        };
        let second = AttemptRow {
            worker: 1,
            outcome: "succeeded".into(),
            assigned_us: 21 * S,
            started_us: Some(22 * S),
            ended_us: 40 * S,
            ran_ms: Some(18_000),
            is_final: true,
            ..AttemptRow::default()
        };
        world.attempts.insert(attempt(1, 0, 1), first);
        world.attempts.insert(attempt(1, 0, 2), second);
        let (one, two) = (attempt(1, 0, 1), attempt(1, 0, 2));
        let stamps = vec![
            stamp(one, "a", 2, Action::Start),
            stamp(one, "a", 15, Action::Die),
            stamp(two, "b", 22, Action::Start),
            stamp(two, "b", 40, Action::Die),
            stamp(two, "b", 41, Action::Destroy),
        ];
        (world, Stamps(stamps))
    }

    pub(super) fn judge(history: Vec<Entry>, world: World, stamps: Stamps) -> Report {
        check(&Evidence { history, world: Some(world), stamps: Some(stamps), all_ended: true, ..Evidence::default() })
    }

    /// Breaks the good swarm and expects exactly the named invariants to be violated.
    pub(super) fn broken(expected: &[Invariant], change: impl FnOnce(&mut Vec<Entry>, &mut World, &mut Vec<Stamp>)) {
        let (mut world, mut stamps) = good();
        let mut history = Vec::new();
        change(&mut history, &mut world, &mut stamps.0);
        let report = judge(history, world, stamps);
        let found: Vec<_> =
            Invariant::ALL.into_iter().filter(|invariant| !report.of(*invariant).violations.is_empty()).collect();
        assert_eq!(found, expected, "{report}");
    }

    #[test]
    fn the_good_swarm_is_clean_and_says_what_it_did_not_see() {
        let (world, stamps) = good();
        let report = judge(Vec::new(), world, stamps);
        assert!(report.is_clean(), "{report}");
        for invariant in [Invariant::I2, Invariant::I3, Invariant::I4, Invariant::I7, Invariant::I11] {
            assert!(report.of(invariant).checked > 0, "{invariant:?} saw nothing: {report}");
        }
        let table = report.to_string();
        assert!(table.lines().any(|line| line.starts_with("I10") && line.ends_with("not exercised")), "{table}");
        assert!(table.lines().any(|line| line.starts_with("I12") && line.ends_with("not exercised")), "{table}");
    }
}
