//! The dispatcher: which worker runs it. It owns the picture of the workers, their link sessions and the UDP task; it is
//! woken by its inbox (work available, room freed, a worker ready) and sweeps every second, which makes up for every
//! nudge that got lost.
//!
//! While some worker has room it asks the scheduler for the next job, places its tasks ([`crate::plan::place`]), has the
//! assignments committed, tells the harvester what to expect, and only then sends the orders. It does not wait for
//! commits: they come back as messages do, and meanwhile all else is answered. What fits nowhere goes back and
//! is parked under its shape until room appears. An order whose link breaks is not looked after here: the harvester
//! frees what a worker's next state report does not know.
//!
//! A session begins with a handshake and ends with its link, with a newer handshake of the same worker, with the
//! worker's revocation, or when the worker stops reading its link. The keys of its heartbeats live exactly as long.

mod fill;
mod notes;
mod orders;
mod picture;
mod records;
mod sessions;
#[cfg(test)]
mod tests;
mod udp;
mod under_way;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use swarm_host::blocking;
use swarm_protocol::heartbeat::{CoreEnd, Handshake};
use swarm_protocol::labels::{self, Labels};
use swarm_protocol::link::{self, Hello, ToWorker, Welcome, WorkerFacts};
use swarm_protocol::text::sanitise;
use swarm_protocol::{Epoch, SessionId, SwarmId, WorkerId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

pub use orders::{Limits, order};
pub use picture::SLOTS_MAX;
pub use sessions::{Heard, Sessions};
pub use udp::{BindError, HeartbeatSocket, bind};

use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::CoreConfig;
use crate::messages::{DispatcherMsg, HarvesterMsg, LedgerHandle, LinkTx, SchedulerMsg, Shape, Stopping};
use crate::plan::fit::misfit;
use crate::plan::why::why;
use crate::store::Store;
use crate::supervise::{Gauge, until_stopped};
use picture::{Picture, Said, Silence};
use records::Records;
use under_way::UnderWay;

/// Heartbeat intervals of silence after which a worker is suspect: it gets nothing new, and eager jobs leave it.
const SILENT_INTERVALS: u64 = 3;
/// Pause between sweeps in milliseconds.
const SWEEP_MS: u64 = 1000;
/// Messages handled before workers are filled.
const BATCH: usize = 64;
/// Characters kept of each text a worker says about itself.
const FACT_CHARS_MAX: usize = 128;

/// How the dispatcher is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Pause between a worker's heartbeats in milliseconds.
    pub heartbeat_interval_ms: u32,
    /// Pause between sweeps in milliseconds.
    pub sweep_ms: u64,
    /// What orders allow beyond the spec.
    pub limits: Limits,
}

impl Config {
    /// As the core's configuration says.
    #[must_use]
    pub fn of(config: &CoreConfig) -> Self {
        let limits = Limits {
            log_bytes_max: config.limits.log_bytes,
            output_bytes_max: config.limits.output_bytes,
            grace_ms: config.grace_ms,
        };
        Self { heartbeat_interval_ms: config.heartbeat_interval_ms, sweep_ms: SWEEP_MS, limits }
    }

    /// Milliseconds of silence after which a worker is suspect.
    #[must_use]
    pub fn suspect_after_ms(&self) -> u64 {
        SILENT_INTERVALS * u64::from(self.heartbeat_interval_ms)
    }
}

/// What the dispatcher works with.
pub struct Deps {
    /// Where assignments go.
    pub ledger: LedgerHandle,
    /// Where job records and workers are read.
    pub store: Arc<dyn Store>,
    /// Asked for work.
    pub scheduler: mpsc::Sender<SchedulerMsg>,
    /// Told of attempts, links and heartbeats.
    pub harvester: mpsc::Sender<HarvesterMsg>,
    /// Shown what the workers last said.
    pub cache: Arc<dyn Cache>,
    /// Judges silence.
    pub clock: Arc<dyn Clock>,
    /// From [`bind`].
    pub socket: Arc<dyn HeartbeatSocket>,
    /// Shared with whoever reads the links.
    pub sessions: Arc<Sessions>,
    /// The swarm, for handshakes.
    pub swarm: SwarmId,
    /// The core's term, for handshakes.
    pub epoch: Epoch,
    /// How it is set up.
    pub config: Config,
}

