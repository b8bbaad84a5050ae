//! Jobs, their tasks, and why they stand where they stand.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use serde_json::Value;
use swarm_protocol::api::{JobDetail, JobView, LateReportView, Plan, Submitted, TaskPhase, TaskView, Why};
use swarm_protocol::{JobId, TaskIndex};

use super::{age, dash, instant, safe, size, table, value};
use crate::commands::Verdict;
use crate::output::Report;

/// `3/10` ended, and what of them went wrong.
fn progress(job: &JobView) -> String {
    let tasks = job.tasks;
    let mut text = format!("{}/{}", tasks.succeeded + tasks.failed + tasks.cancelled, tasks.total);
    if tasks.failed > 0 {
        let _ = write!(text, " ({} failed)", tasks.failed);
    }
    text
}

/// Inputs of a job shown to people; programs see them all.
const INPUTS_SHOWN: usize = 10;

/// A list of jobs.
pub(crate) struct Jobs {
    pub(crate) jobs: Vec<JobView>,
    pub(crate) now: DateTime<Utc>,
}

impl Report for Jobs {
    fn human(&self) -> String {
        let rows = self.jobs.iter().map(|job| {
            vec![
                job.id.to_string(),
                dash(job.name.as_ref()),
                job.state.to_string(),
                progress(job),
                job.image.clone(),
                job.owner.clone(),
                age(job.submitted_at, self.now),
            ]
        });
        table(&["JOB", "NAME", "STATE", "ENDED", "IMAGE", "OWNER", "AGE"], rows)
    }

    fn json(&self) -> Value {
        value(&self.jobs)
    }

    fn ids(&self) -> Vec<String> {
        self.jobs.iter().map(|job| job.id.to_string()).collect()
    }
}

/// A job and some of its tasks.
pub(crate) struct Job {
    pub(crate) detail: JobDetail,
    pub(crate) tasks: Vec<TaskView>,
    /// Whether the job has more tasks than are shown.
    pub(crate) more: bool,
}

impl Report for Job {
    fn human(&self) -> String {
        let JobDetail { job, spec } = &self.detail;
        let mut text = String::new();
        let mut line = |name: &str, what: String| {
            let _ = writeln!(text, "{name:<10} {}", safe(&what));
        };
        line("job", job.id.to_string());
        if let Some(name) = &job.name {
            line("name", name.clone());
        }
        let cancel = if job.cancel_requested && !job.state.is_final() { " (cancel requested)" } else { "" };
        line("state", format!("{}{cancel}", job.state));
        line("tasks", format!("{} ended, {} running, {} waiting", progress(job), job.tasks.live, job.tasks.waiting));
        line("image", format!("{} ({})", job.image, job.image_digest.short()));
        if let Some(command) = &spec.command {
            line("command", command.join(" "));
        }
        for input in spec.inputs.iter().take(INPUTS_SHOWN) {
            let (mark, kind) = if input.unpack { ("/", "directory ") } else { ("", "") };
            line("input", format!("{}{mark} ({kind}{})", input.path, input.digest.short()));
        }
        if spec.inputs.len() > INPUTS_SHOWN {
            line("", format!("and {} more", spec.inputs.len() - INPUTS_SHOWN));
        }
        let cores = f64::from(spec.resources.cpu_millis) / 1000.0;
        line("each", format!("{cores} cores, {}", size(spec.resources.memory_bytes)));
        line("owner", format!("{} of {}", job.owner, job.group));
        line("submitted", instant(job.submitted_at));
        if let Some(at) = job.start_at {
            line("starts", instant(at));
        }
        if let Some(at) = job.ended_at {
            line("ended", instant(at));
        }
        if let Some(launch) = &job.launched_by {
            line("schedule", format!("{} for {}", launch.schedule, instant(launch.nominal_at)));
        }
        text.push('\n');
        text.push_str(&tasks_table(&self.tasks));
        for task in &self.tasks {
            task.late_reports.iter().for_each(|late| text.push_str(&late_report(task.task, late)));
        }
        if self.more {
            text.push_str("… and more; see --tasks\n");
        }
        text
    }

    fn json(&self) -> Value {
        let mut all = value(&self.detail);
        all["task_views"] = value(&self.tasks);
        all["more_tasks"] = self.more.into();
        all
    }

    fn ids(&self) -> Vec<String> {
        vec![self.detail.job.id.to_string()]
    }
}

/// A report that did not count, in a line.
fn late_report(task: TaskIndex, late: &LateReportView) -> String {
    let LateReportView { attempt, worker, outcome, exit_code: code, reported_at, .. } = late;
    let code = code.map(|code| format!(" {}", exit_code(code))).unwrap_or_default();
    let what = format!("task {task}: {worker} reported try {attempt} too late to count: {outcome}{code}");
    format!("{}, {}\n", safe(&what), instant(*reported_at))
}

