//! Limits on guessing: a token bucket per key, and growing pauses after failed logins. Time is passed in, in ms of a
//! monotonic clock.

use std::collections::HashMap;
use std::hash::Hash;

/// How often something may be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tries at once from rest, at least 1.
    pub burst: u32,
    /// One further try becomes due after this time, in ms.
    pub interval_ms: u64,
}

/// Refused; the next try is due in `retry_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many attempts; try again in {} s", retry_ms.div_ceil(1000))]
pub struct Limited {
    /// Time until a try will be let through, in ms.
    pub retry_ms: u64,
}

/// A token bucket per key, in its form as a virtual schedule: per key only the time at which its bucket will be full.
///
/// Source: ITU-T I.371, generic cell rate algorithm (virtual scheduling). The map is bounded; when it is full, keys
/// whose buckets are full go first, then those that are nearest to it. A stranger flooding it with keys thus pushes out
/// keys tried less hard than his own, and not one that is being guessed at.
#[derive(Debug)]
pub struct Limiter<K> {
    rate: Rate,
    keys_max: usize,
    /// When the key's bucket is full again, in ms.
    full_at: HashMap<K, u64>,
}

impl<K: Hash + Eq + Clone> Limiter<K> {
    /// A limiter that remembers at most `keys_max` keys (at least 1).
    #[must_use]
    pub fn new(rate: Rate, keys_max: usize) -> Self {
        Self { rate, keys_max: keys_max.max(1), full_at: HashMap::new() }
    }

    /// Takes one try of `key` at `now_ms`.
    ///
    /// # Errors
    /// [`Limited`] when the bucket is empty; the refused try costs nothing.
    pub fn take(&mut self, key: &K, now_ms: u64) -> Result<(), Limited> {
        let full_at = self.full_at.get(key).copied().unwrap_or(0).max(now_ms);
        let room_ms = self.rate.interval_ms.saturating_mul(u64::from(self.rate.burst.max(1) - 1));
        let debt_ms = full_at - now_ms;
        if debt_ms > room_ms {
            return Err(Limited { retry_ms: debt_ms - room_ms });
        }
        if self.full_at.len() >= self.keys_max && !self.full_at.contains_key(key) {
            self.evict(now_ms);
        }
        self.full_at.insert(key.clone(), full_at.saturating_add(self.rate.interval_ms));
        Ok(())
    }

    /// Forgets `key`: its bucket is full again, as after a successful login.
    pub fn forget(&mut self, key: &K) {
        self.full_at.remove(key);
    }

    /// How many keys are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.full_at.len()
    }

    /// Whether no key is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.full_at.is_empty()
    }

    /// Makes room for at least one key, by eighths so that the sweep is paid for by many insertions.
    fn evict(&mut self, now_ms: u64) {
        self.full_at.retain(|_, full_at| *full_at > now_ms);
        if self.full_at.len() < self.keys_max {
            return;
        }
        let mut entries: Vec<(u64, K)> = self.full_at.iter().map(|(key, full_at)| (*full_at, key.clone())).collect();
        let surplus = entries.len() - self.keys_max + (self.keys_max / 8).max(1);
        let nth = surplus.min(entries.len()) - 1;
        entries.select_nth_unstable_by_key(nth, |(full_at, _)| *full_at);
        for (_, key) in &entries[..=nth] {
            self.full_at.remove(key);
        }
    }
}

/// Pauses after failed logins in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lockout {
    /// Failures that cost nothing yet.
    pub free_failures: u32,
    /// The pause after the first failure beyond, in ms; each further one doubles it.
    pub first_ms: u64,
    /// The longest pause, in ms.
    pub longest_ms: u64,
}

impl Default for Lockout {
    /// Five failures free, then 30 s, 60 s, … up to one hour.
    fn default() -> Self {
        Self { free_failures: 5, first_ms: 30_000, longest_ms: 3_600_000 }
    }
}

impl Lockout {
    /// The pause that follows `failures` failures in a row, in ms.
    #[must_use]
    pub fn pause_ms(&self, failures: u32) -> u64 {
        let beyond = failures.saturating_sub(self.free_failures);
        let Some(doublings) = beyond.checked_sub(1) else { return 0 };
        let factor = 1u64.checked_shl(doublings).unwrap_or(u64::MAX);
        self.first_ms.saturating_mul(factor).min(self.longest_ms)
    }

