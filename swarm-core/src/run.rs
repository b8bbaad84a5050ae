//! Starts, connects and stops the modules of one core, all in one tokio runtime, and starts them anew when one fails.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fs::FlockOperation;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::blobs::{BlobStore, DiskBlobs, MasterKey};
use crate::clock::{Clock, SystemClock};
use crate::config::CoreConfig;
use crate::dispatcher::{self, Sessions};
use crate::harvester::{self, book::Patience};
use crate::http::{self, ApiState, Listener};
use crate::identity::limits::Rate;
use crate::identity::{Identity, IdentityConfig};
use crate::logger::LoggerHandle;
use crate::messages::{Handles, LedgerHandle, SchedulerMsg};
use crate::store::{Db, Snapshot, Store, StoreError};
use crate::supervise::{Gauge, History, Supervisor};
use crate::{blocking, hibernator, ledger, receiver, recover, scheduler, sweep};

#[cfg(test)]
mod tests;

/// Messages that fit into a module's inbox; a full one is backpressure on whoever sends.
const INBOX: usize = 1024;
/// Transitions that fit before the ledger; at most one batch more is being committed.
const LEDGER_INBOX: usize = 4096;
/// The pause before a start after a failure; it doubles with each that follows closely.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A failure after this long is not held against the next start.
const STEADY: Duration = Duration::from_secs(60);

/// What lies on disk, opened and locked.
struct Opened {
    store: Arc<dyn Store>,
    blobs: Arc<dyn BlobStore>,
    epoch: swarm_protocol::Epoch,
    swarm: swarm_protocol::SwarmId,
    snapshot: Snapshot,
    /// Held as long as the core runs: two cores never share a data directory.
    _lock: std::fs::File,
}

/// Runs a core until `stop`. `ready` is told the address once requests are answered. From then on a failed module stops
/// all in order and has them started anew from the store, on the same address, after a pause that grows while failures
/// follow each other closely.
///
/// # Errors
/// What the first start fails of, and when another core has taken over: this one must not take the swarm back.
pub async fn run(
    mut config: CoreConfig,
    log: LoggerHandle,
    stop: CancellationToken,
    ready: oneshot::Sender<SocketAddr>,
) -> anyhow::Result<()> {
    let history = History::default();
    let mut ready = Some(ready);
    let mut pause = PAUSE_MIN;
    loop {
        let began = Instant::now();
        let (bound, listening) = oneshot::channel();
        let term = tokio::spawn(term(config.clone(), log.clone(), stop.child_token(), history.clone(), bound));
        if let Ok(address) = listening.await {
            config.listen = address;
            if let Some(ready) = ready.take() {
                let _ = ready.send(address);
            }
        }
        let Err(failure) = term.await.map_err(anyhow::Error::from).flatten() else { return Ok(()) };
        if ready.is_some() || stop.is_cancelled() || is_deposed(&failure) {
            return Err(failure);
        }
        pause = if began.elapsed() > STEADY { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
        tracing::error!("the core starts anew in {} ms: {failure:#}", pause.as_millis());
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => history.restarted(),
        }
    }
}

fn is_deposed(failure: &anyhow::Error) -> bool {
    matches!(failure.downcast_ref(), Some(StoreError::Deposed { .. }))
}

