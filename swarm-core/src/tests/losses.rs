//! What the database refuses once is not lost until the next start.

use swarm_protocol::TaskRange;
use swarm_protocol::logs::{LogRecord, LogStream};

use super::*;
use crate::store::{AttemptEnd, Next, Work};

#[tokio::test]
async fn a_task_whose_assignment_was_refused_runs_all_the_same() {
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    core.troubled.refuse(|transition| matches!(transition, Transition::Assign { work: Work::Fresh(_), .. }));
    core.troubled.refuse(|transition| matches!(transition, Transition::Assign { work: Work::Again(_), .. }));
    let mut worker = core.worker().await;
    let job = core.submit(|spec| spec.array = TaskRange::new(0, 5)).await;
    let mut tasks: Vec<_> = Vec::new();
    for _ in 0..4 {
        tasks.push(worker.order().await.attempt);
    }
    let back = tasks.remove(0);
    worker.say(ToCore::Recalled { attempts: vec![back] }).await;
    for _ in 0..3 {
        worker.finish(report(tasks.remove(0), Outcome::Succeeded)).await;
        tasks.push(worker.order().await.attempt);
    }
    tasks.sort();
    assert_eq!(tasks.iter().map(|id| (id.task, id.attempt)).collect::<Vec<_>>(), [(back.task, 2), (4, 1), (5, 1)]);
    core.troubled.refused_all().await;
    for id in tasks {
        worker.finish(report(id, Outcome::Succeeded)).await;
    }
    assert!(core.store.job(job).unwrap().unwrap().ended_at.is_some());
    assert!(worker.frames.try_recv().is_err(), "nothing was given out twice");
}

#[tokio::test]
async fn a_look_for_what_got_lost_that_breaks_off_is_made_up_for() {
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    core.troubled.set_unreadable(Some("fresh_tasks"));
    core.troubled.refuse(|transition| matches!(transition, Transition::Assign { .. }));
    let mut worker = core.worker().await;
    core.submit(|_| ()).await;
    core.troubled.refused_all().await;
    // Counted anew: so many looks broke off since the task got lost.
    core.troubled.set_unreadable(Some("fresh_tasks"));
    core.troubled.asked_in_vain(3).await;
    assert!(worker.frames.try_recv().is_err(), "nobody holds it");
    core.troubled.set_unreadable(None);
    let id = worker.order().await.attempt;
    worker.finish(report(id, Outcome::Succeeded)).await;
}

#[tokio::test]
async fn an_attempt_that_nobody_follows_is_taken_back_from_a_worker_that_does_not_have_it() {
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    let job = core.submit(|_| ()).await;
    let [worker, _] = disk.bench.worker_ids();
    // Committed past the dispatcher, as by a module that failed on its way to tell the harvester.
    let work = Work::Fresh(TaskRange::one(0));
    let assign = Transition::Assign { job, work, worker, at: disk.clock.now() };
    core.handles.ledger.commit(assign).await.unwrap().unwrap();
    let mut worker = core.worker().await;
    tokio::time::timeout(DEADLINE, async {
        for seq in 1.. {
            worker.say(ToCore::Renew { seq, live: LiveSet::default() }).await;
            if !worker.renewed(seq).await {
                return;
            }
        }
    })
    .await
    .expect("a renewal is refused in time, since the attempt is not among what the worker holds");
    worker.say(ToCore::StateReport { seq: 2, attempts: Vec::new() }).await;
    let order = worker.order().await;
    assert_eq!(order.attempt, AttemptId { job, task: 0, attempt: 2 });
}

