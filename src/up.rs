//! `swarm up`: a swarm on this machine.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use swarm_core::config::{CoreConfig, CoreFlags};
use swarm_core::logger::Stderr;
use swarm_worker::WorkerConfig;

use crate::embedded::{self, Embedded};

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    core: CoreFlags,
    /// Configuration file of the core (TOML)
    #[arg(long, env = "SWARM_CORE_CONFIG")]
    config: Option<PathBuf>,
    /// The engine's socket, for instance unix:///var/run/docker.sock
    #[arg(long, env = "DOCKER_HOST")]
    docker_host: Option<String>,
    /// Configuration file of the worker (TOML); where it is, how it joins and whether it drains is not for it to say here
    #[arg(long, env = "SWARM_WORKER_CONFIG")]
    worker_config: Option<PathBuf>,
    #[command(flatten)]
    worker: WorkerFlags,
}

#[derive(Args)]
struct WorkerFlags {
    /// Containers that may run at once; one for each core of the engine by default
    #[arg(long)]
    slots: Option<u32>,
    /// What jobs may require of this machine; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = swarm_protocol::labels::parse)]
    labels: Vec<(String, String)>,
}

impl WorkerFlags {
    /// What was given, by the names of the worker's settings.
    fn settings(self) -> serde_json::Value {
        let mut given = serde_json::Map::new();
        given.extend(self.slots.map(|slots| ("slots".to_owned(), slots.into())));
        if !self.labels.is_empty() {
            let labels = self.labels.into_iter().map(|(name, value)| (name, value.into()));
            given.insert("labels".to_owned(), serde_json::Value::Object(labels.collect()));
        }
        given.into()
    }
}

pub(crate) async fn main(options: Options) -> ExitCode {
    match up(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => embedded::failed(&error),
    }
}

async fn up(options: Options) -> anyhow::Result<()> {
    // The one user of a swarm on one machine is its owner already; jobs still run as non-root unless asked.
    let defaults = CoreConfig { allow_root: true, ..CoreConfig::default() };
    let config = CoreConfig::load_over(defaults, options.config.as_deref(), &options.core)?;
    let own = WorkerConfig::gather(options.worker_config.as_deref(), options.worker.settings())?;
    let worker = embedded::worker_config(own, &config.data_dir, options.docker_host);
    worker.check()?;
    let runtime = embedded::engine(&worker).await?;
    let password = embedded::admin_password(&config.data_dir);
    let log = swarm_core::cli::start_log(&config, Stderr::All)?;
    let mut signals = swarm_core::cli::Signals::listen()?;
    let mut swarm = Embedded::start(config, log.clone(), worker, runtime).await?;
    let _ = writeln!(
        std::io::stdout(),
        "swarm is up at {url}\n\nIn another terminal:\n  swarm consumer login --url {url} --user admin --password-file {password}\n  \
         swarm consumer image push FILE|IMAGE\n  swarm consumer run IMAGE [COMMAND…]\n\nCtrl-C stops it; what runs is adopted by the next start.",
        url = swarm.url,
        password = password.display(),
    );
    let ended = tokio::select! {
        () = signals.any() => Ok(()),
        ended = swarm.ended() => ended,
    };
    let stopped = swarm.stop().await;
    tokio::task::spawn_blocking(move || log.flush(std::time::Duration::from_secs(2))).await?;
    ended.and(stopped)
}
