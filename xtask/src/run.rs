//! Runs a command with its output streamed through, a deadline, and a way to stop it with everything it started.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How long a group has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// How long output is still read after the command itself has ended; a process it left behind may hold the pipe.
const DRAIN: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(50);
/// How long a short command may take.
const SHORT: Duration = Duration::from_secs(120);

/// Set by Ctrl-C and its like. Everything that waits looks at it, so guards run and nothing is left behind.
#[derive(Debug, Clone)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Takes over SIGINT, SIGTERM and SIGHUP.
    pub(crate) fn listen() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, flag.clone()).context("listening for signals")?;
        }
        Ok(Self(flag))
    }

    /// Whether it is time to stop.
    pub(crate) fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By itself.
    Exit(ExitStatus),
    /// Killed at its deadline.
    TimedOut,
    /// Killed because the whole run was asked to stop.
    Stopped,
}

impl Ending {
    /// Nothing when it went well, else what went wrong in a few words.
    pub(crate) fn problem(self) -> Option<String> {
        match self {
            Self::Exit(status) if status.success() => None,
            Self::Exit(status) => Some(status.to_string()),
            Self::TimedOut => Some("out of time, killed".to_owned()),
            Self::Stopped => Some("interrupted".to_owned()),
        }
    }
}

struct Line {
    bytes: Vec<u8>,
    is_error: bool,
}

/// Runs `command` in a process group of its own until `deadline`. Each line goes to our own output and to `read`.
///
/// # Errors
/// When the command cannot be started or waited for.
pub(crate) fn stream(
    command: &mut Command,
    deadline: Instant,
    stop: &Stop,
    read: &mut dyn FnMut(&str),
) -> Result<Ending> {
    let (program, mut child, lines) = start(command)?;
    let mut take = |line: &Line| show(line, read);
    let ending = follow(&mut child, &lines, deadline, stop, &mut take);
    if !matches!(ending, Ok(Ending::Exit(_))) {
        end_group(&mut child, &lines, &mut take);
    }
    ending.with_context(|| format!("waiting for {program}"))
}

/// Starts `command` in a process group of its own, so that a second Ctrl-C does not end what cleans up; gives its name,
/// the child, and what it prints on both streams.
fn start(command: &mut Command) -> Result<(String, Child, Receiver<Line>)> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
    let (sender, lines) = sync_channel(1024);
    pump(child.stdout.take(), false, sender.clone());
    pump(child.stderr.take(), true, sender);
    Ok((program, child, lines))
}

/// Reads a pipe line by line on a thread, which ends with the pipe or with its reader.
fn pump(pipe: Option<impl Read + Send + 'static>, is_error: bool, sender: SyncSender<Line>) {
    let Some(pipe) = pipe else { return };
    std::thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        loop {
            let mut bytes = Vec::new();
            match pipe.read_until(b'\n', &mut bytes) {
                Ok(0) | Err(_) => return,
                Ok(_) if sender.send(Line { bytes, is_error }).is_err() => return,
                Ok(_) => {}
            }
        }
    });
}

fn follow(
    child: &mut Child,
    lines: &Receiver<Line>,
    deadline: Instant,
    stop: &Stop,
    take: &mut dyn FnMut(&Line),
) -> Result<Ending> {
    loop {
        if let Some(status) = child.try_wait()? {
            drain(lines, Instant::now() + DRAIN, take);
            return Ok(Ending::Exit(status));
        }
        if stop.asked() {
            return Ok(Ending::Stopped);
        }
        if Instant::now() >= deadline {
            return Ok(Ending::TimedOut);
        }
        match lines.recv_timeout(POLL) {
            Ok(line) => take(&line),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL),
        }
    }
}

/// Passes on what is still in the pipes, until they are closed or `until`.
fn drain(lines: &Receiver<Line>, until: Instant, take: &mut dyn FnMut(&Line)) {
    while let Ok(line) = lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
        take(&line);
        // Whoever floods the pipe must not keep us here.
        if Instant::now() >= until {
            return;
        }
    }
}

fn show(line: &Line, read: &mut dyn FnMut(&str)) {
    // A closed terminal must not keep the run from cleaning up, so errors of writing are not looked at.
    let _ = if line.is_error {
        std::io::stderr().write_all(&line.bytes)
    } else {
        std::io::stdout().write_all(&line.bytes).and_then(|()| std::io::stdout().flush())
    };
    read(&String::from_utf8_lossy(&line.bytes));
}

