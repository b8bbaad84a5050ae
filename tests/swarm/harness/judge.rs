//! Lets the checker judge a swarm after a scenario.

use std::fs;
use std::time::Duration;

use swarm_checker::{Action, Evidence, Invariant, Report, Stamps, check, load, read_history};

use super::swarm::Swarm;
use super::{Engine, eventually, report};

/// How long containers may take to go after their attempts (invariant I8).
const GONE: Duration = Duration::from_secs(60);

impl Swarm {
    /// Waits until the containers of ended attempts are gone, then checks every invariant. With `all_ended`, every
    /// accepted job must have ended and nothing may be left in the engine.
    ///
    /// # Panics
    /// When an invariant is broken; the table says which.
    #[track_caller]
    pub(crate) fn judge(&self, scenario: &str, all_ended: bool) -> Report {
        let id = self.id().expect("the store holds the swarm's id");
        if all_ended {
            eventually("every container and volume is gone", GONE, || {
                (Engine::listing(&id).is_empty() && Engine::volumes(&id).is_empty()).then_some(())
            });
        }
        let mut stamps = eventually("the engine's events have all come", Duration::from_secs(10), || {
            let (stamps, listing) = (self.engine.stamps(&id), Engine::listing(&id));
            let there = |container: &str| listing.iter().any(|stamp| stamp.container == container);
            let gone = |container: &str| {
                let destroyed = Some(Action::Destroy);
                stamps.iter().any(|stamp| stamp.container == container && stamp.action == destroyed)
            };
            let whole = stamps.iter().all(|stamp| there(&stamp.container) || gone(&stamp.container));
            whole.then(|| stamps.into_iter().chain(listing).collect::<Vec<_>>())
        });
        stamps.sort_by_key(|stamp| stamp.at_us);
        let evidence = Evidence {
            history: read_history(fs::read(&self.recorder.path).expect("the history is there").as_slice())
                .expect("the history can be read"),
            world: Some(load(&self.store).expect("the store can be read")),
            stamps: Some(Stamps(stamps)),
            all_ended,
        };
        let judged = check(&evidence);
        assert!(judged.is_clean(), "{scenario}: an invariant is broken\n{judged}");
        let sum = |of: fn(&swarm_checker::Finding) -> u64| -> u64 {
            Invariant::ALL.into_iter().map(|invariant| of(judged.of(invariant))).sum()
        };
        let (checked, unknown, excepted) = (sum(|f| f.checked), sum(|f| f.unknown), sum(|f| f.excepted));
        report(&format!("{scenario}: checked {checked}, violations 0, excepted {excepted}, unknown {unknown}"));
        judged
    }
}
