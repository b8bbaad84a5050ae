//! From the engine's log to the spool, until the container's end and the log's.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::Instant;

use super::log_file::{LogEnd, LogFile};
use super::{Attempt, End, spool_end};
use crate::engine;
use crate::runtime::{ContainerId, LogLimits};

/// Entries written together at most.
const BATCH_ITEMS: usize = 512;
/// How long the engine may take to hand over the rest of the log once the container has ended.
const REST_TIMEOUT: Duration = Duration::from_secs(30);
/// Times the log of an ended container is asked for.
const REST_TRIES: u32 = 3;
/// How long an engine that is away is waited for beside that: it still has the log when it is back.
const AWAY_MAX: Duration = Duration::from_secs(10 * 60);
/// The engine's smallest log file.
const FILE_BYTES_MIN: u64 = 16 << 20;
const PAUSE: Duration = Duration::from_millis(500);

/// What the engine keeps of a log of which `log_bytes_max` encoded bytes are wanted. While engine 20.10 rotates its files,
/// a reader that follows is given entries twice or misses some; so the first file alone holds more than is wanted, for
/// lines of some length at least, and the second one is there because the newest may be empty.
pub(super) fn engine_limits(log_bytes_max: u64) -> LogLimits {
    LogLimits { file_bytes: (log_bytes_max / 2).saturating_mul(3).max(FILE_BYTES_MIN), files: 2 }
}

impl Attempt {
    /// Copies the whole log; `exited` turns true when the container has ended.
    pub(super) async fn copy_log(&self, id: &ContainerId, mut exited: watch::Receiver<bool>) -> Result<LogEnd, End> {
        let (mut tries, mut seen_max, mut away_until) = (0, 0, None);
        let engine_keeps = engine_limits(self.order.log_bytes_max).file_bytes;
        loop {
            // Only a replay that began after the end of the container is complete: an engine that follows a log may drop
            // what the container wrote last, as 20.10 does with a line that has no newline.
            let final_pass = *exited.borrow();
            let mut log =
                LogFile::open(&self.entry.log(), self.order.log_bytes_max).await.map_err(|e| spool_end(&e))?;
            let copied = self.copy_once(id, &mut log, exited.clone()).await?;
            log.allow_for_rotation(engine_keeps, seen_max);
            seen_max = log.seen().max(seen_max);
            if copied && final_pass {
                return log.finish(false).await.map_err(|error| spool_end(&error));
            }
            if final_pass {
                let away_until = *away_until.get_or_insert_with(|| Instant::now() + AWAY_MAX);
                let is_away = Instant::now() < away_until && !engine::answers(&self.ctx).await;
                tries += u32::from(!is_away);
            }
            if tries >= REST_TRIES {
                tracing::warn!(attempt = %self.id, "the engine does not hand over the rest of the log");
                return log.finish(true).await.map_err(|error| spool_end(&error));
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                Ok(_) = exited.wait_for(|exited| *exited), if !final_pass => {}
            }
        }
    }

    /// One replay, from the first entry to the end of the stream: false when it broke off or stalled after the end.
    async fn copy_once(
        &self,
        id: &ContainerId,
        log: &mut LogFile,
        mut exited: watch::Receiver<bool>,
    ) -> Result<bool, End> {
        let Ok(items) = self.ctx.runtime.logs(id).await else { return Ok(false) };
        let mut batches = items.ready_chunks(BATCH_ITEMS);
        let stalled = async {
            let _ = exited.wait_for(|exited| *exited).await;
            tokio::time::sleep(REST_TIMEOUT).await;
        };
        tokio::pin!(stalled);
        loop {
            let batch = tokio::select! {
                biased;
                batch = batches.next() => batch,
                () = &mut stalled => return Ok(false),
            };
            let Some(batch) = batch else { return Ok(true) };
            let whole = batch.iter().all(Result::is_ok);
            log.append(batch.into_iter().map_while(Result::ok).collect()).await.map_err(|error| spool_end(&error))?;
            let bytes = log.bytes();
            self.progress.send_modify(|progress| progress.log_bytes = progress.log_bytes.max(bytes));
            if !whole {
                return Ok(false);
            }
        }
    }
}
