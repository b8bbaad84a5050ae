//! Labels of workers, and jobs that require them.

use swarm_protocol::JobId;
use swarm_protocol::state::JobState;

use crate::harness::{OwnEngine, PATIENCE, Proc, Setup, Swarm, docker, eventually, now_us, shared};

/// Submits a job that requires this label; its number and what was said about it.
fn submit_for(swarm: &Swarm, label: &str) -> (JobId, String) {
    let start = now_us();
    let ended =
        swarm.consumer(&["submit", "--cpus", "0.1", "--memory", "32MiB", "--require", label, &swarm.image, "date"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let printed = String::from_utf8_lossy(&ended.stdout).into_owned();
    let job = JobId(printed.trim().parse().unwrap_or_else(|_| panic!("`{printed}` is no number of a job")));
    swarm.note_submitted(job, start);
    (job, ended.stderr)
}

#[test]
fn a_job_waits_for_a_worker_with_the_labels_it_requires() {
    let swarm = Swarm::start(Setup::default());
    let labels = || swarm.block(swarm.client.workers()).expect("workers can be listed").items.remove(0).labels;
    let found = eventually("the worker says what it is", PATIENCE, || Some(labels()).filter(|all| !all.is_empty()));
    let engine = |format: &str| docker(&["info", "--format", format]).expect("the engine answers").trim().to_owned();
    assert_eq!(found["kernel"], engine("{{.KernelVersion}}"));
    assert_eq!(found["storage_driver"], engine("{{.Driver}}"));
    assert_eq!((found["cores"].clone(), found["memory_bytes"].clone()), (engine("{{.NCPU}}"), engine("{{.MemTotal}}")));
    assert_eq!((found["disk_limit"].as_str(), found["runtime.runc"].as_str()), ("sampled", "true"));

    let (job, said) = submit_for(&swarm, "zone=a");
    assert!(said.contains("no worker has the label `zone=a`"), "{said}");
    let refused = swarm.consumer(&["submit", "--must-fit", "--require", "zone=a", &swarm.image, "date"]);
    assert_eq!(refused.code, Some(6), "{refused:?}");
    assert!(refused.stderr.contains("zone=a"), "{refused:?}");
    let why = swarm.block(swarm.client.why(job)).expect("it can be asked");
    assert_eq!(why.state, JobState::Waiting);
    let own =
        why.reasons.iter().find(|reason| reason.worker.as_deref() == Some("w1")).expect("the worker has a reason");
    assert_eq!((own.code.as_str(), own.text.as_str()), ("label", "it has no label `zone=a`"));
    // It blocks nobody else, and what the worker has can be required.
    let (other, said) = submit_for(&swarm, &format!("kernel={}", found["kernel"]));
    assert!(!said.contains("label"), "{said}");
    assert_eq!(swarm.wait_ended(other, PATIENCE).job.state, JobState::Succeeded);
    assert_eq!(swarm.detail(job).job.state, JobState::Waiting);

    assert!(swarm.worker().take().expect("a worker runs").terminate(PATIENCE).success());
    assert_eq!(labels(), found, "remembered while it is away");
    swarm.start_worker_with(&["--label", "zone=a"]);
    assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Succeeded);
    assert_eq!(labels()["zone"], "a");
    swarm.judge("labels", true);
}

/// A whole array of them, ahead of all others.
#[test]
fn jobs_for_a_gpu_where_there_is_none_say_so_and_hold_nobody_up() {
    let swarm = shared();
    let workers = swarm.block(swarm.client.workers()).expect("workers can be listed").items;
    let has_nvidia = workers.iter().any(|worker| worker.labels.get("gpu").is_some_and(|kind| kind == "nvidia"));
    let label = if has_nvidia { "gpu=amd" } else { "gpu=nvidia" };
    let (name, start) = (format!("gpu-{}", uuid::Uuid::new_v4().simple()), now_us());
    let flags =
        ["submit", "--name", &name, "--array", "0-999", "--priority", "100", "--cpus", "0.1", "--memory", "32MiB"];
    let ended = swarm.consumer(&[&flags[..], &["--require", label, &swarm.image, "date"]].concat());
    let printed = String::from_utf8_lossy(&ended.stdout).into_owned();
    let job = JobId(printed.trim().parse().unwrap_or_else(|_| panic!("no number of a job: {ended:?}")));
    swarm.note_submitted(job, start);
    assert!(ended.stderr.contains(&format!("no worker has the label `{label}`")), "{ended:?}");
    for _ in 0..3 {
        let other = swarm.submit(&swarm.shell("echo not held up"));
        assert_eq!(swarm.wait_ended(other, PATIENCE).job.state, JobState::Succeeded);
    }
    let why = swarm.consumer(&["why", &job.to_string()]);
    let said = String::from_utf8_lossy(&why.stdout).into_owned();
    assert!(why.code == Some(0) && said.contains(&format!("it has no label `{label}`")), "{why:?}");
    assert_eq!(swarm.detail(job).job.state, JobState::Waiting);
    swarm.block(swarm.client.cancel(job)).expect("its owner may");
    assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Cancelled);
    swarm.judge("no GPU", false);
}

#[test]
fn what_an_engine_learns_while_its_worker_runs_reaches_the_core_and_the_job_that_waits_for_it() {
    let engine = OwnEngine::start(&[]);
    let swarm = Swarm::start(Setup { engine: engine.docker().host, ..Setup::default() });
    let labels = || swarm.block(swarm.client.workers()).expect("workers can be listed").items.remove(0).labels;
    let found = eventually("the worker says what it is", PATIENCE, || Some(labels()).filter(|all| !all.is_empty()));
    assert!(found.contains_key("runtime.runc") && !found.contains_key("runtime.fast"), "{found:?}");
    let (job, said) = submit_for(&swarm, "runtime.fast=true");
    assert!(said.contains("runtime.fast"), "{said}");
    let worker = swarm.worker().as_ref().expect("a worker runs").pid();
    engine.configure(r#"{"runtimes": {"fast": {"path": "runc"}}}"#);
    // It asks every minute.
    assert_eq!(swarm.wait_ended(job, PATIENCE + PATIENCE).job.state, JobState::Succeeded);
    assert_eq!(labels()["runtime.fast"], "true");
    assert_eq!(swarm.worker().as_ref().map(Proc::pid), Some(worker), "nothing was started anew");
    swarm.judge("labels that change", true);
}
