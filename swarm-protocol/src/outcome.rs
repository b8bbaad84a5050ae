//! How an attempt, and with it a task, can end.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The end of an attempt. Whose fault it was decides which retry budget it draws on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The container exited with 0 and every declared output was collected.
    Succeeded,
    /// The container exited with another code; 128 + n means signal n ended it.
    Failed {
        /// The container's exit code, 1–255.
        exit_code: i32,
    },
    /// The kernel killed it for memory.
    OutOfMemory {
        /// The container's exit code, 137 as a rule.
        exit_code: i32,
    },
    /// It ran longer than the job's `timeout`.
    TimedOut,
    /// Its owner or an admin cancelled it.
    Cancelled,
    /// The container could not be started through the job's own fault: no such command, user, directory or image.
    Refused {
        /// What was refused and what to change.
        reason: String,
    },
    /// The container exited with 0 but a declared output is absent or too large.
    OutputMissing {
        /// Which output, and why.
        reason: String,
    },
    /// The infrastructure failed, not the job.
    Lost {
        /// What failed.
        reason: LossReason,
        /// Details for people.
        detail: String,
    },
    /// It wrote more than its disk limit and was killed.
    OutOfDisk {
        /// How much it had written, and the limit.
        reason: String,
    },
}

/// What part of the infrastructure cost an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossReason {
    /// The lease ended without a renewal: the worker was silent.
    LeaseExpired,
    /// The worker came back with a new boot id and without the container.
    WorkerRestarted,
    /// The container engine failed, hung or lost the container.
    Engine,
    /// A blob could not be fetched or stored.
    Transfer,
    /// The worker did not start it within the start deadline.
    StartDeadline,
    /// An operator declared the worker lost; the container may still be running.
    DeclaredLost,
}

/// An outcome without its data: what lists, filters and databases use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OutcomeKind {
    /// See [`Outcome::Succeeded`].
    Succeeded,
    /// See [`Outcome::Failed`].
    Failed,
    /// See [`Outcome::OutOfMemory`].
    OutOfMemory,
    /// See [`Outcome::TimedOut`].
    TimedOut,
    /// See [`Outcome::Cancelled`].
    Cancelled,
    /// See [`Outcome::Refused`].
    Refused,
    /// See [`Outcome::OutputMissing`].
    OutputMissing,
    /// See [`Outcome::Lost`].
    Lost,
    /// See [`Outcome::OutOfDisk`].
    OutOfDisk,
}

impl OutcomeKind {
    /// Every kind, for tables and tests.
    pub const ALL: [Self; 9] = [
        Self::Succeeded,
        Self::Failed,
        Self::OutOfMemory,
        Self::TimedOut,
        Self::Cancelled,
        Self::Refused,
        Self::OutputMissing,
        Self::Lost,
        Self::OutOfDisk,
    ];

    /// The word used in JSON, databases and on screens.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::OutOfMemory => "out-of-memory",
            Self::TimedOut => "timed-out",
            Self::Cancelled => "cancelled",
            Self::Refused => "refused",
            Self::OutputMissing => "output-missing",
            Self::Lost => "lost",
            Self::OutOfDisk => "out-of-disk",
        }
    }

    /// The kind written as `word`, if there is one.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

impl std::fmt::Display for OutcomeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl LossReason {
    /// Every reason, for tables and tests.
    pub const ALL: [Self; 6] = [
        Self::LeaseExpired,
        Self::WorkerRestarted,
        Self::Engine,
        Self::Transfer,
        Self::StartDeadline,
        Self::DeclaredLost,
    ];

    /// The word used in JSON and databases.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LeaseExpired => "lease-expired",
            Self::WorkerRestarted => "worker-restarted",
            Self::Engine => "engine",
            Self::Transfer => "transfer",
            Self::StartDeadline => "start-deadline",
            Self::DeclaredLost => "declared-lost",
        }
    }
}

impl Outcome {
    /// The outcome without its data.
    #[must_use]
    pub const fn kind(&self) -> OutcomeKind {
        match self {
            Self::Succeeded => OutcomeKind::Succeeded,
            Self::Failed { .. } => OutcomeKind::Failed,
            Self::OutOfMemory { .. } => OutcomeKind::OutOfMemory,
            Self::TimedOut => OutcomeKind::TimedOut,
            Self::Cancelled => OutcomeKind::Cancelled,
            Self::Refused { .. } => OutcomeKind::Refused,
            Self::OutputMissing { .. } => OutcomeKind::OutputMissing,
            Self::Lost { .. } => OutcomeKind::Lost,
            Self::OutOfDisk { .. } => OutcomeKind::OutOfDisk,
        }
    }

    /// The container's exit code, where it is known to have exited by itself.
    #[must_use]
    pub const fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Succeeded | Self::OutputMissing { .. } => Some(0),
            Self::Failed { exit_code } | Self::OutOfMemory { exit_code } => Some(*exit_code),
            _ => None,
        }
    }

    /// The reason in words, where the kind alone does not say it; `lost` begins with its [`LossReason`] and a colon.
    #[must_use]
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::Refused { reason } | Self::OutputMissing { reason } | Self::OutOfDisk { reason } => {
                Some(reason.clone())
            }
            Self::Lost { reason, detail } => Some(format!("{}: {detail}", reason.as_str())),
            _ => None,
        }
    }

    /// Puts an outcome together again from what [`kind`](Self::kind), [`exit_code`](Self::exit_code) and
    /// [`detail`](Self::detail) gave.
    #[must_use]
    pub fn from_parts(kind: OutcomeKind, exit_code: Option<i32>, detail: Option<String>) -> Self {
        let detail = detail.unwrap_or_default();
        match kind {
            OutcomeKind::Succeeded => Self::Succeeded,
            OutcomeKind::Failed => Self::Failed { exit_code: exit_code.unwrap_or(1) },
            OutcomeKind::OutOfMemory => Self::OutOfMemory { exit_code: exit_code.unwrap_or(137) },
            OutcomeKind::TimedOut => Self::TimedOut,
            OutcomeKind::Cancelled => Self::Cancelled,
            OutcomeKind::Refused => Self::Refused { reason: detail },
            OutcomeKind::OutputMissing => Self::OutputMissing { reason: detail },
            OutcomeKind::OutOfDisk => Self::OutOfDisk { reason: detail },
            OutcomeKind::Lost => {
                let (word, rest) = detail.split_once(": ").unwrap_or(("engine", &detail));
                let reason = LossReason::ALL.into_iter().find(|reason| reason.as_str() == word);
                Self::Lost { reason: reason.unwrap_or(LossReason::Engine), detail: rest.to_owned() }
            }
        }
    }

    /// Whether the infrastructure failed rather than the job: drawn from the `lost` retry budget.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_the_whole_again() {
        let all = [
            Outcome::Succeeded,
            Outcome::Failed { exit_code: 3 },
            Outcome::OutOfMemory { exit_code: 137 },
            Outcome::TimedOut,
            Outcome::Cancelled,
            Outcome::Refused { reason: "no command".into() },
            Outcome::OutputMissing { reason: "/out/a: absent".into() },
            Outcome::OutOfDisk { reason: "11 GiB of 10 GiB".into() },
            Outcome::Lost { reason: LossReason::LeaseExpired, detail: "worker a: silent".into() },
        ];
        for outcome in all {
            assert_eq!(Outcome::from_parts(outcome.kind(), outcome.exit_code(), outcome.detail()), outcome);
            assert_eq!(OutcomeKind::parse(outcome.kind().as_str()), Some(outcome.kind()));
        }
    }
}
