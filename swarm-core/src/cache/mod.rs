//! What the core may lose at any time: the logins counted from each address, notices that wake who follows a log, and
//! what the workers last said, for the API of any core.
//!
//! [`Cache`] has two implementations that pass the same suite (`conformance`): one in the process, and one on a Redis that
//! several cores share. Nothing in it is the truth (invariant I10): a notice only makes a reader look sooner than it would
//! have looked anyway, the table of workers is shown and decides nothing, and a count of logins can refuse one but lets
//! through no more than this core alone would. Whatever Redis does, no call waits for it longer than [`BUDGET`].

mod address;
mod breaker;
#[cfg(test)]
pub(crate) mod conformance;
mod health;
mod local;
mod redis;
mod wakes;
mod wire;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use swarm_protocol::{AttemptId, Epoch, SwarmId, Timestamp, WorkerId};
use tokio_util::sync::CancellationToken;

pub use self::address::{RedisSettings, RedisUrl, RedisUrlError};
pub use self::health::{Health, Line};
pub use self::local::LocalCache;
pub use self::redis::RedisCache;
pub use self::wakes::Ear;
use crate::clock::Clock;
use crate::config::CoreConfig;
use crate::identity::limits::{Limited, Rate};
use crate::supervise::Gauge;

/// The name of the cache among the modules.
pub const NAME: &str = "cache";
/// How long a call may wait for Redis.
pub const BUDGET: Duration = Duration::from_millis(100);
/// How long what the workers said counts when nothing newer comes, in milliseconds.
pub const WORKERS_TTL_MS: u64 = 5_000;

/// See the module. Shared as `Arc<dyn Cache>`.
#[async_trait]
pub trait Cache: Send + Sync + 'static {
    /// Takes one login or join from `client`; all cores of a swarm count together while they share a cache that answers.
    /// While it does not, each core lets through its share alone, which is less.
    ///
    /// # Errors
    /// [`Limited`] when it is one too many.
    async fn take_login(&self, client: IpAddr) -> Result<(), Limited>;

    /// Tells who follows this log, at whichever core. Waits for nothing; may get lost.
    fn tell(&self, notice: LogNotice);

    /// Hears of the log of `attempt` from now on.
    fn hear(&self, attempt: AttemptId) -> Ear;

    /// Replaces what the workers last said. Waits for nothing; may get lost, so it is to be repeated well within
    /// [`WORKERS_TTL_MS`].
    fn show_workers(&self, table: WorkerTable);

    /// What the workers last said to the core that showed it last; none when that is too long ago or cannot be read.
    async fn workers(&self) -> Option<WorkerTable>;

    /// How it is.
    fn health(&self) -> Health;

    /// What it counts about itself.
    fn gauge(&self) -> &Gauge;

    /// What it has to do in the background, until `stop`.
    ///
    /// # Errors
    /// None in the implementations here: what fails is tried again.
    async fn run(&self, stop: CancellationToken) -> anyhow::Result<()>;
}

/// Bytes of a log were stored, or its attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogNotice {
    /// Whose log.
    pub attempt: AttemptId,
    /// How long it is now, in bytes of the encoded log; 0 when that is not known.
    pub bytes: u64,
    /// Whether the attempt has ended.
    pub ended: bool,
}

/// What the workers last said to the core of this term.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerTable {
    /// The term.
    pub epoch: Epoch,
    /// One row for each worker.
    pub workers: Vec<WorkerRow>,
}

/// What one worker last said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerRow {
    /// Which.
    pub id: WorkerId,
    /// How it stands.
    pub state: WorkerState,
    /// Tasks it holds.
    pub live: u32,
    /// Thousandths of cores promised to them.
    pub used_cpu_millis: u32,
    /// Bytes of memory promised to them.
    pub used_memory_bytes: u64,
    /// Slots without a task, by its last heartbeat.
    pub free_slots: Option<u32>,
    /// One-minute load average in thousandths, by its last heartbeat.
    pub load_millis: Option<u32>,
    /// When it was last heard, in Unix microseconds.
    pub heard_at_us: Option<i64>,
}

/// How a worker stands, as the API names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerState {
    /// It takes work, or will in a moment.
    Ready,
    /// It has been silent for too long.
    Suspect,
    /// It takes no new work.
    Draining,
    /// It has no link.
    Offline,
    /// Its key was taken away.
    Revoked,
}

impl WorkerRow {
    /// When it was last heard.
    #[must_use]
    pub fn heard_at(&self) -> Option<Timestamp> {
        self.heard_at_us.and_then(Timestamp::from_timestamp_micros)
    }
}

impl WorkerState {
    /// The word in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Suspect => "suspect",
            Self::Draining => "draining",
            Self::Offline => "offline",
            Self::Revoked => "revoked",
        }
    }
}

/// How many logins are let through from one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoginLimit {
    /// By all cores together, and by each alone whatever the cache says.
    pub rate: Rate,
    /// One core's part, while it cannot ask the others: one in so many, at least 1.
    pub share: u32,
}

impl LoginLimit {
    /// As the core's configuration says.
    #[must_use]
    pub fn of(config: &CoreConfig) -> Self {
        let rate = Rate { burst: config.limits.login_burst, interval_ms: config.limits.login_interval_ms };
        Self { rate, share: config.limits.login_share }
    }

    /// The rate of one core's part.
    fn shared_rate(self) -> Rate {
        let share = self.share.max(1);
        let Rate { burst, interval_ms } = self.rate;
        Rate { burst: (burst / share).max(1), interval_ms: interval_ms.saturating_mul(share.into()) }
    }

    /// After so many milliseconds without a login every count is as if there had never been one.
    fn refill_ms(self) -> u64 {
        self.rate.interval_ms.saturating_mul(self.rate.burst.max(1).into())
    }
}

/// The cache that the configuration asks for. Nothing is connected yet: that is done by [`Cache::run`].
///
/// # Errors
/// When the address of Redis cannot be used, or the file of its authority cannot be read.
pub fn open(config: &CoreConfig, swarm: SwarmId, clock: Arc<dyn Clock>) -> anyhow::Result<Arc<dyn Cache>> {
    let limit = LoginLimit::of(config);
    Ok(match config.redis_settings() {
        None => Arc::new(LocalCache::new(limit, clock)),
        Some(settings) => Arc::new(RedisCache::new(settings.client()?, swarm, limit, clock)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_stricter_and_never_nothing() {
        let limit = |burst, interval_ms, share| LoginLimit { rate: Rate { burst, interval_ms }, share };
        assert_eq!(limit(20, 1000, 4).shared_rate(), Rate { burst: 5, interval_ms: 4000 });
        assert_eq!(limit(2, 1000, 4).shared_rate(), Rate { burst: 1, interval_ms: 4000 });
        assert_eq!(limit(2, 1000, 0).shared_rate(), Rate { burst: 2, interval_ms: 1000 });
        assert_eq!(limit(20, 1000, 4).refill_ms(), 20_000);
    }
}
