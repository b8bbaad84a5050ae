//! Which job is next. A policy turns a candidate into a [`Key`]; the scheduler keeps waiting jobs in an ordered map by
//! key and takes the smallest, so a million waiting jobs cost a look-up of O(log n) and no sorting pass.
//!
//! **Why a key that never changes suffices, even with ageing.** With `r` points per hour, a job of priority `p`
//! (points) queued at `q` has at time `t` the effective priority `e(t) = p + r·(t − q)`. For two jobs
//! `e₁(t) − e₂(t) = (p₁ − r·q₁) − (p₂ − r·q₂)`: `t` cancels, because everybody ages at the same rate. So the order of
//! two waiting jobs is fixed from the moment both wait, and `p − r·q` is a sort key computed once.
//!
//! **Why nothing starves.** A job can only be overtaken by jobs whose `p − r·q` is larger. With `r > 0` that needs
//! `q₂ < q₁ + (p₂ − p₁)/r`: jobs queued later than (priority difference ÷ points per hour) hours never overtake it.

use serde::{Deserialize, Serialize};
use swarm_protocol::ids::JobId;

/// Milliseconds per hour: the scale at which points and queue times meet in whole numbers.
const HOUR_MS: i128 = 3_600_000;

/// What a policy may look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The job; numbers grow in the order of submission.
    pub job: JobId,
    /// Points; higher runs earlier.
    pub priority: i32,
    /// When the job began to wait, in ms on a clock shared by all candidates. A job that waits again after a retry keeps
    /// its first value, or it would lose the age it has earned.
    pub queued_at_ms: u64,
}

/// The place of a candidate in the queue; the smallest is next. Unique per job, and constant while the job waits.
///
/// Keys of different policies must not be mixed: when the policy changes, rebuild the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    // The field order is the comparison order.
    lateness: i128,
    job: JobId,
}

impl Key {
    /// The job this key belongs to.
    #[must_use]
    pub const fn job(&self) -> JobId {
        self.job
    }
}

/// Decides which waiting job is next.
pub trait Policy: Send {
    /// The name used in configuration and shown to people.
    fn name(&self) -> &'static str;

    /// The candidate's place in the queue.
    fn key(&self, candidate: &Candidate) -> Key;
}

/// In the order of submission, whatever the priority.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fifo;

impl Policy for Fifo {
    fn name(&self) -> &'static str {
        "fifo"
    }

    fn key(&self, candidate: &Candidate) -> Key {
        Key { lateness: 0, job: candidate.job }
    }
}

/// Higher priority first; waiting raises it, so nothing starves. Equals go by job number.
#[derive(Debug, Clone, Copy)]
pub struct PriorityAgeing {
    /// How much priority an hour of waiting is worth. With 0 nothing ages, and low priorities may starve.
    pub points_per_hour: u32,
}

impl Policy for PriorityAgeing {
    fn name(&self) -> &'static str {
        "priority-ageing"
    }

    fn key(&self, candidate: &Candidate) -> Key {
        // Both products stay below 2^97, far inside i128.
        let points = i128::from(candidate.priority) * HOUR_MS;
        let aged = i128::from(self.points_per_hour) * i128::from(candidate.queued_at_ms);
        Key { lateness: aged - points, job: candidate.job }
    }
}

/// The policy as chosen in configuration: `{ name = "fifo" }` or `{ name = "priority-ageing", points_per_hour = 60 }`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PolicyConfig {
    /// [`Fifo`].
    Fifo {},
    /// [`PriorityAgeing`].
    PriorityAgeing {
        /// See [`PriorityAgeing::points_per_hour`].
        #[serde(default = "default_points_per_hour")]
        points_per_hour: u32,
    },
}

const fn default_points_per_hour() -> u32 {
    60
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self::PriorityAgeing { points_per_hour: default_points_per_hour() }
    }
}

