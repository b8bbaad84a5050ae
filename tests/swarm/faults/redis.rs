//! A Redis that is killed, flushed, stopped and started again with nothing in it, while a job is followed: the swarm goes
//! on, says what it does without, and loses nothing (invariant I10).

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use swarm_client::{Client, MemoryTokens};
use swarm_protocol::TaskId;
use swarm_protocol::state::JobState;

use crate::harness::{PASSWORD, PATIENCE, Proc, Proxy, Redis, Setup, Swarm, Weather, eventually, report};

/// Fewer than all cores together let through at once, 20.
const LOGINS: usize = 14;
/// Longer than all that is done to Redis meanwhile.
const SCRIPT: &str = "n=0; while [ $n -lt 30 ]; do echo $n; sleep 1; n=$((n+1)); done";

impl Swarm {
    /// Waits until the cache is as `words` begin, and gives how long that took.
    #[track_caller]
    pub(super) fn cache_is(&self, words: &str) -> Duration {
        let began = Instant::now();
        eventually(&format!("the cache is `{words}`"), PATIENCE, || {
            let modules = self.block(self.client.modules()).ok()?.items;
            let cache = modules.into_iter().find(|module| module.name == "cache")?;
            let state = if words == "redis: up" { "running" } else { "degraded" };
            (cache.detail?.starts_with(words) && cache.state == state).then_some(())
        });
        began.elapsed()
    }

    /// All that a user does works, in about the time it takes without Redis.
    #[track_caller]
    pub(super) fn works(&self) {
        let began = Instant::now();
        drop(self.client_at(&self.url));
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "a login took {took:?}");
        self.list_workers();
        let job = self.submit(&self.shell("echo done"));
        assert_eq!(self.wait_ended(job, PATIENCE).job.state, JobState::Succeeded);
        self.check_log(TaskId { job, task: 0 }, b"done\n", b"");
    }

    /// How long a request takes that asks Redis.
    fn list_workers(&self) -> Duration {
        let began = Instant::now();
        self.block(self.client.workers()).expect("the workers can be listed");
        began.elapsed()
    }

    /// Of so many logins in a row not more are let through than one core's share, which is 5 at once and one more every
    /// 4 s.
    #[track_caller]
    fn logins_are_limited(&self) -> usize {
        let password = std::fs::read_to_string(self.password_file()).expect("the first start leaves a password");
        let began = Instant::now();
        let passed = (0..LOGINS).filter(|_| {
            let client = Client::new(&self.url, Arc::new(MemoryTokens::default())).expect("loopback is an address");
            match self.block(client.login("admin", password.trim_end())) {
                Ok(()) => true,
                Err(error) if error.is_status(429) => false,
                Err(error) => panic!("neither let through nor limited: {error}"),
            }
        });
        let passed = passed.count();
        let share = 5 + began.elapsed().as_secs() as usize / 4 + 1;
        assert!(passed <= share && passed < LOGINS, "{passed} of {LOGINS} logins were let through, {share} is a share");
        passed
    }

    fn printed(&self) -> String {
        self.core().as_ref().map(Proc::printed).unwrap_or_default()
    }
}

#[test]
fn a_job_is_followed_while_redis_is_killed_flushed_stopped_and_started_anew() {
    let redis = &Redis::start();
    let swarm = &Swarm::start(Setup { redis: Some(redis.url()), ..Setup::default() });
    swarm.cache_is("redis: up");
    let log: String = (0..30).map(|n| format!("{n}\n")).collect();
    let job = swarm.submit(&swarm.shell(SCRIPT));
    swarm.wait_started(job, 1);
    let mut back = Vec::new();
    std::thread::scope(|scope| {
        let following = scope.spawn(move || swarm.consumer(&["logs", "-f", &job.to_string()]));

        swarm.fault("kill -9 of Redis");
        redis.kill();
        swarm.cache_is("redis: away for ");
        swarm.works();
        redis.launch();
        back.push(swarm.cache_is("redis: up"));

        swarm.fault("FLUSHALL");
        redis.tell("FLUSHALL").expect("it is flushed");
        let said = || swarm.printed().contains("has lost what it was given").then_some(());
        eventually("the core says that Redis was flushed", PATIENCE, said);
        swarm.works();

        swarm.fault("SIGSTOP of Redis");
        redis.signal(Signal::STOP);
        let mut took: Vec<Duration> = (0..20).map(|_| swarm.list_workers()).collect();
        took.sort_unstable();
        let (median, most) = (took[10].as_millis(), took[19].as_millis());
        report(&format!(
            "20 lists of workers from the moment Redis stopped: {median} ms in the median, {most} ms at most"
        ));
        assert!(most < 1000, "a request waited for Redis: {took:?}");
        swarm.works();
        swarm.cache_is("redis: away for ");
        redis.signal(Signal::CONT);
        back.push(swarm.cache_is("redis: up"));

        let followed = following.join().expect("`logs -f` ends");
        assert_eq!((followed.code, String::from_utf8_lossy(&followed.stdout)), (Some(0), log.as_str().into()));
    });
    swarm.ran_once(job, log.as_bytes());
    swarm.works();
    let printed = swarm.printed();
    assert_eq!(printed.matches("goes on without Redis").count(), 2, "one event for each outage:\n{printed}");
    assert!(!printed.contains(PASSWORD), "the password is printed");
    let back: Vec<String> = back.iter().map(|took| format!("{:.1} s", took.as_secs_f64())).collect();
    report(&format!("Redis killed, flushed, stopped: used again {} after it was back", back.join(" and ")));
    swarm.judge("Redis killed, flushed, stopped", true);
}

