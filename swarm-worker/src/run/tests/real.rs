//! Whole workers on the machine's own engine, some behind a proxy that lets its calls go wrong.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::runtime::ContainerPhase;
use crate::runtime::docker::{Deadlines, DockerRuntime, DockerSettings};
use crate::runtime::testimage::HostImage;
use crate::testing::{Fate, Proxy};

/// How long a job on an engine that others use may take.
const PATIENCE: Duration = Duration::from_secs(90);

struct Real {
    core: ScriptedCore,
    engine: TestEngine,
    data: tempfile::TempDir,
    stop: CancellationToken,
    worker: JoinHandle<anyhow::Result<()>>,
    gone: CancellationToken,
}

impl Real {
    async fn start(change: impl FnOnce(&mut WorkerConfig)) -> Self {
        let engine = TestEngine::connect().await;
        let runtime = engine.runtime.clone();
        Self::start_on(engine, runtime, change).await
    }

    /// As `start`, with an engine that calls go wrong on.
    async fn start_behind(judge: impl Fn(&str) -> Fate + Send + Sync + 'static) -> (Self, Proxy) {
        let (engine, proxy) = (TestEngine::connect().await, Proxy::start(judge));
        let deadlines = Deadlines { call: Duration::from_secs(5), ..Deadlines::default() };
        let settings = DockerSettings { host: Some(proxy.host.clone()), repository: engine.prefix.clone(), deadlines };
        let runtime = Arc::new(DockerRuntime::connect(settings).await.expect("the proxy passes it on"));
        (Self::start_on(engine, runtime, |_| ()).await, proxy)
    }

    async fn start_on(
        mut engine: TestEngine,
        runtime: Arc<DockerRuntime>,
        change: impl FnOnce(&mut WorkerConfig),
    ) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (core, data, stop) = (ScriptedCore::start().await, tempfile::tempdir().unwrap(), CancellationToken::new());
        // What the worker makes goes with the engine's guard, should a test panic.
        let ours = Labels::from([("io.swarm-sync.swarm".to_owned(), core.swarm.to_string())]);
        engine.labels = ours;
        let (worker, gone) = spawn_real(&core, runtime, data.path(), stop.clone(), change);
        Self { core, engine, data, stop, worker, gone }
    }

    /// Drops the worker as a kill would.
    async fn kill(&mut self) {
        self.worker.abort();
        timeout(PATIENCE, self.gone.cancelled()).await.expect("its tasks end with it");
    }

    /// Another worker on the same data, that reaches the engine itself.
    fn restart(&mut self, change: impl FnOnce(&mut WorkerConfig)) {
        self.stop = CancellationToken::new();
        let (runtime, stop) = (self.engine.runtime.clone(), self.stop.clone());
        (self.worker, self.gone) = spawn_real(&self.core, runtime, self.data.path(), stop, change);
    }

    /// An order for this image, which the core has from now on.
    fn order(&self, job: u64, image: &HostImage, script: &str) -> TaskOrder {
        let layer = std::fs::read(image.layer_path()).unwrap();
        let digest = Digest::of(&layer);
        self.core.seen().blobs.extend([(image.config_digest, image.config.clone()), (digest, layer.into())]);
        let mut order = testing::order(job, &image.config);
        order.image.layers = vec![LayerOrder { digest, diff_id: image.diff_id, size_bytes: image.layer_bytes }];
        order.command = Some(["/bin/sh", "-c", script].map(str::to_owned).to_vec());
        order
    }

    async fn outcome(&self, order: &TaskOrder) -> Outcome {
        self.core.assign(order).await;
        self.finished(order).await
    }

    async fn finished(&self, order: &TaskOrder) -> Outcome {
        let told = |seen: &Seen| seen.finished.get(&order.attempt).map(|report| report.outcome.clone());
        self.until("its end", || async { told(&self.core.seen()) }).await
    }

    fn log(&self, order: &TaskOrder) -> String {
        self.core.seen().logs.get(&order.attempt).map(|log| text(log)).unwrap_or_default()
    }

    async fn until_logged(&self, order: &TaskOrder, words: &str) {
        self.until("a line of its log", || async { self.log(order).contains(words).then_some(()) }).await;
    }

    async fn cancel(&self, order: &TaskOrder, grace: Duration) {
        let grace_ms = grace.as_millis() as u32;
        self.core.tell(ToWorker::Cancel { attempt: order.attempt, grace_ms }).await;
    }

    async fn until<T, F: Future<Output = Option<T>>>(&self, what: &str, ask: impl Fn() -> F) -> T {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            assert!(tokio::time::Instant::now() < deadline, "{what}: not in time");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The images that this worker keeps.
    async fn images(&self) -> Vec<Digest> {
        self.engine.runtime.our_images().await.unwrap().into_iter().map(|image| image.config).collect()
    }

    async fn until_clean(&self) {
        self.until("a clean disk", || async { is_forgotten(self.data.path()).then_some(()) }).await;
    }

    /// Stops the worker, which leaves no container or volume behind.
    async fn end(mut self) {
        let (runtime, ours) = (&self.engine.runtime, &self.engine.labels);
        self.until_clean().await;
        self.stop.cancel();
        (&mut self.worker).await.unwrap().unwrap();
        assert_eq!(runtime.list_ours(ours).await.unwrap(), []);
        assert_eq!(runtime.list_our_volumes(ours).await.unwrap(), []);
    }
}

