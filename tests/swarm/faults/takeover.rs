//! Two cores on one database: the one that came later is right, and the other one knows it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use swarm_protocol::state::JobState;

use super::{LONG, LONG_LOG};
use crate::harness::{PATIENCE, Proc, Proxy, Setup, Swarm, command, eventually, report, rounds, shared_postgres};

/// The last byte of the loopback addresses on which the cores in turn hear heartbeats.
const HEARTBEATS: [u8; 2] = [2, 3];

/// A data directory of its own with the keys of `first`, and the same blobs, as on storage that cores share.
fn share(first: &Path, second: &Path) -> PathBuf {
    std::fs::create_dir(second).expect("a directory can be made");
    for entry in std::fs::read_dir(first).expect("the first core has data").flatten() {
        let name = entry.file_name();
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            std::fs::copy(entry.path(), second.join(name)).expect("a file can be copied");
        }
    }
    std::os::unix::fs::symlink(first.join("blobs"), second.join("blobs")).expect("a link can be made");
    second.to_owned()
}

/// Starts another core on the swarm's database, with its keys and blobs, and leads the worker to it.
fn take_over(swarm: &Swarm, link: &Proxy, round: usize) -> (Proc, String) {
    let data = share(&swarm.home().join("core"), &swarm.home().join(format!("core-{round}")));
    let heartbeats = link.heartbeats(HEARTBEATS[(round + 1) % 2]);
    let data = data.display().to_string();
    let mut command = command(swarm.home(), &["core", "--data-dir", &data, "--listen", "127.0.0.1:0"]);
    command.env("SWARM_CORE_DATABASE_URL", &swarm.store);
    command.env("SWARM_CORE_HEARTBEAT_LISTEN", heartbeats.to_string());
    let name = format!("core-{round}");
    let mut core = Proc::start(&name, swarm.home(), command);
    let url = eventually("the second core answers", PATIENCE, || {
        assert!(core.ended().is_none(), "the second core ended at its start\n{}", core.printed());
        let printed = core.printed();
        let address = printed.lines().find_map(|line| line.strip_prefix("listening on "))?;
        Some(address.trim().to_owned())
    });
    link.aim(url.trim_start_matches("http://").parse().expect("an address"), heartbeats);
    (core, url)
}

#[test]
fn a_second_core_on_the_same_database_takes_over_and_the_first_one_stops() {
    let postgres = shared_postgres().expect("SWARM_TEST_POSTGRES_URL names a Postgres; `cargo xtask test` starts one");
    let link = std::sync::Arc::new(Proxy::start());
    let setup = Setup { postgres: Some(postgres), link: Some(link.clone()), ..Setup::default() };
    let mut swarm = Swarm::start(setup);
    let mut slowest = Duration::ZERO;
    for round in 0..rounds(20) as usize {
        let mut first = swarm.core().take().expect("a core runs");
        let running = swarm.submit(&swarm.shell(LONG));
        swarm.wait_started(running, 1);
        let waiting: Vec<_> = (0..8).map(|_| swarm.submit(&swarm.shell("sleep 1; echo waited"))).collect();
        swarm.fault("a second core is started on the database");
        let (second, url) = take_over(&swarm, &link, round);
        let began = std::time::Instant::now();
        // It may still answer until it next asks the database for something: what it takes then must not count.
        let late = swarm.try_submit(&swarm.shell("echo late"));
        let status = eventually("the first core ends by itself", PATIENCE, || first.ended());
        slowest = slowest.max(began.elapsed());
        assert!(!status.success(), "a core that was deposed says so: {status}");
        assert!(first.printed().contains("is over"), "{}", first.printed());
        assert!(late.is_err(), "a deposed core acknowledged {late:?}");
        swarm.client = swarm.client_at(&url);
        *swarm.core() = Some(second);
        swarm.ran_once(running, LONG_LOG);
        for job in waiting {
            assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Succeeded);
            assert_eq!(swarm.task(job).attempts.len(), 1, "{:?}", swarm.task(job));
        }
    }
    swarm.judge("second core on one database", true);
    report(&format!("second core on one database: the first one ended within {:.1} s", slowest.as_secs_f64()));
}
