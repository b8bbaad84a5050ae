//! Wall clocks that jump: forwards, backwards, over changes of the hour, a leap day and the end of 32-bit time. Schedules
//! launch once for each instant; leases and durations know nothing of it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use swarm_checker::{Expectation, Op, Verdict};
use swarm_client::JobFilter;
use swarm_protocol::api::ScheduleRequest;
use swarm_protocol::state::JobState;
use swarm_protocol::{JobId, ScheduleId};

use crate::harness::{PATIENCE, Setup, Swarm, eventually, now_us, report};

/// How long a launch may take after its instant; the wall clock is looked at now and then.
const LAUNCHED: Duration = Duration::from_secs(60);
const HOUR_S: i64 = 3600;
const DAY_S: i64 = 24 * HOUR_S;
/// Longer than a session.
const MONTH_S: i64 = 29 * DAY_S;

/// A schedule and the instants at which it must have launched by the end.
struct Followed {
    id: ScheduleId,
    name: String,
    due: Vec<DateTime<Utc>>,
}

fn instant(text: &str) -> DateTime<Utc> {
    text.parse().expect("an instant in RFC 3339")
}

impl Swarm {
    /// A clock that stands so many seconds from the true one. A session lasts 30 days of it, whatever becomes of the tokens
    /// in between; whose is over is told to log in again.
    fn jump(&mut self, part: &str, offset_s: i64) {
        self.fault(&format!("the clock of the {part} jumps to {offset_s:+} s"));
        self.set_clock(part, offset_s);
        if part != "core" {
            return;
        }
        let answer = self.block(self.client.whoami());
        if offset_s.abs() < MONTH_S {
            let who = answer.unwrap_or_else(|error| panic!("a session is over at {offset_s:+} s: {error}"));
            assert_eq!(who.user, "admin");
            let ended = self.consumer(&["whoami"]);
            assert_eq!(ended.code, Some(0), "the session on disk is over at {offset_s:+} s: {}", ended.stderr);
        } else if let Err(error) = answer {
            let text = error.problem().map(|problem| format!("{} {:?}", problem.detail, problem.hint));
            assert!(error.is_status(401) && text.is_some_and(|text| text.contains("log in")), "{error:?}");
            self.client = self.client_at(&self.url);
        }
    }

    /// A few seconds before `instant`: enough to make a schedule in.
    fn jump_before(&mut self, instant: DateTime<Utc>) {
        self.jump("core", instant.timestamp() - now_us() / 1_000_000 - 5);
    }

    fn follow(&self, name: &str, cron: &str, zone: &str) -> Followed {
        let mut spec = self.shell("echo launched");
        spec.name = Some(name.to_owned());
        let request = ScheduleRequest { name: name.into(), cron: cron.into(), zone: zone.into(), spec };
        let made = self.block(self.client.create_schedule(&request)).expect("a good schedule is taken");
        Followed { id: made.id, name: name.to_owned(), due: Vec::new() }
    }

    fn launched(&self, schedule: &Followed) -> Option<Vec<(DateTime<Utc>, JobId)>> {
        let filter = JobFilter { name: Some(schedule.name.clone()), ..JobFilter::default() };
        let jobs = self.block(self.client.jobs(&filter)).ok()?.items;
        Some(jobs.iter().filter_map(|job| Some((job.launched_by.as_ref()?.nominal_at, job.id))).collect())
    }

    /// Waits for the launch of `due` and for the end of its job, so that it ends by the clock it began with.
    fn launches(&self, schedule: &mut Followed, due: DateTime<Utc>) {
        let job = eventually(&format!("`{}` launches at {due}", schedule.name), LAUNCHED, || {
            self.launched(schedule)?.into_iter().find(|(at, _)| *at == due).map(|(_, job)| job)
        });
        assert_eq!(self.wait_ended(job, PATIENCE).job.state, JobState::Succeeded);
        schedule.due.push(due);
    }

    /// Nothing beyond what was due so far; the checker says the same of the whole at the end.
    fn launches_no_more(&self, schedule: &Followed) {
        std::thread::sleep(Duration::from_secs(8));
        let mut seen: Vec<_> =
            self.launched(schedule).expect("the core answers").into_iter().map(|(at, _)| at).collect();
        seen.sort();
        assert_eq!(seen, schedule.due, "`{}`", schedule.name);
    }

    fn end_of(&self, schedule: &Followed) {
        self.block(self.client.pause_schedule(schedule.id)).expect("it can be paused");
        let due_us = schedule.due.iter().map(DateTime::timestamp_micros).collect();
        let expected = Expectation { schedule: schedule.id.0, due_us };
        self.recorder.add(now_us(), Verdict::Ok, Op::Schedule(expected));
    }

