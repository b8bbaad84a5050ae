//! A disk that forgets: notes what was synced, and after a power cut leaves of the rest what a seed chooses.
//!
//! The files themselves are real, as the page cache shows them. For each path is known what the disk holds for certain,
//! and what it may hold instead: every later content, whole or cut short, and that it was removed. Files that were never
//! noted may be gone, or cut short. More is allowed than most file systems make use of: names are lost independently of
//! each other.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

/// A file's content; `None` where there is no file.
type State = Option<Vec<u8>>;

#[derive(Debug, Default)]
struct Past {
    /// What is there at least as long as nothing of `since` reached the disk.
    certain: State,
    /// What was made of it since, oldest first.
    since: Vec<Change>,
}

#[derive(Debug)]
struct Change {
    state: State,
    /// The bytes are on the disk, though their name may not be.
    bytes_synced: bool,
}

#[derive(Debug, Default)]
struct Disk {
    files: BTreeMap<PathBuf, Past>,
    /// Directories whose names are not synced.
    new_dirs: BTreeSet<PathBuf>,
}

thread_local! {
    static DISK: RefCell<Option<Disk>> = const { RefCell::new(None) };
}

/// From now on this thread's changes are noted. What was noted before is forgotten.
pub fn begin() {
    DISK.set(Some(Disk::default()));
}

fn noting(work: impl FnOnce(&mut Disk)) {
    DISK.with_borrow_mut(|disk| disk.as_mut().map_or((), work));
}

fn change(path: &Path, change: Change) {
    noting(|disk| disk.files.entry(path.to_owned()).or_default().since.push(change));
}

/// The directory `path` was made.
pub fn made_dir(path: &Path) {
    noting(|disk| disk.new_dirs.extend([path.to_owned()]));
}

/// `path` has these bytes, which are synced; its name is not yet.
pub fn synced_write(path: &Path, bytes: &[u8]) {
    change(path, Change { state: Some(bytes.to_vec()), bytes_synced: true });
}

/// The bytes of `path` are synced as they are. Where its name is on the disk, they are there for certain.
pub fn synced_as_it_is(path: &Path) {
    noting(|disk| {
        let Ok(bytes) = std::fs::read(path) else { return };
        let past = disk.files.entry(path.to_owned()).or_default();
        if past.certain.is_some() && past.since.iter().all(|change| change.state.is_some()) {
            *past = Past { certain: Some(bytes), since: Vec::new() };
        } else {
            past.since.push(Change { state: Some(bytes), bytes_synced: true });
        }
    });
}

/// `path` has these bytes, and nothing is synced.
pub fn unsynced_write(path: &Path, bytes: &[u8]) {
    change(path, Change { state: Some(bytes.to_vec()), bytes_synced: false });
}

/// There is no file `path` any more.
pub fn removed(path: &Path) {
    change(path, Change { state: None, bytes_synced: true });
}

/// There is nothing below `dir` any more.
pub fn removed_all(dir: &Path) {
    noting(|disk| {
        for (_, past) in disk.files.iter_mut().filter(|(path, _)| path.starts_with(dir)) {
            past.since.push(Change { state: None, bytes_synced: true });
        }
        disk.new_dirs.retain(|path| !path.starts_with(dir));
    });
}

/// The names in `dir` are on the disk, and with them the last contents that were synced.
pub fn synced_dir(dir: &Path) {
    noting(|disk| {
        disk.new_dirs.retain(|path| path.parent() != Some(dir));
        for (_, past) in disk.files.iter_mut().filter(|(path, _)| path.parent() == Some(dir)) {
            past.settle();
        }
        // With the name of a directory goes what was in it.
        let is_cut_off = |path: &Path| {
            let below = path.strip_prefix(dir).ok().and_then(|below| below.iter().next());
            below.is_some_and(|first| !dir.join(first).exists())
        };
        disk.files.retain(|path, past| !is_cut_off(path) && (past.certain.is_some() || !past.since.is_empty()));
    });
}

