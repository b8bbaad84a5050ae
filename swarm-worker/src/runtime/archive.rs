//! Tar streams to and from the engine: image archives, single files and directories, framed by hand so that a file of
//! any size passes through in the chunks it arrives in.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt};
use swarm_protocol::ids::Digest;
use tar::{EntryType, Header};

pub(crate) use self::reader::{Kind, Member, TarReader};
use super::ByteStream;

mod reader;

/// Tar's unit: headers are one block, bodies are padded to whole blocks.
const BLOCK_BYTES: usize = 512;

/// What stands in the header of a member whose name is in a record before it.
const LONG_NAME: &str = "@LongName";

/// One layer of an image archive.
pub struct ArchiveLayer {
    /// The digest of the uncompressed layer, as the image's config lists it.
    pub diff_id: Digest,
    /// The layer, plain tar or gzip, and its exact size in bytes; `None` for a layer the engine already holds.
    pub body: Option<(u64, ByteStream)>,
}

/// What the header of a file in an archive says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEntry {
    /// The path as archived; hostile, never use it to write anywhere.
    pub path: String,
    /// The file's size in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// The owner's number.
    pub uid: u64,
    /// The group's number.
    pub gid: u64,
}

/// A docker-archive of one untagged image: `manifest.json`, the config and the layers, bottom first. `config` are the
/// exact bytes whose digest names the image. Layers without a body stay listed but absent, which the engine accepts
/// for a leading run of layers it knows ([`known_layers`](super::ContainerRuntime::known_layers)).
pub fn docker_archive(config: Bytes, layers: Vec<ArchiveLayer>) -> ByteStream {
    let config_name = format!("{}.json", Digest::of(&config).hex());
    let layer_name = |diff_id: &Digest| format!("{}.tar", diff_id.hex());
    let names: Vec<String> = layers.iter().map(|layer| layer_name(&layer.diff_id)).collect();
    let manifest = serde_json::json!([{ "Config": config_name, "RepoTags": null, "Layers": names }]).to_string();
    let mut members = vec![
        member("manifest.json", manifest.len() as u64, once(Bytes::from(manifest))),
        member(&config_name, config.len() as u64, once(config)),
    ];
    // An image may list one layer several times (empty layers above all); one member serves them all.
    let mut written = HashSet::new();
    for layer in layers {
        let Some((size, body)) = layer.body else { continue };
        if written.insert(layer.diff_id) {
            members.push(member(&layer_name(&layer.diff_id), size, body));
        }
    }
    members.push(end_of_archive());
    stream::iter(members).flatten().boxed()
}

/// A tar of one regular file; `name` is relative to where it is unpacked and `body` must have exactly `size` bytes.
pub fn single_file_tar(name: &str, size: u64, mode: u32, uid: u64, gid: u64, body: ByteStream) -> ByteStream {
    let head = file_head(name, size, mode, uid, gid);
    once(head).chain(exactly(size, body)).chain(once(padding(size))).chain(end_of_archive()).boxed()
}

/// A tar that only sets owner and mode of the directory it is unpacked into.
#[must_use]
pub fn dir_entry_tar(uid: u64, gid: u64, mode: u32) -> ByteStream {
    let mut header = Header::new_gnu();
    // The engine skips an entry `./` for a directory that exists, but not one called `/`, which it also reads as the
    // directory unpacked into.
    header.as_old_mut().name[..1].copy_from_slice(b"/");
    header.set_entry_type(EntryType::Directory);
    finish(&mut header, 0, mode, uid, gid);
    once(Bytes::copy_from_slice(header.as_bytes())).chain(end_of_archive()).boxed()
}

/// Opens a tar whose first entry is a regular file: what its header says, and its bytes as they arrive. The stream
/// ends with an error if the archive is cut short; whatever follows the file is not read.
///
/// # Errors
/// `InvalidData` when the first entry is no regular file (a directory, a link) or the archive is damaged;
/// `UnexpectedEof` when it ends early.
pub async fn untar_single_file(tar: ByteStream) -> io::Result<(TarEntry, ByteStream)> {
    let mut reader = TarReader::new(tar);
    let member = reader.next_member().await?.ok_or_else(|| damaged("the archive is empty"))?;
    match member.kind {
        Kind::File => {}
        Kind::Directory => return Err(damaged("it is a directory, not a file")),
        Kind::Symlink | Kind::HardLink => return Err(damaged("it is a link, not a file")),
        Kind::Other => return Err(damaged("it is not a regular file")),
    }
    let Member { path, size, mode, uid, gid, .. } = member;
    let entry = TarEntry { path: String::from_utf8_lossy(&path).into_owned(), size, mode, uid, gid };
    let body =
        stream::try_unfold(reader, |mut reader| async move { Ok(reader.chunk().await?.map(|chunk| (chunk, reader))) });
    Ok((entry, body.boxed()))
}

fn member(name: &str, size: u64, body: ByteStream) -> ByteStream {
    let head = file_head(name, size, 0o644, 0, 0);
    once(head).chain(exactly(size, body)).chain(once(padding(size))).boxed()
}

