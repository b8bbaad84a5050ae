//! Measures a swarm on this machine against its container engine alone, in turns, so that a busy machine slows both.
//! What the figures mean, and those of former runs, is in README.md beside this program.

mod alone;
mod swarm;
mod table;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use clap::Parser;
use swarm_worker::runtime::testimage::TestEngine;

use crate::alone::{Alone, Namespace};
use crate::swarm::Measured;
use crate::table::{Series, table};

/// What each container may use, in a swarm and without: one that gets less starts slower.
const CPU_MILLIS: u32 = 1000;
const MEMORY_BYTES: u64 = 64 << 20;

/// Containers that do nothing: how many a second, and how long one takes, in a swarm and by its engine alone
#[derive(Debug, Parser)]
#[command(name = "swarm-bench")]
struct Cli {
    /// The program that is measured
    #[arg(long, default_value = "target/release/swarm")]
    swarm: PathBuf,
    /// Containers at a time
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    slots: u32,
    /// Containers of each rate
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    jobs: u32,
    /// Containers, one after another, of each duration
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    singles: u32,
    /// How often everything is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    ensure!(cli.swarm.is_file(), "{} is no program; build it: cargo build --release", cli.swarm.display());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let engine = TestEngine::connect().await;
    let image = engine.load(&["true", "sleep"]).await;
    let alone = Alone::new(&engine, &image, cli.slots).await?;
    let swarm = Measured::start(&cli.swarm, &image, cli.slots).await?;
    let mut rates = [Series::new("engine alone"), Series::new("engine alone, namespaces joined"), Series::new("swarm")];
    let mut times = rates.clone();
    let (began, mut cpu) = (swarm.done(), Duration::ZERO);
    for round in 1..=cli.rounds {
        writeln!(std::io::stderr(), "round {round} of {}", cli.rounds)?;
        for (at, namespace) in [Namespace::Own, Namespace::Joined].into_iter().enumerate() {
            rates[at].add(per_second(cli.jobs, alone.many(cli.jobs, namespace).await?));
            times[at].add(millis(alone.one_by_one(cli.singles, namespace).await?));
        }
        let before = swarm.cpu()?;
        rates[2].add(per_second(cli.jobs, swarm.many(cli.jobs).await?));
        times[2].add(millis(swarm.one_by_one(cli.singles).await?));
        cpu += swarm.cpu()? - before;
    }
    let each = cpu.as_secs_f64() * 1000.0 / f64::from(swarm.done() - began);
    swarm.stop().await?;
    alone.end().await?;
    let rates = table(&format!("containers a second, {} at a time", cli.slots), &rates);
    let times = table("one container, milliseconds (median of each round)", &times);
    writeln!(std::io::stdout(), "{rates}\n{times}\nCPU of core and worker: {each:.1} ms a job")?;
    Ok(())
}

fn per_second(count: u32, took: Duration) -> f64 {
    f64::from(count) / took.as_secs_f64()
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}
