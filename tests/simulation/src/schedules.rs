//! What a schedule must have launched: I6, and what becomes of instants that were missed.

use chrono::TimeDelta;
use swarm_checker::World;
use swarm_core::plan::cron::CronRule;
use swarm_core::store::ScheduleRecord;
use swarm_protocol::Timestamp;

/// From the end of all faults until everything works as ever.
const RECOVERY: TimeDelta = TimeDelta::seconds(60);
/// How late a launch may be in calm times.
const LATE: TimeDelta = TimeDelta::seconds(15);

/// What is wrong with a schedule that lived from the first to the second instant of `life`, by the core's clock.
pub(crate) fn check(
    record: &ScheduleRecord,
    life: Option<(Timestamp, Option<Timestamp>)>,
    healed_us: Option<u64>,
    clocks_were_set: bool,
    world: &World,
) -> Vec<String> {
    let (id, mut broken) = (record.id, Vec::new());
    let Ok(rule) = CronRule::parse(&record.cron, &record.zone) else {
        return vec![format!("schedule {id} is no rule")];
    };
    let Some((made, paused)) = life else { return vec![format!("schedule {id} was never made")] };
    let launches: Vec<(Timestamp, Timestamp)> = world
        .launches
        .iter()
        .filter(|launch| launch.schedule == id.0)
        .filter_map(|launch| Some((at(launch.nominal_us), at(world.jobs.get(&launch.job)?.submitted_us))))
        .collect();
    for (nominal, launched) in &launches {
        let is_instant = rule.next_after(*nominal - TimeDelta::microseconds(1)) == Some(*nominal);
        let is_latest = nominal <= launched && rule.next_after(*nominal).is_none_or(|next| next > *launched);
        if !is_instant || !is_latest {
            broken.push(format!("schedule {id} was launched at {launched} for {nominal}, not its latest instant"));
        }
    }
    if let (Some(paused), Some(healed_us)) = (paused, healed_us) {
        let calm = between(&rule, at(healed_us.cast_signed()) + RECOVERY, paused - LATE);
        for instant in calm.into_iter().filter(|instant| launches.iter().all(|(nominal, _)| nominal != instant)) {
            broken.push(format!("schedule {id} was not launched for {instant}, though nothing was wrong then"));
        }
    }
    let passed = between(&rule, made, record.considered_until).len() as u64;
    let told = launches.len() as u64 + record.missed;
    if !clocks_were_set && passed != told {
        let missed = record.missed;
        broken.push(format!(
            "{passed} instants of schedule {id} have passed, {} were launched and {missed} counted as missed",
            launches.len()
        ));
    }
    broken
}

fn at(us: i64) -> Timestamp {
    Timestamp::from_timestamp_micros(us).unwrap_or_default()
}

/// The instants after `from` up to `until`.
fn between(rule: &CronRule, from: Timestamp, until: Timestamp) -> Vec<Timestamp> {
    std::iter::successors(rule.next_after(from), |at| rule.next_after(*at)).take_while(|at| *at <= until).collect()
}
