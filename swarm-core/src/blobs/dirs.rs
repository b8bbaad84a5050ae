//! Directories whose names are durable before anything in them is acknowledged.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use swarm_host::files;

use super::BlobError;

/// A directory with up to 256 directories `00` to `ff` in it, so that none grows too large.
#[derive(Debug)]
pub(super) struct Shards {
    root: PathBuf,
    /// Which of them are there for certain. Seeing one is not enough: another thread may have made it a moment ago and
    /// not synced its name yet.
    durable: Mutex<[bool; 256]>,
}

impl Shards {
    pub(super) fn open(root: PathBuf) -> Result<Self, BlobError> {
        make_dir(&root)?;
        Ok(Self { root, durable: Mutex::new([false; 256]) })
    }

    pub(super) fn dir(&self, shard: u8) -> PathBuf {
        self.root.join(hex::encode([shard]))
    }

    pub(super) fn path(&self, shard: u8, name: &str) -> PathBuf {
        self.dir(shard).join(name)
    }

    /// Sees to it that one of them is there.
    pub(super) fn ensure(&self, shard: u8) -> Result<(), BlobError> {
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if !durable[usize::from(shard)] {
            make_one_dir(&self.dir(shard))?;
            sync_dir(&self.root)?;
            durable[usize::from(shard)] = true;
        }
        Ok(())
    }
}

pub(super) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), BlobError> {
    files::sync_dir(dir).map_err(BlobError::io("sync", dir))
}

/// Makes a directory (and those above it) for its owner alone. Its name is durable afterwards, also where a process that
/// made it stopped before it could see to that.
pub(super) fn make_dir(dir: &Path) -> Result<(), BlobError> {
    let above = dir.parent().filter(|above| !above.as_os_str().is_empty());
    if let Some(above) = above.filter(|above| !above.is_dir()) {
        make_dir(above)?;
    }
    make_one_dir(dir)?;
    sync_dir(above.unwrap_or(Path::new(".")))
}

pub(super) fn make_one_dir(dir: &Path) -> Result<(), BlobError> {
    match files::create_dir(dir, 0o700) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(BlobError::io("create", dir)(error)),
        _ => Ok(()),
    }
}
