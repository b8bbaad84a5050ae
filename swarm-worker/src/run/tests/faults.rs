//! Faults of engine, core and worker in the middle of an attempt.

use swarm_protocol::link::Welcome;

use super::*;
use crate::spool::Spool;

fn gone() -> RuntimeError {
    RuntimeError::Engine { call: "any", message: "connection reset".into() }
}

fn with_files(job: u64) -> TaskOrder {
    TaskOrder { inputs: vec![testing::input("/in/a", b"data")], outputs: vec!["/out/r".into()], ..order(job) }
}

impl Bench {
    async fn with_files() -> Self {
        let bench = Self::start(|| Script::new().out("hello\n").write("/out/r", "42")).await;
        bench.core.seen().blobs.insert(Digest::of(b"data"), (&b"data"[..]).into());
        bench
    }

    pub(super) async fn until_called(&self, call: Call) {
        self.eventually("a call of this kind", || async { self.engine.count(call) > 0 }).await;
    }

    /// The attempt ends well after all, having run `starts` times, and leaves nothing.
    async fn ends_well(&self, order: &TaskOrder, starts: usize) {
        let report = self.core.finished(order.attempt).await;
        assert_eq!((report.outcome, report.log_cut_bytes), (Outcome::Succeeded, 0));
        assert_eq!(report.outputs[0].digest, Digest::of(b"42"));
        assert_eq!(self.core.seen().uploads[&Digest::of(b"42")], &b"42"[..]);
        assert_eq!(text(&self.core.seen().logs[&order.attempt]), "hello\n");
        assert_eq!(self.engine.count(Call::Start), starts);
        self.until_clean().await;
    }
}

#[tokio::test]
async fn an_output_the_engine_cut_short_is_lost_and_not_stored() {
    let bench = Bench::with_files().await;
    // The header and half of what it announces.
    bench.engine.cut_archives(513);
    let outcome = bench.outcome(&with_files(1)).await;
    assert!(matches!(&outcome, Outcome::Lost { reason: LossReason::Engine, .. }), "{outcome:?}");
    assert!(bench.core.seen().uploads.is_empty());
    bench.end().await;
}

