//! What the worker knows of its images beyond what the engine tells: when each was last used, and which were being
//! loaded when a worker was killed. A file in the data directory; losing it only makes the order of dropping worse.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use swarm_host::files;
use swarm_protocol::Digest;

const FILE: &str = "images.json";

/// See the module.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Known {
    /// Unix time in milliseconds of the last use.
    used: BTreeMap<Digest, u64>,
    /// Loads under way: the engine may hold these without our mark.
    loading: BTreeSet<Digest>,
}

impl Ledger {
    /// Reads what an earlier start knew; a file that cannot be read counts as none.
    pub(crate) fn open(data: &Path) -> Self {
        let path = data.join(FILE);
        let known = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(%error, "{} is damaged and is begun anew", path.display());
                Known::default()
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, "{} cannot be read and is begun anew", path.display());
                }
                Known::default()
            }
        };
        Self { path, known: Mutex::new(known) }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When an image was last used; 0 when that is not known.
    pub(crate) fn used(&self, image: &Digest) -> u64 {
        self.lock().used.get(image).copied().unwrap_or(0)
    }

    /// Notes a use at `at_ms`, Unix time in milliseconds; kept with the next [`save`](Self::save).
    pub(crate) fn touch(&self, image: Digest, at_ms: u64) {
        self.lock().used.insert(image, at_ms);
    }

    /// Notes that an image is about to be loaded, before the engine could have any of it.
    pub(crate) fn begin_load(&self, image: Digest) -> io::Result<()> {
        self.lock().loading.insert(image);
        self.save()
    }

    /// Notes that the engine holds the image with our mark, or does not hold it.
    pub(crate) fn end_load(&self, image: &Digest) {
        self.lock().loading.remove(image);
    }

    /// Loads that a killed worker left unfinished.
    pub(crate) fn unfinished(&self) -> Vec<Digest> {
        self.lock().loading.iter().copied().collect()
    }

    /// Forgets images that are gone.
    pub(crate) fn keep_only(&self, images: &[Digest]) {
        self.lock().used.retain(|image, _| images.contains(image));
    }

    /// Writes the file, in full or not at all: of a load that was not noted, something may stay for good.
    pub(crate) fn save(&self) -> io::Result<()> {
        let text = serde_json::to_vec(&*self.lock())?;
        files::write(&self.path, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_known_again_and_damage_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
        let ledger = Ledger::open(dir.path());
        ledger.touch(old, 7);
        ledger.touch(new, 9);
        ledger.begin_load(new).unwrap();
        let again = Ledger::open(dir.path());
        assert_eq!((again.used(&old), again.used(&new), again.unfinished()), (7, 9, vec![new]));
        again.end_load(&new);
        again.keep_only(&[new]);
        again.save().unwrap();
        let last = Ledger::open(dir.path());
        assert_eq!((last.used(&old), last.used(&new), last.unfinished()), (0, 9, Vec::new()));
        std::fs::write(dir.path().join(FILE), "{\"used\": 3").unwrap();
        assert_eq!(Ledger::open(dir.path()).used(&new), 0);
    }
}
