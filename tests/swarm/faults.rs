//! kill -9 and worse in the middle of runs. Each scenario has a swarm of its own and ends with a clean checker.

mod clock;
mod contained;
mod cuts;
mod cycles;
mod database;
mod descriptors;
mod disks;
mod engine;
mod files;
mod frozen;
mod herd;
mod links;
mod locks;
mod points;
mod redis;
mod takeover;
mod together;
mod upgrade;
mod weather;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use swarm_checker::{Action, Expectation, Invariant, Op, Verdict};
use swarm_protocol::api::{ScheduleRequest, TaskPhase};
use swarm_protocol::state::JobState;
use swarm_protocol::{JobId, OutcomeKind, TaskId};

use crate::harness::{PATIENCE, Setup, Swarm, eventually, now_us, report, rounds, shared_postgres};

/// A job that takes long enough for a fault and a recovery, shows that it goes on, and whose log shows a second run.
const LONG: &str = "for n in 1 2 3 4 5 6 7 8; do echo $n; sleep 1; done";
const LONG_LOG: &[u8] = b"1\n2\n3\n4\n5\n6\n7\n8\n";
/// What jobs write that only begin and end.
const SHORT_LOG: &[u8] = b"begun\ndone\n";

impl Swarm {
    pub(crate) fn fault(&self, what: &str) {
        self.recorder.add(now_us(), Verdict::Ok, Op::Fault { what: what.to_owned() });
    }

    fn kill_core(&self) {
        self.fault("kill -9 of the core");
        self.core().take().expect("a core runs").kill();
    }

    fn kill_worker(&self) {
        self.fault("kill -9 of the worker");
        self.worker().take().expect("a worker runs").kill();
    }

    fn signal_worker(&self, what: Signal) {
        self.fault(&format!("{what:?} of the worker"));
        self.worker().as_ref().expect("a worker runs").signal(what);
    }

    /// The job ended well, in its first attempt, and said everything exactly once.
    fn ran_once(&self, job: JobId, log: &[u8]) {
        assert_eq!(self.wait_ended(job, Duration::from_secs(120)).job.state, JobState::Succeeded);
        let view = self.task(job);
        assert_eq!(view.attempts.len(), 1, "it ran again: {view:?}");
        self.check_log(TaskId { job, task: 0 }, log, b"");
    }

    /// The running containers of a job.
    fn containers(&self, job: JobId) -> Vec<String> {
        let id = self.id().expect("the store holds the swarm's id");
        let ours = self.docker().listing(&id).into_iter().filter(|stamp| stamp.job == job.0);
        ours.filter(|stamp| stamp.listed.is_some_and(|listed| listed.running)).map(|stamp| stamp.container).collect()
    }

    /// The one container of a job that runs [`LONG`] carries on: it is still the same and writes lines that were not
    /// there before.
    fn carries_on(&self, job: JobId, container: &str) {
        let lines = || self.docker().run(&["logs", container]).expect("the engine has the log").lines().count();
        let before = lines();
        eventually("the container writes another line", PATIENCE, || (lines() > before).then_some(()));
        assert_eq!(self.containers(job), [container], "the container did not survive");
    }

    /// The one running container of a job.
    fn container(&self, job: JobId) -> String {
        let mut containers = self.containers(job);
        assert_eq!(containers.len(), 1, "{containers:?}");
        containers.remove(0)
    }
}

/// While `kill`ed parts are away the container carries on, and after `start` its job ends as if nothing had happened.
fn killed_mid_run(scenario: &str, setup: Setup, kill: impl Fn(&Swarm), start: impl Fn(&Swarm)) {
    let swarm = Swarm::start(setup);
    for _ in 0..rounds(20) {
        let job = swarm.submit(&swarm.shell(LONG));
        swarm.wait_started(job, 1);
        let container = swarm.container(job);
        kill(&swarm);
        swarm.carries_on(job, &container);
        start(&swarm);
        swarm.ran_once(job, LONG_LOG);
    }
    swarm.judge(scenario, true);
}

