//! The line for calls: made, probed, given up and made anew.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Pipeline, RedisError};
use tokio::time::{Instant, MissedTickBehavior};

use super::super::breaker::Change;
use super::super::wire::{self, Notice};
use super::super::{LogNotice, WORKERS_TTL_MS};
use super::{RedisCache, lock, reason};

/// How long making a line, and each step of that, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Between probes, each of which also takes the newest table of workers along.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How long a probe may take: nobody waits for it, so it is more patient than calls are.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the mark stays when no core refreshes it.
const MARK_TTL_MS: u64 = 60_000;
/// Notices that are sent at a time.
const BATCH: usize = 256;

impl RedisCache {
    /// Keeps a line up as far as it can. Never ends.
    pub(super) async fn keep_line(&self) {
        for number in 1.. {
            let ended = match self.connect().await {
                Ok(line) => self.serve(number, line).await,
                Err(reason) => Some(reason),
            };
            // Without a reason a call was the first to find it broken, and has said so.
            if let Some(reason) = ended {
                drop(lock(&self.line).take());
                self.went_down(reason);
            }
            lock(&self.unsent).clear();
            let pause = lock(&self.commands).pause(rand::random());
            tokio::time::sleep(pause).await;
        }
    }

    async fn connect(&self) -> Result<MultiplexedConnection, String> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(PROBE_TIMEOUT));
        let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(line)) => Ok(line),
            Ok(Err(error)) => Err(reason(&error)),
            Err(_) => Err(format!("no connection within {} ms", CONNECT_TIMEOUT.as_millis())),
        }
    }

    /// Uses a line until it breaks, and gives the reason if it was found here.
    async fn serve(&self, number: u64, mut line: MultiplexedConnection) -> Option<String> {
        // Only a server that takes writes counts as up.
        if let Err(reason) = self.probe(&mut line, true).await {
            return Some(reason);
        }
        *lock(&self.line) = Some((number, line.clone()));
        self.came_up();
        let mut probes = tokio::time::interval_at(Instant::now() + PROBE_EVERY, PROBE_EVERY);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                () = self.broken.notified() => {
                    // Left from an earlier line if this one is still there.
                    let is_up = lock(&self.line).is_some();
                    if is_up { Ok(()) } else { return None }
                }
                _ = probes.tick() => self.probe(&mut line, false).await,
                () = self.more.notified() => self.send_notices(&mut line).await,
            };
            if let Err(reason) = done {
                return Some(reason);
            }
        }
    }

    /// Asks whether Redis answers, takes writes, and still has what it had. `is_first` of this line.
    async fn probe(&self, line: &mut MultiplexedConnection, is_first: bool) -> Result<(), String> {
        let marks = [self.keys.mark(None), self.keys.mark(Some(self.me))];
        let mut probe = ::redis::pipe();
        // Each core has a mark of its own: all are to find out what one of them could mend. A core that has just started
        // goes by what the others left.
        let was_marked = self.is_marked.load(Ordering::Relaxed);
        probe.cmd("EXISTS").arg(&marks[usize::from(was_marked)]);
        for mark in &marks {
            probe.cmd("SET").arg(mark).arg(1).arg("PX").arg(MARK_TTL_MS).ignore();
        }
        // Once: a core that is not told any more what the workers say must not repeat what they said.
        if let Some(table) = lock(&self.table).take() {
            probe.cmd("SET").arg(self.keys.workers()).arg(table).arg("PX").arg(WORKERS_TTL_MS).ignore();
        }
        self.publish(&mut probe, None);
        let (kept,): (bool,) = answer(probe.query_async(line)).await?;
        self.is_marked.store(true, Ordering::Relaxed);
        self.gauge.handled_many(self.calls.swap(0, Ordering::Relaxed));
        self.tell_of_notices();
        if !kept {
            self.be_wary();
            if !is_first {
                crate::notice!("Redis has lost what it was given: logins are counted anew, the rest is written again");
            }
        }
        Ok(())
    }

    /// Counts in Redis may have begun anew: for as long as that matters this core lets through its share only.
    fn be_wary(&self) {
        self.wary_until_ms.store(self.now_ms() + self.limit.refill_ms(), Ordering::Relaxed);
    }

    async fn send_notices(&self, line: &mut MultiplexedConnection) -> Result<(), String> {
        let unsent = std::mem::take(&mut *lock(&self.unsent));
        let unsent: Vec<LogNotice> = unsent.into_values().collect();
        for batch in unsent.chunks(BATCH) {
            let mut pipeline = ::redis::pipe();
            for notice in batch {
                self.publish(&mut pipeline, Some(*notice));
            }
            answer::<()>(pipeline.query_async(line)).await?;
        }
        Ok(())
    }

    fn publish(&self, pipeline: &mut Pipeline, log: Option<LogNotice>) {
        let notice = wire::encode(&Notice { from: self.me, log });
        pipeline.cmd("PUBLISH").arg(self.keys.notices()).arg(notice).ignore();
    }

    fn came_up(&self) {
        match lock(&self.commands).up(self.now_ms()) {
            Some(Change::Up { after_ms: None }) => crate::notice!("Redis answers and is used as the cache"),
            Some(Change::Up { after_ms: Some(after_ms) }) => {
                // Who knows what became of the counts meanwhile.
                self.be_wary();
                crate::notice!(after_ms, "Redis is used again, after {} s without it", after_ms / 1000);
            }
            Some(Change::Down) | None => {}
        }
    }

    /// The line broke, or cannot be made.
    pub(super) fn went_down(&self, reason: String) {
        let shown = reason.clone();
        if lock(&self.commands).down(self.now_ms(), reason).is_some() {
            tracing::warn!("the core goes on without Redis, with stricter limits on logins: {shown}");
            self.gauge.error(&shown);
        }
    }
}

/// An answer within the time that a probe may take.
async fn answer<T>(asking: impl Future<Output = Result<T, RedisError>>) -> Result<T, String> {
    match tokio::time::timeout(PROBE_TIMEOUT, asking).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(reason(&error)),
        Err(_) => Err(format!("no answer within {} ms", PROBE_TIMEOUT.as_millis())),
    }
}
