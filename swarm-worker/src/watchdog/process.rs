//! The watchdog's process.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use swarm_host::blocking;
use tokio::time::Instant;

use super::{WatchFiles, Watched, overdue};
use crate::identity::{LOCK, try_lock};
use crate::machine::{Machine, ThisMachine};
use crate::runtime::docker::{DockerRuntime, DockerSettings};
use crate::runtime::{ContainerId, ContainerPhase, ContainerRuntime, RuntimeError};

const POLL: Duration = Duration::from_millis(200);
/// Between two tries to end the same container.
const AGAIN: Duration = Duration::from_millis(500);
/// How long one call to the engine may take. Until a container is dead a kill does not return, and it may wait for a copy
/// of files to end before it begins.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the disk may take to note a kill: time that the kill itself has less.
const NOTE_PATIENCE: Duration = Duration::from_millis(300);
/// Held by a watchdog that watches.
pub(super) const WATCHDOG_LOCK: &str = "watchdog.lock";
/// Held by a watchdog that waits to take its place.
const SUCCESSOR_LOCK: &str = "watchdog.next";
/// Between two looks of that one.
const RELIEF: Duration = Duration::from_millis(50);
/// How long it waits: one that hangs leaves no sooner for being waited for.
const RELIEF_MAX: Duration = Duration::from_secs(5);

/// The watchdog's whole life: `watchdog --data DIR`. Takes the place of one that watches already, which may be of an older
/// build. Ends by itself when another takes its own, or when no container is left to watch and no worker runs.
pub(crate) async fn watch(data: &Path, docker_host: Option<String>) -> anyhow::Result<()> {
    let settings = DockerSettings { host: docker_host, ..DockerSettings::default() };
    let connect = || async {
        let engine = DockerRuntime::connect(settings.clone()).await?;
        Ok(Arc::new(engine) as Arc<dyn ContainerRuntime>)
    };
    watch_with(data, &ThisMachine, connect).await
}

/// As the process that [`run`](crate::run()) starts, for the worker in `data`: on a machine of the caller's choice, with
/// `connect` as the way to its engine.
///
/// # Errors
/// When its notes or locks cannot be read.
pub async fn watch_with<F>(data: &Path, machine: &dyn Machine, connect: impl Fn() -> F) -> anyhow::Result<()>
where
    F: Future<Output = Result<Arc<dyn ContainerRuntime>, RuntimeError>>,
{
    let files = WatchFiles::new(data);
    // Before the place is taken: who cannot even read the notes must not drive out one who can.
    files.prepare()?;
    let (mut all, mut renewed) = (files.all()?, None);
    let Some(_held) = take_lock(data).await? else { return Ok(()) };
    let (boot, worker_lock) = (machine.boot(), data.join(LOCK));
    let (mut cases, mut tries) = (Cases::default(), FuturesUnordered::new());
    let mut engine: Option<Arc<dyn ContainerRuntime>> = None;
    loop {
        // A disk that cannot be read or written for a while says nothing new; what is known goes on being watched.
        match files.all() {
            Ok(found) => all = found,
            Err(error) => tracing::debug!(%error, "what is to be watched cannot be read"),
        }
        renewed = files.renewed().or(renewed);
        cases.keep(&all);
        // Only who has begun to end a container knows how far that has come.
        if tries.is_empty() && matches!(try_lock(&data.join(SUCCESSOR_LOCK)), Ok(None)) {
            tracing::info!("another watchdog takes over");
            return Ok(());
        }
        if all.iter().all(|one| cases.is_closed(one)) && matches!(try_lock(&worker_lock), Ok(Some(_))) {
            return Ok(());
        }
        let due = overdue(&all, renewed.as_ref(), &boot, machine.now_ns());
        let open: Vec<&Watched> = due.into_iter().filter(|one| cases.is_open(one)).collect();
        if !open.is_empty() && engine.is_none() {
            match within("connect", connect()).await {
                Ok(connected) => engine = Some(connected),
                Err(error) => open.iter().for_each(|one| cases.note(one, Err(error.clone()))),
            }
        }
        if let Some(engine) = &engine {
            // All at once: leases end together, and there is no time to end one container after the other.
            for one in open {
                cases.begin(one);
                let (engine, one) = (Arc::clone(engine), one.clone());
                let (files, worker_lock) = (&files, &worker_lock);
                tries.push(async move { (end(&*engine, files, worker_lock, &one.name).await, one) });
            }
        }
        let next_poll = Instant::now() + POLL;
        loop {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(next_poll) => break,
                Some((answer, one)) = tries.next() => cases.note(&one, answer),
            }
        }
    }
}

