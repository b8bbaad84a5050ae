//! Power cuts: disks lose what was not synced, programs and containers end, and what was acknowledged is there (I1).

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use swarm_client::Destination;
use swarm_protocol::spec::{Input, JobSpec, Output};
use swarm_protocol::state::JobState;
use swarm_protocol::{Digest, JobId, TaskId};

use crate::harness::{Owner, PATIENCE, Setup, Swarm, either, eventually, noise, report};

/// How long a disk may take to get to the step at which its power goes.
const REACHED: Duration = Duration::from_secs(5);

/// How long a worker may take to bring hundreds of files over a disk that is a program.
const BROUGHT: Duration = Duration::from_secs(600);

/// What was acknowledged.
#[derive(Default)]
struct Promises {
    jobs: Mutex<Vec<JobId>>,
    files: Mutex<Vec<(Digest, u64)>>,
    is_over: AtomicBool,
    made: AtomicU32,
}

impl Promises {
    /// Says `what` again and again until it is over. What fails is said anew: a core without power fails everything.
    fn keep_on(&self, mut what: impl FnMut(u32)) {
        while !self.is_over.load(Ordering::SeqCst) {
            what(self.made.fetch_add(1, Ordering::SeqCst));
        }
    }

    fn submit(&self, swarm: &Swarm, spec: &JobSpec) {
        self.keep_on(|_| {
            if let Ok(job) = swarm.try_submit(spec) {
                self.jobs.lock().expect("no holder panics").push(job);
            }
        });
    }

    fn upload(&self, swarm: &Swarm) {
        self.keep_on(|n| {
            let path: PathBuf = swarm.home().join("upload");
            let bytes = noise(1 + (n as usize * 7919) % 300_000, n.to_le_bytes()[0]);
            std::fs::write(&path, [&n.to_le_bytes()[..], &bytes].concat()).expect("a file can be written");
            if let Ok(file) = swarm.block(swarm.client.upload_file(&path, std::sync::Arc::new(|_| {}))) {
                self.files.lock().expect("no holder panics").push((file.digest, file.size_bytes));
            }
        });
    }

    /// Those of the last moments, which a cut would have taken.
    fn are_kept(&self, swarm: &Swarm) {
        let (jobs, files) = (self.jobs.lock().expect("no holder panics"), self.files.lock().expect("no holder panics"));
        for job in jobs.iter().rev().take(10) {
            swarm.detail(*job);
        }
        for (digest, size_bytes) in files.iter().rev().take(5) {
            let there = eventually("the core answers", PATIENCE, || swarm.block(swarm.client.file_size(*digest)).ok());
            assert_eq!(there.map(|file| file.size_bytes), Some(*size_bytes), "{digest} was acknowledged");
        }
    }
}

/// Cuts, what they found unsynced, and what was left of it.
#[derive(Default)]
struct Cuts {
    count: u32,
    names: (usize, usize),
    files: usize,
}

impl Cuts {
    /// One more, at a moment drawn from its number.
    fn cut(&mut self, swarm: &Swarm, disk: Owner, steps_max: u64) {
        self.count += 1;
        let seed = u64::from(self.count);
        swarm.cut_before(disk, StdRng::seed_from_u64(seed).random_range(1..steps_max), seed);
        swarm.await_cut(REACHED);
        swarm.fault("power cut");
        for remains in swarm.lose_power(seed) {
            self.names = (self.names.0 + remains.names_pending, self.names.1 + remains.names_kept);
            self.files += remains.files_pending;
        }
    }

    fn report(&self, scenario: &str, promised: &str) {
        let Self { count, names, files } = self;
        report(&format!(
            "{scenario}: {count} power cuts with {files} files and {} names not synced, {} of the latter lost; {promised}, \
             0 lost",
            names.0,
            names.0 - names.1
        ));
    }
}

