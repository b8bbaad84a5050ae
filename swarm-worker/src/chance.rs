//! Chance, where it decides when something happens: one source for a whole worker, so that a seed can repeat it.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use swarm_protocol::BootId;

/// A source of chance; clones are the same one.
#[derive(Debug, Clone)]
pub struct Chance(Arc<Mutex<StdRng>>);

impl Chance {
    /// As the operating system gives it.
    #[must_use]
    pub fn of_the_system() -> Self {
        Self(Arc::new(Mutex::new(rand::make_rng())))
    }

    /// The same again for the same seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// `duration` times a factor of this range.
    pub(crate) fn spread(&self, duration: Duration, factor: Range<f64>) -> Duration {
        duration.mul_f64(self.draw(|rng| rng.random_range(factor)))
    }

    /// A new boot id.
    pub(crate) fn boot_id(&self) -> BootId {
        let mut bytes = [0; 16];
        self.draw(|rng| rng.fill_bytes(&mut bytes));
        BootId(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Growing, jittered pauses: 0.2 s doubling up to 15 s, each times 0.5 to 1.
#[derive(Debug)]
pub(crate) struct Backoff {
    chance: Chance,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(chance: &Chance) -> Self {
        Self { chance: chance.clone(), failures: 0 }
    }

    /// How long to wait before the next try.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let full = 0.2 * 2f64.powi(self.failures.min(16) as i32);
        self.failures += 1;
        self.chance.spread(Duration::from_secs_f64(full.min(15.0)), 0.5..1.0)
    }

    /// Something worked: begin again with short pauses.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_within_their_bounds_and_a_seed_repeats_them() {
        let pauses = |seed| {
            let mut backoff = Backoff::new(&Chance::seeded(seed));
            [(); 12].map(|()| backoff.next_pause().as_secs_f64())
        };
        let first = pauses(1);
        assert!((0.1..0.2).contains(&first[0]) && (7.5..15.0).contains(&first[11]), "{first:?}");
        assert_eq!(first, pauses(1));
        assert_ne!(first, pauses(2));
    }

    #[test]
    fn what_is_spread_stays_near_its_value() {
        let (chance, interval) = (Chance::of_the_system(), Duration::from_secs(10));
        for _ in 0..100 {
            assert!((9..=11).contains(&chance.spread(interval, 0.9..1.1).as_secs()));
        }
        assert_ne!(chance.boot_id(), Chance::of_the_system().boot_id());
    }
}
