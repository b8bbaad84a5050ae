//! What a worker offers, as its engine has it: found out, kept up to date, and acted on.

use super::*;
use crate::runtime::DiskQuota;

impl Bench {
    /// The engine goes away and comes back, and the worker notices both.
    async fn engine_comes_back(&self) {
        self.engine.engine_down();
        self.engine_asked().await;
        self.engine.engine_up();
        self.engine_asked().await;
    }

    async fn engine_asked(&self) {
        let pings = self.engine.count(Call::Ping);
        self.eventually("the engine is asked", async || self.engine.count(Call::Ping) > pings).await;
    }
}

#[tokio::test]
async fn an_engine_with_disk_quotas_is_found_out_and_a_job_that_fills_its_disk_is_told_so() {
    let engine = FakeRuntime::new();
    engine.disk_quota(DiskQuota::Unknown);
    let bench = Bench::start_on(engine, Some(2), 0, |view| {
        assert_eq!(view.spec.disk_bytes, Some(1 << 20));
        let bytes = if view.spec.name.ends_with("-2.0.1") { 100 } else { (1 << 20) - 100 };
        // The quota is that of the root filesystem, and the third job's output lies in a volume.
        let place = if view.spec.name.ends_with("-3.0.1") { "/out/r" } else { "/tmp/big" };
        Script::new().write(place, vec![0; bytes]).exit(1)
    })
    .await;
    let is_hard = |frame: &ToCore| matches!(frame, ToCore::Labels { labels } if labels["disk_limit"] == "hard");
    bench.core.frame("the label", is_hard).await;
    assert_eq!((bench.engine.count(Call::Create), bench.engine.count(Call::Start)), (1, 0));
    bench.until_clean().await;
    let small = |job| {
        let mut order = order(job);
        order.limits.disk_bytes = 1 << 20;
        order
    };
    let full = bench.outcome(&small(1)).await;
    assert!(matches!(&full, Outcome::OutOfDisk { reason } if reason.contains("1048476 bytes")), "{full:?}");
    assert_eq!(bench.outcome(&small(2)).await, Outcome::Failed { exit_code: 1 });
    let beside = TaskOrder { outputs: vec!["/out/r".into()], ..small(3) };
    assert_eq!(bench.outcome(&beside).await, Outcome::Failed { exit_code: 1 });
    // A cancel that comes too late takes nothing away.
    bench.engine.plan(FaultPlan::new().on(Call::DiskUsage, 1, Effect::Delay(Duration::from_millis(500))));
    let (late, looks) = (small(4).attempt, bench.engine.count(Call::DiskUsage));
    bench.core.assign(&small(4)).await;
    bench.eventually("its end", async || bench.engine.count(Call::DiskUsage) > looks).await;
    bench.core.tell(ToWorker::Cancel { attempt: late, grace_ms: 100 }).await;
    assert_eq!(bench.core.finished(late).await.outcome, Outcome::Failed { exit_code: 1 });
    // Where nothing holds it to that size, a full disk is not why it failed.
    bench.engine.disk_quota(DiskQuota::No);
    bench.engine_comes_back().await;
    let is_sampled = |frame: &ToCore| matches!(frame, ToCore::Labels { labels } if labels["disk_limit"] == "sampled");
    let sampled = |seen: &Seen| seen.frames.iter().filter(|frame| is_sampled(frame)).count();
    // It was so until the engine was found out.
    bench.core.until("the label is taken back", |seen| (sampled(seen) == 2).then_some(())).await;
    let again = TaskOrder { attempt: AttemptId { attempt: 2, ..small(1).attempt }, ..small(1) };
    assert_eq!(bench.outcome(&again).await, Outcome::Failed { exit_code: 1 });
    bench.end().await;
}

