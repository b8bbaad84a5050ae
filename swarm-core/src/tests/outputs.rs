//! What a worker may hand out as its attempt's outputs.

use std::time::Instant;

use swarm_protocol::Digest;
use swarm_protocol::link::OutputReport;
use swarm_protocol::spec::Output;

use super::*;

const PATH: &str = "/out/r";

impl Core<'_> {
    fn store_blob(&self, bytes: &[u8]) -> Digest {
        let mut upload = self.disk.blobs.begin(1 << 20).unwrap();
        std::io::Write::write_all(&mut upload, bytes).unwrap();
        upload.finish(None).unwrap().digest
    }

    /// What the route for outputs does with bytes that a worker sends.
    async fn send_output(&self, attempt: AttemptId, worker: WorkerId, bytes: &[u8]) {
        let (digest, size_bytes) = (self.store_blob(bytes), bytes.len() as u64);
        let send = Transition::SendOutput { attempt, worker, digest, size_bytes };
        self.handles.ledger.commit(send).await.unwrap().unwrap();
    }

    async fn submit_with_output(&self) -> JobId {
        self.submit(|spec| spec.outputs = vec![Output { path: PATH.into() }]).await
    }
}

fn claiming(attempt: AttemptId, bytes: &[u8]) -> FinalReport {
    let (digest, size_bytes) = (Digest::of(bytes), bytes.len() as u64);
    let output = OutputReport { path: PATH.into(), digest, size_bytes, is_dir: false, mode: 0o644 };
    FinalReport { outputs: vec![output], ..report(attempt, Outcome::Succeeded) }
}

#[tokio::test]
async fn a_worker_cannot_hand_out_a_blob_that_it_only_knows_by_digest() {
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    let mut worker = core.worker().await;
    let secret = core.store_blob(b"another group's");
    let (job, other) = (core.submit_with_output().await, core.submit_with_output().await);
    let (first, second) = (worker.order().await.attempt, worker.order().await.attempt);
    assert_eq!((first.job, second.job), (job, other));
    // What another attempt of the same worker sent does not count either.
    core.send_output(second, worker.id, b"sent by the other").await;
    for (attempt, bytes) in [(1, &b"another group's"[..]), (2, b"sent by the other"), (3, b"not stored at all")] {
        worker.finish(claiming(AttemptId { attempt, ..first }, bytes)).await;
        let record = core.attempts(job).pop().unwrap();
        let Some(Outcome::Lost { reason: LossReason::Transfer, detail }) = &record.outcome else {
            panic!("{record:?}")
        };
        assert_eq!(detail, "its output /out/r was not sent by this attempt", "the same, stored or not");
        assert_eq!((record.id.attempt, record.outputs.len()), (attempt, 0));
        if attempt < 3 {
            disk.clock.advance_ms(5_000);
            worker.order().await;
        }
    }
    let group = core.store.job(job).unwrap().unwrap().group;
    assert_eq!(core.store.linked_blob(group, &secret).unwrap(), None, "its group may still not read it");

    worker.finish(claiming(second, b"sent by the other")).await;
    let digest = Digest::of(b"sent by the other");
    assert_eq!(core.attempts(other)[0].outputs[0].digest, digest);
    assert_eq!(core.store.linked_blob(group, &digest).unwrap(), Some(17));
}

#[tokio::test]
async fn an_output_that_was_sent_counts_after_a_restart_of_the_core() {
    let disk = Disk::new();
    let (job, id) = {
        let core = Core::start(&disk).await;
        let mut worker = core.worker().await;
        let job = core.submit_with_output().await;
        let id = worker.order().await.attempt;
        core.send_output(id, worker.id, b"result").await;
        (job, id)
    };
    let core = Core::start(&disk).await;
    let mut worker = core.worker_holding(id).await;
    worker.finish(claiming(id, b"result")).await;
    let record = core.attempts(job).pop().unwrap();
    assert_eq!((record.outcome, record.outputs[0].digest), (Some(Outcome::Succeeded), Digest::of(b"result")));
}

/// All leases are renewed on one loop, so a report with the most paths for a job with the most globs is compared elsewhere.
#[tokio::test]
async fn a_report_that_takes_long_to_check_holds_up_no_renewals() {
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    let mut worker = core.worker().await;
    let glob = |number| Output { path: format!("/out/{}-{number}", "[a-y]*".repeat(40)) };
    let job = core.submit(|spec| spec.outputs = (1..=256).map(glob).collect()).await;
    let attempt = worker.order().await.attempt;
    core.send_output(attempt, worker.id, b"result").await;
    let mut ended = claiming(attempt, b"result");
    let path = |number: usize| format!("/out/{}{number}-{}", "swarm".repeat(20), number % 256 + 1);
    ended.outputs = (1..=1000).map(|number| OutputReport { path: path(number), ..ended.outputs[0].clone() }).collect();
    let began = Instant::now();
    worker.say(ToCore::Finished(Box::new(ended))).await;
    let (mut longest, mut seq) = (Duration::ZERO, 0);
    while !worker.passed.contains(&ToWorker::FinishStored { attempt }) {
        assert!(began.elapsed() < DEADLINE);
        let asked = Instant::now();
        seq += 1;
        worker.say(ToCore::Renew { seq, live: LiveSet::default() }).await;
        worker.renewed(seq).await;
        longest = longest.max(asked.elapsed());
    }
    let took = began.elapsed();
    assert!(longest * 2 < took, "a renewal took {longest:?} of {took:?}");
    assert_eq!(core.attempts(job)[0].outputs.len(), 1000);
}

#[tokio::test]
async fn a_report_that_the_core_cannot_check_counts_when_it_can() {
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    let mut worker = core.worker().await;
    let job = core.submit_with_output().await;
    let id = worker.order().await.attempt;
    core.send_output(id, worker.id, b"result").await;
    core.troubled.set_unreadable(Some("sent_outputs"));
    worker.say(ToCore::Finished(Box::new(claiming(id, b"result")))).await;
    core.troubled.asked_in_vain(1).await;
    core.troubled.set_unreadable(None);
    worker.finish(claiming(id, b"result")).await;
    let ends: Vec<_> = core.attempts(job).into_iter().map(|end| (end.id.attempt, end.outcome)).collect();
    assert_eq!(ends, [(1, Some(Outcome::Succeeded))]);
    assert!(core.last_error().is_some_and(|error| error.contains("cannot be checked")), "operators see it");
}
