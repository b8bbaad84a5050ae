//! A worker's machine in a simulated world: an engine with its containers, a watchdog, and the worker itself, of which the
//! last can crash or freeze alone.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use secrecy::{ExposeSecret as _, SecretString};
use swarm_protocol::api::{JoinAnswer, JoinRequest};
use swarm_protocol::{AttemptId, Digest, WorkerId};
use swarm_worker::chance::Chance;
use swarm_worker::machine::Machine;
use swarm_worker::network::{CallError, ConnectError, Datagrams, Link, Network, Rest};
use swarm_worker::runtime::fake::{Effect, EngineEvent, FakeRuntime, FaultPlan};
use swarm_worker::runtime::{ByteStream, ContainerRuntime, RuntimeError};
use swarm_worker::{Parts, WorkerConfig, run_with, watchdog};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::calls::{Answer, Request};
use crate::core::IMAGE;
use crate::host::Host;
use crate::net::{CORE, Net, Site, Socket, address};
use crate::time::{now_us, trace, wall_us};
use crate::work::Work;

/// From the end of a worker that failed to its next start.
const RESTART_PAUSE: Duration = Duration::from_secs(2);

/// A boot of a machine.
struct Boot {
    number: u64,
    began_us: u64,
}

impl Machine for Boot {
    fn now_ns(&self) -> u64 {
        (now_us() - self.began_us) * 1000 + 1_000_000_000
    }

    fn wall_us(&self) -> u64 {
        wall_us()
    }

    fn boot(&self) -> String {
        format!("boot {}", self.number)
    }

    fn load_millis(&self) -> u32 {
        0
    }
}

/// See the module.
pub(crate) struct WorkerMachine {
    site: Site,
    name: String,
    dir: PathBuf,
    net: Net,
    engine: FakeRuntime,
    slots: u32,
    sandboxes: bool,
    rng: StdRng,
    boot: Arc<Boot>,
    /// Containers and watchdog; `None` without power.
    base: Option<Host>,
    worker: Option<Host>,
    is_frozen: bool,
    watch: Arc<Mutex<Watch>>,
    /// How often the worker was started, by whomever.
    lives: Arc<AtomicU64>,
}

/// What became of the watchdogs of a machine.
#[derive(Default)]
struct Watch {
    started: Vec<AbortHandle>,
    /// From when until when there was none, after one was killed. Unix time in microseconds.
    gaps: Vec<(u64, u64)>,
}

impl WorkerMachine {
    pub(crate) fn new(number: u16, dir: PathBuf, net: Net, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let engine = FakeRuntime::with_clock(wall_us);
        engine.program(Work::script);
        engine.add_image(Digest::of(IMAGE), Vec::new());
        let (slots, sandboxes) = (rng.random_range(1..=4), rng.random_bool(0.5));
        let boot = Arc::new(Boot { number: 0, began_us: now_us() });
        let (site, name) = (Site(number), format!("w{number}"));
        let (base, worker, is_frozen) = (None, None, false);
        let (watch, lives) = (Arc::default(), Arc::default());
        Self { site, name, dir, net, engine, slots, sandboxes, rng, boot, base, worker, is_frozen, watch, lives }
    }

