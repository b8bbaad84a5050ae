//! An input that is an archive, checked member by member on its way into the attempt's volume. The engine never sees what
//! was uploaded: each header is written anew, with a name that was looked at and the owner that the container runs as.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream;
use swarm_protocol::text::sanitise;
use swarm_protocol::validate::bounds::{UNPACKED_MAX, UNPACKED_NAME_BYTES_MAX};

use crate::runtime::ByteStream;
use crate::runtime::archive::{END_OF_ARCHIVE, Kind, Member, TarReader, member_head, padding};

/// The longest name of a file on Linux.
const PART_BYTES_MAX: usize = 255;
/// The longest path within an archive: the kernel takes 4,095 bytes, and some of them lead to the volume.
const PATH_BYTES_MAX: usize = 3_072;
/// Permission bits of directories that the archive only implies.
const DIR_MODE: u32 = 0o755;

/// What is wrong with an archive, for whoever sees only the engine's complaint about a stream that broke off.
pub(super) type Refusal = Arc<OnceLock<String>>;

/// For whom, and how much.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) uid: u64,
    pub(super) gid: u64,
    /// Bytes of all files together.
    pub(super) bytes_max: u64,
    /// Directories that are to be there, whether the archive has them or not: plain paths, relative.
    pub(super) needed: Vec<String>,
}

/// `tar` as the engine is to unpack it. It ends with an error where the archive is not one to unpack; the reason is left
/// in `refusal`, but only once all bytes have come, since it is the job's fault only if they are those that it named.
pub(super) fn unpacked(tar: ByteStream, terms: Terms, refusal: Refusal) -> ByteStream {
    let tree = Tree { left: terms.bytes_max, ..Tree::default() };
    let unpacking = Unpacking { reader: TarReader::new(tar), tree, terms, open: None, ended: false };
    stream::try_unfold((unpacking, refusal), |(mut unpacking, refusal)| async move {
        match unpacking.step().await {
            Ok(piece) => Ok(piece.map(|piece| (piece, (unpacking, refusal)))),
            Err(error) => {
                unpacking.reader.drain().await?;
                let _ = refusal.set(error.to_string());
                Err(error)
            }
        }
    })
    .boxed()
}

struct Unpacking {
    reader: TarReader,
    tree: Tree,
    terms: Terms,
    /// The size of the file whose bytes are under way.
    open: Option<u64>,
    ended: bool,
}

impl Unpacking {
    async fn step(&mut self) -> io::Result<Option<Bytes>> {
        if let Some(size) = self.open {
            if let Some(chunk) = self.reader.chunk().await? {
                return Ok(Some(chunk));
            }
            self.open = None;
            return Ok(Some(padding(size)));
        }
        if self.ended {
            return Ok(None);
        }
        let Some(member) = self.reader.next_member().await? else { return self.end().await.map(Some) };
        let admitted = self.tree.admit(member).map_err(refused)?;
        self.open = admitted.last().filter(|member| member.kind == Kind::File).map(|member| member.size);
        self.heads(&admitted).map(|heads| Some(heads.freeze()))
    }

    async fn end(&mut self) -> io::Result<Bytes> {
        let mut implied = Vec::new();
        for dir in &self.terms.needed {
            self.tree.make_directories(dir.as_bytes(), &mut implied).map_err(refused)?;
        }
        let mut heads = self.heads(&implied)?;
        heads.extend_from_slice(END_OF_ARCHIVE);
        self.reader.drain().await?;
        self.ended = true;
        Ok(heads.freeze())
    }

    fn heads(&self, members: &[Member]) -> io::Result<BytesMut> {
        let mut heads = BytesMut::new();
        for member in members {
            heads.extend_from_slice(&member_head(member, self.terms.uid, self.terms.gid)?);
        }
        Ok(heads)
    }
}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// What has been unpacked so far.
#[derive(Debug, Default)]
struct Tree {
    kinds: HashMap<Vec<u8>, Kind>,
    name_bytes: usize,
    /// Bytes that files may still have.
    left: u64,
}

