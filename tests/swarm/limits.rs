//! What a job may use, enforced in real containers, and what it used.

use swarm_protocol::api::AttemptView;
use swarm_protocol::spec::{JobSpec, Output, Tmpfs};
use swarm_protocol::state::JobState;
use swarm_protocol::{JobId, OutcomeKind, TaskId};

use crate::harness::{PATIENCE, Proc, Setup, Swarm, eventually, report, shared};

#[test]
fn a_job_that_writes_too_much_is_ended_for_it() {
    let swarm = shared();
    // In its root filesystem, and in the directory of its output.
    for path in ["/tmp/big", "/out/big"] {
        let mut spec = swarm.shell(&format!("head -c 40000000 /dev/zero > {path}; echo written; sleep 600"));
        spec.limits.disk_bytes = 16 << 20;
        spec.outputs.push(Output { path: "/out/big".into() });
        let job = swarm.submit(&spec);
        assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Failed);
        let attempt = swarm.task(job).attempts.remove(0);
        assert_eq!(attempt.outcome, Some(OutcomeKind::OutOfDisk), "{attempt:?}");
        let peak = attempt.usage.and_then(|usage| usage.disk_peak_bytes).expect("it was measured");
        // Seen while it still wrote, or after.
        assert!((spec.limits.disk_bytes..60_000_000).contains(&peak), "{peak} bytes measured");
        report(&format!("disk limit of 16 MiB: ended after {} ms, {peak} bytes written", attempt.ran_ms.unwrap_or(0)));
        let shown = swarm.consumer(&["show", &job.to_string()]);
        assert!(String::from_utf8_lossy(&shown.stdout).contains("limits.disk_bytes"), "{shown:?}");
    }
    swarm.judge("disk limit", false);
}

#[test]
fn a_job_that_nests_directories_so_deeply_that_nobody_can_measure_them_is_ended() {
    let swarm = shared();
    // The path is short enough in the container, and too long where the engine keeps the volume.
    let name = "d".repeat(202);
    let script = format!("cd /out; n=0; while [ $n -lt 20 ]; do mkdir {name}; cd {name}; n=$((n+1)); done; sleep 600");
    let mut spec = swarm.shell(&script);
    spec.outputs.push(Output { path: "/out/x".into() });
    let job = swarm.submit(&spec);
    assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Failed);
    let attempt = swarm.task(job).attempts.remove(0);
    assert_eq!(attempt.outcome, Some(OutcomeKind::OutOfDisk), "{attempt:?}");
    assert!(attempt.detail.as_ref().is_some_and(|detail| detail.contains("cannot be measured")), "{attempt:?}");
    swarm.judge("directories beyond measure", false);
}

#[test]
fn limits_hold_in_the_container_and_usage_is_recorded() {
    let swarm = shared();
    let script = "ulimit -n; echo scratch > /tmp/a && cat /tmp/a; (echo x > /x) 2>/dev/null || echo read-only; \
                  i=0; while [ $i -lt 1500000 ]; do i=$((i+1)); done";
    let mut spec = swarm.shell(script);
    (spec.limits.open_files, spec.limits.read_only_root) = (99, true);
    spec.limits.tmpfs = vec![Tmpfs { path: "/tmp".into(), bytes: 1 << 20 }];
    let job = swarm.submit(&spec);
    assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Succeeded);
    swarm.check_log(TaskId { job, task: 0 }, b"99\nscratch\nread-only\n", b"");
    let attempt = swarm.task(job).attempts.remove(0);
    let usage = attempt.usage.expect("the worker reported");
    let (cpu_ms, ran_ms) = (usage.cpu_ms.expect("it ran for seconds"), attempt.ran_ms.expect("it ended"));
    // A tenth of a core, and a reading at least every two seconds.
    assert!(cpu_ms > 0 && cpu_ms <= ran_ms, "{cpu_ms} ms of CPU in {ran_ms} ms");
    assert!(usage.memory_peak_bytes.is_some_and(|bytes| (1..32 << 20).contains(&bytes)), "{usage:?}");
    swarm.judge("limits and usage", false);
}

#[test]
fn a_cpu_limit_holds_back_a_job_that_would_use_more() {
    let swarm = shared();
    // A quarter of the period of 0.1 s, as cgroups of versions 1 and 2 tell it.
    let script = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null; \
                  (while :; do :; done) & (while :; do :; done) & sleep 6";
    let mut spec = swarm.shell(script);
    spec.resources.cpu_millis = 250;
    let job = swarm.submit(&spec);
    assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Succeeded);
    let quota = String::from_utf8(swarm.log(TaskId { job, task: 0 }).stdout).expect("text");
    assert_eq!(quota.split_whitespace().next(), Some("25000"), "{quota}");
    let attempt = swarm.task(job).attempts.remove(0);
    let cpu_ms = attempt.usage.and_then(|usage| usage.cpu_ms).expect("it ran for seconds");
    let ran_ms = attempt.ran_ms.expect("it ended");
    report(&format!("0.25 cores for two that spin: {cpu_ms} ms of CPU recorded in {ran_ms} ms"));
    // The last reading is of two seconds before the end at worst, and without a limit one core at least would be used,
    // unless the machine is far too busy.
    let share = cpu_ms as f64 / ran_ms as f64;
    assert!((0.02..0.5).contains(&share), "{share:.2} cores used");
    swarm.judge("CPU limit", false);
}

