//! What is measured: `swarm up` as a user starts it, on SQLite, with one worker on the local engine.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};
use swarm_client::{Client, MemoryTokens};
use swarm_protocol::TaskRange;
use swarm_protocol::spec::{JobSpec, Resources};
use swarm_protocol::state::JobState;
use swarm_worker::WorkerConfig;
use swarm_worker::runtime::ContainerRuntime as _;
use swarm_worker::runtime::docker::DockerRuntime;
use swarm_worker::runtime::testimage::HostImage;

use crate::CPU_MILLIS;
use crate::table::median;

const IMAGE: &str = "bench:1";
/// How long any job may take that is measured.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Running; stopped in order when it is dropped.
pub(crate) struct Measured {
    child: Child,
    client: Client,
    jobs: AtomicU32,
    data: PathBuf,
    _dir: tempfile::TempDir,
}

impl Measured {
    /// Starts it, and uploads the image.
    pub(crate) async fn start(program: &Path, image: &HostImage, slots: u32) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("swarm-bench-").tempdir()?;
        let data = dir.path().join("data");
        let mut command = Command::new(program);
        let config = dir.path().join("worker.toml");
        // More cores than there may be: the rate is to be bounded by the places alone, as the baseline's is.
        std::fs::write(&config, format!("cpu_millis = {}\n", slots * CPU_MILLIS))?;
        command.args(["up", "--listen", "127.0.0.1:0", "--slots", &slots.to_string()]);
        command.arg("--worker-config").arg(&config);
        command.arg("--data-dir").arg(&data).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().with_context(|| program.display().to_string())?;
        let mut said = BufReader::new(child.stdout.take().context("it has a standard output")?).lines();
        let url = said.find_map(|line| line.ok()?.strip_prefix("swarm is up at ").map(str::to_owned));
        let client = Client::new(&url.context("the swarm did not start")?, Arc::new(MemoryTokens::default()))?;
        let measured = Self { child, client, jobs: AtomicU32::new(0), data, _dir: dir };
        let password = std::fs::read_to_string(measured.data.join("admin-password"))?;
        measured.client.login("admin", password.trim_end()).await?;
        measured.client.upload_image(Some(IMAGE), image.archive(), Arc::new(|_| ())).await?;
        // The first one waits for the worker, and for the image to be loaded.
        measured.many(1).await?;
        Ok(measured)
    }

    /// An array of `count` tasks: from its submission until all have ended.
    pub(crate) async fn many(&self, count: u32) -> anyhow::Result<Duration> {
        let mut spec = JobSpec::new(IMAGE);
        spec.command = Some(vec!["true".to_owned()]);
        spec.resources = Resources { cpu_millis: CPU_MILLIS, memory_bytes: crate::MEMORY_BYTES };
        spec.array = TaskRange::new(0, count - 1);
        let began = Instant::now();
        let job = self.client.submit(&spec, None).await?.job;
        let deadline = began + PATIENCE;
        loop {
            let detail = self.client.wait_job(job, Duration::from_secs(30)).await?;
            match detail.job.state {
                JobState::Succeeded => break,
                state => ensure!(!state.is_final() && Instant::now() < deadline, "a job is {state:?}"),
            }
        }
        self.jobs.fetch_add(count, Ordering::Relaxed);
        Ok(began.elapsed())
    }

    /// `count` jobs of one task one after another: the median of what one took.
    pub(crate) async fn one_by_one(&self, count: u32) -> anyhow::Result<Duration> {
        let mut took = Vec::new();
        for _ in 0..count {
            took.push(self.many(1).await?.as_secs_f64());
        }
        Ok(Duration::from_secs_f64(median(&took)))
    }

    /// Tasks that have ended.
    pub(crate) fn done(&self) -> u32 {
        self.jobs.load(Ordering::Relaxed)
    }

    /// CPU time of core and worker so far.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // proc(5): user and system time are fields 14 and 15; the name before them may hold anything.
        let rest = stat.rsplit_once(") ").context("/proc/PID/stat")?.1;
        let ticks: u64 = rest.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }

    /// Stops it in order, and removes what it has on the engine.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let status = self.child.wait()?;
        let config = WorkerConfig { data: self.data.join("worker"), ..WorkerConfig::default() };
        let engine = DockerRuntime::connect(config.engine_settings()).await?;
        swarm_worker::run::remove_everything(&config, &engine).await?;
        for image in engine.our_images().await? {
            engine.remove_image(&image.config).await?;
        }
        ensure!(status.success(), "the swarm ended with {status}");
        Ok(())
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        // Of no effect on one that was awaited. The worker removes its sandboxes on the way.
        if let Ok(None) = self.child.try_wait() {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            let _ = self.child.wait();
        }
    }
}
