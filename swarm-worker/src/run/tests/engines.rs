//! Engines that fail, hang, stop and start again: what they cost, and that it is never the job's own failure.

use super::*;

fn late(call: &'static str) -> RuntimeError {
    RuntimeError::Timeout { call, after_ms: 120_000 }
}

fn by_engine(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Lost { reason: LossReason::Engine, .. })
}

impl Bench {
    /// Waits until the worker has seen that its engine answers.
    async fn engine_seen(&self) {
        let pings = self.engine.count(Call::Ping);
        // The next to last answer has been noted when the last one is asked for.
        self.eventually("the engine is asked again", || async { self.engine.count(Call::Ping) > pings + 1 }).await;
    }
}

/// Every call of a run, failing or answering too late, done or not; as a user in numbers, and as one who is looked up in
/// the image.
#[tokio::test]
async fn no_call_that_fails_or_is_answered_too_late_is_taken_for_the_jobs_failure() {
    let calls = [
        Call::Ping,
        Call::ImageExists,
        Call::TagImage,
        Call::CreateVolume,
        Call::Create,
        Call::PutArchive,
        Call::Start,
        Call::Logs,
        Call::Wait,
        Call::Inspect,
        Call::GetArchive,
        Call::Remove,
        Call::RemoveVolume,
        Call::ListOurs,
    ];
    let bench = Bench::start(|| Script::new().out("hello\n").write("/out/r", "42")).await;
    bench.core.seen().blobs.insert(Digest::of(b"data"), (&b"data"[..]).into());
    // A user is looked up once, so each job has its own.
    let accounts: String = (1..100).map(|n| format!("app{n}:x:{}:50::/:\n", 1000 + n)).collect();
    bench.engine.add_image_file(&Digest::of(CONFIG), "/etc/passwd", accounts);
    let effects: [fn(RuntimeError) -> Effect; 2] = [Effect::Fail, Effect::DoneButFail];
    let cases = calls.into_iter().flat_map(|call| effects.map(|effect| (call, effect)));
    let cases = cases.flat_map(|case| [false, true].map(|named| (case, named)));
    for (((call, effect), named), job) in cases.zip(1..) {
        let effect = effect(late("any"));
        let case = format!("{call:?} {effect:?}, named user: {named}");
        bench.engine.plan(FaultPlan::new().on(call, 1, effect));
        let files = (vec![testing::input("/in/a", b"data")], vec!["/out/r".into()]);
        let user = named.then(|| format!("app{job}"));
        let order = TaskOrder { inputs: files.0, outputs: files.1, user, ..order(job) };
        bench.core.assign(&order).await;
        let given_back =
            |frame: &ToCore| matches!(frame, ToCore::Recalled { attempts } if attempts[0] == order.attempt);
        if call == Call::Ping {
            bench.core.frame("it is given back", given_back).await;
            bench.engine_seen().await;
            continue;
        }
        let report = bench.core.finished(order.attempt).await;
        let kind = report.outcome.kind();
        assert!(report.outcome == Outcome::Succeeded || by_engine(&report.outcome), "{case}: {:?}", report.outcome);
        if report.outcome == Outcome::Succeeded {
            assert_eq!(text(&bench.core.seen().logs[&order.attempt]), "hello\n", "{case}");
            assert_eq!(report.log_cut_bytes, 0, "{case}");
        }
        let harmless = matches!(call, Call::Logs | Call::Inspect | Call::Remove | Call::RemoveVolume) && !named;
        assert!(!harmless || report.outcome == Outcome::Succeeded, "{case} costs an attempt: {kind}");
    }
    bench.end().await;
}

/// The bytes of a file of the image break off, or its container is gone: neither says anything of the image.
#[tokio::test]
async fn an_engine_that_fails_while_accounts_are_read_is_not_the_jobs_failure() {
    let bench = Bench::start(Script::new).await;
    bench.engine.add_image_file(&Digest::of(CONFIG), "/etc/passwd", "app:x:1000:50::/:\n");
    let order = |job| TaskOrder { user: Some("app".into()), ..order(job) };
    bench.engine.cut_archives(520);
    let outcome = bench.outcome(&order(1)).await;
    assert!(by_engine(&outcome), "{outcome:?}");
    bench.engine.cut_archives(usize::MAX);
    let gone = || RuntimeError::NotFound { call: "any", message: "No such container".into() };
    let plan = FaultPlan::new().on(Call::GetArchive, 1, Effect::Fail(gone()));
    bench.engine.plan(plan.on(Call::Inspect, 1, Effect::Fail(gone())));
    let outcome = bench.outcome(&order(2)).await;
    assert!(by_engine(&outcome), "{outcome:?}");
    assert_eq!(bench.outcome(&order(3)).await, Outcome::Succeeded);
    bench.end().await;
}

