//! The reporter of an attempt: whatever the core must know, said once in every link session until the core has it.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use swarm_host::blocking;
use swarm_protocol::AttemptId;
use swarm_protocol::link::{LOG_CHUNK_BYTES_MAX, ToCore};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Progress;
use crate::context::Ctx;
use crate::hub::{Control, Session};

/// Log bytes sent ahead of what the core has stored.
const WINDOW_BYTES: u64 = 4 * LOG_CHUNK_BYTES_MAX as u64;
/// What is not answered is said again after this time: a final report, or log that the core could not store.
const REPEAT: Duration = Duration::from_secs(30);

/// What this session has been told.
#[derive(Debug, Default)]
struct Said {
    accepted: bool,
    wants_start: bool,
    started: bool,
    finished: bool,
    /// Log bytes sent.
    log: u64,
    /// Log bytes that the core last said it has.
    stored: u64,
}

impl Said {
    /// The core has this much of the log; true when that is news. It has less than before when the end of what it kept
    /// was damaged: then it needs that again, and the report after it.
    fn hear_stored(&mut self, stored: u64) -> bool {
        if stored < self.stored {
            self.unsay(stored);
        }
        self.log = self.log.max(stored);
        std::mem::replace(&mut self.stored, stored) != stored
    }

    /// What the core has not confirmed is to be said again.
    fn unsay(&mut self, stored: u64) {
        self.finished = false;
        self.log = stored;
    }
}

/// Runs until the core wants to hear no more of the attempt.
pub(super) async fn run(
    ctx: &Ctx,
    attempt: AttemptId,
    log: PathBuf,
    mut progress: watch::Receiver<Progress>,
    mut control: watch::Receiver<Control>,
) {
    let mut sessions = ctx.hub.sessions();
    loop {
        let session = sessions.get();
        let served = async {
            match session {
                Some(session) => serve(attempt, &log, &session, &mut progress, &mut control).await,
                None => {
                    let _ = control.wait_for(Control::is_over).await;
                    true
                }
            }
        };
        tokio::select! {
            biased;
            () = sessions.changed() => {}
            over = served => {
                if over {
                    return;
                }
                // The session's queue is closed: the next session is on its way.
                sessions.changed().await;
            }
        }
    }
}

/// Tells one session everything; true when the attempt is over, false when the session is.
async fn serve(
    attempt: AttemptId,
    log: &Path,
    session: &Session,
    progress: &mut watch::Receiver<Progress>,
    control: &mut watch::Receiver<Control>,
) -> bool {
    let mut said = Said::default();
    let mut repeat_at = Instant::now() + REPEAT;
    loop {
        let now = progress.borrow_and_update().clone();
        let (is_over, stored) = {
            let control = control.borrow_and_update();
            (control.is_over(), control.log_stored)
        };
        if is_over {
            return true;
        }
        // Before anything is said: a report whose log was stored in an earlier session waits for nothing.
        if said.hear_stored(stored) {
            repeat_at = Instant::now() + REPEAT;
        }
        for frame in due(attempt, &now, &mut said) {
            repeat_at = Instant::now() + REPEAT;
            if session.out.send(frame).await.is_err() {
                return false;
            }
        }
        if let Some(length) = next_chunk(said.log, stored, now.log_bytes) {
            match read(log, said.log, length).await {
                Ok(bytes) => {
                    let offset = said.log;
                    if offset == stored {
                        repeat_at = Instant::now() + REPEAT;
                    }
                    said.log += bytes.len() as u64;
                    if session.out.send(ToCore::Log { attempt, offset, bytes }).await.is_err() {
                        return false;
                    }
                    continue;
                }
                Err(error) => tracing::error!(%attempt, %error, "the spooled log cannot be read"),
            }
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(repeat_at) => {
                said.unsay(stored);
                repeat_at = Instant::now() + REPEAT;
            }
            changed = control.changed() => if changed.is_err() { return true },
            changed = progress.changed() => if changed.is_err() { return true },
        }
    }
}

/// The frames that this session has not been told yet. The report comes after the log, so that the core can check it.
fn due(attempt: AttemptId, now: &Progress, said: &mut Said) -> Vec<ToCore> {
    let mut frames = Vec::new();
    if !said.accepted {
        said.accepted = true;
        if now.started_at_us.is_none() && now.report.is_none() {
            frames.push(ToCore::Accepted { attempt });
        }
    }
    if now.wants_start && !said.wants_start {
        said.wants_start = true;
        frames.push(ToCore::MayStart { attempt });
    }
    if let (Some(started_at_us), false) = (now.started_at_us, said.started) {
        said.started = true;
        frames.push(ToCore::Started { attempt, started_at_us });
    }
    if let Some(report) = &now.report
        && !said.finished
        && said.log >= report.log_bytes
    {
        said.finished = true;
        frames.push(ToCore::Finished(Box::new((**report).clone())));
    }
    frames
}

/// How many log bytes may be sent next, if any.
fn next_chunk(sent: u64, stored: u64, written: u64) -> Option<usize> {
    let window_end = stored.saturating_add(WINDOW_BYTES);
    let length = written.min(window_end).saturating_sub(sent).min(LOG_CHUNK_BYTES_MAX as u64);
    (length > 0).then_some(length as usize)
}

