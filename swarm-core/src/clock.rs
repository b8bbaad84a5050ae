//! Time behind a trait, so that hard cases are plain tests.

use std::sync::atomic::{AtomicU64, Ordering};

use swarm_protocol::Timestamp;

/// What time it is, in both senses.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time in whole microseconds, as both databases keep it. May jump.
    fn now(&self) -> Timestamp;
    /// Milliseconds of CLOCK_BOOTTIME: never goes back, counts through suspends. What leases are judged by.
    fn boot_ms(&self) -> u64;
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        truncate(chrono::Utc::now())
    }

    fn boot_ms(&self) -> u64 {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // Boot time is never negative, and its milliseconds fit for half a billion years.
        time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
    }
}

/// Cuts a time to whole microseconds.
#[must_use]
pub fn truncate(time: Timestamp) -> Timestamp {
    chrono::DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap_or(time)
}

/// A clock that moves only when told to.
#[derive(Debug)]
pub struct ManualClock {
    wall_us: AtomicU64,
    boot_ms: AtomicU64,
}

impl ManualClock {
    /// A clock that shows `now` and one second since boot.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self { wall_us: AtomicU64::new(now.timestamp_micros() as u64), boot_ms: AtomicU64::new(1000) }
    }

    /// Lets `ms` milliseconds pass on both clocks.
    pub fn advance_ms(&self, ms: u64) {
        self.wall_us.fetch_add(ms * 1000, Ordering::SeqCst);
        self.boot_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// Sets the wall clock alone, as an administrator or NTP does.
    pub fn set_wall(&self, now: Timestamp) {
        self.wall_us.store(now.timestamp_micros() as u64, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        chrono::DateTime::from_timestamp_micros(self.wall_us.load(Ordering::SeqCst) as i64).unwrap_or_default()
    }

    fn boot_ms(&self) -> u64 {
        self.boot_ms.load(Ordering::SeqCst)
    }
}
