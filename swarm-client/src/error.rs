//! What can go wrong between a client and a core.

use std::path::PathBuf;

use swarm_protocol::Digest;
use swarm_protocol::logs::LogDecodeError;
use swarm_protocol::problem::Problem;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address cannot be used.
    #[error("cannot use the address `{url}`: {reason}")]
    Address {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No answer, or one that broke off.
    #[error("no answer from {url}")]
    Unreachable {
        /// The core's address.
        url: String,
        /// What the network said.
        source: reqwest::Error,
    },
    /// The connection stands but nothing moves.
    #[error("{url} stopped taking bytes for {silent_s} s")]
    Stalled {
        /// The core's address.
        url: String,
        /// How long nothing moved, in seconds.
        silent_s: u64,
    },
    /// The core understood and refused.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The answer is not one of this API.
    #[error("{url} gave an answer that is not understood: {what}")]
    Protocol {
        /// The core's address.
        url: String,
        /// What was wrong.
        what: String,
    },
    /// What came from this byte of a log on is no record.
    #[error("the log cannot be read from byte {at} on")]
    Log {
        /// Where the last whole record ends, or where the reading began.
        at: u64,
        /// What was wrong.
        source: LogDecodeError,
    },
    /// The bytes are not the ones that were promised.
    #[error("expected the bytes of {expected}, got those of {got}")]
    Digest {
        /// What was promised.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// There is no token to send, and none can be had without a login.
    #[error("not logged in")]
    NotLoggedIn,
    /// A file on this machine.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// For instance `read`.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What was to be uploaded could not be read to its end.
    #[error("what was to be sent could not be read")]
    Source(#[source] std::io::Error),
    /// The store of tokens failed; a rotated refresh token may be lost with it.
    #[error("cannot keep the session's tokens")]
    Tokens(#[source] std::io::Error),
}

impl ClientError {
    /// What to try next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Unreachable { .. } => "check that the core runs there, and SWARM_URL or --url",
            Self::Problem(problem) if problem.hint.is_some() => return problem.hint.clone(),
            Self::Problem(problem) if problem.status == 401 => "log in again with `login`",
            Self::NotLoggedIn => "log in with `login`",
            Self::Stalled { .. } | Self::Digest { .. } => "try again; if it stays, look at the core's log",
            Self::Protocol { .. } => {
                "check that the address is that of a core, and that client and core are of one version"
            }
            Self::Log { .. } => "look at the core's log; what comes later may be read with --skip-stdout or --from",
            Self::Address { .. } => {
                "give http://127.0.0.1:PORT, for instance through an SSH tunnel to the core's machine"
            }
            Self::Tokens(_) => "make the credentials file writable, then log in again",
            Self::Problem(_) | Self::Io { .. } | Self::Source(_) => return None,
        };
        Some(text.to_owned())
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Stalled { .. } | Self::Digest { .. } => true,
            Self::Problem(problem) => problem.retryable || matches!(problem.status, 429 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// Whether there is no core at the moment: none answers, or it stops or starts.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
            || self.problem().is_some_and(|problem| matches!(problem.status, 502..=504))
    }

    /// The problem the core stated, if it is one.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        if let Self::Problem(problem) = self { Some(problem) } else { None }
    }

    /// Whether the core answered with this HTTP status.
    #[must_use]
    pub fn is_status(&self, status: u16) -> bool {
        self.problem().is_some_and(|problem| problem.status == status)
    }
}
