//! What the tests need beside the code: a database, a Docker engine, the programs of a Redis and of Schemathesis. What is started here is
//! stopped here.

mod docker;
mod fuzzer;
mod postgres;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::report::say;
use crate::run::{self, Stop};

/// How long packages may take to come from a slow mirror.
const INSTALL_MAX: Duration = Duration::from_secs(20 * 60);
/// How long services may take to start, even when the installation took longer than the stage may.
const START_MIN: Duration = Duration::from_secs(60);

/// Running services. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Services {
    postgres: postgres::Postgres,
    docker: docker::Docker,
    fuzzer: PathBuf,
}

/// Where things are and go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places<'a> {
    /// Of this run alone.
    pub(crate) temp: &'a Path,
    /// The workspace.
    pub(crate) root: &'a Path,
    /// What builds leave.
    pub(crate) target: &'a Path,
}

impl Services {
    /// Installs what is missing (as root, by apt-get) and starts what does not run.
    ///
    /// # Errors
    /// Names what is missing and what to do about it.
    pub(crate) fn start(places: Places<'_>, own_engine: bool, deadline: Instant, stop: &Stop) -> Result<Self> {
        let mut missing = Vec::new();
        if postgres::bin_dir().is_none() {
            missing.push("postgresql");
        }
        if !found("docker") || ((own_engine || !docker::answers()) && !found("dockerd")) {
            missing.push("docker.io");
        }
        // Not started here: every test that needs one has its own, to kill and to fill.
        if !found("redis-server") {
            missing.push("redis-server");
        }
        // What the fault scenarios work with, besides.
        let tools = [("unshare", "util-linux"), ("ip", "iproute2"), ("iptables", "iptables"), ("faketime", "faketime")];
        missing.extend(tools.into_iter().filter(|(program, _)| !found(program)).map(|(_, package)| package));
        if !fuzzer::has_venv() {
            missing.push("python3-venv");
        }
        install(&missing, stop)?;
        let list = places.root.join("tests/schemathesis.txt");
        let fuzzer = fuzzer::install(&places.target.join("schemathesis"), &list, stop)?;
        let deadline = deadline.max(Instant::now() + START_MIN);
        let docker = docker::Docker::start(&places.temp.join("docker"), own_engine, deadline, stop)?;
        let postgres = postgres::Postgres::start(&places.temp.join("postgres"), deadline, stop)?;
        Ok(Self { postgres, docker, fuzzer })
    }

    /// What tests have to find in their environment.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let fuzzer = self.fuzzer.display().to_string();
        let mut variables = vec![("SWARM_TEST_POSTGRES_URL", self.postgres.url()), ("SWARM_TEST_SCHEMATHESIS", fuzzer)];
        variables.extend(self.docker.host().map(|host| ("DOCKER_HOST", host)));
        variables
    }
}

/// Whether a program of this name is in PATH.
fn found(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Has a limit of its own, whatever the stage has left: cut off half-way, it would leave a machine to be repaired.
fn install(packages: &[&str], stop: &Stop) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !is_root() || !found("apt-get") {
        bail!("missing: {list}; install it (on Debian: apt-get install {list}) and start again");
    }
    say(format_args!("installing {list}"));
    let deadline = Instant::now() + INSTALL_MAX;
    let words = ["install", "--yes", "--no-install-recommends", "ca-certificates"];
    for words in [&["update"][..], &[&words[..], packages].concat()] {
        let mut command = Command::new("apt-get");
        // At run level 1 packages do not start their services: the tests start their own.
        command.args(words).env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
        if let Some(problem) = run::stream(&mut command, deadline, stop, &mut |_| {})?.problem() {
            bail!("apt-get {}: {problem}; install {list} by hand and start again", words.join(" "));
        }
    }
    Ok(())
}

/// Waits until `ready`; looks ten times a second.
fn await_ready(what: &str, deadline: Instant, stop: &Stop, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    while !ready().with_context(|| what.to_owned())? {
        if stop.asked() {
            bail!("{what}: interrupted");
        }
        if Instant::now() >= deadline {
            bail!("{what}: not ready in time");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The last lines of a log file, for an error's text.
fn tail(path: &Path) -> String {
    let text = std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
