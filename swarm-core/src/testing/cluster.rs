//! A Postgres of a test's own, which it may stop: reached by sockets alone, so no port can be taken.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A cluster; it is stopped when this is dropped.
pub(crate) struct Cluster {
    bin: PathBuf,
    folder: TempDir,
    /// What its server is told beside the place of its socket.
    options: String,
}

impl Cluster {
    /// A new and empty one, running.
    pub(crate) fn start() -> Self {
        let cluster = Self::init();
        cluster.resume();
        cluster
    }

    fn init() -> Self {
        let cluster = Self::new();
        let flags = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync", "--pgdata"];
        run(as_postgres(&cluster.bin.join("initdb")).args(flags).arg(cluster.data()));
        cluster
    }

    /// One that speaks TLS on a loopback port, as `localhost`, and the certificate to trust.
    #[cfg(feature = "postgres-tls")]
    pub(crate) fn start_tls() -> (Self, PathBuf) {
        let mut cluster = Self::init();
        let (key, certificate) = (cluster.folder.path().join("key.pem"), cluster.folder.path().join("ca.pem"));
        let words =
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost";
        let mut make = as_postgres(Path::new("openssl"));
        run(make.args(words.split(' ')).arg("-keyout").arg(&key).arg("-out").arg(&certificate));
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        cluster.options = format!(
            "-c listen_addresses=127.0.0.1 -p {port} -c ssl=on -c ssl_key_file={} -c ssl_cert_file={}",
            key.display(),
            certificate.display()
        );
        cluster.resume();
        (cluster, certificate)
    }

    /// The port of one that speaks TLS.
    #[cfg(feature = "postgres-tls")]
    pub(crate) fn port(&self) -> &str {
        self.options.split(' ').skip_while(|word| *word != "-p").nth(1).unwrap()
    }

    /// One that follows this one until it is promoted, running.
    pub(crate) fn standby(&self) -> Self {
        let standby = Self::new();
        let mut copy = as_postgres(&self.bin.join("pg_basebackup"));
        copy.args(["--write-recovery-conf", "--checkpoint=fast", "--username=postgres", "--no-sync", "--host"]);
        run(copy.arg(self.folder.path()).arg("--pgdata").arg(standby.data()));
        standby.resume();
        standby
    }

    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("pg").tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        if rustix::process::geteuid().is_root() {
            run(Command::new("chown").arg("postgres").arg(folder.path()));
        }
        Self { bin: bin_dir(), folder, options: "-c listen_addresses=".to_owned() }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn control(&self, words: &[&str]) -> Command {
        let mut command = as_postgres(&self.bin.join("pg_ctl"));
        command.args(words).args(["--silent", "--wait", "--timeout=60", "--pgdata"]).arg(self.data());
        command
    }

    /// Starts it again; it answers when this returns.
    pub(crate) fn resume(&self) {
        let (folder, log) = (self.folder.path(), self.folder.path().join("log"));
        let options = format!("{} -k '{}'", self.options, folder.display());
        run(self.control(&["start"]).arg("--log").arg(log).arg("--options").arg(options));
    }

    /// Stops it: `fast` ends its sessions, `immediate` is a crash.
    pub(crate) fn stop(&self, mode: &str) {
        run(&mut self.control(&["stop", "--mode", mode]));
    }

    /// A standby takes writes from now on.
    pub(crate) fn promote(&self) {
        run(&mut self.control(&["promote"]));
    }

    /// Its host, as a URL has it.
    pub(crate) fn host(&self) -> String {
        self.folder.path().display().to_string().replace('/', "%2F")
    }

    /// Where its superuser connects.
    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.host())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.data().join("postmaster.pid").exists() {
            let _ = self.control(&["stop", "--mode=immediate"]).output();
        }
    }
}

/// Debian keeps the server's programs out of PATH, in one directory per version.
fn bin_dir() -> PathBuf {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.filter_map(Result::ok).map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    versions.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has_all = |dir: &PathBuf| ["initdb", "pg_ctl", "pg_basebackup"].iter().all(|name| dir.join(name).is_file());
    std::env::split_paths(&path)
        .chain(versions.into_iter().rev())
        .find(has_all)
        .expect("a directory with initdb: install postgresql")
}

/// Postgres refuses to run as root; then the account of its package is used.
fn as_postgres(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program).current_dir("/");
    command
}

fn run(command: &mut Command) {
    // A server that is started keeps what it was given for output.
    let done = command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).status().unwrap();
    assert!(done.success(), "{command:?}: {done}");
}
