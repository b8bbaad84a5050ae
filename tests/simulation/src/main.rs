//! `swarm-simulation`: lives through the worlds of many seeds; exit code 1 when one of them did not end well.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use serde::Serialize;
use swarm_simulation::{Options, Outcome, run};

/// Live through simulated worlds and judge them
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    /// Seeds, from the first up to but without the last: 0..200
    #[arg(long, value_parser = range, default_value = "0..200", conflicts_with = "seed")]
    seeds: Range<u64>,
    /// One seed
    #[arg(long)]
    seed: Option<u64>,
    /// Worlds at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Print all that happens to standard error
    #[arg(long)]
    trace: bool,
    /// Begin no more seeds once one has failed
    #[arg(long)]
    fail_fast: bool,
    /// Let nothing go wrong
    #[arg(long)]
    no_faults: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let parse = |word: &str| word.parse::<u64>().map_err(|error| error.to_string());
    let (first, last) = text.split_once("..").ok_or("give FIRST..LAST")?;
    let range = parse(first)?..parse(last)?;
    if range.is_empty() { Err("that is no seed at all".to_owned()) } else { Ok(range) }
}

/// What came of all seeds.
#[derive(Debug, Default, Serialize)]
struct Summary {
    seeds: u64,
    failed: Vec<u64>,
    wall_s: f64,
    seeds_per_s: f64,
    mean_simulated_s: f64,
    containers: u64,
    steps: u64,
    checked: u64,
    unknown: u64,
    excepted: u64,
    faults: BTreeMap<&'static str, u64>,
    simulated_s: f64,
    /// Of all that happened in all worlds, in whatever order they came: the same for the same seeds of the same program.
    hash: String,
    #[serde(skip)]
    hashes: u64,
}

impl Summary {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.hashes ^= outcome.hash;
        self.simulated_s += outcome.lived.as_secs_f64();
        self.containers += outcome.started;
        self.steps += outcome.steps;
        for invariant in swarm_checker::Invariant::ALL {
            let found = outcome.report.of(invariant);
            self.checked += found.checked;
            self.unknown += found.unknown;
            self.excepted += found.excepted;
        }
        for (fault, count) in &outcome.faults {
            *self.faults.entry(fault).or_default() += count;
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let seeds = cli.seed.map_or(cli.seeds.clone(), |seed| seed..seed + 1);
    let options = Options { with_faults: !cli.no_faults, is_shown: cli.trace };
    let (next, summary, began) = (AtomicU64::new(seeds.start), Mutex::new(Summary::default()), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..cli.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = run(seed, options);
                    let mut summary = summary.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    tell(seed, &outcome, &mut summary);
                    if cli.fail_fast && !summary.failed.is_empty() {
                        next.store(seeds.end, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let mut summary = summary.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    summary.failed.sort_unstable();
    summary.hash = format!("{:016x}", summary.hashes);
    summary.wall_s = began.elapsed().as_secs_f64();
    summary.seeds_per_s = summary.seeds as f64 / summary.wall_s;
    summary.mean_simulated_s = summary.simulated_s / summary.seeds.max(1) as f64;
    print(&summary, cli.json);
    if summary.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tell(seed: u64, outcome: &anyhow::Result<Outcome>, summary: &mut Summary) {
    let problem = match outcome {
        Ok(outcome) => {
            summary.add(outcome);
            if outcome.is_good() {
                return;
            }
            let lines = outcome.stuck.iter().chain(&outcome.broken);
            lines.map(|line| format!("{line}\n")).chain([outcome.report.to_string()]).collect()
        }
        Err(error) => format!("{error:#}"),
    };
    summary.failed.push(seed);
    let again = format!("cargo run -p swarm-simulation -- --seed {seed} --trace");
    let _ = writeln!(std::io::stderr(), "seed {seed} FAILED; to see it again: {again}\n{problem}");
}

fn print(summary: &Summary, as_json: bool) {
    let json = serde_json::to_string(summary).unwrap_or_default();
    let text = if as_json { json } else { format!("REPORT simulation: {json}") };
    let _ = writeln!(std::io::stdout(), "{text}");
}
