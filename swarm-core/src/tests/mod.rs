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
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use zeroize::Zeroizing;

use crate::blobs::{BlobStore, DiskBlobs, MasterKey};
use crate::clock::{Clock, ManualClock};
use crate::config::CoreConfig;
use crate::dispatcher::{self, Sessions};
use crate::harvester::{self, book::Patience};
use crate::messages::{DispatcherMsg, Handles, HarvesterMsg, LedgerEntry, LedgerHandle, ReceiverMsg, SchedulerMsg};
use crate::plan::policy::PolicyConfig;
use crate::store::conformance::Bench;
use crate::store::{Applied, AttemptRecord, Db, NewJob, Refusal, Store, Transition};
use crate::supervise::Gauge;
use crate::testing::{Troubled, at, report};
use crate::{hibernator, ledger, receiver, recover, scheduler, sweep};

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

type Which = fn(&Transition) -> bool;

/// Transitions that the database is to refuse, each once.
#[derive(Clone, Default)]
struct Faults(Arc<watch::Sender<Vec<Which>>>);

impl Faults {
    fn refuse(&self, which: Which) {
        self.0.send_modify(|ahead| ahead.push(which));
    }

    /// Waits until all of them were refused.
    async fn happened(&self) {
        let mut ahead = self.0.subscribe();
        let all = ahead.wait_for(Vec::is_empty);
        tokio::time::timeout(DEADLINE, all).await.expect("the faults happen in time").unwrap();
    }

    fn hits(&self, transition: &Transition) -> bool {
        self.0.send_if_modified(|ahead| {
            let hit = ahead.iter().position(|which| which(transition));
            hit.map(|at| ahead.remove(at)).is_some()
        })
    }

    /// A ledger before `ledger` that refuses these.
    fn before(&self, ledger: LedgerHandle) -> LedgerHandle {
        let (sender, mut entries) = mpsc::channel::<LedgerEntry>(64);
        let faults = self.clone();
        tokio::spawn(async move {
            while let Some(entry) = entries.recv().await {
                if faults.hits(&entry.transition) {
                    let _ = entry.reply.send(Err(Refusal::Broken("by a fault".to_owned())));
                } else if ledger.0.send(entry).await.is_err() {
                    return;
                }
            }
        });
        LedgerHandle(sender)
    }
}

/// One life of the core. It stops when this is dropped.
struct Core<'a> {
    disk: &'a Disk,
    store: Arc<Db>,
    /// The same, as the modules read it.
    troubled: Arc<Troubled>,
    handles: Handles,
    faults: Faults,
    /// What the harvester counts about itself.
    counted: Gauge,
    harvester: JoinHandle<anyhow::Result<()>>,
    stop: Option<DropGuard>,
}

impl<'a> Core<'a> {
    /// Takes the store over and starts all modules from it.
    async fn start(disk: &'a Disk) -> Self {
        let store = Arc::new(Db::open(&disk.bench.url).unwrap());
        let epoch = store.take_over().unwrap();
        let (recovered, schedules) = recover::plan_snapshot(store.load().unwrap(), disk.clock.now());
        let stop = CancellationToken::new();
        let clock = || Arc::clone(&disk.clock) as Arc<dyn Clock>;
        let troubled = Arc::new(Troubled::new(Arc::clone(&store)));
        let read = || Arc::clone(&troubled) as Arc<dyn Store>;

        let (to_ledger, inbox) = mpsc::channel(1000);
        tokio::spawn(ledger::run(inbox, read(), epoch, Gauge::new("ledger", &to_ledger), stop.clone()));
        let faults = Faults::default();
        let ledger = faults.before(LedgerHandle(to_ledger));
        let (receiver, receiver_inbox) = mpsc::channel(64);
        let (scheduler, scheduler_inbox) = mpsc::channel(64);
        let (hibernator, hibernator_inbox) = mpsc::channel(64);
        let (dispatcher, dispatcher_inbox) = mpsc::channel(64);
        let (harvester, harvester_inbox) = mpsc::channel(64);
        let handles = Handles { ledger, receiver, scheduler, hibernator, dispatcher, harvester };
        let Handles { ledger, scheduler, hibernator, dispatcher, harvester, .. } = handles.clone();
        let sessions = Arc::new(Sessions::default());

        let patience = Patience {
            lease_margin_ms: 5_000,
            start_deadline_ms: 60_000,
            prepare_deadline_ms: 3_600_000,
            suspect_after_ms: 6_000,
            cancel_grace_ms: 3_000,
        };
        let deps = harvester::Deps {
            ledger: ledger.clone(),
            store: read(),
            blobs: Arc::clone(&disk.blobs),
            dispatcher: dispatcher.clone(),
            scheduler: scheduler.clone(),
            hibernator: hibernator.clone(),
            clock: clock(),
            patience,
            log_bytes_max: 1 << 20,
            sessions: Arc::clone(&sessions),
        };
        let gauge = Gauge::new("harvester", &harvester);
        let counted = gauge.clone();
        let following = tokio::spawn(harvester::run(harvester_inbox, deps, recovered.live, gauge, stop.clone()));
        let (gauge, policy) = (Gauge::new("scheduler", &scheduler), PolicyConfig::default().build());
        tokio::spawn(scheduler::run(scheduler_inbox, policy, dispatcher.clone(), gauge, stop.clone()));
        let deps = dispatcher::Deps {
            ledger: ledger.clone(),
            store: read(),
            scheduler: scheduler.clone(),
            harvester: harvester.clone(),
            clock: clock(),
            socket: dispatcher::bind("127.0.0.1:0".parse().unwrap()).await.unwrap(),
            sessions,
            swarm: store.swarm_id().unwrap(),
            epoch,
            config: dispatcher::Config {
                sweep_ms: 20,
                heartbeat_interval_ms: 2000,
                ..dispatcher::Config::of(&CoreConfig::default())
            },
        };
        tokio::spawn(dispatcher::run(dispatcher_inbox, deps, Gauge::new("dispatcher", &dispatcher), stop.clone()));
        let deps =
            hibernator::Deps { ledger: ledger.clone(), scheduler: scheduler.clone(), store: read(), clock: clock() };
        let (gauge, delayed) = (Gauge::new("hibernator", &hibernator), recovered.delayed);
        tokio::spawn(hibernator::run(hibernator_inbox, deps, delayed, schedules, gauge, stop.clone()));
        let gauge = Gauge::new("receiver", &handles.receiver);
        let deps = receiver::Deps { ledger, scheduler: scheduler.clone(), hibernator, harvester, clock: clock() };
        tokio::spawn(receiver::run(receiver_inbox, deps, gauge, stop.clone()));
        let deps =
            sweep::Deps { store: read(), handles: handles.clone(), clock: clock(), every: Duration::from_millis(50) };
        tokio::spawn(sweep::run(deps, Gauge::without_inbox("sweep"), stop.clone()));
        for work in recovered.runnable {
            scheduler.send(SchedulerMsg::Enqueue(work)).await.unwrap();
        }
        let stop = Some(stop.drop_guard());
        Self { disk, store, troubled, handles, faults, counted, harvester: following, stop }
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
        let waiting = async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, waiting).await.expect("it comes in time");
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
