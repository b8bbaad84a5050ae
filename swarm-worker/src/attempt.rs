//! One attempt from its order to the core's last word: one task, which nothing but this module's own steps moves.
//!
//! ```text
//! order spooled ─▶ slot ─▶ image, volumes, container, inputs ─▶ (start committed) ─▶ start ─▶ exit ─▶ outputs
//!        └──────────────┴───────────────┴── any step may fail ─────┴───────────┴─────────┴───▶ report spooled
//!                                                                         report spooled ─▶ stored ─▶ forgotten
//! ```
//! Beside it a reporter repeats to every new link session what the core may have missed.

mod log_file;
mod logs;
mod meter;
mod outputs;
mod prepare;
mod report;
mod running;
mod signal;
mod unpack;
mod user;

use std::sync::Arc;
use std::time::Duration;

use swarm_host::blocking;
use swarm_protocol::link::{FinalReport, HeldPhase, TaskOrder, ToCore};
use swarm_protocol::{AttemptId, LossReason, Outcome};
use tokio::sync::watch;

pub(crate) use self::user::Owner;
use crate::context::Ctx;
use crate::engine;
use crate::hub::{Control, Stop};
use crate::images::cache::Claim;
use crate::runtime::{ContainerId, ContainerState, RuntimeError};
use crate::spool::{Entry, StartMark};

/// Where an attempt is taken up.
#[derive(Debug)]
pub(crate) enum Stage {
    /// Nothing exists but the spooled order.
    New,
    /// As [`Stage::New`], found at the worker's start: it waits until the core confirms that it is still wanted.
    Found,
    /// A container that was started, found at the worker's start.
    Adopted(ContainerId, ContainerState, StartMark),
    /// Found at the worker's start without a container, though it may have run.
    Vanished,
    /// Its report is spooled already.
    Reported(Box<FinalReport>),
}

/// What the reporter tells the core.
#[derive(Debug, Clone, Default)]
struct Progress {
    /// An at-most-once attempt waits for its start to be committed.
    wants_start: bool,
    /// The engine's stamp of the start.
    started_at_us: Option<u64>,
    /// Bytes of log in the spool.
    log_bytes: u64,
    /// The end, once it is spooled.
    report: Option<Arc<FinalReport>>,
}

/// Why a step ends an attempt.
#[derive(Debug)]
enum End {
    /// To be reported; nothing ran.
    With(Outcome),
    /// To be reported; it may have run, and not all that it wrote is in the spool.
    Torn(Outcome),
    /// Given back or given up: nothing is reported.
    Silently,
}

impl From<Outcome> for End {
    fn from(outcome: Outcome) -> Self {
        Self::With(outcome)
    }
}

impl From<Stop> for End {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Cancel { .. } => Self::With(Outcome::Cancelled),
            Stop::LeaseExpired => Self::With(lease_expired()),
            Stop::Recall | Stop::Abandon => Self::Silently,
        }
    }
}

impl End {
    fn torn(self) -> Self {
        if let Self::With(outcome) = self { Self::Torn(outcome) } else { self }
    }
}

fn restarted() -> Outcome {
    let detail = "the worker or its machine was restarted and the container is gone".to_owned();
    Outcome::Lost { reason: LossReason::WorkerRestarted, detail }
}

fn lease_expired() -> Outcome {
    let detail = "the worker could not renew the lease in time and stopped the container".to_owned();
    Outcome::Lost { reason: LossReason::LeaseExpired, detail }
}

/// The step was not the job's fault unless the engine says so.
fn engine_end(error: &RuntimeError) -> End {
    match error {
        RuntimeError::Invalid { .. } | RuntimeError::StartRefused { .. } => {
            let reason = swarm_protocol::text::sanitise(&error.to_string(), false);
            End::With(Outcome::Refused { reason })
        }
        _ => End::With(crate::images::engine(error)),
    }
}

fn spool_end(error: &std::io::Error) -> End {
    let detail = format!("the worker's spool cannot be used: {error}");
    End::With(Outcome::Lost { reason: LossReason::Engine, detail })
}

/// Starts the task of an attempt that the hub holds.
pub(crate) fn spawn(ctx: &Arc<Ctx>, order: TaskOrder, control: watch::Receiver<Control>, stage: Stage) {
    let claim = ctx.images.in_use.claim(order.image.config);
    let attempt = Attempt {
        id: order.attempt,
        name: ctx.container_name(order.attempt),
        entry: ctx.spool.entry(order.attempt),
        ctx: ctx.clone(),
        order,
        control,
        progress: watch::Sender::default(),
        _claim: claim,
    };
    let stop = ctx.stop.clone();
    ctx.tasks.spawn(async move {
        // A panic here must not leave an attempt that nobody looks after: the worker stops and starts anew.
        let guard = stop.clone().drop_guard();
        tokio::select! {
            biased;
            // The container lives on and is adopted by the next start.
            () = stop.cancelled() => {}
            () = attempt.live(stage) => {}
        }
        guard.disarm();
    });
}

