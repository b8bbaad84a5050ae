use std::io::Read;

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;

/// An archive with raw names, as a hostile client may write them: kind, name, where a link leads, bytes.
type Raw<'a> = (EntryType, &'a str, &'a str, &'a [u8]);

const FILE: EntryType = EntryType::Regular;
const DIR: EntryType = EntryType::Directory;
const SOFT: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;

fn archive(members: &[Raw<'_>]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, name, link, bytes) in members {
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o4751);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(7);
        header.set_cksum();
        tar.append(&header, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

fn chunked(bytes: &[u8], size: usize) -> ByteStream {
    let chunks: Vec<_> = bytes.chunks(size).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    stream::iter(chunks).boxed()
}

fn terms(bytes_max: u64) -> Terms {
    Terms { uid: 1000, gid: 1001, bytes_max, needed: Vec::new() }
}

/// What the engine gets, or what is said instead.
async fn passed(tar: &[u8], terms: Terms) -> Result<Vec<u8>, String> {
    let refusal = Refusal::default();
    let mut stream = unpacked(chunked(tar, 333), terms, refusal.clone());
    let mut all = Vec::new();
    while let Some(piece) = stream.next().await {
        match piece {
            Ok(piece) => all.extend_from_slice(&piece),
            Err(_) => return Err(refusal.get().expect("the reason is told").clone()),
        }
    }
    Ok(all)
}

/// Kind, path, link and bytes of what was passed on; all of it belongs to the user, without set-user-id.
fn members(tar: &[u8]) -> Vec<(EntryType, String, String, String)> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let header = entry.header().clone();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (1000, 1001));
        assert!(matches!(header.mode().unwrap(), 0o751 | 0o777 | DIR_MODE), "{:o}", header.mode().unwrap());
        let path = entry.path().unwrap().display().to_string();
        let link = entry.link_name().unwrap().map(|link| link.display().to_string()).unwrap_or_default();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (header.entry_type(), path, link, text)
    });
    entries.collect()
}

#[tokio::test]
async fn a_directory_passes_with_new_owners_and_the_directories_it_implies() {
    let long = "n".repeat(90);
    let deep = format!("./{long}/x");
    let raw = [
        (DIR, "./", "", &b""[..]),
        (FILE, "./a//b/f", "", &[b'x'; 700][..]),
        (DIR, "a", "", b""),
        (SOFT, "a/up", "../a/b/f", b""),
        (HARD, "g", "./a/b/f", b""),
        (EntryType::Regular, "old/", "", b""),
        (FILE, &deep, "", b""),
    ];
    let tar =
        passed(&archive(&raw), Terms { needed: vec!["out/deep".into(), "a/b".into()], ..terms(700) }).await.unwrap();
    let text = "x".repeat(700);
    let inner = format!("{long}/x");
    let expected = [
        (DIR, "a", "", ""),
        (DIR, "a/b", "", ""),
        (FILE, "a/b/f", "", text.as_str()),
        (DIR, "a", "", ""),
        (SOFT, "a/up", "../a/b/f", ""),
        (HARD, "g", "a/b/f", ""),
        (DIR, "old", "", ""),
        (DIR, long.as_str(), "", ""),
        (FILE, inner.as_str(), "", ""),
        (DIR, "out", "", ""),
        (DIR, "out/deep", "", ""),
    ];
    let expected = expected.map(|(kind, path, link, text)| (kind, path.to_owned(), link.to_owned(), text.to_owned()));
    assert_eq!(members(&tar), expected);
    assert_eq!(tar.len() % 512, 0);
}

#[tokio::test]
async fn long_names_and_links_pass() {
    let (name, target) = (["d".repeat(200), "e".repeat(200), "f".repeat(200)].join("/"), "t".repeat(250));
    let mut tar = Builder::new(Vec::new());
    let header = |kind, size| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o751);
        header.set_uid(5);
        header.set_gid(6);
        header.set_size(size);
        header.set_cksum();
        header
    };
    tar.append_data(&mut header(FILE, 3), &name, &b"abc"[..]).unwrap();
    tar.append_link(&mut header(SOFT, 0), "soft", &target).unwrap();
    tar.append_pax_extensions([("path", &b"by/pax"[..]), ("linkpath", b"pax")]).unwrap();
    tar.append(&header(SOFT, 0), io::empty()).unwrap();
    let found = members(&passed(&tar.into_inner().unwrap(), terms(3)).await.unwrap());
    let found: Vec<_> = found.iter().skip(2).map(|(_, path, link, text)| (&path[..], &link[..], &text[..])).collect();
    assert_eq!(found, [(&name[..], "", "abc"), ("soft", &target, ""), ("by", "", ""), ("by/pax", "pax", "")]);
}

