//! Frames on the link between a worker and the core.
//!
//! A WebSocket message is one version byte followed by a postcard-encoded `Vec` of frames; at most
//! [`MESSAGE_BYTES_MAX`]. postcard is not self-describing, so within a version nothing changes. The handshake ([`Hello`],
//! [`Welcome`]) is fixed for ever, so that N and N−1 can find out about each other.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{AttemptId, BootId, Digest, Epoch, GroupId, SessionId, SwarmId, WorkerId};
use crate::labels::Labels;
use crate::outcome::Outcome;
use crate::spec::Limits;
use crate::usage::Usage;

/// The newest link version this build speaks, and the oldest.
pub const VERSION: u8 = 4;
/// The version byte of [`Hello`] and [`Welcome`], whatever is spoken afterwards.
pub const HANDSHAKE: u8 = 1;
/// See [`VERSION`].
pub const VERSION_MIN: u8 = 2;
/// The first version with [`ToCore::Labels`], which is all it adds.
pub const LABELS_SINCE: u8 = 3;
/// The first version whose workers unpack archives ([`InputOrder::directory`]), which is all it adds: no layout changed.
pub const DIRECTORIES_SINCE: u8 = 4;
/// The largest message either side accepts.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// The most frames in one message.
pub const FRAMES_MAX: usize = 4096;
/// The largest piece of log in one frame.
pub const LOG_CHUNK_BYTES_MAX: usize = 256 << 10;

/// The worker's first message (frame list of one). Its layout never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest link version the worker speaks.
    pub version_min: u8,
    /// Newest link version the worker speaks.
    pub version_max: u8,
    /// This process start of the worker.
    pub boot: BootId,
    /// Random; goes into the heartbeat keys.
    pub nonce: [u8; 32],
    /// What the worker is and has.
    pub facts: WorkerFacts,
}

/// What a worker is and has, as it says itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkerFacts {
    /// swarm-sync's version there.
    pub version: String,
    /// Thousandths of cores offered to jobs.
    pub cpu_millis: u32,
    /// Bytes of memory offered to jobs.
    pub memory_bytes: u64,
    /// Containers at a time.
    pub slots: u32,
    /// For instance `linux`.
    pub os: String,
    /// For instance `amd64`, as images name it.
    pub arch: String,
    /// Name and version of the container engine.
    pub engine: String,
}

/// The core's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Welcome {
    /// The link is up.
    Accepted {
        /// The link version both will speak from now on.
        version: u8,
        /// The swarm, for container labels.
        swarm: SwarmId,
        /// The worker's number.
        worker: WorkerId,
        /// The core's term.
        epoch: Epoch,
        /// Names the heartbeat keys.
        session: SessionId,
        /// Random; goes into the heartbeat keys.
        nonce: [u8; 32],
        /// Random secret of this link session; goes into the heartbeat keys.
        secret: [u8; 32],
        /// Where heartbeats go: the UDP port on the host the link goes to.
        heartbeat_port: u16,
        /// Pause between heartbeats in milliseconds.
        heartbeat_interval_ms: u32,
    },
    /// The link is refused; the worker shows the reason and retries later if `retry` says so.
    Refused {
        /// Why, and what to do.
        reason: String,
        /// Whether trying again can help.
        retry: bool,
    },
}

/// From the core to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Run this attempt.
    Assign(Box<TaskOrder>),
    /// Stop this attempt: the image's stop signal (SIGTERM unless it names one), `grace_ms`, SIGKILL; then report it as
    /// cancelled.
    Cancel {
        /// Which.
        attempt: AttemptId,
        /// Milliseconds between the two signals.
        grace_ms: u32,
    },
    /// The core gave this attempt up: kill the container, remove everything, report nothing.
    Abandon {
        /// Which.
        attempt: AttemptId,
    },
    /// Give back these attempts if they have not started; answered by `Recalled` or not at all.
    Recall {
        /// Which.
        attempts: Vec<AttemptId>,
    },
    /// Take no new work; finish what runs.
    Drain,
    /// Take new work again.
    Resume,
    /// The log is durable on the core up to here.
    LogStored {
        /// Which.
        attempt: AttemptId,
        /// Byte offset in the encoded log.
        offset: u64,
    },
    /// The final report is committed (or known to be superseded): forget the attempt, spool included.
    FinishStored {
        /// Which.
        attempt: AttemptId,
    },
    /// Answer to `Renew`.
    Renewed {
        /// The number of the renewal answered.
        seq: u64,
        /// False: the live attempts differ; send a `StateReport`, nothing was renewed.
        matched: bool,
    },
    /// Answer to `StateReport`: what the core made of it. What is not listed is to be kept.
    StateJudged {
        /// The number of the report answered.
        seq: u64,
        /// Attempts that are not the worker's any more: as `Abandon`.
        abandon: Vec<AttemptId>,
    },
    /// The start of this at-most-once attempt is committed: the container may be started now.
    StartCommitted {
        /// Which.
        attempt: AttemptId,
    },
}

