//! The container engine as the judge sees it: every event of our containers with the engine's own times, and listings.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use serde_json::Value;
use swarm_checker::{Action, Listed, Stamp};

use super::death::Death;
use super::now_us;

const LABEL: &str = "io.swarm-sync.";

/// One engine, by its address; by default where the environment says.
#[derive(Clone, Default)]
pub(crate) struct Docker {
    /// As in `DOCKER_HOST`.
    pub(crate) host: Option<String>,
}

impl Docker {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(args).stdin(Stdio::null()).envs(self.host.iter().map(|host| ("DOCKER_HOST", host)));
        command
    }

    /// The words `docker` answers with, or nothing when it fails.
    pub(crate) fn run(&self, args: &[&str]) -> Option<String> {
        let output = self.command(args).output().expect("docker can be run");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The containers of one swarm as they are now, whatever their state.
    pub(crate) fn listing(&self, swarm: &str) -> Vec<Stamp> {
        let filter = format!("label={LABEL}swarm={swarm}");
        let ids = self.run(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter]);
        let ids = ids.expect("docker lists containers");
        let ids: Vec<&str> = ids.split_whitespace().collect();
        // One that goes between the two calls is simply not there any more.
        ids.iter().filter_map(|id| self.listed(id)).collect()
    }

    /// Removes everything that carries this swarm's label.
    pub(crate) fn clean(&self, swarm: &str) {
        let filter = format!("label={LABEL}swarm={swarm}");
        let of = |words: &[&str]| self.run(words).unwrap_or_default();
        for id in of(&["ps", "--all", "--quiet", "--filter", &filter]).split_whitespace() {
            self.run(&["rm", "--force", "--volumes", id]);
        }
        for name in of(&["volume", "ls", "--quiet", "--filter", &filter]).split_whitespace() {
            self.run(&["volume", "rm", "--force", name]);
        }
    }

    /// Takes a worker's marks off the images it has kept, that of its sandboxes among them.
    pub(crate) fn clean_images(&self, repository: &str) {
        let format = "{{.Repository}}:{{.Tag}}";
        for name in self.run(&["image", "ls", "--format", format, repository]).unwrap_or_default().split_whitespace() {
            self.run(&["rmi", name]);
        }
    }

    /// Volumes of one swarm.
    pub(crate) fn volumes(&self, swarm: &str) -> Vec<String> {
        let filter = format!("label={LABEL}swarm={swarm}");
        let names = self.run(&["volume", "ls", "--quiet", "--filter", &filter]).expect("docker lists volumes");
        names.split_whitespace().map(str::to_owned).collect()
    }

    fn listed(&self, id: &str) -> Option<Stamp> {
        let text = self.run(&["inspect", "--type", "container", id])?;
        let container = &serde_json::from_str::<Value>(&text).ok()?[0];
        let created = chrono::DateTime::parse_from_rfc3339(container["Created"].as_str()?).ok()?;
        let swarm = container["Config"]["Labels"][format!("{LABEL}swarm")].as_str()?;
        let stamp = labelled(&container["Config"]["Labels"], id, swarm, now_us())?;
        let running = container["State"]["Running"].as_bool()?;
        Some(Stamp { listed: Some(Listed { created_us: created.timestamp_micros(), running }), ..stamp })
    }
}

/// As [`Docker::run`], by the usual engine.
pub(crate) fn docker(args: &[&str]) -> Option<String> {
    Docker::default().run(args)
}

/// Records the engine's events from its making on.
pub(crate) struct Engine {
    pub(crate) docker: Docker,
    events: Mutex<Child>,
    file: PathBuf,
    deaths: Mutex<Vec<Death>>,
}

impl Engine {
    /// Begins to record into `dir`.
    pub(crate) fn watch(docker: Docker, dir: &Path) -> Self {
        let file = dir.join("events.jsonl");
        let events = Mutex::new(follow(&docker, &file, now_us()));
        Self { docker, events, file, deaths: Mutex::default() }
    }

    /// Goes on recording on an engine that was killed and started again; what happened in between is in `death`.
    pub(crate) fn watch_again(&self, death: Death) {
        let mut events = self.events.lock().expect("no reader panics");
        // It ends by itself with the engine, and only then is all of what it was told in the file.
        events.wait().expect("a child can be waited for");
        // What it has told since it is back, before anybody listened, is told again; it remembers nothing from before.
        *events = follow(&self.docker, &self.file, death.at_us);
        drop(events);
        self.note(death);
    }

    /// As [`watch_again`](Self::watch_again), where the engine only hung.
    pub(crate) fn note(&self, death: Death) {
        self.deaths.lock().expect("no reader panics").push(death);
    }

    /// The events of one swarm's containers so far, and where the engine was dead, what was seen without it.
    pub(crate) fn stamps(&self, swarm: &str) -> Vec<Stamp> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let mut stamps: Vec<Stamp> =
            text.lines().filter_map(|line| stamp(&serde_json::from_str(line).ok()?, swarm)).collect();
        for death in self.deaths.lock().expect("no writer panics").iter() {
            death.complete(&mut stamps, swarm);
        }
        stamps
    }
}

fn follow(docker: &Docker, file: &Path, since_us: i64) -> Child {
    let since = format!("{}", since_us / 1_000_000);
    let filter = format!("label={LABEL}job");
    let args =
        ["events", "--since", &since, "--filter", "type=container", "--filter", &filter, "--format", "{{json .}}"];
    let file = File::options().create(true).append(true).open(file).expect("a file can be made");
    docker.command(&args).stdout(file).stderr(Stdio::null()).spawn().expect("docker can be run")
}

impl Drop for Engine {
    fn drop(&mut self) {
        let events = self.events.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = events.kill();
        let _ = events.wait();
    }
}

/// The stamp's fields that labels tell.
pub(super) fn labelled(labels: &Value, container: &str, swarm: &str, at_us: i64) -> Option<Stamp> {
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