impl Past {
    /// The name is synced: only of bytes that are not can anything else come to light.
    fn settle(&mut self) {
        let Some(last) = self.since.pop() else { return };
        self.since.clear();
        if last.bytes_synced {
            self.certain = last.state;
        } else {
            self.certain = Some(Vec::new());
            self.since.push(last);
        }
    }

    /// What the disk turns out to hold. `choose` picks one of so many, counted from 0.
    fn reveal(&self, choose: &mut dyn FnMut(usize) -> usize) -> State {
        let Some(change) = self.since.get(choose(self.since.len() + 1)) else { return self.certain.clone() };
        match &change.state {
            Some(bytes) if !change.bytes_synced => Some(bytes[..choose(bytes.len() + 1)].to_vec()),
            state => state.clone(),
        }
    }
}

/// Cuts the power of the machine that keeps its files below `root`: they become what the disk holds. `choose` picks one of
/// so many, counted from 0. Whoever has files open there must have been dropped.
///
/// # Errors
/// As the file system's.
pub fn cut(root: &Path, choose: &mut dyn FnMut(usize) -> usize) -> io::Result<()> {
    let (files, dirs) = take(root);
    lose_unnoted(root, &files, choose)?;
    for (path, past) in files {
        let state = past.reveal(choose);
        restore(&path, state.as_deref())?;
        if state.is_some() {
            noting(|disk| drop(disk.files.insert(path, Past { certain: state, since: Vec::new() })));
        }
    }
    // The outermost first: what was in it goes too.
    for dir in dirs.iter().filter(|_| choose(2) == 1).filter(|dir| dir.exists()) {
        std::fs::remove_dir_all(dir)?;
        noting(|disk| disk.files.retain(|path, _| !path.starts_with(dir)));
    }
    Ok(())
}

/// What was noted below `root`, which is forgotten.
fn take(root: &Path) -> (BTreeMap<PathBuf, Past>, BTreeSet<PathBuf>) {
    DISK.with_borrow_mut(|disk| {
        let Some(disk) = disk else { return Default::default() };
        let is_own = |path: &PathBuf| path.starts_with(root);
        let files = disk.files.extract_if(.., |path, _| is_own(path)).collect();
        (files, disk.new_dirs.extract_if(.., is_own).collect())
    })
}

