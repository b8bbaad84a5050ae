//! What the tests of several modules need.

use swarm_protocol::link::ImageOrder;
use swarm_protocol::spec::JobSpec;
use swarm_protocol::state::TaskCounts;
use swarm_protocol::{Digest, GroupId, JobId, Timestamp, UserId};

use crate::store::{JobRecord, NewJob};

/// `seconds` after a fixed beginning.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

fn image() -> ImageOrder {
    ImageOrder { config: Digest::of(b"image"), config_bytes: 5, layers: Vec::new() }
}

pub(crate) fn job_record(id: u64) -> JobRecord {
    record_of(JobId(id), new_job(JobSpec::new("busybox")))
}

pub(crate) fn new_job(spec: JobSpec) -> NewJob {
    NewJob {
        owner: UserId(1),
        group: GroupId(1),
        spec,
        image: image(),
        input_bytes: Vec::new(),
        submitted_at: at(0),
        idempotency: None,
        launch: None,
    }
}

fn record_of(id: JobId, new: NewJob) -> JobRecord {
    JobRecord {
        id,
        owner: new.owner,
        owner_name: "ann".into(),
        group: new.group,
        group_name: "lab".into(),
        allow_root: false,
        counts: TaskCounts::default(),
        next_fresh: u64::from(new.spec.tasks().first),
        spec: new.spec,
        image: new.image,
        input_bytes: new.input_bytes,
        submitted_at: new.submitted_at,
        ended_at: None,
        cancel_requested: false,
        launch: new.launch,
    }
}
