//! `swarm-checker`: judges a history, a store and the engine's stamps; exit code 1 when an invariant is broken.

use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use swarm_checker::{Evidence, check, load, read_history, read_stamps};

/// Check the invariants I1–I12 of a swarm after a test.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    /// What the test observed: JSON lines
    #[arg(long)]
    history: Option<PathBuf>,
    /// The store: a SQLite file, sqlite:PATH or postgres://…
    #[arg(long)]
    store: Option<String>,
    /// The engine's events and final listing: JSON lines
    #[arg(long)]
    stamps: Option<PathBuf>,
    /// Every accepted job must have ended
    #[arg(long)]
    all_ended: bool,
}

fn main() -> ExitCode {
    match judge(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn judge(cli: &Cli) -> anyhow::Result<bool> {
    let mut evidence = Evidence { all_ended: cli.all_ended, ..Evidence::default() };
    if let Some(path) = &cli.history {
        evidence.history = read_history(open(path)?).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &cli.stamps {
        evidence.stamps = Some(read_stamps(open(path)?).with_context(|| path.display().to_string())?);
    }
    if let Some(store) = &cli.store {
        evidence.world = Some(load(store)?);
    }
    let report = check(&evidence);
    write!(std::io::stdout(), "{report}")?;
    Ok(report.is_clean())
}

fn open(path: &Path) -> anyhow::Result<BufReader<File>> {
    Ok(BufReader::new(File::open(path).with_context(|| format!("{} cannot be opened", path.display()))?))
}
