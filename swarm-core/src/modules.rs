//! All modules below HTTP, connected and started: in a core ([`crate::run`]), in tests, and in simulations.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use swarm_protocol::{Epoch, SwarmId};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::blobs::BlobStore;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::CoreConfig;
use crate::dispatcher::{self, HeartbeatSocket, Sessions};
use crate::harvester::{self, book::Patience};
use crate::messages::{Handles, LedgerHandle, Runnable, SchedulerMsg};
use crate::plan::policy::PolicyConfig;
use crate::store::{Snapshot, Store};
use crate::supervise::{Gauge, History, Supervisor};
use crate::{hibernator, ledger, receiver, recover, scheduler, sweep};

/// Messages that fit into a module's inbox; a full one is backpressure on whoever sends.
const INBOX: usize = 1024;
/// Transitions that fit before the ledger; at most one batch more is being committed.
const LEDGER_INBOX: usize = 4096;

/// How long the modules may take to end before the ledger stops as well.
const GRACE: Duration = Duration::from_secs(5);

/// What the modules work with.
pub struct Parts {
    /// The truth.
    pub store: Arc<dyn Store>,
    /// Files, images and logs.
    pub blobs: Arc<dyn BlobStore>,
    /// What may be lost: notices of logs, what workers last said.
    pub cache: Arc<dyn Cache>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Where heartbeats come in.
    pub heartbeats: Arc<dyn HeartbeatSocket>,
    /// The term of this core.
    pub epoch: Epoch,
    /// This installation.
    pub swarm: SwarmId,
    /// What the store had after the epoch was taken over.
    pub snapshot: Snapshot,
}

/// How patient and how generous the modules are.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Of the dispatcher.
    pub serving: dispatcher::Config,
    /// Of the harvester.
    pub patience: Patience,
    /// Which job is next.
    pub policy: PolicyConfig,
    /// Bound of one attempt's encoded log.
    pub log_bytes_max: u64,
    /// From one look for what was lost to the next.
    pub sweep_every: Duration,
}

impl Settings {
    /// As the core's configuration says.
    #[must_use]
    pub fn of(config: &CoreConfig) -> Self {
        let serving = dispatcher::Config::of(config);
        let patience = Patience {
            lease_margin_ms: config.lease_margin_ms,
            start_deadline_ms: config.start_deadline_s * 1000,
            prepare_deadline_ms: config.prepare_deadline_s * 1000,
            cancel_grace_ms: config.grace_ms,
            suspect_after_ms: serving.suspect_after_ms(),
        };
        let (policy, log_bytes_max) = (config.policy, config.limits.log_bytes);
        Self { serving, patience, policy, log_bytes_max, sweep_every: sweep::EVERY }
    }
}

/// The modules of one term. They stop when this is dropped.
pub struct Modules {
    /// How to reach them.
    pub handles: Handles,
    supervisor: Supervisor,
    /// The ledger outlives the others, so that what they still commit on their way out is committed.
    base: Supervisor,
    /// What may run from the start.
    runnable: Vec<Runnable>,
    _stop_all: (DropGuard, DropGuard),
}

