//! The files that a glob matches, picked out of the engine's archive of the directory as it streams by.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use swarm_host::blocking;
use swarm_protocol::globs::OutputGlob;
use swarm_protocol::text::sanitise;
use swarm_protocol::validate::is_output_path;
use tar::EntryType;
use tokio_util::io::{StreamReader, SyncIoBridge};
use tokio_util::sync::CancellationToken;

use super::{BLOCK_BYTES, Kept, Room, Unkept, copy, cut_short, too_large, too_many};
use crate::attempt::Attempt;
use crate::runtime::ContainerId;

/// What an archive has of a glob.
#[derive(Debug, Default)]
struct Picked {
    files: Vec<(String, Kept)>,
    /// Further names of files whose bytes are elsewhere in the archive.
    links: Vec<String>,
}

impl Attempt {
    /// Every regular file that matches, by its path in the container; at least one.
    pub(super) async fn fetch_matching(
        &self,
        id: &ContainerId,
        glob: &OutputGlob,
        spool: &Path,
        room: Room,
    ) -> Result<Vec<(String, Kept)>, Unkept> {
        let Some(tar) = self.archive(id, glob.dir()).await? else {
            return Err(Unkept::Missing("the container has no such directory".into()));
        };
        // A thread goes on when nobody waits for it any more; without its stream it ends, and the engine with it.
        let stop = CancellationToken::new();
        let _stop_when_dropped = stop.clone().drop_guard();
        let tar = SyncIoBridge::new(StreamReader::new(tar.take_until(stop.cancelled_owned()).boxed()));
        let (of, place) = (glob.clone(), spool.to_owned());
        let Picked { mut files, links } = blocking::run(move || pick(tar, &of, &place, room)).await?;
        let mut left = files.iter().fold(room.bytes, |left, (_, kept)| left.saturating_sub(kept.size_bytes));
        for link in links {
            let kept = self.fetch(id, &link, &nth(spool, files.len()), left).await?;
            left = left.saturating_sub(kept.size_bytes);
            files.push((link, kept));
        }
        if files.is_empty() {
            return Err(Unkept::Missing("no file of the container matches".into()));
        }
        files.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(files)
    }
}

/// Where the nth match of an output is collected.
fn nth(spool: &Path, n: usize) -> PathBuf {
    spool.with_extension(format!("match-{n}"))
}

/// Puts what matches beside `spool`. What does not match is read as well, holes of sparse files as zeros, so all of the
/// directory together is bounded. Sizes are checked as they are read, and the end of the archive must be there: an
/// engine that fails half-way may end its answer as if it were whole.
fn pick(tar: impl Read, glob: &OutputGlob, spool: &Path, room: Room) -> Result<Picked, Unkept> {
    let mut source = Tail { inner: tar, zeros: 0 };
    let mut archive = tar::Archive::new(&mut source);
    let (mut picked, mut left, mut unread) = (Picked::default(), room.bytes, room.read_bytes);
    for entry in archive.entries().map_err(Unkept::Damaged)? {
        let mut entry = entry.map_err(Unkept::Damaged)?;
        let kind = entry.header().entry_type();
        let takes = entry.size().saturating_add(BLOCK_BYTES);
        unread = unread.checked_sub(takes).ok_or_else(|| Unkept::Missing(too_much(glob.dir(), room.read_bytes)))?;
        let is_file = matches!(kind, EntryType::Regular | EntryType::Continuous);
        let Some(path) = matched(glob, &entry.path_bytes())? else { continue };
        if !is_file && kind != EntryType::Link {
            continue;
        }
        if picked.files.len() + picked.links.len() == room.files {
            return Err(Unkept::Missing(too_many()));
        }
        if kind == EntryType::Link {
            picked.links.push(path);
            continue;
        }
        let announced = entry.size();
        left = left.checked_sub(announced).ok_or_else(|| Unkept::Missing(too_large(room.bytes)))?;
        let mode = entry.header().mode().map_err(Unkept::Damaged)? & 0o7777;
        let file = nth(spool, picked.files.len());
        let (digest, size_bytes) = copy(&mut entry, &file)?;
        if size_bytes != announced {
            return Err(Unkept::Damaged(cut_short()));
        }
        picked.files.push((path, Kept { file, digest, size_bytes, is_dir: false, mode }));
    }
    io::copy(&mut source, &mut io::sink()).map_err(Unkept::Damaged)?;
    if source.zeros < 2 * BLOCK_BYTES { Err(Unkept::Damaged(cut_short())) } else { Ok(picked) }
}

fn too_much(dir: &str, read_bytes: u64) -> String {
    format!(
        "`{dir}` has more than the {read_bytes} bytes that are read through for matching files, holes in files \
         included; write the outputs to a directory of their own"
    )
}

/// The path in the container of an entry that matches. Entries are named from the directory's own name on.
fn matched(glob: &OutputGlob, name: &[u8]) -> Result<Option<String>, Unkept> {
    let below = name.iter().position(|byte| *byte == b'/').map_or(&name[..0], |at| &name[at + 1..]);
    let path = [glob.dir().as_bytes(), b"/", below].concat();
    if below.is_empty() || !glob.is_match(&path) {
        return Ok(None);
    }
    match String::from_utf8(path) {
        Ok(path) if is_output_path(&path) => Ok(Some(path)),
        other => {
            let shown = other.unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
            let shown = sanitise(&shown, false);
            Err(Unkept::Missing(format!("it matches `{shown}`, a name with characters that act on a terminal")))
        }
    }
}

