//! The ledger over a real store whose connection fails as told.

mod outages;

use std::sync::Mutex;
use std::time::Instant;

use swarm_protocol::UserId;

use super::*;
use crate::messages::{LedgerHandle, Stopping};
use crate::store::conformance::{Bench, new_user};
use crate::store::{Applied, Db, NewJob};
use crate::testing::{Trouble, Troubled};

/// Everything below ends well within this.
const DEADLINE: Duration = Duration::from_secs(60);

/// A ledger that is ready to run.
struct Rig {
    bench: Bench,
    store: Arc<Troubled>,
    ledger: LedgerHandle,
    inbox: Option<mpsc::Receiver<LedgerEntry>>,
    epoch: Epoch,
    gauge: Gauge,
    stop: CancellationToken,
}

impl Rig {
    fn new(bench: Bench, ahead: &[Trouble], dead: bool) -> Self {
        let db = Arc::new(Db::open(&bench.url).unwrap());
        let epoch = db.take_over().unwrap();
        let (sender, inbox) = mpsc::channel(1000);
        let mut troubled = Troubled::new(db);
        (troubled.ahead, troubled.dead) = (Mutex::new(ahead.iter().copied().collect()), dead);
        let store = Arc::new(troubled);
        let gauge = Gauge::new("ledger", &sender);
        let (ledger, stop) = (LedgerHandle(sender), CancellationToken::new());
        Self { bench, store, ledger, inbox: Some(inbox), epoch, gauge, stop }
    }

    fn start(&mut self) -> tokio::task::JoinHandle<anyhow::Result<()>> {
        let inbox = self.inbox.take().unwrap();
        tokio::spawn(run(inbox, self.store.clone(), self.epoch, self.gauge.clone(), self.stop.clone()))
    }

    /// Queues a transition that makes the user `name`.
    async fn queue(&self, name: &str) -> oneshot::Receiver<Verdict> {
        self.ledger.queue(new_user(name, "physics")).await.unwrap()
    }

    /// Names of the users that the database holds, read by a connection of its own.
    fn durable(&self) -> Vec<String> {
        let names = Db::open(&self.bench.url).unwrap().users().unwrap().into_iter().map(|user| user.name);
        names.filter(|name| name != "ada").collect()
    }
}

async fn answer(receiver: oneshot::Receiver<Verdict>) -> Option<Verdict> {
    tokio::time::timeout(DEADLINE, receiver).await.expect("an answer in time").ok()
}

async fn end(module: tokio::task::JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::time::timeout(DEADLINE, module).await.expect("an end in time").unwrap()
}

fn made_user(verdict: Option<Verdict>) -> bool {
    matches!(verdict, Some(Ok(Applied::User(..))))
}

#[tokio::test]
async fn what_arrived_meanwhile_shares_a_batch_and_is_durable_when_answered() {
    let mut rig = Rig::new(Bench::sqlite(), &[], false);
    let names: Vec<String> = (0..300).map(|n| format!("u{n:03}")).collect();
    let mut answers = Vec::new();
    for name in &names {
        answers.push(rig.queue(name).await);
    }
    let module = rig.start();
    assert!(made_user(answer(answers.remove(0)).await));
    assert!(rig.durable().contains(&names[0]), "durable before it is answered");
    for receiver in answers {
        assert!(made_user(answer(receiver).await));
    }
    assert_eq!(rig.durable(), names, "all of them, in order");
    assert_eq!(*rig.store.batches.lock().unwrap(), [300]);
    rig.stop.cancel();
    end(module).await.unwrap();
}

/// Else it would go on renewing leases of attempts that its successor gives up.
#[tokio::test]
async fn a_core_that_was_deposed_finds_out_though_it_has_nothing_to_commit() {
    let mut rig = Rig::new(Bench::sqlite(), &[], false);
    let module = rig.start();
    let theirs = Db::open(&rig.bench.url).unwrap().take_over().unwrap();
    let failure = end(module).await.unwrap_err();
    let ours = rig.epoch;
    assert!(
        matches!(failure.downcast_ref(), Some(StoreError::Deposed { ours: by, theirs: at }) if *by == ours && *at == theirs),
        "{failure:#}"
    );
}

