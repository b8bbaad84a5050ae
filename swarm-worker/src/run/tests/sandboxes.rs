//! Sandboxes: joined by one job at a time and one group for ever, renewed, replaced, and gone with the worker.

use std::collections::BTreeMap;
use std::sync::Mutex;

use swarm_protocol::GroupId;

use super::*;
use crate::runtime::{ContainerId, ContainerPhase, Network};

/// A worker with sandboxes, and which network namespace each job was started in, by the container's name.
struct Sandboxed {
    bench: Bench,
    networks: Arc<Mutex<BTreeMap<String, Network>>>,
    /// Jobs that a test asks for wait for this.
    gate: CancellationToken,
}

impl Sandboxed {
    /// With so many sandboxes, once they run. Jobs of odd numbers wait at the gate.
    async fn start(sandboxes: u32) -> Self {
        let (networks, gate) = (Arc::new(Mutex::new(BTreeMap::new())), CancellationToken::new());
        let (noted, held) = (networks.clone(), gate.clone());
        let program = move |view: &StartView<'_>| {
            let name = &view.spec.name;
            if name.contains("-sandbox-") {
                return Script::new().forever();
            }
            noted.lock().unwrap().insert(name.clone(), view.spec.network.clone());
            let is_held = ["-1.0.1", "-3.0.1"].iter().any(|end| name.ends_with(end));
            let script = if is_held { Script::new().hold(held.clone()) } else { Script::new() };
            script.write("/out/r", "42")
        };
        let this = Self { bench: Bench::start_with(sandboxes, program).await, networks, gate };
        this.until_running(sandboxes as usize).await;
        this
    }

    async fn sandboxes(&self) -> Vec<ContainerId> {
        let all = self.bench.engine.list_ours(&all()).await.unwrap().into_iter();
        let is_idle = |one: &crate::runtime::OurContainer| {
            one.phase == ContainerPhase::Running && one.labels.contains_key("io.swarm-sync.sandbox")
        };
        all.filter(is_idle).map(|one| one.id).collect()
    }

    async fn until_running(&self, count: usize) {
        self.bench.eventually("sandboxes run", async || self.sandboxes().await.len() == count).await;
    }

    /// The sandbox that a job was started in.
    fn joined(&self, order: &TaskOrder) -> Option<ContainerId> {
        let networks = self.networks.lock().unwrap();
        let end = format!("-{}", order.attempt);
        match networks.iter().find(|(name, _)| name.ends_with(&end)).expect("it was started").1 {
            Network::Of(id) => Some(id.clone()),
            Network::None => None,
        }
    }

    /// Runs a job and gives the sandbox it was in.
    async fn run(&self, order: &TaskOrder) -> Option<ContainerId> {
        assert_eq!(self.bench.outcome(order).await, Outcome::Succeeded);
        self.joined(order)
    }
}

fn of(group: u64, job: u64) -> TaskOrder {
    TaskOrder { group: GroupId(group), ..order(job) }
}

#[tokio::test]
async fn one_job_at_a_time_and_of_one_group_only_is_in_a_sandbox() {
    let swarm = Sandboxed::start(1).await;
    let (first, same_time) = (of(1, 1), of(1, 2));
    swarm.bench.core.assign(&first).await;
    swarm.bench.started(first.attempt).await;
    let sandbox = swarm.joined(&first);
    assert_eq!(sandbox, swarm.sandboxes().await.pop());
    assert_eq!(swarm.run(&same_time).await, None, "somebody is in it");
    swarm.gate.cancel();
    assert_eq!(swarm.bench.core.finished(first.attempt).await.outcome, Outcome::Succeeded);
    assert_eq!(swarm.run(&of(2, 4)).await, None, "it is another group's");
    assert_eq!(swarm.run(&of(1, 6)).await, sandbox);
    swarm.bench.end().await;
}

#[tokio::test]
async fn two_jobs_of_two_groups_get_one_each() {
    let swarm = Sandboxed::start(2).await;
    let (one, two) = (of(1, 1), of(2, 3));
    for order in [&one, &two] {
        swarm.bench.core.assign(order).await;
        swarm.bench.started(order.attempt).await;
    }
    let joined = [swarm.joined(&one), swarm.joined(&two)];
    assert!(joined.iter().all(Option::is_some) && joined[0] != joined[1], "{joined:?}");
    swarm.gate.cancel();
    for order in [&one, &two] {
        assert_eq!(swarm.bench.core.finished(order.attempt).await.outcome, Outcome::Succeeded);
    }
    assert_eq!([swarm.run(&of(1, 2)).await, swarm.run(&of(2, 4)).await], joined);
    swarm.bench.end().await;
}

#[tokio::test]
async fn a_sandbox_is_renewed_after_so_many_jobs() {
    let swarm = Sandboxed::start(1).await;
    let first = swarm.run(&of(1, 2)).await;
    assert!(first.is_some());
    assert_eq!(swarm.run(&of(1, 4)).await, first);
    let renewed = async || swarm.sandboxes().await.pop().is_some_and(|id| Some(id) != first);
    swarm.bench.eventually("another sandbox", renewed).await;
    let second = swarm.run(&of(2, 6)).await;
    assert!(second.is_some() && second != first, "it is anybody's");
    swarm.bench.end().await;
}

