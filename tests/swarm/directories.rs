//! Directories as inputs of real containers.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use swarm_protocol::spec::Input;
use swarm_protocol::{Digest, OutcomeKind};
use tar::EntryType;

use crate::harness::{PATIENCE, Swarm, report, run, shared};

const LARGE_BYTES: usize = 20_000_000;

/// Nested, with an executable, links, nothing, something private, and a large file; the digest of the latter.
fn make_tree(root: &Path) -> Digest {
    let write = |name: &str, bytes: &[u8], mode| {
        let path = root.join(name);
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for dir in ["sub/deep", "empty", "private"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    let large: Vec<u8> = (0..LARGE_BYTES as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    write("large", &large, 0o644);
    write("notes", b"first\n", 0o600);
    write("sub/run.sh", b"#!/bin/sh\necho ran as $(id -u)\n", 0o750);
    write("sub/deep/read-only", b"deep\n", 0o444);
    symlink("deep/read-only", root.join("sub/soft")).unwrap();
    symlink("../sub", root.join("empty/up")).unwrap();
    std::fs::set_permissions(root.join("private"), std::fs::Permissions::from_mode(0o700)).unwrap();
    Digest::of(&large)
}

#[test]
fn a_directory_goes_in_with_all_that_it_holds_and_belongs_to_whoever_runs() {
    let swarm = shared();
    let (tree, into) = (swarm.home().join("tree"), swarm.home().join("tree-out"));
    let large = make_tree(&tree);
    let input = format!("{}:/data/tree", tree.display());
    let script = "cd /data/tree && sub/run.sh && stat -c '%n %a %u %g' . empty private sub/run.sh sub/deep/read-only && \
                  test -L sub/soft && test -L empty/up && cat empty/up/soft && echo more >> notes && echo new > empty/made && \
                  echo secret > private/x && cp notes empty/made result && \
                  sha256sum < large && ls -A /data/tree | wc -l";
    let flags =
        ["--user", "4321:4322", "-i", &input, "-o", "/data/tree/result", "-o", "/data/tree/new/deep/x", "--into"];
    // A directory of an output is there, whether the input had it or not.
    let script = script.replace("cp notes", "mkdir result && echo x > new/deep/x && cp notes");
    let (ended, job) = swarm.run(&[&flags[..], &[into.to_str().unwrap()]].concat(), &["sh", "-c", &script]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let expected = "ran as 4321\n. 755 4321 4322\nempty 755 4321 4322\nprivate 700 4321 4322\nsub/run.sh 750 4321 4322\n\
                    sub/deep/read-only 444 4321 4322\ndeep\n";
    let expected = format!("{expected}{}  -\n7\n", large.hex());
    assert_eq!(String::from_utf8_lossy(&ended.stdout), expected);
    let shown = swarm.consumer(&["show", &job.to_string()]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("/data/tree/ (directory "), "{shown:?}");

    // What was kept of a directory goes in as one again, and out again as a whole.
    let again = format!("{}:/x/again/", into.join("result.tar").display());
    let flags = ["-i", &again, "-o", "/x/again", "--into", into.to_str().unwrap()];
    let (ended, _) = swarm.run(&flags, &["sh", "-c", "cd /x/again/result && cat notes made && touch mine"]);
    assert_eq!(
        (ended.code, &*String::from_utf8_lossy(&ended.stdout)),
        (Some(0), "first\nmore\nnew\n"),
        "{}",
        ended.stderr
    );
    let mut whole = tar::Archive::new(std::fs::File::open(into.join("again.tar")).expect("it was kept"));
    let names: BTreeSet<_> =
        whole.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    let expected = ["again/", "again/result/", "again/result/made", "again/result/mine", "again/result/notes"];
    assert_eq!(names, expected.map(str::to_owned).into());

    // Equal content is one blob, whenever it was written.
    let copy = swarm.home().join("tree-copy");
    make_tree(&copy);
    let input = format!("{}:/elsewhere", copy.display());
    let (ended, other) = swarm.run(&["-i", &input], &["true"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let digest = |job| swarm.detail(job).spec.inputs[0].digest;
    assert_eq!(digest(job), digest(other));
    swarm.judge("directories", false);
}

#[test]
fn what_cannot_go_in_is_named_before_anything_is_sent() {
    let swarm = shared();
    let tree = swarm.home().join("strange");
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    symlink("/etc", tree.join("sub/etc")).unwrap();
    let input = tree.to_str().unwrap();
    let ended = swarm.consumer(&["run", "-i", input, &swarm.image, "true"]);
    assert!(ended.code == Some(125) && ended.stderr.contains("sub/etc (a link that leads out of it)"), "{ended:?}");
}

/// An archive with this one entry, as no honest client packs it.
fn hostile(kind: EntryType, name: &str, link: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_cksum();
    tar.append(&header, std::io::empty()).unwrap();
    tar.into_inner().unwrap()
}

fn unpacking(swarm: &Swarm, name: &str, bytes: &[u8]) -> swarm_protocol::JobId {
    let file = swarm.home().join(name);
    std::fs::write(&file, bytes).unwrap();
    let digest = swarm.block(swarm.client.upload_file(&file, Arc::new(|_| ()))).unwrap().digest;
    let mut spec = swarm.shell("ls /data");
    spec.inputs.push(Input { digest, path: "/data".into(), mode: 0o644, unpack: true });
    swarm.submit(&spec)
}

#[test]
fn a_hostile_archive_ends_its_own_job_and_nothing_else() {
    let swarm = shared();
    let whole = hostile(EntryType::Regular, "fine", "");
    let cases = [
        (hostile(EntryType::Regular, "../../../etc/passwd", ""), "`../../../etc/passwd` is not a plain path"),
        (hostile(EntryType::Symlink, "out", "/var/lib"), "`out` is a link that leads out"),
        (hostile(EntryType::Link, "hard", "/etc/shadow"), "`hard` is a further name"),
        (hostile(EntryType::Char, "null", ""), "`null` is neither"),
        (whole[..700].to_vec(), "ended early"),
        (vec![b'x'; 5000], "checksum"),
    ];
    for (n, (bytes, words)) in cases.iter().enumerate() {
        let job = unpacking(&swarm, &format!("hostile-{n}.tar"), bytes);
        swarm.wait_ended(job, PATIENCE);
        let task = swarm.task(job);
        let detail = task.detail.clone().unwrap_or_default();
        assert_eq!((task.outcome, task.attempts.len()), (Some(OutcomeKind::Refused), 1), "{task:?}");
        assert!(detail.contains("the input /data cannot be unpacked") && detail.contains(words), "{words}: {detail}");
    }
    let job = unpacking(&swarm, "fine.tar", &whole);
    swarm.wait_ended(job, PATIENCE);
    assert_eq!(swarm.task(job).outcome, Some(OutcomeKind::Succeeded));
    swarm.judge("hostile archives", false);
}

#[test]
fn a_directory_of_many_files_goes_in_within_a_minute() {
    const FILES: usize = 5_000;
    let swarm = shared();
    let tree = swarm.home().join("many");
    for n in 0..FILES {
        let dir = tree.join(format!("{:02}", n % 50));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(n.to_string()), n.to_string()).unwrap();
    }
    let input = format!("{}:/many", tree.display());
    let began = std::time::Instant::now();
    let command =
        swarm.consumer_command(&["submit", "-i", &input, &swarm.image, "sh", "-c", "set -- /many/*/*; echo $#"]);
    let start = crate::harness::now_us();
    let ended = run(command, swarm.home(), Duration::from_secs(60));
    let job = String::from_utf8_lossy(&ended.stdout).trim().parse().map(swarm_protocol::JobId).expect("a job");
    swarm.note_submitted(job, start);
    swarm.wait_ended(job, PATIENCE);
    report(&format!(
        "a directory of {FILES} files: {:.1} s from packing to the job's end",
        began.elapsed().as_secs_f64()
    ));
    swarm.check_log(swarm_protocol::TaskId { job, task: 0 }, format!("{FILES}\n").as_bytes(), b"");
    swarm.judge("many files", false);
}
