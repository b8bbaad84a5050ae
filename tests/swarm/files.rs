//! Files in and out of real containers: several, in directories, by glob, of every kind and owner.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use swarm_protocol::spec::{Input, Output};
use swarm_protocol::state::JobState;
use swarm_protocol::{Digest, OutcomeKind, TaskId};
use tar::EntryType;

use crate::harness::{Proc, Setup, Swarm, either, noise, report, run, shared};

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
    assert_eq!((file.digest, file.size_bytes), (Digest::of(&bytes), 20_000_000));
    let sent = sent.load(Ordering::SeqCst);
    report(&format!("upload of 20,000,000 bytes cut off at 12,000,000: {sent} bytes sent in all"));
    assert!(sent < 24_000_000, "it began again: {sent} bytes");
    assert_eq!(progress.lock().unwrap().last(), Some(&20_000_000));
    let input = format!("{}:/in/data", path.display());
    let (ended, _) = swarm.run(&["-i", &input], &["sh", "-c", "wc -c < /in/data"]);
    assert_eq!(String::from_utf8_lossy(&ended.stdout).trim(), "20000000", "{}", ended.stderr);
    swarm.judge("upload cut off", false);
}

#[test]
fn an_output_that_is_missing_or_over_the_bound_is_named_with_the_bound() {
    let core_env = vec![("SWARM_CORE_LIMITS__OUTPUT_BYTES", "1000000")];
    let swarm = Swarm::start(Setup { core_env, ..Setup::default() });
    let flags = ["-o", "/out/small", "-o", "/out/big"];
    let cases = [
        (
            "head -c 600000 /etc/noise > /out/small; head -c 400001 /etc/noise > /out/big",
            "/out/big: it has more than the 400000 bytes",
        ),
        ("head -c 600000 /etc/noise > /out/small", "/out/big: the container did not leave it there"),
    ];
    for (script, words) in cases {
        let (ended, job) = swarm.run(&flags, &["sh", "-c", script]);
        assert!(ended.code != Some(0) && ended.stderr.contains(words), "{ended:?}");
        let attempt = swarm.task(job).attempts.remove(0);
        assert_eq!(attempt.outcome, Some(OutcomeKind::OutputMissing));
        assert!(attempt.detail.as_ref().is_some_and(|why| why.contains(words)), "{attempt:?}");
    }
    let (ended, _) = swarm
        .run(&flags, &["sh", "-c", "head -c 600000 /etc/noise > /out/small; head -c 400000 /etc/noise > /out/big"]);
    assert_eq!(ended.code, Some(0), "exactly the bound is not over it: {}", ended.stderr);
    swarm.judge("outputs over the bound", true);
}

/// A figure of a process's memory in bytes, such as `VmRSS`.
fn memory_bytes(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line =
        status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("the kernel counts it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// Writes a file of so many bytes of which no part repeats another; their digest.
fn write_large(path: &Path, bytes: u64) -> Digest {
    const BLOCK: usize = 1 << 20;
    let (mut file, mut block) = (std::fs::File::create(path).expect("a file can be made"), noise(BLOCK, 7));
    let mut hasher = Sha256::new();
    for at in 0..bytes / BLOCK as u64 {
        block[..8].copy_from_slice(&at.to_le_bytes());
        hasher.update(&block);
        file.write_all(&block).expect("a file can be written");
    }
    Digest(hasher.finalize().into())
}

fn digest_of(path: &Path) -> Digest {
    let (mut file, mut block) = (std::fs::File::open(path).expect("the file is there"), vec![0; 1 << 20]);
    let mut hasher = Sha256::new();
    while let count @ 1.. = file.read(&mut block).expect("it can be read") {
        hasher.update(&block[..count]);
    }
    Digest(hasher.finalize().into())
}

/// In, over an upload that breaks off in its middle, and out again.
#[test]
fn a_file_far_larger_than_what_core_and_worker_keep_in_memory_goes_in_and_out() {
    let mib: u64 = either(64, 1024);
    let bytes = mib << 20;
    /// An unoptimised program on a busy machine seals some megabytes a second.
    const MINUTES: Duration = Duration::from_secs(1800);
    let swarm = Swarm::start(Setup::default());
    let (file, into) = (swarm.home().join("large"), swarm.home().join("large-out"));
    let digest = write_large(&file, bytes);
    let pid = |part: &Option<Proc>| part.as_ref().expect("it runs").pid();
    let pids = [pid(&swarm.core()), pid(&swarm.worker())];
    // From here on the kernel keeps the peak anew.
    for pid in pids {
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("the peak can be reset");
    }
    let before = pids.map(|pid| memory_bytes(pid, "VmRSS"));
    let began = Instant::now();
    let (address, sent) = cutting_proxy(&swarm.address, bytes / 2);
    let client = swarm.client_at(&format!("http://{address}"));
    let uploaded = swarm.block(client.upload_file(&file, Arc::new(|_| ()))).expect("it arrives at last");
    assert_eq!((uploaded.digest, uploaded.size_bytes), (digest, bytes));
    // On a machine that is far too busy it begins anew, as the core still writes what came.
    let sent = sent.load(Ordering::SeqCst);
    assert!(sent > bytes, "{sent} bytes were sent of {bytes}: it was not cut off");
    let went_in = began.elapsed();
    let mut spec = swarm.shell("sha256sum < /in/large; cat /in/large > /out/large");
    spec.resources.cpu_millis = 1000;
    spec.inputs.push(Input { digest, path: "/in/large".into(), mode: 0o644, unpack: false });
    spec.outputs.push(Output { path: "/out/large".into() });
    let job = swarm.submit(&spec);
    assert_eq!(swarm.wait_ended(job, MINUTES).job.state, JobState::Succeeded);
    let in_container = String::from_utf8(swarm.log(TaskId { job, task: 0 }).stdout).expect("text");
    assert_eq!(in_container.split_whitespace().next(), Some(digest.hex().as_str()), "what the container was given");
    let attempt = swarm.task(job).attempts.remove(0);
    let output = &attempt.outputs[0];
    assert_eq!((output.digest, output.size_bytes), (digest, bytes), "what the core was given");
    let ran = began.elapsed() - went_in;
    std::fs::remove_file(&file).expect("it is not needed any more");
    let fetch = ["fetch", &job.to_string(), "--into", into.to_str().unwrap()];
    let ended = run(swarm.consumer_command(&fetch), swarm.home(), MINUTES);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let came_out = began.elapsed() - went_in - ran;
    assert_eq!(digest_of(&into.join("large")), digest, "what came back");
    let peaks = pids.map(|pid| memory_bytes(pid, "VmHWM"));
    let rate = |time: Duration| mib as f64 / time.as_secs_f64();
    report(&format!(
        "{mib} MiB in and out: {:.1} MiB/s to the core ({} MiB, as it was cut off once), {:.1} through a job, {:.1} back",
        rate(went_in),
        sent >> 20,
        rate(ran),
        rate(came_out)
    ));
    for (part, (before, peak)) in ["core", "worker"].iter().zip(before.into_iter().zip(peaks)) {
        report(&format!(
            "{mib} MiB in and out: memory of the {part} {} MiB before, {} MiB at most",
            before >> 20,
            peak >> 20
        ));
        assert!(peak - before < 32 << 20, "the {part} took {} MiB more for {mib} MiB", (peak - before) >> 20);
    }
    swarm.judge("large file", true);
}
