//! The receiver: accepts and cancels jobs. It owns nothing but the requests under way; it is woken by its inbox and by
//! the ledger's verdicts, and answers only after the commit and after the job was handed on, so that a job it
//! acknowledged is durable (I1) and a cancel that follows finds it in the queue.
//!
//! Requests are queued in the order they came but not waited for one by one: up to [`IN_FLIGHT_MAX`] share the ledger's
//! batches. Beyond that its inbox fills, which is the backpressure.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use swarm_protocol::{JobId, Timestamp};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use std::sync::Arc;

use crate::clock::Clock;
use crate::messages::{
    HarvesterMsg, HibernatorMsg, LedgerHandle, ReceiverMsg, Runnable, SchedulerMsg, Shape, Stopping,
};
use crate::store::{Applied, NewJob, Refusal, Transition, Verdict, Work};
use crate::supervise::Gauge;

/// Requests whose verdict is awaited at one time.
pub const IN_FLIGHT_MAX: usize = 256;

/// What the receiver works with.
#[derive(Clone)]
pub struct Deps {
    /// Where transitions go.
    pub ledger: LedgerHandle,
    /// Gets what may run now.
    pub scheduler: mpsc::Sender<SchedulerMsg>,
    /// Gets what may run later.
    pub hibernator: mpsc::Sender<HibernatorMsg>,
    /// Told of live attempts of cancelled jobs.
    pub harvester: mpsc::Sender<HarvesterMsg>,
    /// Tells now from later.
    pub clock: Arc<dyn Clock>,
}

/// Runs the receiver until `stop` or until all senders are gone. Requests under way when it stops are dropped
/// unanswered: their callers learn that the core is stopping.
///
/// # Errors
/// None; the signature is that of all modules.
pub async fn run(
    mut inbox: mpsc::Receiver<ReceiverMsg>,
    deps: Deps,
    gauge: Gauge,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            Some(result) = under_way.next() => {
                if let Some(refusal) = result {
                    gauge.error(&refusal);
                }
            }
            message = inbox.recv(), if under_way.len() < IN_FLIGHT_MAX => {
                let Some(message) = message else { return Ok(()) };
                gauge.handled();
                let Ok(request) = begin(&deps, message).await else { return Ok(()) };
                under_way.push(finish(&deps, request));
            }
        }
    }
}

/// A request whose transition is in the ledger's queue.
struct Request {
    what: What,
    verdict: oneshot::Receiver<Verdict>,
    reply: oneshot::Sender<Verdict>,
}

enum What {
    /// The work of the job to be, which has no number yet, and when it may start.
    Submit(Box<Runnable>),
    Cancel(JobId),
}

async fn begin(deps: &Deps, message: ReceiverMsg) -> Result<Request, Stopping> {
    let (what, transition, reply) = match message {
        ReceiverMsg::Submit { new, reply } => {
            (What::Submit(Box::new(runnable(JobId(0), &new))), Transition::CreateJob(new), reply)
        }
        ReceiverMsg::Cancel { job, reply } => {
            (What::Cancel(job), Transition::Cancel { job, at: deps.clock.now() }, reply)
        }
    };
    Ok(Request { what, verdict: deps.ledger.queue(transition).await?, reply })
}

/// Awaits the verdict, hands the job on and answers; the refusal is returned when the database itself refused.
async fn finish(deps: &Deps, request: Request) -> Option<Refusal> {
    let Ok(verdict) = request.verdict.await else { return None };
    match (&verdict, request.what) {
        (Ok(Applied::Job { job, repeated: false }), What::Submit(mut work)) => {
            work.job = *job;
            hand_on(*work, deps.clock.now(), &deps.scheduler, &deps.hibernator).await;
        }
        (Ok(Applied::Cancelled { live, .. }), What::Cancel(job)) => {
            // A module that is gone stops the core, which is then rebuilt from the store.
            let _ = deps.scheduler.send(SchedulerMsg::Remove(job)).await;
            let _ = deps.hibernator.send(HibernatorMsg::Remove(job)).await;
            if !live.is_empty() {
                let _ = deps.harvester.send(HarvesterMsg::Cancel(live.clone())).await;
            }
        }
        _ => {}
    }
    let broken = verdict.as_ref().err().filter(|refusal| matches!(refusal, Refusal::Broken(_))).cloned();
    // A caller that went away misses its answer; what it asked for is done all the same.
    let _ = request.reply.send(verdict);
    broken
}

/// Work that may run now goes to the scheduler, other work to the hibernator.
async fn hand_on(
    work: Runnable,
    now: Timestamp,
    scheduler: &mpsc::Sender<SchedulerMsg>,
    hibernator: &mpsc::Sender<HibernatorMsg>,
) {
    let until = work.runnable_since;
    if until > now {
        let _ = hibernator.send(HibernatorMsg::Hold { until, work }).await;
    } else {
        let _ = scheduler.send(SchedulerMsg::Enqueue(work)).await;
    }
}

/// All tasks of a job that was just made; `runnable_since` is the instant before which it must not start.
pub(crate) fn runnable(job: JobId, new: &NewJob) -> Runnable {
    Runnable {
        job,
        group: new.group,
        priority: new.spec.priority,
        runnable_since: new.spec.start_at.unwrap_or(new.submitted_at).max(new.submitted_at),
        shape: Shape(new.spec.resources),
        work: Work::Fresh(new.spec.tasks()),
    }
}