#[tokio::test]
async fn hostile_members_are_refused_by_name() {
    let part = "p".repeat(99);
    let cases: &[(&[Raw<'_>], &str)] = &[
        (&[(FILE, "../x", "", b"")], "`../x` is not a plain path"),
        (&[(FILE, "a/../../x", "", b"")], "is not a plain path"),
        (&[(FILE, "/etc/passwd", "", b"")], "`/etc/passwd` is not a plain path"),
        (&[(DIR, "/", "", b"")], "is not a plain path"),
        (&[(FILE, ".", "", b"")], "is not in the directory"),
        (&[(SOFT, "./", "x", b"")], "is not in the directory"),
        (&[(SOFT, "a", "/etc", b"")], "`a` is a link that leads out"),
        (&[(SOFT, "a", "..", b"")], "is a link that leads out"),
        (&[(SOFT, "d/a", "../../x", b"")], "is a link that leads out"),
        (&[(SOFT, "d/a", "x/../../..", b"")], "is a link that leads out"),
        (&[(SOFT, "a", "", b"")], "is a link that leads out"),
        (&[(SOFT, "a", "b", b""), (FILE, "a/x", "", b"")], "`a` is no directory"),
        (&[(SOFT, "a", "b", b""), (FILE, "a", "", b"")], "`a` is there twice"),
        (&[(DIR, "a", "", b""), (SOFT, "a", "b", b"")], "`a` is there twice"),
        (&[(FILE, "a", "", b""), (DIR, "a/b", "", b"")], "`a` is no directory"),
        (&[(HARD, "a", "/etc/shadow", b"")], "does not come before it"),
        (&[(HARD, "a", "../x", b"")], "does not come before it"),
        (&[(SOFT, "s", "t", b""), (HARD, "a", "s", b"")], "does not come before it"),
        (&[(HARD, "a", "b", b""), (FILE, "b", "", b"")], "does not come before it"),
        (&[(DIR, "a", "", b"x")], "has bytes, though"),
        (&[(EntryType::Block, "sda", "", b"")], "`sda` is neither a file nor"),
        (&[(EntryType::Char, "null", "", b"")], "is neither a file nor"),
        (&[(EntryType::Fifo, "pipe", "", b"")], "is neither a file nor"),
        (&[(EntryType::GNUSparse, "holes", "", b"")], "is neither a file nor"),
        (&[(FILE, "a", "", b"123"), (FILE, "b", "", b"456")], "more bytes than the job's disk limit"),
        (&[(FILE, "\u{1b}[31m/../x", "", b"")], "31m/../x` is not"),
        (&[(FILE, &part, "", b""), (FILE, &part, "", b"")], "is there twice"),
    ];
    for (raw, words) in cases {
        let told = passed(&archive(raw), terms(5)).await.expect_err(words);
        assert!(told.contains(words) && !told.contains('\u{1b}'), "{words}: {told}");
    }
    let needed = Terms { needed: vec!["a".into()], ..terms(5) };
    let told = passed(&archive(&[(FILE, "a", "", b"")]), needed).await.unwrap_err();
    assert!(told.contains("`a` is no directory"), "{told}");
}

#[tokio::test]
async fn what_is_cut_short_or_no_archive_is_refused() {
    let whole = archive(&[(FILE, "a", "", &[7; 3000]), (FILE, "b", "", &[8; 700])]);
    for end in [0, 100, 512, 700, 3500, 3584, 4096, 4500, 5000, 5119] {
        let told = passed(&whole[..end], terms(1 << 20)).await.expect_err("it is cut");
        assert!(told.contains("ended early"), "cut at {end}: {told}");
    }
    let told = passed(&[0x1f, 0x8b].repeat(5000), terms(1 << 20)).await.unwrap_err();
    assert!(!told.is_empty(), "{told}");
    assert_eq!(passed(&[0; 1024], terms(0)).await.unwrap(), END_OF_ARCHIVE, "nothing is a directory too");
}

#[test]
fn entries_and_their_names_are_bounded() {
    let file = |path: String| Member { kind: Kind::File, ..directory(path.as_bytes()) };
    let mut tree = Tree::default();
    for n in 0..UNPACKED_MAX - 1 {
        tree.admit(file(format!("d/{n}"))).unwrap();
    }
    let told = tree.admit(file("more".into())).unwrap_err();
    assert!(told.contains("more than 200000 entries"), "{told}");

    let mut tree = Tree::default();
    let long = vec!["n".repeat(250); 12].join("/");
    let told = (0..UNPACKED_MAX).find_map(|n| tree.admit(file(format!("{n}/{long}"))).err()).expect("it is too much");
    assert!(told.contains("bytes of names") && tree.name_bytes < UNPACKED_NAME_BYTES_MAX + PATH_BYTES_MAX, "{told}");
}

#[tokio::test]
async fn a_fault_of_the_transfer_is_not_told_as_one_of_the_archive() {
    let bad = archive(&[(FILE, "../x", "", b"")]);
    let broken = stream::iter([Ok(Bytes::from(bad)), Err(io::Error::other("other bytes than its digest says"))]);
    let refusal = Refusal::default();
    let told = unpacked(broken.boxed(), terms(5), refusal.clone()).next().await.unwrap().unwrap_err();
    assert!(told.to_string().contains("digest") && refusal.get().is_none());
}

proptest! {
    /// Whatever comes, what is passed on is a tar whose members lie within the directory.
    #[test]
    fn nothing_leads_out(raw in prop::collection::vec((0usize..7, "[./ab]{1,9}", "[./ab]{0,9}"), 0..8)) {
        let kinds = [FILE, DIR, SOFT, HARD, FILE, EntryType::Fifo, DIR];
        let raw: Vec<Raw<'_>> = raw.iter().map(|(kind, name, link)| (kinds[*kind], &name[..], &link[..], &b""[..])).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        if let Ok(tar) = runtime.block_on(passed(&archive(&raw), terms(0))) {
            let mut links = Vec::new();
            for (kind, path, link, _) in members(&tar) {
                prop_assert!(!path.starts_with('/') && path.split('/').all(|part| !matches!(part, ".." | "." | "")));
                let through = |link: &String| path == *link || swarm_protocol::validate::is_below(&path, link);
                prop_assert!(!links.iter().any(through));
                if kind == SOFT {
                    let parts = path.split('/').count() - 1;
                    let climbs = link.split('/').scan(parts as i32, |depth, part| {
                        *depth += match part { ".." => -1, "." | "" => 0, _ => 1 };
                        Some(*depth)
                    });
                    prop_assert!(!link.starts_with('/') && climbs.min().is_none_or(|lowest| lowest >= 0));
                    links.push(path);
                }
            }
        }
    }
}

#[tokio::test]
async fn owners_may_be_left_out_and_names_be_long_and_no_text() {
    let mut tar = Builder::new(Vec::new());
    for name in [&b"plain"[..], &b"\xff".repeat(150), &[&b"..\xfe"[..], &b"n".repeat(150)].concat()] {
        let mut header = Header::new_gnu();
        header.set_entry_type(FILE);
        header.set_size(2);
        header.set_mode(0o751);
        let shown = name.len().min(100);
        header.as_old_mut().name[..shown].copy_from_slice(&name[..shown]);
        header.as_old_mut().uid = *b"\0\0\0\0\0\0\0\0";
        header.as_old_mut().gid = *b"        ";
        if name.len() > 100 {
            let mut long = Header::new_gnu();
            long.set_entry_type(EntryType::GNULongName);
            long.set_size(name.len() as u64);
            long.set_cksum();
            tar.append(&long, name).unwrap();
        }
        header.set_cksum();
        tar.append(&header, &b"hi"[..]).unwrap();
    }
    let passed = passed(&tar.into_inner().unwrap(), terms(100)).await.unwrap();
    let mut names = Vec::new();
    for entry in tar::Archive::new(&passed[..]).entries().unwrap() {
        let entry = entry.unwrap();
        assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (1000, 1001));
        names.push(entry.path_bytes().into_owned());
    }
    assert_eq!(names, [b"plain".to_vec(), b"\xff".repeat(150), [&b"..\xfe"[..], &b"n".repeat(150)].concat()]);
}
