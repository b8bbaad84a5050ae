//! A Postgres of the test's own that stops, crashes, hangs and throws its clients out while jobs are submitted and run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use swarm_checker::{Op, Submit, Verdict};
use swarm_protocol::JobId;
use swarm_protocol::spec::JobSpec;
use swarm_protocol::state::JobState;

use crate::harness::{
    Full, OwnPostgres, PATIENCE, Setup, StopMode, Swarm, eventually, now_us, report, rounds, verdict,
};

/// How long a job lasts that outlasts every fault here.
fn lasting_s() -> u64 {
    seconds(30, 75).as_secs()
}

/// How soon after its database is back a core takes jobs again.
const HEALED: Duration = Duration::from_secs(20);
/// How long a submit waits for its answer before it is sent again.
const ANSWER: Duration = Duration::from_secs(5);

impl Swarm {
    /// Submits under one key until it is acknowledged; every try is recorded.
    pub(super) fn submit_stubbornly(&self, spec: &JobSpec, give_up: Instant) -> Option<JobId> {
        let key = uuid::Uuid::new_v4().to_string();
        while Instant::now() < give_up {
            let start = now_us();
            let answer = self.block(async { tokio::time::timeout(ANSWER, self.client.submit(spec, Some(&key))).await });
            let job = answer.as_ref().ok().and_then(|answer| answer.as_ref().ok()).map(|submitted| submitted.job);
            let result = answer.as_ref().map_or(Verdict::Unknown, verdict);
            let submit =
                Submit { job: job.map(|job| job.0), key: Some(key.clone()), name: None, tasks: spec.tasks().count() };
            self.recorder.add(start, result, Op::Submit(submit));
            if job.is_some() {
                return job;
            }
            assert_ne!(result, Verdict::Fail, "a good job is refused: {answer:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
        None
    }

    /// Submits short jobs, one after the other, until `stop`. Gives those acknowledged, and the longest wait for one.
    fn submit_until(&self, stop: &AtomicBool) -> (Vec<JobId>, Duration) {
        let (mut jobs, mut longest) = (Vec::new(), Duration::ZERO);
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let job = self.submit_stubbornly(&self.shell("true"), Instant::now() + PATIENCE);
            jobs.push(job.expect("it is acknowledged in the end"));
            longest = longest.max(began.elapsed());
            std::thread::sleep(Duration::from_millis(150));
        }
        (jobs, longest)
    }
}

fn lasting_log() -> Vec<u8> {
    (0..lasting_s()).flat_map(|n| format!("{n}\n").into_bytes()).collect()
}

/// Says so when it is dropped, also by a failure: submits must not go on then.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// `strike` leaves a database that works again. Meanwhile a job runs and others are submitted.
fn struck(scenario: &str, full: u32, strike: impl Fn(&OwnPostgres, &Swarm, u32)) {
    struck_on(&OwnPostgres::start(), scenario, full, strike);
}

pub(super) fn struck_on(postgres: &OwnPostgres, scenario: &str, full: u32, strike: impl Fn(&OwnPostgres, &Swarm, u32)) {
    let swarm = &Swarm::start(Setup { postgres: Some(postgres.url()), ..Setup::default() });
    let (mut acknowledged, mut longest, mut slowest) = (0, Duration::ZERO, Duration::ZERO);
    for round in 0..rounds(full) {
        let running = swarm.submit(
            &swarm.shell(&format!("n=0; while [ $n -lt {} ]; do echo $n; sleep 1; n=$((n+1)); done", lasting_s())),
        );
        swarm.wait_started(running, 1);
        let container = swarm.container(running);
        let stop = &AtomicBool::new(false);
        let ended = Raise(stop);
        let (jobs, waited) = std::thread::scope(|scope| {
            let submitting = scope.spawn(move || swarm.submit_until(stop));
            swarm.fault(scenario);
            strike(postgres, swarm, round);
            let back = Instant::now();
            let again = swarm.submit_stubbornly(&swarm.shell("true"), back + HEALED);
            assert!(again.is_some(), "{scenario}: no job is taken {} s after the database is back", HEALED.as_secs());
            slowest = slowest.max(back.elapsed());
            swarm.carries_on(running, &container);
            drop(ended);
            submitting.join().expect("submits go on")
        });
        longest = longest.max(waited);
        acknowledged += jobs.len();
        for job in jobs {
            assert_eq!(swarm.wait_ended(job, Duration::from_secs(180)).job.state, JobState::Succeeded);
        }
        swarm.ran_once(running, &lasting_log());
    }
    // Those that were sent by the test above, and tries without an answer.
    for job in swarm.block(swarm.client.jobs(&swarm_client::JobFilter::default())).expect("jobs can be listed").items {
        swarm.wait_ended(job.id, Duration::from_secs(120));
    }
    swarm.judge(scenario, true);
    let (longest, slowest) = (longest.as_secs_f64(), slowest.as_secs_f64());
    report(&format!(
        "{scenario}: {acknowledged} submits acknowledged, 0 lost, the longest after {longest:.1} s; taken again \
         {slowest:.1} s after it was back"
    ));
}

fn seconds(quick: u64, full: u64) -> Duration {
    Duration::from_secs(if rounds(2) == 1 { quick } else { full })
}

#[test]
fn a_postgres_that_is_stopped_and_started_loses_nothing_acknowledged() {
    struck("Postgres stopped", 10, |postgres, _, round| {
        postgres.stop(if round % 2 == 0 { StopMode::Fast } else { StopMode::Immediate });
        std::thread::sleep(seconds(10, 10 + u64::from(round) % 3 * 10));
        postgres.begin();
    });
}

#[test]
fn a_postgres_that_crashes_loses_nothing_acknowledged() {
    struck("Postgres killed", 20, |postgres, swarm, _| {
        postgres.kill();
        postgres.begin();
        swarm.fault("immediate stop of Postgres");
        postgres.stop(StopMode::Immediate);
        postgres.begin();
    });
}

#[test]
fn a_postgres_that_hangs_is_waited_for() {
    struck("Postgres frozen", 10, |postgres, _, _| {
        postgres.signal(Signal::STOP);
        std::thread::sleep(seconds(8, 30));
        postgres.signal(Signal::CONT);
    });
}

/// It refuses statements, and where it cannot write ahead it ends itself: somebody makes room and starts it.
#[test]
fn a_postgres_on_a_full_disk_loses_nothing_acknowledged() {
    let postgres = OwnPostgres::start_small("size=160m");
    struck_on(&postgres, "full disk of Postgres", 50, |postgres, _, _| {
        let disk = postgres.disk().expect("it has a small disk");
        disk.fill(Full::Bytes);
        std::thread::sleep(Duration::from_secs(8));
        disk.clear();
        postgres.begin_if_ended();
    });
}

/// As before a fail-over: the pool has to notice that all of its connections are dead.
#[test]
fn sessions_that_are_ended_are_opened_again() {
    struck("sessions of Postgres ended", 50, |postgres, swarm, _| {
        let ended: usize = (0..5)
            .map(|_| {
                swarm.fault("all sessions are ended");
                let ended = postgres.terminate_sessions();
                eventually("the core reads again", HEALED, || swarm.block(swarm.client.workers()).ok());
                ended
            })
            .sum();
        assert!(ended > 0, "there was no session to end");
    });
}
