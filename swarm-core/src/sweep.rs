//! The sweep: finds what the other modules have lost, and removes what has expired. It owns nothing but what its last
//! look found, is woken by the clock alone, and promises that every waiting task is queued and every attempt on a worker
//! followed again, whatever was refused or went missing in between: within three looks that saw everything, or, where
//! more than 10,000 ranges of tasks or attempts are lost at a time, that many with every two looks.
//!
//! It reads the store in pages, so a look costs time and not memory, and asks the modules in the direction in which work
//! flows: hibernator, dispatcher, scheduler, harvester. The decision is in [`crate::plan::sweep`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use swarm_protocol::{AttemptId, JobId, TaskId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::messages::{DispatcherMsg, Handles, HarvesterMsg, HibernatorMsg, SchedulerMsg, Stopping};
use crate::plan::sweep::{Looks, Tasks};
use crate::recover::{expected, work_of};
use crate::store::{Applied, JobRecord, LivePhase, LiveTask, Store, StoreError, Transition, Work};
use crate::supervise::{Gauge, until_stopped};
use swarm_host::blocking;

/// Rows read at one time.
const PAGE: u32 = 1000;
/// From one look to the next.
pub const EVERY: Duration = Duration::from_secs(30);
/// From one removal of expired tokens to the next, in milliseconds.
const PURGE_EVERY_MS: u64 = 3_600_000;
/// How long ago they must have expired: a wall clock that was wrong for a while does no harm.
const EXPIRED_FOR: TimeDelta = TimeDelta::days(1);
/// Rows of a kind removed in one transition, and such transitions in a row.
const PURGED_ROWS: u32 = 1000;
const PURGES_MAX: usize = 100;

/// What the sweep works with.
#[derive(Clone)]
pub struct Deps {
    /// The truth.
    pub store: Arc<dyn Store>,
    /// The modules that hold what is not final.
    pub handles: Handles,
    /// Tells what is due.
    pub clock: Arc<dyn Clock>,
    /// From one look to the next; [`EVERY`] but in tests.
    pub every: Duration,
}

/// Why a look broke off.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Stopping(#[from] Stopping),
}

/// Runs until `stop`.
///
/// # Errors
/// None; the signature is that of all modules.
pub async fn run(deps: Deps, gauge: Gauge, stop: CancellationToken) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(deps.every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sweep = Sweep { deps, looks: Looks::default(), purge_at_ms: 0 };
    loop {
        let look = async {
            tick.tick().await;
            sweep.look().await
        };
        let looked = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            looked = look => looked,
        };
        match looked {
            Ok(()) => gauge.handled(),
            Err(Broken::Stopping(Stopping)) => return until_stopped(&stop).await,
            Err(Broken::Store(error)) => {
                tracing::warn!("a look for what was lost broke off: {error}");
                gauge.error(&error);
                sweep.looks.forget();
            }
        }
    }
}

struct Sweep {
    deps: Deps,
    looks: Looks,
    /// By the monotonic clock.
    purge_at_ms: u64,
}

impl Sweep {
    async fn look(&mut self) -> Result<(), Broken> {
        self.fresh().await?;
        self.live().await?;
        self.looks.turn();
        if self.deps.clock.boot_ms() >= self.purge_at_ms {
            self.purge().await?;
            self.purge_at_ms = self.deps.clock.boot_ms() + PURGE_EVERY_MS;
        }
        Ok(())
    }

    /// Removes expired tokens; what is left over is removed the next time.
    async fn purge(&self) -> Result<(), Stopping> {
        let before = self.deps.clock.now() - EXPIRED_FOR;
        for _ in 0..PURGES_MAX {
            let purge = Transition::PurgeExpired { before, rows_max: PURGED_ROWS };
            match self.deps.handles.ledger.commit(purge).await? {
                Ok(Applied::Purged(rows)) if rows >= u64::from(PURGED_ROWS) => {}
                Ok(_) => break,
                Err(refusal) => {
                    tracing::warn!("expired tokens are not removed: {refusal}");
                    break;
                }
            }
        }
        Ok(())
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = Arc::clone(&self.deps.store);
        blocking::run(move || read(&*store)).await
    }

