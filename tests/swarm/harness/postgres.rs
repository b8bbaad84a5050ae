//! A Postgres cluster of the test's own, which it may stop, kill and freeze.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use super::{SmallDisk, signal};

/// Stopped when it is dropped.
pub(crate) struct OwnPostgres {
    /// Where its data lies, when that is small; unmounted before its directory goes.
    disk: Option<SmallDisk>,
    dir: tempfile::TempDir,
    bin: PathBuf,
    port: u16,
}

/// The words of `pg_ctl stop --mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopMode {
    /// Sessions are ended and a checkpoint is written.
    Fast,
    /// As a crash.
    Immediate,
}

impl OwnPostgres {
    pub(crate) fn start() -> Self {
        Self::start_on(None)
    }

    /// Starts one whose data lies on a tmpfs with these mount options.
    pub(crate) fn start_small(options: &str) -> Self {
        Self::start_on(Some(options))
    }

    pub(crate) fn disk(&self) -> Option<&SmallDisk> {
        self.disk.as_ref()
    }

    fn start_on(small: Option<&str>) -> Self {
        let dir = tempfile::Builder::new().prefix("swarm-postgres-").tempdir().expect("a directory can be made");
        // The server's own account has to get in.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("a mode can be set");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        drop(listener);
        let disk = small.map(|options| SmallDisk::mount(&dir.path().join("home"), options));
        let postgres = Self { bin: bin_dir(), disk, dir, port };
        fs::create_dir_all(postgres.home()).expect("a directory can be made");
        if rustix::process::geteuid().is_root() {
            let status = Command::new("chown").arg("postgres").arg(postgres.home()).status();
            assert!(status.expect("chown can be run").success(), "the server's account cannot be given its directory");
        }
        let words = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--pgdata"];
        postgres.run("initdb", &[&words[..], &[&postgres.data()]].concat());
        postgres.begin();
        postgres
    }

    /// As `SWARM_TEST_POSTGRES_URL`.
    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// As [`begin`](Self::begin), unless it still runs.
    pub(crate) fn begin_if_ended(&self) {
        if self.processes().is_empty() {
            let _ = fs::remove_file(Path::new(&self.data()).join("postmaster.pid"));
            self.begin();
        }
    }

    /// Starts it (again) and waits until it answers.
    pub(crate) fn begin(&self) {
        let home = self.home().display().to_string();
        // No socket in a directory: a killed server's is locked by its number for as long as nobody has reaped it.
        let options = format!("-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories=", self.port);
        let log = format!("{home}/log");
        let words = ["start", "--silent", "--wait", "--timeout=60", "--pgdata", &self.data(), "--log", &log];
        self.run("pg_ctl", &[&words[..], &["--options", &options]].concat());
    }

    pub(crate) fn stop(&self, mode: StopMode) {
        let mode = if mode == StopMode::Fast { "--mode=fast" } else { "--mode=immediate" };
        self.run("pg_ctl", &["stop", "--silent", "--wait", mode, "--pgdata", &self.data()]);
    }

    /// kill -9 of all its processes, as the kernel does when memory runs out.
    pub(crate) fn kill(&self) {
        // Again for those that were just being started.
        super::eventually("Postgres is gone", super::PATIENCE, || {
            self.signal(Signal::KILL);
            self.processes().is_empty().then_some(())
        });
        // Its number may be somebody else's by now.
        let _ = fs::remove_file(Path::new(&self.data()).join("postmaster.pid"));
    }

    /// To the server and all its sessions.
    pub(crate) fn signal(&self, what: Signal) {
        for pid in self.processes() {
            signal(pid, what);
        }
    }

    /// Ends every session but the one that does it, as an administrator does before a fail-over; how many.
    pub(crate) fn terminate_sessions(&self) -> usize {
        let sql = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and \
                   backend_type = 'client backend'";
        let port = self.port.to_string();
        let words = ["--host=127.0.0.1", "--port", &port, "--username=postgres", "--tuples-only", "--no-align"];
        self.run("psql", &[&words[..], &["--command", sql, "postgres"]].concat()).lines().count()
    }

    /// The server and all its children: they work in its directory, whatever they call themselves.
    fn processes(&self) -> Vec<u32> {
        let data = PathBuf::from(self.data());
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data)).collect()
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    fn data(&self) -> String {
        self.home().join("data").display().to_string()
    }

    fn run(&self, program: &str, words: &[&str]) -> String {
        let program = self.bin.join(program);
        // It refuses to run as root.
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(&program).current_dir("/");
            command
        } else {
            Command::new(&program)
        };
        let scratch = self.dir.path();
        let ended = super::run(
            {
                command.args(words);
                command
            },
            scratch,
            super::PATIENCE,
        );
        assert_eq!(ended.code, Some(0), "{} {words:?}: {}", program.display(), ended.stderr);
        String::from_utf8_lossy(&ended.stdout).into_owned()
    }
}

/// Debian keeps the server's programs out of PATH, in one directory per version.
fn bin_dir() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> =
        versions.map(|entry| entry.path().join("bin")).chain(std::env::split_paths(&path)).collect();
    dirs.retain(|dir| dir.join("initdb").is_file() && dir.join("pg_ctl").is_file());
    dirs.into_iter().next().expect("Postgres is installed; `cargo xtask test` does it")
}

impl Drop for OwnPostgres {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
