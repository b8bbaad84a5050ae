//! Jobs that will not end, that end by a signal, and that leave processes behind.

use std::time::{Duration, Instant};

use swarm_protocol::state::JobState;
use swarm_protocol::{JobId, OutcomeKind, TaskId};

use crate::harness::{PATIENCE, Swarm, eventually, shared};

const DEAF: &str = "trap '' TERM INT HUP; echo begun; while :; do sleep 1; done";

impl Swarm {
    /// How it ended, with the container's exit code; its log is what it wrote and its container is gone.
    fn ended_as(&self, job: JobId, log: &[u8]) -> (Option<OutcomeKind>, Option<i32>) {
        self.wait_ended(job, PATIENCE);
        let view = self.task(job);
        assert_eq!(view.attempts.len(), 1, "{view:?}");
        self.check_log(TaskId { job, task: 0 }, log, b"");
        let id = self.id().expect("the store holds the swarm's id");
        eventually("its container is gone", PATIENCE, || {
            self.docker().listing(&id).iter().all(|stamp| stamp.job != job.0).then_some(())
        });
        (view.outcome, view.exit_code)
    }
}

#[test]
fn a_job_that_ignores_sigterm_is_killed_when_it_is_cancelled_or_out_of_time() {
    let swarm = shared();
    let cancelled = swarm.submit(&swarm.shell(DEAF));
    let mut spec = swarm.shell(DEAF);
    spec.timeout_s = Some(2);
    let timed_out = swarm.submit(&spec);
    swarm.wait_started(cancelled, 1);
    let began = Instant::now();
    swarm.block(swarm.client.cancel(cancelled)).expect("a running job can be cancelled");
    assert_eq!(swarm.ended_as(cancelled, b"begun\n").0, Some(OutcomeKind::Cancelled));
    assert!(began.elapsed() > Duration::from_secs(3), "it had no grace: {:?}", began.elapsed());
    assert_eq!(swarm.ended_as(timed_out, b"begun\n").0, Some(OutcomeKind::TimedOut));
    swarm.judge("jobs that ignore SIGTERM", false);
}

#[test]
fn a_job_that_a_signal_ends_says_which() {
    let swarm = shared();
    // Process 1 is spared its own signals: a child dies, and its status is handed on.
    let (ended, job) = swarm.run(&[], &["sh", "-c", "exec 2> /dev/null; sh -c 'echo begun; kill -SEGV $$'; exit $?"]);
    assert_eq!(ended.code, Some(139), "{ended:?}");
    assert_eq!(swarm.ended_as(job, b"begun\n"), (Some(OutcomeKind::Failed), Some(139)));
    let shown = swarm.consumer(&["show", &job.to_string()]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("SIGSEGV"), "{shown:?}");
    swarm.judge("job ended by a signal", false);
}

/// The container ends with its first process, and takes along whatever else holds its output.
#[test]
fn what_a_job_leaves_behind_ends_with_its_first_process() {
    let swarm = shared();
    let left = "while :; do sleep 1; echo late; done";
    let scripts = [
        format!("echo begun; ({left}) & echo done; exit 0"),
        format!("echo begun; setsid sh -c \"({left}) &\" & wait $!; echo done"),
        format!("echo begun; (setsid sh -c \"trap '' TERM HUP; {left}\" < /dev/null &) ; echo done; exit 0"),
    ];
    for script in scripts {
        let job = swarm.submit(&swarm.shell(&script));
        assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Succeeded, "{script}");
        assert_eq!(swarm.ended_as(job, b"begun\ndone\n"), (Some(OutcomeKind::Succeeded), Some(0)), "{script}");
    }
    swarm.judge("jobs that leave processes behind", false);
}
