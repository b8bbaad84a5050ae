//! What a seed stands for: the jobs, and which faults happen when.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use swarm_protocol::Digest;
use swarm_protocol::spec::{Input, JobSpec, Output};
use swarm_protocol::tasks::TaskRange;
use swarm_worker::runtime::fake::Action;

use crate::core::INPUT;
use crate::net::{CORE, Site, USERS, Weather};
use crate::store::{Death, Moment};
use crate::time::{self, BEGIN_US, wall_us};
use crate::work::{OUTPUT, Work};

/// One job of a user.
#[derive(Debug, Clone)]
pub(crate) struct JobPlan {
    pub(crate) at_ms: u64,
    pub(crate) key: String,
    pub(crate) spec: JobSpec,
    pub(crate) work: Work,
    /// Submitted once more with the same key, though it is known to have worked.
    pub(crate) is_repeated: bool,
    pub(crate) cancel_after_ms: Option<u64>,
}

/// What makes jobs by itself.
#[derive(Debug, Clone)]
pub(crate) struct SchedulePlan {
    pub(crate) job: JobPlan,
    pub(crate) cron: &'static str,
    pub(crate) zone: &'static str,
}

/// Clock changes, as zone and Unix time in seconds.
const CLOCK_CHANGES: [(&str, u64); 6] = [
    ("Europe/Berlin", 1_806_195_600),
    ("Europe/Berlin", 1_824_944_400),
    ("America/New_York", 1_805_007_600),
    ("America/New_York", 1_825_567_200),
    // By half an hour.
    ("Australia/Lord_Howe", 1_806_764_400),
    ("Australia/Lord_Howe", 1_822_491_000),
];

/// Most of them fire often; all of them fire, or would, in the hours of a clock change.
const CRONS: [&str; 8] = [
    "* * * * *",
    "* * * * *",
    "*/2 * * * *",
    "* 1-3 * * *",
    "30 2 * * *",
    "0 2 * * *",
    "0,1,2,30,31 1-3 * * *",
    "58-59 * * * *",
];

/// What goes wrong at a moment that is not known beforehand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Aim {
    pub(crate) at: Target,
    pub(crate) hit: Hit,
    /// From the moment to the hit.
    pub(crate) after_ms: u64,
    /// How long the hit lasts.
    pub(crate) for_ms: u64,
}

/// The moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Target {
    /// A message between a worker and the core that holds such a frame.
    Frame(&'static str),
    /// What an engine does with a job's container.
    Container(Action),
    /// The core has died at a commit that concerns a worker.
    Death,
}

/// What happens then, to the worker in question or the core.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Hit {
    Cut,
    WorkerCrash,
    WorkerFreeze,
    PowerLoss,
    CoreCrash,
    CorePowerLoss,
}

/// Frames after which, or before which, something has to be so.
const FRAMES: [&str; 10] = [
    "[assign",
    "[Accepted",
    "[MayStart",
    "[StartCommitted",
    "[Started",
    "[log",
    "[LogStored",
    "[Finished",
    "[FinishStored",
    "[StateReport",
];

/// One thing that is done to the world. Workers by their place in the list.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Act {
    Cut(Site, Site),
    Mend(Site, Site),
    Weather(Weather),
    CoreCrash,
    CorePowerLoss,
    CoreDiesAtCommit(Death),
    CoreStop,
    CoreStart,
    CoreFreeze,
    CoreThaw,
    TakeOver,
    DeposedThaw,
    WorkerCrash(usize),
    WorkerStart(usize),
    WorkerFreeze(usize),
    WorkerThaw(usize),
    PowerLoss(usize),
    WatchdogDies(usize),
    Aim(Aim),
    EngineDown(usize),
    EngineUp(usize),
    EngineFaults(usize, f64),
    StoreGone {
        for_ms: u64,
    },
    AnswersLost(f64),
    ClockJump {
        by_s: i64,
    },
    /// All faults are over.
    Heal,
}

/// The whole plan of a seed.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) workers: u16,
    pub(crate) jobs: Vec<JobPlan>,
    pub(crate) schedule: Option<SchedulePlan>,
    /// By time, then in the order drawn.
    pub(crate) acts: BTreeMap<(u64, u64), Act>,
    pub(crate) clocks_are_set: bool,
    /// The highest number of an act.
    added: u64,
}

impl Plan {
    /// Adds what is to be done.
    pub(crate) fn put(&mut self, at_us: u64, act: Act) {
        self.added += 1;
        self.acts.insert((at_us, self.added), act);
    }

