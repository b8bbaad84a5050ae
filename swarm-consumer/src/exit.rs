//! What the exit codes mean; a contract with scripts.

use std::process::ExitCode;

/// Why the program ended as it did. `run` and `wait` end with the container's own code instead, or with a code that
/// tells of the job; every error of theirs is [`Exit::NoCode`], as `docker run` has it.
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
    /// `run` or `wait`: they failed themselves, or the job has no container's code.
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
            Self::CannotPlace => "no worker known could ever run it (with `--must-fit`)",
            Self::Lost => "the infrastructure lost the job",
            Self::Cancelled => "the job was cancelled",
            Self::Unreachable => "no core answers",
            Self::TimedOut => "the job, or the patience of `wait --timeout`, ran out of time",
            Self::NoCode => "any other error; standard error says which",
            Self::NotInvocable => "the container could not be started",
            Self::NoCommand => "the command is not in the image",
            Self::Detached => "interrupted by Ctrl-C; the job goes on",
        }
    }

    /// Which commands end with it.
    #[must_use]
    pub const fn commands(self) -> &'static str {
        match self {
            Self::Ok => "all",
            Self::Error | Self::Usage | Self::NotFound | Self::Auth | Self::Conflict | Self::Unreachable => {
                "all but run, wait"
            }
            Self::CannotPlace => "run, submit",
            Self::Lost | Self::Cancelled => "run, wait, fetch",
            Self::TimedOut | Self::NoCode | Self::NotInvocable | Self::NoCommand => "run, wait",
            Self::Detached => "run",
        }
    }

    /// What `run` and `wait` make of it: a code that tells of the job stays, an error of their own must not look like
    /// the container's code.
    #[must_use]
    pub const fn of_run(self) -> Self {
        match self {
            Self::Error | Self::Usage | Self::NotFound | Self::Auth | Self::Conflict | Self::Unreachable => {
                Self::NoCode
            }
            own => own,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_this_table() {
        let readme = include_str!("../../README.md");
        let row = |exit: Exit| format!("| {} | {} | {} |\n", exit.code(), exit.commands(), exit.meaning());
        let table: String = Exit::ALL.into_iter().map(row).collect();
        assert!(readme.contains(&table), "the README's table should be:\n{table}");
    }

    #[test]
    fn run_ends_with_the_codes_that_are_said_to_be_its_own() {
        for exit in Exit::ALL {
            let said = exit.commands() == "all" || exit.commands().starts_with("run");
            assert_eq!(exit.of_run() == exit, said, "{exit:?}");
        }
    }
}
