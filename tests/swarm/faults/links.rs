//! Worker and core that cannot hear each other: the swarm is in a network of its own, whose packet filters drop what goes
//! to or from the address at which the worker reaches the core. Clients use another one and see all of it.

use std::sync::Arc;
use std::time::Duration;

use swarm_client::Destination;
use swarm_protocol::TaskId;
use swarm_protocol::spec::Output;
use swarm_protocol::state::JobState;

use super::{LONG, LONG_LOG, worker_silenced};
use crate::harness::{NOISE, Namespace, PATIENCE, Proxy, Rule, Setup, Swarm, eventually, noise, report, rounds};

/// Partitions of each kind in the full tier, more than 500 together; resets of connections come on top.
const PARTITIONS: u32 = 114;

/// A swarm in a network of its own, with a proxy before the core as the only way for its worker.
struct Apart {
    swarm: Swarm,
    port: String,
    // Last: the filters of the others are in it.
    network: Namespace,
}

/// Who is not heard, by which protocol.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// The core does not hear the worker.
    Upward(&'static str),
    /// The worker does not hear the core.
    Downward(&'static str),
}

impl Apart {
    fn start() -> Self {
        let network = Namespace::enter();
        let link = Arc::new(Proxy::start());
        let port = link.address.port().to_string();
        Self { swarm: Swarm::start(Setup { link: Some(link), ..Setup::default() }), port, network }
    }

    /// Until what this gives is dropped.
    fn cut(&self, cuts: &[Cut]) -> Vec<Rule<'_>> {
        self.swarm.fault(&format!("cut {cuts:?}"));
        let rule = |cut: &Cut| {
            let (protocol, side) = match *cut {
                Cut::Upward(protocol) => (protocol, "--dport"),
                Cut::Downward(protocol) => (protocol, "--sport"),
            };
            self.network.rule(&["--protocol", protocol, side, &self.port, "--jump", "DROP"])
        };
        cuts.iter().map(rule).collect()
    }

    /// Connections end with a reset instead of silence, in both directions.
    fn reset(&self) -> Vec<Rule<'_>> {
        self.swarm.fault("connections are reset");
        let jump = ["--jump", "REJECT", "--reject-with", "tcp-reset"];
        let rule = |side| self.network.rule(&[&["--protocol", "tcp", side, &self.port][..], &jump].concat());
        ["--dport", "--sport"].into_iter().map(rule).collect()
    }

    /// A job that runs through `times` cuts is not disturbed by them: it ends in its first attempt and its log is whole.
    fn endures(&self, scenario: &str, cuts: &[Cut], times: u32, lasting: Duration) {
        let swarm = &self.swarm;
        for _ in 0..rounds(PARTITIONS / times) {
            let job = swarm.submit(&swarm.shell(LONG));
            swarm.wait_started(job, 1);
            for _ in 0..times {
                let cut = self.cut(cuts);
                std::thread::sleep(lasting);
                drop(cut);
                std::thread::sleep(lasting / 2);
            }
            swarm.ran_once(job, LONG_LOG);
            swarm.wait_ready();
        }
        swarm.judge(scenario, true);
    }
}

const BOTH_WAYS: [Cut; 4] = [Cut::Upward("tcp"), Cut::Upward("udp"), Cut::Downward("tcp"), Cut::Downward("udp")];

#[test]
fn a_link_cut_both_ways_and_mended_costs_nothing() {
    Apart::start().endures("link cut both ways", &BOTH_WAYS, 1, Duration::from_secs(4));
}

#[test]
fn a_core_that_does_not_hear_its_worker_for_a_while_loses_nothing() {
    let cuts = [Cut::Upward("tcp"), Cut::Upward("udp")];
    Apart::start().endures("core does not hear its worker", &cuts, 1, Duration::from_secs(4));
}

#[test]
fn a_worker_that_does_not_hear_its_core_for_a_while_loses_nothing() {
    let cuts = [Cut::Downward("tcp"), Cut::Downward("udp")];
    Apart::start().endures("worker does not hear its core", &cuts, 1, Duration::from_secs(4));
}

