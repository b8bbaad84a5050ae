//! The ledger over databases that go away for real, and over statements that fail one by one.

use super::*;
use crate::store::injected::Injected;
use crate::testing::cluster::Cluster;
use crate::testing::eventually;

/// How soon transitions are committed, and reads answered, after the database came back.
const HEALED: Duration = Duration::from_secs(5);

/// Sends users to the ledger, a few at a time, until told to stop: the names of those that were acknowledged.
fn stream(ledger: LedgerHandle, stop: CancellationToken) -> tokio::task::JoinHandle<Vec<String>> {
    tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        for n in 0.. {
            if stop.is_cancelled() {
                break;
            }
            let names: Vec<String> = (0..3).map(|m| format!("s{n:05}{m}")).collect();
            let made = names.iter().map(|name| ledger.commit(new_user(name, "physics")));
            for (name, verdict) in names.iter().zip(futures_util::future::join_all(made).await) {
                // Done twice, it would be refused as a conflict.
                assert!(matches!(verdict, Ok(Ok(Applied::User(..)))), "{name}: {verdict:?}");
                acknowledged.push(name.clone());
            }
        }
        acknowledged
    })
}

/// How long it takes from now until a transition is committed and a read is answered.
async fn heals(rig: &Rig, name: &str) -> Duration {
    let begun = Instant::now();
    assert!(made_user(answer(rig.queue(name).await).await));
    while rig.bench.store.users().is_err() {
        assert!(begun.elapsed() < DEADLINE, "reads do not heal");
    }
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_restarts_costs_nothing_acknowledged_and_heals_at_once() {
    let cluster = Cluster::start();
    let mut rig = Rig::new(Bench::postgres_at(&cluster.url()), &[], false);
    let module = rig.start();
    let enough = CancellationToken::new();
    let streaming = stream(rig.ledger.clone(), enough.clone());
    for (round, mode) in ["fast", "immediate", "sessions", "immediate", "fast", "sessions"].into_iter().enumerate() {
        heals(&rig, &format!("before{round}")).await;
        if mode == "sessions" {
            rig.bench.cut_connections();
        } else {
            cluster.stop(mode);
            assert!(rig.bench.store.users().is_err(), "a read of a database that is gone");
            cluster.resume();
        }
        let took = heals(&rig, &format!("after{round}")).await;
        assert!(took < HEALED, "{mode}: {took:?}");
    }
    enough.cancel();
    let acknowledged = streaming.await.unwrap();
    let durable = rig.durable();
    let streamed: Vec<&String> = durable.iter().filter(|name| name.starts_with('s')).collect();
    assert!(acknowledged.len() > 20, "{}", acknowledged.len());
    assert_eq!(streamed, acknowledged.iter().collect::<Vec<_>>(), "each once, in order");
    rig.stop.cancel();
    end(module).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_promoted_goes_on_with_all_that_was_acknowledged() {
    let primary = Cluster::start();
    let standby = primary.standby();
    let url = format!("postgres://postgres@{},{}/postgres", primary.host(), standby.host());
    let bench = Bench::postgres_at(&url);
    bench.administer("ALTER SYSTEM SET synchronous_standby_names = '*'");
    bench.administer("SELECT pg_reload_conf()");
    let mut rig = Rig::new(bench, &[], false);
    let module = rig.start();
    let enough = CancellationToken::new();
    let streaming = stream(rig.ledger.clone(), enough.clone());
    for n in 0..20 {
        assert!(made_user(answer(rig.queue(&format!("before{n:02}")).await).await));
    }
    primary.stop("immediate");
    standby.promote();
    let took = heals(&rig, "after").await;
    assert!(took < HEALED, "{took:?}");
    enough.cancel();
    let acknowledged = streaming.await.unwrap();
    let durable = rig.durable();
    assert!(acknowledged.iter().all(|name| durable.contains(name)), "acknowledged, and gone");
    rig.stop.cancel();
    end(module).await.unwrap();
}

/// A commit that waits for a standby which is not there is under way for as long as it takes to end its session.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ends_during_its_commit_neither_loses_nor_doubles() {
    let cluster = Cluster::start();
    let mut rig = Rig::new(Bench::postgres_at(&cluster.url()), &[], false);
    rig.bench.administer("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    rig.bench.administer("SELECT pg_reload_conf()");
    let module = rig.start();
    let waiting = rig.queue("eve").await;
    eventually("a commit waits", async || rig.bench.ended_in_commit() > 0).await;
    rig.bench.administer("ALTER SYSTEM RESET synchronous_standby_names");
    rig.bench.administer("SELECT pg_reload_conf()");
    assert!(made_user(answer(waiting).await), "made once, or it were refused as a conflict");
    assert_eq!(rig.durable(), ["eve"]);
    assert!(rig.gauge.view().errors > 0, "no session was lost");
    rig.stop.cancel();
    end(module).await.unwrap();
}

/// A store of which the statement after so many others fails at the first commit.
async fn fails_at(bench: &Bench, name: &str, fault: Injected, passing: u32) -> bool {
    let db = Arc::new(Db::open(&bench.url).unwrap());
    let epoch = db.take_over().unwrap();
    let mut troubled = Troubled::new(db);
    troubled.struck = Mutex::new(Some((fault, passing)));
    let store = Arc::new(troubled);
    let (sender, inbox) = mpsc::channel(10);
    let (gauge, stop) = (Gauge::new("ledger", &sender), CancellationToken::new());
    let ledger = LedgerHandle(sender);
    let module = tokio::spawn(run(inbox, store.clone(), epoch, gauge, stop.clone()));
    let verdict = tokio::time::timeout(DEADLINE, ledger.commit(new_user(name, "physics"))).await.expect("in time");
    // Done twice, it would be refused as a conflict.
    assert!(matches!(verdict, Ok(Ok(Applied::User(..)))), "{fault:?} at {passing}: {verdict:?}");
    let found = store.users().unwrap().iter().filter(|user| user.name == name).count();
    assert_eq!(found, 1, "{fault:?} at {passing}");
    stop.cancel();
    end(module).await.unwrap();
    store.hit.load(std::sync::atomic::Ordering::Relaxed)
}

async fn every_statement_fails_once(bench: &Bench) {
    for fault in Injected::ALL {
        let mut passing = 0;
        while fails_at(bench, &format!("{fault:?}{passing}"), fault, passing).await {
            passing += 1;
            assert!(passing < 50, "the batch never passes");
        }
        assert!(passing > 5, "{fault:?}: only {passing} statements");
    }
}

#[tokio::test]
async fn whatever_statement_fails_on_sqlite_the_verdict_comes_once_and_holds() {
    every_statement_fails_once(&Bench::sqlite()).await;
}

#[tokio::test]
async fn whatever_statement_fails_on_postgres_the_verdict_comes_once_and_holds() {
    every_statement_fails_once(&Bench::postgres()).await;
}

/// Another process holds SQLite's lock for longer than anyone waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_others_hold_delays_and_costs_nothing() {
    let mut rig = Rig::new(Bench::sqlite(), &[], false);
    let module = rig.start();
    let held = rig.bench.lock();
    let waiting = rig.queue("eve").await;
    eventually("the lock is missed", async || rig.gauge.view().errors > 0).await;
    assert_eq!(rig.bench.store.users().unwrap().len(), 1, "reads go on");
    drop(held);
    assert!(made_user(answer(waiting).await));
    assert_eq!(rig.durable(), ["eve"]);
    rig.stop.cancel();
    end(module).await.unwrap();
}

/// Another session holds the table, and the server gives up waiting for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_timeout_is_no_fault_of_the_transition() {
    let mut bench = Bench::postgres();
    bench.url = bench.url.replace("options=", "options=-clock_timeout%3D100ms%20");
    let mut rig = Rig::new(bench, &[], false);
    let module = rig.start();
    let held = rig.bench.lock();
    let waiting = rig.queue("eve").await;
    eventually("the lock is missed again and again", async || rig.gauge.view().errors >= 3).await;
    drop(held);
    assert!(made_user(answer(waiting).await));
    assert_eq!(rig.durable(), ["eve"]);
    rig.stop.cancel();
    end(module).await.unwrap();
}
