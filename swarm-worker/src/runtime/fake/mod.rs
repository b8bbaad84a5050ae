//! A container engine in memory, for tests of everything above the engine. Containers follow a [`Script`] on tokio's
//! clock, so paused time works; calls can be made to fail, hang or lose their answer by a [`FaultPlan`]; every call is
//! recorded. One engine outlives the worker that uses it: give a second worker the same `Arc` to test its restart.
//!
//! ```
//! # use swarm_worker::runtime::fake::{Call, Effect, FakeRuntime, FaultPlan, Script};
//! # use swarm_worker::runtime::RuntimeError;
//! # use std::time::Duration;
//! let engine = FakeRuntime::new();
//! engine.program(|view| match view.spec.cmd.as_deref() {
//!     Some([word]) if word == "fail" => Script::new().err("no\n").exit(3),
//!     _ => Script::new().out("working\n").sleep(Duration::from_secs(60)).write("/out/result", "42"),
//! });
//! let gone = RuntimeError::Engine { call: "start", message: "connection reset".into() };
//! engine.plan(FaultPlan::new().on(Call::Start, 2, Effect::DoneButFail(gone)));
//! ```

mod faults;
mod script;
mod state;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use swarm_protocol::ids::Digest;
use swarm_protocol::logs::LogStream;
use tokio::sync::watch;
use tokio::time::Instant;

pub use self::faults::{Call, CallRecord, Effect, FaultPlan};
use self::script::{End, Step};
pub use self::script::{Program, Script, StartView};
pub use self::state::FakeFile;
use self::state::{Image, State, Volume, conflict, matches, not_found};
use super::archive::once;
use super::spec::check_name;
use super::{
    ByteStream, ContainerId, ContainerPhase, ContainerRuntime, ContainerSpec, ContainerState, DiskQuota, EngineFacts,
    ExitInfo, Labels, LogItems, Network, OurContainer, OurImage, OurVolume, Reading, RuntimeError, Sibling,
    check_filter,
};

/// When the fake's clock starts, Unix time in microseconds.
const EPOCH_US: u64 = 1_700_000_000_000_000;

