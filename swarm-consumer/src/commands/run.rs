//! `run` and `submit`.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use swarm_client::Client;
use swarm_protocol::api::{JobDetail, Submitted, TaskPhase};
use swarm_protocol::{JobId, TaskId};

use super::jobs::{WAIT_STEP, verdict};
use super::logs::LOOK_AGAIN;
use super::{fetch, image, logs, program};
use crate::cli::{Key, Run, Submit};
use crate::exit::Exit;
use crate::failure::{Done, Failure};
use crate::flags::Draft;
use crate::logtext::LogText;
use crate::output::{Format, note, show};
use crate::views::Ended;

/// How long a second Ctrl-C is waited for.
const SECOND_CTRL_C: Duration = Duration::from_secs(3);

pub(crate) async fn submit(client: &Client, submit: &Submit, format: Format) -> Done<u8> {
    let draft = submit.spec.draft(Utc::now())?;
    let submitted = send(client, draft, &submit.key).await?;
    show(format, &submitted)?;
    if submitted.repeated {
        note(&format!("job {} was made earlier with the same idempotency key", submitted.job));
    }
    Ok(0)
}

/// Uploads the inputs, then submits. One key for all tries, so that a lost answer makes no second job.
async fn send(client: &Client, draft: Draft, key: &Key) -> Done<Submitted> {
    let mut digests = Vec::new();
    for input in &draft.files {
        let bar = image::bar(None);
        let moving = bar.clone();
        let progress: swarm_client::Progress = Arc::new(move |moved| moving.set_position(moved));
        let uploaded = client.upload_file(&input.file, progress).await;
        bar.finish_and_clear();
        digests.push(uploaded?.digest);
    }
    let key = key.idempotency_key.clone().unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
    let spec = draft.complete(&digests);
    client.submit(&spec, Some(&key)).await.map_err(|error| {
        let failure = Failure::from(error);
        match failure.hint {
            None if failure.exit == Exit::NotFound => {
                failure.hint(format!("`{} image push` uploads an image", program()))
            }
            _ => failure,
        }
    })
}

pub(crate) async fn run(client: &Client, run: &Run, format: Format) -> Done<u8> {
    let draft = run.spec.draft(Utc::now())?;
    let outputs: Vec<String> = draft.spec().outputs.iter().map(|output| output.path.clone()).collect();
    let array = draft.spec().array.is_some();
    if !array && !run.force {
        // Told now rather than after an hour of work.
        fetch::free(&run.into, fetch::expected_names(&outputs)?.iter().map(std::path::PathBuf::as_path))?;
    }
    let job = interruptible_send(send(client, draft, &run.key)).await?.job;
    note(&format!("job {job}"));
    let detail = tokio::select! {
        ended = follow(client, job, array, format) => ended?,
        failure = interrupted(client, job) => return Err(failure),
    };
    let (exit, why) = verdict(client, &detail).await?;
    if let Some(why) = why {
        note(&why);
    }
    if exit == 0 && !outputs.is_empty() {
        let fetched = fetch::fetch_job(client, job, None, &run.into, run.force).await.inspect_err(|_| {
            note(&format!("job {job} succeeded, but its outputs were not fetched; try `{} fetch {job}`", program()));
        })?;
        note(crate::output::Report::human(&fetched).trim_end());
    }
    if format == Format::Json {
        show(format, &Ended { detail, exit })?;
    }
    Ok(exit)
}

/// Before there is a job to go on, Ctrl-C simply ends the program.
async fn interruptible_send(sending: impl Future<Output = Done<Submitted>>) -> Done<Submitted> {
    tokio::select! {
        sent = sending => sent,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Detached, "interrupted before an answer came")
            .hint("the job may have been accepted: `ls` shows it")),
    }
}

