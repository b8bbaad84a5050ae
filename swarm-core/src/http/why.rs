//! Why a job stands where it stands. Pure: what is known comes in, sentences come out.

use std::collections::BTreeMap;

use swarm_protocol::api::{Why, WhyReason};
use swarm_protocol::state::JobState;
use swarm_protocol::{Timestamp, WorkerId};

use crate::archive::job_state;
use crate::plan::why::hint;
use crate::store::{JobRecord, LivePhase, TaskRecord};

/// What is known beside the job itself.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) now: Timestamp,
    /// Jobs that would be offered before this one; none when none of its tasks is queued.
    pub(super) position: Option<u64>,
    /// Why its tasks are not placed, worker by worker; empty when they would fit.
    pub(super) placing: Vec<WhyReason>,
    /// Its first tasks.
    pub(super) tasks: Vec<TaskRecord>,
}

fn reason(code: &str, text: impl Into<String>, worker: Option<String>) -> WhyReason {
    WhyReason { code: code.to_owned(), text: text.into(), worker }
}

/// The answer, most important reason first.
pub(super) fn answer(job: &JobRecord, facts: &Facts, name_of: &dyn Fn(WorkerId) -> String) -> Why {
    let state = job_state(job, facts.now);
    let (summary, reasons, hint) = match state {
        JobState::Delayed => delayed(job),
        JobState::Waiting => waiting(facts),
        JobState::Running => running(job, facts, name_of),
        JobState::Succeeded | JobState::Failed | JobState::Cancelled => ended(job, state),
    };
    Why { state, summary, reasons, hint }
}

type Parts = (String, Vec<WhyReason>, Option<String>);

fn delayed(job: &JobRecord) -> Parts {
    let start = job.spec.start_at.map(|at| at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)).unwrap_or_default();
    let text = format!("Delayed until {start}, as its `start_at` says.");
    (text.clone(), vec![reason("delayed", text, None)], None)
}

fn waiting(facts: &Facts) -> Parts {
    let reasons = obstacles(facts);
    let first = sentence(&reasons[0]);
    let summary = match reasons.len() - 1 {
        0 => format!("Waiting. {first}"),
        1 => format!("Waiting. {first} (1 more reason)"),
        more => format!("Waiting. {first} ({more} more reasons)"),
    };
    (summary, reasons, hint(&facts.placing))
}

/// What keeps the tasks that wait from starting; never empty.
fn obstacles(facts: &Facts) -> Vec<WhyReason> {
    let mut reasons = facts.placing.clone();
    if let Some(until) = backoff(facts) {
        let text =
            format!("A failed attempt is tried again at {}.", until.to_rfc3339_opts(chrono::SecondsFormat::Secs, true));
        let first = usize::from(reasons.first().is_some_and(|reason| reason.worker.is_none()));
        reasons.insert(first, reason("backoff", text, None));
    }
    match facts.position {
        Some(0) | None => {}
        Some(1) => reasons.push(reason("behind", "One job is ahead of it.", None)),
        Some(count) => reasons.push(reason("behind", format!("{count} jobs are ahead of it."), None)),
    }
    if reasons.is_empty() {
        let text = "It is next and there is room: it starts within moments.";
        reasons.push(reason("starting", text, None));
    }
    reasons
}

fn sentence(reason: &WhyReason) -> String {
    let text = match &reason.worker {
        Some(worker) => format!("On {worker}: {}", reason.text),
        None => reason.text.clone(),
    };
    let mut rest = text.trim_end_matches('.').chars();
    let first = rest.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", rest.as_str())
}

/// The earliest end of a backoff, when every task looked at that waits again is in one.
fn backoff(facts: &Facts) -> Option<Timestamp> {
    let waits = facts.tasks.iter().filter_map(|task| match task.live.as_ref()?.phase {
        LivePhase::Waiting { not_before } => Some(not_before),
        _ => None,
    });
    waits.min().filter(|until| *until > facts.now)
}

fn running(job: &JobRecord, facts: &Facts, name_of: &dyn Fn(WorkerId) -> String) -> Parts {
    let mut by_worker: BTreeMap<String, u64> = BTreeMap::new();
    for task in &facts.tasks {
        let phase = task.live.as_ref().map(|live| &live.phase);
        if let Some(LivePhase::Assigned { worker, .. } | LivePhase::Started { worker, .. }) = phase {
            *by_worker.entry(name_of(*worker)).or_default() += 1;
        }
    }
    let mut reasons: Vec<_> = by_worker
        .into_iter()
        .map(|(worker, count)| reason("running", format!("{count} of its tasks are on {worker}."), Some(worker)))
        .collect();
    if job.cancel_requested {
        reasons.insert(0, reason("cancelling", "A cancel was asked for; its workers are stopping it.", None));
    }
    let counts = &job.counts;
    let mut summary =
        format!("Running: {} of {} tasks are on workers, {} wait.", counts.live, counts.total, counts.waiting);
    if counts.waiting == 0 {
        return (summary, reasons, None);
    }
    let obstacles = obstacles(facts);
    summary = format!("{summary} {}", sentence(&obstacles[0]));
    reasons.extend(obstacles);
    (summary, reasons, hint(&facts.placing))
}

