//! The worker's command line, used by `swarm-worker` and by `swarm worker`.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Serialize, Serializer};
use swarm_protocol::text::sanitise;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::WorkerConfig;
use crate::doctor::{Finding, Verdict, examine};
use crate::runtime::docker::DockerRuntime;

/// Runs container jobs for a swarm. The join token comes from `SWARM_WORKER_JOIN_TOKEN` or a file, never from here.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct WorkerArgs {
    #[command(subcommand)]
    command: Option<WorkerCommand>,
    /// A TOML file with settings.
    #[arg(long, value_name = "FILE", env = "SWARM_WORKER_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

/// Flags have the names of the settings they override.
#[derive(Debug, Args, Serialize)]
struct Flags {
    /// The core's address, on this machine's loopback.
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    core: Option<String>,
    /// Where identity and spool are kept.
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<PathBuf>,
    /// The name the join token is for.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// A file that holds the join token; `-` is standard input. Needed once.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    join_token_file: Option<PathBuf>,
    /// Containers at a time.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    slots: Option<u32>,
    /// Thousandths of cores offered to jobs.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_millis: Option<u32>,
    /// Bytes of memory offered to jobs.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    /// What jobs may require of this worker; repeatable.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = swarm_protocol::labels::parse)]
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_map")]
    labels: Vec<(String, String)>,
    /// The container engine's address, as in DOCKER_HOST.
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    docker_host: Option<String>,
    /// On SIGTERM wait until everything held has ended, instead of leaving containers to the next start.
    #[arg(long = "drain")]
    #[serde(rename = "drain_on_stop", skip_serializing_if = "std::ops::Not::not")]
    drain: bool,
}