fn spawn_real(
    core: &ScriptedCore,
    runtime: Arc<DockerRuntime>,
    data: &Path,
    stop: CancellationToken,
    change: impl FnOnce(&mut WorkerConfig),
) -> (JoinHandle<anyhow::Result<()>>, CancellationToken) {
    let gone = CancellationToken::new();
    let clock = HeldClock { clock: Arc::default(), _gone: gone.clone().drop_guard() };
    let mut config = WorkerConfig { slots: Some(2), sandboxes: Some(0), ..config_of(core, data) };
    change(&mut config);
    let parts = Parts::of_this_machine(&config, runtime).unwrap();
    (tokio::spawn(run_with(config, Parts { machine: Arc::new(clock), ..parts }, stop)), gone)
}

#[tokio::test(flavor = "multi_thread")]
async fn images_go_in_the_order_of_their_last_use_and_those_of_others_stay() {
    let small = || host_image(&["sh", "sleep"]).unwrap();
    let images = [small(), small(), small()];
    let [first, second, third] = images.each_ref().map(|image| image.config_digest);
    let foreign = TestEngine::connect().await;
    let theirs = foreign.load(&["sh"]).await.config_digest;
    // Room for two of them and what is tiny.
    let room = images[0].layer_bytes * 5 / 2;
    let mut real = Real::start(|config| config.image_cache_bytes = room).await;
    for (job, image) in [(1, &images[0]), (2, &images[1]), (3, &images[0]), (4, &images[2])] {
        assert_eq!(real.outcome(&real.order(job, image, "true")).await, Outcome::Succeeded);
    }
    foreign.runtime.tag_image(&third).await.unwrap();
    // It is made room for the next one; this has not even a shell.
    let tiny = host_image(&[]).unwrap();
    let outcome = real.outcome(&real.order(5, &tiny, "true")).await;
    assert!(matches!(outcome, Outcome::Refused { .. }), "{outcome:?}");
    let kept = real.images().await;
    assert!(!kept.contains(&second), "it was not used for the longest time");
    assert!([first, third, tiny.config_digest].iter().all(|image| kept.contains(image)), "{kept:?}");
    let runtime = real.engine.runtime.clone();
    assert!(!runtime.image_exists(&second).await.unwrap(), "the engine has its bytes back");

    // The next start finds less free than its floor, whatever there is.
    real.stop.cancel();
    (&mut real.worker).await.unwrap().unwrap();
    real.restart(|config| config.disk_floor_bytes = u64::MAX);
    let runs = real.order(6, &images[0], "echo up; sleep 600");
    real.core.assign(&runs).await;
    real.until_logged(&runs, "up").await;
    let last = small();
    assert_eq!(real.outcome(&real.order(7, &last, "true")).await, Outcome::Succeeded);
    let kept = real.images().await;
    assert!(kept.contains(&first), "a job runs on it");
    assert!(![third, tiny.config_digest].iter().any(|image| kept.contains(image)), "{kept:?}");
    for image in [theirs, third] {
        assert!(runtime.image_exists(&image).await.unwrap(), "what others keep under a name of theirs stays");
    }
    real.cancel(&runs, Duration::ZERO).await;
    assert_eq!(real.finished(&runs).await, Outcome::Cancelled);
    real.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_loaded_when_the_worker_died_is_found_and_goes_when_room_is_needed() {
    // The image comes whole, and dies unmarked.
    let (mut real, _proxy) =
        Real::start_behind(|call| if call.contains("/tag?") { Fate::Hangs } else { Fate::Passes }).await;
    let (image, other) = (host_image(&["sh"]).unwrap(), host_image(&["sh"]).unwrap());
    let (runtime, config) = (real.engine.runtime.clone(), image.config_digest);
    let order = real.order(1, &image, "true");
    real.core.assign(&order).await;
    real.until("the image", || async { runtime.image_exists(&config).await.unwrap().then_some(()) }).await;
    real.kill().await;
    assert_eq!(real.images().await, [], "it carries no mark: no bound would count it");
    real.core.seen().abandons.push(order.attempt);
    real.restart(|config| config.disk_floor_bytes = u64::MAX);
    // The attempt has its claim on it until the core's word of it has come.
    real.until_clean().await;
    assert_eq!(real.images().await, [config]);
    assert_eq!(real.outcome(&real.order(2, &other, "true")).await, Outcome::Succeeded);
    assert!(!runtime.image_exists(&config).await.unwrap());
    real.end().await;
}

/// Says which signal it got, and takes its end from SIGINT alone.
const TRAPS: &str = "trap 'echo term' TERM; trap 'echo int; exit 0' INT; echo up; while :; do sleep 0.1; done";

#[tokio::test(flavor = "multi_thread")]
async fn the_signal_that_an_image_names_asks_a_cancelled_job_to_end() {
    let real = Real::start(|_| ()).await;
    let mut image = host_image(&["sh", "sleep"]).unwrap();
    image.config = String::from_utf8(image.config.to_vec()).unwrap().replace("SIGTERM", "SIGINT").into();
    image.config_digest = Digest::of(&image.config);
    let order = real.order(1, &image, TRAPS);
    real.core.assign(&order).await;
    real.until_logged(&order, "up").await;
    // Without its own signal it would have to be killed, long after this test has given up.
    real.cancel(&order, Duration::from_secs(600)).await;
    assert_eq!(real.finished(&order).await, Outcome::Cancelled);
    assert_eq!(real.log(&order), "up\nint\n");
    real.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_whose_answer_is_an_error_but_that_happened_is_a_start() {
    let starts = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&starts);
    let (real, _proxy) = Real::start_behind(move |call| {
        let is_start = call.starts_with("POST ") && call.contains("/start");
        counted.fetch_add(is_start.into(), Ordering::SeqCst);
        if is_start { Fate::DoneButFails } else { Fate::Passes }
    })
    .await;
    let image = host_image(&["sh", "sleep"]).unwrap();
    let order = TaskOrder { at_most_once: true, ..real.order(1, &image, "echo once; sleep 1; exit 3") };
    assert_eq!(real.outcome(&order).await, Outcome::Failed { exit_code: 3 });
    assert_eq!((real.log(&order).as_str(), starts.load(Ordering::SeqCst)), ("once\n", 1));
    real.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_and_a_kill_that_the_engine_never_answers_are_tried_again_until_the_container_is_gone() {
    let signals = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&signals);
    let (real, _proxy) = Real::start_behind(move |call| {
        let Some((_, signal)) = call.split_once("/kill?signal=") else { return Fate::Passes };
        let mut seen = seen.lock().unwrap();
        seen.push(signal.to_owned());
        if seen.len() <= 2 { Fate::Hangs } else { Fate::Passes }
    })
    .await;
    let image = host_image(&["sh", "sleep"]).unwrap();
    let order = real.order(1, &image, "trap '' TERM; echo up; sleep 600");
    real.core.assign(&order).await;
    real.until_logged(&order, "up").await;
    real.cancel(&order, Duration::from_secs(1)).await;
    assert_eq!(real.finished(&order).await, Outcome::Cancelled);
    // Reported when it was gone, not before.
    let running = real.engine.runtime.list_ours(&real.engine.labels).await.unwrap();
    assert!(running.iter().all(|one| one.phase != ContainerPhase::Running), "{running:?}");
    assert_eq!(*signals.lock().unwrap(), ["SIGTERM", "SIGKILL", "SIGKILL"]);
    real.end().await;
}
