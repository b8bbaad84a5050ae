//! Watches how much the attempts of this worker have written to disk. One task looks for all of them, since the engine
//! measures by walking files; it rests ten times as long as a look takes, within bounds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use swarm_protocol::AttemptId;
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

/// An attempt of which so many looks in a row could not tell what it has written is told so: it would have no limit.
const UNTOLD_MAX: u32 = 3;

/// Bytes written by each attempt, as last seen; none where that cannot be told, again and again.
pub(crate) type Written = Arc<HashMap<AttemptId, Option<u64>>>;

/// Looks until the worker stops; while nothing is held there is nothing to look at.
pub(crate) async fn keep_looking(ctx: Arc<Ctx>) -> anyhow::Result<()> {
    let (mut pause, mut untold) = (PAUSE_MIN, HashMap::new());
    loop {
        tokio::select! {
            biased;
            () = ctx.stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
        if ctx.hub.report().is_empty() {
            continue;
        }
        let began = Instant::now();
        match look(&ctx).await {
            Ok(measured) => ctx.disk.set(Arc::new(by_attempt(measured, &mut untold))),
            Err(error) => tracing::warn!(%error, "what containers have written to disk cannot be measured"),
        }
        pause = rest_after(began.elapsed());
    }
}

fn rest_after(took: Duration) -> Duration {
    took.saturating_mul(REST).clamp(PAUSE_MIN, if took < LONG { PAUSE_MAX } else { PAUSE_LONG })
}

async fn look(ctx: &Ctx) -> Result<Vec<(Labels, Option<u64>)>, RuntimeError> {
    ctx.runtime.disk_usage(&ours(ctx.swarm(), ctx.identity.worker)).await
}

/// Sums what was measured. `untold` counts how often in a row something of an attempt could not be: only where the engine
/// measures anything at all.
fn by_attempt(
    measured: Vec<(Labels, Option<u64>)>,
    untold: &mut HashMap<AttemptId, u32>,
) -> HashMap<AttemptId, Option<u64>> {
    let is_able = measured.iter().any(|(_, bytes)| bytes.is_some());
    let mut sums: HashMap<AttemptId, Option<u64>> = HashMap::new();
    for (labels, bytes) in measured {
        let Some(attempt) = attempt_of(&labels) else { continue };
        let sum = sums.entry(attempt).or_insert(Some(0));
        *sum = sum.zip(bytes).map(|(sum, bytes)| sum.saturating_add(bytes));
    }
    untold.retain(|attempt, _| sums.get(attempt) == Some(&None));
    sums.retain(|attempt, sum| {
        if sum.is_some() {
            return true;
        }
        let count = untold.entry(*attempt).or_default();
        *count += u32::from(is_able);
        *count >= UNTOLD_MAX
    });
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
    #[test]
    fn what_cannot_be_measured_again_and_again_is_told_unless_nothing_can() {
        let labels = |job: u64| {
            let own = [("job", job.to_string()), ("task", "0".to_owned()), ("attempt", "1".to_owned())];
            own.map(|(name, value)| (format!("io.swarm-sync.{name}"), value)).into()
        };
        let id = |job| AttemptId { job: swarm_protocol::JobId(job), task: 0, attempt: 1 };
        let mut untold = HashMap::new();
        let mut look =
            |volume| by_attempt(vec![(labels(1), Some(5)), (labels(1), volume), (labels(2), Some(7))], &mut untold);
        assert_eq!(look(Some(3)), HashMap::from([(id(1), Some(8)), (id(2), Some(7))]));
        for _ in 0..2 {
            assert_eq!(look(None), HashMap::from([(id(2), Some(7))]));
        }
        assert_eq!(look(Some(1)).get(&id(1)), Some(&Some(6)), "it begins anew");
        for _ in 0..2 {
            look(None);
        }
        assert_eq!(look(None).get(&id(1)), Some(&None));
        let mut unable = HashMap::new();
        assert!((0..9).all(|_| by_attempt(vec![(labels(1), None)], &mut unable).is_empty()));
    }
}
