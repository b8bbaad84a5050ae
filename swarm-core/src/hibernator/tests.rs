use swarm_protocol::GroupId;
use swarm_protocol::TaskRange;

use super::*;
use crate::clock::ManualClock;
use crate::messages::Shape;
use crate::store::Work;
use crate::testing::{Memory, at, schedule};

/// One run of a hibernator over `memory`.
struct Run {
    inbox: mpsc::Sender<HibernatorMsg>,
    released: mpsc::Receiver<SchedulerMsg>,
    stop: CancellationToken,
}

fn start(memory: &Memory, clock: &Arc<ManualClock>, delayed: Vec<(Timestamp, Runnable)>) -> Run {
    let (scheduler, released) = mpsc::channel(64);
    let (inbox, messages) = mpsc::channel(64);
    let stop = CancellationToken::new();
    let deps = Deps {
        ledger: memory.ledger(),
        store: Arc::new(memory.clone()),
        scheduler,
        clock: Arc::clone(clock) as Arc<dyn Clock>,
    };
    let gauge = Gauge::new("hibernator", &inbox);
    tokio::spawn(run(messages, deps, delayed, memory.all_schedules(), gauge, stop.clone()));
    Run { inbox, released, stop }
}

impl Run {
    async fn released(&mut self) -> JobId {
        let message = tokio::time::timeout(Duration::from_secs(10), self.released.recv()).await;
        match message.expect("a release in time").expect("a running hibernator") {
            SchedulerMsg::Enqueue(work) => work.job,
            other => panic!("{other:?}"),
        }
    }

    /// Everything told so far is handled, and the clock was looked at since: two messages, one after the other.
    async fn settle(&self) {
        for _ in 0..3 {
            self.inbox.send(HibernatorMsg::Remove(JobId(0))).await.unwrap();
            // All its places are free: the message is taken.
            drop(self.inbox.reserve_many(self.inbox.max_capacity()).await.unwrap());
        }
    }
}

fn delayed(job: u64) -> Runnable {
    Runnable {
        job: JobId(job),
        group: GroupId(1),
        priority: 0,
        runnable_since: at(0),
        shape: Shape::default(),
        work: Work::Fresh(TaskRange::one(0)),
    }
}

fn launches(memory: &Memory) -> Vec<Timestamp> {
    let launch = |transition: Transition| match transition {
        Transition::CreateJob(new) => new.launch.map(|launch| launch.nominal_at),
        _ => None,
    };
    memory.log().into_iter().filter_map(launch).collect()
}

#[tokio::test]
async fn delayed_work_is_released_in_order_by_the_wall_clock_however_it_jumps() {
    let (memory, clock) = (Memory::default(), Arc::new(ManualClock::new(at(0))));
    let mut run = start(&memory, &clock, vec![(at(3600), delayed(2)), (at(7200), delayed(3))]);
    run.inbox.send(HibernatorMsg::Hold { until: at(1800), work: delayed(1) }).await.unwrap();
    run.inbox.send(HibernatorMsg::Hold { until: at(1700), work: delayed(4) }).await.unwrap();
    run.inbox.send(HibernatorMsg::Remove(JobId(4))).await.unwrap();
    run.settle().await;
    assert!(run.released.try_recv().is_err());
    // No message wakes it after the jump: it looks by itself.
    clock.set_wall(at(3600));
    assert_eq!([run.released().await, run.released().await], [JobId(1), JobId(2)]);
    clock.set_wall(at(10));
    run.settle().await;
    assert!(run.released.try_recv().is_err());
    clock.set_wall(at(7200));
    assert_eq!(run.released().await, JobId(3));
    run.stop.cancel();
}

#[tokio::test]
async fn a_clock_that_is_set_back_delays_a_retry_by_a_backoff_at_most_and_a_job_until_its_start() {
    let (memory, clock) = (Memory::default(), Arc::new(ManualClock::new(at(7200))));
    let again = Runnable { work: Work::Again(vec![(0, 2)]), ..delayed(1) };
    let mut run = start(&memory, &clock, vec![(at(7260), again), (at(7210), delayed(2))]);
    run.settle().await;
    clock.set_wall(at(0));
    run.settle().await;
    clock.set_wall(at(300));
    assert_eq!(run.released().await, JobId(1));
    run.settle().await;
    assert!(run.released.try_recv().is_err());
    clock.set_wall(at(7210));
    assert_eq!(run.released().await, JobId(2));
    run.stop.cancel();
}

#[tokio::test]
async fn a_retry_that_is_handed_over_after_the_clock_was_set_back_waits_for_a_backoff_at_most() {
    let (memory, clock) = (Memory::default(), Arc::new(ManualClock::new(at(7200))));
    let mut run = start(&memory, &clock, Vec::new());
    clock.set_wall(at(0));
    run.settle().await;
    let again = Runnable { work: Work::Again(vec![(0, 2)]), ..delayed(1) };
    run.inbox.send(HibernatorMsg::Hold { until: at(7201), work: again }).await.unwrap();
    run.inbox.send(HibernatorMsg::Hold { until: at(7201), work: delayed(2) }).await.unwrap();
    run.settle().await;
    assert!(run.released.try_recv().is_err());
    clock.set_wall(at(300));
    assert_eq!(run.released().await, JobId(1));
    run.settle().await;
    assert!(run.released.try_recv().is_err(), "a start that was asked for is one");
    run.stop.cancel();
}

