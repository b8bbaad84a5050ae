//! Sandboxes: most of the time an engine takes to start a container goes into its network namespace, so this worker keeps
//! some at hand. Each is a container without network whose only process waits; a job joins its network namespace and
//! nothing else of it. One job at a time is in a sandbox, only jobs of one owner group ever are, and none as root.
//!
//! One task makes, looks after and removes them. It is woken by jobs that come and go, and looks by itself every
//! [`LOOK`]. A job that finds none, or a dead one, gets a namespace of its own: it loses time and nothing else.

mod image;
mod pool;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use swarm_protocol::GroupId;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::image::PauseImage;
use self::pool::{Act, Pool};
use crate::config::WorkerConfig;
use crate::context::{Ctx, sandbox_of};
use crate::runtime::{ContainerId, ContainerPhase, ContainerRuntime, ContainerSpec, DiskQuota, Network, RuntimeError};
use crate::{images, offer};

/// How often it is looked which of them live.
const LOOK: Duration = Duration::from_secs(10);
/// Memory of a sandbox: the least an engine takes.
const MEMORY_BYTES: u64 = 6 << 20;
/// Bytes that an engine is asked to hold a container to, to see whether it does.
const PROBE_BYTES: u64 = 1 << 30;
/// The number of the container that this is tried with; those of sandboxes begin at 1.
const PROBE: u64 = 0;
/// Processes of a sandbox: what starts it needs some for a moment.
const PIDS: u32 = 32;

/// The worker's sandboxes. Clones are the same ones.
#[derive(Debug, Clone)]
pub(crate) struct Sandboxes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// As configured; one for each slot otherwise.
    wanted: Option<u32>,
    pool: Mutex<Pool>,
    changed: Notify,
}

/// A job's place in a sandbox, until it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    all: Sandboxes,
    number: u64,
    id: ContainerId,
}

impl Seat {
    /// What the job's container joins.
    pub(crate) fn network(&self) -> Network {
        Network::Of(self.id.clone())
    }

    /// Gives up the sandbox for good: it cannot be joined.
    pub(crate) fn condemn(self) {
        self.all.pool().end(self.number);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.all.pool().leave(self.number, Instant::now());
        self.all.0.changed.notify_one();
    }
}

impl Sandboxes {
    /// None yet.
    pub(crate) fn new(config: &WorkerConfig) -> Self {
        let wanted = if image::PROGRAM.is_empty() { Some(0) } else { config.sandboxes };
        let pool = Mutex::new(Pool::new(config.sandbox_joins));
        Self(Arc::new(Inner { wanted, pool, changed: Notify::new() }))
    }

    /// As many as configured, and at most one for each slot.
    fn target(&self, slots: u32) -> usize {
        self.0.wanted.unwrap_or(slots).min(slots) as usize
    }

    /// A sandbox for one job of this group that does not run as root, if one is at hand.
    pub(crate) fn join(&self, group: GroupId) -> Option<Seat> {
        let Some((number, id)) = self.pool().join(group, Instant::now()) else {
            self.0.changed.notify_one();
            return None;
        };
        Some(Seat { all: self.clone(), number, id })
    }

    /// Whether there is one with this number, or is about to be.
    pub(crate) fn knows(&self, number: u64) -> bool {
        self.pool().knows(number)
    }