fn core_killed_mid_run(scenario: &str, setup: Setup) {
    killed_mid_run(scenario, setup, Swarm::kill_core, |swarm| {
        let began = Instant::now();
        swarm.start_core();
        report(&format!("{scenario}: core answers again after {:.1} s", began.elapsed().as_secs_f64()));
    });
}

#[test]
fn a_core_killed_mid_run_loses_and_doubles_nothing() {
    core_killed_mid_run("core killed mid-run", Setup::default());
}

#[test]
fn a_core_killed_mid_run_loses_and_doubles_nothing_on_postgres() {
    let postgres = shared_postgres().expect("SWARM_TEST_POSTGRES_URL names a Postgres; `cargo xtask test` starts one");
    core_killed_mid_run("core killed mid-run on Postgres", Setup { postgres: Some(postgres), ..Setup::default() });
}

#[test]
fn a_job_ended_while_the_core_was_away_is_reported_later() {
    let swarm = Swarm::start(Setup::default());
    let job = swarm.submit(&swarm.shell("echo begun; sleep 3; echo done"));
    swarm.wait_started(job, 1);
    swarm.kill_core();
    let id = swarm.id().expect("the store holds the swarm's id");
    eventually("the container ends", PATIENCE, || {
        swarm.docker().listing(&id).iter().all(|stamp| stamp.listed.is_some_and(|listed| !listed.running)).then_some(())
    });
    swarm.start_core();
    swarm.ran_once(job, SHORT_LOG);
    swarm.judge("end while the core was away", true);
}

/// Who follows a job waits for the core as the job does: every byte comes once, and the job's own code.
#[test]
fn a_job_is_followed_to_its_end_over_a_kill_of_the_core() {
    let script = "n=0; while [ $n -lt 20 ]; do echo $n; sleep 1; n=$((n+1)); done; exit 3";
    let log: String = (0..20).map(|n| format!("{n}\n")).collect();
    let swarm = &Swarm::start(Setup::default());
    std::thread::scope(|scope| {
        let running = scope.spawn(|| swarm.run(&[], &["sh", "-c", script]));
        let job = eventually("`run` has submitted", PATIENCE, || {
            let jobs = swarm.block(swarm.client.jobs(&swarm_client::JobFilter::default())).ok()?;
            jobs.items.first().map(|job| job.id)
        });
        swarm.wait_started(job, 1);
        let following = scope.spawn(move || swarm.consumer(&["logs", "-f", &job.to_string()]));
        let container = swarm.container(job);
        swarm.kill_core();
        // A line a second: longer than a call that is not patient tries.
        for _ in 0..4 {
            swarm.carries_on(job, &container);
        }
        swarm.start_core();
        let (ran, _) = running.join().expect("`run` ends");
        let followed = following.join().expect("`logs -f` ends");
        for (ended, code) in [(ran, 3), (followed, 0)] {
            assert_eq!(
                (ended.code, String::from_utf8_lossy(&ended.stdout)),
                (Some(code), log.as_str().into()),
                "{ended:?}"
            );
            assert_eq!(ended.stderr.matches("waiting for it").count(), 1, "{ended:?}");
        }
    });
    swarm.judge("core killed under followers", true);
}

#[test]
fn a_worker_killed_mid_run_adopts_its_container_at_its_next_start() {
    killed_mid_run("worker killed mid-run", Setup::default(), Swarm::kill_worker, Swarm::start_worker);
}

