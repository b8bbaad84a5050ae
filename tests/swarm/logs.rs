//! Logs end to end: what a container wrote is what a reader gets, or the loss is counted.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use swarm_checker::{LogRead, Op, Verdict};
use swarm_client::LogOptions;
use swarm_protocol::state::JobState;
use swarm_protocol::{JobId, TaskId};

use crate::harness::{Log, PATIENCE, Proc, Setup, Swarm, eventually, log_read, now_us, report, rounds, shared};

#[test]
fn a_log_over_the_limit_is_cut_where_that_is_and_the_rest_is_counted() {
    let core_env = vec![("SWARM_CORE_LIMITS__LOG_BYTES", "65536")];
    let swarm = Swarm::start(Setup { core_env, ..Setup::default() });
    let job = swarm.submit(&swarm.shell("i=0; while [ $i -lt 9000 ]; do echo line $i of too many; i=$((i+1)); done"));
    let written: String = (0..9000).map(|line| format!("line {line} of too many\n")).collect();
    assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Succeeded);
    let (start, task) = (now_us(), TaskId { job, task: 0 });
    let log = swarm.log(task);
    assert!(written.as_bytes().starts_with(&log.stdout), "what is there is the beginning");
    assert!(log.cut_bytes > 0 && !log.cut_at_least, "{} bytes cut", log.cut_bytes);
    assert_eq!(log.stdout.len() as u64 + log.cut_bytes, written.len() as u64);
    swarm.recorder.add(start, Verdict::Ok, log_read(task, "stdout", written.as_bytes(), &log.stdout, &log));
    let shown = swarm.consumer(&["logs", &job.to_string()]);
    let note = format!("{} bytes", log.cut_bytes);
    assert!(String::from_utf8_lossy(&shown.stdout).contains(&note) || shown.stderr.contains(&note), "{shown:?}");
    swarm.judge("log over the limit", true);
}

#[test]
fn a_long_log_within_the_limit_is_whole() {
    let swarm = Swarm::start(Setup::default());
    // As many bytes as the engine's smallest files would not hold.
    let bytes = 6_144_000;
    let mut spec = swarm.shell(&format!("head -c {bytes} /dev/zero | od -v -w1024"));
    spec.resources.cpu_millis = 1000;
    let job = swarm.submit(&spec);
    let mut written = String::new();
    for offset in (0..bytes).step_by(1024) {
        written += &format!("{offset:07o}{}\n", " 000000".repeat(512));
    }
    written += &format!("{bytes:07o}\n");
    assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Succeeded);
    swarm.check_log(TaskId { job, task: 0 }, written.as_bytes(), b"");
    report(&format!("long log: {} bytes, every one there", written.len()));
    swarm.judge("long log", true);
}

/// What a follower of one log has printed so far.
struct Followed {
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Followed {
    fn new(swarm: &Swarm, name: &str) -> Self {
        let path = |stream: &str| swarm.home().join(format!("{name}.{stream}"));
        let followed = Self { stdout: path("stdout"), stderr: path("stderr") };
        for path in [&followed.stdout, &followed.stderr] {
            File::create(path).expect("a file can be made");
        }
        followed
    }

    /// Goes on with `logs -f` and these flags, killed when it has printed `more` bytes; without, to the log's end.
    fn follow(&self, swarm: &Swarm, job: &str, flags: &[&str], more: Option<u64>) {
        let mut child = self.start(swarm, job, flags);
        match more {
            Some(more) => {
                self.gets_on(more);
                child.kill().expect("a child can be killed");
                child.wait().expect("a child can be waited for");
            }
            None => to_the_end(child),
        }
    }

    /// Goes on with `logs -f` and these flags.
    fn start(&self, swarm: &Swarm, job: &str, flags: &[&str]) -> Child {
        let mut command = swarm.consumer_command(&[&["logs", "-f", "--attempt", "1", job], flags].concat());
        let append = |path: &Path| File::options().append(true).open(path).expect("a file can be opened");
        command.stdout(append(&self.stdout)).stderr(append(&self.stderr));
        command.spawn().expect("the consumer can be started")
    }

    /// Waits until so many more bytes were printed.
    fn gets_on(&self, more: u64) {
        let wanted = length(&self.stdout) + more;
        eventually("the follower gets on", PATIENCE, || (length(&self.stdout) >= wanted).then_some(()));
    }
}

fn to_the_end(mut child: Child) {
    let ended = || child.try_wait().expect("a child can be asked");
    let status = eventually("the follower ends", PATIENCE, ended);
    assert!(status.success(), "{status}");
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).expect("the file is there").len()
}