#[test]
fn a_link_that_flaps_costs_nothing() {
    Apart::start().endures("link flaps", &BOTH_WAYS, 6, Duration::from_millis(500));
}

/// Heartbeats alone are cut for longer than a lease, then the stream alone: either renews it.
#[test]
fn a_lease_lives_on_by_heartbeats_or_by_the_stream_alone() {
    let apart = Apart::start();
    let swarm = &apart.swarm;
    let lasting = Duration::from_secs(18);
    for _ in 0..rounds(PARTITIONS / 4) {
        let mut spec = swarm.shell("echo begun; sleep 40; echo done");
        spec.lease_s = 15;
        let job = swarm.submit(&spec);
        swarm.wait_started(job, 1);
        for protocol in ["udp", "tcp"] {
            // The far end of a stream that is cut upward only goes on answering what it has heard before.
            let cut = apart.cut(&[Cut::Upward(protocol), Cut::Downward(protocol)]);
            std::thread::sleep(lasting);
            drop(cut);
        }
        swarm.ran_once(job, super::SHORT_LOG);
        swarm.wait_ready();
    }
    swarm.judge("heartbeats or stream alone", true);
}

#[test]
fn a_worker_cut_off_past_its_lease_ends_its_container_before_it_is_run_again() {
    let apart = Apart::start();
    let cut = std::cell::RefCell::new(Vec::new());
    let silence = |_: &Swarm| drop(cut.replace(apart.cut(&BOTH_WAYS)));
    worker_silenced("worker cut off", &apart.swarm, silence, |_| cut.borrow_mut().clear());
}

/// Resets strike while a log streams and an output is uploaded, and while a consumer uploads and fetches.
#[test]
fn resets_in_the_middle_of_results_and_uploads_are_got_over() {
    let apart = Apart::start();
    let swarm = &apart.swarm;
    let (copies, file) = (8, swarm.home().join("input"));
    let bytes = noise(NOISE, 0).repeat(copies);
    std::fs::write(&file, &bytes).expect("the input can be written");
    let mut spec = swarm.shell(&format!(
        "for n in $(seq {copies} 2>/dev/null || echo 1 2 3 4 5 6 7 8); do cat /etc/noise >> /out/copy; cat /etc/noise; done"
    ));
    spec.outputs = vec![Output { path: "/out/copy".into() }];
    let mut fetched = 0;
    for round in 0..rounds(PARTITIONS / 8) {
        let job = swarm.submit(&spec);
        std::thread::scope(|scope| {
            let uploading = scope.spawn(|| {
                let quiet = Arc::new(|_| ());
                swarm.block(swarm.client.upload_file(&file, quiet)).expect("the upload does not cross the cut")
            });
            for _ in 0..8 {
                let reset = apart.reset();
                std::thread::sleep(Duration::from_millis(60));
                drop(reset);
                std::thread::sleep(Duration::from_millis(340 + u64::from(round) * 30 % 400));
            }
            uploading.join().expect("the upload ends");
        });
        assert_eq!(swarm.wait_ended(job, Duration::from_secs(120)).job.state, JobState::Succeeded);
        let view = swarm.task(job);
        assert_eq!(view.attempts.len(), 1, "{view:?}");
        let task = TaskId { job, task: 0 };
        swarm.check_log(task, &bytes, b"");
        let path = swarm.home().join(format!("copy-{round}"));
        let destination = Destination { path: &path, overwrite: false };
        let output = &view.attempts[0].outputs[0];
        let quiet = Arc::new(|_| ());
        swarm
            .block(swarm.client.download_output(task, None, 0, output, destination, quiet))
            .expect("it can be fetched");
        assert!(std::fs::read(&path).expect("it is there") == bytes, "other bytes came back");
        std::fs::remove_file(&path).expect("it is ours");
        fetched += 1;
    }
    eventually("the worker is linked", PATIENCE, || {
        swarm.block(swarm.client.workers()).ok()?.items.iter().any(|worker| worker.state == "ready").then_some(())
    });
    swarm.judge("resets mid-result", true);
    report(&format!("resets mid-result: {fetched} outputs and logs of {} bytes whole", bytes.len()));
}
