//! What a worker of another build left, taken up by this one. `testdata/link-4` was recorded from a worker that spoke link
//! version 4, with everything it had in its engine: one job that ran, and one that had ended while the core was away.
//! Workers of link versions 2 and 3 wrote the same files and labels. A change that does not take these up any more loses
//! what runs during an upgrade; it needs another format, and the recording stays.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;
use swarm_protocol::link::Welcome;
use swarm_protocol::{JobId, SwarmId, WorkerId};

use super::*;
use crate::runtime::{ContainerSpec, VolumeMount};

/// The swarm and the worker of the recording.
const SWARM: &str = "459c9447-bcba-4c27-9812-1cc58b55de95";
const WORKER: WorkerId = WorkerId(1);

#[derive(Deserialize)]
struct Container {
    name: String,
    state: String,
    labels: Labels,
    mounts: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Volume {
    name: String,
    labels: Labels,
}

fn recording() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/link-4")
}

fn read<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(recording().join(name)).unwrap()).unwrap()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}

/// The recorded machine, a moment later.
struct Recorded {
    boot: String,
    later_ns: AtomicU64,
}

impl Machine for Recorded {
    fn now_ns(&self) -> u64 {
        self.later_ns.fetch_add(1_000_000, Ordering::SeqCst)
    }

    fn wall_us(&self) -> u64 {
        ThisMachine.wall_us()
    }

    fn boot(&self) -> String {
        self.boot.clone()
    }

    fn load_millis(&self) -> u32 {
        0
    }
}

/// When the first piece of a recorded log was written: the engine says the same again.
fn written_at_us(attempt: AttemptId) -> u64 {
    let mut decoder = LogDecoder::default();
    decoder.push(&std::fs::read(recording().join(format!("worker/spool/{attempt}/log"))).unwrap());
    decoder.next_record().unwrap().expect("it had written something").at_us
}

/// The engine with everything that was recorded. What runs there goes on when `gate` opens.
async fn engine(gate: &CancellationToken, image: Digest, at_us: u64) -> FakeRuntime {
    let (engine, gate) = (FakeRuntime::with_clock(move || at_us), gate.clone());
    engine.add_image(image, Vec::new());
    engine.program(move |_| Script::new().out("one\n").hold(gate.clone()).write("/out/copy", "data").out("two\n"));
    for Volume { name, labels } in read::<Vec<Volume>>("volumes.json") {
        engine.create_volume(&name, &labels).await.unwrap();
    }
    for Container { name, state, labels, mounts } in read::<Vec<Container>>("containers.json") {
        let mut spec = ContainerSpec::new(name, image, labels);
        spec.volumes = mounts.into_iter().map(|(volume, path)| VolumeMount { volume, path }).collect();
        let id = engine.create(&spec).await.unwrap();
        if state == "running" {
            engine.start(&id).await.unwrap();
        }
    }
    engine
}

#[tokio::test]
async fn what_a_worker_of_link_versions_2_to_4_left_is_taken_up() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let data = tempfile::tempdir().unwrap();
    copy(&recording().join("worker"), data.path());
    let [ran, ended] = [1, 2].map(|job| AttemptId { job: JobId(job), task: 0, attempt: 1 });
    let found = Spool::open(data.path()).unwrap().scan().unwrap();
    assert_eq!(found.iter().map(|found| found.order.attempt).collect::<Vec<_>>(), [ran, ended]);
    let mark = found[0].start.clone().expect("it was started");
    let image = found[0].order.image.config;
    let (notes, note) = (WatchFiles::new(data.path()), format!("swarm-{}-{ran}", &SWARM[..8]));
    let granted_ns = notes.watched(&note).expect("it was watched").granted_ns.max(notes.renewed_ns(&mark.machine_boot));
    let machine = Recorded { boot: mark.machine_boot, later_ns: AtomicU64::new(granted_ns + 1_000_000_000) };

    let (core, gate, stop) = (ScriptedCore::start().await, CancellationToken::new(), CancellationToken::new());
    core.seen().welcome = |welcome| match welcome {
        Welcome::Accepted { version, epoch, session, nonce, secret, heartbeat_port, heartbeat_interval_ms, .. } => {
            let swarm = SwarmId(SWARM.parse().unwrap());
            Welcome::Accepted {
                version,
                swarm,
                worker: WORKER,
                epoch,
                session,
                nonce,
                secret,
                heartbeat_port,
                heartbeat_interval_ms,
            }
        }
        refused @ Welcome::Refused { .. } => refused,
    };
    let engine = engine(&gate, image, written_at_us(ran)).await;
    let started = engine.count(Call::Start);
    let config = WorkerConfig { slots: Some(2), sandboxes: Some(0), ..config_of(&core, data.path()) };
    let parts = Parts::of_this_machine(&config, Arc::new(engine.clone())).unwrap();
    let worker = tokio::spawn(run_with(config, Parts { machine: Arc::new(machine), ..parts }, stop.clone()));

    let report = core.finished(ended).await;
    assert_eq!((report.outcome, report.log_cut_bytes), (Outcome::Failed { exit_code: 5 }, 0));
    core.until("its log", |seen| seen.logs.get(&ended).filter(|log| log.len() as u64 == report.log_bytes).cloned())
        .await;
    assert_eq!(text(&core.seen().logs[&ended]), "badly\nended\n");
    core.frame("its start", |frame| matches!(frame, ToCore::Started { attempt, .. } if *attempt == ran)).await;
    assert!(!core.seen().finished.contains_key(&ran));
    gate.cancel();
    let report = core.finished(ran).await;
    assert_eq!((report.outcome, report.log_cut_bytes), (Outcome::Succeeded, 0));
    assert_eq!((report.outputs[0].path.as_str(), report.outputs[0].digest), ("/out/copy", Digest::of(b"data")));
    assert_eq!(text(&core.seen().logs[&ran]), "one\ntwo\n");
    assert_eq!((engine.count(Call::Start), core.seen().joins), (started, 0), "it ran once, and the key is kept");
    core.until("a clean disk and engine", |_| (is_forgotten(data.path()) && engine.is_clean()).then_some(())).await;
    stop.cancel();
    worker.await.unwrap().unwrap();
}
