//! The job spec: what a consumer asks for. JSON, unknown fields refused; [`crate::validate`] checks the rest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Timestamp;
use crate::ids::Digest;
use crate::labels::Labels;
use crate::tasks::TaskRange;

/// A container job: one owner, one or more tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// A name for people; need not be unique. Letters, digits, `.`, `_`, `-`, `/`; at most 128.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")]
    pub name: Option<String>,
    /// `name[:tag]` of an uploaded image, or its config digest `sha256:…`. Resolved to the digest at submit.
    #[schema(min_length = 1, max_length = 255)]
    pub image: String,
    /// Replaces the image's CMD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Replaces the image's ENTRYPOINT and, as docker does, discards its CMD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's USER: `name`, `uid` or `uid:gid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Replaces the image's WORKDIR; absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Added to the image's ENV. Names beginning with `SWARM_` are reserved.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// What one task needs.
    #[serde(default)]
    pub resources: Resources,
    /// Labels that a worker must have to get a task, each with its value; at most 16.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub require: Labels,
    /// What the container may use beyond that.
    #[serde(default)]
    pub limits: Limits,
    /// The tasks' indices, inclusive; one task with index 0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub array: Option<TaskRange>,
    /// Files put into the container before it starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Input>,
    /// Files or directories kept after a successful end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<Output>,
    /// How often a task is tried again.
    #[serde(default)]
    pub retries: Retries,
    /// Longest run of one attempt in seconds, 1 s to 30 days; none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 2_592_000)]
    pub timeout_s: Option<u64>,
    /// How long a silent worker keeps a task, in seconds: 15 s to 1 day.
    #[serde(default = "default_lease_s")]
    #[schema(minimum = 15, maximum = 86_400)]
    pub lease_s: u64,
    /// Higher runs earlier; -100 to 100.
    #[serde(default)]
    #[schema(minimum = -100, maximum = 100)]
    pub priority: i32,
    /// Never run a task again that may have run. Excludes `eager`.
    #[serde(default)]
    pub at_most_once: bool,
    /// Run again on the mere suspicion that a worker is lost: doubling is accepted.
    #[serde(default)]
    pub eager: bool,
    /// Not before this instant: at most a minute in the past, at most 5 years ahead when it is submitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_at: Option<Timestamp>,
}

fn default_lease_s() -> u64 {
    30 * 60
}

impl JobSpec {
    /// A spec with defaults everywhere but for the image.
    #[must_use]
    pub fn new(image: impl Into<String>) -> Self {
        Self {
            name: None,
            image: image.into(),
            command: None,
            entrypoint: None,
            user: None,
            workdir: None,
            env: BTreeMap::new(),
            resources: Resources::default(),
            require: Labels::new(),
            limits: Limits::default(),
            array: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            retries: Retries::default(),
            timeout_s: None,
            lease_s: default_lease_s(),
            priority: 0,
            at_most_once: false,
            eager: false,
            start_at: None,
        }
    }

    /// The tasks of the job; `0` alone for one without an array.
    #[must_use]
    pub fn tasks(&self) -> TaskRange {
        self.array.unwrap_or(TaskRange::one(0))
    }
}

/// What one task needs, reserved on the worker and enforced by the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Thousandths of a core; 1000 by default.
    #[schema(minimum = 10, maximum = 1_024_000)]
    pub cpu_millis: u32,
    /// Bytes of memory, no swap; 256 MiB by default.
    #[schema(minimum = 6_291_456, maximum = 70_368_744_177_664_u64)]
    pub memory_bytes: u64,
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu_millis: 1000, memory_bytes: 256 << 20 }
    }
}

/// Bounds of one attempt's container. Nothing is reserved for them. Every field is always written: it travels in link
/// frames too, whose encoding has no names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Processes and threads; 256 by default.
    #[schema(minimum = 1, maximum = 32_768)]
    pub pids: u32,
    /// Open files of one process; 1024 by default.
    #[schema(minimum = 16, maximum = 1_048_576)]
    pub open_files: u32,
    /// Bytes written to the root filesystem and to the directories of inputs and outputs; 10 GiB by default. The worker
    /// looks now and then, so it may be exceeded for some seconds before the container is killed.
    #[schema(minimum = 1_048_576, maximum = 70_368_744_177_664_u64)]
    pub disk_bytes: u64,
    /// Bytes of encoded log kept; the core's own limit by default, and never more than that.
    #[schema(minimum = 1_024, maximum = 68_719_476_736_u64)]
    pub log_bytes: Option<u64>,
    /// Scratch directories in memory; what is written there counts as the container's memory.
    pub tmpfs: Vec<Tmpfs>,
    /// The root filesystem cannot be written.
    pub read_only_root: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pids: 256,
            open_files: 1024,
            disk_bytes: 10 << 30,
            log_bytes: None,
            tmpfs: Vec::new(),
            read_only_root: false,
        }
    }
}

/// A scratch directory in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Tmpfs {
    /// Where: absolute, without `.` or `..` parts.
    pub path: String,
    /// Its size.
    pub bytes: u64,
}

/// A file, or a directory packed as an archive, that an attempt gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The uploaded file's digest.
    pub digest: Digest,
    /// Where it appears in the container: absolute, without `.` or `..` parts.
    pub path: String,
    /// Permission bits, 0o644 by default; entries of an archive have their own.
    #[serde(default = "default_mode")]
    pub mode: u32,
    /// The file is a tar archive, plain and not compressed, whose entries become the content of the directory `path`.
    /// They may be directories, regular files, and links that do not lead out of it; all of them belong to the user that
    /// the container runs as.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unpack: bool,
}

/// The mode of an input whose spec names none.
#[must_use]
pub fn default_mode() -> u32 {
    0o644
}

/// A file or directory that an attempt hands back, or the files that a glob matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Where the container leaves it: absolute, without `.` or `..` parts. A directory is kept as a tar archive. With
    /// wildcards (see [`crate::globs`]) every regular file that matches is kept under its own path; links and
    /// directories are passed over, and at least one file must match.
    pub path: String,
}

/// How often a task is tried again, by whose fault it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retries {
    /// After a loss of infrastructure; 2 by default.
    #[schema(maximum = 1_000)]
    pub lost: u16,
    /// After the job's own failure; 0 by default.
    #[schema(maximum = 1_000)]
    pub failed: u16,
}

impl Default for Retries {
    fn default() -> Self {
        Self { lost: 2, failed: 0 }
    }
}
