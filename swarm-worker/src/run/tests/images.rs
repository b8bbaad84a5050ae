//! Images as a cache: dropped when disk grows short, the longest unused first, and never one that is wanted.

use super::*;
use crate::runtime::OurImage;

/// An order for an image of its own, which the core has.
fn order_of(bench: &Bench, job: u64) -> TaskOrder {
    let config = format!(r#"{{"config":{{"User":"{job}"}}}}"#);
    bench.core.seen().blobs.insert(Digest::of(config.as_bytes()), config.clone().into_bytes().into());
    testing::order(job, config.as_bytes())
}

impl Bench {
    async fn images(&self) -> Vec<OurImage> {
        self.engine.our_images().await.unwrap()
    }

    async fn holds(&self, order: &TaskOrder) -> bool {
        self.images().await.iter().any(|image| image.config == order.image.config)
    }
}

#[tokio::test]
async fn the_longest_unused_image_makes_room_but_none_that_a_job_wants() {
    let gate = CancellationToken::new();
    let held = gate.clone();
    let bench = Bench::start(Script::new).await;
    bench.engine.program(move |view| {
        let is_first = view.spec.name.ends_with("-1.0.1");
        if is_first { Script::new().hold(held.clone()) } else { Script::new() }
    });
    let orders: Vec<TaskOrder> = (1..=4).map(|job| order_of(&bench, job)).collect();
    bench.core.assign(&orders[0]).await;
    bench.started(orders[0].attempt).await;
    // Room for two images; the third one brings the disk below its floor.
    let each = bench.images().await[0].bytes;
    bench.engine.disk(WorkerConfig::default().disk_floor_bytes + 3 * each - 1);
    for order in &orders[1..] {
        assert_eq!(bench.outcome(order).await, Outcome::Succeeded);
    }
    assert!(bench.holds(&orders[0]).await, "it is the oldest, but its job runs");
    assert!(!bench.holds(&orders[1]).await, "it was not used for the longest time");
    assert!(bench.holds(&orders[3]).await);
    gate.cancel();
    assert_eq!(bench.core.finished(orders[0].attempt).await.outcome, Outcome::Succeeded);
    bench.end().await;
}

#[tokio::test]
async fn what_is_written_to_a_volume_that_the_image_declares_counts_and_goes_with_the_attempt() {
    let bench = Bench::start(|| Script::new().write("/data/big", vec![0; 2 << 20]).forever()).await;
    let config = br#"{"config":{"Volumes":{"/data":{}}},"rootfs":{"diff_ids":[]}}"#;
    bench.core.seen().blobs.insert(Digest::of(config), config.to_vec().into());
    let mut order = testing::order(1, config);
    order.limits.disk_bytes = 1 << 20;
    let outcome = bench.outcome(&order).await;
    assert!(matches!(&outcome, Outcome::OutOfDisk { reason } if reason.contains("2097152 bytes")), "{outcome:?}");
    bench.until_clean().await;
    bench.end().await;
}

#[tokio::test]
async fn an_image_that_a_killed_worker_had_loaded_is_marked_by_its_next_start() {
    let mut bench = Bench::start(Script::new).await;
    let order = order_of(&bench, 1);
    bench.engine.plan(FaultPlan::new().on(Call::LoadImage, 1, Effect::Hang));
    bench.core.assign(&order).await;
    bench.until_called(Call::LoadImage).await;
    bench.kill().await;
    // The engine took it all the same.
    bench.engine.add_image(order.image.config, Vec::new());
    assert!(!bench.holds(&order).await);
    bench.core.seen().abandons.push(order.attempt);
    bench.restart();
    bench.core.until("a mark", |_| (bench.engine.count(Call::TagImage) > 0).then_some(())).await;
    assert!(bench.holds(&order).await);
    bench.end().await;
}
