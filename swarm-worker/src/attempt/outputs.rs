//! What a container leaves behind: fetched from the engine, checked, and stored on the core before the report is made.

mod matching;

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use sha2::{Digest as _, Sha256};
use swarm_host::blocking;
use swarm_protocol::globs::OutputGlob;
use swarm_protocol::link::OutputReport;
use swarm_protocol::validate::bounds::COLLECTED_MAX;
use swarm_protocol::{Digest, Outcome};
use tar::EntryType;
use tokio::time::Instant;

use super::logs::SpoolPatience;
use super::{Attempt, End, engine_end, spool_end};
use crate::images;
use crate::runtime::{ByteStream, ContainerId, RuntimeError};
use crate::transfer::TransferError;

/// What a tar stream has beyond a single file's bytes.
const TAR_OVERHEAD_BYTES: u64 = 16 << 10;
/// Pieces of an archive written together at most.
const PIECES_MAX: usize = 64;
/// Tar's unit.
const BLOCK_BYTES: u64 = 512;

/// An output in the spool.
#[derive(Debug)]
struct Kept {
    file: PathBuf,
    digest: Digest,
    size_bytes: u64,
    is_dir: bool,
    mode: u32,
}

/// What is left of what an attempt may hand back.
#[derive(Debug, Clone, Copy)]
struct Room {
    bytes: u64,
    files: usize,
    /// Bytes of a directory that are read through for the files that match: more than an attempt can leave there, but for
    /// holes in files.
    read_bytes: u64,
}

/// Why an output could not be kept.
#[derive(Debug)]
enum Unkept {
    /// The container's doing.
    Missing(String),
    /// The engine's archive is damaged, or ends early.
    Damaged(io::Error),
    Spool(io::Error),
    Engine(RuntimeError),
}

impl Attempt {
    /// Collects and stores every declared output.
    pub(super) async fn collect(&self, id: &ContainerId) -> Result<Vec<OutputReport>, End> {
        let mut reports = Vec::new();
        let bytes = self.order.output_bytes_max;
        let read_bytes = self.order.limits.disk_bytes.saturating_add(bytes);
        let mut room = Room { bytes, files: COLLECTED_MAX, read_bytes };
        let mut patience = SpoolPatience::new();
        // A file that two of them name is handed back once.
        let mut seen = HashSet::new();
        for (n, path) in self.order.outputs.iter().enumerate() {
            let found = loop {
                match self.find(id, path, &self.entry.output(n), room).await {
                    Ok(found) => break found,
                    Err(Unkept::Spool(error)) => self.await_room(&mut patience, &error).await?,
                    Err(unkept) => return Err(unkept.end(path)),
                }
            };
            for (path, kept) in found.into_iter().filter(|(path, _)| seen.insert(path.clone())) {
                room.bytes = room.bytes.saturating_sub(kept.size_bytes);
                room.files = room.files.checked_sub(1).ok_or_else(|| missing(&path, &too_many()))?;
                reports.push(self.store(path, &kept).await?);
            }
        }
        Ok(reports)
    }

