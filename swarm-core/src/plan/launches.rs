//! Which instant of a schedule is launched, and which are only counted.
//!
//! Of all instants that passed unnoticed (the core was down, the clock jumped), the latest one is launched and the others
//! are counted as missed: an hourly report that slept for a day runs once, not 24 times.

use chrono::TimeDelta;
use swarm_protocol::Timestamp;

use super::cron::CronRule;

/// Missed instants are counted one by one up to here; beyond, the count is a lower bound.
const COUNT_MAX: u64 = 10_000;

/// An instant to launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The instant.
    pub nominal_at: Timestamp,
    /// How many earlier instants passed unlaunched; a lower bound above 10000.
    pub missed: u64,
}

/// The launch due at `now`, when everything up to `considered_until` is settled.
#[must_use]
pub fn due(rule: &CronRule, considered_until: Timestamp, now: Timestamp) -> Option<Due> {
    let mut latest = rule.next_after(considered_until).filter(|first| *first <= now)?;
    let mut missed = 0;
    while let Some(next) = rule.next_after(latest).filter(|next| *next <= now) {
        if missed == COUNT_MAX {
            return Some(Due { nominal_at: latest_before(rule, latest, now), missed });
        }
        latest = next;
        missed += 1;
    }
    Some(Due { nominal_at: latest, missed })
}

/// The last instant in `[known, now]`, looked for from `now` backwards in windows that double; `known` is an instant.
fn latest_before(rule: &CronRule, known: Timestamp, now: Timestamp) -> Timestamp {
    let mut window = TimeDelta::minutes(1);
    let mut from = now - window;
    while from > known {
        if let Some(first) = rule.next_after(from).filter(|first| *first <= now) {
            // The former, half as long window was empty, so few instants follow.
            let after = std::iter::successors(Some(first), |at| rule.next_after(*at).filter(|next| *next <= now));
            return after.last().unwrap_or(first);
        }
        window = window * 2;
        from = now - window;
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn rule(text: &str) -> CronRule {
        CronRule::parse(text, "UTC").unwrap()
    }

    #[test]
    fn the_latest_instant_is_due_and_the_others_are_missed() {
        let hourly = rule("0 * * * *");
        let since = at("2026-03-01T10:00:00Z");
        assert_eq!(due(&hourly, since, at("2026-03-01T10:59:59.999Z")), None);
        let on_time = Due { nominal_at: at("2026-03-01T11:00:00Z"), missed: 0 };
        assert_eq!(due(&hourly, since, at("2026-03-01T11:00:00Z")), Some(on_time));
        let late = Due { nominal_at: at("2026-03-02T09:00:00Z"), missed: 22 };
        assert_eq!(due(&hourly, since, at("2026-03-02T09:30:00Z")), Some(late));
        assert_eq!(due(&hourly, since, at("2020-01-01T00:00:00Z")), None);
    }

    #[test]
    fn years_of_absence_are_bounded_work_and_still_find_the_latest_instant() {
        let long_ago = at("2000-01-01T00:00:00Z");
        let found = due(&rule("* * * * *"), long_ago, at("2026-03-02T09:30:30Z")).unwrap();
        assert_eq!(found, Due { nominal_at: at("2026-03-02T09:30:00Z"), missed: COUNT_MAX });
        let found = due(&rule("*/30 3 * * *"), long_ago, at("2026-03-02T02:30:30Z")).unwrap();
        assert_eq!(found.nominal_at, at("2026-03-01T03:30:00Z"));
    }
}