/// From a worker to the core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToCore {
    /// The order arrived and is queued or being prepared.
    Accepted {
        /// Which.
        attempt: AttemptId,
    },
    /// An at-most-once attempt is ready: may it start?
    MayStart {
        /// Which.
        attempt: AttemptId,
    },
    /// The container runs.
    Started {
        /// Which.
        attempt: AttemptId,
        /// The engine's stamp, Unix time in microseconds.
        started_at_us: u64,
    },
    /// A piece of the encoded log.
    Log {
        /// Which.
        attempt: AttemptId,
        /// Byte offset of `bytes` in the encoded log.
        offset: u64,
        /// At most [`LOG_CHUNK_BYTES_MAX`].
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// The final report; repeated at every reconnect until `FinishStored`.
    Finished(Box<FinalReport>),
    /// These were given back unstarted.
    Recalled {
        /// Which.
        attempts: Vec<AttemptId>,
    },
    /// Renew the leases of all live attempts, if they are the ones the core thinks of.
    Renew {
        /// Counted from 1 within the session.
        seq: u64,
        /// See [`live_hash`].
        live: LiveSet,
    },
    /// Everything the worker holds: sent first on every link and after a mismatch.
    StateReport {
        /// Counted from 1 within the session.
        seq: u64,
        /// Every attempt the worker holds: queued, preparing, running, or ended and not yet acknowledged.
        attempts: Vec<HeldAttempt>,
    },
    /// The worker cannot take this order now (draining, or no room); it goes back unstarted.
    Declined {
        /// Which.
        attempt: AttemptId,
        /// Why.
        reason: String,
    },
    /// The worker's labels, all of them: sent behind the first state report of a link, and when they changed. From
    /// version [`LABELS_SINCE`] on.
    Labels {
        /// At most [`crate::labels::LABELS_MAX`]; the core leaves out what is more.
        labels: Labels,
    },
}

/// What a worker runs: compiled by the core from the spec; the worker adds its own hardening and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskOrder {
    /// Which attempt.
    pub attempt: AttemptId,
    /// Whose it is; sandboxes are shared within a group only.
    pub group: GroupId,
    /// The image.
    pub image: ImageOrder,
    /// Replaces CMD.
    pub command: Option<Vec<String>>,
    /// Replaces ENTRYPOINT.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces USER. Without it the image's USER counts, or 65534 if it names none.
    pub user: Option<String>,
    /// Replaces WORKDIR.
    pub workdir: Option<String>,
    /// Added to ENV; `SWARM_JOB_ID`, `SWARM_TASK_INDEX` and `SWARM_ATTEMPT` come from the worker.
    pub env: Vec<(String, String)>,
    /// Whether root is allowed by the group's policy.
    pub allow_root: bool,
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Files to put in.
    pub inputs: Vec<InputOrder>,
    /// Absolute paths to collect after exit code 0.
    pub outputs: Vec<String>,
    /// Longest run in milliseconds, counted from the container's start.
    pub timeout_ms: Option<u64>,
    /// Length of the lease in milliseconds.
    pub lease_ms: u64,
    /// Stop signal to SIGKILL in milliseconds.
    pub grace_ms: u32,
    /// Encoded log bytes kept; what comes after is counted and cut.
    pub log_bytes_max: u64,
    /// Bytes of all outputs together.
    pub output_bytes_max: u64,
    /// The start is committed before the container starts.
    pub at_most_once: bool,
    /// Bounds of the container; its `log_bytes` is in `log_bytes_max` already.
    pub limits: Limits,
}

