//! The core in a simulated world: all its modules below HTTP over a real database and real files, started anew by
//! whoever watches over it, and what its HTTP routes would do.

mod server;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use rand::RngExt as _;
use rand::rngs::StdRng;
use swarm_core::blobs::{BlobStore, DiskBlobs, MasterKey};
use swarm_core::cache;
use swarm_core::clock::Clock;
use swarm_core::config::CoreConfig;
use swarm_core::dispatcher::HeartbeatSocket;
use swarm_core::modules::{Modules, Parts, Settings};
use swarm_core::store::{Db, NewUser, Store, Transition};
use swarm_core::supervise::{Gauge, History};
use swarm_host::blocking;
use swarm_protocol::api::Role;
use swarm_protocol::{Digest, Timestamp};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::host::Host;
use crate::net::{CORE, Net, Socket};
use crate::promises::Promises;
use crate::store::{FaultyStore, StoreFaults};
use crate::time::{now_us, trace, wall_us};

/// The config blob of the image that all jobs run.
pub(crate) const IMAGE: &[u8] = br#"{"config":{}}"#;
/// The input of the jobs that have one.
pub(crate) const INPUT: &[u8] = b"what goes in\n";
/// Who submits.
pub(crate) const USER: &str = "ada";
/// The database's file, and its write-ahead log.
pub(crate) const DATABASE: &str = "swarm.db";
pub(crate) const DATABASE_LOG: &str = "swarm.db-wal";
/// The directory of files and logs.
const BLOBS: &str = "blobs";
/// Where heartbeats go.
const HEARTBEAT_PORT: u16 = 7077;
/// From a failure of the core to its next start.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// What lies below the core's lives.
#[derive(Clone)]
pub(crate) struct Ground {
    pub(crate) dir: PathBuf,
    pub(crate) net: Net,
    pub(crate) faults: StoreFaults,
    pub(crate) clock: SimClock,
    pub(crate) settings: Settings,
    pub(crate) promises: Promises,
    /// How many cores were started: earlier ones do not begin anew.
    pub(crate) started: Arc<AtomicU64>,
}

/// The clocks of the core's machine.
#[derive(Clone, Default)]
pub(crate) struct SimClock {
    /// How far the wall clock is off, in microseconds.
    off_us: Arc<AtomicI64>,
}

impl SimClock {
    pub(crate) fn jump(&self, by_us: i64) {
        self.off_us.fetch_add(by_us, Ordering::Relaxed);
    }

    pub(crate) fn set_right(&self) {
        self.off_us.store(0, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let wall_us = wall_us().cast_signed() + self.off_us.load(Ordering::Relaxed);
        chrono::DateTime::from_timestamp_micros(wall_us).expect("a year that chrono knows")
    }

    fn boot_ms(&self) -> u64 {
        now_us() / 1000
    }
}

pub(crate) fn database(dir: &Path) -> String {
    dir.join(DATABASE).display().to_string()
}

fn blobs(dir: &Path) -> anyhow::Result<Arc<DiskBlobs>> {
    let key = Arc::new(MasterKey::from_bytes(Zeroizing::new([1; 32])));
    Ok(Arc::new(DiskBlobs::open(&dir.join(BLOBS), key)?))
}

impl Ground {
    /// Makes what the first start finds: a user, an image, an input.
    pub(crate) fn prepare(&self) -> anyhow::Result<()> {
        let db = Db::open(&database(&self.dir))?;
        let user = NewUser {
            name: USER.to_owned(),
            password_hash: String::new(),
            role: Role::Consumer,
            group: "lab".to_owned(),
            allow_root: false,
            created_at: self.clock.now(),
        };
        let epoch = db.take_over()?;
        db.commit(epoch, 1, &[Transition::CreateUser(Box::new(user))])?;
        let blobs = blobs(&self.dir)?;
        for bytes in [IMAGE, INPUT] {
            let mut upload = blobs.begin(bytes.len() as u64)?;
            io::Write::write_all(&mut upload, bytes)?;
            upload.finish(Some(Digest::of(bytes)))?;
        }
        Ok(())
    }

    /// The machine has lost its power: of the files that were not synced some are lost. The database's are not among them:
    /// what SQLite makes of a disk is not what is simulated.
    pub(crate) fn lose_power(&self, rng: &mut StdRng) {
        let mut choose = |of: usize| rng.random_range(0..of);
        if let Err(error) = swarm_host::files::simulated::cut(&self.dir.join(BLOBS), &mut choose) {
            trace(format_args!("the core's disk cannot be cut: {error}"));
        }
    }

    /// Starts a core; the token stops it in order.
    pub(crate) fn start(&self) -> (Host, CancellationToken) {
        let (host, stop, ground) = (Host::new(), CancellationToken::new(), self.clone());
        let (stopped, number) = (stop.clone(), self.started.fetch_add(1, Ordering::Relaxed) + 1);
        host.spawn(async move { ground.live(number, stopped).await });
        (host, stop)
    }

    async fn live(self, number: u64, stop: CancellationToken) {
        let history = History::default();
        while let Err(error) = self.term(stop.child_token(), history.clone()).await {
            trace(format_args!("the core failed: {error:#}"));
            if stop.is_cancelled() || self.started.load(Ordering::Relaxed) != number {
                break;
            }
            tokio::time::sleep(RESTART_PAUSE).await;
            history.restarted();
        }
        trace(format_args!("the core has stopped"));
    }

    async fn term(&self, stop: CancellationToken, history: History) -> anyhow::Result<()> {
        let (dir, faults, promises) = (self.dir.clone(), self.faults.clone(), self.promises.clone());
        let (store, blobs, epoch, snapshot) = blocking::run(move || {
            let store = FaultyStore { db: Db::open(&database(&dir))?, dir: dir.clone(), faults, promises };
            let (epoch, snapshot) = (store.take_over()?, store.load()?);
            anyhow::Ok((Arc::new(store), blobs(&dir)?, epoch, snapshot))
        })
        .await?;
        trace(format_args!("the core has epoch {epoch}"));
        let (swarm, clock) = (store.swarm_id()?, Arc::new(self.clock.clone()) as Arc<dyn Clock>);
        let parts = Parts {
            store: Arc::clone(&store) as Arc<dyn Store>,
            cache: cache::open(&CoreConfig::default(), swarm, Arc::clone(&clock))?,
            blobs: Arc::clone(&blobs) as Arc<dyn BlobStore>,
            clock,
            heartbeats: Arc::new(Heartbeats(self.net.socket(CORE, HEARTBEAT_PORT))),
            epoch,
            swarm,
            snapshot,
        };
        let mut modules = Modules::start(parts, &self.settings, stop, history);
        let resumed = modules.resume().await;
        if resumed.is_err() {
            modules.supervisor().stop().cancel();
        }
        let server = server::Server {
            handles: modules.handles.clone(),
            store,
            blobs,
            parked: Arc::default(),
            clock: self.clock.clone(),
            promises: self.promises.clone(),
            stop: modules.supervisor().stop().clone(),
        };
        modules.supervisor().spawn(Gauge::without_inbox("http"), server.serve(self.net.clone()));
        modules.end().await.and(resumed)
    }
}

struct Heartbeats(Socket);

#[async_trait]
impl HeartbeatSocket for Heartbeats {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0.own)
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        Ok(self.0.recv(buffer).await)
    }

    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.0.send(datagram, to);
        Ok(())
    }
}

/// The default settings with less patience, so that a simulated quarter of an hour is long.
pub(crate) fn settings() -> Settings {
    Settings::of(&CoreConfig { prepare_deadline_s: 120, ..CoreConfig::default() })
}
