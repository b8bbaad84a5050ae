//! Schedules: by hand and by the clock.

use std::time::Duration;

use swarm_checker::{Expectation, Op, Verdict};
use swarm_client::JobFilter;
use swarm_protocol::api::ScheduleRequest;
use swarm_protocol::state::JobState;

use crate::harness::{PATIENCE, eventually, now_us, report, shared};

#[test]
fn a_schedule_launches_by_hand_and_once_at_its_minute() {
    let swarm = shared();
    let name = format!("minutely-{}", uuid::Uuid::new_v4().simple());
    let mut spec = swarm.shell("echo launched");
    spec.name = Some(name.clone());
    let request = ScheduleRequest { name: name.clone(), cron: "* * * * *".into(), zone: "Europe/Berlin".into(), spec };
    let made = swarm.block(swarm.client.create_schedule(&request)).expect("a good schedule is taken");
    let due = *made.next.first().expect("it tells its next instants");

    let start = now_us();
    let triggered = swarm.block(swarm.client.trigger_schedule(made.id)).expect("it can be triggered").job;
    let op = Op::Trigger { schedule: made.id.0, job: Some(triggered.0) };
    swarm.recorder.add(start, Verdict::Ok, op);
    assert_eq!(swarm.wait_ended(triggered, PATIENCE).job.state, JobState::Succeeded);

    // The next minute is at most 60 s away; the launch carries that very instant.
    let by_clock = eventually("the schedule launches", Duration::from_secs(75), || {
        let filter = JobFilter { name: Some(name.clone()), ..JobFilter::default() };
        let jobs = swarm.block(swarm.client.jobs(&filter)).ok()?.items;
        jobs.into_iter().find(|job| job.id != triggered)
    });
    swarm.block(swarm.client.pause_schedule(made.id)).expect("it can be paused");
    let launch = by_clock.launched_by.expect("the job says what made it");
    assert_eq!((launch.schedule, launch.nominal_at), (made.id, due));
    assert!(by_clock.submitted_at >= due, "launched before its time");
    let late_ms = (by_clock.submitted_at - due).num_milliseconds();
    assert!(late_ms < 10_000, "launched {late_ms} ms late");
    assert_eq!(swarm.wait_ended(by_clock.id, PATIENCE).job.state, JobState::Succeeded);

    let view = swarm.block(swarm.client.schedule(made.id)).expect("it can be read");
    assert!(view.paused && view.next.is_empty(), "{view:?}");
    // Should a further minute have passed before the pause, its launch is due as well.
    let last = view.last.expect("it launched").nominal_at;
    let minutes = (last - due).num_minutes().max(0);
    let due_us = (0..=minutes).map(|minute| due.timestamp_micros() + minute * 60_000_000).collect();
    swarm.recorder.add(start, Verdict::Ok, Op::Schedule(Expectation { schedule: made.id.0, due_us }));
    report(&format!("schedule: launched {late_ms} ms after its instant"));

    let listed = swarm.consumer(&["schedule", "ls"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains(&name), "{listed:?}");
    assert_eq!(swarm.consumer(&["schedule", "delete", &name]).code, Some(0));
    assert_eq!(swarm.consumer(&["schedule", "show", &name]).code, Some(3));
    swarm.judge("schedule", false);
}

#[test]
fn a_bad_schedule_is_refused_by_its_field() {
    let swarm = shared();
    for (cron, zone, field) in [
        ("* * * *", "UTC", "cron"),
        ("61 * * * *", "UTC", "cron"),
        ("* * * * * *", "UTC", "cron"),
        ("* * * * *", "Europe/Atlantis", "zone"),
    ] {
        let request =
            ScheduleRequest { name: "bad".into(), cron: cron.into(), zone: zone.into(), spec: swarm.shell("true") };
        let error = swarm.block(swarm.client.create_schedule(&request)).expect_err("a bad schedule is refused");
        let problem = error.problem().unwrap_or_else(|| panic!("{cron} {zone}: {error}"));
        let fault = problem.errors.first().unwrap_or_else(|| panic!("{cron} {zone}: no field is named: {problem:?}"));
        // `cron.minute` is even better than `cron`.
        assert!(problem.status == 422 && fault.field.starts_with(field), "{cron} {zone}: {problem:?}");
        assert!(!fault.hint.is_empty(), "{cron} {zone}: no way out is told");
    }
    let all = swarm.block(swarm.client.schedules()).expect("schedules can be listed");
    assert!(all.items.iter().all(|schedule| schedule.name != "bad"));
}
