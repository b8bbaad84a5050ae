//! Whether a task runs again, and when. Pure.

use chrono::TimeDelta;
use swarm_protocol::{Outcome, Timestamp};

use crate::messages::Expected;
use crate::store::Next;

/// Backoff before the first retry; doubled for each further one.
const BACKOFF_FIRST_MS: u64 = 1_000;
/// Backoff never grows beyond this.
const BACKOFF_MAX_MS: u64 = 5 * 60 * 1000;

/// When what waits until `not_before` runs again, looked at `now`: a clock that was set back since must not make it wait
/// for longer than any backoff.
#[must_use]
pub fn due(not_before: Timestamp, now: Timestamp) -> Timestamp {
    not_before.min(now + delta_ms(BACKOFF_MAX_MS))
}

/// What follows `outcome`. Losses and own failures draw on budgets of their own; a refusal or a cancel is never
/// retried, for it would only repeat; an at-most-once task is not retried once it may have run (invariant I7).
pub fn after(expected: &Expected, outcome: &Outcome, may_have_run: bool, now: Timestamp) -> Next {
    let spec = &expected.job.spec;
    let (used, budget) = match outcome {
        Outcome::Succeeded | Outcome::Cancelled | Outcome::Refused { .. } => return Next::Final,
        Outcome::Lost { .. } => (expected.losses, spec.retries.lost),
        Outcome::Failed { .. }
        | Outcome::OutOfMemory { .. }
        | Outcome::OutOfDisk { .. }
        | Outcome::TimedOut
        | Outcome::OutputMissing { .. } => (expected.failures, spec.retries.failed),
    };
    let ran = may_have_run || !outcome.is_lost();
    if used >= budget || (spec.at_most_once && ran) {
        return Next::Final;
    }
    Next::Retry { not_before: now + delta_ms(backoff_ms(used)) }
}

/// How long a task waits that its worker has just given back unstarted: not at all the first time, and longer each time
/// after that, or workers that refuse everything would be offered it in a spin.
pub fn after_recall(expected: &Expected) -> TimeDelta {
    let earlier = expected.attempt.attempt.saturating_sub(1);
    let recalls = earlier.saturating_sub(expected.losses).saturating_sub(expected.failures);
    recalls.checked_sub(1).map_or(TimeDelta::zero(), |repeated| delta_ms(backoff_ms(repeated)))
}

fn backoff_ms(used: u16) -> u64 {
    BACKOFF_FIRST_MS.saturating_mul(1 << used.min(20)).min(BACKOFF_MAX_MS)
}

/// `ms` milliseconds as a time difference.
fn delta_ms(ms: u64) -> TimeDelta {
    TimeDelta::milliseconds(i64::try_from(ms).unwrap_or(i64::MAX / 2))
}

#[cfg(test)]
mod tests {
    use swarm_protocol::LossReason;

    use super::*;
    use crate::harvester::tests::expected;

    fn lost() -> Outcome {
        Outcome::Lost { reason: LossReason::Engine, detail: String::new() }
    }

    fn decide(change: impl FnOnce(&mut Expected), outcome: &Outcome, may_have_run: bool) -> bool {
        let mut expected = expected(1, 1);
        change(&mut expected);
        after(&expected, outcome, may_have_run, Timestamp::default()) != Next::Final
    }

    #[test]
    fn each_fault_draws_on_its_own_budget() {
        assert!(decide(|_| (), &lost(), true));
        assert!(!decide(|e| e.losses = 2, &lost(), true));
        assert!(!decide(|_| (), &Outcome::Failed { exit_code: 1 }, false), "0 retries of own failures by default");
        let allow = |e: &mut Expected| std::sync::Arc::make_mut(&mut e.job).spec.retries.failed = 1;
        assert!(decide(allow, &Outcome::TimedOut, false));
        assert!(decide(allow, &Outcome::OutOfMemory { exit_code: 137 }, false));
        assert!(!decide(allow, &Outcome::Refused { reason: String::new() }, false));
        assert!(!decide(allow, &Outcome::Cancelled, false));
        assert!(!decide(allow, &Outcome::Succeeded, false));
    }

    #[test]
    fn an_at_most_once_task_is_not_retried_once_it_may_have_run() {
        let once = |e: &mut Expected| std::sync::Arc::make_mut(&mut e.job).spec.at_most_once = true;
        assert!(!decide(once, &lost(), true));
        assert!(decide(once, &lost(), false), "it provably never ran");
    }

    #[test]
    fn only_what_was_given_back_before_waits_after_a_recall() {
        let pause_ms = |attempt, losses| {
            let given_back = Expected { losses, ..expected(1, attempt) };
            after_recall(&given_back).num_milliseconds()
        };
        assert_eq!([1, 2, 3, 4].map(|attempt| pause_ms(attempt, 0)), [0, 1_000, 2_000, 4_000]);
        assert_eq!(pause_ms(3, 2), 0, "the earlier attempts ran");
        assert_eq!(pause_ms(u16::MAX, 0), 300_000);
    }

    #[test]
    fn backoff_doubles_up_to_five_minutes() {
        assert_eq!([0, 1, 2, 8, 9, u16::MAX].map(backoff_ms), [1_000, 2_000, 4_000, 256_000, 300_000, 300_000]);
    }
}
