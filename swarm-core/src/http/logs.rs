//! Logs and outputs of attempts.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use rocket::request::Request;
use rocket::response::{Responder, Result as Responded};
use rocket::{State, get};
use swarm_protocol::{AttemptId, AttemptNo};
use tokio_util::io::StreamReader;

use super::ApiState;
use super::guards::{Headers, User, optional, param};
use super::jobs::visible_task;
use super::openapi::OutOfRange;
use super::problem::{Answer, Failure, invalid, not_found};
use super::transfer::{Download, bytes_answer, send_blob};
use crate::archive::newest_attempt;
use crate::blobs::LogKey;
use crate::cache::Ear;
use swarm_host::blocking;

const CHUNK_BYTES: usize = 256 << 10;
/// How soon a follower looks again without being told to: sooner after bytes came, later in silence.
const POLL_MIN: Duration = Duration::from_millis(100);
const POLL_MAX: Duration = Duration::from_secs(1);

/// An attempt's log being sent.
pub(super) struct LogAnswer {
    attempt: AttemptNo,
    reader: Reader,
}

struct Reader {
    state: Arc<ApiState>,
    attempt: AttemptId,
    offset: u64,
    follow: bool,
    /// Told of new bytes, and of the end.
    ear: Ear,
    pause: Duration,
    /// Why it looks.
    look: Look,
    ended: bool,
}

/// Why a follower looks at a log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// On its own account.
    Wholly,
    /// It was told of new bytes, or of the end.
    Told { ended: bool },
    /// It has just read some.
    ForMore,
}

impl<'r> Responder<'r, 'static> for LogAnswer {
    fn respond_to(self, _: &'r Request<'_>) -> Responded<'static> {
        let mut answer = bytes_answer();
        answer.raw_header("Swarm-Attempt", self.attempt.to_string());
        answer.streamed_body(StreamReader::new(Box::pin(pieces(self.reader)))).max_chunk_size(CHUNK_BYTES).ok()
    }
}

fn pieces(reader: Reader) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold(reader, |mut reader| async move {
        let piece = reader.next().await?;
        Ok(piece.map(|bytes| (bytes, reader)))
    })
}

impl Reader {
    /// The next bytes; none at the end. Whether the attempt has ended is asked before its bytes are read, so that none
    /// that came in between are missed.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if !self.ended && matches!(self.look, Look::Wholly | Look::Told { ended: true }) {
                self.ended = !self.follow || self.has_ended().await?;
            }
            let (blobs, key, offset) = (Arc::clone(&self.state.blobs), LogKey::from(self.attempt), self.offset);
            let bytes = blocking::run(move || blobs.log_read(&key, offset, CHUNK_BYTES)).await;
            let bytes = self.state.served(bytes).map_err(io::Error::other)?;
            if !bytes.is_empty() {
                self.offset += bytes.len() as u64;
                (self.pause, self.look) = (POLL_MIN, Look::ForMore);
                return Ok(Some(bytes.into()));
            }
            if self.ended {
                return Ok(None);
            }
            if let Look::Told { .. } = self.look {
                // Of what is not so: notices may be lies, and must not make it look all the time.
                self.unless_stopped(tokio::time::sleep(POLL_MIN)).await?;
            }
            self.look = self.wait().await?;
        }
    }

    /// Waits until there is something to look for, or it is time to look for it anyway.
    async fn wait(&mut self) -> io::Result<Look> {
        let (offset, pause, stop) = (self.offset, self.pause, self.state.stop().clone());
        tokio::select! {
            notice = self.ear.beyond(offset) => Ok(Look::Told { ended: notice.ended }),
            () = tokio::time::sleep(pause) => {
                self.pause = (pause * 2).min(POLL_MAX);
                Ok(Look::Wholly)
            }
            () = stop.cancelled() => Err(gone()),
        }
    }

    async fn unless_stopped(&self, waiting: impl Future<Output = ()>) -> io::Result<()> {
        tokio::select! {
            () = waiting => Ok(()),
            () = self.state.stop().cancelled() => Err(gone()),
        }
    }

    async fn has_ended(&self) -> io::Result<bool> {
        let attempt = self.attempt;
        let record = self.state.read(move |store| store.attempt(attempt)).await;
        let record = record.map_err(|Failure(problem)| io::Error::other(problem.detail))?;
        // A recalled attempt leaves no row: nothing more comes from it.
        Ok(record.is_none_or(|record| record.ended_at.is_some()))
    }
}

