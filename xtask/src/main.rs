//! The project's own tasks. `cargo xtask test` is the one program behind the README, CI and closing notes: it starts
//! what the tests need, runs every stage within a printed budget, and leaves nothing behind.

mod leftovers;
mod matrix;
mod only;
mod report;
mod run;
mod services;
mod stage;
mod stages;
mod supply;
mod tally;
mod temp;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::only::{Only, OnlyParser};
use crate::stage::{Stage, Tier};

/// Tasks of the swarm-sync workspace
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run all checks and tests; the last line printed is `N passed, N failed`
    #[command(visible_alias = "check")]
    Test(Test),
}

#[derive(Debug, Args)]
struct Test {
    /// Run the counts that issues state, however long it takes, and write full-report.md into the target directory
    #[arg(long)]
    full: bool,
    /// Run only these stages, and those they need; `=` and a part of tests' names (unit, swarm) or a range of seeds
    /// (simulation) runs a part of one: `--full --only swarm=cycles --only simulation=0..500`
    #[arg(long, value_parser = OnlyParser, value_name = "STAGE[=FILTER]")]
    only: Vec<Only>,
    /// Start a Docker engine for the tests alone, although another one answers (as root)
    #[arg(long)]
    own_engine: bool,
}

fn main() -> ExitCode {
    let Task::Test(test) = Cli::parse().task;
    match run_tests(&test) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report::say(format_args!("xtask: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// True when everything passed.
fn run_tests(test: &Test) -> Result<bool> {
    let tier = if test.full { Tier::Full } else { Tier::Quick };
    let named: Vec<Stage> = test.only.iter().map(|only| only.stage).collect();
    stages::Runner::new(tier, test.own_engine, test.only.clone())?.run(&Stage::closure(&named))
}