impl Modules {
    /// Starts all modules from the snapshot; [`resume`](Self::resume) is next. They stop when `stop` is cancelled, or when
    /// one of them fails.
    #[must_use]
    pub fn start(parts: Parts, settings: &Settings, stop: CancellationToken, history: History) -> Self {
        let Parts { store, blobs, cache, clock, heartbeats, epoch, swarm, snapshot } = parts;
        let (recovered, schedules) = recover::plan_snapshot(snapshot, clock.now());
        let (runnable, delayed, live) = (recovered.runnable.len(), recovered.delayed.len(), recovered.live.len());
        crate::notice!(epoch = epoch.0, runnable, delayed, live, "took over with epoch {epoch}");
        if !recovered.orphans.is_empty() {
            tracing::error!("live tasks without a live job, left alone: {:?}", recovered.orphans);
        }
        let supervisor = Supervisor::new(stop, history);
        let base = supervisor.beneath();
        let _stop_all = (supervisor.stop().clone().drop_guard(), base.stop().clone().drop_guard());
        let stop = || supervisor.stop().clone();

        let (ledger_in, ledger_out) = mpsc::channel(LEDGER_INBOX);
        let gauge = Gauge::new("ledger", &ledger_in);
        base.spawn(gauge.clone(), ledger::run(ledger_out, Arc::clone(&store), epoch, gauge, base.stop().clone()));
        let (receiver_in, receiver_out) = mpsc::channel(INBOX);
        let (scheduler_in, scheduler_out) = mpsc::channel(INBOX);
        let (hibernator_in, hibernator_out) = mpsc::channel(INBOX);
        let (dispatcher_in, dispatcher_out) = mpsc::channel(INBOX);
        let (harvester_in, harvester_out) = mpsc::channel(INBOX);
        let handles = Handles {
            ledger: LedgerHandle(ledger_in),
            receiver: receiver_in,
            scheduler: scheduler_in,
            hibernator: hibernator_in,
            dispatcher: dispatcher_in,
            harvester: harvester_in,
        };

        let (running, stopped) = (Arc::clone(&cache), stop());
        supervisor.spawn(cache.gauge().clone(), async move { running.run(stopped).await });
        let sessions = Arc::new(Sessions::default());
        let deps = harvester::Deps {
            ledger: handles.ledger.clone(),
            store: Arc::clone(&store),
            blobs,
            dispatcher: handles.dispatcher.clone(),
            scheduler: handles.scheduler.clone(),
            hibernator: handles.hibernator.clone(),
            cache: Arc::clone(&cache),
            clock: Arc::clone(&clock),
            patience: settings.patience,
            log_bytes_max: settings.log_bytes_max,
            sessions: Arc::clone(&sessions),
        };
        let gauge = Gauge::new("harvester", &handles.harvester);
        supervisor.spawn(gauge.clone(), harvester::run(harvester_out, deps, recovered.live, gauge, stop()));
        let (gauge, policy) = (Gauge::new("scheduler", &handles.scheduler), settings.policy.build());
        let body = scheduler::run(scheduler_out, policy, handles.dispatcher.clone(), gauge.clone(), stop());
        supervisor.spawn(gauge, body);
        let deps = dispatcher::Deps {
            ledger: handles.ledger.clone(),
            store: Arc::clone(&store),
            scheduler: handles.scheduler.clone(),
            harvester: handles.harvester.clone(),
            cache,
            clock: Arc::clone(&clock),
            socket: heartbeats,
            sessions,
            swarm,
            epoch,
            config: settings.serving,
        };
        let gauge = Gauge::new("dispatcher", &handles.dispatcher);
        supervisor.spawn(gauge.clone(), dispatcher::run(dispatcher_out, deps, gauge, stop()));
        let deps = hibernator::Deps {
            ledger: handles.ledger.clone(),
            scheduler: handles.scheduler.clone(),
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
        };
        let gauge = Gauge::new("hibernator", &handles.hibernator);
        let body = hibernator::run(hibernator_out, deps, recovered.delayed, schedules, gauge.clone(), stop());
        supervisor.spawn(gauge, body);
        let deps = receiver::Deps {
            ledger: handles.ledger.clone(),
            scheduler: handles.scheduler.clone(),
            hibernator: handles.hibernator.clone(),
            harvester: handles.harvester.clone(),
            clock: Arc::clone(&clock),
        };
        let gauge = Gauge::new("receiver", &handles.receiver);
        supervisor.spawn(gauge.clone(), receiver::run(receiver_out, deps, gauge, stop()));
        let deps = sweep::Deps { store, handles: handles.clone(), clock, every: settings.sweep_every };
        let gauge = Gauge::without_inbox("sweep");
        supervisor.spawn(gauge.clone(), sweep::run(deps, gauge, stop()));
        Self { handles, supervisor, base, runnable: recovered.runnable, _stop_all }
    }

    /// Queues what may run from the start.
    ///
    /// # Errors
    /// When the scheduler is gone.
    pub async fn resume(&mut self) -> anyhow::Result<()> {
        for work in std::mem::take(&mut self.runnable) {
            self.handles.scheduler.send(SchedulerMsg::Enqueue(work)).await.context("the scheduler ended at once")?;
        }
        Ok(())
    }

