//! A database that somebody else has locked: nothing is promised before it is committed, whoever asks is told to come again,
//! and all goes on once the lock is gone.

use std::time::{Duration, Instant};

use swarm_checker::Held;
use swarm_protocol::state::JobState;

use crate::harness::{PATIENCE, Setup, Swarm, either, eventually, report, rounds, shared_postgres};

/// How long it is locked: longer than SQLite waits by itself.
const LOCKED: Duration = Duration::from_secs(11);
/// How long a request waits for the database here, so that the lock outlasts some.
const ANSWER_MS: &str = "3000";
/// Within this it is told so.
const TOLD: Duration = Duration::from_secs(8);
/// How soon a job is taken once the lock is gone.
const HEALED: Duration = Duration::from_secs(20);
/// The lock under which a core that starts makes its tables.
const MIGRATING: &str = "SELECT pg_advisory_lock(x'73776d31'::int, hashtext(coalesce(current_schema(), '')))";

const RUNNING: &str = "echo begun; sleep 14; echo done";

/// `lock` is held while a job runs and others are submitted. How long after its end a job was taken.
fn locked(swarm: &Swarm, lock: &str) -> Duration {
    let running = swarm.submit(&swarm.shell(RUNNING));
    swarm.wait_started(running, 1);
    let mut jobs = Vec::new();
    let slowest = std::thread::scope(|scope| {
        swarm.fault(&format!("somebody else holds: {lock}"));
        let held = Held::by(&swarm.store, lock).expect("it can be locked");
        let began = Instant::now();
        let submitting: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(move || {
                    let job = swarm.submit_stubbornly(&swarm.shell("echo begun; echo done"), began + PATIENCE);
                    (job.expect("it is taken in the end"), Instant::now())
                })
            })
            .collect();
        swarm.tells_to_come_again(TOLD);
        std::thread::sleep(LOCKED.saturating_sub(began.elapsed()));
        let freed = Instant::now();
        drop(held);
        for submitted in submitting {
            let (job, at) = submitted.join().expect("submits go on");
            let after = at.checked_duration_since(freed).expect("it was promised while nothing could be committed");
            assert!(after < HEALED, "taken only {after:?} after the lock was gone");
            jobs.push((job, after));
        }
        jobs.iter().map(|(_, after)| *after).max().unwrap_or_default()
    });
    swarm.ran_once(running, super::SHORT_LOG);
    for (job, _) in jobs {
        swarm.ran_once(job, super::SHORT_LOG);
    }
    slowest
}

/// Those whose submits were told 503 may have been taken all the same.
fn judge(swarm: &Swarm, scenario: &str) {
    for job in swarm.block(swarm.client.jobs(&swarm_client::JobFilter::default())).expect("jobs can be listed").items {
        assert_eq!(swarm.wait_ended(job.id, PATIENCE).job.state, JobState::Succeeded);
    }
    swarm.judge(scenario, true);
}

fn impatient(postgres: Option<String>) -> Swarm {
    Swarm::start(Setup { postgres, core_env: vec![("SWARM_CORE_LIMITS__ANSWER_MS", ANSWER_MS)], ..Setup::default() })
}

#[test]
fn a_sqlite_that_another_process_writes_to_promises_nothing_meanwhile() {
    let swarm = impatient(None);
    let mut slowest = Duration::ZERO;
    for _ in 0..rounds(50) {
        slowest = slowest.max(locked(&swarm, "BEGIN IMMEDIATE"));
    }
    judge(&swarm, "SQLite locked by another process");
    report(&format!("SQLite locked by another process: taken {:.1} s after it", slowest.as_secs_f64()));
}

fn postgres() -> String {
    shared_postgres().expect("SWARM_TEST_POSTGRES_URL names a Postgres; `cargo xtask test` starts one")
}

#[test]
fn a_postgres_whose_rows_or_tables_another_session_locks_promises_nothing_meanwhile() {
    let swarm = impatient(Some(postgres()));
    let mut slowest = Duration::ZERO;
    let locks = ["BEGIN; SELECT * FROM epoch FOR UPDATE", "BEGIN; LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"];
    for lock in locks.iter().cycle().take(either(2, 50) as usize) {
        slowest = slowest.max(locked(&swarm, lock));
    }
    judge(&swarm, "Postgres locked by another session");
    report(&format!("Postgres locked by another session: taken {:.1} s after it", slowest.as_secs_f64()));
}

/// As when another core makes tables, or hangs over it: it is waited for, and a stop is not held up.
#[test]
fn a_core_starts_once_nobody_else_holds_the_lock_of_the_migrations() {
    let swarm = impatient(Some(postgres()));
    for _ in 0..rounds(20) {
        let running = swarm.submit(&swarm.shell(RUNNING));
        swarm.wait_started(running, 1);
        swarm.core().take().expect("a core runs").terminate(PATIENCE);
        swarm.fault("somebody else holds the lock of the migrations");
        let held = Held::by(&swarm.store, MIGRATING).expect("it can be locked");
        let waiting = swarm.spawn_core(&[]);
        std::thread::sleep(Duration::from_secs(2));
        let began = Instant::now();
        waiting.terminate(Duration::from_secs(20));
        report(&format!("a core that waits for its tables stopped after {:.1} s", began.elapsed().as_secs_f64()));
        let mut core = swarm.spawn_core(&[]);
        std::thread::sleep(Duration::from_secs(4));
        assert!(core.ended().is_none(), "it did not wait\n{}", core.printed());
        assert!(swarm.submit_once().is_err(), "nobody can have promised this");
        drop(held);
        let ready = || swarm.block(swarm.client.ready()).ok();
        eventually("the core answers", HEALED, ready);
        *swarm.core() = Some(core);
        swarm.ran_once(running, super::SHORT_LOG);
    }
    judge(&swarm, "migrations locked by another session");
}
