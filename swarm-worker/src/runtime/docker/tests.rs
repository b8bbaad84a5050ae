//! Against the real engine; a machine without one fails these tests.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use swarm_protocol::ids::Digest;
use swarm_protocol::logs::LogStream;

use crate::runtime::archive::{ArchiveLayer, dir_entry_tar, docker_archive, once, single_file_tar, untar_single_file};
use crate::runtime::testimage::{HostImage, TestEngine};
use crate::runtime::{
    ByteStream, ContainerId, ContainerPhase, ContainerRuntime, ContainerSpec, ExitInfo, Network, RuntimeError,
    TmpfsMount, VolumeMount,
};

/// Far beyond what any single step takes, so that a hang fails the test instead of stopping it.
const PATIENCE: Duration = Duration::from_secs(120);

const PROGRAMS: [&str; 8] = ["sh", "cat", "sleep", "head", "tail", "id", "stat", "ls"];

struct Bench {
    engine: TestEngine,
    image: HostImage,
}

impl Bench {
    async fn new() -> Self {
        let engine = TestEngine::connect().await;
        let image = engine.load(&PROGRAMS).await;
        Self { engine, image }
    }

    fn runtime(&self) -> &dyn ContainerRuntime {
        &*self.engine.runtime
    }

    fn spec(&self, script: &str) -> ContainerSpec {
        let name = format!("{}-{}", self.engine.prefix, uuid::Uuid::new_v4().simple());
        let mut spec = ContainerSpec::new(name, self.image.config_digest, self.engine.labels.clone());
        spec.entrypoint = Some(vec!["/bin/sh".into(), "-c".into(), script.into()]);
        spec
    }

    async fn run(&self, spec: &ContainerSpec) -> Ran {
        let id = self.runtime().create(spec).await.expect("created");
        self.runtime().start(&id).await.expect("started");
        self.finish(id).await
    }

    async fn finish(&self, id: ContainerId) -> Ran {
        let exit = within(self.runtime().wait(&id)).await.expect("waited");
        let (stdout, stderr, stamps) = self.logs(&id).await;
        Ran { id, exit, stdout, stderr, stamps }
    }

    async fn logs(&self, id: &ContainerId) -> (Vec<u8>, Vec<u8>, Vec<u64>) {
        let mut items = self.runtime().logs(id).await.expect("logs");
        let (mut out, mut err, mut stamps) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(item) = within(items.next()).await {
            let item = item.expect("a log item");
            match item.stream {
                LogStream::Stdout => out.extend_from_slice(&item.bytes),
                _ => err.extend_from_slice(&item.bytes),
            }
            stamps.push(item.at_us);
        }
        (out, err, stamps)
    }
}

struct Ran {
    id: ContainerId,
    exit: ExitInfo,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    stamps: Vec<u64>,
}

impl Ran {
    fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("done in time")
}

async fn collect(mut stream: ByteStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        all.extend_from_slice(&chunk.expect("a chunk"));
    }
    all
}

#[tokio::test]
async fn the_engine_tells_its_facts() {
    let engine = TestEngine::connect().await;
    engine.runtime.ping().await.expect("it answers");
    let facts = engine.runtime.facts().await.expect("facts");
    assert!(facts.cpus >= 1 && facts.memory_bytes > 1 << 28, "{facts:?}");
    assert_eq!(facts.os, "linux");
    assert!(facts.api_version.starts_with("1.") && !facts.engine_version.is_empty() && !facts.arch.is_empty());
    assert!(!facts.storage_driver.is_empty());
    assert_eq!(facts.sees_volumes, std::fs::read_dir("/var/lib/docker/volumes").is_ok());
}

/// The operator may offer more cores than there are; the job that is placed there shall not pay for it.
#[tokio::test]
async fn more_cores_than_there_are_are_all_of_them() {
    let bench = Bench::new().await;
    let facts = bench.runtime().facts().await.expect("facts");
    let spec = ContainerSpec { cpu_millis: u64::from(facts.cpus) * 1000 + 1000, ..bench.spec("echo ran") };
    assert_eq!(bench.run(&spec).await.out(), "ran\n");
}

