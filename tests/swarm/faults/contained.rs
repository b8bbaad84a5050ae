//! A worker that runs in a container, as in a stack: its watchdog is a container beside it.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use swarm_worker::runtime::testimage::{HostImage, host_image};

use super::worker_silenced;
use crate::harness::{PATIENCE, Setup, Swarm, docker, eventually};

/// The worker's container; it is removed with its image when this is dropped.
struct Contained {
    name: String,
    image: String,
}

impl Contained {
    /// Starts the worker of `swarm` in a container, with the data that it has joined with.
    fn start(swarm: &Swarm) -> Self {
        let packed = host_image(&[env!("CARGO_BIN_EXE_swarm")]).expect("the program can be packed");
        let name = format!("swarm-test-{}", uuid::Uuid::new_v4().simple());
        let contained = Self { name, image: packed.config_digest.to_string() };
        load(swarm, &packed);
        let engine = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
        let socket = engine.strip_prefix("unix://").expect("the tests' engine is on this machine");
        let home = swarm.home().display().to_string();
        let (home_mount, socket_mount, variable) =
            (format!("{home}:{home}"), format!("{socket}:{socket}"), format!("DOCKER_HOST={engine}"));
        let data = format!("{home}/worker");
        let run = ["run", "--detach", "--name", &contained.name, "--network", "host", "--env", &variable];
        let mounts = ["--volume", &home_mount, "--volume", &socket_mount, "--entrypoint", "/bin/swarm"];
        let worker = ["worker", "--core", &swarm.url, "--data", &data, "--name", "w1", "--cpu-millis", "8000"];
        docker(&[&run[..], &mounts, &[&contained.image], &worker].concat()).expect("the worker's container runs");
        contained
    }

    /// The name of its watchdog's container.
    fn watchdog(&self) -> String {
        let id = docker(&["inspect", "--format", "{{.Id}}", &self.name]).expect("the container is known");
        format!("swarm-watchdog-{}", &id[..12])
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = Command::new("docker").args(["logs", "--tail", "40", &self.name]).output();
            if let Ok(logs) = logs {
                let tail = String::from_utf8_lossy(&logs.stderr).into_owned();
                let _ = writeln!(std::io::stderr(), "--- the worker's container printed last:\n{tail}");
            }
        }
        docker(&["unpause", &self.name]);
        docker(&["rm", "--force", "--volumes", &self.name]);
        docker(&["rmi", "--force", &self.image]);
    }
}

fn load(swarm: &Swarm, image: &HostImage) {
    let archive = swarm.home().join("worker-image.tar");
    swarm.write_stream(&archive, image.archive());
    let status =
        Command::new("docker").args(["load", "--quiet", "--input"]).arg(&archive).stdout(Stdio::null()).status();
    assert!(status.expect("docker is here").success(), "the image cannot be loaded");
}

/// A swarm whose only worker is in a container, and its watchdog in one beside that.
fn contained() -> (Swarm, Contained) {
    let swarm = Swarm::start(Setup::default());
    let stopped = swarm.worker().take().expect("a worker runs").terminate(PATIENCE);
    assert!(stopped.success(), "{stopped}");
    let contained = Contained::start(&swarm);
    eventually("the watchdog runs beside the worker", Duration::from_secs(20), || runs(&contained.watchdog()));
    (swarm, contained)
}

fn runs(container: &str) -> Option<String> {
    docker(&["ps", "--quiet", "--filter", &format!("name={container}")]).filter(|ids| !ids.is_empty())
}

fn left(watchdog: &str) {
    let gone = || runs(watchdog).is_none().then_some(());
    eventually("the watchdog has left and is removed", Duration::from_secs(30), gone);
}

#[test]
fn a_worker_killed_with_its_container_leaves_a_watchdog_beside_it() {
    let (swarm, contained) = contained();
    let watchdog = contained.watchdog();
    let kill = |swarm: &Swarm| {
        swarm.fault("kill -9 of the worker's container");
        docker(&["kill", &contained.name]).expect("the container can be killed");
    };
    worker_silenced("killed container of a worker", &swarm, kill, Swarm::start_worker);
    left(&watchdog);
}

#[test]
fn a_worker_frozen_in_its_container_does_not_freeze_the_watchdog_beside_it() {
    let (swarm, contained) = contained();
    let send = |swarm: &Swarm, signal: &str| {
        swarm.fault(&format!("{signal} of the worker in its container"));
        docker(&["kill", "--signal", signal, &contained.name]).expect("the container can be signalled");
    };
    worker_silenced(
        "frozen worker in a container",
        &swarm,
        |swarm| send(swarm, "SIGSTOP"),
        |swarm| send(swarm, "SIGCONT"),
    );
    let watchdog = contained.watchdog();
    docker(&["stop", "--time", "60", &contained.name]).expect("the container can be stopped");
    left(&watchdog);
}

/// A pause freezes the cgroup, with all processes of the container and their children.
#[test]
fn a_worker_whose_container_is_paused_leaves_the_watchdog_beside_it_awake_and_goes_on_by_itself() {
    let (swarm, contained) = contained();
    let send = |swarm: &Swarm, word: &str| {
        swarm.fault(&format!("docker {word} of the worker's container"));
        docker(&[word, &contained.name]).expect("the container can be paused");
    };
    let state = || docker(&["inspect", "--format", "{{.Id}} {{.State.StartedAt}} {{.RestartCount}}", &contained.name]);
    let before = state();
    assert!(runs(&contained.watchdog()).is_some(), "its watchdog is in a container, and so in a cgroup, of its own");
    let pause = |swarm: &Swarm| send(swarm, "pause");
    worker_silenced("paused container of a worker", &swarm, pause, |swarm| {
        let status = docker(&["inspect", "--format", "{{.State.Status}}", &contained.name]);
        assert_eq!(status.as_deref().map(str::trim), Some("paused"));
        send(swarm, "unpause");
    });
    assert_eq!(state(), before, "nobody started it anew");
}