    /// A job whose lease must be renewed several times while clocks jump.
    fn submit_leased(&self, seconds: u32) -> JobId {
        let mut spec = self.shell(&format!("echo begun; sleep {seconds}; echo done"));
        spec.lease_s = 15;
        let job = self.submit(&spec);
        self.wait_started(job, 1);
        job
    }
}

fn swarm() -> Swarm {
    Swarm::start(Setup { fake_clocks: true, ..Setup::default() })
}

/// Forwards by one to two steps, back by one, to a step before the true time, and back to it; `cron` is due at each step.
fn jumps(what: &str, step_s: i64, cron: &str) {
    let mut swarm = swarm();
    let running = swarm.submit_leased(40);
    let next = (now_us() / 1_000_000 / step_s + 1) * step_s;
    let at = |n: i64| DateTime::from_timestamp(next + n * step_s, 0).expect("an instant");
    let mut due = swarm.follow("due", cron, "UTC");
    swarm.jump_before(at(1));
    // The one of the step between was missed meanwhile.
    swarm.launches(&mut due, at(0));
    swarm.launches(&mut due, at(1));
    // Back again: that step comes once more, and its instant is over.
    swarm.jump_before(at(1));
    swarm.launches_no_more(&due);
    swarm.jump("core", -step_s);
    swarm.launches_no_more(&due);
    swarm.end_of(&due);
    swarm.jump("core", 0);
    swarm.ran_once(running, super::SHORT_LOG);
    swarm.judge(&format!("clock of the core jumps by {what}"), true);
    report(&format!(
        "clock of the core jumped by {what} forwards and backwards: 2 instants, 2 launches, leases and sessions kept"
    ));
}

#[test]
fn a_core_whose_clock_jumps_ten_minutes_launches_each_instant_once_and_keeps_leases_and_sessions() {
    jumps("ten minutes", 600, "*/10 * * * *");
}

#[test]
fn a_core_whose_clock_jumps_an_hour_launches_each_instant_once_and_keeps_its_leases() {
    jumps("an hour", HOUR_S, "0 * * * *");
}

#[test]
fn a_core_whose_clock_jumps_a_day_launches_each_instant_once_and_keeps_leases_and_sessions() {
    jumps("a day", DAY_S, "0 0 * * *");
}

#[test]
fn a_core_whose_clock_passes_changes_of_the_hour_a_leap_day_and_2038_launches_each_instant_once() {
    let mut swarm = swarm();
    let (spring, autumn) = (instant("2027-03-28T01:00:00Z"), instant("2027-10-31T00:30:00Z"));
    swarm.jump_before(spring);
    let mut nightly = swarm.follow("nightly", "30 2 * * *", "Europe/Berlin");
    // 02:30 does not exist: it is 03:00 that day.
    swarm.launches(&mut nightly, spring);
    swarm.jump_before(autumn);
    // Of all that was missed in between, the latest.
    swarm.launches(&mut nightly, instant("2027-10-30T00:30:00Z"));
    swarm.launches(&mut nightly, autumn);
    // 02:30 comes a second time.
    swarm.jump_before(autumn + chrono::Duration::hours(1));
    swarm.launches_no_more(&nightly);
    swarm.end_of(&nightly);
    let leap = instant("2028-02-29T12:00:00Z");
    swarm.jump_before(leap);
    let mut leaping = swarm.follow("leap", "0 12 29 2 *", "UTC");
    swarm.launches(&mut leaping, leap);
    swarm.end_of(&leaping);
    let end_of_time = instant("2038-01-19T03:14:00Z");
    swarm.jump_before(end_of_time);
    let mut last = swarm.follow("last", "14 3 19 1 *", "UTC");
    swarm.launches(&mut last, end_of_time);
    // 2^31 seconds are over: jobs go on as before.
    swarm.jump("core", (1_i64 << 31) + 10 - now_us() / 1_000_000);
    let after = swarm.submit(&swarm.shell("echo begun; echo done"));
    swarm.ran_once(after, super::SHORT_LOG);
    swarm.end_of(&last);
    swarm.judge("clock of the core passes 2038", true);
    report("clock of the core passed a spring and an autumn change, a leap day and 2038: 5 instants, 5 launches");
}

#[test]
fn a_worker_whose_clock_jumps_keeps_its_leases_and_measures_what_ran() {
    let mut swarm = swarm();
    let running = swarm.submit_leased(30);
    for offset_s in [600, -600, HOUR_S, -HOUR_S, DAY_S, -DAY_S, (1 << 31) - now_us() / 1_000_000, 0] {
        swarm.jump("worker", offset_s);
        let job = swarm.submit(&swarm.shell("echo begun; sleep 1; echo done"));
        swarm.ran_once(job, super::SHORT_LOG);
    }
    swarm.ran_once(running, super::SHORT_LOG);
    swarm.judge("clock of the worker jumps", true);
}