impl Tree {
    /// What to write for this member: the directories above it that the archive only implied, and itself. Nothing for the
    /// directory unpacked into. Nothing is ever written through a link, nor over anything but a directory by another.
    fn admit(&mut self, member: Member) -> Result<Vec<Member>, String> {
        let named = |why: &str| format!("`{}` {why}", shown(&member.path));
        let path = plain(&member.path).ok_or_else(|| named("is not a plain path within the directory"))?;
        let kind = match member.kind {
            // How archives of old told directories.
            Kind::File if member.size == 0 && member.path.ends_with(b"/") => Kind::Directory,
            kind => kind,
        };
        match kind {
            Kind::Other => return Err(named("is neither a file nor a directory nor a link")),
            Kind::File => {
                self.left = self.left.checked_sub(member.size).ok_or_else(|| {
                    "its files have more bytes than the job's disk limit has left; allow more with `disk_bytes`"
                        .to_owned()
                })?;
            }
            _ if member.size > 0 => return Err(named("has bytes, though it is no file")),
            Kind::Directory if path.is_empty() => return Ok(Vec::new()),
            Kind::Symlink if !stays_inside(&path, &member.link) => return Err(named("is a link that leads out")),
            Kind::HardLink if !self.is_file(&member.link) => {
                return Err(named("is a further name of a file that does not come before it"));
            }
            Kind::Directory | Kind::Symlink | Kind::HardLink => {}
        }
        if path.is_empty() {
            return Err(named("is not in the directory"));
        }
        let mut admitted = Vec::new();
        self.make_directories(parent(&path), &mut admitted)?;
        match (self.kinds.get(&path), kind) {
            (None, _) => self.note(&path, kind)?,
            (Some(Kind::Directory), Kind::Directory) => {}
            _ => return Err(named("is there twice")),
        }
        let link = if kind == Kind::HardLink { plain(&member.link).unwrap_or_default() } else { member.link };
        let (mode, mtime) = (member.mode & 0o777, member.mtime.min(u32::MAX.into()));
        admitted.push(Member { kind, path, link, mode, mtime, ..member });
        Ok(admitted)
    }

    /// Adds to `made` what lacks of the directory `path` and those above it.
    fn make_directories(&mut self, path: &[u8], made: &mut Vec<Member>) -> Result<(), String> {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.chain((!path.is_empty()).then_some(path.len())) {
            let dir = &path[..end];
            match self.kinds.get(dir) {
                Some(Kind::Directory) => {}
                Some(_) => return Err(format!("`{}` is no directory, but something is to lie in it", shown(dir))),
                None => {
                    self.note(dir, Kind::Directory)?;
                    made.push(directory(dir));
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, path: &[u8], kind: Kind) -> Result<(), String> {
        self.name_bytes += path.len();
        if self.kinds.len() == UNPACKED_MAX || self.name_bytes > UNPACKED_NAME_BYTES_MAX {
            return Err(format!(
                "it has more than {UNPACKED_MAX} entries, or more than {UNPACKED_NAME_BYTES_MAX} bytes of names; give the \
                 archive as a file and unpack it in the job"
            ));
        }
        self.kinds.insert(path.to_vec(), kind);
        Ok(())
    }

    fn is_file(&self, target: &[u8]) -> bool {
        plain(target).is_some_and(|target| matches!(self.kinds.get(&target), Some(Kind::File | Kind::HardLink)))
    }
}

fn directory(path: &[u8]) -> Member {
    let (path, link) = (path.to_vec(), Vec::new());
    Member { kind: Kind::Directory, path, link, size: 0, mode: DIR_MODE, uid: 0, gid: 0, mtime: 0 }
}

/// A name as it can be shown to people.
fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    sanitise(&text.chars().take(200).collect::<String>(), false)
}

/// A relative path without `.`, `//` or a final `/`, empty for the directory itself; `None` for one that could lead
/// elsewhere, or that no file system takes.
fn plain(path: &[u8]) -> Option<Vec<u8>> {
    if path.is_empty() || path.starts_with(b"/") || path.contains(&0) || path.len() > PATH_BYTES_MAX {
        return None;
    }
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    let fine = |part: &&[u8]| **part != *b".." && part.len() <= PART_BYTES_MAX;
    parts.iter().all(fine).then(|| parts.join(&b'/'))
}

/// The directory of a plain path; empty at the top.
fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(&[], |at| &path[..at])
}

/// Whether a link at the plain path `at` leads to a place within the directory, by its words.
fn stays_inside(at: &[u8], target: &[u8]) -> bool {
    if target.is_empty() || target.starts_with(b"/") || target.contains(&0) || target.len() > PATH_BYTES_MAX {
        return false;
    }
    let mut depth = at.iter().filter(|byte| **byte == b'/').count();
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if depth == 0 => return false,
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    true
}

#[cfg(test)]
mod tests;