#[tokio::test]
async fn images_are_known_by_config_digest_and_kept_by_our_tag() {
    let bench = Bench::new().await;
    let (runtime, image) = (bench.runtime(), &bench.image);
    assert!(runtime.image_exists(&image.config_digest).await.expect("asked"));
    assert!(!runtime.image_exists(&Digest::of(b"nobody has this")).await.expect("asked"));
    let listed = runtime.our_images().await.expect("listed");
    assert_eq!(listed.iter().map(|image| image.config).collect::<Vec<_>>(), [image.config_digest]);
    assert!(listed[0].bytes > 0, "{listed:?}");

    let other = Digest::of(b"other");
    assert_eq!(runtime.known_layers(&[image.diff_id, other]).await.expect("asked"), 1);
    assert_eq!(runtime.known_layers(&[other, image.diff_id]).await.expect("asked"), 0, "only a leading run counts");

    runtime.remove_image(&image.config_digest).await.expect("removed");
    assert!(!runtime.image_exists(&image.config_digest).await.expect("asked"));
    assert_eq!(runtime.known_layers(&[image.diff_id]).await.expect("asked"), 0);
    assert!(runtime.remove_image(&image.config_digest).await.expect_err("gone").is_not_found());
    assert!(runtime.tag_image(&image.config_digest).await.expect_err("gone").is_not_found());
}

#[tokio::test]
async fn layers_the_engine_has_may_be_left_out() {
    let bench = Bench::new().await;
    let (runtime, image) = (bench.runtime(), &bench.image);
    // The same layer under another config, sent without its bytes.
    let config = String::from_utf8(image.config.to_vec()).expect("JSON").replace("image command", "other command");
    let config = Bytes::from(config);
    let digest = Digest::of(&config);
    let archive = |diff_id| docker_archive(config.clone(), vec![ArchiveLayer { diff_id, body: None }]);
    runtime.load_image(archive(image.diff_id), &digest).await.expect("loads without the layer's bytes");
    let mut spec = bench.spec("");
    (spec.image, spec.entrypoint) = (digest, None);
    assert_eq!(bench.run(&spec).await.out(), "other command\n", "the image's own command runs");
}

#[tokio::test]
async fn a_damaged_or_different_image_is_refused_and_not_kept() {
    let engine = TestEngine::connect().await;
    let image = crate::runtime::testimage::host_image(&["sh"]).expect("packed");
    let runtime: &dyn ContainerRuntime = &*engine.runtime;

    let wrong = Digest::of(b"something else");
    let error = runtime.load_image(image.archive(), &wrong).await.expect_err("another image");
    assert!(matches!(&error, RuntimeError::ImageInvalid { expect, .. } if *expect == wrong), "{error}");
    assert!(!runtime.image_exists(&image.config_digest).await.expect("asked"), "the refused image is gone again");

    let layer = |body| vec![ArchiveLayer { diff_id: image.diff_id, body }];
    let absent = docker_archive(image.config.clone(), layer(None));
    let error = runtime.load_image(absent, &image.config_digest).await.expect_err("a layer is missing");
    assert!(matches!(error, RuntimeError::ImageInvalid { .. }), "{error}");

    let mut bytes = collect(image.layer_stream()).await;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let flipped = docker_archive(image.config.clone(), layer(Some((image.layer_bytes, once(bytes.into())))));
    let error = runtime.load_image(flipped, &image.config_digest).await.expect_err("a flipped bit");
    assert!(matches!(error, RuntimeError::ImageInvalid { .. }), "{error}");

    let error = runtime.load_image(once(Bytes::from_static(&[7; 2048])), &wrong).await.expect_err("noise");
    assert!(matches!(error, RuntimeError::ImageInvalid { .. }), "{error}");
    assert!(runtime.our_images().await.expect("listed").is_empty());
}

