//! Engines of the tests' own that crash, stop, start again and hang under load.

use std::time::{Duration, Instant};

use swarm_client::LogOptions;
use swarm_protocol::api::TaskPhase;
use swarm_protocol::spec::JobSpec;
use swarm_protocol::state::JobState;
use swarm_protocol::{JobId, OutcomeKind, TaskId, TaskRange};

use crate::harness::{Docker, OwnEngine, PATIENCE, Part, Setup, Swarm, eventually, report, rounds};

/// More losses than any scenario can cause.
const LOSSES_MAX: u16 = 100;
const ENDS: Duration = Duration::from_secs(240);
/// Ends well when it is asked to stop, before it is done.
const POLITE: &str = "trap 'exit 0' TERM; echo begun; for n in 1 2 3 4 5 6; do sleep 1; done; echo done";
/// Cannot be asked to stop.
const DEAF: &str = "trap '' TERM; echo begun; sleep 5; echo done";
const QUICK: &str = "echo begun; echo done";

/// How an engine goes.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Killed(Part),
    /// As by a package upgrade.
    Stopped,
}

impl Swarm {
    fn with_losses(&self, script: &str) -> JobSpec {
        let mut spec = self.shell(script);
        spec.retries.lost = LOSSES_MAX;
        spec
    }

    /// Jobs that are running, being prepared and waiting for a slot.
    fn load(&self) -> Vec<JobId> {
        let mut quick = self.with_losses(QUICK);
        quick.array = TaskRange::new(0, 7);
        let long = [self.submit(&self.with_losses(POLITE)), self.submit(&self.with_losses(DEAF))];
        [&long[..], &[self.submit(&quick)]].concat()
    }

    /// What the core has of a running job's log.
    fn log_so_far(&self, job: JobId) -> Vec<u8> {
        self.block(async {
            let mut tail = self.client.log(TaskId { job, task: 0 }, LogOptions::default());
            let mut bytes = Vec::new();
            while let Some(record) = tail.next().await.expect("the log can be read") {
                bytes.extend(record.bytes);
            }
            bytes
        })
    }

    fn strike(&self, engine: &OwnEngine, fault: Fault) {
        self.fault(&format!("the engine is {fault:?}"));
        let death = match fault {
            Fault::Killed(part) => engine.kill(part),
            Fault::Stopped => engine.stop(),
        };
        engine.begin();
        self.engine.watch_again(death);
    }

    /// Every task ended well, by an attempt that said everything; whatever was before was lost and not a failure. How
    /// many were lost.
    fn ended_well(&self, job: JobId) -> usize {
        let detail = self.wait_ended(job, ENDS);
        assert_eq!(detail.job.state, JobState::Succeeded, "job {job}: {:?}", self.task(job));
        let mut lost = 0;
        let tasks = self.block(self.client.tasks(job, Some(1000), None)).expect("tasks can be listed").items;
        assert_eq!(tasks.len() as u64, detail.job.tasks.total);
        for task in tasks.iter().map(|view| view.task) {
            let view = self.task_of(TaskId { job, task });
            let (last, earlier) = view.attempts.split_last().expect("it ran");
            assert_eq!(last.outcome, Some(OutcomeKind::Succeeded), "{view:?}");
            assert!(earlier.iter().all(|one| one.outcome == Some(OutcomeKind::Lost)), "{view:?}");
            self.check_log(TaskId { job, task }, super::SHORT_LOG, b"");
            lost += earlier.len();
        }
        lost
    }
}

/// A container and a volume of somebody else.
struct Foreign {
    docker: Docker,
    container: String,
    volume: String,
}

impl Foreign {
    fn make(swarm: &Swarm) -> Self {
        let archive = swarm.home().join("image.tar");
        let docker = swarm.docker();
        let loaded = docker.run(&["load", "--quiet", "--input", archive.to_str().expect("a plain path")]);
        let loaded = loaded.expect("the image can be loaded");
        let image = loaded.trim().rsplit_once(": ").map_or(loaded.trim(), |(_, image)| image);
        let volume = format!("foreign-{}", uuid::Uuid::new_v4().simple());
        let mount = format!("{volume}:/kept");
        let words = ["run", "--detach", "--network", "none", "--restart", "always", "--volume", &mount, image];
        let run = docker.run(&[&words[..], &["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"]].concat());
        Self { docker: docker.clone(), container: run.expect("the container can be started").trim().to_owned(), volume }
    }

