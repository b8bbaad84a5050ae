//! Schedules and launches.

use swarm_protocol::ScheduleId;
use swarm_protocol::api::Launch;

use super::*;

fn new_schedule(bench: &Bench, name: &str) -> Transition {
    Transition::CreateSchedule(Box::new(NewSchedule {
        owner: bench.owner,
        group: bench.group,
        name: name.to_owned(),
        cron: "0 3 * * *".to_owned(),
        zone: "Europe/Berlin".to_owned(),
        job: prepared(JobSpec::new("busybox"), vec![1, 2]),
        created_at: at(10),
    }))
}

fn create(bench: &Bench, name: &str) -> ScheduleId {
    match bench.apply(new_schedule(bench, name)) {
        Ok(Applied::Schedule(schedule)) => schedule,
        other => panic!("{other:?}"),
    }
}

fn launch(bench: &Bench, schedule: ScheduleId, second: i64) -> Transition {
    let launch = Some(Launch { schedule, nominal_at: at(second) });
    Transition::CreateJob(Box::new(NewJob { launch, ..bench.new_job(1) }))
}

pub(super) fn a_schedule_is_launched_once_for_each_instant(bench: &Bench) {
    let schedule = create(bench, "nightly");
    assert!(is_conflict(&bench.apply(new_schedule(bench, "nightly"))));
    let twice = bench.commit(&[launch(bench, schedule, 20), launch(bench, schedule, 20)]).unwrap();
    let Ok(Applied::Job { job, repeated: false }) = twice[0] else { panic!("{twice:?}") };
    assert!(is_conflict(&twice[1]));
    assert!(is_conflict(&bench.apply(launch(bench, schedule, 20))));
    assert_eq!(bench.store.load().unwrap().jobs.len(), 1, "a refused launch makes no job");
    assert_eq!(bench.record(job).launch, Some(Launch { schedule, nominal_at: at(20) }));
    let record = bench.store.schedule(schedule).unwrap().unwrap();
    assert_eq!((record.last, record.considered_until), (Some((at(20), job)), at(20)));
    assert!(bench.apply(launch(bench, schedule, 30)).is_ok());
    assert!(is_not_found(&bench.apply(launch(bench, ScheduleId(99), 30))));
}

pub(super) fn schedules_are_paused_missed_and_deleted(bench: &Bench) {
    let schedule = create(bench, "nightly");
    let read = || bench.store.schedule(schedule).unwrap().unwrap();
    let record = read();
    assert_eq!((record.name.as_str(), record.cron.as_str()), ("nightly", "0 3 * * *"));
    assert_eq!((record.zone.as_str(), record.owner_name.as_str()), ("Europe/Berlin", "ada"));
    assert_eq!((record.considered_until, record.missed, record.paused, record.last), (at(10), 0, false, None));
    assert_eq!(record.job, prepared(JobSpec::new("busybox"), vec![1, 2]));

    let pause = |paused, second| Transition::PauseSchedule { schedule, paused, at: at(second) };
    bench.apply(pause(true, 15)).unwrap();
    assert_eq!((read().paused, read().considered_until), (true, at(10)));
    assert!(is_stale(&bench.apply(launch(bench, schedule, 16))));
    bench.apply(pause(false, 25)).unwrap();
    assert_eq!((read().paused, read().considered_until), (false, at(25)));

    let miss = |missed, second| Transition::MissLaunches { schedule, missed, until: at(second) };
    bench.apply(miss(3, 40)).unwrap();
    bench.apply(miss(1, 30)).unwrap();
    assert_eq!((read().missed, read().considered_until), (4, at(40)), "never backwards");

    let Ok(Applied::Job { job, .. }) = bench.apply(launch(bench, schedule, 50)) else { panic!("not launched") };
    let (_, chemistry) = bench.user("bob", "chemistry");
    assert_eq!(bench.store.schedules(Some(bench.group)).unwrap().len(), 1);
    assert!(bench.store.schedules(Some(chemistry)).unwrap().is_empty());
    assert_eq!(bench.store.load().unwrap().schedules.len(), 1);
    assert_eq!(bench.apply(Transition::DeleteSchedule { schedule }), Ok(Applied::Done));
    for gone in [Transition::DeleteSchedule { schedule }, pause(true, 60), miss(1, 60)] {
        assert!(is_not_found(&bench.apply(gone)));
    }
    assert!(bench.store.schedules(None).unwrap().is_empty());
    assert!(bench.record(job).launch.is_some(), "its jobs stay");
    assert_eq!(create(bench, "nightly"), ScheduleId(schedule.0 + 1), "numbers are never reused");
}
