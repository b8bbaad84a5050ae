//! Files in and out of real containers: several, in directories, by glob, of every kind and owner.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use swarm_protocol::OutcomeKind;
use tar::EntryType;

use crate::harness::shared;

/// The names of a directory's files, with their bytes.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).expect("it is a directory").map(|entry| entry.expect("it can be read"));
    let name = |entry: &std::fs::DirEntry| entry.file_name().into_string().expect("a plain name");
    entries.map(|entry| (name(&entry), std::fs::read(entry.path()).expect("it is a file"))).collect()
}

#[test]
fn outputs_by_glob_are_the_regular_files_that_match() {
    let swarm = shared();
    let into = swarm.home().join("by-glob");
    let script = "cd /out && mkdir sub empty.csv && echo a > a.csv && echo b > sub/b.csv && echo no > c.txt && \
                  ln a.csv link.csv && ln -s a.csv soft.csv && mkfifo pipe.csv && chmod 640 a.csv";
    let flags = ["-o", "/out/**/*.csv", "-o", "/out/a*", "--into", into.to_str().unwrap()];
    let (ended, job) = swarm.run(&flags, &["sh", "-c", script]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let expected = [("a.csv", "a\n"), ("b.csv", "b\n"), ("link.csv", "a\n")];
    let expected = expected.map(|(name, bytes)| (name.to_owned(), bytes.as_bytes().to_vec()));
    assert_eq!(files(&into), BTreeMap::from(expected));
    let attempt = swarm.task(job).attempts.remove(0);
    let paths: Vec<_> = attempt.outputs.iter().map(|output| (output.path.as_str(), output.mode)).collect();
    assert_eq!(paths, [("/out/a.csv", 0o640), ("/out/link.csv", 0o640), ("/out/sub/b.csv", 0o644)]);

    let (ended, job) = swarm.run(&["-o", "/out/*.csv"], &["sh", "-c", "echo x > /out/x.txt"]);
    assert_ne!(ended.code, Some(0));
    let attempt = swarm.task(job).attempts.remove(0);
    assert_eq!(attempt.outcome, Some(OutcomeKind::OutputMissing));
    assert!(attempt.detail.is_some_and(|why| why.contains("/out/*.csv: no file of the container matches")));
    swarm.judge("outputs by glob", false);
}

#[test]
fn inputs_and_directories_keep_modes_and_kinds_for_whoever_runs() {
    let swarm = shared();
    let [one, two, into] = ["one.sh", "two", "tree"].map(|name| swarm.home().join(name));
    std::fs::write(&one, "#!/bin/sh\necho ran as $(id -u)\n").unwrap();
    std::fs::set_permissions(&one, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(&two, "two").unwrap();
    let inputs = [format!("{}:/in/one.sh", one.display()), format!("{}:/data/deep/two", two.display())];
    let script = "/in/one.sh && stat -c '%a %u' /data/deep/two && mkdir -p /out/tree/sub && cd /out/tree && \
                  cp /data/deep/two sub/two && chmod 600 sub/two && ln -s sub/two soft && mkfifo pipe && \
                  truncate -s 30000000 sparse && echo end >> sparse";
    let user = ["--user", "4321:4322", "-o", "/out/tree", "--into", into.to_str().unwrap()];
    let flags = [&["-i", &inputs[0], "-i", &inputs[1]], &user[..]].concat();
    let (ended, _) = swarm.run(&flags, &["sh", "-c", script]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(String::from_utf8_lossy(&ended.stdout), "ran as 4321\n644 4321\n");
    let mut archive = tar::Archive::new(std::fs::File::open(into.join("tree.tar")).expect("the directory was kept"));
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let (path, header) = (entry.path().unwrap().display().to_string(), entry.header().clone());
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(4)..]).into_owned();
        let facts = (header.entry_type(), header.mode().unwrap() & 0o777, header.uid().unwrap(), bytes.len(), tail);
        found.insert(path, facts);
    }
    let facts = |kind, mode, length, tail: &str| (kind, mode, 4321, length, tail.to_owned());
    let expected = [
        ("tree/", facts(EntryType::Directory, 0o755, 0, "")),
        ("tree/pipe", facts(EntryType::Fifo, 0o644, 0, "")),
        ("tree/soft", facts(EntryType::Symlink, 0o777, 0, "")),
        ("tree/sparse", facts(EntryType::Regular, 0o644, 30_000_004, "end\n")),
        ("tree/sub/", facts(EntryType::Directory, 0o755, 0, "")),
        ("tree/sub/two", facts(EntryType::Regular, 0o600, 3, "two")),
    ];
    assert_eq!(found, expected.map(|(path, facts)| (path.to_owned(), facts)).into());
    swarm.judge("kinds of files", false);
}
