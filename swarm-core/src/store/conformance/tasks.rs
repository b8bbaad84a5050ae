//! Tasks and attempts.

use diesel::connection::SimpleConnection;
use swarm_protocol::state::JobState;

use super::*;
use crate::store::connect::both;

pub(super) fn fresh_tasks_are_assigned_once_and_in_order(bench: &Bench) {
    let job = bench.job(5);
    assert!(is_stale(&bench.apply(bench.fresh(job, 1, 2))), "a gap");
    assert_eq!(bench.apply(bench.fresh(job, 0, 2)), Ok(Applied::Done));
    assert!(is_stale(&bench.apply(bench.fresh(job, 0, 2))), "twice");
    assert!(is_stale(&bench.apply(bench.fresh(job, 3, 5))), "beyond the end");
    let nobody =
        Transition::Assign { job, work: Work::Fresh(TaskRange { first: 3, last: 4 }), worker: WorkerId(99), at: at(2) };
    assert!(is_stale(&bench.apply(nobody)), "to nobody");
    assert!(is_stale(&bench.apply(bench.fresh(JobId(99), 0, 0))), "of no job");
    assert_eq!(bench.counts(job), [2, 3, 0, 0, 0]);
    assert_eq!(bench.record(job).fresh(), TaskRange::new(3, 4));
    let live = bench.store.live_task(TaskId { job, task: 2 }).unwrap().unwrap();
    let phase = LivePhase::Assigned { worker: bench.workers[0], at: at(2) };
    assert_eq!(live, LiveTask { job, task: 2, attempt: 1, phase, losses: 0, failures: 0 });
    assert_eq!(bench.store.live_task(TaskId { job, task: 3 }).unwrap(), None);
}

pub(super) fn a_million_tasks_are_few_rows(bench: &Bench) {
    let job = bench.job(1_000_000);
    let snapshot = bench.store.load().unwrap();
    assert_eq!((snapshot.jobs.len(), snapshot.live.len()), (1, 0));
    assert_eq!(bench.apply(bench.fresh(job, 0, 2499)), Ok(Applied::Done));
    assert_eq!(bench.store.load().unwrap().live.len(), 2500);
    let cancelled = bench.apply(Transition::Cancel { job, at: at(5) }).unwrap();
    assert!(matches!(cancelled, Applied::Cancelled { live, job_ended: false } if live.len() == 2500));
    assert_eq!(bench.counts(job), [0, 2500, 0, 0, 997_500]);
    let page = bench.store.tasks(job, 999_998, 10).unwrap();
    let seen: Vec<_> = page.iter().map(|task| (task.task, task.outcome.clone())).collect();
    assert_eq!(seen, [(999_998, Some(Outcome::Cancelled)), (999_999, Some(Outcome::Cancelled))]);
}

pub(super) fn the_life_of_an_attempt_is_kept(bench: &Bench) {
    let job = bench.job(1);
    let attempt = id(job, 0, 1);
    assert!(bench.store.attempt(attempt).unwrap().is_none());
    bench.apply(bench.fresh(job, 0, 0)).unwrap();
    let assigned = bench.store.attempt(attempt).unwrap().unwrap();
    assert_eq!((assigned.worker_name.as_str(), assigned.assigned_at), ("w1", at(2)));
    assert_eq!((assigned.started_at, assigned.may_have_run), (None, false));
    assert_eq!(bench.apply(bench.start(attempt)), Ok(Applied::Done));
    let started = bench.store.attempt(attempt).unwrap().unwrap();
    assert_eq!((started.started_at, started.ended_at, started.may_have_run), (Some(at(3)), None, true));
    let end = bench.end(attempt, Outcome::Failed { exit_code: 3 }, Next::Final);
    assert_eq!(bench.apply(end), Ok(Applied::Ended { job_ended: true }));
    let ended = bench.store.attempt(attempt).unwrap().unwrap();
    assert_eq!(ended.outcome, Some(Outcome::Failed { exit_code: 3 }));
    assert_eq!((ended.id, ended.worker, ended.is_final), (attempt, bench.workers[0], true));
    assert_eq!((ended.assigned_at, ended.started_at, ended.ended_at), (at(2), Some(at(3)), Some(at(9))));
    assert_eq!((ended.ran_ms, ended.log_bytes, ended.log_cut_bytes), (Some(6000), 12, 1));
    let usage = ended.usage.unwrap();
    assert_eq!((usage.cpu_ms, usage.memory_peak_bytes, usage.input_bytes), (Some(5), None, 6));
    let record = bench.record(job);
    assert_eq!((record.ended_at, record.counts.job_state(false)), (Some(at(9)), JobState::Failed));
    assert!(bench.store.load().unwrap().live.is_empty());
}