/// One call to the engine, which is asked again later if it takes too long.
async fn within<T>(call: &'static str, work: impl Future<Output = Result<T, RuntimeError>>) -> Result<T, RuntimeError> {
    let too_late = RuntimeError::Timeout { call, after_ms: PATIENCE.as_millis() as u64 };
    tokio::time::timeout(PATIENCE, work).await.unwrap_or(Err(too_late))
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

/// What is known of containers that were overdue, by their names.
#[derive(Default)]
struct Cases {
    known: HashMap<String, Case>,
    /// Those that are being ended.
    tried: HashSet<String>,
}

struct Case {
    /// A note that was written anew is a new case.
    watched: Watched,
    found: Option<Found>,
    again_at: Instant,
}

impl Cases {
    fn keep(&mut self, all: &[Watched]) {
        self.known.retain(|_, case| all.contains(&case.watched));
    }

    /// Whether nothing more can run of it.
    fn is_closed(&self, one: &Watched) -> bool {
        let case = self.known.get(&one.name);
        case.is_some_and(|case| matches!(case.found, Some(Found::Killed | Found::Over)))
    }

    /// Whether it is to be ended now.
    fn is_open(&self, one: &Watched) -> bool {
        let is_time = || self.known.get(&one.name).is_none_or(|case| Instant::now() >= case.again_at);
        !self.is_closed(one) && !self.tried.contains(&one.name) && is_time()
    }

    /// Its end is under way until [`note`](Self::note) tells what came of it.
    fn begin(&mut self, one: &Watched) {
        self.tried.insert(one.name.clone());
    }

    /// Takes in what was found, and logs what is new: an engine may be gone for days.
    fn note(&mut self, one: &Watched, answer: Result<Found, RuntimeError>) {
        let (found, container) = (answer.as_ref().ok().copied(), &one.name);
        let case = Case { watched: one.clone(), found, again_at: Instant::now() + AGAIN };
        self.tried.remove(&one.name);
        let before = self.known.insert(one.name.clone(), case).map(|case| case.found);
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

/// Waits for the watchdog there is, if any, to leave; `None` when it does not, or another waits already.
async fn take_lock(data: &Path) -> anyhow::Result<Option<File>> {
    // Who watches tries the first lock for an instant now and then, and the worker the second one.
    let Some(_next) = lock_within(data, SUCCESSOR_LOCK, RELIEF * 3).await? else { return Ok(None) };
    lock_within(data, WATCHDOG_LOCK, RELIEF_MAX).await
}

async fn lock_within(data: &Path, name: &str, patience: Duration) -> anyhow::Result<Option<File>> {
    let begun = Instant::now();
    loop {
        if let Some(lock) = try_lock(&data.join(name)).with_context(|| format!("the lock {name}"))? {
            return Ok(Some(lock));
        }
        if begun.elapsed() >= patience {
            return Ok(None);
        }
        tokio::time::sleep(RELIEF).await;
    }
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
    if !was_noted && let Err(error) = note_killed(files, name).await {
        tracing::error!(container = name, %error, "a kill cannot be noted");
    }
    match within("kill", engine.kill(&id, "SIGKILL")).await {
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
    match within("inspect", engine.inspect(&id)).await {
        Ok(container) => match container.phase {
            ContainerPhase::Exited => Ok(Found::Over),
            ContainerPhase::Running => Ok(Found::Waiting),
            // The worker may have asked for its start before it died: what is removed cannot start any more.
            ContainerPhase::Created => within("remove", engine.remove(&id, true)).await.map(|()| Found::Waiting),
        },
        Err(error) if error.is_not_found() => Ok(Found::Over),
        Err(error) => Err(error),
    }
}

/// Away from the async threads, or each kill would wait for the disk to take the notes of all others; and a disk that hangs
/// must not keep a container alive.
async fn note_killed(files: &WatchFiles, name: &str) -> std::io::Result<()> {
    let (files, name) = (files.clone(), name.to_owned());
    let noted = tokio::time::timeout(NOTE_PATIENCE, blocking::run(move || files.note_killed(&name))).await;
    noted.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
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
            let engine = FakeRuntime::new();
            engine.add_image(Digest::of(b"image"), Vec::new());
            engine.program(move |_| script.clone());
            let data = tempfile::tempdir().unwrap();
            let files = WatchFiles::new(data.path());
            files.prepare().unwrap();
            let id = overdue_container(&engine, &files, NAME).await;
            Self { engine, id, data, files }
        }

        async fn watch(&self) {
            let connect = || async { Ok(Arc::new(self.engine.clone()) as Arc<dyn ContainerRuntime>) };
            watch_with(self.data.path(), &ThisMachine, connect).await.unwrap();
        }

        async fn leaves(&self) {
            tokio::time::timeout(Duration::from_secs(60), self.watch()).await.expect("nothing is left to watch");
        }
    }

    async fn overdue_container(engine: &FakeRuntime, files: &WatchFiles, name: &str) -> ContainerId {
        let labels = Labels::from([("swarm".to_owned(), "test".to_owned())]);
        let id = engine.create(&ContainerSpec::new(name, Digest::of(b"image"), labels)).await.unwrap();
        // Of another boot of the machine, so overdue whatever the time.
        let machine_boot = "another".to_owned();
        files.add(&Watched { name: name.into(), lease_ms: 4_000, granted_ns: 0, machine_boot }).unwrap();
        id
    }

    #[tokio::test(start_paused = true)]
    async fn however_many_there_are_and_whichever_hangs_each_is_killed_within_the_margin_of_its_lease() {
        let bench = Bench::new(Script::new().forever()).await;
        let mut ids = vec![bench.id.clone()];
        for n in 1..20 {
            ids.push(overdue_container(&bench.engine, &bench.files, &format!("watched-{n}")).await);
        }
        for id in &ids {
            bench.engine.start(id).await.unwrap();
        }
        let slow = |plan: FaultPlan, nth| plan.on(Call::Kill, nth, Effect::Delay(Duration::from_millis(300)));
        bench.engine.plan((2..=20).fold(FaultPlan::new().on(Call::Kill, 1, Effect::Hang), slow));
        let begun_us = bench.engine.now_us();
        bench.leaves().await;
        let mut took_us = Vec::new();
        for id in &ids {
            took_us.push(bench.engine.inspect(id).await.unwrap().finished_at_us.unwrap() - begun_us);
        }
        took_us.sort_unstable();
        assert!(took_us[18] < 1_000_000, "{took_us:?}");
        // The one that hung is asked about again after its time is up.
        assert!(took_us[19] < 3_500_000, "{took_us:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_kill_is_noted_before_it_is_done() {
        let bench = Bench::new(Script::new().forever()).await;
        bench.engine.start(&bench.id).await.unwrap();
        bench.engine.plan(FaultPlan::new().on(Call::Kill, 1, Effect::Hang));
        tokio::time::timeout(Duration::from_secs(1), bench.watch()).await.unwrap_err();
        assert_eq!(bench.engine.count(Call::Kill), 1);
        assert!(bench.files.was_killed(NAME));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watchdog_leaves_for_the_next_one_but_not_in_the_middle_of_a_kill() {
        let bench = Bench::new(Script::new().forever()).await;
        let _worker = DataDir::open(bench.data.path()).unwrap();
        let is_taken = |name: &str| try_lock(&bench.data.path().join(name)).unwrap().is_none();
        // One that does not leave is not waited for for long, and nobody waits beside who waits already.
        let hangs = try_lock(&bench.data.path().join(WATCHDOG_LOCK)).unwrap();
        let begun = Instant::now();
        tokio::join!(bench.watch(), bench.watch());
        assert!(begun.elapsed() >= RELIEF_MAX && begun.elapsed() < RELIEF_MAX + POLL);
        drop(hangs);
        bench.engine.start(&bench.id).await.unwrap();
        bench.engine.plan(FaultPlan::new().on(Call::Kill, 1, Effect::Hang));
        let first = async {
            let begun = Instant::now();
            bench.watch().await;
            begun.elapsed()
        };
        let second = async {
            tokio::time::sleep(POLL / 2).await;
            tokio::time::timeout(Duration::from_secs(10), bench.watch()).await.unwrap_err();
        };
        let meanwhile = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            is_taken(WATCHDOG_LOCK) && !is_taken(SUCCESSOR_LOCK)
        };
        let (left_after, (), is_watched) = tokio::join!(first, second, meanwhile);
        assert!(left_after >= PATIENCE && left_after < PATIENCE + POLL * 2, "{left_after:?}");
        assert!(is_watched, "the next one watches");
        assert_eq!(bench.engine.inspect(&bench.id).await.unwrap().exit_code, Some(137));
        assert!(bench.files.was_killed(NAME));
    }

    #[tokio::test]
    async fn a_disk_that_hangs_does_not_keep_an_overdue_container_alive() {
        let bench = Bench::new(Script::new().forever()).await;
        bench.engine.start(&bench.id).await.unwrap();
        // Nobody reads what is written there first, so whoever opens it for the note waits.
        let note = bench.data.path().join("watchdog/killed").join(format!(".{NAME}.tmp"));
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &note, mode).unwrap();
        let began = Instant::now();
        let is_dead = async {
            while bench.engine.inspect(&bench.id).await.unwrap().phase == ContainerPhase::Running {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let killed = tokio::time::timeout(Duration::from_secs(20), async {
            tokio::select! { () = is_dead => {} () = bench.watch() => {} }
        });
        let killed = killed.await;
        // A reader lets the note's thread end, whatever was found.
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
        let _reader = rustix::fs::open(&note, flags, rustix::fs::Mode::empty()).unwrap();
        killed.expect("it waits for the disk");
        assert!(began.elapsed() >= NOTE_PATIENCE, "the note is tried first");
        assert!(!bench.files.was_killed(NAME) && bench.engine.count(Call::Kill) == 1);
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
        let (granted_ns, machine_boot) = (ThisMachine.now_ns(), ThisMachine.boot());
        files.add(&Watched { name: name.clone(), lease_ms: 4_000, granted_ns, machine_boot }).unwrap();
        let id = engine.runtime.create(&spec).await.unwrap();
        engine.runtime.start(&id).await.unwrap();
        let watchdog = watch(data.path(), None);
        let ended = async { (engine.runtime.wait(&id).await.unwrap(), ThisMachine.now_ns()) };
        let both = async { tokio::join!(watchdog, ended) };
        let (left, (exit, ended_ns)) = tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
        left.unwrap();
        assert_eq!(exit.exit_code, 137);
        assert!(ended_ns >= granted_ns + 2_000_000_000, "not before its time");
        assert!(files.was_killed(&name));
    }
}
