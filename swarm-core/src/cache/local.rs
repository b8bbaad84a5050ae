//! The cache in the process.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use swarm_protocol::AttemptId;
use tokio_util::sync::CancellationToken;

use super::wakes::Wakes;
use super::{Cache, Ear, Health, LogNotice, LoginLimit, NAME, WORKERS_TTL_MS, WorkerTable};
use crate::clock::Clock;
use crate::identity::limits::{Limited, Limiter, Rate};
use crate::supervise::{Gauge, until_stopped};

/// Addresses that are remembered.
const CLIENTS_MAX: usize = 10_000;

/// Logins of each address, counted by this core alone.
#[derive(Debug)]
pub(super) struct Logins(Mutex<Limiter<IpAddr>>);

impl Logins {
    pub(super) fn new(rate: Rate) -> Self {
        Self(Mutex::new(Limiter::new(rate, CLIENTS_MAX)))
    }

    pub(super) fn take(&self, client: IpAddr, now_ms: u64) -> Result<(), Limited> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take(&client, now_ms)
    }
}

/// See the module.
pub struct LocalCache {
    clock: Arc<dyn Clock>,
    logins: Logins,
    wakes: Wakes,
    /// With when it was said, in ms of the boot clock.
    workers: Mutex<Option<(u64, WorkerTable)>>,
    gauge: Gauge,
}

impl LocalCache {
    /// An empty one, judged by `clock`.
    #[must_use]
    pub fn new(limit: LoginLimit, clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            logins: Logins::new(limit.rate),
            wakes: Wakes::default(),
            workers: Mutex::default(),
            gauge: Gauge::without_inbox(NAME),
        }
    }
}

#[async_trait]
impl Cache for LocalCache {
    async fn take_login(&self, client: IpAddr) -> Result<(), Limited> {
        self.logins.take(client, self.clock.boot_ms())
    }

    fn tell(&self, notice: LogNotice) {
        self.wakes.wake(notice);
    }

    fn hear(&self, attempt: AttemptId) -> Ear {
        self.wakes.hear(attempt)
    }

    fn show_workers(&self, table: WorkerTable) {
        let shown = Some((self.clock.boot_ms(), table));
        *self.workers.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    }

    async fn workers(&self) -> Option<WorkerTable> {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |(said_ms, _): &&(u64, WorkerTable)| self.clock.boot_ms() < said_ms + WORKERS_TTL_MS;
        workers.as_ref().filter(fresh).map(|(_, table)| table.clone())
    }

    fn health(&self) -> Health {
        Health::InProcess
    }

    fn gauge(&self) -> &Gauge {
        &self.gauge
    }

    async fn run(&self, stop: CancellationToken) -> anyhow::Result<()> {
        until_stopped(&stop).await
    }
}

#[cfg(test)]
mod tests {
    use swarm_protocol::Epoch;

    use super::*;
    use crate::clock::ManualClock;
    use crate::testing::at;

    #[tokio::test]
    async fn what_workers_said_counts_for_a_while_and_logins_come_due_again() {
        let clock = Arc::new(ManualClock::new(at(0)));
        let limit = LoginLimit { rate: Rate { burst: 1, interval_ms: 1000 }, share: 4 };
        let cache = LocalCache::new(limit, Arc::clone(&clock) as Arc<dyn Clock>);
        let (table, client) = (WorkerTable { epoch: Epoch(1), workers: Vec::new() }, IpAddr::from([192, 0, 2, 1]));
        cache.show_workers(table.clone());
        assert_eq!(cache.take_login(client).await, Ok(()));
        assert_eq!(cache.take_login(client).await, Err(Limited { retry_ms: 1000 }));
        clock.advance_ms(WORKERS_TTL_MS - 1);
        assert_eq!(cache.workers().await, Some(table));
        clock.advance_ms(1);
        assert_eq!(cache.workers().await, None);
        assert_eq!(cache.take_login(client).await, Ok(()), "a share is for those who have somebody to share with");
    }
}