#[test]
fn a_container_that_died_with_its_worker_is_run_again() {
    let swarm = Swarm::start(Setup::default());
    let mut spec = swarm.shell("echo attempt $SWARM_ATTEMPT; [ $SWARM_ATTEMPT -gt 1 ] || sleep 600");
    let job = swarm.submit(&spec);
    spec.at_most_once = true;
    let once = swarm.submit(&spec);
    swarm.wait_started(job, 1);
    swarm.wait_started(once, 1);
    swarm.kill_worker();
    let containers = [swarm.containers(job), swarm.containers(once)].concat();
    assert_eq!(containers.len(), 2);
    swarm.fault("removal of the containers while no worker runs");
    for container in containers {
        swarm.docker().run(&["rm", "--force", "--volumes", &container]).expect("the container can be removed");
    }
    swarm.start_worker();
    assert_eq!(swarm.wait_ended(job, Duration::from_secs(120)).job.state, JobState::Succeeded);
    let view = swarm.task(job);
    assert_eq!(view.attempts.len(), 2, "{view:?}");
    assert_eq!((view.attempts[0].outcome, view.attempts[0].may_have_run), (Some(OutcomeKind::Lost), true));
    assert!(view.attempts[0].log_cut_bytes > 0, "what it wrote last is missing, and nobody is told: {view:?}");
    swarm.check_log(TaskId { job, task: 0 }, b"attempt 2\n", b"");
    // What may have run is not run again when that was asked for.
    assert_eq!(swarm.wait_ended(once, Duration::from_secs(120)).job.state, JobState::Failed);
    let view = swarm.task(once);
    assert!(view.attempts.len() == 1 && view.attempts[0].may_have_run, "{view:?}");
    swarm.judge("worker and container killed", true);
}

/// The worker falls silent and comes back only after its attempt was given up.
fn worker_silenced(scenario: &str, swarm: &Swarm, silence: impl Fn(&Swarm), come_back: impl Fn(&Swarm)) {
    let mut spec = swarm.shell("echo attempt $SWARM_ATTEMPT; [ $SWARM_ATTEMPT -gt 1 ] || sleep 600");
    spec.lease_s = 15;
    let job = swarm.submit(&spec);
    swarm.wait_started(job, 1);
    silence(swarm);
    // What was renewed was renewed before this.
    let silent_us = now_us();
    swarm.expect(job, "the watchdog kills its container", Duration::from_secs(30), || {
        swarm.containers(job).is_empty().then_some(())
    });
    // By the engine's own stamp: a busy machine tells late of it.
    let id = swarm.id().expect("the store holds the swarm's id");
    let died_us = eventually("the engine tells when", PATIENCE, || {
        let stamps = swarm.engine.stamps(&id).into_iter();
        let died = stamps.filter(|stamp| stamp.job == job.0 && stamp.action == Some(Action::Die));
        died.map(|stamp| stamp.at_us).next()
    });
    let killed_after = (died_us - silent_us) as f64 / 1e6;
    let ended = swarm.expect(job, "attempt 1 is given up", Duration::from_secs(90), || {
        let view = swarm.try_task(TaskId { job, task: 0 })?;
        let first = view.attempts.first()?;
        (first.phase == TaskPhase::Ended).then(|| first.clone())
    });
    assert_eq!((ended.outcome, ended.may_have_run), (Some(OutcomeKind::Lost), true), "{ended:?}");
    let given_up_after = (ended.ended_at.expect("it ended").timestamp_micros() - silent_us) as f64 / 1e6;
    assert!(killed_after < 15.0, "the container was killed {killed_after:.1} s after the worker fell silent");
    assert!(given_up_after > killed_after, "given up after {given_up_after:.1} s, killed after {killed_after:.1} s");
    report(&format!(
        "{scenario}, lease 15 s: container killed after {killed_after:.1} s, attempt given up after {given_up_after:.1} s"
    ));
    come_back(swarm);
    assert_eq!(swarm.wait_ended(job, Duration::from_secs(120)).job.state, JobState::Succeeded);
    assert_eq!(swarm.task(job).attempts.len(), 2);
    swarm.check_log(TaskId { job, task: 0 }, b"attempt 2\n", b"");
    let judged = swarm.judge(scenario, true);
    assert_eq!(judged.of(Invariant::I4).excepted, 0);
}

#[test]
fn a_frozen_workers_container_is_killed_before_the_lease_ends_and_run_again_after() {
    let swarm = Swarm::start(Setup::default());
    worker_silenced(
        "frozen worker",
        &swarm,
        |swarm| swarm.signal_worker(Signal::STOP),
        |swarm| swarm.signal_worker(Signal::CONT),
    );
}

