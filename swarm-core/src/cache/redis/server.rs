//! A Redis of a test's own: the real server, on a socket in a directory of its own.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ::redis::{Client, FromRedisValue};
use rustix::process::{Pid, Signal, kill_process};

use crate::cache::RedisSettings;

/// Everything awaited here comes well within this.
const DEADLINE: Duration = Duration::from_secs(20);

/// Runs until it is dropped, unless killed before.
pub(crate) struct Server {
    dir: tempfile::TempDir,
    flags: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// One that has not been started.
    pub(crate) fn absent(flags: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("swarm-redis-").tempdir().unwrap();
        Self { dir, flags: flags.iter().map(|flag| (*flag).to_owned()).collect(), child: None }
    }

    pub(crate) async fn start(flags: &[&str]) -> Self {
        let mut server = Self::absent(flags);
        server.launch();
        server.answers().await;
        server
    }

    /// Starts it, with nothing in it.
    pub(crate) fn launch(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--loglevel", "warning"]);
        command.arg("--dir").arg(self.dir.path()).arg("--unixsocket").arg(self.socket()).args(&self.flags);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("redis-server is installed (on Debian: apt-get install redis-server)");
        self.child = Some(child);
    }

    pub(crate) async fn answers(&self) {
        let client = Client::open(self.url("")).unwrap();
        eventually("the server answers", async || client.get_multiplexed_async_connection().await.is_ok()).await;
    }

    fn socket(&self) -> String {
        self.dir.path().join("s").display().to_string()
    }

    fn url(&self, password: &str) -> String {
        let query = if password.is_empty() { String::new() } else { format!("?pass={password}") };
        format!("redis+unix://{}{query}", self.socket())
    }

    pub(crate) fn settings(&self, password: &str) -> RedisSettings {
        RedisSettings { url: self.url(password).into(), ca_file: None, plain_text: false }
    }

    /// One command, as its operator gives it.
    pub(crate) async fn tell<T: FromRedisValue>(&self, words: &[&[u8]]) -> T {
        let client = Client::open(self.url("")).unwrap();
        let mut line = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = ::redis::Cmd::new();
        for word in words {
            command.arg(*word);
        }
        command.query_async(&mut line).await.unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().and_then(|child| Pid::from_raw(child.id().cast_signed())).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// kill -9; what it had is gone.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Asks until it is so.
pub(crate) async fn eventually(what: &str, mut ask: impl AsyncFnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !ask().await {
        assert!(began.elapsed() < DEADLINE, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    began.elapsed()
}