#[tokio::test]
async fn output_arrives_whole_on_both_streams() {
    let bench = Bench::new().await;
    let before = chrono::Utc::now().timestamp_micros() as u64;
    // A line of 100 KiB, bytes that are no UTF-8, and an end without newline.
    let script =
        r"head -c 102400 /dev/zero; echo; printf 'a\377\000b\n'; printf 'no newline'; printf 'err\376' >&2; exit 3";
    let ran = bench.run(&bench.spec(script)).await;
    assert_eq!(ran.exit.exit_code, 3);
    assert!(!ran.exit.oom_killed && ran.exit.error.is_none());
    let mut expected = vec![0; 102_400];
    expected.extend_from_slice(b"\na\xff\0b\nno newline");
    let differs = ran.stdout.iter().zip(&expected).position(|(got, want)| got != want);
    assert_eq!((ran.stdout.len(), differs), (expected.len(), None), "{:?}", &ran.stdout[ran.stdout.len() - 30..]);
    assert!(ran.stdout == expected, "every byte as written");
    assert_eq!(ran.stderr, b"err\xfe");
    let (started, finished) = (ran.exit.started_at_us.expect("started"), ran.exit.finished_at_us.expect("finished"));
    assert!(before <= started && started <= finished, "{before} {started} {finished}");
    assert!(ran.stamps.iter().all(|at| (before..=finished + 5_000_000).contains(at)), "{:?}", ran.stamps);
    // Asked again, the same bytes come again.
    assert!(bench.logs(&ran.id).await.0 == expected);
}

#[tokio::test]
async fn logs_are_followed_while_the_container_runs() {
    let bench = Bench::new().await;
    let id = bench.runtime().create(&bench.spec("echo early; sleep 60")).await.expect("created");
    bench.runtime().start(&id).await.expect("started");
    let mut items = bench.runtime().logs(&id).await.expect("logs");
    let first = within(items.next()).await.expect("one item").expect("readable");
    assert_eq!((first.stream, &first.bytes[..]), (LogStream::Stdout, &b"early\n"[..]));
    assert_eq!(bench.runtime().inspect(&id).await.expect("inspected").phase, ContainerPhase::Running);
    bench.runtime().kill(&id, "SIGKILL").await.expect("killed");
    assert!(within(items.next()).await.is_none(), "the stream ends with the container");
    assert_eq!(within(bench.runtime().wait(&id)).await.expect("waited").exit_code, 137);
    let error = bench.runtime().kill(&id, "SIGKILL").await.expect_err("it is dead already");
    assert!(matches!(error, RuntimeError::Conflict { .. }), "{error}");
}

