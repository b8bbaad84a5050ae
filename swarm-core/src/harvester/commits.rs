//! The short tasks that the harvester's loop starts and does not wait for: each awaits a check or a commit, tells the other
//! modules and the worker what came of it, and reports back into the loop.

use std::sync::Arc;

use swarm_protocol::link::{FinalReport, ToWorker};
use swarm_protocol::{AttemptId, Outcome, WorkerId};
use tokio::sync::{mpsc, oneshot};

use super::late::LateReport;
use super::logs::{Checked, LogWork};
use super::{Back, Deps, outputs, retry};
use crate::cache::LogNotice;
use crate::messages::{DispatcherMsg, Expected, HibernatorMsg, LinkTx, Runnable, SchedulerMsg, Stopping};
use crate::recover::work_of;
use crate::store::{Applied, AttemptEnd, JobRecord, Next, Refusal, Transition, Work};
use swarm_host::blocking;

/// Compares what was found whole with what the job asked for: neither on the loop, which renews everybody's leases, nor
/// on the thread for logs, for that may take a while.
pub(super) async fn check_names(
    answer: oneshot::Receiver<(WorkerId, FinalReport, Checked)>,
    job: Arc<JobRecord>,
) -> Back {
    let Ok((worker, report, mut found)) = answer.await else { return Back::Nothing };
    blocking::run(move || {
        if matches!(found, Checked::Whole)
            && let Some(problem) = outputs::misnamed(&job.spec.outputs, &report)
        {
            found = Checked::Wrong(problem);
        }
        Back::Checked(worker, Box::new(report), found)
    })
    .await
}

pub(super) async fn commit_start(deps: Deps, transition: Transition, allow: Option<(AttemptId, WorkerId)>) -> Back {
    let committed = match deps.ledger.commit(transition).await {
        Ok(Ok(_)) => true,
        Ok(Err(refusal)) => {
            tracing::debug!("a start was refused: {refusal}");
            false
        }
        Err(Stopping) => return Back::Nothing,
    };
    allow.map_or(Back::Nothing, |(attempt, worker)| Back::Start { attempt, worker, committed })
}

pub(super) async fn commit_recall(deps: Deps, expected: Expected) -> Back {
    let (attempt, worker, at) = (expected.attempt, expected.worker, deps.clock.now());
    match deps.ledger.commit(Transition::Recall { attempt, worker, at }).await {
        // Its job was cancelled meanwhile, or there is no attempt number left: the recall ended the task.
        Ok(Ok(Applied::Ended { .. })) => {}
        Ok(Ok(_)) => {
            let pause = retry::after_recall(&expected);
            match next_attempt(&expected) {
                Some(work) if pause.is_zero() => drop(deps.scheduler.send(SchedulerMsg::Enqueue(work)).await),
                Some(work) => {
                    drop(deps.hibernator.send(HibernatorMsg::Hold { until: at + pause, work }).await);
                }
                None => {}
            }
        }
        Ok(Err(Refusal::Broken(reason))) => return Back::Unrecalled(attempt, reason),
        Ok(Err(refusal)) => tracing::debug!(%attempt, "a recall was refused: {refusal}"),
        Err(Stopping) => return Back::Nothing,
    }
    drop(deps.dispatcher.send(DispatcherMsg::Freed { worker, attempt }).await);
    Back::Settled(attempt)
}

pub(super) async fn commit_end(deps: Deps, expected: Expected, end: AttemptEnd, link: Option<LinkTx>) -> Back {
    let (attempt, worker, next, outcome) = (end.attempt, end.worker, end.next, end.outcome.clone());
    let mut is_kept = true;
    match deps.ledger.commit(Transition::End(Box::new(end))).await {
        Ok(Ok(Applied::Ended { job_ended })) => {
            tracing::info!(%attempt, %worker, outcome = outcome.kind().as_str(), job_ended, "attempt ended");
            if let Next::Retry { not_before } = next
                && let Some(work) = next_attempt(&expected)
            {
                drop(deps.hibernator.send(HibernatorMsg::Hold { until: not_before, work }).await);
            }
        }
        Ok(Ok(_)) => {}
        Ok(Err(Refusal::Broken(reason))) => {
            // Not acknowledged: its worker repeats the report.
            tracing::error!(%attempt, "the end of an attempt cannot be stored: {reason}");
            return Back::Refused(attempt, reason);
        }
        Ok(Err(refusal)) => {
            tracing::info!(%attempt, "a report was overtaken: {refusal}");
            is_kept = keep_superseded(&deps, worker, attempt, outcome).await;
        }
        // Not committed as far as we know, so not acknowledged: the worker repeats it.
        Err(Stopping) => return Back::Nothing,
    }
    deps.cache.tell(LogNotice { attempt, bytes: 0, ended: true });
    drop(deps.dispatcher.send(DispatcherMsg::Freed { worker, attempt }).await);
    if let Some(link) = link.filter(|_| is_kept) {
        drop(link.send(ToWorker::FinishStored { attempt }).await);
    }
    Back::Settled(attempt)
}

/// Ends an attempt that may have run without its worker's word. The record says what is kept of its log; that this may
/// lack something is said there, and at the end of the log itself once it is sure that nothing more comes.
pub(super) async fn give_up(
    deps: Deps,
    expected: Expected,
    mut end: AttemptEnd,
    kept_bytes: oneshot::Receiver<u64>,
    logs: mpsc::Sender<LogWork>,
) -> Back {
    let attempt = end.attempt;
    end.log_bytes = kept_bytes.await.unwrap_or(0);
    let back = commit_end(deps, expected, end, None).await;
    let then = if matches!(back, Back::Settled(_)) { LogWork::Cut(attempt) } else { LogWork::Forget(attempt) };
    drop(logs.send(then).await);
    back
}

/// A report about an attempt that is not followed: a repetition of what is recorded, or too late.
pub(super) async fn commit_superseded(deps: Deps, worker: WorkerId, late: LateReport, link: Option<LinkTx>) -> Back {
    let LateReport { attempt, outcome } = late;
    let store = Arc::clone(&deps.store);
    let known = blocking::run(move || store.attempt(attempt)).await;
    let repeated =
        matches!(&known, Ok(Some(record)) if record.worker == worker && record.outcome == Some(outcome.clone()));
    let is_kept = repeated || keep_superseded(&deps, worker, attempt, outcome).await;
    if let Some(link) = link.filter(|_| is_kept) {
        // A link whose queue is full is a worker that does not read; it repeats the report.
        drop(link.try_send(ToWorker::FinishStored { attempt }));
    }
    Back::Late(worker)
}

/// Keeps a report that does not count. False when its worker is to repeat it: the database refuses it, or the core stops.
async fn keep_superseded(deps: &Deps, worker: WorkerId, attempt: AttemptId, outcome: Outcome) -> bool {
    let at = deps.clock.now();
    match deps.ledger.commit(Transition::Superseded { attempt, worker, outcome, at }).await {
        Ok(Err(Refusal::Broken(reason))) => {
            tracing::error!(%attempt, %worker, "a late report cannot be stored: {reason}");
            false
        }
        Ok(_) => true,
        Err(Stopping) => false,
    }
}

/// The task's next attempt as something to run. It is as old as its job: what was lost does not queue up anew.
fn next_attempt(expected: &Expected) -> Option<Runnable> {
    let AttemptId { task, attempt, .. } = expected.attempt;
    let work = Work::Again(vec![(task, attempt.checked_add(1)?)]);
    Some(work_of(&expected.job, work))
}
