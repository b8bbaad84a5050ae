//! What the checker makes of a world that has ended.

use std::collections::BTreeMap;

use swarm_checker::{
    Action, AttemptRow, Evidence, Frozen, Listed, Report, Stamp, Stamps, World as Stored, check, load,
};
use swarm_core::store::{Db, Store as _};
use swarm_protocol::{AttemptId, JobId, WorkerId};
use swarm_worker::runtime::fake::{self, EngineEvent};

use crate::schedules;
use crate::time::wall_us;
use crate::world::World;

/// What comes before the names of all labels.
const LABEL: &str = "io.swarm-sync.";

fn label(event: &EngineEvent, name: &str) -> Option<u64> {
    event.labels.get(&format!("{LABEL}{name}"))?.parse().ok()
}

/// The attempt that a container was made for; none for those of the worker itself.
pub(crate) fn attempt_of(event: &EngineEvent) -> Option<AttemptId> {
    let (job, task, attempt) = (label(event, "job")?, label(event, "task")?, label(event, "attempt")?);
    Some(AttemptId { job: JobId(job), task: u32::try_from(task).ok()?, attempt: u16::try_from(attempt).ok()? })
}

fn stamp(event: &EngineEvent) -> Option<Stamp> {
    let AttemptId { job, task, attempt } = attempt_of(event)?;
    let action = match event.action {
        fake::Action::Create => Action::Create,
        fake::Action::Start => Action::Start,
        fake::Action::Die => Action::Die,
        fake::Action::Destroy => Action::Destroy,
    };
    Some(Stamp {
        container: event.name.clone(),
        job: job.0,
        task,
        attempt,
        worker: label(event, "worker")?,
        at_us: event.at_us.cast_signed(),
        action: Some(action),
        listed: None,
    })
}

/// All stamps, with a listing of what is there.
fn stamps<'a>(events: impl Iterator<Item = &'a EngineEvent>) -> Stamps {
    let mut stamps: Vec<Stamp> = events.filter_map(stamp).collect();
    stamps.sort_by_key(|stamp| stamp.at_us);
    let mut there = BTreeMap::<String, (Stamp, bool)>::new();
    for stamp in &stamps {
        match stamp.action {
            Some(Action::Create) => drop(there.insert(stamp.container.clone(), (stamp.clone(), false))),
            Some(Action::Destroy) => drop(there.remove(&stamp.container)),
            Some(what) => {
                if let Some((_, running)) = there.get_mut(&stamp.container) {
                    *running = what == Action::Start;
                }
            }
            None => {}
        }
    }
    let at_us = wall_us().cast_signed();
    let listed = there.into_values().map(|(made, running)| {
        let listed = Some(Listed { created_us: made.at_us, running });
        Stamp { at_us, action: None, listed, ..made }
    });
    stamps.extend(listed);
    Stamps(stamps)
}

impl World {
    /// Judges everything that was seen; beside the report, what the checker does not know of.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) fn judge(&self) -> anyhow::Result<(Report, Vec<String>)> {
        // A worker that never ran a container has no number here, and froze none.
        let frozen = self.frozen.iter().cloned().chain(self.unwatched()).filter_map(|frozen| {
            let event = self.events.iter().find(|(place, _)| *place == frozen.worker).map(|(_, event)| event);
            let until_us = i64::try_from(frozen.until_us).unwrap_or(i64::MAX / 2);
            Some(Frozen { worker: label(event?, "worker")?, from_us: frozen.from_us.cast_signed(), until_us })
        });
        let (world, schedules) = (load(&self.database())?, Db::open(self.database().as_str())?.schedules(None)?);
        let mut broken = self.promises().broken();
        for record in schedules {
            let life = self.promises().life_of(record.id);
            broken.extend(schedules::check(&record, life, self.healed_at_us(), self.clocks_were_set(), &world));
        }
        broken.extend(self.forgotten(&world));
        let evidence = Evidence {
            history: self.users().history(),
            world: Some(world),
            stamps: Some(stamps(self.events.iter().map(|(_, event)| event))),
            all_ended: true,
            frozen: frozen.collect(),
            clocks_differ: self.clocks_were_set(),
        };
        Ok((check(&evidence), broken))
    }

    /// Attempts that a worker had and then did not, though it lived on: it forgot them before the core knew how they ended.
    /// Those that run at most once are lost in this way by a core that restarted too: it cannot know whether its former
    /// life allowed their start.
    fn forgotten(&self, world: &Stored) -> Vec<String> {
        let is_lost = |attempt: &AttemptRow| attempt.loss.as_deref() == Some("worker-restarted");
        let may_repeat = |id: &AttemptId| world.jobs.get(&id.job).is_some_and(|job| !job.at_most_once);
        let lived_on =
            |worker| self.promises().place_of(WorkerId(worker)).is_some_and(|place| self.never_restarted(place));
        let lost = world
            .attempts
            .iter()
            .filter(|(id, attempt)| is_lost(attempt) && may_repeat(id) && lived_on(attempt.worker));
        lost.map(|(id, attempt)| {
            format!("{id} was lost by a restart of worker {}, which never restarted", attempt.worker)
        })
        .collect()
    }
}