/// As long as the container is there, it is the output that is not.
#[tokio::test]
async fn an_output_whose_container_is_gone_is_not_missing_but_lost() {
    let bench = Bench::start(Script::new).await;
    let order = |job| TaskOrder { outputs: vec!["/out/r".into()], ..order(job) };
    let missing = bench.outcome(&order(1)).await;
    assert!(matches!(missing, Outcome::OutputMissing { .. }), "{missing:?}");
    let gone = || RuntimeError::NotFound { call: "any", message: "No such container".into() };
    let plan = FaultPlan::new().on(Call::GetArchive, 1, Effect::Fail(gone()));
    // The first look is at its start.
    bench.engine.plan(plan.on(Call::Inspect, 2, Effect::Fail(gone())));
    let outcome = bench.outcome(&order(2)).await;
    assert!(by_engine(&outcome), "{outcome:?}");
    bench.end().await;
}

#[tokio::test]
async fn a_start_that_answered_an_error_and_started_runs_once() {
    let bench = Bench::start(|| Script::new().out("hello\n")).await;
    let failed = RuntimeError::Engine { call: "start", message: "context deadline exceeded (status 500)".into() };
    bench.engine.plan(FaultPlan::new().on(Call::Start, 1, Effect::DoneButFail(failed)));
    assert_eq!(bench.outcome(&order(1)).await, Outcome::Succeeded);
    assert_eq!(bench.engine.count(Call::Start), 1);
    bench.until_clean().await;
    bench.end().await;
}

/// The core counts as unstarted what the report has no start of.
#[tokio::test]
async fn a_start_whose_answer_and_inspection_fail_is_reported_if_the_container_ran() {
    let bench = Bench::start(|| Script::new().out("hello\n")).await;
    let gone = || RuntimeError::Engine { call: "any", message: "connection reset".into() };
    for (job, start, ran) in [(1, Effect::DoneButFail(gone()), true), (2, Effect::Fail(gone()), false)] {
        bench.engine.plan(FaultPlan::new().on(Call::Start, 1, start).on(Call::Inspect, 1, Effect::Fail(gone())));
        let report = bench.run(&order(job)).await;
        assert!(by_engine(&report.outcome), "{report:?}");
        assert_eq!(report.started_at_us.is_some(), ran, "{report:?}");
    }
    bench.until_clean().await;
    bench.end().await;
}

#[tokio::test]
async fn a_kill_that_is_answered_too_late_is_repeated_until_the_container_has_ended() {
    let bench = Bench::start(|| Script::new().forever().ignoring_signals()).await;
    let plan = FaultPlan::new().on(Call::Kill, 1, Effect::Fail(late("kill")));
    bench.engine.plan(plan.on(Call::Kill, 2, Effect::Fail(late("kill"))).on(
        Call::Kill,
        3,
        Effect::DoneButFail(late("kill")),
    ));
    bench.core.assign(&order(1)).await;
    bench.started(order(1).attempt).await;
    bench.core.tell(ToWorker::Cancel { attempt: order(1).attempt, grace_ms: 50 }).await;
    assert_eq!(bench.core.finished(order(1).attempt).await.outcome, Outcome::Cancelled);
    assert_eq!(bench.engine.count(Call::Kill), 3);
    bench.until_clean().await;
    bench.end().await;
}

#[tokio::test]
async fn an_engine_that_takes_longer_to_tell_of_an_end_than_a_kill_has_time_is_heard() {
    let bench = Bench::start(|| Script::new().forever()).await;
    let slow = Effect::Delay(Duration::from_millis(2500));
    bench.engine.plan((1..=100).fold(FaultPlan::new(), |plan, nth| plan.on(Call::Wait, nth, slow.clone())));
    bench.core.assign(&order(1)).await;
    bench.started(order(1).attempt).await;
    bench.core.tell(ToWorker::Cancel { attempt: order(1).attempt, grace_ms: 0 }).await;
    assert_eq!(bench.core.finished(order(1).attempt).await.outcome, Outcome::Cancelled);
    bench.until_clean().await;
    bench.end().await;
}

#[tokio::test]
async fn a_container_that_the_engine_lists_and_does_not_describe_is_taken_up() {
    let gate = CancellationToken::new();
    let held = gate.clone();
    let mut bench = Bench::start(move || Script::new().hold(held.clone())).await;
    bench.core.assign(&order(1)).await;
    bench.started(order(1).attempt).await;
    bench.kill().await;
    bench.engine.plan(FaultPlan::new().on(Call::Inspect, 1, Effect::Fail(late("inspect"))));
    let inspects = bench.engine.count(Call::Inspect);
    bench.restart();
    bench.eventually("it is asked about", || async { bench.engine.count(Call::Inspect) > inspects }).await;
    gate.cancel();
    assert_eq!(bench.core.finished(order(1).attempt).await.outcome, Outcome::Succeeded);
    bench.until_clean().await;
    bench.end().await;
}

