//! `swarm-worker`: the daemon on every machine.

use std::process::ExitCode;

use clap::Parser;
use swarm_worker::cli::{self, WorkerArgs};

#[derive(Debug, Parser)]
#[command(name = "swarm-worker", version, about)]
struct Cli {
    #[command(flatten)]
    args: WorkerArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    cli::main(Cli::parse().args, &["watchdog"]).await
}
