//! The harvester's one thread that touches the disk: it appends pieces of log in the order they came, acknowledges what
//! is durable, and checks a final report against what is really there. The thread's queue is bounded, so a slow disk
//! is backpressure on the links.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use swarm_protocol::link::{FinalReport, ToWorker};
use swarm_protocol::{AttemptId, Digest, WorkerId};
use tokio::sync::{mpsc, oneshot};

use crate::blobs::{BlobError, BlobStore, LogKey};
use crate::messages::LinkTx;

/// How many pieces may wait for the disk.
const QUEUE: usize = 1024;
/// How many bytes are read at a time to catch up with a log written before a restart.
const READ_BYTES: usize = 1 << 20;

/// Work for the thread.
pub enum LogWork {
    /// A piece of log.
    Append {
        /// Whose.
        attempt: AttemptId,
        /// Where it begins in the encoded log.
        offset: u64,
        /// The piece.
        bytes: Vec<u8>,
        /// Where the acknowledgement goes.
        link: LinkTx,
    },
    /// A final report: are its log and outputs all there?
    Verify {
        /// The sender.
        worker: WorkerId,
        /// The report.
        report: Box<FinalReport>,
        /// The report again, and what is missing.
        reply: oneshot::Sender<(WorkerId, FinalReport, Option<String>)>,
    },
}

/// Starts the thread. It ends when every sender is gone and the queue is empty.
///
/// # Errors
/// When the operating system gives no thread.
pub fn start(blobs: Arc<dyn BlobStore>, log_bytes_max: u64) -> std::io::Result<mpsc::Sender<LogWork>> {
    let (sender, mut inbox) = mpsc::channel(QUEUE);
    std::thread::Builder::new().name("log-writer".into()).spawn(move || {
        let mut writer = Writer { blobs, log_bytes_max, hashes: HashMap::new() };
        while let Some(work) = inbox.blocking_recv() {
            writer.handle(work);
        }
    })?;
    Ok(sender)
}

struct Writer {
    blobs: Arc<dyn BlobStore>,
    log_bytes_max: u64,
    /// Running hash and length of the logs being written.
    hashes: HashMap<AttemptId, (Sha256, u64)>,
}

impl Writer {
    fn handle(&mut self, work: LogWork) {
        match work {
            LogWork::Append { attempt, offset, bytes, link } => match self.append(attempt, offset, &bytes) {
                // A lost acknowledgement is made up for by the next one, or by the end of the attempt.
                Ok(offset) => drop(link.try_send(ToWorker::LogStored { attempt, offset })),
                Err(BlobError::Gap { have, .. }) => {
                    drop(link.try_send(ToWorker::LogStored { attempt, offset: have }));
                }
                Err(error) => {
                    tracing::warn!(%attempt, "a piece of log was not stored: {:#}", anyhow::Error::new(error));
                }
            },
            LogWork::Verify { worker, report, reply } => {
                let problem =
                    self.verify(&report).unwrap_or_else(|error| Some(format!("{:#}", anyhow::Error::new(error))));
                self.hashes.remove(&report.attempt);
                drop(reply.send((worker, *report, problem)));
            }
        }
    }

    fn append(&mut self, attempt: AttemptId, offset: u64, bytes: &[u8]) -> Result<u64, BlobError> {
        // The worker cuts at its bound and says so; what comes beyond is not from an honest worker.
        let room = self.log_bytes_max.saturating_sub(offset);
        let bytes = &bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        let (_, before) = self.hash_of(attempt)?;
        let before = *before;
        let after = self.blobs.log_append(&attempt.into(), offset, bytes)?;
        if after > before {
            // `offset <= before`, or the append would have been a gap.
            let new = &bytes[(before - offset) as usize..(after - offset) as usize];
            let (hash, len) = self.hash_of(attempt)?;
            hash.update(new);
            *len = after;
        }
        Ok(after)
    }

    /// The running hash, caught up with what is stored.
    fn hash_of(&mut self, attempt: AttemptId) -> Result<&mut (Sha256, u64), BlobError> {
        if !self.hashes.contains_key(&attempt) {
            let (key, mut hash, mut len) = (LogKey::from(attempt), Sha256::new(), 0);
            loop {
                let bytes = self.blobs.log_read(&key, len, READ_BYTES)?;
                if bytes.is_empty() {
                    break;
                }
                hash.update(&bytes);
                len += bytes.len() as u64;
            }
            self.hashes.insert(attempt, (hash, len));
        }
        Ok(self.hashes.get_mut(&attempt).expect("just inserted"))
    }

    /// What is wrong with the report, if anything.
    fn verify(&mut self, report: &FinalReport) -> Result<Option<String>, BlobError> {
        let (hash, len) = self.hash_of(report.attempt)?;
        if *len != report.log_bytes {
            return Ok(Some(format!("{len} of {} bytes of its log arrived", report.log_bytes)));
        }
        if Digest(hash.clone().finalize().into()) != report.log_digest {
            return Ok(Some("its log does not have the digest it reported".to_owned()));
        }
        for output in &report.outputs {
            match self.blobs.size(&output.digest)? {
                Some(size) if size == output.size_bytes => {}
                _ => return Ok(Some(format!("output {} is not stored as reported", output.path))),
            }
        }
        Ok(None)
    }
}
