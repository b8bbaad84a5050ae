//! The archive (TaskArchive) answers for jobs, ended ones above all: what the store keeps, shaped for readers. Pure.

use swarm_protocol::api::{AttemptView, JobDetail, JobView, LateReportView, OutputView, TaskPhase, TaskView};
use swarm_protocol::state::JobState;
use swarm_protocol::{AttemptId, AttemptNo, JobId, Timestamp, WorkerId};

use crate::store::{AttemptRecord, JobRecord, LateReport, LivePhase, LiveTask, TaskRecord};

/// The state of a job at `now`.
#[must_use]
pub fn job_state(record: &JobRecord, now: Timestamp) -> JobState {
    record.counts.job_state(record.spec.start_at.is_some_and(|start| start > now))
}

/// A job as lists show it.
#[must_use]
pub fn job_view(record: &JobRecord, now: Timestamp) -> JobView {
    JobView {
        id: record.id,
        name: record.spec.name.clone(),
        state: job_state(record, now),
        tasks: record.counts,
        owner: record.owner_name.clone(),
        group: record.group_name.clone(),
        image: record.spec.image.clone(),
        image_digest: record.image.config,
        priority: record.spec.priority,
        submitted_at: record.submitted_at,
        start_at: record.spec.start_at,
        ended_at: record.ended_at,
        cancel_requested: record.cancel_requested,
        launched_by: record.launch.clone(),
    }
}

/// A job by itself.
#[must_use]
pub fn job_detail(record: &JobRecord, now: Timestamp) -> JobDetail {
    JobDetail { job: job_view(record, now), spec: record.spec.clone() }
}

/// A task with all its attempts; `name_of` knows the workers' names.
#[must_use]
pub fn task_view(job: JobId, record: &TaskRecord, name_of: &dyn Fn(WorkerId) -> String) -> TaskView {
    let mut attempts: Vec<_> = record.attempts.iter().map(attempt_view).collect();
    let live = record.live.as_ref().and_then(|live| live_attempt(job, live, name_of));
    attempts.extend(live.filter(|live| attempts.iter().all(|ended| ended.attempt != live.attempt)));
    TaskView {
        task: record.task,
        phase: task_phase(record),
        outcome: record.outcome.as_ref().map(swarm_protocol::Outcome::kind),
        exit_code: record.outcome.as_ref().and_then(swarm_protocol::Outcome::exit_code),
        detail: record.outcome.as_ref().and_then(swarm_protocol::Outcome::detail),
        attempts,
        late_reports: record.late.iter().map(late_report_view).collect(),
    }
}

fn late_report_view(report: &LateReport) -> LateReportView {
    LateReportView {
        attempt: report.attempt,
        worker: report.worker_name.clone(),
        outcome: report.outcome.kind(),
        exit_code: report.outcome.exit_code(),
        detail: report.outcome.detail(),
        reported_at: report.reported_at,
    }
}

fn task_phase(record: &TaskRecord) -> TaskPhase {
    match (&record.outcome, &record.live) {
        (Some(_), _) => TaskPhase::Ended,
        (None, Some(LiveTask { phase: LivePhase::Assigned { .. }, .. })) => TaskPhase::Assigned,
        (None, Some(LiveTask { phase: LivePhase::Started { .. }, .. })) => TaskPhase::Started,
        (None, _) => TaskPhase::Waiting,
    }
}

/// An attempt as stored.
#[must_use]
pub fn attempt_view(record: &AttemptRecord) -> AttemptView {
    let phase = match (record.ended_at, record.started_at) {
        (Some(_), _) => TaskPhase::Ended,
        (None, Some(_)) => TaskPhase::Started,
        (None, None) => TaskPhase::Assigned,
    };
    AttemptView {
        attempt: record.id.attempt,
        worker: record.worker_name.clone(),
        phase,
        assigned_at: record.assigned_at,
        started_at: record.started_at,
        ended_at: record.ended_at,
        ran_ms: record.ran_ms,
        outcome: record.outcome.as_ref().map(swarm_protocol::Outcome::kind),
        exit_code: record.outcome.as_ref().and_then(swarm_protocol::Outcome::exit_code),
        detail: record.outcome.as_ref().and_then(swarm_protocol::Outcome::detail),
        is_final: record.is_final,
        may_have_run: record.may_have_run,
        log_bytes: record.log_bytes,
        log_cut_bytes: record.log_cut_bytes,
        outputs: record.outputs.iter().map(output_view).collect(),
        usage: record.usage,
    }
}

fn output_view(report: &swarm_protocol::link::OutputReport) -> OutputView {
    OutputView {
        path: report.path.clone(),
        digest: report.digest,
        size_bytes: report.size_bytes,
        is_dir: report.is_dir,
        mode: report.mode,
    }
}

/// The attempt a live row is about; none while it waits for the next one.
fn live_attempt(job: JobId, live: &LiveTask, name_of: &dyn Fn(WorkerId) -> String) -> Option<AttemptView> {
    let (worker, assigned_at, started_at) = match live.phase {
        LivePhase::Waiting { .. } => return None,
        LivePhase::Assigned { worker, at } => (worker, at, None),
        LivePhase::Started { worker, at, started_at } => (worker, at, Some(started_at)),
    };
    Some(attempt_view(&AttemptRecord {
        id: AttemptId { job, task: live.task, attempt: live.attempt },
        worker,
        worker_name: name_of(worker),
        assigned_at,
        started_at,
        ended_at: None,
        ran_ms: None,
        outcome: None,
        is_final: false,
        may_have_run: false,
        log_bytes: 0,
        log_cut_bytes: 0,
        outputs: Vec::new(),
        usage: None,
    }))
}

