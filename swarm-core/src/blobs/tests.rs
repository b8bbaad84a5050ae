use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use zeroize::Zeroizing;

use super::sealed::{FileId, HEADER_BYTES, SEGMENT_BYTES, extent_bytes, seal_extent};
use super::sealed_file::{Cursor, SealedFile};
use super::*;

fn master(byte: u8) -> Arc<MasterKey> {
    Arc::new(MasterKey::from_bytes(Zeroizing::new([byte; 32])))
}

struct Store {
    dir: tempfile::TempDir,
    blobs: DiskBlobs,
}

fn store() -> Store {
    let dir = tempfile::tempdir().unwrap();
    let blobs = DiskBlobs::open(dir.path(), master(7)).unwrap();
    Store { dir, blobs }
}

impl Store {
    fn put(&self, bytes: &[u8]) -> Digest {
        let mut upload = self.blobs.begin(1 << 30).unwrap();
        upload.write_all(bytes).unwrap();
        upload.finish(None).unwrap().digest
    }

    fn get(&self, digest: &Digest) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.blobs.open(digest).map_err(std::io::Error::other)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("sha256").join(&digest.hex()[..2]).join(digest.hex())
    }

    fn files(&self) -> Vec<PathBuf> {
        fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, found);
                } else if path.file_name() != Some("lock".as_ref()) {
                    found.push(path);
                }
            }
        }
        let mut found = Vec::new();
        walk(self.dir.path(), &mut found);
        found
    }

    fn log_file(&self, name: &str) -> PathBuf {
        self.files().into_iter().find(|path| path.file_name() == Some(name.as_ref())).unwrap()
    }

    /// The same directory, as after a restart.
    fn reopen(self) -> Self {
        let Self { dir, blobs } = self;
        drop(blobs);
        let blobs = DiskBlobs::open(dir.path(), master(7)).unwrap();
        Self { dir, blobs }
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251 + i / 65_536) as u8).collect()
}

fn log(name: &str) -> LogKey {
    name.parse().unwrap()
}

