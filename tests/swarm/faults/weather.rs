//! Links that delay, lose, double, reorder and corrupt what crosses them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_protocol::spec::{Input, Output};
use swarm_protocol::state::JobState;
use swarm_protocol::{TaskId, TaskRange};

use crate::harness::{NOISE, PATIENCE, Proxy, Setup, Swarm, Weather, noise, report, rounds};

/// More losses than any scenario can cause.
const LOSSES_MAX: u16 = 100;
/// How long bytes are changed on their way.
const FOUL: Duration = Duration::from_secs(40);
const ENDS: Duration = Duration::from_secs(240);

/// Jobs run to their ends through `weather`, each task once, and their logs are whole.
fn endured(scenario: &str, weather: Weather) {
    let link = Arc::new(Proxy::start());
    let swarm = Swarm::start(Setup { link: Some(Arc::clone(&link)), ..Setup::default() });
    let mut tasks = 0;
    for _ in 0..rounds(20) {
        swarm.fault(&format!("{weather:?}"));
        link.weather(weather);
        let mut spec = swarm.shell("n=0; while [ $n -lt 200 ]; do echo $n; n=$((n+1)); done; sleep 2; echo done");
        spec.array = TaskRange::new(0, 7);
        // A stream that is given up because of a bad byte may cost an attempt; a job it may not.
        spec.retries.lost = LOSSES_MAX;
        let job = swarm.submit(&spec);
        let detail = swarm.wait_ended(job, ENDS);
        link.weather(Weather::default());
        assert_eq!(detail.job.state, JobState::Succeeded, "{:?}", swarm.task(job));
        let log: String = (0..200).map(|n| format!("{n}\n")).chain(["done\n".to_owned()]).collect();
        for task in 0..8 {
            swarm.check_log(TaskId { job, task }, log.as_bytes(), b"");
        }
        tasks += 8;
        swarm.wait_ready();
    }
    swarm.judge(scenario, true);
    report(&format!("{scenario}: {tasks} tasks, 0 lost"));
}

#[test]
fn a_slow_link_that_loses_doubles_and_reorders_datagrams_costs_no_task() {
    let weather = Weather { delay_max: Duration::from_millis(300), lost: 30, doubled: 30, ..Weather::default() };
    endured("delayed, lost, doubled, reordered", weather);
}

/// Files are told by their digests, heartbeats by their seals: what was changed on the way is sent again.
#[test]
fn bytes_of_files_that_are_changed_on_the_way_are_never_taken_for_true() {
    let link = Arc::new(Proxy::start());
    let swarm = Swarm::start(Setup { link: Some(Arc::clone(&link)), ..Setup::default() });
    let (file, bytes) = (swarm.home().join("input"), noise(NOISE, 1));
    std::fs::write(&file, &bytes).expect("the input can be written");
    let uploaded = swarm.block(swarm.client.upload_file(&file, Arc::new(|_| ()))).expect("it is uploaded");
    let mut spec = swarm.shell("cat /in/data > /out/copy; echo begun; sleep 2; echo done");
    spec.inputs.push(Input { digest: uploaded.digest, path: "/in/data".into(), mode: 0o644, unpack: false });
    spec.outputs = vec![Output { path: "/out/copy".into() }];
    spec.retries.lost = LOSSES_MAX;
    // The image comes in fair weather.
    let fair = swarm.submit(&spec);
    assert_eq!(swarm.wait_ended(fair, PATIENCE).job.state, JobState::Succeeded);
    spec.array = TaskRange::new(0, 7);
    let (mut files, mut again) = (0, 0);
    for _ in 0..rounds(20) {
        let weather = Weather { spoiled: 50, spoiled_files: 4, ..Weather::default() };
        swarm.fault(&format!("{weather:?}"));
        link.weather(weather);
        let job = swarm.submit(&spec);
        // Whoever is unlucky again and again waits ever longer, so the weather clears up some time.
        let began = Instant::now();
        while began.elapsed() < FOUL && !swarm.detail(job).job.state.is_final() {
            std::thread::sleep(Duration::from_millis(250));
        }
        link.weather(Weather::default());
        let detail = swarm.wait_ended(job, ENDS);
        assert_eq!(detail.job.state, JobState::Succeeded, "{:?}", swarm.task(job));
        for task in (0..8).map(|task| TaskId { job, task }) {
            let view = swarm.task_of(task);
            again += view.attempts.len() - 1;
            let last = view.attempts.last().expect("it ran");
            assert_eq!(last.outputs[0].digest, uploaded.digest, "{view:?}");
            swarm.check_log(task, super::SHORT_LOG, b"");
            files += 1;
        }
        swarm.wait_ready();
    }
    swarm.judge("flipped bits", true);
    report(&format!("flipped bits: {files} inputs and outputs of {} bytes whole, {again} attempts again", bytes.len()));
}

/// Beside what [`endured`] shows, nobody is taken for dead.
#[test]
fn a_lease_outlives_a_link_that_is_slower_than_a_heartbeat() {
    let link = Arc::new(Proxy::start());
    let swarm = Swarm::start(Setup { link: Some(Arc::clone(&link)), ..Setup::default() });
    for _ in 0..rounds(10) {
        let mut spec = swarm.shell("echo begun; sleep 20; echo done");
        spec.lease_s = 15;
        let job = swarm.submit(&spec);
        swarm.wait_started(job, 1);
        swarm.fault("3 s of delay");
        link.weather(Weather { delay_max: Duration::from_secs(3), ..Weather::default() });
        std::thread::sleep(Duration::from_secs(17));
        link.weather(Weather::default());
        assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Succeeded);
        swarm.ran_once(job, super::SHORT_LOG);
    }
    swarm.judge("link slower than heartbeats", true);
}
