//! The container engine as the worker sees it: one object-safe trait, [`ContainerRuntime`], with Docker behind it
//! ([`docker::DockerRuntime`]) and an in-memory engine for tests (`fake::FakeRuntime`, with the feature `testing`).
//!
//! Nothing here decides what may run: a [`ContainerSpec`] only has fields that are safe to offer, and the hardening
//! (no capabilities, no network, no swap, default seccomp) is fixed in the implementation, not asked for by callers.
//! Every call has its own deadline; bytes going in and out are streamed and never held whole.

pub mod archive;
pub mod docker;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
mod spec;
#[doc(hidden)]
pub mod testimage;

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use swarm_protocol::ids::Digest;
use swarm_protocol::logs::LogStream;

pub use spec::{ContainerSpec, LogLimits, Network, TmpfsMount, VolumeMount};

/// Bytes on their way; an error ends the stream and the transfer it feeds.
pub type ByteStream = BoxStream<'static, Result<Bytes, std::io::Error>>;

/// The log of one container, in the engine's order.
pub type LogItems = BoxStream<'static, Result<LogItem, RuntimeError>>;

/// Labels of a container or volume, and the filter that finds them again.
pub type Labels = BTreeMap<String, String>;

/// The engine's identifier of a container: hex digits, unique on that engine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(pub String);

impl std::fmt::Display for ContainerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the engine says about itself and its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFacts {
    /// Logical CPUs.
    pub cpus: u32,
    /// Physical memory in bytes.
    pub memory_bytes: u64,
    /// The engine's release, such as `20.10.24`.
    pub engine_version: String,
    /// The newest API it speaks, such as `1.41`.
    pub api_version: String,
    /// Where layers live, such as `overlay2`.
    pub storage_driver: String,
    /// `linux`.
    pub os: String,
    /// As the kernel names it, such as `x86_64`.
    pub arch: String,
    /// The kernel's release; empty where the engine does not say, as are the next two.
    pub kernel: String,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// The machine's name.
    pub host: String,
    /// Names of the OCI runtimes it can start containers with, sorted.
    pub runtimes: Vec<String>,
    /// CDI names of devices it can hand to containers, such as `nvidia.com/gpu=0`; engines before 28.2 know none.
    pub devices: Vec<String>,
    /// Size of the disk where it keeps images and containers; none when that place cannot be seen from here.
    pub disk_bytes: Option<u64>,
    /// Limits that its kernel or its rights do not let it enforce, of `memory`, `swap`, `cpu` and `pids`. Containers run
    /// without one of swap or CPU there, and not at all without the others: see [`check`](Self::check).
    pub unenforced: Vec<&'static str>,
    /// Whether files in its volumes can be seen from here: otherwise what is written to them is never measured.
    pub sees_volumes: bool,
    /// Whether it holds root filesystems to their [`ContainerSpec::disk_bytes`].
    pub disk_quota: DiskQuota,
    /// False where the engine keeps images in containerd: image ids are manifest digests there, so images cannot be
    /// checked against their config digest and [`ContainerRuntime::load_image`] refuses them.
    pub image_id_is_config_digest: bool,
}

/// Whether an engine keeps a container from writing more than it may. No engine tells before it is asked to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DiskQuota {
    /// It cannot.
    No,
    /// It has not been asked yet: the first container created with [`ContainerSpec::disk_bytes`] shows it.
    #[default]
    Unknown,
    /// It does.
    Yes,
}

impl EngineFacts {
    /// Whether jobs can be run here: images be loaded and checked, and no job take what is the others'.
    ///
    /// # Errors
    /// [`RuntimeError::Invalid`] with what must change.
    pub fn check(&self) -> Result<(), RuntimeError> {
        self.check_limits()?;
        self.check_images()
    }

    /// See [`check`](Self::check).
    pub(crate) fn check_limits(&self) -> Result<(), RuntimeError> {
        if let Some(limit) = self.unenforced.iter().find(|limit| matches!(**limit, "memory" | "pids")) {
            let reason = format!(
                "the engine cannot enforce limits of `{limit}`, so one job could take the whole machine; give it the \
                 cgroup controller (kernel parameter `cgroup_enable={limit}`; without root: systemd's `Delegate=yes`)"
            );
            return Err(RuntimeError::Invalid { field: "limits", reason });
        }
        Ok(())
    }

    /// See [`check`](Self::check).
    pub(crate) fn check_images(&self) -> Result<(), RuntimeError> {
        if self.image_id_is_config_digest {
            return Ok(());
        }
        let reason = format!(
            "Docker {} keeps images in containerd, as new installations from 29 on do, where an image cannot be checked \
             against its config digest; put {{\"features\": {{\"containerd-snapshotter\": false}}}} into \
             /etc/docker/daemon.json and restart Docker (images pulled before must be pulled again)",
            self.engine_version
        );
        Err(RuntimeError::Invalid { field: "image store", reason })
    }
}

