//! A file system for tests that forgets what was not synced when its power is cut.
//!
//! Everything lies in memory, twice: as programs see it, and as it would be found after a power cut. An fsync of a file
//! makes its bytes durable, an fsync of a directory its names, and neither does the other's work: POSIX promises no more,
//! and file systems that do more hide the mistake. What was not synced at a cut is kept or lost by chance drawn from a
//! seed, within what a disk may do: names change in the order they were changed in (as in a journal), pages of a file in
//! any order, its length apart from them. The idea is that of ALICE (Pillai et al., OSDI 2014) and LazyFS (Ramos et al.,
//! VLDB 2024).

mod fuse;
mod journal;
mod tree;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use rustix::mount::{UnmountFlags, unmount};

use journal::Journal;
use tree::Tree;

/// A mounted disk. Dropping it unmounts it.
pub struct Disk {
    place: PathBuf,
    journal: Arc<Mutex<Journal>>,
    session: Option<BackgroundSession>,
}

/// What a power cut left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remains {
    tree: Tree,
    /// Changes of names and attributes that were not synced.
    pub names_pending: usize,
    /// How many of them are there all the same.
    pub names_kept: usize,
    /// Files with bytes that were not synced.
    pub files_pending: usize,
}

impl Disk {
    /// Mounts an empty disk at the directory `place`. Needs root and `/dev/fuse`.
    ///
    /// # Errors
    /// What the system says of the mount.
    pub fn mount(place: &Path) -> io::Result<Self> {
        Self::with(place, Tree::default())
    }

    /// Mounts what a power cut has left.
    ///
    /// # Errors
    /// As [`Disk::mount`].
    pub fn remount(place: &Path, remains: Remains) -> io::Result<Self> {
        Self::with(place, remains.tree)
    }

    fn with(place: &Path, tree: Tree) -> io::Result<Self> {
        let journal = Arc::new(Mutex::new(Journal::new(tree)));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("swarm-powerfs".into()), MountOption::DefaultPermissions];
        config.acl = SessionACL::All;
        let session = fuser::spawn_mount(fuse::Files(Arc::clone(&journal)), place, &config)?;
        Ok(Self { place: place.to_owned(), journal, session: Some(session) })
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts the power at this instant: every later call fails with EIO. `seed` decides what remains of what was not synced.
    #[must_use]
    pub fn cut(&self, seed: u64) -> Remains {
        let mut journal = self.journal();
        // Cut already: what that left was decided then.
        journal.remains.take().unwrap_or_else(|| journal.cut(seed))
    }

    /// Lets the power be cut right before the `steps`th change or sync from now on, 1 being the next; see
    /// [`Disk::is_cut`].
    pub fn cut_before(&self, steps: u64, seed: u64) {
        self.journal().arm(steps, seed);
    }

    /// From now on changes and syncs fail with EIO, and change nothing; or they do no more.
    pub fn fail(&self, is_failing: bool) {
        self.journal().is_failing = is_failing;
    }

    /// Whether the power is cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.journal().tree().is_err()
    }

    /// Everything there is, by path: none for a directory, the bytes of a file.
    #[must_use]
    pub fn list(&self) -> Vec<(PathBuf, Option<Vec<u8>>)> {
        self.journal().live().list()
    }
}

impl Remains {
    /// As [`Disk::list`].
    #[must_use]
    pub fn list(&self) -> Vec<(PathBuf, Option<Vec<u8>>)> {
        self.tree.list()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Its place is free at once, also where killed programs have not let go of its files yet.
        let _ = unmount(&self.place, UnmountFlags::DETACH);
        drop(self.session.take());
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("place", &self.place).finish_non_exhaustive()
    }
}

/// A name in a directory.
type Name = OsString;
