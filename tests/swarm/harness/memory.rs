//! A worker whose engine is in memory, in a process of its own: hundreds of containers a second, and a kill -9 that takes
//! the engine with it, as a machine that loses its power does. The process is this test program, started for the one test
//! that asks for it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use swarm_protocol::api::JoinTokenRequest;
use swarm_worker::WorkerConfig;
use swarm_worker::runtime::fake::{FakeRuntime, Script};
use tokio_util::sync::CancellationToken;

use super::process::isolated;
use super::{Swarm, now_us};

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
    let config = WorkerConfig {
        slots: Some(64),
        cpu_millis: Some(64_000),
        memory_bytes: Some(64 << 30),
        ..config("w1", &core, home.join("worker"), home.join("join-token"))
    };
    let engine = engine(|| Duration::from_millis(rand::random_range(0..=RUNS_MS_MAX)));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be started");
    let ended = runtime.block_on(swarm_worker::run(config, Arc::new(engine), CancellationToken::new()));
    panic!("the worker ended by itself: {ended:?}");
}

fn config(name: &str, core: &str, data: PathBuf, join_token: PathBuf) -> WorkerConfig {
    WorkerConfig {
        core: core.parse().expect("an address"),
        name: name.to_owned(),
        join_token_file: (!data.join("identity.json").exists()).then_some(join_token),
        data,
        // It would look for the containers in another engine.
        watchdog: None,
        ..WorkerConfig::default()
    }
}

/// One whose containers take as long as `runs` says.
fn engine(runs: impl Fn() -> Duration + Send + Sync + 'static) -> FakeRuntime {
    let engine = FakeRuntime::with_clock(|| now_us().cast_unsigned());
    engine.program(move |_| Script::new().sleep(runs()));
    engine
}

/// Many workers, all in this process, each with an engine of its own. They stop when it is dropped.
pub(crate) struct Herd {
    stop: CancellationToken,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Herd {
    /// Has so many workers join, with `slots` each, whose containers take `runs`.
    pub(crate) fn join(swarm: &Swarm, count: u32, slots: u32, runs: Duration) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let (runtime, stop) = (runtime.expect("a runtime can be started"), CancellationToken::new());
        for n in 0..count {
            let name = format!("herd-{n}");
            let request = JoinTokenRequest { worker: name.clone(), expires_in_s: 600 };
            let token = swarm.block(swarm.client.join_token(&request)).expect("the admin gets a join token").token;
            let file = swarm.home().join(format!("{name}.token"));
            std::fs::write(&file, token).expect("a file can be written");
            let config = WorkerConfig {
                slots: Some(slots),
                cpu_millis: Some(8000),
                memory_bytes: Some(8 << 30),
                ..config(&name, &swarm.url, swarm.home().join(&name), file)
            };
            runtime.spawn(swarm_worker::run(config, Arc::new(engine(move || runs)), stop.clone()));
        }
        Self { stop, runtime: Some(runtime) }
    }
}

impl Drop for Herd {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}
