//! Bytes between worker and core: blobs down and outputs up, both resumed and verified. What breaks off is tried again with
//! backoff for as long as the caller waits (an attempt's lease bounds that); refusals are final.

use std::io;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use swarm_host::blocking;
use swarm_protocol::problem::Problem;
use swarm_protocol::{AttemptId, Digest};

use crate::chance::{Backoff, Chance};
use crate::network::{CallError, Network, Rest};
use crate::runtime::ByteStream;

/// The HTTP status that says so.
const PAYLOAD_TOO_LARGE: u16 = 413;
/// How often what comes with other bytes than its digest says is fetched before it is given up.
const CORRUPT_TRIES: u32 = 3;
/// Read from a file at a time.
const READ_BYTES: usize = 256 << 10;

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

/// The worker's way to the core's files.
#[derive(Clone)]
pub(crate) struct Transfer {
    network: Arc<dyn Network>,
    key: SecretString,
    chance: Chance,
}

impl Transfer {
    pub(crate) fn new(network: Arc<dyn Network>, key: SecretString, chance: Chance) -> Self {
        Self { network, key, chance }
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
            backoff: Backoff::new(&self.chance),
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

    /// A small blob in memory; one that was changed on its way is fetched again.
    pub(crate) async fn small_blob(
        &self,
        attempt: AttemptId,
        digest: Digest,
        size_bytes: u64,
    ) -> Result<Bytes, TransferError> {
        let mut tries = Tries::default();
        loop {
            match self.read_blob(attempt, digest, size_bytes).await {
                Err(error) if tries.again(attempt, &error) => {}
                read => return read,
            }
        }
    }

    async fn read_blob(&self, attempt: AttemptId, digest: Digest, size_bytes: u64) -> Result<Bytes, TransferError> {
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
        let (mut backoff, mut offset) = (Backoff::new(&self.chance), 0);
        loop {
            let bytes = read_from(path, offset).await.map_err(|error| TransferError::Spool(error.to_string()))?;
            let rest = Rest { digest, offset, size_bytes: size_bytes.saturating_sub(offset), bytes };
            let why = match self.network.upload(&self.key, attempt, rest).await {
                Ok(stored) if stored == digest => return Ok(()),
                Ok(_) => return Err(TransferError::Corrupt(digest)),
                Err(CallError::Source(error)) => return Err(TransferError::Spool(error.to_string())),
                Err(CallError::Refused(problem)) => return Err(refusal(*problem)),
                Err(CallError::Again(why)) => why,
            };
            tracing::warn!(%attempt, why, "an output could not be stored, trying again");
            tokio::time::sleep(backoff.next_pause()).await;
            // A core that does not say how much of it is there has nothing.
            offset = self.network.sent(&self.key, attempt, digest).await.unwrap_or(0).min(size_bytes);
        }
    }
}

/// Counts the tries of something that is made of blobs, and may be begun anew when one came changed.
#[derive(Debug, Default)]
pub(crate) struct Tries(u32);

impl Tries {
    /// Whether to begin anew after this error.
    pub(crate) fn again(&mut self, attempt: AttemptId, error: &TransferError) -> bool {
        self.0 += 1;
        let again = matches!(error, TransferError::Corrupt(_)) && self.0 < CORRUPT_TRIES;
        if again {
            tracing::warn!(%attempt, %error, "a blob was changed on its way, beginning anew");
        }
        again
    }
}

/// The bytes of a file from `offset` on.
async fn read_from(path: &Path, offset: u64) -> io::Result<ByteStream> {
    let path = path.to_owned();
    let file = blocking::run(move || {
        let mut file = std::fs::File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        io::Result::Ok(file)
    });
    let bytes = stream::try_unfold(file.await?, |mut file| async {
        blocking::run(move || {
            let mut piece = vec![0; READ_BYTES];
            let length = file.read(&mut piece)?;
            piece.truncate(length);
            Ok((length > 0).then(|| (Bytes::from(piece), file)))
        })
        .await
    });
    Ok(bytes.boxed())
}

fn refusal(problem: Problem) -> TransferError {
    match problem.status {
        PAYLOAD_TOO_LARGE => TransferError::TooLarge(problem.detail),
        status => TransferError::Refused { status, detail: problem.detail },
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
    body: Option<ByteStream>,
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
            match body.next().await {
                Some(Ok(chunk)) => {
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
                None | Some(Err(_)) => {
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
            let Transfer { network, key, .. } = &self.transfer;
            let why = match network.blob(key, self.attempt, self.digest, self.offset).await {
                Ok(body) => {
                    self.body = Some(body);
                    return Ok(());
                }
                Err(CallError::Refused(problem)) => return Err(refusal(*problem)),
                Err(error) => error,
            };
            tracing::warn!(attempt = %self.attempt, digest = %self.digest.short(), %why, "a blob could not be fetched, trying again");
            tokio::time::sleep(self.backoff.next_pause()).await;
        }
    }
}

#[cfg(test)]
mod tests;