/// Some bytes a container wrote, usually one line with its newline. Lines over 16 KiB arrive in pieces. All bytes come
/// as written, with one exception: engine 20.10 does not keep the newline behind a line over 16 KiB that ends the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogItem {
    /// Standard output or standard error.
    pub stream: LogStream,
    /// When the engine read it, Unix time in microseconds.
    pub at_us: u64,
    /// As written: not necessarily text.
    pub bytes: Bytes,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitInfo {
    /// The status of its first process; 128 + n after signal n.
    pub exit_code: i64,
    /// The kernel killed one of its processes for want of memory.
    pub oom_killed: bool,
    /// Unix time in microseconds, by the engine's clock.
    pub started_at_us: Option<u64>,
    /// Unix time in microseconds, by the engine's clock.
    pub finished_at_us: Option<u64>,
    /// What the engine itself had to say, if anything.
    pub error: Option<String>,
    /// The engine was told to signal it, or did so itself as it stopped or started again: the status says nothing of the
    /// job then. An engine that started again since may not remember.
    pub interrupted: bool,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerPhase {
    /// Never started, or refused at start.
    Created,
    /// Its first process lives (paused counts).
    Running,
    /// It ran and ended.
    Exited,
}

/// A container that carries our labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OurContainer {
    /// The engine's identifier.
    pub id: ContainerId,
    /// Its name, without the leading slash.
    pub name: String,
    /// All labels, the image's own included.
    pub labels: Labels,
    /// Where it is in its life.
    pub phase: ContainerPhase,
}

/// One container as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerState {
    /// Where it is in its life.
    pub phase: ContainerPhase,
    /// Unix time in microseconds; `None` before the start.
    pub started_at_us: Option<u64>,
    /// Unix time in microseconds; `None` before the end.
    pub finished_at_us: Option<u64>,
    /// Set once it exited.
    pub exit_code: Option<i64>,
    /// The kernel killed one of its processes for want of memory.
    pub oom_killed: bool,
    /// The image's STOPSIGNAL as it stands there, if it names one.
    pub stop_signal: Option<String>,
}

impl ContainerState {
    /// What is known of a container of which only the phase is known.
    pub(crate) fn of(phase: ContainerPhase) -> Self {
        Self { phase, started_at_us: None, finished_at_us: None, exit_code: None, oom_killed: false, stop_signal: None }
    }
}

/// An image that carries our tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OurImage {
    /// Its config digest.
    pub config: Digest,
    /// What all its layers take on disk, those it shares with others included.
    pub bytes: u64,
}

/// A volume that carries our labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OurVolume {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
}

/// A helper of this worker in a container of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sibling {
    /// The container's name.
    pub name: String,
    /// The program, by its path in the image of the worker's container, and its arguments.
    pub words: Vec<String>,
    /// A directory that both see: it must lie on one of the mounts of the worker's container.
    pub data: PathBuf,
}

/// What a running container uses at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// CPU time of all its processes since the start, in milliseconds.
    pub cpu_ms: u64,
    /// Its memory in bytes, without file cache that the kernel can drop at once.
    pub memory_bytes: u64,
}

/// Why a call to the engine did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// A field of what was asked for is not acceptable; nothing reached the engine.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong and what to write instead.
        reason: String,
    },
    /// The container, image, volume or path does not exist.
    #[error("{call}: not found: {message}")]
    NotFound {
        /// The call that failed.
        call: &'static str,
        /// The engine's words.
        message: String,
    },
    /// The thing is in a state, or under a name, that forbids the call.
    #[error("{call}: conflict: {message}")]
    Conflict {
        /// The call that failed.
        call: &'static str,
        /// The engine's words.
        message: String,
    },
    /// The image archive is damaged, incomplete or not the image it should be.
    #[error("image {expect} was refused: {message}")]
    ImageInvalid {
        /// The config digest asked for.
        expect: Digest,
        /// What did not fit.
        message: String,
    },
    /// A file of the container is not what was expected: not a regular file, too long, or a damaged archive.
    #[error("{path}: {message}")]
    BadFile {
        /// The path in the container.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// The container cannot start as specified: command missing or not executable, unknown user, bad directory.
    /// The job's own fault: it would fail anywhere.
    #[error("the container could not start: {message}")]
    StartRefused {
        /// The engine's words.
        message: String,
    },
    /// The container whose network namespace was to be joined is gone or does not run; nothing was started.
    #[error("the network namespace of another container cannot be joined: {message}")]
    JoinRefused {
        /// The engine's words.
        message: String,
    },
    /// The engine failed or is gone. Not the job's fault.
    #[error("{call}: the container engine failed: {message}")]
    Engine {
        /// The call that failed.
        call: &'static str,
        /// The engine's words, or the connection's error.
        message: String,
    },
    /// The engine did not answer in time; what was asked may still have happened.
    #[error("{call}: the container engine did not answer within {after_ms} ms")]
    Timeout {
        /// The call that failed.
        call: &'static str,
        /// How long it was given, in milliseconds.
        after_ms: u64,
    },
}

