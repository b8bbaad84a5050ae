//! Links between a core and what it keeps its records in, cut both ways and one way: the swarm is in a network of its own,
//! whose packet filters drop what goes to or from the port of Postgres or Redis. Nobody closes anything: connections are
//! half open on either side, and nothing tells so but silence.

use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_checker::{Op, Submit};
use swarm_client::{Client, ClientError, MemoryTokens};
use swarm_protocol::JobId;

use super::database::struck_on;
use super::{LONG, LONG_LOG};
use crate::harness::{Namespace, OwnPostgres, Redis, Rule, Setup, Swarm, eventually, now_us, report, verdict};

/// Longer than a core waits for a Postgres that it does not hear, 15 s: connections are given up and made anew.
const CUT_OFF: Duration = Duration::from_secs(18);
/// Within this a submit is told that it has to be repeated: a request waits 10 s for the database.
const TOLD: Duration = Duration::from_secs(15);

/// Who is not heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deaf {
    /// The server does not hear the core.
    Server,
    /// The core does not hear the server.
    Core,
}

const BOTH_WAYS: &[Deaf] = &[Deaf::Server, Deaf::Core];

/// Until what this gives is dropped.
fn cut<'a>(swarm: &Swarm, network: &'a Namespace, port: u16, deaf: &[Deaf]) -> Vec<Rule<'a>> {
    swarm.fault(&format!("nothing is heard: {deaf:?}"));
    let port = port.to_string();
    let rule = |deaf: &Deaf| {
        let side = if *deaf == Deaf::Server { "--dport" } else { "--sport" };
        network.rule(&["--protocol", "tcp", side, &port, "--jump", "DROP"])
    };
    deaf.iter().map(rule).collect()
}

impl Swarm {
    /// A submit that is sent once, without a key: what its sender is told is what a plain client sees.
    pub(super) fn submit_once(&self) -> Result<JobId, ClientError> {
        let (start, mut spec) = (now_us(), self.shell("true"));
        spec.name = Some(format!("once-{}", uuid::Uuid::new_v4().simple()));
        let result = self.block(self.client.submit(&spec, None));
        let job = result.as_ref().ok().map(|submitted| submitted.job.0);
        let submit = Submit { job, key: None, name: spec.name.clone(), tasks: 1 };
        self.recorder.add(start, verdict(&result), Op::Submit(submit));
        result.map(|submitted| submitted.job)
    }

    /// While nothing can be committed, who submits is told soon to come again, and how.
    #[track_caller]
    pub(super) fn tells_to_come_again(&self, within: Duration) {
        let began = Instant::now();
        let refused = self.submit_once().expect_err("nothing can be promised now");
        let problem = refused.problem().unwrap_or_else(|| panic!("no answer but {refused:?}"));
        assert!(problem.status == 503 && problem.retryable && problem.hint.is_some(), "{problem:?}");
        assert!(began.elapsed() < within, "told only after {:?}", began.elapsed());
    }

    /// Whether the core says of itself that it can work.
    fn is_ready(&self) -> bool {
        // Of its own, for one that was told 503 asks again and again.
        let client = Client::new(&self.url, Arc::new(MemoryTokens::default())).expect("loopback is an address");
        let asking = async { tokio::time::timeout(Duration::from_secs(4), client.ready()).await };
        self.block(asking).is_ok_and(|answer| answer.is_ok())
    }
}

fn postgres_cut(scenario: &str, deaf: &[Deaf]) {
    let network = &Namespace::enter();
    let postgres = &OwnPostgres::start();
    struck_on(postgres, scenario, 20, |postgres, swarm, _| {
        let began = Instant::now();
        let rules = cut(swarm, network, postgres.port(), deaf);
        swarm.tells_to_come_again(TOLD);
        assert!(!swarm.is_ready(), "a core without its database says that it is ready");
        std::thread::sleep(CUT_OFF.saturating_sub(began.elapsed()));
        drop(rules);
    });
}

#[test]
fn a_core_cut_off_from_its_postgres_promises_nothing_and_goes_on_by_itself() {
    postgres_cut("core and Postgres cut off", BOTH_WAYS);
}

#[test]
fn a_postgres_that_does_not_hear_its_core_is_reached_again() {
    postgres_cut("Postgres does not hear its core", &[Deaf::Server]);
}

/// What it was told to do it does, commits included, and nobody hears of it: each is found out before it is done again.
#[test]
fn a_core_that_does_not_hear_its_postgres_does_nothing_twice() {
    postgres_cut("core does not hear its Postgres", &[Deaf::Core]);
}

#[test]
fn a_core_cut_off_from_its_redis_goes_on_without_it_and_takes_it_again() {
    let network = &Namespace::enter();
    let redis = Redis::start();
    let core_env = vec![("SWARM_CORE_LIMITS__LOGIN_BURST", "200")];
    let swarm = Swarm::start(Setup { redis: Some(redis.url()), core_env, ..Setup::default() });
    swarm.cache_is("redis: up");
    let mut back = Vec::new();
    for deaf in [BOTH_WAYS, &[Deaf::Server], &[Deaf::Core]] {
        let job = swarm.submit(&swarm.shell(LONG));
        swarm.wait_started(job, 1);
        let rules = cut(&swarm, network, redis.address().port(), deaf);
        swarm.cache_is("redis: away for ");
        swarm.works();
        assert!(swarm.is_ready(), "it can work without Redis");
        drop(rules);
        back.push(format!("{:.1} s", swarm.cache_is("redis: up").as_secs_f64()));
        swarm.ran_once(job, LONG_LOG);
    }
    report(&format!("Redis cut both ways and each way: used again {} after it was mended", back.join(", ")));
    eventually("the core is ready", Duration::from_secs(10), || swarm.is_ready().then_some(()));
    swarm.judge("Redis cut off", true);
}