#[test]
fn a_follower_that_is_killed_and_started_again_misses_nothing_and_doubles_nothing() {
    let swarm = shared();
    let script = "i=0; while [ $i -lt 400 ]; do echo line $i; echo oops $i >&2; sleep 0.03; i=$((i+1)); done";
    let mut spec = swarm.shell(script);
    spec.resources.cpu_millis = 500;
    let job = swarm.submit(&spec);
    let (plain, json) = (Followed::new(&swarm, "plain"), Followed::new(&swarm, "json"));
    let word = job.to_string();
    let flags =
        |skip: [u64; 2]| ["--skip-stdout".into(), skip[0].to_string(), "--skip-stderr".into(), skip[1].to_string()];
    let mut from = 0;
    for round in 0..3 {
        let more = (round < 2).then_some(500);
        let skip = flags([length(&plain.stdout), length(&plain.stderr)]);
        plain.follow(&swarm, &word, &skip.each_ref().map(String::as_str), more);
        json.follow(&swarm, &word, &["--output", "json", "--from", &from.to_string()], more.map(|more| more * 10));
        from = keep_whole_lines(&json.stdout);
    }
    assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Succeeded);
    let lines = |word: &str| (0..400).map(|n| format!("{word} {n}\n")).collect::<String>();
    swarm.check_log(TaskId { job, task: 0 }, lines("line").as_bytes(), lines("oops").as_bytes());
    let printed = |path: &Path| std::fs::read_to_string(path).expect("text");
    assert_eq!(printed(&plain.stdout), lines("line"));
    assert_eq!(printed(&plain.stderr), lines("oops"));
    for (stream, word) in [("stdout", "line"), ("stderr", "oops")] {
        assert_eq!(text_of(&json.stdout, stream), lines(word));
    }
    swarm.judge("followers killed", false);
}

/// What a follower printed as JSON, of one stream.
fn text_of(path: &Path, stream: &str) -> String {
    let text = std::fs::read_to_string(path).expect("text");
    let records = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a record"));
    let of_stream = records.filter(|record| record["stream"] == stream);
    of_stream.map(|record| record["text"].as_str().expect("text").to_owned()).collect()
}

/// The core is killed three times: under a follower that lives on, under one that is killed before the core is back, and
/// under the one that goes on from there.
#[test]
fn a_follower_over_kills_of_the_core_and_of_itself_misses_nothing_and_doubles_nothing() {
    const LINES: u32 = 500;
    let swarm = Swarm::start(Setup::default());
    let script =
        format!("i=0; while [ $i -lt {LINES} ]; do echo line $i; echo oops $i >&2; sleep 0.03; i=$((i+1)); done");
    let mut spec = swarm.shell(&script);
    spec.resources.cpu_millis = 500;
    let job = swarm.submit(&spec);
    let (plain, json) = (Followed::new(&swarm, "plain"), Followed::new(&swarm, "json"));
    let word = job.to_string();
    let kill_core = || {
        swarm.fault("kill -9 of the core");
        swarm.core().take().expect("a core runs").kill();
    };
    let start = |from: u64| {
        let (skip, from) = (length(&plain.stdout).to_string(), from.to_string());
        let plain = plain.start(&swarm, &word, &["--skip-stdout", &skip]);
        [plain, json.start(&swarm, &word, &["--output", "json", "--from", &from])]
    };
    let get_on = || {
        plain.gets_on(300);
        json.gets_on(3000);
    };

    let clients = start(0);
    get_on();
    kill_core();
    swarm.start_core();
    get_on();
    kill_core();
    swarm.fault("kill -9 of the followers");
    for mut client in clients {
        client.kill().expect("a child can be killed");
        client.wait().expect("a child can be waited for");
    }
    let from = keep_whole_lines(&json.stdout);
    swarm.start_core();
    let clients = start(from);
    get_on();
    kill_core();
    let printed = || [&plain, &json].map(|followed| length(&followed.stdout));
    let before = printed();
    swarm.start_core();
    clients.into_iter().for_each(to_the_end);
    assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Succeeded);
    let lines = |word: &str| (0..LINES).map(|n| format!("{word} {n}\n")).collect::<String>();
    swarm.check_log(TaskId { job, task: 0 }, lines("line").as_bytes(), lines("oops").as_bytes());
    assert_eq!(std::fs::read_to_string(&plain.stdout).expect("text"), lines("line"));
    assert_eq!(text_of(&json.stdout, "stdout"), lines("line"));
    assert_eq!(text_of(&json.stdout, "stderr"), lines("oops"));
    assert!(printed().iter().zip(before).all(|(now, then)| *now > then), "all was printed before the last kill");
    swarm.judge("followers and core killed", true);
}

/// Takes off a line that was cut; the position after the last whole one.
fn keep_whole_lines(path: &Path) -> u64 {
    let text = std::fs::read_to_string(path).expect("text");
    let whole = &text[..text.rfind('\n').map_or(0, |at| at + 1)];
    std::fs::write(path, whole).expect("a file can be written");
    let last = whole.lines().last().expect("a record");
    serde_json::from_str::<serde_json::Value>(last).expect("a record")["next"].as_u64().expect("a position")
}

