//! Jobs, batches, epochs, connections.

use std::time::{Duration, Instant};

use swarm_protocol::state::JobState;

use super::*;

pub(super) fn a_submit_repeats_by_its_key(bench: &Bench) {
    let with_key = |group, key: &str, body: &[u8]| {
        let idempotency = Some((key.to_owned(), Digest::of(body)));
        Transition::CreateJob(Box::new(NewJob { idempotency, group, ..bench.new_job(1) }))
    };
    let (_, chemistry) = bench.user("bob", "chemistry");
    let made = bench.commit(&[with_key(bench.group, "k", b"x"), with_key(bench.group, "k", b"x")]).unwrap();
    let Ok(Applied::Job { job, repeated: false }) = made[0] else { panic!("{made:?}") };
    assert_eq!(made[1], Ok(Applied::Job { job, repeated: true }));
    assert_eq!(bench.apply(with_key(bench.group, "k", b"x")), Ok(Applied::Job { job, repeated: true }));
    assert!(is_conflict(&bench.apply(with_key(bench.group, "k", b"y"))));
    let other = bench.apply(with_key(chemistry, "k", b"x"));
    assert_eq!(other, Ok(Applied::Job { job: JobId(job.0 + 1), repeated: false }), "a key belongs to its group");
    let of_key = |group, key| bench.store.job_of_key(group, key).unwrap();
    assert_eq!((of_key(bench.group, "k"), of_key(chemistry, "k")), (Some(job), Some(JobId(job.0 + 1))));
    assert_eq!(of_key(bench.group, "l"), None);
    assert_eq!(bench.store.jobs(&JobFilter { limit: 9, ..JobFilter::default() }).unwrap().len(), 2);
}

pub(super) fn a_refused_transition_does_not_spoil_its_batch(bench: &Bench) {
    let job = bench.job(3);
    let verdicts = bench
        .commit(&[
            bench.fresh(job, 0, 0),
            bench.fresh(job, 0, 1),
            bench.start(id(job, 0, 1)),
            bench.start(id(job, 1, 1)),
            bench.fresh(job, 1, 2),
            new_user("ada", "physics"),
        ])
        .unwrap();
    let held: Vec<bool> = verdicts.iter().map(Result::is_ok).collect();
    assert_eq!(held, [true, false, true, false, true, false]);
    assert_eq!(bench.counts(job), [0, 3, 0, 0, 0]);
}

/// A job of a user who does not exist: a foreign key breaks the transaction.
fn broken(bench: &Bench) -> Transition {
    Transition::CreateJob(Box::new(NewJob { owner: UserId(99), ..bench.new_job(1) }))
}

pub(super) fn a_broken_transition_undoes_its_batch(bench: &Bench) {
    let job = bench.job(1);
    let error = bench.commit(&[bench.fresh(job, 0, 0), broken(bench)]).unwrap_err();
    assert!(matches!(error, StoreError::Statement(_)), "{error:?}");
    assert!(!bench.store.batch_committed(bench.epoch, bench.number.get()).unwrap());
    assert_eq!(bench.counts(job), [1, 0, 0, 0, 0]);
    assert_eq!(bench.apply(bench.fresh(job, 0, 0)), Ok(Applied::Done), "the connection still works");
    assert!(bench.store.batch_committed(bench.epoch, bench.number.get()).unwrap());
    assert_eq!(bench.job(1), JobId(job.0 + 1), "what was undone used no number up");
}

pub(super) fn a_deposed_core_writes_nothing(bench: &Bench) {
    let job = bench.job(1);
    bench.apply(bench.fresh(job, 0, 0)).unwrap();
    let successor = Db::open(&bench.url).unwrap();
    let theirs = successor.take_over().unwrap();
    assert_eq!(theirs, Epoch(bench.epoch.0 + 1));
    let late = bench.end(id(job, 0, 1), Outcome::Succeeded, Next::Final);
    let deposed = |error: StoreError| matches!(error, StoreError::Deposed { ours, theirs: by } if ours == bench.epoch && by == theirs);
    assert!(deposed(bench.commit(std::slice::from_ref(&late)).unwrap_err()));
    assert!(deposed(bench.store.batch_committed(bench.epoch, bench.number.get()).unwrap_err()));
    assert_eq!(bench.counts(job), [0, 1, 0, 0, 0]);
    let done = successor.commit(theirs, 1, &[late]).unwrap();
    assert_eq!(done, [Ok(Applied::Ended { job_ended: true })], "the successor takes the report");
}