#[test]
fn a_core_whose_disk_forgets_what_was_not_synced_keeps_every_promise() {
    let swarm = Swarm::start(Setup { disks: true, ..Setup::default() });
    swarm.worker().take().expect("a worker runs").terminate(PATIENCE);
    let mut waiting = swarm.shell("true");
    waiting.require.insert("zone".to_owned(), "nowhere".to_owned());
    let (promises, mut cuts) = (Promises::default(), Cuts::default());
    std::thread::scope(|scope| {
        scope.spawn(|| promises.submit(&swarm, &waiting));
        scope.spawn(|| promises.submit(&swarm, &waiting));
        scope.spawn(|| promises.upload(&swarm));
        for _ in 0..either(12, 450) {
            cuts.cut(&swarm, Owner::Core, 300);
            swarm.start_core();
            promises.are_kept(&swarm);
        }
        promises.is_over.store(true, Ordering::SeqCst);
    });
    // A worker checks the digest of every input, so these have kept their bytes.
    swarm.start_worker();
    swarm.wait_ready();
    let files = promises.files.into_inner().expect("no holder panicked");
    for some in files.chunks(256) {
        let mut spec = swarm.shell("true");
        let input = |(at, (digest, _)): (usize, &(Digest, u64))| Input {
            digest: *digest,
            path: format!("/in/{at}"),
            mode: 0o644,
            unpack: false,
        };
        spec.inputs = some.iter().enumerate().map(input).collect();
        let job = swarm.submit(&spec);
        assert_eq!(swarm.wait_ended(job, BROUGHT).job.state, JobState::Succeeded);
    }
    let jobs = promises.jobs.into_inner().expect("no holder panicked").len();
    cuts.report("power cuts of the core", &format!("{jobs} jobs and {} files promised", files.len()));
    assert!(jobs > 0 && !files.is_empty());
    swarm.judge("power cuts of the core", false);
}

/// Its disk answers EIO to whatever is written, and is well again: what it said meanwhile holds over a power cut too.
#[test]
fn a_core_whose_disk_fails_for_moments_keeps_every_promise_and_goes_on() {
    let swarm = Swarm::start(Setup { disks: true, ..Setup::default() });
    swarm.worker().take().expect("a worker runs").terminate(PATIENCE);
    let mut waiting = swarm.shell("true");
    waiting.require.insert("zone".to_owned(), "nowhere".to_owned());
    let (promises, mut slowest) = (Promises::default(), Duration::ZERO);
    let rounds = either(3_u32, 50);
    std::thread::scope(|scope| {
        scope.spawn(|| promises.submit(&swarm, &waiting));
        scope.spawn(|| promises.upload(&swarm));
        for n in 0..rounds {
            swarm.fault("the disk fails");
            swarm.fail_disk(Owner::Core, true);
            std::thread::sleep(Duration::from_secs(3));
            swarm.fail_disk(Owner::Core, false);
            let well = Instant::now();
            // One that could not go on is started again by whoever watches over it.
            let taken = || {
                if swarm.core().as_mut().is_some_and(|core| core.ended().is_some()) {
                    drop(swarm.core().take());
                    swarm.start_core();
                }
                swarm.try_submit(&waiting).ok()
            };
            eventually("a job is taken again", PATIENCE, taken);
            slowest = slowest.max(well.elapsed());
            if n % 3 == 2 {
                swarm.lose_power(u64::from(n));
                swarm.start_core();
            }
            promises.are_kept(&swarm);
        }
        promises.is_over.store(true, Ordering::SeqCst);
    });
    let jobs = promises.jobs.into_inner().expect("no holder panicked").len();
    let files = promises.files.into_inner().expect("no holder panicked").len();
    report(&format!(
        "disk of the core failed {rounds} times: {jobs} jobs and {files} files promised, 0 lost; taken again after {:.1} s",
        slowest.as_secs_f64()
    ));
    swarm.judge("failing disk of the core", false);
}

