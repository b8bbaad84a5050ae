//! What a container may be asked to be: an allow-list. There is no field for mounts of host paths, devices,
//! capabilities or privileges, and of networks only none, so no mistake further up can ask for them.

use std::collections::HashSet;

use swarm_protocol::ids::Digest;

use super::{ContainerId, Labels, RuntimeError};

/// A named volume of ours, mounted read-write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    /// The volume's name; never a host path.
    pub volume: String,
    /// An absolute path in the container.
    pub path: String,
}

/// Scratch space in memory; what is written there counts as the container's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TmpfsMount {
    /// An absolute path in the container.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Whose network namespace a container is in. Neither kind leads anywhere but to itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Network {
    /// One of its own, with a loopback interface only.
    #[default]
    None,
    /// That of another container, which has to run when this one starts; host name and `/etc/hosts` are its too.
    Of(ContainerId),
}

/// How much log the engine keeps before it rotates the oldest away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes per file.
    pub file_bytes: u64,
    /// Files, at least 2 (one is written while another is read).
    pub files: u32,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { file_bytes: 16 << 20, files: 4 }
    }
}

/// A container to be created. Make one with [`ContainerSpec::new`] and set the public fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Its name on the engine, unique there: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, at most 128 bytes.
    pub name: String,
    /// Our labels. At least one, or nobody could tell the container is ours.
    pub labels: Labels,
    /// The config digest of the image.
    pub image: Digest,
    /// Replaces the image's ENTRYPOINT, and drops its CMD. Not empty.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's CMD.
    pub cmd: Option<Vec<String>>,
    /// `uid`, `uid:gid` or names the image knows; the image's USER when not set.
    pub user: Option<String>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// An absolute path; the image's WORKDIR when not set.
    pub workdir: Option<String>,
    /// Added to the image's environment, replacing equal names.
    pub env: Vec<(String, String)>,
    /// CPU time in thousandths of a CPU.
    pub cpu_millis: u64,
    /// Memory in bytes, at least 6 MiB (the engine's own bound). There is no swap on top.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
    /// Open files per process.
    pub open_files: u32,
    /// The root filesystem cannot be written.
    pub read_only_root: bool,
    /// Bytes that its root filesystem may take, where the engine can hold it to that (see
    /// [`DiskQuota`](super::DiskQuota)); at least 1 MiB.
    pub disk_bytes: Option<u64>,
    /// Scratch space in memory.
    pub tmpfs: Vec<TmpfsMount>,
    /// Our volumes.
    pub volumes: Vec<VolumeMount>,
    /// Paths at which the image declares volumes, as far as nothing else is mounted there. The engine makes and names
    /// such volumes in any case; listed here they carry our labels. They begin with what the image has at the path, can
    /// be written whatever the root filesystem is, and go with the container.
    pub image_volumes: Vec<String>,
    /// Its network namespace.
    pub network: Network,
    /// Bounds on the engine's log.
    pub log: LogLimits,
}

impl ContainerSpec {
    /// A container of `image` with modest limits: 1 CPU, 256 MiB, 256 processes, 1024 open files.
    #[must_use]
    pub fn new(name: impl Into<String>, image: Digest, labels: Labels) -> Self {
        Self {
            name: name.into(),
            labels,
            image,
            entrypoint: None,
            cmd: None,
            user: None,
            groups: Vec::new(),
            workdir: None,
            env: Vec::new(),
            cpu_millis: 1000,
            memory_bytes: 256 << 20,
            pids: 256,
            open_files: 1024,
            read_only_root: false,
            disk_bytes: None,
            tmpfs: Vec::new(),
            volumes: Vec::new(),
            image_volumes: Vec::new(),
            network: Network::None,
            log: LogLimits::default(),
        }
    }

