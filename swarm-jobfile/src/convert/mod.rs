//! Jobs from what people have: a `docker run` line, a service of a compose file, a line of a crontab. What a job has no
//! word for is left out and named, never dropped in silence.

mod compose;
mod crontab;
mod docker_run;
mod docker_values;

pub use compose::compose;
pub use crontab::crontab;
pub use docker_run::docker_run;

use crate::model::JobFile;

/// A job, and what could not be taken over.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    /// The job.
    pub job: JobFile,
    /// What was left out or means something else, for people, one sentence each.
    pub notes: Vec<String>,
}

/// Why nothing can be made of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct ConvertError {
    /// What is wrong.
    pub problem: String,
    /// What to try.
    pub hint: String,
}

impl ConvertError {
    fn new(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { problem: problem.into(), hint: hint.into() }
    }
}

/// Words as a line that a shell would split into them again.
#[must_use]
pub fn line_of(words: &[String]) -> String {
    // Words of a process hold no NUL, the only thing that cannot be quoted.
    shlex::try_join(words.iter().map(String::as_str)).unwrap_or_default()
}
