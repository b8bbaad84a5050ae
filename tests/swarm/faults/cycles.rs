//! kill -9 and SIGSTOP of everything in turn, again and again, while arrays of short tasks run.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use swarm_checker::unended;
use swarm_protocol::state::JobState;
use swarm_protocol::{JobId, TaskId, TaskRange};

use crate::harness::{
    OwnEngine, OwnPostgres, PATIENCE, Part, Redis, Setup, Swarm, be_worker, either, eventually, now_us, report,
};

/// Arrays under way at a time.
const UNDER_WAY: usize = 6;
/// More losses than any scenario can cause.
const LOSSES_MAX: u16 = 1000;
/// Of every task, in seconds: what is started and forgotten is found by its end.
const LEASE_S: u64 = 30;
/// What is this far past the deadline that governs its state, once everything runs again, is stuck.
const STUCK_US: i64 = 60_000_000;

/// What a scenario does. The full tier has 1,000 cycles over more than 100,000 tasks, 10,500 of them in containers.
struct Plan<'a> {
    what: &'static str,
    cycles: u32,
    /// Whether attempts must have been lost by it.
    costs_attempts: bool,
    /// Tasks of the array that each cycle adds.
    tasks: u32,
    /// Milliseconds between a submit and what is done then.
    moments: std::ops::Range<u64>,
    /// One a cycle, in turn. What they leave dead of core and worker is started again.
    strikes: &'a [&'a dyn Fn(&Swarm)],
}

const CORE: &dyn Fn(&Swarm) = &Swarm::kill_core;
const WORKER: &dyn Fn(&Swarm) = &Swarm::kill_worker;
const WATCHDOG: &dyn Fn(&Swarm) = &|swarm| {
    swarm.kill_watchdog();
};
const BOTH: &dyn Fn(&Swarm) = &|swarm| {
    swarm.kill_core();
    swarm.kill_worker();
};

/// What came of the tasks so far.
#[derive(Default)]
struct Came {
    /// Attempts beyond one a task.
    retried: usize,
    /// How often it was found out whether something is stuck.
    looks: u32,
    /// How far past its deadline a task was at most, in microseconds, whatever was away meanwhile.
    late_us: i64,
    /// Until then, everything was not there.
    since_us: i64,
}

impl Swarm {
    fn revive(&self) {
        if self.core().is_none() {
            self.start_core();
        }
        if self.worker().is_none() {
            self.start_worker();
        }
    }

    fn submit_array(&self, tasks: u32) -> JobId {
        // Whenever something is struck, something runs.
        let mut array = self.shell("echo $SWARM_TASK_INDEX; [ $((SWARM_TASK_INDEX % 10)) != 0 ] || sleep 1");
        array.array = TaskRange::new(0, tasks - 1);
        array.retries.lost = LOSSES_MAX;
        array.lease_s = LEASE_S;
        self.submit_stubbornly(&array, Instant::now() + PATIENCE).expect("it is acknowledged in the end")
    }

    /// Every task of the array that has ended did so well; how many attempts it took beyond one each. None while it has
    /// not ended.
    fn array_ended(&self, job: JobId, tasks: u32) -> Option<usize> {
        let detail = self.try_detail(job).filter(|detail| detail.job.state.is_final())?;
        assert_eq!((detail.job.state, detail.job.tasks.succeeded), (JobState::Succeeded, u64::from(tasks)));
        let listed = || self.block(self.client.tasks(job, Some(1000), None)).ok();
        let views = eventually("tasks can be listed", PATIENCE, listed).items;
        assert_eq!(views.len() as u32, tasks);
        if self.runs_containers() {
            // Of one that was struck more often than most, as it lasted longest.
            self.check_log(TaskId { job, task: 0 }, b"0\n", b"");
        }
        Some(views.iter().map(|view| view.attempts.len().saturating_sub(1)).sum())
    }

    /// Nothing is past its deadline for too long.
    fn nothing_is_stuck(&self, came: &mut Came) {
        // While the database is away nothing can be said.
        let Ok(found) = unended(&self.store) else { return };
        came.looks += 1;
        let now_us = now_us();
        came.late_us = came.late_us.max(found.latest(now_us, 0).map_or(0, |late| late.by_us));
        if let Some(late) = found.latest(now_us, came.since_us).filter(|late| late.by_us > STUCK_US) {
            let why = self.block(self.client.why(late.task.job));
            let task = self.block(self.client.task(late.task));
            panic!("past its deadline: {late}\nwhy: {why:?}\ntask: {task:?}");
        }
    }

    /// Waits until at most `left` of the arrays have not ended.
    fn until_left(&self, left: usize, tasks: u32, under_way: &mut VecDeque<JobId>, came: &mut Came) {
        let mut looked = Instant::now();
        self.nothing_is_stuck(came);
        while under_way.len() > left {
            if let Some(retried) = self.array_ended(under_way[0], tasks) {
                came.retried += retried;
                under_way.pop_front();
                continue;
            }
            std::thread::sleep(Duration::from_millis(50));
            if looked.elapsed() > Duration::from_millis(500) {
                looked = Instant::now();
                self.nothing_is_stuck(came);
            }
        }
    }

    /// Arrays one after the other without a fault: tasks a second.
    fn calm(&self, arrays: u32, tasks: u32) -> f64 {
        let (began, mut came) = (Instant::now(), Came::default());
        let mut under_way: VecDeque<JobId> = (0..arrays).map(|_| self.submit_array(tasks)).collect();
        self.until_left(0, tasks, &mut under_way, &mut came);
        assert_eq!(came.retried, 0, "nothing was killed yet");
        f64::from(arrays * tasks) / began.elapsed().as_secs_f64()
    }