/// An error, not an end: the reader goes on at another core.
fn gone() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

/// The log of an attempt
///
/// Records of the project's own form, each with stream, time and bytes (see `swarm_protocol::logs`). `Swarm-Attempt` in the answer tells which attempt it is.
#[utoipa::path(
    tag = "jobs",
    security(("account" = ["viewer"])),
    params(
        ("attempt" = Option<u16>, Query, description = "The newest by default", minimum = 1),
        ("offset" = Option<u64>, Query, description = "From which byte of the records on"),
        ("follow" = Option<bool>, Query, description = "Go on until the attempt ends"),
    ),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream", description = "Records"),
    ),
)]
#[get("/jobs/<job>/tasks/<task>/log?<attempt>&<offset>&<follow>")]
pub(super) async fn log(
    user: User,
    job: &str,
    task: &str,
    attempt: Option<&str>,
    offset: Option<&str>,
    follow: Option<&str>,
    state: &State<Arc<ApiState>>,
) -> Answer<LogAnswer> {
    let (job, task) = visible_task(state, &user.account, job, task).await?;
    let offset = optional("offset", offset)?.unwrap_or(0);
    let follow = optional("follow", follow)?.unwrap_or(false);
    let newest = newest_attempt(&task);
    let which = format!("of task {}.{} yet; `why` tells what it waits for", job.id, task.task);
    let newest = newest.ok_or_else(|| not_found("attempt", which))?;
    let attempt = optional("attempt", attempt)?.unwrap_or(newest);
    let known = attempt == newest || task.attempts.iter().any(|ended| ended.id.attempt == attempt);
    let id = AttemptId { job: job.id, task: task.task, attempt };
    if !known {
        return Err(not_found("attempt", id));
    }
    let (state, ear) = (Arc::clone(state), state.cache.hear(id));
    let (pause, look, ended) = (POLL_MIN, Look::Wholly, false);
    let reader = Reader { state, attempt: id, offset, follow, ear, pause, look, ended };
    Ok(LogAnswer { attempt, reader })
}

/// An output of an attempt
///
/// An unfinished download goes on by `Range`.
#[utoipa::path(
    tag = "jobs",
    security(("account" = ["viewer"])),
    params(
        ("attempt" = Option<u16>, Query, description = "The one that counts by default", minimum = 1),
        ("Range" = Option<String>, Header, description = "`bytes=FIRST-`: from there on; anything else gets the whole"),
    ),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream", description = "The whole"),
        (status = 206, body = Vec<u8>, content_type = "application/octet-stream", description = "The range"),
        OutOfRange,
    ),
)]
#[get("/jobs/<job>/tasks/<task>/outputs/<n>?<attempt>")]
pub(super) async fn output(
    user: User,
    job: &str,
    task: &str,
    n: &str,
    attempt: Option<&str>,
    headers: Headers,
    state: &State<Arc<ApiState>>,
) -> Answer<Download> {
    let (job, task) = visible_task(state, &user.account, job, task).await?;
    let index: usize = param("n", n)?;
    let asked: Option<AttemptNo> = optional("attempt", attempt)?;
    let chosen = task.attempts.iter().find(|ended| match asked {
        Some(asked) => ended.id.attempt == asked,
        None => ended.is_final,
    });
    let chosen = chosen.ok_or_else(|| match asked {
        Some(asked) => not_found("attempt", format!("{}.{}.{asked} that has ended", job.id, task.task)),
        None => not_found("output", format!("of task {}.{}, which has not ended", job.id, task.task)),
    })?;
    let output = chosen.outputs.get(index).ok_or_else(|| match chosen.outputs.len() {
        0 => not_found("output", format!("{index}: the attempt has none")),
        count => invalid("n", format!("{index} is out of range"), format!("give 0 to {}", count - 1)),
    })?;
    send_blob(state, output.digest, headers.range.as_deref()).await
}
