//! The harvester's one way to the disk, on a thread of its own: it appends pieces of log in the order they came,
//! acknowledges what is durable, and checks a final report against what is really there. The thread's queue is bounded,
//! so a slow disk is backpressure on the links.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use swarm_host::blocking::Thread;
use swarm_protocol::link::{FinalReport, OutputReport, ToWorker};
use swarm_protocol::logs::{AT_LEAST_ONE, HEADER_BYTES, LogDecoder, LogRecord, LogStream};
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
    /// The core gives the attempt up: how much is kept of its log? Nothing is added from now on, until it is forgotten.
    Left {
        /// Whose.
        attempt: AttemptId,
        /// Bytes, with the mark that is to come.
        reply: oneshot::Sender<u64>,
    },
    /// That it was given up is committed: its log ends here, and says that it may lack something.
    Cut(AttemptId),
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
        kept: HashMap::new(),
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
    /// Of the logs of attempts that are followed.
    kept: HashMap<AttemptId, Kept>,
}

/// What is known of a log without reading it again.
#[derive(Default)]
struct Kept {
    hash: Sha256,
    len: u64,
    /// The header of the record that is not whole yet, as far as it is there.
    header: Vec<u8>,
    /// What its payload lacks, once the header is there.
    lacks: u64,
    /// The engine's stamp of the last record.
    last_at_us: u64,
    /// Nothing more is taken: how much there is was told to whoever gives the attempt up.
    is_closed: bool,
}

impl Kept {
    fn add(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.header.len() < HEADER_BYTES {
                let (header, more) = rest.split_at(rest.len().min(HEADER_BYTES - self.header.len()));
                self.header.extend_from_slice(header);
                rest = more;
                let Some((at_us, len)) = header_of(&self.header) else { return };
                (self.last_at_us, self.lacks) = (at_us, len.into());
            }
            let payload = rest.len().min(usize::try_from(self.lacks).unwrap_or(usize::MAX));
            self.lacks -= payload as u64;
            rest = &rest[payload..];
            if self.lacks == 0 {
                self.header.clear();
            }
        }
    }

    /// Whether its last record is all there.
    fn ends_whole(&self) -> bool {
        self.header.is_empty()
    }
}

/// Stamp and payload length of a record whose header is all there.
fn header_of(header: &[u8]) -> Option<(u64, u32)> {
    let (_stream, rest) = header.split_first()?;
    let (at_us, rest) = rest.split_first_chunk()?;
    let (len, _) = rest.split_first_chunk()?;
    Some((u64::from_le_bytes(*at_us), u32::from_le_bytes(*len)))
}

