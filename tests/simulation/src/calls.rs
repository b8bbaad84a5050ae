//! What workers and users ask a core beside the links: the work of its HTTP routes, without HTTP.

use std::fmt;

use bytes::Bytes;
use swarm_protocol::api::{JobView, TaskView};
use swarm_protocol::problem::Problem;
use swarm_protocol::spec::JobSpec;
use swarm_protocol::{AttemptId, Digest, JobId, ScheduleId, WorkerId};

/// What is asked.
pub(crate) enum Request {
    Join {
        worker: String,
    },
    Blob {
        worker: WorkerId,
        attempt: AttemptId,
        digest: Digest,
        offset: u64,
    },
    /// An output, or the rest of it from `offset` on; with `is_torn` it breaks off after these bytes.
    Output {
        worker: WorkerId,
        attempt: AttemptId,
        digest: Digest,
        offset: u64,
        bytes: Bytes,
        is_torn: bool,
    },
    /// How much of an output that broke off is there.
    Sent {
        worker: WorkerId,
        attempt: AttemptId,
        digest: Digest,
    },
    Submit {
        key: String,
        spec: Box<JobSpec>,
    },
    Cancel(JobId),
    /// A job with its tasks.
    Look(JobId),
    Log(AttemptId),
    /// What an attempt has handed back.
    File(Digest),
    Schedule {
        name: String,
        cron: String,
        zone: String,
        spec: Box<JobSpec>,
    },
    Pause(ScheduleId),
    /// How many jobs are not final.
    Open,
}

/// What is answered.
pub(crate) enum Answer {
    Joined(WorkerId),
    Bytes(Bytes),
    Stored(Digest),
    Offset(u64),
    /// The job made, and whether it was made before.
    Accepted(JobId, bool),
    Done,
    Seen(Box<(JobView, Vec<TaskView>)>),
    Scheduled(ScheduleId),
    Open(u64),
    Refused(Box<Problem>),
    /// Now it cannot be done, or it is unknown whether it was.
    Again,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Join { worker } => write!(f, "join {worker}"),
            Self::Blob { attempt, digest, offset, .. } => {
                write!(f, "blob {} of {attempt} from {offset}", digest.short())
            }
            Self::Output { attempt, digest, offset, bytes, is_torn, .. } => {
                let torn = if *is_torn { ", torn" } else { "" };
                write!(f, "output {} of {attempt}, {offset}+{}{torn}", digest.short(), bytes.len())
            }
            Self::Sent { attempt, digest, .. } => write!(f, "sent of {} of {attempt}", digest.short()),
            Self::Submit { key, .. } => write!(f, "submit {key}"),
            Self::Cancel(job) => write!(f, "cancel {job}"),
            Self::Look(job) => write!(f, "look at {job}"),
            Self::Log(attempt) => write!(f, "log of {attempt}"),
            Self::File(digest) => write!(f, "file {}", digest.short()),
            Self::Schedule { name, cron, zone, .. } => write!(f, "schedule {name}: {cron} in {zone}"),
            Self::Pause(schedule) => write!(f, "pause {schedule}"),
            Self::Open => f.write_str("what is open"),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Joined(worker) => write!(f, "joined as {worker}"),
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::Stored(digest) => write!(f, "stored {}", digest.short()),
            Self::Offset(offset) => write!(f, "{offset} bytes are there"),
            Self::Accepted(job, again) => write!(f, "job {job}{}", if *again { " again" } else { "" }),
            Self::Done => f.write_str("done"),
            Self::Seen(seen) => write!(f, "job {} {} {:?}", seen.0.id, seen.0.state, seen.0.tasks),
            Self::Scheduled(schedule) => write!(f, "schedule {schedule}"),
            Self::Open(count) => write!(f, "{count} open"),
            Self::Refused(problem) => write!(f, "refused: {}", problem.detail),
            Self::Again => f.write_str("again"),
        }
    }
}
