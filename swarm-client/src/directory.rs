//! A directory as one tar archive that exists nowhere: what is in it is listed once, and the bytes are made as they are
//! asked for, from any offset on. Equal content makes equal bytes, whoever owns it and whenever it was written: names are
//! sorted, owners and times are 0, permission bits are kept.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream;
use swarm_protocol::validate::bounds::{UNPACKED_MAX, UNPACKED_NAME_BYTES_MAX};
use tar::{EntryType, Header};
use walkdir::{DirEntry, WalkDir};

/// Tar's unit.
const BLOCK_BYTES: u64 = 512;
/// What stands in the header of a member whose name is in a record before it.
const LONG_NAME: &str = "@LongName";
/// What is read at once.
const READ_BYTES: usize = 256 << 10;
/// Entries named in a refusal.
const NAMED_MAX: usize = 5;

/// Why a directory cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// Something in it cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// These are no directories, regular files or links within it; the first few of them.
    #[error("it has what cannot be packed: {}", entries.join(", "))]
    Strange {
        /// Each with what it is.
        entries: Vec<String>,
    },
    /// A job unpacks no more.
    #[error("it has more than {UNPACKED_MAX} entries, or more than {UNPACKED_NAME_BYTES_MAX} bytes of names")]
    TooMany,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    /// Its bytes.
    File(u64),
    /// Where it leads.
    Link(PathBuf),
}

#[derive(Debug)]
struct Entry {
    /// Relative to the directory.
    name: PathBuf,
    kind: Kind,
    mode: u32,
    /// Where its header begins in the archive.
    start: u64,
}

impl Entry {
    /// Its header, with records for long names before it.
    fn head(&self) -> io::Result<Vec<u8>> {
        let mut header = Header::new_gnu();
        header.set_mode(self.mode);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(if let Kind::File(size) = self.kind { size } else { 0 });
        let mut head = tar::Builder::new(Vec::new());
        let (bytes, mut name) = (self.name.as_os_str().as_bytes(), self.name.as_path());
        if bytes.len() > header.as_old().name.len() {
            // `tar` puts the beginning of a long name into the header as well, which then has to be a path and text.
            head.append(&long_name(bytes.len() as u64 + 1), bytes.chain(&b"\0"[..]))?;
            name = Path::new(LONG_NAME);
        }
        match &self.kind {
            Kind::Link(target) => {
                header.set_entry_type(EntryType::Symlink);
                head.append_link(&mut header, name, target)?;
            }
            kind => {
                let is_dir = *kind == Kind::Directory;
                header.set_entry_type(if is_dir { EntryType::Directory } else { EntryType::Regular });
                head.append_data(&mut header, name, io::empty())?;
            }
        }
        // The end that a whole archive would get is not written yet.
        Ok(std::mem::take(head.get_mut()))
    }
}