#[tokio::test]
async fn a_broken_transition_is_refused_alone() {
    let mut rig = Rig::new(Bench::sqlite(), &[], false);
    let nobody = NewJob { owner: UserId(99), ..rig.bench.new_job(1) };
    let mut answers = Vec::new();
    for n in 0..7 {
        answers.push(rig.queue(&format!("u{n}")).await);
        if n == 4 {
            answers.push(rig.ledger.queue(Transition::CreateJob(Box::new(nobody.clone()))).await.unwrap());
        }
    }
    let module = rig.start();
    for (n, receiver) in answers.into_iter().enumerate() {
        let verdict = answer(receiver).await;
        if n == 5 {
            assert!(matches!(verdict, Some(Err(Refusal::Broken(_)))), "{verdict:?}");
        } else {
            assert!(made_user(verdict), "{n}");
        }
    }
    assert_eq!(rig.durable().len(), 7);
    rig.stop.cancel();
    end(module).await.unwrap();
}

#[tokio::test]
async fn a_refusal_that_passes_breaks_nothing() {
    let mut rig = Rig::new(Bench::sqlite(), &[Trouble::Refused, Trouble::Unreachable, Trouble::Refused], false);
    let module = rig.start();
    assert!(made_user(answer(rig.queue("eve").await).await));
    assert_eq!(rig.durable(), ["eve"]);
    rig.stop.cancel();
    end(module).await.unwrap();
}

#[tokio::test]
async fn a_lost_connection_neither_loses_nor_doubles() {
    use Trouble::{AnswerLost, CommitLost, Unreachable};
    let troubles: [&[Trouble]; 5] = [
        &[Unreachable, Unreachable],
        &[AnswerLost],
        &[CommitLost],
        &[CommitLost, CommitLost, AnswerLost],
        &[Unreachable, CommitLost, Unreachable, AnswerLost],
    ];
    for ahead in troubles {
        let mut rig = Rig::new(Bench::sqlite(), ahead, false);
        let module = rig.start();
        // Done twice, it would be refused as a conflict.
        assert!(made_user(answer(rig.queue("eve").await).await), "{ahead:?}");
        assert_eq!(rig.durable(), ["eve"], "{ahead:?}");
        assert_eq!(*rig.store.batches.lock().unwrap(), [1], "{ahead:?}");
        rig.stop.cancel();
        end(module).await.unwrap();
    }
}

#[tokio::test]
async fn a_deposed_ledger_ends_and_answers_nothing() {
    let mut rig = Rig::new(Bench::sqlite(), &[], false);
    let module = rig.start();
    assert!(made_user(answer(rig.queue("eve").await).await));
    Db::open(&rig.bench.url).unwrap().take_over().unwrap();
    let late = rig.queue("mallory").await;
    let error = end(module).await.unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(StoreError::Deposed { .. })), "{error:#}");
    assert!(answer(late).await.is_none());
    assert_eq!(rig.ledger.commit(new_user("oscar", "physics")).await.unwrap_err(), Stopping);
    assert_eq!(rig.durable(), ["eve"]);
}

#[tokio::test]
async fn a_stop_drains_what_is_queued() {
    let mut rig = Rig::new(Bench::sqlite(), &[Trouble::AnswerLost], false);
    let answers = [rig.queue("a").await, rig.queue("b").await];
    rig.stop.cancel();
    let module = rig.start();
    for receiver in answers {
        assert!(made_user(answer(receiver).await));
    }
    end(module).await.unwrap();
    assert_eq!(rig.durable(), ["a", "b"]);
    assert!(rig.ledger.queue(new_user("c", "physics")).await.is_err());
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever_for_a_dead_store() {
    let mut rig = Rig::new(Bench::sqlite(), &[], true);
    let waiting = rig.queue("a").await;
    let module = rig.start();
    rig.stop.cancel();
    let begun = Instant::now();
    assert!(end(module).await.unwrap_err().to_string().contains("while stopping"));
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(answer(waiting).await.is_none(), "no answer without a commit");
}

/// The server ends the sessions again and again while transitions stream in: each is applied exactly once.
#[tokio::test]
async fn sessions_ended_by_the_server_are_made_anew() {
    let mut rig = Rig::new(Bench::postgres(), &[], false);
    let module = rig.start();
    let names: Vec<String> = (0..400).map(|n| format!("u{n:03}")).collect();
    let mut answers = Vec::new();
    for (n, name) in names.iter().enumerate() {
        answers.push(rig.queue(name).await);
        if n % 50 == 25 {
            rig.bench.cut_connections();
        }
        if n % 10 == 0 {
            assert!(made_user(answer(answers.pop().unwrap()).await), "{name}");
        }
    }
    for receiver in answers {
        assert!(made_user(answer(receiver).await));
    }
    assert_eq!(rig.durable(), names);
    let view = rig.gauge.view();
    assert_eq!(view.handled, 400);
    assert!(view.errors > 0, "no session was lost");
    rig.stop.cancel();
    end(module).await.unwrap();
}
