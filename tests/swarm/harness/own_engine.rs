//! An engine of the test's own, which it may kill and stop: nothing is shared with the machine's.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::Signal;

use super::death::Death;
use super::{Docker, PATIENCE, SmallDisk, eventually, signal, strays};

/// How long an engine may take to stop its containers and itself.
const STOP: Duration = Duration::from_secs(30);

/// Runs until it is dropped.
pub(crate) struct OwnEngine {
    dir: tempfile::TempDir,
    flags: &'static [&'static str],
    child: Mutex<Option<Child>>,
    /// Where its data lies, when that is small.
    disk: Option<SmallDisk>,
}

/// What of an engine is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// `dockerd` alone: its containers run on, and it stops them when it starts again.
    Daemon,
    /// All processes of the service, those of the containers included.
    Service,
}

impl OwnEngine {
    /// Starts one with further flags.
    pub(crate) fn start(flags: &'static [&'static str]) -> Self {
        Self::start_on(None, flags)
    }

    /// Starts one whose data lies on a tmpfs with these mount options.
    pub(crate) fn start_small(options: &str) -> Self {
        Self::start_on(Some(options), &["--storage-driver=overlay2"])
    }

    pub(crate) fn disk(&self) -> Option<&SmallDisk> {
        self.disk.as_ref()
    }

    fn start_on(small: Option<&str>, flags: &'static [&'static str]) -> Self {
        let dir = tempfile::Builder::new().prefix("swarm-engine-").tempdir().expect("a directory can be made");
        // An empty file of its own, lest the system's contradict the flags.
        fs::write(dir.path().join("daemon.json"), "{}").expect("a file can be written");
        let disk = small.map(|options| SmallDisk::mount(&dir.path().join("data"), options));
        let engine = Self { dir, flags, child: Mutex::new(None), disk };
        engine.begin();
        engine
    }

    pub(crate) fn docker(&self) -> Docker {
        Docker { host: Some(format!("unix://{}", self.dir.path().join("s.sock").display())) }
    }

    /// Starts it (again) and waits until it answers.
    pub(crate) fn begin(&self) {
        let path = |name: &str| self.dir.path().join(name);
        // Killed ones leave them, and the numbers may be somebody else's by now, or wait to be reaped.
        let _ = (fs::remove_file(path("pid")), fs::remove_file(path("exec/containerd/containerd.pid")));
        let log = File::options().create(true).append(true).open(path("log")).expect("a file can be made");
        let host = self.docker().host.expect("it has an address");
        let mut command = Command::new("dockerd");
        command.arg("--config-file").arg(path("daemon.json")).arg("--data-root").arg(path("data"));
        command.arg("--exec-root").arg(path("exec")).arg("--pidfile").arg(path("pid"));
        command.args(["--host", &host, "--bridge", "none", "--iptables=false"]).args(self.flags);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .process_group(0);
        let mut child = command.spawn().expect("dockerd can be started; these tests need root and Docker's programs");
        eventually("the test's own engine answers", PATIENCE, || {
            if let Some(status) = child.try_wait().expect("a child can be asked") {
                let log = fs::read_to_string(path("log")).unwrap_or_default();
                panic!("dockerd ended: {status}\n{}", log.lines().rev().take(20).collect::<Vec<_>>().join("\n"));
            }
            self.docker().run(&["version"])
        });
        *self.child() = Some(child);
    }

    /// Has it read other settings while it runs, as an operator does.
    pub(crate) fn configure(&self, settings: &str) {
        fs::write(self.dir.path().join("daemon.json"), settings).expect("a file can be written");
        self.signal(Signal::HUP);
    }

    /// SIGKILL.
    pub(crate) fn kill(&self, part: Part) -> Death {
        self.with_child(|child| child.kill().expect("a child can be killed"));
        if part == Part::Service {
            self.kill_processes();
        }
        self.reap();
        let death = Death::of(&self.dir.path().join("data/containers"));
        if part == Part::Service {
            death.kill_containers();
        }
        death
    }

    /// SIGTERM, as a package upgrade sends it.
    pub(crate) fn stop(&self) -> Death {
        self.signal(Signal::TERM);
        self.reap();
        Death::of(&self.dir.path().join("data/containers"))
    }

    /// The file of its socket is moved away while it lives: nobody finds it any more, and who is connected stays so. The
    /// engine by the file's new name.
    pub(crate) fn hide_socket(&self) -> Docker {
        let (socket, hidden) = (self.dir.path().join("s.sock"), self.dir.path().join("hidden.sock"));
        fs::rename(socket, &hidden).expect("the socket's file can be renamed");
        Docker { host: Some(format!("unix://{}", hidden.display())) }
    }

    /// And moved back.
    pub(crate) fn show_socket(&self) {
        let (socket, hidden) = (self.dir.path().join("s.sock"), self.dir.path().join("hidden.sock"));
        fs::rename(hidden, socket).expect("the socket's file can be renamed");
    }

    /// `dockerd` hangs until [`thaw`](Self::thaw).
    pub(crate) fn freeze(&self) -> Death {
        self.signal(Signal::STOP);
        Death::of(&self.dir.path().join("data/containers"))
    }

    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, what: Signal) {
        self.with_child(|child| signal(child.id(), what));
    }

    /// `dockerd`, containerd and shims: all that name the directory they run in.
    fn kill_processes(&self) {
        for pid in strays(&self.dir.path().join("exec")) {
            signal(pid, Signal::KILL);
        }
    }

    fn reap(&self) {
        let mut child = self.child().take().expect("it runs");
        eventually("dockerd ends", STOP, || child.try_wait().expect("a child can be asked"));
    }

    fn with_child(&self, act: impl FnOnce(&mut Child)) {
        act(self.child().as_mut().expect("it runs"));
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        // SIGTERM lets it end its containers; what does not go by itself in time is killed.
        if let Some(mut child) = self.child().take() {
            signal(child.id(), Signal::CONT);
            signal(child.id(), Signal::TERM);
            let began = std::time::Instant::now();
            while began.elapsed() < STOP && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(50));
            }
            let _ = (child.kill(), child.wait());
        }
        self.kill_processes();
        Death::of(&self.dir.path().join("data/containers")).kill_containers();
        unmount_below(self.dir.path());
    }
}

/// A killed engine leaves its containers' filesystems mounted.
fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below =
        mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|place| Path::new(place).starts_with(dir));
    // The innermost come last.
    for place in below.collect::<Vec<_>>().into_iter().rev() {
        let _ = Command::new("umount").args(["--lazy", place]).status();
    }
}