fn edgy_len() -> impl Strategy<Value = usize> {
    let segment = SEGMENT_BYTES as i64;
    prop_oneof![
        0usize..200,
        (0i64..4, -20i64..=20).prop_map(move |(n, off)| (n * segment + off).max(0) as usize),
        0usize..200_000,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_blob_reads_back_whole_and_in_any_slice(
        len in edgy_len(), piece in 1usize..100_000, from in any::<prop::sample::Index>(), take in 0usize..150_000,
    ) {
        let store = store();
        let bytes = pattern(len);
        let mut upload = store.blobs.begin(len as u64).unwrap();
        for piece in bytes.chunks(piece) {
            upload.write_all(piece).unwrap();
        }
        let info = upload.finish(Some(Digest::of(&bytes))).unwrap();
        prop_assert_eq!(info.size_bytes, len as u64);
        prop_assert_eq!(store.blobs.size(&info.digest).unwrap(), Some(len as u64));
        prop_assert_eq!(fs::metadata(store.blob_path(&info.digest)).unwrap().len(), extent_bytes(len as u64).unwrap());
        prop_assert!(store.get(&info.digest).unwrap() == bytes);

        let from = from.index(len + 1);
        let mut blob = store.blobs.open(&info.digest).unwrap();
        blob.seek(SeekFrom::Start(from as u64)).unwrap();
        let mut slice = Vec::new();
        blob.take(take as u64).read_to_end(&mut slice).unwrap();
        prop_assert!(slice == bytes[from..len.min(from + take)]);
    }

    #[test]
    fn no_changed_bit_goes_unseen(len in edgy_len(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let store = store();
        let digest = store.put(&pattern(len));
        let path = store.blob_path(&digest);
        let mut sealed = fs::read(&path).unwrap();
        let at = at.index(sealed.len());
        sealed[at] ^= 1 << bit;
        fs::write(&path, sealed).unwrap();
        prop_assert!(store.get(&digest).is_err());
    }

    #[test]
    fn no_cut_or_added_byte_goes_unseen(len in edgy_len(), at in any::<prop::sample::Index>()) {
        let store = store();
        let digest = store.put(&pattern(len));
        let path = store.blob_path(&digest);
        let sealed = fs::read(&path).unwrap();
        fs::write(&path, &sealed[..at.index(sealed.len())]).unwrap();
        let cut = store.blobs.open(&digest).err();
        prop_assert!(matches!(cut, Some(BlobError::Damaged { .. })), "{cut:?}");
        fs::write(&path, [&sealed[..], &[0]].concat()).unwrap();
        let longer = store.blobs.open(&digest).err();
        prop_assert!(matches!(longer, Some(BlobError::Damaged { .. })), "{longer:?}");
    }

    #[test]
    fn a_log_grows_by_offset_and_survives_a_cut(
        lens in prop::collection::vec(1usize..90_000, 1..6), cut in any::<prop::sample::Index>(), overlap in 0u64..500,
    ) {
        let store = store();
        let key = log("42.7.1");
        let all = pattern(lens.iter().sum());
        let mut ends = vec![0usize];
        for len in lens {
            let have = *ends.last().unwrap();
            let from = have.saturating_sub(overlap as usize);
            let now = store.blobs.log_append(&key, from as u64, &all[from..have + len]).unwrap();
            prop_assert_eq!(now as usize, have + len);
            ends.push(have + len);
        }
        prop_assert!(store.blobs.log_read(&key, 0, usize::MAX).unwrap() == all);

        let store = store.reopen();
        prop_assert_eq!(store.blobs.log_len(&key).unwrap() as usize, all.len());
        let path = store.log_file("42.7.1");
        let sealed = fs::read(&path).unwrap();
        let cut = cut.index(sealed.len());
        let store = { fs::write(&path, &sealed[..cut]).unwrap(); store.reopen() };
        let mut whole = 0;
        let mut file_end = 0;
        for pair in ends.windows(2) {
            file_end += extent_bytes((pair[1] - pair[0]) as u64).unwrap();
            if file_end <= cut as u64 { whole = pair[1]; }
        }
        prop_assert_eq!(store.blobs.log_len(&key).unwrap() as usize, whole);
        prop_assert_eq!(store.blobs.log_append(&key, whole as u64, &all[whole..]).unwrap() as usize, all.len());
        prop_assert!(store.reopen().blobs.log_read(&key, 0, usize::MAX).unwrap() == all);
    }
}

#[test]
fn the_frozen_format_is_what_its_page_says() {
    let id = FileId::Log([9; 32]);
    let sealed = seal_extent(&master(7), &id, 3, 0x0102, true, b"hello").unwrap();
    assert_eq!(sealed.len(), 112 + 5 + 16);
    assert_eq!(&sealed[..12], b"SWARMEXT\x00\x01\x02\x01");
    assert_eq!(sealed[12..16], [0, 0, 0, 3]);
    assert_eq!(sealed[16..24], [0, 0, 0, 0, 0, 0, 1, 2]);
    assert_eq!(sealed[24..32], [0, 0, 0, 0, 0, 0, 0, 5]);
    assert_eq!(sealed[32..40], master(7).id().0);

    // Opened by hand, from the page alone.
    use chacha20poly1305::aead::{Aead, Payload};
    use chacha20poly1305::{ChaCha20Poly1305, Key, KeyInit, Nonce, XChaCha20Poly1305, XNonce};
    let aad = [&sealed[..40], &[9; 32]].concat();
    let wrapped = Payload { msg: &sealed[64..112], aad: &aad };
    let nonce = XNonce::try_from(&sealed[40..64]).unwrap();
    let key = XChaCha20Poly1305::new(&Key::from([7; 32])).decrypt(&nonce, wrapped).unwrap();
    let segment_nonce = Nonce::from([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let cipher = ChaCha20Poly1305::new(&Key::try_from(&key[..]).unwrap());
    assert_eq!(cipher.decrypt(&segment_nonce, &sealed[112..]).unwrap(), b"hello");
}

#[test]
fn extents_cannot_trade_places_or_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let id = FileId::Blob(Digest::of(b"aabb"));
    let first = seal_extent(&master(7), &id, 0, 0, false, b"aa").unwrap();
    let second = seal_extent(&master(7), &id, 1, 2, true, b"bb").unwrap();
    let open = |parts: &[&[u8]], id: FileId, key: u8| {
        fs::write(&path, parts.concat()).unwrap();
        let sealed = SealedFile::open_complete(fs::File::open(&path).unwrap(), master(key), id)?;
        let mut bytes = vec![0; sealed.length as usize];
        let mut cursor = Cursor::default();
        let mut done = 0;
        while done < bytes.len() {
            done += cursor.read_at(&sealed, done as u64, &mut bytes[done..])?;
        }
        Ok::<_, SealError>(bytes)
    };
    assert_eq!(open(&[&first, &second], id, 7).unwrap(), b"aabb");
    assert!(matches!(open(&[&second, &first], id, 7), Err(SealError::Header { at: 0 })));
    assert!(matches!(open(&[&first, &first], id, 7), Err(SealError::Header { .. })));
    assert!(matches!(open(&[&first], id, 7), Err(SealError::Truncated { .. })));
    assert!(matches!(open(&[&second], id, 7), Err(SealError::Header { .. })));
    assert!(matches!(open(&[&first, &second, &second], id, 7), Err(SealError::Trailing { .. })));
    assert!(matches!(open(&[&first, &second], FileId::Blob(Digest::of(b"b")), 7), Err(SealError::Header { .. })));
    assert!(matches!(open(&[&first, &second], FileId::log("42"), 7), Err(SealError::Header { .. })));
    assert!(matches!(open(&[&first, &second], id, 8), Err(SealError::OtherKey { .. })));
    let mixed = [&first[..HEADER_BYTES], &second[HEADER_BYTES..]].concat();
    assert!(matches!(open(&[&mixed, &second], id, 7), Err(SealError::Segment { .. })));
    let mut newer = first.clone();
    newer[9] = 2;
    assert!(matches!(open(&[&newer, &second], id, 7), Err(SealError::Version { version: 2, .. })));
}

#[test]
fn segments_cannot_trade_places() {
    let store = store();
    let digest = store.put(&vec![1; 3 * SEGMENT_BYTES]);
    let path = store.blob_path(&digest);
    let sealed = fs::read(&path).unwrap();
    let one = SEGMENT_BYTES + 16;
    let segment = |n: usize| &sealed[HEADER_BYTES + n * one..HEADER_BYTES + (n + 1) * one];
    fs::write(&path, [&sealed[..HEADER_BYTES], segment(1), segment(0), segment(2)].concat()).unwrap();
    assert!(store.get(&digest).is_err());
    fs::write(&path, [&sealed[..HEADER_BYTES], segment(0), segment(0), segment(2)].concat()).unwrap();
    assert!(store.get(&digest).is_err());
}

#[test]
fn nothing_on_disk_shows_plaintext() {
    let store = store();
    store.put(&b"a secret of the job ".repeat(5000));
    store.blobs.log_append(&log("1.0.1"), 0, &b"a secret of the job ".repeat(10)).unwrap();
    let files = store.files();
    assert_eq!(files.len(), 2);
    for file in files {
        let bytes = fs::read(file).unwrap();
        assert!(!bytes.windows(8).any(|window| window == b"a secret"));
    }
}

#[test]
fn a_wrong_digest_is_named_and_leaves_nothing() {
    let store = store();
    let mut upload = store.blobs.begin(100).unwrap();
    upload.write_all(b"other bytes").unwrap();
    let expected = Digest::of(b"these bytes");
    let error = upload.finish(Some(expected)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&expected.to_string()) && text.contains(&Digest::of(b"other bytes").to_string()), "{text}");
    assert_eq!(store.files(), Vec::<PathBuf>::new());
}

#[test]
fn an_upload_is_bounded_and_useless_after_a_failed_write() {
    let store = store();
    let mut upload = store.blobs.begin(10).unwrap();
    upload.write_all(b"0123456789").unwrap();
    let error = upload.write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge);
    assert!(error.to_string().contains("10 bytes"), "{error}");
    assert!(upload.finish(None).is_err());
    drop(store.blobs.begin(10).unwrap());
    assert_eq!(store.files(), Vec::<PathBuf>::new());
}

#[test]
fn uploads_of_a_process_now_gone_are_swept_and_those_of_a_live_one_are_not() {
    let store = store();
    let mut live = store.blobs.begin(10).unwrap();
    live.write_all(b"live").unwrap();
    let gone = store.dir.path().join("tmp").join("gone");
    fs::create_dir(&gone).unwrap();
    fs::write(gone.join("lock"), "").unwrap();
    fs::write(gone.join("0"), "left behind").unwrap();
    DiskBlobs::open(store.dir.path(), master(7)).unwrap();
    assert!(!gone.exists());
    assert_eq!(live.finish(None).unwrap().digest, Digest::of(b"live"));
}

#[test]
fn the_same_blob_from_many_sides_is_stored_once() {
    let store = store();
    let bytes = pattern(200_000);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(store.put(&bytes), Digest::of(&bytes)));
        }
    });
    assert_eq!(store.files(), [store.blob_path(&Digest::of(&bytes))]);
    assert!(store.get(&Digest::of(&bytes)).unwrap() == bytes);
}

