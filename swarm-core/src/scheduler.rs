//! The scheduler: which job is next. It owns the run queue ([`crate::plan::queue`]), is woken by its inbox alone, and
//! never names a worker.
//!
//! It never waits for the dispatcher, so the dispatcher may wait for it: news go there as nudges, and one that finds the
//! dispatcher's inbox full is dropped, because the dispatcher asks again within a second anyway.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::messages::{DispatcherMsg, SchedulerMsg};
use crate::plan::policy::Policy;
use crate::plan::queue::RunQueue;
use crate::supervise::Gauge;

/// Messages handled before one nudge goes out.
const BATCH: usize = 256;

/// Runs the scheduler until `stop` or until all senders are gone.
///
/// # Errors
/// None; the signature is that of all modules.
pub async fn run(
    mut inbox: mpsc::Receiver<SchedulerMsg>,
    policy: Box<dyn Policy>,
    dispatcher: mpsc::Sender<DispatcherMsg>,
    gauge: Gauge,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut queue = RunQueue::new(policy);
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let count = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            count = inbox.recv_many(&mut batch, BATCH) => count,
        };
        if count == 0 {
            return Ok(());
        }
        let mut news = false;
        for message in batch.drain(..) {
            news |= handle(&mut queue, message);
        }
        if news {
            // A lost nudge only costs time: see the module's docs.
            let _ = dispatcher.try_send(DispatcherMsg::WorkAvailable);
        }
        gauge.handled_many(count as u64);
    }
}

/// Handles one message; true when the dispatcher may find something it was not offered before.
fn handle(queue: &mut RunQueue, message: SchedulerMsg) -> bool {
    match message {
        SchedulerMsg::Enqueue(runnable) => {
            queue.enqueue(&runnable);
            return true;
        }
        SchedulerMsg::Next { tasks_max, reply } => {
            // The dispatcher may have gone while it waited; its tasks go back then.
            if let Err(Some(unclaimed)) = reply.send(queue.next(tasks_max)) {
                queue.put_back(&unclaimed);
            }
        }
        SchedulerMsg::PutBack(runnable) => queue.put_back(&runnable),
        SchedulerMsg::Park(shape) => queue.park(&shape),
        SchedulerMsg::Unpark(shapes) => {
            return shapes.into_iter().map(|shape| queue.unpark(shape)).filter(|was_parked| *was_parked).count() > 0;
        }
        SchedulerMsg::Remove(job) => {
            queue.remove(job);
        }
        SchedulerMsg::Unheld { mut tasks, reply } => {
            queue.take_held(&mut tasks);
            let _ = reply.send(tasks);
        }
        SchedulerMsg::Position { job, reply } => {
            let _ = reply.send(queue.position(job));
        }
    }
    false
}
