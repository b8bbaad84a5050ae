//! The watchdog's process, and how the worker keeps one alive.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::{WatchFiles, overdue};
use crate::context::Ctx;
use crate::identity::{LOCK, try_lock};
use crate::lease::{BootClock, Clock, machine_boot};
use crate::runtime::docker::{DockerRuntime, DockerSettings};
use crate::runtime::{ContainerId, ContainerRuntime, RuntimeError};

const POLL: Duration = Duration::from_millis(200);
/// How often the worker looks whether its watchdog lives.
const CHECK: Duration = Duration::from_secs(1);
const WATCHDOG_LOCK: &str = "watchdog.lock";

/// The watchdog's whole life: `watchdog --data DIR`. Ends by itself when another watches already, or when no container
/// is left to watch and no worker runs.
pub(crate) async fn watch(data: &Path, docker_host: Option<String>) -> anyhow::Result<()> {
    let Some(_held) = take_lock(data).await? else { return Ok(()) };
    let files = WatchFiles::new(data);
    files.prepare()?;
    let boot = machine_boot();
    let mut engine: Option<DockerRuntime> = None;
    loop {
        let mut all = files.all()?;
        all.retain(|one| !files.was_killed(&one.name));
        if all.is_empty() && try_lock(&data.join(LOCK))?.is_some() {
            return Ok(());
        }
        let renewed = files.renewed();
        let due = overdue(&all, renewed.as_ref(), &boot, BootClock.now_ns());
        if !due.is_empty() && engine.is_none() {
            let settings = DockerSettings { host: docker_host.clone(), ..DockerSettings::default() };
            match DockerRuntime::connect(settings).await {
                Ok(connected) => engine = Some(connected),
                Err(error) => tracing::error!(%error, "the engine cannot be reached to kill an overdue container"),
            }
        }
        if let Some(engine) = &engine {
            for name in due {
                kill(engine, &files, name).await;
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A watchdog that is just leaving holds the lock a moment longer: wait for it a little.
async fn take_lock(data: &Path) -> anyhow::Result<Option<File>> {
    for _ in 0..20 {
        if let Some(lock) = try_lock(&data.join(WATCHDOG_LOCK)).context("the watchdog's lock")? {
            return Ok(Some(lock));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(None)
}

async fn kill(engine: &DockerRuntime, files: &WatchFiles, name: &str) {
    match engine.kill(&ContainerId(name.to_owned()), "SIGKILL").await {
        Ok(()) => {
            tracing::warn!(container = name, "killed: its lease was ending and the worker had not renewed it");
            if let Err(error) = files.note_killed(name) {
                tracing::error!(container = name, %error, "the kill cannot be noted");
            }
        }
        // Not there yet, not started yet, or over: asked again as long as the note stands, for it may start any moment.
        Err(RuntimeError::NotFound { .. } | RuntimeError::Conflict { .. }) => {}
        Err(error) => tracing::error!(container = name, %error, "an overdue container cannot be killed, trying again"),
    }
}

/// Keeps a watchdog running beside the worker, and the renewals it reads up to date.
pub(crate) async fn supervise(ctx: Arc<Ctx>) -> anyhow::Result<()> {
    let mut renewed = ctx.hub.renewed.subscribe();
    let mut check = tokio::time::interval(CHECK);
    loop {
        tokio::select! {
            () = ctx.stop.cancelled() => return Ok(()),
            changed = renewed.changed() => {
                changed?;
                let (files, boot, at_ns) = (ctx.watch.clone(), ctx.machine_boot.clone(), *renewed.borrow_and_update());
                let noted = crate::durable::blocking(move || files.renew(&boot, at_ns)).await;
                // Not fatal: without the note the watchdog kills too early, never too late.
                if let Err(error) = noted {
                    tracing::error!(%error, "a renewal cannot be noted for the watchdog");
                }
            }
            _ = check.tick() => ensure(&ctx)?,
        }
    }
}

/// Starts a watchdog if none holds the lock.
fn ensure(ctx: &Ctx) -> anyhow::Result<()> {
    let Some(words) = &ctx.config.watchdog else { return Ok(()) };
    let Some(free) = try_lock(&ctx.data.path.join(WATCHDOG_LOCK)).context("the watchdog's lock")? else {
        return Ok(());
    };
    drop(free);
    let log = OpenOptions::new().create(true).append(true).open(ctx.data.path.join("watchdog.log"))?;
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.args(words).arg("--data").arg(&ctx.data.path);
    if let Some(host) = &ctx.config.docker_host {
        command.arg("--docker-host").arg(host);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(false);
    let mut child = command.spawn().context("the watchdog cannot be started")?;
    tracing::debug!(pid = child.id(), "started a watchdog");
    // Waited for, so that it leaves no zombie; it outlives this worker.
    tokio::spawn(async move { child.wait().await });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ContainerSpec;
    use crate::runtime::testimage::TestEngine;
    use crate::watchdog::Watched;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_container_whose_lease_nobody_renews_is_killed_and_the_watchdog_leaves() {
        let engine = TestEngine::connect().await;
        let image = engine.load(&["sleep"]).await;
        let name = format!("{}-watched", engine.prefix);
        let mut spec = ContainerSpec::new(name.clone(), image.config_digest, engine.labels.clone());
        spec.cmd = Some(vec!["/bin/sleep".into(), "600".into()]);
        let data = tempfile::tempdir().unwrap();
        let files = WatchFiles::new(data.path());
        files.prepare().unwrap();
        let granted_ns = BootClock.now_ns();
        files.add(&Watched { name: name.clone(), lease_ms: 4_000, granted_ns, machine_boot: machine_boot() }).unwrap();
        let id = engine.runtime.create(&spec).await.unwrap();
        engine.runtime.start(&id).await.unwrap();
        let watchdog = watch(data.path(), None);
        let ended = async { (engine.runtime.wait(&id).await.unwrap(), BootClock.now_ns()) };
        let both = async { tokio::join!(watchdog, ended) };
        let (left, (exit, ended_ns)) = tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
        left.unwrap();
        assert_eq!(exit.exit_code, 137);
        assert!(ended_ns >= granted_ns + 2_000_000_000, "not before its time");
        assert!(files.was_killed(&name));
    }
}
