//! kill -9 of the worker while files go in and out.

use std::time::Duration;

use swarm_client::Destination;
use swarm_protocol::api::TaskPhase;
use swarm_protocol::spec::{Input, Output};
use swarm_protocol::state::JobState;
use swarm_protocol::{JobId, TaskId};

use crate::harness::{PATIENCE, Setup, Swarm, eventually};

/// Enough for a kill to strike in the middle of a transfer.
const FILE_BYTES: usize = 4 << 20;

/// Its name, and what awaits it.
type Moment = (&'static str, fn(&Swarm, JobId));

impl Swarm {
    /// The worker holds the order, and has not started it.
    fn wait_assigned(&self, job: JobId) {
        self.expect(job, "it is assigned", PATIENCE, || {
            let view = self.try_task(TaskId { job, task: 0 })?;
            view.attempts.iter().any(|found| found.phase != TaskPhase::Waiting).then_some(())
        });
    }

    /// The container has ended, so that the worker collects what it left.
    pub(super) fn wait_exited(&self, job: JobId) {
        self.wait_started(job, 1);
        let id = self.id().expect("the store holds the swarm's id");
        eventually("the container ends", PATIENCE, || {
            let stamps = self.docker().listing(&id);
            let mut of_job = stamps.iter().filter(|stamp| stamp.job == job.0);
            of_job.all(|stamp| stamp.listed.is_some_and(|listed| !listed.running)).then_some(())
        });
    }
}

#[test]
fn a_worker_killed_while_files_go_in_and_out_brings_them_whole() {
    let swarm = Swarm::start(Setup::default());
    let file = swarm.home().join("input");
    let bytes: Vec<u8> = (0..FILE_BYTES).map(|at| (at * 7 % 251) as u8).collect();
    std::fs::write(&file, &bytes).expect("the input can be written");
    let uploaded = swarm.block(swarm.client.upload_file(&file, std::sync::Arc::new(|_| ()))).expect("it is uploaded");
    let mut spec = swarm.shell("cat /in/data > /out/copy; echo begun; sleep 1; echo done");
    spec.inputs.push(Input { digest: uploaded.digest, path: "/in/data".into(), mode: 0o644, unpack: false });
    spec.outputs = vec![Output { path: "/out/copy".into() }];
    let moments: [Moment; 3] = [
        ("assigned", Swarm::wait_assigned),
        ("started", |swarm, job| swarm.wait_started(job, 1)),
        ("exited", Swarm::wait_exited),
    ];
    for (moment, wait) in moments {
        let job = swarm.submit(&spec);
        wait(&swarm, job);
        swarm.kill_worker();
        swarm.start_worker();
        assert_eq!(
            swarm.wait_ended(job, Duration::from_secs(120)).job.state,
            JobState::Succeeded,
            "killed when {moment}"
        );
        let view = swarm.task(job);
        let last = view.attempts.last().expect("it ran");
        assert_eq!((last.outputs.len(), last.log_cut_bytes), (1, 0), "{view:?}");
        let (task, path) = (TaskId { job, task: 0 }, swarm.home().join(format!("{moment}-copy")));
        swarm.check_log(task, super::SHORT_LOG, b"");
        let destination = Destination { path: &path, overwrite: false };
        let fetching =
            swarm.client.download_output(task, None, 0, &last.outputs[0], destination, std::sync::Arc::new(|_| ()));
        swarm.block(fetching).expect("the output can be fetched");
        assert!(std::fs::read(&path).expect("it is there") == bytes, "killed when {moment}: other bytes came back");
    }
    swarm.judge("worker killed while files move", true);
}