/// The header of a regular file, preceded by a GNU long-name record where the name needs one.
fn file_head(name: &str, size: u64, mode: u32, uid: u64, gid: u64) -> Bytes {
    let mut head = BytesMut::new();
    let mut header = Header::new_gnu();
    let room = header.as_old().name.len();
    if name.len() > room {
        head.extend_from_slice(&long_name(name.as_bytes()));
    }
    let shown = name.len().min(room);
    header.as_old_mut().name[..shown].copy_from_slice(&name.as_bytes()[..shown]);
    header.set_entry_type(EntryType::Regular);
    finish(&mut header, size, mode, uid, gid);
    head.extend_from_slice(header.as_bytes());
    head.freeze()
}

/// GNU's record of the name of the member behind it, which may be of any length and any bytes.
fn long_name(name: &[u8]) -> Bytes {
    let mut long = Header::new_gnu();
    long.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
    long.set_entry_type(EntryType::GNULongName);
    let length = name.len() as u64 + 1;
    finish(&mut long, length, 0, 0, 0);
    [long.as_bytes(), name, b"\0", &padding(length)].concat().into()
}

/// The header of a directory or link, or of a file whose bytes follow, with records for long names before it. `name` is
/// relative and has no `.` or `..`; `link` is where a link leads.
///
/// # Errors
/// `InvalidInput` for a name that no archive can hold.
pub(crate) fn member_head(member: &Member, uid: u64, gid: u64) -> io::Result<Bytes> {
    let mut header = Header::new_gnu();
    header.set_entry_type(match member.kind {
        Kind::File => EntryType::Regular,
        Kind::Directory => EntryType::Directory,
        Kind::Symlink => EntryType::Symlink,
        Kind::HardLink => EntryType::Link,
        Kind::Other => return Err(io::ErrorKind::InvalidInput.into()),
    });
    header.set_size(member.size);
    header.set_mode(member.mode);
    header.set_uid(uid);
    header.set_gid(gid);
    header.set_mtime(member.mtime);
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    let (mut name, mut before) = (path(&member.path), Vec::new());
    if member.path.len() > header.as_old().name.len() {
        // `tar` puts the beginning of a long name into the header as well, which then has to be a path and text.
        before = long_name(&member.path).into();
        name = LONG_NAME.into();
    }
    let mut head = tar::Builder::new(before);
    match member.kind {
        Kind::Symlink | Kind::HardLink => head.append_link(&mut header, name, path(&member.link))?,
        _ => head.append_data(&mut header, name, io::empty())?,
    }
    // The end that a whole archive would get is not written yet.
    Ok(std::mem::take(head.get_mut()).into())
}

/// What fills the last block of a file of `size` bytes.
pub(crate) fn padding(size: u64) -> Bytes {
    const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    let over = (size % BLOCK_BYTES as u64) as usize;
    Bytes::from_static(&ZEROS[..if over == 0 { 0 } else { BLOCK_BYTES - over }])
}

/// The two empty blocks behind the last member.
pub(crate) const END_OF_ARCHIVE: &[u8] = &[0; 2 * BLOCK_BYTES];

fn finish(header: &mut Header, size: u64, mode: u32, uid: u64, gid: u64) {
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(uid);
    header.set_gid(gid);
    header.set_mtime(0);
    header.set_cksum();
}

/// Passes `body` on and fails unless it has exactly `size` bytes: one byte more or less would shift every later header.
fn exactly(size: u64, body: ByteStream) -> ByteStream {
    stream::try_unfold((body, size), |(mut body, left)| async move {
        match body.next().await.transpose()? {
            None if left == 0 => Ok(None),
            None => Err(cut_short()),
            Some(chunk) => match left.checked_sub(chunk.len() as u64) {
                Some(left) => Ok(Some((chunk, (body, left)))),
                None => Err(damaged("a file has more bytes than its size says")),
            },
        }
    })
    .boxed()
}

fn end_of_archive() -> ByteStream {
    once(Bytes::from_static(END_OF_ARCHIVE))
}