    pub(crate) fn site(&self) -> Site {
        self.site
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The machine boots, unless it runs, and so does its worker.
    pub(crate) fn start(&mut self) {
        if self.base.is_none() {
            self.boot = Arc::new(Boot { number: self.boot.number + 1, began_us: now_us() });
            let base = Host::new();
            self.engine.live_on(base.handle());
            self.engine.engine_up();
            self.base = Some(base);
            self.net.set_dark(self.site, false);
        }
        if self.worker.is_none() {
            self.is_frozen = false;
            self.start_worker();
        }
    }

    fn start_worker(&mut self) {
        let worker = Host::new();
        let config = WorkerConfig {
            data: self.dir.clone(),
            name: self.name.clone(),
            join_token: Some("token".to_owned().into()),
            slots: Some(self.slots),
            sandboxes: if self.sandboxes { None } else { Some(0) },
            ..WorkerConfig::default()
        };
        let parts = Parts {
            runtime: Arc::new(self.engine.clone()),
            network: Arc::new(SimNetwork { net: self.net.clone(), site: self.site }),
            machine: Arc::clone(&self.boot) as Arc<dyn Machine>,
            chance: Chance::seeded(self.rng.random()),
            launch_watchdog: self.watchdog(),
        };
        let (name, lives) = (self.name.clone(), Arc::clone(&self.lives));
        worker.spawn(async move {
            loop {
                lives.fetch_add(1, Ordering::Relaxed);
                let ended = run_with(config.clone(), parts.clone(), CancellationToken::new()).await;
                trace(format_args!("{name} ended: {:?}", ended.err().map(|error| format!("{error:#}"))));
                tokio::time::sleep(RESTART_PAUSE).await;
            }
        });
        self.worker = Some(worker);
    }

    fn watchdog(&self) -> Option<watchdog::Launch> {
        let handle = self.base.as_ref()?.handle();
        let (dir, boot, engine) = (self.dir.clone(), Arc::clone(&self.boot), self.engine.clone());
        let watch = Arc::clone(&self.watch);
        Some(Arc::new(move || {
            let (dir, boot, engine) = (dir.clone(), Arc::clone(&boot), engine.clone());
            let started = handle.spawn(async move {
                let connect = || {
                    let engine = engine.clone();
                    async move { Ok::<_, RuntimeError>(Arc::new(engine) as Arc<dyn ContainerRuntime>) }
                };
                if let Err(error) = watchdog::watch_with(&dir, &*boot, connect).await {
                    trace(format_args!("a watchdog ended: {error:#}"));
                }
            });
            let mut watch = watch.lock().unwrap_or_else(PoisonError::into_inner);
            watch.started.push(started.abort_handle());
            watch.gaps.iter_mut().filter(|gap| gap.1 == u64::MAX).for_each(|gap| gap.1 = wall_us());
        }))
    }

    /// The watchdog dies, and nothing else; false when there is none, or nobody who would start another.
    pub(crate) fn kill_watchdog(&self) -> bool {
        if self.worker.is_none() || self.is_frozen {
            return false;
        }
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut killed = false;
        for watchdog in watch.started.drain(..).filter(|watchdog| !watchdog.is_finished()) {
            watchdog.abort();
            killed = true;
        }
        if killed {
            watch.gaps.push((wall_us(), u64::MAX));
        }
        killed
    }

    /// Whether the worker has lived on from the beginning.
    pub(crate) fn never_restarted(&self) -> bool {
        self.lives.load(Ordering::Relaxed) <= 1
    }

    /// When containers ran without a watchdog, in Unix microseconds.
    pub(crate) fn unwatched(&self) -> Vec<(u64, u64)> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner).gaps.clone()
    }

    /// The worker dies; the machine tells its core.
    pub(crate) fn crash(&mut self) -> bool {
        let Some(worker) = self.worker.take() else { return false };
        self.net.crash(self.site, || drop(worker));
        true
    }

    /// Everything on the machine dies at once, and of what was not synced some is lost.
    pub(crate) fn lose_power(&mut self) -> bool {
        if self.base.is_none() {
            return false;
        }
        self.net.set_dark(self.site, true);
        self.engine.machine_down();
        (self.worker, self.base) = (None, None);
        let mut choose = |of: usize| self.rng.random_range(0..of);
        if let Err(error) = swarm_host::files::simulated::cut(&self.dir, &mut choose) {
            trace(format_args!("{}: the disk cannot be cut: {error}", self.name));
        }
        true
    }

    pub(crate) fn freeze(&mut self) -> bool {
        let freezes = self.worker.is_some() && !self.is_frozen;
        self.is_frozen |= freezes;
        freezes
    }

    pub(crate) fn thaw(&mut self) {
        if let Some(worker) = self.worker.as_ref().filter(|_| self.is_frozen) {
            worker.thaw(now_us());
        }
        self.is_frozen = false;
    }

    /// The engine stops answering, or answers again.
    pub(crate) fn set_engine_down(&self, is_down: bool) {
        if is_down {
            self.engine.engine_down();
        } else if self.base.is_some() {
            self.engine.engine_up();
        }
    }

    /// From now on this share of the calls to the engine goes wrong in one way or another.
    pub(crate) fn set_engine_faults(&mut self, share: f64) {
        let mut rng = StdRng::seed_from_u64(self.rng.random());
        self.engine.plan(FaultPlan::choosing(move |_| {
            let gone = || RuntimeError::Engine { call: "any", message: "connection reset".into() };
            // Two of them are less than what the checker grants to the difference of two clocks' readings.
            let later = Duration::from_millis(rng.random_range(10..900));
            if !rng.random_bool(share) {
                return None;
            }
            Some(match rng.random_range(0..10) {
                0..3 => Effect::Fail(gone()),
                3..6 => Effect::DoneButFail(gone()),
                6..9 => Effect::Delay(later),
                _ => Effect::FailLate(later, gone()),
            })
        }));
    }

    pub(crate) fn heal_engine(&self) {
        self.engine.plan(FaultPlan::new());
        self.set_engine_down(false);
    }

    pub(crate) fn step(&self, until_us: u64) {
        if let Some(base) = &self.base {
            base.step(until_us);
        }
        if let Some(worker) = self.worker.as_ref().filter(|_| !self.is_frozen) {
            worker.step(until_us);
        }
    }

    /// What became of containers since the last time.
    pub(crate) fn take_events(&self) -> Vec<EngineEvent> {
        self.engine.take_events()
    }
}