#[test]
fn a_killed_workers_container_is_killed_before_the_lease_ends_and_run_again_after() {
    let swarm = Swarm::start(Setup::default());
    worker_silenced("killed worker", &swarm, Swarm::kill_worker, Swarm::start_worker);
}

/// Long before their leases end: one job takes a doubled run rather than a delay, of the other an operator says that its
/// worker is gone.
#[test]
fn a_silent_workers_attempts_are_given_up_early_when_that_is_asked_for() {
    let swarm = Swarm::start(Setup::default());
    let mut spec = swarm.shell("echo attempt $SWARM_ATTEMPT; [ $SWARM_ATTEMPT -gt 1 ] || sleep 600");
    let patient = swarm.submit(&spec);
    spec.eager = true;
    let eager = swarm.submit(&spec);
    for job in [patient, eager] {
        swarm.wait_started(job, 1);
    }
    let given_up = |job, why: &str| {
        let ended = swarm.expect(job, "attempt 1 is given up", Duration::from_secs(60), || {
            let first = swarm.try_task(TaskId { job, task: 0 })?.attempts.into_iter().next()?;
            (first.phase == TaskPhase::Ended).then_some(first)
        });
        assert_eq!((ended.outcome, ended.may_have_run), (Some(OutcomeKind::Lost), true), "{ended:?}");
        assert!(ended.detail.as_ref().is_some_and(|detail| detail.contains(why)), "{ended:?}");
    };
    swarm.signal_worker(Signal::STOP);
    given_up(eager, "eager");
    assert_eq!(swarm.task(patient).attempts[0].phase, TaskPhase::Started, "its lease is 30 minutes");
    let workers = swarm.block(swarm.client.workers()).expect("they can be listed").items;
    swarm.fault("the worker is declared lost");
    swarm.block(swarm.client.declare_worker_lost(workers[0].id)).expect("an operator may say so");
    given_up(patient, "declared");
    swarm.fault("SIGCONT of the worker");
    swarm.worker().as_ref().expect("a worker runs").signal(Signal::CONT);
    for job in [patient, eager] {
        assert_eq!(swarm.wait_ended(job, Duration::from_secs(120)).job.state, JobState::Succeeded);
        assert_eq!(swarm.task(job).attempts.len(), 2);
        swarm.check_log(TaskId { job, task: 0 }, b"attempt 2\n", b"");
    }
    swarm.judge("given up early", true);
}

#[test]
fn core_and_worker_killed_together_lose_and_double_nothing() {
    let kill = |swarm: &Swarm| {
        swarm.kill_worker();
        swarm.kill_core();
    };
    let start = |swarm: &Swarm| {
        swarm.start_core();
        swarm.start_worker();
    };
    killed_mid_run("core and worker killed", Setup::default(), kill, start);
}

