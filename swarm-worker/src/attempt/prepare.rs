//! Everything before the start: image, volumes, container, inputs.

use std::sync::Arc;

use swarm_host::blocking;
use swarm_protocol::globs::dir_of;
use swarm_protocol::link::{InputOrder, TaskOrder};
use swarm_protocol::spec::Tmpfs;
use swarm_protocol::validate::is_below;
use swarm_protocol::{LossReason, Outcome};

use super::logs::engine_limits;
use super::unpack::{Refusal, Terms, unpacked};
use super::user::{self, Named, Owner, User};
use super::{Attempt, End, engine_end};
use crate::images::{self, ImageFacts};
use crate::lease::kill_at_ns;
use crate::runtime::archive::{dir_entry_tar, single_file_tar};
use crate::runtime::{ContainerId, ContainerSpec, Network, RuntimeError, TmpfsMount, VolumeMount};
use crate::sandbox::Seat;
use crate::transfer::{Fault, TransferError, Tries};
use crate::watchdog::Watched;

/// Permission bits of a directory that holds inputs or outputs.
const DIR_MODE: u32 = 0o755;

/// The directories that become volumes: each is or holds an input, or holds an output. Those within a directory that an
/// archive fills are part of its volume, so that nothing of the archive is hidden.
pub(super) fn directories(order: &TaskOrder) -> Vec<&str> {
    let inputs = order.inputs.iter().map(|input| input.directory().unwrap_or_else(|| split(&input.path).0));
    let mut dirs: Vec<&str> = inputs.chain(order.outputs.iter().map(|path| dir_of(path))).collect();
    dirs.sort_unstable();
    dirs.dedup();
    dirs.retain(|dir| !order.inputs.iter().filter_map(InputOrder::directory).any(|above| is_below(dir, above)));
    dirs
}

/// The directories of outputs below `dir`, relative to it.
fn outputs_below(order: &TaskOrder, dir: &str) -> Vec<String> {
    let below = |path: &String| Some(dir_of(path).strip_prefix(dir)?.strip_prefix('/')?.to_owned());
    order.outputs.iter().filter_map(below).collect()
}

/// The name of the nth volume of a container.
pub(super) fn volume_name(container: &str, n: usize) -> String {
    format!("{container}-{n}")
}