impl RuntimeError {
    /// Whether the machine or its engine is to blame: the same job may well succeed elsewhere or later.
    #[must_use]
    pub fn is_infrastructure(&self) -> bool {
        matches!(self, Self::Engine { .. } | Self::Timeout { .. })
    }

    /// Whether the thing asked about does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

/// A container engine. Used as `Arc<dyn ContainerRuntime>`.
///
/// Calls may be repeated after an infrastructure error: `start` and `remove` of something already started or
/// removed succeed or answer [`RuntimeError::NotFound`]; a repeated `create` under the same name answers
/// [`RuntimeError::Conflict`].
#[async_trait]
pub trait ContainerRuntime: Send + Sync + 'static {
    /// What the engine says about itself.
    async fn facts(&self) -> Result<EngineFacts, RuntimeError>;

    /// Whether the engine answers at all.
    async fn ping(&self) -> Result<(), RuntimeError>;

    /// Whether the engine holds the image with this config digest, whoever brought it.
    async fn image_exists(&self, config: &Digest) -> Result<bool, RuntimeError>;

    /// How many leading layers of an image with these diff ids the engine already holds *through images this worker
    /// brought*. Only a leading run counts: the engine recognises a layer together with all those below it. These may
    /// be left out of the archive given to [`load_image`](Self::load_image).
    async fn known_layers(&self, diff_ids: &[Digest]) -> Result<usize, RuntimeError>;

    /// Streams a docker-archive into the engine (see [`archive::docker_archive`]), checks that it held the image
    /// `expect` and nothing else, and tags it as ours.
    ///
    /// # Errors
    /// [`RuntimeError::ImageInvalid`] when the archive is damaged, lacks a layer or holds another image, which is then
    /// not kept.
    async fn load_image(&self, archive: ByteStream, expect: &Digest) -> Result<(), RuntimeError>;

    /// Marks an image the engine already holds as used by this worker, so that it is kept until
    /// [`remove_image`](Self::remove_image).
    async fn tag_image(&self, config: &Digest) -> Result<(), RuntimeError>;

    /// Takes our mark off an image; the engine drops it when nobody else's tag or container holds it.
    async fn remove_image(&self, config: &Digest) -> Result<(), RuntimeError>;

    /// All images this worker brought or tagged.
    async fn our_images(&self) -> Result<Vec<OurImage>, RuntimeError>;

    /// Bytes free where the engine keeps images and containers; `None` when that place cannot be seen from here.
    async fn disk_free(&self) -> Result<Option<u64>, RuntimeError>;

    /// Makes a container, not yet started.
    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId, RuntimeError>;

    /// Unpacks a tar stream into the directory `path` of a container, before or after its start. Owner and mode come
    /// from the archive; [`archive::dir_entry_tar`] sets those of `path` itself.
    async fn put_archive(&self, id: &ContainerId, path: &str, tar: ByteStream) -> Result<(), RuntimeError>;

    /// `path` of a container as a tar stream: a file is one entry under its last name, a directory an entry for itself
    /// and one for all within. Symbolic links are not followed at the end of the path.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] when the container or the path does not exist.
    async fn get_archive(&self, id: &ContainerId, path: &str) -> Result<ByteStream, RuntimeError>;

    /// As [`get_archive`](Self::get_archive); `None` where the container has no such path.
    async fn find_archive(&self, id: &ContainerId, path: &str) -> Result<Option<ByteStream>, RuntimeError> {
        match self.get_archive(id, path).await {
            // The path, unless it is the container.
            Err(error) if error.is_not_found() => self.inspect(id).await.map(|_| None),
            found => found.map(Some),
        }
    }