/// The header of GNU's record of the name of the member behind it, which may be of any length and any bytes.
fn long_name(size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(size);
    header.set_mode(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    header
}

/// What a directory holds, and the archive of it.
#[derive(Debug)]
pub struct Packing {
    root: PathBuf,
    entries: Vec<Entry>,
    size_bytes: u64,
}

impl Packing {
    /// Lists what is in the directory `root`. Links are kept as links if they lead to a place within it, by their words;
    /// of a file with several names, each becomes a file; holes of sparse files become zeros.
    ///
    /// # Errors
    /// [`PackError`], before anything is read of any file.
    pub fn of(root: &Path) -> Result<Self, PackError> {
        let mut packing = Self { root: root.to_owned(), entries: Vec::new(), size_bytes: 0 };
        let (mut strange, mut name_bytes) = (Vec::new(), 0);
        for found in WalkDir::new(root).min_depth(1).sort_by_file_name() {
            let found = found.map_err(|error| PackError::Io {
                path: error.path().unwrap_or(root).to_owned(),
                source: error.into(),
            })?;
            let name = found.path().strip_prefix(root).unwrap_or(found.path()).to_owned();
            name_bytes += name.as_os_str().len();
            if packing.entries.len() == UNPACKED_MAX || name_bytes > UNPACKED_NAME_BYTES_MAX {
                return Err(PackError::TooMany);
            }
            match read_entry(&found, &name)? {
                Ok((kind, mode)) => packing.add(name, kind, mode)?,
                Err(what) => strange.push(format!("{} ({what})", name.display())),
            }
            if strange.len() == NAMED_MAX {
                break;
            }
        }
        packing.size_bytes += 2 * BLOCK_BYTES;
        if strange.is_empty() { Ok(packing) } else { Err(PackError::Strange { entries: strange }) }
    }

    fn add(&mut self, name: PathBuf, kind: Kind, mode: u32) -> Result<(), PackError> {
        let entry = Entry { name, kind, mode, start: self.size_bytes };
        let head = entry.head().map_err(|source| PackError::Io { path: self.root.join(&entry.name), source })?;
        let size = if let Kind::File(size) = entry.kind { size.next_multiple_of(BLOCK_BYTES) } else { 0 };
        self.size_bytes += head.len() as u64 + size;
        self.entries.push(entry);
        Ok(())
    }

    /// The directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The length of the archive.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The archive from `offset` on. Reading fails where a file has another size by now than when it was listed.
    ///
    /// # Errors
    /// When the file that lies there cannot be opened.
    pub(crate) fn reader(self: &Arc<Self>, offset: u64) -> io::Result<Reader> {
        let next = self.entries.partition_point(|entry| entry.start <= offset).saturating_sub(1);
        let start = self.entries.get(next).map_or(0, |entry| entry.start);
        let mut reader =
            Reader { packing: Arc::clone(self), next, pending: Cursor::default(), body: None, ended: false };
        reader.skip(offset - start)?;
        Ok(reader)
    }

    /// As [`reader`](Self::reader), read by other threads.
    pub(crate) async fn stream(
        self: &Arc<Self>,
        offset: u64,
    ) -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static> {
        let packing = Arc::clone(self);
        let reader = crate::transfer::blocking(move || packing.reader(offset)).await?;
        Ok(stream::try_unfold(reader, |reader| async move { crate::transfer::blocking(move || reader.piece()).await }))
    }
}

/// What an entry is and its permission bits, or what of it cannot be packed.
fn read_entry(found: &DirEntry, name: &Path) -> Result<Result<(Kind, u32), &'static str>, PackError> {
    let failed = |source| PackError::Io { path: found.path().to_owned(), source };
    let facts = found.metadata().map_err(|error| failed(error.into()))?;
    let mode = facts.mode() & 0o777;
    let kind = facts.file_type();
    Ok(if kind.is_dir() {
        Ok((Kind::Directory, mode))
    } else if kind.is_file() {
        Ok((Kind::File(facts.len()), mode))
    } else if kind.is_symlink() {
        let target = std::fs::read_link(found.path()).map_err(failed)?;
        if stays_inside(name, &target) { Ok((Kind::Link(target), 0o777)) } else { Err("a link that leads out of it") }
    } else {
        Err("a device, pipe or socket")
    })
}