/// A core that is writing all the time, and one that takes over: what the second one finds is all there is.
pub(super) fn nothing_lands_after_a_take_over(bench: &Bench) {
    let (store, epoch) = (Db::open(&bench.url).unwrap(), bench.epoch);
    let successor = Db::open(&bench.url).unwrap();
    let writing = std::thread::spawn(move || {
        (1..=100_000)
            .map(|number| store.commit(epoch, number, &[new_user(&format!("u{number}"), "physics")]))
            .find_map(Result::err)
    });
    let deadline = Instant::now() + Duration::from_secs(30);
    while successor.users().unwrap().len() < 10 {
        assert!(Instant::now() < deadline && !writing.is_finished(), "nothing is written");
    }
    // SQLite hands its lock to whoever asks at the right moment: a writer that never pauses can starve another one.
    let taken = std::iter::repeat_with(|| successor.take_over());
    let taken =
        taken.take_while(|_| Instant::now() < deadline).find(|taken| !matches!(taken, Err(StoreError::Connection(_))));
    taken.expect("it takes over in time").unwrap();
    let found = successor.users().unwrap().len();
    let error = writing.join().unwrap();
    assert!(matches!(error, Some(StoreError::Deposed { .. })), "{error:?}");
    assert_eq!(successor.users().unwrap().len(), found);
}

pub(super) fn a_store_is_the_same_when_reopened(bench: &Bench) {
    let job = bench.job(4);
    bench.apply(bench.fresh(job, 0, 1)).unwrap();
    bench.apply(bench.start(id(job, 1, 1))).unwrap();
    let reopened = Db::open(&bench.url).unwrap();
    assert_eq!(reopened.swarm_id().unwrap(), bench.store.swarm_id().unwrap());
    assert!(reopened.batch_committed(bench.epoch, bench.number.get()).unwrap());
    assert_eq!(reopened.load().unwrap().live, bench.store.load().unwrap().live);
    let record = reopened.job(job).unwrap().unwrap();
    let new = bench.new_job(4);
    assert_eq!(
        (&record.spec, &record.image, &record.input_bytes),
        (&new.job.spec, &new.job.image, &new.job.input_bytes)
    );
    assert_eq!((record.owner, record.owner_name.as_str()), (bench.owner, "ada"));
    assert_eq!((record.group, record.group_name.as_str(), record.allow_root), (bench.group, "physics", false));
    assert_eq!((record.submitted_at, record.next_fresh), (at(1), 2));
}

pub(super) fn jobs_are_listed_by_state_group_and_name(bench: &Bench) {
    let (_, chemistry) = bench.user("bob", "chemistry");
    let end = |job, outcome| {
        bench.apply(bench.fresh(job, 0, 0)).unwrap();
        bench.apply(bench.end(id(job, 0, 1), outcome, Next::Final)).unwrap();
        job
    };
    let mut delayed = bench.new_job(1);
    delayed.job.spec.start_at = Some(at(100));
    let delayed = bench.submit(delayed);
    let mut named = bench.new_job(1);
    named.job.spec.name = Some("nightly".to_owned());
    let waiting = bench.submit(NewJob { group: chemistry, ..named });
    let running = bench.job(2);
    bench.apply(bench.fresh(running, 0, 0)).unwrap();
    let succeeded = end(bench.job(1), Outcome::Succeeded);
    let failed = end(bench.job(1), Outcome::Refused { reason: "no such \0 command".to_owned() });
    let cancelled = bench.job(1);
    bench.apply(Transition::Cancel { job: cancelled, at: at(5) }).unwrap();

    let list = |filter: JobFilter| -> Vec<JobId> {
        bench.store.jobs(&filter).unwrap().into_iter().map(|job| job.id).collect()
    };
    let all = JobFilter { limit: 99, now: at(50), ..JobFilter::default() };
    assert_eq!(list(all.clone()), [cancelled, failed, succeeded, running, waiting, delayed]);
    let by_state = [
        (JobState::Delayed, delayed),
        (JobState::Waiting, waiting),
        (JobState::Running, running),
        (JobState::Succeeded, succeeded),
        (JobState::Failed, failed),
        (JobState::Cancelled, cancelled),
    ];
    for (state, job) in by_state {
        assert_eq!(list(JobFilter { state: Some(state), ..all.clone() }), [job], "{state}");
        let record = bench.record(job);
        let is_delayed = record.spec.start_at.is_some_and(|start| start > at(50));
        assert_eq!(record.counts.job_state(is_delayed), state);
    }
    let later = JobFilter { state: Some(JobState::Waiting), now: at(100), ..all.clone() };
    assert_eq!(list(later), [waiting, delayed], "the delay is over");
    assert_eq!(list(JobFilter { group: Some(chemistry), ..all.clone() }), [waiting]);
    assert_eq!(list(JobFilter { name: Some("nightly".to_owned()), ..all.clone() }), [waiting]);
    assert_eq!(list(JobFilter { before: Some(succeeded), limit: 2, ..all }), [running, waiting]);
}

