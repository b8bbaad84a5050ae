//! Modules of the core that fail while it works: all are started anew in the same process, from the store.

use std::time::Duration;

use swarm_checker::{Op, Verdict};
use swarm_protocol::JobId;
use swarm_protocol::state::JobState;

use crate::harness::{PATIENCE, Setup, Swarm, eventually, now_us, report};

const MODULES: [&str; 6] = ["receiver", "scheduler", "hibernator", "dispatcher", "harvester", "ledger"];

impl Swarm {
    /// How often each of [`MODULES`] failed, and how often each was started anew; none while the core is away.
    fn failures(&self) -> Option<Vec<(u64, u64)>> {
        let views = self.block(self.client.modules()).ok()?.items;
        let of = |name| views.iter().find(|view| view.name == name).map(|view| (view.errors, view.restarts));
        MODULES.into_iter().map(of).collect()
    }

    /// A job due now and one due in a moment, as far as the core takes them.
    fn submit_two(&self) -> Vec<JobId> {
        let mut later = self.shell("true");
        later.start_at = chrono::DateTime::from_timestamp_micros(now_us() + 500_000);
        [self.shell("true"), later].iter().filter_map(|spec| self.try_submit(spec).ok()).collect()
    }
}

#[test]
fn a_core_whose_modules_fail_starts_anew_by_itself_and_loses_nothing() {
    let swarm = Swarm::start(Setup::default());
    swarm.core().take().expect("a core runs").terminate(Duration::from_secs(30));
    // Each fails once, a few messages after its first start, so that most fall into different terms.
    let faults = MODULES.iter().zip(1..).map(|(name, n)| format!("{name}={}*off->1*panic", 3 * n));
    let faults: Vec<String> = faults.collect();
    swarm.recorder.add(now_us(), Verdict::Ok, Op::Fault { what: faults.join(";") });
    swarm.start_core_with(&faults.join(";"));
    let mut jobs: Vec<JobId> = Vec::new();
    let seen = eventually("every module has failed", PATIENCE, || {
        // One pair at a time: failures are what this is about, not load.
        let busy = jobs.last().and_then(|job| swarm.try_detail(*job)).is_some_and(|last| !last.job.state.is_final());
        if !busy {
            jobs.extend(swarm.submit_two());
        }
        // One that failed may have taken others with it.
        swarm.failures().filter(|seen| seen.iter().all(|(failures, _)| *failures >= 1))
    });
    let restarts = seen[0].1;
    assert!((1..=MODULES.len() as u64).contains(&restarts), "{seen:?}");
    assert!(seen.iter().all(|(_, each)| *each == restarts), "all are started anew together: {seen:?}");
    assert!(swarm.core().as_mut().expect("a core was started").ended().is_none(), "the process ended");
    for job in &jobs {
        assert_eq!(swarm.wait_ended(*job, Duration::from_secs(120)).job.state, JobState::Succeeded);
    }
    report(&format!("each of {} modules failed once: {restarts} restarts, {} jobs, 0 lost", MODULES.len(), jobs.len()));
    // Those whose submit got no answer may have been taken as well.
    for job in swarm.block(swarm.client.jobs(&swarm_client::JobFilter::default())).expect("jobs can be listed").items {
        swarm.wait_ended(job.id, Duration::from_secs(120));
    }
    swarm.judge("modules failing", true);
}
