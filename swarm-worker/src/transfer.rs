//! Bytes between worker and core over HTTP: the join, blobs down and outputs up, both resumed and verified.
//!
//! Blobs come from `GET /api/v1/link/attempts/{job}/{task}/{attempt}/blobs/{digest}` (with `Range: bytes=N-` after a
//! break), outputs go to `POST …/outputs` with `Digest-Expected` (after a break with `Upload-Offset` too, as
//! `GET …/outputs/{digest}` tells it), all with the worker's key. Breaks and 5xx answers are retried with backoff for as
//! long as the caller waits (an attempt's lease bounds that); other refusals are final.

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use rand::RngExt;
use reqwest::{Method, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest as _, Sha256};
use swarm_client::{Http, Timeouts, UploadError, read_from};
use swarm_protocol::api::{FileView, JoinAnswer, JoinRequest, UploadView};
use swarm_protocol::problem::Problem;
use swarm_protocol::text::sanitise;
use swarm_protocol::{AttemptId, Digest};
use url::Url;

use crate::runtime::ByteStream;

/// For a whole join.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Growing, jittered pauses: 0.2 s doubling up to 15 s, each times 0.5 to 1.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait before the next try.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let full = 0.2 * 2f64.powi(self.failures.min(16) as i32);
        self.failures += 1;
        Duration::from_secs_f64(full.min(15.0) * rand::rng().random_range(0.5..1.0))
    }

    /// Something worked: begin again with short pauses.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Why a join gave no key.
#[derive(Debug)]
pub(crate) enum JoinError {
    /// Trying again cannot help.
    Refused(Box<Problem>),
    /// No answer, or one that says to come again.
    Unreachable(anyhow::Error),
}

/// Why a transfer was given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TransferError {
    /// The core does not want or have this any more.
    #[error("the core answered {status}: {detail}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The core's words.
        detail: String,
    },
    /// Too many bytes for the core.
    #[error("the core finds it too large: {0}")]
    TooLarge(String),
    /// The bytes are not those of the digest.
    #[error("{0} has other bytes than its digest says")]
    Corrupt(Digest),
    /// The spooled file cannot be read.
    #[error("the spool cannot be read: {0}")]
    Spool(String),
}

/// What spoilt a stream handed to the engine, for whoever sees only the engine's complaint.
pub(crate) type Fault = Arc<OnceLock<TransferError>>;

/// Asks for this worker's key.
pub(crate) async fn join(core: &Url, token: &str, worker: &str) -> Result<JoinAnswer, JoinError> {
    let unreachable = |error: reqwest::Error| JoinError::Unreachable(error.without_url().into());
    let request = JoinRequest { token: token.to_owned(), worker: worker.to_owned() };
    let url = core.join("/api/v1/workers/join").map_err(|error| JoinError::Unreachable(error.into()))?;
    let call = http(core, Timeouts::default()).map_err(unreachable)?.call(Method::POST, url);
    let answer = call.json(&request).timeout(JOIN_TIMEOUT).send().await.map_err(unreachable)?;
    if answer.status().is_success() {
        return answer.json().await.map_err(unreachable);
    }
    let again = is_transient(answer.status());
    let problem = problem_of(answer).await;
    Err(if again {
        JoinError::Unreachable(anyhow::anyhow!("{problem}"))
    } else {
        JoinError::Refused(Box::new(problem))
    })
}

fn http(core: &Url, timeouts: Timeouts) -> Result<Http, reqwest::Error> {
    Http::new(timeouts, core.scheme() == "http")
}

fn is_transient(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS | StatusCode::PRECONDITION_FAILED
        )
}

/// The problem in an error answer, or one made of its status.
async fn problem_of(mut answer: Response) -> Problem {
    let status = answer.status();
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > 64 << 10 {
            break;
        }
    }
    let plain = || Problem::new(status.as_u16(), "http", "The request failed", status.to_string());
    let mut problem: Problem = serde_json::from_slice(&body).unwrap_or_else(|_| plain());
    problem.detail = sanitise(&problem.detail, false);
    problem
}

