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

mod calls;
mod events;
mod faults;
mod play;
mod script;
mod state;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use swarm_protocol::ids::Digest;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

pub use self::events::{Action, EngineEvent};
pub use self::faults::{Call, CallRecord, Effect, FaultPlan};
pub use self::script::{Program, Script, StartView};
pub use self::state::FakeFile;
use self::state::{Image, State};
use super::{ContainerPhase, DiskQuota};

/// When the fake's clock starts, Unix time in microseconds.
const EPOCH_US: u64 = 1_700_000_000_000_000;

/// The engine. Cheap to clone; clones are the same engine.
#[derive(Clone)]
pub struct FakeRuntime(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Wakes whoever waits for a change of the state, in the order in which they began to wait.
    changes: Notify,
    now_us: Box<dyn Fn() -> u64 + Send + Sync>,
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
        let born = Instant::now();
        Self::with_clock(move || EPOCH_US + u64::try_from(born.elapsed().as_micros()).unwrap_or(u64::MAX - EPOCH_US))
    }

    /// As [`new`](Self::new), with a clock that gives Unix time in microseconds.
    pub fn with_clock(now_us: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { state: Mutex::default(), changes: Notify::new(), now_us: Box::new(now_us) }))
    }

    /// From now on containers live on this runtime, and not on that of the task that starts them: they outlive it.
    pub fn live_on(&self, home: Handle) {
        self.lock().home = Some(home);
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
    /// [`disk_bytes`](crate::runtime::ContainerSpec::disk_bytes), after which [`DiskQuota::Unknown`] turns out to be a yes.
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

    /// Everything that runs is killed from outside, as by another user.
    pub fn kill_all(&self) {
        self.end_all(137);
    }

    /// The machine loses its power: whatever ran has ended, and the engine, once it is up again, does not know how.
    pub fn machine_down(&self) {
        self.end_all(255);
        self.engine_down();
    }

    fn end_all(&self, exit_code: i64) {
        let now_us = self.now_us();
        self.change(|state| {
            let ids: Vec<_> = state.containers.keys().cloned().collect();
            ids.iter().for_each(|id| state.end(id, exit_code, false, now_us));
        });
    }

    /// What became of containers, in order; told once.
    #[must_use]
    pub fn take_events(&self) -> Vec<EngineEvent> {
        std::mem::take(&mut self.lock().events)
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
        (self.0.now_us)()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let done = work(&mut self.lock());
        self.0.changes.notify_waiters();
        done
    }
}
