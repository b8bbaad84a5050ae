//! The kernel's questions, answered from the journal.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use crate::journal::Journal;
use crate::tree::{Change, Ino, Kind, Node, Tree};

/// How long the kernel may remember: nothing changes but through it.
const TTL: Duration = Duration::from_secs(3600);
const BLOCK: u64 = 512;

/// The file system as the kernel asks it.
pub(crate) struct Files(pub(crate) Arc<Mutex<Journal>>);

impl Files {
    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attributes(&self, ino: Ino) -> Result<FileAttr, Errno> {
        attributes(self.journal().tree()?, ino)
    }

    fn make(&self, request: &Request, dir: INodeNo, name: &OsStr, kind: Kind, mode: u32) -> Result<FileAttr, Errno> {
        let node = Node { kind, mode: permissions(mode), owner: (request.uid(), request.gid()) };
        let ino = self.journal().create(dir.0, name, node)?;
        self.attributes(ino)
    }

    fn remove(&self, dir: INodeNo, name: &OsStr, is_dir: bool) -> Result<(), Errno> {
        let mut journal = self.journal();
        let tree = journal.tree()?;
        let ino = tree.find(dir.0, name)?;
        check_removable(tree, ino, is_dir)?;
        journal.change(Change::Unlink { dir: dir.0, name: name.to_owned() })
    }

    fn rename(&self, from: (Ino, &OsStr), to: (Ino, &OsStr), flags: RenameFlags) -> Result<(), Errno> {
        let mut journal = self.journal();
        let tree = journal.tree()?;
        let moved = tree.find(from.0, from.1)?;
        if flags.intersects(RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_WHITEOUT) {
            return Err(Errno::EINVAL);
        }
        match tree.find(to.0, to.1) {
            Ok(_) if flags.contains(RenameFlags::RENAME_NOREPLACE) => return Err(Errno::EEXIST),
            // Two names of one file: POSIX asks for nothing to happen.
            Ok(there) if there == moved => return Ok(()),
            Ok(there) => check_removable(tree, there, tree.dir(moved).is_ok())?,
            Err(_) => {}
        }
        journal.change(Change::Rename { ino: moved, from: (from.0, from.1.to_owned()), to: (to.0, to.1.to_owned()) })
    }

    fn set(
        &self,
        ino: Ino,
        mode: Option<u32>,
        owner: (Option<u32>, Option<u32>),
        size: Option<u64>,
    ) -> Result<FileAttr, Errno> {
        let mut journal = self.journal();
        let node = journal.tree()?.node(ino)?;
        let (old_mode, old_owner) = (node.mode, node.owner);
        if mode.is_some() || owner != (None, None) {
            let mode = mode.map_or(old_mode, permissions);
            let owner = (owner.0.unwrap_or(old_owner.0), owner.1.unwrap_or(old_owner.1));
            journal.change(Change::Attributes { ino, mode, owner })?;
        }
        if let Some(size) = size {
            journal.tree()?.file(ino)?;
            let length = usize::try_from(size).map_err(|_| Errno::EFBIG)?;
            journal.change(Change::Resize { ino, length })?;
        }
        attributes(journal.tree()?, ino)
    }

    fn store(&self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<u32, Errno> {
        let mut journal = self.journal();
        journal.tree()?.file(ino)?;
        let offset = usize::try_from(offset).map_err(|_| Errno::EFBIG)?;
        journal.change(Change::Write { ino, offset, bytes: bytes.to_vec() })?;
        Ok(bytes.len() as u32)
    }
}

const fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

fn check_removable(tree: &Tree, ino: Ino, is_dir: bool) -> Result<(), Errno> {
    match (tree.dir(ino), is_dir) {
        (Ok(names), true) if names.is_empty() => Ok(()),
        (Ok(_), true) => Err(Errno::ENOTEMPTY),
        (Ok(_), false) => Err(Errno::EISDIR),
        (Err(_), true) => Err(Errno::ENOTDIR),
        (Err(_), false) => Ok(()),
    }
}

fn kind_of(node: &Node) -> FileType {
    match node.kind {
        Kind::Dir(_) => FileType::Directory,
        Kind::File(_) => FileType::RegularFile,
        Kind::Link(_) => FileType::Symlink,
    }
}

fn attributes(tree: &Tree, ino: Ino) -> Result<FileAttr, Errno> {
    let node = tree.node(ino)?;
    let size = match &node.kind {
        Kind::File(bytes) => bytes.len() as u64,
        Kind::Link(target) => target.as_os_str().len() as u64,
        Kind::Dir(_) => BLOCK,
    };
    let nlink = if matches!(node.kind, Kind::Dir(_)) { 2 } else { tree.names_of(ino) as u32 };
    Ok(FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(BLOCK),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: kind_of(node),
        perm: node.mode,
        nlink,
        uid: node.owner.0,
        gid: node.owner.1,
        rdev: 0,
        flags: 0,
        blksize: 4096,
    })
}