/// The newest attempt of a task that reached a worker.
#[must_use]
pub fn newest_attempt(record: &TaskRecord) -> Option<AttemptNo> {
    let live = record.live.as_ref().filter(|live| !matches!(live.phase, LivePhase::Waiting { .. }));
    let ended = record.attempts.iter().map(|ended| ended.id.attempt).max();
    live.map(|live| live.attempt).max(ended)
}

#[cfg(test)]
pub(crate) mod tests {
    use swarm_protocol::link::ImageOrder;
    use swarm_protocol::spec::JobSpec;
    use swarm_protocol::state::TaskCounts;
    use swarm_protocol::{Digest, GroupId, LossReason, Outcome, OutcomeKind, UserId};

    use super::*;

    pub(crate) fn instant(second: i64) -> Timestamp {
        chrono::DateTime::from_timestamp(second, 0).unwrap()
    }

    pub(crate) fn job_record() -> JobRecord {
        JobRecord {
            id: JobId(1),
            owner: UserId(1),
            owner_name: "ada".into(),
            group: GroupId(1),
            group_name: "lab".into(),
            allow_root: false,
            spec: JobSpec::new("tool"),
            image: ImageOrder { config: Digest::of(b"c"), config_bytes: 1, layers: Vec::new() },
            input_bytes: Vec::new(),
            counts: TaskCounts { total: 1, waiting: 1, ..TaskCounts::default() },
            next_fresh: 0,
            submitted_at: instant(10),
            ended_at: None,
            cancel_requested: false,
            launch: None,
        }
    }

    fn ended(attempt: AttemptNo, outcome: Outcome, is_final: bool) -> AttemptRecord {
        AttemptRecord {
            id: AttemptId { job: JobId(1), task: 0, attempt },
            worker: WorkerId(1),
            worker_name: "w".into(),
            assigned_at: instant(1),
            started_at: Some(instant(2)),
            ended_at: Some(instant(3)),
            ran_ms: Some(1000),
            outcome: Some(outcome),
            is_final,
            may_have_run: true,
            log_bytes: 5,
            log_cut_bytes: 0,
            outputs: Vec::new(),
            usage: None,
        }
    }

    #[test]
    fn a_job_is_delayed_until_its_start() {
        let mut record = job_record();
        record.spec.start_at = Some(instant(100));
        assert_eq!(job_state(&record, instant(99)), JobState::Delayed);
        assert_eq!(job_state(&record, instant(100)), JobState::Waiting);
    }

    #[test]
    fn a_live_attempt_follows_the_ended_ones() {
        let lost = Outcome::Lost { reason: LossReason::LeaseExpired, detail: "silent".into() };
        let phase = LivePhase::Started { worker: WorkerId(2), at: instant(4), started_at: instant(5) };
        let live = LiveTask { job: JobId(1), task: 0, attempt: 2, phase, losses: 1, failures: 0 };
        let mut record = TaskRecord {
            task: 0,
            live: Some(live),
            outcome: None,
            attempts: vec![ended(1, lost, false)],
            late: Vec::new(),
        };
        let view = task_view(JobId(1), &record, &|id| format!("worker-{id}"));
        assert_eq!((view.phase, view.outcome, view.attempts.len()), (TaskPhase::Started, None, 2));
        assert_eq!(view.attempts[0].detail.as_deref(), Some("lease-expired: silent"));
        assert_eq!((view.attempts[1].worker.as_str(), view.attempts[1].phase), ("worker-2", TaskPhase::Started));
        assert_eq!(newest_attempt(&record), Some(2));

        record.live.as_mut().unwrap().phase = LivePhase::Waiting { not_before: instant(9) };
        assert_eq!(task_view(JobId(1), &record, &|_| String::new()).phase, TaskPhase::Waiting);
        assert_eq!(newest_attempt(&record), Some(1), "the next attempt has not reached a worker");
    }

    #[test]
    fn an_ended_task_shows_its_final_outcome() {
        let outcome = Outcome::Failed { exit_code: 3 };
        let attempts = vec![ended(1, outcome.clone(), true)];
        let reported_at = instant(30);
        let late = LateReport { attempt: 1, worker_name: "w2".into(), outcome: Outcome::TimedOut, reported_at };
        let record = TaskRecord { task: 0, live: None, outcome: Some(outcome), attempts, late: vec![late] };
        let view = task_view(JobId(1), &record, &|_| String::new());
        let late: Vec<_> =
            view.late_reports.iter().map(|late| (late.attempt, late.worker.as_str(), late.outcome)).collect();
        assert_eq!(late, [(1, "w2", OutcomeKind::TimedOut)]);
        assert_eq!((view.phase, view.exit_code), (TaskPhase::Ended, Some(3)));
        assert!(view.attempts[0].is_final && view.attempts[0].may_have_run);
    }
}