    /// A regular file of at most `bytes_max` bytes; `None` where there is no such path.
    ///
    /// # Errors
    /// [`RuntimeError::BadFile`] when it is longer, or no regular file; [`RuntimeError::Engine`] when its bytes break off,
    /// [`RuntimeError::NotFound`] when the container does not exist.
    async fn read_small_file(
        &self,
        id: &ContainerId,
        path: &str,
        bytes_max: usize,
    ) -> Result<Option<Vec<u8>>, RuntimeError> {
        let bad = |message: String| RuntimeError::BadFile { path: path.to_owned(), message };
        let Some(tar) = self.find_archive(id, path).await? else { return Ok(None) };
        let broken = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::InvalidData => bad(error.to_string()),
            _ => RuntimeError::Engine { call: "get archive", message: error.to_string() },
        };
        let (entry, mut body) = archive::untar_single_file(tar).await.map_err(broken)?;
        if entry.size > bytes_max as u64 {
            return Err(bad(format!("it has {} bytes, at most {bytes_max} are read", entry.size)));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = body.next().await {
            bytes.extend_from_slice(&chunk.map_err(broken)?);
        }
        Ok(Some(bytes))
    }

    /// Starts a container; a running one is left alone.
    ///
    /// # Errors
    /// [`RuntimeError::StartRefused`] when the job's own words make it impossible, [`RuntimeError::JoinRefused`] when
    /// there is no [`Network::Of`] any more; an engine may say the latter in [`create`](Self::create) already.
    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// Everything a started container has written from its start on, following until it ends.
    async fn logs(&self, id: &ContainerId) -> Result<LogItems, RuntimeError>;

    /// Waits for the end of a started container, without a deadline of its own. A container that has ended answers at
    /// once.
    ///
    /// # Errors
    /// [`RuntimeError::Conflict`] when the container was never started, or a busy engine says that it ended and shows it
    /// running still; infrastructure errors when the engine goes away meanwhile: ask again, the container may live on.
    async fn wait(&self, id: &ContainerId) -> Result<ExitInfo, RuntimeError>;

    /// Sends a signal such as `SIGTERM`, `SIGRTMIN+3` or `9`.
    ///
    /// # Errors
    /// [`RuntimeError::Conflict`] when it does not run.
    async fn kill(&self, id: &ContainerId, signal: &str) -> Result<(), RuntimeError>;

    /// Removes a container and its anonymous volumes; `force` kills it first.
    async fn remove(&self, id: &ContainerId, force: bool) -> Result<(), RuntimeError>;

    /// One container as it is now. An engine may answer only when a copy of files into or out of it has ended.
    async fn inspect(&self, id: &ContainerId) -> Result<ContainerState, RuntimeError>;

    /// All containers that carry every one of these labels, in any phase, whatever the engine does with one of them. An
    /// empty filter is refused: it would match containers that are not ours.
    async fn list_ours(&self, labels: &Labels) -> Result<Vec<OurContainer>, RuntimeError>;

    /// Starts a container beside `own`, the one this process runs in: of the same image, with its mounts and user, and
    /// without a network unless the engine is reached over one. It removes itself when it ends. One that runs under the
    /// name is left alone.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] when this engine has no container `own`, [`RuntimeError::Invalid`] when `data` lies on
    /// none of its mounts, [`RuntimeError::Conflict`] while a former one of the name is being removed.
    async fn start_sibling(&self, own: &ContainerId, sibling: &Sibling) -> Result<(), RuntimeError>;

    /// What a container uses now; `None` when it does not run.
    async fn reading(&self, id: &ContainerId) -> Result<Option<Reading>, RuntimeError>;

    /// Bytes written by each container and into each volume that carries all these labels, with its labels; none where
    /// they cannot be counted. A container's
    /// volumes count by themselves, and only where their files can be seen from here. Takes time in proportion to the
    /// number of files.
    async fn disk_usage(&self, labels: &Labels) -> Result<Vec<(Labels, Option<u64>)>, RuntimeError>;

    /// Bytes that a container has written to its root filesystem. Takes time in proportion to the number of files there.
    async fn root_usage(&self, id: &ContainerId) -> Result<u64, RuntimeError>;

    /// Makes a named volume.
    ///
    /// # Errors
    /// [`RuntimeError::Conflict`] when a volume of this name with other labels exists.
    async fn create_volume(&self, name: &str, labels: &Labels) -> Result<(), RuntimeError>;

    /// Removes a volume.
    ///
    /// # Errors
    /// [`RuntimeError::Conflict`] while a container uses it.
    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError>;

    /// All volumes that carry every one of these labels; an empty filter is refused.
    async fn list_our_volumes(&self, labels: &Labels) -> Result<Vec<OurVolume>, RuntimeError>;
}

/// Refuses a label filter that would match things that are not ours.
fn check_filter(labels: &Labels) -> Result<(), RuntimeError> {
    if labels.is_empty() {
        let reason = "an empty filter would match containers of others: name at least one label".to_owned();
        return Err(RuntimeError::Invalid { field: "labels", reason });
    }
    Ok(())
}