    /// Draws a plan. Without faults it is the same work in fair weather.
    pub(crate) fn draw(seed: u64, with_faults: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let (schedule, begins_s) = calendar(&mut rng);
        time::begin_at(begins_s);
        let workers = rng.random_range(2..=4);
        let storm_ms = rng.random_range(60_000..180_000);
        let jobs = (0..rng.random_range(4..=12)).map(|n| job(&mut rng, n, storm_ms)).collect();
        let schedule = schedule.map(|(cron, zone)| {
            let mut job = job(&mut rng, 99, storm_ms);
            (job.spec.start_at, job.spec.array, job.spec.timeout_s) = (None, None, None);
            SchedulePlan { job, cron, zone }
        });
        let mut acts = Acts { rng, acts: BTreeMap::new(), workers: usize::from(workers), storm_ms };
        if with_faults {
            let faults = acts.rng.random_range(2..=14);
            (0..faults).for_each(|_| acts.fault());
        }
        acts.put(storm_ms, Act::Heal);
        let clocks_are_set = acts.acts.values().any(|act| matches!(act, Act::ClockJump { .. }));
        Self { workers, jobs, schedule, added: acts.acts.len() as u64, acts: acts.acts, clocks_are_set }
    }
}

/// When a schedule fires, and where; some worlds begin a little before or after a clock change.
fn calendar(rng: &mut StdRng) -> (Option<(&'static str, &'static str)>, Option<u64>) {
    if !rng.random_bool(0.35) {
        return (None, None);
    }
    let (zone, change_s) = CLOCK_CHANGES[rng.random_range(0..CLOCK_CHANGES.len())];
    let begins_s = rng.random_bool(0.5).then(|| change_s + 30 - rng.random_range(0..240));
    let cron = if begins_s.is_some() { CRONS[rng.random_range(0..CRONS.len())] } else { CRONS[0] };
    (Some((cron, zone)), begins_s)
}

fn job(rng: &mut StdRng, n: u64, storm_ms: u64) -> JobPlan {
    let work = Work {
        run_ms: if rng.random_bool(0.25) { rng.random_range(0..2000) } else { rng.random_range(5000..90_000) },
        exit: if rng.random_bool(0.8) { 0 } else { 3 },
        lines: rng.random_range(0..40),
        has_output: rng.random_bool(0.4),
    };
    let mut spec = JobSpec::new("work");
    spec.env.extend([work.variable()]);
    spec.lease_s = rng.random_range(15..=40);
    spec.at_most_once = rng.random_bool(0.3);
    spec.eager = !spec.at_most_once && rng.random_bool(0.1);
    spec.retries.lost = rng.random_range(0..=6);
    spec.retries.failed = rng.random_range(0..=1);
    spec.priority = rng.random_range(-1..=1);
    spec.resources.cpu_millis = rng.random_range(1..=4) * 500;
    if rng.random_bool(0.5) {
        spec.array = Some(TaskRange { first: 0, last: rng.random_range(1..=4) });
    }
    if rng.random_bool(0.1) {
        spec.timeout_s = Some(rng.random_range(1..=20));
    }
    if work.has_output {
        spec.outputs.push(Output { path: OUTPUT.to_owned() });
    }
    if rng.random_bool(0.3) {
        spec.inputs.push(Input { digest: Digest::of(INPUT), path: "/in/file".to_owned(), mode: 0o644, unpack: false });
    }
    let at_ms = rng.random_range(0..storm_ms * 2 / 3);
    if rng.random_bool(0.15) {
        let later_us = (at_ms + rng.random_range(1000..60_000)) * 1000;
        spec.start_at = chrono::DateTime::from_timestamp_micros((wall_us() + later_us).cast_signed());
    }
    let cancel_after_ms = rng.random_bool(0.12).then(|| rng.random_range(0..60_000));
    JobPlan { at_ms, key: format!("job {n}"), spec, work, is_repeated: rng.random_bool(0.2), cancel_after_ms }
}

struct Acts {
    rng: StdRng,
    acts: BTreeMap<(u64, u64), Act>,
    workers: usize,
    storm_ms: u64,
}

impl Acts {
    fn put(&mut self, at_ms: u64, act: Act) {
        let number = self.acts.len() as u64;
        self.acts.insert((BEGIN_US + at_ms.min(self.storm_ms) * 1000, number), act);
    }

    /// Something begins, and ends some time later.
    fn pair(&mut self, for_ms: std::ops::Range<u64>, begin: Act, end: Act) {
        let at_ms = self.rng.random_range(0..self.storm_ms);
        let until_ms = at_ms + self.rng.random_range(for_ms);
        self.put(at_ms, begin);
        self.put(until_ms, end);
    }

