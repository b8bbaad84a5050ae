//! `swarm-worker`: the daemon on every machine.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use swarm_worker::cli::{self, WorkerArgs};

#[derive(Debug, Parser)]
#[command(name = "swarm-worker", version, about)]
struct Cli {
    #[command(flatten)]
    args: WorkerArgs,
}

fn main() -> ExitCode {
    let args = Cli::parse().args;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: the runtime cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(cli::main(args, &["watchdog"]));
    // A thread that still waits for standard input must not keep the process alive.
    runtime.shutdown_background();
    code
}
