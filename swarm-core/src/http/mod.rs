//! HTTP: the API under `/api/v1`, the workers' link and the health routes. Handlers authorise by their guard, call one
//! verb and shape the answer; what blocks runs on threads of its own.

mod files;
mod guards;
mod health;
mod images;
mod jobs;
mod link;
mod login;
mod logs;
mod modules;
mod openapi;
pub mod parked;
mod problem;
mod schedules;
mod submit;
#[cfg(test)]
mod tests;
mod transfer;
mod turns;
mod users;
mod why;
mod worker_files;
mod workers;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rocket::config::{Ident, LogLevel, Shutdown};
use rocket::fairing::AdHoc;
use rocket::{Build, Config, Rocket, Route, routes};
use swarm_protocol::api::Submitted;
use swarm_protocol::{AttemptId, Digest, Epoch, GroupId, SwarmId, UserId, WorkerId};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::blobs::BlobStore;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::CoreConfig;
use crate::identity::Identity;
use crate::logger::LoggerHandle;
use crate::messages::Handles;
use crate::once::Once;
use crate::store::{Applied, Store, StoreError, Transition, Verdict};
use crate::supervise::{Gauge, Supervisor};
pub use openapi::json as openapi;
use problem::{Answer, late};
use swarm_host::blocking;
use turns::Turns;

/// Where the API is mounted.
const BASE: &str = "/api/v1";
/// How long requests may go on after the stop, in seconds; links and log readers end at once by themselves.
const GRACE_S: u32 = 1;

/// What the API works with.
pub struct ApiState {
    /// The modules.
    pub handles: Handles,
    /// For reading; all writing goes through the ledger.
    pub store: Arc<dyn Store>,
    /// Files, images and logs.
    pub blobs: Arc<dyn BlobStore>,
    /// Who may do what.
    pub identity: Arc<Identity>,
    /// What may be lost: notices of logs, what workers last said.
    pub cache: Arc<dyn Cache>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The modules' status, and the token that stops them.
    pub supervisor: Supervisor,
    /// The configuration in force.
    pub config: Arc<CoreConfig>,
    /// This installation.
    pub swarm: SwarmId,
    /// The term of this core.
    pub epoch: Epoch,
    /// What the archive, which answers within requests, counts about itself.
    pub archive: Gauge,
    /// The core's own log, where there is one.
    pub logger: Option<LoggerHandle>,
}

/// Where to listen.
#[derive(Debug)]
pub struct Listener {
    /// Port 0 takes a free one.
    pub address: SocketAddr,
    /// Told the address once connections are accepted there.
    pub bound: Option<oneshot::Sender<SocketAddr>>,
}

/// The uploads under way, `limits.uploads` for each side: users cannot hold up the workers' outputs.
struct Uploads {
    users: Turns<UserId>,
    /// One at a time for an attempt: each may have all that the others left of its bytes.
    workers: Turns<AttemptId>,
    /// Those that broke off.
    parked: Arc<parked::Parked>,
}

impl Uploads {
    /// `at_once` for each side, of which one user has at most a quarter.
    fn new(at_once: usize) -> Self {
        let (users, workers) = (Turns::new(at_once, (at_once / 4).max(1)), Turns::new(at_once, 1));
        Self { users, workers, parked: Arc::default() }
    }
}

/// Submits under way, by owner group, key and digest of the body.
type Submits = Arc<Once<(GroupId, String, Digest, bool), Submitted>>;

impl ApiState {
    /// Reads from the store on a thread that may block.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Answer<T> {
        let store = Arc::clone(&self.store);
        let answer = self.in_time(blocking::run(move || read(&*store))).await?;
        Ok(self.served(answer)?)
    }

    /// Counts a read of the archive's, and its error if it failed.
    fn served<T, E: std::fmt::Display>(&self, answer: Result<T, E>) -> Result<T, E> {
        self.archive.handled();
        if let Err(error) = &answer {
            self.archive.error(error);
        }
        answer
    }

    /// Waits for the database as long as a request may. What was asked for is done all the same once it is queued.
    async fn in_time<T>(&self, answer: impl Future<Output = T>) -> Answer<T> {
        let limit = Duration::from_millis(self.config.limits.answer_ms);
        tokio::time::timeout(limit, answer).await.map_err(|_| late(limit))
    }

    /// As [`ask`], but only as long as a request may wait.
    pub(crate) async fn ask<M, T>(
        &self,
        module: &mpsc::Sender<M>,
        message: impl FnOnce(oneshot::Sender<T>) -> M,
    ) -> Answer<T> {
        self.in_time(ask(module, message)).await?
    }

    /// Commits one transition that nothing in memory has to follow.
    pub(crate) async fn commit(&self, transition: Transition) -> Answer<Verdict> {
        Ok(self.in_time(self.handles.ledger.commit(transition)).await??)
    }

    /// Carries `work` to its end, however long the database takes: what memory and the store have to agree on is not left
    /// half done by a request that waited long enough.
    pub(crate) async fn carry<T: Send + 'static>(
        &self,
        work: impl Future<Output = Answer<T>> + Send + 'static,
    ) -> Answer<T> {
        let done = self.in_time(tokio::spawn(work)).await?;
        done.unwrap_or_else(|gone| match gone.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(crate::messages::Stopping.into()),
        })
    }

    /// Commits one transition and has a module told of it.
    pub(crate) async fn commit_and_tell<M: Send + 'static>(
        &self,
        transition: Transition,
        module: &mpsc::Sender<M>,
        notice: impl FnOnce(&Applied) -> M + Send + 'static,
    ) -> Answer<Verdict> {
        let (ledger, module) = (self.handles.ledger.clone(), module.clone());
        let work = async move {
            let verdict = ledger.commit(transition).await?;
            if let Ok(applied) = &verdict {
                tell(&module, notice(applied)).await?;
            }
            Ok(verdict)
        };
        self.carry(work).await
    }

    /// Cancelled when the core stops.
    pub(crate) fn stop(&self) -> &CancellationToken {
        self.supervisor.stop()
    }

    pub(crate) fn worker_name(&self, worker: WorkerId) -> String {
        self.identity.worker_name(worker).unwrap_or_else(|| format!("worker {worker}"))
    }
}