/// An image as blobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageOrder {
    /// The config blob: the image's identity, and the engine's image id.
    pub config: Digest,
    /// Bytes of the config blob.
    pub config_bytes: u64,
    /// Bottom layer first.
    pub layers: Vec<LayerOrder>,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerOrder {
    /// The blob.
    pub digest: Digest,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Bytes of the blob.
    pub size_bytes: u64,
}

/// A file to put in, or an archive to unpack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputOrder {
    /// The blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size_bytes: u64,
    /// Absolute path in the container. With a final `/`, from version [`DIRECTORIES_SINCE`] on, it is a directory and the
    /// blob a tar archive of what it holds.
    pub path: String,
    /// Permission bits of a file.
    pub mode: u32,
}

impl InputOrder {
    /// The directory that the archive is unpacked into, without the final `/`; `None` for a file.
    #[must_use]
    pub fn directory(&self) -> Option<&str> {
        self.path.strip_suffix('/')
    }
}

/// How an attempt ended, as the worker saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalReport {
    /// Which.
    pub attempt: AttemptId,
    /// How.
    pub outcome: Outcome,
    /// The engine's stamp of the start, Unix time in microseconds; none if it never started.
    pub started_at_us: Option<u64>,
    /// The engine's stamp of the end, Unix time in microseconds.
    pub finished_at_us: Option<u64>,
    /// How long the container ran by a monotonic clock, in milliseconds.
    pub ran_ms: Option<u64>,
    /// Length of the whole encoded log.
    pub log_bytes: u64,
    /// SHA-256 of the whole encoded log.
    pub log_digest: Digest,
    /// Bytes of log dropped at a bound; 0 when the log is complete.
    pub log_cut_bytes: u64,
    /// Everything collected, uploaded and acknowledged before this report was sent.
    pub outputs: Vec<OutputReport>,
    /// What it used.
    pub usage: Usage,
}

/// One collected output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputReport {
    /// Its path in the container.
    pub path: String,
    /// Its blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size_bytes: u64,
    /// A directory, kept as a tar archive.
    pub is_dir: bool,
    /// Permission bits.
    pub mode: u32,
}

/// How far a held attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeldPhase {
    /// No container was started.
    Pending,
    /// A container was started and may run.
    Running {
        /// The engine's stamp, Unix time in microseconds.
        started_at_us: u64,
    },
    /// Ended; its final report follows.
    Ended,
}

/// One attempt in a `StateReport`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldAttempt {
    /// Which.
    pub attempt: AttemptId,
    /// How far.
    pub phase: HeldPhase,
}

/// Count and hash of a set of live attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveSet {
    /// How many.
    pub count: u32,
    /// Order-independent hash, see [`live_hash`].
    pub hash: u64,
}

/// Count and hash of the attempts a worker holds (pending or running, not those that have ended). The hash is the XOR of
/// the first 8 bytes (little endian) of SHA-256 over `job:u64 task:u32 attempt:u16` (little endian), so either side can
/// keep it up to date by one XOR a change.
#[must_use]
pub fn live_hash<'a>(attempts: impl IntoIterator<Item = &'a AttemptId>) -> LiveSet {
    attempts.into_iter().fold(LiveSet::default(), |set, id| {
        let mut bytes = [0u8; 14];
        bytes[..8].copy_from_slice(&id.job.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&id.task.to_le_bytes());
        bytes[12..].copy_from_slice(&id.attempt.to_le_bytes());
        let head: [u8; 8] = Digest::of(&bytes).0[..8].try_into().expect("eight bytes");
        LiveSet { count: set.count.saturating_add(1), hash: set.hash ^ u64::from_le_bytes(head) }
    })
}

/// A message that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The version byte is not the agreed one.
    #[error("link version {found} where {expected} was agreed")]
    Version {
        /// In the message.
        found: u8,
        /// Agreed in the handshake.
        expected: u8,
    },
    /// No version byte.
    #[error("an empty link message")]
    Empty,
    /// Over a bound.
    #[error("a link message of {0} bytes is over the bound of {MESSAGE_BYTES_MAX}")]
    TooLong(usize),
    /// Over a bound.
    #[error("a link message of {0} frames is over the bound of {FRAMES_MAX}")]
    TooMany(usize),
    /// Not postcard, or bytes left over.
    #[error("a link message that cannot be decoded")]
    Malformed,
}

/// One message: the version byte and the frames.
///
/// # Panics
/// Never: frames are plain data, which postcard always encodes.
#[must_use]
pub fn encode<T: Serialize>(version: u8, frames: &[T]) -> Vec<u8> {
    postcard::to_extend(frames, vec![version]).expect("plain data encodes")
}

