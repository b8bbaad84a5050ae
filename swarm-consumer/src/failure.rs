//! What is told when something fails: what, where, and what to try next.

use std::error::Error;
use std::fmt::Write as _;

use serde_json::json;
use swarm_client::ClientError;
use swarm_protocol::problem::FieldError;
use swarm_protocol::text::sanitise;

use crate::exit::Exit;

/// An error on its way to the user.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) what: String,
    pub(crate) fields: Vec<FieldError>,
    pub(crate) hint: Option<String>,
    /// Nothing is printed: the reader of standard output has gone.
    pub(crate) silent: bool,
}

pub(crate) type Done<T> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), fields: Vec::new(), hint: None, silent: false }
    }

    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn io(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        let exit = if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Error };
        Self::new(exit, format!("{what}: {error}"))
    }

    pub(crate) fn fields(fields: Vec<FieldError>) -> Self {
        let what = match fields.len() {
            1 => "the job's description has a fault".to_owned(),
            n => format!("the job's description has {n} faults"),
        };
        Self { fields, ..Self::usage(what) }
    }

    /// As text for people; every word that came from elsewhere is made harmless.
    pub(crate) fn human(&self) -> String {
        let mut text = format!("error: {}\n", sanitise(&self.what, false));
        for FieldError { field, problem, hint } in &self.fields {
            let line = format!("{field}: {problem}");
            // The core states a single fault in its summary as well.
            if line != self.what {
                let _ = writeln!(text, "  {}", sanitise(&line, false));
            }
            if !hint.is_empty() && self.hint.as_ref() != Some(hint) {
                let _ = writeln!(text, "    {}", sanitise(hint, false));
            }
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "hint: {}", sanitise(hint, false));
        }
        text
    }

    /// As one JSON value; `exit` is what the program ends with, the reason names the failure itself.
    pub(crate) fn json(&self, exit: Exit) -> serde_json::Value {
        json!({ "error": {
            "exit": exit.code(), "reason": self.exit.as_str(), "what": self.what,
            "fields": self.fields, "hint": self.hint,
        }})
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Unreachable { .. } | ClientError::Stalled { .. } => Exit::Unreachable,
            ClientError::NotLoggedIn => Exit::Auth,
            ClientError::Address { .. } => Exit::Usage,
            ClientError::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists => Exit::Conflict,
            ClientError::Problem(problem) => match (problem.status, problem.code.as_str()) {
                (_, "no-worker-fits") => Exit::CannotPlace,
                (_, "idempotency-key-reused") | (409 | 412 | 428, _) => Exit::Conflict,
                (401 | 403, _) => Exit::Auth,
                (404, _) => Exit::NotFound,
                (400 | 422, _) => Exit::Usage,
                (502..=504, _) => Exit::Unreachable,
                _ => Exit::Error,
            },
            _ => Exit::Error,
        };
        let fields = error.problem().map(|problem| problem.errors.clone()).unwrap_or_default();
        Self { exit, what: chain(&error), fields, hint: error.hint(), silent: false }
    }
}

/// The error and its causes in one line. Hidden words of the libraries below are left as they are: they name the cause.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            let _ = write!(text, ": {more}");
        }
        cause = error.source();
    }
    text
}

/// Makes nothing of a reader that has gone: for a command whose exit code still has something to say.
pub(crate) fn unless_gone(shown: Done<()>) -> Done<()> {
    shown.or_else(|failure| if failure.silent && failure.exit == Exit::Ok { Ok(()) } else { Err(failure) })
}

/// What writing to standard output may say.
pub(crate) fn stdout_failed(error: &std::io::Error) -> Failure {
    let silent = error.kind() == std::io::ErrorKind::BrokenPipe;
    let exit = if silent { Exit::Ok } else { Exit::Error };
    Failure { silent, ..Failure::new(exit, format!("cannot write to standard output: {error}")) }
}

#[cfg(test)]
mod tests {
    use swarm_protocol::problem::Problem;

    use super::*;

    fn exit_of(status: u16, code: &str) -> Exit {
        Failure::from(ClientError::Problem(Box::new(Problem::new(status, code, "t", "d")))).exit
    }

    #[test]
    fn every_refusal_has_its_exit_code() {
        assert_eq!(exit_of(401, "unauthenticated"), Exit::Auth);
        assert_eq!(exit_of(403, "forbidden"), Exit::Auth);
        assert_eq!(exit_of(404, "job-not-found"), Exit::NotFound);
        assert_eq!(exit_of(409, "conflict"), Exit::Conflict);
        assert_eq!(exit_of(422, "invalid"), Exit::Usage);
        assert_eq!(exit_of(422, "no-worker-fits"), Exit::CannotPlace);
        assert_eq!(exit_of(422, "idempotency-key-reused"), Exit::Conflict);
        assert_eq!(exit_of(503, "unavailable"), Exit::Unreachable);
        assert_eq!(exit_of(413, "too-large"), Exit::Error);
    }

    #[test]
    fn errors_name_field_and_way_out_and_are_harmless() {
        let problem = Problem::invalid(vec![FieldError::new("env.A\x1b[31m", "is odd", "drop it")]);
        let text = Failure::from(ClientError::Problem(Box::new(problem))).human();
        insta::assert_snapshot!(text, @r"
        error: env.A\u{1b}[31m: is odd
        hint: drop it
        ");
    }
}
