//! How the API's answers look.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::{Value, json};
use swarm_protocol::api::{
    AttemptView, ImageView, JobDetail, JobView, ScheduleView, Submitted, TaskPhase, TaskView, Whoami, Why,
};
use swarm_protocol::text::sanitise;

use crate::exit::Exit;
use crate::output::Report;

fn value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).expect("API types are plain data")
}

fn safe(text: &str) -> String {
    sanitise(text, false)
}

fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(head);
    table.add_rows(rows.into_iter().map(|row| row.iter().map(|cell| safe(cell)).collect::<Vec<_>>()));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{}", line.trim_end());
        text
    })
}

fn dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| text.to_string())
}

/// `3m`, `5h`, `2d`: how long ago, in one unit.
pub(crate) fn age(then: DateTime<Utc>, now: DateTime<Utc>) -> String {
    match now.signed_duration_since(then).num_seconds().max(0) {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m", s / 60),
        s @ 3600..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

fn instant(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// `3/10` ended, and what of them went wrong.
fn progress(job: &JobView) -> String {
    let tasks = job.tasks;
    let mut text = format!("{}/{}", tasks.succeeded + tasks.failed + tasks.cancelled, tasks.total);
    if tasks.failed > 0 {
        let _ = write!(text, " ({} failed)", tasks.failed);
    }
    text
}

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

fn tasks_table(tasks: &[TaskView]) -> String {
    let rows = tasks.iter().map(|task| {
        let last = task.attempts.last();
        let state = task.outcome.map_or_else(|| phase(task.phase).to_owned(), |outcome| outcome.to_string());
        vec![
            task.task.to_string(),
            state,
            dash(task.exit_code),
            dash(last.map(|attempt| attempt.attempt)),
            dash(last.map(|attempt| &attempt.worker)),
            dash(last.and_then(ran)),
            dash(task.detail.as_ref()),
        ]
    });
    table(&["TASK", "STATE", "EXIT", "TRY", "WORKER", "RAN", "DETAIL"], rows)
}

fn ran(attempt: &AttemptView) -> Option<String> {
    let ms = attempt.ran_ms?;
    Some(if ms < 10_000 { format!("{}.{}s", ms / 1000, ms % 1000 / 100) } else { format!("{}s", ms / 1000) })
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

/// How `wait` ended.
pub(crate) struct Ended {
    pub(crate) detail: JobDetail,
    pub(crate) exit: u8,
}

impl Report for Ended {
    fn human(&self) -> String {
        format!("job {} {}\n", self.detail.job.id, self.detail.job.state)
    }

    fn json(&self) -> Value {
        let mut all = value(&self.detail);
        all["exit"] = self.exit.into();
        all
    }

    fn ids(&self) -> Vec<String> {
        vec![self.detail.job.id.to_string()]
    }
}

impl Report for Whoami {
    fn human(&self) -> String {
        format!("{} ({}, group {})\n", safe(&self.user), self.role.as_str(), safe(&self.group))
    }

    fn json(&self) -> Value {
        value(self)
    }

    fn ids(&self) -> Vec<String> {
        vec![self.id.to_string()]
    }
}

/// Images.
pub(crate) struct Images {
    pub(crate) images: Vec<ImageView>,
    pub(crate) now: DateTime<Utc>,
}

impl Report for Images {
    fn human(&self) -> String {
        let rows = self.images.iter().map(|image| {
            let id = image.config_digest.short();
            vec![image.name.clone(), id, image.platform.clone(), size(image.size_bytes), age(image.pushed_at, self.now)]
        });
        table(&["IMAGE", "ID", "PLATFORM", "SIZE", "AGE"], rows)
    }

    fn json(&self) -> Value {
        value(&self.images)
    }

    fn ids(&self) -> Vec<String> {
        self.images.iter().map(|image| image.config_digest.to_string()).collect()
    }
}

/// An image that was pushed.
pub(crate) struct Pushed {
    pub(crate) image: ImageView,
    /// Whether bytes were sent; else it was there and was only named.
    pub(crate) sent: bool,
}

impl Report for Pushed {
    fn human(&self) -> String {
        let how = if self.sent { "pushed" } else { "already there, tagged" };
        format!("{how}: {} ({})\n", safe(&self.image.name), self.image.config_digest.short())
    }

    fn json(&self) -> Value {
        let mut all = value(&self.image);
        all["sent"] = self.sent.into();
        all
    }

    fn ids(&self) -> Vec<String> {
        vec![self.image.config_digest.to_string()]
    }
}

/// The answer to `why`.
pub(crate) struct Reasons {
    pub(crate) why: Why,
    pub(crate) job: swarm_protocol::JobId,
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

/// Schedules.
pub(crate) struct Schedules(pub(crate) Vec<ScheduleView>);

impl Report for Schedules {
    fn human(&self) -> String {
        let rows = self.0.iter().map(|schedule| {
            let next = schedule.next.first().map(|at| instant(*at));
            vec![
                schedule.id.to_string(),
                schedule.name.clone(),
                schedule.cron.clone(),
                schedule.zone.clone(),
                if schedule.paused { "paused".to_owned() } else { dash(next) },
                dash(schedule.last.as_ref().map(|last| format!("{} job {}", instant(last.nominal_at), last.job))),
                schedule.missed.to_string(),
            ]
        });
        table(&["ID", "NAME", "CRON", "ZONE", "NEXT", "LAST", "MISSED"], rows)
    }

    fn json(&self) -> Value {
        value(&self.0)
    }

    fn ids(&self) -> Vec<String> {
        self.0.iter().map(|schedule| schedule.id.to_string()).collect()
    }
}

/// One schedule.
pub(crate) struct Schedule(pub(crate) ScheduleView);

impl Report for Schedule {
    fn human(&self) -> String {
        let schedule = &self.0;
        let mut text = String::new();
        let mut line = |name: &str, what: String| {
            let _ = writeln!(text, "{name:<10} {}", safe(&what));
        };
        line("schedule", format!("{} ({})", schedule.name, schedule.id));
        line("cron", format!("{} in {}", schedule.cron, schedule.zone));
        line("image", schedule.spec.image.clone());
        line("owner", schedule.owner.clone());
        if schedule.paused {
            line("next", "paused".to_owned());
        }
        for at in &schedule.next {
            line("next", instant(*at));
        }
        if let Some(last) = &schedule.last {
            line("last", format!("{} as job {}", instant(last.nominal_at), last.job));
        }
        if schedule.missed > 0 {
            line("missed", format!("{} while no core ran", schedule.missed));
        }
        text
    }

    fn json(&self) -> Value {
        value(&self.0)
    }

    fn ids(&self) -> Vec<String> {
        vec![self.0.id.to_string()]
    }
}

/// A sentence about one thing that was done.
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) json: Value,
    pub(crate) id: String,
}

impl Report for Said {
    fn human(&self) -> String {
        format!("{}\n", safe(&self.text))
    }

    fn json(&self) -> Value {
        self.json.clone()
    }

    fn ids(&self) -> Vec<String> {
        vec![self.id.clone()]
    }
}

/// The table of exit codes.
pub(crate) struct ExitCodes;

impl Report for ExitCodes {
    fn human(&self) -> String {
        let rows = Exit::ALL
            .into_iter()
            .map(|exit| vec![exit.code().to_string(), exit.as_str().to_owned(), exit.meaning().to_owned()]);
        let mut text = table(&["CODE", "REASON", "MEANING"], rows);
        text.push_str("run and wait end with the container's own code where there is one.\n");
        text
    }

    fn json(&self) -> Value {
        let one = |exit: Exit| json!({"code": exit.code(), "reason": exit.as_str(), "meaning": exit.meaning()});
        Exit::ALL.into_iter().map(one).collect()
    }

    fn ids(&self) -> Vec<String> {
        Exit::ALL.into_iter().map(|exit| exit.code().to_string()).collect()
    }
}

#[cfg(test)]
pub(crate) mod samples {
    //! Answers for tests.

    use serde_json::{Value, json};

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    pub(crate) fn job(state: &str, ended: u64) -> Value {
        let tasks =
            json!({"total": 10, "waiting": 10 - ended, "live": 0, "succeeded": ended, "failed": 0, "cancelled": 0});
        json!({
            "id": 42, "name": "sw\u{1b}[31m", "state": state, "tasks": tasks, "owner": "ana", "group": "lab",
            "image": "tool:1", "image_digest": DIGEST, "priority": 0, "submitted_at": "2030-01-31T08:00:00Z",
            "start_at": null, "ended_at": null, "cancel_requested": false, "launched_by": null,
        })
    }

    pub(crate) fn detail(state: &str, spec: Value) -> Value {
        let mut all = job(state, 10);
        all["spec"] = spec;
        all
    }

    pub(crate) fn task(outcome: &str, exit_code: Option<i32>, outputs: Value) -> Value {
        json!({
            "task": 0, "phase": "ended", "outcome": outcome, "exit_code": exit_code, "detail": null,
            "attempts": [{
                "attempt": 1, "worker": "w-01", "phase": "ended", "assigned_at": "2030-01-31T08:00:00Z",
                "started_at": null, "ended_at": null, "ran_ms": 1234, "outcome": outcome, "exit_code": exit_code,
                "detail": null, "is_final": true, "may_have_run": true, "log_bytes": 0, "log_cut_bytes": 0,
                "outputs": outputs,
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use serde::de::DeserializeOwned;

    use super::*;
    use crate::output::{Format, printer};

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn printed(format: Format, report: &dyn Report) -> String {
        let paper = Paper::default();
        printer(format, paper.clone()).print(report).unwrap();
        let bytes = paper.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn of<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn jobs() -> Jobs {
        let jobs = vec![of(samples::job("waiting", 3)), of(samples::job("succeeded", 10))];
        Jobs { jobs, now: "2030-01-31T09:30:00Z".parse().unwrap() }
    }

    #[test]
    fn jobs_for_people_programs_and_pipes() {
        insta::assert_snapshot!(printed(Format::Human, &jobs()));
        assert_eq!(printed(Format::Quiet, &jobs()), "42\n42\n");
        let json = printed(Format::Json, &jobs());
        assert_eq!(json.lines().count(), 1);
        assert_eq!(serde_json::from_str::<Vec<JobView>>(&json).unwrap(), jobs().jobs);
    }

    #[test]
    fn one_job_and_its_tasks() {
        let spec = json!({"image": "tool:1", "command": ["sh", "-c", "x\u{7}"]});
        let detail = of(samples::detail("failed", spec));
        let tasks = vec![of(samples::task("failed", Some(3), json!([])))];
        insta::assert_snapshot!(printed(Format::Human, &Job { detail, tasks, more: true }));
    }

    #[test]
    fn a_reason_that_is_the_summary_is_said_once() {
        let why = json!({"state": "failed", "summary": "2 of 5 tasks failed.", "hint": null, "reasons": [
            {"code": "ended", "text": "2 of 5 tasks failed.", "worker": null}]});
        let text = printed(Format::Human, &Reasons { why: of(why), job: swarm_protocol::JobId(42) });
        assert_eq!(text, "job 42 is failed: 2 of 5 tasks failed.\n");
    }

    #[test]
    fn reasons_and_exit_codes() {
        let why = json!({"state": "waiting", "summary": "it fits no worker now", "hint": "ask for less", "reasons": [
            {"code": "memory", "text": "needs 4 GiB, 1 GiB is free", "worker": "w-01"},
            {"code": "no-worker", "text": "no other worker is ready", "worker": null}]});
        insta::assert_snapshot!(printed(Format::Human, &Reasons { why: of(why), job: swarm_protocol::JobId(42) }));
        insta::assert_snapshot!(printed(Format::Human, &ExitCodes));
    }
}
