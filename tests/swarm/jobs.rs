//! What users do with jobs, on one shared swarm.

use std::sync::Arc;
use std::time::Duration;

use swarm_protocol::api::TaskPhase;
use swarm_protocol::spec::{Input, Retries};
use swarm_protocol::state::JobState;
use swarm_protocol::{OutcomeKind, TaskId, TaskRange};

use crate::harness::{NOISE, PATIENCE, Setup, Swarm, noise, report, rounds, shared};

#[test]
fn an_input_becomes_an_output_byte_for_byte() {
    let swarm = shared();
    for round in 0..rounds(20) {
        let bytes = noise(1_500_001, round as u8);
        let (file, into) = (swarm.home().join(format!("in-{round}.bin")), swarm.home().join(format!("into-{round}")));
        std::fs::write(&file, &bytes).unwrap();
        let input = format!("{}:/in/data", file.display());
        let flags = ["-i", &input, "-o", "/out/result", "--into", into.to_str().unwrap()];
        let (ended, job) = swarm.run(&flags, &["sh", "-c", "cat /in/data > /out/result"]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(std::fs::read(into.join("result")).unwrap() == bytes, "the output is not what the job wrote");
        let view = swarm.task(job);
        assert_eq!(view.attempts[0].outputs[0].size_bytes, bytes.len() as u64);
    }
    swarm.judge("input to output", false);
}

#[test]
fn a_failing_jobs_exit_code_is_that_of_run() {
    let swarm = shared();
    for code in [1u8, 7, 42, 200] {
        let script = format!("echo to-out; echo to-err >&2; exit {code}");
        let (ended, job) = swarm.run(&[], &["sh", "-c", &script]);
        assert_eq!(ended.code, Some(code.into()), "{}", ended.stderr);
        assert_eq!(ended.stdout, b"to-out\n", "{}", ended.stderr);
        assert!(ended.stderr.contains("to-err"), "{}", ended.stderr);
        let view = swarm.task(job);
        assert_eq!((view.outcome, view.exit_code), (Some(OutcomeKind::Failed), Some(code.into())));
        swarm.check_log(TaskId { job, task: 0 }, b"to-out\n", b"to-err\n");
    }
    let (ended, _) = swarm.run(&[], &["no-such-program"]);
    assert!(matches!(ended.code, Some(126 | 127)), "{ended:?}");
    assert!(ended.stderr.contains("no-such-program"), "{}", ended.stderr);
    swarm.judge("exit codes", false);
}

#[test]
fn each_task_of_an_array_finds_its_own_index() {
    let swarm = shared();
    let mut spec = swarm.shell("echo \"$SWARM_JOB_ID $SWARM_TASK_INDEX $SWARM_ATTEMPT\"");
    spec.array = TaskRange::new(0, 19);
    let job = swarm.submit(&spec);
    let detail = swarm.wait_ended(job, Duration::from_secs(180));
    assert_eq!((detail.job.state, detail.job.tasks.succeeded), (JobState::Succeeded, 20));
    for task in 0..20 {
        let id = TaskId { job, task };
        assert_eq!(swarm.task_of(id).attempts.len(), 1);
        swarm.check_log(id, format!("{job} {task} 1\n").as_bytes(), b"");
    }
    swarm.judge("array of 20", false);
}

#[test]
fn logs_are_kept_byte_for_byte() {
    let swarm = shared();
    // Every byte value, no final newline, one very long line, nothing at all.
    let cases: [(Vec<u8>, Vec<u8>); 4] = [
        (noise(300_000, 1), noise(70_000, 2)),
        (b"no newline at the end".to_vec(), vec![0xff, 0x00, 0x1b, b'[', b'2', b'J', 0x9b]),
        (vec![b'x'; 200_000], Vec::new()),
        (Vec::new(), b"\n\n\r\n".to_vec()),
    ];
    for (stdout, stderr) in cases {
        let mut spec = swarm.shell("cat /in/out; cat /in/err >&2");
        for (name, bytes) in [("out", &stdout), ("err", &stderr)] {
            let file = swarm.home().join(format!("log-{name}"));
            std::fs::write(&file, bytes).unwrap();
            let uploaded = swarm.block(swarm.client.upload_file(&file, Arc::new(|_| ()))).unwrap();
            spec.inputs.push(Input {
                digest: uploaded.digest,
                path: format!("/in/{name}"),
                mode: 0o644,
                unpack: false,
            });
        }
        let job = swarm.submit(&spec);
        assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Succeeded);
        let task = TaskId { job, task: 0 };
        swarm.check_log(task, &stdout, &stderr);
        // Through the command line, into files, they are the same.
        let ended = swarm.consumer(&["logs", &job.to_string()]);
        assert!(ended.stdout == stdout, "`logs` printed {} bytes of {}", ended.stdout.len(), stdout.len());
    }
    swarm.judge("logs byte for byte", false);
}

