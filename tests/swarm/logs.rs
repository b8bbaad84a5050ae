//! Logs end to end: what a container wrote is what a reader gets, or the loss is counted.

use std::time::Duration;

use swarm_checker::{LogRead, Op, Verdict};
use swarm_protocol::TaskId;
use swarm_protocol::state::JobState;

use crate::harness::{Log, PATIENCE, Proc, Setup, Swarm, log_read, now_us, report, rounds};

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
    let (mut peak, mut spooled) = (0, 0);
    let detail = swarm.expect(job, "it ends", Duration::from_secs(1800), || {
        peak = pids.iter().flatten().map(|pid| resident_bytes(*pid)).max().unwrap_or(0).max(peak);
        let log = swarm.home().join("worker/spool").join(format!("{job}.0.1")).join("log");
        spooled = std::fs::metadata(log).map_or(0, |file| file.len()).max(spooled);
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
    assert!(peak < 400 << 20, "{} MiB of memory", peak >> 20);
    swarm.recorder.add(start, Verdict::Ok, Op::Log(read_of(task, bytes, &log)));
    report(&format!(
        "flood of {} MB: {kept} bytes kept, {counted} counted as cut (at least: {}), peak memory {} MiB",
        bytes / 1_000_000,
        log.cut_at_least,
        peak >> 20
    ));
    swarm.judge("flood of output", true);
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
