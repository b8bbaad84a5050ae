//! What a worker reads of the machine it runs on: its clocks, its boot, its load.

/// A machine, or what stands in for one.
pub trait Machine: Send + Sync + 'static {
    /// Nanoseconds of CLOCK_BOOTTIME: never goes back, and runs while the machine sleeps. Leases are counted by it.
    fn now_ns(&self) -> u64;
    /// Unix time in microseconds; may jump.
    fn wall_us(&self) -> u64;
    /// Names this boot of the machine: values of [`now_ns`](Self::now_ns) in another one mean nothing.
    fn boot(&self) -> String;
    /// The load of the last minute in thousandths.
    fn load_millis(&self) -> u32;
}

/// The machine this process runs on.
#[derive(Debug, Clone, Copy)]
pub struct ThisMachine;

impl Machine for ThisMachine {
    fn now_ns(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
    }

    fn wall_us(&self) -> u64 {
        chrono::Utc::now().timestamp_micros().unsigned_abs()
    }

    fn boot(&self) -> String {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        id.map_or_else(|_| "unknown".into(), |id| id.trim().into())
    }

    fn load_millis(&self) -> u32 {
        load_millis(&std::fs::read_to_string("/proc/loadavg").unwrap_or_default())
    }
}

/// The first number of `/proc/loadavg` in thousandths.
fn load_millis(loadavg: &str) -> u32 {
    let load: f64 = loadavg.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    (load.clamp(0.0, 1e6) * 1000.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_moves_forward() {
        let first = ThisMachine.now_ns();
        assert!(first > 0 && ThisMachine.now_ns() >= first);
        assert!(!ThisMachine.boot().is_empty());
    }

    #[test]
    fn the_load_is_read_whatever_the_file_holds() {
        assert_eq!(load_millis("1.25 0.9 0.7 2/345 999\n"), 1250);
        assert_eq!(load_millis("nan"), 0);
        assert_eq!(load_millis(""), 0);
        assert_eq!(load_millis("-3"), 0);
    }
}