/// A message to a module whose answer is awaited.
pub(crate) async fn ask<M, T>(module: &mpsc::Sender<M>, message: impl FnOnce(oneshot::Sender<T>) -> M) -> Answer<T> {
    let (reply, answer) = oneshot::channel();
    module.send(message(reply)).await.map_err(|_| crate::messages::Stopping)?;
    Ok(answer.await.map_err(|_| crate::messages::Stopping)?)
}

/// A message to a module that answers nothing.
pub(crate) async fn tell<M>(module: &mpsc::Sender<M>, message: M) -> Answer<()> {
    Ok(module.send(message).await.map_err(|_| crate::messages::Stopping)?)
}

/// All routes below [`BASE`].
fn api_routes() -> Vec<Route> {
    let mut all = routes![
        login::login,
        login::refresh,
        login::logout,
        login::whoami,
        users::list,
        users::create,
        users::reset,
        workers::list,
        workers::create_token,
        workers::join,
        workers::revoke,
        workers::drain,
        workers::resume,
        workers::declare_lost,
        modules::list,
        modules::log,
        openapi::description,
    ];
    all.extend(routes![
        files::upload,
        files::head,
        files::offset,
        images::upload,
        images::list,
        images::get,
        images::tag,
        images::untag,
        jobs::submit,
        jobs::plan,
        jobs::list,
        jobs::get,
        jobs::wait,
        jobs::tasks,
        jobs::task,
        jobs::cancel,
        jobs::why,
        logs::log,
        logs::output,
        schedules::list,
        schedules::create,
        schedules::get,
        schedules::delete,
        schedules::pause,
        schedules::resume,
        schedules::trigger,
        link::link,
        worker_files::blob,
        worker_files::output,
        worker_files::output_offset,
    ]);
    all
}

/// The server, not yet started.
fn build(state: ApiState, address: SocketAddr) -> Rocket<Build> {
    let shutdown =
        Shutdown { ctrlc: false, signals: Default::default(), grace: GRACE_S, mercy: 1, ..Default::default() };
    let config = Config {
        address: address.ip(),
        port: address.port(),
        ident: Ident::none(),
        // The address of a client is the one of its connection, whatever its headers say.
        ip_header: None,
        log_level: LogLevel::Off,
        cli_colors: false,
        shutdown,
        ..Config::release_default()
    };
    rocket::custom(config)
        .manage(Uploads::new(state.config.limits.uploads as usize))
        .manage(Submits::default())
        .manage(Arc::new(state))
        .mount("/", routes![health::livez, health::readyz])
        .mount(BASE, api_routes())
        .register("/", problem::all())
}

/// Serves until `stop` is cancelled. Handles no signals.
///
/// # Errors
/// When the address cannot be bound or the server fails.
pub async fn serve(state: ApiState, listener: Listener, stop: CancellationToken) -> anyhow::Result<()> {
    let Listener { address, bound } = listener;
    let bound = std::sync::Mutex::new(bound);
    let liftoff = AdHoc::on_liftoff("bound", move |rocket| {
        Box::pin(async move {
            let here = SocketAddr::new(rocket.config().address, rocket.config().port);
            tracing::info!(address = %here, "serving http://{here}");
            if let Some(bound) = bound.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
                let _ = bound.send(here);
            }
        })
    });
    let rocket = build(state, address).attach(liftoff).ignite().await;
    // An error of Rocket's panics when it is dropped unseen, hence its text is taken at once.
    let rocket = rocket.map_err(|error| anyhow::anyhow!("the HTTP server cannot be set up: {error}"))?;
    let shutdown = rocket.shutdown();
    // Mapped to `()`: holding on to the server would keep the modules' inboxes open.
    let mut launched = tokio::spawn(async move {
        rocket.launch().await.map(drop).map_err(|error| anyhow::anyhow!("the HTTP server on {address} failed: {error}"))
    });
    tokio::select! {
        ended = &mut launched => return ended.context("the HTTP server panicked")?,
        () = stop.cancelled() => shutdown.notify(),
    }
    match tokio::time::timeout(Duration::from_secs(u64::from(GRACE_S) + 3), &mut launched).await {
        Ok(ended) => ended.context("the HTTP server panicked")?,
        Err(_) => {
            launched.abort();
            tracing::warn!("the HTTP server was cut off: requests did not end in time");
            Ok(())
        }
    }
}
