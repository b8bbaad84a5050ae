//! From a job's record to what its worker is told. Pure.

use swarm_protocol::AttemptId;
use swarm_protocol::link::{InputOrder, TaskOrder};

use crate::store::JobRecord;

/// What an order allows beyond the spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Encoded log bytes kept of an attempt.
    pub log_bytes_max: u64,
    /// Bytes of all outputs of an attempt together.
    pub output_bytes_max: u64,
    /// From the image's STOPSIGNAL to SIGKILL in milliseconds.
    pub grace_ms: u32,
}

/// The order for one attempt of `job`.
#[must_use]
pub fn order(job: &JobRecord, attempt: AttemptId, limits: Limits) -> TaskOrder {
    let spec = &job.spec;
    let inputs = spec.inputs.iter().zip(&job.input_bytes).map(|(input, &size_bytes)| InputOrder {
        digest: input.digest,
        size_bytes,
        path: if input.unpack { format!("{}/", input.path) } else { input.path.clone() },
        mode: input.mode,
    });
    TaskOrder {
        attempt,
        group: job.group,
        image: job.image.clone(),
        command: spec.command.clone(),
        entrypoint: spec.entrypoint.clone(),
        user: spec.user.clone(),
        workdir: spec.workdir.clone(),
        env: spec.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        allow_root: job.allow_root,
        cpu_millis: spec.resources.cpu_millis,
        memory_bytes: spec.resources.memory_bytes,
        inputs: inputs.collect(),
        outputs: spec.outputs.iter().map(|output| output.path.clone()).collect(),
        timeout_ms: spec.timeout_s.map(|seconds| seconds.saturating_mul(1000)),
        lease_ms: spec.lease_s.saturating_mul(1000),
        grace_ms: limits.grace_ms,
        log_bytes_max: spec.limits.log_bytes.map_or(limits.log_bytes_max, |asked| asked.min(limits.log_bytes_max)),
        output_bytes_max: limits.output_bytes_max,
        at_most_once: spec.at_most_once,
        limits: spec.limits.clone(),
    }
}

#[cfg(test)]
mod tests {
    use swarm_protocol::spec::{Input, Output};
    use swarm_protocol::{Digest, JobId};

    use super::*;
    use crate::testing::job_record;

    const LIMITS: Limits = Limits { log_bytes_max: 64 << 20, output_bytes_max: 10 << 30, grace_ms: 10_000 };

    #[test]
    fn an_order_says_all_that_the_spec_asks_in_milliseconds() {
        let mut job = job_record(4);
        job.spec.timeout_s = Some(90);
        job.spec.lease_s = 15;
        job.spec.env.insert("A".into(), "b".into());
        let input = |path: &str, unpack| Input { digest: Digest::of(b"x"), path: path.into(), mode: 0o600, unpack };
        job.spec.inputs = vec![input("/in/x", false), input("/data", true)];
        job.spec.outputs.push(Output { path: "/out".into() });
        job.input_bytes = vec![77, 78];
        job.allow_root = true;
        job.spec.limits.pids = 7;
        let attempt = AttemptId { job: JobId(4), task: 2, attempt: 3 };
        let order = order(&job, attempt, LIMITS);
        assert_eq!((order.attempt, order.group, order.allow_root), (attempt, job.group, true));
        assert_eq!((order.timeout_ms, order.lease_ms, order.grace_ms), (Some(90_000), 15_000, 10_000));
        assert_eq!((order.log_bytes_max, order.output_bytes_max), (67_108_864, 10_737_418_240));
        let input = InputOrder { digest: Digest::of(b"x"), size_bytes: 77, path: "/in/x".into(), mode: 0o600 };
        assert_eq!((order.inputs[0].directory(), &order.inputs[0]), (None, &input));
        assert_eq!((order.inputs[1].directory(), order.inputs[1].size_bytes), (Some("/data"), 78));
        assert_eq!((order.limits.pids, order.limits.disk_bytes), (7, 10 << 30));
        assert_eq!((order.outputs, order.env), (vec!["/out".to_owned()], vec![("A".to_owned(), "b".to_owned())]));
    }

    #[test]
    fn a_job_may_ask_for_less_log_than_the_core_keeps_but_not_for_more() {
        let kept = |asked| {
            let mut job = job_record(4);
            job.spec.limits.log_bytes = asked;
            order(&job, AttemptId { job: JobId(4), task: 0, attempt: 1 }, LIMITS).log_bytes_max
        };
        assert_eq!((kept(None), kept(Some(4096)), kept(Some(1 << 40))), (64 << 20, 4096, 64 << 20));
    }
}
