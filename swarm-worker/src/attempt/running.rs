//! A container from its start to its end, and what the end means.

use std::pin::pin;
use std::time::Duration;

use swarm_protocol::link::{FinalReport, OutputReport};
use swarm_protocol::{Digest, LossReason, Outcome, Usage};
use tokio::sync::watch;
use tokio::time::Instant;

use super::log_file::{LogEnd, LogFile};
use super::prepare::Ready;
use super::signal::stop_signal;
use super::{Attempt, End, engine_end, lease_expired, restarted};
use crate::context::Ctx;
use crate::hub::Stop;
use crate::runtime::{ContainerId, ContainerPhase, ContainerState, ExitInfo, RuntimeError};
use crate::spool::StartMark;

/// Between two SIGKILLs, or two questions to an engine that fails.
pub(super) const PAUSE: Duration = Duration::from_secs(2);

/// The status an engine gives a container whose end it did not see, as after a crash of its own.
const UNKNOWN_STATUS: i64 = 255;

/// The first pause before an engine is asked again about a container's end.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// A container that was started. Instants are of CLOCK_BOOTTIME.
#[derive(Debug, Clone, Copy)]
pub(super) struct Running {
    /// When the engine was told to start it; `None` when that was in another boot of the machine.
    asked_ns: Option<u64>,
    /// When it was first known to run. A busy engine takes seconds to start one.
    seen_ns: u64,
    /// It was found, not started, by this process.
    is_adopted: bool,
    /// It had ended when it was found, so only the engine knows when.
    found_ended: bool,
}

impl Running {
    pub(super) fn adopted(ctx: &Ctx, container: &ContainerState, mark: &StartMark) -> Self {
        let asked_ns = (mark.machine_boot == ctx.machine_boot).then_some(mark.boot_ns);
        let found_ended = container.phase != ContainerPhase::Running;
        Self { asked_ns, seen_ns: ctx.machine.now_ns(), is_adopted: true, found_ended }
    }

    /// What its time limit counts from, as far as that is known.
    fn limit_from_ns(&self) -> Option<u64> {
        if self.is_adopted { self.asked_ns } else { Some(self.seen_ns) }
    }
}

/// When this worker learned of an end, by both clocks.
#[derive(Debug, Clone, Copy)]
struct Noticed {
    boot_ns: u64,
    at_us: u64,
}

/// Why a container was made to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Asked(Stop),
    TimedOut,
    /// It had written so many bytes, if that can be told.
    OutOfDisk(Option<u64>),
}

/// How a container ended.
enum Gone {
    Exited(ExitInfo),
    /// The engine does not know it any more.
    Vanished,
    /// It was never started, and is removed.
    NeverRan,
}

impl Attempt {
    /// Starts the container.
    pub(super) async fn start(&self, ready: &mut Ready) -> Result<Running, End> {
        let asked_ns = Some(self.ctx.machine.now_ns());
        let started = self.start_container(ready).await?;
        let id = &ready.id;
        match started {
            Ok(()) => {}
            // It may have started all the same: the engine's own view decides.
            Err(error) if error.is_infrastructure() => match self.ctx.runtime.inspect(id).await {
                Ok(container) if container.phase != ContainerPhase::Created => {}
                _ => {
                    // What was not seen to be unstarted may have run, and the core must know.
                    match self.kill_until_gone(id).await {
                        Gone::NeverRan => {}
                        Gone::Vanished => self.started(self.ctx.machine.wall_us()),
                        Gone::Exited(exit) => {
                            self.started(exit.started_at_us.unwrap_or_else(|| self.ctx.machine.wall_us()));
                        }
                    }
                    return Err(engine_end(&error).torn());
                }
            },
            Err(error) => return Err(engine_end(&error)),
        }
        let seen_ns = self.ctx.machine.now_ns();
        let container = self.ctx.runtime.inspect(id).await;
        let stamp = container.ok().and_then(|container| container.started_at_us);
        self.started(stamp.unwrap_or_else(|| self.ctx.machine.wall_us()));
        Ok(Running { asked_ns, seen_ns, is_adopted: false, found_ended: false })
    }

