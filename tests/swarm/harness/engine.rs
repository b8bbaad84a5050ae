//! The container engine as the judge sees it: every event of our containers with the engine's own times, and listings.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use swarm_checker::{Action, Listed, Stamp};

use super::now_us;

const LABEL: &str = "io.swarm-sync.";

/// Records the engine's events from its making on.
pub(crate) struct Engine {
    events: Child,
    file: PathBuf,
}

/// The words `docker` answers with, or nothing when it fails.
pub(crate) fn docker(args: &[&str]) -> Option<String> {
    let output = Command::new("docker").args(args).stdin(Stdio::null()).output().expect("docker can be run");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Engine {
    /// Begins to record into `dir`.
    pub(crate) fn watch(dir: &Path) -> Self {
        let file = dir.join("events.jsonl");
        let since = format!("{}", now_us() / 1_000_000);
        let filter = format!("label={LABEL}job");
        let events = Command::new("docker")
            .args(["events", "--since", &since, "--filter", "type=container", "--filter", &filter])
            .args(["--format", "{{json .}}"])
            .stdin(Stdio::null())
            .stdout(File::create(&file).expect("a file can be made"))
            .stderr(Stdio::null())
            .spawn()
            .expect("docker can be run");
        Self { events, file }
    }

    /// The events of one swarm's containers so far.
    pub(crate) fn stamps(&self, swarm: &str) -> Vec<Stamp> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        text.lines().filter_map(|line| stamp(&serde_json::from_str(line).ok()?, swarm)).collect()
    }

    /// The containers of one swarm as they are now, whatever their state.
    pub(crate) fn listing(swarm: &str) -> Vec<Stamp> {
        let filter = format!("label={LABEL}swarm={swarm}");
        let ids =
            docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter]).expect("docker lists containers");
        let ids: Vec<&str> = ids.split_whitespace().collect();
        // One that goes between the two calls is simply not there any more.
        ids.iter().filter_map(|id| listed(id)).collect()
    }

    /// Removes everything that carries this swarm's label.
    pub(crate) fn clean(swarm: &str) {
        let filter = format!("label={LABEL}swarm={swarm}");
        let of = |words: &[&str]| docker(words).unwrap_or_default();
        for id in of(&["ps", "--all", "--quiet", "--filter", &filter]).split_whitespace() {
            docker(&["rm", "--force", "--volumes", id]);
        }
        for name in of(&["volume", "ls", "--quiet", "--filter", &filter]).split_whitespace() {
            docker(&["volume", "rm", "--force", name]);
        }
    }

    /// Takes a worker's marks off the images it has kept, that of its sandboxes among them.
    pub(crate) fn clean_images(repository: &str) {
        let format = "{{.Repository}}:{{.Tag}}";
        for name in docker(&["image", "ls", "--format", format, repository]).unwrap_or_default().split_whitespace() {
            docker(&["rmi", name]);
        }
    }

    /// Volumes of one swarm.
    pub(crate) fn volumes(swarm: &str) -> Vec<String> {
        let filter = format!("label={LABEL}swarm={swarm}");
        let names = docker(&["volume", "ls", "--quiet", "--filter", &filter]).expect("docker lists volumes");
        names.split_whitespace().map(str::to_owned).collect()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.events.kill();
        let _ = self.events.wait();
    }
}

/// The stamp's fields that labels tell.
fn labelled(labels: &Value, container: &str, swarm: &str, at_us: i64) -> Option<Stamp> {
    let label = |name: &str| labels.get(format!("{LABEL}{name}"))?.as_str();
    let number = |name: &str| label(name)?.parse::<u64>().ok();
    (label("swarm")? == swarm).then_some(())?;
    Some(Stamp {
        container: container.get(..12)?.to_owned(),
        job: number("job")?,
        task: number("task")?.try_into().ok()?,
        attempt: number("attempt")?.try_into().ok()?,
        worker: number("worker")?,
        at_us,
        action: None,
        listed: None,
    })
}

fn stamp(event: &Value, swarm: &str) -> Option<Stamp> {
    let action = match event["Action"].as_str()? {
        "create" => Action::Create,
        "start" => Action::Start,
        "die" => Action::Die,
        "destroy" => Action::Destroy,
        _ => return None,
    };
    let at_us = event["timeNano"].as_i64()? / 1000;
    let stamp = labelled(&event["Actor"]["Attributes"], event["Actor"]["ID"].as_str()?, swarm, at_us)?;
    Some(Stamp { action: Some(action), ..stamp })
}

fn listed(id: &str) -> Option<Stamp> {
    let text = docker(&["inspect", "--type", "container", id])?;
    let container = &serde_json::from_str::<Value>(&text).ok()?[0];
    let created = chrono::DateTime::parse_from_rfc3339(container["Created"].as_str()?).ok()?;
    let swarm = container["Config"]["Labels"][format!("{LABEL}swarm")].as_str()?;
    let stamp = labelled(&container["Config"]["Labels"], id, swarm, now_us())?;
    let running = container["State"]["Running"].as_bool()?;
    Some(Stamp { listed: Some(Listed { created_us: created.timestamp_micros(), running }), ..stamp })
}
