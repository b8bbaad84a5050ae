//! Assignments on their way through the ledger: they come back in the order they were queued. Nothing else waits for them,
//! for a database may be away for long.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{FuturesOrdered, StreamExt as _};
use futures_util::{FutureExt as _, future};
use swarm_protocol::{AttemptId, WorkerId};
use tokio::sync::oneshot;

use super::records::Prepared;
use crate::messages::Shape;
use crate::store::Verdict;

/// Tasks of one job for one worker. Their room there is promised.
pub(super) struct Assignment {
    pub(super) worker: WorkerId,
    pub(super) attempts: Vec<AttemptId>,
    pub(super) shape: Shape,
    pub(super) prepared: Arc<Prepared>,
}

/// What comes back.
pub(super) enum Back {
    /// `None` when the core stops.
    Judged(Assignment, Option<Verdict>),
    /// All that was queued before has come back.
    Settled(oneshot::Sender<()>),
}

/// All of them.
#[derive(Default)]
pub(super) struct UnderWay {
    line: FuturesOrdered<Pin<Box<dyn Future<Output = Back> + Send + Sync>>>,
    tasks: u64,
}

impl UnderWay {
    pub(super) fn tasks(&self) -> u64 {
        self.tasks
    }

    pub(super) fn add(&mut self, assignment: Assignment, verdict: oneshot::Receiver<Verdict>) {
        self.tasks += assignment.attempts.len() as u64;
        self.line.push_back(Box::pin(verdict.map(|verdict| Back::Judged(assignment, verdict.ok()))));
    }

    /// Has `reply` come back after all that is under way now.
    pub(super) fn mark(&mut self, reply: oneshot::Sender<()>) {
        self.line.push_back(Box::pin(future::ready(Back::Settled(reply))));
    }

    /// All that has come back, once something has; `None` when nothing is under way. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Vec<Back>> {
        let mut all = vec![self.line.next().await?];
        while let Some(Some(back)) = self.line.next().now_or_never() {
            all.push(back);
        }
        for back in &all {
            if let Back::Judged(assignment, _) = back {
                self.tasks -= assignment.attempts.len() as u64;
            }
        }
        Some(all)
    }
}