    /// Frees what a refused output has taken of the spool, and waits until it may be collected again: the engine has it.
    async fn await_room(&self, patience: &mut SpoolPatience, refused: &io::Error) -> Result<(), End> {
        tracing::error!(attempt = %self.id, error = %refused, "an output cannot be spooled, trying again");
        let entry = self.entry.clone();
        // Where this fails, so will the next try.
        let _ = blocking::run(move || entry.clear_outputs()).await;
        let pause = patience.pause(true, Instant::now()).ok_or_else(|| spool_end(refused))?;
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Puts into the spool what the container has of a declared output.
    async fn find(
        &self,
        id: &ContainerId,
        path: &str,
        spool: &Path,
        room: Room,
    ) -> Result<Vec<(String, Kept)>, Unkept> {
        match OutputGlob::parse(path).map_err(|error| Unkept::Missing(error.to_string()))? {
            Some(glob) => self.fetch_matching(id, &glob, spool, room).await,
            None => Ok(vec![(path.to_owned(), self.fetch(id, path, spool, room.bytes).await?)]),
        }
    }

    /// Sends an output to the core; it leaves the spool.
    async fn store(&self, path: String, kept: &Kept) -> Result<OutputReport, End> {
        let stored = self.ctx.transfer.upload(self.id, &kept.file, kept.digest, kept.size_bytes).await;
        stored.map_err(|error| match error {
            TransferError::TooLarge(_) => missing(&path, &error.to_string()),
            _ => End::With(images::transfer(&error)),
        })?;
        // A failure only leaves it to the removal of the whole spool entry.
        let file = kept.file.clone();
        let _ = blocking::run(move || std::fs::remove_file(file)).await;
        Ok(OutputReport {
            path,
            digest: kept.digest,
            size_bytes: kept.size_bytes,
            is_dir: kept.is_dir,
            mode: kept.mode,
        })
    }

    async fn fetch(&self, id: &ContainerId, path: &str, spool: &Path, bytes_max: u64) -> Result<Kept, Unkept> {
        let Some(tar) = self.archive(id, path).await? else {
            return Err(Unkept::Missing("the container did not leave it there".into()));
        };
        let archive = spool.with_extension("tar");
        if !spool_stream(tar, &archive, bytes_max.saturating_add(TAR_OVERHEAD_BYTES)).await? {
            return Err(Unkept::Missing(too_large(bytes_max)));
        }
        let spool = spool.to_owned();
        blocking::run(move || keep(&archive, &spool, bytes_max)).await
    }

    /// What the engine has at `path` of the container; `None` when there is nothing.
    async fn archive(&self, id: &ContainerId, path: &str) -> Result<Option<ByteStream>, Unkept> {
        self.ctx.runtime.find_archive(id, path).await.map_err(Unkept::Engine)
    }
}

impl Unkept {
    fn end(self, path: &str) -> End {
        match self {
            Self::Missing(why) => missing(path, &why),
            Self::Damaged(error) => {
                engine_end(&RuntimeError::Engine { call: "get archive", message: error.to_string() })
            }
            Self::Spool(error) => spool_end(&error),
            Self::Engine(error) => engine_end(&error),
        }
    }
}

fn missing(path: &str, why: &str) -> End {
    let reason = swarm_protocol::text::sanitise(&format!("{path}: {why}"), false);
    End::With(Outcome::OutputMissing { reason })
}

fn too_large(bytes_max: u64) -> String {
    format!("it has more than the {bytes_max} bytes that are left for outputs")
}

fn too_many() -> String {
    format!("there are more than the {COLLECTED_MAX} files that an attempt may hand back; keep their directory instead")
}

/// Writes a stream to `path`; false when it has more than `bytes_max`.
async fn spool_stream(stream: ByteStream, path: &Path, bytes_max: u64) -> Result<bool, Unkept> {
    let path = path.to_owned();
    let mut file = blocking::run(|| File::create(path)).await.map_err(Unkept::Spool)?;
    let (mut left, mut pieces) = (bytes_max, stream.ready_chunks(PIECES_MAX));
    while let Some(pieces) = pieces.next().await {
        let pieces: Vec<_> = pieces.into_iter().collect::<Result<_, _>>().map_err(Unkept::Damaged)?;
        let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
        let Some(rest) = left.checked_sub(bytes) else { return Ok(false) };
        left = rest;
        let written = blocking::run(move || pieces.iter().try_for_each(|piece| file.write_all(piece)).map(|()| file));
        file = written.await.map_err(Unkept::Spool)?;
    }
    Ok(true)
}

/// Decides by the first entry of the engine's archive: a file is kept as its bytes, a directory as the whole archive.
/// An engine that fails half-way may end its answer as if it were whole, so the archive's own sizes are checked.
fn keep(archive: &Path, spool: &Path, bytes_max: u64) -> Result<Kept, Unkept> {
    let mut tar = tar::Archive::new(File::open(archive).map_err(Unkept::Spool)?);
    let mut entries = tar.entries().map_err(Unkept::Damaged)?;
    let mut first = entries.next().unwrap_or_else(|| Err(cut_short())).map_err(Unkept::Damaged)?;
    let mode = first.header().mode().map_err(Unkept::Damaged)? & 0o7777;
    let is_dir = match first.header().entry_type() {
        EntryType::Regular | EntryType::Continuous => false,
        EntryType::Directory => true,
        EntryType::Symlink | EntryType::Link => {
            return Err(Unkept::Missing("it is a link, and links are not followed".into()));
        }
        _ => return Err(Unkept::Missing("it is neither a file nor a directory".into())),
    };
    let (digest, size_bytes) = if is_dir {
        check_whole(archive).map_err(Unkept::Damaged)?;
        copy(&mut File::open(archive).map_err(Unkept::Spool)?, spool)
    } else {
        copy(&mut first, spool)
    }?;
    if !is_dir && size_bytes != first.size() {
        return Err(Unkept::Damaged(cut_short()));
    }
    if size_bytes > bytes_max {
        return Err(Unkept::Missing(too_large(bytes_max)));
    }
    std::fs::remove_file(archive).map_err(Unkept::Spool)?;
    Ok(Kept { file: spool.to_owned(), digest, size_bytes, is_dir, mode })
}

/// Refuses an archive that lacks bytes of an entry, or the two empty blocks behind the last.
fn check_whole(archive: &Path) -> io::Result<()> {
    let mut file = File::open(archive)?;
    let mut end = 0;
    let mut tar = tar::Archive::new(&mut file);
    // Going on to the next entry passes over the bytes of the one before, and fails where they are missing.
    for entry in tar.entries()? {
        let entry = entry?;
        end = entry.raw_file_position() + entry.size().next_multiple_of(BLOCK_BYTES);
    }
    file.seek(SeekFrom::Start(end))?;
    let mut marker = [1; 2 * BLOCK_BYTES as usize];
    file.read_exact(&mut marker).map_err(|_| cut_short())?;
    if marker.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(cut_short()) }
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends early")
}

