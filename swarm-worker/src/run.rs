//! Starts a worker's tasks, keeps them together, and stops them in order.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::chance::{Backoff, Chance};
use crate::config::WorkerConfig;
use crate::context::Ctx;
use crate::hub::Hub;
use crate::identity::{self, DataDir};
use crate::images::Images;
use crate::latest::Latest;
use crate::machine::{Machine, ThisMachine};
use crate::network::{HttpNetwork, Network};
use crate::runtime::{ContainerRuntime, EngineFacts};
use crate::sandbox::{self, Sandboxes};
use crate::spool::Spool;
use crate::transfer::Transfer;
use crate::watchdog::{self, Launch, WatchFiles};
use crate::{disk, engine, link, offer, reconcile, room};

/// How often leases are looked at.
const LEASE_TICK: Duration = Duration::from_millis(250);
/// How long tasks may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What a worker is made of beside its settings.
#[derive(Clone)]
pub struct Parts {
    /// Runs its containers.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// The way to its core.
    pub network: Arc<dyn Network>,
    /// The machine it runs on.
    pub machine: Arc<dyn Machine>,
    /// Decides about pauses and the id of its start.
    pub chance: Chance,
    /// Starts its watchdog in place of the process that the settings name.
    pub launch_watchdog: Option<Launch>,
}

impl Parts {
    /// As [`run`] takes them. Install a rustls crypto provider before the call.
    ///
    /// # Errors
    /// When the TLS backend cannot be set up.
    pub fn of_this_machine(config: &WorkerConfig, runtime: Arc<dyn ContainerRuntime>) -> anyhow::Result<Self> {
        Ok(Self {
            runtime,
            network: Arc::new(HttpNetwork::new(config)?),
            machine: Arc::new(ThisMachine),
            chance: Chance::of_the_system(),
            launch_watchdog: None,
        })
    }
}

/// Runs a worker until `stop`. Containers then live on and are adopted by the next start on the same data directory,
/// unless the settings say to drain first. Install a rustls crypto provider before the call.
///
/// # Errors
/// Settings that cannot be used, a join the core refuses, or a failure that trying again cannot mend.
pub async fn run(
    config: WorkerConfig,
    runtime: Arc<dyn ContainerRuntime>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    config.check()?;
    let parts = Parts::of_this_machine(&config, runtime)?;
    run_with(config, parts, stop).await
}

/// Removes every container and volume this worker ever made, running or not, and the image of its sandboxes: for a worker
/// whose data directory goes too.
/// Only after [`run`] has returned.
///
/// # Errors
/// An identity that cannot be read, or an engine that fails; what was removed by then stays removed.
pub async fn remove_everything(config: &WorkerConfig, runtime: &dyn ContainerRuntime) -> anyhow::Result<()> {
    let identity = identity::Identity::load(&config.data)?;
    // Without a welcome there was never an order.
    let Some((swarm, worker)) = identity.and_then(|identity| Some((identity.swarm?, identity.worker))) else {
        return Ok(());
    };
    reconcile::remove_all(runtime, swarm, worker).await?;
    Ok(sandbox::remove_image(runtime).await?)
}

/// As [`run`], of parts of the caller's choice. On a runtime of one thread with paused time, what it does depends on its
/// parts alone, if blocking work is simulated too and no job has outputs named by a glob: these are read on a thread.
///
/// # Errors
/// As [`run`].
pub async fn run_with(config: WorkerConfig, parts: Parts, stop: CancellationToken) -> anyhow::Result<()> {
    config.check()?;
    let Some(ctx) = prepare(config, parts, &stop).await? else { return Ok(()) };
    // Whatever ends this function, a panic or a drop included, ends the tasks.
    let _stop_all = ctx.stop.clone().drop_guard();
    reconcile::take_up(&ctx).await.context("what an earlier start left cannot be taken up")?;
    let core = CoreTasks { tasks: TaskTracker::new(), stop: ctx.stop.clone(), failure: Arc::default() };
    core.spawn("leases", leases(ctx.clone()));
    core.spawn("watchdog", watchdog::supervise(ctx.clone()));
    core.spawn("sweep", reconcile::sweep(ctx.clone()));
    core.spawn("disk", disk::keep_looking(ctx.clone()));
    let sandboxed = ctx.clone();
    core.spawn("sandboxes", async move {
        // Those of an earlier start go first: there is at most one for each slot.
        reconcile::clear(&sandboxed).await;
        sandbox::keep(sandboxed).await
    });
    core.spawn("offer", offer::keep(ctx.clone()));
    core.spawn("engine", engine::keep_looking(ctx.clone()));
    core.spawn("room", room::keep_looking(ctx.clone()));
    core.spawn("link", link::keep(ctx.clone()));
    tokio::select! {
        biased;
        () = ctx.stop.cancelled() => {}
        () = stop.cancelled() => {
            if ctx.config.drain_on_stop {
                tracing::info!("draining: waiting until everything held has ended");
                ctx.hub.set_draining(true);
                ctx.stop.run_until_cancelled(drained(&ctx)).await;
            }
        }
    }
    ctx.stop.cancel();
    core.tasks.close();
    ctx.tasks.close();
    let ended = async { tokio::join!(core.tasks.wait(), ctx.tasks.wait()) };
    if tokio::time::timeout(STOP_TIMEOUT, ended).await.is_err() {
        tracing::warn!(left = core.tasks.len() + ctx.tasks.len(), "some tasks did not end in time");
    }
    let failure = core.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
    failure.map_or(Ok(()), Err)
}