    /// Follows a started container to its end, and makes the report.
    pub(super) async fn follow(&self, id: &ContainerId, running: Running) -> Result<FinalReport, End> {
        let (exited, ended) = (watch::Sender::new(false), watch::Sender::new(None));
        let waiting = async {
            let (gone, cause) = self.until_gone(id, running).await;
            let machine = &self.ctx.machine;
            ended.send_replace(Some(Noticed { boot_ns: machine.now_ns(), at_us: machine.wall_us() }));
            exited.send_replace(true);
            (gone, cause)
        };
        let (log, (gone, cause), usage) =
            tokio::join!(self.copy_log(id, exited.subscribe()), waiting, self.measure(id, exited.subscribe()));
        if matches!(cause, Some(Cause::Asked(Stop::Abandon | Stop::Recall))) {
            return Err(End::Silently);
        }
        let log = log?;
        let exit = match gone {
            Gone::Exited(exit) => Some(exit),
            Gone::Vanished | Gone::NeverRan => None,
        };
        let (outcome, outputs) = self.judge(id, exit.as_ref(), cause, running).await?;
        let ran_ms = ran_ms(running, *ended.borrow(), exit.as_ref(), cause);
        let mut report = self.report_with(outcome, log, outputs);
        report.finished_at_us = exit.as_ref().and_then(|exit| exit.finished_at_us);
        report.ran_ms = ran_ms;
        report.usage = Usage { output_bytes: report.outputs.iter().map(|output| output.size_bytes).sum(), ..usage };
        Ok(report)
    }

    async fn judge(
        &self,
        id: &ContainerId,
        exit: Option<&ExitInfo>,
        cause: Option<Cause>,
        running: Running,
    ) -> Result<(Outcome, Vec<OutputReport>), End> {
        let alone = |outcome| Ok((outcome, Vec::new()));
        let Some(mut outcome) = outcome_of(exit, cause, self.killer(exit, running)) else {
            return Ok(match self.unless_stopped(self.collect(id)).await {
                Ok(outputs) => (Outcome::Succeeded, outputs),
                Err(End::With(outcome) | End::Torn(outcome)) => (outcome, Vec::new()),
                Err(End::Silently) => return Err(End::Silently),
            });
        };
        if matches!(outcome, Outcome::Failed { .. }) {
            // It ended by itself: whoever asks now for what has happened already changes nothing.
            match self.unless_stopped(async { Ok(self.filled_disk(id).await) }).await {
                Ok(Some(bytes)) => outcome = out_of_disk(Some(bytes)),
                Err(End::Silently) => return Err(End::Silently),
                Ok(None) | Err(_) => {}
            }
        }
        alone(outcome)
    }

    /// What a failure means where something other than the job may have ended the container: an exit that somebody else
    /// brought about says nothing of the job. The watchdog notes a kill before it kills; should the disk have refused
    /// that, an overdue lease tells the same.
    fn killer(&self, exit: Option<&ExitInfo>, running: Running) -> Option<Outcome> {
        let lease_ends = self.control.borrow().stop >= Some(Stop::LeaseExpired)
            || self.ctx.hub.is_overdue(self.id, self.ctx.machine.now_ns());
        if lease_ends || self.ctx.watch.was_killed(&self.name) {
            return Some(lease_expired());
        }
        if running.asked_ns.is_none() {
            return Some(restarted());
        }
        let forgotten = running.found_ended && exit.is_some_and(|exit| exit.exit_code == UNKNOWN_STATUS);
        (forgotten || exit.is_some_and(|exit| exit.interrupted)).then(interrupted)
    }

    /// Waits for the end of the container, and brings it about when a limit or somebody asks for it.
    async fn until_gone(&self, id: &ContainerId, running: Running) -> (Gone, Option<Cause>) {
        let cause = tokio::select! {
            biased;
            gone = self.wait(id) => return (gone, None),
            stop = self.stopped() => Cause::Asked(stop),
            () = tokio::time::sleep_until(self.timeout_at(running)) => Cause::TimedOut,
            bytes = self.over_disk() => Cause::OutOfDisk(bytes),
        };
        let grace_ms = match cause {
            Cause::Asked(Stop::Cancel { grace_ms }) => grace_ms,
            Cause::TimedOut => self.order.grace_ms,
            // More time would only mean more bytes.
            Cause::OutOfDisk(_) | Cause::Asked(_) => 0,
        };
        if grace_ms > 0 {
            let urgent = async {
                let mut control = self.control.clone();
                let _ = control.wait_for(|control| control.stop >= Some(Stop::LeaseExpired)).await;
            };
            let asked = tokio::select! {
                biased;
                gone = self.ask_to_end(id, Duration::from_millis(grace_ms.into())) => gone,
                () = urgent => None,
            };
            if let Some(gone) = asked {
                return (gone, Some(self.strongest(cause)));
            }
        }
        let gone = self.kill_until_gone(id).await;
        (gone, Some(self.strongest(cause)))
    }

