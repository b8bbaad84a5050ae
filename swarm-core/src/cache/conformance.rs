//! What both caches promise, asked of two cores that share one. In the process both are the same.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use swarm_protocol::{AttemptId, Epoch, JobId, WorkerId};

use super::redis::server::{Server, eventually};
use super::*;
use crate::clock::SystemClock;

/// Everything awaited here comes well within this.
const DEADLINE: Duration = Duration::from_secs(20);
/// A burst, and then nothing for as long as a test may take.
pub(crate) const LIMIT: LoginLimit = LoginLimit { rate: Rate { burst: 8, interval_ms: 600_000 }, share: 1 };

/// Two cores on one cache.
pub(crate) struct Pair {
    cores: [Arc<dyn Cache>; 2],
    _stop: tokio_util::sync::DropGuard,
    _server: Option<Server>,
}

/// Starts a core's cache on this server and waits until it is used.
pub(crate) async fn on_redis(server: &Server, limit: LoginLimit, stop: &CancellationToken) -> Arc<RedisCache> {
    let cache = connecting(server.settings(""), limit, stop);
    eventually("Redis is used", async || cache.health().is_whole()).await;
    eventually("notices are heard", async || cache.health().to_string() == "redis: up").await;
    cache
}

/// Starts a core's cache and waits for nothing.
pub(crate) fn connecting(settings: RedisSettings, limit: LoginLimit, stop: &CancellationToken) -> Arc<RedisCache> {
    let swarm = SwarmId(uuid::Uuid::from_u128(7));
    let cache = Arc::new(RedisCache::new(settings.client().unwrap(), swarm, limit, Arc::new(SystemClock)));
    let (running, stop) = (Arc::clone(&cache), stop.clone());
    tokio::spawn(async move { running.run(stop).await });
    cache
}

impl Pair {
    fn local() -> Self {
        let cache: Arc<dyn Cache> = Arc::new(LocalCache::new(LIMIT, Arc::new(SystemClock)));
        Self { cores: [Arc::clone(&cache), cache], _stop: CancellationToken::new().drop_guard(), _server: None }
    }

    async fn redis() -> Self {
        let (server, stop) = (Server::start(&[]).await, CancellationToken::new());
        let cores = [on_redis(&server, LIMIT, &stop).await as _, on_redis(&server, LIMIT, &stop).await as _];
        Self { cores, _stop: stop.drop_guard(), _server: Some(server) }
    }
}

macro_rules! suite {
    ($($name:ident),+ $(,)?) => {
        mod in_process {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Pair::local()).await;
            })+
        }
        mod redis {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Pair::redis().await).await;
            })+
        }
    };
}

suite!(
    logins_from_one_address_are_counted_together,
    a_notice_reaches_who_follows_that_log_at_any_core,
    notices_do_not_pile_up,
    the_newest_table_of_workers_is_read_at_any_core,
    one_that_works_is_whole,
);

fn attempt(job: u64) -> AttemptId {
    AttemptId { job: JobId(job), task: 0, attempt: 1 }
}

fn notice(job: u64, bytes: u64, ended: bool) -> LogNotice {
    LogNotice { attempt: attempt(job), bytes, ended }
}

async fn heard(ear: &mut Ear, bytes: u64) -> LogNotice {
    tokio::time::timeout(DEADLINE, ear.beyond(bytes)).await.expect("the notice comes in time")
}

async fn logins_from_one_address_are_counted_together(pair: Pair) {
    for (client, other) in [("192.0.2.7", "192.0.2.8"), ("2001:db8::7", "2001:db8::8")] {
        let (client, other): (IpAddr, IpAddr) = (client.parse().unwrap(), other.parse().unwrap());
        for n in 0..LIMIT.rate.burst as usize {
            assert_eq!(pair.cores[n % 2].take_login(client).await, Ok(()), "login {n} of {client}");
        }
        for core in &pair.cores {
            let Limited { retry_ms } = core.take_login(client).await.unwrap_err();
            assert!((1..=LIMIT.rate.interval_ms).contains(&retry_ms), "{retry_ms}");
        }
        assert_eq!(pair.cores[1].take_login(other).await, Ok(()), "addresses do not share a bucket");
    }
}

async fn a_notice_reaches_who_follows_that_log_at_any_core(pair: Pair) {
    let [here, there] = &pair.cores;
    let (mut near, mut far, mut other) = (here.hear(attempt(1)), there.hear(attempt(1)), there.hear(attempt(2)));
    here.tell(notice(1, 10, false));
    assert_eq!(heard(&mut near, 0).await, notice(1, 10, false));
    assert_eq!(heard(&mut far, 9).await, notice(1, 10, false));
    here.tell(notice(1, 0, true));
    assert_eq!(heard(&mut far, 10).await, notice(1, 0, true), "the end is told whatever its length");
    there.tell(notice(2, 1, false));
    assert_eq!(heard(&mut other, 0).await, notice(2, 1, false), "and nothing of another log before it");
}

async fn notices_do_not_pile_up(pair: Pair) {
    let [here, there] = &pair.cores;
    let mut ear = there.hear(attempt(1));
    for bytes in 1..=10_000 {
        here.tell(notice(1, bytes, false));
    }
    assert_eq!(heard(&mut ear, 9_999).await, notice(1, 10_000, false));
}

async fn the_newest_table_of_workers_is_read_at_any_core(pair: Pair) {
    let [here, there] = &pair.cores;
    assert_eq!(there.workers().await, None);
    let row = |id, state| WorkerRow {
        id: WorkerId(id),
        state,
        live: 2,
        used_cpu_millis: 1500,
        used_memory_bytes: 1 << 40,
        free_slots: Some(6),
        load_millis: None,
        heard_at_us: Some(1_800_000_000_000_000),
    };
    let full = WorkerTable { epoch: Epoch(3), workers: vec![row(1, WorkerState::Ready), row(2, WorkerState::Suspect)] };
    let empty = WorkerTable { epoch: Epoch(4), workers: Vec::new() };
    for table in [full, empty] {
        here.show_workers(table.clone());
        eventually("the table is read", async || there.workers().await.as_ref() == Some(&table)).await;
    }
}

async fn one_that_works_is_whole(pair: Pair) {
    for core in pair.cores {
        let health = core.health();
        assert!(health.is_whole() && health.to_string() == health.word(), "{health}");
        let mut view = core.gauge().view();
        health.show_in(&mut view);
        assert_eq!((view.name.as_str(), view.state.as_str(), view.detail), (NAME, "running", Some(health.to_string())));
    }
}
