//! kill -9 of everything in turn, again and again, while arrays of short tasks run.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use swarm_protocol::state::JobState;
use swarm_protocol::{JobId, TaskRange};

use crate::harness::{Setup, Swarm, be_worker, report, rounds};

/// Tasks of the array that each cycle adds, where containers are real.
const TASKS: u32 = 11;
/// And where they are in memory.
const TASKS_IN_MEMORY: u32 = 101;
/// Arrays under way at a time.
const UNDER_WAY: usize = 3;
/// More losses than any scenario can cause.
const LOSSES_MAX: u16 = 1000;
/// What is stuck longer than this after everything runs again is stuck for good.
const ENDS: Duration = Duration::from_secs(240);

/// Cycles in the full tier: over more than 10,000 tasks in containers and 100,000 in memory.
const CYCLES: u32 = 1000;
const CYCLES_QUICK: u32 = 8;

/// Who dies in a cycle.
type Victims = &'static [fn(&Swarm)];

const VICTIMS: [Victims; 4] = [
    &[Swarm::kill_core],
    &[Swarm::kill_worker],
    &[|swarm| {
        swarm.kill_watchdog();
    }],
    &[Swarm::kill_core, Swarm::kill_worker],
];

impl Swarm {
    fn revive(&self) {
        if self.core().is_none() {
            self.start_core();
        }
        if self.worker().is_none() {
            self.start_worker();
        }
    }

    /// Every task of the array ended well; how many attempts it took beyond one each.
    fn array_ended(&self, job: JobId, tasks: u32) -> usize {
        let detail = self.wait_ended(job, ENDS);
        assert_eq!((detail.job.state, detail.job.tasks.succeeded), (JobState::Succeeded, u64::from(tasks)));
        let views = self.block(self.client.tasks(job, Some(1000), None)).expect("tasks can be listed").items;
        views.iter().map(|view| view.attempts.len().saturating_sub(1)).sum()
    }

    /// Kills and starts `victims` in turn while arrays of `tasks` are submitted and run.
    fn cycles(&self, what: &str, tasks: u32, victims: &[Victims]) {
        let cycles = if rounds(2) == 1 { CYCLES_QUICK } else { CYCLES };
        let (mut under_way, mut retried, began) = (VecDeque::new(), 0, Instant::now());
        for cycle in 0..cycles {
            let mut array = self.shell("exit 0");
            array.array = TaskRange::new(0, tasks - 1);
            array.retries.lost = LOSSES_MAX;
            under_way.push_back(self.submit(&array));
            // Each cycle strikes at another moment.
            std::thread::sleep(Duration::from_millis(u64::from(300 + cycle * 370 % 1300)));
            for kill in victims[cycle as usize % victims.len()] {
                kill(self);
            }
            self.revive();
            if under_way.len() >= UNDER_WAY {
                retried += self.array_ended(under_way.pop_front().expect("some are under way"), tasks);
            }
        }
        retried += under_way.into_iter().map(|job| self.array_ended(job, tasks)).sum::<usize>();
        let (took, tasks) = (began.elapsed().as_secs_f64(), cycles * tasks);
        report(&format!(
            "{cycles} kill cycles over {tasks} tasks {what}: 0 lost, 0 doubled, 0 stuck, {retried} attempts again; \
             {:.1} s a cycle, {:.1} tasks a second",
            took / f64::from(cycles),
            f64::from(tasks) / took
        ));
    }
}

#[test]
fn kills_of_everything_in_turn_under_load_lose_double_and_strand_nothing() {
    let swarm = Swarm::start(Setup::default());
    swarm.cycles("in containers", TASKS, &VICTIMS);
    swarm.judge("kill cycles", true);
}

/// Ten times the load; a worker that is killed takes its engine with it, so what ran there is lost and run again.
#[test]
fn kills_of_core_and_machine_under_ten_times_the_load_lose_double_and_strand_nothing() {
    be_worker();
    let swarm = Swarm::start(Setup { in_memory: true, ..Setup::default() });
    swarm.cycles("in memory", TASKS_IN_MEMORY, &[VICTIMS[0], VICTIMS[1], VICTIMS[3]]);
    swarm.judge_records("kill cycles in memory");
}