    /// Checks what the engine would misread or not check itself.
    ///
    /// # Errors
    /// [`RuntimeError::Invalid`] naming the field.
    pub fn check(&self) -> Result<(), RuntimeError> {
        check_name("name", &self.name)?;
        if let Network::Of(other) = &self.network {
            check_name("network", &other.0)?;
        }
        if self.labels.is_empty() {
            return invalid("labels", "at least one is needed to find the container again");
        }
        if self.entrypoint.as_ref().is_some_and(Vec::is_empty) {
            return invalid("entrypoint", "must not be an empty list; leave it out to use the image's");
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return invalid("env", format!("`{}` is not a variable name", name.escape_debug()));
            }
        }
        if let Some(workdir) = &self.workdir {
            check_path("workdir", workdir)?;
        }
        self.check_limits()?;
        self.check_mounts()
    }

    fn check_limits(&self) -> Result<(), RuntimeError> {
        if self.cpu_millis < 10 || self.cpu_millis > 1_000_000 {
            return invalid("cpu_millis", format!("{} is not within 10 and 1000000", self.cpu_millis));
        }
        if self.memory_bytes < 6 << 20 || self.memory_bytes > 1 << 50 {
            return invalid("memory_bytes", format!("{} is not within 6 MiB and 1 PiB", self.memory_bytes));
        }
        if self.pids == 0 || self.open_files == 0 {
            return invalid("pids/open_files", "must be at least 1");
        }
        if self.disk_bytes.is_some_and(|bytes| bytes < 1 << 20) {
            return invalid("disk_bytes", "at least 1 MiB is needed");
        }
        if self.log.files < 2 || self.log.file_bytes < 64 << 10 {
            return invalid("log", "at least 2 files of 64 KiB are needed");
        }
        Ok(())
    }

    fn check_mounts(&self) -> Result<(), RuntimeError> {
        let mut seen = HashSet::new();
        for mount in &self.volumes {
            check_name("volumes.volume", &mount.volume)?;
            check_path("volumes.path", &mount.path)?;
            if !seen.insert(mount.path.as_str()) {
                return invalid("volumes.path", format!("{} is mounted twice", mount.path));
            }
        }
        for path in &self.image_volumes {
            check_path("image_volumes", path)?;
            if !seen.insert(path.as_str()) {
                return invalid("image_volumes", format!("{path} is mounted twice"));
            }
        }
        for mount in &self.tmpfs {
            check_path("tmpfs.path", &mount.path)?;
            if mount.bytes == 0 || mount.bytes > self.memory_bytes {
                return invalid("tmpfs.bytes", format!("{} is not within 1 and memory_bytes", mount.bytes));
            }
            if !seen.insert(mount.path.as_str()) {
                return invalid("tmpfs.path", format!("{} is mounted twice", mount.path));
            }
        }
        Ok(())
    }
}

pub(super) fn invalid<T>(field: &'static str, reason: impl Into<String>) -> Result<T, RuntimeError> {
    Err(RuntimeError::Invalid { field, reason: reason.into() })
}

/// A name of a container or volume: what the engine allows, and nothing that could be read as a path or a query.
pub(super) fn check_name(field: &'static str, name: &str) -> Result<(), RuntimeError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let good =
        name.len() >= 2 && name.len() <= 128 && name.as_bytes()[0].is_ascii_alphanumeric() && name.bytes().all(plain);
    if good {
        return Ok(());
    }
    invalid(field, format!("`{}` is not 2 to 128 letters, digits, `_`, `.` or `-`", name.escape_debug()))
}

/// An absolute path other than the root, written plainly.
pub(super) fn check_path(field: &'static str, path: &str) -> Result<(), RuntimeError> {
    let plain = path.strip_prefix('/').is_some_and(|rest| {
        !rest.is_empty() && rest.split('/').all(|part| !matches!(part, "" | "." | "..")) && !rest.contains('\0')
    });
    if plain && path.len() <= 4096 {
        return Ok(());
    }
    invalid(field, format!("`{}` is not an absolute path without `.`, `..` or `//`", path.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ContainerSpec {
        ContainerSpec::new("job-1", Digest::of(b"image"), Labels::from([("swarm".into(), "x".into())]))
    }

    #[test]
    fn a_plain_spec_passes() {
        spec().check().expect("defaults are fine");
    }

    #[test]
    fn host_paths_cannot_pose_as_volumes() {
        for volume in ["/etc", "../x", "a/b", "", "a?force=1"] {
            let mut bad = spec();
            bad.volumes = vec![VolumeMount { volume: volume.into(), path: "/in".into() }];
            let error = bad.check().expect_err(volume);
            assert!(matches!(error, RuntimeError::Invalid { field: "volumes.volume", .. }), "{volume}: {error}");
        }
    }

    #[test]
    fn paths_must_be_absolute_and_plain() {
        for path in ["in", "/", "/a/../b", "/a//b", "/a/.", "/a\0"] {
            let mut bad = spec();
            bad.tmpfs = vec![TmpfsMount { path: path.into(), bytes: 1 }];
            assert!(matches!(bad.check(), Err(RuntimeError::Invalid { field: "tmpfs.path", .. })), "{path}");
        }
    }

    #[test]
    fn each_bad_field_is_named() {
        let mut cases: Vec<(&str, ContainerSpec)> = Vec::new();
        cases.push(("name", ContainerSpec { name: "a/../b".into(), ..spec() }));
        cases.push(("network", ContainerSpec { network: Network::Of(ContainerId("a/b".into())), ..spec() }));
        cases.push(("labels", ContainerSpec { labels: Labels::new(), ..spec() }));
        cases.push(("entrypoint", ContainerSpec { entrypoint: Some(Vec::new()), ..spec() }));
        cases.push(("env", ContainerSpec { env: vec![("A=B".into(), "c".into())], ..spec() }));
        cases.push(("image_volumes", ContainerSpec { image_volumes: vec!["/v".into(), "/v".into()], ..spec() }));
        cases.push(("workdir", ContainerSpec { workdir: Some("tmp".into()), ..spec() }));
        cases.push(("cpu_millis", ContainerSpec { cpu_millis: 0, ..spec() }));
        cases.push(("disk_bytes", ContainerSpec { disk_bytes: Some(1), ..spec() }));
        cases.push(("memory_bytes", ContainerSpec { memory_bytes: 1 << 20, ..spec() }));
        for (field, case) in cases {
            let error = case.check().expect_err(field).to_string();
            assert!(error.starts_with(field), "{field}: {error}");
        }
    }
}