#[tokio::test]
async fn the_sandbox_is_tight() {
    let bench = Bench::new().await;
    let mut spec = bench.spec("id -u; cat /proc/self/status | while read k v; do case $k in Cap*|NoNewPrivs:|Seccomp:) echo $k $v;; esac; done; ls /sys/class/net; echo x > /x; echo $FROM_IMAGE $OURS; echo s > /scratch/s && cat /scratch/s");
    spec.user = Some("nobody".into());
    spec.read_only_root = true;
    spec.env = vec![("OURS".into(), "a b=c".into())];
    spec.tmpfs = vec![TmpfsMount { path: "/scratch".into(), bytes: 1 << 20 }];
    let ran = bench.run(&spec).await;
    let out = ran.out();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(ran.exit.exit_code, 0, "{out} {}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(lines[0], "65534");
    for expected in ["CapEff: 0000000000000000", "CapBnd: 0000000000000000", "NoNewPrivs: 1", "Seccomp: 2"] {
        assert!(lines.contains(&expected), "{expected} in {out}");
    }
    assert!(lines.contains(&"lo") && !out.contains("eth"), "{out}");
    assert!(String::from_utf8_lossy(&ran.stderr).contains("/x"), "the root filesystem refuses writes");
    assert!(lines.contains(&"yes a b=c"), "{out}");
    assert_eq!(lines.last(), Some(&"s"), "{out}");
}

#[tokio::test]
async fn too_much_memory_is_told_apart() {
    let bench = Bench::new().await;
    let mut spec = bench.spec("tail /dev/zero");
    spec.memory_bytes = 16 << 20;
    let ran = bench.run(&spec).await;
    assert!(ran.exit.oom_killed, "{:?}", ran.exit);
    assert_eq!(ran.exit.exit_code, 137);
}

#[tokio::test]
async fn the_jobs_own_mistakes_are_refused_at_start() {
    let bench = Bench::new().await;
    let missing = ContainerSpec { entrypoint: Some(vec!["/bin/nope".into()]), ..bench.spec("") };
    let not_in_path = ContainerSpec { entrypoint: Some(vec!["nope".into()]), ..bench.spec("") };
    let not_executable = ContainerSpec { entrypoint: Some(vec!["/etc/passwd".into()]), ..bench.spec("") };
    let directory = ContainerSpec { entrypoint: Some(vec!["/etc".into()]), ..bench.spec("") };
    let ghost = ContainerSpec { user: Some("ghost".into()), ..bench.spec("") };
    let ghost_group = ContainerSpec { user: Some("0:ghosts".into()), ..bench.spec("") };
    for spec in [missing, not_in_path, not_executable, directory, ghost, ghost_group] {
        let id = bench.runtime().create(&spec).await.expect("created");
        let error = bench.runtime().start(&id).await.expect_err("cannot start");
        assert!(matches!(error, RuntimeError::StartRefused { .. }), "{:?} {:?}: {error}", spec.entrypoint, spec.user);
        assert_eq!(bench.runtime().inspect(&id).await.expect("inspected").phase, ContainerPhase::Created);
        let error = within(bench.runtime().wait(&id)).await.expect_err("there is no end to wait for");
        assert!(matches!(error, RuntimeError::Conflict { .. }), "{error}");
    }
    let workdir = ContainerSpec { workdir: Some("/etc/passwd".into()), ..bench.spec("") };
    let error = bench.runtime().create(&workdir).await.expect_err("the engine makes the directory at once");
    assert!(matches!(error, RuntimeError::StartRefused { .. }), "{error}");
}

#[tokio::test]
async fn files_go_in_and_out_of_volumes() {
    let bench = Bench::new().await;
    let (runtime, prefix) = (bench.runtime(), &bench.engine.prefix);
    let volumes = [("in", "/job/in"), ("out", "/job/out")];
    let mut spec = bench
        .spec("set -e; cat /job/in/data > /job/out/copy; stat -c '%u:%g %a' /job/out /job/in/data; ls -a /job/out");
    spec.user = Some("65534:65534".into());
    spec.read_only_root = true;
    for (name, path) in volumes {
        let volume = format!("{prefix}-{name}");
        runtime.create_volume(&volume, &bench.engine.labels).await.expect("made");
        spec.volumes.push(VolumeMount { volume, path: path.into() });
    }
    let id = runtime.create(&spec).await.expect("created");
    for (_, path) in volumes {
        runtime.put_archive(&id, path, dir_entry_tar(65534, 65534, 0o750)).await.expect("owner set");
    }
    let body: Vec<u8> = (0..300_000u32).map(|n| (n * 7 % 251) as u8).collect();
    let chunks: Vec<_> = body.chunks(10_000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    let tar = single_file_tar("data", body.len() as u64, 0o640, 65534, 65534, stream::iter(chunks).boxed());
    runtime.put_archive(&id, "/job/in", tar).await.expect("put before the start");

    runtime.start(&id).await.expect("started");
    let ran = bench.finish(id).await;
    assert_eq!(ran.exit.exit_code, 0, "{} {}", ran.out(), String::from_utf8_lossy(&ran.stderr));
    assert_eq!(ran.out(), "65534:65534 750\n65534:65534 640\n.\n..\ncopy\n");

    let tar = runtime.get_archive(&ran.id, "/job/out/copy").await.expect("fetched after the end");
    let (entry, out) = untar_single_file(tar).await.expect("a file");
    assert_eq!((entry.path.as_str(), entry.size, entry.uid), ("copy", body.len() as u64, 65534));
    assert!(collect(out).await == body, "the bytes come back as they went in");
    let error = runtime.get_archive(&ran.id, "/job/out/absent").await.err().expect("no such file");
    assert!(error.is_not_found(), "{error}");
    let error = runtime.put_archive(&ran.id, "/absent", dir_entry_tar(0, 0, 0o755)).await.expect_err("no such place");
    assert!(error.is_not_found(), "{error}");

    let volume = format!("{prefix}-in");
    let error = runtime.remove_volume(&volume).await.expect_err("a container still has it");
    assert!(matches!(error, RuntimeError::Conflict { .. }), "{error}");
    runtime.remove(&ran.id, false).await.expect("removed");
    runtime.remove_volume(&volume).await.expect("free now");
    let left = runtime.list_our_volumes(&bench.engine.labels).await.expect("listed");
    assert_eq!(left.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), [format!("{prefix}-out")]);
}

#[tokio::test]
async fn small_files_are_read_within_bounds() {
    let bench = Bench::new().await;
    let id = bench.runtime().create(&bench.spec("")).await.expect("created");
    let passwd = bench.runtime().read_small_file(&id, "/etc/passwd", 4096).await.expect("read").expect("there");
    assert!(String::from_utf8_lossy(&passwd).contains("nobody:x:65534"), "{passwd:?}");
    assert_eq!(bench.runtime().read_small_file(&id, "/etc/shadow", 4096).await, Ok(None));
    for (path, words) in [("/etc/passwd", "at most 10"), ("/etc", "directory")] {
        let error = bench.runtime().read_small_file(&id, path, 10).await.expect_err(path);
        assert!(matches!(&error, RuntimeError::BadFile { message, .. } if message.contains(words)), "{error}");
    }
}

#[tokio::test]
async fn only_what_carries_our_labels_is_listed() {
    let bench = Bench::new().await;
    let runtime = bench.runtime();
    let mut spec = bench.spec("exit 4");
    spec.labels.insert("attempt".into(), "j1.0.1".into());
    let id = runtime.create(&spec).await.expect("created");
    let other = runtime.create(&bench.spec("")).await.expect("created");
    let error = runtime.create(&spec).await.expect_err("the name is taken");
    assert!(matches!(error, RuntimeError::Conflict { .. }), "{error}");

    let listed = runtime.list_ours(&spec.labels).await.expect("listed");
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0].id, &listed[0].name, &listed[0].labels), (&id, &spec.name, &spec.labels));
    assert_eq!(listed[0].phase, ContainerPhase::Created);
    let created = runtime.inspect(&id).await.expect("inspected");
    assert_eq!(created.stop_signal.as_deref(), Some("SIGTERM"), "as the image says");
    assert_eq!((created.phase, created.exit_code, created.started_at_us), (ContainerPhase::Created, None, None));
    let mut both: Vec<_> = runtime.list_ours(&bench.engine.labels).await.expect("listed");
    both.sort_by_key(|container| container.id != id);
    assert_eq!(both.iter().map(|container| &container.id).collect::<Vec<_>>(), [&id, &other]);
    assert!(matches!(runtime.list_ours(&Default::default()).await, Err(RuntimeError::Invalid { .. })));

    runtime.start(&id).await.expect("started");
    within(runtime.wait(&id)).await.expect("waited");
    assert_eq!(runtime.list_ours(&spec.labels).await.expect("listed")[0].phase, ContainerPhase::Exited);
    let ended = runtime.inspect(&id).await.expect("inspected");
    assert_eq!((ended.phase, ended.exit_code), (ContainerPhase::Exited, Some(4)));
    assert!(ended.started_at_us <= ended.finished_at_us && ended.finished_at_us.is_some());

    runtime.remove(&id, false).await.expect("removed");
    assert!(runtime.inspect(&id).await.expect_err("gone").is_not_found());
    assert!(runtime.remove(&id, true).await.expect_err("gone").is_not_found());
    assert!(runtime.logs(&id).await.err().expect("gone").is_not_found());
    assert!(runtime.start(&id).await.expect_err("gone").is_not_found());
}