/// Processes that a bomb may have.
const PIDS: u32 = 64;

/// Every process starts others for as long as it can. The limit on the user's processes is only there in case the job's own fails.
const BOMB: &str = "ulimit -p 600; bomb() { while :; do bomb & done; }; exec 3>&2 2>/dev/null";

impl Swarm {
    fn bomb(&self, script: &str) -> JobSpec {
        let mut spec = self.shell(&format!("{BOMB}; {script}"));
        (spec.resources.cpu_millis, spec.resources.memory_bytes, spec.limits.pids) = (300, 128 << 20, PIDS);
        spec
    }

    /// Processes in the running container of a job, and how many more its limit has prevented.
    fn processes(&self, job: JobId) -> Option<(u32, u64)> {
        let listed = self.docker().listing(&self.id()?);
        let container = listed.into_iter().find(|stamp| stamp.job == job.0)?.container;
        let pid = self.docker().run(&["inspect", "--format", "{{.State.Pid}}", &container])?;
        let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.trim())).ok()?;
        let dir = cgroups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            // Version 1 has a tree for each controller, version 2 one for all.
            let base = if controllers == "pids" { "/sys/fs/cgroup/pids" } else { "/sys/fs/cgroup" };
            ["pids", ""].contains(&controllers).then(|| format!("{base}{path}"))
        })?;
        let read = |name: &str| std::fs::read_to_string(format!("{dir}/{name}")).ok();
        let prevented = read("pids.events")?.split_whitespace().nth(1)?.parse().ok()?;
        Some((read("pids.current")?.trim().parse().ok()?, prevented))
    }

    fn only_attempt(&self, job: JobId) -> AttemptView {
        self.wait_ended(job, PATIENCE);
        let mut attempts = self.task(job).attempts;
        assert_eq!(attempts.len(), 1, "{attempts:?}");
        attempts.remove(0)
    }
}

/// A process that cannot be started is the job's own affair: it ends as it likes, or when its time is up.
#[test]
fn a_fork_bomb_stays_within_its_limit_and_harms_nobody() {
    let core_env = vec![("SWARM_CORE_GRACE_MS", "1000")];
    let swarm = Swarm::start(Setup { core_env, ..Setup::default() });
    let pid = || swarm.worker().as_ref().map(Proc::pid);
    let worker = pid();
    let lines = || (0..15).map(|n| format!("{n}\n")).collect::<String>();
    let beside = swarm.submit(&swarm.shell("n=0; while [ $n -lt 15 ]; do echo $n; sleep 1; n=$((n+1)); done"));
    swarm.wait_started(beside, 1);
    let copes = swarm.submit(&swarm.bomb("sleep 5 & last=$!; bomb & wait $last; echo survived; exit 7"));
    let fails = swarm.submit(&swarm.bomb("exec 2>&3; while :; do sleep 600 & done"));
    let mut endless = swarm.bomb("bomb & while :; do :; done");
    endless.timeout_s = Some(12);
    let endless = swarm.submit(&endless);
    let (processes, prevented) = eventually("the bomb reaches its limit", PATIENCE, || {
        let (processes, prevented) = swarm.processes(endless)?;
        assert!(processes <= PIDS, "{processes} processes");
        (prevented > 0).then_some((processes, prevented))
    });
    let attempt = swarm.only_attempt(copes);
    assert_eq!((attempt.outcome, attempt.exit_code), (Some(OutcomeKind::Failed), Some(7)), "{attempt:?}");
    swarm.check_log(TaskId { job: copes, task: 0 }, b"survived\n", b"");
    let attempt = swarm.only_attempt(fails);
    assert_eq!(attempt.outcome, Some(OutcomeKind::Failed), "{attempt:?}");
    let said = String::from_utf8_lossy(&swarm.log(TaskId { job: fails, task: 0 }).stderr).to_lowercase();
    assert!(said.contains("fork"), "its shell says what it could not do: {said}");
    let attempt = swarm.only_attempt(endless);
    assert_eq!(attempt.outcome, Some(OutcomeKind::TimedOut), "{attempt:?}");
    let ran_ms = attempt.ran_ms.expect("it ended");
    assert!((12_000..40_000).contains(&ran_ms), "ended after {ran_ms} ms");
    assert_eq!(swarm.only_attempt(beside).outcome, Some(OutcomeKind::Succeeded));
    swarm.check_log(TaskId { job: beside, task: 0 }, lines().as_bytes(), b"");
    let after = swarm.submit(&swarm.shell("echo after"));
    assert_eq!(swarm.only_attempt(after).outcome, Some(OutcomeKind::Succeeded));
    assert_eq!(pid(), worker);
    report(&format!(
        "fork bombs: {processes} processes of {PIDS} when {prevented} were prevented; killed after {ran_ms} ms where nothing \
         else ended it"
    ));
    swarm.judge("fork bombs", true);
}