    /// A panic elsewhere stops the whole worker, so a poisoned lock is taken as it is.
    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.0.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps them until the worker stops, and then removes them and their image.
pub(crate) async fn keep(ctx: Arc<Ctx>) -> anyhow::Result<()> {
    let image = PauseImage::pack();
    // Not dropped for want of room: it has a few KiB.
    let _claim = ctx.images.in_use.claim(image.config_digest());
    let (mut looked, mut sessions) = (Instant::now(), ctx.hub.sessions());
    while !ctx.stop.is_cancelled() {
        if ctx.swarm.get().is_some() && ctx.engine.borrow().disk_quota == DiskQuota::Unknown {
            report("it cannot be seen yet whether the engine has disk quotas", probe(&ctx, &image).await);
        }
        if ctx.swarm.get().is_some() && ctx.sandboxes.0.wanted != Some(0) {
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                report("sandboxes cannot be looked after yet", look(&ctx).await);
            }
            report("sandboxes cannot be made or removed yet", tend(&ctx, &image).await);
        }
        tokio::select! {
            biased;
            () = ctx.stop.cancelled() => {}
            () = ctx.sandboxes.0.changed.notified() => {}
            // The first welcome names the swarm.
            () = sessions.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    let all = ctx.sandboxes.pool().end_all();
    join_all(all.into_iter().map(async |number| report("a sandbox cannot be removed", remove(&ctx, number).await)))
        .await;
    report("the image of sandboxes cannot be removed", remove_image(ctx.runtime.as_ref()).await);
    Ok(())
}

/// What fails is tried again at the next look, or by the next start's sweep.
fn report(failure: &str, done: Result<(), RuntimeError>) {
    if let Err(error) = done {
        tracing::warn!(%error, "{failure}");
    }
}

/// Ends those that have died.
async fn look(ctx: &Ctx) -> Result<(), RuntimeError> {
    let found = ctx.runtime.list_ours(&ctx.boot_filter()).await?;
    let running = found.iter().filter(|container| container.phase == ContainerPhase::Running);
    let numbers: BTreeSet<u64> = running.filter_map(|container| sandbox_of(&container.labels)).collect();
    ctx.sandboxes.pool().keep_only(&numbers);
    Ok(())
}

/// Creates a container that asks for a disk quota, and nothing else of it: then the engine knows what it can do.
async fn probe(ctx: &Ctx, image: &PauseImage) -> Result<(), RuntimeError> {
    images::have(ctx, image.config_digest(), || image.archive()).await?;
    let mut spec = ContainerSpec::new(ctx.sandbox_name(PROBE), image.config_digest(), ctx.sandbox_labels(PROBE));
    spec.disk_bytes = Some(PROBE_BYTES);
    let created = ctx.runtime.create(&spec).await;
    // Whether it was created may be unknown.
    match ctx.runtime.remove(&ContainerId(spec.name), true).await {
        Err(error) if !error.is_not_found() => return Err(error),
        _ => created?,
    };
    offer::look(ctx).await;
    Ok(())
}

/// Makes and removes until nothing is to be done, or something fails.
async fn tend(ctx: &Ctx, image: &PauseImage) -> Result<(), RuntimeError> {
    loop {
        let target = if ctx.hub.is_accepting() { ctx.sandboxes.target(ctx.slots_offered()) } else { 0 };
        let acts = ctx.sandboxes.pool().acts(target);
        if acts.is_empty() {
            return Ok(());
        }
        let mut done = Ok(());
        for act in acts {
            if ctx.stop.is_cancelled() {
                return Ok(());
            }
            done = done.and(match act {
                Act::Remove(number) => remove(ctx, number).await,
                Act::Make(number) => make(ctx, image, number).await,
            });
        }
        done?;
    }
}

async fn make(ctx: &Ctx, image: &PauseImage, number: u64) -> Result<(), RuntimeError> {
    let made = start(ctx, image, number).await;
    let mut pool = ctx.sandboxes.pool();
    // It may be there all the same.
    made.inspect_err(|_| pool.end(number)).map(|id| pool.made(number, id, Instant::now()))
}

async fn start(ctx: &Ctx, image: &PauseImage, number: u64) -> Result<ContainerId, RuntimeError> {
    images::have(ctx, image.config_digest(), || image.archive()).await?;
    let mut spec = ContainerSpec::new(ctx.sandbox_name(number), image.config_digest(), ctx.sandbox_labels(number));
    (spec.memory_bytes, spec.pids, spec.read_only_root) = (MEMORY_BYTES, PIDS, true);
    let id = ctx.runtime.create(&spec).await?;
    ctx.runtime.start(&id).await?;
    Ok(id)
}

/// By its name, for whether it was ever made may be unknown.
async fn remove(ctx: &Ctx, number: u64) -> Result<(), RuntimeError> {
    match ctx.runtime.remove(&ContainerId(ctx.sandbox_name(number)), true).await {
        Err(error) if !error.is_not_found() => return Err(error),
        _ => ctx.sandboxes.pool().removed(number),
    }
    Ok(())
}

/// Removes the image that sandboxes are made of; only after all of them are gone.
pub(crate) async fn remove_image(runtime: &dyn ContainerRuntime) -> Result<(), RuntimeError> {
    match runtime.remove_image(&PauseImage::pack().config_digest()).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}