#[tokio::test]
async fn a_dead_sandbox_costs_no_attempt_and_is_replaced() {
    let swarm = Sandboxed::start(1).await;
    let dead = swarm.sandboxes().await.pop().unwrap();
    swarm.bench.engine.kill(&dead, "SIGKILL").await.unwrap();
    let mut careful = TaskOrder { at_most_once: true, outputs: vec!["/out/r".into()], ..of(1, 2) };
    careful.inputs = vec![testing::input("/in/a", b"data")];
    swarm.bench.core.seen().blobs.insert(Digest::of(b"data"), (&b"data"[..]).into());
    let report = swarm.bench.run(&careful).await;
    assert_eq!((report.outcome, report.outputs.len()), (Outcome::Succeeded, 1));
    assert_eq!(swarm.joined(&careful), None);
    swarm.until_running(1).await;
    assert_ne!(swarm.sandboxes().await, [dead]);
    assert_eq!(swarm.run(&of(1, 4)).await, swarm.sandboxes().await.pop());
    swarm.bench.end().await;
}

#[tokio::test]
async fn a_sandbox_that_dies_under_a_job_leaves_the_job_alone() {
    let swarm = Sandboxed::start(1).await;
    let order = of(1, 1);
    swarm.bench.core.assign(&order).await;
    swarm.bench.started(order.attempt).await;
    swarm.bench.engine.remove(&swarm.joined(&order).unwrap(), true).await.unwrap();
    swarm.gate.cancel();
    assert_eq!(swarm.bench.core.finished(order.attempt).await.outcome, Outcome::Succeeded);
    assert_eq!(swarm.run(&of(1, 2)).await, None, "a failed join");
    swarm.until_running(1).await;
    swarm.bench.end().await;
}

#[tokio::test]
async fn root_gets_a_namespace_of_its_own() {
    let swarm = Sandboxed::start(1).await;
    let root = TaskOrder { user: Some("0:0".into()), allow_root: true, ..of(1, 2) };
    assert_eq!(swarm.run(&root).await, None);
    assert!(swarm.run(&of(1, 4)).await.is_some());
    swarm.bench.end().await;
}

#[tokio::test]
async fn sandboxes_of_an_earlier_start_are_swept_by_the_next() {
    let mut swarm = Sandboxed::start(2).await;
    let old = swarm.sandboxes().await;
    // The worker that is killed gets no chance to remove them.
    swarm.bench.engine.engine_down();
    swarm.bench.kill().await;
    swarm.bench.engine.engine_up();
    assert_eq!(swarm.sandboxes().await, old);
    swarm.bench.restart();
    let renewed = async || {
        let now = swarm.sandboxes().await;
        now.len() == 2 && now.iter().all(|id| !old.contains(id))
    };
    swarm.bench.eventually("other sandboxes", renewed).await;
    assert!(swarm.run(&of(1, 2)).await.is_some());
    swarm.bench.end().await;
}

#[tokio::test]
async fn a_worker_that_stops_takes_its_sandboxes_and_their_image_along() {
    let swarm = Sandboxed::start(2).await;
    assert!(swarm.run(&of(1, 2)).await.is_some());
    let Bench { engine, stop, worker, data, .. } = swarm.bench;
    let images = async || engine.our_images().await.unwrap().len();
    assert_eq!(images().await, 2, "the job's and the sandboxes'");
    stop.cancel();
    worker.await.unwrap().unwrap();
    assert!(engine.is_clean());
    assert_eq!(images().await, 1);
    drop(data);
}

#[tokio::test]
async fn what_a_killed_worker_leaves_goes_with_everything_of_it() {
    let mut swarm = Sandboxed::start(2).await;
    let engine = swarm.bench.engine.clone();
    engine.engine_down();
    swarm.bench.kill().await;
    engine.engine_up();
    let config = WorkerConfig { data: swarm.bench.data.path().to_owned(), ..WorkerConfig::default() };
    remove_everything(&config, &engine).await.unwrap();
    assert!(engine.is_clean() && engine.our_images().await.unwrap().is_empty());
}

#[tokio::test]
async fn without_sandboxes_nothing_is_made_for_any() {
    let swarm = Sandboxed::start(0).await;
    assert_eq!(swarm.run(&of(1, 2)).await, None);
    assert_eq!(swarm.bench.engine.count(Call::LoadImage), 0, "none are wanted");
    swarm.bench.end().await;
}

/// An engine takes its time over each container that it removes.
#[tokio::test]
async fn a_worker_that_starts_again_takes_work_while_earlier_sandboxes_are_being_removed() {
    let mut swarm = Sandboxed::start(2).await;
    let earlier = swarm.sandboxes().await;
    // The worker that is killed gets no chance to remove them.
    swarm.bench.engine.engine_down();
    swarm.bench.kill().await;
    swarm.bench.engine.engine_up();
    swarm.bench.engine.plan(FaultPlan::choosing(|call| (call == Call::Remove).then_some(Effect::Hang)));
    let asked = swarm.bench.engine.count(Call::Remove);
    swarm.bench.core.seen().frames.clear();
    swarm.bench.restart();
    swarm.bench.core.frame("a link", |frame| matches!(frame, ToCore::StateReport { .. })).await;
    let order = of(1, 1);
    swarm.bench.core.assign(&order).await;
    swarm.bench.started(order.attempt).await;
    let both_at_a_time = async || swarm.bench.engine.count(Call::Remove) == asked + 2;
    swarm.bench.eventually("both are being removed", both_at_a_time).await;
    assert_eq!(swarm.sandboxes().await, earlier, "no further ones before these are gone");
    swarm.bench.engine.plan(FaultPlan::new());
    swarm.gate.cancel();
    swarm.bench.end().await;
}
