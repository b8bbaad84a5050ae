//! All modules below HTTP in one process, over a real store and real blobs, with a worker that is a queue of frames.

mod capacity;
mod expiry;
mod logs;
mod losses;
mod outputs;
mod recalls;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use swarm_protocol::link::{
    FinalReport, HeldAttempt, HeldPhase, Hello, LiveSet, TaskOrder, ToCore, ToWorker, VERSION, VERSION_MIN, Welcome,
    WorkerFacts,
};
use swarm_protocol::spec::JobSpec;
use swarm_protocol::{AttemptId, BootId, JobId, LossReason, Outcome, SessionId, TaskId, WorkerId};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::blobs::{BlobStore, DiskBlobs, MasterKey};
use crate::clock::{Clock, ManualClock};
use crate::config::CoreConfig;
use crate::dispatcher;
use crate::harvester::book::Patience;
use crate::messages::{DispatcherMsg, Handles, HarvesterMsg, ReceiverMsg};
use crate::modules::{Modules, Parts, Settings};
use crate::store::conformance::Bench;
use crate::store::{Applied, AttemptRecord, Db, NewJob, Store, Transition};
use crate::supervise::History;
use crate::testing::{Troubled, at, cache, eventually, report};

/// Everything awaited below comes well within this.
const DEADLINE: Duration = Duration::from_secs(20);

/// When a report that is not answered is said again.
const REPEAT: Duration = Duration::from_secs(1);

/// What survives the core: a store with accounts and workers, and blobs.
struct Disk {
    bench: Bench,
    blobs: Arc<dyn BlobStore>,
    clock: Arc<ManualClock>,
    _dir: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = Arc::new(MasterKey::from_bytes(Zeroizing::new([1; 32])));
        let blobs = Arc::new(DiskBlobs::open(&dir.path().join("blobs"), key).unwrap());
        Self { bench: Bench::sqlite(), blobs, clock: Arc::new(ManualClock::new(at(0))), _dir: dir }
    }
}

/// One life of the core. It stops when this is dropped.
struct Core<'a> {
    disk: &'a Disk,
    store: Arc<Db>,
    /// The same, as the modules know it.
    troubled: Arc<Troubled>,
    handles: Handles,
    modules: Modules,
}

impl<'a> Core<'a> {
    /// Takes the store over and starts all modules from it.
    async fn start(disk: &'a Disk) -> Self {
        let store = Arc::new(Db::open(&disk.bench.url).unwrap());
        let troubled = Arc::new(Troubled::new(Arc::clone(&store)));
        let parts = Parts {
            store: Arc::clone(&troubled) as Arc<dyn Store>,
            blobs: Arc::clone(&disk.blobs),
            cache: cache(),
            clock: Arc::clone(&disk.clock) as Arc<dyn Clock>,
            heartbeats: dispatcher::bind("127.0.0.1:0".parse().unwrap()).await.unwrap(),
            epoch: store.take_over().unwrap(),
            swarm: store.swarm_id().unwrap(),
            snapshot: store.load().unwrap(),
        };
        let mut settings = Settings::of(&CoreConfig::default());
        (settings.serving.sweep_ms, settings.serving.heartbeat_interval_ms) = (20, 2000);
        settings.sweep_every = Duration::from_millis(50);
        settings.log_bytes_max = 1 << 20;
        settings.patience = Patience {
            lease_margin_ms: 5_000,
            start_deadline_ms: 60_000,
            prepare_deadline_ms: 3_600_000,
            suspect_after_ms: 6_000,
            cancel_grace_ms: 3_000,
        };
        let mut modules = Modules::start(parts, &settings, CancellationToken::new(), History::default());
        modules.resume().await.unwrap();
        Self { disk, store, troubled, handles: modules.handles.clone(), modules }
    }

    /// The last error that the harvester counted.
    fn last_error(&self) -> Option<String> {
        let views = self.modules.supervisor().views();
        views.into_iter().find(|view| view.name == "harvester").and_then(|view| view.last_error)
    }

    /// Submits a job of one task.
    async fn submit(&self, change: impl FnOnce(&mut JobSpec)) -> JobId {
        let mut new: NewJob = self.disk.bench.new_job(1);
        change(&mut new.job.spec);
        let (reply, verdict) = oneshot::channel();
        self.handles.receiver.send(ReceiverMsg::Submit { new: Box::new(new), reply }).await.unwrap();
        match verdict.await.unwrap() {
            Ok(Applied::Job { job, .. }) => job,
            other => panic!("{other:?}"),
        }
    }