/// The frames of one message.
///
/// # Errors
/// [`FrameError`]; the link must be closed, since what follows cannot be trusted either.
pub fn decode<T: DeserializeOwned>(version: u8, message: &[u8]) -> Result<Vec<T>, FrameError> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(FrameError::TooLong(message.len()));
    }
    let (&found, body) = message.split_first().ok_or(FrameError::Empty)?;
    if found != version {
        return Err(FrameError::Version { found, expected: version });
    }
    let (frames, rest): (Vec<T>, _) = postcard::take_from_bytes(body).map_err(|_| FrameError::Malformed)?;
    if !rest.is_empty() {
        return Err(FrameError::Malformed);
    }
    if frames.len() > FRAMES_MAX {
        return Err(FrameError::TooMany(frames.len()));
    }
    Ok(frames)
}

/// The highest version both ranges share.
#[must_use]
pub fn agree(hello: &Hello) -> Option<u8> {
    let version = hello.version_max.min(VERSION);
    (version >= hello.version_min.max(VERSION_MIN)).then_some(version)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::JobId;

    fn attempt(job: u64) -> AttemptId {
        AttemptId { job: JobId(job), task: 0, attempt: 1 }
    }

    #[test]
    fn frames_round_trip_and_a_wrong_version_is_refused() {
        let frames = vec![
            ToCore::Log { attempt: attempt(1), offset: 5, bytes: vec![0, 255] },
            ToCore::Accepted { attempt: attempt(2) },
        ];
        let bytes = encode(1, &frames);
        assert_eq!(decode::<ToCore>(1, &bytes), Ok(frames));
        assert_eq!(decode::<ToCore>(2, &bytes), Err(FrameError::Version { found: 1, expected: 2 }));
        assert_eq!(decode::<ToCore>(1, &bytes[..bytes.len() - 1]), Err(FrameError::Malformed));
        assert_eq!(decode::<ToCore>(1, &[]), Err(FrameError::Empty));
        assert_eq!(decode::<ToCore>(1, &[bytes.clone(), vec![0]].concat()), Err(FrameError::Malformed));
        assert_eq!(
            decode::<ToCore>(1, &vec![1; MESSAGE_BYTES_MAX + 1]),
            Err(FrameError::TooLong(MESSAGE_BYTES_MAX + 1))
        );
    }

    #[test]
    fn versions_meet_at_the_highest_shared_one() {
        let hello = |version_min, version_max| Hello {
            version_min,
            version_max,
            boot: BootId::random(),
            nonce: [0; 32],
            facts: WorkerFacts::default(),
        };
        assert_eq!(agree(&hello(VERSION, VERSION)), Some(VERSION));
        assert_eq!(agree(&hello(1, 9)), Some(VERSION));
        assert_eq!(agree(&hello(2, 2)), Some(2));
        assert_eq!(agree(&hello(1, 2)), Some(2));
        assert_eq!(agree(&hello(1, VERSION_MIN - 1)), None);
        assert_eq!(agree(&hello(VERSION + 1, 9)), None);
    }

    /// postcard numbers variants by their order: what version 2 has must stay where it is.
    #[test]
    fn frames_of_version_2_keep_their_numbers() {
        let variant = |frame: ToCore| encode(2, &[frame])[2];
        assert_eq!(variant(ToCore::Accepted { attempt: attempt(1) }), 0);
        assert_eq!(variant(ToCore::StateReport { seq: 1, attempts: Vec::new() }), 7);
        assert_eq!(variant(ToCore::Declined { attempt: attempt(1), reason: String::new() }), 8);
        assert_eq!(variant(ToCore::Labels { labels: Labels::new() }), 9);
    }

    #[test]
    fn the_live_hash_ignores_order_and_notices_every_change() {
        let (a, b, c) = (attempt(1), attempt(2), attempt(3));
        assert_eq!(live_hash([&a, &b]), live_hash([&b, &a]));
        assert_ne!(live_hash([&a, &b]), live_hash([&a, &c]));
        assert_ne!(live_hash([&a]), live_hash([&a, &b]));
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_an_error_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<ToCore>(1, &bytes);
            let _ = decode::<ToWorker>(1, &[vec![1], bytes].concat());
        }
    }
}
