//! Whole workers against a scripted core and an engine in memory.

mod directories;
mod engines;
mod faults;
mod images;
mod offers;
mod older;
mod real;
mod repeats;
mod sandboxes;
mod stops;
mod users;

use std::path::Path;
use std::time::Duration;

use swarm_protocol::link::{HeldAttempt, HeldPhase, LayerOrder, TaskOrder, ToCore, ToWorker, VERSION, VERSION_MIN};
use swarm_protocol::logs::{LogDecoder, LogStream};
use swarm_protocol::{AttemptId, Digest, LossReason, Outcome};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::DropGuard;

use super::*;
use crate::runtime::fake::{Call, Effect, FakeRuntime, FaultPlan, Script, StartView};
use crate::runtime::testimage::{TestEngine, host_image};
use crate::runtime::{Labels, RuntimeError};
use crate::testing::{self, CONFIG, DEADLINE, MovedClock, ScriptedCore, Seen};

struct Bench {
    core: ScriptedCore,
    engine: FakeRuntime,
    clock: Arc<MovedClock>,
    data: tempfile::TempDir,
    sandboxes: u32,
    /// As many as the engine has cores, if not said.
    slots: Option<u32>,
    stop: CancellationToken,
    worker: JoinHandle<anyhow::Result<()>>,
    /// Cancelled when no task of the worker is left.
    gone: CancellationToken,
}

/// The worker's hold on the clock: when its tasks have let go of it, they are gone.
struct HeldClock {
    clock: Arc<MovedClock>,
    _gone: DropGuard,
}

impl Machine for HeldClock {
    fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    fn wall_us(&self) -> u64 {
        self.clock.wall_us()
    }

    fn boot(&self) -> String {
        self.clock.boot()
    }

    fn load_millis(&self) -> u32 {
        self.clock.load_millis()
    }
}

impl Bench {
    async fn start(program: impl Fn() -> Script + Send + Sync + 'static) -> Self {
        Self::start_with(0, move |_| program()).await
    }