/// A reader who follows is told of new bytes, and does not only look for them: of all there was to see, half came well
/// within the pause between two looks.
#[test]
fn who_follows_a_log_sees_a_line_soon_after_it_was_written() {
    let swarm = Swarm::start(Setup::default());
    // Pauses of many lengths, lest they fit the times at which it would look anyway.
    let script = "for s in 0.35 0.9 0.5 1.1 0.65 0.8 1.3 0.4 0.55 1 0.6 0.45 1.2 0.85; do date +%s%N; sleep $s; done";
    let job = swarm.submit(&swarm.shell(script));
    swarm.wait_started(job, 1);
    let mut late_ms = swarm.block(async {
        let mut late_ms = Vec::new();
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let mut tail = swarm.client.log(TaskId { job, task: 0 }, options);
        while let Some(record) = tail.next().await.expect("the log can be followed") {
            let now_us = now_us();
            for line in String::from_utf8_lossy(&record.bytes).lines() {
                let written_us = line.parse::<i64>().expect("a time in nanoseconds") / 1000;
                late_ms.push((now_us - written_us) / 1000);
            }
        }
        late_ms
    });
    // What was written before the reader came is no measure of how soon it is told.
    late_ms.drain(..3);
    late_ms.sort_unstable();
    let (median, most) = (late_ms[late_ms.len() / 2], late_ms[late_ms.len() - 1]);
    report(&format!("a line written to a follower's screen: {median} ms in the median, {most} ms at most"));
    assert!(median < 100, "{late_ms:?} ms");
    assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Succeeded);
    swarm.judge("lines followed", true);
}

/// Resident memory of a process in bytes.
fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel counts it");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") << 10
}

#[test]
fn a_flood_of_output_stays_bounded_everywhere_and_is_counted() {
    let bytes: u64 = if rounds(2) > 1 { 10_000_000_000 } else { 200_000_000 };
    let core_env = vec![("SWARM_CORE_LIMITS__LOG_BYTES", "1048576")];
    let swarm = Swarm::start(Setup { core_env, ..Setup::default() });
    let job = swarm.submit(&swarm.shell(&format!("head -c {bytes} /dev/zero")));
    let pids = [swarm.core().as_ref().map(Proc::pid), swarm.worker().as_ref().map(Proc::pid)];
    let (mut peak, mut spooled, mut in_engine) = (0, 0, 0);
    let detail = swarm.expect(job, "it ends", Duration::from_secs(1800), || {
        peak = pids.iter().flatten().map(|pid| resident_bytes(*pid)).max().unwrap_or(0).max(peak);
        let log = swarm.home().join("worker/spool").join(format!("{job}.0.1")).join("log");
        spooled = std::fs::metadata(log).map_or(0, |file| file.len()).max(spooled);
        in_engine = engine_log_bytes(&swarm, job).max(in_engine);
        swarm.try_detail(job).filter(|detail| detail.job.state.is_final())
    });
    assert_eq!(detail.job.state, JobState::Succeeded);
    let (start, task) = (now_us(), TaskId { job, task: 0 });
    let log = swarm.log(task);
    assert!(log.stdout.iter().all(|byte| *byte == 0) && log.stdout.len() <= 1 << 20);
    let (kept, counted) = (log.stdout.len() as u64, log.cut_bytes);
    // Where the engine rotated its own files away, the count is a lower bound, and says so.
    let whole = if log.cut_at_least { kept + counted <= bytes } else { kept + counted == bytes };
    assert!(counted > 0 && whole, "{kept} kept, {counted} counted of {bytes}, at least: {}", log.cut_at_least);
    assert!(spooled <= 2 << 20, "{spooled} bytes in the worker's spool");
    // Two files of 16 MiB, and the one that is being packed when they are full.
    assert!((1 << 20..=48 << 20).contains(&in_engine), "{in_engine} bytes of log in the engine");
    assert!(peak < 400 << 20, "{} MiB of memory", peak >> 20);
    swarm.recorder.add(start, Verdict::Ok, Op::Log(read_of(task, bytes, &log)));
    report(&format!(
        "flood of {} MB: {kept} bytes kept, {counted} counted as cut (at least: {}), peak memory {} MiB, at most {spooled} \
         bytes in the spool and {in_engine} in the engine's files",
        bytes / 1_000_000,
        log.cut_at_least,
        peak >> 20
    ));
    swarm.judge("flood of output", true);
}

/// What the engine keeps of the log of a job's container, in files that only root sees.
fn engine_log_bytes(swarm: &Swarm, job: JobId) -> u64 {
    let label = format!("label=io.swarm-sync.job={job}");
    let swarm_label = format!("label=io.swarm-sync.swarm={}", swarm.id().unwrap_or_default());
    let words = ["ps", "--all", "--quiet", "--no-trunc", "--filter", &label, "--filter", &swarm_label];
    let container = swarm.docker().run(&words).unwrap_or_default();
    let root = swarm.docker().run(&["info", "--format", "{{.DockerRootDir}}"]).unwrap_or_default();
    let files = Path::new(root.trim()).join("containers").join(container.trim()).join("local-logs");
    let files = std::fs::read_dir(files).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
}

fn read_of(task: TaskId, written_bytes: u64, log: &Log) -> LogRead {
    LogRead {
        job: task.job.0,
        task: task.task,
        stream: "stdout".to_owned(),
        written_bytes,
        // A cut log is compared by its counts alone.
        written_digest: String::new(),
        read_bytes: log.stdout.len() as u64,
        read_digest: String::new(),
        cut_bytes: log.cut_bytes,
        cut_at_least: log.cut_at_least,
    }
}
