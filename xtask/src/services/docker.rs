//! The Docker engine: the one that answers, else one for this run alone.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{await_ready, is_root, tail};
use crate::report::say;
use crate::run::{self, Stop};

const STOP_TIME: Duration = Duration::from_secs(20);

/// An engine, which is stopped on drop if it was started here.
#[derive(Debug)]
pub(super) struct Docker {
    own: Option<(Child, String)>,
}

/// Whether an engine answers where the environment says.
pub(super) fn answers() -> bool {
    version(None).is_ok()
}

fn version(host: Option<&str>) -> Result<String> {
    let mut command = Command::new("docker");
    command.args(["version", "--format", "{{.Server.Version}}"]);
    if let Some(host) = host {
        command.env("DOCKER_HOST", host);
    }
    run::output(&mut command).map(|text| text.trim().to_owned())
}

impl Docker {
    pub(super) fn start(dir: &Path, own: bool, deadline: Instant, stop: &Stop) -> Result<Self> {
        if !own && let Ok(version) = version(None) {
            say(format_args!("docker: engine {version} answers and is used"));
            return Ok(Self { own: None });
        }
        if !is_root() {
            bail!(
                "no Docker engine answers (set DOCKER_HOST, or start Docker and join its group); starting one takes root"
            );
        }
        Self::start_own(dir, deadline, stop)
    }

    /// An engine that shares nothing with the machine's: no bridge and no packet filter, since jobs have no network.
    fn start_own(dir: &Path, deadline: Instant, stop: &Stop) -> Result<Self> {
        std::fs::create_dir(dir).with_context(|| format!("making {}", dir.display()))?;
        let (config, log) = (dir.join("daemon.json"), dir.join("log"));
        // An empty file of its own, lest the system's contradict the flags.
        std::fs::write(&config, "{}")?;
        let output = File::create(&log)?;
        let host = format!("unix://{}", dir.join("s.sock").display());
        let mut command = Command::new("dockerd");
        command.arg("--config-file").arg(&config).arg("--data-root").arg(dir.join("data"));
        command.arg("--exec-root").arg(dir.join("exec")).arg("--pidfile").arg(dir.join("pid"));
        command.args(["--host", &host, "--bridge", "none", "--iptables=false"]);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let child = command.spawn().context("starting dockerd")?;
        let mut docker = Self { own: Some((child, host.clone())) };
        await_ready("waiting for dockerd", deadline, stop, || docker.is_ready())
            .with_context(|| format!("dockerd does not come up; its log ends:\n{}", tail(&log)))?;
        say(format_args!("docker: own engine {} on {host}", version(Some(&host))?));
        Ok(docker)
    }

    fn is_ready(&mut self) -> Result<bool> {
        let Some((child, host)) = &mut self.own else { return Ok(true) };
        match child.try_wait()? {
            Some(status) => bail!("dockerd ended: {status}"),
            None => Ok(version(Some(host)).is_ok()),
        }
    }

    /// The value of `DOCKER_HOST`, when it has to be set.
    pub(super) fn host(&self) -> Option<String> {
        self.own.as_ref().map(|(_, host)| host.clone())
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let Some((child, _)) = &mut self.own else { return };
        // SIGTERM lets it end its containers and the containerd it started; SIGKILL would leave those.
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + STOP_TIME;
        while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}