    /// Sends the signal that the image wants for its end, and gives the container time for it.
    async fn ask_to_end(&self, id: &ContainerId, grace: Duration) -> Option<Gone> {
        let runtime = &self.ctx.runtime;
        let of_image = runtime.inspect(id).await.ok().and_then(|state| state.stop_signal);
        runtime.kill(id, stop_signal(of_image.as_deref())).await.ok()?;
        tokio::time::timeout(grace, self.wait(id)).await.ok()
    }

    /// What was asked meanwhile counts if it is stronger than what began it.
    fn strongest(&self, cause: Cause) -> Cause {
        match (cause, self.control.borrow().stop) {
            (_, Some(stop)) if stop >= Stop::LeaseExpired => Cause::Asked(stop),
            (cause, _) => cause,
        }
    }

    fn timeout_at(&self, running: Running) -> Instant {
        let now = Instant::now();
        let far = now + Duration::from_secs(365 * 86_400);
        let Some(timeout_ms) = self.order.timeout_ms else { return far };
        let ran_ns = running.limit_from_ns().map_or(0, |from_ns| self.ctx.machine.now_ns().saturating_sub(from_ns));
        let left = Duration::from_millis(timeout_ms).saturating_sub(Duration::from_nanos(ran_ns));
        now.checked_add(left).unwrap_or(far)
    }

