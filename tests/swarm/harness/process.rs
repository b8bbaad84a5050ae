//! Processes of the product: own group, output kept in files, killed when dropped.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::eventually;

/// A running program.
pub(crate) struct Proc {
    name: String,
    child: Child,
    output: PathBuf,
}

/// A program that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// The binary with this test's directory as its home and nothing inherited that could lead it elsewhere.
pub(crate) fn command(home: &Path, args: &[&str]) -> Command {
    command_of(Path::new(PROGRAM), home, args)
}

/// The program that is tested.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_swarm");

/// As [`command`], of a copy of the program.
pub(super) fn command_of(program: &Path, home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    isolated(&mut command, home);
    command
}

/// Has a program inherit nothing but what it needs.
pub(super) fn isolated(command: &mut Command, home: &Path) {
    command.env_clear().env("HOME", home).env("SWARM_CONFIG_DIR", home.join("config"));
    for kept in ["PATH", "DOCKER_HOST", "SWARM_TEST_RUN", "LANG", "TMPDIR"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command.env("RUST_BACKTRACE", "1").current_dir(home).process_group(0).stdin(Stdio::null());
}

impl Proc {
    /// Starts `command`; what it prints is added to `NAME.out` in `dir`.
    pub(crate) fn start(name: &str, dir: &Path, mut command: Command) -> Self {
        let output = dir.join(format!("{name}.out"));
        let file = OpenOptions::new().create(true).append(true).open(&output).expect("the output's file can be made");
        command.stdout(file.try_clone().expect("a file can be shared")).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        Self { name: name.to_owned(), child, output }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to this process alone.
    pub(crate) fn signal(&self, what: Signal) {
        signal(self.pid(), what);
    }

    /// Asks it to stop and waits, but not for long: what it has asked of the engine is done then. For clean-up: it does not
    /// panic.
    pub(crate) fn ask_to_stop(&mut self, patience: Duration) {
        self.signal(Signal::TERM);
        let began = Instant::now();
        while self.ended().is_none() && began.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// kill -9, and waits for the end.
    pub(crate) fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and the exit status it ends with in time.
    pub(crate) fn terminate(mut self, deadline: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        let name = self.name.clone();
        eventually(&format!("{name} ends after SIGTERM"), deadline, || {
            self.child.try_wait().expect("a child can be asked")
        })
    }

    /// Whether it has ended by itself.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be asked")
    }

    /// All it has printed.
    pub(crate) fn printed(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process we started.
pub(crate) fn signal(pid: u32, what: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a process has a number");
    let _ = kill_process(pid, what);
}

/// Runs a short program to its end.
#[track_caller]
pub(crate) fn run(mut command: Command, scratch: &Path, deadline: Duration) -> Ended {
    let path = |what: &str| scratch.join(format!("{what}-{}", uuid::Uuid::new_v4().simple()));
    let (out, err) = (path("stdout"), path("stderr"));
    command.stdout(File::create(&out).expect("a file can be made"));
    command.stderr(File::create(&err).expect("a file can be made"));
    let shown = format!("{command:?}");
    let mut child = command.spawn().expect("the program can be started");
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be asked") {
            break Some(status);
        }
        if began.elapsed() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let stdout = fs::read(&out).unwrap_or_default();
    let stderr = String::from_utf8_lossy(&fs::read(&err).unwrap_or_default()).into_owned();
    let _ = (fs::remove_file(out), fs::remove_file(err));
    let Some(status) = status else {
        let text = String::from_utf8_lossy(&stdout);
        panic!("not within {} s: {shown}\nstdout: {text}\nstderr: {stderr}", deadline.as_secs());
    };
    Ended { code: status.code(), stdout, stderr }
}

/// Processes whose command line names `dir`, which no one else knows: watchdogs that outlive their worker.
pub(crate) fn strays(dir: &Path) -> Vec<u32> {
    let dir = dir.as_os_str().as_encoded_bytes();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let ours = std::process::id();
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != ours && line.windows(dir.len()).any(|window| window == dir)
    })
    .collect()
}