#[test]
fn storing_again_heals_a_damaged_blob() {
    let store = store();
    let digest = store.put(b"precious");
    fs::write(store.blob_path(&digest), "rubbish").unwrap();
    assert!(store.get(&digest).is_err());
    store.put(b"precious");
    assert_eq!(store.get(&digest).unwrap(), b"precious");
}

#[test]
fn a_staged_blob_is_readable_but_not_stored_until_published() {
    let store = store();
    let stage = |bytes: &[u8]| {
        let mut upload = store.blobs.begin(100).unwrap();
        upload.write_all(bytes).unwrap();
        upload.stage().unwrap()
    };
    let (kept, dropped) = (stage(b"kept"), stage(b"dropped"));
    let mut text = String::new();
    kept.open().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "kept");
    assert!(!store.blobs.contains(&kept.info().digest).unwrap());
    drop(dropped);
    let info = kept.publish().unwrap();
    assert_eq!(store.files(), [store.blob_path(&info.digest)]);
}

#[test]
fn blobs_are_listed_in_pages_and_removed_unless_fresh() {
    let store = store();
    let mut digests: Vec<_> = (0..40u8).map(|i| store.put(&[i])).collect();
    digests.sort_unstable();
    let mut listed = Vec::new();
    while let Some(last) = {
        let page = store.blobs.list(listed.last(), 7).unwrap();
        assert!(page.len() <= 7);
        listed.extend(page.iter().map(|entry| entry.digest));
        page.last().copied()
    } {
        assert_eq!(last.stored_bytes, 112 + 1 + 16);
    }
    assert_eq!(listed, digests);

    let first = digests[0];
    assert!(!store.blobs.remove(&first, Some(SystemTime::UNIX_EPOCH)).unwrap());
    assert!(store.blobs.contains(&first).unwrap());
    assert!(store.blobs.remove(&first, Some(SystemTime::now() + Duration::from_secs(60))).unwrap());
    assert!(!store.blobs.remove(&first, None).unwrap());
    assert_eq!(store.blobs.size(&first).unwrap(), None);
    assert!(matches!(store.blobs.open(&first).err(), Some(BlobError::NotFound(digest)) if digest == first));
}