#[test]
fn short_containers_lose_no_byte_of_their_log() {
    let count = 500 * rounds(20);
    // So many would keep the jobs of other scenarios waiting.
    let swarm = Swarm::start(Setup::default());
    let began = std::time::Instant::now();
    // Each magnitude in turn, from nothing to 1 MiB, and no newline at the end.
    let script = "m=$((1 << SWARM_TASK_INDEX % 21)); n=$((m / 2 + SWARM_TASK_INDEX * 7919 % (m / 2 + 1))); \
                  [ $n -eq 0 ] || { head -c $((n - 1)) /etc/noise; printf .; }";
    let bytes_of = |task: u32| {
        let half = (1 << (task % 21)) / 2;
        half + task * 7919 % (half + 1)
    };
    let mut spec = swarm.shell(script);
    spec.array = TaskRange::new(0, count - 1);
    let job = swarm.submit(&spec);
    let detail = swarm.wait_ended(job, Duration::from_secs(300 + u64::from(count)));
    let took = began.elapsed().as_secs_f64();
    assert_eq!(detail.job.tasks.succeeded, u64::from(count));
    let (mut written, mut bytes) = (noise(NOISE, 0), 0);
    for task in 0..count {
        let Some(last) = bytes_of(task).checked_sub(1).map(|last| last as usize) else {
            swarm.check_log(TaskId { job, task }, b"", b"");
            continue;
        };
        bytes += last + 1;
        let noisy = std::mem::replace(&mut written[last], b'.');
        swarm.check_log(TaskId { job, task }, &written[..=last], b"");
        written[last] = noisy;
    }
    report(&format!("short containers: {count} in {took:.1} s, {bytes} bytes written and found again"));
    swarm.judge("short containers", false);
}