/// Shows the job's log, or its progress for an array, until it is final.
async fn follow(client: &Client, job: JobId, array: bool, format: Format) -> Done<JobDetail> {
    if array {
        return follow_array(client, job).await;
    }
    // With JSON, standard output holds exactly one value: how the job ended.
    if format != Format::Json {
        match follow_log(client, job).await {
            // Whoever read the log has gone; the job's end still decides the exit code.
            Err(failure) if failure.silent => {}
            other => other?,
        }
    }
    loop {
        let detail = client.wait_job(job, WAIT_STEP).await?;
        if detail.job.state.is_final() {
            return Ok(detail);
        }
    }
}

/// Prints attempt after attempt of the job's one task.
async fn follow_log(client: &Client, job: JobId) -> Done<()> {
    let task = TaskId { job, task: 0 };
    let mut text = LogText::new(Format::Human, task, false);
    let mut shown = 0;
    loop {
        let view = client.task(task).await?;
        let next = view.attempts.iter().find(|attempt| attempt.attempt > shown);
        if let Some(attempt) = next {
            if shown > 0 {
                note(&format!(
                    "attempt {} on worker {}",
                    attempt.attempt,
                    swarm_protocol::text::sanitise(&attempt.worker, false)
                ));
            }
            shown = attempt.attempt;
            logs::print(client, task, shown, true, &mut text).await?;
        } else if view.phase == TaskPhase::Ended {
            return Ok(());
        } else {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

async fn follow_array(client: &Client, job: JobId) -> Done<JobDetail> {
    use indicatif::{ProgressBar, ProgressStyle};
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template("{pos}/{len} {wide_bar} {msg}") {
        bar.set_style(style);
    }
    loop {
        let detail = client.wait_job(job, Duration::from_secs(1)).await?;
        let tasks = detail.job.tasks;
        bar.set_length(tasks.total);
        bar.set_position(tasks.succeeded + tasks.failed + tasks.cancelled);
        bar.set_message(format!("{} running, {} failed", tasks.live, tasks.failed));
        if detail.job.state.is_final() {
            bar.finish_and_clear();
            return Ok(detail);
        }
    }
}

/// Ends when the user has pressed Ctrl-C: once to leave the job alone, twice to cancel it.
async fn interrupted(client: &Client, job: JobId) -> Failure {
    if let Err(error) = tokio::signal::ctrl_c().await {
        never(&error).await;
    }
    let program = program();
    note(&format!("\ndetached; job {job} goes on. Press Ctrl-C again within 3 s to cancel it."));
    note(&format!("see it again with: {program} logs -f {job}\nits end and exit code:  {program} wait {job}"));
    if tokio::time::timeout(SECOND_CTRL_C, tokio::signal::ctrl_c()).await.is_err() {
        return Failure { silent: true, ..Failure::new(Exit::Detached, "detached") };
    }
    match client.cancel(job).await {
        Ok(_) => Failure::new(Exit::Cancelled, format!("job {job} is being cancelled")),
        Err(error) => Failure::from(error),
    }
}

/// Without a signal handler Ctrl-C ends the program at once, as it does anywhere.
async fn never(error: &std::io::Error) {
    note(&format!("Ctrl-C cannot be caught here: {error}"));
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::{Value, json};
    use swarm_client::{MemoryTokens, SavedTokens};
    use swarm_protocol::Digest;
    use swarm_protocol::logs::{LogRecord, LogStream};

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::testserver::{Reply, Server};
    use crate::views::samples;

    /// A core with one job that has ended so, with one output.
    async fn core(outcome: &'static str, exit_code: Option<i32>) -> Server {
        let state = if outcome == "succeeded" { "succeeded" } else { "failed" };
        let output =
            json!([{"path": "/out/r", "digest": Digest::of(b"result"), "size_bytes": 6, "is_dir": false, "mode": 420}]);
        let detail = samples::detail(state, json!({"image": "tool:1", "outputs": [{"path": "/out/r"}]}));
        let task = samples::task(outcome, exit_code, output);
        Server::start(move |request| match request.route().as_str() {
            "GET /api/v1/whoami" => Reply::json(200, &json!({"id": 1, "user": "a", "group": "g", "role": "consumer"})),
            "HEAD /api/v1/files/sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" => {
                Reply::bytes(404, "")
            }
            "POST /api/v1/files" => Reply::json(201, &json!({"digest": Digest::of(&request.body), "size_bytes": 5})),
            "POST /api/v1/jobs" => Reply::json(201, &json!({"job": 42})),
            "GET /api/v1/jobs/42" | "GET /api/v1/jobs/42/wait" => Reply::json(200, &detail),
            "GET /api/v1/jobs/42/tasks" => Reply::json(200, &json!({"items": [task]})),
            "GET /api/v1/jobs/42/tasks/0" => Reply::json(200, &task),
            "GET /api/v1/jobs/42/tasks/0/log" => {
                let mut log = Vec::new();
                LogRecord { stream: LogStream::Stderr, at_us: 1, bytes: b"hello\n".to_vec() }.encode(&mut log);
                let from = request.query("offset").and_then(|from| from.parse::<usize>().ok()).unwrap_or_default();
                Reply::bytes(200, &log[from..]).header("swarm-attempt", 1).cut(15, Duration::ZERO)
            }
            "GET /api/v1/jobs/42/tasks/0/outputs/0" => Reply::bytes(200, "result"),
            _ => Reply::problem(404, "not-found"),
        })
        .await
    }

    async fn run_with(server: &Server, args: &[&str]) -> Done<u8> {
        let tokens = SavedTokens { access: "a".into(), refresh: "r".into() };
        let client = Client::new(&server.url, Arc::new(MemoryTokens::new(tokens))).unwrap();
        let Command::Run(run) = Cli::try_parse_from([&["x", "run"], args].concat()).unwrap().command else {
            panic!("not run")
        };
        super::run(&client, &run, Format::Human).await
    }

    #[tokio::test]
    async fn run_uploads_submits_shows_fetches_and_passes_the_code_on() {
        let dir = tempfile::tempdir().unwrap();
        let (input, into) = (dir.path().join("in.txt"), dir.path().join("results"));
        std::fs::write(&input, "hello").unwrap();
        let (input, into_arg) = (input.to_str().unwrap(), into.to_str().unwrap());
        let server = core("succeeded", Some(0)).await;
        let args = ["-i", input, "-o", "/out/r", "--into", into_arg, "tool:1", "work"];
        assert_eq!(run_with(&server, &args).await, Ok(0));
        assert_eq!(std::fs::read(into.join("r")).unwrap(), b"result");
        let sent = &server.seen("POST /api/v1/jobs")[0];
        let spec: Value = serde_json::from_slice(&sent.body).unwrap();
        assert_eq!(spec["inputs"][0], json!({"digest": Digest::of(b"hello"), "path": "/in/in.txt", "mode": 420}));
        assert!(!sent.header("idempotency-key").is_empty());

        // The file is there now, which is told before anything is sent.
        let failure = run_with(&server, &args).await.unwrap_err();
        assert_eq!(failure.exit, Exit::Conflict);
        assert_eq!(server.seen("POST /api/v1/jobs").len(), 1);
    }

    #[tokio::test]
    async fn a_failed_job_s_code_passes_and_nothing_is_fetched() {
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().to_str().unwrap();
        let server = core("failed", Some(3)).await;
        assert_eq!(run_with(&server, &["-o", "/out/r", "--into", into, "tool:1"]).await, Ok(3));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let server = core("lost", None).await;
        assert_eq!(run_with(&server, &["tool:1"]).await, Ok(Exit::NoCode.code()));
    }

    #[tokio::test]
    async fn a_job_that_is_not_accepted_says_what_to_do() {
        let server = Server::start(|_| Reply::problem(404, "image-not-found")).await;
        let failure = run_with(&server, &["tool:1"]).await.unwrap_err();
        assert!(failure.hint.unwrap().contains("image push"));
    }
}