    /// How long a login is still refused at `now_ms`, if the last of `failures` failures was at `failed_at_ms`. Times
    /// may come from the wall clock: one that went back counts as no time passed.
    #[must_use]
    pub fn remaining_ms(&self, failures: u32, failed_at_ms: u64, now_ms: u64) -> u64 {
        self.pause_ms(failures).saturating_sub(now_ms.saturating_sub(failed_at_ms))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { burst: 3, interval_ms: 1000 };

    #[test]
    fn a_burst_passes_then_one_per_interval() {
        let mut limiter = Limiter::new(RATE, 10);
        for _ in 0..3 {
            assert_eq!(limiter.take(&"ada", 5000), Ok(()));
        }
        assert_eq!(limiter.take(&"ada", 5000), Err(Limited { retry_ms: 1000 }));
        assert_eq!(limiter.take(&"ada", 5400), Err(Limited { retry_ms: 600 }));
        assert_eq!(limiter.take(&"bob", 5400), Ok(()), "keys do not share a bucket");
        assert_eq!(limiter.take(&"ada", 6000), Ok(()));
        assert!(limiter.take(&"ada", 6999).is_err());
        assert_eq!(
            (0..9).filter(|_| limiter.take(&"ada", 60_000).is_ok()).count(),
            3,
            "rest refills to the burst only"
        );
        limiter.forget(&"ada");
        assert_eq!(limiter.take(&"ada", 60_000), Ok(()));
        assert_eq!(Limited { retry_ms: 1001 }.to_string(), "too many attempts; try again in 2 s");
    }

    #[test]
    fn a_flood_of_keys_is_bounded_and_spares_the_one_under_attack() {
        let mut limiter = Limiter::new(RATE, 100);
        for _ in 0..3 {
            limiter.take(&u32::MAX, 0).unwrap();
        }
        for stranger in 0..10_000 {
            limiter.take(&stranger, 1).unwrap();
            assert!(limiter.len() <= 100);
        }
        assert!(limiter.take(&u32::MAX, 1).is_err(), "the key under attack is still remembered");
    }

    #[test]
    fn full_buckets_go_first() {
        let mut limiter = Limiter::new(RATE, 2);
        limiter.take(&1, 0).unwrap();
        limiter.take(&2, 5000).unwrap();
        limiter.take(&3, 5000).unwrap();
        assert_eq!(limiter.len(), 2);
        assert!(!limiter.is_empty());
        assert_eq!((0..3).filter(|_| limiter.take(&2, 5000).is_ok()).count(), 2, "2 was kept with its debt");
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let lockout = Lockout::default();
        assert_eq!(
            [0, 5, 6, 7, 8, 12, 13, 14, 100, u32::MAX].map(|failures| lockout.pause_ms(failures) / 1000),
            [0, 0, 30, 60, 120, 1920, 3600, 3600, 3600, 3600]
        );
        assert_eq!(lockout.remaining_ms(6, 1_000_000, 1_010_000), 20_000);
        assert_eq!(lockout.remaining_ms(6, 1_000_000, 1_030_000), 0);
        assert_eq!(lockout.remaining_ms(6, 1_000_000, 900_000), 30_000, "a clock that went back frees nobody");
        let never = Lockout { free_failures: u32::MAX, ..lockout };
        assert_eq!(never.pause_ms(u32::MAX), 0);
    }

    proptest! {
        #[test]
        fn never_more_than_burst_plus_elapsed(
            burst in 0u32..6, interval_ms in 1u64..2000, steps in prop::collection::vec(0u64..1500, 1..200),
        ) {
            let mut limiter = Limiter::new(Rate { burst, interval_ms }, 4);
            let (mut now, mut passed) = (7u64, 0u64);
            for step in steps {
                now += step;
                match limiter.take(&(), now) {
                    Ok(()) => passed += 1,
                    Err(limited) => {
                        let mut later = Limiter { full_at: limiter.full_at.clone(), ..Limiter::new(limiter.rate, 4) };
                        prop_assert!(later.take(&(), now + limited.retry_ms - 1).is_err());
                        prop_assert!(later.take(&(), now + limited.retry_ms).is_ok());
                    }
                }
                prop_assert!(passed <= u64::from(burst.max(1)) + (now - 7) / interval_ms);
            }
        }
    }
}
