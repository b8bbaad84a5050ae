//! Whether the container engine answers. While it does not, the worker takes no work and gives back what it has not begun.

use std::sync::Arc;
use std::time::Duration;

use crate::context::Ctx;
use crate::offer;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(5);
/// An engine that takes longer is of no use now. A busy one takes a second or two.
const PATIENCE: Duration = Duration::from_secs(10);

/// Looks for ever.
pub(crate) async fn keep_looking(ctx: Arc<Ctx>) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            biased;
            () = ctx.stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(EVERY) => {}
        }
        tokio::select! {
            biased;
            () = ctx.stop.cancelled() => return Ok(()),
            _ = answers(&ctx) => {}
        }
    }
}

/// Asks the engine, and notes what came of it.
pub(crate) async fn answers(ctx: &Ctx) -> bool {
    let pinged = tokio::time::timeout(PATIENCE, ctx.runtime.ping()).await;
    if matches!(pinged, Ok(Ok(()))) && !ctx.hub.engine_answers() {
        // It may come back as another version, or its machine as a larger one.
        offer::look(ctx).await;
    }
    let problem = match pinged {
        // It may have come back with settings under which no job can run.
        Ok(Ok(())) => ctx.engine.borrow().check().err().map(|error| error.to_string()),
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
    };
    let answers = problem.is_none();
    if ctx.hub.set_engine_answers(answers) != answers {
        match problem {
            None => tracing::info!("the container engine can be used again"),
            Some(problem) => {
                tracing::error!(problem, "the container engine cannot be used: no work is taken until it can");
            }
        }
    }
    answers
}
