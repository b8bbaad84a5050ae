//! Two cores that start at one moment on one empty database, or in one data directory: one of them leads, the other one
//! leaves it alone and says why. The tables are made once, and so is the first account.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_client::{Client, MemoryTokens};

use super::SHORT_LOG;
use crate::harness::{PATIENCE, Proc, Setup, Swarm, command, either, eventually, report, shared_postgres};

/// The data directories of the two.
const APART: [&str; 2] = ["one", "other"];
/// How soon one of them has left, though nothing has to be written.
const LEFT: Duration = Duration::from_secs(30);

/// Starts both on `store`, or on the database of the data directory, and gives the one that is left with its address.
fn start_both(dir: &Path, store: Option<&str>, data: [&str; 2]) -> (Proc, String) {
    let mut cores = [0, 1].map(|n: usize| {
        let data = dir.join(data[n]).display().to_string();
        let mut command = command(dir, &["core", "--data-dir", &data, "--listen", "127.0.0.1:0"]);
        command.envs(store.map(|store| ("SWARM_CORE_DATABASE_URL", store)));
        Proc::start(&format!("core-{n}"), dir, command)
    });
    let (loser, status) = eventually("one of them leaves", LEFT, || {
        cores.iter_mut().enumerate().find_map(|(n, core)| Some((n, core.ended()?)))
    });
    let printed = cores[loser].printed();
    let why = if data[0] == data[1] { "another core uses" } else { "is over" };
    assert!(!status.success() && printed.contains(why), "it does not say why: {status}\n{printed}");
    let [one, other] = cores;
    let mut winner = if loser == 0 { other } else { one };
    let url = eventually("the other one answers", PATIENCE, || {
        assert!(winner.ended().is_none(), "both have left\n{}\n--- and\n{printed}", winner.printed());
        let printed = winner.printed();
        Some(printed.lines().find_map(|line| line.strip_prefix("listening on "))?.trim().to_owned())
    });
    (winner, url)
}

/// The directory whose password is the admin's: only one of the two can be right.
fn admin_of<'a>(dir: &Path, url: &str, data: &[&'a str]) -> &'a str {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    let logs_in = |data: &&&str| {
        let Ok(password) = std::fs::read_to_string(dir.join(data).join("admin-password")) else { return false };
        let client = Client::new(url, Arc::new(MemoryTokens::default())).expect("loopback is an address");
        match runtime.block_on(client.login("admin", password.trim_end())) {
            Ok(()) => true,
            Err(error) if error.is_status(401) => false,
            Err(error) => panic!("the core that leads does not answer: {error}"),
        }
    };
    let right: Vec<&str> = data.iter().filter(logs_in).copied().collect();
    assert_eq!(right.len(), 1, "accounts of the admin: {right:?}");
    right[0]
}

/// Leaves the one that leads, stopped in order, as the swarm's first core.
fn settle(dir: &Path, store: &str) {
    let (winner, url) = start_both(dir, Some(store), APART);
    let admin = admin_of(dir, &url, &APART);
    let printed = winner.printed();
    let data = APART.into_iter().find(|data| printed.contains(&dir.join(data).display().to_string()));
    assert!(winner.terminate(PATIENCE).success(), "the one that leads stops in order");
    let password = std::fs::read(dir.join(admin).join("admin-password")).expect("it was read before");
    std::fs::rename(dir.join(data.unwrap_or(admin)), dir.join("core")).expect("a directory can be renamed");
    std::fs::write(dir.join("core/admin-password"), password).expect("a file can be written");
}

/// Races on empty databases, each made by `make` in a directory of its own; then a swarm that goes on from one.
fn started_together(scenario: &str, setup: Setup, make: impl Fn(&Path) -> String) {
    let (mut slowest, races) = (Duration::ZERO, either(3, 40));
    for _ in 0..races {
        let dir = tempfile::Builder::new().prefix("swarm-test-").tempdir().expect("a directory can be made");
        let (store, began) = (make(dir.path()), Instant::now());
        let (winner, url) = start_both(dir.path(), Some(&store), APART);
        slowest = slowest.max(began.elapsed());
        admin_of(dir.path(), &url, &APART);
        drop(winner);
        forget(&store);
    }
    let swarm = Swarm::start(Setup { before: Some(settle), ..setup });
    for _ in 0..=races {
        swarm.fault("two cores start at one moment");
    }
    let job = swarm.submit(&swarm.shell("echo begun; echo done"));
    swarm.ran_once(job, SHORT_LOG);
    swarm.judge(scenario, true);
    let slowest = slowest.as_secs_f64();
    report(&format!(
        "{scenario}: {races} races, each one leader and one admin; the other one left within {slowest:.1} s"
    ));
}

fn postgres() -> String {
    shared_postgres().expect("SWARM_TEST_POSTGRES_URL names a Postgres; `cargo xtask test` starts one")
}

fn forget(store: &str) {
    if let Some((_, name)) = store.rsplit_once('/').filter(|_| store.starts_with("postgres")) {
        swarm_checker::drop_database(&postgres(), name).expect("nobody uses it");
    }
}

#[test]
fn two_cores_that_start_at_once_on_an_empty_postgres_have_one_leader_and_one_admin() {
    let setup = Setup { postgres: Some(postgres()), ..Setup::default() };
    started_together("two cores start on an empty Postgres", setup, |_| {
        let name = format!("swarm_test_{}", uuid::Uuid::new_v4().simple());
        swarm_checker::create_database(&postgres(), &name).expect("a database can be made")
    });
}

#[test]
fn two_cores_that_start_at_once_on_an_empty_sqlite_file_have_one_leader_and_one_admin() {
    let setup = Setup { database_file: Some("shared.db"), ..Setup::default() };
    started_together("two cores start on an empty SQLite", setup, |dir| dir.join("shared.db").display().to_string());
    let dir = tempfile::Builder::new().prefix("swarm-test-").tempdir().expect("a directory can be made");
    let (_winner, url) = start_both(dir.path(), None, ["one", "one"]);
    admin_of(dir.path(), &url, &["one"]);
}
