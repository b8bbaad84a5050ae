//! The state machine of a task, drawn once. A job's state is derived from its tasks and never stored beside them.
//!
//! ```text
//!            Assign                Start
//!  Waiting ─────────▶ Assigned ─────────▶ Started
//!    ▲  │               │   │                │
//!    │  │ Cancel  Recall│   └──── End ───────┤
//!    │  ▼               │                    │ retry   ┌───────┐
//!    └──┼───────────────┴──◀─────────────────┴────────▶│ Ended │
//!       └─────────────────────────────────────────────▶└───────┘
//! ```

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{AttemptNo, WorkerId};
use crate::outcome::{Outcome, OutcomeKind};

/// Where a task stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskState {
    /// Nothing of it runs; the next attempt will carry this number.
    Waiting {
        /// 1 for a task that never ran.
        next_attempt: AttemptNo,
    },
    /// Committed to a worker, not known to have started.
    Assigned {
        /// The worker.
        worker: WorkerId,
        /// The current attempt.
        attempt: AttemptNo,
    },
    /// Its container started.
    Started {
        /// The worker.
        worker: WorkerId,
        /// The current attempt.
        attempt: AttemptNo,
    },
    /// Final.
    Ended(Outcome),
}

/// What can happen to a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskEvent {
    /// The dispatcher chose a worker.
    Assign {
        /// The worker.
        worker: WorkerId,
        /// Must be the next attempt's number.
        attempt: AttemptNo,
    },
    /// The worker gave it back unstarted.
    Recall {
        /// Must be the current attempt.
        attempt: AttemptNo,
    },
    /// The worker reported the container's start.
    Start {
        /// Must be the current attempt.
        attempt: AttemptNo,
    },
    /// The attempt ended.
    End {
        /// Must be the current attempt.
        attempt: AttemptNo,
        /// How.
        outcome: Outcome,
        /// Whether another attempt follows.
        retry: bool,
    },
    /// The job was cancelled while the task waited.
    Cancel,
}

/// A move the diagram does not draw: a late, doubled or forged report. It changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a task that is {state} takes no `{event}`")]
pub struct IllegalMove {
    /// The state it was in.
    pub state: String,
    /// What was tried.
    pub event: String,
}

impl TaskState {
    /// The one place a task changes state; a move the diagram does not draw is refused.
    ///
    /// # Errors
    /// [`IllegalMove`] when the event does not fit the state or names another attempt than the current one.
    pub fn apply(self, event: TaskEvent) -> Result<Self, IllegalMove> {
        let refused = || IllegalMove { state: format!("{self:?}"), event: format!("{event:?}") };
        match (&self, &event) {
            (Self::Waiting { next_attempt }, TaskEvent::Assign { worker, attempt }) if next_attempt == attempt => {
                Ok(Self::Assigned { worker: *worker, attempt: *attempt })
            }
            (Self::Waiting { .. }, TaskEvent::Cancel) => Ok(Self::Ended(Outcome::Cancelled)),
            (Self::Assigned { attempt, .. }, TaskEvent::Recall { attempt: named }) if attempt == named => {
                Ok(Self::Waiting { next_attempt: next(*attempt).ok_or_else(refused)? })
            }
            (Self::Assigned { worker, attempt }, TaskEvent::Start { attempt: named }) if attempt == named => {
                Ok(Self::Started { worker: *worker, attempt: *attempt })
            }
            (
                Self::Assigned { attempt, .. } | Self::Started { attempt, .. },
                TaskEvent::End { attempt: named, outcome, retry },
            ) if attempt == named => match (retry, next(*attempt)) {
                (true, Some(next_attempt)) => Ok(Self::Waiting { next_attempt }),
                _ => Ok(Self::Ended(outcome.clone())),
            },
            _ => Err(refused()),
        }
    }
}

/// The number after `attempt`; `None` when the 65,535 of them are spent.
fn next(attempt: AttemptNo) -> Option<AttemptNo> {
    attempt.checked_add(1)
}