/// Answers with a value or with an error.
macro_rules! answer {
    ($reply:ident, $result:expr, $value:pat => $say:expr) => {
        match $result {
            Ok($value) => $say,
            Err(error) => $reply.error(error),
        }
    };
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.journal().tree().and_then(|tree| attributes(tree, tree.find(dir.0, name)?));
        answer!(reply, found, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer!(reply, self.attributes(ino.0), attr => reply.attr(&TTL, &attr));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        answer!(reply, self.set(ino.0, mode, (uid, gid), size), attr => reply.attr(&TTL, &attr));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let target = self.journal().tree().and_then(|tree| match &tree.node(ino.0)?.kind {
            Kind::Link(target) => Ok(target.clone()),
            _ => Err(Errno::EINVAL),
        });
        answer!(reply, target, target => reply.data(target.as_os_str().as_encoded_bytes()));
    }

    fn mkdir(&self, request: &Request, dir: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let made = self.make(request, dir, name, Kind::Dir(Default::default()), mode & !umask);
        answer!(reply, made, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn symlink(&self, request: &Request, dir: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = self.make(request, dir, name, Kind::Link(target.to_owned()), 0o777);
        answer!(reply, made, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn link(&self, _: &Request, ino: INodeNo, dir: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut journal = self.journal();
        let linked = journal.tree().and_then(|tree| match tree.find(dir.0, name) {
            Ok(_) => Err(Errno::EEXIST),
            Err(_) => Ok(Change::Link { dir: dir.0, name: name.to_owned(), ino: ino.0, node: None }),
        });
        let linked = linked.and_then(|change| journal.change(change));
        let attr = linked.and_then(|()| attributes(journal.tree()?, ino.0));
        answer!(reply, attr, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn create(&self, request: &Request, dir: INodeNo, name: &OsStr, mode: u32, umask: u32, _: i32, reply: ReplyCreate) {
        let made = self.make(request, dir, name, Kind::File(Vec::new()), mode & !umask);
        answer!(reply, made, attr =>
            reply.created(&TTL, &attr, Generation(0), FileHandle(0), FopenFlags::empty()));
    }

    fn unlink(&self, _: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.remove(dir, name, false), () => reply.ok());
    }

    fn rmdir(&self, _: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.remove(dir, name, true), () => reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        dir: INodeNo,
        name: &OsStr,
        to_dir: INodeNo,
        to_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        answer!(reply, self.rename((dir.0, name), (to_dir.0, to_name), flags), () => reply.ok());
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let journal = self.journal();
        let bytes = journal.tree().and_then(|tree| tree.file(ino.0));
        answer!(reply, bytes, bytes => {
            let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
            reply.data(&rest[..rest.len().min(size as usize)]);
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        answer!(reply, self.store(ino.0, offset, data), count => reply.written(count));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        answer!(reply, self.journal().tree().map(drop), () => reply.ok());
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.journal().sync(ino.0), () => reply.ok());
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.journal().sync(ino.0), () => reply.ok());
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let journal = self.journal();
        let names = journal.tree().and_then(|tree| Ok((tree, tree.dir(ino.0)?)));
        answer!(reply, names, (tree, names) => {
            // By number, so that a position holds while names come and go. The kernel needs no dots from us.
            let mut entries: Vec<_> = names.iter().filter(|(_, ino)| **ino > offset).collect();
            entries.sort_by_key(|(_, ino)| **ino);
            for (name, ino) in entries {
                let kind = tree.node(*ino).map_or(FileType::RegularFile, kind_of);
                if reply.add(INodeNo(*ino), *ino, kind, name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let free = 1 << 22;
        reply.statfs(free, free, free, free, free, 4096, 255, 4096);
    }

    fn access(&self, _: &Request, ino: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        answer!(reply, self.attributes(ino.0).map(drop), () => reply.ok());
    }
}
