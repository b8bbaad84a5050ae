//! `logs`.

use std::time::Duration;

use swarm_client::{Client, ClientError, LogOptions};
use swarm_protocol::api::TaskPhase;
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
    let mut offset = from;
    loop {
        let mut tail = client.log(task, LogOptions { attempt: Some(attempt), offset, follow });
        while let Some(record) = tail.next().await.map_err(|error| unreadable(error, from))? {
            text.write(attempt, &record, tail.offset())?;
        }
        if !follow {
            return text.finish();
        }
        // A core that stops also ends the answer; only the attempt's own end counts.
        let (moved, before) = (tail.offset(), offset);
        offset = moved;
        let view = client.task(task).await?;
        let it = view.attempts.iter().find(|it| it.attempt == attempt);
        let ended = it.is_none_or(|it| it.phase == TaskPhase::Ended && it.log_bytes <= offset);
        if ended || (moved == before && it.is_some_and(|it| it.phase == TaskPhase::Ended)) {
            return text.finish();
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Where a log was begun at a position that somebody gave, bytes that are no log tell that it is none.
fn unreadable(error: ClientError, from: u64) -> Failure {
    if from > 0 && matches!(error, ClientError::Protocol { .. }) {
        let hint = "give the `next` of a record that `logs --output json` printed, or count bytes with --skip-stdout";
        return Failure::usage(format!("no record of the log begins at {from}")).hint(hint);
    }
    error.into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser as _;
    use serde_json::json;
    use swarm_client::{MemoryTokens, SavedTokens};
    use swarm_protocol::logs::{LogRecord, LogStream};

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
}