pub(super) fn an_open_snapshot_holds_what_is_not_final(bench: &Bench) {
    let [open, over] = [bench.job(2), bench.job(1)];
    bench.apply(bench.fresh(open, 0, 0)).unwrap();
    bench.apply(bench.fresh(over, 0, 0)).unwrap();
    bench.apply(bench.end(id(over, 0, 1), Outcome::Succeeded, Next::Final)).unwrap();
    let snapshot = bench.store.load().unwrap();
    assert_eq!(snapshot.jobs.iter().map(|job| job.id).collect::<Vec<_>>(), [open]);
    assert_eq!(snapshot.live.iter().map(|task| (task.job, task.task)).collect::<Vec<_>>(), [(open, 0)]);
    assert!(bench.store.job(JobId(99)).unwrap().is_none());
    assert!(bench.store.tasks(JobId(99), 0, 5).unwrap().is_empty());
    assert!(bench.store.tasks(open, 2, 5).unwrap().is_empty());
    assert_eq!(bench.store.tasks(open, 1, u32::MAX).unwrap().len(), 1);
}

/// On SQLite there is no server to lose, so there it only shows that nothing else is needed.
pub(super) fn a_lost_connection_heals(bench: &Bench) {
    let job = bench.job(3);
    bench.store.load().unwrap();
    bench.cut_connections();
    if matches!(bench.connection(), Conn::Postgres(_)) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let assign = [bench.fresh(job, 0, 0)];
        let error = loop {
            match bench.commit(&assign) {
                Err(error) => break error,
                Ok(_) => assert!(Instant::now() < deadline, "the connection was not lost"),
            }
        };
        assert!(matches!(error, StoreError::Connection(_)), "{error:?}");
    }
    assert_eq!(bench.store.load().unwrap().jobs.len(), 1, "reads heal by themselves");
    assert_eq!(bench.apply(bench.fresh(job, 0, 0)), Ok(Applied::Done), "the next write has a new connection");
}

/// What Postgres does to a statement when a trigger runs it.
const PASSING: [&str; 6] = [
    "RAISE EXCEPTION 'could not extend file \"base/1/2\": No space left on device' USING ERRCODE = 'disk_full'",
    "RAISE EXCEPTION 'out of memory' USING ERRCODE = 'out_of_memory'",
    "RAISE EXCEPTION 'deadlock detected' USING ERRCODE = 'deadlock_detected'",
    "PERFORM pg_cancel_backend(pg_backend_pid()); PERFORM pg_sleep(60)",
    "PERFORM set_config('transaction_read_only', 'on', true)",
    "PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(60)",
];
const LASTING: [&str; 3] =
    ["RAISE EXCEPTION 'no' USING ERRCODE = 'check_violation'", "PERFORM 1 / 0", "PERFORM 'x'::integer"];

/// Nothing that passes is taken for a fault of the statement, or its job would be given up.
pub(super) fn a_database_that_cannot_write_now_is_asked_again(bench: &Bench) {
    let make = [new_user("eve", "physics")];
    match &mut bench.connection() {
        Conn::Postgres(c) => {
            for (body, passes) in PASSING.map(|body| (body, true)).into_iter().chain(LASTING.map(|body| (body, false)))
            {
                c.batch_execute(&format!(
                    "CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NEW; END $$; \
                     CREATE TRIGGER trouble BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION trouble();"
                ))
                .unwrap();
                let error = bench.commit(&make).unwrap_err();
                assert_eq!(matches!(error, StoreError::Connection(_)), passes, "{body}: {error:?}");
                c.batch_execute("DROP FUNCTION trouble CASCADE").unwrap();
            }
        }
        Conn::Sqlite(c) => {
            for (text, passes) in [("database or disk is full", true), ("out of memory", true), ("no", false)] {
                c.batch_execute(&format!(
                    "CREATE TRIGGER trouble BEFORE INSERT ON users BEGIN SELECT RAISE(ABORT, '{text}'); END;"
                ))
                .unwrap();
                let error = bench.commit(&make).unwrap_err();
                assert_eq!(matches!(error, StoreError::Connection(_)), passes, "{text}: {error:?}");
                c.batch_execute("DROP TRIGGER trouble").unwrap();
            }
        }
    }
    bench.commit(&make).unwrap()[0].as_ref().expect("it is made once the trouble is over");
}
