//! The history a test writes: one JSON object a line, in no particular order.

use std::io::BufRead;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use swarm_protocol::JobId;
use swarm_protocol::api::{JobView, TaskPhase, TaskView};
use swarm_protocol::state::JobState;

/// What became of an operation, as its caller saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It was acknowledged.
    Ok,
    /// It was refused.
    Fail,
    /// No answer came: it may have happened or not.
    Unknown,
}

/// One operation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// When it was begun, Unix time in microseconds.
    pub start_us: i64,
    /// When its answer was there, Unix time in microseconds.
    pub end_us: i64,
    /// What became of it.
    pub result: Verdict,
    /// What it was.
    #[serde(flatten)]
    pub op: Op,
}

/// The operations the checker knows.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", content = "data", rename_all = "kebab-case")]
pub enum Op {
    /// A job was submitted.
    Submit(Submit),
    /// A job was read.
    Job(JobSeen),
    /// A task was read.
    Task(TaskSeen),
    /// A log was read to its end.
    Log(LogRead),
    /// A request or datagram that must be denied.
    Probe(Probe),
    /// The instants a schedule must have launched, each exactly once.
    Schedule(Expectation),
    /// A schedule was triggered by hand.
    Trigger {
        /// The schedule.
        schedule: u64,
        /// The job it made.
        job: Option<u64>,
    },
    /// A fault was injected; told for readers only.
    Fault {
        /// What was done.
        what: String,
    },
}

/// See [`Op::Submit`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submit {
    /// The number in the acknowledgement.
    pub job: Option<u64>,
    /// The idempotency key, if one was sent.
    pub key: Option<String>,
    /// The job's name, if it has one.
    pub name: Option<String>,
    /// How many tasks were asked for.
    pub tasks: u64,
}

/// How far something is, by what it can never return from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seen {
    /// Held until its start time (jobs only).
    Delayed,
    /// Neither delayed nor ended: waiting and running alternate with retries.
    Open,
    /// Final.
    Ended,
}

/// See [`Op::Job`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSeen {
    /// The job.
    pub job: u64,
    /// How far.
    pub seen: Seen,
    /// The state's word.
    pub state: String,
    /// Tasks that ended well.
    pub succeeded: u64,
    /// Tasks that ended otherwise.
    pub failed: u64,
    /// Tasks that were cancelled.
    pub cancelled: u64,
}

impl JobSeen {
    /// What the core shows of a job.
    #[must_use]
    pub fn of(view: &JobView) -> Self {
        let seen = match view.state {
            JobState::Delayed => Seen::Delayed,
            state if state.is_final() => Seen::Ended,
            _ => Seen::Open,
        };
        let (job, tasks, state) = (view.id.0, view.tasks, view.state.to_string());
        let (succeeded, failed, cancelled) = (tasks.succeeded, tasks.failed, tasks.cancelled);
        Self { job, seen, state, succeeded, failed, cancelled }
    }
}

/// See [`Op::Task`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSeen {
    /// The job.
    pub job: u64,
    /// The task.
    pub task: u32,
    /// The highest attempt that was shown, 0 when none was.
    pub attempt: u16,
    /// Whether that attempt was shown as started or ended.
    pub started: bool,
    /// How many attempts were shown as ended.
    pub ended_attempts: u32,
    /// How the task ended, if it had.
    pub outcome: Option<String>,
}

impl TaskSeen {
    /// What the core shows of a task.
    #[must_use]
    pub fn of(job: JobId, view: &TaskView) -> Self {
        let last = view.attempts.last();
        Self {
            job: job.0,
            task: view.task,
            attempt: last.map_or(0, |attempt| attempt.attempt),
            started: last.is_some_and(|attempt| matches!(attempt.phase, TaskPhase::Started | TaskPhase::Ended)),
            ended_attempts: view.attempts.iter().filter(|attempt| attempt.phase == TaskPhase::Ended).count() as u32,
            outcome: view.outcome.map(|outcome| outcome.to_string()),
        }
    }
}

/// See [`Op::Log`]. Bytes are those the job wrote, without the encoding's own.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogRead {
    /// The job.
    pub job: u64,
    /// The task.
    pub task: u32,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// What the job is known to have written.
    pub written_bytes: u64,
    /// The SHA-256 of it.
    pub written_digest: String,
    /// What was read back.
    pub read_bytes: u64,
    /// The SHA-256 of it.
    pub read_digest: String,
    /// Bytes that the log's cut marks count.
    pub cut_bytes: u64,
    /// Whether one of the marks says "at least".
    pub cut_at_least: bool,
}

/// See [`Op::Probe`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// What was tried: `GET /api/v1/jobs without a token`.
    pub what: String,
    /// The statuses that deny it; empty when any answer at all is wrong (datagrams).
    pub denied_by: Vec<u16>,
    /// The status that came; none for silence.
    pub status: Option<u16>,
}

/// See [`Op::Schedule`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// The schedule.
    pub schedule: u64,
    /// Instants due, Unix time in microseconds.
    pub due_us: Vec<i64>,
}

/// Why a file of JSON lines cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file itself.
    #[error("the file cannot be read")]
    Io(#[from] std::io::Error),
    /// One line.
    #[error("line {line} is not what was expected")]
    Line {
        /// From 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
}

/// Reads a history. A last line without its end (a writer that was killed) is left out.
///
/// # Errors
/// [`ReadError`] names the line.
pub fn read_history(source: impl BufRead) -> Result<Vec<Entry>, ReadError> {
    read_lines(source)
}

pub(crate) fn read_lines<T: DeserializeOwned>(mut source: impl BufRead) -> Result<Vec<T>, ReadError> {
    let (mut items, mut text) = (Vec::new(), String::new());
    for line in 1.. {
        text.clear();
        if source.read_line(&mut text)? == 0 || !text.ends_with('\n') {
            break;
        }
        if !text.trim().is_empty() {
            items.push(serde_json::from_str(&text).map_err(|source| ReadError::Line { line, source })?);
        }
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_back_and_a_torn_last_one_is_left_out() {
        let submit = Submit { job: Some(1), key: None, name: None, tasks: 1 };
        let entry = Entry { start_us: 1, end_us: 2, result: Verdict::Ok, op: Op::Submit(submit) };
        let line = serde_json::to_string(&entry).unwrap();
        assert!(line.contains(r#""op":"submit""#) && line.contains(r#""result":"ok""#), "{line}");
        let text = format!("{line}\n\n{line}\n{}", &line[..20]);
        assert_eq!(read_history(text.as_bytes()).unwrap().len(), 2);
        let error = read_history("{\"op\":\"x\"}\n".as_bytes()).unwrap_err();
        assert!(error.to_string().contains("line 1"));
    }
}
