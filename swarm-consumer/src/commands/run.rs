//! `run` and `submit`.

use std::time::Duration;

use chrono::Utc;
use swarm_client::{Client, ClientError};
use swarm_protocol::api::{JobDetail, Submitted, TaskPhase, Warning};
use swarm_protocol::text::sanitise;
use swarm_protocol::{JobId, TaskId};

use super::interrupt::CtrlC;
use super::jobs::{WAIT_STEP, verdict};
use super::logs::LOOK_AGAIN;
use super::waiting::{self, Waiting};
use super::{fetch, logs, program};
use crate::cli::{Run, Sending, Submit};
use crate::exit::Exit;
use crate::failure::{Done, Failure, unless_gone};
use crate::flags::Draft;
use crate::logtext::LogText;
use crate::output::{Format, note, show};
use crate::views::Ended;

/// How long a second Ctrl-C is waited for.
const SECOND_CTRL_C: Duration = Duration::from_secs(3);

pub(crate) async fn submit(client: &Client, submit: &Submit, format: Format) -> Done<u8> {
    let draft = submit.spec.draft(Utc::now())?.once()?;
    if submit.dry_run {
        return plan(client, draft, format).await;
    }
    let submitted = send(client, draft, &submit.sending).await?;
    show(format, &submitted)?;
    warn(&submitted);
    if submitted.repeated {
        note(&format!("job {} was made earlier with the same idempotency key", submitted.job));
    }
    Ok(0)
}

/// Tells what would become of the job. Nothing is uploaded, and nothing is kept.
async fn plan(client: &Client, draft: Draft, format: Format) -> Done<u8> {
    let plan = client.plan(draft.spec()).await.map_err(told_of_flags)?;
    show(format, &plan)?;
    Ok(if plan.warnings.is_empty() { 0 } else { Exit::CannotPlace.code() })
}

/// Uploads the inputs, then submits. One key for all tries, so that a lost answer makes no second job.
async fn send(client: &Client, draft: Draft, sending: &Sending) -> Done<Submitted> {
    let key = sending.idempotency_key.clone().unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
    let spec = draft.complete(client).await?;
    let sent = match sending.must_fit {
        true => client.submit_fitting(&spec, Some(&key)).await,
        false => client.submit(&spec, Some(&key)).await,
    };
    sent.map_err(told_of_flags)
}

fn told_of_flags(error: ClientError) -> Failure {
    let failure = Failure::from(error);
    match failure.hint {
        _ if failure.exit == Exit::CannotPlace => {
            let what = "no worker known could ever run it".to_owned();
            Failure { what, hint: None, ..failure }.speak_of_flags()
        }
        _ if !failure.fields.is_empty() => Failure::fields(failure.fields).speak_of_flags(),
        None if failure.exit == Exit::NotFound => failure.hint(format!("`{} image push` uploads an image", program())),
        _ => failure,
    }
}

/// Says what may keep an accepted job from running.
fn warn(submitted: &Submitted) {
    for Warning { problem, hint, .. } in &submitted.warnings {
        let (problem, hint) = (sanitise(problem, false), sanitise(hint, false));
        note(&format!("warning: job {} waits: {problem}\nhint: {hint}", submitted.job));
    }
}

pub(crate) async fn run(client: &Client, run: &Run, format: Format) -> Done<u8> {
    run_until(client, run, format, CtrlC::listen).await
}

