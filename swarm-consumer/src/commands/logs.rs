//! `logs`.

use std::time::Duration;

use swarm_client::{Client, ClientError, LogOptions};
use swarm_protocol::api::TaskPhase;
use swarm_protocol::logs::{AT_LEAST_ONE, LogRecord, LogStream};
use swarm_protocol::{AttemptNo, TaskId};

use super::waiting;
use crate::Exit;
use crate::cli::Logs;
use crate::failure::{Done, Failure};
use crate::logtext::LogText;
use crate::output::Format;

/// How often a task is looked at that has not been given to a worker yet.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(250);

pub(crate) async fn run(client: &Client, logs: &Logs, format: Format) -> Done<u8> {
    let patient = waiting::patient(client);
    let client = if logs.follow { &patient } else { client };
    let text = LogText::new(format, logs.task, logs.timestamps);
    let mut text = text.skipping(logs.skip_stdout, logs.skip_stderr);
    let attempt = which(client, logs).await?;
    print(client, logs.task, attempt, logs.from, logs.follow, &mut text).await?;
    Ok(0)
}

/// The attempt that is asked for, or else the newest; waits until it is there when the log is followed.
async fn which(client: &Client, logs: &Logs) -> Done<AttemptNo> {
    let (task, follow) = (logs.task, logs.follow);
    loop {
        let view = client.task(task).await?;
        let newest = view.attempts.last().map(|last| last.attempt);
        let goes_on = follow && view.phase != TaskPhase::Ended;
        match (logs.attempt, newest) {
            // One that there never was is for the core to refuse.
            (Some(wanted), newest) if newest >= Some(wanted) || !goes_on => return Ok(wanted),
            (None, Some(newest)) => return Ok(newest),
            _ => {}
        }
        if !goes_on {
            let state = if view.phase == TaskPhase::Ended { "never ran" } else { "has not run yet" };
            let hint = format!("`{} why {}` tells why; -f waits for it", super::program(), task.job);
            return Err(Failure::new(Exit::NotFound, format!("there is no log: task {task} {state}")).hint(hint));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Prints one attempt's log; followed, until the attempt has ended.
pub(crate) async fn print(
    client: &Client,
    task: TaskId,
    attempt: AttemptNo,
    from: u64,
    follow: bool,
    text: &mut LogText,
) -> Done<()> {
    let options = LogOptions { attempt: Some(attempt), offset: from, follow };
    read(client, task, options, |record, next| text.write(attempt, record, next)).await?;
    text.finish()
}

/// Hands every record of the log of an attempt to `show`, with the position after it. A log that lacks its end for good
/// gets a last mark that says so.
async fn read(
    client: &Client,
    task: TaskId,
    options: LogOptions,
    mut show: impl FnMut(&LogRecord, u64) -> Done<()>,
) -> Done<()> {
    let (from, mut offset, mut at_us, mut is_over) = (options.offset, options.offset, 0, false);
    loop {
        let mut tail = client.log(task, LogOptions { offset, ..options });
        while let Some(record) = tail.next().await.map_err(|error| unreadable(error, from))? {
            at_us = record.at_us;
            show(&record, tail.offset())?;
        }
        let moved = tail.offset() > offset;
        offset = tail.offset();
        if !options.follow && !tail.is_torn() {
            return Ok(());
        }
        // A core that stops also ends the answer; only the attempt's own end counts.
        let view = client.task(task).await?;
        let Some(it) = view.attempts.iter().find(|it| Some(it.attempt) == options.attempt) else { return Ok(()) };
        let was_over = std::mem::replace(&mut is_over, it.phase == TaskPhase::Ended);
        let is_whole = it.log_bytes > 0 && it.log_bytes <= offset;
        match is_over {
            true if is_whole => return Ok(()),
            // What was read after the attempt's end is all there is.
            true if was_over && !moved => {
                if tail.is_torn() && offset == from && from > 0 && it.log_bytes > offset && it.log_cut_bytes == 0 {
                    return Err(no_record(from));
                }
                if tail.is_torn() || it.log_bytes > offset {
                    show(&LogRecord { stream: LogStream::Cut, at_us, bytes: AT_LEAST_ONE.to_vec() }, offset)?;
                }
                return Ok(());
            }
            true => {}
            false if !options.follow => return Ok(()),
            false => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

/// Where no record follows a position that somebody gave, the position is to blame; anything else is not its fault.
fn unreadable(error: ClientError, from: u64) -> Failure {
    match error {
        ClientError::Log { at, .. } if at == from && from > 0 => no_record(from),
        error => error.into(),
    }
}

fn no_record(from: u64) -> Failure {
    let hint = "give the `next` of a record that `logs --output json` printed, or count bytes with --skip-stdout";
    Failure::usage(format!("no record of the log begins at {from}")).hint(hint)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use clap::Parser as _;
    use serde_json::json;
    use swarm_client::{MemoryTokens, SavedTokens};

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::testserver::{Reply, Server};
    use crate::views::samples;

    fn parse(args: &[&str]) -> Result<Logs, clap::Error> {
        let cli = Cli::try_parse_from([&["x", "logs"], args].concat())?;
        let Command::Logs(logs) = cli.command else { panic!("not logs") };
        Ok(logs)
    }

    #[test]
    fn a_log_is_gone_on_with_only_where_it_is_said_of_which_attempt() {
        for flag in ["--from", "--skip-stdout", "--skip-stderr"] {
            parse(&["42", flag, "7"]).unwrap_err();
            parse(&["42", "--attempt", "1", flag, "7"]).unwrap();
        }
        parse(&["42", "--attempt", "1", "--from", "7", "--skip-stdout", "7"]).unwrap_err();
    }

    #[tokio::test]
    async fn a_position_that_is_none_is_told_from_a_core_that_is_none() {
        let mut log = Vec::new();
        LogRecord { stream: LogStream::Stdout, at_us: 1, bytes: b"hello\n".to_vec() }.encode(&mut log);
        let task = samples::task("succeeded", Some(0), json!([]));
        let server = Server::start(move |request| match request.route().as_str() {
            "GET /api/v1/jobs/42/tasks/0" => Reply::json(200, &task),
            _ => {
                let from = request.query("offset").and_then(|from| from.parse::<usize>().ok()).unwrap_or_default();
                Reply::bytes(200, log.get(from..).unwrap_or_default()).header("swarm-attempt", 1)
            }
        })
        .await;
        let tokens = SavedTokens { access: "a".into(), refresh: "r".into() };
        let client = Client::new(&server.url, Arc::new(MemoryTokens::new(tokens))).unwrap();
        let code = async |args: &[&str]| {
            let logs = parse(&[&["42", "--attempt", "1"], args].concat()).unwrap();
            run(&client, &logs, Format::Human).await.map_err(|failure| (failure.exit, failure.what))
        };
        assert_eq!(code(&["--from", "19"]).await, Ok(0), "there is nothing more");
        let (exit, said) = code(&["--from", "5"]).await.unwrap_err();
        assert!(exit == Exit::Usage && said.contains("begins at 5"), "{said}");
    }

    fn record(bytes: &[u8]) -> LogRecord {
        LogRecord { stream: LogStream::Stdout, at_us: 7, bytes: bytes.to_vec() }
    }

    /// A core whose answers to the nth question for the log, and the nth for the task, are these.
    async fn core(
        log: impl Fn(usize, usize) -> Reply + Send + Sync + 'static,
        task: impl Fn(usize) -> serde_json::Value + Send + Sync + 'static,
    ) -> (Server, Client) {
        let (logs, tasks) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let server = Server::start(move |request| match request.route().as_str() {
            "GET /api/v1/jobs/42/tasks/0" => Reply::json(200, &task(tasks.fetch_add(1, Ordering::SeqCst))),
            _ => {
                let from = request.query("offset").and_then(|from| from.parse().ok()).unwrap_or_default();
                log(logs.fetch_add(1, Ordering::SeqCst), from)
            }
        })
        .await;
        let tokens = SavedTokens { access: "a".into(), refresh: "r".into() };
        let client = Client::new(&server.url, Arc::new(MemoryTokens::new(tokens))).unwrap();
        (server, client)
    }

    async fn all(client: &Client, offset: u64, follow: bool) -> Result<Vec<LogRecord>, Failure> {
        let task = TaskId { job: swarm_protocol::JobId(42), task: 0 };
        let mut records = Vec::new();
        let options = LogOptions { attempt: Some(1), offset, follow };
        let reading = read(client, task, options, |record, _| {
            records.push(record.clone());
            Ok(())
        });
        tokio::time::timeout(Duration::from_secs(20), reading).await.expect("it ends").map(|()| records)
    }

    fn lost() -> serde_json::Value {
        samples::task("lost", None, json!([]))
    }

    #[tokio::test]
    async fn a_lost_attempt_s_log_that_ends_inside_a_record_is_shown_and_its_cut_told() {
        let mut log = Vec::new();
        record(b"whole\n").encode(&mut log);
        let whole = log.len();
        record(b"torn\n").encode(&mut log);
        for (end, marks) in [(log.len() - 2, 1), (whole + 3, 1), (whole, 0)] {
            let log = log[..end].to_vec();
            let answer = move |_, from: usize| Reply::bytes(200, &log[from..]).header("swarm-attempt", 1);
            let (_server, client) = core(answer, |_| lost()).await;
            for follow in [true, false] {
                let mut shown = all(&client, 0, follow).await.unwrap();
                assert_eq!(shown.remove(0), record(b"whole\n"));
                let told: Vec<_> = shown.iter().map(|it| (it.stream, &it.bytes[..])).collect();
                assert_eq!(told, vec![(LogStream::Cut, &b">=1"[..]); marks], "cut at {end}, followed: {follow}");
            }
        }
    }

    /// The record of a lost attempt says nothing of its log's length, and an answer may end before the log does.
    #[tokio::test]
    async fn a_followed_log_is_read_on_after_its_attempt_was_lost() {
        let mut log = Vec::new();
        record(b"one\n").encode(&mut log);
        let first = log.len();
        record(b"two\n").encode(&mut log);
        let answer = move |n, from: usize| {
            let end = if n == 0 { first } else { log.len() };
            Reply::bytes(200, &log[from..end]).header("swarm-attempt", 1)
        };
        let (_server, client) = core(answer, |_| lost()).await;
        assert_eq!(all(&client, 0, true).await.unwrap(), [record(b"one\n"), record(b"two\n")]);
    }

    /// The first answer was that of a core that stopped: what came until the attempt's end is with the next one.
    #[tokio::test]
    async fn a_followed_log_is_read_once_more_when_its_attempt_has_ended_meanwhile() {
        let mut log = Vec::new();
        record(b"late\n").encode(&mut log);
        let (length, bytes) = (log.len(), log);
        let answer = move |n, from: usize| {
            let rest = if n == 0 { &[] } else { &bytes[from..] };
            Reply::bytes(200, rest).header("swarm-attempt", 1)
        };
        let ended = move |_| {
            let mut task = samples::task("succeeded", Some(0), json!([]));
            task["attempts"][0]["log_bytes"] = length.into();
            task
        };
        let (_server, client) = core(answer, ended).await;
        assert_eq!(all(&client, 0, true).await.unwrap(), [record(b"late\n")]);
    }

    #[tokio::test]
    async fn what_is_not_the_fault_of_a_position_is_not_told_as_such() {
        let mut log = Vec::new();
        record(b"hello\n").encode(&mut log);
        let first = log.len();
        record(b"again\n").encode(&mut log);
        let from = first as u64;
        log.extend([9; 40]);
        let (bytes, end) = (log.clone(), log.len() - 40);
        let answer = move |_, from: usize| Reply::bytes(200, &bytes[from..]).header("swarm-attempt", 1);
        let (_server, client) = core(answer, |_| lost()).await;
        let damaged = all(&client, from, true).await.unwrap_err();
        assert_eq!(damaged.exit, Exit::Error, "{}", damaged.what);
        assert!(damaged.what.contains(&format!("byte {end}")), "{}", damaged.what);
        let (_server, client) = core(|_, _| Reply::bytes(200, "").header("swarm-attempt", 2), |_| lost()).await;
        let other = all(&client, from, true).await.unwrap_err();
        assert!(other.exit == Exit::Error && other.what.contains("another attempt"), "{}", other.what);
    }
}