    /// Connects a worker of the bench; it holds nothing.
    async fn worker(&self) -> Worker {
        self.connect(Vec::new()).await
    }

    /// Connects a worker that has ended this attempt and not reported it yet.
    async fn worker_holding(&self, attempt: AttemptId) -> Worker {
        self.connect(vec![HeldAttempt { attempt, phase: HeldPhase::Ended }]).await
    }

    async fn connect(&self, attempts: Vec<HeldAttempt>) -> Worker {
        let worker = self.disk.bench.worker_ids()[0];
        let facts = WorkerFacts { cpu_millis: 8_000, memory_bytes: 8 << 30, slots: 4, ..WorkerFacts::default() };
        let hello =
            Hello { version_min: VERSION_MIN, version_max: VERSION, boot: BootId::random(), nonce: [0; 32], facts };
        let ((link, orders), (reply, welcome)) = (mpsc::channel(256), oneshot::channel());
        let (name, hello) = ("w1".to_owned(), Box::new(hello));
        self.handles.dispatcher.send(DispatcherMsg::Connect { worker, name, hello, link, reply }).await.unwrap();
        let Welcome::Accepted { session, .. } = welcome.await.unwrap() else { panic!("refused") };
        let mut worker = Worker {
            id: worker,
            session,
            frames: orders,
            passed: VecDeque::new(),
            core: self.handles.harvester.clone(),
        };
        worker.say(ToCore::StateReport { seq: 1, attempts }).await;
        worker.hear(|frame| matches!(frame, ToWorker::StateJudged { seq: 1, .. }).then_some(())).await;
        worker
    }

    /// Waits until what the store has is so.
    async fn until(&self, is_so: impl Fn() -> bool) {
        eventually("the store has it", async || is_so()).await;
    }

    fn attempts(&self, job: JobId) -> Vec<AttemptRecord> {
        self.store.tasks(job, 0, 1).unwrap().remove(0).attempts
    }
}

/// The worker's end of a link.
struct Worker {
    id: WorkerId,
    session: SessionId,
    frames: mpsc::Receiver<ToWorker>,
    /// Frames that came before one that was waited for.
    passed: VecDeque<ToWorker>,
    core: mpsc::Sender<HarvesterMsg>,
}

impl Worker {
    async fn say(&self, frame: ToCore) {
        let (worker, session) = (self.id, self.session);
        self.core.send(HarvesterMsg::Frames { worker, session, frames: vec![frame] }).await.unwrap();
    }

    /// The first frame that is what is waited for; others stay.
    async fn hear<T>(&mut self, wanted: impl Fn(&ToWorker) -> Option<T>) -> T {
        let found = async {
            let here = self.passed.iter().enumerate().find_map(|(at, frame)| Some((at, wanted(frame)?)));
            if let Some((at, found)) = here {
                self.passed.remove(at);
                return found;
            }
            loop {
                let frame = self.frames.recv().await.expect("a link");
                match wanted(&frame) {
                    Some(found) => return found,
                    None => self.passed.push_back(frame),
                }
            }
        };
        tokio::time::timeout(DEADLINE, found).await.expect("the frame comes in time")
    }

    /// The next order.
    async fn order(&mut self) -> TaskOrder {
        self.hear(|frame| if let ToWorker::Assign(order) = frame { Some(TaskOrder::clone(order)) } else { None }).await
    }

    /// The answer to a renewal.
    async fn renewed(&mut self, of: u64) -> bool {
        self.hear(|frame| match frame {
            ToWorker::Renewed { seq, matched } if *seq == of => Some(*matched),
            _ => None,
        })
        .await
    }

    /// Reports an end until it is stored.
    async fn finish(&mut self, report: FinalReport) {
        let attempt = report.attempt;
        let stored = async {
            loop {
                self.say(ToCore::Finished(Box::new(report.clone()))).await;
                let stored = self.hear(|frame| (*frame == ToWorker::FinishStored { attempt }).then_some(()));
                if tokio::time::timeout(REPEAT, stored).await.is_ok() {
                    return;
                }
            }
        };
        tokio::time::timeout(DEADLINE, stored).await.expect("the report is stored in time");
    }
}

fn lost() -> Outcome {
    Outcome::Lost { reason: LossReason::Engine, detail: "gone".to_owned() }
}

fn task(job: JobId) -> TaskId {
    TaskId { job, task: 0 }
}