/// SIGTERM, a while, SIGKILL, for the whole group.
fn end_group(child: &mut Child, lines: &Receiver<Line>, take: &mut dyn FnMut(&Line)) {
    let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return };
    // An error means that the group is gone already, which is what is wanted.
    let _ = kill_process_group(group, Signal::TERM);
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
        drain(lines, Instant::now() + POLL, take);
    }
    let _ = kill_process_group(group, Signal::KILL);
    let _ = child.wait();
    drain(lines, Instant::now() + DRAIN, take);
}

/// Runs a short command and gives what it printed on standard output.
///
/// # Errors
/// When it cannot be started, fails, or takes longer than two minutes; the error has what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    output_until(command, Instant::now() + SHORT)
}

/// As [`output`], with another deadline.
pub(crate) fn output_until(command: &mut Command, deadline: Instant) -> Result<String> {
    let (program, mut child, lines) = start(command)?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut take = |line: &Line| if line.is_error { &mut err } else { &mut out }.extend_from_slice(&line.bytes);
    drain(&lines, deadline, &mut take);
    let ended = await_exit(&mut child, deadline)?;
    let Some(status) = ended else {
        end_group(&mut child, &lines, &mut take);
        bail!("{program}: out of time, killed: {}", String::from_utf8_lossy(&err).trim());
    };
    if !status.success() {
        bail!("{program}: {status}: {}", String::from_utf8_lossy(&err).trim());
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// How it ended; nothing when the deadline came first.
fn await_exit(child: &mut Child, deadline: Instant) -> Result<Option<ExitStatus>> {
    loop {
        let ended = child.try_wait()?;
        if ended.is_some() || Instant::now() >= deadline {
            return Ok(ended);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet_stop() -> Stop {
        Stop(Arc::default())
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn lines_of(script: &str, limit: Duration, stop: &Stop) -> (Ending, Vec<String>) {
        let mut lines = Vec::new();
        let mut read = |line: &str| lines.push(line.trim_end().to_owned());
        let ending = stream(&mut shell(script), Instant::now() + limit, stop, &mut read).unwrap();
        (ending, lines)
    }

    #[test]
    fn both_streams_and_the_code_come_through() {
        let minute = Duration::from_secs(60);
        let (ending, mut lines) = lines_of("echo out; echo err >&2; printf last; exit 3", minute, &quiet_stop());
        lines.sort();
        assert_eq!(lines, ["err", "last", "out"]);
        assert_eq!(ending.problem().unwrap(), "exit status: 3");
    }

    #[test]
    fn a_stop_ends_the_whole_group() {
        let stop = quiet_stop();
        let mut grandchild = String::new();
        let mut read = |line: &str| {
            grandchild = line.trim().to_owned();
            stop.0.store(true, Ordering::Relaxed);
        };
        let mut command = shell("sh -c 'echo $$; exec sleep 1000' & wait");
        let ending = stream(&mut command, Instant::now() + Duration::from_secs(60), &stop, &mut read).unwrap();
        assert_eq!(ending, Ending::Stopped);
        let stat = || std::fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
        let is_gone = || !stat().contains("(sleep)") || stat().contains("(sleep) Z");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_gone() {
            assert!(Instant::now() < deadline, "still there: {}", stat());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_stubborn_command_is_killed() {
        let (ending, _) =
            lines_of("trap '' TERM; while :; do sleep 0.1; done", Duration::from_millis(100), &quiet_stop());
        assert_eq!(ending, Ending::TimedOut);
    }

    #[test]
    fn a_process_that_keeps_the_pipe_does_not_hold_us_up() {
        let begin = Instant::now();
        let (ending, lines) = lines_of("sleep 1000 & echo $!", Duration::from_secs(60), &quiet_stop());
        let took = begin.elapsed();
        let left = lines.first().and_then(|pid| Pid::from_raw(pid.parse().ok()?)).unwrap();
        rustix::process::kill_process(left, Signal::KILL).unwrap();
        assert!(ending.problem().is_none());
        assert!(took < Duration::from_secs(15), "{took:?}");
    }

    #[test]
    fn a_failed_command_says_why() {
        let error = output(&mut shell("echo because >&2; exit 1")).unwrap_err();
        assert!(error.to_string().contains("because"), "{error}");
    }

    #[test]
    fn a_short_command_that_hangs_is_killed() {
        let mut command = shell("exec sleep 1000");
        let error = output_until(&mut command, Instant::now() + Duration::from_millis(500)).unwrap_err();
        assert!(error.to_string().contains("out of time"), "{error}");
        assert_eq!(output(&mut shell("printf 'a\\nb'; echo c >&2")).unwrap(), "a\nb");
    }
}
