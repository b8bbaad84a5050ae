//! How a worker ends: asked to, or by what trying again cannot mend.

use swarm_protocol::SwarmId;
use swarm_protocol::link::Welcome;

use super::*;

/// What the worker ends of, by itself.
async fn ends_of(bench: &mut Bench) -> String {
    let ended = timeout(DEADLINE, &mut bench.worker).await.expect("it ends by itself");
    format!("{:#}", ended.unwrap().expect_err("with an error"))
}

#[tokio::test]
async fn a_draining_stop_waits_for_what_is_held_and_takes_nothing_new() {
    let gate = CancellationToken::new();
    let held = gate.clone();
    let mut bench = Bench::start(move || Script::new().hold(held.clone())).await;
    bench.kill().await;
    bench.restart_with(true);
    bench.core.assign(&order(1)).await;
    bench.started(order(1).attempt).await;
    bench.stop.cancel();
    // It goes on being the core's worker, and takes nothing new.
    bench.core.assign(&order(2)).await;
    let declined = |frame: &ToCore| matches!(frame, ToCore::Declined { attempt, .. } if *attempt == order(2).attempt);
    bench.core.frame("a refusal", declined).await;
    assert!(!bench.worker.is_finished());
    gate.cancel();
    assert_eq!(bench.core.finished(order(1).attempt).await.outcome, Outcome::Succeeded);
    timeout(DEADLINE, &mut bench.worker).await.expect("it ends then").unwrap().unwrap();
    assert!(is_forgotten(bench.data.path()) && bench.engine.is_clean());
}

#[tokio::test]
async fn a_core_of_another_swarm_is_never_served() {
    let mut bench = Bench::start(Script::new).await;
    bench.outcome(&order(1)).await;
    bench.core.seen().welcome = |mut welcome| {
        if let Welcome::Accepted { swarm, .. } = &mut welcome {
            *swarm = SwarmId(uuid::Uuid::nil());
        }
        welcome
    };
    bench.core.cut();
    assert!(ends_of(&mut bench).await.contains("another swarm"));
}

#[tokio::test]
async fn a_final_refusal_ends_the_worker_and_any_other_does_not() {
    let mut bench = Bench::start(Script::new).await;
    bench.core.until("a link", |seen| (seen.sessions == 1).then_some(())).await;
    bench.core.seen().welcome = |_| Welcome::Refused { reason: "come again".into(), retry: true };
    bench.core.cut();
    bench.core.until("another try", |seen| (seen.sessions > 2).then_some(())).await;
    bench.core.seen().welcome = |_| Welcome::Refused { reason: "not \u{1b}you".into(), retry: false };
    let why = ends_of(&mut bench).await;
    assert!(why.contains("refused the link") && why.contains("you") && !why.contains('\u{1b}'), "{why}");
}

#[tokio::test]
async fn a_link_version_that_is_not_spoken_is_not_used_and_asked_about_again() {
    let bench = Bench::start(Script::new).await;
    bench.core.frame("a report", |frame| matches!(frame, ToCore::StateReport { .. })).await;
    bench.core.seen().welcome = |mut welcome| {
        if let Welcome::Accepted { version, .. } = &mut welcome {
            *version = 99;
        }
        welcome
    };
    bench.core.cut();
    let said = bench.core.until("another try", |seen| (seen.sessions > 3).then_some(seen.unreadable)).await;
    assert_eq!(said, 0, "something was said in a version that this worker does not speak");
    {
        let mut seen = bench.core.seen();
        seen.frames.clear();
        seen.welcome = |welcome| welcome;
    }
    bench.core.frame("a report", |frame| matches!(frame, ToCore::StateReport { .. })).await;
    assert_eq!(bench.outcome(&order(1)).await, Outcome::Succeeded);
    bench.end().await;
}

#[tokio::test]
async fn an_engine_whose_images_cannot_be_checked_is_refused_before_the_join() {
    let mut bench = Bench::start(Script::new).await;
    bench.core.until("a link", |seen| (seen.sessions == 1).then_some(())).await;
    bench.kill().await;
    let joins = bench.core.seen().joins;
    std::fs::remove_file(bench.data.path().join("identity.json")).unwrap();
    bench.engine.keep_images_in_containerd();
    bench.restart();
    let why = ends_of(&mut bench).await;
    assert!(why.contains("\"containerd-snapshotter\": false") && why.contains("/etc/docker/daemon.json"), "{why}");
    assert_eq!(bench.core.seen().joins, joins, "the token is not spent");
}