#[tokio::test]
async fn a_report_that_was_refused_is_not_acknowledged_and_counts_when_it_is_repeated() {
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    core.troubled.refuse(|transition| matches!(transition, Transition::End(end) if end.next == Next::Final));
    let mut worker = core.worker().await;
    let job = core.submit(|_| ()).await;
    let id = worker.order().await.attempt;
    worker.say(ToCore::Finished(Box::new(report(id, Outcome::Succeeded)))).await;
    core.troubled.refused_all().await;
    worker.say(ToCore::Renew { seq: 1, live: LiveSet::default() }).await;
    assert!(worker.renewed(1).await);
    let acknowledged = worker.passed.iter().any(|frame| matches!(frame, ToWorker::FinishStored { .. }));
    assert!(!acknowledged, "nothing is stored");
    worker.finish(report(id, Outcome::Succeeded)).await;
    assert!(core.last_error().is_some_and(|error| error.contains("cannot be stored")), "operators see it");
    let ends: Vec<_> = core.attempts(job).into_iter().map(|end| (end.id.attempt, end.outcome)).collect();
    assert_eq!(ends, [(1, Some(Outcome::Succeeded))]);
}

#[tokio::test]
async fn a_late_report_that_was_refused_is_not_acknowledged_and_is_kept_when_it_is_repeated() {
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    let mut worker = core.worker().await;
    let (job, _) = (core.submit(|_| ()).await, core.submit(|_| ()).await);
    let (id, other) = (worker.order().await.attempt, worker.order().await.attempt);
    for ended in [id, other] {
        worker.finish(report(ended, Outcome::Succeeded)).await;
    }
    core.troubled.refuse(|transition| matches!(transition, Transition::Superseded { .. }));
    worker.say(ToCore::Finished(Box::new(report(id, lost())))).await;
    // One worker's late reports are settled in turn, so this one is answered after it.
    worker.finish(report(other, Outcome::Succeeded)).await;
    core.troubled.refused_all().await;
    assert!(!worker.passed.contains(&ToWorker::FinishStored { attempt: id }), "nothing is stored");
    worker.finish(report(id, lost())).await;
    let late = core.store.tasks(job, 0, 1).unwrap().remove(0).late;
    assert_eq!(late.iter().map(|late| &late.outcome).collect::<Vec<_>>(), [&lost()]);
}

#[tokio::test]
async fn a_report_that_was_overtaken_is_acknowledged_only_once_it_is_kept() {
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    let mut worker = core.worker().await;
    let job = core.submit(|spec| spec.retries.lost = 0).await;
    let id = worker.order().await.attempt;
    // Committed past the harvester, which learns of it when the report's own end is refused.
    let outcome = lost();
    let end = AttemptEnd {
        attempt: id,
        worker: worker.id,
        outcome,
        next: Next::Final,
        started_at: None,
        ended_at: disk.clock.now(),
        ran_ms: None,
        may_have_run: true,
        log_bytes: 0,
        log_cut_bytes: 0,
        outputs: Vec::new(),
        usage: None,
    };
    core.handles.ledger.commit(Transition::End(Box::new(end))).await.unwrap().unwrap();
    core.troubled.refuse(|transition| matches!(transition, Transition::Superseded { .. }));
    let view = || core.store.tasks(job, 0, 1).unwrap().remove(0);
    worker.finish(report(id, Outcome::Succeeded)).await;
    core.troubled.refused_all().await;
    let kept: Vec<_> = view().late.into_iter().map(|late| late.outcome).collect();
    assert_eq!((kept, view().outcome), (vec![Outcome::Succeeded], Some(lost())));
}

#[tokio::test]
async fn an_at_most_once_task_whose_start_was_refused_is_started_by_another_attempt() {
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    core.troubled.refuse(|transition| matches!(transition, Transition::Start { .. }));
    let mut worker = core.worker().await;
    core.submit(|spec| spec.at_most_once = true).await;
    let first = worker.order().await.attempt;
    worker.say(ToCore::Accepted { attempt: first }).await;
    worker.say(ToCore::MayStart { attempt: first }).await;
    worker.hear(|frame| (*frame == ToWorker::Abandon { attempt: first }).then_some(())).await;
    let second = worker.order().await.attempt;
    worker.say(ToCore::Accepted { attempt: second }).await;
    worker.say(ToCore::MayStart { attempt: second }).await;
    worker.hear(|frame| (*frame == ToWorker::StartCommitted { attempt: second }).then_some(())).await;
    assert_eq!((second.attempt, worker.passed.len()), (2, 0), "the first was never allowed: {:?}", worker.passed);
}