#[tokio::test]
async fn volumes_of_others_are_not_taken_for_ours() {
    let engine = TestEngine::connect().await;
    let runtime: &dyn ContainerRuntime = &*engine.runtime;
    let name = format!("{}-v", engine.prefix);
    runtime.create_volume(&name, &engine.labels).await.expect("made");
    let mut others = engine.labels.clone();
    others.insert("more".into(), "1".into());
    let error = runtime.create_volume(&name, &others).await.expect_err("it exists with other labels");
    assert!(matches!(error, RuntimeError::Conflict { .. }), "{error}");
    assert!(runtime.remove_volume("no-such-volume-here").await.expect_err("absent").is_not_found());
}

#[tokio::test]
async fn an_absent_engine_is_an_infrastructure_error() {
    let settings = super::DockerSettings {
        host: Some("unix:///nonexistent/docker.sock".into()),
        repository: "swarmtest".into(),
        deadlines: super::Deadlines::default(),
    };
    let error = super::DockerRuntime::connect(settings.clone()).await.err().expect("nobody there");
    assert!(error.is_infrastructure(), "{error}");
    let settings = super::DockerSettings { repository: "Not A Name".into(), ..settings };
    let error = super::DockerRuntime::connect(settings).await.err().expect("a bad name");
    assert!(matches!(error, RuntimeError::Invalid { field: "repository", .. }), "{error}");
}