    async fn start_with(sandboxes: u32, program: impl Fn(&StartView<'_>) -> Script + Send + Sync + 'static) -> Self {
        Self::start_on(FakeRuntime::new(), Some(2), sandboxes, program).await
    }

    async fn start_on(
        engine: FakeRuntime,
        slots: Option<u32>,
        sandboxes: u32,
        program: impl Fn(&StartView<'_>) -> Script + Send + Sync + 'static,
    ) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let core = ScriptedCore::start().await;
        engine.program(program);
        engine.add_image(Digest::of(CONFIG), Vec::new());
        let (clock, data) = (Arc::new(MovedClock::default()), tempfile::tempdir().unwrap());
        let stop = CancellationToken::new();
        let (worker, gone) = spawn(&core, &engine, &clock, data.path(), stop.clone(), false, (slots, sandboxes));
        Self { core, engine, clock, data, sandboxes, slots, stop, worker, gone }
    }

    /// Drops the worker as a kill would: nothing is said and nothing cleaned up.
    async fn kill(&mut self) {
        self.worker.abort();
        timeout(DEADLINE, self.gone.cancelled()).await.expect("its tasks end with it");
    }

    fn restart(&mut self) {
        self.restart_with(false);
    }

    fn restart_with(&mut self, drain_on_stop: bool) {
        self.stop = CancellationToken::new();
        let (data, stop) = (self.data.path(), self.stop.clone());
        (self.worker, self.gone) =
            spawn(&self.core, &self.engine, &self.clock, data, stop, drain_on_stop, (self.slots, self.sandboxes));
    }

    async fn run(&self, order: &TaskOrder) -> swarm_protocol::link::FinalReport {
        self.core.assign(order).await;
        self.core.finished(order.attempt).await
    }

    async fn outcome(&self, order: &TaskOrder) -> Outcome {
        self.run(order).await.outcome
    }

    async fn started(&self, attempt: AttemptId) {
        self.core.frame("a start", |frame| matches!(frame, ToCore::Started { attempt: a, .. } if *a == attempt)).await;
    }

    /// Waits until nothing of any attempt is left on disk or engine.
    async fn until_clean(&self) {
        let is_clean = || is_forgotten(self.data.path()) && self.engine.is_clean();
        self.core.until("a clean disk and engine", |_| is_clean().then_some(())).await;
    }

    /// Waits until the worker has noted an answered renewal that it sent from now on.
    async fn until_renewed(&self) {
        let (notes, now_ns) = (WatchFiles::new(self.data.path()), self.clock.now_ns());
        let is_renewed = || notes.renewed_ns(&ThisMachine.boot()) >= now_ns;
        self.core.until("a renewal that counts", |_| is_renewed().then_some(())).await;
    }

    async fn eventually<F: Future<Output = bool>>(&self, what: &str, ask: impl Fn() -> F) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !ask().await {
            assert!(tokio::time::Instant::now() < deadline, "{what}: not in time");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn end(mut self) {
        self.stop.cancel();
        (&mut self.worker).await.unwrap().unwrap();
    }
}

/// A worker of `core` that keeps its data in `data`, without a watchdog.
fn config_of(core: &ScriptedCore, data: &Path) -> WorkerConfig {
    WorkerConfig {
        core: format!("http://{}", core.address).parse().unwrap(),
        data: data.to_owned(),
        name: "w".into(),
        join_token: Some("token".to_owned().into()),
        watchdog: None,
        ..WorkerConfig::default()
    }
}

fn spawn(
    core: &ScriptedCore,
    engine: &FakeRuntime,
    clock: &Arc<MovedClock>,
    data: &Path,
    stop: CancellationToken,
    drain_on_stop: bool,
    (slots, sandboxes): (Option<u32>, u32),
) -> (JoinHandle<anyhow::Result<()>>, CancellationToken) {
    let gone = CancellationToken::new();
    let clock = HeldClock { clock: clock.clone(), _gone: gone.clone().drop_guard() };
    let config =
        WorkerConfig { slots, drain_on_stop, sandboxes: Some(sandboxes), sandbox_joins: 2, ..config_of(core, data) };
    let parts = Parts::of_this_machine(&config, Arc::new(engine.clone())).unwrap();
    (tokio::spawn(run_with(config, Parts { machine: Arc::new(clock), ..parts }, stop)), gone)
}

fn all() -> Labels {
    Labels::from([("io.swarm-sync.worker".to_owned(), "3".to_owned())])
}

/// Whether nothing of any attempt is left on disk, which is removed last.
fn is_forgotten(data: &Path) -> bool {
    ["spool", "watchdog/containers"].iter().all(|dir| std::fs::read_dir(data.join(dir)).unwrap().next().is_none())
}

fn order(job: u64) -> TaskOrder {
    testing::order(job, CONFIG)
}

fn text(log: &[u8]) -> String {
    let (mut decoder, mut text) = (LogDecoder::default(), String::new());
    decoder.push(log);
    while let Some(record) = decoder.next_record().unwrap() {
        if record.stream != LogStream::Cut {
            text.push_str(&String::from_utf8_lossy(&record.bytes));
        }
    }
    assert!(decoder.is_empty());
    text
}

#[tokio::test]
async fn a_job_runs_and_leaves_nothing_but_its_record() {
    let bench = Bench::start(|| Script::new().out("hello\n").err("there\n").write("/out/r", "42")).await;
    let mut order = order(1);
    order.inputs = vec![testing::input("/in/a", b"data")];
    order.outputs = vec!["/out/r".into()];
    bench.core.seen().blobs.insert(Digest::of(b"data"), (&b"data"[..]).into());
    let report = bench.run(&order).await;
    assert_eq!(report.outcome, Outcome::Succeeded);
    assert!(report.started_at_us.is_some() && report.finished_at_us.is_some() && report.ran_ms.is_some());
    assert_eq!((report.outputs[0].digest, report.outputs[0].size_bytes), (Digest::of(b"42"), 2));
    assert_eq!(bench.core.seen().uploads[&Digest::of(b"42")], &b"42"[..]);
    assert_eq!(text(&bench.core.seen().logs[&order.attempt]), "hello\nthere\n");
    bench.until_clean().await;
    let seen_before = bench.core.seen().heartbeats;
    bench.core.until("more heartbeats", |seen| (seen.heartbeats > seen_before + 1).then_some(())).await;
    bench.end().await;
}

#[tokio::test]
async fn each_way_to_end_is_told_apart() {
    let bench = Bench::start(|| Script::new().exit(3)).await;
    assert_eq!(bench.outcome(&order(1)).await, Outcome::Failed { exit_code: 3 });
    bench.engine.program(|_| Script::new().out_of_memory());
    assert_eq!(bench.outcome(&order(2)).await, Outcome::OutOfMemory { exit_code: 137 });
    bench.engine.program(|_| Script::refused("no such command"));
    assert!(
        matches!(bench.outcome(&order(3)).await, Outcome::Refused { reason } if reason.contains("no such command"))
    );
    bench.engine.program(|_| Script::new().forever());
    let timed = TaskOrder { timeout_ms: Some(100), grace_ms: 50, ..order(4) };
    assert_eq!(bench.outcome(&timed).await, Outcome::TimedOut);
    bench.engine.program(|_| Script::new());
    let absent = TaskOrder { outputs: vec!["/out/none".into()], ..order(5) };
    assert!(matches!(bench.outcome(&absent).await, Outcome::OutputMissing { reason } if reason.contains("/out/none")));
    let root = TaskOrder { user: Some("0:0".into()), ..order(6) };
    assert!(matches!(bench.outcome(&root).await, Outcome::Refused { reason } if reason.contains("as root")));
    let allowed = TaskOrder { user: Some("0:0".into()), allow_root: true, ..order(7) };
    assert_eq!(bench.outcome(&allowed).await, Outcome::Succeeded);
    let fault = RuntimeError::Engine { call: "create", message: "disk full".into() };
    bench.engine.plan(FaultPlan::new().on(Call::Create, 1, Effect::Fail(fault)));
    let lost = bench.outcome(&order(8)).await;
    assert!(
        matches!(&lost, Outcome::Lost { reason: LossReason::Engine, detail } if detail.contains("disk full")),
        "{lost:?}"
    );
    let missing = TaskOrder { inputs: vec![testing::input("/in/a", b"absent")], ..order(9) };
    assert!(matches!(bench.outcome(&missing).await, Outcome::Lost { reason: LossReason::Transfer, .. }));
    bench.until_clean().await;
    bench.end().await;
}

#[tokio::test]
async fn a_cancel_ends_even_what_ignores_signals() {
    let bench = Bench::start(|| Script::new().forever().ignoring_signals()).await;
    let (first, second) = (order(1), order(2));
    bench.core.assign(&first).await;
    bench.started(first.attempt).await;
    bench.core.tell(ToWorker::Cancel { attempt: first.attempt, grace_ms: 50 }).await;
    assert_eq!(bench.core.finished(first.attempt).await.outcome, Outcome::Cancelled);
    bench.core.assign(&second).await;
    bench.started(second.attempt).await;
    bench.core.tell(ToWorker::Abandon { attempt: second.attempt }).await;
    bench.until_clean().await;
    assert!(!bench.core.seen().finished.contains_key(&second.attempt), "what was given up is not reported");
    bench.end().await;
}

#[tokio::test]
async fn what_is_to_end_gets_the_signal_its_image_names_also_after_a_restart() {
    let mut bench = Bench::start(|| Script::new().forever().heeding_only("SIGINT")).await;
    bench.engine.stop_signal(&Digest::of(CONFIG), "SIGINT");
    let grace_ms = 600_000;
    let timed = TaskOrder { timeout_ms: Some(100), grace_ms, ..order(1) };
    assert_eq!(bench.outcome(&timed).await, Outcome::TimedOut);
    let adopted = order(2);
    bench.core.assign(&adopted).await;
    bench.started(adopted.attempt).await;
    bench.kill().await;
    bench.restart();
    bench.core.until("a link", |seen| (seen.sessions == 2).then_some(())).await;
    bench.core.tell(ToWorker::Cancel { attempt: adopted.attempt, grace_ms }).await;
    assert_eq!(bench.core.finished(adopted.attempt).await.outcome, Outcome::Cancelled);
    assert_eq!(bench.engine.count(Call::Kill), 2, "none had to be killed");
    bench.until_clean().await;
    bench.end().await;
}

#[tokio::test]
async fn an_image_that_comes_while_its_job_is_cancelled_is_marked_as_ours_before_a_drain_ends() {
    let mut bench = Bench::start(Script::new).await;
    bench.kill().await;
    bench.restart_with(true);
    let config = br#"{"config":{"User":"1"}}"#;
    let order = testing::order(1, config);
    bench.core.seen().blobs.insert(Digest::of(config), (&config[..]).into());
    bench.engine.plan(FaultPlan::new().on(Call::LoadImage, 1, Effect::Delay(Duration::from_millis(700))));
    bench.core.assign(&order).await;
    bench.until_called(Call::LoadImage).await;
    bench.core.tell(ToWorker::Cancel { attempt: order.attempt, grace_ms: 50 }).await;
    assert_eq!(bench.core.finished(order.attempt).await.outcome, Outcome::Cancelled);
    assert!(bench.engine.our_images().await.unwrap().is_empty(), "the cancel did not wait for the image");
    bench.stop.cancel();
    (&mut bench.worker).await.unwrap().unwrap();
    assert_eq!(bench.engine.our_images().await.unwrap()[0].config, Digest::of(config));
}

#[tokio::test]
async fn a_worker_that_goes_with_its_data_leaves_nothing_on_the_engine() {
    let mut bench = Bench::start(|| Script::new().forever()).await;
    bench.core.assign(&order(1)).await;
    bench.started(order(1).attempt).await;
    bench.kill().await;
    assert_eq!(bench.engine.list_ours(&all()).await.unwrap().len(), 1);
    let config = WorkerConfig { data: bench.data.path().to_owned(), ..WorkerConfig::default() };
    remove_everything(&config, &bench.engine).await.unwrap();
    assert!(bench.engine.list_ours(&all()).await.unwrap().is_empty());
    assert!(bench.engine.list_our_volumes(&all()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_lease_that_nobody_renews_ends_the_container() {
    let bench = Bench::start(|| Script::new().forever()).await;
    bench.core.assign(&order(1)).await;
    bench.started(order(1).attempt).await;
    // Either channel alone keeps it alive.
    for (link, heartbeats) in [(false, true), (true, false)] {
        (bench.core.seen().answers_link, bench.core.seen().answers_heartbeats) = (link, heartbeats);
        for _ in 0..4 {
            bench.clock.forward(Duration::from_secs(20));
            bench.until_renewed().await;
        }
    }
    assert!(bench.core.seen().finished.is_empty(), "renewed leases do not end");
    let reports = bench.core.seen().frames.iter().filter(|frame| matches!(frame, ToCore::StateReport { .. })).count();
    assert_eq!(reports, 1, "renewals alone did it");
    // Whatever is answered already was sent before the clock moves.
    (bench.core.seen().answers_link, bench.core.seen().answers_heartbeats) = (false, false);
    bench.clock.forward(Duration::from_secs(28));
    let report = bench.core.finished(order(1).attempt).await;
    assert!(matches!(report.outcome, Outcome::Lost { reason: LossReason::LeaseExpired, .. }));
    bench.end().await;
}

#[tokio::test]
async fn the_log_is_exact_across_a_break_in_its_middle() {
    let line = "0123456789abcdef".repeat(1000) + "\n";
    let written = line.clone();
    let bench = Bench::start(move || (0..100).fold(Script::new(), |script, _| script.out(written.clone()))).await;
    bench.core.seen().cut_after = Some(300_000);
    let order = TaskOrder { log_bytes_max: 64 << 20, ..order(1) };
    let report = bench.run(&order).await;
    assert_eq!((report.outcome, report.log_cut_bytes), (Outcome::Succeeded, 0));
    assert_eq!(text(&bench.core.seen().logs[&order.attempt]), line.repeat(100));
    assert_eq!(bench.core.seen().sessions, 2);
    bench.end().await;
}

#[tokio::test]
async fn a_report_is_repeated_until_it_is_stored() {
    let bench = Bench::start(Script::new).await;
    bench.core.seen().stores_finishes = false;
    bench.run(&order(1)).await;
    bench.core.seen().finished.clear();
    bench.core.seen().stores_finishes = true;
    bench.core.cut();
    bench.core.finished(order(1).attempt).await;
    let held = |frame: &ToCore| matches!(frame, ToCore::StateReport { attempts, .. } if attempts.iter().any(|held| held.phase == HeldPhase::Ended));
    bench.core.frame("a report that names the ended attempt", held).await;
    bench.until_clean().await;
    bench.end().await;
}

#[tokio::test]
async fn a_killed_worker_adopts_its_container() {
    let gate = CancellationToken::new();
    let script = Script::new().out("one\n").hold(gate.clone()).out("two\n").exit(5);
    let mut bench = Bench::start(move || script.clone()).await;
    let order = order(1);
    bench.core.assign(&order).await;
    bench.started(order.attempt).await;
    bench.core.until("the first line", |seen| seen.logs.get(&order.attempt).map(drop)).await;
    bench.kill().await;
    bench.core.seen().frames.clear();
    bench.restart();
    bench.started(order.attempt).await;
    gate.cancel();
    let report = bench.core.finished(order.attempt).await;
    assert_eq!(report.outcome, Outcome::Failed { exit_code: 5 });
    assert_eq!(text(&bench.core.seen().logs[&order.attempt]), "one\ntwo\n");
    assert_eq!(bench.engine.count(Call::Start), 1, "it ran once");
    assert_eq!(bench.core.seen().joins, 1, "the key is kept");
    let stamps = report.finished_at_us.zip(report.started_at_us);
    let stamped_ms = stamps.map(|(finished_us, started_us)| (finished_us - started_us) / 1000);
    assert!(stamped_ms.is_some() && report.ran_ms == stamped_ms, "over the restart the engine knows best: {report:?}");
    bench.until_clean().await;
    bench.end().await;
}

#[tokio::test]
async fn what_ended_while_no_worker_ran_is_collected() {
    let gate = CancellationToken::new();
    let script = Script::new().hold(gate.clone()).write("/out/r", "7");
    let mut bench = Bench::start(move || script.clone()).await;
    let order = TaskOrder { outputs: vec!["/out/r".into()], ..order(1) };
    bench.core.assign(&order).await;
    bench.started(order.attempt).await;
    bench.kill().await;
    gate.cancel();
    let container = bench.engine.list_ours(&all()).await.unwrap().remove(0);
    timeout(DEADLINE, bench.engine.wait(&container.id)).await.expect("it ends in time").unwrap();
    bench.restart();
    let report = bench.core.finished(order.attempt).await;
    assert_eq!((report.outcome, report.outputs.len()), (Outcome::Succeeded, 1));
    bench.until_clean().await;
    bench.end().await;
}

#[tokio::test]
async fn a_container_nobody_wants_any_more_is_removed_after_a_restart() {
    let mut bench = Bench::start(|| Script::new().forever()).await;
    bench.core.assign(&order(1)).await;
    bench.started(order(1).attempt).await;
    bench.kill().await;
    bench.core.seen().abandons = vec![order(1).attempt];
    bench.restart();
    bench.until_clean().await;
    assert!(bench.core.seen().finished.is_empty());
    bench.end().await;
}

#[tokio::test]
async fn at_most_once_waits_for_its_commit_and_is_not_started_after_a_restart() {
    let mut bench = Bench::start(Script::new).await;
    bench.core.seen().commits_starts = false;
    let careful = TaskOrder { at_most_once: true, ..order(1) };
    bench.core.assign(&careful).await;
    let question = |frame: &ToCore| matches!(frame, ToCore::MayStart { .. });
    bench.core.frame("the question", question).await;
    bench.core.seen().frames.clear();
    bench.core.cut();
    bench.core.frame("the question again", question).await;
    let pending = ToCore::StateReport {
        seq: 1,
        attempts: vec![HeldAttempt { attempt: careful.attempt, phase: HeldPhase::Pending }],
    };
    assert!(bench.core.seen().frames.contains(&pending), "{:?}", bench.core.seen().frames);
    assert_eq!(bench.engine.count(Call::Start), 0, "not before the commit");
    bench.kill().await;
    bench.core.seen().commits_starts = true;
    bench.restart();
    let lost = bench.core.finished(careful.attempt).await.outcome;
    assert!(matches!(lost, Outcome::Lost { reason: LossReason::WorkerRestarted, .. }));
    assert_eq!(bench.engine.count(Call::Start), 0);
    let again = TaskOrder { at_most_once: true, ..order(2) };
    assert_eq!(bench.outcome(&again).await, Outcome::Succeeded);
    bench.end().await;
}

#[tokio::test]
async fn queued_orders_are_given_back_and_a_draining_worker_takes_none() {
    let bench = Bench::start(|| Script::new().forever()).await;
    for job in 1..=3 {
        bench.core.assign(&order(job)).await;
    }
    bench.started(order(1).attempt).await;
    bench.started(order(2).attempt).await;
    let attempts = (1..=3).map(|job| order(job).attempt).collect();
    bench.core.tell(ToWorker::Recall { attempts }).await;
    let third = order(3).attempt;
    bench.core.frame("the third back", |frame| *frame == ToCore::Recalled { attempts: vec![third] }).await;
    bench.core.tell(ToWorker::Drain).await;
    bench.core.assign(&order(4)).await;
    let fourth = order(4).attempt;
    let declined = |frame: &ToCore| matches!(frame, ToCore::Declined { attempt, .. } if *attempt == fourth);
    bench.core.frame("a refusal", declined).await;
    bench.core.tell(ToWorker::Resume).await;
    bench.core.tell(ToWorker::Abandon { attempt: order(1).attempt }).await;
    bench.core.assign(&order(5)).await;
    bench.started(order(5).attempt).await;
    bench.end().await;
}

/// The whole way with the machine's own engine: an image brought as blobs, inputs, a user that is not root, outputs.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_on_a_real_engine() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let engine = TestEngine::connect().await;
    let image = host_image(&["sh", "cat", "id", "sleep"]).unwrap();
    let core = ScriptedCore::start().await;
    let (data, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let layer = std::fs::read(image.layer_path()).unwrap();
    let layer_digest = Digest::of(&layer);
    core.seen().blobs.extend([
        (image.config_digest, image.config.clone()),
        (layer_digest, layer.into()),
        (Digest::of(b"data"), (&b"data"[..]).into()),
    ]);
    let config = config_of(&core, data.path());
    let runtime = engine.runtime.clone();
    let worker = tokio::spawn(run(config, runtime.clone(), stop.clone()));
    let mut order = testing::order(1, &image.config);
    order.image.layers =
        vec![LayerOrder { digest: layer_digest, diff_id: image.diff_id, size_bytes: image.layer_bytes }];
    let script =
        "echo \"$SWARM_JOB_ID $SWARM_TASK_INDEX $SWARM_ATTEMPT\"; cat /data/in; id -u; cat /data/in > /data/out";
    order.command = Some(vec!["/bin/sh".into(), "-c".into(), script.into()]);
    order.inputs = vec![testing::input("/data/in", b"data")];
    order.outputs = vec!["/data/out".into()];
    core.assign(&order).await;
    let report = core.finished(order.attempt).await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{}", text(&core.seen().logs[&order.attempt]));
    assert_eq!(text(&core.seen().logs[&order.attempt]), "1 0 1\ndata65534\n");
    assert_eq!(core.seen().uploads[&Digest::of(b"data")], &b"data"[..]);
    // Equal where the engine noted the start of a short run later than its end.
    assert!(report.ran_ms.is_some() && report.started_at_us <= report.finished_at_us);

    let endless = |job| {
        let mut order = TaskOrder { outputs: Vec::new(), inputs: Vec::new(), ..order.clone() };
        order.attempt.job.0 = job;
        order.command = Some(vec!["/bin/sh".into(), "-c".into(), "echo up; sleep 600".into()]);
        order
    };
    let cancelled = endless(2);
    core.assign(&cancelled).await;
    core.until("the line", |seen| seen.logs.get(&cancelled.attempt).map(drop)).await;
    core.tell(ToWorker::Cancel { attempt: cancelled.attempt, grace_ms: 100 }).await;
    assert_eq!(core.finished(cancelled.attempt).await.outcome, Outcome::Cancelled);
    let absent = TaskOrder { command: Some(vec!["/no/such".into()]), ..endless(3) };
    core.assign(&absent).await;
    let outcome = core.finished(absent.attempt).await.outcome;
    assert!(matches!(outcome, Outcome::Refused { .. }), "{outcome:?}");
    core.until("a clean disk", |_| is_forgotten(data.path()).then_some(())).await;
    let ours = Labels::from([("io.swarm-sync.swarm".to_owned(), core.swarm.to_string())]);
    stop.cancel();
    worker.await.unwrap().unwrap();
    assert_eq!(runtime.list_ours(&ours).await.unwrap(), []);
    assert_eq!(runtime.list_our_volumes(&ours).await.unwrap(), []);
    runtime.remove_image(&image.config_digest).await.unwrap();
}

#[tokio::test]
async fn labels_follow_the_first_report_where_the_core_understands_them() {
    let bench = Bench::start(|| Script::new().exit(0)).await;
    let labels = |seen: &Seen| seen.frames.iter().filter(|frame| matches!(frame, ToCore::Labels { .. })).count();
    let frame = bench.core.frame("labels", |frame| matches!(frame, ToCore::Labels { .. })).await;
    assert!(matches!(&bench.core.seen().frames[0], ToCore::StateReport { .. }));
    let ToCore::Labels { labels: found } = frame else { unreachable!() };
    assert_eq!((found["kernel"].as_str(), found["disk_limit"].as_str()), ("0.0.0-fake", "sampled"));
    // An older core takes over: everything works but that.
    bench.core.seen().version = VERSION_MIN;
    bench.core.cut();
    bench.core.until("another link", |seen| (seen.sessions == 2).then_some(())).await;
    assert!(matches!(bench.outcome(&order(1)).await, Outcome::Succeeded));
    let seen = |seen: &Seen| (labels(seen), seen.unreadable);
    assert_eq!(seen(&bench.core.seen()), (1, 0));
    bench.core.seen().version = VERSION;
    bench.core.cut();
    bench.core.until("labels again", |seen| (labels(seen) == 2).then_some(())).await;
    bench.end().await;
}

#[tokio::test]
async fn what_a_container_used_is_in_its_report() {
    let bench = Bench::start(|| {
        let first = Script::new().uses(40, 9 << 20).sleep(Duration::from_secs(1));
        first.write("/out/r", "seven!!").uses(1500, 3 << 20).sleep(Duration::from_secs(2))
    })
    .await;
    let order = TaskOrder { outputs: vec!["/out/r".into()], ..order(1) };
    let usage = bench.run(&order).await.usage;
    assert_eq!((usage.cpu_ms, usage.memory_peak_bytes, usage.output_bytes), (Some(1500), Some(9 << 20), 7));
    bench.end().await;
}

#[tokio::test]
async fn a_container_that_writes_too_much_is_killed_and_told_so() {
    let bench = Bench::start(|| Script::new().write("/out/r", vec![0; 2 << 20]).forever()).await;
    let mut greedy = TaskOrder { outputs: vec!["/out/r".into()], ..order(1) };
    greedy.limits.disk_bytes = 1 << 20;
    let mut modest = TaskOrder { outputs: vec!["/out/r".into()], timeout_ms: Some(8000), grace_ms: 0, ..order(2) };
    modest.limits.disk_bytes = 3 << 20;
    bench.core.assign(&modest).await;
    let report = bench.run(&greedy).await;
    assert!(matches!(&report.outcome, Outcome::OutOfDisk { reason } if reason.contains("2097152 bytes")), "{report:?}");
    assert_eq!(bench.core.finished(modest.attempt).await.outcome, Outcome::TimedOut);
    assert_eq!(bench.core.finished(modest.attempt).await.usage.disk_peak_bytes, Some(2 << 20));
    bench.end().await;
}