#[test]
fn a_running_job_is_cancelled() {
    let swarm = shared();
    let job = swarm.submit(&swarm.shell("echo begun; sleep 600"));
    swarm.wait_started(job, 1);
    let ended = swarm.consumer(&["cancel", &job.to_string()]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let detail = swarm.wait_ended(job, Duration::from_secs(45));
    assert_eq!((detail.job.state, detail.job.tasks.cancelled), (JobState::Cancelled, 1));
    swarm.check_log(TaskId { job, task: 0 }, b"begun\n", b"");
    // Again changes nothing.
    assert_eq!(swarm.consumer(&["cancel", &job.to_string()]).code, Some(0));
    // A code that tells of the job: the container's own would say that it was killed.
    assert_eq!(swarm.consumer(&["wait", &job.to_string()]).code, Some(8));
    swarm.judge("cancel of a running job", false);
}

#[test]
fn a_job_that_fits_nowhere_says_why_and_can_be_cancelled() {
    let swarm = shared();
    let mut spec = swarm.shell("true");
    spec.resources.memory_bytes = 1 << 44;
    spec.array = TaskRange::new(0, 99);
    let job = swarm.submit(&spec);
    let why = swarm.expect(job, "its wait is explained", PATIENCE, || {
        let why = swarm.block(swarm.client.why(job)).ok()?;
        why.reasons.iter().any(|reason| reason.code == "memory").then_some(why)
    });
    assert_eq!(why.state, JobState::Waiting);
    let printed = swarm.consumer(&["why", &job.to_string()]);
    assert!(String::from_utf8_lossy(&printed.stdout).contains("memory"), "{printed:?}");
    // It blocks nobody else.
    let small = swarm.submit(&swarm.shell("true"));
    assert_eq!(swarm.wait_ended(small, PATIENCE).job.state, JobState::Succeeded);
    assert_eq!(swarm.consumer(&["cancel", &job.to_string()]).code, Some(0));
    let detail = swarm.wait_ended(job, PATIENCE);
    assert_eq!((detail.job.state, detail.job.tasks.cancelled), (JobState::Cancelled, 100));
    assert!(swarm.task(job).attempts.is_empty());
    swarm.judge("cancel of a waiting job", false);
}

#[test]
fn a_job_that_runs_too_long_is_ended() {
    let swarm = shared();
    let (ended, job) = swarm.run(&["--timeout", "2s"], &["sh", "-c", "echo begun; sleep 600"]);
    assert_eq!(ended.code, Some(124), "{}", ended.stderr);
    let view = swarm.task(job);
    assert_eq!((view.outcome, view.attempts.len()), (Some(OutcomeKind::TimedOut), 1));
    let ran = view.attempts[0].ran_ms.expect("it ran");
    assert!((2_000..30_000).contains(&ran), "it ran {ran} ms");
    swarm.check_log(TaskId { job, task: 0 }, b"begun\n", b"");
    swarm.judge("timeout", false);
}

#[test]
fn a_job_that_takes_too_much_memory_is_told_so() {
    let swarm = shared();
    let job = ["dd", "if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"];
    let (ended, job) = swarm.run(&["--memory", "16MiB"], &job);
    assert_eq!(ended.code, Some(137), "{}", ended.stderr);
    assert!(ended.stderr.contains("memory"), "{}", ended.stderr);
    assert_eq!(swarm.task(job).outcome, Some(OutcomeKind::OutOfMemory));
    swarm.judge("out of memory", false);
}

#[test]
fn retries_end_with_the_first_success_or_the_last_failure() {
    let swarm = shared();
    let mut spec = swarm.shell("echo attempt $SWARM_ATTEMPT; [ $SWARM_ATTEMPT = 3 ]");
    spec.retries = Retries { lost: 2, failed: 2 };
    let good = swarm.submit(&spec);
    spec.retries.failed = 1;
    let bad = swarm.submit(&spec);
    assert_eq!(swarm.wait_ended(good, Duration::from_secs(180)).job.state, JobState::Succeeded);
    assert_eq!(swarm.wait_ended(bad, Duration::from_secs(180)).job.state, JobState::Failed);
    for (job, attempts) in [(good, 3), (bad, 2)] {
        let view = swarm.task(job);
        assert_eq!(view.attempts.len(), attempts);
        let finals: Vec<_> = view.attempts.iter().filter(|attempt| attempt.is_final).collect();
        assert!(finals.len() == 1 && usize::from(finals[0].attempt) == attempts, "{view:?}");
        swarm.check_log(TaskId { job, task: 0 }, format!("attempt {attempts}\n").as_bytes(), b"");
    }
    swarm.judge("retries", false);
}

#[test]
fn jobs_are_not_root_unless_policy_allows_it() {
    let swarm = shared();
    let (ended, job) = swarm.run(&[], &["sh", "-c", "id -u; id -g"]);
    assert_eq!((ended.code, ended.stdout.as_slice()), (Some(0), b"65534\n65534\n".as_slice()), "{}", ended.stderr);
    swarm.check_log(TaskId { job, task: 0 }, b"65534\n65534\n", b"");
    let (ended, _) = swarm.run(&["--user", "1234:5678"], &["sh", "-c", "id -u; id -g"]);
    assert_eq!(ended.stdout, b"1234\n5678\n", "{}", ended.stderr);
    let mut spec = swarm.shell("id -u");
    spec.user = Some("0".into());
    let said = match swarm.try_submit(&spec) {
        Err(error) => error.to_string(),
        Ok(job) => {
            assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Failed);
            let view = swarm.task(job);
            assert_eq!(view.outcome, Some(OutcomeKind::Refused));
            view.detail.expect("a refusal says why")
        }
    };
    assert!(said.contains("root"), "{said}");
    swarm.judge("users of containers", false);
}

#[test]
fn what_docker_makes_of_entrypoint_workdir_and_environment_holds() {
    let swarm = shared();
    let flags = ["--entrypoint", "sh", "--workdir", "/tmp", "-e", "A=b c", "-e", "EMPTY="];
    let (ended, _) = swarm.run(&flags, &["-c", "pwd; echo \"$A|$EMPTY|$FROM_IMAGE\"; env | cat > /dev/null"]);
    assert_eq!(ended.stdout, b"/tmp\nb c||yes\n", "{}", ended.stderr);
    // Without a command the image's own runs.
    let (ended, _) = swarm.run(&[], &[]);
    assert_eq!(ended.stdout, b"image command\n", "{}", ended.stderr);
    swarm.judge("entrypoint, workdir, environment", false);
}

#[test]
fn a_delayed_job_starts_at_its_time_and_not_before() {
    let swarm = shared();
    let mut spec = swarm.shell("true");
    let start_at = chrono::DateTime::from_timestamp_micros(crate::harness::now_us() + 4_000_000).unwrap();
    spec.start_at = Some(start_at);
    let job = swarm.submit(&spec);
    assert_eq!(swarm.detail(job).job.state, JobState::Delayed);
    assert_eq!(swarm.task(job).phase, TaskPhase::Waiting);
    assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Succeeded);
    let started = swarm.task(job).attempts[0].started_at.expect("it started");
    let late_ms = (started - start_at).num_milliseconds();
    assert!((0..20_000).contains(&late_ms), "it started {late_ms} ms after its time");
    report(&format!("delayed job: container started {late_ms} ms after its time"));
    swarm.judge("delayed job", false);
}
