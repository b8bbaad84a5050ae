//! Files and directories as values, and the changes that are made to them. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fuser::Errno;

use crate::Name;

/// The number of a file or directory.
pub(crate) type Ino = u64;
/// The top directory's.
pub(crate) const ROOT: Ino = 1;

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Names, and what they lead to.
    Dir(BTreeMap<Name, Ino>),
    /// Bytes.
    File(Vec<u8>),
    /// Where a symbolic link leads.
    Link(PathBuf),
}

/// One inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    /// Permission bits.
    pub(crate) mode: u16,
    pub(crate) owner: (u32, u32),
}

/// A change. Names are by directory and name; bytes and attributes by inode.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// `name` of directory `dir` leads to `ino`, a new inode or a further name of one.
    Link { dir: Ino, name: Name, ino: Ino, node: Option<Node> },
    /// `name` of directory `dir` is gone.
    Unlink { dir: Ino, name: Name },
    /// The name of `ino` has moved, over what was there.
    Rename { ino: Ino, from: (Ino, Name), to: (Ino, Name) },
    /// Permissions or owner.
    Attributes { ino: Ino, mode: u16, owner: (u32, u32) },
    /// Bytes at an offset.
    Write { ino: Ino, offset: usize, bytes: Vec<u8> },
    /// Another length.
    Resize { ino: Ino, length: usize },
}

impl Change {
    /// Whether it is one of bytes, which a sync of the file makes durable.
    pub(crate) fn data_of(&self) -> Option<Ino> {
        match self {
            Self::Write { ino, .. } | Self::Resize { ino, .. } => Some(*ino),
            _ => None,
        }
    }

    /// The names it touches.
    pub(crate) fn slots(&self) -> Vec<(Ino, &Name)> {
        match self {
            Self::Link { dir, name, .. } | Self::Unlink { dir, name } => vec![(*dir, name)],
            Self::Rename { from, to, .. } => vec![(from.0, &from.1), (to.0, &to.1)],
            _ => Vec::new(),
        }
    }
}

/// All inodes, by number. Those without a name are kept as long as the tree is: a program may have them open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree(pub(crate) BTreeMap<Ino, Node>);

impl Default for Tree {
    fn default() -> Self {
        let root = Node { kind: Kind::Dir(BTreeMap::new()), mode: 0o755, owner: (0, 0) };
        Self(BTreeMap::from([(ROOT, root)]))
    }
}

impl Tree {
    pub(crate) fn node(&self, ino: Ino) -> Result<&Node, Errno> {
        self.0.get(&ino).ok_or(Errno::ENOENT)
    }

    pub(crate) fn dir(&self, ino: Ino) -> Result<&BTreeMap<Name, Ino>, Errno> {
        match &self.node(ino)?.kind {
            Kind::Dir(names) => Ok(names),
            _ => Err(Errno::ENOTDIR),
        }
    }

    pub(crate) fn file(&self, ino: Ino) -> Result<&Vec<u8>, Errno> {
        match &self.node(ino)?.kind {
            Kind::File(bytes) => Ok(bytes),
            Kind::Dir(_) => Err(Errno::EISDIR),
            Kind::Link(_) => Err(Errno::EINVAL),
        }
    }

    pub(crate) fn find(&self, dir: Ino, name: &std::ffi::OsStr) -> Result<Ino, Errno> {
        self.dir(dir)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    /// How many names an inode has.
    pub(crate) fn names_of(&self, ino: Ino) -> usize {
        let dirs =
            self.0.values().filter_map(|node| if let Kind::Dir(names) = &node.kind { Some(names) } else { None });
        dirs.flat_map(BTreeMap::values).filter(|found| **found == ino).count()
    }

    /// Carries a change out. What it cannot be carried out on is passed over: in the tree that programs see it was
    /// checked before, in the durable one the name or inode may never have become durable.
    pub(crate) fn apply(&mut self, change: &Change) {
        match change {
            Change::Link { dir, name, ino, node } => {
                if let Some(node) = node {
                    self.0.entry(*ino).or_insert_with(|| node.clone());
                }
                self.set(*dir, name, Some(*ino));
            }
            Change::Unlink { dir, name } => self.set(*dir, name, None),
            Change::Rename { ino, from, to } => {
                self.set(from.0, &from.1, None);
                self.set(to.0, &to.1, Some(*ino));
            }
            Change::Attributes { ino, mode, owner } => {
                if let Some(node) = self.0.get_mut(ino) {
                    (node.mode, node.owner) = (*mode, *owner);
                }
            }
            Change::Write { ino, offset, bytes } => {
                if let Some(file) = self.bytes(*ino) {
                    let end = offset + bytes.len();
                    if file.len() < end {
                        file.resize(end, 0);
                    }
                    file[*offset..end].copy_from_slice(bytes);
                }
            }
            Change::Resize { ino, length } => {
                if let Some(file) = self.bytes(*ino) {
                    file.resize(*length, 0);
                }
            }
        }
    }

    fn bytes(&mut self, ino: Ino) -> Option<&mut Vec<u8>> {
        match &mut self.0.get_mut(&ino)?.kind {
            Kind::File(bytes) => Some(bytes),
            _ => None,
        }
    }

    fn set(&mut self, dir: Ino, name: &Name, ino: Option<Ino>) {
        if let Some(Node { kind: Kind::Dir(names), .. }) = self.0.get_mut(&dir) {
            match ino {
                Some(ino) => names.insert(name.clone(), ino),
                None => names.remove(name),
            };
        }
    }

    /// Drops what no name leads to.
    pub(crate) fn without_orphans(mut self) -> Self {
        let (mut reached, mut open) = (std::collections::BTreeSet::from([ROOT]), vec![ROOT]);
        while let Some(ino) = open.pop() {
            for next in self.dir(ino).into_iter().flat_map(BTreeMap::values) {
                if reached.insert(*next) {
                    open.push(*next);
                }
            }
        }
        self.0.retain(|ino, _| reached.contains(ino));
        self
    }

    /// See [`crate::Disk::list`].
    pub(crate) fn list(&self) -> Vec<(PathBuf, Option<Vec<u8>>)> {
        let mut found = Vec::new();
        self.walk(ROOT, Path::new(""), &mut found);
        found
    }

    fn walk(&self, dir: Ino, path: &Path, found: &mut Vec<(PathBuf, Option<Vec<u8>>)>) {
        for (name, ino) in self.dir(dir).into_iter().flatten() {
            let path = path.join(name);
            found.push((path.clone(), self.file(*ino).ok().cloned()));
            self.walk(*ino, &path, found);
        }
    }
}
