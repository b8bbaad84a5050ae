//! Starts swarms out of the real binary, each in a directory of its own on ports of its own, watches them, and leaves
//! nothing behind.

mod clock;
mod death;
mod disks;
mod engine;
mod jobs;
mod judge;
mod memory;
mod namespace;
mod own_engine;
mod postgres;
mod process;
mod proxy;
mod recorder;
mod redis;
mod small_disk;
mod swarm;

use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

pub(crate) use disks::Owner;
pub(crate) use engine::{Docker, Engine, docker};
pub(crate) use memory::{Herd, be_worker};
pub(crate) use namespace::{Namespace, Rule};
pub(crate) use own_engine::{OwnEngine, Part};
pub(crate) use postgres::{OwnPostgres, StopMode};
pub(crate) use process::{Ended, Proc, command, run, signal, strays};
pub(crate) use proxy::{Proxy, Weather};
pub(crate) use recorder::{Log, log_read, verdict};
pub(crate) use redis::{PASSWORD, Redis};
pub(crate) use small_disk::{Full, SmallDisk};
pub(crate) use swarm::{Setup, Swarm, shared};

/// How long anything may take that should take a few seconds; the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Asks until the answer is there.
///
/// # Panics
/// When `deadline` passes first: names `what` was waited for.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < deadline, "{what}: not within {} s", deadline.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// How often a scenario is repeated: once, or `full` times in the full tier.
pub(crate) fn rounds(full: u32) -> u32 {
    either(1, full)
}

/// A count in the quick tier, and in the full one.
pub(crate) fn either<T>(quick: T, full: T) -> T {
    if std::env::var("SWARM_TEST_TIER").is_ok_and(|tier| tier == "full") { full } else { quick }
}

/// Bytes of `/etc/noise` in the image of every swarm: [`noise`] of seed 0.
pub(crate) const NOISE: usize = 1 << 20;

/// Bytes of every value, in an order that repeats nowhere soon.
pub(crate) fn noise(bytes: usize, seed: u8) -> Vec<u8> {
    let blocks = (0u64..).flat_map(|at| Sha256::digest([&[seed][..], &at.to_le_bytes()].concat()));
    blocks.take(bytes).collect()
}

/// Prints a figure for the test program's table.
pub(crate) fn report(text: &str) {
    use std::io::Write;
    // Not `println!`, which the test runner would swallow for a test that passes.
    let _ = writeln!(std::io::stderr(), "REPORT {text}");
}

/// The Postgres server tests may make databases on.
pub(crate) fn shared_postgres() -> Option<String> {
    std::env::var("SWARM_TEST_POSTGRES_URL").ok().filter(|url| !url.is_empty())
}

/// Unix time in microseconds.
pub(crate) fn now_us() -> i64 {
    chrono::Utc::now().timestamp_micros()
}
