//! Random transitions against the drawn state machine: the store takes exactly the moves it draws.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use swarm_protocol::state::{TaskEvent, TaskState};

use super::*;

/// Tasks of each job.
const TASKS: u32 = 4;

/// One move; `worker` and `attempt` may be wrong on purpose.
#[derive(Debug, Clone)]
enum Move {
    Fresh { tasks: u32, worker: usize },
    Again { task: u32, attempt: u16, worker: usize },
    Start { task: u32, attempt: u16, worker: usize },
    Recall { task: u32, attempt: u16, worker: usize },
    End { task: u32, attempt: u16, worker: usize, outcome: Outcome, retry: bool },
    Cancel,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let task = 0..TASKS;
    let attempt = prop_oneof![4 => Just(1_u16), 3 => Just(2), 1 => 3..5_u16];
    let worker = prop_oneof![5 => Just(0_usize), 1 => Just(1)];
    let outcome = prop_oneof![Just(Outcome::Succeeded), Just(Outcome::Failed { exit_code: 1 }), Just(lost())];
    let on_task = (task, attempt, worker.clone());
    let one = prop_oneof![
        3 => (1..=TASKS, worker).prop_map(|(tasks, worker)| Move::Fresh { tasks, worker }),
        3 => on_task.clone().prop_map(|(task, attempt, worker)| Move::Again { task, attempt, worker }),
        4 => on_task.clone().prop_map(|(task, attempt, worker)| Move::Start { task, attempt, worker }),
        2 => on_task.clone().prop_map(|(task, attempt, worker)| Move::Recall { task, attempt, worker }),
        6 => (on_task, outcome, any::<bool>()).prop_map(|((task, attempt, worker), outcome, retry)| Move::End {
            task,
            attempt,
            worker,
            outcome,
            retry,
        }),
        1 => Just(Move::Cancel),
    ];
    prop::collection::vec(one, 1..40)
}

/// What the store should hold.
struct Model {
    workers: [WorkerId; 2],
    tasks: Vec<TaskState>,
    next_fresh: u32,
    cancelled: bool,
}

impl Model {
    /// The state of `task` if `worker` holds it.
    fn held(&self, task: u32, by: usize) -> Option<TaskState> {
        match &self.tasks[task as usize] {
            state @ (TaskState::Assigned { worker, .. } | TaskState::Started { worker, .. })
                if *worker == self.workers[by] =>
            {
                Some(state.clone())
            }
            _ => None,
        }
    }

    fn change(&mut self, task: u32, from: Option<TaskState>, event: TaskEvent) -> bool {
        let Some(Ok(next)) = from.map(|state| state.apply(event)) else { return false };
        self.tasks[task as usize] = next;
        true
    }

    /// Makes the move and says whether it was one.
    fn make(&mut self, made: &Move) -> bool {
        match made {
            Move::Fresh { tasks, worker } => {
                let range = self.next_fresh..self.next_fresh + tasks;
                if self.cancelled || range.end > TASKS {
                    return false;
                }
                self.next_fresh = range.end;
                range.into_iter().all(|task| {
                    let event = TaskEvent::Assign { worker: self.workers[*worker], attempt: 1 };
                    self.change(task, Some(self.tasks[task as usize].clone()), event)
                })
            }
            Move::Again { task, attempt, worker } => {
                let event = TaskEvent::Assign { worker: self.workers[*worker], attempt: *attempt };
                // A fresh task has no row of its own to wait in.
                let waits = *task < self.next_fresh && !self.cancelled;
                waits && self.change(*task, Some(self.tasks[*task as usize].clone()), event)
            }
            Move::Start { task, attempt, worker } => {
                self.change(*task, self.held(*task, *worker), TaskEvent::Start { attempt: *attempt })
            }
            Move::Recall { task, attempt, worker } => {
                let made = self.change(*task, self.held(*task, *worker), TaskEvent::Recall { attempt: *attempt });
                if made && self.cancelled {
                    self.change(*task, Some(self.tasks[*task as usize].clone()), TaskEvent::Cancel);
                }
                made
            }
            Move::End { task, attempt, worker, outcome, retry } => {
                let retry = *retry && !self.cancelled;
                let event = TaskEvent::End { attempt: *attempt, outcome: outcome.clone(), retry };
                self.change(*task, self.held(*task, *worker), event)
            }
            Move::Cancel => {
                self.cancelled = true;
                self.next_fresh = TASKS;
                for task in 0..TASKS {
                    self.change(task, Some(self.tasks[task as usize].clone()), TaskEvent::Cancel);
                }
                true
            }
        }
    }
}