#[test]
fn log_appends_repeat_safely_and_refuse_gaps() {
    let store = store();
    let key = log("5.0.1");
    assert_eq!(store.blobs.log_len(&key).unwrap(), 0);
    assert!(matches!(store.blobs.log_append(&key, 1, b"x"), Err(BlobError::Gap { have: 0, offset: 1, .. })));
    assert_eq!(store.files(), Vec::<PathBuf>::new());
    assert_eq!(store.blobs.log_append(&key, 0, b"").unwrap(), 0);
    assert_eq!(store.blobs.log_append(&key, 0, b"hello ").unwrap(), 6);
    assert_eq!(store.blobs.log_append(&key, 0, b"hello ").unwrap(), 6);
    assert_eq!(store.blobs.log_append(&key, 2, b"llo").unwrap(), 6);
    assert_eq!(store.blobs.log_append(&key, 3, b"lo world").unwrap(), 11);
    assert!(matches!(store.blobs.log_append(&key, 12, b"x"), Err(BlobError::Gap { have: 11, offset: 12, .. })));
    assert_eq!(store.blobs.log_read(&key, 4, 4).unwrap(), b"o wo");
    assert_eq!(store.blobs.log_read(&key, 11, 4).unwrap(), b"");
    assert_eq!(store.blobs.log_read(&key, u64::MAX, 4).unwrap(), b"");
    let huge = vec![0; LOG_APPEND_BYTES_MAX + 1];
    assert!(matches!(store.blobs.log_append(&key, 11, &huge), Err(BlobError::AppendTooLarge { .. })));
    assert!(store.blobs.log_remove(&key).unwrap());
    assert!(!store.blobs.log_remove(&key).unwrap());
    assert_eq!(store.blobs.log_append(&key, 0, b"anew").unwrap(), 4);
    assert_eq!(store.reopen().blobs.log_read(&key, 0, 100).unwrap(), b"anew");
}

#[test]
fn a_torn_tail_is_cut_whatever_the_disk_made_of_it() {
    let torn = seal_extent(&master(7), &FileId::log("5.0.1"), 2, 6, false, &pattern(1000)).unwrap();
    let mut zero_tail = torn.clone();
    zero_tail[600..].fill(0);
    let mut zero_head = torn.clone();
    zero_head[..512].fill(0);
    for tail in [&torn[..5], &torn[..HEADER_BYTES], &torn[..900], &zero_tail, &zero_head, &[0; 4096], b"SWARMEXT\0\0"] {
        let store = store();
        let key = log("5.0.1");
        store.blobs.log_append(&key, 0, b"one").unwrap();
        store.blobs.log_append(&key, 3, b"two").unwrap();
        let path = store.log_file("5.0.1");
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole[..], tail].concat()).unwrap();
        let store = store.reopen();
        assert_eq!(store.blobs.log_read(&key, 0, 100).unwrap(), b"onetwo");
        assert_eq!(fs::read(&path).unwrap(), whole);
        assert_eq!(store.blobs.log_append(&key, 6, b"three").unwrap(), 11);
        assert_eq!(store.reopen().blobs.log_read(&key, 0, 100).unwrap(), b"onetwothree");
    }
}