    fn cycles(&self, plan: &Plan) {
        let &Plan { what, costs_attempts, cycles, tasks, ref moments, strikes } = plan;
        let calm = self.calm(either(1, 6), tasks);
        let (mut under_way, mut came, began) = (VecDeque::new(), Came::default(), Instant::now());
        let (mut striking, mut waiting) = (Duration::ZERO, Duration::ZERO);
        for cycle in 0..cycles {
            under_way.push_back(self.submit_array(tasks));
            // Each cycle strikes at another moment.
            let moment = moments.start + u64::from(cycle) * 370 % (moments.end - moments.start);
            std::thread::sleep(Duration::from_millis(moment));
            let struck = Instant::now();
            strikes[cycle as usize % strikes.len()](self);
            self.revive();
            came.since_us = now_us();
            striking += struck.elapsed();
            let struck = Instant::now();
            self.until_left(UNDER_WAY - 1, tasks, &mut under_way, &mut came);
            waiting += struck.elapsed();
        }
        let settling = Instant::now();
        self.until_left(0, tasks, &mut under_way, &mut came);
        let settling = settling.elapsed().as_secs_f64();
        assert!(came.looks > cycles / 2, "nobody looked for what is stuck");
        assert!(!costs_attempts || came.retried > 0, "nothing was hit");
        let (took, all) = (began.elapsed().as_secs_f64(), cycles * tasks);
        let each = |time: Duration| time.as_secs_f64() / f64::from(cycles);
        report(&format!(
            "{cycles} kill cycles over {all} tasks {what}: 0 lost, 0 doubled, 0 stuck, {} attempts again; the longest \
             past its deadline {:.1} s; {:.2} s a cycle ({:.2} s until all was started again, {:.2} s waiting for \
             tasks), {settling:.1} s at the end; {:.1} tasks a second, {calm:.1} without kills",
            came.retried,
            came.late_us as f64 / 1e6,
            took / f64::from(cycles),
            each(striking),
            each(waiting),
            f64::from(all) / took
        ));
    }
}

#[test]
fn kills_of_everything_in_turn_under_load_lose_double_and_strand_nothing() {
    let swarm = Swarm::start(Setup::default());
    swarm.cycles(&Plan {
        what: "in containers",
        costs_attempts: false,
        cycles: either(8, 280),
        tasks: either(11, 30),
        moments: 300..1600,
        strikes: &[CORE, WORKER, WATCHDOG, BOTH],
    });
    swarm.judge("kill cycles", true);
}

/// Ten times the load; a worker that is killed takes its engine with it, so what ran there is lost and run again.
#[test]
fn kills_of_core_and_machine_under_ten_times_the_load_lose_double_and_strand_nothing() {
    be_worker();
    let swarm = Swarm::start(Setup { in_memory: true, ..Setup::default() });
    swarm.cycles(&Plan {
        what: "in memory",
        costs_attempts: true,
        cycles: either(8, 650),
        tasks: either(101, 150),
        moments: 300..1600,
        strikes: &[CORE, WORKER, BOTH],
    });
    swarm.judge_records("kill cycles in memory");
}

/// Holds something still for a while, and lets it go on.
fn pause(what: impl Fn(Signal)) {
    what(Signal::STOP);
    std::thread::sleep(Duration::from_millis(1500));
    what(Signal::CONT);
}

/// A database, a cache and an engine of the test's own, so that these can be struck as well.
#[test]
fn kills_and_pauses_of_all_that_a_swarm_leans_on_under_load_lose_double_and_strand_nothing() {
    let (postgres, redis, engine) = (&OwnPostgres::start(), &Redis::start(), &OwnEngine::start(&[]));
    let swarm = Swarm::start(Setup {
        postgres: Some(postgres.url()),
        redis: Some(redis.url()),
        engine: engine.docker().host,
        ..Setup::default()
    });
    let no_database = |swarm: &Swarm| {
        swarm.fault("kill -9 of Postgres");
        postgres.kill();
        postgres.begin();
    };
    let no_cache = |swarm: &Swarm| {
        swarm.fault("kill -9 of Redis");
        redis.kill();
        redis.launch();
    };
    let no_engine = |part: Part| {
        move |swarm: &Swarm| {
            swarm.fault(&format!("kill -9 of the engine's {part:?}"));
            let death = engine.kill(part);
            engine.begin();
            swarm.engine.watch_again(death);
        }
    };
    let (daemon, service) = (no_engine(Part::Daemon), no_engine(Part::Service));
    let together = |swarm: &Swarm| {
        swarm.kill_core();
        no_database(swarm);
    };
    let paused_engine = |swarm: &Swarm| {
        swarm.fault("SIGSTOP of the engine");
        swarm.engine.note(engine.freeze());
        std::thread::sleep(Duration::from_millis(1500));
        engine.thaw();
    };
    swarm.cycles(&Plan {
        what: "in containers, on Postgres and Redis",
        costs_attempts: true,
        cycles: either(14, 130),
        tasks: either(8, 30),
        moments: 300..1600,
        strikes: &[
            &no_database,
            CORE,
            &|swarm| pause(|signal| swarm.signal_core(signal)),
            &daemon,
            WORKER,
            &|swarm| pause(|signal| swarm.signal_worker(signal)),
            &no_cache,
            WATCHDOG,
            &|swarm| pause(|signal| swarm.signal_watchdog(signal)),
            &service,
            &together,
            &|swarm: &Swarm| {
                swarm.fault("SIGSTOP of Postgres");
                pause(|signal| postgres.signal(signal));
            },
            &paused_engine,
            &|swarm: &Swarm| {
                swarm.fault("SIGSTOP of Redis");
                pause(|signal| redis.signal(signal));
            },
        ],
    });
    swarm.judge("kill cycles on Postgres, Redis and an engine of their own", true);
}