/// As [`run`]; `listen` is called once there is something to interrupt.
async fn run_until(client: &Client, run: &Run, format: Format, listen: impl FnOnce() -> CtrlC) -> Done<u8> {
    let draft = run.spec.draft(Utc::now())?.once()?;
    let outputs: Vec<String> = draft.spec().outputs.iter().map(|output| output.path.clone()).collect();
    let array = draft.spec().array.is_some();
    if !array && !run.force {
        // Told now rather than after an hour of work.
        fetch::free(&run.into, fetch::expected_names(&outputs)?.iter().map(std::path::PathBuf::as_path))?;
    }
    let mut ctrl_c = listen();
    let sent = tokio::select! {
        sent = send(client, draft, &run.sending) => sent?,
        () = ctrl_c.pressed() => return Err(Failure::new(Exit::Detached, "interrupted before an answer came")
            .hint("the job may have been accepted: `ls` shows it")),
    };
    let job = sent.job;
    note(&format!("job {job}"));
    warn(&sent);
    let waiting = Waiting::new(!sent.warnings.is_empty());
    let patient = waiting::patient(client);
    let followed = tokio::select! {
        ended = follow(&patient, job, array, waiting, format) => Some(ended?),
        () = ctrl_c.pressed() => None,
    };
    let Some(detail) = followed else { return Err(detach(client, job, &mut ctrl_c).await) };
    let ended = tokio::select! {
        ended = conclude(&patient, detail, run, !outputs.is_empty()) => ended?,
        () = ctrl_c.pressed() => return Err(Failure::new(Exit::Detached, format!("interrupted; job {job} has ended"))
            .hint(format!("`{0} wait {job}` tells how, `{0} fetch {job}` fetches its outputs", program()))),
    };
    let exit = ended.verdict.code;
    if format == Format::Json {
        unless_gone(show(format, &ended))?;
    }
    Ok(exit)
}

/// Says how the job ended, and fetches what it made.
async fn conclude(client: &Client, detail: JobDetail, run: &Run, has_outputs: bool) -> Done<Ended> {
    let job = detail.job.id;
    let verdict = verdict(client, &detail).await?;
    if let Some(why) = &verdict.why {
        note(why);
    }
    if verdict.code == 0 && has_outputs {
        let fetched = fetch::fetch_job(client, job, None, &run.into, run.force).await.inspect_err(|_| {
            note(&format!("job {job} succeeded, but its outputs were not fetched; try `{} fetch {job}`", program()));
        })?;
        note(crate::output::Report::human(&fetched).trim_end());
    }
    Ok(Ended { detail, verdict })
}