#[tokio::test]
async fn uploads_to_a_read_only_root_are_refused() {
    let bench = Bench::new().await;
    let spec = ContainerSpec { read_only_root: true, ..bench.spec("") };
    let id = bench.runtime().create(&spec).await.expect("created");
    let tar = single_file_tar("f", 1, 0o644, 0, 0, once(Bytes::from_static(b"x")));
    let error = bench.runtime().put_archive(&id, "/tmp", tar).await.expect_err("read-only");
    assert!(matches!(&error, RuntimeError::Invalid { reason, .. } if reason.contains("read-only")), "{error}");
}

#[tokio::test]
async fn a_test_that_panics_leaves_nothing_behind() {
    let bench = Bench::new().await;
    let (labels, image) = (bench.engine.labels.clone(), bench.image.config_digest);
    let panicking = tokio::spawn(async move {
        bench.runtime().create_volume(&format!("{}-v", bench.engine.prefix), &bench.engine.labels).await.expect("made");
        let id = bench.runtime().create(&bench.spec("sleep 600")).await.expect("created");
        bench.runtime().start(&id).await.expect("started");
        panic!("on purpose");
    });
    assert!(panicking.await.expect_err("it panics").is_panic());
    let engine = TestEngine::connect().await;
    assert_eq!(engine.runtime.list_ours(&labels).await, Ok(Vec::new()));
    assert_eq!(engine.runtime.list_our_volumes(&labels).await, Ok(Vec::new()));
    assert_eq!(engine.runtime.image_exists(&image).await, Ok(false));
}

#[tokio::test]
async fn a_reading_shows_cpu_and_memory_while_it_runs() {
    let bench = Bench::new().await;
    let id = bench.runtime().create(&bench.spec("echo up; while :; do :; done")).await.expect("created");
    assert_eq!(bench.runtime().reading(&id).await, Ok(None), "not started");
    bench.runtime().start(&id).await.expect("started");
    let deadline = Instant::now() + Duration::from_secs(60);
    let busy = loop {
        let reading = bench.runtime().reading(&id).await.expect("readable").expect("it runs");
        if reading.cpu_ms >= 100 {
            break reading;
        }
        assert!(Instant::now() < deadline, "a busy loop uses CPU: {reading:?}");
    };
    assert!((1..64 << 20).contains(&busy.memory_bytes), "{busy:?}");
    bench.runtime().kill(&id, "SIGKILL").await.expect("killed");
    within(bench.runtime().wait(&id)).await.expect("waited");
    assert_eq!(bench.runtime().reading(&id).await, Ok(None), "ended");
}

#[tokio::test]
async fn what_is_written_to_root_and_volumes_is_measured() {
    let bench = Bench::new().await;
    let volume = format!("{}-out", bench.engine.prefix);
    let mut spec = bench.spec("head -c 3145728 /dev/zero > /file; head -c 5242880 /dev/zero > /job/file");
    bench.runtime().create_volume(&volume, &bench.engine.labels).await.expect("made");
    spec.volumes.push(VolumeMount { volume, path: "/job".into() });
    spec.labels.insert("which".into(), "container".into());
    let ran = bench.run(&spec).await;
    assert_eq!(ran.exit.exit_code, 0, "{}", String::from_utf8_lossy(&ran.stderr));
    let mut measured = bench.runtime().disk_usage(&bench.engine.labels).await.expect("measured");
    measured.sort_by_key(|(labels, _)| labels.contains_key("which"));
    let [(_, volume), (_, root)] = measured.as_slice() else { panic!("{measured:?}") };
    let around = |bytes: u64, mib: u64| (mib << 20..(mib << 20) + (1 << 20)).contains(&bytes);
    let (root, volume) = (root.expect("told"), volume.expect("told"));
    assert!(around(root, 3), "{root} bytes in the container");
    assert!(around(volume, 5), "{volume} bytes in the volume");
    assert!(matches!(bench.runtime().disk_usage(&Default::default()).await, Err(RuntimeError::Invalid { .. })));
}

