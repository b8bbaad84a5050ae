//! `swarm`: every part of swarm-sync in one file. It only hands over to the crates.

mod demo;
mod embedded;
mod payload;
mod selfimage;
mod up;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Run container jobs on a swarm of machines, and keep the files they need and make.
#[derive(Parser)]
#[command(name = "swarm", version, about, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    part: Part,
}

const EXAMPLES: &str = "\
Examples:
  swarm demo                       see the whole thing work, then leave nothing behind
  swarm up                         a swarm on this machine: core and one worker
  swarm consumer run alpine date   run a job on it, in another terminal
  swarm consumer --help            everything a user can do";

#[derive(Subcommand)]
enum Part {
    /// Start a swarm, run real work on it, fetch the results, and leave nothing behind
    Demo(demo::Options),
    /// Start a swarm on this machine: core and one worker, no other service needed
    Up(up::Options),
    /// Run the core alone
    Core(swarm_core::cli::Cli),
    /// Run a worker
    #[command(disable_help_flag = true)]
    Worker {
        /// Arguments of the worker; see `swarm worker --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Submit jobs and fetch results: the users' commands
    #[command(disable_help_flag = true)]
    Consumer {
        /// Arguments of swarm-consumer; see `swarm consumer --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// The admins' terminal
    #[command(disable_help_flag = true)]
    Deck {
        /// Arguments of commanddeck; see `swarm deck --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// What the demo's containers run
    #[command(hide = true)]
    Payload(payload::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // What runs in a container needs neither cryptography nor a runtime.
    if let Part::Payload(options) = cli.part {
        return payload::main(options);
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return embedded::failed(&anyhow::Error::new(error).context("the runtime cannot start")),
    };
    let code = runtime.block_on(async {
        match cli.part {
            Part::Demo(options) => demo::main(options).await,
            Part::Up(options) => up::main(options).await,
            Part::Core(cli) => swarm_core::cli::main(cli).await,
            Part::Worker { args } => swarm_worker::cli::main_from(named("swarm worker", args)).await,
            Part::Consumer { args } => swarm_consumer::main(named("swarm consumer", args)).await,
            Part::Deck { args } => commanddeck::main(named("swarm deck", args)).await,
            Part::Payload(_) => unreachable!("handled above"),
        }
    });
    // Threads that still block on a terminal or a socket must not keep the process alive.
    runtime.shutdown_background();
    code
}

fn named(name: &str, args: Vec<OsString>) -> Vec<OsString> {
    std::iter::once(name.into()).chain(args).collect()
}
