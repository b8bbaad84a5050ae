//! Lets the checker judge a swarm after a scenario.

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use swarm_checker::{
    Action, AttemptRow, Evidence, Invariant, Op, Report, Stamp, Stamps, Verdict, World, check, load, read_history,
};

use swarm_protocol::AttemptId;

use super::swarm::Swarm;
use super::{eventually, report};
use crate::matrix::shown;

/// How long containers may take to go after their attempts (invariant I8).
const GONE: Duration = Duration::from_secs(60);

/// Invariants that the checker must have found something to judge by, given what happened.
fn due(evidence: &Evidence) -> Vec<Invariant> {
    let some = |is_due: bool, invariants: &'static [Invariant]| if is_due { invariants } else { &[] };
    let (history, world, stamps) = (&evidence.history, evidence.world.as_ref(), evidence.stamps.as_ref());
    let has_op = |of: fn(&Op) -> bool| history.iter().any(|entry| entry.result == Verdict::Ok && of(&entry.op));
    let has_ended = |of: fn(&AttemptRow) -> bool| world.is_some_and(|world| world.attempts.values().any(of));
    [
        some(has_op(|op| matches!(op, Op::Submit(_))), &[Invariant::I1]),
        some(world.is_some_and(|world| !world.jobs.is_empty()), &[Invariant::I2]),
        some(has_ended(|row| row.is_final), &[Invariant::I3]),
        some(has_ended(|row| row.started_us.is_some()), &[Invariant::I11]),
        some(has_ended(|row| row.started_us.is_some()) && stamps.is_some(), &[Invariant::I4]),
        // By clocks that were set nobody can say how long a container outlived its attempt.
        some(
            has_ended(|row| row.started_us.is_some()) && stamps.is_some() && !evidence.clocks_differ,
            &[Invariant::I8],
        ),
        some(has_op(|op| matches!(op, Op::Job(_) | Op::Task(_))), &[Invariant::I5]),
    ]
    .concat()
}

/// Attempts that the store knows to have started and the engine's events do not: a clean verdict over events that were
/// not recorded would mean nothing.
fn unseen(world: &World, stamps: &[Stamp]) -> Vec<AttemptId> {
    let seen: HashSet<AttemptId> =
        stamps.iter().filter(|stamp| stamp.action == Some(Action::Start)).map(Stamp::attempt_id).collect();
    let started = world.attempts.iter().filter(|(_, row)| row.started_us.is_some());
    started.map(|(id, _)| *id).filter(|id| !seen.contains(id)).collect()
}

impl Swarm {
    /// Waits until the containers of ended attempts are gone, then checks every invariant. With `all_ended`, every
    /// accepted job must have ended and nothing may be left in the engine.
    ///
    /// # Panics
    /// When an invariant is broken; the table says which.
    #[track_caller]
    pub(crate) fn judge(&self, scenario: &str, all_ended: bool) -> Report {
        let stamps = self.stamps(scenario, all_ended);
        self.judge_by(scenario, all_ended, Some(Stamps(stamps)))
    }

    /// As [`judge`](Self::judge), of a swarm whose engine left nothing to ask.
    #[track_caller]
    pub(crate) fn judge_records(&self, scenario: &str) -> Report {
        self.judge_by(scenario, true, None)
    }

    /// What the engine did, once it has told everything.
    #[track_caller]
    fn stamps(&self, scenario: &str, all_ended: bool) -> Vec<Stamp> {
        let id = self.id().expect("the store holds the swarm's id");
        if all_ended {
            eventually("every container and volume is gone", GONE, || {
                (self.docker().listing(&id).is_empty() && self.docker().volumes(&id).is_empty()).then_some(())
            });
        }
        // Other tests may share the swarm and go on: every start known now must be seen, and whatever has been seen by
        // then must be known afterwards.
        let known = load(&self.store).expect("the store can be read");
        let began = Instant::now();
        let mut stamps = loop {
            let (stamps, listing) = (self.engine.stamps(&id), self.docker().listing(&id));
            let there: HashSet<&str> = listing.iter().map(|stamp| stamp.container.as_str()).collect();
            let destroyed = |stamp: &&Stamp| stamp.action == Some(Action::Destroy);
            let gone: HashSet<&str> = stamps.iter().filter(destroyed).map(|stamp| stamp.container.as_str()).collect();
            let open = stamps.iter().find(|stamp| {
                let container = stamp.container.as_str();
                !there.contains(container) && !gone.contains(container)
            });
            let unseen = unseen(&known, &stamps);
            if open.is_none() && unseen.is_empty() {
                break stamps.into_iter().chain(listing).collect::<Vec<_>>();
            }
            let patience = Duration::from_secs(60);
            assert!(began.elapsed() < patience, "{scenario}: events are missing: of {open:?}, the start of {unseen:?}");
            std::thread::sleep(Duration::from_millis(100));
        };
        stamps.sort_by_key(|stamp| stamp.at_us);
        stamps
    }

    #[track_caller]
    fn judge_by(&self, scenario: &str, all_ended: bool, stamps: Option<Stamps>) -> Report {
        let evidence = Evidence {
            history: read_history(fs::read(&self.recorder.path).expect("the history is there").as_slice())
                .expect("the history can be read"),
            world: Some(load(&self.store).expect("the store can be read")),
            stamps,
            all_ended,
            clocks_differ: self.has_fake_clocks(),
            ..Evidence::default()
        };
        let judged = check(&evidence);
        assert!(judged.is_clean(), "{scenario}: an invariant is broken\n{judged}");
        for invariant in due(&evidence) {
            assert!(judged.of(invariant).checked > 0, "{scenario}: nothing to judge {invariant:?} by\n{judged}");
        }
        let sum = |of: fn(&swarm_checker::Finding) -> u64| -> u64 {
            Invariant::ALL.into_iter().map(|invariant| of(judged.of(invariant))).sum()
        };
        let (checked, unknown, excepted) = (sum(|f| f.checked), sum(|f| f.unknown), sum(|f| f.excepted));
        shown(&evidence.history);
        report(&format!("{scenario}: checked {checked}, violations 0, excepted {excepted}, unknown {unknown}"));
        judged
    }
}
