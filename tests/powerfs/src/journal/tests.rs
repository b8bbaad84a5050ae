use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::Disk;
use crate::tree::ROOT;

fn file() -> Node {
    Node { kind: Kind::File(Vec::new()), mode: 0o644, owner: (0, 0) }
}

fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

fn write(journal: &mut Journal, ino: Ino, offset: usize, bytes: &[u8]) {
    journal.change(Change::Write { ino, offset, bytes: bytes.to_vec() }).unwrap();
}

fn rename(journal: &mut Journal, from: &str, to: &str) {
    let ino = journal.live().find(ROOT, name(from)).unwrap();
    journal.change(Change::Rename { ino, from: (ROOT, from.into()), to: (ROOT, to.into()) }).unwrap();
}

/// Everything that some seed leaves of the same changes.
fn outcomes(make: impl Fn() -> Journal) -> BTreeSet<Vec<(PathBuf, Option<Vec<u8>>)>> {
    (0..200).map(|seed| make().cut(seed).list()).collect()
}

fn found(path: &str, bytes: &[u8]) -> (PathBuf, Option<Vec<u8>>) {
    (path.into(), Some(bytes.to_vec()))
}

#[test]
fn a_rename_without_a_sync_of_the_file_may_leave_it_empty_and_with_one_it_never_does() {
    let replaced = |with_sync: bool| {
        outcomes(|| {
            let mut journal = Journal::new(Tree::default());
            let old = journal.create(ROOT, name("a"), file()).unwrap();
            write(&mut journal, old, 0, b"old");
            journal.sync(old).unwrap();
            journal.sync(ROOT).unwrap();
            let new = journal.create(ROOT, name("a.tmp"), file()).unwrap();
            write(&mut journal, new, 0, b"new");
            if with_sync {
                journal.sync(new).unwrap();
            }
            rename(&mut journal, "a.tmp", "a");
            journal
        })
    };
    let (careless, careful) = (replaced(false), replaced(true));
    assert!(careless.contains(&vec![found("a", b"")]), "{careless:?}");
    let whole = [vec![found("a", b"old")], vec![found("a", b"new")], vec![found("a", b"old"), found("a.tmp", b"new")]];
    assert_eq!(careful, BTreeSet::from(whole));
}

#[test]
fn a_synced_file_whose_directory_was_not_synced_may_be_gone() {
    let made = |with_dir: bool| {
        outcomes(|| {
            let mut journal = Journal::new(Tree::default());
            let ino = journal.create(ROOT, name("a"), file()).unwrap();
            write(&mut journal, ino, 0, b"x");
            journal.sync(ino).unwrap();
            if with_dir {
                journal.sync(ROOT).unwrap();
            }
            journal
        })
    };
    assert_eq!(made(false), BTreeSet::from([vec![], vec![found("a", b"x")]]));
    assert_eq!(made(true), BTreeSet::from([vec![found("a", b"x")]]));
}

#[test]
fn pages_are_torn_and_lengths_come_apart_from_them() {
    let torn = outcomes(|| {
        let mut journal = Journal::new(Tree::default());
        let ino = journal.create(ROOT, name("a"), file()).unwrap();
        journal.sync(ROOT).unwrap();
        write(&mut journal, ino, 0, &[1; PAGE]);
        write(&mut journal, ino, PAGE, &[2; PAGE]);
        journal
    });
    let of = |first: u8, second: u8| vec![found("a", &[[first; PAGE], [second; PAGE]].concat())];
    for expected in [of(1, 2), of(0, 2), of(1, 0), of(0, 0), vec![found("a", b"")]] {
        assert!(torn.contains(&expected));
    }
}

#[test]
fn a_rename_into_a_synced_directory_takes_its_name_along() {
    let mut journal = Journal::new(Tree::default());
    let node = |kind| Node { kind, mode: 0o755, owner: (0, 0) };
    let [from, to] =
        ["from", "to"].map(|dir| journal.create(ROOT, name(dir), node(Kind::Dir(BTreeMap::new()))).unwrap());
    journal.sync(ROOT).unwrap();
    let ino = journal.create(from, name("a"), file()).unwrap();
    write(&mut journal, ino, 0, b"x");
    journal.sync(ino).unwrap();
    journal.change(Change::Rename { ino, from: (from, "a".into()), to: (to, "b".into()) }).unwrap();
    journal.sync(to).unwrap();
    // Whether the directory it came from is durable is no matter of it.
    let list = journal.cut(0).list();
    assert_eq!(list.iter().find(|(path, _)| path.ends_with("b")), Some(&found("to/b", b"x")));
}

