//! The watchdog's process.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;

use super::{WatchFiles, Watched, overdue};
use crate::identity::{LOCK, try_lock};
use crate::lease::{BootClock, Clock, machine_boot};
use crate::runtime::docker::{DockerRuntime, DockerSettings};
use crate::runtime::{ContainerId, ContainerPhase, ContainerRuntime, RuntimeError};

const POLL: Duration = Duration::from_millis(200);
/// Between two tries to end the same container.
const AGAIN: Duration = Duration::from_millis(500);
/// Held by a watchdog that watches.
pub(super) const WATCHDOG_LOCK: &str = "watchdog.lock";

/// The watchdog's whole life: `watchdog --data DIR`. Ends by itself when another watches already, or when no container
/// is left to watch and no worker runs.
pub(crate) async fn watch(data: &Path, docker_host: Option<String>) -> anyhow::Result<()> {
    let settings = DockerSettings { host: docker_host, ..DockerSettings::default() };
    let connect = || async {
        let engine = DockerRuntime::connect(settings.clone()).await?;
        Ok(Arc::new(engine) as Arc<dyn ContainerRuntime>)
    };
    watch_with(data, connect).await
}

async fn watch_with(
    data: &Path,
    connect: impl AsyncFn() -> Result<Arc<dyn ContainerRuntime>, RuntimeError>,
) -> anyhow::Result<()> {
    let Some(_held) = take_lock(data).await? else { return Ok(()) };
    let files = WatchFiles::new(data);
    files.prepare()?;
    let (boot, worker_lock) = (machine_boot(), data.join(LOCK));
    let mut engine: Option<Arc<dyn ContainerRuntime>> = None;
    let mut cases = Cases::default();
    loop {
        let all = files.all()?;
        cases.keep(&all);
        if all.iter().all(|one| cases.is_closed(one)) && try_lock(&worker_lock)?.is_some() {
            return Ok(());
        }
        let due = overdue(&all, files.renewed().as_ref(), &boot, BootClock.now_ns());
        let open: Vec<&Watched> = due.into_iter().filter(|one| cases.is_open(one)).collect();
        if !open.is_empty() && engine.is_none() {
            match connect().await {
                Ok(connected) => engine = Some(connected),
                Err(error) => open.iter().for_each(|one| cases.note(one, Err(error.clone()))),
            }
        }
        if let Some(engine) = &engine {
            for one in open {
                cases.note(one, end(engine.as_ref(), &files, &worker_lock, &one.name).await);
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What came of the wish to end an overdue container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// It ran, and was killed.
    Killed,
    /// It does not run, and nobody is left who could start it.
    Over,
    /// It does not run, but may be started any moment: it is asked about again.
    Waiting,
}

/// What is known of containers that were overdue.
#[derive(Default)]
struct Cases(HashMap<String, Case>);

struct Case {
    /// A note that was written anew is a new case.
    watched: Watched,
    found: Option<Found>,
    again_at: Instant,
}

impl Cases {
    fn keep(&mut self, all: &[Watched]) {
        self.0.retain(|_, case| all.contains(&case.watched));
    }

    /// Whether nothing more can run of it.
    fn is_closed(&self, one: &Watched) -> bool {
        let case = self.0.get(&one.name);
        case.is_some_and(|case| matches!(case.found, Some(Found::Killed | Found::Over)))
    }

    /// Whether it is to be ended now.
    fn is_open(&self, one: &Watched) -> bool {
        !self.is_closed(one) && self.0.get(&one.name).is_none_or(|case| Instant::now() >= case.again_at)
    }

    /// Takes in what was found, and logs what is new: an engine may be gone for days.
    fn note(&mut self, one: &Watched, answer: Result<Found, RuntimeError>) {
        let (found, container) = (answer.as_ref().ok().copied(), &one.name);
        let case = Case { watched: one.clone(), found, again_at: Instant::now() + AGAIN };
        let before = self.0.insert(one.name.clone(), case).map(|case| case.found);
        if before == Some(found) {
            return;
        }
        match answer {
            Ok(Found::Killed) => {
                tracing::warn!(container, "killed: its lease was ending and the worker had not renewed it");
            }
            Ok(Found::Over) => tracing::info!(container, "its lease has ended, and so has the container"),
            Ok(Found::Waiting) => {}
            Err(error) => tracing::error!(container, %error, "an overdue container cannot be killed, trying again"),
        }
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

/// Ends one container whose lease is ending.
async fn end(
    engine: &dyn ContainerRuntime,
    files: &WatchFiles,
    worker_lock: &Path,
    name: &str,
) -> Result<Found, RuntimeError> {
    // Asked first: a worker that starts after this finds the lease over and starts nothing.
    let is_orphan = try_lock(worker_lock).is_ok_and(|lock| lock.is_some());
    let id = ContainerId(name.to_owned());
    // Noted first: the worker sees the end at once, and must know then whose doing it was.
    let was_noted = files.was_killed(name);
    if !was_noted && let Err(error) = files.note_killed(name) {
        tracing::error!(container = name, %error, "a kill cannot be noted");
    }
    match engine.kill(&id, "SIGKILL").await {
        Ok(()) => return Ok(Found::Killed),
        Err(RuntimeError::NotFound { .. } | RuntimeError::Conflict { .. }) => {}
        Err(error) => return Err(error),
    }
    if !was_noted {
        files.forget_killed(name);
    }
    if !is_orphan {
        return Ok(Found::Waiting);
    }
    match engine.inspect(&id).await {
        Ok(container) => match container.phase {
            ContainerPhase::Exited => Ok(Found::Over),
            ContainerPhase::Running => Ok(Found::Waiting),
            // The worker may have asked for its start before it died: what is removed cannot start any more.
            ContainerPhase::Created => engine.remove(&id, true).await.map(|()| Found::Waiting),
        },
        Err(error) if error.is_not_found() => Ok(Found::Over),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use swarm_protocol::Digest;

    use super::*;
    use crate::identity::DataDir;
    use crate::runtime::fake::{Call, Effect, FakeRuntime, FaultPlan, Script};
    use crate::runtime::testimage::TestEngine;
    use crate::runtime::{ContainerSpec, Labels};

    const NAME: &str = "watched";

    /// An engine with one container, and a data directory that says that its lease is over.
    struct Bench {
        engine: FakeRuntime,
        id: ContainerId,
        data: tempfile::TempDir,
        files: WatchFiles,
    }

    impl Bench {
        async fn new(script: Script) -> Self {
            let (engine, image) = (FakeRuntime::new(), Digest::of(b"image"));
            engine.add_image(image, Vec::new());
            engine.program(move |_| script.clone());
            let labels = Labels::from([("swarm".to_owned(), "test".to_owned())]);
            let id = engine.create(&ContainerSpec::new(NAME, image, labels)).await.unwrap();
            let data = tempfile::tempdir().unwrap();
            let files = WatchFiles::new(data.path());
            files.prepare().unwrap();
            // Of another boot of the machine, so overdue whatever the time.
            let machine_boot = "another".to_owned();
            files.add(&Watched { name: NAME.into(), lease_ms: 4_000, granted_ns: 0, machine_boot }).unwrap();
            Self { engine, id, data, files }
        }

        async fn watch(&self) {
            let connect = || async { Ok(Arc::new(self.engine.clone()) as Arc<dyn ContainerRuntime>) };
            watch_with(self.data.path(), connect).await.unwrap();
        }

        async fn leaves(&self) {
            tokio::time::timeout(Duration::from_secs(60), self.watch()).await.expect("nothing is left to watch");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_kill_is_noted_before_it_is_done() {
        let bench = Bench::new(Script::new().forever()).await;
        bench.engine.start(&bench.id).await.unwrap();
        bench.engine.plan(FaultPlan::new().on(Call::Kill, 1, Effect::Hang));
        tokio::time::timeout(Duration::from_secs(5), bench.watch()).await.unwrap_err();
        assert_eq!(bench.engine.count(Call::Kill), 1);
        assert!(bench.files.was_killed(NAME));
    }

    #[tokio::test(start_paused = true)]
    async fn a_container_that_ended_by_itself_holds_no_watchdog_and_is_no_kill() {
        let bench = Bench::new(Script::new().exit(3)).await;
        bench.engine.start(&bench.id).await.unwrap();
        bench.engine.wait(&bench.id).await.unwrap();
        bench.leaves().await;
        assert!(!bench.files.was_killed(NAME));
        bench.engine.remove(&bench.id, true).await.unwrap();
        bench.leaves().await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_dead_worker_may_have_asked_to_start_is_removed() {
        let bench = Bench::new(Script::new()).await;
        bench.leaves().await;
        assert!(bench.engine.inspect(&bench.id).await.unwrap_err().is_not_found());
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_may_still_start_it_keeps_its_watchdog() {
        let bench = Bench::new(Script::new().forever()).await;
        let worker = DataDir::open(bench.data.path()).unwrap();
        tokio::time::timeout(Duration::from_secs(5), bench.watch()).await.unwrap_err();
        bench.engine.start(&bench.id).await.unwrap();
        tokio::time::timeout(Duration::from_secs(5), bench.watch()).await.unwrap_err();
        assert_eq!(bench.engine.inspect(&bench.id).await.unwrap().exit_code, Some(137));
        assert!(bench.files.was_killed(NAME));
        drop(worker);
        bench.leaves().await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_is_down_is_asked_with_pauses_until_it_answers() {
        let bench = Bench::new(Script::new().forever()).await;
        bench.engine.start(&bench.id).await.unwrap();
        bench.engine.engine_down();
        tokio::time::timeout(Duration::from_secs(60), bench.watch()).await.unwrap_err();
        assert!((60..=121).contains(&bench.engine.count(Call::Kill)), "{}", bench.engine.count(Call::Kill));
        bench.engine.engine_up();
        bench.leaves().await;
        assert_eq!(bench.engine.inspect(&bench.id).await.unwrap().exit_code, Some(137));
    }

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
