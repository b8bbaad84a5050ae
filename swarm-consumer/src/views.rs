//! How the API's answers look.

mod images;
mod jobs;
mod schedules;

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::{Value, json};
use swarm_protocol::api::Whoami;
use swarm_protocol::text::{age, sanitise};

pub(crate) use self::images::{Images, Pushed};
pub(crate) use self::jobs::{Ended, Job, Jobs, Reasons};
pub(crate) use self::schedules::{Schedule, Schedules};
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

fn instant(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
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
        let rows = Exit::ALL.into_iter().map(|exit| {
            [exit.code().to_string(), exit.as_str().into(), exit.commands().into(), exit.meaning().into()].to_vec()
        });
        let mut text = table(&["CODE", "REASON", "COMMANDS", "MEANING"], rows);
        text.push_str("run and wait end with the container's own code where there is one.\n");
        text
    }

    fn json(&self) -> Value {
        let one = |exit: Exit| json!({"code": exit.code(), "reason": exit.as_str(), "commands": exit.commands(), "meaning": exit.meaning()});
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
                "usage": {"cpu_ms": 900, "memory_peak_bytes": 35 << 20, "disk_peak_bytes": null, "input_bytes": 0,
                          "output_bytes": 0},
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use serde::de::DeserializeOwned;
    use swarm_protocol::api::JobView;

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
        printer(format, paper.clone(), true).print(report).unwrap();
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
        let digest = swarm_protocol::Digest::of(b"");
        let spec = json!({"image": "tool:1", "command": ["sh", "-c", "x\u{7}"], "inputs": [
            {"digest": digest, "path": "/in/a.csv"}, {"digest": digest, "path": "/data", "unpack": true}]});
        let detail = of(samples::detail("failed", spec));
        let mut task = samples::task("failed", Some(3), json!([]));
        task["late_reports"] = json!([{
            "attempt": 1, "worker": "w-02\u{7}", "outcome": "failed", "exit_code": 137, "detail": null,
            "reported_at": "2030-01-31T09:00:00Z",
        }]);
        let tasks = vec![of(task)];
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