/// Runs all modules from the store's state until `stop`, or until one fails.
async fn term(
    config: CoreConfig,
    log: LoggerHandle,
    stop: CancellationToken,
    history: History,
    bound: oneshot::Sender<SocketAddr>,
) -> anyhow::Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let settings = config.clone();
    let Opened { store, blobs, epoch, swarm, snapshot, _lock } = blocking::run(move || open(&settings)).await?;
    let heartbeats = dispatcher::bind(config.heartbeat()).await?;
    let (recovered, schedules) = recover::plan_snapshot(snapshot, clock.now());
    let (runnable, delayed, live) = (recovered.runnable.len(), recovered.delayed.len(), recovered.live.len());
    crate::notice!(epoch = epoch.0, runnable, delayed, live, "took over with epoch {epoch}");
    if !recovered.orphans.is_empty() {
        tracing::error!("live tasks without a live job, left alone: {:?}", recovered.orphans);
    }

    let modules = Supervisor::new(stop, history);
    // The ledger outlives the others, so that what they still commit on their way out is committed.
    let base = modules.beneath();
    // A start that panics half-way leaves nothing running.
    let _stop_all = (modules.stop().clone().drop_guard(), base.stop().clone().drop_guard());
    let (ledger_in, ledger_out) = mpsc::channel(LEDGER_INBOX);
    let gauge = Gauge::new("ledger", &ledger_in);
    base.spawn(gauge.clone(), ledger::run(ledger_out, Arc::clone(&store), epoch, gauge, base.stop().clone()));
    let ledger = LedgerHandle(ledger_in);

    let (receiver_in, receiver_out) = mpsc::channel(INBOX);
    let (scheduler_in, scheduler_out) = mpsc::channel(INBOX);
    let (hibernator_in, hibernator_out) = mpsc::channel(INBOX);
    let (dispatcher_in, dispatcher_out) = mpsc::channel(INBOX);
    let (harvester_in, harvester_out) = mpsc::channel(INBOX);
    let handles = Handles {
        ledger: ledger.clone(),
        receiver: receiver_in,
        scheduler: scheduler_in,
        hibernator: hibernator_in,
        dispatcher: dispatcher_in,
        harvester: harvester_in,
    };
    let gauges = [
        Gauge::new("receiver", &handles.receiver),
        Gauge::new("scheduler", &handles.scheduler),
        Gauge::new("hibernator", &handles.hibernator),
        Gauge::new("dispatcher", &handles.dispatcher),
        Gauge::new("harvester", &handles.harvester),
    ];
    let stop = || modules.stop().clone();

    let sessions = Arc::new(Sessions::default());
    let serving = dispatcher::Config::of(&config);
    let [receiver, scheduler, hibernator, dispatcher, harvester] = gauges;
    let deps = harvester::Deps {
        ledger: ledger.clone(),
        store: Arc::clone(&store),
        blobs: Arc::clone(&blobs),
        dispatcher: handles.dispatcher.clone(),
        scheduler: handles.scheduler.clone(),
        hibernator: handles.hibernator.clone(),
        clock: Arc::clone(&clock),
        patience: Patience {
            lease_margin_ms: config.lease_margin_ms,
            start_deadline_ms: config.start_deadline_s * 1000,
            prepare_deadline_ms: config.prepare_deadline_s * 1000,
            cancel_grace_ms: config.grace_ms,
            suspect_after_ms: serving.suspect_after_ms(),
        },
        log_bytes_max: config.limits.log_bytes,
        sessions: Arc::clone(&sessions),
    };
    modules.spawn(harvester.clone(), harvester::run(harvester_out, deps, recovered.live, harvester, stop()));
    let policy = config.policy.build();
    modules
        .spawn(scheduler.clone(), scheduler::run(scheduler_out, policy, handles.dispatcher.clone(), scheduler, stop()));
    let deps = dispatcher::Deps {
        ledger: ledger.clone(),
        store: Arc::clone(&store),
        scheduler: handles.scheduler.clone(),
        harvester: handles.harvester.clone(),
        clock: Arc::clone(&clock),
        socket: heartbeats,
        sessions,
        swarm,
        epoch,
        config: serving,
    };
    modules.spawn(dispatcher.clone(), dispatcher::run(dispatcher_out, deps, dispatcher, stop()));
    let deps = hibernator::Deps {
        ledger: ledger.clone(),
        scheduler: handles.scheduler.clone(),
        store: Arc::clone(&store),
        clock: Arc::clone(&clock),
    };
    let body = hibernator::run(hibernator_out, deps, recovered.delayed, schedules, hibernator.clone(), stop());
    modules.spawn(hibernator, body);
    let deps = receiver::Deps {
        ledger: ledger.clone(),
        scheduler: handles.scheduler.clone(),
        hibernator: handles.hibernator.clone(),
        harvester: handles.harvester.clone(),
        clock: Arc::clone(&clock),
    };
    modules.spawn(receiver.clone(), receiver::run(receiver_out, deps, receiver, stop()));
    let deps = sweep::Deps {
        store: Arc::clone(&store),
        handles: handles.clone(),
        clock: Arc::clone(&clock),
        every: sweep::EVERY,
    };
    let gauge = Gauge::without_inbox("sweep");
    modules.spawn(gauge.clone(), sweep::run(deps, gauge, stop()));
    let opening = async {
        for work in recovered.runnable {
            handles.scheduler.send(SchedulerMsg::Enqueue(work)).await.context("the scheduler ended at once")?;
        }
        let identity = IdentityConfig {
            data_dir: config.data_dir.clone(),
            swarm,
            allow_root: config.allow_root,
            logins: Rate { burst: config.limits.login_burst, interval_ms: config.limits.login_interval_ms },
        };
        let identity = Identity::start(identity, Arc::clone(&store), ledger.clone(), Arc::clone(&clock)).await?;
        let listener = Listener { address: config.listen, bound: Some(bound) };
        let config = Arc::new(config);
        let (supervisor, logger) = (modules.clone(), Some(log));
        let archive = Gauge::without_inbox("archive");
        modules.show(archive.clone());
        let api =
            ApiState { handles, store, blobs, identity, clock, supervisor, config, swarm, epoch, archive, logger };
        modules.spawn(Gauge::without_inbox("http"), http::serve(api, listener, stop()));
        anyhow::Ok(())
    };
    let opened = opening.await;
    if opened.is_err() {
        modules.stop().cancel();
    }
    // A start that fails half-way is waited for as well: the next one must find nothing running.
    end(&modules, &base, ledger).await.and(opened)
}

/// Waits for the end of all modules, and then of what lies beneath them. What the latter failed of counts first: the
/// others may have failed only because it was gone.
async fn end(modules: &Supervisor, base: &Supervisor, ledger: LedgerHandle) -> anyhow::Result<()> {
    let ended = modules.wait().await;
    base.stop().cancel();
    // Held until now: a ledger that nobody can reach any more ends, and before the stop that is a failure.
    drop(ledger);
    base.wait().await.and(ended)
}

/// Opens and locks everything on disk, takes over the epoch, and only then reads what is live.
fn open(config: &CoreConfig) -> anyhow::Result<Opened> {
    let dir = &config.data_dir;
    std::fs::create_dir_all(dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    restrict(dir)?;
    let lock = lock(dir)?;
    let key_file = dir.join("master.key");
    let blob_dir = dir.join("blobs");
    let is_new = !blob_dir.exists();
    let key = Arc::new(MasterKey::load_or_create(&key_file, is_new)?);
    let blobs = Arc::new(DiskBlobs::open(&blob_dir, key)?);
    let store = Arc::new(Db::open(config.database().expose())?);
    let epoch = store.take_over()?;
    let (swarm, snapshot) = (store.swarm_id()?, store.load()?);
    Ok(Opened { store, blobs, epoch, swarm, snapshot, _lock: lock })
}

/// Keys, results and the database lie here: its owner's business only.
fn restrict(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("{} cannot be restricted to its owner", dir.display()))
}

fn lock(dir: &Path) -> anyhow::Result<std::fs::File> {
    let file = std::fs::File::create(dir.join("core.lock"))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| anyhow::anyhow!("another core uses {}; give each its own --data-dir", dir.display()))?;
    Ok(file)
}