/// Counts the zeros at the end of what was read.
struct Tail<R> {
    inner: R,
    zeros: u64,
}

impl<R: Read> Read for Tail<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        let zeros = buffer[..length].iter().rev().take_while(|byte| **byte == 0).count();
        self.zeros = if zeros == length { self.zeros + zeros as u64 } else { zeros as u64 };
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory `out` as an engine packs it.
    fn archive(files: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |name: &[u8], kind, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name);
            header.set_entry_type(kind);
            header.set_size(bytes.len() as u64);
            header.set_mode(0o640);
            header.set_cksum();
            tar.append(&header, bytes).unwrap();
        };
        add(b"out/", EntryType::Directory, b"");
        for (name, bytes) in files {
            add(name, EntryType::Regular, bytes);
        }
        add(b"out/again.csv", EntryType::Link, b"");
        add(b"out/away.csv", EntryType::Symlink, b"");
        tar.into_inner().unwrap()
    }

    fn picked(tar: &[u8], path: &str, room: Room) -> Result<Vec<(String, Vec<u8>)>, String> {
        let dir = tempfile::tempdir().unwrap();
        let glob = OutputGlob::parse(path).unwrap().expect("it has wildcards");
        match pick(tar, &glob, &dir.path().join("0"), room) {
            Ok(picked) => {
                let files = picked.files.into_iter().map(|(path, kept)| (path, std::fs::read(kept.file).unwrap()));
                Ok(files.chain(picked.links.into_iter().map(|path| (path, b"link".to_vec()))).collect())
            }
            Err(Unkept::Missing(why)) => Err(why),
            Err(Unkept::Damaged(error)) => Err(format!("damaged: {error}")),
            Err(other) => panic!("{other:?}"),
        }
    }

    const ROOM: Room = Room { bytes: 1 << 20, files: 100, read_bytes: 1 << 30 };

    #[test]
    fn files_that_match_are_picked_and_nothing_else() {
        let tar = archive(&[(b"out/a.csv", b"one"), (b"out/b.txt", b"no"), (b"out/sub/c.csv", b"two")]);
        let of = |pairs: &[(&str, &[u8])]| pairs.iter().map(|(p, b)| ((*p).to_owned(), b.to_vec())).collect::<Vec<_>>();
        assert_eq!(
            picked(&tar, "/data/out/*.csv", ROOM),
            Ok(of(&[("/data/out/a.csv", b"one"), ("/data/out/again.csv", b"link")]))
        );
        assert_eq!(picked(&tar, "/out/**/c.csv", ROOM), Ok(of(&[("/out/sub/c.csv", b"two")])));
        assert_eq!(picked(&tar, "/out/*.json", ROOM), Ok(vec![]));
    }

    #[test]
    fn what_is_too_much_or_cannot_be_named_is_told() {
        let tar = archive(&[(b"out/a.csv", b"one"), (b"out/b.csv", b"two")]);
        let told = |path, room| picked(&tar, path, room).unwrap_err();
        assert!(told("/out/*.csv", Room { bytes: 5, ..ROOM }).contains("more than the 5 bytes"));
        assert!(told("/out/*", Room { files: 1, ..ROOM }).contains("more than the 1000 files"));
        for hostile in [&b"out/\x1b[31m"[..], b"out/\xff", b"out/../../x"] {
            let told = picked(&archive(&[(hostile, b"x")]), "/out/**", ROOM).unwrap_err();
            assert!(told.contains("act on a terminal"), "{told}");
        }
    }

    #[test]
    fn a_directory_is_not_read_through_without_bound_for_what_matches() {
        let mut tar = archive(&[(b"out/a.csv", b"one")]);
        tar.truncate(tar.len() - 1024);
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..8].copy_from_slice(b"out/hole");
        header.set_size(8 << 60);
        header.set_cksum();
        tar.extend(header.as_bytes());
        // As long as the hole is: whoever reads it never comes to an end.
        let dir = tempfile::tempdir().unwrap();
        let glob = OutputGlob::parse("/out/*.csv").unwrap().unwrap();
        let picked = pick(tar.chain(io::repeat(0)), &glob, &dir.path().join("0"), ROOM);
        let Err(Unkept::Missing(told)) = picked else { panic!("{picked:?}") };
        assert!(told.contains("`/out` has more than the 1073741824 bytes"), "{told}");
    }

    #[test]
    fn an_archive_cut_short_is_never_taken_for_whole() {
        let tar = archive(&[(b"out/a.csv", &[7; 3000]), (b"out/b.txt", &[8; 700])]);
        for end in [0, 100, 512, 700, 1024, 2000, 4096, 4608, 5000, 5632, 6144, tar.len() - 1025] {
            let told = picked(&tar[..end], "/out/*.csv", ROOM).unwrap_err();
            assert!(told.starts_with("damaged"), "cut at {end}: {told}");
        }
        assert_eq!(picked(&tar, "/out/*.csv", ROOM).map(|files| files.len()), Ok(2));
    }
}