/// Where the image declares volumes and the job has nothing else. Those within a directory of the job are volumes too.
fn image_volumes(order: &TaskOrder, image: &ImageFacts) -> Vec<String> {
    let taken = |path: &String| {
        directories(order).contains(&path.as_str()) || order.limits.tmpfs.iter().any(|mount| mount.path == *path)
    };
    image.volumes.iter().filter(|path| !taken(path)).cloned().collect()
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// A container that only needs to be started.
pub(super) struct Ready {
    pub(super) id: ContainerId,
    spec: ContainerSpec,
    /// Held as long as the container may run.
    seat: Option<Seat>,
}

impl Attempt {
    /// Everything up to the start.
    pub(super) async fn prepare(&self) -> Result<Ready, End> {
        let image = self.image().await?;
        let owner = match user::effective(self.order.user.as_deref(), image.user.as_deref())? {
            User::Known(owner) => owner,
            User::Named(named) => self.look_up(named).await?,
        };
        if owner.uid == 0 && !self.order.allow_root {
            let user = self.order.user.as_deref().or(image.user.as_deref()).unwrap_or_default();
            return Err(End::With(Outcome::Refused { reason: root_refusal(user) }));
        }
        let mut tries = Tries::default();
        loop {
            let ready = self.create(&owner, &image).await?;
            match self.unless_stopped(self.fill(&ready.id, &owner)).await? {
                Ok(()) => return Ok(ready),
                // Nothing of it may stay: names could have been changed as well.
                Err(corrupt) if tries.again(self.id, &corrupt) => self.remove_all().await?,
                Err(corrupt) => return Err(images::transfer(&corrupt).into()),
            }
        }
    }

    /// Removes the container, which never ran, and its volumes.
    async fn remove_all(&self) -> Result<(), End> {
        self.remove_container().await.map_err(|error| engine_end(&error))?;
        for n in 0..directories(&self.order).len() {
            match self.ctx.runtime.remove_volume(&volume_name(&self.name, n)).await {
                Err(error) if !error.is_not_found() => return Err(engine_end(&error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Brings the image. A stop of the attempt is not kept waiting, but nor is the load dropped half done: the engine might
    /// still take the image, which then nobody had marked as ours. Only a stop of the worker drops it.
    async fn image(&self) -> Result<Arc<ImageFacts>, End> {
        let (ctx, order) = (self.ctx.clone(), self.order.clone());
        let stop = ctx.stop.clone();
        let bringing = async move { stop.run_until_cancelled_owned(images::ensure(&ctx, &order)).await };
        let bringing = self.ctx.tasks.spawn(bringing);
        self.unless_stopped(async {
            match bringing.await.map_err(tokio::task::JoinError::try_into_panic) {
                Ok(Some(brought)) => Ok(brought?),
                Err(Ok(panic)) => std::panic::resume_unwind(panic),
                Ok(None) | Err(Err(_)) => Err(End::Silently),
            }
        })
        .await
    }

    /// Whom the image's accounts mean. They are read in a container that never starts, without the job's directories,
    /// which could lie over them.
    async fn look_up(&self, named: Named<'_>) -> Result<Owner, End> {
        let key = (self.order.image.config, named.to_string());
        if let Some(owner) = self.ctx.images.owner(&key) {
            return Ok(owner);
        }
        let id = self.make(&self.spec(&user::NOBODY)).await?;
        let owner = self.unless_stopped(user::look_up(self.ctx.runtime.as_ref(), &id, named)).await?;
        self.remove_container().await.map_err(|error| engine_end(&error))?;
        self.ctx.images.keep_owner(key, owner.clone());
        Ok(owner)
    }

    async fn create(&self, owner: &Owner, image: &ImageFacts) -> Result<Ready, End> {
        let mut spec = self.spec(owner);
        spec.image_volumes = image_volumes(&self.order, image);
        for (n, dir) in directories(&self.order).into_iter().enumerate() {
            let volume = volume_name(&self.name, n);
            self.ctx.runtime.create_volume(&volume, &spec.labels).await.map_err(|error| engine_end(&error))?;
            spec.volumes.push(VolumeMount { volume, path: dir.to_owned() });
        }
        self.have_watched().await?;
        // Root could write to what the jobs of a sandbox share: its `/etc/hosts`, the settings of its loopback.
        let seat = if owner.uid == 0 { None } else { self.ctx.sandboxes.join(self.order.group) };
        spec.network = seat.as_ref().map_or(Network::None, Seat::network);
        match self.try_make(&spec).await? {
            Err(RuntimeError::JoinRefused { message }) if seat.is_some() => {
                let mut ready = Ready { id: ContainerId(self.name.clone()), spec, seat };
                self.leave_sandbox(&mut ready, &message).await?;
                Ok(ready)
            }
            made => Ok(Ready { id: made.map_err(|error| engine_end(&error))?, spec, seat }),
        }
    }

    /// Makes the container anew, with a network namespace of its own. What lies in its volumes stays.
    async fn leave_sandbox(&self, ready: &mut Ready, why: &str) -> Result<(), End> {
        tracing::info!(attempt = %self.id, why, "the sandbox cannot be joined, going on without");
        if let Some(seat) = ready.seat.take() {
            seat.condemn();
        }
        ready.spec.network = Network::None;
        self.remove_container().await.map_err(|error| engine_end(&error))?;
        ready.id = self.make(&ready.spec).await?;
        Ok(())
    }

    /// The engine's start call; a sandbox that is gone costs one more.
    pub(super) async fn start_container(&self, ready: &mut Ready) -> Result<Result<(), RuntimeError>, End> {
        match self.ctx.runtime.start(&ready.id).await {
            Err(RuntimeError::JoinRefused { message }) if ready.seat.is_some() => {
                self.leave_sandbox(ready, &message).await?;
                if !self.ctx.hub.begin_start(self.id, self.ctx.machine.now_ns()) {
                    return Err(self.stop_asked());
                }
                Ok(self.ctx.runtime.start(&ready.id).await)
            }
            started => Ok(started),
        }
    }

    async fn make(&self, spec: &ContainerSpec) -> Result<ContainerId, End> {
        self.try_make(spec).await?.map_err(|error| engine_end(&error))
    }

    /// Not dropped half done, so that no container can appear after the attempt was cleared away.
    async fn try_make(&self, spec: &ContainerSpec) -> Result<Result<ContainerId, RuntimeError>, End> {
        if self.control.borrow().stop.is_some() {
            return Err(self.stop_asked());
        }
        match self.ctx.runtime.create(spec).await {
            // The name is ours, so what has it is a leftover of ours that was never started.
            Err(RuntimeError::Conflict { .. }) => {
                self.remove_container().await.map_err(|error| engine_end(&error))?;
                Ok(self.ctx.runtime.create(spec).await)
            }
            created => Ok(created),
        }
    }

    /// All of the container but its volumes.
    fn spec(&self, owner: &Owner) -> ContainerSpec {
        let mut spec = ContainerSpec::new(self.name.clone(), self.order.image.config, self.ctx.labels(self.id));
        spec.entrypoint = self.order.entrypoint.clone().filter(|words| !words.is_empty());
        spec.cmd = self.order.command.clone();
        spec.user = Some(format!("{}:{}", owner.uid, owner.gid));
        spec.groups = owner.groups.clone();
        spec.workdir = self.order.workdir.clone();
        spec.env = self.environment();
        spec.cpu_millis = self.order.cpu_millis.into();
        spec.memory_bytes = self.order.memory_bytes;
        spec.log = engine_limits(self.order.log_bytes_max);
        let limits = &self.order.limits;
        (spec.pids, spec.open_files, spec.read_only_root) = (limits.pids, limits.open_files, limits.read_only_root);
        spec.disk_bytes = Some(limits.disk_bytes);
        let scratch = |mount: &Tmpfs| TmpfsMount { path: mount.path.clone(), bytes: mount.bytes };
        spec.tmpfs = limits.tmpfs.iter().map(scratch).collect();
        spec
    }

    /// The watchdog knows of the container before it exists.
    async fn have_watched(&self) -> Result<(), End> {
        let granted_ns = self.ctx.hub.renewed_ns(self.id);
        if self.ctx.machine.now_ns() >= kill_at_ns(granted_ns, self.order.lease_ms) {
            return Err(End::With(super::lease_expired()));
        }
        let watched = Watched {
            name: self.name.clone(),
            lease_ms: self.order.lease_ms,
            granted_ns,
            machine_boot: self.ctx.machine_boot.clone(),
        };
        let files = self.ctx.watch.clone();
        let added = blocking::run(move || files.add(&watched)).await;
        added.map_err(|error| super::spool_end(&error))
    }

    fn environment(&self) -> Vec<(String, String)> {
        let own = [
            ("SWARM_JOB_ID", self.id.job.to_string()),
            ("SWARM_TASK_INDEX", self.id.task.to_string()),
            ("SWARM_ATTEMPT", self.id.attempt.to_string()),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value));
        self.order.env.iter().filter(|(name, _)| !name.starts_with("SWARM_")).cloned().chain(own).collect()
    }

    /// Gives the directories to the user and puts the inputs in; the error within is of one that was changed on its way.
    async fn fill(&self, id: &ContainerId, owner: &Owner) -> Result<Result<(), TransferError>, End> {
        for dir in directories(&self.order) {
            let tar = dir_entry_tar(owner.uid.into(), owner.gid.into(), DIR_MODE);
            self.ctx.runtime.put_archive(id, dir, tar).await.map_err(|error| engine_end(&error))?;
        }
        for input in &self.order.inputs {
            if let Err(corrupt) = self.put(id, owner, input).await? {
                return Ok(Err(corrupt));
            }
        }
        Ok(Ok(()))
    }

    async fn put(&self, id: &ContainerId, owner: &Owner, input: &InputOrder) -> Result<Result<(), TransferError>, End> {
        let (uid, gid) = (owner.uid.into(), owner.gid.into());
        let (fault, refusal) = (Fault::default(), Refusal::default());
        let blob = self.ctx.transfer.blob(self.id, input.digest, input.size_bytes, fault.clone());
        let (dir, tar) = match input.directory() {
            None => {
                let (dir, name) = split(&input.path);
                (dir, single_file_tar(name, input.size_bytes, input.mode, uid, gid, blob))
            }
            Some(dir) => {
                let others = self.order.inputs.iter().filter(|other| other.path != input.path);
                let others: u64 = others.map(|other| other.size_bytes).sum();
                let bytes_max = self.order.limits.disk_bytes.saturating_sub(others);
                let terms = Terms { uid, gid, bytes_max, needed: outputs_below(&self.order, dir) };
                (dir, unpacked(blob, terms, refusal.clone()))
            }
        };
        let Err(error) = self.ctx.runtime.put_archive(id, dir, tar).await else { return Ok(Ok(())) };
        // The engine only sees a stream that breaks off; the reason is in one of the two.
        match (fault.get(), refusal.get()) {
            (Some(corrupt @ TransferError::Corrupt(_)), _) => Ok(Err(corrupt.clone())),
            (Some(fault), _) => Err(images::transfer(fault).into()),
            (None, Some(why)) => Err(End::With(Outcome::Refused { reason: not_unpacked(dir, why) })),
            (None, None) => Err(not_put(input, &error)),
        }
    }
}

fn not_unpacked(dir: &str, why: &str) -> String {
    let why = swarm_protocol::text::sanitise(why, false);
    format!("the input {dir} cannot be unpacked as a tar archive: {why}")
}

/// What an engine that takes an input no further says of the machine's file system is told as such. No damage on the way
/// leads to so many names of one file, so that is the archive's own fault.
fn not_put(input: &InputOrder, error: &RuntimeError) -> End {
    let text = error.to_string();
    let is_about = |words: &str| error.is_infrastructure() && text.contains(words);
    let path = input.directory().unwrap_or(&input.path);
    match input.directory() {
        Some(dir) if is_about("too many links") => {
            let why = "a file or directory in it has more names than the worker's file system takes; have fewer hard \
                       links, or fewer directories beside each other, or unpack the archive in the job";
            End::With(Outcome::Refused { reason: not_unpacked(dir, why) })
        }
        _ if is_about("no space left on device") || is_about("quota exceeded") => {
            let detail = format!(
                "the disk of the engine's volumes has no room for the input {path}: it lacks bytes, or inodes for so \
                 many files: {text}"
            );
            End::With(Outcome::Lost { reason: LossReason::Engine, detail })
        }
        _ => engine_end(error),
    }
}

fn root_refusal(user: &str) -> String {
    let user = swarm_protocol::text::sanitise(user, false);
    format!(
        "the container would run as root (user `{user}`), which this group's policy does not allow; give the job \
         another `user`, for instance 65534, or build the image with a USER that is not root"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn each_distinct_directory_is_one_volume() {
        let mut order = testing::order(1, b"image");
        order.outputs = vec!["/data/out".into(), "/job/a".into(), "/job/b".into()];
        order.inputs = vec![testing::input("/data/in", b"x")];
        assert_eq!(directories(&order), ["/data", "/job"]);
        assert!(directories(&testing::order(1, b"image")).is_empty());
        // What lies in an unpacked directory belongs to its volume.
        order.inputs =
            vec![testing::input("/data/", b"x"), testing::input("/in/a/", b"x"), testing::input("/in/b", b"x")];
        order.outputs = vec!["/data/deep/er/out".into(), "/data/top".into(), "/data2/out".into()];
        assert_eq!(directories(&order), ["/data", "/data2", "/in", "/in/a"]);
        assert_eq!(outputs_below(&order, "/data"), ["deep/er"]);
    }

    #[test]
    fn the_jobs_own_directories_and_scratch_come_before_the_images_volumes() {
        let mut order = testing::order(1, b"image");
        order.outputs = vec!["/data/out".into()];
        order.limits.tmpfs = vec![Tmpfs { path: "/scratch".into(), bytes: 1 }];
        let volumes = ["/data", "/data/db", "/scratch", "/var"].map(String::from).into();
        let image = ImageFacts { volumes, ..ImageFacts::default() };
        assert_eq!(image_volumes(&order, &image), ["/data/db", "/var"]);
    }
}
