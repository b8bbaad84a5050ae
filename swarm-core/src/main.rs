//! The core as a program of its own; `swarm core` is the same.

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "swarm-core", version, about = "The core of swarm-sync")]
struct Program {
    #[command(flatten)]
    cli: swarm_core::cli::Cli,
}

#[tokio::main]
async fn main() -> ExitCode {
    let program = Program::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    swarm_core::cli::main(program.cli).await
}