/// The engine. Cheap to clone; clones are the same engine.
#[derive(Clone)]
pub struct FakeRuntime(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Counts changes of the state, for whoever waits for one.
    changes: watch::Sender<u64>,
    born: Instant,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeRuntime {
    /// An empty engine of 4 CPUs and 8 GiB, whose containers exit with 0 at once.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Inner { state: Mutex::default(), changes: watch::Sender::new(0), born: Instant::now() }))
    }

    /// Sets what containers started from now on do.
    pub fn program(&self, program: impl Fn(&StartView<'_>) -> Script + Send + Sync + 'static) {
        self.lock().program = Box::new(program);
    }

    /// Puts a plan of faults in place of the one before.
    pub fn plan(&self, plan: FaultPlan) {
        self.lock().faults = plan;
    }

    /// Lets the engine hold an image that this worker did not bring.
    pub fn add_image(&self, config: Digest, layers: Vec<Digest>) {
        self.lock().images.insert(config, Image { layers, ..Image::default() });
    }

    /// Puts a file into an image that the engine holds, for containers made from now on.
    pub fn add_image_file(&self, config: &Digest, path: &str, bytes: impl Into<Bytes>) {
        let file = FakeFile { bytes: bytes.into(), mode: 0o644, uid: 0, gid: 0 };
        if let Some(image) = self.lock().images.get_mut(config) {
            image.files.insert(path.to_owned(), file);
        }
    }

    /// Gives an image that the engine holds a STOPSIGNAL, for containers made from now on.
    pub fn stop_signal(&self, config: &Digest, signal: &str) {
        if let Some(image) = self.lock().images.get_mut(config) {
            image.stop_signal = Some(signal.to_owned());
        }
    }

    /// From now on the engine says that it keeps images in containerd.
    pub fn keep_images_in_containerd(&self) {
        self.lock().in_containerd = true;
    }

    /// Gives the engine's machine so many cores; it has 4 otherwise.
    pub fn cpus(&self, count: u32) {
        self.lock().cpus = count;
    }

    /// What the engine says of its quotas until a container was created with
    /// [`disk_bytes`](ContainerSpec::disk_bytes), after which [`DiskQuota::Unknown`] turns out to be a yes.
    pub fn disk_quota(&self, quota: DiskQuota) {
        self.lock().disk_quota = quota;
    }

    /// Gives the engine a disk that holds so many bytes of images; it cannot be seen otherwise.
    pub fn disk(&self, bytes: u64) {
        self.lock().disk_bytes = Some(bytes);
    }

    /// The engine stops answering: calls, waits and logs under way fail as well. Containers live on.
    pub fn engine_down(&self) {
        self.change(|state| state.down = true);
    }

    /// The engine answers again.
    pub fn engine_up(&self) {
        self.change(|state| state.down = false);
    }

    /// Everything that runs is killed from outside, as by a reboot or another user.
    pub fn kill_all(&self) {
        let now_us = self.now_us();
        self.change(|state| {
            let ids: Vec<_> = state.containers.keys().cloned().collect();
            ids.iter().for_each(|id| state.end(id, 137, false, now_us));
        });
    }

    /// From now on only this many bytes of every archive arrive, and the stream ends as if it were whole: an engine that
    /// fails half-way does that.
    pub fn cut_archives(&self, bytes: usize) {
        self.lock().archive_bytes_max = bytes;
    }

    /// From now on archives stop half-way for good, as that of a file without end would go on.
    pub fn stall_archives(&self) {
        self.lock().archives_stall = true;
    }

    /// How many archives are being read.
    #[must_use]
    pub fn open_archives(&self) -> usize {
        // The engine's own hold is one.
        Arc::strong_count(&self.lock().archives) - 1
    }

    /// All calls so far, in order.
    #[must_use]
    pub fn history(&self) -> Vec<CallRecord> {
        self.lock().history.clone()
    }

    /// How often this kind of call was made.
    #[must_use]
    pub fn count(&self, call: Call) -> usize {
        self.lock().history.iter().filter(|record| record.call == call).count()
    }

    /// Whether no container and no volume is left.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let state = self.lock();
        state.containers.is_empty() && state.volumes.is_empty()
    }

    /// How many containers run, whether or not the engine would answer.
    #[must_use]
    pub fn running(&self) -> usize {
        self.lock().containers.values().filter(|container| container.phase == ContainerPhase::Running).count()
    }

    /// A file in a volume, by its path below the volume's root.
    #[must_use]
    pub fn volume_file(&self, volume: &str, path: &str) -> Option<FakeFile> {
        self.lock().volumes.get(volume)?.files.get(path).cloned()
    }

    /// Owner, group and mode given to a volume's root.
    #[must_use]
    pub fn volume_owner(&self, volume: &str) -> Option<(u64, u64, u32)> {
        self.lock().volumes.get(volume)?.root.as_ref().map(|root| (root.uid, root.gid, root.mode))
    }

    /// The fake's clock: Unix time in microseconds.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        EPOCH_US + u64::try_from(self.0.born.elapsed().as_micros()).unwrap_or(u64::MAX - EPOCH_US)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let done = work(&mut self.lock());
        self.0.changes.send_modify(|count| *count += 1);
        done
    }

    /// Records the call and lets the planned fault happen. `Some` is the error to answer although the work is done.
    async fn enter(&self, call: Call, subject: &str) -> Result<Option<RuntimeError>, RuntimeError> {
        let at_us = self.now_us();
        let effect = {
            let mut state = self.lock();
            let name = state.containers.get(&ContainerId(subject.to_owned())).map(|container| &container.spec.name);
            let subject = name.cloned().unwrap_or_else(|| subject.to_owned());
            state.history.push(CallRecord { call, subject, at_us });
            if state.down {
                return Err(engine_gone());
            }
            state.faults.next(call)
        };
        match effect {
            None => Ok(None),
            Some(Effect::Fail(error)) => Err(error),
            Some(Effect::DoneButFail(error)) => Ok(Some(error)),
            Some(Effect::Hang) => std::future::pending().await,
            Some(Effect::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(None)
            }
        }
    }

    async fn perform<T>(
        &self,
        call: Call,
        subject: &str,
        work: impl FnOnce(&mut State) -> Result<T, RuntimeError>,
    ) -> Result<T, RuntimeError> {
        let lost = self.enter(call, subject).await?;
        answer(lost, self.change(work))
    }

    /// Carries a script out.
    async fn play(self, id: ContainerId, script: Script) {
        for step in script.steps {
            let now_us = self.now_us();
            match step {
                Step::Sleep(duration) => tokio::time::sleep(duration).await,
                Step::Hold(gate) => gate.cancelled().await,
                Step::Out(bytes) => self.change(|state| state.write_log(&id, LogStream::Stdout, bytes, now_us)),
                Step::Err(bytes) => self.change(|state| state.write_log(&id, LogStream::Stderr, bytes, now_us)),
                Step::Use(reading) => self.change(|state| state.use_up(&id, reading)),
                Step::Write { path, bytes } => {
                    let file = FakeFile { bytes, mode: 0o644, uid: 0, gid: 0 };
                    self.change(|state| state.write_file(&id, &path, file));
                }
            }
        }
        let now_us = self.now_us();
        match script.end {
            End::Exit(code) => self.change(|state| state.end(&id, code, false, now_us)),
            End::OutOfMemory => self.change(|state| state.end(&id, 137, true, now_us)),
            End::Never => {}
        }
    }

    fn begin(&self, state: &mut State, id: &ContainerId) -> Result<(), RuntimeError> {
        let files = state.all_files(id).into_iter().map(|(path, file)| (path, file.bytes)).collect();
        let spec = state.container("start", id)?.spec.clone();
        if let Network::Of(other) = &spec.network
            && !state.container("start", other).is_ok_and(|other| other.phase == ContainerPhase::Running)
        {
            return Err(RuntimeError::JoinRefused { message: format!("{other} does not run") });
        }
        let script = (state.program)(&StartView { spec: &spec, files });
        let now_us = self.now_us();
        let container = state.container("start", id)?;
        match container.phase {
            ContainerPhase::Running => return Ok(()),
            // The real engine would run it again; the worker never asks for that.
            ContainerPhase::Exited => return Err(conflict("start", "it has run already")),
            ContainerPhase::Created => {}
        }
        if let Some(message) = script.refusal {
            return Err(RuntimeError::StartRefused { message });
        }
        container.phase = ContainerPhase::Running;
        container.started_at_us = Some(now_us);
        container.heeds = script.heeds.clone();
        container.player = Some(tokio::spawn(self.clone().play(id.clone(), script)).abort_handle());
        Ok(())
    }

    /// Waits until `look` finds something; fails when the engine goes down.
    async fn until<T>(
        &self,
        mut look: impl FnMut(&mut State) -> Result<Option<T>, RuntimeError>,
    ) -> Result<T, RuntimeError> {
        let mut changes = self.0.changes.subscribe();
        loop {
            {
                let mut state = self.lock();
                if state.down {
                    return Err(engine_gone());
                }
                if let Some(found) = look(&mut state)? {
                    return Ok(found);
                }
            }
            changes.changed().await.map_err(|_| engine_gone())?;
        }
    }
}