fn transition(bench: &Bench, job: JobId, model: &Model, made: &Move) -> Transition {
    match made.clone() {
        Move::Fresh { tasks, worker } => Transition::Assign {
            job,
            work: Work::Fresh(TaskRange { first: model.next_fresh, last: model.next_fresh + tasks - 1 }),
            worker: bench.workers[worker],
            at: at(2),
        },
        Move::Again { task, attempt, worker } => Transition::Assign {
            job,
            work: Work::Again(vec![(task, attempt)]),
            worker: bench.workers[worker],
            at: at(2),
        },
        Move::Start { task, attempt, worker } => {
            Transition::Start { attempt: id(job, task, attempt), worker: bench.workers[worker], started_at: at(3) }
        }
        Move::Recall { task, attempt, worker } => {
            Transition::Recall { attempt: id(job, task, attempt), worker: bench.workers[worker], at: at(3) }
        }
        Move::End { task, attempt, worker, outcome, retry: again } => {
            let next = if again { retry(20) } else { Next::Final };
            let Transition::End(mut end) = bench.end(id(job, task, attempt), outcome, next) else { unreachable!() };
            end.worker = bench.workers[worker];
            Transition::End(end)
        }
        Move::Cancel => Transition::Cancel { job, at: at(4) },
    }
}

/// A task as the state machine names it.
fn state(task: &TaskRecord) -> TaskState {
    match (&task.outcome, &task.live) {
        (Some(outcome), None) => TaskState::Ended(outcome.clone()),
        (None, None) => TaskState::Waiting { next_attempt: 1 },
        (None, Some(live)) => match live.phase {
            LivePhase::Waiting { .. } => TaskState::Waiting { next_attempt: live.attempt },
            LivePhase::Assigned { worker, .. } => TaskState::Assigned { worker, attempt: live.attempt },
            LivePhase::Started { worker, .. } => TaskState::Started { worker, attempt: live.attempt },
        },
        (Some(_), Some(_)) => panic!("ended and live: {task:?}"),
    }
}

fn check(bench: &Bench, job: JobId, model: &Model) {
    let tasks = bench.store.tasks(job, 0, TASKS).unwrap();
    assert_eq!(tasks.iter().map(state).collect::<Vec<_>>(), model.tasks);
    assert!(tasks.iter().all(|task| task.attempts.iter().filter(|attempt| attempt.is_final).count() <= 1));
    let record = bench.record(job);
    let count = |wanted: fn(&TaskState) -> bool| model.tasks.iter().filter(|state| wanted(state)).count() as u64;
    assert_eq!(record.counts.waiting, count(|state| matches!(state, TaskState::Waiting { .. })));
    assert_eq!(record.counts.succeeded, count(|state| *state == TaskState::Ended(Outcome::Succeeded)));
    assert_eq!(record.counts.cancelled, count(|state| *state == TaskState::Ended(Outcome::Cancelled)));
    let ended = count(|state| matches!(state, TaskState::Ended(_)));
    assert_eq!(record.counts.live, u64::from(TASKS) - ended - record.counts.waiting);
    assert_eq!(record.ended_at.is_some(), ended == u64::from(TASKS));
    assert_eq!(record.cancel_requested, model.cancelled);
}

pub(super) fn the_store_agrees_with_the_drawn_state_machine(bench: &Bench) {
    let mut runner = TestRunner::new(Config { cases: 40, failure_persistence: None, ..Config::default() });
    let run = |moves: Vec<Move>| {
        let job = bench.job(TASKS);
        let waiting = TaskState::Waiting { next_attempt: 1 };
        let mut model =
            Model { workers: bench.workers, tasks: vec![waiting; TASKS as usize], next_fresh: 0, cancelled: false };
        for made in moves {
            if bench.record(job).ended_at.is_some() {
                break;
            }
            let verdict = bench.apply(transition(bench, job, &model, &made));
            assert_eq!(verdict.is_ok(), model.make(&made), "{made:?}: {verdict:?}");
            check(bench, job, &model);
        }
        Ok(())
    };
    runner.run(&moves(), run).unwrap();
}