    /// The end of the container, however often the engine fails in between. The first question is asked again at once: a
    /// busy engine may say that a container has ended and then show it running still. What ended while the engine was
    /// away may have been ended by it: an engine that stops, or starts again, stops its containers.
    async fn wait(&self, id: &ContainerId) -> Gone {
        let (mut pause, mut was_away) = (PAUSE_MIN, false);
        loop {
            match self.ctx.runtime.wait(id).await {
                Ok(exit) => return Gone::Exited(ExitInfo { interrupted: exit.interrupted || was_away, ..exit }),
                Err(error) if error.is_not_found() => return Gone::Vanished,
                Err(error) if error.is_infrastructure() && !was_away => {
                    was_away = true;
                    tracing::warn!(attempt = %self.id, %error, "the container cannot be waited for, asking again");
                }
                Err(error) if pause < PAUSE => {
                    tracing::debug!(attempt = %self.id, %error, "the container cannot be waited for, asking again");
                }
                Err(error) => {
                    tracing::warn!(attempt = %self.id, %error, "the container cannot be waited for, asking again");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE);
            // Engines may leave their containers alone; what runs on ends by itself again.
            let runs = |container: ContainerState| container.phase == ContainerPhase::Running;
            was_away = was_away && !self.ctx.runtime.inspect(id).await.is_ok_and(runs);
        }
    }

    /// SIGKILL again and again: an attempt has not ended before its container has.
    async fn kill_until_gone(&self, id: &ContainerId) -> Gone {
        // One wait for all rounds: a busy engine takes longer to tell of an end than a round has time.
        let mut gone = pin!(self.wait(id));
        loop {
            match self.ctx.runtime.kill(id, "SIGKILL").await {
                Err(error) if error.is_not_found() => return Gone::Vanished,
                // It does not run: waited for below if it ran, and otherwise it never will, for it is removed.
                Err(RuntimeError::Conflict { .. }) => {
                    let container = self.ctx.runtime.inspect(id).await;
                    let never_ran = container.is_ok_and(|container| container.phase == ContainerPhase::Created);
                    if never_ran && self.ctx.runtime.remove(id, true).await.is_ok() {
                        return Gone::NeverRan;
                    }
                }
                Err(error) => {
                    tracing::error!(attempt = %self.id, %error, "the container cannot be killed, trying again");
                }
                Ok(()) => {}
            }
            if let Ok(gone) = tokio::time::timeout(PAUSE, &mut gone).await {
                return gone;
            }
        }
    }

    /// A report without a container's end: the log is what the spool has, marked as cut if it `is_torn`.
    pub(super) async fn report_of(&self, outcome: Outcome, is_torn: bool) -> FinalReport {
        let log = match LogFile::open(&self.entry.log(), self.order.log_bytes_max).await {
            Ok(file) => {
                let unmarked = file.unmarked();
                file.finish(is_torn).await.unwrap_or(unmarked)
            }
            Err(_) => LogEnd { bytes: 0, digest: Digest::of(b""), cut_bytes: is_torn.into() },
        };
        self.report_with(outcome, log, Vec::new())
    }

    fn report_with(&self, outcome: Outcome, log: LogEnd, outputs: Vec<OutputReport>) -> FinalReport {
        FinalReport {
            attempt: self.id,
            outcome,
            started_at_us: self.progress.borrow().started_at_us,
            finished_at_us: None,
            ran_ms: None,
            log_bytes: log.bytes,
            log_digest: log.digest,
            log_cut_bytes: log.cut_bytes,
            outputs,
            usage: Usage::default(),
        }
    }
}

/// What an end means; `None` is a success as far as the container goes. `killer` is what a failure means if something
/// other than the job may have ended it.
fn outcome_of(exit: Option<&ExitInfo>, cause: Option<Cause>, killer: Option<Outcome>) -> Option<Outcome> {
    match cause {
        Some(Cause::Asked(Stop::Cancel { .. } | Stop::Recall | Stop::Abandon)) => return Some(Outcome::Cancelled),
        Some(Cause::Asked(Stop::LeaseExpired)) => return Some(lease_expired()),
        Some(Cause::TimedOut) => return Some(Outcome::TimedOut),
        Some(Cause::OutOfDisk(bytes)) => return Some(out_of_disk(bytes)),
        None => {}
    }
    let lost = |detail: String| Some(Outcome::Lost { reason: LossReason::Engine, detail });
    let Some(exit) = exit else { return lost("the container vanished from the engine".into()) };
    let exit_code = i32::try_from(exit.exit_code).unwrap_or(255);
    match exit_code {
        // A job may end well when it is asked to stop, and yet not be done.
        0 if exit.interrupted => killer,
        0 => None,
        _ if killer.is_some() => killer,
        _ if exit.oom_killed => Some(Outcome::OutOfMemory { exit_code }),
        1..=255 => Some(Outcome::Failed { exit_code }),
        _ => lost(format!("the engine gave the exit code {exit_code}")),
    }
}

fn interrupted() -> Outcome {
    let detail = "the container engine stopped, crashed or started again, or somebody stopped the container through it";
    Outcome::Lost { reason: LossReason::Engine, detail: detail.to_owned() }
}

fn out_of_disk(bytes: Option<u64>) -> Outcome {
    let reason = match bytes {
        Some(bytes) => {
            format!("it had written {bytes} bytes when that was last measured; ask for more with `limits.disk_bytes`")
        }
        None => "what it has written cannot be measured, so no limit would hold; write less deeply nested directories"
            .into(),
    };
    Outcome::OutOfDisk { reason }
}

/// The engine's stamps tell best how long it ran, but are of a clock that may be set: they count within what the
/// monotonic clock allows where this worker saw the end, or learned of it later from an engine that had hung. Of an end
/// that the engine brought about by itself or missed, nobody knows.
fn ran_ms(running: Running, noticed: Option<Noticed>, exit: Option<&ExitInfo>, cause: Option<Cause>) -> Option<u64> {
    if cause.is_none() && exit.is_some_and(|exit| exit.interrupted) {
        return None;
    }
    let stamped = exit.and_then(|exit| Some(exit.finished_at_us?.saturating_sub(exit.started_at_us?) / 1000));
    let (Some(asked_ns), Some(noticed), false) = (running.asked_ns, noticed, running.found_ended) else {
        return stamped;
    };
    let since_ms = |from_ns: u64| noticed.boot_ns.saturating_sub(from_ns) / 1_000_000;
    let (seen, most) = (since_ms(running.seen_ns.max(asked_ns)), since_ms(asked_ns));
    let late = exit.and_then(|exit| exit.finished_at_us).map_or(0, |at_us| noticed.at_us.saturating_sub(at_us) / 1000);
    // An end before the start was asked for shows that the clocks differ, and not that anything is late.
    let least = if late <= most { seen.saturating_sub(late) } else { seen };
    Some(stamped.map_or(most, |stamped| stamped.clamp(least, most)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(exit_code: i64, oom_killed: bool) -> ExitInfo {
        ExitInfo {
            exit_code,
            oom_killed,
            started_at_us: Some(1_000_000),
            finished_at_us: Some(3_500_000),
            error: None,
            interrupted: false,
        }
    }

    #[test]
    fn every_end_has_its_meaning() {
        let of = |exit: ExitInfo| outcome_of(Some(&exit), None, None);
        assert_eq!(of(exit(0, false)), None);
        assert_eq!(of(exit(0, true)), None, "a child was killed for memory and the job coped");
        assert_eq!(of(exit(3, false)), Some(Outcome::Failed { exit_code: 3 }));
        assert_eq!(of(exit(137, true)), Some(Outcome::OutOfMemory { exit_code: 137 }));
        assert!(of(exit(-1, false)).is_some_and(|outcome| outcome.is_lost()));
        assert!(outcome_of(None, None, None).is_some_and(|outcome| outcome.is_lost()));
        let killed = exit(137, false);
        assert_eq!(outcome_of(Some(&killed), None, Some(lease_expired())), Some(lease_expired()));
        assert_eq!(outcome_of(Some(&killed), Some(Cause::TimedOut), None), Some(Outcome::TimedOut));
        let cancel = Some(Cause::Asked(Stop::Cancel { grace_ms: 1 }));
        assert_eq!(outcome_of(Some(&killed), cancel, None), Some(Outcome::Cancelled));
        let stopped = ExitInfo { interrupted: true, ..exit(0, false) };
        assert_eq!(
            outcome_of(Some(&stopped), None, Some(interrupted())),
            Some(interrupted()),
            "not done, whatever it says"
        );
        let lease = Some(Cause::Asked(Stop::LeaseExpired));
        assert_eq!(outcome_of(Some(&killed), lease, None), Some(lease_expired()));
    }

    #[test]
    fn a_duration_is_the_engines_within_what_the_monotonic_clock_allows() {
        let ran = |asked_ms: u64, seen_ms: u64, ended_ms: u64, exit: Option<ExitInfo>| {
            let [asked_ns, seen_ns, ended_ns] = [asked_ms, seen_ms, ended_ms].map(|ms| ms * 1_000_000);
            let running = Running { asked_ns: Some(asked_ns), seen_ns, is_adopted: false, found_ended: false };
            // The wall clock stands wherever it was set to: an end is noticed at once.
            let at_us = exit.as_ref().and_then(|exit| exit.finished_at_us).unwrap_or(0);
            ran_ms(running, Some(Noticed { boot_ns: ended_ns, at_us }), exit.as_ref(), None)
        };
        assert_eq!(ran(1000, 3000, 5000, Some(exit(0, false))), Some(2500), "the start took a while");
        assert_eq!(ran(1000, 1100, 5000, Some(exit(0, false))), Some(3900), "the clock was set back");
        assert_eq!(ran(1000, 1100, 2000, Some(exit(0, false))), Some(1000), "the clock was set forward");
        assert_eq!(ran(1000, 1100, 2000, None), Some(1000), "it vanished");
        let noticed = |late_us: u64| Some(Noticed { boot_ns: 9_000_000_000, at_us: 3_500_000 + late_us });
        let hung = Running { asked_ns: Some(0), seen_ns: 0, is_adopted: false, found_ended: false };
        assert_eq!(ran_ms(hung, noticed(6_400_000), Some(&exit(0, false)), None), Some(2600), "noticed 6.4 s late");
        let crashed = ExitInfo { interrupted: true, ..exit(137, false) };
        assert_eq!(ran_ms(hung, noticed(0), Some(&crashed), None), None);
        assert!(ran_ms(hung, noticed(0), Some(&crashed), Some(Cause::TimedOut)).is_some(), "the worker's own doing");
        let found = Running { asked_ns: Some(1), seen_ns: 2, is_adopted: true, found_ended: true };
        assert_eq!(ran_ms(found, noticed(0), Some(&exit(0, false)), None), Some(2500));
        assert_eq!(ran_ms(found, noticed(0), None, None), None);
        let other_boot = Running { asked_ns: None, found_ended: false, ..found };
        assert_eq!(ran_ms(other_boot, noticed(0), Some(&exit(0, false)), None), Some(2500));
    }
}
