//! What a stage left behind: containers, volumes and images in the engine, processes on the machine.
//!
//! Objects are found by the project's labels and tags and compared with what was there before. Processes are found by
//! a variable that only a stage's processes have in their environment.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::run;

/// The variable by which a run knows its processes.
pub(crate) const MARK: &str = "SWARM_TEST_RUN";
/// How every label of ours begins.
const LABEL: &str = "io.swarm-sync.";
/// How tags of ours begin: those a worker gives, `swarm-sync/…`, and those of the demo.
const TAG: &str = "swarm-";
/// How long things that are just being removed have to go.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Container,
    Volume,
    Image,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Volume => "volume",
            Self::Image => "image",
        }
    }
}

/// What an engine holds of ours: kind and id, and a text that tells it to people.
type Objects = BTreeMap<(Kind, String), String>;

/// The engine as it was before a stage.
#[derive(Debug)]
pub(crate) struct Before {
    environment: Vec<(&'static str, String)>,
    objects: Objects,
}

impl Before {
    /// Looks at the engine that `environment` leads to.
    pub(crate) fn look(environment: &[(&'static str, String)]) -> Result<Self> {
        let environment = environment.to_vec();
        let objects = list(&environment)?;
        Ok(Self { environment, objects })
    }

    /// Names what is there now and was not before, and removes it. Waits a little for what is just going.
    pub(crate) fn sweep(&self) -> Result<Vec<String>> {
        let deadline = Instant::now() + PATIENCE;
        let mut left = self.new_objects()?;
        while !left.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(250));
            left = self.new_objects()?;
        }
        let foreign = if left.is_empty() { None } else { foreign_worker() };
        Ok(left.into_iter().map(|((kind, id), text)| self.end(kind, &id, &text, foreign)).collect())
    }

    fn new_objects(&self) -> Result<Objects> {
        let mut now = list(&self.environment)?;
        now.retain(|key, _| !self.objects.contains_key(key));
        Ok(now)
    }

    /// Removes one thing, unless it may be that of a swarm that was not started by this run.
    fn end(&self, kind: Kind, id: &str, text: &str, foreign: Option<u32>) -> String {
        let kind_name = kind.as_str();
        if let Some(pid) = foreign {
            return format!("left behind: {kind_name} {text} (kept: the worker with process id {pid} may own it)");
        }
        let words: &[&str] = match kind {
            Kind::Container => &["rm", "--force", "--volumes", id],
            Kind::Volume => &["volume", "rm", "--force", id],
            Kind::Image => &["image", "rm", "--force", id],
        };
        match docker(&self.environment, words) {
            Ok(_) => format!("left behind: {kind_name} {text} (now removed)"),
            Err(error) => format!("left behind: {kind_name} {text} (and not removed: {error:#})"),
        }
    }
}

fn docker(environment: &[(&'static str, String)], words: &[&str]) -> Result<String> {
    run::output(Command::new("docker").args(words).envs(environment.iter().cloned()))
}

fn list(environment: &[(&'static str, String)]) -> Result<Objects> {
    let mut objects = Objects::new();
    let containers = ["ps", "--all", "--no-trunc", "--format", "{{.ID}}\t{{.Names}} ({{.Status}}) {{.Labels}}"];
    let volumes = ["volume", "ls", "--format", "{{.Name}}\t{{.Name}} {{.Labels}}"];
    for (kind, words) in [(Kind::Container, &containers[..]), (Kind::Volume, &volumes[..])] {
        objects.extend(ours(kind, &docker(environment, words)?));
    }
    let ids = docker(environment, &["image", "ls", "--quiet", "--no-trunc"])?;
    for id in ids.lines().collect::<std::collections::BTreeSet<_>>() {
        let format = "{{.Id}}\t{{json .RepoTags}} {{json .Config.Labels}}";
        // An image may go between the list and the look at it.
        if let Ok(line) = docker(environment, &["image", "inspect", "--format", format, id]) {
            objects.extend(ours(Kind::Image, &line));
        }
    }
    Ok(objects)
}

fn ours(kind: Kind, lines: &str) -> Objects {
    let is_ours = |text: &str| text.contains(LABEL) || (kind == Kind::Image && text.contains(&format!("\"{TAG}")));
    lines
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .filter(|(_, text)| is_ours(text))
        .map(|(id, text)| ((kind, id.to_owned()), text.trim().to_owned()))
        .collect()
}

/// Processes that have the run's mark, as process id and command line.
fn marked(run: &str) -> Vec<(u32, String)> {
    let mark = format!("{MARK}={run}");
    processes().into_iter().filter(|(pid, _)| has_mark(*pid, &mark)).collect()
}

fn has_mark(pid: u32, mark: &str) -> bool {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
}

/// A running worker that no run of the tests started.
fn foreign_worker() -> Option<u32> {
    let is_worker = |line: &str| {
        let mut words = line.split(' ');
        let program = words.next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        let verb = words.find(|word| !word.starts_with('-')).unwrap_or_default();
        program == "swarm-worker" || (program == "swarm" && ["worker", "up", "demo"].contains(&verb))
    };
    let is_foreign = |pid: u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        !environment.split(|byte| *byte == 0).any(|entry| entry.starts_with(MARK.as_bytes()))
    };
    processes().into_iter().find(|(pid, line)| is_worker(line) && is_foreign(*pid)).map(|(pid, _)| pid)
}

fn processes() -> Vec<(u32, String)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let line = |pid: u32| {
        let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned();
        (!line.is_empty()).then_some((pid, line))
    };
    pids.filter_map(line).collect()
}

/// Names the run's processes that are still there, and kills them. Waits a little for what is just going, unless the
/// run is being broken off.
pub(crate) fn sweep_processes(run: &str, patient: bool) -> Vec<String> {
    let deadline = Instant::now() + if patient { PATIENCE } else { Duration::ZERO };
    let mut left = marked(run);
    while !left.is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
        left = marked(run);
    }
    left.into_iter()
        .map(|(pid, line)| {
            let killed = kill(pid).err().map(|error| format!(", not killed: {error:#}")).unwrap_or_default();
            format!("left behind: process {pid} `{line}`{killed}")
        })
        .collect()
}

fn kill(pid: u32) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a process id")?;
    Ok(kill_process(pid, Signal::KILL)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_labels_and_tags_count() {
        let lines = "a\tx (Up) io.swarm-sync.job=3,other=1\nb\ty (Up) maintainer=swarm-sync/x\nc\tz (Up) \n";
        let found = ours(Kind::Container, lines);
        assert_eq!(found.keys().map(|(_, id)| id.as_str()).collect::<Vec<_>>(), ["a"]);
        let images = "i\t[\"swarm-sync/w1:abc\"] null\nj\t[\"alpine:3\"] {\"io.swarm-sync.test\":\"1\"}\nk\t[] null\n";
        let found = ours(Kind::Image, images);
        assert_eq!(found.keys().map(|(_, id)| id.as_str()).collect::<Vec<_>>(), ["i", "j"]);
    }

    #[test]
    fn a_process_is_found_by_its_mark_and_killed() {
        let run = format!("unit-test-{}", std::process::id());
        let mut child = Command::new("sleep").arg("1000").env(MARK, &run).spawn().unwrap();
        assert!(sweep_processes("another run", false).is_empty());
        // Its environment can be read a moment after spawn() returns.
        let deadline = Instant::now() + PATIENCE;
        while marked(&run).is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let left = sweep_processes(&run, false);
        let _ = child.kill();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(left[0].contains("sleep 1000"), "{left:?}");
        assert!(!child.wait().unwrap().success());
    }
}