/// What an attempt cannot write down costs it at most; no job is lost, and none is blamed.
#[test]
fn a_worker_whose_disk_fails_for_moments_loses_attempts_and_never_a_job() {
    let swarm = Swarm::start(Setup { disks: true, ..Setup::default() });
    let mut lost = 0;
    let rounds = either(2, 50);
    for _ in 0..rounds {
        let mut spec = swarm.shell("n=0; while [ $n -lt 8 ]; do echo $n; sleep 1; n=$((n+1)); done");
        spec.retries.lost = 1000;
        let jobs = [swarm.submit(&spec), swarm.submit(&spec)];
        swarm.wait_started(jobs[0], 1);
        swarm.fault("the worker's disk fails");
        swarm.fail_disk(Owner::Worker, true);
        std::thread::sleep(Duration::from_secs(3));
        swarm.fail_disk(Owner::Worker, false);
        for job in jobs {
            let ended = || {
                if swarm.worker().as_mut().is_some_and(|worker| worker.ended().is_some()) {
                    drop(swarm.worker().take());
                    swarm.start_worker();
                }
                swarm.try_detail(job).filter(|detail| detail.job.state.is_final())
            };
            let detail = eventually("it ends", Duration::from_secs(180), ended);
            assert_eq!(detail.job.state, JobState::Succeeded, "{:?}", swarm.task(job));
            lost += swarm.task(job).attempts.len() - 1;
        }
    }
    report(&format!("disk of the worker failed {rounds} times: {} jobs, {lost} attempts lost, 0 jobs", rounds * 2));
    swarm.judge("failing disk of the worker", true);
}

#[test]
fn a_machine_that_loses_its_power_again_and_again_ends_every_job_with_its_log_and_its_outputs() {
    const BYTES: usize = 50_000;
    let swarm = Swarm::start(Setup { disks: true, ..Setup::default() });
    let mut spec =
        swarm.shell(&format!("head -c {BYTES} /etc/noise; head -c {BYTES} /etc/noise > /out/part; echo done"));
    spec.outputs = vec![Output { path: "/out/part".to_owned() }];
    spec.retries.lost = 1000;
    let (promises, mut cuts) = (Promises::default(), Cuts::default());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            promises.keep_on(|_| {
                if let Ok(job) = swarm.try_submit(&spec) {
                    promises.jobs.lock().expect("no holder panics").push(job);
                }
                // Not more than what the worker gets done.
                std::thread::sleep(Duration::from_millis(250));
            });
        });
        for n in 0..either(4, 50) {
            cuts.cut(&swarm, if n % 2 == 0 { Owner::Worker } else { Owner::Core }, 400);
            swarm.start_core();
            swarm.start_worker();
            promises.are_kept(&swarm);
        }
        promises.is_over.store(true, Ordering::SeqCst);
    });
    let jobs = promises.jobs.into_inner().expect("no holder panicked");
    let written = [&noise(BYTES, 0)[..], b"done\n"].concat();
    let mut lost = 0;
    for job in &jobs {
        assert_eq!(swarm.wait_ended(*job, Duration::from_secs(180)).job.state, JobState::Succeeded);
        let task = TaskId { job: *job, task: 0 };
        let view = swarm.task(*job);
        lost += view.attempts.len() - 1;
        swarm.check_log(task, &written, b"");
        let Some([output]) = view.attempts.last().map(|last| &last.outputs[..]) else {
            panic!("not one output: {view:?}")
        };
        let path = swarm.home().join(format!("part-{job}"));
        let destination = Destination { path: &path, overwrite: false };
        let fetched = swarm.client.download_output(task, None, 0, output, destination, std::sync::Arc::new(|_| {}));
        swarm.block(fetched).expect("its output can be fetched");
        assert!(std::fs::read(path).expect("it was fetched") == noise(BYTES, 0), "other bytes came");
    }
    cuts.report("power cuts of the machine", &format!("{} jobs promised, {lost} attempts lost", jobs.len()));
    assert!(!jobs.is_empty());
    swarm.judge("power cuts of the machine", true);
}
