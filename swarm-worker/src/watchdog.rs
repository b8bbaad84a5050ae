//! The watchdog: a process of its own that kills a container before its lease ends, whatever became of the worker. On a
//! host it is started beside the worker, in a session of its own; a worker that runs in a container has it started in a
//! container beside its own, for all processes of a container end together.
//!
//! The worker leaves notes in `<data>/watchdog/`: `renewed` (when the last answered renewal was sent) and one file in
//! `containers/` for each container, written before the container is created and removed after it is gone. All instants
//! are CLOCK_BOOTTIME. A container that the watchdog killed is noted in `killed/`, so that the worker, should it come
//! back, reports a lost lease and not a failed job.

mod launch;
mod process;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use launch::Launch;
pub(crate) use launch::supervise;
pub(crate) use process::watch;
pub use process::watch_with;

use crate::lease::kill_at_ns;
use swarm_host::files;

/// When the last answered renewal was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Renewed {
    machine_boot: String,
    at_ns: u64,
}

/// One container to be watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Watched {
    /// The container's name.
    pub(crate) name: String,
    /// The attempt's lease in milliseconds.
    pub(crate) lease_ms: u64,
    /// Where the lease counted from when this was written.
    pub(crate) granted_ns: u64,
    /// The machine's boot then; in another boot the lease is over.
    pub(crate) machine_boot: String,
}

/// The names of the containers that must not run any more.
fn overdue<'a>(watched: &'a [Watched], renewed: Option<&Renewed>, machine_boot: &str, now_ns: u64) -> Vec<&'a Watched> {
    let renewed_ns = renewed.filter(|renewed| renewed.machine_boot == machine_boot).map_or(0, |renewed| renewed.at_ns);
    watched
        .iter()
        .filter(|one| {
            let last_ns = one.granted_ns.max(renewed_ns);
            one.machine_boot != machine_boot || now_ns >= kill_at_ns(last_ns, one.lease_ms)
        })
        .collect()
}

/// The notes between worker and watchdog.
#[derive(Debug, Clone)]
pub(crate) struct WatchFiles {
    dir: PathBuf,
}

impl WatchFiles {
    /// Where the notes of the worker in `data` are.
    pub(crate) fn new(data: &Path) -> Self {
        Self { dir: data.join("watchdog") }
    }

    /// Makes the directories.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        files::create_dir_all(&self.dir.join("containers"))?;
        files::create_dir_all(&self.dir.join("killed"))
    }

    fn container(&self, name: &str) -> PathBuf {
        self.dir.join("containers").join(name)
    }

    fn killed(&self, name: &str) -> PathBuf {
        self.dir.join("killed").join(name)
    }

    /// Has a container watched that is about to be created. Synced: the promise outlives a crash.
    pub(crate) fn add(&self, watched: &Watched) -> io::Result<()> {
        files::write(&self.container(&watched.name), &serde_json::to_vec(watched)?)
    }

    /// A container is gone.
    pub(crate) fn remove(&self, name: &str) {
        for path in [self.container(name), self.killed(name)] {
            if let Err(error) = files::remove(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "a watchdog note cannot be removed");
            }
        }
    }

    /// Notes a renewal.
    pub(crate) fn renew(&self, machine_boot: &str, at_ns: u64) -> io::Result<()> {
        let renewed = Renewed { machine_boot: machine_boot.to_owned(), at_ns };
        files::replace(&self.dir.join("renewed"), &serde_json::to_vec(&renewed)?)
    }

    /// The send time of the last renewal answered in this boot of the machine; 0 if there was none.
    pub(crate) fn renewed_ns(&self, machine_boot: &str) -> u64 {
        self.renewed().filter(|renewed| renewed.machine_boot == machine_boot).map_or(0, |renewed| renewed.at_ns)
    }

    fn renewed(&self) -> Option<Renewed> {
        serde_json::from_slice(&std::fs::read(self.dir.join("renewed")).ok()?).ok()
    }

    /// What is noted about one container.
    pub(crate) fn watched(&self, name: &str) -> Option<Watched> {
        serde_json::from_slice(&std::fs::read(self.container(name)).ok()?).ok()
    }

    /// Every container noted, by name. One whose note is damaged counts as overdue: it must not run unwatched.
    pub(crate) fn all(&self) -> io::Result<Vec<Watched>> {
        let mut all = Vec::new();
        for file in std::fs::read_dir(self.dir.join("containers"))? {
            let name = file?.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            let damaged = || Watched { name: name.clone(), lease_ms: 0, granted_ns: 0, machine_boot: String::new() };
            // A file that vanished meanwhile is a container that is gone.
            let found = self.watched(&name).or_else(|| self.container(&name).exists().then(damaged));
            all.extend(found);
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    fn note_killed(&self, name: &str) -> io::Result<()> {
        files::write(&self.killed(name), b"")
    }

    /// It was not killed after all.
    fn forget_killed(&self, name: &str) {
        if let Err(error) = files::remove(&self.killed(name)) {
            tracing::warn!(container = name, %error, "a watchdog note cannot be removed");
        }
    }

    /// Whether the watchdog has killed this container, or is about to.
    pub(crate) fn was_killed(&self, name: &str) -> bool {
        self.killed(name).exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(granted_ns: u64) -> Watched {
        Watched { name: "c".into(), lease_ms: 30_000, granted_ns, machine_boot: "boot".into() }
    }

    fn renewed(at_ns: u64) -> Renewed {
        Renewed { machine_boot: "boot".into(), at_ns }
    }

    const KILL_NS: u64 = 27_000_000_000;

    #[test]
    fn a_container_is_overdue_a_margin_before_its_lease_ends() {
        let watched = [one(100)];
        assert!(overdue(&watched, None, "boot", KILL_NS + 99).is_empty());
        assert_eq!(overdue(&watched, None, "boot", KILL_NS + 100), [&watched[0]]);
    }

    #[test]
    fn a_renewal_moves_the_end_and_an_old_one_does_not() {
        let watched = [one(100)];
        assert!(overdue(&watched, Some(&renewed(500)), "boot", KILL_NS + 499).is_empty());
        assert_eq!(overdue(&watched, Some(&renewed(500)), "boot", KILL_NS + 500).len(), 1);
        assert_eq!(overdue(&watched, Some(&renewed(50)), "boot", KILL_NS + 100).len(), 1, "older than the grant");
    }

    #[test]
    fn clocks_of_another_boot_mean_nothing() {
        assert_eq!(overdue(&[one(100)], Some(&renewed(u64::MAX)), "other", 0).len(), 1);
        let stale = Renewed { machine_boot: "other".into(), at_ns: u64::MAX };
        assert_eq!(overdue(&[one(100)], Some(&stale), "boot", KILL_NS + 100).len(), 1);
    }

    #[test]
    fn notes_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let files = WatchFiles::new(dir.path());
        files.prepare().unwrap();
        files.add(&one(5)).unwrap();
        files.renew("boot", 77).unwrap();
        assert_eq!((files.all().unwrap(), files.renewed_ns("boot")), (vec![one(5)], 77));
        assert_eq!(files.renewed_ns("other"), 0);
        files.note_killed("c").unwrap();
        assert!(files.was_killed("c"));
        files.remove("c");
        assert!(files.all().unwrap().is_empty() && !files.was_killed("c"));
        std::fs::write(files.container("bad"), "{").unwrap();
        let all = files.all().unwrap();
        let due: Vec<&str> = overdue(&all, Some(&renewed(1)), "boot", 2).iter().map(|one| one.name.as_str()).collect();
        assert_eq!(due, ["bad"], "a damaged note must not protect");
    }
}
