//! Leases as the worker counts them: from the send time of the last answered renewal, on a clock that also runs while
//! the machine sleeps.

/// Nanoseconds of CLOCK_BOOTTIME, or of whatever a test puts in its place.
pub(crate) trait Clock: Send + Sync + 'static {
    /// Now; never goes back.
    fn now_ns(&self) -> u64;
}

/// The machine's CLOCK_BOOTTIME.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BootClock;

impl Clock for BootClock {
    fn now_ns(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
    }
}

/// How long before the end of a lease the container is killed: a tenth of the lease, at least 2 s.
pub(crate) const fn margin_ms(lease_ms: u64) -> u64 {
    let tenth = lease_ms / 10;
    if tenth > 2_000 { tenth } else { 2_000 }
}

/// The instant from which on a container must not run.
pub(crate) const fn kill_at_ns(renewed_ns: u64, lease_ms: u64) -> u64 {
    renewed_ns.saturating_add(lease_ms.saturating_sub(margin_ms(lease_ms)).saturating_mul(1_000_000))
}

/// This boot of the machine: CLOCK_BOOTTIME values of another one mean nothing.
pub(crate) fn machine_boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(|_| "unknown".into(), |id| id.trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_killed_a_margin_before_its_lease_ends() {
        assert_eq!(margin_ms(15_000), 2_000);
        assert_eq!(margin_ms(1_800_000), 180_000);
        assert_eq!(kill_at_ns(5, 15_000), 5 + 13_000_000_000);
        assert_eq!(kill_at_ns(5, 1_000), 5, "a lease shorter than its margin is over at once");
        assert_eq!(kill_at_ns(u64::MAX, u64::MAX), u64::MAX);
    }

    #[test]
    fn the_boot_clock_moves_forward() {
        let first = BootClock.now_ns();
        assert!(first > 0 && BootClock.now_ns() >= first);
        assert!(!machine_boot().is_empty());
    }
}
