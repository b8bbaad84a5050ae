//! Leases as the worker counts them: from the send time of the last answered renewal, on a clock that also runs while
//! the machine sleeps.

/// How long before the end of a lease the container is killed: a tenth of the lease, at least 2 s.
pub(crate) const fn margin_ms(lease_ms: u64) -> u64 {
    let tenth = lease_ms / 10;
    if tenth > 2_000 { tenth } else { 2_000 }
}

/// The instant from which on a container must not run.
pub(crate) const fn kill_at_ns(renewed_ns: u64, lease_ms: u64) -> u64 {
    renewed_ns.saturating_add(lease_ms.saturating_sub(margin_ms(lease_ms)).saturating_mul(1_000_000))
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
}
