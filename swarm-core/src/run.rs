//! Opens what a core keeps on disk, runs its modules, all in one tokio runtime, and starts them anew when one fails.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fs::FlockOperation;
use swarm_host::{blocking, files};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::blobs::{BlobStore, DiskBlobs, MasterKey};
use crate::cache;
use crate::clock::{Clock, SystemClock};
use crate::config::CoreConfig;
use crate::dispatcher;
use crate::http::{self, ApiState, Listener};
use crate::identity::{Identity, IdentityConfig};
use crate::logger::LoggerHandle;
use crate::modules::{Modules, Parts, Settings};
use crate::store::{Db, Snapshot, Store, StoreError};
use crate::supervise::{Gauge, History};

#[cfg(test)]
mod tests;

/// The pause before a start after a failure; it doubles with each that follows closely.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long a stop may take.
const STOP_MAX: Duration = Duration::from_secs(15);
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
        let mut term = tokio::spawn(term(config.clone(), log.clone(), stop.child_token(), history.clone(), bound));
        if let Ok(address) = listening.await {
            config.listen = address;
            if let Some(ready) = ready.take() {
                let _ = ready.send(address);
            }
        }
        let ended = tokio::select! {
            ended = &mut term => ended,
            () = long_after(&stop) => anyhow::bail!("the core is left before it has ended: disk or database do not answer"),
        };
        let Err(failure) = ended.map_err(anyhow::Error::from).flatten() else { return Ok(()) };
        if ready.is_some() || stop.is_cancelled() || is_deposed(&failure) {
            return Err(failure);
        }
        pause = if began.elapsed() > STEADY { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
        tracing::error!("the core starts anew in {} ms: {failure:#}", pause.as_millis());
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => history.restarted(),
        }
    }
}

/// The instant by which a core that was stopped has ended, unless it waits for something outside.
async fn long_after(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(STOP_MAX).await;
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
    let opening = config.clone();
    // On a thread of its own, which nothing waits for: a stop comes before a database that does not answer.
    let thread = blocking::Thread::start("opening").context("cannot start a thread")?;
    let Some(opened) = stop.run_until_cancelled(thread.run(move || open(&opening))).await else { return Ok(()) };
    let Opened { store, blobs, epoch, swarm, snapshot, _lock } = opened?;
    let cache = cache::open(&config, swarm, Arc::clone(&clock))?;
    let heartbeats = dispatcher::bind(config.heartbeat()).await?;
    let parts = Parts {
        store: Arc::clone(&store),
        blobs: Arc::clone(&blobs),
        cache: Arc::clone(&cache),
        clock: Arc::clone(&clock),
        heartbeats,
        epoch,
        swarm,
        snapshot,
    };
    let mut modules = Modules::start(parts, &Settings::of(&config), stop, history);
    let supervisor = modules.supervisor().clone();
    let opening = async {
        modules.resume().await?;
        let handles = modules.handles.clone();
        let identity = IdentityConfig { data_dir: config.data_dir.clone(), swarm, allow_root: config.allow_root };
        let (records, counts, time) = (Arc::clone(&store), Arc::clone(&cache), Arc::clone(&clock));
        let identity = Identity::start(identity, records, handles.ledger.clone(), counts, time).await?;
        let listener = Listener { address: config.listen, bound: Some(bound) };
        let config = Arc::new(config);
        let archive = Gauge::without_inbox("archive");
        supervisor.show(archive.clone());
        let (watched, logger) = (supervisor.clone(), Some(log));
        let api = ApiState {
            handles,
            store,
            blobs,
            identity,
            cache,
            clock,
            supervisor: watched,
            config,
            swarm,
            epoch,
            archive,
            logger,
        };
        supervisor.spawn(Gauge::without_inbox("http"), http::serve(api, listener, supervisor.stop().clone()));
        anyhow::Ok(())
    };
    // A stop is not waited for by what is still to be committed.
    let opened = supervisor.stop().run_until_cancelled(opening).await.unwrap_or(Ok(()));
    if opened.is_err() {
        supervisor.stop().cancel();
    }
    // A start that fails half-way is waited for as well: the next one must find nothing running.
    modules.end().await.and(opened)
}

/// Opens and locks everything on disk, takes over the epoch, and only then reads what is live.
fn open(config: &CoreConfig) -> anyhow::Result<Opened> {
    let dir = &config.data_dir;
    files::create_dir_durable(dir, 0o777).with_context(|| format!("{} cannot be made", dir.display()))?;
    restrict(dir)?;
    let lock = lock(dir)?;
    let key_file = dir.join("master.key");
    let blob_dir = dir.join("blobs");
    let is_new = !blob_dir.exists();
    let key = Arc::new(MasterKey::load_or_create(&key_file, is_new)?);
    let blobs = Arc::new(DiskBlobs::open(&blob_dir, key)?);
    let store = Arc::new(Db::open(config.store())?);
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
