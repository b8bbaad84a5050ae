//! A disk that fails or is slow costs no attempt its result.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use swarm_protocol::Digest;
use swarm_protocol::logs::{AT_LEAST_ONE, LogRecord, LogStream};
use tokio::sync::Mutex;

use super::*;
use crate::blobs::{BlobEntry, BlobError, BlobRead, BlobUpload, LogKey};

/// Blobs whose logs cannot be appended to while `is_full`, nor while somebody holds the `gate`.
#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn BlobStore>,
    is_full: AtomicBool,
    gate: Mutex<()>,
}

impl BlobStore for Faulty {
    fn begin(&self, max_bytes: u64) -> Result<Box<dyn BlobUpload>, BlobError> {
        self.inner.begin(max_bytes)
    }
    fn open(&self, digest: &Digest) -> Result<Box<dyn BlobRead>, BlobError> {
        self.inner.open(digest)
    }
    fn contains(&self, digest: &Digest) -> Result<bool, BlobError> {
        self.inner.contains(digest)
    }
    fn remove(&self, digest: &Digest, spare_from: Option<SystemTime>) -> Result<bool, BlobError> {
        self.inner.remove(digest, spare_from)
    }
    fn list(&self, after: Option<&Digest>, count_max: usize) -> Result<Vec<BlobEntry>, BlobError> {
        self.inner.list(after, count_max)
    }
    fn log_append(&self, log: &LogKey, offset: u64, bytes: &[u8]) -> Result<u64, BlobError> {
        drop(self.gate.blocking_lock());
        if self.is_full.load(Ordering::SeqCst) {
            let source = std::io::ErrorKind::StorageFull.into();
            return Err(BlobError::Io { action: "append to", path: log.as_str().into(), source });
        }
        self.inner.log_append(log, offset, bytes)
    }
    fn log_len(&self, log: &LogKey) -> Result<u64, BlobError> {
        self.inner.log_len(log)
    }
    fn log_read(&self, log: &LogKey, offset: u64, len_max: usize) -> Result<Vec<u8>, BlobError> {
        self.inner.log_read(log, offset, len_max)
    }
    fn log_remove(&self, log: &LogKey) -> Result<bool, BlobError> {
        self.inner.log_remove(log)
    }
}

fn faulty() -> (Disk, Arc<Faulty>) {
    let mut disk = Disk::new();
    let inner = Arc::clone(&disk.blobs);
    let faulty = Arc::new(Faulty { inner, is_full: AtomicBool::default(), gate: Mutex::default() });
    disk.blobs = Arc::clone(&faulty) as Arc<dyn BlobStore>;
    (disk, faulty)
}

impl Worker {
    async fn say_log(&self, attempt: AttemptId, offset: u64, bytes: &[u8]) {
        self.say(ToCore::Log { attempt, offset, bytes: bytes.to_vec() }).await;
    }

    /// Waits until the core says that it has this much of the log.
    async fn log_stored(&mut self, attempt: AttemptId, offset: u64) {
        self.hear(|frame| (*frame == ToWorker::LogStored { attempt, offset }).then_some(())).await;
    }
}

#[tokio::test]
async fn a_log_that_the_disk_refused_is_asked_for_again_and_the_result_counts() {
    let (disk, faulty) = faulty();
    let core = Core::start(&disk).await;
    let mut worker = core.worker().await;
    let job = core.submit(|_| ()).await;
    let id = worker.order().await.attempt;
    worker.say_log(id, 0, b"one ").await;
    worker.log_stored(id, 4).await;
    faulty.is_full.store(true, Ordering::SeqCst);
    worker.say_log(id, 4, b"two ").await;
    let log = b"one two three";
    let ended =
        FinalReport { log_bytes: log.len() as u64, log_digest: Digest::of(log), ..report(id, Outcome::Succeeded) };
    worker.say(ToCore::Finished(Box::new(ended.clone()))).await;
    worker.log_stored(id, 4).await;
    assert!(!worker.passed.contains(&ToWorker::FinishStored { attempt: id }), "its worker must keep the log");
    faulty.is_full.store(false, Ordering::SeqCst);
    worker.say_log(id, 4, &log[4..]).await;
    worker.log_stored(id, log.len() as u64).await;
    worker.finish(ended).await;
    let ends: Vec<_> = core.attempts(job).into_iter().map(|end| (end.id.attempt, end.outcome)).collect();
    assert_eq!(ends, [(1, Some(Outcome::Succeeded))]);
    assert_eq!(disk.blobs.log_read(&id.into(), 0, 100).unwrap(), log);
    assert!(core.last_error().is_some_and(|error| error.contains("was not stored")), "operators see it");
}

/// As after a power cut of its machine, or a cancel while its disk was full.
#[tokio::test]
async fn a_worker_that_has_lost_some_of_a_log_that_came_is_believed_and_the_log_marked_as_cut() {
    let record = |stream, bytes: &[u8]| LogRecord { stream, at_us: 7, bytes: bytes.to_vec() };
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    let mut worker = core.worker().await;
    for outcome in [Outcome::Failed { exit_code: 3 }, Outcome::Cancelled, Outcome::Succeeded] {
        let job = core.submit(|_| ()).await;
        let id = worker.order().await.attempt;
        let mut log = Vec::new();
        record(LogStream::Stdout, b"one\n").encode(&mut log);
        worker.say_log(id, 0, &log).await;
        worker.log_stored(id, log.len() as u64).await;
        let ended = FinalReport { log_cut_bytes: 1, ..report(id, outcome.clone()) };
        worker.finish(ended).await;
        let end = core.attempts(job).remove(0);
        record(LogStream::Cut, AT_LEAST_ONE).encode(&mut log);
        assert_eq!((end.outcome, end.log_cut_bytes, end.log_bytes), (Some(outcome), 1, log.len() as u64));
        assert_eq!(disk.blobs.log_read(&id.into(), 0, 100).unwrap(), log);
    }
}

#[tokio::test]
async fn the_harvester_ends_only_after_what_it_was_writing() {
    let (disk, faulty) = faulty();
    let core = Core::start(&disk).await;
    let mut worker = core.worker().await;
    core.submit(|_| ()).await;
    let id = worker.order().await.attempt;
    let closed = faulty.gate.lock().await;
    worker.say_log(id, 0, b"written late").await;
    worker.say(ToCore::Renew { seq: 1, live: LiveSet::default() }).await;
    worker.renewed(1).await;
    core.modules.supervisor().stop().cancel();
    let mut ended = tokio::spawn(core.modules.end());
    let early = tokio::time::timeout(Duration::from_millis(100), &mut ended).await;
    assert!(early.is_err(), "the next start would find the log held");
    drop(closed);
    tokio::time::timeout(DEADLINE, ended).await.expect("in time").unwrap().unwrap();
    assert_eq!(disk.blobs.log_len(&id.into()).unwrap(), 12);
}