    /// It is still there and runs, and so is its volume.
    fn check(&self) {
        eventually("the foreign container runs", PATIENCE, || {
            let running = self.docker.run(&["inspect", "--format", "{{.State.Running}}", &self.container]);
            (running.expect("the foreign container is there").trim() == "true").then_some(())
        });
        self.docker.run(&["volume", "inspect", &self.volume]).expect("the foreign volume is there");
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.docker.run(&["rm", "--force", &self.container]);
        self.docker.run(&["volume", "rm", &self.volume]);
    }
}

#[test]
fn an_engine_that_crashes_or_stops_under_load_costs_attempts_and_never_a_job() {
    let engine = OwnEngine::start(&[]);
    let swarm = Swarm::start(Setup { engine: engine.docker().host, ..Setup::default() });
    let foreign = Foreign::make(&swarm);
    let faults = [Fault::Killed(Part::Service), Fault::Stopped, Fault::Killed(Part::Daemon)];
    let (mut lost, mut jobs, mut slowest) = (0, 0, Duration::ZERO);
    let faults: Vec<Fault> = faults.into_iter().cycle().take(if rounds(20) == 1 { 3 } else { 30 }).collect();
    for (round, fault) in faults.iter().enumerate() {
        let load = swarm.load();
        swarm.wait_started(load[0], 1);
        // Each round strikes at another moment of the others.
        std::thread::sleep(Duration::from_millis(round as u64 * 150 % 1000));
        swarm.strike(&engine, *fault);
        let began = Instant::now();
        lost += load.iter().map(|job| swarm.ended_well(*job)).sum::<usize>();
        slowest = slowest.max(began.elapsed());
        jobs += load.len();
    }
    swarm.judge("engine crashes and stops", true);
    foreign.check();
    assert!(lost > 0, "nothing was running when the engine went");
    let (count, slowest) = (faults.len(), slowest.as_secs());
    report(&format!(
        "engine killed or stopped {count} times: {jobs} jobs, {lost} attempts lost, 0 jobs, done within {slowest} s"
    ));
}

#[test]
fn a_worker_killed_again_and_again_under_load_leaves_no_container_behind() {
    let swarm = Swarm::start(Setup::default());
    let foreign = Foreign::make(&swarm);
    let kills: u32 = if rounds(100) == 1 { 3 } else { 100 };
    let (mut lost, mut jobs) = (0, Vec::new());
    for round in 0..kills {
        // A few rounds' jobs are there at a time.
        if let Some(old) = jobs.len().checked_sub(4) {
            lost += swarm.ended_well(jobs[old]);
        }
        let mut array = swarm.with_losses("echo begun; [ $SWARM_TASK_INDEX = 0 ] && sleep 2; echo done");
        array.array = TaskRange::new(0, 3);
        jobs.push(swarm.submit(&array));
        // The kill meets the worker while it takes orders, prepares, starts, reads logs and reports.
        std::thread::sleep(Duration::from_millis(u64::from(round) * 170 % 1500));
        swarm.kill_worker();
        swarm.start_worker();
    }
    lost += jobs[jobs.len().saturating_sub(4)..].iter().map(|job| swarm.ended_well(*job)).sum::<usize>();
    let began = Instant::now();
    swarm.judge("worker killed again and again", true);
    foreign.check();
    let (tasks, gone) = (jobs.len() * 4, began.elapsed().as_secs_f64());
    report(&format!("worker killed {kills} times: {tasks} tasks, {lost} attempts lost, all gone after {gone:.1} s"));
}

#[test]
fn an_engine_that_starts_again_and_leaves_its_containers_alone_costs_nothing() {
    let engine = OwnEngine::start(&["--live-restore"]);
    let swarm = Swarm::start(Setup { engine: engine.docker().host, ..Setup::default() });
    let job = swarm.submit(&swarm.shell(super::LONG));
    let failing = swarm.submit(&swarm.shell("echo begun; sleep 8; exit 3"));
    swarm.wait_started(job, 1);
    swarm.wait_started(failing, 1);
    swarm.strike(&engine, Fault::Killed(Part::Daemon));
    swarm.ran_once(job, super::LONG_LOG);
    assert_eq!(swarm.wait_ended(failing, ENDS).job.state, JobState::Failed);
    let view = swarm.task(failing);
    assert_eq!((view.attempts.len(), view.attempts[0].exit_code), (1, Some(3)), "its failure is its own: {view:?}");
    swarm.judge("engine started again under live-restore", true);
}

/// A swarm whose scenario failed could not be cleaned away from a frozen engine.
struct Thaw<'a>(&'a OwnEngine);

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        self.0.thaw();
    }
}

