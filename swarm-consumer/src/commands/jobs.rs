//! `ls`, `show`, `wait`, `cancel`, `why`, and what a job's end means as an exit code.

use std::time::{Duration, Instant};

use chrono::Utc;
use serde_json::json;
use swarm_client::{Client, JobFilter};
use swarm_protocol::api::{JobDetail, TaskView};
use swarm_protocol::state::JobState;
use swarm_protocol::{JobId, OutcomeKind};

use super::waiting;
use crate::cli::{Ls, Show, Wait};
use crate::exit::Exit;
use crate::failure::{Done, Failure, unless_gone};
use crate::output::{Format, note, show};
use crate::views::{Ended, Job, Jobs, Reasons, Said};

/// Entries asked for at once.
const PAGE: u32 = 500;
/// What one `wait` call asks the core for; it is asked again until the job is final.
pub(crate) const WAIT_STEP: Duration = Duration::from_secs(30);
/// How much longer than it was asked for an answer may take when the time to wait is given.
const ANSWER_TIME: Duration = Duration::from_secs(5);

pub(crate) async fn list(client: &Client, ls: &Ls, format: Format) -> Done<u8> {
    let mut jobs = Vec::new();
    let mut filter = JobFilter { state: ls.state, name: ls.name.clone(), limit: None, cursor: None };
    loop {
        let missing = ls.limit - u32::try_from(jobs.len()).unwrap_or(ls.limit);
        filter.limit = Some(missing.min(PAGE));
        let page = client.jobs(&filter).await?;
        let empty = page.items.is_empty();
        jobs.extend(page.items.into_iter().take(missing as usize));
        filter.cursor = page.next;
        if filter.cursor.is_none() || empty || jobs.len() >= ls.limit as usize {
            break;
        }
    }
    show(format, &Jobs { jobs, now: Utc::now() })?;
    Ok(0)
}

pub(crate) async fn show_job(client: &Client, wanted: &Show, format: Format) -> Done<u8> {
    let detail = client.job(wanted.job).await?;
    let (mut tasks, mut more) = (Vec::new(), false);
    if wanted.tasks > 0 {
        let page = client.tasks(wanted.job, Some(wanted.tasks.min(PAGE)), None).await?;
        (tasks, more) = (page.items, page.next.is_some());
    }
    show(format, &Job { detail, tasks, more })?;
    Ok(0)
}

pub(crate) async fn wait(client: &Client, wait: &Wait, format: Format) -> Done<u8> {
    let client = &waiting::patient(client);
    // An end that no clock can tell is none.
    let until = wait.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut detail = client.wait_job(wait.job, until.map_or(WAIT_STEP, |_| Duration::ZERO)).await?;
    while !detail.job.state.is_final() {
        let left = until.map_or(WAIT_STEP, |until| until.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            let what = format!("job {} is still {} after the time given", wait.job, detail.job.state);
            let hint = format!("`{} why {}` tells why", super::program(), wait.job);
            return Err(Failure::new(Exit::TimedOut, what).hint(hint));
        }
        // The core counts whole seconds; the rest of the last one is waited for here.
        let step = left.min(WAIT_STEP);
        if step < Duration::from_secs(1) {
            tokio::time::sleep(step).await;
        }
        let asked = client.wait_job(wait.job, step);
        // A core that went away is awaited no longer than the job.
        let bound = until.map_or(Duration::MAX, |_| step + ANSWER_TIME);
        if let Ok(answer) = tokio::time::timeout(bound, asked).await {
            detail = answer?;
        }
    }
    let ended = Ended { verdict: verdict(client, &detail).await?, detail };
    unless_gone(show(format, &ended))?;
    if let Some(why) = &ended.verdict.why {
        note(why);
    }
    Ok(ended.verdict.code)
}

/// What a final job stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// What `run` and `wait` end with.
    pub(crate) code: u8,
    /// For programs, which cannot tell by the code alone: `ok`, `container`, or the word of an exit code.
    pub(crate) reason: &'static str,
    /// A sentence when it did not succeed.
    pub(crate) why: Option<String>,
}

impl Verdict {
    fn of(exit: Exit) -> Self {
        Self { code: exit.code(), reason: exit.as_str(), why: None }
    }

    fn container(code: u8) -> Self {
        Self { code, reason: "container", why: None }
    }

    fn because(self, why: impl Into<String>) -> Self {
        Self { why: Some(why.into()), ..self }
    }
}

/// What a final job stands for: its one task's end, or that of the first task of an array that did not succeed.
pub(crate) async fn verdict(client: &Client, detail: &JobDetail) -> Done<Verdict> {
    if detail.job.state == JobState::Succeeded {
        return Ok(Verdict::of(Exit::Ok));
    }
    let job = detail.job.id;
    let mut cursor = None;
    loop {
        let page = client.tasks(job, Some(PAGE), cursor.as_deref()).await?;
        let bad = page.items.iter().find(|task| task.outcome.is_some_and(|kind| kind != OutcomeKind::Succeeded));
        if let Some(task) = bad {
            let of_task = task_verdict(task);
            let what = swarm_protocol::text::sanitise(of_task.why.as_deref().unwrap_or_default(), false);
            let of = if detail.job.tasks.total > 1 { format!("{job}.{}", task.task) } else { job.to_string() };
            let rest = detail.job.tasks.failed.saturating_sub(1);
            let others = if rest > 0 { format!(", and {rest} more failed") } else { String::new() };
            return Ok(of_task.because(format!("job {of}: {what}{others}")));
        }
        cursor = page.next;
        if cursor.is_none() || page.items.is_empty() {
            // Its tasks never ran, so none has an outcome.
            let exit = if detail.job.state == JobState::Cancelled { Exit::Cancelled } else { Exit::NoCode };
            return Ok(Verdict::of(exit).because(format!("job {job} {}", detail.job.state)));
        }
    }
}