async fn read(path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let path = path.to_owned();
    blocking::run(move || {
        let mut bytes = vec![0; length];
        std::fs::File::open(path)?.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use swarm_protocol::{JobId, Outcome};
    use tokio::sync::mpsc;

    use super::*;
    use crate::testing;

    #[test]
    fn each_fact_is_said_once_and_the_report_after_the_log() {
        let attempt = AttemptId { job: JobId(1), task: 0, attempt: 1 };
        let (mut now, mut said) = (Progress::default(), Said::default());
        assert_eq!(due(attempt, &now, &mut said), [ToCore::Accepted { attempt }]);
        assert!(due(attempt, &now, &mut said).is_empty());
        now.started_at_us = Some(5);
        assert_eq!(due(attempt, &now, &mut said), [ToCore::Started { attempt, started_at_us: 5 }]);
        let report = testing::report(attempt, Outcome::Succeeded, 10);
        now.report = Some(Arc::new(report.clone()));
        assert!(due(attempt, &now, &mut said).is_empty(), "the log is not sent yet");
        said.log = 10;
        assert_eq!(due(attempt, &now, &mut said), [ToCore::Finished(Box::new(report.clone()))]);
        assert!(due(attempt, &now, &mut said).is_empty());
        let mut again = Said { log: 10, ..Said::default() };
        let repeated = [ToCore::Started { attempt, started_at_us: 5 }, ToCore::Finished(Box::new(report))];
        assert_eq!(due(attempt, &now, &mut again), repeated);
    }

    /// A reporter over a spooled log, and the core's end of its link.
    struct Bed {
        frames: mpsc::Receiver<ToCore>,
        progress: watch::Sender<Progress>,
        control: watch::Sender<Control>,
        _dir: tempfile::TempDir,
    }

    impl Bed {
        fn start(log: &[u8], stored: u64) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            std::fs::write(&path, log).unwrap();
            let (out, frames) = mpsc::channel(16);
            let report = testing::report(ATTEMPT, Outcome::Succeeded, log.len() as u64);
            let ended = Progress {
                started_at_us: Some(5),
                log_bytes: log.len() as u64,
                report: Some(Arc::new(report)),
                ..Progress::default()
            };
            let (progress, control) = (watch::Sender::new(ended), watch::Sender::new(Control::default()));
            control.send_modify(|control| control.log_stored = stored);
            let (mut seen, mut asked) = (progress.subscribe(), control.subscribe());
            tokio::spawn(async move { serve(ATTEMPT, &path, &Session { out }, &mut seen, &mut asked).await });
            Self { frames, progress, control, _dir: dir }
        }

        /// What is said within `limit`: offsets of log, or the report as `None`.
        async fn hear(&mut self, limit: Duration) -> Vec<Option<u64>> {
            let mut heard = Vec::new();
            let all = async {
                while let Some(frame) = self.frames.recv().await {
                    match frame {
                        ToCore::Log { offset, .. } => heard.push(Some(offset)),
                        ToCore::Finished(_) => heard.push(None),
                        _ => {}
                    }
                }
            };
            tokio::time::timeout(limit, all).await.expect_err("the session goes on");
            heard
        }
    }

    const ATTEMPT: AttemptId = AttemptId { job: JobId(1), task: 0, attempt: 1 };
    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_report_whose_log_is_stored_already_is_said_at_once_in_a_new_session() {
        let mut bed = Bed::start(b"0123456789", 10);
        assert_eq!(bed.hear(SOON).await, [None]);
    }

    #[tokio::test(start_paused = true)]
    async fn log_that_is_not_confirmed_is_sent_again_before_the_report_even_while_the_job_goes_on() {
        let mut bed = Bed::start(b"0123456789", 4);
        assert_eq!(bed.hear(SOON).await, [Some(4), None]);
        for _ in 0..5 {
            bed.progress.send_modify(|_| ());
            assert_eq!(bed.hear(SOON - Duration::from_millis(100)).await, [], "not yet");
        }
        assert_eq!(bed.hear(SOON).await, [Some(4), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_core_that_has_less_than_it_had_is_sent_the_rest_and_the_report_at_once() {
        let mut bed = Bed::start(b"0123456789", 10);
        assert_eq!(bed.hear(SOON).await, [None]);
        bed.control.send_modify(|control| control.log_stored = 3);
        assert_eq!(bed.hear(SOON).await, [Some(3), None]);
    }

    #[test]
    fn the_window_bounds_what_is_on_its_way() {
        assert_eq!(next_chunk(0, 0, 0), None);
        assert_eq!(next_chunk(5, 0, 7), Some(2));
        assert_eq!(next_chunk(0, 0, u64::MAX), Some(LOG_CHUNK_BYTES_MAX));
        assert_eq!(next_chunk(WINDOW_BYTES, 0, u64::MAX), None);
        assert_eq!(next_chunk(WINDOW_BYTES, 1, u64::MAX), Some(1));
        assert_eq!(next_chunk(9, 9, 7), None, "the core has more than this spool: wait for the replay");
    }
}
