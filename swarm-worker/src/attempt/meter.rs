//! What a running container uses, and when that is too much disk.

use std::time::Duration;

use swarm_protocol::Usage;
use tokio::sync::watch;

use super::Attempt;
use crate::disk::Written;
use crate::latest::Follower;
use crate::runtime::{ContainerId, DiskQuota};

/// From the start to the first reading: the shortest containers are not worth a call.
const FIRST: Duration = Duration::from_millis(500);
/// A root filesystem that lacks this part of its size is full: some of it went into what the filesystem keeps for itself.
const NEARLY: u64 = 16;
/// Between readings.
const EVERY: Duration = Duration::from_secs(2);

impl Attempt {
    /// Reads until `exited` turns true.
    pub(super) async fn measure(&self, id: &ContainerId, mut exited: watch::Receiver<bool>) -> Usage {
        let input_bytes = self.order.inputs.iter().map(|input| input.size_bytes).sum();
        let mut usage = Usage { input_bytes, ..Usage::default() };
        let mut written = self.ctx.disk.follow();
        let mut pause = FIRST;
        loop {
            tokio::select! {
                biased;
                () = async { drop(exited.wait_for(|exited| *exited).await) } => break,
                () = written.changed() => usage.observe(None, None, self.seen_on_disk(&mut written)),
                () = tokio::time::sleep(pause) => {
                    pause = EVERY;
                    // A reading that fails says nothing; what was seen before still holds.
                    let Some(reading) = self.ctx.runtime.reading(id).await.ok().flatten() else { continue };
                    usage.observe(Some(reading.cpu_ms), Some(reading.memory_bytes), None);
                }
            }
        }
        // The look that ended the container may have come during a reading.
        usage.observe(None, None, self.seen_on_disk(&mut written));
        usage
    }

    fn seen_on_disk(&self, written: &mut Follower<Written>) -> Option<u64> {
        written.get().get(&self.id).copied().flatten()
    }

    /// What a job that failed had written to its root filesystem, if an engine with quotas let it write no more. A job
    /// that wrote very many small files may have come to that end unseen: engines measure bytes, and quotas whole blocks.
    pub(super) async fn filled_disk(&self, id: &ContainerId) -> Option<u64> {
        if self.ctx.engine.borrow().disk_quota != DiskQuota::Yes {
            return None;
        }
        let written = self.ctx.runtime.root_usage(id).await.ok()?;
        let limit = self.order.limits.disk_bytes;
        (written >= limit - limit / NEARLY).then_some(written)
    }

    /// Waits until the container has written more than it may: how much that is, if that can be told.
    pub(super) async fn over_disk(&self) -> Option<u64> {
        let mut written = self.ctx.disk.follow();
        let limit = self.order.limits.disk_bytes;
        loop {
            match written.get().get(&self.id) {
                Some(None) => return None,
                Some(Some(bytes)) if *bytes > limit => return Some(*bytes),
                Some(Some(_)) | None => written.changed().await,
            }
        }
    }
}
