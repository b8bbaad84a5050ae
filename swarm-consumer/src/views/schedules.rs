//! Schedules.

use std::fmt::Write as _;

use serde_json::Value;
use swarm_protocol::api::ScheduleView;

use super::{dash, instant, safe, table, value};
use crate::output::Report;

/// Schedules.
pub(crate) struct Schedules(pub(crate) Vec<ScheduleView>);

impl Report for Schedules {
    fn human(&self) -> String {
        let rows = self.0.iter().map(|schedule| {
            let next = schedule.next.first().map(|at| instant(*at));
            vec![
                schedule.id.to_string(),
                schedule.name.clone(),
                schedule.cron.clone(),
                schedule.zone.clone(),
                if schedule.paused { "paused".to_owned() } else { dash(next) },
                dash(schedule.last.as_ref().map(|last| format!("{} job {}", instant(last.nominal_at), last.job))),
                schedule.missed.to_string(),
            ]
        });
        table(&["ID", "NAME", "CRON", "ZONE", "NEXT", "LAST", "MISSED"], rows)
    }

    fn json(&self) -> Value {
        value(&self.0)
    }

    fn ids(&self) -> Vec<String> {
        self.0.iter().map(|schedule| schedule.id.to_string()).collect()
    }
}

/// One schedule.
pub(crate) struct Schedule(pub(crate) ScheduleView);

impl Report for Schedule {
    fn human(&self) -> String {
        let schedule = &self.0;
        let mut text = String::new();
        let mut line = |name: &str, what: String| {
            let _ = writeln!(text, "{name:<10} {}", safe(&what));
        };
        line("schedule", format!("{} ({})", schedule.name, schedule.id));
        line("cron", format!("{} in {}", schedule.cron, schedule.zone));
        line("image", schedule.spec.image.clone());
        line("owner", schedule.owner.clone());
        if schedule.paused {
            line("next", "paused".to_owned());
        }
        for at in &schedule.next {
            line("next", instant(*at));
        }
        if let Some(last) = &schedule.last {
            line("last", format!("{} as job {}", instant(last.nominal_at), last.job));
        }
        if schedule.missed > 0 {
            line("missed", format!("{} while no core ran", schedule.missed));
        }
        text
    }

    fn json(&self) -> Value {
        value(&self.0)
    }

    fn ids(&self) -> Vec<String> {
        vec![self.0.id.to_string()]
    }
}