/// A job's state, derived from its tasks' counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Held by the hibernator until its start time.
    Delayed,
    /// No task is live and at least one waits.
    Waiting,
    /// At least one task is assigned or started.
    Running,
    /// Every task succeeded.
    Succeeded,
    /// Every task ended, at least one of them neither well nor by cancelling.
    Failed,
    /// Every task ended and the job was cancelled.
    Cancelled,
}

impl JobState {
    /// Whether nothing of the job can change any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The word used in JSON and on screens.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delayed => "delayed",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Every state, for tables and tests.
    pub const ALL: [Self; 6] =
        [Self::Delayed, Self::Waiting, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled];

    /// The state written as `word`, if there is one.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

impl std::fmt::Display for JobState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// How many tasks of a job stand where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskCounts {
    /// All tasks of the job.
    pub total: u64,
    /// Waiting, delayed ones included.
    pub waiting: u64,
    /// Assigned or started.
    pub live: u64,
    /// Ended well.
    pub succeeded: u64,
    /// Ended otherwise, cancelled ones not included.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
}

impl TaskCounts {
    /// The job's state. `delayed` says that its start time has not come.
    #[must_use]
    pub const fn job_state(&self, delayed: bool) -> JobState {
        if self.live > 0 {
            JobState::Running
        } else if self.waiting > 0 {
            if delayed { JobState::Delayed } else { JobState::Waiting }
        } else if self.failed > 0 {
            JobState::Failed
        } else if self.cancelled > 0 {
            JobState::Cancelled
        } else {
            JobState::Succeeded
        }
    }

    /// Counts `tasks` more tasks as ended with `kind`.
    pub fn add_ended(&mut self, kind: OutcomeKind, tasks: u64) {
        match kind {
            OutcomeKind::Succeeded => self.succeeded += tasks,
            OutcomeKind::Cancelled => self.cancelled += tasks,
            _ => self.failed += tasks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every state × every event: the drawn moves happen, all others are refused.
    #[test]
    fn only_the_drawn_moves_are_made() {
        let worker = WorkerId(1);
        let lost = Outcome::Lost { reason: crate::LossReason::Engine, detail: String::new() };
        let states = [
            TaskState::Waiting { next_attempt: 2 },
            TaskState::Assigned { worker, attempt: 2 },
            TaskState::Started { worker, attempt: 2 },
            TaskState::Ended(Outcome::Succeeded),
        ];
        let events = |attempt| {
            [
                TaskEvent::Assign { worker, attempt },
                TaskEvent::Recall { attempt },
                TaskEvent::Start { attempt },
                TaskEvent::End { attempt, outcome: Outcome::Succeeded, retry: false },
                TaskEvent::End { attempt, outcome: lost.clone(), retry: true },
            ]
        };
        let next = Some(TaskState::Waiting { next_attempt: 3 });
        let done = Some(TaskState::Ended(Outcome::Succeeded));
        let drawn = [
            [Some(TaskState::Assigned { worker, attempt: 2 }), None, None, None, None],
            [None, next.clone(), Some(TaskState::Started { worker, attempt: 2 }), done.clone(), next.clone()],
            [None, None, None, done, next],
            [None, None, None, None, None],
        ];
        for (state, row) in states.iter().zip(drawn) {
            for (event, expected) in events(2).into_iter().zip(row) {
                assert_eq!(state.clone().apply(event).ok(), expected);
            }
            for stale in [1, 3] {
                for event in events(stale) {
                    assert!(state.clone().apply(event).is_err(), "{state:?} took an event of attempt {stale}");
                }
            }
        }
        assert_eq!(states[0].clone().apply(TaskEvent::Cancel), Ok(TaskState::Ended(Outcome::Cancelled)));
        for state in &states[1..] {
            assert!(state.clone().apply(TaskEvent::Cancel).is_err());
        }
    }

    #[test]
    fn the_last_attempt_number_ends_the_task() {
        let state = TaskState::Started { worker: WorkerId(1), attempt: AttemptNo::MAX };
        let end = TaskEvent::End { attempt: AttemptNo::MAX, outcome: Outcome::TimedOut, retry: true };
        assert_eq!(state.apply(end), Ok(TaskState::Ended(Outcome::TimedOut)));
    }
}