/// Runs the dispatcher until `stop` or until all senders are gone.
///
/// # Errors
/// When the workers cannot be read at the start, or when the UDP task dies.
pub async fn run(
    mut inbox: mpsc::Receiver<DispatcherMsg>,
    deps: Deps,
    gauge: Gauge,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut udp = JoinSet::new();
    let Deps { ledger, store, scheduler, harvester, cache, clock, socket, sessions, swarm, epoch, config } = deps;
    let heartbeats = socket.local_addr()?;
    let udp_deps = (Arc::clone(&sessions), harvester.clone(), Arc::clone(&clock), stop.clone());
    udp.spawn(udp::serve(socket, udp_deps.0, udp_deps.1, udp_deps.2, udp_deps.3));
    let records = Records::new(Arc::clone(&store));
    let mut picture = Picture::default();
    picture.restore(blocking::run(move || store.workers()).await?);
    let parked = BTreeSet::new();
    let mut dispatcher = Dispatcher {
        ledger,
        scheduler,
        harvester,
        cache,
        clock,
        sessions,
        swarm,
        epoch,
        config,
        heartbeats,
        records,
        picture,
        under_way: UnderWay::default(),
        is_held_up: false,
        notes: JoinSet::new(),
        parked,
        gauge,
    };
    let mut tick = tokio::time::interval(Duration::from_millis(config.sweep_ms.max(1)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut batch, mut more) = (Vec::with_capacity(BATCH), false);
    loop {
        let mut fill = std::mem::take(&mut more);
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            Some(ended) = udp.join_next() => {
                ended?;
                return if stop.is_cancelled() { Ok(()) } else { Err(anyhow::anyhow!("the UDP task ended unasked")) };
            }
            _ = tick.tick() => {
                if dispatcher.sweep().await.is_err() {
                    return until_stopped(&stop).await;
                }
                fill = true;
            }
            Some(back) = dispatcher.under_way.next() => {
                let Ok(has_room) = dispatcher.settle(back).await else { return until_stopped(&stop).await };
                fill |= has_room;
            }
            count = inbox.recv_many(&mut batch, BATCH) => {
                if count == 0 {
                    return Ok(());
                }
                for message in batch.drain(..) {
                    let Ok(wants) = dispatcher.handle(message).await else { return until_stopped(&stop).await };
                    fill |= wants;
                }
                dispatcher.gauge.handled_many(count as u64);
            }
            // Workers were filled only in part to let messages through.
            () = std::future::ready(()), if fill => {}
        }
        if fill {
            let Ok(left) = dispatcher.fill().await else { return until_stopped(&stop).await };
            more = left;
        }
    }
}

struct Dispatcher {
    ledger: LedgerHandle,
    scheduler: mpsc::Sender<SchedulerMsg>,
    harvester: mpsc::Sender<HarvesterMsg>,
    cache: Arc<dyn Cache>,
    clock: Arc<dyn Clock>,
    sessions: Arc<Sessions>,
    swarm: SwarmId,
    epoch: Epoch,
    config: Config,
    heartbeats: SocketAddr,
    records: Records,
    picture: Picture,
    under_way: UnderWay,
    /// There was more to give than may be under way.
    is_held_up: bool,
    /// What is being kept of what workers say of themselves; ends with what the store refused.
    notes: JoinSet<Option<(WorkerId, Said)>>,
    /// Shapes the scheduler was told to skip.
    parked: BTreeSet<Shape>,
    gauge: Gauge,
}

impl Dispatcher {
    fn silence(&self) -> Silence {
        Silence { now_ms: self.clock.boot_ms(), ms_max: self.config.suspect_after_ms() }
    }

    /// Handles one message; true when workers may be given something afterwards.
    async fn handle(&mut self, message: DispatcherMsg) -> Result<bool, Stopping> {
        match message {
            DispatcherMsg::WorkAvailable => return Ok(true),
            DispatcherMsg::Connect { worker, name, hello, link, reply } => {
                self.connect(worker, name, *hello, link, reply).await?;
            }
            DispatcherMsg::Disconnected { worker, session } => self.cut(worker, Some(session)).await?,
            DispatcherMsg::Ready { worker, session, held } => {
                if self.picture.ready(worker, session, held) && self.picture.is_draining(worker) {
                    self.send(worker, ToWorker::Drain).await?;
                }
                return Ok(true);
            }
            DispatcherMsg::Freed { worker, attempt } => {
                self.picture.freed(worker, attempt);
                return Ok(true);
            }
            DispatcherMsg::Declined(worker) => self.picture.declined(worker, self.clock.boot_ms()),
            DispatcherMsg::Labels { worker, session, labels } => {
                self.picture.relabel(worker, session, labels::tidy(labels));
                return Ok(true);
            }
            DispatcherMsg::Drain { worker, draining } => {
                self.picture.drain(worker, draining);
                self.send(worker, if draining { ToWorker::Drain } else { ToWorker::Resume }).await?;
                return Ok(!draining);
            }
            DispatcherMsg::Revoked(worker) => {
                self.picture.revoke(worker);
                self.cut(worker, None).await?;
            }
            DispatcherMsg::Send { worker, frame } => self.send(worker, *frame).await?,
            DispatcherMsg::Why { shape, reply } => {
                let subjects = self.picture.subjects(&self.sessions, self.silence());
                let _ = reply.send(why(&subjects, &shape));
            }
            DispatcherMsg::Misfit { shape, reply } => {
                let subjects = self.picture.subjects(&self.sessions, self.silence());
                let _ = reply.send(misfit(&subjects, &shape));
            }
            DispatcherMsg::Settled { reply } => self.under_way.mark(reply),
            DispatcherMsg::Workers { reply } => {
                let _ = reply.send(self.picture.views(&self.sessions, self.silence()));
            }
        }
        Ok(false)
    }

