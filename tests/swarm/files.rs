//! Files in and out of real containers: several, in directories, by glob, of every kind and owner.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use swarm_protocol::OutcomeKind;
use tar::EntryType;

use crate::harness::{report, shared};

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

/// Lets connections to `to` pass, but cuts one off when `left` bytes went there; the address to connect to, and how many
/// bytes went there in all.
fn cutting_proxy(to: &str, left: u64) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it has an address").to_string();
    let (sent, cut_at) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(left)));
    let (to, total) = (to.to_owned(), Arc::clone(&sent));
    std::thread::spawn(move || {
        for from in listener.incoming().map_while(Result::ok) {
            let core = TcpStream::connect(&to).expect("the core listens");
            let (mut back, mut front) = (core.try_clone().unwrap(), from.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut back, &mut front));
            let (total, cut_at) = (Arc::clone(&total), Arc::clone(&cut_at));
            std::thread::spawn(move || pass(from, core, &total, &cut_at));
        }
    });
    (address, sent)
}

fn pass(mut from: TcpStream, mut to: TcpStream, total: &AtomicU64, cut_at: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let sent = total.fetch_add(count as u64, Ordering::SeqCst) + count as u64;
        if to.write_all(&buffer[..count]).is_err() || sent > cut_at.load(Ordering::SeqCst) {
            cut_at.store(u64::MAX, Ordering::SeqCst);
            break;
        }
    }
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

#[test]
fn an_upload_that_breaks_off_goes_on_where_it_was() {
    let swarm = shared();
    let bytes: Vec<u8> = (0..5_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let path = swarm.home().join("broken-off");
    std::fs::write(&path, &bytes).unwrap();
    let (address, sent) = cutting_proxy(&swarm.address, 12_000_000);
    let client = swarm.client_at(&format!("http://{address}"));
    let progress = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&progress);
    let note = Arc::new(move |bytes| told.lock().unwrap().push(bytes));
    let file = swarm.block(client.upload_file(&path, note)).expect("it arrives at last");
    assert_eq!((file.digest, file.size_bytes), (swarm_protocol::Digest::of(&bytes), 20_000_000));
    let sent = sent.load(Ordering::SeqCst);
    report(&format!("upload of 20,000,000 bytes cut off at 12,000,000: {sent} bytes sent in all"));
    assert!(sent < 24_000_000, "it began again: {sent} bytes");
    assert_eq!(progress.lock().unwrap().last(), Some(&20_000_000));
    let input = format!("{}:/in/data", path.display());
    let (ended, _) = swarm.run(&["-i", &input], &["sh", "-c", "wc -c < /in/data"]);
    assert_eq!(String::from_utf8_lossy(&ended.stdout).trim(), "20000000", "{}", ended.stderr);
    swarm.judge("upload cut off", false);
}