/// What a worker's calls become.
struct SimNetwork {
    net: Net,
    site: Site,
}

impl SimNetwork {
    async fn ask(&self, request: Request) -> Result<Answer, CallError> {
        match self.net.call(self.site, request).await {
            None => Err(CallError::Again("no answer came".to_owned())),
            Some(Answer::Again) => Err(CallError::Again("the core cannot do it now".to_owned())),
            Some(Answer::Refused(problem)) => Err(CallError::Refused(problem)),
            Some(answer) => Ok(answer),
        }
    }
}

/// A worker's key is its number.
fn number(key: &SecretString) -> WorkerId {
    WorkerId(key.expose_secret().parse().unwrap_or_default())
}

fn nonsense<T>() -> Result<T, CallError> {
    Err(CallError::Again("the answer makes no sense".to_owned()))
}

#[async_trait]
impl Network for SimNetwork {
    async fn join(&self, request: &JoinRequest) -> Result<JoinAnswer, CallError> {
        match self.ask(Request::Join { worker: request.worker.clone() }).await? {
            Answer::Joined(worker) => Ok(JoinAnswer { worker, key: worker.to_string() }),
            _ => nonsense(),
        }
    }

    async fn link(&self, key: &SecretString) -> Result<Link, ConnectError> {
        let (to_core, from_core) = self.net.open(self.site, key.expose_secret().to_owned()).await?.split();
        Ok(Link { to_core: Box::pin(to_core), from_core: from_core.boxed() })
    }

    async fn heartbeats(&self, port: u16) -> io::Result<Box<dyn Datagrams>> {
        Ok(Box::new(Heartbeats { socket: self.net.socket(self.site, 0), core: address(CORE, port) }))
    }

    async fn blob(
        &self,
        key: &SecretString,
        attempt: AttemptId,
        digest: Digest,
        offset: u64,
    ) -> Result<ByteStream, CallError> {
        match self.ask(Request::Blob { worker: number(key), attempt, digest, offset }).await? {
            Answer::Bytes(bytes) => Ok(match self.net.tears(bytes.len()) {
                Some(at) => stream::iter([Ok(bytes.slice(..at)), Err(io::ErrorKind::ConnectionReset.into())]).boxed(),
                None => stream::iter([Ok(bytes)]).boxed(),
            }),
            _ => nonsense(),
        }
    }

    async fn upload(&self, key: &SecretString, attempt: AttemptId, mut rest: Rest) -> Result<Digest, CallError> {
        let mut bytes = Vec::new();
        while let Some(piece) = rest.bytes.next().await {
            bytes.extend_from_slice(&piece.map_err(CallError::Source)?);
        }
        let torn_at = self.net.tears(bytes.len());
        bytes.truncate(torn_at.unwrap_or(bytes.len()));
        let request = Request::Output {
            worker: number(key),
            attempt,
            digest: rest.digest,
            offset: rest.offset,
            bytes: bytes.into(),
            is_torn: torn_at.is_some(),
        };
        match self.ask(request).await? {
            Answer::Stored(digest) => Ok(digest),
            _ => nonsense(),
        }
    }

    async fn sent(&self, key: &SecretString, attempt: AttemptId, digest: Digest) -> Result<u64, CallError> {
        match self.ask(Request::Sent { worker: number(key), attempt, digest }).await? {
            Answer::Offset(offset) => Ok(offset),
            _ => nonsense(),
        }
    }
}

struct Heartbeats {
    socket: Socket,
    core: SocketAddr,
}

#[async_trait]
impl Datagrams for Heartbeats {
    async fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        self.socket.send(datagram, self.core);
        Ok(datagram.len())
    }

    async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.socket.recv(buffer).await.0)
    }
}
