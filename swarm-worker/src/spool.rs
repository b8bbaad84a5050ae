//! What must survive a kill of the worker: `<data>/spool/<attempt>/{order,started,log,outputs/,report}`.
//!
//! The order is synced (file and directory) before it is accepted, the start mark before the container starts, the report
//! before it is sent. The log is synced at its end only: until then it is rebuilt from the engine where the machine lost it.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use swarm_host::{blocking, files};
use swarm_protocol::AttemptId;
use swarm_protocol::link::{FinalReport, TaskOrder};

/// The first byte of spooled orders and reports: readers refuse what they do not know.
const FORMAT: u8 = 1;

/// The directory of all spooled attempts.
#[derive(Debug, Clone)]
pub(crate) struct Spool {
    root: PathBuf,
}

/// The directory of one attempt.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    dir: PathBuf,
}

/// Written before a container starts; while it exists the attempt may have run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StartMark {
    /// The machine's boot; `boot_ns` means nothing in another one.
    pub(crate) machine_boot: String,
    /// CLOCK_BOOTTIME just before the start, in nanoseconds.
    pub(crate) boot_ns: u64,
}

/// One attempt found at start.
#[derive(Debug)]
pub(crate) struct Found {
    /// What was to be run.
    pub(crate) order: TaskOrder,
    /// Whether its container may have been started.
    pub(crate) start: Option<StartMark>,
    /// How it ended, if it got that far.
    pub(crate) report: Option<FinalReport>,
}

impl Spool {
    /// Opens (and makes) the spool in `data`.
    pub(crate) fn open(data: &Path) -> io::Result<Self> {
        let root = data.join("spool");
        files::create_dir_all(&root)?;
        files::sync_dir(data)?;
        Ok(Self { root })
    }

    /// The directory of one attempt, which may not exist.
    pub(crate) fn entry(&self, attempt: AttemptId) -> Entry {
        Entry { dir: self.root.join(attempt.to_string()) }
    }

    /// Keeps these orders; durable when it returns. Blocking.
    pub(crate) fn keep(&self, orders: &[TaskOrder]) -> io::Result<()> {
        for order in orders {
            let entry = self.entry(order.attempt);
            // A recalled attempt's remains would be mistaken for this one's.
            entry.remove()?;
            files::create_dir_all(&entry.dir.join("outputs"))?;
            files::write(&entry.dir.join("order"), &encode(order))?;
        }
        files::sync_dir(&self.root)
    }

    /// Everything in the spool, by name. What is damaged or of an unknown format was never accepted, or cannot be run: it is
    /// removed with a warning. Blocking.
    pub(crate) fn scan(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        let mut dirs = std::fs::read_dir(&self.root)?.map(|dir| Ok(dir?.path())).collect::<io::Result<Vec<_>>>()?;
        dirs.sort();
        for dir in dirs {
            let entry = Entry { dir };
            match entry.read_order() {
                Ok(order) => found.push(Found { start: entry.start_mark(), report: entry.read_report(), order }),
                Err(error) => {
                    tracing::warn!(dir = %entry.dir.display(), %error, "a spooled order cannot be read, dropping it");
                    entry.remove()?;
                }
            }
        }
        Ok(found)
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![FORMAT]).expect("plain data encodes")
}

fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> io::Result<T> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "damaged, or of another format");
    match bytes.split_first() {
        Some((&FORMAT, body)) => postcard::from_bytes(body).map_err(|_| damaged()),
        _ => Err(damaged()),
    }
}

impl Entry {
    /// The encoded log.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Where the nth output is collected.
    pub(crate) fn output(&self, n: usize) -> PathBuf {
        self.dir.join("outputs").join(n.to_string())
    }

