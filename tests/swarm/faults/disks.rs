//! Disks that are full: small filesystems under the database, the blobs, the worker's spool and an engine's images. Nothing
//! that was acknowledged is lost, who asks is told, and all goes on by itself when there is space again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_protocol::JobId;
use swarm_protocol::spec::Output;
use swarm_protocol::state::JobState;

use super::{LONG, LONG_LOG};
use crate::harness::{Full, OwnEngine, PATIENCE, Setup, SmallDisk, Swarm, either, eventually, noise, report, rounds};

/// Cycles of full and free again in the full tier.
const CYCLES: u32 = 50;
/// How soon after there is space again everything works.
const HEALED: Duration = Duration::from_secs(60);
/// A submit that was refused again and again for so long is refused.
const REFUSED_AFTER: Duration = Duration::from_secs(12);
/// What a core needs beside the ballast: image, database and logs of some jobs.
const ROOM: &str = "size=96m,nr_inodes=4k";

/// Whether an error tells its reader what is the matter and what to do.
fn is_clear(error: &swarm_client::ClientError) -> bool {
    error
        .problem()
        .is_some_and(|problem| matches!(problem.status, 503 | 507) && problem.retryable && problem.hint.is_some())
}

impl Swarm {
    fn fill(&self, disk: &SmallDisk, what: Full) {
        self.fault(&format!("{what:?} of a disk are used up"));
        disk.fill(what);
    }

    fn all_succeed(&self, jobs: &[JobId]) {
        for job in jobs {
            assert_eq!(
                self.wait_ended(*job, Duration::from_secs(180)).job.state,
                JobState::Succeeded,
                "{:?}",
                self.task(*job)
            );
        }
    }
}

#[test]
fn a_database_on_a_full_disk_acknowledges_nothing_that_it_loses_and_goes_on() {
    let database_file = Some("database/swarm.db");
    // What is taken while it is full adds up: 64 KiB a job.
    let size = either("size=48m", "size=192m");
    let setup = Setup { small_disks: vec![("database", size)], database_file, ..Setup::default() };
    let swarm = &Swarm::start(setup);
    let (mut refused, mut slowest) = (0, Duration::ZERO);
    for _ in 0..rounds(CYCLES) {
        let running = swarm.submit(&swarm.shell(LONG));
        swarm.wait_started(running, 1);
        swarm.fill(&swarm.small_disks[0], Full::Bytes);
        let mut spec = swarm.shell("true");
        // One that does not fit into what is left of a page.
        spec.env = (0..64).map(|n| (format!("FILLER_{n}"), "x".repeat(1000))).collect();
        // The log of the database may have room left from earlier rounds: what is taken there is kept like any other.
        let mut taken = Vec::new();
        while let Some(job) = swarm.submit_stubbornly(&spec, Instant::now() + REFUSED_AFTER) {
            taken.push(job);
            assert!(taken.len() < 200, "its disk is full, and still there is space");
        }
        refused += 1;
        swarm.small_disks[0].clear();
        let cleared = Instant::now();
        let late = swarm.submit_stubbornly(&spec, cleared + HEALED).expect("it is taken when there is space again");
        slowest = slowest.max(cleared.elapsed());
        swarm.ran_once(running, LONG_LOG);
        swarm.all_succeed(&[late]);
        swarm.all_succeed(&taken);
    }
    for job in swarm.block(swarm.client.jobs(&swarm_client::JobFilter::default())).expect("jobs can be listed").items {
        swarm.wait_ended(job.id, Duration::from_secs(120));
    }
    swarm.judge("full disk of the database", true);
    report(&format!("database's disk full {refused} times: taken again after {:.1} s", slowest.as_secs_f64()));
}