fn answer<T>(lost: Option<RuntimeError>, done: Result<T, RuntimeError>) -> Result<T, RuntimeError> {
    match (lost, done) {
        (Some(error), Ok(_)) => Err(error),
        (_, done) => done,
    }
}

fn engine_gone() -> RuntimeError {
    RuntimeError::Engine { call: "any", message: "connection refused".to_owned() }
}

async fn collect(call: &'static str, mut stream: ByteStream) -> Result<Vec<u8>, RuntimeError> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        let failed = |error: std::io::Error| RuntimeError::Engine { call, message: error.to_string() };
        all.extend_from_slice(&chunk.map_err(failed)?);
    }
    Ok(all)
}

#[async_trait]
impl ContainerRuntime for FakeRuntime {
    async fn facts(&self) -> Result<EngineFacts, RuntimeError> {
        let facts = |state: &mut State| EngineFacts {
            cpus: state.cpus,
            memory_bytes: 8 << 30,
            engine_version: "0.0.0-fake".to_owned(),
            api_version: "1.41".to_owned(),
            storage_driver: "memory".to_owned(),
            os: "linux".to_owned(),
            arch: "x86_64".to_owned(),
            kernel: "0.0.0-fake".to_owned(),
            cgroup_version: "2".to_owned(),
            host: "fake".to_owned(),
            runtimes: vec!["runc".to_owned()],
            devices: Vec::new(),
            disk_bytes: Some(1 << 40),
            unenforced: Vec::new(),
            sees_volumes: true,
            disk_quota: state.disk_quota,
            image_id_is_config_digest: !state.in_containerd,
        };
        self.perform(Call::Facts, "", |state| Ok(facts(state))).await
    }

    async fn ping(&self) -> Result<(), RuntimeError> {
        self.perform(Call::Ping, "", |_| Ok(())).await
    }

    async fn image_exists(&self, config: &Digest) -> Result<bool, RuntimeError> {
        self.perform(Call::ImageExists, &config.to_string(), |state| Ok(state.images.contains_key(config))).await
    }

    async fn known_layers(&self, diff_ids: &[Digest]) -> Result<usize, RuntimeError> {
        self.perform(Call::KnownLayers, "", |state| Ok(state.leading_layers(diff_ids, true))).await
    }

    async fn load_image(&self, archive: ByteStream, expect: &Digest) -> Result<(), RuntimeError> {
        let lost = self.enter(Call::LoadImage, &expect.to_string()).await?;
        let archive = collect("load image", archive).await?;
        answer(lost, self.change(|state| state.load(&archive, expect)))
    }