fn copy(source: &mut dyn Read, to: &Path) -> Result<(Digest, u64), Unkept> {
    let (mut file, mut hasher, mut total) = (File::create(to).map_err(Unkept::Spool)?, Sha256::new(), 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let length = source.read(&mut buffer).map_err(Unkept::Damaged)?;
        if length == 0 {
            return Ok((Digest(hasher.finalize().into()), total));
        }
        hasher.update(&buffer[..length]);
        file.write_all(&buffer[..length]).map_err(Unkept::Spool)?;
        total += length as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Build<'a> = &'a dyn Fn(&mut tar::Builder<Vec<u8>>);

    fn archive(build: Build<'_>) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn kept_of(tar: &[u8], bytes_max: u64) -> Result<(Kept, Vec<u8>), String> {
        let dir = tempfile::tempdir().unwrap();
        let (archive, spool) = (dir.path().join("0.tar"), dir.path().join("0"));
        std::fs::write(&archive, tar).unwrap();
        match keep(&archive, &spool, bytes_max) {
            Ok(kept) => Ok((kept, std::fs::read(spool).unwrap())),
            Err(Unkept::Missing(why)) => Err(why),
            Err(Unkept::Damaged(error)) => Err(format!("damaged: {error}")),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn kept(build: Build<'_>, bytes_max: u64) -> Result<(Kept, Vec<u8>), String> {
        kept_of(&archive(build), bytes_max)
    }

    fn entry(kind: EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o640);
        header
    }

    #[test]
    fn a_file_is_kept_as_its_bytes() {
        let add = |tar: &mut tar::Builder<Vec<u8>>| {
            tar.append_data(&mut entry(EntryType::Regular, 5), "out", &b"hello"[..]).unwrap();
        };
        let (kept, bytes) = kept(&add, 5).unwrap();
        assert_eq!((bytes.as_slice(), kept.digest), (&b"hello"[..], Digest::of(b"hello")));
        assert_eq!((kept.size_bytes, kept.is_dir, kept.mode), (5, false, 0o640));
        assert!(self::kept(&add, 4).err().unwrap().contains("more than the 4 bytes"));
    }

    #[test]
    fn a_directory_is_kept_as_an_archive() {
        let (kept, bytes) = kept(
            &|tar| {
                tar.append_data(&mut entry(EntryType::Directory, 0), "dir/", io::empty()).unwrap();
                tar.append_data(&mut entry(EntryType::Regular, 2), "dir/a", &b"hi"[..]).unwrap();
            },
            1 << 20,
        )
        .unwrap();
        assert!(kept.is_dir);
        assert_eq!((kept.size_bytes, kept.digest), (bytes.len() as u64, Digest::of(&bytes)));
        assert_eq!(tar::Archive::new(&bytes[..]).entries().unwrap().count(), 2);
    }

    #[test]
    fn links_are_refused_in_words() {
        let link =
            kept(&|tar| tar.append_link(&mut entry(EntryType::Symlink, 0), "out", "/etc/shadow").unwrap(), 1 << 20);
        assert!(link.err().unwrap().contains("links are not followed"));
    }

    #[test]
    fn what_the_engine_cut_short_is_never_kept() {
        let file = archive(&|tar| {
            tar.append_data(&mut entry(EntryType::Regular, 3000), "out", &[7; 3000][..]).unwrap();
        });
        let dir = archive(&|tar| {
            tar.append_data(&mut entry(EntryType::Directory, 0), "dir/", io::empty()).unwrap();
            tar.append_data(&mut entry(EntryType::Regular, 3000), "dir/a", &[7; 3000][..]).unwrap();
            tar.append_data(&mut entry(EntryType::Regular, 700), "dir/b", &[7; 700][..]).unwrap();
        });
        // In a header, in an entry's bytes, between entries, and within the end's two blocks.
        let cuts = [0, 100, 600, 3511].map(|end| (&file, end)).into_iter();
        let cuts = cuts.chain([512, 1000, 1024, 2048, 4096, 4608, 5000, 5632, 6144].map(|end| (&dir, end)));
        for (whole, end) in cuts {
            let why = kept_of(&whole[..end], 1 << 20).err();
            assert!(why.as_ref().is_some_and(|why| why.starts_with("damaged")), "cut at {end}: {why:?}");
        }
        let mut scribbled = dir.clone();
        *scribbled.last_mut().unwrap() = 1;
        assert!(kept_of(&scribbled, 1 << 20).is_err());
        for whole in [file, dir] {
            assert!(kept_of(&whole, 1 << 20).is_ok());
        }
    }
}
