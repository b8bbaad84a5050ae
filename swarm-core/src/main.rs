//! The core as a program of its own; `swarm core` is the same.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "swarm-core", version, about = "The core of swarm-sync")]
struct Program {
    #[command(flatten)]
    cli: swarm_core::cli::Cli,
}

fn main() -> ExitCode {
    let program = Program::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: the runtime cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(swarm_core::cli::main(program.cli));
    // Threads that still wait for a database must not keep the process alive.
    runtime.shutdown_background();
    code
}