/// The worker's file routes.
#[derive(Debug, Clone)]
pub(crate) struct Transfer {
    http: Http,
    core: Url,
    key: SecretString,
}

impl Transfer {
    pub(crate) fn new(core: Url, key: SecretString) -> anyhow::Result<Self> {
        Self::with_timeouts(core, key, Timeouts::default())
    }

    fn with_timeouts(core: Url, key: SecretString, timeouts: Timeouts) -> anyhow::Result<Self> {
        Ok(Self { http: http(&core, timeouts)?, core, key })
    }

    fn url(&self, attempt: AttemptId, rest: &str) -> String {
        let AttemptId { job, task, attempt } = attempt;
        format!("{}api/v1/link/attempts/{job}/{task}/{attempt}/{rest}", self.core)
    }

    /// A blob as a stream that resumes after breaks and ends with an error unless the bytes have this digest and size:
    /// the last piece is held back until they are verified. The reason of an error is left in `fault` too.
    pub(crate) fn blob(&self, attempt: AttemptId, digest: Digest, size_bytes: u64, fault: Fault) -> ByteStream {
        let fetch = Fetch {
            transfer: self.clone(),
            attempt,
            digest,
            size_bytes,
            fault,
            offset: 0,
            hasher: Sha256::new(),
            body: None,
            held_back: None,
            backoff: Backoff::default(),
        };
        stream::try_unfold(fetch, |mut fetch| async move {
            match fetch.next().await {
                Ok(chunk) => Ok(chunk.map(|chunk| (chunk, fetch))),
                Err(error) => {
                    let _ = fetch.fault.set(error.clone());
                    Err(io::Error::other(error))
                }
            }
        })
        .boxed()
    }

    /// A small blob in memory.
    pub(crate) async fn small_blob(
        &self,
        attempt: AttemptId,
        digest: Digest,
        size_bytes: u64,
    ) -> Result<Bytes, TransferError> {
        let fault = Fault::default();
        let mut stream = self.blob(attempt, digest, size_bytes, fault.clone());
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            let Ok(chunk) = chunk else { return Err(fault.get().cloned().unwrap_or(TransferError::Corrupt(digest))) };
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }

    /// Sends the file `path` until the core has it durably.
    pub(crate) async fn upload(
        &self,
        attempt: AttemptId,
        path: &Path,
        digest: Digest,
        size_bytes: u64,
    ) -> Result<(), TransferError> {
        let (mut backoff, mut offset) = (Backoff::default(), 0);
        loop {
            let bytes = read_from(path, offset).await.map_err(|error| TransferError::Spool(error.to_string()))?;
            let mut request = self
                .http
                .upload_call(Method::POST, self.url(attempt, "outputs"))
                .bearer_auth(self.key.expose_secret())
                .header("Digest-Expected", digest.to_string());
            if offset > 0 {
                request = request.header("Upload-Offset", offset);
            }
            let rest = Some(size_bytes.saturating_sub(offset));
            let why = match self.http.upload(request, rest, bytes, Arc::new(|_| ())).await {
                Ok(answer) if answer.status().is_success() => match answer.json::<FileView>().await {
                    Ok(view) if view.digest == digest => return Ok(()),
                    Ok(_) => return Err(TransferError::Corrupt(digest)),
                    Err(error) => error.without_url().to_string(),
                },
                Ok(answer) => {
                    let (status, problem) = (answer.status(), problem_of(answer).await);
                    // The core ends an upload that comes too slowly, and says that more of it is welcome.
                    if !problem.retryable && !is_transient(status) {
                        return Err(refusal(status, problem.detail));
                    }
                    status.to_string()
                }
                Err(UploadError::Broken(error)) => error.without_url().to_string(),
                Err(UploadError::Source(error)) => return Err(TransferError::Spool(error.to_string())),
                Err(stalled @ UploadError::Stalled(_)) => stalled.to_string(),
            };
            tracing::warn!(%attempt, why, "an output could not be stored, trying again");
            tokio::time::sleep(backoff.next_pause()).await;
            offset = self.sent(attempt, digest).await.min(size_bytes);
        }
    }

