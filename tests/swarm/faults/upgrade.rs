//! The worker's program is replaced while its jobs run.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::{PATIENCE, Swarm, eventually};
use crate::harness::{Proc, Setup, report};

/// What a file is, whatever its name is by now.
fn file(path: impl AsRef<Path>) -> Option<(u64, u64)> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// The file that a process runs.
fn program_of(pid: u32) -> Option<(u64, u64)> {
    file(format!("/proc/{pid}/exe"))
}

/// An old worker keeps a watchdog of its own build although its file is gone, and the new one brings a new one.
#[test]
fn a_worker_is_upgraded_under_its_job_and_its_watchdog_with_it() {
    let swarm = Swarm::start(Setup::default());
    let stop = || {
        let stopped = swarm.worker().take().expect("a worker runs").terminate(PATIENCE);
        assert!(stopped.success(), "{stopped}");
    };
    stop();
    let program = swarm.install_worker();
    swarm.start_worker();
    swarm.wait_ready();
    let (old, pid) = (file(&program), swarm.worker().as_ref().map(Proc::pid));
    assert_eq!(program_of(swarm.watchdog()), old);
    let job = swarm.submit(&swarm.shell("n=0; while [ $n -lt 16 ]; do echo $n; sleep 1; n=$((n+1)); done"));
    swarm.wait_started(job, 1);
    let container = swarm.container(job);

    swarm.fault("the worker's program is replaced");
    swarm.install_worker();
    let new = file(&program);
    assert_ne!(new, old);
    let killed = swarm.kill_watchdog();
    let next = || swarm.watchdogs().into_iter().find(|pid| *pid != killed);
    let next = eventually("the old worker has another watchdog", Duration::from_secs(20), next);
    assert_eq!(program_of(next), old, "it is of the build of its worker");
    swarm.carries_on(job, &container);
    assert_eq!(swarm.worker().as_ref().map(Proc::pid), pid);
    assert!(swarm.worker().as_mut().expect("a worker runs").ended().is_none(), "it ended for want of its file");

    swarm.fault("the worker is stopped, and started from the new file");
    stop();
    assert_eq!(swarm.watchdogs(), [next], "somebody watches meanwhile");
    let began = std::time::Instant::now();
    swarm.start_worker();
    eventually("the watchdog is of the new build, and alone", Duration::from_secs(20), || {
        let watchdogs: Vec<_> = swarm.watchdogs().into_iter().map(program_of).collect();
        (watchdogs == [new]).then_some(())
    });
    report(&format!("worker upgraded: its watchdog replaced after {:.1} s", began.elapsed().as_secs_f64()));
    swarm.carries_on(job, &container);
    let log: String = (0..16).map(|n| format!("{n}\n")).collect();
    swarm.ran_once(job, log.as_bytes());
    swarm.judge("worker upgraded", true);
}