/// See the module.
struct Attempt {
    ctx: Arc<Ctx>,
    id: AttemptId,
    /// The container's.
    name: String,
    order: TaskOrder,
    entry: Entry,
    control: watch::Receiver<Control>,
    progress: watch::Sender<Progress>,
    /// Its image stays as long as it may be needed.
    _claim: Claim,
}

impl Attempt {
    async fn live(&self, stage: Stage) {
        let reporter =
            report::run(&self.ctx, self.id, self.entry.log(), self.progress.subscribe(), self.control.clone());
        tokio::join!(self.work(stage), reporter);
        let entry = self.entry.clone();
        if let Err(error) = blocking::run(move || entry.remove()).await {
            tracing::warn!(attempt = %self.id, %error, "the spool of an attempt that is over cannot be removed");
        }
        self.ctx.hub.forget(self.id);
        let recalled = self.control.borrow().stop == Some(Stop::Recall);
        if recalled {
            self.ctx.hub.say(ToCore::Recalled { attempts: vec![self.id] }).await;
        }
    }

    /// Works towards the report, and leaves nothing on the engine.
    async fn work(&self, stage: Stage) {
        let ended = match stage {
            Stage::New => self.run_through().await,
            Stage::Found => self.run_when_confirmed().await,
            Stage::Adopted(id, state, mark) => self.take_up(&id, &state, &mark).await,
            Stage::Vanished => {
                // A start may be on its way still: reported is only what can run no more.
                self.remove_until_gone().await;
                Err(End::Torn(restarted()))
            }
            Stage::Reported(report) => Ok(self.mended(*report).await),
        };
        let report = match ended {
            Ok(report) => Some(report),
            Err(End::With(outcome)) => Some(self.report_of(outcome, false).await),
            Err(End::Torn(outcome)) => Some(self.report_of(outcome, true).await),
            Err(End::Silently) => None,
        };
        if let Some(report) = report {
            self.finish(report).await;
        }
        self.clear_engine().await;
    }

    /// Everything from the order to the report.
    async fn run_through(&self) -> Result<FinalReport, End> {
        let slots = self.ctx.slots.clone();
        let _slot = self.unless_stopped(async move { Ok(slots.acquire_owned().await) }).await?;
        if !self.unless_stopped(async { Ok(engine::answers(&self.ctx).await) }).await? {
            // Given back: another worker may do it, and this one refuses it until the engine answers again.
            self.ctx.hub.recall(self.id);
            return Err(self.stop_asked());
        }
        let mut ready = self.prepare().await?;
        self.commit_start().await?;
        let running = self.start(&mut ready).await?;
        self.follow(&ready.id, running).await
    }

    async fn run_when_confirmed(&self) -> Result<FinalReport, End> {
        // Leftovers carry the labels of an earlier boot.
        self.clear_engine().await;
        let mut control = self.control.clone();
        self.unless_stopped(async {
            let _ = control.wait_for(|control| control.confirmed).await;
            Ok(())
        })
        .await?;
        self.run_through().await
    }

    /// A container that an earlier start of this worker began.
    async fn take_up(&self, id: &ContainerId, state: &ContainerState, mark: &StartMark) -> Result<FinalReport, End> {
        // It runs already, so it takes a slot only if there is one.
        let _slot = self.ctx.slots.clone().try_acquire_owned();
        let running = running::Running::adopted(&self.ctx, state, mark);
        if let Some(started_at_us) = state.started_at_us {
            self.started(started_at_us);
        }
        self.follow(id, running).await
    }

    /// Passes the point of no return. An at-most-once attempt waits until its start is committed; its mark is written
    /// before it asks, so a restart in between never starts it.
    async fn commit_start(&self) -> Result<(), End> {
        let begin = || self.ctx.hub.begin_start(self.id, self.ctx.machine.now_ns());
        if !begin() {
            return Err(self.stop_asked());
        }
        self.mark_start().await?;
        if !self.order.at_most_once {
            return Ok(());
        }
        self.progress.send_modify(|progress| progress.wants_start = true);
        let mut control = self.control.clone();
        self.unless_stopped(async {
            let _ = control.wait_for(|control| control.start_committed).await;
            Ok(())
        })
        .await?;
        self.progress.send_modify(|progress| progress.wants_start = false);
        if begin() { Ok(()) } else { Err(self.stop_asked()) }
    }

