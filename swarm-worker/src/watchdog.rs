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

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

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
    /// The same again: a reader that comes while this is overwritten finds two that differ. Older workers, which replaced
    /// the file, wrote it once.
    again_ns: Option<u64>,
}

/// What each note of a renewal takes, whatever its digits.
const RENEWED_BYTES: usize = 256;
/// How often a note that is half-written is read again.
const READS: u32 = 3;

impl Renewed {
    fn new(machine_boot: &str, at_ns: u64) -> Self {
        Self { machine_boot: machine_boot.to_owned(), at_ns, again_ns: Some(at_ns) }
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self)?;
        bytes.resize(bytes.len().max(RENEWED_BYTES), b' ');
        Ok(bytes)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes)
            .ok()
            .filter(|read: &Self| read.again_ns.is_none_or(|again_ns| read.at_ns == again_ns))
    }
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
    /// Open as long as the worker lives: leases are kept also where no file can be opened or made any more.
    renewed: Arc<OnceLock<File>>,
}

impl WatchFiles {
    /// Where the notes of the worker in `data` are.
    pub(crate) fn new(data: &Path) -> Self {
        Self { dir: data.join("watchdog"), renewed: Arc::default() }
    }

    /// Makes the directories, and the file for renewals with all the room it needs.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        files::create_dir_all(&self.dir.join("containers"))?;
        files::create_dir_all(&self.dir.join("killed"))?;
        let path = self.renewals();
        if std::fs::metadata(&path).map_or(0, |file| file.len()) < RENEWED_BYTES as u64 {
            let known = std::fs::read(&path).ok().and_then(|bytes| Renewed::decode(&bytes));
            let bytes = known.map_or_else(|| Ok(vec![b' '; RENEWED_BYTES]), |known| known.encode())?;
            files::replace(&path, &bytes)?;
        }
        let file = OpenOptions::new().write(true).open(&path)?;
        // Prepared once more, it is open already.
        let _ = self.renewed.set(file);
        Ok(())
    }

    fn renewals(&self) -> PathBuf {
        self.dir.join("renewed")
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
        let file = self.renewed.get().ok_or(io::ErrorKind::NotFound)?;
        files::overwrite(file, &self.renewals(), &Renewed::new(machine_boot, at_ns).encode()?)
    }

    /// The send time of the last renewal answered in this boot of the machine; 0 if there was none.
    pub(crate) fn renewed_ns(&self, machine_boot: &str) -> u64 {
        self.renewed().filter(|renewed| renewed.machine_boot == machine_boot).map_or(0, |renewed| renewed.at_ns)
    }

    fn renewed(&self) -> Option<Renewed> {
        (0..READS).find_map(|_| Renewed::decode(&std::fs::read(self.renewals()).ok()?))
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
        Renewed::new("boot", at_ns)
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
        let stale = Renewed::new("other", u64::MAX);
        assert_eq!(overdue(&[one(100)], Some(&stale), "boot", KILL_NS + 100).len(), 1);
    }

    #[test]
    fn a_renewal_takes_no_more_room_and_is_never_read_half_written() {
        let dir = tempfile::tempdir().unwrap();
        let files = WatchFiles::new(dir.path());
        files.prepare().unwrap();
        assert_eq!(files.renewed_ns("boot"), 0);
        let mut last = Vec::new();
        for at_ns in [9, 10, 19_999, 20_000, u64::MAX] {
            files.renew("boot", at_ns).unwrap();
            assert_eq!(files.renewed_ns("boot"), at_ns);
            let bytes = std::fs::read(files.renewals()).unwrap();
            assert_eq!(bytes.len(), RENEWED_BYTES);
            for at in 0..bytes.len().min(last.len()) {
                let torn = Renewed::decode(&[&bytes[..at], &last[at..]].concat()).map(|read| read.at_ns);
                assert!([None, Some(at_ns), Renewed::decode(&last).map(|read| read.at_ns)].contains(&torn), "{torn:?}");
            }
            last = bytes;
        }
        // Those of an earlier start are known to the next one.
        let next = WatchFiles::new(dir.path());
        next.prepare().unwrap();
        assert_eq!(next.renewed_ns("boot"), u64::MAX);
        next.renew("boot", 5).unwrap();
        assert_eq!(files.renewed_ns("boot"), 5);
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
