//! Starts, connects and stops the modules of one core, all in one tokio runtime.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

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
use crate::store::{Db, Snapshot, Store};
use crate::supervise::{Gauge, Supervisor};
use crate::{blocking, hibernator, ledger, receiver, recover, scheduler};

/// Messages that fit into a module's inbox; a full one is backpressure on whoever sends.
const INBOX: usize = 1024;
/// Transitions that fit before the ledger; at most one batch more is being committed.
const LEDGER_INBOX: usize = 4096;
/// Heartbeats missed until a worker is suspect.
const SUSPECT_AFTER_BEATS: u64 = 3;

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

/// Runs a core until `stop`, or until a module fails. `ready` is told the address once requests are answered.
///
/// # Errors
/// When something cannot be opened or bound, and what a failed module failed of.
pub async fn run(
    config: CoreConfig,
    log: LoggerHandle,
    stop: CancellationToken,
    ready: oneshot::Sender<SocketAddr>,
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

    let modules = Supervisor::new(stop);
    // The ledger outlives the others, so that what they still commit on their way out is committed.
    let base = modules.beneath();
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
            suspect_after_ms: u64::from(config.heartbeat_interval_ms) * SUSPECT_AFTER_BEATS,
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
        config: dispatcher_config(&config),
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
    for work in recovered.runnable {
        handles.scheduler.send(SchedulerMsg::Enqueue(work)).await.context("the scheduler ended at once")?;
    }

    let identity = IdentityConfig {
        data_dir: config.data_dir.clone(),
        swarm,
        allow_root: config.allow_root,
        logins: Rate { burst: config.limits.login_burst, interval_ms: config.limits.login_interval_ms },
    };
    let identity = Identity::start(identity, Arc::clone(&store), ledger, Arc::clone(&clock)).await?;
    let listener = Listener { address: config.listen, bound: Some(ready) };
    let config = Arc::new(config);
    let (supervisor, logger) = (modules.clone(), Some(log));
    let api = ApiState { handles, store, blobs, identity, clock, supervisor, config, swarm, epoch, logger };
    modules.spawn(Gauge::without_inbox("http"), http::serve(api, listener, stop()));

    let ended = modules.wait().await;
    base.stop().cancel();
    ended.and(base.wait().await)
}

fn dispatcher_config(config: &CoreConfig) -> dispatcher::Config {
    let limits = dispatcher::Limits {
        log_bytes_max: config.limits.log_bytes,
        output_bytes_max: config.limits.output_bytes,
        grace_ms: config.grace_ms,
    };
    dispatcher::Config { heartbeat_interval_ms: config.heartbeat_interval_ms, limits, ..dispatcher::Config::default() }
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