fn blobs_full(scenario: &str, what: Full) {
    let database_file = Some("database.db");
    let swarm = &Swarm::start(Setup { small_disks: vec![("core", ROOM)], database_file, ..Setup::default() });
    let (file, mut slowest) = (swarm.home().join("input"), Duration::ZERO);
    for round in 0..rounds(CYCLES) {
        std::fs::write(&file, noise(200_000, round as u8 + 1)).expect("the input can be written");
        let upload = || swarm.block(swarm.client.upload_file(&file, Arc::new(|_| ())));
        let running = swarm.submit(&swarm.shell(LONG));
        swarm.wait_started(running, 1);
        swarm.fill(&swarm.small_disks[0], what);
        let refused = upload().expect_err("there is no space for it");
        assert!(is_clear(&refused), "{refused:?}");
        // Its log cannot be stored now: the worker keeps it.
        let ending = swarm.submit(&swarm.shell("echo begun; echo done"));
        std::thread::sleep(Duration::from_secs(6));
        swarm.small_disks[0].clear();
        let cleared = Instant::now();
        eventually("an upload is taken again", HEALED, || upload().ok());
        slowest = slowest.max(cleared.elapsed());
        swarm.ran_once(running, LONG_LOG);
        swarm.ran_once(ending, super::SHORT_LOG);
    }
    swarm.judge(scenario, true);
    report(&format!("{scenario}: taken again after {:.1} s", slowest.as_secs_f64()));
}

#[test]
fn blobs_on_a_full_disk_refuse_uploads_and_keep_what_they_have() {
    blobs_full("full disk of the blobs", Full::Bytes);
}

#[test]
fn blobs_without_inodes_refuse_uploads_and_keep_what_they_have() {
    blobs_full("blobs without inodes", Full::Inodes);
}

fn spool_full(scenario: &str, what: Full) {
    let swarm = &Swarm::start(Setup { small_disks: vec![("worker", "size=16m,nr_inodes=2k")], ..Setup::default() });
    let mut giving = swarm.shell("cp /etc/noise /out/copy; echo begun; sleep 4; echo done");
    giving.outputs = vec![Output { path: "/out/copy".into() }];
    let mut slowest = Duration::ZERO;
    for _ in 0..rounds(CYCLES) {
        let [running, cancelled] = [LONG, "for n in 1 2 3; do echo $n; sleep 2; done; sleep 600"]
            .map(|script| swarm.submit(&swarm.shell(script)));
        let giving = swarm.submit(&giving);
        for job in [running, cancelled, giving] {
            swarm.wait_started(job, 1);
        }
        swarm.fill(&swarm.small_disks[0], what);
        // Nothing can be promised for it; it may be refused by the worker, and waits.
        let waiting = swarm.submit(&swarm.shell("echo begun; echo done"));
        eventually("the worker takes no more work", PATIENCE, || {
            let workers = swarm.block(swarm.client.workers()).ok()?.items;
            workers.iter().all(|worker| worker.state != "ready").then_some(())
        });
        swarm.block(swarm.client.cancel(cancelled)).expect("a running job can be cancelled");
        swarm.wait_exited(giving);
        std::thread::sleep(Duration::from_secs(4));
        swarm.small_disks[0].clear();
        let cleared = Instant::now();
        swarm.wait_ready();
        slowest = slowest.max(cleared.elapsed());
        assert_eq!(swarm.wait_ended(running, Duration::from_secs(180)).job.state, JobState::Succeeded);
        swarm.all_succeed(&[waiting, giving]);
        assert_eq!(swarm.wait_ended(cancelled, PATIENCE).job.state, JobState::Cancelled);
        for (job, outputs) in [(giving, 1), (cancelled, 0)] {
            let attempts = swarm.task(job).attempts;
            assert_eq!((attempts.len(), attempts[0].outputs.len()), (1, outputs), "{attempts:?}");
        }
        swarm.check_log(swarm_protocol::TaskId { job: running, task: 0 }, LONG_LOG, b"");
    }
    swarm.judge(scenario, true);
    report(&format!("{scenario}: ready again after {:.1} s", slowest.as_secs_f64()));
}

