//! Processes that abort at named points: the core before and after each commit, the worker before and after each call to
//! its engine. Nothing else is as exact about the moment.

use std::sync::Arc;
use std::time::Duration;

use swarm_protocol::spec::{Input, JobSpec, Output};
use swarm_protocol::state::JobState;
use swarm_protocol::{JobId, OutcomeKind};
use swarm_worker::WorkerConfig;

use super::SHORT_LOG;
use crate::harness::{PATIENCE, Setup, Swarm, eventually, report, rounds};

/// Calls to the engine that a job's way leads through, and the passage at which the worker aborts.
const CALLS: [(&str, u32); 14] = [
    ("load-image", 1),
    ("tag-image", 1),
    ("create-volume", 1),
    ("create-volume", 2),
    ("create", 1),
    ("put-archive", 1),
    ("start", 1),
    ("logs", 1),
    ("wait", 1),
    ("inspect", 1),
    ("get-archive", 1),
    ("kill", 1),
    ("remove", 1),
    ("remove-volume", 1),
];
/// Commits at which the core aborts, counted from its start.
const COMMITS: u32 = 8;
/// More losses than any scenario can cause.
const LOSSES_MAX: u16 = 100;
const ENDS: Duration = Duration::from_secs(180);

/// In the syntax of the crate `fail`: the n-th passage aborts.
fn nth(point: &str, passage: u32) -> String {
    if passage == 1 { format!("{point}=1*return") } else { format!("{point}={}*off->1*return", passage - 1) }
}

impl Swarm {
    /// One input, one output, a log.
    fn whole_job(&self) -> JobSpec {
        let file = self.home().join("input");
        std::fs::write(&file, b"data").expect("the input can be written");
        let uploaded = self.block(self.client.upload_file(&file, Arc::new(|_| ()))).expect("it is uploaded");
        let mut spec = self.shell("cat /in/data > /out/copy; echo begun; sleep 1; echo done");
        spec.inputs.push(Input { digest: uploaded.digest, path: "/in/data".into(), mode: 0o644, unpack: false });
        spec.outputs = vec![Output { path: "/out/copy".into() }];
        spec.retries.lost = LOSSES_MAX;
        spec
    }

    /// Runs `spec` with a worker that aborts at `point`, and to its end with the next one.
    fn abort_worker_at(&self, call: &str, point: &str, spec: &JobSpec) -> JobId {
        self.worker().take().expect("a worker runs").terminate(PATIENCE);
        if call.ends_with("-image") {
            // As on a worker that has never run the job.
            let config = WorkerConfig { data: self.home().join("worker"), ..WorkerConfig::default() };
            self.docker().clean_images(&config.engine_settings().repository);
        }
        self.fault(&format!("the worker aborts: {point}"));
        self.start_worker_in(&[], &[("FAILPOINTS", point)]);
        let job = if call == "kill" {
            let job = self.submit(&self.shell("echo begun; sleep 600"));
            self.wait_started(job, 1);
            self.block(self.client.cancel(job)).expect("a job that runs can be cancelled");
            job
        } else {
            self.submit(spec)
        };
        eventually(&format!("the worker aborts at {point}"), PATIENCE, || {
            self.worker().as_mut().expect("it was started").ended()
        });
        self.start_worker();
        job
    }

    fn ended_after_abort(&self, call: &str, point: &str, job: JobId) -> usize {
        let detail = self.wait_ended(job, ENDS);
        let view = self.task(job);
        if call == "kill" {
            assert_eq!(detail.job.state, JobState::Cancelled, "{point}: {view:?}");
            return 0;
        }
        assert_eq!(detail.job.state, JobState::Succeeded, "{point}: {view:?}");
        let (last, earlier) = view.attempts.split_last().expect("it ran");
        assert_eq!(last.outputs.len(), 1, "{point}: {view:?}");
        assert!(earlier.iter().all(|one| one.outcome == Some(OutcomeKind::Lost)), "{point}: {view:?}");
        self.check_log(swarm_protocol::TaskId { job, task: 0 }, SHORT_LOG, b"");
        earlier.len()
    }
}

fn walk_calls(side: &str) {
    // Without sandboxes every call is the job's.
    let worker_env = vec![("SWARM_WORKER_SANDBOXES", "0")];
    let swarm = Swarm::start(Setup { worker_env, ..Setup::default() });
    let spec = swarm.whole_job();
    let (mut aborts, mut lost) = (0, 0);
    for _ in 0..rounds(10) {
        for (call, passage) in CALLS {
            let point = nth(&format!("{call}-{side}"), passage);
            let job = swarm.abort_worker_at(call, &point, &spec);
            lost += swarm.ended_after_abort(call, &point, job);
            aborts += 1;
        }
    }
    swarm.judge(&format!("worker aborts {side} each call"), true);
    report(&format!("worker aborted {side} {aborts} calls of its engine: {lost} attempts lost, 0 jobs"));
}

#[test]
fn a_worker_that_aborts_before_any_call_of_its_engine_loses_no_job() {
    walk_calls("before");
}

#[test]
fn a_worker_that_aborts_after_any_call_of_its_engine_loses_no_job() {
    walk_calls("after");
}

fn walk_commits(side: &str) {
    let swarm = &Swarm::start(Setup::default());
    let (mut aborts, mut jobs) = (0, Vec::new());
    for _ in 0..rounds(20) {
        for passage in 1..=COMMITS {
            swarm.core().take().expect("a core runs").terminate(PATIENCE);
            let point = nth(&format!("ledger-commit-{side}"), passage);
            swarm.fault(&format!("the core aborts: {point}"));
            let mut core = swarm.spawn_core(&[("FAILPOINTS", &point)]);
            std::thread::scope(|scope| {
                let spec = swarm.shell("echo begun; echo done");
                let until = std::time::Instant::now() + ENDS;
                let submitting = scope.spawn(move || {
                    (0..3)
                        .map(|_| swarm.submit_stubbornly(&spec, until).expect("it is taken in the end"))
                        .collect::<Vec<_>>()
                });
                eventually(&format!("the core aborts at {point}"), PATIENCE, || core.ended());
                swarm.start_core();
                jobs.extend(submitting.join().expect("submits go on"));
            });
            aborts += 1;
        }
    }
    for job in &jobs {
        swarm.ran_once(*job, SHORT_LOG);
    }
    for job in swarm.block(swarm.client.jobs(&swarm_client::JobFilter::default())).expect("jobs can be listed").items {
        swarm.wait_ended(job.id, ENDS);
    }
    swarm.judge(&format!("core aborts {side} commits"), true);
    report(&format!("core aborted {side} {aborts} commits: {} jobs acknowledged, 0 lost, 0 run twice", jobs.len()));
}

#[test]
fn a_core_that_aborts_before_a_commit_loses_nothing_acknowledged() {
    walk_commits("before");
}

#[test]
fn a_core_that_aborts_after_a_commit_loses_nothing_and_doubles_nothing() {
    walk_commits("after");
}
