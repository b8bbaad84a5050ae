//! From queued frames to messages within the link's bounds.

use swarm_protocol::link::{FRAMES_MAX, MESSAGE_BYTES_MAX, ToCore};
use tokio::sync::mpsc;

/// Bytes that a frame certainly fits in, encoded.
fn weight(frame: &ToCore) -> usize {
    const SMALL: usize = 64;
    SMALL
        + match frame {
            ToCore::Log { bytes, .. } => bytes.len(),
            ToCore::Finished(report) => {
                let detail = report.outcome.detail().map_or(0, |detail| detail.len());
                let outputs: usize = report.outputs.iter().map(|output| SMALL + output.path.len()).sum();
                SMALL * 2 + detail + outputs
            }
            ToCore::StateReport { attempts, .. } => attempts.len() * 40,
            ToCore::Recalled { attempts } => attempts.len() * 24,
            ToCore::Declined { reason, .. } => reason.len(),
            ToCore::Labels { labels } => labels.iter().map(|(name, value)| 16 + name.len() + value.len()).sum(),
            _ => 0,
        }
}

/// Takes everything queued, in order, and cuts it into batches that keep the link's bounds.
pub(super) struct Batches {
    queue: mpsc::Receiver<ToCore>,
    next: Option<ToCore>,
}

impl Batches {
    pub(super) fn new(queue: mpsc::Receiver<ToCore>) -> Self {
        Self { queue, next: None }
    }

    /// The next batch, never empty; waits for the first frame only. `None` once no sender is left.
    pub(super) async fn next(&mut self) -> Option<Vec<ToCore>> {
        let first = match self.next.take() {
            Some(frame) => frame,
            None => self.queue.recv().await?,
        };
        let mut bytes = SMALLEST + weight(&first);
        let mut batch = vec![first];
        while batch.len() < FRAMES_MAX {
            let Ok(frame) = self.queue.try_recv() else { break };
            bytes += weight(&frame);
            if bytes > MESSAGE_BYTES_MAX {
                self.next = Some(frame);
                break;
            }
            batch.push(frame);
        }
        Some(batch)
    }
}

/// The version byte and the count.
const SMALLEST: usize = 16;

#[cfg(test)]
mod tests {
    use swarm_protocol::link::{FinalReport, HeldAttempt, HeldPhase, OutputReport, encode};
    use swarm_protocol::{AttemptId, Digest, JobId, LossReason, Outcome};

    use super::*;

    fn id() -> AttemptId {
        AttemptId { job: JobId(u64::MAX), task: u32::MAX, attempt: u16::MAX }
    }

    #[test]
    fn no_frame_is_heavier_than_its_weight() {
        let held = HeldAttempt { attempt: id(), phase: HeldPhase::Running { started_at_us: u64::MAX } };
        let output = OutputReport {
            path: "p".repeat(1024),
            digest: Digest::of(b""),
            size_bytes: u64::MAX,
            is_dir: true,
            mode: u32::MAX,
        };
        let report = FinalReport {
            attempt: id(),
            outcome: Outcome::Lost { reason: LossReason::Engine, detail: "d".repeat(5000) },
            started_at_us: Some(u64::MAX),
            finished_at_us: Some(u64::MAX),
            ran_ms: Some(u64::MAX),
            log_bytes: u64::MAX,
            log_digest: Digest::of(b""),
            log_cut_bytes: u64::MAX,
            outputs: vec![output; 300],
            usage: swarm_protocol::Usage::default(),
        };
        for frame in [
            ToCore::Log { attempt: id(), offset: u64::MAX, bytes: vec![0; 1000] },
            ToCore::Finished(Box::new(report)),
            ToCore::StateReport { seq: u64::MAX, attempts: vec![held; 500] },
            ToCore::Recalled { attempts: vec![id(); 500] },
            ToCore::Declined { attempt: id(), reason: "r".repeat(500) },
            ToCore::Started { attempt: id(), started_at_us: u64::MAX },
            ToCore::Labels { labels: (0..64).map(|n| (format!("{n:064}"), "v".repeat(256))).collect() },
        ] {
            let encoded = encode(1, std::slice::from_ref(&frame)).len();
            assert!(encoded <= SMALLEST + weight(&frame), "{encoded} for {frame:?}");
        }
    }

    #[tokio::test]
    async fn a_batch_takes_all_that_is_queued_within_the_bounds() {
        let (out, queue) = mpsc::channel(10_000);
        for n in 0..5000 {
            out.try_send(ToCore::Started { attempt: id(), started_at_us: n }).unwrap();
        }
        for _ in 0..3 {
            out.try_send(ToCore::Log { attempt: id(), offset: 0, bytes: vec![0; 2 << 20] }).unwrap();
        }
        drop(out);
        let mut batches = Batches::new(queue);
        let mut sizes = Vec::new();
        while let Some(batch) = batches.next().await {
            assert!(encode(1, &batch).len() <= MESSAGE_BYTES_MAX);
            sizes.push(batch.len());
        }
        assert_eq!(sizes, [4096, 905, 1, 1]);
    }
}