#[tokio::test]
async fn what_an_engine_ends_as_it_stops_or_crashes_is_lost_whatever_its_status() {
    let bench = Bench::start(|| Script::new().forever()).await;
    let is_lost = async |job| {
        let report = bench.core.finished(order(job).attempt).await;
        assert!(by_engine(&report.outcome), "{:?}", report.outcome);
        assert_eq!(report.ran_ms, None, "nobody knows how long it ran");
    };
    // The engine signals it, and says so.
    bench.core.assign(&order(1)).await;
    bench.started(order(1).attempt).await;
    let running = bench.engine.list_ours(&all()).await.unwrap();
    bench.engine.kill(&running[0].id, "SIGTERM").await.unwrap();
    is_lost(1).await;
    // It is away, and when it is back the container has ended.
    let gate = CancellationToken::new();
    let held = gate.clone();
    bench.engine.program(move |_| Script::new().hold(held.clone()));
    bench.core.assign(&order(2)).await;
    bench.started(order(2).attempt).await;
    bench.engine.engine_down();
    let waits = bench.engine.count(Call::Wait);
    bench.eventually("the worker asks in vain", || async { bench.engine.count(Call::Wait) > waits }).await;
    gate.cancel();
    bench.eventually("its container has ended", || async { bench.engine.running() == 0 }).await;
    bench.engine.engine_up();
    is_lost(2).await;
    bench.until_clean().await;
    bench.end().await;
}

#[tokio::test]
async fn what_runs_on_while_its_engine_is_away_ends_by_itself() {
    let gate = CancellationToken::new();
    let held = gate.clone();
    let bench = Bench::start(move || Script::new().hold(held.clone()).exit(3)).await;
    bench.core.assign(&order(1)).await;
    bench.started(order(1).attempt).await;
    bench.engine.engine_down();
    let waits = bench.engine.count(Call::Wait);
    bench.eventually("the worker asks in vain", || async { bench.engine.count(Call::Wait) > waits + 1 }).await;
    let before = bench.engine.history().len();
    bench.engine.engine_up();
    // A look that is answered, and after it a wait that holds.
    let is_seen = || async {
        let calls = bench.engine.history().split_off(before);
        let mut calls = calls.iter().map(|record| record.call).skip_while(|call| *call != Call::Inspect);
        calls.any(|call| call == Call::Wait)
    };
    bench.eventually("it is seen to run, and waited for", is_seen).await;
    gate.cancel();
    assert_eq!(bench.core.finished(order(1).attempt).await.outcome, Outcome::Failed { exit_code: 3 });
    bench.end().await;
}

#[tokio::test]
async fn the_log_of_an_ended_container_waits_for_an_engine_that_is_away() {
    let gate = CancellationToken::new();
    let held = gate.clone();
    let bench = Bench::start(move || Script::new().out("hello\n").hold(held.clone())).await;
    bench.core.assign(&order(1)).await;
    bench.core.until("the line", |seen| seen.logs.get(&order(1).attempt).map(drop)).await;
    let plan = (1..=5).fold(FaultPlan::new(), |plan, nth| {
        plan.on(Call::Logs, nth, Effect::Fail(late("logs"))).on(Call::Ping, nth, Effect::Fail(late("ping")))
    });
    bench.engine.plan(plan);
    gate.cancel();
    let report = bench.core.finished(order(1).attempt).await;
    assert_eq!((report.outcome, report.log_cut_bytes), (Outcome::Succeeded, 0));
    assert_eq!(text(&bench.core.seen().logs[&order(1).attempt]), "hello\n");
    bench.end().await;
}

#[tokio::test]
async fn an_order_whose_engine_does_not_answer_is_given_back_and_further_ones_are_declined() {
    let bench = Bench::start(Script::new).await;
    bench.core.frame("a report", |frame| matches!(frame, ToCore::StateReport { .. })).await;
    bench.engine.engine_down();
    bench.core.assign(&order(1)).await;
    let given_back = |frame: &ToCore| matches!(frame, ToCore::Recalled { attempts } if attempts[0] == order(1).attempt);
    bench.core.frame("it is given back", given_back).await;
    bench.core.assign(&order(2)).await;
    let declined = |frame: &ToCore| matches!(frame, ToCore::Declined { attempt, .. } if *attempt == order(2).attempt);
    bench.core.frame("a refusal", declined).await;
    bench.engine.engine_up();
    bench.engine_seen().await;
    assert_eq!(bench.outcome(&order(3)).await, Outcome::Succeeded);
    assert_eq!(bench.engine.count(Call::Create), 1);
    bench.end().await;
}