    /// Drops whatever was collected and is not stored yet. Blocking.
    pub(crate) fn clear_outputs(&self) -> io::Result<()> {
        let dir = self.dir.join("outputs");
        match files::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => files::create_dir_all(&dir),
        }
    }

    fn read_order(&self) -> io::Result<TaskOrder> {
        decode(&std::fs::read(self.dir.join("order"))?)
    }

    fn read_report(&self) -> Option<FinalReport> {
        decode(&std::fs::read(self.dir.join("report")).ok()?).ok()
    }

    fn start_mark(&self) -> Option<StartMark> {
        let bytes = std::fs::read(self.dir.join("started")).ok()?;
        // A damaged mark still says that a start may have happened.
        Some(decode(&bytes).unwrap_or(StartMark { machine_boot: String::new(), boot_ns: 0 }))
    }

    /// Marks that the container may be started from now on.
    pub(crate) async fn mark_start(&self, mark: StartMark) -> io::Result<()> {
        self.write("started", encode(&mark)).await
    }

    /// Keeps the final report.
    pub(crate) async fn keep_report(&self, report: &FinalReport) -> io::Result<()> {
        self.write("report", encode(report)).await
    }

    async fn write(&self, name: &str, bytes: Vec<u8>) -> io::Result<()> {
        let path = self.dir.join(name);
        blocking::run(move || files::write(&path, &bytes)).await
    }

    /// Forgets the attempt.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match files::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use swarm_protocol::link::{ImageOrder, LayerOrder, OutputReport};
    use swarm_protocol::spec::{Limits, Tmpfs};
    use swarm_protocol::{Digest, JobId, LossReason, Outcome, Usage};

    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn what_was_kept_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        let order = testing::order(7, b"image");
        spool.keep(std::slice::from_ref(&order)).unwrap();
        let entry = spool.entry(order.attempt);
        let mark = StartMark { machine_boot: "b".into(), boot_ns: 5 };
        entry.mark_start(mark.clone()).await.unwrap();
        let found = spool.scan().unwrap().pop().unwrap();
        assert_eq!((found.order, found.start, found.report), (order, Some(mark), None));
        entry.remove().unwrap();
        entry.remove().unwrap();
        assert!(spool.scan().unwrap().is_empty());
    }

    /// A worker takes up what one of an earlier version has spooled: a layout that changes is another format, and both are
    /// read for as long as anyone may upgrade.
    #[test]
    fn orders_marks_and_reports_keep_their_layout() {
        let some = |text: &str| Some(text.to_owned());
        let digest = Digest::of(b"x");
        let layer = LayerOrder { digest, diff_id: digest, size_bytes: 300 };
        let order = TaskOrder {
            image: ImageOrder { config: digest, config_bytes: 200, layers: vec![layer] },
            command: Some(vec!["a".into()]),
            entrypoint: Some(vec!["b".into()]),
            user: some("u"),
            workdir: some("/w"),
            env: vec![("K".into(), "V".into())],
            inputs: vec![testing::input("/in/a", b"x")],
            outputs: vec!["/out/*".into()],
            timeout_ms: Some(1000),
            limits: Limits {
                log_bytes: Some(5),
                tmpfs: vec![Tmpfs { path: "/tmp".into(), bytes: 4096 }],
                ..Limits::default()
            },
            ..testing::order(300, b"image")
        };
        let output = OutputReport { path: "/out/r".into(), digest, size_bytes: 1, is_dir: true, mode: 0o644 };
        let used = Some(300);
        let usage =
            Usage { cpu_ms: used, memory_peak_bytes: used, disk_peak_bytes: used, input_bytes: 1, output_bytes: 2 };
        let lost = Outcome::Lost { reason: LossReason::Transfer, detail: "d".into() };
        let report = FinalReport {
            started_at_us: Some(1),
            finished_at_us: Some(2),
            ran_ms: Some(3),
            outputs: vec![output],
            usage,
            ..testing::report(order.attempt, lost, 4)
        };
        let mark = StartMark { machine_boot: "b".into(), boot_ns: 300 };
        let whole = [encode(&order), encode(&mark), encode(&report)];
        assert_eq!(
            whole.map(|bytes| Digest::of(&bytes).hex()),
            [
                "86f1a2a4813abe81d8b266cc0d8300cb79fa146b7916dd7d9ec2e00d5594f263",
                "79ad0209761834d157f542206c7d06ffea64f685bd9c943e834b44939775b325",
                "a90b14dc7a436926243170386a202f9c979afdda5df746940ce7e84812cb31c4"
            ],
        );
    }

    #[test]
    fn damage_is_dropped_and_a_kept_order_starts_clean() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        let order = testing::order(7, b"image");
        spool.keep(std::slice::from_ref(&order)).unwrap();
        std::fs::write(spool.entry(order.attempt).log(), b"old").unwrap();
        spool.keep(std::slice::from_ref(&order)).unwrap();
        assert!(!spool.entry(order.attempt).log().exists());
        let bad = spool.entry(AttemptId { job: JobId(9), task: 0, attempt: 1 });
        std::fs::create_dir(&bad.dir).unwrap();
        std::fs::write(bad.dir.join("order"), [FORMAT, 255, 255]).unwrap();
        assert_eq!(spool.scan().unwrap().len(), 1);
        assert!(!bad.dir.exists());
    }
}
