//! Watches how much the attempts of this worker have written to disk. One task looks for all of them, since the engine
//! measures by walking files; it rests ten times as long as a look takes, within bounds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use swarm_protocol::AttemptId;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::context::{Ctx, attempt_of, ours};
use crate::runtime::{Labels, RuntimeError};

/// The shortest pause between two looks.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// The longest: a job must not write for much longer unseen, however slow its files make a look.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A look that took so long was given up in part, and the engine goes on with its walk: a further one would slow both.
const LONG: Duration = Duration::from_secs(30);
/// The longest pause then.
const PAUSE_LONG: Duration = Duration::from_secs(300);
/// A pause is this many times as long as the look before it took.
const REST: u32 = 10;

/// Bytes written by each attempt, as last seen.
pub(crate) type Written = Arc<HashMap<AttemptId, u64>>;

/// Where the last look is published.
#[derive(Debug, Default)]
pub(crate) struct DiskWatch(watch::Sender<Written>);

impl DiskWatch {
    /// The looks from now on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Written> {
        self.0.subscribe()
    }
}

/// Looks until the worker stops; while nothing is held there is nothing to look at.
pub(crate) async fn keep_looking(ctx: Arc<Ctx>) -> anyhow::Result<()> {
    let mut pause = PAUSE_MIN;
    loop {
        tokio::select! {
            () = ctx.stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
        if ctx.hub.report().is_empty() {
            continue;
        }
        let began = Instant::now();
        match look(&ctx).await {
            Ok(written) => drop(ctx.disk.0.send_replace(Arc::new(written))),
            Err(error) => tracing::warn!(%error, "what containers have written to disk cannot be measured"),
        }
        pause = rest_after(began.elapsed());
    }
}

fn rest_after(took: Duration) -> Duration {
    took.saturating_mul(REST).clamp(PAUSE_MIN, if took < LONG { PAUSE_MAX } else { PAUSE_LONG })
}

async fn look(ctx: &Ctx) -> Result<HashMap<AttemptId, u64>, RuntimeError> {
    Ok(by_attempt(ctx.runtime.disk_usage(&ours(ctx.swarm(), ctx.identity.worker)).await?))
}

fn by_attempt(measured: Vec<(Labels, u64)>) -> HashMap<AttemptId, u64> {
    let mut sums = HashMap::new();
    for (labels, bytes) in measured {
        if let Some(attempt) = attempt_of(&labels) {
            *sums.entry(attempt).or_default() += bytes;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_follow_each_other_soon_unless_the_engine_is_at_one_still() {
        let rest = |took_s| rest_after(Duration::from_secs(took_s)).as_secs();
        assert_eq!([rest(0), rest(2), rest(20), rest(40)], [5, 20, 60, 300]);
    }
}