pub(super) fn what_is_not_current_is_refused(bench: &Bench) {
    let job = bench.job(2);
    bench.apply(bench.fresh(job, 0, 1)).unwrap();
    let done = || Outcome::Succeeded;
    for attempt in [id(job, 0, 2), id(job, 7, 1), id(JobId(99), 0, 1)] {
        assert!(is_stale(&bench.apply(bench.start(attempt))), "{attempt}");
        assert!(is_stale(&bench.apply(bench.recall(attempt))), "{attempt}");
        assert!(is_stale(&bench.apply(bench.end(attempt, done(), Next::Final))), "{attempt}");
    }
    let (attempt, other) = (id(job, 0, 1), bench.workers[1]);
    assert!(is_stale(&bench.apply(Transition::Start { attempt, worker: other, started_at: at(3) })));
    assert!(is_stale(&bench.apply(Transition::Recall { attempt, worker: other, at: at(3) })));
    let Transition::End(mut end) = bench.end(attempt, done(), Next::Final) else { unreachable!() };
    end.worker = other;
    assert!(is_stale(&bench.apply(Transition::End(end))));
    assert_eq!(bench.counts(job), [0, 2, 0, 0, 0]);

    bench.apply(bench.start(attempt)).unwrap();
    assert!(is_stale(&bench.apply(bench.start(attempt))), "started twice");
    assert!(is_stale(&bench.apply(bench.recall(attempt))), "recalled after its start");
    assert_eq!(bench.apply(bench.end(attempt, done(), Next::Final)), Ok(Applied::Ended { job_ended: false }));
    assert!(is_stale(&bench.apply(bench.end(attempt, lost(), retry(20)))), "ended twice");
    assert!(is_stale(&bench.apply(bench.start(attempt))), "started after its end");
    assert_eq!(bench.counts(job), [0, 1, 1, 0, 0]);
    assert_eq!(bench.store.attempt(attempt).unwrap().unwrap().outcome, Some(Outcome::Succeeded));
}

pub(super) fn a_recall_costs_no_retry(bench: &Bench) {
    let job = bench.job(1);
    bench.apply(bench.fresh(job, 0, 0)).unwrap();
    assert_eq!(bench.apply(bench.recall(id(job, 0, 1))), Ok(Applied::Done));
    let phase = LivePhase::Waiting { not_before: at(3) };
    let waiting = bench.store.live_task(TaskId { job, task: 0 }).unwrap();
    assert_eq!(waiting, Some(LiveTask { job, task: 0, attempt: 2, phase, losses: 0, failures: 0 }));
    assert_eq!(bench.counts(job), [1, 0, 0, 0, 0]);
    assert!(bench.store.attempt(id(job, 0, 2)).unwrap().is_none(), "an attempt that nobody has yet");
    assert!(is_stale(&bench.apply(bench.recall(id(job, 0, 2)))), "nothing to recall");

    bench.apply(bench.again(job, &[(0, 2)])).unwrap();
    bench.apply(Transition::Cancel { job, at: at(4) }).unwrap();
    assert_eq!(bench.apply(bench.recall(id(job, 0, 2))), Ok(Applied::Ended { job_ended: true }));
    assert_eq!(bench.counts(job), [0, 0, 0, 0, 1]);
    assert_eq!(bench.store.tasks(job, 0, 1).unwrap()[0].outcome, Some(Outcome::Cancelled));
}

pub(super) fn what_is_open_is_read_in_pages(bench: &Bench) {
    let mut later = bench.new_job(2);
    later.job.spec.start_at = Some(at(50));
    let (array, later, cancelled, other) = (bench.job(5), bench.submit(later), bench.job(1), bench.job(1));
    bench.apply(Transition::Cancel { job: cancelled, at: at(2) }).unwrap();
    bench.apply(bench.fresh(array, 0, 2)).unwrap();
    let fresh = |after, second, limit| bench.store.fresh_tasks(after, at(second), limit).unwrap();
    let (rest, one) = (TaskRange { first: 3, last: 4 }, TaskRange::one(0));
    assert_eq!(fresh(None, 49, 9), [(array, rest), (other, one)]);
    assert_eq!(fresh(None, 50, 2), [(array, rest), (later, TaskRange { first: 0, last: 1 })]);
    assert_eq!(fresh(Some(later), 50, 2), [(other, one)]);
    bench.apply(bench.fresh(array, 3, 4)).unwrap();
    bench.apply(bench.fresh(other, 0, 0)).unwrap();
    assert!(fresh(None, 49, 9).is_empty());

    let live = |after, limit| bench.store.live_tasks(after, limit).unwrap();
    let ids = |tasks: Vec<LiveTask>| tasks.iter().map(|task| (task.job, task.task)).collect::<Vec<_>>();
    assert_eq!(ids(live(None, 2)), [(array, 0), (array, 1)]);
    assert_eq!(ids(live(Some(TaskId { job: array, task: 3 }), 9)), [(array, 4), (other, 0)]);
    assert!(live(Some(TaskId { job: other, task: 0 }), 9).is_empty());
    assert_eq!(live(None, 9), bench.store.load().unwrap().live);
}

