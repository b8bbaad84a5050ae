//! The fake keeps the promises the real engine keeps, as far as the worker leans on them.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use swarm_protocol::ids::Digest;
use swarm_protocol::logs::LogStream;
use tokio::time::{Instant, timeout};

use super::{Call, Effect, FakeRuntime, FaultPlan, Script};
use crate::runtime::archive::{ArchiveLayer, dir_entry_tar, docker_archive, once, single_file_tar, untar_single_file};
use crate::runtime::{ContainerPhase, ContainerRuntime, ContainerSpec, Labels, RuntimeError, VolumeMount};

fn labels() -> Labels {
    Labels::from([("swarm".to_owned(), "test".to_owned())])
}

fn engine_with(script: Script) -> (FakeRuntime, ContainerSpec) {
    let engine = FakeRuntime::new();
    let image = Digest::of(b"image");
    engine.add_image(image, Vec::new());
    engine.program(move |_| script.clone());
    (engine, ContainerSpec::new("job-1", image, labels()))
}

fn broken() -> RuntimeError {
    RuntimeError::Engine { call: "start", message: "reset".to_owned() }
}

#[tokio::test(start_paused = true)]
async fn a_script_plays_on_the_paused_clock() {
    let script = Script::new().out("a").sleep(Duration::from_secs(3600)).err("b").exit(3);
    let (engine, spec) = engine_with(script);
    let id = engine.create(&spec).await.expect("created");
    assert!(matches!(engine.wait(&id).await, Err(RuntimeError::Conflict { .. })));
    let begun = Instant::now();
    engine.start(&id).await.expect("started");
    let logs: Vec<_> = engine.logs(&id).await.expect("logs").map(|item| item.expect("an item")).collect().await;
    let exit = engine.wait(&id).await.expect("ended");
    assert_eq!(begun.elapsed().as_secs(), 3600);
    assert_eq!((exit.exit_code, exit.oom_killed), (3, false));
    assert_eq!(exit.finished_at_us.expect("end") / 1_000_000 - exit.started_at_us.expect("start") / 1_000_000, 3600);
    let seen: Vec<_> = logs.iter().map(|item| (item.stream, &item.bytes[..])).collect();
    assert_eq!(seen, [(LogStream::Stdout, &b"a"[..]), (LogStream::Stderr, b"b")]);
}