/// The end of a log that may lack something: nobody knows how much.
fn cut_mark(at_us: u64) -> Vec<u8> {
    let mut mark = Vec::new();
    LogRecord { stream: LogStream::Cut, at_us, bytes: AT_LEAST_ONE.to_vec() }.encode(&mut mark);
    mark
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
            LogWork::Left { attempt, reply } => match self.left(attempt) {
                Ok(bytes) => drop(reply.send(bytes)),
                Err(error) => tracing::warn!(%attempt, "what is kept of a log is not known: {}", text(error)),
            },
            LogWork::Cut(attempt) => {
                if let Err(error) = self.cut(attempt) {
                    tracing::warn!(%attempt, "the end of a log is not marked: {}", text(error));
                }
            }
            LogWork::Forget(attempt) => drop(self.kept.remove(&attempt)),
        }
    }

    fn append(&mut self, attempt: AttemptId, offset: u64, bytes: &[u8]) -> Result<u64, BlobError> {
        // The worker cuts at its bound and says so; what comes beyond is not from an honest worker.
        let room = self.log_bytes_max.saturating_sub(offset);
        let bytes = &bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        let kept = self.kept_of(attempt)?;
        let before = kept.len;
        if kept.is_closed {
            return Ok(before);
        }
        let after = self.blobs.log_append(&attempt.into(), offset, bytes)?;
        if after > before {
            // `offset <= before`, or the append would have been a gap.
            let new = &bytes[(before - offset) as usize..(after - offset) as usize];
            self.kept_of(attempt)?.add(new);
        }
        Ok(after)
    }

    /// What is known of a log, caught up with what is stored.
    fn kept_of(&mut self, attempt: AttemptId) -> Result<&mut Kept, BlobError> {
        if !self.kept.contains_key(&attempt) {
            let (key, mut kept) = (LogKey::from(attempt), Kept::default());
            loop {
                let bytes = self.blobs.log_read(&key, kept.len, READ_BYTES)?;
                if bytes.is_empty() {
                    break;
                }
                kept.add(&bytes);
            }
            self.kept.insert(attempt, kept);
        }
        Ok(self.kept.get_mut(&attempt).expect("just inserted"))
    }

    fn left(&mut self, attempt: AttemptId) -> Result<u64, BlobError> {
        let kept = self.kept_of(attempt)?;
        kept.is_closed = true;
        let mark = if kept.ends_whole() { cut_mark(0).len() as u64 } else { 0 };
        Ok(kept.len + mark)
    }

    /// Within a record a mark would be taken for its bytes; then the log just ends there.
    fn cut(&mut self, attempt: AttemptId) -> Result<(), BlobError> {
        let kept = self.kept_of(attempt)?;
        if kept.ends_whole() {
            let (offset, mark) = (kept.len, cut_mark(kept.last_at_us));
            let bytes = self.blobs.log_append(&attempt.into(), offset, &mark)?;
            self.cache.tell(LogNotice { attempt, bytes, ended: true });
        }
        Ok(())
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
        let kept = self.kept_of(report.attempt)?;
        let (hash, len) = (kept.hash.clone(), kept.len);
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
            let mark = cut_mark(last.map_or(0, |(_, at_us)| at_us));
            len = self.blobs.log_append(&key, len, &mark)?;
            self.kept_of(report.attempt)?.add(&mark);
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
            kept: HashMap::new(),
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
        assert_eq!(writer.kept.keys().collect::<Vec<_>>(), [&id(3)]);
    }

    #[test]
    fn the_log_of_an_attempt_that_is_given_up_ends_in_a_mark_if_its_last_record_is_whole() {
        let record = |text: &str| {
            let mut bytes = Vec::new();
            LogRecord { stream: LogStream::Stdout, at_us: 7, bytes: text.into() }.encode(&mut bytes);
            bytes
        };
        let whole = [record("one"), record(""), record("three")].concat();
        // In pieces of every size, the last one missing or there.
        for (size, there) in (1..=whole.len()).flat_map(|size| [(size, whole.len()), (size, whole.len() - 1)]) {
            let dir = tempfile::tempdir().unwrap();
            let (mut writer, (link, _stored)) = (writer(dir.path()), mpsc::channel(64));
            let attempt = AttemptId { job: JobId(1), task: 0, attempt: 1 };
            let mut offset = 0;
            for piece in whole[..there].chunks(size) {
                writer.handle(LogWork::Append { attempt, offset, bytes: piece.to_vec(), link: link.clone() });
                offset += piece.len() as u64;
            }
            let (reply, mut left) = oneshot::channel();
            writer.handle(LogWork::Left { attempt, reply });
            let late = || LogWork::Append { attempt, offset, bytes: record("late"), link: link.clone() };
            writer.handle(late());
            writer.handle(LogWork::Cut(attempt));
            writer.handle(late());
            let kept = writer.blobs.log_read(&attempt.into(), 0, 1000).unwrap();
            assert_eq!(left.try_recv().unwrap(), kept.len() as u64);
            let mut decoder = LogDecoder::default();
            decoder.push(&kept);
            let records: Vec<_> = std::iter::from_fn(|| decoder.next_record().unwrap()).collect();
            let texts: Vec<_> = records.iter().map(|record| String::from_utf8_lossy(&record.bytes)).collect();
            let expected: &[&str] = if there == whole.len() { &["one", "", "three", ">=1"] } else { &["one", ""] };
            assert_eq!(texts, expected, "in pieces of {size}");
        }
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
