//! The command line of the core, used by `swarm-core` and by `swarm core`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::config::{CoreConfig, CoreFlags};
use crate::logger::{FileConfig, LoggerConfig, LoggerHandle, Stderr};
use crate::run;

/// How long the last log lines may take to reach the disk.
const FLUSH: Duration = Duration::from_secs(2);

/// The core: receives, schedules and dispatches jobs, and keeps what they leave.
#[derive(Debug, clap::Args)]
#[command(after_help = "Every setting can also come from the configuration file or the environment, for instance
SWARM_CORE_LISTEN=127.0.0.1:7077 or SWARM_CORE_LIMITS__LOG_BYTES=67108864. Flags win over the environment,
the environment over the file. SIGTERM and Ctrl-C stop the core in order; jobs that run go on.")]
pub struct Cli {
    /// Configuration file (TOML).
    #[arg(long, env = "SWARM_CORE_CONFIG")]
    pub config: Option<PathBuf>,
    /// The most used settings.
    #[command(flatten)]
    pub flags: CoreFlags,
    /// Something else than to run.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What is done instead of running a core.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Copy the database of a core, running or not, to a new file
    #[command(
        after_help = "The copy is one state of the SQLite database, checked and synced: jobs, attempts, schedules,
accounts, workers' keys. It does NOT hold images, inputs, outputs and logs (the directory `blobs` of the data directory),
nor `master.key`, without which these cannot be read, nor the key that signs tokens. So copy the data directory without
its swarm.db* files as well, AFTER this copy, so that it has all that the copy names, and keep `master.key` apart.

To restore: with no core running, put the copied files into a data directory, the copy as `swarm.db` without any
swarm.db-wal or swarm.db-shm beside it, and start the core there.

A store in Postgres is copied by pg_dump; this command then says with which flags."
    )]
    Backup {
        /// The new file; its directory must exist
        file: PathBuf,
    },
    /// Print the description of the HTTP API (OpenAPI 3.1, JSON)
    Openapi,
}

/// Runs the core until a signal or a failure.
pub async fn main(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Some(Command::Backup { ref file }) => backup(&cli, file.clone()).await,
        Some(Command::Openapi) => openapi(),
        None => serve(cli).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = swarm_protocol::text::sanitise(&format!("{error:#}"), true);
            let _ = writeln!(std::io::stderr(), "error: {text}");
            ExitCode::FAILURE
        }
    }
}

async fn backup(cli: &Cli, file: PathBuf) -> anyhow::Result<()> {
    let source = CoreConfig::load(cli.config.as_deref(), &cli.flags)?.store();
    let to = file.clone();
    let bytes = tokio::task::spawn_blocking(move || crate::store::backup(&source, &to)).await??;
    writeln!(std::io::stdout(), "{}: {bytes} bytes, checked", file.display())?;
    Ok(())
}

fn openapi() -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{}", crate::http::openapi()?)?;
    Ok(())
}

async fn serve(cli: Cli) -> anyhow::Result<()> {
    #[cfg(feature = "failpoints")]
    let _faults = fail::FailScenario::setup();
    let config = CoreConfig::load(cli.config.as_deref(), &cli.flags)?;
    let log = start_log(&config, Stderr::All)?;
    let mut signals = Signals::listen()?;
    let stop = CancellationToken::new();
    let (ready, listening) = oneshot::channel();
    let core = tokio::spawn(run::run(config, log.clone(), stop.clone(), ready));
    let announced = tokio::spawn(async move {
        if let Ok(address) = listening.await {
            crate::notice!("the core listens on {address}");
            let _ = writeln!(std::io::stdout(), "listening on http://{address}");
        }
    });
    let stopping = stop.clone();
    let watch = tokio::spawn(async move {
        signals.any().await;
        crate::notice!("stopping");
        stopping.cancel();
    });
    let ended = core.await?;
    watch.abort();
    announced.abort();
    tokio::task::spawn_blocking(move || log.flush(FLUSH)).await?;
    ended
}

/// Starts the shared log as configured: a file in the data directory, and as much on stderr as `stderr` says.
///
/// # Errors
/// When the file cannot be opened or a log was started before.
pub fn start_log(config: &CoreConfig, stderr: Stderr) -> anyhow::Result<LoggerHandle> {
    let file = FileConfig {
        dir: config.data_dir.join("log"),
        name: "core".to_owned(),
        file_bytes_max: config.log.file_bytes,
        files_max: config.log.files,
    };
    let logger = LoggerConfig {
        filter: config.log.filter.clone(),
        ring_entries: config.log.ring_entries,
        file: Some(file),
        stderr,
    };
    Ok(crate::logger::init(&logger)?)
}

/// The signals that ask a process to stop.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Returns when any of them comes. A hang-up counts only on a terminal: a daemon's is meaningless.
    pub async fn any(&mut self) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return,
                _ = self.terminate.recv() => return,
                _ = self.hangup.recv() => if std::io::stdin().is_terminal() { return },
            }
        }
    }
}