pub(super) fn retries_wait_and_count(bench: &Bench) {
    let job = bench.job(2);
    bench.apply(bench.fresh(job, 0, 1)).unwrap();
    let first = bench.end(id(job, 0, 1), lost(), retry(20));
    assert_eq!(bench.apply(first), Ok(Applied::Ended { job_ended: false }));
    bench.apply(bench.end(id(job, 1, 1), Outcome::TimedOut, retry(30))).unwrap();
    let live = bench.store.load().unwrap().live;
    let seen: Vec<_> = live.iter().map(|task| (task.task, task.attempt, task.losses, task.failures)).collect();
    assert_eq!(seen, [(0, 2, 1, 0), (1, 2, 0, 1)]);
    assert_eq!(live[1].phase, LivePhase::Waiting { not_before: at(30) });
    assert_eq!(bench.counts(job), [2, 0, 0, 0, 0]);

    for wrong in [vec![(0, 1)], vec![(0, 2), (1, 3)], vec![(0, 2), (7, 1)], vec![(0, 2), (0, 2)], vec![]] {
        assert!(is_stale(&bench.apply(bench.again(job, &wrong))), "{wrong:?}");
    }
    assert_eq!(bench.counts(job), [2, 0, 0, 0, 0], "a refused assignment changes nothing");
    assert_eq!(bench.apply(bench.again(job, &[(1, 2), (0, 2)])), Ok(Applied::Done));
    assert!(is_stale(&bench.apply(bench.again(job, &[(0, 2)]))), "twice");
    bench.apply(bench.end(id(job, 0, 2), Outcome::Succeeded, Next::Final)).unwrap();
    let last = bench.end(id(job, 1, 2), lost(), Next::Final);
    assert_eq!(bench.apply(last), Ok(Applied::Ended { job_ended: true }));
    let tasks = bench.store.tasks(job, 0, 9).unwrap();
    let finals: Vec<Vec<_>> =
        tasks.iter().map(|task| task.attempts.iter().map(|a| (a.id.attempt, a.is_final)).collect()).collect();
    assert_eq!(finals, [[(1, false), (2, true)], [(1, false), (2, true)]]);
    assert_eq!(bench.counts(job), [0, 0, 1, 1, 0]);
    assert!(is_stale(&bench.apply(bench.again(job, &[(0, 3)]))), "of a job that is over");
}

pub(super) fn a_cancel_ends_what_waits(bench: &Bench) {
    let job = bench.job(6);
    bench.apply(bench.fresh(job, 0, 3)).unwrap();
    bench.apply(bench.end(id(job, 1, 1), lost(), retry(20))).unwrap();
    bench.apply(bench.end(id(job, 3, 1), lost(), retry(20))).unwrap();
    let live = vec![(id(job, 0, 1), bench.workers[0]), (id(job, 2, 1), bench.workers[0])];
    let cancel = || Transition::Cancel { job, at: at(30) };
    let cancelled = Ok(Applied::Cancelled { live, job_ended: false });
    assert_eq!(bench.apply(cancel()), cancelled);
    assert_eq!(bench.apply(cancel()), cancelled, "idempotent");
    assert_eq!(bench.counts(job), [0, 2, 0, 0, 4]);
    assert_eq!(bench.record(job).fresh(), None);
    assert!(is_stale(&bench.apply(bench.fresh(job, 4, 5))));
    assert!(is_stale(&bench.apply(bench.again(job, &[(1, 2)]))));

    let retried = bench.end(id(job, 0, 1), Outcome::Cancelled, retry(40));
    assert_eq!(bench.apply(retried), Ok(Applied::Ended { job_ended: false }), "no retry after a cancel");
    let last = bench.end(id(job, 2, 1), Outcome::Succeeded, Next::Final);
    assert_eq!(bench.apply(last), Ok(Applied::Ended { job_ended: true }));
    let outcomes: Vec<_> = bench.store.tasks(job, 0, 9).unwrap().into_iter().filter_map(|task| task.outcome).collect();
    let expected = [0, 1, 2, 3, 4, 5].map(|task| if task == 2 { Outcome::Succeeded } else { Outcome::Cancelled });
    assert_eq!(outcomes, expected);
    let record = bench.record(job);
    assert!(record.cancel_requested);
    assert_eq!((record.counts.job_state(false), record.ended_at), (JobState::Cancelled, Some(at(9))));
    assert_eq!(bench.apply(cancel()), Ok(Applied::Cancelled { live: Vec::new(), job_ended: true }));
    assert_eq!(bench.record(job).counts, record.counts);

    let untouched = bench.job(3);
    let all = bench.apply(Transition::Cancel { job: untouched, at: at(31) });
    assert_eq!(all, Ok(Applied::Cancelled { live: Vec::new(), job_ended: true }));
    assert_eq!(bench.record(untouched).ended_at, Some(at(31)));
    assert!(is_not_found(&bench.apply(Transition::Cancel { job: JobId(99), at: at(31) })));
}

