//! Why a job stands where it stands. Pure: what is known comes in, sentences come out.

use std::collections::BTreeMap;

use swarm_protocol::api::{Why, WhyReason, WorkerView};
use swarm_protocol::state::JobState;
use swarm_protocol::{Timestamp, WorkerId};

use crate::archive::job_state;
use crate::store::{JobRecord, LivePhase, TaskRecord};

/// What is known beside the job itself.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) now: Timestamp,
    /// Jobs that would be offered before this one; none when it is not queued.
    pub(super) position: Option<u64>,
    /// Why its tasks are not placed, worker by worker; empty when they would fit.
    pub(super) placing: Vec<WhyReason>,
    pub(super) workers: Vec<WorkerView>,
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
        JobState::Waiting => waiting(job, facts),
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

fn waiting(job: &JobRecord, facts: &Facts) -> Parts {
    let mut reasons = Vec::new();
    let mut hint = None;
    if let Some((text, way_out)) = impossible(job, &facts.workers) {
        reasons.push(reason("impossible", text, None));
        hint = Some(way_out);
    }
    if let Some(until) = backoff(facts) {
        let text =
            format!("A failed attempt is tried again at {}.", until.to_rfc3339_opts(chrono::SecondsFormat::Secs, true));
        reasons.push(reason("backoff", text, None));
    }
    reasons.extend(facts.placing.iter().cloned());
    match facts.position {
        Some(0) | None => {}
        Some(1) => reasons.push(reason("behind", "One job is ahead of it.", None)),
        Some(count) => reasons.push(reason("behind", format!("{count} jobs are ahead of it."), None)),
    }
    if reasons.is_empty() {
        let text = "It is next and there is room: it starts within moments.";
        reasons.push(reason("starting", text, None));
    }
    let more = reasons.len() - 1;
    let summary = match more {
        0 => format!("Waiting. {}", reasons[0].text),
        _ => format!("Waiting. {} ({more} more reasons)", reasons[0].text),
    };
    (summary, reasons, hint)
}

/// Whether no worker known could ever take one of its tasks, even if it were idle.
fn impossible(job: &JobRecord, workers: &[WorkerView]) -> Option<(String, String)> {
    let able: Vec<_> = workers.iter().filter(|worker| worker.state != "revoked" && worker.facts.slots > 0).collect();
    if able.is_empty() {
        let hint = "start a worker, or `worker token` for a new one".to_owned();
        return Some(("No worker is connected.".to_owned(), hint));
    }
    let needs = job.needs();
    let fits = |worker: &&WorkerView| {
        worker.facts.cpu_millis >= needs.cpu_millis && worker.facts.memory_bytes >= needs.memory_bytes
    };
    if able.iter().any(fits) {
        return None;
    }
    let cpu = able.iter().map(|worker| worker.facts.cpu_millis).max().unwrap_or(0);
    let memory = able.iter().map(|worker| worker.facts.memory_bytes).max().unwrap_or(0);
    let text = format!(
        "No worker is large enough, even idle: a task needs {} thousandths of a core and {} MiB; the largest offers are {cpu} and {} MiB.",
        needs.cpu_millis,
        needs.memory_bytes >> 20,
        memory >> 20,
    );
    Some((text, "ask for less, or add a larger worker".to_owned()))
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
    let summary =
        format!("Running: {} of {} tasks are on workers, {} wait.", counts.live, counts.total, counts.waiting);
    (summary, reasons, None)
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
    use swarm_protocol::link::WorkerFacts;

    use super::*;
    use crate::archive::tests::{instant, job_record};
    use crate::store::LiveTask;

    fn worker(cpu_millis: u32) -> WorkerView {
        WorkerView {
            id: WorkerId(1),
            name: "big".into(),
            state: "ready".into(),
            facts: WorkerFacts { cpu_millis, memory_bytes: 1 << 40, slots: 4, ..WorkerFacts::default() },
            live: 0,
            used_cpu_millis: 0,
            used_memory_bytes: 0,
            heard_at: None,
        }
    }

    fn codes(job: &JobRecord, facts: &Facts) -> (String, Vec<String>) {
        let why = answer(job, facts, &|id| format!("worker-{id}"));
        (why.summary, why.reasons.into_iter().map(|reason| reason.code).collect())
    }

    #[test]
    fn each_cause_of_waiting_has_its_reason() {
        let mut job = job_record();
        let mut facts = Facts { now: instant(10), workers: vec![worker(4000)], ..Facts::default() };
        assert_eq!(codes(&job, &facts).1, ["starting"]);
        facts.position = Some(2);
        facts.placing = vec![reason("memory", "big has too little memory left", Some("big".into()))];
        assert_eq!(codes(&job, &facts).1, ["memory", "behind"]);
        let phase = LivePhase::Waiting { not_before: instant(60) };
        let live = LiveTask { job: JobId(1), task: 0, attempt: 2, phase, losses: 1, failures: 0 };
        facts.tasks = vec![TaskRecord { task: 0, live: Some(live), outcome: None, attempts: Vec::new() }];
        assert_eq!(codes(&job, &facts).1, ["backoff", "memory", "behind"]);
        job.spec.resources.cpu_millis = 5000;
        assert_eq!(codes(&job, &facts).1[0], "impossible");
        assert_eq!(codes(&job, &Facts::default()).1[0], "impossible", "no worker at all");
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
        let task = TaskRecord { task: 0, live: Some(live), outcome: None, attempts: Vec::new() };
        let facts = Facts { now: instant(10), tasks: vec![task], ..Facts::default() };
        let why = answer(&job, &facts, &|id| format!("worker-{id}"));
        assert_eq!(why.reasons[0].code, "cancelling");
        assert_eq!(why.reasons[1].worker.as_deref(), Some("worker-7"));
        (job.counts.live, job.counts.failed) = (0, 1);
        let (summary, _) = codes(&job, &facts);
        assert_eq!(summary, "1 of 1 tasks failed.");
    }
}
