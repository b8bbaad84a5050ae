//! What the exit codes mean; a contract with scripts.

use std::process::ExitCode;

/// Why the program ended as it did. `run` and `wait` end with the container's own code instead; there, whatever keeps
/// them from having one is [`Exit::NoCode`], [`Exit::NotInvocable`], [`Exit::NoCommand`] or [`Exit::TimedOut`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It worked.
    Ok = 0,
    /// Anything that has no code of its own.
    Error = 1,
    /// The command line or the job's description is wrong.
    Usage = 2,
    /// There is no such job, image, schedule or file.
    NotFound = 3,
    /// Not logged in, or not allowed.
    Auth = 4,
    /// It contradicts what is there already.
    Conflict = 5,
    /// No worker could ever run it.
    CannotPlace = 6,
    /// The infrastructure lost the job.
    Lost = 7,
    /// The job was cancelled.
    Cancelled = 8,
    /// No core answers.
    Unreachable = 9,
    /// The time given was over before the job ended, or the job ran into its own timeout.
    TimedOut = 124,
    /// `run` or `wait`: no container's code, because something else failed.
    NoCode = 125,
    /// `run` or `wait`: the container could not be started.
    NotInvocable = 126,
    /// `run` or `wait`: the command is not in the image.
    NoCommand = 127,
    /// `run` was detached by Ctrl-C; the job goes on.
    Detached = 130,
}

impl Exit {
    /// Every code, in order.
    pub const ALL: [Self; 15] = [
        Self::Ok,
        Self::Error,
        Self::Usage,
        Self::NotFound,
        Self::Auth,
        Self::Conflict,
        Self::CannotPlace,
        Self::Lost,
        Self::Cancelled,
        Self::Unreachable,
        Self::TimedOut,
        Self::NoCode,
        Self::NotInvocable,
        Self::NoCommand,
        Self::Detached,
    ];

    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// A stable word for programs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Usage => "usage",
            Self::NotFound => "not-found",
            Self::Auth => "auth",
            Self::Conflict => "conflict",
            Self::CannotPlace => "cannot-place",
            Self::Lost => "lost",
            Self::Cancelled => "cancelled",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed-out",
            Self::NoCode => "no-code",
            Self::NotInvocable => "not-invocable",
            Self::NoCommand => "no-command",
            Self::Detached => "detached",
        }
    }

    /// What it means, in a sentence.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "it worked",
            Self::Error => "an error without a code of its own",
            Self::Usage => "the command line or the job's description is wrong",
            Self::NotFound => "there is no such job, image, schedule or file",
            Self::Auth => "not logged in, or not allowed",
            Self::Conflict => "it contradicts what is there already",
            Self::CannotPlace => "no worker could ever run it",
            Self::Lost => "the infrastructure lost the job",
            Self::Cancelled => "the job was cancelled",
            Self::Unreachable => "no core answers",
            Self::TimedOut => "the job, or the patience of `wait --timeout`, ran out of time",
            Self::NoCode => "run, wait: no container's code, because something else failed (see standard error)",
            Self::NotInvocable => "run, wait: the container could not be started",
            Self::NoCommand => "run, wait: the command is not in the image",
            Self::Detached => "run: detached by Ctrl-C; the job goes on",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
