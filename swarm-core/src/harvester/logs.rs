//! The harvester's one way to the disk, on a thread of its own: it appends pieces of log in the order they came,
//! acknowledges what is durable, and checks a final report against what is really there. The thread's queue is bounded,
//! so a slow disk is backpressure on the links.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use swarm_host::blocking::Thread;
use swarm_protocol::link::{FinalReport, OutputReport, ToWorker};
use swarm_protocol::logs::{AT_LEAST_ONE, LogDecoder, LogRecord, LogStream};
use swarm_protocol::{AttemptId, Digest, WorkerId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::Deps;
use crate::blobs::{BlobError, BlobStore, LogKey};
use crate::cache::{Cache, LogNotice};
use crate::messages::LinkTx;
use crate::store::{Store, StoreError};
use crate::supervise::Gauge;

/// How many pieces may wait for the disk.
const QUEUE: usize = 1024;
/// Pieces that are given to the thread at one time.
const BATCH: usize = 64;
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
        /// The report again, with the log as it is here where the worker has lost a part of it, and what was found.
        reply: oneshot::Sender<(WorkerId, FinalReport, Checked)>,
    },
    /// The attempt is followed no more.
    Forget(AttemptId),
}

/// What came of checking a report.
#[derive(Debug)]
pub enum Checked {
    /// Log and outputs are all there.
    Whole,
    /// The report does not hold, and never will.
    Wrong(String),
    /// Of its log only so many bytes are stored: its worker has the rest.
    Short(u64),
    /// Disk or database cannot be read now.
    Unread(String),
}

/// Starts the thread and the task that gives it work. The task ends when every sender is gone and the queue is empty;
/// until then it holds the logs it writes, so nothing else can append to them.
///
/// # Errors
/// When the operating system gives no thread.
pub fn start(deps: &Deps, gauge: Gauge) -> std::io::Result<(mpsc::Sender<LogWork>, JoinHandle<()>)> {
    let (sender, mut inbox) = mpsc::channel(QUEUE);
    let thread = Thread::start("log-writer")?;
    let mut writer = Writer {
        blobs: Arc::clone(&deps.blobs),
        store: Arc::clone(&deps.store),
        cache: Arc::clone(&deps.cache),
        log_bytes_max: deps.log_bytes_max,
        gauge,
        hashes: HashMap::new(),
    };
    let task = tokio::spawn(async move {
        let mut batch = Vec::new();
        while inbox.recv_many(&mut batch, BATCH).await > 0 {
            let work = std::mem::take(&mut batch);
            writer = thread
                .run(move || {
                    work.into_iter().for_each(|work| writer.handle(work));
                    writer
                })
                .await;
        }
    });
    Ok((sender, task))
}

struct Writer {
    blobs: Arc<dyn BlobStore>,
    store: Arc<dyn Store>,
    cache: Arc<dyn Cache>,
    log_bytes_max: u64,
    gauge: Gauge,
    /// Running hash and length of the logs of attempts that are followed.
    hashes: HashMap<AttemptId, (Sha256, u64)>,
}

