//! Processes that may open no more files: nothing new gets in for as long as that lasts, what is there goes on, and all is as
//! before once there are descriptors again.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use swarm_protocol::state::JobState;

use super::SHORT_LOG;
use crate::harness::{PATIENCE, Proc, Setup, Swarm, eventually, report, rounds};

/// Longer than the lease of what runs meanwhile.
const LASTING: Duration = Duration::from_secs(17);
const LEASE_S: u64 = 15;
/// How soon after there are descriptors again everything works.
const HEALED: Duration = Duration::from_secs(60);
/// Connections that nobody says anything on: more than are left to the core, fewer than may wait to be taken.
const IDLE: usize = 90;
/// Descriptors left to it.
const LEFT: u64 = 24;

/// Lets a process have so many more descriptors than it has now, until this is dropped.
struct Few {
    pid: Pid,
    before: Rlimit,
}

impl Few {
    fn left_to(process: &Proc, more: u64) -> Self {
        let pid = Pid::from_raw(process.pid().cast_signed()).expect("a process has a number");
        let open = std::fs::read_dir(format!("/proc/{}/fd", process.pid())).expect("it runs").count() as u64;
        // Not even root may raise the other one everywhere, and a process of ours has the same.
        let few = Rlimit { current: Some(open + more), ..getrlimit(Resource::Nofile) };
        let before = prlimit(Some(pid), Resource::Nofile, few).expect("root may limit a process");
        Self { pid, before }
    }
}

impl Drop for Few {
    fn drop(&mut self) {
        let _ = prlimit(Some(self.pid), Resource::Nofile, self.before);
    }
}

impl Swarm {
    fn submit_with_a_short_lease(&self) -> swarm_protocol::JobId {
        let mut spec = self.shell("echo begun; sleep 22; echo done");
        spec.lease_s = LEASE_S;
        let job = self.submit(&spec);
        self.wait_started(job, 1);
        job
    }
}

/// Over a connection of its own.
fn answers_a_newcomer(core: &SocketAddr) -> Option<()> {
    let patience = Duration::from_secs(2);
    let mut line = TcpStream::connect_timeout(core, patience).ok()?;
    line.set_read_timeout(Some(patience)).ok()?;
    line.write_all(b"GET /livez HTTP/1.1\r\nHost: core\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = [0; 12];
    line.read_exact(&mut answer).ok()?;
    answer.ends_with(b" 200").then_some(())
}

#[test]
fn a_core_without_descriptors_keeps_its_links_and_answers_again() {
    let swarm = &Swarm::start(Setup::default());
    let address = swarm.address.parse().expect("an address");
    let (mut unanswered, mut slowest) = (0, Duration::ZERO);
    for _ in 0..rounds(20) {
        let running = swarm.submit_with_a_short_lease();
        swarm.fault("the core has no descriptors left, for idle connections");
        let few = Few::left_to(swarm.core().as_ref().expect("a core runs"), LEFT);
        let idle: Vec<_> =
            (0..IDLE).filter_map(|_| TcpStream::connect_timeout(&address, Duration::from_millis(500)).ok()).collect();
        assert!(idle.len() as u64 > LEFT, "they do not use up what is left");
        let began = Instant::now();
        while began.elapsed() < LASTING {
            unanswered += u32::from(answers_a_newcomer(&address).is_none());
            swarm.block(swarm.client.whoami()).expect("who is connected is answered");
            std::thread::sleep(Duration::from_secs(1));
        }
        drop(idle);
        let freed = Instant::now();
        eventually("the core answers newcomers again", HEALED, || answers_a_newcomer(&address));
        slowest = slowest.max(freed.elapsed());
        drop(few);
        let late = swarm.submit(&swarm.shell("echo begun; echo done"));
        for job in [running, late] {
            swarm.ran_once(job, SHORT_LOG);
        }
    }
    assert!(unanswered > 0, "there were descriptors left");
    assert!(swarm.core().as_mut().expect("it was started").ended().is_none(), "the core has ended");
    swarm.judge("core without descriptors", true);
    let slowest = slowest.as_secs_f64();
    report(&format!(
        "core without descriptors: {unanswered} newcomers waited, leases kept, they are answered {slowest:.1} s after it"
    ));
}

#[test]
fn a_worker_without_descriptors_keeps_what_it_runs_and_loses_no_job() {
    let swarm = &Swarm::start(Setup::default());
    let (mut lost, mut slowest) = (0, Duration::ZERO);
    for _ in 0..rounds(20) {
        let running = swarm.submit_with_a_short_lease();
        swarm.fault("the worker has no descriptors left");
        let few = Few::left_to(swarm.worker().as_ref().expect("a worker runs"), 0);
        let mut spec = swarm.shell("echo begun; echo done");
        spec.retries.lost = 100;
        let waiting: Vec<_> = (0..3).map(|_| swarm.submit(&spec)).collect();
        std::thread::sleep(LASTING);
        drop(few);
        let freed = Instant::now();
        for job in waiting {
            let detail = swarm.wait_ended(job, Duration::from_secs(180));
            assert_eq!(detail.job.state, JobState::Succeeded, "{:?}", swarm.task(job));
            lost += swarm.task(job).attempts.len() - 1;
        }
        slowest = slowest.max(freed.elapsed());
        swarm.ran_once(running, SHORT_LOG);
    }
    assert!(swarm.worker().as_mut().expect("it was started").ended().is_none(), "the worker has ended");
    eventually("the worker is ready", PATIENCE, || {
        let workers = swarm.block(swarm.client.workers()).ok()?.items;
        workers.iter().all(|worker| worker.state == "ready").then_some(())
    });
    swarm.judge("worker without descriptors", true);
    let slowest = slowest.as_secs_f64();
    report(&format!("worker without descriptors: {lost} attempts lost, 0 jobs; all had ended {slowest:.1} s after"));
}