#[tokio::test]
async fn bytes_that_change_on_their_way_are_fetched_again_and_cost_no_attempt() {
    let (config, layer): (&[u8], &[u8]) = (br#"{"config":{},"rootfs":{"diff_ids":[]}}"#, b"layer");
    let digest = Digest::of(layer);
    let layer_order = LayerOrder { digest, diff_id: digest, size_bytes: layer.len() as u64 };
    let archive = directories::archive(&["sub/", "sub/a"]);
    for (spoilt, what) in [config, layer, b"data", &archive].into_iter().flat_map(|what| [(2, what), (3, what)]) {
        let bench = Bench::with_files().await;
        for blob in [config, layer, &archive] {
            bench.core.seen().blobs.insert(Digest::of(blob), blob.to_vec().into());
        }
        bench.core.seen().spoils.insert(Digest::of(what), spoilt);
        let mut order = TaskOrder { image: testing::order(1, config).image, ..with_files(1) };
        order.image.layers = vec![layer_order.clone()];
        order.inputs.push(testing::input("/dir/", &archive));
        bench.core.assign(&order).await;
        let name = String::from_utf8_lossy(&what[..4]);
        if spoilt < 3 {
            bench.ends_well(&order, 1).await;
        } else {
            let outcome = bench.core.finished(order.attempt).await.outcome;
            let Outcome::Lost { reason: LossReason::Transfer, detail } = outcome else { panic!("{name}: {outcome:?}") };
            assert!(detail.contains("other bytes"), "{name}: {detail}");
            bench.until_clean().await;
        }
        assert_eq!(bench.core.seen().spoils[&Digest::of(what)], 0, "{name}");
        bench.end().await;
    }
}

#[tokio::test]
async fn outputs_wait_at_the_engine_until_the_spool_has_room() {
    for path in ["/out/r", "/out/*"] {
        let bench = Bench::with_files().await;
        let gate = CancellationToken::new();
        let held = gate.clone();
        bench.engine.program(move |_| Script::new().hold(held.clone()).write("/out/r", "42"));
        let order = TaskOrder { outputs: vec![path.into()], ..order(1) };
        bench.core.assign(&order).await;
        bench.started(order.attempt).await;
        // Root writes where it may not, but not into a directory that is none.
        let spool = bench.data.path().join("spool").join(order.attempt.to_string()).join("outputs");
        std::fs::remove_dir(&spool).unwrap();
        std::fs::write(&spool, b"").unwrap();
        gate.cancel();
        bench.until_called(Call::GetArchive).await;
        let early = timeout(Duration::from_secs(1), bench.core.finished(order.attempt)).await;
        assert!(early.is_err(), "{path}: {early:?}");
        let kept = ContainerRuntime::list_our_volumes(&bench.engine, &all()).await.unwrap();
        assert_eq!(kept.len(), 1, "{path}: what the job made lies there");
        std::fs::remove_file(&spool).unwrap();
        std::fs::create_dir(&spool).unwrap();
        let report = bench.core.finished(order.attempt).await;
        assert_eq!((report.outcome, report.outputs.len()), (Outcome::Succeeded, 1), "{path}");
        assert_eq!(bench.core.seen().uploads[&Digest::of(b"42")], &b"42"[..]);
        bench.until_clean().await;
        bench.end().await;
    }
}

#[tokio::test]
async fn a_search_for_outputs_ends_with_its_attempt() {
    let bench = Bench::with_files().await;
    bench.engine.stall_archives();
    let order = TaskOrder { outputs: vec!["/out/*".into()], ..order(1) };
    bench.core.assign(&order).await;
    bench.eventually("the search", async || bench.engine.open_archives() == 1).await;
    bench.core.tell(ToWorker::Cancel { attempt: order.attempt, grace_ms: 0 }).await;
    assert_eq!(bench.core.finished(order.attempt).await.outcome, Outcome::Cancelled);
    bench.eventually("the end of the search", async || bench.engine.open_archives() == 0).await;
    bench.end().await;
}

#[tokio::test]
async fn a_worker_killed_before_the_start_runs_the_job_once() {
    for call in [Call::CreateVolume, Call::Create, Call::PutArchive] {
        let mut bench = Bench::with_files().await;
        bench.engine.plan(FaultPlan::new().on(call, 1, Effect::Hang));
        let order = with_files(1);
        bench.core.assign(&order).await;
        bench.until_called(call).await;
        bench.kill().await;
        bench.restart();
        bench.ends_well(&order, 1).await;
        bench.end().await;
    }
}

#[tokio::test]
async fn a_worker_killed_while_an_image_loads_loads_it_again() {
    let mut bench = Bench::with_files().await;
    let config: &[u8] = br#"{"config":{},"rootfs":{"diff_ids":[]}}"#;
    bench.core.seen().blobs.insert(Digest::of(config), config.into());
    bench.engine.plan(FaultPlan::new().on(Call::LoadImage, 1, Effect::Hang));
    let order = TaskOrder { image: testing::order(1, config).image, ..with_files(1) };
    bench.core.assign(&order).await;
    bench.until_called(Call::LoadImage).await;
    bench.kill().await;
    bench.restart();
    bench.ends_well(&order, 1).await;
    assert_eq!(bench.engine.count(Call::LoadImage), 2);
    bench.end().await;
}

#[tokio::test]
async fn a_worker_killed_while_an_output_is_sent_sends_it_again() {
    let mut bench = Bench::with_files().await;
    bench.core.seen().uploads_ignored = 1;
    let order = with_files(1);
    bench.core.assign(&order).await;
    bench.core.until("an upload", |seen| (seen.uploads_begun > 0).then_some(())).await;
    bench.kill().await;
    bench.restart();
    bench.ends_well(&order, 1).await;
    bench.end().await;
}

#[tokio::test]
async fn a_worker_killed_with_a_report_that_is_not_stored_repeats_it() {
    let mut bench = Bench::with_files().await;
    bench.core.seen().stores_finishes = false;
    let order = with_files(1);
    bench.run(&order).await;
    bench.kill().await;
    bench.core.seen().finished.clear();
    bench.core.seen().stores_finishes = true;
    bench.restart();
    bench.ends_well(&order, 1).await;
    bench.end().await;
}

#[tokio::test]
async fn an_order_that_was_never_started_waits_for_the_cores_word_after_a_restart() {
    let mut bench = Bench::start(|| Script::new().forever()).await;
    for job in 1..=4 {
        bench.core.assign(&order(job)).await;
    }
    for job in 1..=4 {
        let attempt = order(job).attempt;
        bench.core.frame("it is held", |frame| *frame == ToCore::Accepted { attempt }).await;
    }
    bench.started(order(1).attempt).await;
    bench.started(order(2).attempt).await;
    bench.kill().await;
    // The fourth is given up meanwhile, and no word comes of the others yet.
    {
        let mut seen = bench.core.seen();
        (seen.abandons, seen.judges_reports) = (vec![order(4).attempt], false);
        (seen.answers_link, seen.answers_heartbeats) = (false, false);
        seen.frames.clear();
    }
    bench.engine.kill_all();
    bench.restart();
    let held = |frame: &ToCore| matches!(frame, ToCore::StateReport { attempts, .. } if attempts.len() == 4);
    bench.core.frame("a report of all four", held).await;
    bench.core.finished(order(1).attempt).await;
    bench.core.finished(order(2).attempt).await;
    assert_eq!(bench.engine.count(Call::Start), 2, "nothing starts unconfirmed, though slots are free");
    {
        let mut seen = bench.core.seen();
        (seen.judges_reports, seen.answers_link) = (true, true);
    }
    bench.core.cut();
    bench.started(order(3).attempt).await;
    let starts = |attempt| {
        let name = attempt_name(&bench, attempt);
        bench.engine.history().iter().filter(|record| record.call == Call::Start && record.subject == name).count()
    };
    assert_eq!((starts(order(3).attempt), starts(order(4).attempt)), (1, 0));
    bench.core.tell(ToWorker::Abandon { attempt: order(3).attempt }).await;
    bench.until_clean().await;
    bench.end().await;
}

fn attempt_name(bench: &Bench, attempt: AttemptId) -> String {
    format!("swarm-{}-{attempt}", &bench.core.swarm.to_string()[..8])
}

/// A container that may be on its way to start is gone before the core hears that nothing runs.
#[tokio::test]
async fn what_vanished_is_reported_when_it_can_run_no_more_and_its_log_is_marked() {
    let mut bench = Bench::start(Script::new).await;
    bench.core.seen().commits_starts = false;
    let order = TaskOrder { at_most_once: true, ..order(1) };
    bench.core.assign(&order).await;
    bench.core.frame("the question", |frame| matches!(frame, ToCore::MayStart { .. })).await;
    bench.kill().await;
    let slow = Effect::Delay(Duration::from_millis(500));
    bench.engine.plan(FaultPlan::new().on(Call::Remove, 1, Effect::Fail(gone())).on(Call::Remove, 2, slow));
    bench.restart();
    let report = bench.core.finished(order.attempt).await;
    assert!(bench.engine.list_ours(&all()).await.unwrap().is_empty(), "its container can still be started");
    assert!(matches!(report.outcome, Outcome::Lost { reason: LossReason::WorkerRestarted, .. }));
    assert_eq!(report.log_cut_bytes, 1, "what it may have written is missing");
    bench.until_clean().await;
    bench.end().await;
}

#[tokio::test]
async fn the_log_of_a_container_that_went_with_its_worker_is_marked_and_that_of_a_refused_start_is_not() {
    let mut bench = Bench::start(|| Script::new().out("hello\n").forever()).await;
    let order = order(1);
    bench.core.assign(&order).await;
    bench.core.until("the line", |seen| seen.logs.get(&order.attempt).map(drop)).await;
    bench.kill().await;
    for container in bench.engine.list_ours(&all()).await.unwrap() {
        bench.engine.remove(&container.id, true).await.unwrap();
    }
    bench.restart();
    let report = bench.core.finished(order.attempt).await;
    assert_eq!((report.log_cut_bytes, text(&bench.core.seen().logs[&order.attempt]).as_str()), (1, "hello\n"));
    assert!(String::from_utf8_lossy(&bench.core.seen().logs[&order.attempt]).ends_with(">=1"));
    bench.engine.program(|_| Script::refused("no such command"));
    assert_eq!(bench.run(&super::order(2)).await.log_cut_bytes, 0, "what never ran wrote nothing");
    bench.end().await;
}

/// The container is gone with its report, so what the disk has lost of the log cannot be had again.
#[tokio::test]
async fn a_report_whose_log_the_disk_has_lost_is_mended_and_the_log_marked() {
    let gate = CancellationToken::new();
    let held = gate.clone();
    let mut bench = Bench::start(move || Script::new().hold(held.clone()).out("one\n").out("two\n")).await;
    let order = order(1);
    bench.core.assign(&order).await;
    bench.until_called(Call::Start).await;
    bench.core.seen().welcome = |_| Welcome::Refused { reason: "away".into(), retry: true };
    bench.core.cut();
    gate.cancel();
    let entry = Spool::open(bench.data.path()).unwrap().entry(order.attempt);
    let report = entry.log().with_file_name("report");
    bench.eventually("the spooled report", async || report.exists()).await;
    bench.kill().await;
    let log = std::fs::File::options().write(true).open(entry.log()).unwrap();
    log.set_len(log.metadata().unwrap().len() - 1).unwrap();
    bench.core.seen().welcome = |welcome| welcome;
    bench.restart();
    let report = bench.core.finished(order.attempt).await;
    assert_eq!((report.outcome, report.log_cut_bytes), (Outcome::Succeeded, 1));
    assert_eq!(text(&bench.core.seen().logs[&order.attempt]), "one\n");
    bench.until_clean().await;
    bench.end().await;
}

#[tokio::test]
async fn a_spool_that_refuses_a_log_for_a_while_costs_no_attempt_and_no_line() {
    let gate = CancellationToken::new();
    let bench = Bench::start(Script::new).await;
    let order = order(1);
    let log = Spool::open(bench.data.path()).unwrap().entry(order.attempt).log();
    let (held, place) = (gate.clone(), log.clone());
    bench.engine.program(move |_| {
        // What lies here cannot be opened as a file.
        std::fs::create_dir(&place).unwrap();
        Script::new().out("hello\n").hold(held.clone())
    });
    bench.core.assign(&order).await;
    // Taken half a second after the log was begun.
    bench.until_called(Call::Reading).await;
    gate.cancel();
    bench.eventually("its end", async || bench.engine.running() == 0).await;
    std::fs::remove_dir(&log).unwrap();
    let report = bench.core.finished(order.attempt).await;
    assert_eq!((report.outcome, report.log_cut_bytes), (Outcome::Succeeded, 0));
    assert_eq!(text(&bench.core.seen().logs[&order.attempt]), "hello\n");
    bench.end().await;
}

#[tokio::test]
async fn a_cancelled_job_does_not_wait_for_a_spool_that_refuses_its_log() {
    let bench = Bench::start(Script::new).await;
    let order = order(1);
    let log = Spool::open(bench.data.path()).unwrap().entry(order.attempt).log();
    let place = log.clone();
    bench.engine.program(move |_| {
        std::fs::create_dir(&place).unwrap();
        Script::new().out("hello\n").forever()
    });
    bench.core.assign(&order).await;
    bench.started(order.attempt).await;
    bench.core.tell(ToWorker::Cancel { attempt: order.attempt, grace_ms: 100 }).await;
    let report = bench.core.finished(order.attempt).await;
    assert_eq!((report.outcome, report.log_cut_bytes), (Outcome::Cancelled, 1));
    assert_eq!(bench.engine.running(), 0);
    bench.end().await;
}

/// The container's files may be what fills the disk that the report has to go to.
#[tokio::test]
async fn a_report_that_cannot_be_spooled_does_not_keep_the_container_on_the_disk() {
    let bench = Bench::start(Script::new).await;
    let order = order(1);
    let dir = bench.data.path().join("spool").join(order.attempt.to_string());
    let place = dir.join("report");
    bench.engine.program(move |_| {
        // Over a directory no file can be put.
        std::fs::create_dir(&place).unwrap();
        Script::new().out("hello\n").exit(3)
    });
    bench.core.assign(&order).await;
    bench.until_called(Call::Start).await;
    bench.eventually("nothing is left on the engine", async || bench.engine.is_clean()).await;
    assert!(bench.core.seen().finished.is_empty(), "nothing is promised that is not on disk");
    std::fs::remove_dir(dir.join("report")).unwrap();
    let report = bench.core.finished(order.attempt).await;
    assert_eq!((report.outcome, report.log_cut_bytes), (Outcome::Failed { exit_code: 3 }, 0));
    bench.end().await;
}

#[tokio::test]
async fn a_container_that_somebody_kills_when_its_lease_ends_is_no_failure_of_the_job() {
    let bench = Bench::start(|| Script::new().forever()).await;
    let order = order(1);
    bench.core.assign(&order).await;
    bench.started(order.attempt).await;
    (bench.core.seen().answers_link, bench.core.seen().answers_heartbeats) = (false, false);
    bench.clock.forward(Duration::from_secs(28));
    // As the watchdog does, before this worker has seen that the lease ends, and without a note.
    bench.engine.kill_all();
    let report = bench.core.finished(order.attempt).await;
    assert!(matches!(report.outcome, Outcome::Lost { reason: LossReason::LeaseExpired, .. }), "{:?}", report.outcome);
    bench.end().await;
}

#[tokio::test]
async fn one_leftover_that_is_stuck_keeps_no_other_from_the_sweep() {
    let mut bench = Bench::start(Script::new).await;
    bench.outcome(&order(1)).await;
    bench.until_clean().await;
    bench.kill().await;
    let mut labels = all();
    labels.insert("io.swarm-sync.swarm".into(), bench.core.swarm.to_string());
    for n in 0..3 {
        let name = format!("leftover-{n}");
        let spec = crate::runtime::ContainerSpec::new(name.clone(), Digest::of(CONFIG), labels.clone());
        bench.engine.create(&spec).await.unwrap();
        bench.engine.create_volume(&name, &labels).await.unwrap();
        std::fs::write(bench.data.path().join("watchdog/containers").join(&name), "{}").unwrap();
    }
    let plan = FaultPlan::new().on(Call::Remove, 1, Effect::Fail(gone()));
    bench.engine.plan(plan.on(Call::RemoveVolume, 1, Effect::Fail(gone())));
    bench.restart();
    let notes = bench.data.path().join("watchdog/containers");
    let left = || async {
        let containers = bench.engine.list_ours(&all()).await.unwrap().len();
        let volumes = bench.engine.list_our_volumes(&all()).await.unwrap().len();
        (containers, volumes, std::fs::read_dir(&notes).unwrap().count()) == (1, 1, 1)
    };
    bench.eventually("all is swept but what is stuck", left).await;
    bench.end().await;
}
