use super::*;
use crate::messages::Shape;

#[tokio::test]
async fn a_task_that_is_given_back_keeps_its_whole_retry_budget() {
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    let mut worker = core.worker().await;
    let job = core.submit(|spec| spec.retries.lost = 1).await;
    for attempt in 1..=3 {
        let order = worker.order().await;
        assert_eq!(order.attempt.attempt, attempt);
        worker.say(ToCore::Recalled { attempts: vec![order.attempt] }).await;
        core.until(|| core.store.live_task(task(job)).unwrap().unwrap().attempt > attempt).await;
        // Only the first time is nothing waited for.
        disk.clock.advance_ms(if attempt > 1 { 2_000 } else { 0 });
    }
    let fourth = worker.order().await.attempt;
    assert_eq!((fourth.attempt, core.attempts(job).len()), (4, 0), "attempts that never began leave no record");
    worker.finish(report(fourth, lost())).await;
    let live = core.store.live_task(task(job)).unwrap().expect("the one retry is left");
    assert_eq!((live.attempt, live.losses, live.failures), (5, 1, 0));
    disk.clock.advance_ms(2_000);
    let fifth = worker.order().await.attempt;
    worker.finish(report(fifth, lost())).await;
    let ended: Vec<_> = core.attempts(job).iter().map(|end| (end.id.attempt, end.is_final)).collect();
    assert_eq!(ended, [(4, false), (5, true)]);
}

#[tokio::test]
async fn a_worker_that_refuses_an_order_is_offered_nothing_for_a_while() {
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    let mut worker = core.worker().await;
    let job = core.submit(|_| ()).await;
    let attempt = worker.order().await.attempt;
    worker.say(ToCore::Declined { attempt, reason: "the disk is full".to_owned() }).await;
    core.until(|| core.store.live_task(task(job)).unwrap().unwrap().attempt == 2).await;
    // Other work, of which the idle worker is the first choice as well.
    core.submit(|_| ()).await;
    let shape = Shape::of(&core.store.job(job).unwrap().unwrap().spec);
    let (reply, why) = oneshot::channel();
    core.handles.dispatcher.send(DispatcherMsg::Why { shape, reply }).await.unwrap();
    let why = why.await.unwrap();
    assert!(why.iter().any(|reason| reason.text.contains("takes no new work at the moment")), "{why:?}");
    assert!(worker.frames.try_recv().is_err());
    disk.clock.advance_ms(10_000);
    worker.say(ToCore::Renew { seq: 1, live: LiveSet::default() }).await;
    let mut orders = [worker.order().await.attempt, worker.order().await.attempt];
    orders.sort();
    assert_eq!(orders.map(|id| id.attempt), [2, 1], "the older job's second attempt, and the other job's first");
}

#[tokio::test]
async fn a_task_whose_recall_was_refused_by_the_database_never_began_and_runs() {
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    core.troubled.refuse(|transition| matches!(transition, Transition::Recall { .. }));
    let mut worker = core.worker().await;
    let job = core.submit(|spec| spec.retries.lost = 0).await;
    let first = worker.order().await.attempt;
    worker.say(ToCore::Accepted { attempt: first }).await;
    worker.say(ToCore::Declined { attempt: first, reason: "the disk is full".to_owned() }).await;
    core.troubled.refused_all().await;
    let is_told = |error: String| error.contains("was given back");
    core.until(|| core.last_error().is_some_and(is_told)).await;
    worker.say(ToCore::StateReport { seq: 2, attempts: Vec::new() }).await;
    worker.hear(|frame| matches!(frame, ToWorker::StateJudged { seq: 2, .. }).then_some(())).await;
    worker.say(ToCore::Renew { seq: 1, live: LiveSet::default() }).await;
    assert!(worker.renewed(1).await, "its worker does not have it");
    disk.clock.advance_ms(10_000);
    core.until(|| core.store.live_task(task(job)).unwrap().is_some_and(|live| live.attempt == 2)).await;
    worker.say(ToCore::Renew { seq: 2, live: LiveSet::default() }).await;
    let second = worker.order().await.attempt;
    worker.finish(report(second, Outcome::Succeeded)).await;
    let ends: Vec<_> = core.attempts(job).into_iter().map(|end| (end.id.attempt, end.outcome)).collect();
    assert_eq!(ends, [(2, Some(Outcome::Succeeded))]);
}