    async fn tag_image(&self, config: &Digest) -> Result<(), RuntimeError> {
        let subject = config.to_string();
        let tag = |state: &mut State| {
            state.images.get_mut(config).ok_or_else(|| not_found("tag image", &subject))?.ours = true;
            Ok(())
        };
        self.perform(Call::TagImage, &subject, tag).await
    }

    async fn remove_image(&self, config: &Digest) -> Result<(), RuntimeError> {
        let subject = config.to_string();
        let remove = |state: &mut State| match state.images.get(config) {
            Some(image) if image.ours => {
                if state.containers.values().any(|container| container.spec.image == *config) {
                    return Err(conflict("remove image", "a container uses it"));
                }
                state.images.remove(config);
                Ok(())
            }
            _ => Err(not_found("remove image", &subject)),
        };
        self.perform(Call::RemoveImage, &subject, remove).await
    }

    async fn our_images(&self) -> Result<Vec<OurImage>, RuntimeError> {
        let list = |state: &mut State| {
            let ours = state.images.iter().filter(|(_, image)| image.ours);
            Ok(ours.map(|(config, image)| OurImage { config: *config, bytes: image.bytes }).collect())
        };
        self.perform(Call::OurImages, "", list).await
    }

    async fn disk_free(&self) -> Result<Option<u64>, RuntimeError> {
        let free = |state: &mut State| {
            let taken: u64 = state.images.values().map(|image| image.bytes).sum();
            Ok(state.disk_bytes.map(|bytes| bytes.saturating_sub(taken)))
        };
        self.perform(Call::DiskFree, "", free).await
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId, RuntimeError> {
        self.perform(Call::Create, &spec.name, |state| state.create(spec)).await
    }

    async fn put_archive(&self, id: &ContainerId, path: &str, tar: ByteStream) -> Result<(), RuntimeError> {
        let lost = self.enter(Call::PutArchive, &id.0).await?;
        let tar = collect("put archive", tar).await?;
        answer(lost, self.change(|state| state.unpack(id, path, &tar)))
    }

    async fn get_archive(&self, id: &ContainerId, path: &str) -> Result<ByteStream, RuntimeError> {
        let pack = |state: &mut State| {
            let mut tar = state.pack(id, path)?;
            let stalls = state.archives_stall;
            let most = if stalls { tar.len() / 2 } else { state.archive_bytes_max };
            tar.truncate(most);
            Ok((tar, stalls, state.archives.clone()))
        };
        let (tar, stalls, open) = self.perform(Call::GetArchive, &id.0, pack).await?;
        let rest = if stalls { stream::pending().boxed() } else { stream::empty().boxed() };
        Ok(once(Bytes::from(tar)).chain(rest).inspect(move |_| _ = &open).boxed())
    }

    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.perform(Call::Start, &id.0, |state| self.begin(state, id)).await
    }