impl Writer {
    fn handle(&mut self, work: LogWork) {
        match work {
            LogWork::Append { attempt, offset, bytes, link } => match self.append(attempt, offset, &bytes) {
                Ok(offset) => {
                    self.cache.tell(LogNotice { attempt, bytes: offset, ended: false });
                    // A lost acknowledgement is made up for by the next one, or by the end of the attempt.
                    drop(link.try_send(ToWorker::LogStored { attempt, offset }));
                }
                Err(BlobError::Gap { have, .. }) => {
                    drop(link.try_send(ToWorker::LogStored { attempt, offset: have }));
                }
                // Not acknowledged: its worker sends it again, at the latest when its report is found to be ahead of it.
                Err(error) => {
                    let error = format!("{:#}", anyhow::Error::new(error));
                    tracing::warn!(%attempt, "a piece of log was not stored: {error}");
                    self.gauge.error(&format_args!("log of attempt {attempt} was not stored: {error}"));
                }
            },
            LogWork::Verify { worker, mut report, reply } => {
                let checked = self.check(&mut report);
                drop(reply.send((worker, *report, checked)));
            }
            LogWork::Forget(attempt) => drop(self.hashes.remove(&attempt)),
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

    fn check(&mut self, report: &mut FinalReport) -> Checked {
        let checked = self.check_log(report).unwrap_or_else(unreadable);
        if !matches!(checked, Checked::Whole) || report.outputs.is_empty() {
            return checked;
        }
        // A digest is not a right: a worker that merely knows one could hand out what it was never given.
        let sent = match self.store.sent_outputs(report.attempt) {
            Ok(sent) => sent,
            Err(error @ StoreError::Corrupt { .. }) => return Checked::Wrong(text(error)),
            Err(error) => return Checked::Unread(text(error)),
        };
        let is_sent = |output: &OutputReport| sent.contains(&(output.digest, output.size_bytes));
        if let Some(unsent) = report.outputs.iter().find(|output| !is_sent(output)) {
            return Checked::Wrong(format!("its output {} was not sent by this attempt", unsent.path));
        }
        self.check_outputs(report).unwrap_or_else(unreadable)
    }

    fn check_log(&mut self, report: &mut FinalReport) -> Result<Checked, BlobError> {
        let (hash, len) = self.hash_of(report.attempt)?;
        let (hash, len) = (hash.clone(), *len);
        let is_same = len == report.log_bytes && Digest(hash.clone().finalize().into()) == report.log_digest;
        Ok(if len < report.log_bytes.min(self.log_bytes_max) {
            Checked::Short(len)
        } else if report.log_cut_bytes > 0 && !is_same {
            self.take_as_cut(report)?
        } else if len != report.log_bytes {
            Checked::Wrong(format!("{len} of {} bytes of its log arrived", report.log_bytes))
        } else if Digest(hash.finalize().into()) != report.log_digest {
            Checked::Wrong("its log does not have the digest it reported".to_owned())
        } else {
            Checked::Whole
        })
    }

    /// A worker whose spool lost the end of a log, or could not take it, tells of the rest; what came here before that may
    /// be more, and other than its own last mark. What is here is kept then and marked as cut, and the report holds. Where
    /// it ends inside a record that is the mark.
    fn take_as_cut(&mut self, report: &mut FinalReport) -> Result<Checked, BlobError> {
        let (key, mut decoder, mut len, mut last) = (LogKey::from(report.attempt), LogDecoder::default(), 0, None);
        loop {
            let bytes = self.blobs.log_read(&key, len, READ_BYTES)?;
            if bytes.is_empty() {
                break;
            }
            len += bytes.len() as u64;
            decoder.push(&bytes);
            loop {
                match decoder.next_record() {
                    Ok(Some(record)) => last = Some((record.stream, record.at_us)),
                    Ok(None) => break,
                    Err(error) => return Ok(Checked::Wrong(format!("what came of its log is none: {error}"))),
                }
            }
        }
        // A report that is repeated finds the mark there.
        if decoder.is_empty() && !matches!(last, Some((LogStream::Cut, _))) {
            let (at_us, mut mark) = (last.map_or(0, |(_, at_us)| at_us), Vec::new());
            LogRecord { stream: LogStream::Cut, at_us, bytes: AT_LEAST_ONE.to_vec() }.encode(&mut mark);
            len = self.append(report.attempt, len, &mark)?;
        }
        tracing::warn!(attempt = %report.attempt, len, of = report.log_bytes, "a worker has lost a part of a log");
        report.log_bytes = len;
        Ok(Checked::Whole)
    }

    fn check_outputs(&self, report: &FinalReport) -> Result<Checked, BlobError> {
        for output in &report.outputs {
            if self.blobs.size(&output.digest)? != Some(output.size_bytes) {
                return Ok(Checked::Wrong(format!("its output {} is not stored as reported", output.path)));
            }
        }
        Ok(Checked::Whole)
    }
}

/// What is damaged stays so; what the system refuses now it may give later.
fn unreadable(error: BlobError) -> Checked {
    if matches!(error, BlobError::Io { .. }) { Checked::Unread(text(error)) } else { Checked::Wrong(text(error)) }
}

fn text(error: impl Into<anyhow::Error>) -> String {
    format!("{:#}", error.into())
}

#[cfg(test)]
mod tests {
    use swarm_protocol::{JobId, Outcome};
    use zeroize::Zeroizing;

    use super::*;
    use crate::blobs::{DiskBlobs, MasterKey};
    use crate::testing::{Memory, report};

    fn writer(dir: &std::path::Path) -> Writer {
        let key = Arc::new(MasterKey::from_bytes(Zeroizing::new([1; 32])));
        Writer {
            blobs: Arc::new(DiskBlobs::open(dir, key).unwrap()),
            store: Arc::new(Memory::default()),
            cache: crate::testing::cache(),
            log_bytes_max: 100,
            gauge: Gauge::without_inbox("harvester"),
            hashes: HashMap::new(),
        }
    }

    #[test]
    fn what_is_kept_of_a_log_in_memory_goes_with_its_attempt_however_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        let (link, mut stored) = mpsc::channel(8);
        let id = |job| AttemptId { job: JobId(job), task: 0, attempt: 1 };
        for job in 1..=3 {
            let (attempt, bytes) = (id(job), b"abc".to_vec());
            writer.handle(LogWork::Append { attempt, offset: 0, bytes, link: link.clone() });
            assert_eq!(stored.try_recv(), Ok(ToWorker::LogStored { attempt, offset: 3 }));
        }
        let reported =
            FinalReport { log_bytes: 3, log_digest: Digest::of(b"abc"), ..report(id(1), Outcome::Succeeded) };
        for _ in 0..2 {
            let (reply, mut answer) = oneshot::channel();
            writer.handle(LogWork::Verify { worker: WorkerId(1), report: Box::new(reported.clone()), reply });
            assert!(matches!(answer.try_recv().unwrap().2, Checked::Whole));
        }
        writer.handle(LogWork::Forget(id(1)));
        writer.handle(LogWork::Forget(id(2)));
        assert_eq!(writer.hashes.keys().collect::<Vec<_>>(), [&id(3)]);
    }

    #[test]
    fn a_report_of_less_log_than_came_holds_with_the_cut_marked_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        let record = |stream, bytes: &[u8]| LogRecord { stream, at_us: 7, bytes: bytes.to_vec() };
        let mut log = Vec::new();
        record(LogStream::Stdout, b"a\n").encode(&mut log);
        let first = log.len();
        record(LogStream::Stdout, b"b\n").encode(&mut log);
        let mut marked = log.clone();
        record(LogStream::Cut, AT_LEAST_ONE).encode(&mut marked);
        // What the worker still has: nothing, or the first record with a mark of its own.
        let mut own = log[..first].to_vec();
        record(LogStream::Cut, AT_LEAST_ONE).encode(&mut own);
        let cases = [
            (&log[..], &b""[..], marked.len()),
            // Ends inside a record, which tells it already.
            (&log[..first + 5], b"", first + 5),
            (&own[..], &own[..], own.len()),
            (&marked[..own.len()], &own[..], own.len()),
        ];
        for (job, (came, has, kept)) in (1..).zip(cases) {
            let attempt = AttemptId { job: JobId(job), task: 0, attempt: 1 };
            writer.append(attempt, 0, came).unwrap();
            let reported = FinalReport {
                log_bytes: has.len() as u64,
                log_digest: Digest::of(has),
                log_cut_bytes: 1,
                ..report(attempt, Outcome::Failed { exit_code: 3 })
            };
            for _ in 0..2 {
                let mut reported = reported.clone();
                let checked = writer.check(&mut reported);
                assert!(matches!(checked, Checked::Whole), "{job}: {checked:?}");
                assert_eq!((reported.log_bytes, reported.log_cut_bytes), (kept as u64, 1), "{job}");
                let log = writer.blobs.log_read(&attempt.into(), 0, 200).unwrap();
                assert_eq!(log.len(), kept, "{job}");
            }
            // A log that is told to be whole must be what is reported.
            let checked = writer.check(&mut FinalReport { log_cut_bytes: 0, ..reported });
            assert_eq!(matches!(checked, Checked::Wrong(_)), came != has, "{job}: {checked:?}");
        }
        assert_eq!(
            writer.blobs.log_read(&LogKey::from(AttemptId { job: JobId(1), task: 0, attempt: 1 }), 0, 200).unwrap(),
            marked
        );
    }

    #[test]
    fn a_report_of_a_damaged_log_does_not_hold() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        let attempt = AttemptId { job: JobId(1), task: 0, attempt: 1 };
        for offset in [0, 3] {
            writer.append(attempt, offset, b"abc").unwrap();
        }
        let log = b"abcabc";
        let mut reported = FinalReport {
            log_bytes: log.len() as u64,
            log_digest: Digest::of(log),
            ..report(attempt, Outcome::Succeeded)
        };
        assert!(matches!(writer.check(&mut reported), Checked::Whole));
        writer.handle(LogWork::Forget(attempt));
        let shards = std::fs::read_dir(dir.path().join("logs")).unwrap();
        let logs = shards.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap());
        let path = logs.map(|log| log.unwrap().path()).next().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        // The last byte of the first of two pieces: what is damaged at the end counts as not written.
        let at = bytes.len() / 2 - 1;
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let checked = writer.check(&mut reported);
        assert!(matches!(checked, Checked::Wrong(_)), "{checked:?}");
    }
}