#[tokio::test]
async fn of_a_report_in_many_words_only_the_beginning_is_kept() {
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    let mut worker = core.worker().await;
    let job = core.submit(|_| ()).await;
    let id = worker.order().await.attempt;
    for first in ["current ", "late "] {
        let reason = first.to_owned() + &"x".repeat(1 << 20);
        worker.finish(report(id, Outcome::Refused { reason })).await;
    }
    let task = core.store.tasks(job, 0, 1).unwrap().remove(0);
    let texts = [&task.attempts[0].outcome, &Some(task.late[0].outcome.clone())]
        .map(|outcome| outcome.as_ref().and_then(Outcome::detail).unwrap());
    assert_eq!(texts.map(|text| (text.len(), text.starts_with("late"))), [(16 << 10, false), (16 << 10, true)]);
}

/// Reports that concern nobody are answered one after the other, however many come at once, so that they take neither
/// memory nor the store's readers from others.
#[tokio::test]
async fn a_flood_of_late_reports_is_answered_bit_by_bit() {
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    let mut worker = core.worker().await;
    let job = core.submit(|spec| spec.array = TaskRange::new(0, 0)).await;
    let order = worker.order().await;
    worker.finish(report(order.attempt, Outcome::Succeeded)).await;
    let late: Vec<_> = (0..500).map(|task| AttemptId { job, task, attempt: 1 }).collect();
    let frames = late.iter().map(|id| ToCore::Finished(Box::new(report(*id, lost())))).collect();
    let (id, session) = (worker.id, worker.session);
    core.handles.harvester.send(HarvesterMsg::Frames { worker: id, session, frames }).await.unwrap();
    let mut answered = Vec::new();
    let heard = |frame: &ToWorker| match frame {
        ToWorker::FinishStored { attempt } => Some(*attempt),
        _ => None,
    };
    for _ in 0..65 {
        answered.push(worker.hear(heard).await);
    }
    assert_eq!(answered, late[..65], "in order");
    worker.finish(report(late[499], lost())).await;
    assert!(worker.passed.is_empty(), "nothing between: the rest was not heard");
}

#[tokio::test]
async fn a_core_that_was_away_gives_nothing_up_and_a_worker_declared_lost_ends_what_it_had() {
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    let mut worker = core.worker().await;
    let job = core.submit(|spec| spec.lease_s = 15).await;
    let id = worker.order().await.attempt;
    worker.say(ToCore::Accepted { attempt: id }).await;
    worker.say(ToCore::Renew { seq: 1, live: swarm_protocol::link::live_hash([&id]) }).await;
    assert!(worker.renewed(1).await);
    let mut log = Vec::new();
    LogRecord { stream: LogStream::Stdout, at_us: 1, bytes: b"so far".to_vec() }.encode(&mut log);
    worker.say(ToCore::Log { attempt: id, offset: 0, bytes: log.clone() }).await;
    // Nobody swept meanwhile, so this was no silence of the worker.
    disk.clock.advance_ms(60_000);
    let lost = core.until(|| !core.attempts(job).is_empty());
    assert!(tokio::time::timeout(Duration::from_millis(2_500), lost).await.is_err(), "{:?}", core.attempts(job));
    let (reply, ended) = oneshot::channel();
    core.handles.harvester.send(HarvesterMsg::DeclareLost { worker: worker.id, reply }).await.unwrap();
    assert_eq!(ended.await.unwrap(), 1);
    core.until(|| !core.attempts(job).is_empty()).await;
    let end = core.attempts(job).remove(0);
    assert!(matches!(end.outcome, Some(Outcome::Lost { reason: LossReason::DeclaredLost, .. })), "{:?}", end.outcome);
    let marked = || disk.blobs.log_len(&id.into()).unwrap() > log.len() as u64;
    core.until(marked).await;
    assert_eq!((end.log_bytes, end.log_cut_bytes), (disk.blobs.log_len(&id.into()).unwrap(), 1), "it may lack more");
    let kept = disk.blobs.log_read(&id.into(), 0, 1000).unwrap();
    assert!(kept.starts_with(&log) && kept.ends_with(b">=1"), "{kept:?}");
}
