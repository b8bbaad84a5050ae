//! `swarm up`: a whole swarm in one process.

use std::time::Duration;

use swarm_protocol::TaskId;
use swarm_protocol::state::JobState;

use crate::harness::{PATIENCE, Setup, Swarm, eventually, report};

#[test]
fn up_runs_jobs_survives_a_kill_and_stops_in_order() {
    let began = std::time::Instant::now();
    let swarm = Swarm::start(Setup { up: true, ..Setup::default() });
    report(&format!("swarm up: ready with an image after {:.1} s", began.elapsed().as_secs_f64()));
    let (ended, _) = swarm.run(&["--user", "0"], &["sh", "-c", "id -u"]);
    assert_eq!((ended.code, ended.stdout.as_slice()), (Some(0), b"0\n".as_slice()), "{}", ended.stderr);
    let job = swarm.submit(&swarm.shell("echo begun; sleep 8; echo done"));
    swarm.wait_started(job, 1);
    swarm.core().take().expect("it runs").kill();
    swarm.start_core();
    assert_eq!(swarm.wait_ended(job, Duration::from_secs(120)).job.state, JobState::Succeeded);
    assert_eq!(swarm.task(job).attempts.len(), 1);
    swarm.check_log(TaskId { job, task: 0 }, b"begun\ndone\n", b"");
    swarm.judge("swarm up", true);
    let status = swarm.core().take().expect("it runs").terminate(Duration::from_secs(30));
    assert_eq!(status.code(), Some(0), "it ended with {status}");

    // What is configured wins over what `up` would choose, at a later start too, and what is not for the worker to say in
    // here is passed over.
    let file = swarm.home().join("worker.toml");
    let settings =
        "slots = 3\njoin_token_file = '/nowhere'\nname = '(none)'\ncore = 'http://192.0.2.1'\n[labels]\nzone = 'a'\n";
    std::fs::write(&file, settings).expect("a file can be written");
    let file = file.to_str().expect("a plain path");
    swarm.start_core_in(&[("SWARM_CORE_ALLOW_ROOT", "false"), ("SWARM_WORKER_CONFIG", file)]);
    swarm.wait_ready();
    eventually("the worker is as its file says", PATIENCE, || {
        let worker = swarm.block(swarm.client.workers()).ok()?.items.remove(0);
        let zone = worker.labels.get("zone").map(String::as_str);
        ((worker.facts.slots, zone) == (3, Some("a"))).then_some(())
    });
    let (ended, _) = swarm.run(&["--user", "0"], &["sh", "-c", "id -u"]);
    assert!(ended.code == Some(126) && ended.stderr.contains("as root"), "{ended:?}");
    swarm.judge("swarm up without root", true);
}
