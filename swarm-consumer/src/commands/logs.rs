//! `logs`.

use std::time::Duration;

use swarm_client::{Client, LogOptions};
use swarm_protocol::api::TaskPhase;
use swarm_protocol::{AttemptNo, TaskId};

use super::waiting;
use crate::cli::Logs;
use crate::failure::{Done, Failure};
use crate::logtext::LogText;
use crate::output::Format;

/// How often a task is looked at that has not been given to a worker yet.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(250);

pub(crate) async fn run(client: &Client, logs: &Logs, format: Format) -> Done<u8> {
    let patient = waiting::patient(client);
    let client = if logs.follow { &patient } else { client };
    let mut text = LogText::new(format, logs.task, logs.timestamps);
    let attempt = match logs.attempt {
        Some(attempt) => attempt,
        None => newest(client, logs.task, logs.follow).await?,
    };
    print(client, logs.task, attempt, logs.follow, &mut text).await?;
    Ok(0)
}

/// The newest attempt; waits for the first one when the log is followed.
async fn newest(client: &Client, task: TaskId, follow: bool) -> Done<AttemptNo> {
    loop {
        let view = client.task(task).await?;
        if let Some(last) = view.attempts.last() {
            return Ok(last.attempt);
        }
        if view.phase == TaskPhase::Ended || !follow {
            let state = if view.phase == TaskPhase::Ended { "never ran" } else { "has not run yet" };
            let hint = format!("`{} why {}` tells why; -f waits for it", super::program(), task.job);
            return Err(Failure::new(crate::Exit::NotFound, format!("there is no log: task {task} {state}")).hint(hint));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Prints one attempt's log; followed, until the attempt has ended.
pub(crate) async fn print(
    client: &Client,
    task: TaskId,
    attempt: AttemptNo,
    follow: bool,
    text: &mut LogText,
) -> Done<()> {
    let mut offset = 0;
    loop {
        let mut tail = client.log(task, LogOptions { attempt: Some(attempt), offset, follow });
        while let Some(record) = tail.next().await? {
            text.write(attempt, &record)?;
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