#[tokio::test]
async fn each_instant_is_launched_once_across_restarts_and_clock_jumps() {
    let (memory, clock) = (Memory::default(), Arc::new(ManualClock::new(at(0))));
    // 1_800_000_000 is a whole multiple of ten minutes.
    memory.add_schedule(schedule(1, "*/10 * * * *", at(0)));
    let mut run = start(&memory, &clock, Vec::new());
    run.settle().await;
    assert!(launches(&memory).is_empty());
    clock.set_wall(at(600));
    assert_eq!(run.released().await, JobId(1));
    run.stop.cancel();

    // A store that does not remember the instant as considered still has its launch.
    memory.add_schedule(schedule(1, "*/10 * * * *", at(0)));
    let mut run = start(&memory, &clock, Vec::new());
    memory.until(|memory| memory.all_schedules()[0].considered_until == at(600)).await;
    assert!(run.released.try_recv().is_err());
    // Set back, and forward again.
    clock.set_wall(at(300));
    run.settle().await;
    clock.set_wall(at(600));
    run.settle().await;
    clock.set_wall(at(1200));
    assert_eq!(run.released().await, JobId(2));
    run.stop.cancel();
    assert_eq!(launches(&memory), [at(600), at(1200)]);
}

#[tokio::test]
async fn instants_that_a_clock_jumped_over_are_launched_when_they_come_after_it_was_set_back() {
    let (memory, clock) = (Memory::default(), Arc::new(ManualClock::new(at(0))));
    memory.add_schedule(schedule(1, "*/10 * * * *", at(0)));
    let mut run = start(&memory, &clock, Vec::new());
    run.settle().await;
    clock.set_wall(at(3600));
    assert_eq!(run.released().await, JobId(1));
    clock.set_wall(at(1000));
    run.settle().await;
    clock.set_wall(at(1200));
    assert_eq!(run.released().await, JobId(2));
    // Five of the first hour and five of the second: none is counted twice.
    clock.set_wall(at(7200));
    assert_eq!(run.released().await, JobId(3));
    memory.until(|memory| memory.all_schedules()[0].missed == 10).await;
    run.stop.cancel();
    assert_eq!(launches(&memory), [at(3600), at(1200), at(7200)]);
}

#[tokio::test]
async fn after_an_absence_the_latest_instant_runs_and_the_others_are_counted() {
    let (memory, clock) = (Memory::default(), Arc::new(ManualClock::new(at(3 * 3600 + 5))));
    memory.add_schedule(schedule(1, "*/10 * * * *", at(0)));
    let mut run = start(&memory, &clock, Vec::new());
    assert_eq!(run.released().await, JobId(1));
    memory.until(|memory| memory.all_schedules()[0].missed == 17).await;
    assert_eq!(launches(&memory), [at(3 * 3600)]);
    assert_eq!(memory.all_schedules()[0].considered_until, at(0) + TimeDelta::hours(3));

    // Paused, it is silent; made anew, it fires.
    let mut paused = memory.all_schedules().remove(0);
    paused.paused = true;
    memory.add_schedule(paused.clone());
    run.inbox.send(HibernatorMsg::ScheduleChanged(paused.id)).await.unwrap();
    run.settle().await;
    clock.set_wall(at(4 * 3600));
    run.settle().await;
    assert_eq!(launches(&memory).len(), 1);
    memory.add_schedule(ScheduleRecord { paused: false, considered_until: at(4 * 3600), ..paused.clone() });
    run.inbox.send(HibernatorMsg::ScheduleChanged(paused.id)).await.unwrap();
    run.settle().await;
    clock.set_wall(at(4 * 3600 + 600));
    assert_eq!(run.released().await, JobId(2));
    run.stop.cancel();
}

#[tokio::test]
async fn a_changed_schedule_that_cannot_be_read_is_read_again() {
    let (memory, clock) = (Memory::default(), Arc::new(ManualClock::new(at(0))));
    let mut run = start(&memory, &clock, Vec::new());
    memory.set_unreadable(true);
    memory.add_schedule(schedule(1, "*/10 * * * *", at(0)));
    run.inbox.send(HibernatorMsg::ScheduleChanged(ScheduleId(1))).await.unwrap();
    run.settle().await;
    memory.set_unreadable(false);
    clock.set_wall(at(600));
    assert_eq!(run.released().await, JobId(1));
    run.stop.cancel();
}

#[tokio::test]
async fn it_says_what_it_holds() {
    let (memory, clock) = (Memory::default(), Arc::new(ManualClock::new(at(0))));
    let run = start(&memory, &clock, vec![(at(60), delayed(1)), (at(90), delayed(2))]);
    run.inbox.send(HibernatorMsg::Remove(JobId(2))).await.unwrap();
    let mut tasks = Tasks::default();
    (1..=3).for_each(|job| tasks.add(JobId(job), &Work::Fresh(TaskRange::one(0))));
    let (reply, unheld) = oneshot::channel();
    run.inbox.send(HibernatorMsg::Unheld { tasks, reply }).await.unwrap();
    assert_eq!(unheld.await.unwrap().jobs().into_iter().collect::<Vec<_>>(), [JobId(2), JobId(3)]);
    run.stop.cancel();
}
