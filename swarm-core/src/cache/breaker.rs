//! When a line to Redis counts as down, and how long it is left alone then. No I/O; time comes as an argument.

use std::time::Duration;

/// Answers in a row that may come too late before the line counts as down: a busy machine is late now and then.
const LATE_MAX: u32 = 3;
/// The pause before the second try; it doubles with each that fails.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause: so soon after its return, at the latest, Redis is used again.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// One line to Redis.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    late: u32,
    failures: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Not tried yet.
    New {
        since_ms: u64,
    },
    Up,
    Down {
        since_ms: u64,
        reason: String,
    },
}

/// What is worth an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// It is up; it was down for so long, if it ever was tried before.
    Up { after_ms: Option<u64> },
    /// It is down.
    Down,
}

impl Breaker {
    /// Not tried yet.
    pub(super) fn new(now_ms: u64) -> Self {
        Self { state: State::New { since_ms: now_ms }, late: 0, failures: 0 }
    }

    /// It was connected.
    pub(super) fn up(&mut self, now_ms: u64) -> Option<Change> {
        (self.late, self.failures) = (0, 0);
        match std::mem::replace(&mut self.state, State::Up) {
            State::Up => None,
            State::New { .. } => Some(Change::Up { after_ms: None }),
            State::Down { since_ms, .. } => Some(Change::Up { after_ms: Some(now_ms.saturating_sub(since_ms)) }),
        }
    }

    /// It broke, or could not be connected. The first reason of a spell is replaced by later ones: they tell how it is now.
    pub(super) fn down(&mut self, now_ms: u64, reason: String) -> Option<Change> {
        (self.late, self.failures) = (0, self.failures.saturating_add(1));
        let (since_ms, change) = match self.state {
            State::Down { since_ms, .. } => (since_ms, None),
            State::New { since_ms } => (since_ms, Some(Change::Down)),
            State::Up => (now_ms, Some(Change::Down)),
        };
        self.state = State::Down { since_ms, reason };
        change
    }

    /// An answer came in time.
    pub(super) fn in_time(&mut self) {
        self.late = 0;
    }

    /// An answer did not; true when the line is to be given up.
    pub(super) fn late(&mut self) -> bool {
        self.late += 1;
        self.late >= LATE_MAX
    }

    /// How long it is left alone after the last failure; `jitter` is between 0 and 1.
    pub(super) fn pause(&self, jitter: f64) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        (PAUSE_MIN * (1 << doublings)).min(PAUSE_MAX).mul_f64(0.5 + jitter / 2.0)
    }

    /// Since when it is down, in ms of the clock, and why; none while it is up.
    pub(super) fn trouble(&self) -> Option<(u64, &str)> {
        match &self.state {
            State::Up => None,
            State::New { since_ms } => Some((*since_ms, "not reached yet")),
            State::Down { since_ms, reason } => Some((*since_ms, reason)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spell_is_one_change_each_way_and_keeps_its_beginning() {
        let mut line = Breaker::new(5);
        assert_eq!(line.trouble(), Some((5, "not reached yet")));
        assert_eq!(line.down(10, "refused".into()), Some(Change::Down));
        assert_eq!(line.down(20, "timed out".into()), None);
        assert_eq!(line.trouble(), Some((5, "timed out")));
        assert_eq!(line.up(30), Some(Change::Up { after_ms: Some(25) }));
        assert_eq!((line.up(31), line.trouble()), (None, None));
        assert_eq!(line.down(40, "broken".into()), Some(Change::Down));
        assert_eq!(line.trouble(), Some((40, "broken")));
        assert_eq!(Breaker::new(0).up(9), Some(Change::Up { after_ms: None }), "nothing was wrong");
    }

    #[test]
    fn late_answers_count_in_a_row_only() {
        let mut line = Breaker::new(0);
        line.up(0);
        assert!(!line.late() && !line.late());
        line.in_time();
        assert!(!line.late() && !line.late() && line.late());
    }

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew_once_it_was_up() {
        let mut line = Breaker::new(0);
        let mut pauses = Vec::new();
        for _ in 0..40 {
            line.down(0, String::new());
            pauses.push(line.pause(1.0).as_millis());
        }
        assert_eq!(pauses[..6], [100, 200, 400, 800, 1600, 2000]);
        assert_eq!(pauses[39], 2000);
        assert_eq!(line.pause(0.0).as_millis(), 1000, "cores do not all come back at once");
        line.up(1);
        line.down(2, String::new());
        assert_eq!(line.pause(1.0).as_millis(), 100);
    }
}
