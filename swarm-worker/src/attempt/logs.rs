//! From the engine's log to the spool, until the container's end and the log's.

use std::io;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::Instant;

use super::log_file::{LogEnd, LogFile};
use super::{Attempt, End, spool_end};
use crate::engine;
use crate::hub::Stop;
use crate::runtime::{ContainerId, LogItems, LogLimits};

/// Entries written together at most.
const BATCH_ITEMS: usize = 512;
/// How long the engine may stay silent while it hands over the rest of the log once the container has ended.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Times the log of an ended container is asked for.
const REST_TRIES: u32 = 3;
/// How long an engine that is away is waited for beside that: it still has the log when it is back.
const AWAY_MAX: Duration = Duration::from_secs(10 * 60);
/// The engine's smallest log file.
const FILE_BYTES_MIN: u64 = 16 << 20;
const PAUSE: Duration = Duration::from_millis(500);
/// Before a spool that refused something is tried again; each try takes the whole log anew, so it doubles up to the second.
const SPOOL_PAUSE: Duration = Duration::from_secs(2);
const SPOOL_PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long a spool is waited for once the container has ended.
const SPOOL_AWAY_MAX: Duration = Duration::from_secs(10 * 60);

/// What the engine keeps of a log of which `log_bytes_max` encoded bytes are wanted. While engine 20.10 rotates its files,
/// a reader that follows is given entries twice or misses some; so the first file alone holds more than is wanted: of a
/// line of one byte and its newline the engine keeps 29 bytes where the encoded log has 15. The second file is there
/// because the newest may be empty.
pub(super) fn engine_limits(log_bytes_max: u64) -> LogLimits {
    LogLimits { file_bytes: (log_bytes_max / 4).saturating_mul(9).max(FILE_BYTES_MIN), files: 2 }
}

/// What all replays of a log have told so far.
#[derive(Default)]
struct Replays {
    /// Those after the container's end that broke off.
    tries: u32,
    /// Payload bytes of the longest one.
    seen_max: u64,
    away_until: Option<Instant>,
}

/// How long a spool that takes no more is waited for: the engine has the log and the outputs meanwhile.
pub(super) struct SpoolPatience {
    pause: Duration,
    given_up_at: Option<Instant>,
}

impl SpoolPatience {
    pub(super) const fn new() -> Self {
        Self { pause: SPOOL_PAUSE, given_up_at: None }
    }

    /// The pause before the next try of what was refused `now`; none when it is given up, which counts from the first
    /// refusal after the container has ended (`is_final`).
    pub(super) fn pause(&mut self, is_final: bool, now: Instant) -> Option<Duration> {
        if is_final && now >= *self.given_up_at.get_or_insert(now + SPOOL_AWAY_MAX) {
            return None;
        }
        let next = (self.pause * 2).min(SPOOL_PAUSE_MAX);
        Some(std::mem::replace(&mut self.pause, next))
    }
}