#[test]
fn a_swarm_starts_without_its_redis_and_takes_it_when_it_comes() {
    let redis = Redis::start();
    redis.kill();
    let swarm = Swarm::start(Setup { redis: Some(redis.url()), ..Setup::default() });
    swarm.fault("no Redis from the start on");
    swarm.cache_is("redis: away for ");
    swarm.works();
    redis.launch();
    let took = swarm.cache_is("redis: up");
    swarm.works();
    report(&format!("Redis absent at the start: used {:.1} s after it came", took.as_secs_f64()));
    swarm.judge("Redis absent at the start", true);
}

/// A job is followed through all three: none of them is a Redis that could be used.
#[test]
fn a_redis_that_is_slow_read_only_or_full_is_done_without() {
    let redis = Redis::start();
    let line = Proxy::start();
    line.aim(redis.address(), redis.address());
    let swarm = &Swarm::start(Setup { redis: Some(redis.url_by(line.address)), ..Setup::default() });
    swarm.cache_is("redis: up");
    let log: String = (0..30).map(|n| format!("{n}\n")).collect();
    let job = swarm.submit(&swarm.shell(SCRIPT));
    swarm.wait_started(job, 1);
    let slow = Weather { delay_min: Duration::from_secs(2), ..Weather::default() };
    let told = |command: &str| redis.tell(command).unwrap_or_else(|| panic!("Redis refuses {command}"));
    type Change<'a> = Box<dyn Fn() + 'a>;
    let faults: [(&str, Change<'_>, Change<'_>); 3] = [
        ("slow", Box::new(|| line.weather(slow)), Box::new(|| line.weather(Weather::default()))),
        ("read-only", Box::new(|| told("REPLICAOF 127.0.0.1 1")), Box::new(|| told("REPLICAOF NO ONE"))),
        ("full", Box::new(|| told("CONFIG SET maxmemory 1")), Box::new(|| told("CONFIG SET maxmemory 0"))),
    ];
    let mut figures = Vec::new();
    std::thread::scope(|scope| {
        let following = scope.spawn(move || swarm.consumer(&["logs", "-f", &job.to_string()]));
        for (what, strike, mend) in &faults {
            swarm.fault(&format!("Redis is {what}"));
            strike();
            swarm.cache_is("redis: away for ");
            let passed = swarm.logins_are_limited();
            let took = swarm.list_workers();
            assert!(took < Duration::from_secs(1), "{what}: a list of workers took {took:?}");
            let quick = swarm.submit(&swarm.shell("echo done"));
            swarm.ran_once(quick, b"done\n");
            mend();
            let back = swarm.cache_is("redis: up").as_secs_f64();
            figures.push(format!("{what}: {passed} of {LOGINS} logins let through, used again after {back:.1} s"));
        }
        let followed = following.join().expect("`logs -f` ends");
        assert_eq!((followed.code, String::from_utf8_lossy(&followed.stdout)), (Some(0), log.as_str().into()));
    });
    swarm.ran_once(job, log.as_bytes());
    report(&format!("Redis {}", figures.join("; ")));
    swarm.judge("Redis slow, read-only, full", true);
}
