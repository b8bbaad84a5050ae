//! The hibernator: holds what must not run yet, and makes the jobs of schedules. It owns an index over the store (delayed
//! work by instant, schedules with their next instant); it is woken by its inbox, and looks at the wall clock at least
//! every second.
//!
//! - **Clock jumps.** Instants are wall-clock time. A jump forward releases within a second what it made due; after a jump
//!   backward, instants that come again are looked at again, and the launch's primary key (schedule, instant) lets each
//!   of them make a job only once (I6).
//! - **Launches** are committed before their job is released. Of instants that passed unlaunched (the core was down, the
//!   clock jumped), the latest one is launched, however long ago it was, and the others are counted as missed; see
//!   [`crate::plan::launches`].
//! - **Restart.** Missed instants are counted before the launch, and both move the schedule's `considered_until`: wherever
//!   a core stops, the next one neither counts nor launches an instant twice. An instant found launched already is noted
//!   as considered.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use swarm_host::blocking;
use swarm_protocol::api::Launch;
use swarm_protocol::{JobId, ScheduleId, Timestamp};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::harvester::retry;
use crate::messages::{HibernatorMsg, LedgerHandle, Runnable, SchedulerMsg, Stopping};
use crate::plan::cron::CronRule;
use crate::plan::launches::{self, Due};
use crate::plan::sweep::Tasks;
use crate::receiver::runnable;
use crate::store::{Applied, NewJob, Refusal, ScheduleRecord, Store, Transition, Verdict, Work};
use crate::supervise::{Gauge, until_stopped};

/// Longest pause between two looks at the wall clock.
const LOOK: Duration = Duration::from_secs(1);
/// Messages handled at one time, and launches that share a batch of the ledger.
const BATCH: usize = 256;

/// What the hibernator works with.
#[derive(Clone)]
pub struct Deps {
    /// Where launches go.
    pub ledger: LedgerHandle,
    /// Where changed schedules are read.
    pub store: Arc<dyn Store>,
    /// Gets what is released.
    pub scheduler: mpsc::Sender<SchedulerMsg>,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
}