    async fn mark_start(&self) -> Result<(), End> {
        let mark = StartMark { machine_boot: self.ctx.machine_boot.clone(), boot_ns: self.ctx.machine.now_ns() };
        self.entry.mark_start(mark).await.map_err(|error| spool_end(&error))
    }

    /// Notes and announces that the container runs.
    fn started(&self, started_at_us: u64) {
        self.ctx.hub.set_phase(self.id, HeldPhase::Running { started_at_us });
        self.progress.send_modify(|progress| progress.started_at_us = Some(started_at_us));
    }

    /// Spools the report; from then on the attempt has ended.
    /// The spooled report, unless the disk has not kept all of the log that it speaks of: what is left is marked as cut
    /// then, for the container is gone and a report that waits for lost bytes would never be taken.
    async fn mended(&self, report: FinalReport) -> FinalReport {
        let log = self.entry.log();
        let kept = blocking::run(move || std::fs::metadata(log).map_or(0, |found| found.len())).await;
        if kept >= report.log_bytes {
            return report;
        }
        tracing::error!(attempt = %self.id, "the disk has lost a part of the spooled log, which is marked as cut");
        let left = self.report_of(report.outcome.clone(), true).await;
        FinalReport {
            log_bytes: left.log_bytes,
            log_digest: left.log_digest,
            log_cut_bytes: left.log_cut_bytes.max(report.log_cut_bytes),
            ..report
        }
    }

    async fn finish(&self, report: FinalReport) {
        // Without the report on disk nothing may be promised, so a full disk makes this wait and not lie.
        let mut holds_disk = true;
        while let Err(error) = self.entry.keep_report(&report).await {
            tracing::error!(attempt = %self.id, %error, "the final report cannot be spooled, trying again");
            // What the job wrote may be what fills the disk, and whatever was wanted of it is here already.
            if std::mem::take(&mut holds_disk) {
                self.clear_engine().await;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tracing::info!(attempt = %self.id, outcome = %report.outcome.kind(), "the attempt ended");
        self.ctx.hub.set_phase(self.id, HeldPhase::Ended);
        self.progress.send_modify(|progress| {
            progress.log_bytes = report.log_bytes;
            progress.report = Some(Arc::new(report));
        });
    }

    /// Waits until the attempt is asked to stop.
    async fn stopped(&self) -> Stop {
        let mut control = self.control.clone();
        match control.wait_for(|control| control.stop.is_some()).await {
            Ok(control) => control.stop.unwrap_or(Stop::Abandon),
            // The hub let go of the attempt, so nobody wants it.
            Err(_) => Stop::Abandon,
        }
    }

    fn stop_asked(&self) -> End {
        self.control.borrow().stop.map_or(End::Silently, End::from)
    }

    /// Does `work` unless the attempt is asked to stop first; only for work that may be dropped half done.
    async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T, End>>) -> Result<T, End> {
        tokio::select! {
            biased;
            stop = self.stopped() => Err(stop.into()),
            done = work => done,
        }
    }

    /// Removes container and volumes. What cannot be removed now is left to the sweep.
    async fn clear_engine(&self) {
        let gone = report_leftover(&self.name, self.remove_container().await);
        for n in 0..prepare::directories(&self.order).len() {
            let volume = prepare::volume_name(&self.name, n);
            report_leftover(&volume, self.ctx.runtime.remove_volume(&volume).await);
        }
        if gone {
            self.ctx.watch.remove(&self.name);
        }
    }

    /// As [`remove_container`](Self::remove_container), however often the engine fails.
    async fn remove_until_gone(&self) {
        while let Err(error) = self.remove_container().await {
            tracing::warn!(attempt = %self.id, %error, "the container cannot be removed, trying again");
            tokio::time::sleep(running::PAUSE).await;
        }
    }

    /// Removes whatever container was made for this attempt, by this or an earlier start of the worker.
    async fn remove_container(&self) -> Result<(), RuntimeError> {
        for container in self.ctx.runtime.list_ours(&self.ctx.attempt_filter(self.id)).await? {
            match self.ctx.runtime.remove(&container.id, true).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn report_leftover(name: &str, removed: Result<(), RuntimeError>) -> bool {
    match removed {
        Err(error) if !error.is_not_found() => {
            tracing::warn!(name, %error, "something of an attempt cannot be removed yet");
            false
        }
        _ => true,
    }
}