    async fn logs(&self, id: &ContainerId) -> Result<LogItems, RuntimeError> {
        self.perform(Call::Logs, &id.0, |state| state.container("logs", id).map(drop)).await?;
        let follow = Some((self.clone(), id.clone(), 0));
        let items = stream::unfold(follow, |follow| async move {
            let (engine, id, next) = follow?;
            let found = engine.until(|state| {
                let container = state.container("logs", &id)?;
                match container.log.get(next) {
                    Some(item) => Ok(Some(Some(item.clone()))),
                    None => Ok((container.phase != ContainerPhase::Running).then_some(None)),
                }
            });
            match found.await {
                Ok(None) => None,
                Ok(Some(item)) => Some((Ok(item), Some((engine.clone(), id.clone(), next + 1)))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(items.boxed())
    }

    async fn wait(&self, id: &ContainerId) -> Result<ExitInfo, RuntimeError> {
        let lost = self.enter(Call::Wait, &id.0).await?;
        let ended = self.until(|state| {
            let container = state.container("wait", id)?;
            match container.phase {
                ContainerPhase::Created => Err(conflict("wait", "the container was never started")),
                ContainerPhase::Running => Ok(None),
                ContainerPhase::Exited => Ok(Some(ExitInfo {
                    exit_code: container.exit_code.unwrap_or(-1),
                    oom_killed: container.oom_killed,
                    started_at_us: container.started_at_us,
                    finished_at_us: container.finished_at_us,
                    error: None,
                    interrupted: container.interrupted,
                })),
            }
        });
        answer(lost, ended.await)
    }

    async fn kill(&self, id: &ContainerId, signal: &str) -> Result<(), RuntimeError> {
        let now_us = self.now_us();
        let kill = |state: &mut State| {
            let container = state.container("kill", id)?;
            if container.phase != ContainerPhase::Running {
                return Err(conflict("kill", "it does not run"));
            }
            let deadly = matches!(signal, "SIGKILL" | "KILL" | "9");
            container.interrupted = true;
            if deadly || container.heeds.as_ref().is_none_or(|heeded| heeded == signal) {
                state.end(id, if deadly { 137 } else { 143 }, false, now_us);
            }
            Ok(())
        };
        self.perform(Call::Kill, &id.0, kill).await
    }

    async fn remove(&self, id: &ContainerId, force: bool) -> Result<(), RuntimeError> {
        let now_us = self.now_us();
        let remove = |state: &mut State| {
            let running = state.container("remove", id)?.phase == ContainerPhase::Running;
            if running && !force {
                return Err(conflict("remove", "it runs"));
            }
            state.end(id, 137, false, now_us);
            let id = state.id_of(id);
            let anonymous = state.containers.remove(&id).map(|container| container.anonymous).unwrap_or_default();
            state.volumes.retain(|name, _| !anonymous.contains(name));
            Ok(())
        };
        self.perform(Call::Remove, &id.0, remove).await
    }

    async fn inspect(&self, id: &ContainerId) -> Result<ContainerState, RuntimeError> {
        let describe = |state: &mut State| Ok(State::describe(state.container("inspect", id)?));
        self.perform(Call::Inspect, &id.0, describe).await
    }

    async fn list_ours(&self, labels: &Labels) -> Result<Vec<OurContainer>, RuntimeError> {
        check_filter(labels)?;
        let list = |state: &mut State| {
            let ours = state.containers.iter().filter(|(_, container)| matches(&container.spec.labels, labels));
            Ok(ours.map(|(id, container)| State::list(id, container)).collect())
        };
        self.perform(Call::ListOurs, "", list).await
    }

    /// Its end is not played: a sibling is not among the containers.
    async fn start_sibling(&self, own: &ContainerId, _: &Sibling) -> Result<(), RuntimeError> {
        self.perform(Call::StartSibling, &own.0, |state| state.container("inspect", own).map(drop)).await
    }

    async fn reading(&self, id: &ContainerId) -> Result<Option<Reading>, RuntimeError> {
        self.perform(Call::Reading, &id.0, |state| {
            let container = state.container("reading", id)?;
            Ok((container.phase == ContainerPhase::Running).then_some(container.reading))
        })
        .await
    }

    async fn disk_usage(&self, labels: &Labels) -> Result<Vec<(Labels, Option<u64>)>, RuntimeError> {
        check_filter(labels)?;
        self.perform(Call::DiskUsage, "", |state| Ok(state.disk_usage(labels))).await
    }

    async fn root_usage(&self, id: &ContainerId) -> Result<u64, RuntimeError> {
        let sum = |state: &mut State| {
            Ok(state.container("root usage", id)?.files.values().map(|file| file.bytes.len() as u64).sum())
        };
        self.perform(Call::DiskUsage, &id.0, sum).await
    }

    async fn create_volume(&self, name: &str, labels: &Labels) -> Result<(), RuntimeError> {
        check_name("volume", name)?;
        check_filter(labels)?;
        let create = |state: &mut State| {
            let fresh = || Volume { labels: labels.clone(), ..Volume::default() };
            let volume = state.volumes.entry(name.to_owned()).or_insert_with(fresh);
            if volume.labels == *labels { Ok(()) } else { Err(conflict("create volume", "it has other labels")) }
        };
        self.perform(Call::CreateVolume, name, create).await
    }

    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError> {
        let remove = |state: &mut State| {
            let uses = |spec: &ContainerSpec| spec.volumes.iter().any(|mount| mount.volume == name);
            if state.containers.values().any(|container| uses(&container.spec)) {
                return Err(conflict("remove volume", "a container uses it"));
            }
            state.volumes.remove(name).map(drop).ok_or_else(|| not_found("remove volume", name))
        };
        self.perform(Call::RemoveVolume, name, remove).await
    }

    async fn list_our_volumes(&self, labels: &Labels) -> Result<Vec<OurVolume>, RuntimeError> {
        check_filter(labels)?;
        let list = |state: &mut State| {
            let ours = state.volumes.iter().filter(|(_, volume)| matches(&volume.labels, labels));
            Ok(ours.map(|(name, volume)| OurVolume { name: name.clone(), labels: volume.labels.clone() }).collect())
        };
        self.perform(Call::ListOurVolumes, "", list).await
    }
}
