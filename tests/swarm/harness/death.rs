//! What can be known of containers while no engine is there to tell: their records on disk, and their processes. It
//! stands in for the events that a dead engine cannot send, or that a hung one stamps too late, and for no others.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use swarm_checker::{Action, Stamp};

use super::engine::labelled;
use super::{now_us, signal};

/// How long processes are watched for.
const WATCH: Duration = Duration::from_secs(120);

/// One death of an engine, or the beginning of a hang.
pub(crate) struct Death {
    pub(super) at_us: i64,
    left: Vec<Left>,
    /// When the processes of `left` were seen to be gone.
    gone: Arc<Mutex<Vec<(u32, i64)>>>,
}

/// A container as the engine left it on disk.
struct Left {
    id: String,
    labels: Value,
    /// Of its first process; 0 when the engine took it for ended.
    pid: u32,
    started_us: Option<i64>,
    finished_us: Option<i64>,
}

impl Death {
    /// Right after the death of the engine whose records lie in `containers`.
    pub(super) fn of(containers: &Path) -> Self {
        let entries = fs::read_dir(containers).into_iter().flatten().flatten();
        let left: Vec<Left> = entries.filter_map(|entry| read(&entry.path().join("config.v2.json"))).collect();
        let pids: Vec<u32> = left.iter().map(|one| one.pid).filter(|pid| *pid != 0).collect();
        let gone = Arc::default();
        let seen = Arc::clone(&gone);
        std::thread::spawn(move || watch(pids, &seen));
        Self { at_us: now_us(), left, gone }
    }

    /// Kills their first processes, and with each the whole container. The records may be old, and the numbers somebody
    /// else's by now: only a process in the container's own control group is one of it.
    pub(super) fn kill_containers(&self) {
        let is_of = |one: &Left| {
            fs::read_to_string(format!("/proc/{}/cgroup", one.pid)).is_ok_and(|groups| groups.contains(&one.id))
        };
        for one in self.left.iter().filter(|one| one.pid != 0 && is_of(one)) {
            signal(one.pid, Signal::KILL);
        }
    }

    /// Adds to one swarm's events what the engine would have told around its death.
    pub(super) fn complete(&self, stamps: &mut Vec<Stamp>, swarm: &str) {
        let is_told_by = |stamps: &[Stamp], id: &str, action, by_us| {
            stamps.iter().any(|stamp| stamp.container == id && stamp.action == Some(action) && stamp.at_us <= by_us)
        };
        let is_told = |stamps: &[Stamp], id: &str, action| is_told_by(stamps, id, action, i64::MAX);
        for one in &self.left {
            let Some(stamp) = labelled(&one.labels, &one.id, swarm, self.at_us) else { continue };
            let gone = self.gone.lock().expect("the watch does not panic");
            let killed = gone.iter().find(|(pid, _)| *pid == one.pid).map(|(_, at_us)| *at_us);
            if let Some(at_us) = one.started_us.filter(|_| !is_told(stamps, &stamp.container, Action::Start)) {
                stamps.push(Stamp { action: Some(Action::Start), at_us, ..stamp.clone() });
            }
            let ended_us = one.finished_us.or(killed);
            if let Some(at_us) = ended_us.filter(|at_us| !is_told_by(stamps, &stamp.container, Action::Die, *at_us)) {
                stamps.push(Stamp { action: Some(Action::Die), at_us, ..stamp });
            }
        }
        // What was there before and left no record was removed.
        let there: HashSet<&str> = self.left.iter().filter_map(|one| one.id.get(..12)).collect();
        let removed: Vec<Stamp> = stamps
            .iter()
            .filter(|stamp| stamp.at_us < self.at_us && !there.contains(stamp.container.as_str()))
            .filter(|stamp| !is_told(stamps, &stamp.container, Action::Destroy))
            .cloned()
            .collect();
        for stamp in removed {
            if !is_told(stamps, &stamp.container, Action::Destroy) {
                stamps.push(Stamp { action: Some(Action::Destroy), at_us: self.at_us, ..stamp });
            }
        }
    }
}

fn read(file: &Path) -> Option<Left> {
    let record: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    let state = &record["State"];
    let running = state["Running"].as_bool()?;
    // Year 1 stands for "never".
    let at = |name: &str| {
        let at = chrono::DateTime::parse_from_rfc3339(state[name].as_str()?).ok()?.timestamp_micros();
        (at > 0).then_some(at)
    };
    Some(Left {
        id: record["ID"].as_str()?.to_owned(),
        labels: record["Config"]["Labels"].clone(),
        pid: if running { state["Pid"].as_u64()?.try_into().ok()? } else { 0 },
        started_us: at("StartedAt"),
        finished_us: at("FinishedAt").filter(|_| !running),
    })
}

/// Notes when each process ends.
fn watch(mut pids: Vec<u32>, gone: &Mutex<Vec<(u32, i64)>>) {
    let began = Instant::now();
    while !pids.is_empty() && began.elapsed() < WATCH {
        pids.retain(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // The state follows the name, which may hold anything; `Z` only waits to be reaped.
            let lives = stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']));
            if !lives {
                gone.lock().expect("no reader panics").push((*pid, now_us()));
            }
            lives
        });
        std::thread::sleep(Duration::from_millis(10));
    }
}
