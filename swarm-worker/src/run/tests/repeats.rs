//! What a worker does on a simulated machine depends on nothing but a seed.

use tokio::time::{Instant, sleep};

use super::*;
use crate::chance::Chance;
use crate::testing::{MemoryCore, TokioMachine};

const JOBS: u64 = 12;
/// One of them.
const ENDLESS: u64 = 2;

/// Everything a core and an engine saw of a worker that lived through a broken link, an engine that fails now and then,
/// leases that ended and a kill.
fn life(seed: u64) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let mut nth = seed;
    swarm_host::blocking::simulate(move || {
        nth = nth.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        Duration::from_micros(nth >> 52)
    });
    runtime.block_on(live(seed))
}

async fn live(seed: u64) -> Vec<String> {
    let (core, engine, data) = (MemoryCore::new(seed), FakeRuntime::new(), tempfile::tempdir().unwrap());
    engine.add_image(Digest::of(CONFIG), Vec::new());
    engine.program(|view| {
        let job = view.spec.env.iter().find(|(name, _)| name == "SWARM_JOB_ID");
        // A sandbox has none.
        let Some((_, job)) = job else { return Script::new().forever() };
        let job: u64 = job.parse().unwrap();
        let script = Script::new().out(format!("job {job}\n")).sleep(Duration::from_millis(900 * job));
        if job == ENDLESS { script.forever() } else { script.write("/out/r", job.to_string()) }
    });
    let fails = |plan: FaultPlan, nth| {
        let gone = RuntimeError::Engine { call: "any", message: "connection reset".into() };
        plan.on(Call::Wait, nth, Effect::Fail(gone)).on(Call::Start, nth, Effect::Delay(Duration::from_millis(70)))
    };
    engine.plan((1..JOBS as u32).step_by(3).fold(FaultPlan::new(), fails));
    let config = WorkerConfig {
        data: data.path().to_owned(),
        name: "w".into(),
        join_token: Some("token".to_owned().into()),
        watchdog: None,
        slots: Some(3),
        ..WorkerConfig::default()
    };
    let born = Instant::now();
    let start = |life: u64, stop: &CancellationToken| {
        let parts = Parts {
            runtime: Arc::new(engine.clone()),
            network: Arc::new(core.clone()),
            machine: Arc::new(TokioMachine(born)),
            chance: Chance::seeded(seed + life),
            launch_watchdog: None,
        };
        tokio::spawn(run_with(config.clone(), parts, stop.clone()))
    };
    let worker = start(0, &CancellationToken::new());
    core.until("a link", |seen| (!seen.frames.is_empty()).then_some(())).await;
    for job in 1..=JOBS {
        core.tell(ToWorker::Assign(Box::new(TaskOrder { outputs: vec!["/out/r".into()], ..order(job) })));
    }
    sleep(Duration::from_secs(3)).await;
    core.cut();
    sleep(Duration::from_secs(3)).await;
    worker.abort();
    sleep(Duration::from_secs(1)).await;
    let stop = CancellationToken::new();
    let worker = start(1, &stop);
    sleep(Duration::from_secs(4)).await;
    core.seen().fall_silent(true);
    sleep(Duration::from_secs(60)).await;
    core.seen().fall_silent(false);
    core.until("all reports", |seen| (seen.finished.len() as u64 == JOBS).then_some(())).await;
    stop.cancel();
    worker.await.unwrap().unwrap();
    let calls = engine.history().into_iter().map(|call| format!("{call:?}"));
    let events = engine.take_events().into_iter().map(|event| format!("{event:?}"));
    core.trace().into_iter().chain(calls).chain(events).collect()
}

#[test]
fn the_same_seed_gives_the_same_life_and_another_one_another() {
    let first = life(1);
    let has = |words: &[&str]| first.iter().any(|line| words.iter().all(|word| line.contains(word)));
    for words in [&["Finished", "Succeeded"][..], &["Finished", "LeaseExpired"], &["EngineEvent", "Destroy"]] {
        assert!(has(words), "{words:?}");
    }
    let again = life(1);
    let differs = first.iter().zip(&again).position(|(one, other)| one != other);
    assert_eq!(differs.map(|at| (&first[at], &again[at])), None);
    assert_eq!(first.len(), again.len());
    assert_ne!(first, life(2));
}