    async fn connect(
        &mut self,
        worker: WorkerId,
        name: String,
        hello: Hello,
        tx: LinkTx,
        reply: oneshot::Sender<Welcome>,
    ) -> Result<(), Stopping> {
        let version = match self.version_for(worker, &hello) {
            Ok(version) => version,
            Err(refused) => {
                let _ = reply.send(refused);
                return Ok(());
            }
        };
        self.cut(worker, None).await?;
        let session = self.draw_session();
        let (core_nonce, secret): ([u8; 32], [u8; 32]) = (rand::random(), rand::random());
        let handshake = Handshake {
            worker_nonce: hello.nonce,
            core_nonce,
            session,
            worker,
            epoch: self.epoch,
            link_version: version,
        };
        let end = CoreEnd::new(&secret, &handshake);
        self.sessions.insert(session, worker, end, self.clock.boot_ms(), self.clock.now());
        let facts = tidy(hello.facts);
        self.picture.connect(worker, name, facts, session, tx.clone(), version);
        if version < link::LABELS_SINCE {
            self.picture.relabel(worker, session, Labels::new());
        }
        // The harvester must know the session before its first frames.
        self.tell(HarvesterMsg::LinkUp { worker, boot: hello.boot, session, link: tx }).await?;
        let welcome = Welcome::Accepted {
            version,
            swarm: self.swarm,
            worker,
            epoch: self.epoch,
            session,
            nonce: core_nonce,
            secret,
            heartbeat_port: self.heartbeats.port(),
            heartbeat_interval_ms: self.config.heartbeat_interval_ms,
        };
        if reply.send(welcome).is_err() {
            self.cut(worker, Some(session)).await?;
        }
        Ok(())
    }

    fn version_for(&self, worker: WorkerId, hello: &Hello) -> Result<u8, Welcome> {
        if self.picture.is_revoked(worker) {
            let reason = "this worker's key was revoked; join again with a new token".to_owned();
            return Err(Welcome::Refused { reason, retry: false });
        }
        link::agree(hello).ok_or_else(|| {
            let (theirs, ours) = ((hello.version_min, hello.version_max), (link::VERSION_MIN, link::VERSION));
            let older = if theirs.1 < ours.0 { "worker" } else { "core" };
            let reason = format!(
                "the worker speaks link versions {} to {}, the core {} to {}: update the {older}",
                theirs.0, theirs.1, ours.0, ours.1
            );
            Welcome::Refused { reason, retry: true }
        })
    }

    fn draw_session(&self) -> SessionId {
        loop {
            let session = SessionId(rand::random());
            if !self.sessions.contains(session) {
                return session;
            }
        }
    }

    /// Ends a worker's session, if it is this one; `None` means whichever.
    async fn cut(&mut self, worker: WorkerId, session: Option<SessionId>) -> Result<(), Stopping> {
        let Some(session) = self.picture.disconnect(worker, session, &self.sessions) else { return Ok(()) };
        self.sessions.remove(session);
        self.tell(HarvesterMsg::LinkDown { worker, session }).await
    }

    /// Sends a frame to a worker, if it is linked. A worker that does not read is cut off.
    async fn send(&mut self, worker: WorkerId, frame: ToWorker) -> Result<(), Stopping> {
        let Some(Err(error)) = self.picture.link(worker).map(|link| link.try_send(frame)) else { return Ok(()) };
        tracing::warn!(%worker, "the worker's link is cut: {error}");
        self.cut(worker, None).await
    }

    async fn tell(&self, message: HarvesterMsg) -> Result<(), Stopping> {
        self.harvester.send(message).await.map_err(|_| Stopping)
    }

    async fn ask(&self, message: SchedulerMsg) -> Result<(), Stopping> {
        self.scheduler.send(message).await.map_err(|_| Stopping)
    }
}

/// A worker's facts with their texts cut and made harmless.
fn tidy(facts: WorkerFacts) -> WorkerFacts {
    let tidy = |text: String| sanitise(&text.chars().take(FACT_CHARS_MAX).collect::<String>(), false);
    WorkerFacts {
        version: tidy(facts.version),
        os: tidy(facts.os),
        arch: tidy(facts.arch),
        engine: tidy(facts.engine),
        ..facts
    }
}
