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
use crate::supervise::{Gauge, until_stopped};

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
                let Ok(request) = begin(&deps, message).await else { return until_stopped(&stop).await };
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
    /// The work of the job to be, which has no number yet, and the instant before which it must not start.
    Submit(Box<Runnable>, Option<Timestamp>),
    Cancel(JobId),
}

async fn begin(deps: &Deps, message: ReceiverMsg) -> Result<Request, Stopping> {
    let (what, transition, reply) = match message {
        ReceiverMsg::Submit { new, reply } => {
            let what = What::Submit(Box::new(runnable(JobId(0), &new)), new.job.spec.start_at);
            (what, Transition::CreateJob(new), reply)
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
        (Ok(Applied::Job { job, repeated: false }), What::Submit(mut work, until)) => {
            work.job = *job;
            hand_on(*work, until, deps.clock.now(), &deps.scheduler, &deps.hibernator).await;
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
    until: Option<Timestamp>,
    now: Timestamp,
    scheduler: &mpsc::Sender<SchedulerMsg>,
    hibernator: &mpsc::Sender<HibernatorMsg>,
) {
    if let Some(until) = until.filter(|until| *until > now) {
        let _ = hibernator.send(HibernatorMsg::Hold { until, work }).await;
    } else {
        let _ = scheduler.send(SchedulerMsg::Enqueue(work)).await;
    }
}

/// All tasks of a job that was just made.
pub(crate) fn runnable(job: JobId, new: &NewJob) -> Runnable {
    Runnable {
        job,
        group: new.group,
        priority: new.job.spec.priority,
        runnable_since: new.job.spec.start_at.unwrap_or(new.submitted_at).max(new.submitted_at),
        shape: Shape::of(&new.job.spec),
        work: Work::Fresh(new.job.spec.tasks()),
    }
}

#[cfg(test)]
mod tests {
    use swarm_protocol::Digest;
    use swarm_protocol::spec::JobSpec;

    use super::*;
    use crate::clock::ManualClock;
    use crate::messages::LedgerEntry;
    use crate::testing::{Memory, at, new_job};

    struct Run {
        inbox: mpsc::Sender<ReceiverMsg>,
        scheduler: mpsc::Receiver<SchedulerMsg>,
        hibernator: mpsc::Receiver<HibernatorMsg>,
        harvester: mpsc::Receiver<HarvesterMsg>,
    }

    fn start(ledger: LedgerHandle) -> Run {
        let (inbox, messages) = mpsc::channel(64);
        let (to_scheduler, scheduler) = mpsc::channel(512);
        let (to_hibernator, hibernator) = mpsc::channel(512);
        let (to_harvester, harvester) = mpsc::channel(512);
        let clock = Arc::new(ManualClock::new(at(0)));
        let deps = Deps { ledger, scheduler: to_scheduler, hibernator: to_hibernator, harvester: to_harvester, clock };
        tokio::spawn(run(messages, deps, Gauge::new("receiver", &inbox), CancellationToken::new()));
        Run { inbox, scheduler, hibernator, harvester }
    }

    impl Run {
        async fn submit(&self, new: NewJob) -> oneshot::Receiver<Verdict> {
            let (reply, verdict) = oneshot::channel();
            self.inbox.send(ReceiverMsg::Submit { new: Box::new(new), reply }).await.unwrap();
            verdict
        }

        async fn cancel(&self, job: JobId) -> Verdict {
            let (reply, verdict) = oneshot::channel();
            self.inbox.send(ReceiverMsg::Cancel { job, reply }).await.unwrap();
            verdict.await.unwrap()
        }
    }

    fn submitted(job: u64, repeated: bool) -> Verdict {
        Ok(Applied::Job { job: JobId(job), repeated })
    }

    #[tokio::test]
    async fn an_acknowledged_job_is_committed_and_handed_on_exactly_once() {
        let memory = Memory::default();
        let mut run = start(memory.ledger());
        let mut now = new_job(JobSpec::new("busybox"));
        now.idempotency = Some(("key".into(), Digest::of(b"body")));
        assert_eq!(run.submit(now.clone()).await.await.unwrap(), submitted(1, false));
        let Ok(SchedulerMsg::Enqueue(work)) = run.scheduler.try_recv() else { panic!("not enqueued") };
        assert_eq!((work.job, work.runnable_since), (JobId(1), at(0)));
        assert_eq!(run.submit(now).await.await.unwrap(), submitted(1, true));
        assert!(run.scheduler.try_recv().is_err(), "a repetition is not enqueued again");

        let mut later = new_job(JobSpec::new("busybox"));
        later.job.spec.start_at = Some(at(60));
        assert_eq!(run.submit(later).await.await.unwrap(), submitted(2, false));
        let Ok(HibernatorMsg::Hold { until, work }) = run.hibernator.try_recv() else { panic!("not held") };
        assert_eq!((until, work.job), (at(60), JobId(2)));
        assert!(run.scheduler.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_cancel_clears_queue_and_hibernator_before_it_is_acknowledged() {
        let memory = Memory::default();
        let mut run = start(memory.ledger());
        run.submit(new_job(JobSpec::new("busybox"))).await.await.unwrap().unwrap();
        assert!(matches!(run.scheduler.try_recv(), Ok(SchedulerMsg::Enqueue(_))));
        assert!(matches!(run.cancel(JobId(1)).await, Ok(Applied::Cancelled { .. })));
        assert!(matches!(run.scheduler.try_recv(), Ok(SchedulerMsg::Remove(JobId(1)))));
        assert!(matches!(run.hibernator.try_recv(), Ok(HibernatorMsg::Remove(JobId(1)))));
        assert!(run.harvester.try_recv().is_err(), "nothing of it was live");
        assert!(matches!(run.cancel(JobId(9)).await, Err(Refusal::NotFound(_))));
        assert!(run.scheduler.try_recv().is_err());
    }

    #[tokio::test]
    async fn submits_share_batches_up_to_the_bound() {
        let (sender, mut entries) = mpsc::channel::<LedgerEntry>(1024);
        let run = start(LedgerHandle(sender));
        let mut verdicts = Vec::new();
        for _ in 0..IN_FLIGHT_MAX {
            verdicts.push(run.submit(new_job(JobSpec::new("busybox"))).await);
        }
        // None is answered, and yet all arrive.
        let mut held = Vec::new();
        for _ in 0..IN_FLIGHT_MAX {
            held.push(entries.recv().await.unwrap());
        }
        verdicts.push(run.submit(new_job(JobSpec::new("busybox"))).await);
        tokio::task::yield_now().await;
        assert!(entries.try_recv().is_err(), "beyond the bound the inbox fills instead");
        let _ = held.pop().unwrap().reply.send(submitted(1, false));
        assert!(entries.recv().await.is_some());
    }
}