fn tasks_table(tasks: &[TaskView]) -> String {
    let rows = tasks.iter().map(|task| {
        let last = task.attempts.last();
        let state = task.outcome.map_or_else(|| phase(task.phase).to_owned(), |outcome| outcome.to_string());
        vec![
            task.task.to_string(),
            state,
            dash(task.exit_code.map(exit_code)),
            dash(last.map(|attempt| attempt.attempt)),
            dash(last.map(|attempt| &attempt.worker)),
            dash(last.and_then(|attempt| attempt.ran_ms.map(seconds))),
            dash(last.and_then(|attempt| attempt.usage?.cpu_ms.map(seconds))),
            dash(last.and_then(|attempt| attempt.usage?.memory_peak_bytes.map(size))),
            dash(task.detail.as_ref()),
        ]
    });
    table(&["TASK", "STATE", "EXIT", "TRY", "WORKER", "RAN", "CPU", "MEMORY", "DETAIL"], rows)
}

/// With the signal it stands for: shells and engines report an end by signal n as 128 + n.
fn exit_code(code: i32) -> String {
    let signal = code.checked_sub(128).and_then(signal_hook::low_level::signal_name);
    signal.map_or_else(|| code.to_string(), |signal| format!("{code} ({signal})"))
}

fn seconds(ms: u64) -> String {
    if ms < 10_000 { format!("{}.{}s", ms / 1000, ms % 1000 / 100) } else { format!("{}s", ms / 1000) }
}

fn phase(phase: TaskPhase) -> &'static str {
    match phase {
        TaskPhase::Waiting => "waiting",
        TaskPhase::Assigned => "assigned",
        TaskPhase::Started => "started",
        TaskPhase::Ended => "ended",
    }
}

impl Report for Submitted {
    fn human(&self) -> String {
        format!("{}\n", self.job)
    }

    fn json(&self) -> Value {
        value(self)
    }

    fn ids(&self) -> Vec<String> {
        vec![self.job.to_string()]
    }
}

impl Report for Plan {
    fn human(&self) -> String {
        let tasks = if self.tasks == 1 { "1 task".to_owned() } else { format!("{} tasks", self.tasks) };
        let mut text = format!("a job of {tasks}, image {}\n", self.image);
        let when = match self.reasons.as_slice() {
            [] => "a task could start at once",
            _ if self.warnings.is_empty() => "it would wait:",
            _ => "it would wait, and could never start as things are:",
        };
        let _ = writeln!(text, "{when}");
        for warning in &self.warnings {
            let _ = writeln!(text, "  {}: {} [{}]", safe(&warning.field), safe(&warning.problem), safe(&warning.code));
        }
        for reason in &self.reasons {
            let worker = reason.worker.as_ref().map_or_else(String::new, |worker| format!("{}: ", safe(worker)));
            let _ = writeln!(text, "  {worker}{} [{}]", safe(&reason.text), safe(&reason.code));
        }
        if let Some(hint) = self.warnings.first().map(|warning| &warning.hint).or(self.hint.as_ref()) {
            let _ = writeln!(text, "hint: {}", safe(hint));
        }
        text
    }

    fn json(&self) -> Value {
        value(self)
    }

    fn ids(&self) -> Vec<String> {
        vec![self.image.to_string()]
    }
}

/// How `wait` ended.
pub(crate) struct Ended {
    pub(crate) detail: JobDetail,
    pub(crate) verdict: Verdict,
}

impl Report for Ended {
    fn human(&self) -> String {
        format!("job {} {}\n", self.detail.job.id, self.detail.job.state)
    }

    fn json(&self) -> Value {
        let mut all = value(&self.detail);
        all["exit"] = self.verdict.code.into();
        all["reason"] = self.verdict.reason.into();
        all
    }

    fn ids(&self) -> Vec<String> {
        vec![self.detail.job.id.to_string()]
    }
}

/// The answer to `why`.
pub(crate) struct Reasons {
    pub(crate) why: Why,
    pub(crate) job: JobId,
}

impl Report for Reasons {
    fn human(&self) -> String {
        let Why { state, summary, reasons, hint } = &self.why;
        let mut text = format!("job {} is {state}: {}\n", self.job, safe(summary));
        // The summary often is the first reason; nobody needs it twice.
        for reason in reasons.iter().filter(|reason| reason.worker.is_some() || reason.text != *summary) {
            let worker = reason.worker.as_ref().map_or_else(String::new, |worker| format!("{}: ", safe(worker)));
            let _ = writeln!(text, "  {worker}{} [{}]", safe(&reason.text), safe(&reason.code));
        }
        if let Some(hint) = hint {
            let _ = writeln!(text, "hint: {}", safe(hint));
        }
        text
    }

    fn json(&self) -> Value {
        value(&self.why)
    }

    fn ids(&self) -> Vec<String> {
        vec![self.job.to_string()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_names_the_signal_it_stands_for() {
        let shown = [0, 3, 128, 137, 143, 255].map(exit_code);
        assert_eq!(shown, ["0", "3", "128", "137 (SIGKILL)", "143 (SIGTERM)", "255"]);
    }
}
