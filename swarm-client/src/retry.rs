//! How long to wait before the same request is sent again, and how often.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::ClientError;

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

/// Waits for a core that went away, longer than the tries of one call. Shared by the calls of a client: one absence is
/// one span, however many calls meet it, and is told once.
pub(crate) struct Patience {
    span: Duration,
    tell: Box<dyn Fn(&ClientError) + Send + Sync>,
    absence: Mutex<Option<Absence>>,
}

struct Absence {
    since: Instant,
    told: bool,
}

impl Patience {
    pub(crate) fn new(span: Duration, tell: impl Fn(&ClientError) + Send + Sync + 'static) -> Self {
        Self { span, tell: Box::new(tell), absence: Mutex::default() }
    }

    /// The core answers.
    pub(crate) fn end(&self) {
        *self.absence() = None;
    }

    /// Notes that the core does not answer: whether to wait on after so many failures of one call.
    pub(crate) fn lasts(&self, failures: u32, error: &ClientError) -> bool {
        let mut absence = self.absence();
        let absence = absence.get_or_insert_with(|| Absence { since: Instant::now(), told: false });
        let lasts = absence.since.elapsed() < self.span;
        if lasts && failures >= TRIES_MAX && !std::mem::replace(&mut absence.told, true) {
            (self.tell)(error);
        }
        lasts
    }

    fn absence(&self) -> std::sync::MutexGuard<'_, Option<Absence>> {
        self.absence.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