/// A stream of these bytes alone.
pub fn once(bytes: Bytes) -> ByteStream {
    stream::iter((!bytes.is_empty()).then_some(Ok(bytes))).boxed()
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the stream ended early")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    async fn collect(mut stream: ByteStream) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(chunk) = stream.next().await {
            all.extend_from_slice(&chunk?);
        }
        Ok(all)
    }

    /// `bytes` in chunks of `size`, so that every boundary is met somewhere.
    fn chunked(bytes: &[u8], size: usize) -> ByteStream {
        let chunks: Vec<_> = bytes.chunks(size).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        stream::iter(chunks).boxed()
    }

    fn names(tar: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(tar);
        let entries = archive.entries().expect("readable");
        entries.map(|entry| entry.expect("entry").path().expect("path").display().to_string()).collect()
    }

    #[tokio::test]
    async fn an_image_archive_lists_absent_layers_and_writes_repeated_ones_once() {
        let layer = |n: u8, body: bool| ArchiveLayer {
            diff_id: Digest::of(&[n]),
            body: body.then(|| (700, chunked(&[n; 700], 99))),
        };
        let config = Bytes::from_static(b"{}");
        let tar = collect(docker_archive(config.clone(), vec![layer(1, false), layer(2, true), layer(2, true)])).await;
        let tar = tar.expect("a whole archive");
        let two = format!("{}.tar", Digest::of(&[2]).hex());
        assert_eq!(
            names(&tar),
            ["manifest.json".to_owned(), format!("{}.json", Digest::of(&config).hex()), two.clone()]
        );
        let mut archive = tar::Archive::new(&tar[..]);
        let mut manifest = String::new();
        let mut first = archive.entries().expect("readable").next().expect("one").expect("entry");
        first.read_to_string(&mut manifest).expect("text");
        let manifest: serde_json::Value = serde_json::from_str(&manifest).expect("JSON");
        let one = format!("{}.tar", Digest::of(&[1]).hex());
        assert_eq!(manifest[0]["Layers"], serde_json::json!([one, two, two]));
    }

    #[tokio::test]
    async fn a_body_of_the_wrong_length_breaks_the_stream() {
        for length in [99, 101] {
            let tar = single_file_tar("f", 100, 0o644, 0, 0, chunked(&vec![7; length], 10));
            collect(tar).await.expect_err("a wrong size must not go unnoticed");
        }
    }

    #[tokio::test]
    async fn a_directory_entry_carries_owner_and_mode() {
        let tar = collect(dir_entry_tar(1000, 2_000_000, 0o750)).await.expect("tar");
        let mut archive = tar::Archive::new(&tar[..]);
        let entry = archive.entries().expect("readable").next().expect("one").expect("entry");
        assert_eq!(entry.path_bytes().as_ref(), b"/");
        assert_eq!(entry.header().entry_type(), EntryType::Directory);
        assert_eq!(entry.header().mode().expect("mode"), 0o750);
        assert_eq!((entry.header().uid().expect("uid"), entry.header().gid().expect("gid")), (1000, 2_000_000));
    }

    #[tokio::test]
    async fn other_kinds_of_entries_are_refused_in_words() {
        let error = untar_single_file(dir_entry_tar(0, 0, 0o755)).await.err().expect("a directory is no file");
        assert!(error.to_string().contains("directory"), "{error}");
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "a", "/etc/shadow").expect("append");
        let error = untar_single_file(once(builder.into_inner().expect("tar").into())).await.err().expect("a link");
        assert!(error.to_string().contains("link"), "{error}");
        let empty = untar_single_file(end_of_archive()).await.err().expect("empty");
        assert_eq!(empty.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn pax_records_override_the_header() {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("path", b"long/name".as_slice()), ("uid", b"77")]).expect("pax");
        let mut header = Header::new_ustar();
        header.set_size(3);
        header.set_mode(0o600);
        header.set_uid(1);
        header.set_gid(2);
        builder.append_data(&mut header, "short", &b"abc"[..]).expect("append");
        let tar = builder.into_inner().expect("tar");
        let (entry, body) = untar_single_file(chunked(&tar, 100)).await.expect("a file");
        assert_eq!(entry, TarEntry { path: "long/name".into(), size: 3, mode: 0o600, uid: 77, gid: 2 });
        assert_eq!(collect(body).await.expect("body"), b"abc");
    }

    #[tokio::test]
    async fn a_cut_archive_is_noticed_in_header_and_body() {
        let tar = collect(single_file_tar("f", 1000, 0o644, 0, 0, chunked(&[1; 1000], 512))).await.expect("tar");
        let error = untar_single_file(chunked(&tar[..300], 64)).await.err().expect("half a header");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let (_, body) = untar_single_file(chunked(&tar[..900], 64)).await.expect("a whole header");
        assert_eq!(collect(body).await.expect_err("half a body").kind(), io::ErrorKind::UnexpectedEof);
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(name in "[a-z/]{1,200}", body in prop::collection::vec(any::<u8>(), 0..3000),
            chunk in 1usize..1500, mode in 0u32..0o7777) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
            let (entry, out) = runtime.block_on(async {
                let tar = single_file_tar(&name, body.len() as u64, mode, 5, 6, chunked(&body, chunk));
                let tar = collect(tar).await.expect("tar");
                assert_eq!(tar.len() % BLOCK_BYTES, 0);
                let (entry, out) = untar_single_file(chunked(&tar, chunk)).await.expect("a file");
                (entry, collect(out).await.expect("body"))
            });
            prop_assert_eq!(entry, TarEntry { path: name, size: body.len() as u64, mode, uid: 5, gid: 6 });
            prop_assert_eq!(out, body);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048), typeflag: u8) {
            let mut block = Header::new_gnu();
            let count = bytes.len().min(BLOCK_BYTES);
            block.as_mut_bytes()[..count].copy_from_slice(&bytes[..count]);
            block.as_mut_bytes()[156] = typeflag;
            block.set_cksum();
            let tar = [block.as_bytes().as_slice(), &bytes].concat();
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
            runtime.block_on(async {
                if let Ok((_, body)) = untar_single_file(chunked(&tar, 333)).await {
                    drop(collect(body).await);
                }
            });
        }
    }
}