    /// Tasks that never left the waiting state.
    async fn fresh(&mut self) -> Result<(), Broken> {
        let (mut after, now) = (None, self.deps.clock.now());
        loop {
            let page = self.read(move |store| store.fresh_tasks(after, now, PAGE)).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(*last);
            let mut tasks = Tasks::default();
            page.iter().for_each(|(job, range)| tasks.add(*job, &Work::Fresh(*range)));
            self.waiting(tasks).await?;
        }
    }

    /// Tasks that wait for another attempt, and attempts on workers.
    async fn live(&mut self) -> Result<(), Broken> {
        let (mut after, now) = (None, self.deps.clock.now());
        loop {
            let page = self.read(move |store| store.live_tasks(after, PAGE)).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(TaskId { job: last.job, task: last.task });
            let (mut tasks, mut on_workers) = (Tasks::default(), BTreeMap::new());
            for row in page {
                match row.phase {
                    LivePhase::Waiting { not_before } if not_before > now => {}
                    LivePhase::Waiting { .. } => tasks.add(row.job, &Work::Again(vec![(row.task, row.attempt)])),
                    LivePhase::Assigned { .. } | LivePhase::Started { .. } => {
                        on_workers.insert(AttemptId { job: row.job, task: row.task, attempt: row.attempt }, row);
                    }
                }
            }
            self.waiting(tasks).await?;
            self.on_workers(on_workers).await?;
        }
    }

    /// Queues those of `tasks` that nobody holds.
    async fn waiting(&mut self, tasks: Tasks) -> Result<(), Broken> {
        let Handles { hibernator, scheduler, .. } = self.deps.handles.clone();
        let tasks = ask(&hibernator, |reply| HibernatorMsg::Unheld { tasks, reply }).await?;
        self.settled().await?;
        let tasks = ask(&scheduler, |reply| SchedulerMsg::Unheld { tasks, reply }).await?;
        for (id, works) in self.looks.unheld(tasks).works() {
            let Some(job) = self.open_job(id).await? else { continue };
            for work in works {
                tracing::warn!(job.id = %id, "{} waiting tasks that nobody held are queued again", work.count());
                let work = work_of(&job, work);
                scheduler.send(SchedulerMsg::Enqueue(work)).await.map_err(|_| Stopping)?;
            }
        }
        Ok(())
    }

    /// Has those of `rows` followed that are not.
    async fn on_workers(&mut self, mut rows: BTreeMap<AttemptId, LiveTask>) -> Result<(), Broken> {
        self.settled().await?;
        let (harvester, attempts) = (self.deps.handles.harvester.clone(), rows.keys().copied().collect());
        let unfollowed = ask(&harvester, |reply| HarvesterMsg::Unfollowed { attempts, reply }).await?;
        let mut lost = Vec::new();
        for id in self.looks.unfollowed(unfollowed) {
            let Some(row) = rows.remove(&id) else { continue };
            let Some(job) = self.open_job(id.job).await? else { continue };
            let (worker, started_at) = match row.phase {
                LivePhase::Waiting { .. } => continue,
                LivePhase::Assigned { worker, .. } => (worker, None),
                LivePhase::Started { worker, started_at, .. } => (worker, Some(started_at)),
            };
            tracing::warn!(attempt = %id, %worker, "an attempt that nobody followed is followed again");
            lost.push((expected(&Arc::new(job), id, worker, row.losses, row.failures), started_at));
        }
        if !lost.is_empty() {
            harvester.send(HarvesterMsg::Follow(lost)).await.map_err(|_| Stopping)?;
        }
        Ok(())
    }

    async fn settled(&self) -> Result<(), Stopping> {
        ask(&self.deps.handles.dispatcher, |reply| DispatcherMsg::Settled { reply }).await
    }

    async fn open_job(&self, job: JobId) -> Result<Option<JobRecord>, StoreError> {
        let record = self.read(move |store| store.job(job)).await?;
        Ok(record.filter(|job| job.ended_at.is_none()))
    }
}

async fn ask<M, T>(module: &mpsc::Sender<M>, message: impl FnOnce(oneshot::Sender<T>) -> M) -> Result<T, Stopping> {
    let (reply, answer) = oneshot::channel();
    module.send(message(reply)).await.map_err(|_| Stopping)?;
    answer.await.map_err(|_| Stopping)
}
