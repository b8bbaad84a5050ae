//! What the core's frames do here. Nothing in this module waits for the link itself, or both sides could wait for each
//! other for ever.

use std::sync::Arc;

use swarm_host::blocking;
use swarm_protocol::AttemptId;
use swarm_protocol::link::{HeldPhase, TaskOrder, ToCore, ToWorker};

use super::session::Shared;
use crate::attempt::{self, Stage};
use crate::context::Ctx;
use crate::hub::Stop;

/// Orders held at most, beyond what can run: the core prefetches a few for each slot.
const PREFETCH_MAX: u32 = 4096;

/// Carries out the frames of one message, in order.
pub(super) async fn follow(ctx: &Arc<Ctx>, shared: &Shared, frames: Vec<ToWorker>) {
    let kept = keep_orders(ctx, &frames).await;
    for frame in frames {
        match frame {
            ToWorker::Assign(order) => take(ctx, shared, *order, kept.as_ref().err()),
            ToWorker::Cancel { attempt, grace_ms } => stop(ctx, attempt, Stop::Cancel { grace_ms }),
            ToWorker::Abandon { attempt } => stop(ctx, attempt, Stop::Abandon),
            ToWorker::Recall { attempts } => attempts.into_iter().for_each(|attempt| ctx.hub.recall(attempt)),
            ToWorker::Drain => ctx.hub.set_draining(true),
            ToWorker::Resume => ctx.hub.set_draining(false),
            ToWorker::LogStored { attempt, offset } => {
                ctx.hub.control(attempt, |control| control.log_stored = offset);
            }
            ToWorker::FinishStored { attempt } => {
                ctx.hub.control(attempt, |control| control.finish_stored = true);
            }
            ToWorker::Renewed { seq, matched } => shared.answered(ctx, seq, matched),
            ToWorker::StateJudged { seq, abandon } => {
                // First, so that nothing given up is confirmed by what follows.
                abandon.into_iter().for_each(|attempt| stop(ctx, attempt, Stop::Abandon));
                shared.judged(ctx, seq);
            }
            ToWorker::StartCommitted { attempt } => {
                ctx.hub.control(attempt, |control| control.start_committed = true);
            }
        }
    }
}

fn stop(ctx: &Ctx, attempt: AttemptId, why: Stop) {
    ctx.hub.control(attempt, |control| control.ask_stop(why));
}

/// Spools every new order of a message with one sync of the directory.
async fn keep_orders(ctx: &Ctx, frames: &[ToWorker]) -> Result<(), String> {
    let orders: Vec<TaskOrder> = frames
        .iter()
        .filter_map(|frame| match frame {
            ToWorker::Assign(order) if is_wanted(ctx, order.attempt) => Some((**order).clone()),
            _ => None,
        })
        .collect();
    if orders.is_empty() {
        return Ok(());
    }
    let spool = ctx.spool.clone();
    blocking::run(move || spool.keep(&orders)).await.map_err(|error| format!("the spool cannot be written: {error}"))
}

fn is_wanted(ctx: &Ctx, attempt: AttemptId) -> bool {
    ctx.hub.is_accepting() && !ctx.hub.is_held(attempt)
}

fn take(ctx: &Arc<Ctx>, shared: &Shared, order: TaskOrder, unkept: Option<&String>) {
    let attempt = order.attempt;
    if ctx.hub.is_held(attempt) {
        // Said again: the first time it was not heard.
        answer(ctx, shared, ToCore::Accepted { attempt });
        return;
    }
    let refusal = if let Some(why) = unkept {
        Some(why.clone())
    } else if !ctx.hub.is_accepting() {
        Some("the worker is draining, its disk is full, or its container engine cannot be used".to_owned())
    } else if ctx.hub.live_count() >= ctx.slots_offered().saturating_add(PREFETCH_MAX) {
        Some("the worker holds too many orders already".to_owned())
    } else {
        None
    };
    if let Some(reason) = refusal {
        // Never kept, or of no use any more; a leftover would only be judged at the next start.
        let _ = ctx.spool.entry(attempt).remove();
        answer(ctx, shared, ToCore::Declined { attempt, reason });
        return;
    }
    if let Some(control) = ctx.hub.hold(attempt, HeldPhase::Pending, order.lease_ms, Some(shared.fresh_ns())) {
        attempt::spawn(ctx, order, control, Stage::New);
    }
}

/// Queues an answer from a task of its own, one for each frame received.
fn answer(ctx: &Ctx, shared: &Shared, frame: ToCore) {
    let out = shared.out.clone();
    ctx.tasks.spawn(async move {
        // A link that broke meanwhile has made the answer worthless.
        let _ = out.send(frame).await;
    });
}