impl Attempt {
    /// Copies the whole log; `exited` turns true when the container has ended. A spool that takes no more is waited for:
    /// the engine has the log meanwhile.
    ///
    /// # Errors
    /// The spool takes no more, and the container has ended some time ago or nobody wants its result.
    pub(super) async fn copy_log(&self, id: &ContainerId, mut exited: watch::Receiver<bool>) -> Result<LogEnd, End> {
        let (mut replays, mut patience) = (Replays::default(), SpoolPatience::new());
        loop {
            let is_final = *exited.borrow();
            let pause = match self.replay(id, &mut replays, &exited, is_final).await {
                Ok(Some(end)) => return Ok(end),
                Ok(None) => PAUSE,
                Err(_) if self.control.borrow().stop >= Some(Stop::Recall) => return Err(End::Silently),
                Err(_) if is_final && self.control.borrow().stop.is_some() => return Err(self.stop_asked().torn()),
                Err(error) => {
                    tracing::error!(attempt = %self.id, %error, "the log cannot be spooled, trying again");
                    match patience.pause(is_final, Instant::now()) {
                        Some(pause) => pause,
                        None => return Err(spool_end(&error).torn()),
                    }
                }
            };
            tokio::select! {
                biased;
                Ok(_) = exited.wait_for(|exited| *exited), if !is_final => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Copies what one replay has anew: the log's end if that was all. Only a replay that began after the end of the
    /// container (`is_final`) is complete: an engine that follows a log may drop what the container wrote last, as 20.10
    /// does with a line that has no newline.
    async fn replay(
        &self,
        id: &ContainerId,
        replays: &mut Replays,
        exited: &watch::Receiver<bool>,
        is_final: bool,
    ) -> io::Result<Option<LogEnd>> {
        let mut log = LogFile::open(&self.entry.log(), self.order.log_bytes_max).await?;
        let copied = match self.ctx.runtime.logs(id).await {
            Ok(items) => copy_items(items, &mut log, exited, |bytes| self.spooled(bytes)).await,
            Err(_) => Ok(false),
        };
        log.allow_for_rotation(engine_limits(self.order.log_bytes_max).file_bytes, replays.seen_max);
        replays.seen_max = log.seen().max(replays.seen_max);
        let copied = copied?;
        if !is_final {
            return Ok(None);
        }
        if copied {
            return log.finish(false).await.map(Some);
        }
        let away_until = *replays.away_until.get_or_insert_with(|| Instant::now() + AWAY_MAX);
        let is_away = Instant::now() < away_until && !engine::answers(&self.ctx).await;
        replays.tries += u32::from(!is_away);
        if replays.tries < REST_TRIES {
            return Ok(None);
        }
        tracing::warn!(attempt = %self.id, "the engine does not hand over the rest of the log");
        log.finish(true).await.map(Some)
    }

    fn spooled(&self, bytes: u64) {
        self.progress.send_modify(|progress| progress.log_bytes = progress.log_bytes.max(bytes));
    }
}

/// Appends a replay, from the first entry to the end of the stream: false when it broke off, or fell silent after the
/// container's end. `spooled` is told the length of the log as it grows.
async fn copy_items(
    items: LogItems,
    log: &mut LogFile,
    exited: &watch::Receiver<bool>,
    spooled: impl Fn(u64),
) -> io::Result<bool> {
    let mut batches = items.ready_chunks(BATCH_ITEMS);
    loop {
        let batch = tokio::select! {
            biased;
            batch = batches.next() => batch,
            () = silence(exited.clone()) => return Ok(false),
        };
        let Some(batch) = batch else { return Ok(true) };
        let whole = batch.iter().all(Result::is_ok);
        log.append(batch.into_iter().map_while(Result::ok).collect()).await?;
        spooled(log.bytes());
        if !whole {
            return Ok(false);
        }
    }
}

/// As long as an engine may stay silent from now on: for good while the container runs.
async fn silence(mut exited: watch::Receiver<bool>) {
    let _ = exited.wait_for(|exited| *exited).await;
    tokio::time::sleep(SILENCE_MAX).await;
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use swarm_protocol::logs::LogStream;

    use super::*;
    use crate::runtime::LogItem;

    #[test]
    fn a_spool_that_takes_no_more_is_given_up_ten_minutes_after_the_container_s_end_and_never_before_it() {
        let (mut patience, began) = (SpoolPatience::new(), Instant::now());
        let mut tries = |is_final: bool, from: Instant| {
            let (mut now, mut pauses) = (from, Vec::new());
            while let Some(pause) = patience.pause(is_final, now) {
                pauses.push(pause.as_secs());
                now += pause;
                if pauses.len() == 1000 {
                    break;
                }
            }
            (now, pauses)
        };
        let (ended, pauses) = tries(false, began);
        assert_eq!((pauses.len(), &pauses[..7]), (1000, &[2, 4, 8, 16, 32, 60, 60][..]), "it runs: there is no hurry");
        let (given_up, pauses) = tries(true, ended);
        assert_eq!((given_up - ended, pauses), (Duration::from_secs(600), vec![60; 10]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_rest_of_a_log_is_waited_for_and_a_silent_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (_sender, exited) = watch::channel(true);
        let line = |n: u64| LogItem { stream: LogStream::Stdout, at_us: n, bytes: "line\n".into() };
        let trickle = move || {
            stream::iter(0..6).then(move |n| async move {
                tokio::time::sleep(Duration::from_secs(20)).await;
                Ok(line(n))
            })
        };
        let copied = async |name: &str, items: LogItems| {
            let mut log = LogFile::open(&dir.path().join(name), 1 << 20).await.unwrap();
            let began = Instant::now();
            let whole = copy_items(items, &mut log, &exited, |_| {}).await.unwrap();
            (whole, log.seen(), began.elapsed().as_secs())
        };
        assert_eq!(copied("a", trickle().boxed()).await, (true, 30, 120));
        assert_eq!(copied("b", trickle().chain(stream::pending()).boxed()).await, (false, 30, 150));
    }
}
