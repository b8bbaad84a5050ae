//! What was changed and not yet synced, and what a power cut makes of it.

use std::collections::{BTreeMap, BTreeSet};

use fuser::Errno;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::Remains;
use crate::tree::{Change, Ino, Kind, Node, Tree};

/// Bytes that a disk writes as one.
const PAGE: usize = 4096;

/// The tree as programs see it, as it is durable, and the changes between the two.
#[derive(Debug)]
pub(crate) struct Journal {
    live: Tree,
    durable: Tree,
    /// In the order they were made. The durable tree and all of these give the live one.
    pending: Vec<Change>,
    next: Ino,
    is_cut: bool,
    /// Changes and syncs fail; what is there can be read.
    pub(crate) is_failing: bool,
    /// Changes and syncs still to come before a cut, and its seed.
    armed: Option<(u64, u64)>,
    /// What that cut left.
    pub(crate) remains: Option<Remains>,
}

impl Journal {
    pub(crate) fn new(tree: Tree) -> Self {
        let next = tree.0.keys().max().map_or(1, |last| last + 1);
        let (pending, is_cut, is_failing) = (Vec::new(), false, false);
        Self { live: tree.clone(), durable: tree, pending, next, is_cut, is_failing, armed: None, remains: None }
    }

    pub(crate) fn live(&self) -> &Tree {
        &self.live
    }

    /// What programs may look at, unless the power is cut.
    pub(crate) fn tree(&self) -> Result<&Tree, Errno> {
        if self.is_cut { Err(Errno::EIO) } else { Ok(&self.live) }
    }

    /// See [`crate::Disk::cut_before`].
    pub(crate) fn arm(&mut self, steps: u64, seed: u64) {
        self.armed = Some((steps, seed));
    }

    /// One change or sync is about to be made.
    fn step(&mut self) -> Result<(), Errno> {
        if let Some((steps, seed)) = self.armed.take() {
            match steps.checked_sub(1) {
                None | Some(0) => self.remains = Some(self.cut(seed)),
                Some(left) => self.armed = Some((left, seed)),
            }
        }
        if self.is_failing { Err(Errno::EIO) } else { self.tree().map(drop) }
    }

    /// Makes a change that was checked before.
    pub(crate) fn change(&mut self, change: Change) -> Result<(), Errno> {
        self.step()?;
        self.live.apply(&change);
        self.pending.push(change);
        Ok(())
    }

    /// A new inode under a name that is free.
    pub(crate) fn create(&mut self, dir: Ino, name: &std::ffi::OsStr, node: Node) -> Result<Ino, Errno> {
        if self.tree()?.dir(dir)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let ino = self.next;
        self.next += 1;
        self.change(Change::Link { dir, name: name.to_owned(), ino, node: Some(node) })?;
        Ok(ino)
    }

    /// Makes a file's bytes and attributes durable, or a directory's names. Its own name is its directory's matter.
    pub(crate) fn sync(&mut self, ino: Ino) -> Result<(), Errno> {
        self.step()?;
        let Node { kind, mode, owner } = self.tree()?.node(ino)?.clone();
        let is_dir = matches!(kind, Kind::Dir(_));
        let (chosen, bare) = if is_dir {
            (self.names_of(ino), Kind::Dir(BTreeMap::new()))
        } else {
            (self.data_of(ino), Kind::File(Vec::new()))
        };
        // On the disk even if no name leads to it yet.
        self.durable.0.entry(ino).or_insert(Node { kind: bare, mode, owner });
        let mut rest = Vec::new();
        for (at, change) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            if chosen.contains(&at) { self.durable.apply(&change) } else { rest.push(change) }
        }
        self.pending = rest;
        Ok(())
    }

    fn data_of(&self, ino: Ino) -> BTreeSet<usize> {
        let is_its = |change: &Change| {
            change.data_of() == Some(ino) || matches!(change, Change::Attributes { ino: of, .. } if *of == ino)
        };
        (0..self.pending.len()).filter(|at| is_its(&self.pending[*at])).collect()
    }

    /// The changes of names in this directory, and those before them that they build upon: a rename takes the name it
    /// moved along, and names of one slot keep their order.
    fn names_of(&self, dir: Ino) -> BTreeSet<usize> {
        let (mut chosen, mut slots) = (BTreeSet::new(), BTreeSet::new());
        for (at, change) in self.pending.iter().enumerate().rev() {
            let touched = change.slots();
            let is_own = matches!(change, Change::Attributes { ino, .. } if *ino == dir);
            if is_own || touched.iter().any(|slot| slot.0 == dir || slots.contains(slot)) {
                chosen.insert(at);
                slots.extend(touched);
            }
        }
        chosen
    }

    /// See [`crate::Disk::cut`].
    pub(crate) fn cut(&mut self, seed: u64) -> Remains {
        self.is_cut = true;
        let mut chance = StdRng::seed_from_u64(seed);
        let (data, names): (Vec<Change>, Vec<Change>) =
            std::mem::take(&mut self.pending).into_iter().partition(|change| change.data_of().is_some());
        let mut tree = self.durable.clone();
        // Often all or nothing, for those are the common ends of a journal.
        let kept = match chance.random_range(0..4) {
            0 => 0,
            1 => names.len(),
            _ => chance.random_range(0..=names.len()),
        };
        names[..kept].iter().for_each(|change| tree.apply(change));
        let mut files: BTreeMap<Ino, Vec<Change>> = BTreeMap::new();
        for change in data {
            files.entry(change.data_of().unwrap_or_default()).or_default().push(change);
        }
        for (ino, changes) in &files {
            tear(&mut tree, *ino, changes, &mut chance);
        }
        Remains {
            tree: tree.without_orphans(),
            names_pending: names.len(),
            names_kept: kept,
            files_pending: files.len(),
        }
    }
}

/// What may become of a file's bytes that were not synced: nothing, all, or any pages and any length between.
fn tear(tree: &mut Tree, ino: Ino, changes: &[Change], chance: &mut StdRng) {
    let Ok(old) = tree.file(ino).cloned() else { return };
    let mut whole = tree.clone_of(ino);
    changes.iter().for_each(|change| whole.apply(change));
    let Ok(new) = whole.file(ino).cloned() else { return };
    let bytes = match chance.random_range(0..4) {
        0 => old,
        1 => new,
        _ => {
            let length = *[old.len(), new.len()].get(chance.random_range(0..2)).unwrap_or(&0);
            let mut torn = old;
            torn.resize(length, 0);
            for (at, page) in torn.chunks_mut(PAGE).enumerate() {
                let written = new.get(at * PAGE..).unwrap_or_default();
                let count = written.len().min(page.len());
                if chance.random_bool(0.5) {
                    page[..count].copy_from_slice(&written[..count]);
                }
            }
            torn
        }
    };
    if let Some(node) = tree.0.get_mut(&ino) {
        node.kind = Kind::File(bytes);
    }
}

impl Tree {
    /// A tree of this inode alone.
    fn clone_of(&self, ino: Ino) -> Self {
        Self(self.0.get(&ino).map(|node| (ino, node.clone())).into_iter().collect())
    }
}

#[cfg(test)]
mod tests;
