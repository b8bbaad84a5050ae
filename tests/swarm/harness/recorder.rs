//! Writes the history the checker reads.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sha2::{Digest, Sha256};
use swarm_checker::{Entry, LogRead, Op, Verdict};
use swarm_client::ClientError;
use swarm_protocol::TaskId;

use super::now_us;

pub(crate) struct Recorder {
    file: Mutex<File>,
    pub(crate) path: PathBuf,
}

impl Recorder {
    pub(crate) fn new(dir: &Path) -> Self {
        let path = dir.join("history.jsonl");
        Self { file: Mutex::new(File::create(&path).expect("the history can be made")), path }
    }

    /// Adds an operation that began at `start_us` and has just ended.
    pub(crate) fn add(&self, start_us: i64, result: Verdict, op: Op) {
        let entry = Entry { start_us, end_us: now_us(), result, op };
        let line = serde_json::to_string(&entry).expect("an entry is plain data") + "\n";
        self.file.lock().expect("no writer panics").write_all(line.as_bytes()).expect("the history can be written");
    }
}

/// Without an answer it may have happened; with one that refuses it has not.
pub(crate) fn verdict<T>(result: &Result<T, ClientError>) -> Verdict {
    match result {
        Ok(_) => Verdict::Ok,
        Err(error) if error.problem().is_some() && !error.is_status(503) => Verdict::Fail,
        Err(_) => Verdict::Unknown,
    }
}

/// What a task's log says, put together again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) cut_bytes: u64,
    pub(crate) cut_at_least: bool,
}

pub(crate) fn log_read(task: TaskId, stream: &str, written: &[u8], read: &[u8], log: &Log) -> Op {
    let digest = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
    Op::Log(LogRead {
        job: task.job.0,
        task: task.task,
        stream: stream.to_owned(),
        written_bytes: written.len() as u64,
        written_digest: digest(written),
        read_bytes: read.len() as u64,
        read_digest: digest(read),
        cut_bytes: log.cut_bytes,
        cut_at_least: log.cut_at_least,
    })
}