fn restore(path: &Path, state: Option<&[u8]>) -> io::Result<()> {
    match state {
        Some(bytes) => {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            std::fs::write(path, bytes)
        }
        None => match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

/// Files that nobody synced: each stays, is cut short or gone.
fn lose_unnoted(dir: &Path, noted: &BTreeMap<PathBuf, Past>, choose: &mut dyn FnMut(usize) -> usize) -> io::Result<()> {
    let mut entries = std::fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            lose_unnoted(&path, noted, choose)?;
        } else if !noted.contains_key(&path) {
            match choose(3) {
                0 => {}
                1 => std::fs::remove_file(&path)?,
                _ => {
                    let length = usize::try_from(entry.metadata()?.len()).unwrap_or(usize::MAX - 1);
                    std::fs::OpenOptions::new().write(true).open(&path)?.set_len(choose(length + 1) as u64)?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{
        create_dir_all, create_dir_durable, note_synced, remove, remove_dir_all, replace, sync_dir, write,
    };
    use super::*;

    /// Everything that `path` may hold after a power cut, by taking each choice once.
    fn after_a_cut(prepare: impl Fn(&Path)) -> BTreeSet<Option<String>> {
        let mut all = BTreeSet::new();
        for first in 0..8 {
            for second in 0..8 {
                let dir = tempfile::tempdir().unwrap();
                begin();
                prepare(dir.path());
                let mut picks = [first, second].into_iter();
                cut(dir.path(), &mut |of| picks.next().unwrap_or(0) % of).unwrap();
                all.insert(std::fs::read_to_string(dir.path().join("file")).ok());
            }
        }
        all
    }

    fn states(states: &[Option<&str>]) -> BTreeSet<Option<String>> {
        states.iter().map(|state| state.map(str::to_owned)).collect()
    }

    #[test]
    fn what_was_written_durably_stays_whatever_is_lost() {
        let kept = after_a_cut(|dir| write(&dir.join("file"), b"new").unwrap());
        assert_eq!(kept, states(&[Some("new")]));
    }

    #[test]
    fn what_grows_keeps_what_was_synced_once_its_name_was() {
        let grow = |dir: &Path, text: &str| {
            std::fs::write(dir.join("file"), text).unwrap();
            note_synced(&dir.join("file"));
        };
        let unnamed = after_a_cut(|dir| grow(dir, "a"));
        assert_eq!(unnamed, states(&[None, Some("a")]));
        let named = after_a_cut(|dir| {
            grow(dir, "a");
            sync_dir(dir).unwrap();
            grow(dir, "ab");
        });
        assert_eq!(named, states(&[Some("ab")]));
    }

    #[test]
    fn what_was_only_replaced_may_be_old_new_or_torn() {
        let found = after_a_cut(|dir| {
            write(&dir.join("file"), b"old").unwrap();
            replace(&dir.join("file"), b"NEW").unwrap();
        });
        assert_eq!(found, states(&[Some("old"), Some(""), Some("N"), Some("NE"), Some("NEW")]));
    }

    #[test]
    fn what_was_removed_may_be_back_until_its_directory_is_synced() {
        let gone = |dir: &Path| {
            write(&dir.join("file"), b"old").unwrap();
            remove(&dir.join("file")).unwrap();
        };
        assert_eq!(after_a_cut(gone), states(&[Some("old"), None]));
        let synced = |dir: &Path| {
            gone(dir);
            sync_dir(dir).unwrap();
        };
        assert_eq!(after_a_cut(synced), states(&[None]));
    }

    #[test]
    fn a_directory_that_was_removed_may_be_back_in_part() {
        let dir = tempfile::tempdir().unwrap();
        let (entry, files) = (dir.path().join("entry"), ["a", "b"]);
        begin();
        std::fs::create_dir(&entry).unwrap();
        files.iter().for_each(|name| write(&entry.join(name), b"x").unwrap());
        remove_dir_all(&entry).unwrap();
        let mut back = [1, 0].into_iter();
        cut(dir.path(), &mut |_| back.next().unwrap()).unwrap();
        assert_eq!(files.map(|name| entry.join(name).exists()), [true, false]);
    }

    #[test]
    fn a_new_directory_may_be_lost_with_all_it_holds_until_its_name_is_synced() {
        let kept = |is_synced: bool| {
            let dir = tempfile::tempdir().unwrap();
            let (outer, inner) = (dir.path().join("outer"), dir.path().join("outer/inner"));
            begin();
            create_dir_all(&inner).unwrap();
            write(&inner.join("file"), b"x").unwrap();
            sync_dir(&outer).unwrap();
            if is_synced {
                sync_dir(dir.path()).unwrap();
            }
            cut(dir.path(), &mut |of| of - 1).unwrap();
            inner.join("file").exists()
        };
        assert!(kept(true) && !kept(false));
    }

    #[test]
    fn a_directory_that_is_made_durably_outlives_a_power_cut_with_those_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("outer/inner");
        begin();
        create_dir_durable(&inner, 0o700).unwrap();
        write(&inner.join("file"), b"x").unwrap();
        cut(dir.path(), &mut |of| of - 1).unwrap();
        assert!(inner.join("file").exists());
    }

    #[test]
    fn files_that_nobody_synced_may_be_lost() {
        let found = after_a_cut(|dir| std::fs::write(dir.join("file"), b"log").unwrap());
        assert_eq!(found, states(&[None, Some(""), Some("l"), Some("lo"), Some("log")]));
    }
}