#[test]
fn after_a_cut_nothing_answers_and_the_same_seed_leaves_the_same() {
    let mut journal = Journal::new(Tree::default());
    let ino = journal.create(ROOT, name("a"), file()).unwrap();
    write(&mut journal, ino, 0, &[7; 3 * PAGE]);
    let (first, again) = (journal.cut(5), journal.cut(5));
    assert!(journal.tree().is_err() && journal.sync(ino).is_err());
    assert!(again.names_pending == 0, "what was decided once is not decided again: {first:?}");
}

proptest! {
    /// What a program sees is the durable tree with all that is pending.
    #[test]
    fn the_two_trees_never_drift_apart(steps in prop::collection::vec((0u8..5, 0u8..4, 0u8..4), 0..60)) {
        let mut journal = Journal::new(Tree::default());
        for (what, first, second) in steps {
            let (from, to) = (format!("f{first}"), format!("f{second}"));
            let there = journal.live().find(ROOT, name(&from)).ok();
            match (what, there) {
                (0, None) => drop(journal.create(ROOT, name(&from), file())),
                (1, Some(ino)) => write(&mut journal, ino, usize::from(second) * 100, &[first; 50]),
                (2, Some(_)) if from != to => rename(&mut journal, &from, &to),
                (3, Some(ino)) => journal.sync(ino).unwrap(),
                (4, _) => journal.sync(ROOT).unwrap(),
                _ => {}
            }
            let mut whole = journal.durable.clone();
            journal.pending.iter().for_each(|change| whole.apply(change));
            prop_assert_eq!(whole.list(), journal.live().list());
        }
    }
}

#[test]
fn a_cut_comes_right_before_the_step_it_was_meant_for() {
    let mut journal = Journal::new(Tree::default());
    let ino = journal.create(ROOT, name("a"), file()).unwrap();
    journal.arm(3, 0);
    write(&mut journal, ino, 0, b"x");
    journal.sync(ino).unwrap();
    assert!(journal.remains.is_none());
    assert!(journal.sync(ROOT).is_err() && journal.remains.is_some());
}

fn at(disk: &Path, path: &str) -> PathBuf {
    disk.join(path)
}

#[test]
fn programs_use_it_like_any_disk_and_find_what_a_cut_left() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::mount(dir.path()).expect("mounting needs root and /dev/fuse");
    fs::create_dir(at(dir.path(), "d")).unwrap();
    let mut kept = File::create(at(dir.path(), "d/kept")).unwrap();
    kept.write_all(&[3; 100_000]).unwrap();
    kept.sync_all().unwrap();
    for path in ["d", ""] {
        File::open(at(dir.path(), path)).unwrap().sync_all().unwrap();
    }
    fs::write(at(dir.path(), "d/lost"), b"x").unwrap();
    fs::rename(at(dir.path(), "d/kept"), at(dir.path(), "d/moved")).unwrap();
    assert_eq!(fs::read(at(dir.path(), "d/moved")).unwrap().len(), 100_000);
    let seed = (0..).find(|seed| StdRng::seed_from_u64(*seed).random_range(0..4) == 0).unwrap();
    let remains = disk.cut(seed);
    assert_eq!(kept.write(b"y").unwrap_err().raw_os_error(), Some(5), "EIO");
    drop((kept, disk));
    let disk = Disk::remount(dir.path(), remains).unwrap();
    let names: Vec<_> = fs::read_dir(at(dir.path(), "d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["kept"]);
    assert_eq!(fs::read(at(dir.path(), "d/kept")).unwrap(), [3; 100_000]);
    drop(disk);
}

#[test]
fn a_disk_that_fails_changes_nothing_and_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::mount(dir.path()).unwrap();
    fs::write(at(dir.path(), "a"), b"before").unwrap();
    let kept = File::options().write(true).open(at(dir.path(), "a")).unwrap();
    disk.fail(true);
    assert_eq!((&kept).write(b"after!").unwrap_err().raw_os_error(), Some(5), "EIO");
    assert_eq!(kept.sync_all().unwrap_err().raw_os_error(), Some(5), "EIO");
    assert!(File::create(at(dir.path(), "b")).is_err() && fs::remove_file(at(dir.path(), "a")).is_err());
    assert_eq!(fs::read(at(dir.path(), "a")).unwrap(), b"before");
    disk.fail(false);
    (&kept).write_all(b"after!").unwrap();
    kept.sync_all().unwrap();
    assert_eq!(fs::read(at(dir.path(), "a")).unwrap(), b"after!");
    drop((kept, disk));
}