pub(super) fn a_task_has_one_final_record(bench: &Bench) {
    let job = bench.job(1);
    bench.apply(bench.fresh(job, 0, 0)).unwrap();
    bench.apply(bench.end(id(job, 0, 1), Outcome::Succeeded, Next::Final)).unwrap();
    let mut conn = bench.connection();
    let doubled = "INSERT INTO attempts (job_id, task, attempt, worker_id, assigned_at, ended_at, outcome, is_final, \
                   may_have_run, log_bytes, log_cut_bytes, outputs) SELECT job_id, task, 2, worker_id, assigned_at, \
                   ended_at, outcome, is_final, may_have_run, log_bytes, log_cut_bytes, outputs FROM attempts";
    let error = both!(&mut conn, c => c.batch_execute(doubled)).unwrap_err().to_string();
    assert!(error.to_lowercase().contains("unique"), "{error}");
}

pub(super) fn the_last_attempt_number_is_final(bench: &Bench) {
    let job = bench.job(2);
    bench.apply(bench.fresh(job, 0, 1)).unwrap();
    bench.connection().execute("UPDATE live_tasks SET attempt = 65535").unwrap();
    let given_back = bench.apply(bench.recall(id(job, 1, u16::MAX)));
    assert!(matches!(given_back, Ok(Applied::Ended { job_ended: false })), "{given_back:?}");
    let record = bench.store.attempt(id(job, 1, u16::MAX)).unwrap().unwrap();
    assert!(record.is_final && !record.may_have_run && record.outcome.unwrap().is_lost());
    bench.apply(bench.end(id(job, 0, u16::MAX), lost(), retry(20))).unwrap();
    assert!(bench.store.attempt(id(job, 0, u16::MAX)).unwrap().unwrap().is_final);
    assert_eq!(bench.counts(job), [0, 0, 0, 2, 0]);
}

pub(super) fn late_reports_change_nothing(bench: &Bench) {
    let job = bench.job(1);
    bench.apply(bench.fresh(job, 0, 0)).unwrap();
    bench.apply(bench.end(id(job, 0, 1), lost(), retry(20))).unwrap();
    let before = bench.store.load().unwrap().live;
    let report = |attempt, outcome| Transition::Superseded { attempt, worker: bench.workers[0], outcome, at: at(40) };
    for outcome in [Outcome::Succeeded, Outcome::TimedOut] {
        assert_eq!(bench.apply(report(id(job, 0, 1), outcome)), Ok(Applied::Done));
    }
    assert_eq!(bench.store.load().unwrap().live, before);
    assert_eq!(bench.counts(job), [1, 0, 0, 0, 0]);
    let late = |task| bench.store.tasks(job, task, 1).unwrap().remove(0).late;
    let (worker_name, reported_at) = ("w1".to_owned(), at(40));
    let kept = LateReport { attempt: 1, worker_name, outcome: Outcome::Succeeded, reported_at };
    assert_eq!(late(0), [kept], "the first one");
    for made_up in [id(job, 0, 0), id(job, 0, 2), id(job, 1, 1), id(JobId(99), 0, 1)] {
        assert!(is_not_found(&bench.apply(report(made_up, Outcome::Succeeded))));
    }
    // Another worker has no word in it: neither about what has ended, nor about what is live.
    let other = |attempt| {
        let (worker, outcome) = (bench.workers[1], Outcome::Succeeded);
        Transition::Superseded { attempt, worker, outcome, at: at(40) }
    };
    assert!(is_not_found(&bench.apply(other(id(job, 0, 1)))));
    bench.apply(bench.again(job, &[(0, 2)])).unwrap();
    assert!(is_not_found(&bench.apply(other(id(job, 0, 2)))));
    bench.apply(report(id(job, 0, 2), Outcome::TimedOut)).unwrap();
    assert_eq!(late(0).iter().map(|report| report.attempt).collect::<Vec<_>>(), [1, 2]);
    // Nor has one that gave it back unstarted.
    bench.apply(bench.recall(id(job, 0, 2))).unwrap();
    bench.apply(bench.again(job, &[(0, 3)])).unwrap();
    bench.apply(bench.recall(id(job, 0, 3))).unwrap();
    assert!(is_not_found(&bench.apply(report(id(job, 0, 3), Outcome::TimedOut))));
    assert_eq!(late(0).len(), 2);
}
