//! A Postgres cluster for this run alone: own directory, own port, only on loopback, with fsync on.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::{found, is_root, tail};
use crate::report::say;
use crate::run::{self, Stop};

const START_ATTEMPTS: u32 = 3;

/// A running cluster; it is stopped when this is dropped. Its files lie in the run's directory and go with that.
#[derive(Debug)]
pub(super) struct Postgres {
    bin: PathBuf,
    data: PathBuf,
    port: u16,
}

/// Where `initdb` and `pg_ctl` are. Debian keeps them out of PATH, in one directory per version.
pub(super) fn bin_dir() -> Option<PathBuf> {
    let has_all = |dir: &PathBuf| ["initdb", "pg_ctl", "postgres"].iter().all(|name| dir.join(name).is_file());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.filter_map(Result::ok).map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    versions.sort();
    std::env::split_paths(&path).chain(versions.into_iter().rev()).find(has_all)
}

impl Postgres {
    pub(super) fn start(dir: &Path, deadline: Instant, stop: &Stop) -> Result<Self> {
        let bin = bin_dir().context("no directory has initdb, pg_ctl and postgres, even after installing")?;
        make_dir(dir)?;
        let data = dir.join("data");
        let mut initdb = as_postgres(&bin.join("initdb"));
        initdb.args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--pgdata"]).arg(&data);
        run::output(&mut initdb).context("making a Postgres cluster")?;
        let log = dir.join("log");
        for attempt in 1.. {
            // Somebody may take the port between asking for it and using it: another one then.
            let port = free_port()?;
            let cluster = Self { bin: bin.clone(), data: data.clone(), port };
            match cluster.launch(dir, &log, deadline, stop) {
                Ok(()) => {
                    say(format_args!("postgres: {} in {}", cluster.url(), dir.display()));
                    return Ok(cluster);
                }
                Err(error) if attempt == START_ATTEMPTS || stop.asked() => {
                    return Err(error.context(format!("starting Postgres; its log ends:\n{}", tail(&log))));
                }
                Err(_) => {}
            }
        }
        unreachable!("the loop ends by returning")
    }

    fn launch(&self, dir: &Path, log: &Path, deadline: Instant, stop: &Stop) -> Result<()> {
        let options = format!("-p {} -c listen_addresses=127.0.0.1 -k '{}'", self.port, dir.display());
        let mut command = as_postgres(&self.bin.join("pg_ctl"));
        command.args(["start", "--silent", "--wait", "--timeout=60", "--pgdata"]).arg(&self.data);
        command.arg("--log").arg(log).arg("--options").arg(options);
        match run::stream(&mut command, deadline, stop, &mut |_| {})?.problem() {
            None => Ok(()),
            Some(problem) => bail!("pg_ctl: {problem}"),
        }
    }

    /// Where tests connect to; the superuser may make databases for them.
    pub(super) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if !self.data.join("postmaster.pid").exists() {
            return;
        }
        let mut command = as_postgres(&self.bin.join("pg_ctl"));
        command.args(["stop", "--silent", "--wait", "--mode=immediate", "--pgdata"]).arg(&self.data);
        if let Err(error) = run::output(&mut command) {
            say(format_args!("xtask: cannot stop Postgres in {}: {error:#}", self.data.display()));
        }
    }
}

/// Postgres refuses to run as root; then the account of its package is used.
fn as_postgres(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new(if found("runuser") { "runuser" } else { "/sbin/runuser" });
    command.args(["-u", "postgres", "--"]).arg(program).current_dir("/");
    command
}

fn make_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir(dir).with_context(|| format!("making {}", dir.display()))?;
    if is_root() {
        run::output(Command::new("chown").arg("postgres").arg(dir)).context("giving the directory to Postgres")?;
    }
    Ok(())
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}
