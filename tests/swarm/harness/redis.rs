//! A Redis of a scenario's own, to be killed, flushed and stopped.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rustix::process::Signal;

use super::swarm::free_address;
use super::{PATIENCE, Proc, eventually};

/// What it asks whoever connects for; must show up nowhere.
pub(crate) const PASSWORD: &str = "a-redis-password";

/// See the module. It ends when it is dropped.
pub(crate) struct Redis {
    dir: tempfile::TempDir,
    address: String,
    server: Mutex<Option<Proc>>,
}

impl Redis {
    /// Starts one and waits until it answers.
    pub(crate) fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("swarm-test-redis-").tempdir().expect("a directory can be made");
        let redis = Self { dir, address: free_address(), server: Mutex::default() };
        redis.launch();
        redis
    }

    /// Where the core finds it.
    pub(crate) fn url(&self) -> String {
        format!("redis://:{PASSWORD}@{}", self.address)
    }

    /// As [`url`](Self::url), by way of what listens there.
    pub(crate) fn url_by(&self, address: SocketAddr) -> String {
        format!("redis://:{PASSWORD}@{address}")
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address.parse().expect("an address")
    }

    fn server(&self) -> MutexGuard<'_, Option<Proc>> {
        self.server.lock().expect("no test panics while it holds it")
    }

    /// Starts the server, with nothing in it, and waits until it answers.
    pub(crate) fn launch(&self) {
        let (_, port) = self.address.rsplit_once(':').expect("an address has a port");
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", port, "--requirepass", PASSWORD]);
        command.args(["--save", "", "--appendonly", "no"]).arg("--dir").arg(self.dir.path()).stdin(Stdio::null());
        *self.server() = Some(Proc::start("redis", self.dir.path(), command));
        eventually("Redis answers (on Debian: apt-get install redis-server)", PATIENCE, || self.tell("PING"));
    }

    /// Gives it one command; none when it does not answer as it should.
    pub(crate) fn tell(&self, command: &str) -> Option<()> {
        let mut line = TcpStream::connect(&self.address).ok()?;
        line.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        line.write_all(format!("AUTH {PASSWORD}\r\n{command}\r\nQUIT\r\n").as_bytes()).ok()?;
        let mut answers = String::new();
        line.read_to_string(&mut answers).ok()?;
        (answers.starts_with("+OK\r\n") && !answers.contains("\r\n-")).then_some(())
    }

    /// kill -9; what it had is gone.
    pub(crate) fn kill(&self) {
        self.server().take().expect("a server runs").kill();
    }

    pub(crate) fn signal(&self, what: Signal) {
        self.server().as_ref().expect("a server runs").signal(what);
    }
}
