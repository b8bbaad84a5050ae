//! What all tasks of one worker share.

use std::sync::{Arc, OnceLock};

use swarm_protocol::{AttemptId, BootId, SwarmId, WorkerId};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::chance::Chance;
use crate::config::WorkerConfig;
use crate::disk::Written;
use crate::hub::Hub;
use crate::identity::{DataDir, Identity};
use crate::images::Images;
use crate::latest::Latest;
use crate::machine::Machine;
use crate::network::Network;
use crate::offer;
use crate::runtime::{ContainerRuntime, EngineFacts, Labels};
use crate::sandbox::Sandboxes;
use crate::spool::Spool;
use crate::transfer::Transfer;
use crate::watchdog::{Launch, WatchFiles};

/// See the module.
pub(crate) struct Ctx {
    pub(crate) config: WorkerConfig,
    pub(crate) data: DataDir,
    pub(crate) identity: Identity,
    /// What goes into labels; known from the first welcome on.
    pub(crate) swarm: OnceLock<SwarmId>,
    pub(crate) boot: BootId,
    pub(crate) machine_boot: String,
    /// What the engine has, as last found out.
    pub(crate) engine: watch::Sender<EngineFacts>,
    pub(crate) runtime: Arc<dyn ContainerRuntime>,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) machine: Arc<dyn Machine>,
    pub(crate) chance: Chance,
    pub(crate) hub: Hub,
    pub(crate) spool: Spool,
    pub(crate) transfer: Transfer,
    pub(crate) watch: WatchFiles,
    /// How a watchdog is started, if not as the settings say.
    pub(crate) launch_watchdog: Option<Launch>,
    pub(crate) images: Images,
    /// The last look at what attempts have written.
    pub(crate) disk: Latest<Written>,
    pub(crate) sandboxes: Sandboxes,
    /// One permit for each container that may run.
    pub(crate) slots: Arc<Semaphore>,
    /// The tasks of attempts.
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

const SWARM: &str = "io.swarm-sync.swarm";
const WORKER: &str = "io.swarm-sync.worker";
const JOB: &str = "io.swarm-sync.job";
const TASK: &str = "io.swarm-sync.task";
const ATTEMPT: &str = "io.swarm-sync.attempt";
const BOOT: &str = "io.swarm-sync.boot";
const SANDBOX: &str = "io.swarm-sync.sandbox";

impl Ctx {
    /// Containers that may run at once.
    pub(crate) fn slots_offered(&self) -> u32 {
        offer::slots(&self.config, &self.engine.borrow())
    }

    /// The swarm's id.
    ///
    /// # Panics
    /// Before the first welcome: no attempt exists then.
    pub(crate) fn swarm(&self) -> SwarmId {
        *self.swarm.get().expect("attempts exist after a welcome only")
    }

    /// The name of an attempt's container, and the beginning of its volumes' names.
    pub(crate) fn container_name(&self, attempt: AttemptId) -> String {
        container_name(self.swarm(), attempt)
    }

    /// The labels of everything made for an attempt.
    pub(crate) fn labels(&self, attempt: AttemptId) -> Labels {
        let mut labels = self.attempt_filter(attempt);
        labels.insert(BOOT.into(), self.boot.to_string());
        labels
    }

    /// The labels that find everything made for an attempt, whichever boot of the worker made it.
    pub(crate) fn attempt_filter(&self, attempt: AttemptId) -> Labels {
        let mut labels = ours(self.swarm(), self.identity.worker);
        labels.insert(JOB.into(), attempt.job.to_string());
        labels.insert(TASK.into(), attempt.task.to_string());
        labels.insert(ATTEMPT.into(), attempt.attempt.to_string());
        labels
    }

    /// The name of a sandbox of this start of the worker.
    pub(crate) fn sandbox_name(&self, number: u64) -> String {
        let (swarm, boot) = (self.swarm().to_string(), self.boot.to_string());
        format!("swarm-{}-sandbox-{}-{number}", &swarm[..8], &boot[..8])
    }

    /// The labels of a sandbox. None says that it is a job's.
    pub(crate) fn sandbox_labels(&self, number: u64) -> Labels {
        let mut labels = self.boot_filter();
        labels.insert(SANDBOX.into(), number.to_string());
        labels
    }

    /// The labels of everything that this start of the worker has made.
    pub(crate) fn boot_filter(&self) -> Labels {
        let mut labels = ours(self.swarm(), self.identity.worker);
        labels.insert(BOOT.into(), self.boot.to_string());
        labels
    }
}

fn container_name(swarm: SwarmId, attempt: AttemptId) -> String {
    format!("swarm-{}-{attempt}", &swarm.to_string()[..8])
}

/// The labels that everything of this worker in this swarm has.
pub(crate) fn ours(swarm: SwarmId, worker: WorkerId) -> Labels {
    Labels::from([(SWARM.to_owned(), swarm.to_string()), (WORKER.to_owned(), worker.to_string())])
}

/// The number of the sandbox with these labels.
pub(crate) fn sandbox_of(labels: &Labels) -> Option<u64> {
    labels.get(SANDBOX)?.parse().ok()
}

/// The attempt that something with these labels was made for.
pub(crate) fn attempt_of(labels: &Labels) -> Option<AttemptId> {
    let part = |name: &str| labels.get(name).map(String::as_str);
    Some(AttemptId {
        job: part(JOB)?.parse().ok()?,
        task: part(TASK)?.parse().ok()?,
        attempt: part(ATTEMPT)?.parse().ok()?,
    })
}