    fn fault(&mut self) {
        let worker = self.rng.random_range(0..self.workers);
        match self.rng.random_range(0..29) {
            0..3 | 16 | 17 => self.cut(worker),
            3 => self.storm(),
            4 => {
                let end = if self.rng.random_bool(0.5) { Act::CoreCrash } else { Act::CorePowerLoss };
                self.pair(500..60_000, end, Act::CoreStart);
            }
            5..7 => {
                let moments = [Moment::Anything, Moment::Submit, Moment::Assign, Moment::Start, Moment::End];
                let of = moments[self.rng.random_range(0..moments.len())];
                let death = Death { of, is_committed: self.rng.random_bool(0.5) };
                let at_ms = self.rng.random_range(0..self.storm_ms);
                self.put(at_ms, Act::CoreDiesAtCommit(death));
            }
            7 => self.pair(1000..20_000, Act::CoreStop, Act::CoreStart),
            8 => self.pair(1000..150_000, Act::CoreFreeze, Act::CoreThaw),
            9 => self.pair(500..90_000, Act::WorkerCrash(worker), Act::WorkerStart(worker)),
            10 | 18 | 19 => self.pair(5000..120_000, Act::WorkerFreeze(worker), Act::WorkerThaw(worker)),
            11 => self.pair(5000..120_000, Act::PowerLoss(worker), Act::WorkerStart(worker)),
            12 => self.pair(500..40_000, Act::EngineDown(worker), Act::EngineUp(worker)),
            13 => {
                let share = self.rng.random_range(0.02..0.3);
                self.pair(5000..60_000, Act::EngineFaults(worker, share), Act::EngineFaults(worker, 0.0));
            }
            14 | 20 => self.store(),
            28 => self.pair(500..60_000, Act::TakeOver, Act::DeposedThaw),
            21..26 => self.aim(),
            26 | 27 => {
                let at_ms = self.rng.random_range(0..self.storm_ms);
                self.put(at_ms, Act::WatchdogDies(worker));
            }
            // Rare, for what is recorded by clocks that were set cannot be compared.
            _ if self.rng.random_bool(0.6) => {
                self.pair(500..90_000, Act::WorkerCrash(worker), Act::WorkerStart(worker));
            }
            _ => {
                let by_s = self.rng.random_range(-3600..=3600);
                let at_ms = self.rng.random_range(0..self.storm_ms);
                self.put(at_ms, Act::ClockJump { by_s });
            }
        }
    }

    fn aim(&mut self) {
        let actions = [Action::Create, Action::Start, Action::Die, Action::Destroy];
        let at = if self.rng.random_bool(0.7) {
            Target::Frame(FRAMES[self.rng.random_range(0..FRAMES.len())])
        } else {
            Target::Container(actions[self.rng.random_range(0..actions.len())])
        };
        let hits = [
            Hit::Cut,
            Hit::Cut,
            Hit::WorkerCrash,
            Hit::WorkerFreeze,
            Hit::PowerLoss,
            Hit::CoreCrash,
            Hit::CorePowerLoss,
        ];
        let hit = hits[self.rng.random_range(0..hits.len())];
        let after_ms = if self.rng.random_bool(0.5) { 0 } else { self.rng.random_range(0..100) };
        let (at_ms, for_ms) = (self.rng.random_range(0..self.storm_ms), self.rng.random_range(500..90_000));
        self.put(at_ms, Act::Aim(Aim { at, hit, after_ms, for_ms }));
    }

    fn store(&mut self) {
        if self.rng.random_bool(0.5) {
            let (at_ms, for_ms) = (self.rng.random_range(0..self.storm_ms), self.rng.random_range(100..30_000));
            self.put(at_ms, Act::StoreGone { for_ms });
        } else {
            let share = self.rng.random_range(0.05..0.5);
            self.pair(5000..60_000, Act::AnswersLost(share), Act::AnswersLost(0.0));
        }
    }

    fn storm(&mut self) {
        let weather = Weather {
            loss: self.rng.random_range(0.0..0.9),
            doubled: self.rng.random_range(0.0..0.5),
            delay_max_ms: self.rng.random_range(5..2000),
            stalled: self.rng.random_range(0.0..0.1),
            torn: self.rng.random_range(0.0..0.6),
        };
        self.pair(5000..90_000, Act::Weather(weather), Act::Weather(Weather::FAIR));
    }

    /// A way is cut in one direction or both, perhaps again and again.
    fn cut(&mut self, worker: usize) {
        let other = if self.rng.random_bool(0.15) { USERS } else { site(worker) };
        let ways = match self.rng.random_range(0..3) {
            0 => vec![(other, CORE)],
            1 => vec![(CORE, other)],
            _ => vec![(other, CORE), (CORE, other)],
        };
        let begin_ms = self.rng.random_range(0..self.storm_ms);
        let (times, each_ms) =
            if self.rng.random_bool(0.3) { (8, 4000) } else { (1, self.rng.random_range(5000..90_000)) };
        for n in 0..times {
            let at_ms = begin_ms + n * 2 * each_ms;
            for (from, to) in ways.iter().copied() {
                self.put(at_ms, Act::Cut(from, to));
                self.put(at_ms + each_ms, Act::Mend(from, to));
            }
        }
    }
}

/// Where the worker of this place in the list is.
pub(crate) fn site(worker: usize) -> Site {
    Site(u16::try_from(worker + 1).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_stands_for_one_plan() {
        let text = |seed| format!("{:?}", Plan::draw(seed, true));
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
    }
}
