//! A simulated world: its machines, stepped together, and what is done to them.

mod hits;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use swarm_worker::runtime::fake::{Action, EngineEvent};
use tokio_util::sync::CancellationToken;

use crate::core::{Ground, SimClock, database, settings};
use crate::host::Host;
use crate::judge::attempt_of;
use crate::net::{CORE, Net, USERS, Weather};
use crate::plan::{Act, Aim, Hit, Plan, Target};
use crate::promises::Promises;
use crate::store::StoreFaults;
use crate::time::{self, now_us, trace, wall_us};
use crate::users::Users;
use crate::worker::WorkerMachine;

/// Shortest and longest step of the hosts in microseconds: what is sent during a step arrives after it.
const STEP_US: (u64, u64) = (2_000, 100_000);
/// How long after the last fault everything must have ended.
const SETTLE_US: u64 = 30 * 60 * 1_000_000;
/// How long after that containers may still be there (I8).
const GONE_US: u64 = 60_000_000;

/// A time in which the engine of a worker did not do as it was told.
#[derive(Debug, Clone)]
pub(crate) struct FrozenEngine {
    /// Its place in the list.
    pub(crate) worker: usize,
    pub(crate) from_us: u64,
    pub(crate) until_us: u64,
}

/// See the module.
pub(crate) struct World {
    plan: Plan,
    net: Net,
    ground: Ground,
    core: Option<Host>,
    core_stop: CancellationToken,
    core_is_frozen: bool,
    /// A core that was taken for dead: another one has taken over.
    deposed: Option<Host>,
    deposed_is_frozen: bool,
    workers: Vec<WorkerMachine>,
    users: Users,
    users_host: Host,
    /// Decides what the plan leaves open.
    rng: StdRng,
    pub(crate) frozen: Vec<FrozenEngine>,
    /// Of all job containers, each with the place of its worker, in the order they came.
    pub(crate) events: Vec<(usize, EngineEvent)>,
    /// Names of job containers that are there.
    containers: BTreeSet<String>,
    /// What is to be hit once its moment has come.
    aims: Vec<Aim>,
    /// When all faults were over.
    healed_us: Option<u64>,
    /// How often each kind of fault happened to something.
    faults: BTreeMap<&'static str, u64>,
    pub(crate) steps: u64,
}