impl PolicyConfig {
    /// The policy this configuration asks for.
    #[must_use]
    pub fn build(self) -> Box<dyn Policy> {
        match self {
            Self::Fifo {} => Box::new(Fifo),
            Self::PriorityAgeing { points_per_hour } => Box::new(PriorityAgeing { points_per_hour }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn candidate(job: u64, priority: i32, queued_at_ms: u64) -> Candidate {
        Candidate { job: JobId(job), priority, queued_at_ms }
    }

    fn order(policy: &dyn Policy, candidates: &[Candidate]) -> Vec<u64> {
        let queue: BTreeMap<Key, ()> = candidates.iter().map(|candidate| (policy.key(candidate), ())).collect();
        queue.keys().map(|key| key.job().0).collect()
    }

    #[test]
    fn fifo_goes_by_submission_whatever_the_priority() {
        let jobs = [candidate(3, 100, 0), candidate(1, -5, 900), candidate(2, 0, 100)];
        assert_eq!(order(&Fifo, &jobs), [1, 2, 3]);
    }

    #[test]
    fn priority_wins_among_jobs_of_one_age_and_equals_go_by_number() {
        let jobs = [candidate(1, 0, 50), candidate(2, 10, 50), candidate(3, 10, 50), candidate(4, i32::MAX, 50)];
        assert_eq!(order(&PriorityAgeing { points_per_hour: 60 }, &jobs), [4, 2, 3, 1]);
    }

    #[test]
    fn an_hour_of_waiting_is_worth_the_configured_points() {
        let policy = PriorityAgeing { points_per_hour: 60 };
        let old = candidate(1, 0, 0);
        // One hour younger with 60 points more: a tie, which the number decides; one millisecond tips it.
        assert_eq!(order(&policy, &[candidate(2, 60, 3_600_000), old]), [1, 2]);
        assert_eq!(order(&policy, &[candidate(2, 60, 3_599_999), old]), [2, 1]);
        assert_eq!(order(&policy, &[candidate(2, 61, 3_600_000), old]), [2, 1]);
    }

    #[test]
    fn a_low_job_is_overtaken_only_within_its_bound() {
        // One job of priority 0 against one important job (priority 120) arriving every minute, one slot per minute.
        let policy = PriorityAgeing { points_per_hour: 60 };
        let mut queue = BTreeMap::from([(policy.key(&candidate(1, 0, 0)), 0u64)]);
        let bound_minutes = 120 / 60 * 60;
        for minute in 0u64.. {
            assert!(minute <= bound_minutes, "the low job still waits after {bound_minutes} minutes");
            let rival = candidate(minute + 2, 120, minute * 60_000);
            queue.insert(policy.key(&rival), minute);
            let (next, _) = queue.pop_first().unwrap();
            if next.job() == JobId(1) {
                assert_eq!(minute, bound_minutes, "important jobs go first until the bound");
                break;
            }
        }
    }

    #[test]
    fn a_policy_is_chosen_by_name_and_typos_are_refused() {
        let chosen = |text| serde_json::from_str::<PolicyConfig>(text).map(|config| config.build().name());
        assert_eq!(chosen(r#"{"name":"fifo"}"#).unwrap(), "fifo");
        assert_eq!(chosen(r#"{"name":"priority-ageing","points_per_hour":5}"#).unwrap(), "priority-ageing");
        assert!(chosen(r#"{"name":"lifo"}"#).unwrap_err().to_string().contains("fifo"));
        assert!(chosen(r#"{"name":"fifo","points_per_hour":5}"#).is_err());
        assert!(chosen(r#"{"name":"priority-ageing","points":5}"#).is_err());
    }

    proptest! {
        #[test]
        fn the_static_key_orders_like_the_effective_priority_at_any_time(
            rate in 0u32..=u32::MAX, p1: i32, p2: i32, q1 in 0u64..1 << 62, q2 in 0u64..1 << 62, wait in 0u64..1 << 62,
        ) {
            let policy = PriorityAgeing { points_per_hour: rate };
            let now = i128::from(q1.max(q2)) + i128::from(wait);
            let effective = |p: i32, q: u64| i128::from(p) * HOUR_MS + i128::from(rate) * (now - i128::from(q));
            let expected = match effective(p1, q1).cmp(&effective(p2, q2)) {
                Ordering::Greater | Ordering::Equal => Ordering::Less, // job 1 before job 2 on a tie
                Ordering::Less => Ordering::Greater,
            };
            let (one, two) = (policy.key(&candidate(1, p1, q1)), policy.key(&candidate(2, p2, q2)));
            prop_assert_eq!(one.cmp(&two), expected);
        }
    }
}