fn ended(job: &JobRecord, state: JobState) -> Parts {
    let counts = &job.counts;
    let (text, hint) = match state {
        JobState::Succeeded => (format!("It ended well: {} of {} tasks.", counts.succeeded, counts.total), None),
        JobState::Cancelled => {
            (format!("It was cancelled, {} of {} tasks before their end.", counts.cancelled, counts.total), None)
        }
        _ => {
            let hint = "see its tasks for the exit codes, and their logs for the reason".to_owned();
            (format!("{} of {} tasks failed.", counts.failed, counts.total), Some(hint))
        }
    };
    (text.clone(), vec![reason("ended", text, None)], hint)
}

#[cfg(test)]
mod tests {
    use swarm_protocol::JobId;

    use super::*;
    use crate::archive::tests::{instant, job_record};
    use crate::store::LiveTask;

    fn codes(job: &JobRecord, facts: &Facts) -> (String, Vec<String>) {
        let why = answer(job, facts, &|id| format!("worker-{id}"));
        (why.summary, why.reasons.into_iter().map(|reason| reason.code).collect())
    }

    #[test]
    fn each_cause_of_waiting_has_its_reason() {
        let mut job = job_record();
        let mut facts = Facts { now: instant(10), ..Facts::default() };
        assert_eq!(codes(&job, &facts).1, ["starting"]);
        facts.position = Some(2);
        facts.placing = vec![reason("memory", "1 GiB of memory short", Some("big".into()))];
        let (summary, reasons) = codes(&job, &facts);
        assert_eq!(reasons, ["memory", "behind"]);
        assert_eq!(summary, "Waiting. On big: 1 GiB of memory short. (1 more reason)");
        let phase = LivePhase::Waiting { not_before: instant(60) };
        let live = LiveTask { job: JobId(1), task: 0, attempt: 2, phase, losses: 1, failures: 0 };
        facts.tasks =
            vec![TaskRecord { task: 0, live: Some(live), outcome: None, attempts: Vec::new(), late: Vec::new() }];
        assert_eq!(codes(&job, &facts).1, ["backoff", "memory", "behind"]);
        facts.placing.insert(0, reason("too-big", "a task needs 64 cores", None));
        let why = answer(&job, &facts, &|id| format!("worker-{id}"));
        assert_eq!(why.summary, "Waiting. A task needs 64 cores. (3 more reasons)");
        assert_eq!(why.hint.as_deref(), Some("ask for less, or add a bigger worker"));
        job.spec.start_at = Some(instant(99));
        let (summary, reasons) = codes(&job, &facts);
        assert!(summary.contains("1970-01-01T00:01:39Z"), "{summary}");
        assert_eq!(reasons, ["delayed"]);
    }

    #[test]
    fn running_and_ended_jobs_say_where_and_how() {
        let mut job = job_record();
        (job.counts.waiting, job.counts.live, job.cancel_requested) = (0, 1, true);
        let phase = LivePhase::Assigned { worker: WorkerId(7), at: instant(1) };
        let live = LiveTask { job: JobId(1), task: 0, attempt: 1, phase, losses: 0, failures: 0 };
        let task = TaskRecord { task: 0, live: Some(live), outcome: None, attempts: Vec::new(), late: Vec::new() };
        let facts = Facts { now: instant(10), tasks: vec![task], ..Facts::default() };
        let why = answer(&job, &facts, &|id| format!("worker-{id}"));
        assert_eq!(why.reasons[0].code, "cancelling");
        assert_eq!(why.reasons[1].worker.as_deref(), Some("worker-7"));
        assert_eq!(why.reasons.len(), 2, "nothing of it waits");
        (job.counts.live, job.counts.failed) = (0, 1);
        let (summary, _) = codes(&job, &facts);
        assert_eq!(summary, "1 of 1 tasks failed.");
    }
    #[test]
    fn the_waiting_part_of_a_running_array_has_its_reasons() {
        let mut job = job_record();
        (job.counts.total, job.counts.waiting, job.counts.live) = (3, 2, 1);
        let placing = vec![reason("slots", "all 2 slots are taken", Some("big".into()))];
        let facts = Facts { now: instant(10), position: Some(1), placing, ..Facts::default() };
        let why = answer(&job, &facts, &|id| format!("worker-{id}"));
        let codes: Vec<&str> = why.reasons.iter().map(|reason| reason.code.as_str()).collect();
        assert_eq!(codes, ["slots", "behind"]);
        assert_eq!(why.summary, "Running: 1 of 3 tasks are on workers, 2 wait. On big: all 2 slots are taken.");
        assert!(why.hint.is_some());
    }
}
