//! What becomes of the cache when something becomes of Redis: no call waits for long, what works without Redis works, the
//! state says what is wrong, and once Redis is back all is as before.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::redis::Value;
use rustix::process::Signal;
use swarm_protocol::{AttemptId, Epoch, JobId};
use tokio_util::sync::CancellationToken;

use super::RedisCache;
use super::server::{Server, eventually};
use crate::cache::conformance::{connecting, on_redis};
use crate::cache::{Cache, LogNotice, LoginLimit, WorkerTable};
use crate::identity::limits::Rate;

/// Eight at once, of which one core's share is two; none is due again as long as a test may take.
const LIMIT: LoginLimit = LoginLimit { rate: Rate { burst: 8, interval_ms: 600_000 }, share: 4 };
/// A call's budget, and what a busy machine adds to it.
const SOON: Duration = Duration::from_millis(1_000);

struct Bed {
    server: Server,
    cache: Arc<RedisCache>,
    _stop: tokio_util::sync::DropGuard,
}

fn client(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

fn table(epoch: u64) -> WorkerTable {
    WorkerTable { epoch: Epoch(epoch), workers: Vec::new() }
}

impl Bed {
    async fn start(flags: &[&str]) -> Self {
        let (server, stop) = (Server::start(flags).await, CancellationToken::new());
        let cache = on_redis(&server, LIMIT, &stop).await;
        // As long after its start as matters.
        cache.wary_until_ms.store(0, std::sync::atomic::Ordering::Relaxed);
        Self { server, cache, _stop: stop.drop_guard() }
    }

    /// How many logins are let through, of more than enough; no call waits for long.
    async fn logins(&self, last: u8) -> usize {
        let mut passed = 0;
        for _ in 0..20 {
            let began = Instant::now();
            passed += usize::from(self.cache.take_login(client(last)).await.is_ok());
            assert!(began.elapsed() < SOON, "a login waited for {:?}", began.elapsed());
        }
        passed
    }

    /// The line is given up, for a reason with these words; all that needs no other core works on.
    async fn is_away(&self, words: &str, fresh_client: u8) {
        let mut shown = String::new();
        let is_said = async || {
            shown = self.cache.health().to_string();
            shown.starts_with("redis: away for ") && !shown.contains("not reached yet")
        };
        eventually("the state says it", is_said).await;
        assert!(shown.contains(words), "{shown}");
        assert_eq!(self.cache.health().word(), "redis: away");
        assert_eq!(self.logins(fresh_client).await, 2, "the share is let through, and no more");
        self.wakes_its_own().await;
        let began = Instant::now();
        assert_eq!(self.cache.workers().await, None);
        assert!(began.elapsed() < SOON);
    }

    async fn wakes_its_own(&self) {
        let attempt = AttemptId { job: JobId(1), task: 0, attempt: 1 };
        let mut ear = self.cache.hear(attempt);
        self.cache.tell(LogNotice { attempt, bytes: 5, ended: false });
        let heard = tokio::time::timeout(SOON, ear.beyond(0)).await.expect("its own notices need no Redis");
        assert_eq!(heard.bytes, 5);
    }

    /// All is as before, within seconds.
    async fn is_back(&self, epoch: u64) {
        let took = eventually("it recovers", async || self.cache.health().to_string().starts_with("redis: up")).await;
        assert!(took < Duration::from_secs(6), "{took:?}");
        eventually("the table is shown again", async || {
            self.cache.show_workers(table(epoch));
            self.cache.workers().await == Some(table(epoch))
        })
        .await;
        eventually("notices come again", async || super::lock(&self.cache.notices).trouble().is_none()).await;
    }
}

#[tokio::test]
async fn absent_at_the_start() {
    let (server, stop) = (Server::absent(&[]), CancellationToken::new());
    let cache = connecting(server.settings(""), LIMIT, &stop);
    let mut bed = Bed { server, cache, _stop: stop.drop_guard() };
    bed.is_away("No such file or directory", 1).await;
    bed.server.launch();
    bed.is_back(1).await;
}

#[tokio::test]
async fn killed_and_started_again_with_nothing_in_it() {
    let mut bed = Bed::start(&[]).await;
    assert_eq!(bed.logins(1).await, 8);
    bed.server.kill();
    bed.is_away("", 2).await;
    bed.server.launch();
    bed.is_back(2).await;
    assert_eq!(bed.logins(1).await, 0, "what this core counted is not forgotten with Redis");
    assert_eq!(bed.logins(3).await, 2, "and others get the share as long as counts may be missing");
}

#[tokio::test]
async fn stopped_so_that_it_never_answers() {
    let bed = Bed::start(&[]).await;
    bed.server.signal(Signal::STOP);
    let began = Instant::now();
    let passed = bed.logins(1).await;
    // Three answers that come too late, or one probe; all other calls wait for nothing.
    let (took, bound) = (began.elapsed(), Duration::from_millis(1_500));
    assert!(passed == 2 && took < bound, "{passed} of 20 logins in {took:?}");
    bed.is_away("no answer within", 2).await;
    let began = Instant::now();
    bed.logins(3).await;
    assert!(began.elapsed() < Duration::from_millis(100), "20 calls took {:?} while it is given up", began.elapsed());
    bed.server.signal(Signal::CONT);
    bed.is_back(3).await;
}

#[tokio::test]
async fn flushed() {
    let bed = Bed::start(&[]).await;
    let other = on_redis(&bed.server, LIMIT, &CancellationToken::new()).await;
    other.wary_until_ms.store(0, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(bed.logins(1).await, 8);
    bed.is_back(4).await;
    let _: Value = bed.server.tell(&[b"FLUSHALL"]).await;
    for core in [&bed.cache, &other] {
        let wary = async || core.wary_until_ms.load(std::sync::atomic::Ordering::Relaxed) > 0;
        eventually("each core notices it", wary).await;
    }
    assert_eq!(bed.logins(1).await, 0, "nothing is opened");
    assert_eq!(bed.logins(2).await, 2, "a share, since counts of other cores may be gone");
    bed.is_back(5).await;
}

#[tokio::test]
async fn read_only() {
    let bed = Bed::start(&[]).await;
    let _: Value = bed.server.tell(&[b"REPLICAOF", b"127.0.0.1", b"1"]).await;
    bed.is_away("READONLY", 1).await;
    let _: Value = bed.server.tell(&[b"REPLICAOF", b"NO", b"ONE"]).await;
    bed.is_back(6).await;
}

#[tokio::test]
async fn full() {
    let bed = Bed::start(&["--maxmemory-policy", "noeviction"]).await;
    let _: Value = bed.server.tell(&[b"CONFIG", b"SET", b"maxmemory", b"1"]).await;
    bed.is_away("OOM", 1).await;
    let _: Value = bed.server.tell(&[b"CONFIG", b"SET", b"maxmemory", b"0"]).await;
    bed.is_back(7).await;
}

#[tokio::test]
async fn with_another_password() {
    let (server, stop) = (Server::start(&[]).await, CancellationToken::new());
    // Whoever is connected stays so: the password is asked of the next.
    let _: Value = server.tell(&[b"ACL", b"SETUSER", b"default", b"resetpass", b">right"]).await;
    let cache = connecting(server.settings("hunter2"), LIMIT, &stop);
    let bed = Bed { server, cache, _stop: stop.drop_guard() };
    bed.is_away("authentication failed", 1).await;
    assert!(!bed.cache.health().to_string().contains("hunter2"));
    let right = connecting(bed.server.settings("right"), LIMIT, &CancellationToken::new());
    eventually("the right one is let in", async || right.health().to_string() == "redis: up").await;
}

#[tokio::test]
async fn poisoned_with_garbage() {
    let bed = Bed::start(&[]).await;
    let (workers, notices) = (bed.cache.keys.workers(), bed.cache.keys.notices());
    let far_ahead = b"9999999999999999".as_slice();
    let values: [&[u8]; 6] = [b"", b"\x01garbage", b"nan", b"-inf", far_ahead, &[0xff; 4096]];
    for (value, last) in values.into_iter().zip(1..) {
        let login = bed.cache.keys.login(client(last));
        let _: Value = bed.server.tell(&[b"SET", login.as_bytes(), value]).await;
        let passed = bed.logins(last).await;
        assert_eq!(passed, 8, "{value:?} opens nothing and locks nobody out");
        let _: Value = bed.server.tell(&[b"SET", workers.as_bytes(), value]).await;
        assert_eq!(bed.cache.workers().await, None);
        let _: Value = bed.server.tell(&[b"PUBLISH", notices.as_bytes(), value]).await;
    }
    for key in [&workers, &bed.cache.keys.login(client(9)), &bed.cache.keys.mark(None)] {
        let _: Value = bed.server.tell(&[b"DEL", key.as_bytes()]).await;
        let _: Value = bed.server.tell(&[b"RPUSH", key.as_bytes(), b"not", b"a", b"string"]).await;
    }
    assert_eq!(bed.logins(9).await, 8);
    assert_eq!(bed.cache.workers().await, None);
    bed.wakes_its_own().await;
    let health = bed.cache.health();
    assert!(health.is_whole() && health.to_string().contains("senseless values ignored"), "{health}");
    bed.is_back(8).await;
}

#[tokio::test]
async fn deaf_for_want_of_a_permission() {
    let (server, stop) = (Server::start(&[]).await, CancellationToken::new());
    let _: Value = server.tell(&[b"ACL", b"SETUSER", b"default", b"-subscribe"]).await;
    let cache = connecting(server.settings(""), LIMIT, &stop);
    let bed = Bed { server, cache, _stop: stop.drop_guard() };
    eventually("it says so", async || bed.cache.health().word() == "redis: up, without notices").await;
    let health = bed.cache.health().to_string();
    assert!(health.starts_with("redis: up; notices away for ") && health.contains("NOPERM"), "{health}");
    assert!(!bed.cache.health().is_whole());
    bed.wakes_its_own().await;
    let _: Value = bed.server.tell(&[b"ACL", b"SETUSER", b"default", b"+subscribe"]).await;
    bed.is_back(9).await;
    eventually("all is well", async || bed.cache.health().to_string() == "redis: up").await;
}

#[tokio::test]
async fn what_is_written_is_the_swarms_own_and_does_not_stay() {
    let bed = Bed::start(&[]).await;
    bed.logins(1).await;
    bed.is_back(10).await;
    let keys: Vec<String> = bed.server.tell(&[b"KEYS", b"*"]).await;
    assert_eq!(keys.len(), 4, "a login, the workers and two marks: {keys:?}");
    for key in &keys {
        assert!(key.starts_with("swarm:00000000-0000-0000-0000-000000000007:v1:"), "{key}");
        let left_ms: i64 = bed.server.tell(&[b"PTTL", key.as_bytes()]).await;
        // The login's bucket was emptied: eight times the interval.
        assert!((1..=8 * 600_000).contains(&left_ms), "{key} stays for {left_ms} ms");
    }
}
