//! What tests of this crate share.

mod core;
mod memory;
mod proxy;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use swarm_protocol::link::{FinalReport, ImageOrder, InputOrder, TaskOrder};
use swarm_protocol::{AttemptId, Digest, GroupId, JobId, Outcome};

pub(crate) use self::core::{DEADLINE, ScriptedCore, Seen};
pub(crate) use self::memory::{MemoryCore, TokioMachine};
pub(crate) use self::proxy::{Fate, Proxy};
use crate::machine::{Machine, ThisMachine};

/// A plain order for the image whose config blob is `config`.
pub(crate) fn order(job: u64, config: &[u8]) -> TaskOrder {
    TaskOrder {
        attempt: AttemptId { job: JobId(job), task: 0, attempt: 1 },
        group: GroupId(1),
        image: ImageOrder { config: Digest::of(config), config_bytes: config.len() as u64, layers: Vec::new() },
        command: None,
        entrypoint: None,
        user: None,
        workdir: None,
        env: Vec::new(),
        allow_root: false,
        cpu_millis: 1000,
        memory_bytes: 64 << 20,
        inputs: Vec::new(),
        outputs: Vec::new(),
        timeout_ms: None,
        lease_ms: 30_000,
        grace_ms: 1000,
        log_bytes_max: 1 << 20,
        output_bytes_max: 1 << 20,
        at_most_once: false,
        limits: swarm_protocol::spec::Limits::default(),
    }
}

/// An input with these bytes.
pub(crate) fn input(path: &str, bytes: &[u8]) -> InputOrder {
    InputOrder { digest: Digest::of(bytes), size_bytes: bytes.len() as u64, path: path.into(), mode: 0o644 }
}

/// A report without a run.
pub(crate) fn report(attempt: AttemptId, outcome: Outcome, log_bytes: u64) -> FinalReport {
    FinalReport {
        attempt,
        outcome,
        started_at_us: None,
        finished_at_us: None,
        ran_ms: None,
        log_bytes,
        log_digest: Digest::of(b""),
        log_cut_bytes: 0,
        outputs: Vec::new(),
        usage: swarm_protocol::Usage::default(),
    }
}

/// The config blob of the image that tests run.
pub(crate) const CONFIG: &[u8] = br#"{"config":{}}"#;

/// This machine with a CLOCK_BOOTTIME that is moved forward by hand.
#[derive(Debug, Default)]
pub(crate) struct MovedClock(AtomicU64);

impl MovedClock {
    pub(crate) fn forward(&self, duration: Duration) {
        self.0.fetch_add(duration.as_nanos() as u64, Ordering::SeqCst);
    }
}

impl Machine for MovedClock {
    fn now_ns(&self) -> u64 {
        ThisMachine.now_ns() + self.0.load(Ordering::SeqCst)
    }

    fn wall_us(&self) -> u64 {
        ThisMachine.wall_us()
    }

    fn boot(&self) -> String {
        ThisMachine.boot()
    }

    fn load_millis(&self) -> u32 {
        ThisMachine.load_millis()
    }
}