#[test]
fn damage_inside_a_log_is_reported_and_never_cut() {
    let store = store();
    let key = log("5.0.1");
    for n in 0..20u64 {
        store.blobs.log_append(&key, n * 3, b"abc").unwrap();
    }
    let path = store.log_file("5.0.1");
    let whole = fs::read(&path).unwrap();
    let one = extent_bytes(3).unwrap() as usize;
    let mut store = store;
    for at in [0, 9, 10, 30, 35, 50, 100, 5 * one, 5 * one + 15, 5 * one + 33, 18 * one + 70] {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, &damaged).unwrap();
        store = store.reopen();
        assert!(matches!(store.blobs.log_len(&key), Err(BlobError::Damaged { .. })), "byte {at}");
        assert!(store.blobs.log_append(&key, 60, b"abc").is_err());
        assert_eq!(fs::read(&path).unwrap(), damaged, "byte {at}");
    }
    let mut damaged = whole.clone();
    damaged[3 * one + HEADER_BYTES] ^= 1;
    fs::write(&path, &damaged).unwrap();
    store = store.reopen();
    assert_eq!(store.blobs.log_read(&key, 0, 9).unwrap(), b"abcabcabc");
    assert!(matches!(store.blobs.log_read(&key, 9, 3), Err(BlobError::Damaged { .. })));

    fs::write(&path, &whole).unwrap();
    let Store { dir, blobs } = store;
    drop(blobs);
    let other = DiskBlobs::open(dir.path(), master(8)).unwrap();
    let error = other.log_append(&key, 60, b"abc").unwrap_err();
    assert!(matches!(error, BlobError::Damaged { source: SealError::OtherKey { .. }, .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), whole);
}

#[test]
fn a_log_open_elsewhere_is_left_alone() {
    let store = store();
    let key = log("5.0.1");
    store.blobs.log_append(&key, 0, b"one").unwrap();
    let other = DiskBlobs::open(store.dir.path(), master(7)).unwrap();
    let error = other.log_append(&key, 3, b"two").unwrap_err();
    assert!(matches!(error, BlobError::Io { action: "lock", .. }), "{error}");
    assert_eq!(store.blobs.log_append(&key, 3, b"two").unwrap(), 6);
    drop(store.blobs);
    assert_eq!(other.log_read(&key, 0, 10).unwrap(), b"onetwo");
}

#[test]
fn more_logs_than_are_kept_open_are_written_side_by_side() {
    let store = store();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let blobs = &store.blobs;
            scope.spawn(move || {
                for round in 0..2u64 {
                    for n in 0..100 {
                        let key = log(&format!("{thread}.{n}.1"));
                        assert_eq!(blobs.log_append(&key, round * 2, b"ab").unwrap(), round * 2 + 2);
                    }
                }
            });
        }
    });
    for thread in 0..4 {
        for n in 0..100 {
            assert_eq!(store.blobs.log_read(&log(&format!("{thread}.{n}.1")), 0, 9).unwrap(), b"abab");
        }
    }
}

#[test]
fn many_writers_of_one_log_agree_on_every_byte() {
    let store = store();
    let key = log("9.0.1");
    let all = pattern(3000);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for from in (0..all.len()).step_by(100) {
                    store.blobs.log_append(&key, from as u64, &all[from..from + 100]).unwrap();
                }
            });
        }
    });
    assert!(store.reopen().blobs.log_read(&key, 0, 10_000).unwrap() == all);
}

#[test]
fn a_log_name_cannot_leave_its_directory() {
    for bad in ["", ".", "..", "../x", "a/b", "a\\b", "A", "-a", ".a", "a\0", "ä", &"a".repeat(101)] {
        assert!(bad.parse::<LogKey>().is_err(), "{bad:?}");
    }
    for good in ["42.7.1", "a", "0-b_c..d", &"a".repeat(100)] {
        assert_eq!(log(good).as_str(), good);
    }
    assert!("\u{1b}[2J".parse::<LogKey>().unwrap_err().to_string().contains("\\u{1b}"));
}