#[test]
fn a_killed_core_still_knows_what_waits_sleeps_and_is_scheduled() {
    let swarm = Swarm::start(Setup { slots: Some(1), ..Setup::default() });
    let running = swarm.submit(&swarm.shell("echo begun; sleep 6; echo done"));
    swarm.wait_started(running, 1);
    let waiting: Vec<_> = (0..3).map(|_| swarm.submit(&swarm.shell("echo waited"))).collect();
    let mut array = swarm.shell("echo $SWARM_TASK_INDEX");
    array.array = swarm_protocol::TaskRange::new(5, 8);
    let array = swarm.submit(&array);
    let mut delayed = swarm.shell("echo delayed");
    let start_at = chrono::DateTime::from_timestamp_micros(now_us() + 6_000_000).expect("an instant");
    delayed.start_at = Some(start_at);
    let delayed = swarm.submit(&delayed);
    assert_eq!(swarm.detail(delayed).job.state, JobState::Delayed);
    let mut impossible = swarm.shell("true");
    impossible.resources.memory_bytes = 1 << 44;
    let impossible = swarm.submit(&impossible);
    let spec = swarm.shell("true");
    // Never due while the test runs.
    let request = ScheduleRequest { name: "yearly".into(), cron: "0 0 29 2 *".into(), zone: "UTC".into(), spec };
    let schedule = swarm.block(swarm.client.create_schedule(&request)).expect("a schedule can be made");
    swarm.kill_core();
    swarm.start_core();
    let again = swarm.block(swarm.client.schedule(schedule.id)).expect("the schedule survived");
    assert_eq!((&again.name, &again.next), (&schedule.name, &schedule.next));
    let done = swarm.block(swarm.client.cancel(impossible)).expect("a waiting job can be cancelled");
    assert_eq!(done.job.state, JobState::Cancelled);
    swarm.ran_once(running, SHORT_LOG);
    for job in waiting {
        swarm.ran_once(job, b"waited\n");
    }
    swarm.ran_once(delayed, b"delayed\n");
    assert!(swarm.task(delayed).attempts[0].started_at.expect("it started") >= start_at, "it started too early");
    let detail = swarm.wait_ended(array, PATIENCE);
    assert_eq!((detail.job.state, detail.job.tasks.succeeded), (JobState::Succeeded, 4));
    for task in 5..=8 {
        swarm.check_log(TaskId { job: array, task }, format!("{task}\n").as_bytes(), b"");
    }
    let expected = Expectation { schedule: schedule.id.0, due_us: Vec::new() };
    swarm.recorder.add(now_us(), Verdict::Ok, Op::Schedule(expected));
    swarm.judge("core killed with a queue", true);
}

#[test]
fn submits_during_kills_of_the_core_are_kept_or_refused_but_never_lost() {
    let swarm = Swarm::start(Setup::default());
    let (mut accepted, mut unanswered) = (Vec::new(), 0);
    for round in 0..3 * rounds(20) {
        std::thread::scope(|scope| {
            let (answers, answered) = mpsc::channel();
            let swarm = &swarm;
            scope.spawn(move || {
                for _ in 0..40 {
                    // The other end hears all of them.
                    let _ = answers.send(swarm.try_submit(&swarm.shell("true")));
                }
            });
            // The kill meets a submit under way, each time another one.
            let before = 2 + round as usize % 30;
            let mut results: Vec<_> = (0..before).map(|_| answered.recv_timeout(PATIENCE)).collect();
            swarm.kill_core();
            swarm.start_core();
            results.extend(answered.into_iter().map(Ok));
            for result in results {
                match result.expect("submits are answered in time") {
                    Ok(job) => accepted.push(job),
                    Err(_) => unanswered += 1,
                }
            }
        });
    }
    assert!(!accepted.is_empty());
    for job in &accepted {
        swarm.wait_ended(*job, Duration::from_secs(300));
    }
    report(&format!("submits during kills: {} acknowledged, {unanswered} unanswered, 0 lost", accepted.len()));
    // Those without an answer may have been taken as well; they end like the others.
    for job in swarm.block(swarm.client.jobs(&swarm_client::JobFilter::default())).expect("jobs can be listed").items {
        swarm.wait_ended(job.id, Duration::from_secs(120));
    }
    swarm.judge("submits during kills", true);
}

#[test]
fn an_asked_for_stop_is_orderly_and_leaves_containers_to_the_next_start() {
    let swarm = Swarm::start(Setup::default());
    let job = swarm.submit(&swarm.shell("echo begun; sleep 12; echo done"));
    swarm.wait_started(job, 1);
    let before = swarm.containers(job);
    swarm.fault("SIGTERM of the core");
    let core = swarm.core().take().expect("a core runs");
    let status = core.terminate(Duration::from_secs(30));
    assert_eq!(status.code(), Some(0), "the core ended with {status}");
    swarm.start_core();
    swarm.fault("SIGTERM of the worker");
    let worker = swarm.worker().take().expect("a worker runs");
    let status = worker.terminate(Duration::from_secs(30));
    assert_eq!(status.code(), Some(0), "the worker ended with {status}");
    assert_eq!(swarm.containers(job), before, "a stop of the worker ended the container");
    swarm.start_worker();
    swarm.ran_once(job, SHORT_LOG);
    swarm.judge("orderly stop", true);
}