#[test]
fn a_worker_whose_spool_is_full_takes_no_work_and_loses_none() {
    spool_full("full disk of the spool", Full::Bytes);
}

#[test]
fn a_worker_whose_spool_has_no_inodes_takes_no_work_and_loses_none() {
    spool_full("spool without inodes", Full::Inodes);
}

/// The files of a database are there already, so it goes on; a core that has to make one does not start, and says why.
#[test]
fn a_database_without_inodes_goes_on_and_its_core_starts_when_there_are_some() {
    let database_file = Some("database/swarm.db");
    let setup = Setup { small_disks: vec![("database", "size=48m,nr_inodes=64")], database_file, ..Setup::default() };
    let swarm = &Swarm::start(setup);
    let (mut refused, mut slowest) = (0, Duration::ZERO);
    for _ in 0..rounds(CYCLES) {
        let running = swarm.submit(&swarm.shell(LONG));
        swarm.wait_started(running, 1);
        swarm.fill(&swarm.small_disks[0], Full::Inodes);
        let spec = swarm.shell("echo begun; echo done");
        let before = swarm.submit_stubbornly(&spec, Instant::now() + HEALED).expect("there is space for it");
        swarm.kill_core();
        let mut core = swarm.spawn_core(&[]);
        let asking = || swarm.block(swarm.client.ready()).ok().map(|()| None);
        let refusal = eventually("the core starts, or refuses to", PATIENCE, || core.ended().map(Some).or_else(asking));
        if refusal.is_some() {
            let printed = core.printed();
            assert!(printed.contains("database/swarm.db") && printed.contains("No space left"), "{printed}");
            refused += 1;
        }
        swarm.small_disks[0].clear();
        let cleared = Instant::now();
        if refusal.is_some() {
            swarm.start_core();
        } else {
            *swarm.core() = Some(core);
        }
        let late = swarm.submit_stubbornly(&spec, cleared + HEALED).expect("it is taken when there are some again");
        slowest = slowest.max(cleared.elapsed());
        swarm.ran_once(running, LONG_LOG);
        for job in [before, late] {
            swarm.ran_once(job, super::SHORT_LOG);
        }
    }
    swarm.judge("no inodes for the database", true);
    report(&format!(
        "database without inodes: {refused} starts refused, taken again after {:.1} s",
        slowest.as_secs_f64()
    ));
}

fn engine_full(scenario: &str, options: &str, what: Full) {
    let engine = OwnEngine::start_small(options);
    let swarm = &Swarm::start(Setup { engine: engine.docker().host, ..Setup::default() });
    let mut lost = 0;
    for _ in 0..rounds(CYCLES) {
        let running = swarm.submit(&swarm.shell(LONG));
        swarm.wait_started(running, 1);
        let disk = engine.disk().expect("it has a small disk");
        swarm.fill(disk, what);
        let mut spec = swarm.shell("head -c 100000 /etc/noise > /tmp/copy && echo begun && echo done");
        spec.retries.lost = 100;
        let waiting = swarm.submit(&spec);
        std::thread::sleep(Duration::from_secs(8));
        disk.clear();
        assert_eq!(swarm.wait_ended(running, Duration::from_secs(180)).job.state, JobState::Succeeded);
        swarm.all_succeed(&[waiting]);
        lost += swarm.task(waiting).attempts.len() - 1;
    }
    swarm.judge(scenario, true);
    report(&format!("{scenario}: {lost} attempts lost, 0 jobs"));
}

#[test]
fn an_engine_whose_disk_is_full_costs_attempts_and_never_a_job() {
    engine_full("full disk of the engine", "size=128m", Full::Bytes);
}

#[test]
fn an_engine_without_inodes_costs_attempts_and_never_a_job() {
    engine_full("engine without inodes", "size=128m,nr_inodes=4k", Full::Inodes);
}