/// Whether a link called `name` leads to a place within the directory.
fn stays_inside(name: &Path, target: &Path) -> bool {
    let mut depth = name.components().count() - 1;
    for part in target.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if depth == 0 => return false,
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

/// Makes the archive as it is read.
pub(crate) struct Reader {
    packing: Arc<Packing>,
    /// The entry that comes next.
    next: usize,
    /// Headers and what fills a last block.
    pending: Cursor<Vec<u8>>,
    /// The file whose bytes are under way, its size, and how many are left.
    body: Option<(File, u64, u64)>,
    ended: bool,
}

impl Reader {
    /// The next bytes, and the reader again; `None` at the end.
    fn piece(mut self) -> io::Result<Option<(Bytes, Self)>> {
        let mut piece = vec![0; READ_BYTES];
        let mut length = 0;
        // Small files come together.
        while length < READ_BYTES {
            match self.read(&mut piece[length..])? {
                0 => break,
                count => length += count,
            }
        }
        piece.truncate(length);
        Ok((length > 0).then_some((piece.into(), self)))
    }

    /// Turns to what comes next; false at the end.
    fn turn(&mut self) -> io::Result<bool> {
        if let Some((_, size, _)) = self.body.take() {
            self.pending = Cursor::new(vec![0; (size.next_multiple_of(BLOCK_BYTES) - size) as usize]);
            return Ok(true);
        }
        let Some(entry) = self.packing.entries.get(self.next) else {
            self.pending = Cursor::new(vec![0; 2 * BLOCK_BYTES as usize]);
            return Ok(!std::mem::replace(&mut self.ended, true));
        };
        self.next += 1;
        self.pending = Cursor::new(entry.head()?);
        if let Kind::File(size) = entry.kind {
            let path = self.packing.root.join(&entry.name);
            self.body = Some((open(&path, size).map_err(|error| told(&path, &error))?, size, size));
        }
        Ok(true)
    }

    /// Passes over bytes that were read before.
    fn skip(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let pending = self.pending.get_ref().len() as u64 - self.pending.position();
            if pending > 0 {
                let step = pending.min(count);
                self.pending.set_position(self.pending.position() + step);
                count -= step;
            } else if let Some((file, _, left @ 1..)) = &mut self.body {
                let step = (*left).min(count);
                file.seek(SeekFrom::Current(i64::try_from(step).map_err(io::Error::other)?))?;
                *left -= step;
                count -= step;
            } else if !self.turn()? {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn open(path: &Path, size: u64) -> io::Result<File> {
    let file = File::open(path)?;
    let facts = file.metadata()?;
    if facts.is_file() && facts.len() == size { Ok(file) } else { Err(changed()) }
}

fn changed() -> io::Error {
    io::Error::other("it was changed while it was being packed")
}

/// An error that names the file.
fn told(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.pending.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            if let Some((file, _, left @ 1..)) = &mut self.body {
                let most = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                let path = || self.packing.root.join(&self.packing.entries[self.next - 1].name);
                let read = file
                    .read(&mut buffer[..most])
                    .and_then(|count| if count == 0 { Err(changed()) } else { Ok(count) });
                let count = read.map_err(|error| told(&path(), &error))?;
                *left -= count as u64;
                return Ok(count);
            }
            if self.ended || !self.turn()? {
                return Ok(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use futures_util::TryStreamExt;

    use super::*;

    /// A directory of every kind, made in this order of names.
    fn tree(order: &[usize]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let long = format!("sub/{}", "l".repeat(180));
        let mode =
            |name: &str, mode| std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
        for step in order {
            match step {
                0 => std::fs::create_dir_all(at("sub/empty")).unwrap(),
                1 => std::fs::write(at("run.sh"), "#!/bin/sh\n").unwrap(),
                2 => std::fs::write(at(&long), vec![7; 300_000]).unwrap(),
                3 => symlink("../run.sh", at("sub/link")).unwrap(),
                _ => std::fs::write(at("a"), "").unwrap(),
            }
        }
        mode("run.sh", 0o750);
        mode("sub/empty", 0o700);
        mode("sub", 0o755);
        mode(&long, 0o640);
        mode("a", 0o444);
        dir
    }

    fn whole(packing: &Arc<Packing>) -> Vec<u8> {
        let mut all = Vec::new();
        packing.reader(0).unwrap().read_to_end(&mut all).unwrap();
        all
    }

    #[test]
    fn a_directory_is_packed_in_order_without_owners_or_times() {
        let dir = tree(&[0, 1, 2, 3, 4]);
        let packing = Arc::new(Packing::of(dir.path()).unwrap());
        let bytes = whole(&packing);
        assert_eq!(bytes.len() as u64, packing.size_bytes());
        let mut archive = tar::Archive::new(&bytes[..]);
        let (mut names, mut facts) = (Vec::new(), BTreeMap::new());
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 0));
            let name = entry.path().unwrap().display().to_string();
            facts.insert(name.clone(), (header.mode().unwrap(), entry.size(), header.entry_type()));
            names.push(name);
        }
        let long = format!("sub/{}", "l".repeat(180));
        assert_eq!(names, ["a", "run.sh", "sub", "sub/empty", "sub/link", &long]);
        assert_eq!(facts["run.sh"], (0o750, 10, EntryType::Regular));
        assert_eq!(facts["sub/empty"], (0o700, 0, EntryType::Directory));
        assert_eq!(facts["sub/link"], (0o777, 0, EntryType::Symlink));
        assert_eq!((facts["a"], facts[&long]), ((0o444, 0, EntryType::Regular), (0o640, 300_000, EntryType::Regular)));
        // The same content, made in another order and at another time.
        let again = tree(&[4, 0, 3, 2, 1]);
        assert!(whole(&Arc::new(Packing::of(again.path()).unwrap())) == bytes);
    }

    #[tokio::test]
    async fn it_can_be_read_from_anywhere() {
        let dir = tree(&[0, 1, 2, 3, 4]);
        let packing = Arc::new(Packing::of(dir.path()).unwrap());
        let bytes = whole(&packing);
        let end = bytes.len();
        for offset in
            [0, 1, 511, 512, 1024, 1030, 1536, 4000, 150_000, 300_000, end - 1300, end - 1025, end - 1024, end - 1, end]
        {
            let rest: Vec<Bytes> = packing.stream(offset as u64).await.unwrap().try_collect().await.unwrap();
            assert!(rest.concat() == bytes[offset..], "from {offset}");
        }
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(whole(&Arc::new(Packing::of(empty.path()).unwrap())), [0; 1024]);
    }

    #[test]
    fn names_are_bytes_however_long() {
        use std::ffi::OsStr;
        let dir = tempfile::tempdir().unwrap();
        let dots = [&b"d".repeat(97)[..], b"/..hidden"].concat();
        let mut names =
            vec![b"short-\xff".to_vec(), b"\xff".repeat(150), [&b"..\xfe"[..], &b"n".repeat(150)].concat(), dots];
        std::fs::create_dir(dir.path().join("d".repeat(97))).unwrap();
        for name in &names {
            std::fs::write(dir.path().join(OsStr::from_bytes(name)), name).unwrap();
        }
        let target = OsStr::from_bytes(&[0xfe; 120]).to_owned();
        symlink(&target, dir.path().join(OsStr::from_bytes(&[0xfd; 120]))).unwrap();
        let packing = Arc::new(Packing::of(dir.path()).unwrap());
        let bytes = whole(&packing);
        assert_eq!(bytes.len() as u64, packing.size_bytes());
        let mut found = Vec::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path_bytes().into_owned();
            match entry.header().entry_type() {
                EntryType::Regular => {
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content).unwrap();
                    assert_eq!(content, name);
                    found.push(name);
                }
                EntryType::Symlink => {
                    assert_eq!(
                        (&name[..], entry.link_name_bytes().unwrap()),
                        (&[0xfd; 120][..], target.as_bytes().into())
                    );
                }
                _ => {}
            }
        }
        names.sort();
        found.sort();
        assert_eq!(found, names);
    }

    #[test]
    fn what_cannot_be_packed_is_named() {
        let dir = tree(&[0, 1, 2, 3, 4]);
        symlink("/etc/passwd", dir.path().join("absolute")).unwrap();
        symlink("../../x", dir.path().join("sub/out")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let told = Packing::of(dir.path()).unwrap_err().to_string();
        let links = "absolute (a link that leads out of it)";
        assert!(
            told.contains(links) && told.contains("sub/out (a link") && told.contains("socket (a device, pipe"),
            "{told}"
        );
        assert!(matches!(Packing::of(&dir.path().join("none")), Err(PackError::Io { .. })));
    }

    #[test]
    fn a_file_that_changes_meanwhile_is_told() {
        let dir = tree(&[0, 1, 2, 3, 4]);
        let packing = Arc::new(Packing::of(dir.path()).unwrap());
        std::fs::write(dir.path().join("run.sh"), "longer than before").unwrap();
        let told = packing.reader(0).unwrap().read_to_end(&mut Vec::new()).unwrap_err().to_string();
        assert!(told.contains("run.sh: it was changed"), "{told}");
    }
}