#[test]
fn an_engine_that_hangs_is_waited_for_and_takes_no_work_meanwhile() {
    let engine = OwnEngine::start(&[]);
    let swarm = Swarm::start(Setup { engine: engine.docker().host, ..Setup::default() });
    let load = swarm.load();
    swarm.wait_started(load[0], 1);
    swarm.fault("SIGSTOP of the engine");
    swarm.engine.note(engine.freeze());
    let _thaw = Thaw(&engine);
    let began = Instant::now();
    let said = |words: &str| swarm.worker().as_ref().expect("a worker runs").printed().contains(words);
    eventually("the worker says it", PATIENCE, || said("the container engine cannot be used").then_some(()));
    let noticed = began.elapsed();
    eventually("the core knows", PATIENCE, || {
        let workers = swarm.block(swarm.client.workers()).ok()?.items;
        workers.iter().all(|worker| worker.state != "ready").then_some(())
    });
    let waiting = swarm.submit(&swarm.with_losses(QUICK));
    // Longer than a heartbeat, shorter than the deadline of a call.
    std::thread::sleep(Duration::from_secs(20).saturating_sub(began.elapsed()));
    swarm.fault("SIGCONT of the engine");
    engine.thaw();
    let lost: usize = load.iter().chain([&waiting]).map(|job| swarm.ended_well(*job)).sum();
    assert!(said("the container engine can be used again"));
    assert_eq!(lost, 0, "what only waits is not lost");
    swarm.judge("engine hangs", true);
    report(&format!("engine hung 20 s: noticed after {:.1} s, {} jobs, 0 lost", noticed.as_secs_f64(), load.len() + 1));
}

/// As when a clean-up of `/run`, or a package that starts anew, takes the file away.
#[test]
fn an_engine_whose_socket_vanishes_and_comes_back_costs_attempts_and_never_a_job() {
    let engine = OwnEngine::start(&[]);
    let swarm = Swarm::start(Setup { engine: engine.docker().host, ..Setup::default() });
    let long = swarm.submit(&swarm.with_losses("n=0; while [ $n -lt 25 ]; do echo $n; sleep 1; n=$((n+1)); done"));
    let short = swarm.submit(&swarm.with_losses("echo begun; sleep 5; echo done"));
    swarm.wait_started(long, 1);
    swarm.wait_started(short, 1);
    let container = swarm.container(long);
    swarm.fault("the engine's socket is moved away");
    let (hidden, began) = (engine.hide_socket(), Instant::now());
    let said = |words: &str| swarm.worker().as_ref().expect("a worker runs").printed().contains(words);
    eventually("the worker says it", PATIENCE, || said("the container engine cannot be used").then_some(()));
    let noticed = began.elapsed();
    eventually("the core knows", PATIENCE, || {
        let workers = swarm.block(swarm.client.workers()).ok()?.items;
        workers.iter().all(|worker| worker.state != "ready").then_some(())
    });
    let waiting = swarm.submit(&swarm.with_losses(QUICK));
    // One container ends meanwhile. The other one goes on, and the core hears of it.
    let id = swarm.id().expect("the store holds the swarm's id");
    let running = || {
        let listed = hidden.listing(&id).into_iter();
        let running = listed.filter(|stamp| stamp.listed.is_some_and(|listed| listed.running));
        running.map(|stamp| stamp.container).collect::<Vec<_>>()
    };
    eventually("the short job's container ends", PATIENCE, || (running() == [container.clone()]).then_some(()));
    let (task, before) = (TaskId { job: long, task: 0 }, swarm.log_so_far(long).len());
    eventually("the core gets more of the log", PATIENCE, || (swarm.log_so_far(long).len() > before).then_some(()));
    let view = swarm.task_of(task);
    assert_eq!((view.attempts.len(), view.attempts[0].phase), (1, TaskPhase::Started), "{view:?}");
    assert_eq!(swarm.detail(waiting).job.state, JobState::Waiting, "it takes work that it cannot do");
    swarm.fault("the engine's socket is moved back");
    engine.show_socket();
    let lost: usize = [short, waiting].iter().map(|job| swarm.ended_well(*job)).sum();
    assert!(said("the container engine can be used again"));
    let log: String = (0..25).map(|n| format!("{n}\n")).collect();
    swarm.ran_once(long, log.as_bytes());
    swarm.judge("socket gone", true);
    let (noticed, away) = (noticed.as_secs_f64(), began.elapsed().as_secs_f64());
    report(&format!(
        "the engine's socket away: noticed after {noticed:.1} s, {lost} attempts lost, 0 jobs, all done after {away:.1} s"
    ));
}