/// Runs the hibernator until `stop` or until all senders are gone. It begins with `delayed` and `schedules`, as
/// [`crate::recover`] found them.
///
/// # Errors
/// None; the signature is that of all modules.
pub async fn run(
    mut inbox: mpsc::Receiver<HibernatorMsg>,
    deps: Deps,
    delayed: Vec<(Timestamp, Runnable)>,
    schedules: Vec<ScheduleRecord>,
    gauge: Gauge,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let looked_at = deps.clock.now();
    let mut hibernator = Hibernator {
        deps,
        gauge,
        held: Held::default(),
        timers: HashMap::new(),
        changed: BTreeSet::new(),
        read_after: None,
        looked_at,
    };
    for (until, work) in delayed {
        hibernator.held.hold(until, work);
    }
    for schedule in schedules {
        hibernator.set_timer(schedule);
    }
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        hibernator.read_changed().await;
        if hibernator.look().await.is_err() {
            return until_stopped(&stop).await;
        }
        let pause = hibernator.pause();
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            count = inbox.recv_many(&mut batch, BATCH) => {
                if count == 0 {
                    return Ok(());
                }
                for message in batch.drain(..) {
                    hibernator.handle(message);
                }
                hibernator.gauge.handled_many(count as u64);
            }
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Delayed work by instant, and by job.
#[derive(Default)]
struct Held {
    by_instant: BTreeMap<(Timestamp, u64), Runnable>,
    by_job: HashMap<JobId, BTreeSet<(Timestamp, u64)>>,
    next: u64,
}

impl Held {
    fn hold(&mut self, until: Timestamp, work: Runnable) {
        let key = (until, self.next);
        self.next += 1;
        self.by_job.entry(work.job).or_default().insert(key);
        self.by_instant.insert(key, work);
    }

    fn remove(&mut self, job: JobId) {
        for key in self.by_job.remove(&job).unwrap_or_default() {
            self.by_instant.remove(&key);
        }
    }

    /// Takes out of `tasks` what is held here.
    fn take_held(&self, tasks: &mut Tasks) {
        for job in tasks.jobs() {
            let keys = self.by_job.get(&job).into_iter().flatten();
            keys.filter_map(|key| self.by_instant.get(key)).for_each(|held| tasks.remove(job, &held.work));
        }
    }

    /// Takes the first work that is due.
    fn release(&mut self, now: Timestamp) -> Option<Runnable> {
        let first = self.by_instant.first_entry().filter(|first| first.key().0 <= now)?;
        let (key, work) = first.remove_entry();
        if let Some(keys) = self.by_job.get_mut(&work.job) {
            keys.remove(&key);
            if keys.is_empty() {
                self.by_job.remove(&work.job);
            }
        }
        Some(work)
    }

    /// The clock was set back to `now`: what runs again after a backoff waits no longer than one.
    fn rewind(&mut self, now: Timestamp) {
        let is_late = |until: Timestamp, work: &Runnable| due(until, work, now) < until;
        let late: Vec<_> = self.by_instant.extract_if(.., |(until, _), work| is_late(*until, work)).collect();
        for (key, work) in late {
            self.by_job.entry(work.job).or_default().remove(&key);
            self.hold(due(key.0, &work, now), work);
        }
    }

    fn first(&self) -> Option<Timestamp> {
        self.by_instant.keys().next().map(|(until, _)| *until)
    }
}

/// Until when work is held that was to be held until `until`: what runs again after a backoff waits no longer than one.
fn due(until: Timestamp, work: &Runnable, now: Timestamp) -> Timestamp {
    if matches!(work.work, Work::Again(_)) { retry::due(until, now) } else { until }
}

/// A schedule that is not paused.
struct Timer {
    record: ScheduleRecord,
    rule: CronRule,
    /// No instant up to here is looked at again.
    settled: Timestamp,
    next: Option<Timestamp>,
}

impl Timer {
    /// It is `now`, and of the instants up to here none is open: a wall clock that was set back makes those ahead of it
    /// open again.
    fn rewind(&mut self, now: Timestamp) {
        self.settle(self.record.considered_until.min(now));
    }

    /// After which instant some may be open. What was considered once is not counted again when a clock that was set back
    /// has come past it.
    fn open_from(&self, now: Timestamp) -> Timestamp {
        if self.record.considered_until <= now { self.record.considered_until } else { self.settled }
    }

    fn settle(&mut self, until: Timestamp) {
        self.settled = until;
        self.next = self.rule.next_after(until);
    }

    fn job(&self, nominal_at: Timestamp, now: Timestamp) -> NewJob {
        let record = &self.record;
        NewJob {
            owner: record.owner,
            group: record.group,
            job: record.job.clone(),
            submitted_at: now,
            idempotency: None,
            launch: Some(Launch { schedule: record.id, nominal_at }),
        }
    }
}

struct Hibernator {
    deps: Deps,
    gauge: Gauge,
    held: Held,
    timers: HashMap<ScheduleId, Timer>,
    /// Schedules to be read again.
    changed: BTreeSet<ScheduleId>,
    /// When the next one may be read, after one could not.
    read_after: Option<Instant>,
    looked_at: Timestamp,
}

impl Hibernator {
    fn handle(&mut self, message: HibernatorMsg) {
        match message {
            HibernatorMsg::Hold { until, work } => {
                // The clock may have been set back since somebody said until when.
                self.held.hold(due(until, &work, self.deps.clock.now()), work);
            }
            HibernatorMsg::Remove(job) => self.held.remove(job),
            HibernatorMsg::Unheld { mut tasks, reply } => {
                self.held.take_held(&mut tasks);
                let _ = reply.send(tasks);
            }
            HibernatorMsg::ScheduleChanged(schedule) => drop(self.changed.insert(schedule)),
        }
    }

    /// Reads the schedules that changed. One that cannot be read now goes on as it was known, as the store guards its
    /// launches, and is read again at a later look.
    async fn read_changed(&mut self) {
        if self.read_after.is_some_and(|after| Instant::now() < after) {
            return;
        }
        self.read_after = None;
        while let Some(schedule) = self.changed.pop_first() {
            let store = Arc::clone(&self.deps.store);
            match blocking::run(move || store.schedule(schedule)).await {
                Ok(Some(record)) => self.set_timer(record),
                Ok(None) => drop(self.timers.remove(&schedule)),
                Err(error) => {
                    tracing::error!(%schedule, "a changed schedule cannot be read now: {error}");
                    self.gauge.error(&error);
                    self.changed.insert(schedule);
                    self.read_after = Some(Instant::now() + LOOK);
                    break;
                }
            }
        }
    }

    fn set_timer(&mut self, record: ScheduleRecord) {
        self.timers.remove(&record.id);
        if record.paused {
            return;
        }
        match CronRule::parse(&record.cron, &record.zone) {
            Ok(rule) => {
                let mut timer = Timer { settled: record.considered_until, record, rule, next: None };
                timer.rewind(self.deps.clock.now());
                self.timers.insert(timer.record.id, timer);
            }
            // Accepted once, so only a change of the rules' reader or a damaged store leads here.
            Err(error) => {
                tracing::error!(schedule = %record.id, "the schedule cannot be read and does not fire: {error}");
                self.gauge.error(&error);
            }
        }
    }

    fn pause(&self) -> Duration {
        let next = self.timers.values().filter_map(|timer| timer.next).chain(self.held.first()).min();
        let until = next.and_then(|next| (next - self.deps.clock.now()).to_std().ok());
        // An instant already due is looked at again at once, but never in a spin.
        until.map_or(LOOK, |until| until.clamp(Duration::from_millis(1), LOOK))
    }

    /// Releases and launches what is due by the wall clock.
    async fn look(&mut self) -> Result<(), Stopping> {
        let now = self.deps.clock.now();
        if now < self.looked_at {
            self.timers.values_mut().for_each(|timer| timer.rewind(now));
            self.held.rewind(now);
        }
        self.looked_at = now;
        while let Some(work) = self.held.release(now) {
            self.deps.scheduler.send(SchedulerMsg::Enqueue(work)).await.map_err(|_| Stopping)?;
        }
        let mut due: Vec<_> = self.timers.iter().filter_map(|(id, timer)| Some((timer.next?, *id))).collect();
        due.retain(|(next, _)| *next <= now);
        due.sort_unstable();
        for some in due.chunks(BATCH) {
            self.launch(some, now).await?;
        }
        Ok(())
    }

    /// Launches the latest due instant of each of these schedules; their commits share batches.
    async fn launch(&mut self, schedules: &[(Timestamp, ScheduleId)], now: Timestamp) -> Result<(), Stopping> {
        let (mut under_way, mut counted) = (Vec::with_capacity(schedules.len()), Vec::new());
        for (_, id) in schedules {
            let Some(timer) = self.timers.get_mut(id) else { continue };
            let Some(due) = launches::due(&timer.rule, timer.open_from(now), now) else {
                timer.rewind(now);
                continue;
            };
            // Instants ahead of a clock that was set back were counted before.
            if due.missed > 0 && timer.record.considered_until <= now {
                let until = due.nominal_at - TimeDelta::microseconds(1);
                let missed = Transition::MissLaunches { schedule: *id, missed: due.missed, until };
                counted.push(self.deps.ledger.queue(missed).await?);
            }
            let new = timer.job(due.nominal_at, now);
            let work = runnable(JobId(0), &new);
            let verdict = self.deps.ledger.queue(Transition::CreateJob(Box::new(new))).await?;
            under_way.push((*id, due, work, verdict));
        }
        for (id, due, work, verdict) in under_way {
            let verdict = verdict.await.map_err(|_| Stopping)?;
            counted.extend(self.settle(id, due, work, verdict, now).await?);
        }
        for counted in counted {
            if let Err(refusal) = counted.await.map_err(|_| Stopping)? {
                tracing::debug!("the schedule is gone: {refusal}");
            }
        }
        Ok(())
    }

    /// Releases what was launched; an instant that makes no job is noted as considered, or it would come up again.
    async fn settle(
        &mut self,
        schedule: ScheduleId,
        due: Due,
        mut work: Runnable,
        verdict: Verdict,
        now: Timestamp,
    ) -> Result<Option<oneshot::Receiver<Verdict>>, Stopping> {
        let until = due.nominal_at;
        if let Some(timer) = self.timers.get_mut(&schedule) {
            timer.record.considered_until = timer.record.considered_until.max(until);
            timer.settle(until);
        }
        let missed = match verdict {
            Ok(Applied::Job { job, repeated: false }) => {
                tracing::info!(%schedule, %job, nominal_at = %until, missed = due.missed, "schedule launched a job");
                work.job = job;
                if work.runnable_since > now {
                    self.held.hold(work.runnable_since, work);
                } else {
                    self.deps.scheduler.send(SchedulerMsg::Enqueue(work)).await.map_err(|_| Stopping)?;
                }
                return Ok(None);
            }
            Err(Refusal::NotFound(_)) => {
                self.timers.remove(&schedule);
                return Ok(None);
            }
            Ok(_) | Err(Refusal::Conflict(_)) => {
                tracing::debug!(%schedule, nominal_at = %until, "this instant was launched before");
                0
            }
            Err(refusal) => {
                tracing::error!(%schedule, nominal_at = %until, "a launch was refused: {refusal}");
                self.gauge.error(&refusal);
                1
            }
        };
        self.deps.ledger.queue(Transition::MissLaunches { schedule, missed, until }).await.map(Some)
    }
}
