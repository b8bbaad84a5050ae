//! What a job may use, enforced in real containers, and what it used.

use swarm_protocol::OutcomeKind;
use swarm_protocol::TaskId;
use swarm_protocol::spec::{Output, Tmpfs};
use swarm_protocol::state::JobState;

use crate::harness::{PATIENCE, report, shared};

#[test]
fn a_job_that_writes_too_much_is_ended_for_it() {
    let swarm = shared();
    // In its root filesystem, and in the directory of its output.
    for path in ["/tmp/big", "/out/big"] {
        let mut spec = swarm.shell(&format!("head -c 40000000 /dev/zero > {path}; echo written; sleep 600"));
        spec.limits.disk_bytes = 16 << 20;
        spec.outputs.push(Output { path: "/out/big".into() });
        let job = swarm.submit(&spec);
        assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Failed);
        let attempt = swarm.task(job).attempts.remove(0);
        assert_eq!(attempt.outcome, Some(OutcomeKind::OutOfDisk), "{attempt:?}");
        let peak = attempt.usage.and_then(|usage| usage.disk_peak_bytes).expect("it was measured");
        // Seen while it still wrote, or after.
        assert!((spec.limits.disk_bytes..60_000_000).contains(&peak), "{peak} bytes measured");
        report(&format!("disk limit of 16 MiB: ended after {} ms, {peak} bytes written", attempt.ran_ms.unwrap_or(0)));
        let shown = swarm.consumer(&["show", &job.to_string()]);
        assert!(String::from_utf8_lossy(&shown.stdout).contains("limits.disk_bytes"), "{shown:?}");
    }
    swarm.judge("disk limit", false);
}

#[test]
fn a_job_that_nests_directories_so_deeply_that_nobody_can_measure_them_is_ended() {
    let swarm = shared();
    // The path is short enough in the container, and too long where the engine keeps the volume.
    let name = "d".repeat(202);
    let script = format!("cd /out; n=0; while [ $n -lt 20 ]; do mkdir {name}; cd {name}; n=$((n+1)); done; sleep 600");
    let mut spec = swarm.shell(&script);
    spec.outputs.push(Output { path: "/out/x".into() });
    let job = swarm.submit(&spec);
    assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Failed);
    let attempt = swarm.task(job).attempts.remove(0);
    assert_eq!(attempt.outcome, Some(OutcomeKind::OutOfDisk), "{attempt:?}");
    assert!(attempt.detail.as_ref().is_some_and(|detail| detail.contains("cannot be measured")), "{attempt:?}");
    swarm.judge("directories beyond measure", false);
}

#[test]
fn limits_hold_in_the_container_and_usage_is_recorded() {
    let swarm = shared();
    let script = "ulimit -n; echo scratch > /tmp/a && cat /tmp/a; (echo x > /x) 2>/dev/null || echo read-only; \
                  i=0; while [ $i -lt 1500000 ]; do i=$((i+1)); done";
    let mut spec = swarm.shell(script);
    (spec.limits.open_files, spec.limits.read_only_root) = (99, true);
    spec.limits.tmpfs = vec![Tmpfs { path: "/tmp".into(), bytes: 1 << 20 }];
    let job = swarm.submit(&spec);
    assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Succeeded);
    swarm.check_log(TaskId { job, task: 0 }, b"99\nscratch\nread-only\n", b"");
    let attempt = swarm.task(job).attempts.remove(0);
    let usage = attempt.usage.expect("the worker reported");
    let (cpu_ms, ran_ms) = (usage.cpu_ms.expect("it ran for seconds"), attempt.ran_ms.expect("it ended"));
    // A tenth of a core, and a reading at least every two seconds.
    assert!(cpu_ms > 0 && cpu_ms <= ran_ms, "{cpu_ms} ms of CPU in {ran_ms} ms");
    assert!(usage.memory_peak_bytes.is_some_and(|bytes| (1..32 << 20).contains(&bytes)), "{usage:?}");
    swarm.judge("limits and usage", false);
}