/// What a task that did not succeed stands for.
fn task_verdict(task: &TaskView) -> Verdict {
    let detail = task.detail.as_deref().map_or_else(String::new, |detail| format!(": {detail}"));
    let own = task.exit_code.and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0);
    match task.outcome {
        Some(OutcomeKind::Failed) => {
            let code = own.unwrap_or(Exit::Error.code());
            Verdict::container(code).because(format!("failed with exit code {code}{detail}"))
        }
        Some(OutcomeKind::OutOfMemory) => Verdict::container(own.unwrap_or(137))
            .because(format!("ran out of memory{detail}; give it more with --memory")),
        Some(OutcomeKind::TimedOut) => Verdict::of(Exit::TimedOut).because(format!("ran into its timeout{detail}")),
        Some(OutcomeKind::Refused) => {
            // The engine's own words, the same that `docker run` judges by.
            let absent = ["executable file not found", "no such file or directory"];
            let no_command = absent.iter().any(|words| detail.contains(words));
            let exit = if no_command { Exit::NoCommand } else { Exit::NotInvocable };
            Verdict::of(exit).because(format!("could not be started{detail}"))
        }
        Some(OutcomeKind::Lost) => Verdict::of(Exit::Lost).because(format!("lost{detail}")),
        Some(OutcomeKind::Cancelled) => Verdict::of(Exit::Cancelled).because(format!("cancelled{detail}")),
        Some(kind) => Verdict::of(Exit::NoCode).because(format!("{kind}{detail}")),
        None => Verdict::of(Exit::NoCode).because("has no outcome"),
    }
}

pub(crate) async fn cancel(client: &Client, job: JobId, format: Format) -> Done<u8> {
    let detail = client.cancel(job).await?;
    let text = match detail.job.state {
        JobState::Cancelled => format!("job {job} is cancelled"),
        state if state.is_final() => format!("job {job} had ended already: {state}"),
        _ => format!("job {job} is being cancelled"),
    };
    show(format, &Said { text, json: json!(detail), id: job.to_string() })?;
    Ok(0)
}

pub(crate) async fn why(client: &Client, job: JobId, format: Format) -> Done<u8> {
    show(format, &Reasons { why: client.why(job).await?, job })?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser as _;
    use swarm_client::{MemoryTokens, SavedTokens};
    use swarm_protocol::api::TaskPhase;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::testserver::{Reply, Server};
    use crate::views::samples;

    #[tokio::test]
    async fn a_core_that_went_away_is_waited_for_no_longer_than_the_job() {
        let asked = std::sync::atomic::AtomicU32::new(0);
        let running = samples::detail("running", json!({"image": "tool:1"}));
        let server = Server::start(move |_| match asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => Reply::json(200, &running),
            _ => Reply::problem(503, "unavailable"),
        })
        .await;
        let tokens = SavedTokens { access: "a".into(), refresh: "r".into() };
        let client = Client::new(&server.url, Arc::new(MemoryTokens::new(tokens))).unwrap();
        let Command::Wait(one) = Cli::try_parse_from(["x", "wait", "42", "--timeout", "100ms"]).unwrap().command else {
            panic!("not wait")
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), wait(&client, &one, Format::Human)).await;
        assert_eq!(waited.expect("it ends soon").unwrap_err().exit, Exit::TimedOut);
    }

    fn code(outcome: OutcomeKind, exit_code: Option<i32>, detail: &str) -> u8 {
        let detail = Some(detail.to_owned());
        let (task, phase, attempts) = (0, TaskPhase::Ended, Vec::new());
        task_verdict(&TaskView {
            task,
            phase,
            outcome: Some(outcome),
            exit_code,
            detail,
            attempts,
            late_reports: Vec::new(),
        })
        .code
    }

    #[test]
    fn the_container_s_code_passes_and_nothing_else_looks_like_success() {
        assert_eq!(code(OutcomeKind::Failed, Some(3), ""), 3);
        assert_eq!(code(OutcomeKind::Failed, Some(255), ""), 255);
        assert_eq!(code(OutcomeKind::Failed, None, ""), 1);
        assert_eq!(code(OutcomeKind::OutOfMemory, Some(137), ""), 137);
        assert_eq!(code(OutcomeKind::TimedOut, None, ""), 124);
        assert_eq!(code(OutcomeKind::OutputMissing, Some(0), "/out/a"), 125);
        assert_eq!(code(OutcomeKind::Lost, None, "engine: gone"), 7);
        assert_eq!(code(OutcomeKind::Cancelled, None, ""), 8);
        assert_eq!(code(OutcomeKind::Refused, None, "exec: \"x\": executable file not found in $PATH"), 127);
        assert_eq!(code(OutcomeKind::Refused, None, "unable to find user x"), 126);
    }
}