/// Shows the job's log, or its progress for an array, until it is final.
async fn follow(client: &Client, job: JobId, array: bool, waiting: Waiting, format: Format) -> Done<JobDetail> {
    if array {
        return follow_array(client, job, waiting).await;
    }
    // With JSON, standard output holds exactly one value: how the job ended.
    if format != Format::Json {
        match follow_log(client, job, waiting).await {
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
async fn follow_log(client: &Client, job: JobId, mut waiting: Waiting) -> Done<()> {
    let task = TaskId { job, task: 0 };
    let mut text = LogText::new(Format::Human, task, false);
    let line = waiting::line();
    let mut shown = 0;
    loop {
        let view = client.task(task).await?;
        let next = view.attempts.iter().find(|attempt| attempt.attempt > shown);
        if let Some(attempt) = next {
            line.finish_and_clear();
            if shown > 0 {
                note(&format!("attempt {} on worker {}", attempt.attempt, sanitise(&attempt.worker, false)));
            }
            shown = attempt.attempt;
            logs::print(client, task, shown, 0, true, &mut text).await?;
            waiting = Waiting::new(false);
        } else if view.phase == TaskPhase::Ended {
            line.finish_and_clear();
            return Ok(());
        } else {
            let reason = waiting.reason(client, job).await;
            if !reason.is_empty() {
                if line.is_finished() {
                    line.reset();
                }
                line.set_message(reason.to_owned());
                line.tick();
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

async fn follow_array(client: &Client, job: JobId, mut waiting: Waiting) -> Done<JobDetail> {
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
        let mut message = format!("{} running, {} failed", tasks.live, tasks.failed);
        if tasks.live == 0 && tasks.waiting > 0 {
            message = format!("{message}. {}", waiting.reason(client, job).await);
        }
        bar.set_message(message);
        if detail.job.state.is_final() {
            bar.finish_and_clear();
            return Ok(detail);
        }
    }
}

/// After a Ctrl-C: leaves the job alone, or cancels it when there is another one.
async fn detach(client: &Client, job: JobId, ctrl_c: &mut CtrlC) -> Failure {
    let program = program();
    note(&format!("\ndetached; job {job} goes on. Press Ctrl-C again within 3 s to cancel it."));
    note(&format!("see it again with: {program} logs -f {job}\nits end and exit code:  {program} wait {job}"));
    if tokio::time::timeout(SECOND_CTRL_C, ctrl_c.pressed()).await.is_err() {
        return Failure { silent: true, ..Failure::new(Exit::Detached, "detached") };
    }
    match client.cancel(job).await {
        Ok(_) => Failure::new(Exit::Cancelled, format!("job {job} is being cancelled")),
        Err(error) => Failure::from(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser as _;
    use serde_json::{Value, json};
    use swarm_client::{MemoryTokens, SavedTokens};
    use swarm_protocol::Digest;
    use swarm_protocol::logs::{LogRecord, LogStream};

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::testserver::{Reply, Request, Server};
    use crate::views::samples;

    /// A core with one job that has ended so, with one output.
    async fn core(outcome: &'static str, exit_code: Option<i32>) -> Server {
        Server::start(answers(outcome, exit_code)).await
    }

    fn answers(outcome: &'static str, exit_code: Option<i32>) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
        let state = if outcome == "succeeded" { "succeeded" } else { "failed" };
        let output =
            json!([{"path": "/out/r", "digest": Digest::of(b"result"), "size_bytes": 6, "is_dir": false, "mode": 420}]);
        let detail = samples::detail(state, json!({"image": "tool:1", "outputs": [{"path": "/out/r"}]}));
        let task = samples::task(outcome, exit_code, output);
        move |request| match request.route().as_str() {
            "GET /api/v1/whoami" => Reply::json(200, &json!({"id": 1, "user": "a", "group": "g", "role": "consumer"})),
            "HEAD /api/v1/files/sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" => {
                Reply::bytes(404, "")
            }
            "POST /api/v1/files" => Reply::json(201, &json!({"digest": Digest::of(&request.body), "size_bytes": 5})),
            "POST /api/v1/jobs" => Reply::json(201, &json!({"job": 42})),
            "GET /api/v1/jobs/42" | "GET /api/v1/jobs/42/wait" | "POST /api/v1/jobs/42/cancel" => {
                Reply::json(200, &detail)
            }
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
        }
    }

    async fn run_with(server: &Server, args: &[&str]) -> Done<u8> {
        run_pressed(server, args, CtrlC::scripted(futures_util::stream::pending())).await
    }

    async fn run_pressed(server: &Server, args: &[&str], ctrl_c: CtrlC) -> Done<u8> {
        let tokens = SavedTokens { access: "a".into(), refresh: "r".into() };
        let client = Client::new(&server.url, Arc::new(MemoryTokens::new(tokens))).unwrap();
        let Command::Run(run) = Cli::try_parse_from([&["x", "run"], args].concat()).unwrap().command else {
            panic!("not run")
        };
        run_until(&client, &run, Format::Human, || ctrl_c).await
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
        assert_eq!(run_with(&server, &["tool:1"]).await, Ok(Exit::Lost.code()));
    }

    #[tokio::test]
    async fn a_field_that_the_core_refuses_is_told_as_a_flag() {
        let server = Server::start(|_| {
            let errors = json!([{"field": "start_at", "problem": "it is in the past", "hint": "leave it out"}]);
            let detail = "start_at: it is in the past";
            let problem = json!({
                "type": "about:blank#invalid", "title": "t", "status": 422, "code": "invalid", "detail": detail,
                "hint": "leave it out", "errors": errors,
            });
            Reply::json(422, &problem)
        })
        .await;
        let failure = run_with(&server, &["--at", "2020-01-01T00:00:00Z", "tool:1"]).await.unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        insta::assert_snapshot!(failure.human(), @r"
        error: the job's description has a fault
          --at, --in (start_at): it is in the past
            leave it out
        ");
    }

    /// A core whose job 42 has ended but whose answer to `route` never comes, and Ctrl-C pressed so often once it is asked.
    async fn pressed_at(route: &'static str, presses: usize) -> (Server, CtrlC) {
        let (press, pressed) = tokio::sync::mpsc::unbounded_channel();
        let answers = answers("succeeded", Some(0));
        let server = Server::start(move |request| {
            if request.route() != route {
                return answers(request);
            }
            for _ in 0..presses {
                press.send(()).unwrap();
            }
            Reply::bytes(200, "result").cut(3, Duration::from_secs(600))
        })
        .await;
        let presses =
            futures_util::stream::unfold(pressed, |mut pressed| async { Some((pressed.recv().await?, pressed)) });
        (server, CtrlC::scripted(presses))
    }

    #[tokio::test]
    async fn ctrl_c_ends_a_fetch_and_says_how_to_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().to_str().unwrap();
        let (server, ctrl_c) = pressed_at("GET /api/v1/jobs/42/tasks/0/outputs/0", 1).await;
        let args = ["-o", "/out/r", "--into", into, "tool:1"];
        let ended = tokio::time::timeout(Duration::from_secs(20), run_pressed(&server, &args, ctrl_c)).await;
        let failure = ended.expect("it ends at once").unwrap_err();
        assert_eq!(failure.exit, Exit::Detached);
        assert!(failure.hint.unwrap().contains("fetch 42"));
    }

    #[tokio::test]
    async fn one_ctrl_c_detaches_and_a_second_one_cancels() {
        let (server, ctrl_c) = pressed_at("GET /api/v1/jobs/42/tasks/0/log", 1).await;
        let failure = run_pressed(&server, &["tool:1"], ctrl_c).await.unwrap_err();
        assert_eq!((failure.exit, failure.silent), (Exit::Detached, true));
        assert!(server.seen("POST /api/v1/jobs/42/cancel").is_empty());
        let (server, ctrl_c) = pressed_at("GET /api/v1/jobs/42/tasks/0/log", 2).await;
        let failure = run_pressed(&server, &["tool:1"], ctrl_c).await.unwrap_err();
        assert_eq!(failure.exit, Exit::Cancelled);
        assert_eq!(server.seen("POST /api/v1/jobs/42/cancel").len(), 1);
    }

    #[tokio::test]
    async fn while_a_job_waits_the_core_is_asked_why() {
        let looks = std::sync::atomic::AtomicU32::new(0);
        let answers = answers("succeeded", Some(0));
        let server = Server::start(move |request| match request.route().as_str() {
            "POST /api/v1/jobs" => {
                let warning = json!({
                    "code": "no-worker-fits", "field": "resources.memory_bytes",
                    "problem": "a task needs 64 GiB of memory", "hint": "ask for less",
                });
                Reply::json(201, &json!({"job": 42, "warnings": [warning]}))
            }
            "GET /api/v1/jobs/42/tasks/0" if looks.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 => {
                let waiting = json!({
                    "task": 0, "phase": "waiting", "outcome": null, "exit_code": null, "detail": null, "attempts": [],
                });
                Reply::json(200, &waiting)
            }
            "GET /api/v1/jobs/42/why" => {
                Reply::json(200, &json!({"state": "waiting", "summary": "Waiting.", "reasons": [], "hint": null}))
            }
            _ => answers(request),
        })
        .await;
        assert_eq!(run_with(&server, &["tool:1"]).await, Ok(0));
        assert_eq!(server.seen("GET /api/v1/jobs/42/why").len(), 1);
    }

    #[tokio::test]
    async fn a_job_that_must_fit_and_does_not_ends_with_its_own_code() {
        let server = Server::start(|_| {
            let (problem, hint) = ("a task needs 64 GiB of memory; the largest worker, w1, has 8 GiB", "ask for less");
            let errors = json!([{"field": "resources.memory_bytes", "problem": problem, "hint": hint}]);
            let problem = json!({
                "type": "about:blank#no-worker-fits", "title": "t", "status": 422, "code": "no-worker-fits",
                "detail": format!("resources.memory_bytes: {problem}"), "hint": hint, "errors": errors,
            });
            Reply::json(422, &problem)
        })
        .await;
        let failure = run_with(&server, &["--must-fit", "--memory", "64GiB", "tool:1"]).await.unwrap_err();
        assert_eq!(failure.exit.of_run().code(), 6);
        insta::assert_snapshot!(failure.human(), @r"
        error: no worker known could ever run it
          --memory (resources.memory_bytes): a task needs 64 GiB of memory; the largest worker, w1, has 8 GiB
            ask for less
        ");
        assert_eq!(server.seen("POST /api/v1/jobs")[0].query("must_fit"), Some("true"));
    }

    #[tokio::test]
    async fn a_job_that_is_not_accepted_says_what_to_do() {
        let server = Server::start(|_| Reply::problem(404, "image-not-found")).await;
        let failure = run_with(&server, &["tool:1"]).await.unwrap_err();
        assert!(failure.hint.unwrap().contains("image push"));
    }
}