fn as_map<S: Serializer>(pairs: &[(String, String)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(pairs.iter().map(|(name, value)| (name, value)))
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Human,
    /// A list of objects with `check`, `verdict` (ok, warning, bad), `text` and `hint`.
    Json,
}

#[derive(Debug, Subcommand)]
enum WorkerCommand {
    /// Look at what a worker with these settings needs, and say what is missing. Changes nothing; exit code 1 if it could
    /// not work.
    Doctor {
        /// A settings file (TOML).
        #[arg(long, value_name = "FILE", env = "SWARM_WORKER_CONFIG")]
        config: Option<PathBuf>,
        #[command(flatten)]
        flags: Flags,
        /// How to print what was found.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Kills containers whose lease ends unrenewed; started by the worker itself.
    #[command(hide = true)]
    Watchdog {
        /// The worker's data directory.
        #[arg(long)]
        data: PathBuf,
        /// The container engine's address.
        #[arg(long)]
        docker_host: Option<String>,
    },
}

#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    args: WorkerArgs,
}

/// As [`main`] for `swarm worker …`; the first of `words` is the name to show in help.
pub async fn main_from(words: Vec<OsString>) -> ExitCode {
    match Cli::try_parse_from(words) {
        Ok(cli) => main(cli.args, &["worker", "watchdog"]).await,
        Err(answer) => {
            // Help goes to stdout and errors to stderr; nobody is left to tell if neither can be written.
            let _ = answer.print();
            ExitCode::from(u8::try_from(answer.exit_code()).unwrap_or(2))
        }
    }
}

/// Runs the worker or its watchdog. `watchdog` are the words that lead this executable back here as the watchdog, for
/// instance `["worker", "watchdog"]`. Exit code 0 after a stop that was asked for, else 1.
pub async fn main(args: WorkerArgs, watchdog: &[&str]) -> ExitCode {
    // Fails only if one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    log_to_stderr();
    let ended = match args.command {
        Some(WorkerCommand::Watchdog { data, docker_host }) => {
            // Its own session: a signal to the worker's group or terminal must not end it. Fails only if it leads one.
            let _ = rustix::process::setsid();
            crate::watchdog::watch(&data, docker_host).await
        }
        Some(WorkerCommand::Doctor { config, flags, output }) => {
            return match doctor(config.as_deref(), &flags, output).await {
                Ok(worst) if worst < Verdict::Bad => ExitCode::SUCCESS,
                Ok(_) => ExitCode::FAILURE,
                Err(error) => {
                    tracing::error!("{error:#}");
                    ExitCode::FAILURE
                }
            };
        }
        None => serve(args, watchdog).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Levels come from `SWARM_LOG`, in the syntax of tracing's EnvFilter.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SWARM_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // An embedding program may have its own log already.
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    let _ = log.try_init();
}

/// Prints what was found; the worst of it.
async fn doctor(config: Option<&Path>, flags: &Flags, output: Output) -> anyhow::Result<Verdict> {
    let config = WorkerConfig::settle(config, flags)?;
    let engine = DockerRuntime::connect(config.engine_settings()).await;
    let findings = examine(&config, engine.as_ref().map(|engine| engine as _)).await;
    let text = match output {
        Output::Json => serde_json::to_string_pretty(&findings)? + "\n",
        Output::Human => findings.iter().map(line).collect(),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        written => written?,
    }
    Ok(findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok))
}

fn line(finding: &Finding) -> String {
    let Finding { check, verdict, text, hint } = finding;
    let hint = hint.map_or_else(String::new, |hint| format!("{:<21} {hint}\n", ""));
    format!("{verdict:<8} {check:<12} {}\n{hint}", sanitise(text, false))
}

async fn serve(args: WorkerArgs, watchdog: &[&str]) -> anyhow::Result<()> {
    #[cfg(feature = "failpoints")]
    let _faults = fail::FailScenario::setup();
    let mut config = WorkerConfig::settle(args.config.as_deref(), &args.flags)?;
    config.watchdog = Some(watchdog.iter().map(ToString::to_string).collect());
    let runtime =
        DockerRuntime::connect(config.engine_settings()).await.context("the container engine cannot be used")?;
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let asked = stop.clone();
    let signals = async move {
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
        tracing::info!("stopping; a second signal stops without waiting");
        asked.cancel();
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
    };
    tokio::select! {
        ended = crate::run::run(config, Arc::new(runtime), stop) => ended,
        // Everything that must survive is on disk, so leaving at once loses nothing.
        () = signals => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn flags_become_settings_and_no_flag_takes_a_secret() {
        let command = Cli::command();
        command.clone().debug_assert();
        for of in [&command, command.find_subcommand("doctor").unwrap()] {
            let config = of.get_arguments().find(|flag| flag.get_id() == "config").unwrap();
            assert_eq!(config.get_env(), Some("SWARM_WORKER_CONFIG".as_ref()), "{}", of.get_name());
        }
        let cli = Cli::try_parse_from(["w", "--name", "a", "--slots", "3", "--drain"]).unwrap();
        let config = WorkerConfig::settle(None, &cli.args.flags).unwrap();
        assert_eq!((config.name.as_str(), config.slots, config.drain_on_stop), ("a", Some(3), true));
        let cli = Cli::try_parse_from(["w", "--label", "zone=a=b", "--label", "rack=4", "--label", "rack=5"]).unwrap();
        let labels = WorkerConfig::settle(None, &cli.args.flags).unwrap().labels;
        let told: Vec<_> = labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(told, [("rack", "5"), ("zone", "a=b")]);
        Cli::try_parse_from(["w", "--label", "zone"]).unwrap_err();
        Cli::try_parse_from(["w", "--join-token", "x"]).unwrap_err();
    }

    #[test]
    fn the_doctor_takes_the_workers_settings() {
        let cli = Cli::try_parse_from(["w", "doctor", "--name", "a", "--slots", "3", "-o", "json"]).unwrap();
        let Some(WorkerCommand::Doctor { flags, output, .. }) = cli.args.command else { panic!("{cli:?}") };
        assert_eq!((flags.name.as_deref(), flags.slots, output), (Some("a"), Some(3), Output::Json));
    }

    #[test]
    fn the_watchdog_is_reached_by_its_words() {
        let cli = Cli::try_parse_from(["w", "watchdog", "--data", "/d", "--docker-host", "unix:///s"]).unwrap();
        assert!(matches!(cli.args.command, Some(WorkerCommand::Watchdog { .. })));
    }
}
