//! How long to wait before the same request is sent again.

use std::time::Duration;

/// Tries of one call, the first included.
pub(crate) const TRIES_MAX: u32 = 5;
/// No core is believed when it asks for a longer pause.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
const BASE: Duration = Duration::from_millis(100);
const CEILING: Duration = Duration::from_secs(5);

/// The pause after failure number `failures` (from 1): between half and all of a doubling span, so that clients that
/// failed together do not return together. `jitter` is 0 to 1. A wish of the core's goes before.
pub(crate) fn pause(failures: u32, retry_after: Option<Duration>, jitter: f64) -> Duration {
    if let Some(wish) = retry_after {
        return wish.min(RETRY_AFTER_MAX);
    }
    let span = BASE.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(CEILING);
    span.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

/// As [`pause`], waited for, with random jitter.
pub(crate) async fn wait(failures: u32, retry_after: Option<Duration>) {
    tokio::time::sleep(pause(failures, retry_after, rand::random::<f64>())).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_ceiling_and_keep_their_jitter() {
        assert_eq!(pause(1, None, 1.0), BASE);
        assert_eq!(pause(3, None, 1.0), BASE * 4);
        assert_eq!(pause(3, None, 0.0), BASE * 2);
        assert_eq!(pause(u32::MAX, None, 1.0), CEILING);
        assert_eq!(pause(1, Some(Duration::from_secs(7)), 0.3), Duration::from_secs(7));
        assert_eq!(pause(1, Some(Duration::from_secs(9999)), 0.3), RETRY_AFTER_MAX);
    }
}