impl World {
    /// A world whose files lie in `dir`, which is empty.
    pub(crate) fn new(seed: u64, plan: Plan, dir: &Path) -> anyhow::Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5157_a12d);
        let net = Net::new(rng.random());
        let (core_dir, faults, clock) = (dir.join("core"), StoreFaults::new(rng.random()), SimClock::default());
        std::fs::create_dir(&core_dir)?;
        let promises = Promises::default();
        let (settings, started) = (settings(), Arc::default());
        let ground = Ground { dir: core_dir, net: net.clone(), faults, clock, settings, promises, started };
        ground.prepare()?;
        let workers = (1..=plan.workers).map(|number| {
            let dir: PathBuf = dir.join(format!("w{number}"));
            std::fs::create_dir(&dir).map(|()| WorkerMachine::new(number, dir, net.clone(), rng.random()))
        });
        let workers = workers.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            users: Users::new(net.clone(), ground.promises.clone(), plan.clocks_are_set),
            users_host: Host::new(),
            plan,
            net,
            ground,
            core: None,
            core_stop: CancellationToken::new(),
            core_is_frozen: false,
            deposed: None,
            deposed_is_frozen: false,
            workers,
            rng,
            frozen: Vec::new(),
            events: Vec::new(),
            containers: BTreeSet::new(),
            aims: Vec::new(),
            healed_us: None,
            faults: BTreeMap::new(),
            steps: 0,
        })
    }

    pub(crate) fn users(&self) -> &Users {
        &self.users
    }

    pub(crate) fn database(&self) -> String {
        database(&self.ground.dir)
    }

    pub(crate) fn promises(&self) -> &Promises {
        &self.ground.promises
    }

    /// When there was no watchdog, by the place of the worker, in Unix microseconds.
    pub(crate) fn unwatched(&self) -> impl Iterator<Item = FrozenEngine> + '_ {
        self.workers.iter().enumerate().flat_map(|(worker, machine)| {
            machine.unwatched().into_iter().map(move |(from_us, until_us)| FrozenEngine { worker, from_us, until_us })
        })
    }

    /// Whether the worker of this place has lived on from the beginning.
    pub(crate) fn never_restarted(&self, worker: usize) -> bool {
        self.workers.get(worker).is_some_and(WorkerMachine::never_restarted)
    }

    /// When all faults were over, in Unix microseconds.
    pub(crate) fn healed_at_us(&self) -> Option<u64> {
        self.healed_us.map(|healed_us| wall_us() - (now_us() - healed_us))
    }

    pub(crate) fn clocks_were_set(&self) -> bool {
        self.plan.clocks_are_set
    }

    /// What happened, by kind.
    pub(crate) fn faults(&self) -> BTreeMap<&'static str, u64> {
        let mut faults = self.faults.clone();
        faults.extend(self.net.faults());
        faults.insert("store", self.ground.faults.hits());
        faults
    }

    /// Lives until everything has ended, or time is up; the answer is whether everything has ended.
    pub(crate) fn live(&mut self) -> bool {
        self.start_core();
        self.workers.iter_mut().for_each(WorkerMachine::start);
        self.users.start(&self.users_host, &self.plan.jobs, self.plan.schedule.as_ref());
        let mut ended_us = None;
        loop {
            self.act();
            self.net.deliver();
            for (frame, worker) in self.net.seen() {
                self.strike(Target::Frame(frame), usize::from(worker.0) - 1);
            }
            self.step(self.until_us());
            self.look();
            let Some(healed_us) = self.healed_us else { continue };
            if self.users.waiting() == 0 {
                let ended_us = *ended_us.get_or_insert(now_us());
                if self.containers.is_empty() || now_us() > ended_us + GONE_US {
                    return true;
                }
            } else if now_us() > healed_us + SETTLE_US {
                return false;
            }
        }
    }

    /// Until when hosts may run by themselves.
    fn until_us(&self) -> u64 {
        let (now_us, (least_us, most_us)) = (now_us(), STEP_US);
        let act_us = self.plan.acts.keys().next().map(|(at_us, _)| *at_us);
        let next_us = self.net.next_us().into_iter().chain(act_us).min().unwrap_or(u64::MAX);
        next_us.clamp(now_us + least_us, now_us + most_us)
    }

    fn step(&mut self, until_us: u64) {
        self.steps += 1;
        if let Some(core) = self.core.as_ref().filter(|_| !self.core_is_frozen) {
            core.step(until_us);
        }
        if let Some(deposed) = self.deposed.as_ref().filter(|_| !self.deposed_is_frozen) {
            deposed.step(until_us);
        }
        self.workers.iter().for_each(|worker| worker.step(until_us));
        self.users_host.step(until_us);
        time::set(until_us);
        if let Some(death) = self.ground.faults.take_dead() {
            self.crash_core();
            self.count("core died at a commit");
            let later_us = until_us + self.rng.random_range(100_000..20_000_000);
            self.plan.put(later_us, Act::CoreStart);
            // What the worker knows and the store does not, or the other way round, is found out late then, or never.
            if let (Some(worker), true) = (death.worker, self.rng.random_bool(0.5)) {
                let hits = [Hit::Cut, Hit::Cut, Hit::WorkerCrash, Hit::PowerLoss];
                let hit = hits[self.rng.random_range(0..hits.len())];
                let for_ms = self.rng.random_range(5000..120_000);
                self.aims.push(Aim { at: Target::Death, hit, after_ms: 0, for_ms });
                self.strike(Target::Death, worker);
            }
        }
    }

    /// Takes in what the engines did.
    fn look(&mut self) {
        let mut happened = Vec::new();
        for (place, worker) in self.workers.iter().enumerate() {
            for event in worker.take_events() {
                let Some(attempt) = attempt_of(&event) else { continue };
                trace(format_args!("{}: container of {attempt}: {:?}", worker.name(), event.action));
                happened.push((Target::Container(event.action), place));
                match event.action {
                    Action::Create => drop(self.containers.insert(event.name.clone())),
                    Action::Destroy => drop(self.containers.remove(&event.name)),
                    Action::Start => self.ground.promises.container_started(attempt),
                    Action::Die => {}
                }
                self.events.push((place, event));
            }
        }
        happened.into_iter().for_each(|(target, place)| self.strike(target, place));
    }

    fn count(&mut self, fault: &'static str) {
        *self.faults.entry(fault).or_default() += 1;
    }

    fn start_core(&mut self) {
        if self.core.is_none() {
            self.net.set_dark(CORE, false);
            let (core, stop) = self.ground.start();
            (self.core, self.core_stop, self.core_is_frozen) = (Some(core), stop, false);
        }
    }

    fn crash_core(&mut self) -> bool {
        let Some(core) = self.core.take() else { return false };
        self.net.crash(CORE, || drop(core));
        true
    }

    /// Does what is due by the plan.
    fn act(&mut self) {
        while let Some(entry) = self.plan.acts.first_entry().filter(|entry| entry.key().0 <= now_us()) {
            let act = entry.remove();
            trace(format_args!("act: {act:?}"));
            self.perform(act);
        }
    }

    fn perform(&mut self, act: Act) {
        match act {
            Act::Cut(from, to) => {
                self.count("cut");
                self.net.set_cut(from, to, true);
            }
            Act::Mend(from, to) => self.net.set_cut(from, to, false),
            Act::Weather(weather) => {
                if weather != Weather::FAIR {
                    self.count("bad weather");
                }
                self.net.set_weather(weather);
            }
            Act::CoreCrash => {
                if self.crash_core() {
                    self.count("core crash");
                }
            }
            Act::CorePowerLoss => {
                if self.core.is_some() {
                    self.count("core power loss");
                    self.net.set_dark(CORE, true);
                    self.core = None;
                    self.ground.lose_power(&mut self.rng);
                }
            }
            Act::CoreDiesAtCommit(death) => self.ground.faults.die_at_commit(death),
            Act::CoreStop => {
                self.count("core stop");
                self.core_stop.cancel();
            }
            Act::CoreStart => {
                if self.core_stop.is_cancelled() {
                    self.crash_core();
                }
                self.start_core();
            }
            Act::CoreFreeze => {
                self.count("core pause");
                self.core_is_frozen = true;
            }
            Act::CoreThaw => self.thaw_core(),
            Act::TakeOver => {
                if self.depose_core() {
                    self.count("take-over");
                }
            }
            Act::DeposedThaw => self.thaw_deposed(),
            Act::WorkerCrash(worker) => {
                if self.workers[worker].crash() {
                    self.count("worker crash");
                }
            }
            Act::WorkerStart(worker) => self.workers[worker].start(),
            Act::WorkerFreeze(worker) => {
                if self.workers[worker].freeze() {
                    self.count("worker pause");
                }
            }
            Act::WorkerThaw(worker) => self.workers[worker].thaw(),
            Act::PowerLoss(worker) => {
                if self.workers[worker].lose_power() {
                    self.count("power loss");
                }
            }
            Act::WatchdogDies(worker) => {
                if self.workers[worker].kill_watchdog() {
                    self.count("watchdog died");
                }
            }
            Act::Aim(aim) => {
                if let Target::Frame(frame) = aim.at {
                    self.net.watch_for(frame);
                }
                self.aims.push(aim);
            }
            Act::EngineDown(worker) => {
                self.count("engine down");
                self.freeze_engine(worker);
                self.workers[worker].set_engine_down(true);
            }
            Act::EngineUp(worker) => {
                self.workers[worker].set_engine_down(false);
                self.unfreeze_engine(worker);
            }
            Act::EngineFaults(worker, share) if share > 0.0 => {
                self.count("engine faults");
                self.freeze_engine(worker);
                self.workers[worker].set_engine_faults(share);
            }
            Act::EngineFaults(worker, _) => {
                self.workers[worker].heal_engine();
                self.unfreeze_engine(worker);
            }
            Act::StoreGone { for_ms } => {
                self.count("store gone");
                self.ground.faults.unreachable_until(now_us() + for_ms * 1000);
            }
            Act::AnswersLost(share) => self.ground.faults.lose_answers(share),
            Act::ClockJump { by_s } => {
                self.count("clock jump");
                self.ground.clock.jump(by_s * 1_000_000);
            }
            Act::Heal => self.heal(),
        }
    }

    fn thaw_core(&mut self) {
        if let Some(core) = self.core.as_ref().filter(|_| self.core_is_frozen) {
            core.thaw(now_us());
        }
        self.core_is_frozen = false;
    }

    fn freeze_engine(&mut self, worker: usize) {
        self.frozen.push(FrozenEngine { worker, from_us: wall_us(), until_us: u64::MAX });
    }

    fn unfreeze_engine(&mut self, worker: usize) {
        let open = self.frozen.iter_mut().filter(|frozen| frozen.worker == worker && frozen.until_us == u64::MAX);
        open.for_each(|frozen| frozen.until_us = wall_us());
    }

    /// All faults are over: everything runs, and nothing is lost any more.
    fn heal(&mut self) {
        for place in 0..self.workers.len() {
            let site = self.workers[place].site();
            self.net.set_cut(site, CORE, false);
            self.net.set_cut(CORE, site, false);
            self.workers[place].thaw();
            self.workers[place].heal_engine();
            self.unfreeze_engine(place);
            self.workers[place].start();
        }
        self.net.set_cut(USERS, CORE, false);
        self.net.set_cut(CORE, USERS, false);
        self.net.set_weather(Weather::FAIR);
        self.ground.faults.heal();
        self.ground.clock.set_right();
        self.thaw_core();
        self.thaw_deposed();
        self.perform(Act::CoreStart);
        self.users.healed.cancel();
        self.aims.clear();
        self.plan.acts.clear();
        self.healed_us = Some(now_us());
    }
}
