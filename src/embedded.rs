//! Core and one worker in one process: SQLite, in-process cache, the local Docker. Used by `up` and `demo`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use swarm_client::{Client, MemoryTokens};
use swarm_core::config::CoreConfig;
use swarm_core::logger::LoggerHandle;
use swarm_protocol::api::JoinTokenRequest;
use swarm_worker::config::WorkerConfig;
use swarm_worker::runtime::ContainerRuntime;
use swarm_worker::runtime::docker::DockerRuntime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The name of the embedded worker.
pub(crate) const WORKER: &str = "local";
/// How long the worker may take to stop, with what it has been told to wait for.
const WORKER_STOP: Duration = Duration::from_secs(60);

/// A running core and worker.
pub(crate) struct Embedded {
    /// Where the core answers.
    pub(crate) url: String,
    core: Part,
    worker: Part,
}

/// A core or a worker on a task of its own.
struct Part {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
    has_ended: bool,
}

impl Part {
    fn new(stop: CancellationToken, task: JoinHandle<anyhow::Result<()>>) -> Self {
        Self { stop, task, has_ended: false }
    }

    /// Waits for its end and says why; no second time.
    async fn ended(&mut self) -> anyhow::Result<()> {
        if self.has_ended {
            return Ok(());
        }
        let ended = (&mut self.task).await;
        self.has_ended = true;
        ended?
    }
}

impl Embedded {
    /// Starts both; returns when the core answers and the worker has been started.
    ///
    /// # Errors
    /// When the core cannot start, or the worker cannot join.
    pub(crate) async fn start(
        config: CoreConfig,
        log: LoggerHandle,
        mut worker: WorkerConfig,
        runtime: Arc<dyn ContainerRuntime>,
    ) -> anyhow::Result<Self> {
        let password = admin_password(&config.data_dir);
        let stop = CancellationToken::new();
        let (ready, listening) = oneshot::channel();
        let core = tokio::spawn(swarm_core::run::run(config, log, stop.clone(), ready));
        let Ok(address) = listening.await else {
            // The sender is gone: the core has ended, and says why.
            core.await??;
            anyhow::bail!("the core ended before it listened");
        };
        let url = format!("http://{address}");
        worker.core = url.parse().context("the core's address")?;
        if !worker.has_joined() {
            worker.join_token = Some(join_token(&url, &password).await?.into());
        }
        let worker_stop = CancellationToken::new();
        let worker = tokio::spawn(swarm_worker::run::run(worker, runtime, worker_stop.clone()));
        Ok(Self { url, core: Part::new(stop, core), worker: Part::new(worker_stop, worker) })
    }

    /// Waits until either part ends by itself.
    ///
    /// # Errors
    /// What it ended of.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<()> {
        tokio::select! {
            core = self.core.ended() => core.context("the core ended"),
            worker = self.worker.ended() => worker.context("the worker ended"),
        }
    }

    /// Stops the worker, then the core, and waits for both. Containers that run are left to be adopted by the next start,
    /// unless the worker's settings say to drain.
    ///
    /// # Errors
    /// What either ended of.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.worker.stop.cancel();
        let worker = match tokio::time::timeout(WORKER_STOP, self.worker.ended()).await {
            Ok(ended) => ended,
            Err(_) => {
                self.worker.task.abort();
                Err(anyhow::anyhow!("the worker did not stop within {} s", WORKER_STOP.as_secs()))
            }
        };
        self.core.stop.cancel();
        worker.and(self.core.ended().await)
    }
}

/// The settings of the embedded worker: those of `own` that are not for this program to choose. Its files lie beside the
/// core's in `data`.
pub(crate) fn worker_config(own: WorkerConfig, data: &Path, docker_host: Option<String>) -> WorkerConfig {
    WorkerConfig {
        data: data.join("worker"),
        name: WORKER.to_owned(),
        docker_host: docker_host.or_else(|| own.docker_host.clone()),
        watchdog: Some(vec!["worker".into(), "watchdog".into()]),
        join_token: None,
        join_token_file: None,
        drain_on_stop: false,
        // Known once it listens.
        core: WorkerConfig::default().core,
        ..own
    }
}

/// The worker's engine, or what to do about its absence.
///
/// # Errors
/// When no engine answers, or one whose images cannot be checked.
pub(crate) async fn engine(worker: &WorkerConfig) -> anyhow::Result<Arc<dyn ContainerRuntime>> {
    let runtime = DockerRuntime::connect(worker.engine_settings()).await.context(
        "Docker does not answer; start it (for instance `sudo systemctl start docker`), or name its socket in DOCKER_HOST",
    )?;
    runtime.facts().await?.check().context("Docker cannot be used as it is set up")?;
    Ok(Arc::new(runtime))
}

/// Where the first start leaves the admin's password.
pub(crate) fn admin_password(data: &Path) -> PathBuf {
    data.join("admin-password")
}

/// A client logged in as admin.
///
/// # Errors
/// When the password file is gone or the password was changed.
pub(crate) async fn admin(url: &str, password: &Path) -> anyhow::Result<Client> {
    let secret = std::fs::read_to_string(password).with_context(|| format!("{} cannot be read", password.display()))?;
    let client = Client::new(url, Arc::new(MemoryTokens::default()))?;
    client.login("admin", secret.trim_end()).await.context("the admin cannot log in")?;
    Ok(client)
}

async fn join_token(url: &str, password: &Path) -> anyhow::Result<String> {
    let client = admin(url, password).await?;
    let request = JoinTokenRequest { worker: WORKER.to_owned(), expires_in_s: 60 };
    Ok(client.join_token(&request).await?.token)
}

/// Prints an error with its causes and gives the exit code for it.
pub(crate) fn failed(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: {}", swarm_protocol::text::sanitise(&format!("{error:#}"), true));
    ExitCode::FAILURE
}