#[tokio::test]
async fn a_resized_machine_is_offered_anew_and_runs_as_much_at_once_as_it_offers() {
    let gates: [CancellationToken; 2] = Default::default();
    let held = gates.clone();
    let bench = Bench::start_on(FakeRuntime::new(), None, 0, move |view| {
        Script::new().hold(held[usize::from(!view.spec.name.ends_with("-1.0.1"))].clone())
    })
    .await;
    let offered = |count: usize| {
        let slots = move |seen: &Seen| (seen.offers.len() == count).then(|| seen.offers[count - 1].clone());
        bench.core.until("another offer", slots)
    };
    assert_eq!(offered(1).await.slots, 4);
    for job in 1..=5 {
        bench.core.assign(&order(job)).await;
    }
    bench.eventually("four run", async || bench.engine.running() == 4).await;
    bench.engine.cpus(5);
    bench.engine_comes_back().await;
    let offer = offered(2).await;
    assert_eq!((offer.slots, offer.cpu_millis), (5, 5000));
    bench.eventually("five run", async || bench.engine.running() == 5).await;
    // What runs goes on; nothing takes the place of the first one to end.
    bench.engine.cpus(4);
    bench.engine_comes_back().await;
    assert_eq!(offered(3).await.slots, 4);
    bench.core.assign(&order(6)).await;
    let is_taken = |frame: &ToCore| *frame == ToCore::Accepted { attempt: order(6).attempt };
    bench.core.frame("the sixth is taken", is_taken).await;
    gates[0].cancel();
    bench.core.finished(order(1).attempt).await;
    bench.eventually("the first is cleared away", async || bench.engine.count(Call::Remove) > 0).await;
    let begun = bench.engine.count(Call::Start);
    assert_eq!((begun, bench.engine.running()), (5, 4));
    gates[1].cancel();
    bench.core.finished(order(6).attempt).await;
    bench.end().await;
}

#[tokio::test]
async fn an_engine_that_came_back_as_one_that_can_run_no_job_gets_none() {
    let bench = Bench::start(Script::new).await;
    assert_eq!(bench.outcome(&order(1)).await, Outcome::Succeeded);
    bench.engine.keep_images_in_containerd();
    bench.engine_comes_back().await;
    // The next look after that at its return.
    bench.engine_asked().await;
    let order = order(2);
    bench.core.assign(&order).await;
    let is_declined = |frame: &ToCore| match frame {
        ToCore::Declined { attempt, .. } => *attempt == order.attempt,
        ToCore::Recalled { attempts } => attempts.contains(&order.attempt),
        _ => false,
    };
    bench.core.frame("it is given back", is_declined).await;
    bench.end().await;
}

/// What it then calls the image is not what the image is: nobody has to push it again.
#[tokio::test]
async fn an_image_that_an_unfit_engine_takes_for_another_is_not_the_jobs_failure() {
    let bench = Bench::start(Script::new).await;
    bench.core.until("a link", |seen| (seen.sessions == 1).then_some(())).await;
    let config: &'static [u8] = br#"{"config":{},"other":1}"#;
    bench.core.seen().blobs.insert(Digest::of(config), config.into());
    let refusal = |config| RuntimeError::ImageInvalid { expect: Digest::of(config), message: "another image".into() };
    bench.engine.plan(FaultPlan::new().on(Call::LoadImage, 1, Effect::Fail(refusal(config))));
    let outcome = bench.outcome(&testing::order(1, config)).await;
    assert!(matches!(outcome, Outcome::Refused { .. }), "the image is damaged: {outcome:?}");
    bench.engine.plan(FaultPlan::new().on(Call::LoadImage, 1, Effect::Fail(refusal(config))));
    bench.engine.keep_images_in_containerd();
    let outcome = bench.outcome(&testing::order(2, config)).await;
    assert!(matches!(outcome, Outcome::Lost { reason: LossReason::Engine, .. }), "{outcome:?}");
    bench.end().await;
}

#[tokio::test]
async fn there_are_never_more_sandboxes_than_slots_however_the_machine_changes() {
    let bench = Bench::start_on(FakeRuntime::new(), None, 9, |_| Script::new().forever()).await;
    let run = async |count: usize| bench.eventually("sandboxes", async || bench.engine.running() == count).await;
    run(4).await;
    bench.engine.cpus(2);
    bench.engine_comes_back().await;
    run(2).await;
    bench.engine.cpus(3);
    bench.engine_comes_back().await;
    run(3).await;
    bench.end().await;
}