    /// How much of an output that broke off the core has; 0 when it does not say.
    async fn sent(&self, attempt: AttemptId, digest: Digest) -> u64 {
        let request = self.http.call(Method::GET, self.url(attempt, &format!("outputs/{digest}")));
        let answer = request.bearer_auth(self.key.expose_secret()).send().await.and_then(Response::error_for_status);
        let Ok(answer) = answer else { return 0 };
        answer.json::<UploadView>().await.map_or(0, |there| there.offset)
    }
}

fn refusal(status: StatusCode, detail: String) -> TransferError {
    match status {
        StatusCode::PAYLOAD_TOO_LARGE => TransferError::TooLarge(detail),
        _ => TransferError::Refused { status: status.as_u16(), detail },
    }
}

/// One blob on its way, over as many requests as it takes.
struct Fetch {
    transfer: Transfer,
    attempt: AttemptId,
    digest: Digest,
    size_bytes: u64,
    fault: Fault,
    offset: u64,
    hasher: Sha256,
    body: Option<Response>,
    held_back: Option<Bytes>,
    backoff: Backoff,
}

impl Fetch {
    async fn next(&mut self) -> Result<Option<Bytes>, TransferError> {
        loop {
            if self.offset == self.size_bytes && self.body.is_none() {
                return self.finish();
            }
            let Some(body) = &mut self.body else {
                self.open().await?;
                continue;
            };
            match body.chunk().await {
                Ok(Some(chunk)) => {
                    self.offset += chunk.len() as u64;
                    if self.offset > self.size_bytes {
                        return Err(TransferError::Corrupt(self.digest));
                    }
                    self.hasher.update(&chunk);
                    self.backoff.reset();
                    if let Some(previous) = self.held_back.replace(chunk) {
                        return Ok(Some(previous));
                    }
                }
                // An early end and a break are resumed alike.
                Ok(None) | Err(_) => {
                    self.body = None;
                    if self.offset < self.size_bytes {
                        tokio::time::sleep(self.backoff.next_pause()).await;
                    }
                }
            }
        }
    }

    fn finish(&mut self) -> Result<Option<Bytes>, TransferError> {
        let found: [u8; 32] = self.hasher.clone().finalize().into();
        if found != self.digest.0 {
            return Err(TransferError::Corrupt(self.digest));
        }
        Ok(self.held_back.take())
    }

    /// Opens the rest of the blob, however often it takes.
    async fn open(&mut self) -> Result<(), TransferError> {
        loop {
            let url = self.transfer.url(self.attempt, &format!("blobs/{}", self.digest));
            let key = self.transfer.key.expose_secret();
            let mut request = self.transfer.http.call(Method::GET, url).bearer_auth(key);
            if self.offset > 0 {
                request = request.header("Range", format!("bytes={}-", self.offset));
            }
            let expected = if self.offset > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
            let why = match request.send().await {
                Ok(answer) if answer.status() == expected => {
                    self.body = Some(answer);
                    return Ok(());
                }
                Ok(answer) if is_transient(answer.status()) => answer.status().to_string(),
                Ok(answer) => {
                    let status = answer.status();
                    return Err(refusal(status, problem_of(answer).await.detail));
                }
                Err(error) => error.without_url().to_string(),
            };
            tracing::warn!(attempt = %self.attempt, digest = %self.digest.short(), why, "a blob could not be fetched, trying again");
            tokio::time::sleep(self.backoff.next_pause()).await;
        }
    }
}

#[cfg(test)]
mod tests;
