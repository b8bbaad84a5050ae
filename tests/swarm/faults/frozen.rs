//! A core that hangs, and watchdogs that hang or die while their worker needs them, or does not.

use std::time::Duration;

use rustix::process::Signal;
use swarm_checker::Invariant;
use swarm_protocol::state::JobState;
use swarm_protocol::{JobId, OutcomeKind, TaskId};

use super::{LONG, LONG_LOG, worker_silenced};
use crate::harness::{PATIENCE, Setup, Swarm, eventually, report, rounds, signal, strays};

/// Runs for ever in its first attempt.
const ONCE_STUCK: &str = "echo attempt $SWARM_ATTEMPT; [ $SWARM_ATTEMPT -gt 1 ] || sleep 600";
/// The shortest lease there is, in seconds.
const LEASE_S: u64 = 15;

impl Swarm {
    pub(super) fn signal_core(&self, what: Signal) {
        self.fault(&format!("{what:?} of the core"));
        self.core().as_ref().expect("a core runs").signal(what);
    }

    /// The processes of watchdogs.
    pub(super) fn watchdogs(&self) -> Vec<u32> {
        let mut pids = strays(&self.home().join("worker"));
        pids.retain(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == b"watchdog")
        });
        pids
    }

    /// The watchdog's process, which the worker starts within seconds.
    pub(super) fn watchdog(&self) -> u32 {
        let first = || self.watchdogs().first().copied();
        eventually("the worker has a watchdog", Duration::from_secs(20), first)
    }

    pub(super) fn signal_watchdog(&self, what: Signal) {
        self.fault(&format!("{what:?} of the watchdog"));
        signal(self.watchdog(), what);
    }

    /// kill -9 of the watchdog; done when it is gone, and its worker has reaped it.
    pub(super) fn kill_watchdog(&self) -> u32 {
        let pid = self.watchdog();
        self.fault("kill -9 of the watchdog");
        signal(pid, Signal::KILL);
        let gone = || (!std::path::Path::new(&format!("/proc/{pid}/cmdline")).exists()).then_some(());
        eventually("the watchdog is gone", PATIENCE, gone);
        pid
    }

    fn submit_stuck(&self) -> JobId {
        let mut spec = self.shell(ONCE_STUCK);
        spec.lease_s = LEASE_S;
        let job = self.submit(&spec);
        self.wait_started(job, 1);
        job
    }

    /// Attempt 1 was lost with its lease, attempt 2 ended well.
    fn ran_twice(&self, job: JobId) {
        assert_eq!(self.wait_ended(job, Duration::from_secs(120)).job.state, JobState::Succeeded);
        let view = self.task(job);
        assert_eq!(view.attempts.len(), 2, "{view:?}");
        assert_eq!((view.attempts[0].outcome, view.attempts[0].may_have_run), (Some(OutcomeKind::Lost), true));
        self.check_log(TaskId { job, task: 0 }, b"attempt 2\n", b"");
    }
}

#[test]
fn a_core_frozen_for_moments_delays_and_loses_nothing() {
    let swarm = Swarm::start(Setup::default());
    for _ in 0..rounds(50) {
        let job = swarm.submit(&swarm.shell(LONG));
        swarm.wait_started(job, 1);
        for frozen_ms in [1000, 3000] {
            swarm.signal_core(Signal::STOP);
            std::thread::sleep(Duration::from_millis(frozen_ms));
            swarm.signal_core(Signal::CONT);
        }
        swarm.ran_once(job, LONG_LOG);
    }
    swarm.judge("core frozen for moments", true);
}

/// The worker cannot know that its lease would have been renewed: it ends the container in time, with its watchdog frozen
/// as well, and the core believes it when it wakes up.
#[test]
fn a_core_frozen_past_a_lease_finds_the_attempt_ended_and_runs_it_again() {
    let swarm = Swarm::start(Setup::default());
    for _ in 0..rounds(5) {
        let job = swarm.submit_stuck();
        let patient = swarm.submit(&swarm.shell("echo begun; sleep 25; echo done"));
        swarm.wait_started(patient, 1);
        swarm.signal_watchdog(Signal::STOP);
        swarm.signal_core(Signal::STOP);
        let container = swarm.container(job);
        let began = std::time::Instant::now();
        eventually("the worker ends its container", Duration::from_secs(30), || {
            (!swarm.containers(job).contains(&container)).then_some(())
        });
        let killed_after = began.elapsed().as_secs_f64();
        assert!(killed_after < LEASE_S as f64, "killed {killed_after:.1} s after the last possible renewal");
        std::thread::sleep(Duration::from_secs(LEASE_S + 3).saturating_sub(began.elapsed()));
        swarm.signal_core(Signal::CONT);
        swarm.signal_watchdog(Signal::CONT);
        swarm.ran_twice(job);
        swarm.ran_once(patient, super::SHORT_LOG);
        report(&format!("core and watchdog frozen, lease {LEASE_S} s: the worker ended it after {killed_after:.1} s"));
    }
    let judged = swarm.judge("core frozen past a lease", true);
    assert_eq!(judged.of(Invariant::I4).excepted, 0);
}

#[test]
fn a_killed_watchdog_is_replaced_and_the_next_one_keeps_the_lease() {
    let swarm = Swarm::start(Setup::default());
    for _ in 0..rounds(50) {
        let killed = swarm.kill_watchdog();
        let next = eventually("another watchdog runs", Duration::from_secs(20), || {
            Some(swarm.watchdog()).filter(|pid| *pid != killed)
        });
        assert_ne!(next, killed);
    }
    // What it was told before it died, the next one has to find.
    let silence = |swarm: &Swarm| {
        swarm.kill_watchdog();
        swarm.watchdog();
        swarm.fault("SIGSTOP of the worker");
        swarm.worker().as_ref().expect("a worker runs").signal(Signal::STOP);
    };
    let come_back = |swarm: &Swarm| {
        swarm.fault("SIGCONT of the worker");
        swarm.worker().as_ref().expect("a worker runs").signal(Signal::CONT);
    };
    worker_silenced("killed watchdog, frozen worker", &swarm, silence, come_back);
}

/// With nobody left to end it a container runs past its lease. The core gives it up by itself, and the next start of the
/// worker ends it before it is run again.
#[test]
fn a_container_that_nobody_watches_any_more_is_given_up_and_ended_at_the_next_start() {
    let swarm = Swarm::start(Setup::default());
    for _ in 0..rounds(5) {
        let job = swarm.submit_stuck();
        let container = swarm.container(job);
        swarm.kill_worker();
        swarm.kill_watchdog();
        swarm.expect(job, "attempt 1 is given up", Duration::from_secs(90), || {
            swarm.try_task(TaskId { job, task: 0 })?.attempts.first()?.outcome
        });
        assert_eq!(swarm.containers(job), [container], "nobody was there to end it");
        swarm.start_worker();
        swarm.ran_twice(job);
    }
    let judged = swarm.judge("worker and watchdog killed", true);
    assert_eq!(judged.of(Invariant::I4).excepted, 0);
}