    /// Who watches the modules, and others that stop with them.
    #[must_use]
    pub fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// Waits for the end of all modules, and then, or when they take too long for it, of what lies beneath them.
    ///
    /// # Errors
    /// What the first one failed of. What lies beneath counts first: the others may have failed only because it was gone.
    pub async fn end(self) -> anyhow::Result<()> {
        end(&self.supervisor, &self.base, self.handles).await
    }
}

async fn end(modules: &Supervisor, base: &Supervisor, held: impl Sized) -> anyhow::Result<()> {
    modules.stop().cancelled().await;
    // Some may wait for a database that is away: then the ledger is to give up, and they hear of it.
    let _ = timeout(GRACE, modules.ended()).await;
    base.stop().cancel();
    // Held until now: a ledger that nobody can reach any more ends, and before the stop that is a failure.
    drop(held);
    tokio::join!(modules.ended(), base.ended());
    base.outcome().and(modules.outcome())
}

#[cfg(test)]
mod tests {
    use swarm_protocol::JobId;
    use tokio::sync::oneshot;

    use super::*;
    use crate::clock::SystemClock;
    use crate::messages::{LedgerEntry, ReceiverMsg};
    use crate::store::{StoreError, Transition};
    use crate::testing::at;

    #[tokio::test]
    async fn what_the_ledger_failed_of_counts_before_what_its_end_made_others_fail_of() {
        let modules = Supervisor::new(CancellationToken::new(), History::default());
        let base = modules.beneath();
        let (ledger, inbox) = mpsc::channel(1);
        let others = modules.clone();
        base.spawn(Gauge::without_inbox("ledger"), async move {
            drop(inbox);
            others.stop().cancelled().await;
            Err(StoreError::Deposed { ours: Epoch(1), theirs: Epoch(2) }.into())
        });
        let needs = ledger.clone();
        modules.spawn(Gauge::without_inbox("hasty"), async move {
            needs.closed().await;
            Ok(())
        });
        let failure = end(&modules, &base, LedgerHandle(ledger)).await.unwrap_err();
        assert!(matches!(failure.downcast_ref(), Some(StoreError::Deposed { .. })), "{failure:#}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_does_not_wait_for_what_waits_for_a_database_that_is_away() {
        let modules = Supervisor::new(CancellationToken::new(), History::default());
        let base = modules.beneath();
        let (ledger, inbox) = mpsc::channel(1);
        let stopped = base.stop().clone();
        base.spawn(Gauge::without_inbox("ledger"), async move {
            let _unanswered: mpsc::Receiver<LedgerEntry> = inbox;
            stopped.cancelled().await;
            Ok(())
        });
        let waits = LedgerHandle(ledger.clone());
        modules.spawn(Gauge::without_inbox("hibernator"), async move {
            let cancel = Transition::Cancel { job: JobId(1), at: at(0) };
            assert!(waits.commit(cancel).await.is_err(), "it is never told that this holds");
            Ok(())
        });
        modules.stop().cancel();
        timeout(2 * GRACE, end(&modules, &base, LedgerHandle(ledger))).await.expect("it ends in time").unwrap();
    }

    #[tokio::test]
    async fn a_module_that_another_one_left_is_not_what_failed() {
        let (stop, (scheduler, inbox)) = (CancellationToken::new(), mpsc::channel(1));
        drop(inbox);
        let (ledger, entries) = mpsc::channel(1);
        drop(entries);
        let (to_receiver, messages) = mpsc::channel(1);
        let deps = receiver::Deps {
            ledger: LedgerHandle(ledger),
            scheduler,
            hibernator: mpsc::channel(1).0,
            harvester: mpsc::channel(1).0,
            clock: Arc::new(SystemClock),
        };
        let (reply, answer) = oneshot::channel();
        let gauge = Gauge::new("receiver", &to_receiver);
        let mut receiver = tokio::spawn(receiver::run(messages, deps, gauge, stop.clone()));
        let cancel = ReceiverMsg::Cancel { job: JobId(1), reply };
        to_receiver.send(cancel).await.unwrap();
        assert!(answer.await.is_err(), "unanswered: the core stops");
        assert!(timeout(Duration::from_millis(100), &mut receiver).await.is_err(), "before it is stopped");
        stop.cancel();
        timeout(Duration::from_secs(60), receiver).await.expect("in time").unwrap().unwrap();
    }
}
