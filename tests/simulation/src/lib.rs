//! The whole swarm below HTTP in one thread: the core's real modules over a real database, real workers with their
//! watchdogs over engines in memory, on a simulated network and simulated clocks. A seed decides what the jobs are, what
//! goes wrong and when; the same seed does the same again. The checker judges what comes of it.
//!
//! A process is a tokio runtime of one thread with paused time (`host`); the world steps all of them together, a few
//! milliseconds at a time, and delivers between the steps what they sent (`world`, `net`).

mod calls;
mod core;
mod host;
mod judge;
mod net;
mod plan;
mod promises;
mod schedules;
mod show;
mod store;
mod time;
mod users;
mod work;
mod worker;
mod world;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use swarm_checker::{Invariant, Report};
use swarm_host::files;

use self::plan::Plan;
use self::world::World;

/// How a world is to be run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Whether anything goes wrong.
    pub with_faults: bool,
    /// Whether all that happens is printed to standard error.
    pub is_shown: bool,
}

/// What came of a seed.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Of everything that happened, in order.
    pub hash: u64,
    /// How many things those were.
    pub happened: u64,
    /// Simulated time.
    pub lived: Duration,
    /// Steps of the hosts.
    pub steps: u64,
    /// Job containers that were started.
    pub started: u64,
    /// Faults that happened to something, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// The checker's report.
    pub report: Report,
    /// What was said or begun before it was committed, and the like.
    pub broken: Vec<String>,
    /// What has not ended in time.
    pub stuck: Option<String>,
}

impl Outcome {
    /// Whether everything is as it must be.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.stuck.is_none() && self.broken.is_empty() && self.report.is_clean()
    }

    /// Over all invariants.
    #[must_use]
    pub fn unknown(&self) -> u64 {
        Invariant::ALL.into_iter().map(|invariant| self.report.of(invariant).unknown).sum()
    }
}

/// Lives through the world of a seed.
///
/// # Errors
/// When its files cannot be made or read.
pub fn run(seed: u64, options: Options) -> anyhow::Result<Outcome> {
    // A thread of its own: what stands in for clocks, disk and threads belongs to it.
    let world = std::thread::Builder::new().name(format!("seed {seed}")).spawn(move || live(seed, options))?;
    world.join().map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        anyhow::anyhow!("seed {seed} panicked: {}", text.unwrap_or_default())
    })?
}

fn live(seed: u64, options: Options) -> anyhow::Result<Outcome> {
    let dir = scratch(seed)?;
    time::set(time::BEGIN_US);
    time::begin_trace(options.is_shown);
    files::simulated::begin();
    let mut rng = StdRng::seed_from_u64(seed ^ 0xd15c);
    swarm_host::blocking::simulate(move || work_takes(&mut rng));
    let plan = Plan::draw(seed, options.with_faults);
    let mut world = World::new(seed, plan, dir.path())?;
    let has_ended = world.live();
    let (report, broken) = world.judge().context("what is left cannot be judged")?;
    let (hash, happened) = time::traced();
    let started =
        |event: &swarm_worker::runtime::fake::EngineEvent| event.action == swarm_worker::runtime::fake::Action::Start;
    Ok(Outcome {
        seed,
        hash,
        happened,
        lived: Duration::from_micros(time::now_us() - time::BEGIN_US),
        steps: world.steps,
        started: world.events.iter().filter(|(_, event)| started(event)).count() as u64,
        faults: world.faults(),
        report,
        broken,
        stuck: (!has_ended).then(|| format!("{} users wait in vain", world.users().waiting())),
    })
}

/// How long work that blocks takes: now and then the disk is slow.
fn work_takes(rng: &mut StdRng) -> Duration {
    let most_us = match rng.random_range(0..200) {
        0 => 800_000,
        1..10 => 30_000,
        _ => 2_000,
    };
    Duration::from_micros(rng.random_range(0..most_us))
}

/// A directory of its own for one seed, in memory where there is such a place. Gone when dropped.
fn scratch(seed: u64) -> anyhow::Result<tempfile::TempDir> {
    let memory = PathBuf::from("/dev/shm");
    let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let dir = tempfile::Builder::new().prefix(&format!("swarm-simulation-{seed}-")).tempdir_in(base);
    dir.context("a directory for the world cannot be made")
}

#[cfg(test)]
mod tests;