#[tokio::test]
async fn volumes_that_an_image_declares_are_ours_and_go_with_the_container() {
    let mut bench = Bench::new().await;
    let mut config: serde_json::Value = serde_json::from_slice(&bench.image.config).expect("JSON");
    config["config"]["Volumes"] = serde_json::json!({"/etc": {}, "/tmp/": {}});
    bench.image.config = config.to_string().into();
    bench.image.config_digest = Digest::of(&bench.image.config);
    let archive = bench.image.archive();
    bench.runtime().load_image(archive, &bench.image.config_digest).await.expect("loaded");
    let script = "cat /etc/salt; head -c 300000 /dev/zero > /tmp/big; stat -c '%a %u' /tmp";
    let mut spec = bench.spec(script);
    spec.user = Some("65534:65534".into());
    spec.read_only_root = true;
    spec.image_volumes = vec!["/etc".into(), "/tmp".into()];
    let ran = bench.run(&spec).await;
    let (out, err) = (ran.out(), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.exit.exit_code == 0 && out.len() > 20 && out.ends_with("1777 0\n"), "as in the image: {out} {err}");
    assert_eq!(bench.runtime().list_our_volumes(&spec.labels).await.expect("listed").len(), 2);
    let measured = bench.runtime().disk_usage(&spec.labels).await.expect("measured");
    assert!(measured.iter().any(|(_, bytes)| *bytes >= Some(300_000)), "{measured:?}");
    bench.runtime().remove(&ran.id, false).await.expect("removed");
    assert!(bench.runtime().list_our_volumes(&spec.labels).await.expect("listed").is_empty());
}

#[tokio::test]
async fn limits_reach_the_container() {
    let bench = Bench::new().await;
    let own = |file: &str| format!("cat /sys/fs/cgroup/{file} 2>/dev/null");
    // The names of cgroup v1 and v2; the former counts memory and swap together.
    let (pids, cpu) = (["pids/pids.max", "pids.max"], ["cpu/cpu.cfs_quota_us", "cpu.max"]);
    let swap = ["memory/memory.memsw.limit_in_bytes", "memory.swap.max"];
    let read: Vec<String> = [&pids[..], &cpu[..], &swap[..]].concat().into_iter().map(own).collect();
    let mut spec = bench.spec(&format!("ulimit -n; ulimit -c; {}; echo", read.join("; ")));
    (spec.open_files, spec.pids, spec.memory_bytes, spec.cpu_millis) = (77, 33, 32 << 20, 500);
    let out = bench.run(&spec).await.out();
    let told: Vec<_> = out.split_whitespace().collect();
    // Half of each period of 100 ms.
    assert_eq!(told[..4], ["77", "0", "33", "50000"], "{out}");
    assert!(matches!(told.last(), Some(&"33554432" | &"0")), "memory without swap: {out}");
}

#[tokio::test]
async fn of_another_container_only_the_network_namespace_is_joined() {
    const SHOW: &str = "ls -l /proc/self/ns";
    let bench = Bench::new().await;
    let sandbox = bench.runtime().create(&bench.spec(&format!("{SHOW}; exec sleep 600"))).await.expect("created");
    let job = || ContainerSpec { network: Network::Of(sandbox.clone()), ..bench.spec(SHOW) };
    let early = bench.runtime().create(&job()).await.expect("created");
    let refused = |answer| matches!(answer, Err(RuntimeError::JoinRefused { .. }));
    assert!(refused(bench.runtime().start(&early).await), "it does not run yet");
    bench.runtime().start(&sandbox).await.expect("started");
    let joined = String::from_utf8(bench.run(&job()).await.stdout).expect("text");
    let mut items = bench.runtime().logs(&sandbox).await.expect("logs");
    let mut own = String::new();
    while !own.contains("uts:") {
        own.push_str(&String::from_utf8_lossy(&within(items.next()).await.expect("more").expect("an item").bytes));
    }
    let space = |of: &str, kind: &str| of.split_whitespace().find(|word| word.starts_with(kind)).map(str::to_owned);
    for kind in ["net:", "ipc:", "pid:", "uts:", "mnt:"] {
        let (own, joined) = (space(&own, kind), space(&joined, kind));
        assert!(own.is_some() && joined.is_some() && (own == joined) == (kind == "net:"), "{own:?} {joined:?}");
    }
    let late = bench.runtime().create(&job()).await.expect("created");
    bench.runtime().remove(&sandbox, true).await.expect("removed");
    assert!(refused(bench.runtime().start(&late).await), "it is gone");
    // Engines differ in when they look for it.
    let gone = match bench.runtime().create(&job()).await {
        Ok(id) => bench.runtime().start(&id).await,
        Err(error) => Err(error),
    };
    assert!(refused(gone));
}
