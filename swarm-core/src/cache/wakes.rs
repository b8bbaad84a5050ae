//! Who in this process follows which log.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use swarm_protocol::AttemptId;
use tokio::sync::watch;

use super::LogNotice;

/// The last notice of each log that is followed here. Its mutex is held for a look-up only.
#[derive(Debug, Default)]
pub(super) struct Wakes(Mutex<HashMap<AttemptId, watch::Sender<LogNotice>>>);

impl Wakes {
    /// Follows a log from now on.
    pub(super) fn hear(&self, attempt: AttemptId) -> Ear {
        let mut followed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        followed.retain(|_, notices| notices.receiver_count() > 0);
        let none = || watch::Sender::new(LogNotice { attempt, bytes: 0, ended: false });
        Ear(followed.entry(attempt).or_insert_with(none).subscribe())
    }

    /// Wakes whoever follows this log.
    pub(super) fn wake(&self, notice: LogNotice) {
        let followed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notices) = followed.get(&notice.attempt) {
            // Whatever the last one said: lengths may be lies, and the newest word is the one to go by.
            notices.send_replace(notice);
        }
    }
}

/// Hears of one log. What comes while nobody waits is not lost: the last notice is kept.
#[derive(Debug)]
pub struct Ear(watch::Receiver<LogNotice>);

impl Ear {
    /// Waits for a notice that the log is longer than `bytes` or that its attempt has ended. It may be late, be missing or
    /// be wrong: whoever waits looks for himself, and now and then without one. Cancel safe.
    pub async fn beyond(&mut self, bytes: u64) -> LogNotice {
        loop {
            if self.0.changed().await.is_err() {
                // The cache is gone, and so will be its caller.
                std::future::pending::<()>().await;
            }
            let notice = *self.0.borrow_and_update();
            if notice.bytes > bytes || notice.ended {
                return notice;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use swarm_protocol::JobId;

    use super::*;

    #[tokio::test]
    async fn only_what_is_followed_is_remembered() {
        let wakes = Wakes::default();
        let attempt = |job| AttemptId { job: JobId(job), task: 0, attempt: 1 };
        let notice = |job, bytes| LogNotice { attempt: attempt(job), bytes, ended: false };
        wakes.wake(notice(1, 5));
        let mut first = wakes.hear(attempt(1));
        assert!(first.beyond(0).now_or_never().is_none(), "it was before");
        wakes.wake(notice(1, u64::MAX));
        wakes.wake(notice(1, 9));
        assert_eq!(first.beyond(8).now_or_never(), Some(notice(1, 9)), "one lie drowns nothing");
        drop(first);
        let _second = wakes.hear(attempt(2));
        assert_eq!(wakes.0.lock().unwrap().len(), 1);
    }
}
