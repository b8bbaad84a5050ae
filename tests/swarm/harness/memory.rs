//! A worker whose engine is in memory, in a process of its own: hundreds of containers a second, and a kill -9 that takes
//! the engine with it, as a machine that loses its power does. The process is this test program, started for the one test
//! that asks for it.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use swarm_worker::WorkerConfig;
use swarm_worker::runtime::fake::{FakeRuntime, Script};
use tokio_util::sync::CancellationToken;

use super::now_us;
use super::process::isolated;

/// Says to a test that it is to be the worker: the core's address.
const CORE: &str = "SWARM_TEST_MEMORY_WORKER";
/// The longest that a container takes, in milliseconds.
const RUNS_MS_MAX: u64 = 40;

/// The worker's process: the running test, once more.
pub(super) fn command(home: &Path, core: &str) -> Command {
    let thread = std::thread::current();
    let test = thread.name().expect("tests have threads with their names").to_owned();
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    // Two threads make a thread for the test, which its name is known by.
    command.args(["--exact", &test, "--nocapture", "--test-threads=2"]);
    isolated(&mut command, home);
    command.env(CORE, core);
    command
}

/// Runs as the worker until the process is killed, if it was started for that. To be called first in a test.
pub(crate) fn be_worker() {
    let Ok(core) = std::env::var(CORE) else { return };
    let home = std::env::current_dir().expect("it was started in the swarm's directory");
    let data = home.join("worker");
    let config = WorkerConfig {
        core: core.parse().expect("an address"),
        name: "w1".to_owned(),
        slots: Some(64),
        cpu_millis: Some(64_000),
        memory_bytes: Some(64 << 30),
        join_token_file: (!data.join("identity.json").exists()).then(|| home.join("join-token")),
        data,
        // It would look for the containers in another engine.
        watchdog: None,
        ..WorkerConfig::default()
    };
    let engine = FakeRuntime::with_clock(|| now_us().cast_unsigned());
    engine.program(|_| Script::new().sleep(Duration::from_millis(rand::random_range(0..=RUNS_MS_MAX))));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be started");
    let ended = runtime.block_on(swarm_worker::run(config, Arc::new(engine), CancellationToken::new()));
    panic!("the worker ended by itself: {ended:?}");
}