#[tokio::test(start_paused = true)]
async fn files_go_in_and_out_of_volumes() {
    let (engine, mut spec) = engine_with(Script::new());
    engine.program(|view| Script::new().write("/out/copy", view.files["/in/data"].clone()));
    for name in ["v-in", "v-out"] {
        engine.create_volume(name, &labels()).await.expect("made");
        let path = name.replace("v-", "/");
        spec.volumes.push(VolumeMount { volume: name.to_owned(), path });
    }
    let id = engine.create(&spec).await.expect("created");
    engine.put_archive(&id, "/in", dir_entry_tar(7, 8, 0o700)).await.expect("owner");
    assert_eq!(engine.volume_owner("v-in"), Some((7, 8, 0o700)));
    let tar = single_file_tar("data", 3, 0o600, 7, 8, once(Bytes::from_static(b"abc")));
    engine.put_archive(&id, "/in", tar).await.expect("put");
    engine.start(&id).await.expect("started");
    engine.wait(&id).await.expect("ended");
    let (entry, mut body) =
        untar_single_file(engine.get_archive(&id, "/out/copy").await.expect("got")).await.expect("ok");
    assert_eq!((entry.path.as_str(), entry.size), ("copy", 3));
    assert_eq!(body.next().await.expect("bytes").expect("bytes"), Bytes::from_static(b"abc"));
    assert_eq!(engine.read_small_file(&id, "/in/data", 10).await, Ok(Some(b"abc".to_vec())));
    assert!(engine.get_archive(&id, "/out/absent").await.err().expect("absent").is_not_found());
    assert!(matches!(engine.remove_volume("v-out").await, Err(RuntimeError::Conflict { .. })));
    engine.remove(&id, false).await.expect("removed");
    engine.remove_volume("v-out").await.expect("free");
    assert_eq!(engine.list_our_volumes(&labels()).await.expect("listed").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn signals_end_what_heeds_them() {
    let endless = || Script::new().forever();
    for (script, code) in
        [(endless(), 143), (endless().ignoring_signals(), 137), (endless().heeding_only("SIGTERM"), 143)]
    {
        let (engine, spec) = engine_with(script);
        let id = engine.create(&spec).await.expect("created");
        engine.start(&id).await.expect("started");
        assert!(matches!(engine.remove(&id, false).await, Err(RuntimeError::Conflict { .. })));
        for signal in ["SIGTERM", "SIGKILL"] {
            let _ = engine.kill(&id, signal).await;
        }
        assert_eq!(engine.wait(&id).await.expect("ended").exit_code, code);
        assert!(matches!(engine.kill(&id, "SIGKILL").await, Err(RuntimeError::Conflict { .. })));
    }
}

#[tokio::test(start_paused = true)]
async fn faults_strike_the_call_they_are_planned_for() {
    let (engine, spec) = engine_with(Script::new().forever());
    let plan = FaultPlan::new()
        .on(Call::Create, 1, Effect::Fail(broken()))
        .on(Call::Start, 1, Effect::DoneButFail(broken()))
        .on(Call::Inspect, 1, Effect::Hang)
        .on(Call::Ping, 2, Effect::Delay(Duration::from_secs(5)));
    engine.plan(plan);
    assert_eq!(engine.create(&spec).await, Err(broken()));
    let id = engine.create(&spec).await.expect("the second goes through");
    assert_eq!(engine.start(&id).await, Err(broken()));
    timeout(Duration::from_secs(60), engine.inspect(&id)).await.expect_err("it hangs");
    assert_eq!(
        engine.inspect(&id).await.expect("inspected").phase,
        ContainerPhase::Running,
        "it was done all the same"
    );
    let begun = Instant::now();
    engine.ping().await.expect("at once");
    engine.ping().await.expect("later");
    assert_eq!(begun.elapsed().as_secs(), 5);
    assert_eq!(engine.count(Call::Create), 2);
    let history = engine.history();
    assert_eq!((history[2].call, history[2].subject.as_str()), (Call::Start, "job-1"));
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_goes_down_fails_what_is_under_way() {
    let (engine, spec) = engine_with(Script::new().sleep(Duration::from_secs(10)));
    let id = engine.create(&spec).await.expect("created");
    engine.start(&id).await.expect("started");
    let waiting = tokio::spawn({
        let (engine, id) = (engine.clone(), id.clone());
        async move { engine.wait(&id).await }
    });
    timeout(Duration::from_secs(5), async {
        while engine.count(Call::Wait) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("it waits");
    engine.engine_down();
    assert!(waiting.await.expect("joined").expect_err("down").is_infrastructure());
    assert!(engine.ping().await.expect_err("down").is_infrastructure());
    // On the test's own clock: what the container does ends while the engine is down.
    timeout(Duration::from_secs(60), async {
        while engine.running() > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await
    .expect("it ends");
    engine.engine_up();
    assert_eq!(engine.wait(&id).await.expect("the container lived on").exit_code, 0);
}

#[tokio::test(start_paused = true)]
async fn images_are_checked_as_the_engine_checks_them() {
    let engine = FakeRuntime::new();
    let layer = Bytes::from_static(b"not really a tar");
    let diff_id = Digest::of(&layer);
    let config = |note: &str| {
        let config = serde_json::json!({ "note": note, "rootfs": { "diff_ids": [diff_id.to_string()] } });
        Bytes::from(config.to_string())
    };
    let archive = |config: &Bytes, body: Option<Bytes>| {
        let body = body.map(|bytes| (bytes.len() as u64, once(bytes)));
        docker_archive(config.clone(), vec![ArchiveLayer { diff_id, body }])
    };
    let (one, two) = (config("one"), config("two"));
    let refused = |answer| matches!(answer, Err(RuntimeError::ImageInvalid { .. }));
    assert!(refused(engine.load_image(archive(&one, None), &Digest::of(&one)).await), "a layer is missing");
    let other = Some(Bytes::from_static(b"other"));
    assert!(refused(engine.load_image(archive(&one, other), &Digest::of(&one)).await), "a layer is wrong");
    assert!(refused(engine.load_image(archive(&one, Some(layer.clone())), &Digest::of(&two)).await), "another image");
    engine.load_image(archive(&one, Some(layer)), &Digest::of(&one)).await.expect("loads");
    assert_eq!(engine.known_layers(&[diff_id]).await, Ok(1));
    engine.load_image(archive(&two, None), &Digest::of(&two)).await.expect("the layer is known now");
    engine.remove_image(&Digest::of(&one)).await.expect("removed");
    let left: Vec<Digest> = engine.our_images().await.expect("listed").iter().map(|image| image.config).collect();
    assert_eq!(left, [Digest::of(&two)]);
}