/// Returns once nothing is held, nor is done any more for what was: the image of a cancelled job may still be coming.
async fn drained(ctx: &Ctx) {
    ctx.hub.until_empty().await;
    ctx.tasks.close();
    ctx.tasks.wait().await;
}

/// Everything up to the first task; `None` when stopped meanwhile.
async fn prepare(config: WorkerConfig, parts: Parts, stop: &CancellationToken) -> anyhow::Result<Option<Arc<Ctx>>> {
    let Parts { runtime, network, machine, chance, launch_watchdog } = parts;
    let data = DataDir::open(&config.data)?;
    // First, so that no token is spent on a worker that cannot work.
    let Some(engine) = engine_facts(runtime.as_ref(), &chance, stop).await else { return Ok(None) };
    engine.check().context("the container engine cannot be used")?;
    let identity = identity::obtain(&config, &data.path, &*network, &chance, stop).await?;
    let slots = offer::slots(&config, &engine);
    let spool = Spool::open(&data.path).context("the spool cannot be opened")?;
    let watch = WatchFiles::new(&data.path);
    watch.prepare().context("the watchdog's notes cannot be kept")?;
    let swarm = identity.swarm.map_or_else(OnceLock::new, OnceLock::from);
    Ok(Some(Arc::new(Ctx {
        images: Images::open(&config.data),
        transfer: Transfer::new(network.clone(), identity.key.clone(), chance.clone()),
        slots: Arc::new(Semaphore::new(slots as usize)),
        sandboxes: Sandboxes::new(&config),
        config,
        data,
        identity,
        swarm,
        boot: chance.boot_id(),
        machine_boot: machine.boot(),
        engine: watch::Sender::new(engine),
        runtime,
        network,
        machine,
        chance,
        hub: Hub::new(),
        spool,
        watch,
        launch_watchdog,
        disk: Latest::default(),
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
    })))
}

/// Asks the engine about itself until it answers: without an engine a worker is of no use.
async fn engine_facts(
    runtime: &dyn ContainerRuntime,
    chance: &Chance,
    stop: &CancellationToken,
) -> Option<EngineFacts> {
    let mut backoff = Backoff::new(chance);
    loop {
        match runtime.facts().await {
            Ok(facts) => return Some(facts),
            Err(error) => tracing::error!(%error, "the container engine does not answer, trying again"),
        }
        stop.run_until_cancelled(tokio::time::sleep(backoff.next_pause())).await?;
    }
}

async fn leases(ctx: Arc<Ctx>) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(LEASE_TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = ctx.stop.cancelled() => return Ok(()),
            _ = tick.tick() => ctx.hub.expire(ctx.machine.now_ns()),
        }
    }
}

/// Tasks that only make sense together: when one ends, whether by an error or a panic, all end.
struct CoreTasks {
    tasks: TaskTracker,
    stop: CancellationToken,
    failure: Arc<Mutex<Option<anyhow::Error>>>,
}

impl CoreTasks {
    fn spawn(&self, name: &'static str, body: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        let stop_all = self.stop.clone().drop_guard();
        let failure = self.failure.clone();
        self.tasks.spawn(async move {
            let _stop_all = stop_all;
            if let Err(error) = body.await {
                let error = error.context(format!("the worker's task `{name}` failed"));
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        });
    }
}

#[cfg(test)]
mod tests;
