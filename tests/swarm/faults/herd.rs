//! Many workers that lose their links in one moment and come back in one moment: no lease is lost over it, and the core goes
//! on answering.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use swarm_protocol::TaskRange;
use swarm_protocol::state::JobState;

use crate::harness::{Herd, Namespace, Setup, Swarm, be_worker, either, eventually, report, rounds};

const SLOTS: u32 = 2;
/// Longer than the leases, and than all that is done meanwhile.
const RUNS: Duration = Duration::from_secs(30);
const LEASE_S: u64 = 15;
/// How long nobody is heard.
const CUT: Duration = Duration::from_secs(4);
/// How soon all are back.
const BACK: Duration = Duration::from_secs(90);
/// How long any request may take while they come.
const ANSWERS: Duration = Duration::from_secs(10);

impl Swarm {
    fn wait_all_ready(&self, count: u32) -> Duration {
        let began = Instant::now();
        eventually(&format!("{count} workers are ready"), BACK, || {
            let workers = self.block(self.client.workers()).ok()?.items;
            let ready = workers.iter().filter(|worker| worker.name.starts_with("herd-") && worker.state == "ready");
            (ready.count() == count as usize).then_some(())
        });
        began.elapsed()
    }

    /// The longest that a request took until `stop`.
    fn slowest_answer(&self, stop: &AtomicBool) -> Duration {
        let mut slowest = Duration::ZERO;
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            self.block(self.client.whoami()).expect("the core answers");
            slowest = slowest.max(began.elapsed());
            std::thread::sleep(Duration::from_millis(50));
        }
        slowest
    }

    /// All are back, and requests were answered meanwhile.
    fn all_come_back(&self, count: u32) -> (Duration, Duration) {
        let stop = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            let asking = scope.spawn(move || self.slowest_answer(stop));
            let back = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.wait_all_ready(count)));
            stop.store(true, Ordering::Relaxed);
            let slowest = asking.join().expect("the core answers");
            (back.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), slowest)
        })
    }
}

#[test]
fn many_workers_that_come_back_at_once_lose_no_lease_and_do_not_drown_the_core() {
    be_worker();
    let network = Namespace::enter();
    let core_env = vec![("SWARM_CORE_LIMITS__LOGIN_BURST", "2000")];
    let swarm = &Swarm::start(Setup { in_memory: true, core_env, ..Setup::default() });
    // Only the herd is to take work.
    swarm.kill_worker();
    let count = either(60, 300);
    let herd = Herd::join(swarm, count, SLOTS, RUNS);
    swarm.wait_all_ready(count);
    let (_, port) = swarm.address.rsplit_once(':').expect("an address has a port");
    let (mut back, mut slowest) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..rounds(10) {
        let mut spec = swarm.shell("true");
        (spec.array, spec.lease_s) = (TaskRange::new(0, count * SLOTS - 1), LEASE_S);
        let job = swarm.submit(&spec);
        swarm.wait_started(job, 1);
        swarm.fault("all links are reset, and nothing is heard");
        let reset = ["--protocol", "tcp", "--dport", port, "--jump", "REJECT", "--reject-with", "tcp-reset"];
        let cut = [network.rule(&reset), network.rule(&["--protocol", "udp", "--dport", port, "--jump", "DROP"])];
        std::thread::sleep(CUT);
        drop(cut);
        let (took, answer) = swarm.all_come_back(count);
        (back, slowest) = (back.max(took), slowest.max(answer));
        swarm.kill_core();
        swarm.start_core();
        let (took, answer) = swarm.all_come_back(count);
        (back, slowest) = (back.max(took), slowest.max(answer));
        assert!(slowest < ANSWERS, "a request took {slowest:?}");
        let ended = swarm.wait_ended(job, Duration::from_secs(180));
        assert_eq!((ended.job.state, ended.job.tasks.succeeded), (JobState::Succeeded, u64::from(count * SLOTS)));
        let tasks = swarm.block(swarm.client.tasks(job, Some(1000), None)).expect("tasks can be listed").items;
        for task in tasks {
            assert_eq!(task.attempts.len(), 1, "a lease was lost: {task:?}");
        }
    }
    drop(herd);
    swarm.judge_records("herd of workers");
    report(&format!(
        "{count} workers lost and found their links at once: all back after {:.1} s, the slowest answer {:.2} s, no lease lost",
        back.as_secs_f64(),
        slowest.as_secs_f64()
    ));
}
