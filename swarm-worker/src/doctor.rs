//! `worker doctor`: looks at everything a worker needs and says what is missing and what to do. It changes nothing.

use std::fmt;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::config::WorkerConfig;
use crate::identity;
use crate::runtime::{ContainerRuntime, EngineFacts, RuntimeError};

/// How long the core may take to take a connection.
const CORE_TIMEOUT: Duration = Duration::from_secs(2);
/// API of engine 20.10, the oldest that is known to do.
const API_MIN: (u32, u32) = (1, 41);

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but less well than it could.
    Warning,
    /// The worker cannot work like this.
    Bad,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Bad => "BAD",
        })
    }
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it went.
    pub verdict: Verdict,
    /// What was seen.
    pub text: String,
    /// What to do, where something is to be done.
    pub hint: Option<&'static str>,
}

fn finding(check: &'static str, verdict: Verdict, text: impl Into<String>, hint: &'static str) -> Finding {
    Finding { check, verdict, text: text.into(), hint: (verdict != Verdict::Ok).then_some(hint) }
}

/// Looks at the engine, the data directory and the core. `engine` is the engine, or why there is none.
pub async fn examine(config: &WorkerConfig, engine: Result<&dyn ContainerRuntime, &RuntimeError>) -> Vec<Finding> {
    let mut findings = Vec::new();
    match engine {
        Err(error) => findings.push(no_engine(error)),
        Ok(engine) => match engine.facts().await {
            Err(error) => findings.push(no_engine(&error)),
            Ok(facts) => {
                findings.extend(about_engine(&facts));
                findings.push(about_offer(config, &facts));
                findings.push(about_labels(config, &facts));
                findings.push(about_volumes(&facts));
                findings.push(about_disk(config.disk_floor_bytes, engine.disk_free().await.ok().flatten()));
            }
        },
    }
    findings.push(about_data(&config.data));
    findings.push(about_identity(config));
    let core = config.clone();
    let reached = tokio::task::spawn_blocking(move || about_core(&core)).await;
    findings.extend(reached.ok());
    findings
}

fn no_engine(error: &RuntimeError) -> Finding {
    let hint = "start Docker, or name its socket with --docker-host; the user needs the right to use it";
    finding("engine", Verdict::Bad, error.to_string(), hint)
}

fn about_engine(facts: &EngineFacts) -> Vec<Finding> {
    let EngineFacts { engine_version, api_version, storage_driver, os, arch, .. } = facts;
    let is_old = version(api_version).is_none_or(|found| found < API_MIN);
    let text = format!("docker {engine_version}, API {api_version}, {storage_driver}, {os}/{arch}");
    let verdict = if is_old { Verdict::Bad } else { Verdict::Ok };
    let engine = finding("engine", verdict, text, "update Docker: API 1.41 (20.10) or later is needed");
    let images = match facts.check_images() {
        Ok(()) => finding("image store", Verdict::Ok, "image ids are config digests", ""),
        Err(error) => {
            finding("image store", Verdict::Bad, error.to_string(), "change the setting named, restart Docker")
        }
    };
    vec![engine, images, about_limits(facts)]
}

fn about_limits(facts: &EngineFacts) -> Finding {
    let (verdict, text) = match facts.check_limits() {
        Err(error) => (Verdict::Bad, error.to_string()),
        Ok(()) if facts.unenforced.is_empty() => (Verdict::Ok, "memory, swap, cpu and pids are enforced".to_owned()),
        Ok(()) => (Verdict::Warning, format!("the engine does not enforce {}", facts.unenforced.join(", "))),
    };
    let hint = "give the engine these cgroup controllers: kernel parameters cgroup_enable=memory and swapaccount=1, or \
                systemd's Delegate=yes where it runs without root";
    finding("limits", verdict, text, hint)
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn about_offer(config: &WorkerConfig, facts: &EngineFacts) -> Finding {
    let offer = crate::offer::facts(config, facts);
    let text = format!(
        "{} slots, {} cores, {} MiB of the engine's {} cores and {} MiB",
        offer.slots,
        f64::from(offer.cpu_millis) / 1000.0,
        offer.memory_bytes >> 20,
        facts.cpus,
        facts.memory_bytes >> 20
    );
    let is_more = offer.memory_bytes > facts.memory_bytes || u64::from(offer.cpu_millis) > u64::from(facts.cpus) * 1000;
    let verdict = if is_more { Verdict::Warning } else { Verdict::Ok };
    finding("offer", verdict, text, "more is offered than there is: lower cpu_millis or memory_bytes")
}

fn about_labels(config: &WorkerConfig, facts: &EngineFacts) -> Finding {
    let labels = crate::labels::labels(facts, &config.labels);
    let told: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    finding("labels", Verdict::Ok, told.join(", "), "")
}

fn about_volumes(facts: &EngineFacts) -> Finding {
    let (verdict, text) = match facts.sees_volumes {
        true => (Verdict::Ok, "what jobs write to volumes can be measured"),
        false => {
            (Verdict::Warning, "the engine's volumes cannot be read from here: what jobs write there has no limit")
        }
    };
    let hint =
        "run the worker as root on the engine's machine, or mount the engine's data root read-only at the same path";
    finding("volumes", verdict, text, hint)
}

fn about_disk(floor: u64, free: Option<u64>) -> Finding {
    let hint = "free some, or lower disk_floor_bytes: images that no job wants are dropped after each use meanwhile";
    match free {
        Some(free) => {
            let verdict = if free < floor { Verdict::Warning } else { Verdict::Ok };
            finding("disk", verdict, format!("{} MiB free, the floor is {} MiB", free >> 20, floor >> 20), hint)
        }
        None => finding(
            "disk",
            Verdict::Warning,
            "the engine's files cannot be seen from here: no floor is kept",
            "mount the engine's data root read-only at the same path, or run the worker on the host",
        ),
    }
}

fn about_data(data: &Path) -> Finding {
    let hint = "give the worker's user the right to write there, or another directory with --data";
    let shown = data.display();
    if !data.exists() {
        let parent = data.ancestors().skip(1).find(|place| place.exists());
        let writable = parent.is_some_and(|place| rustix::fs::access(place, rustix::fs::Access::WRITE_OK).is_ok());
        let verdict = if writable { Verdict::Ok } else { Verdict::Bad };
        return finding("data", verdict, format!("{shown} is not there yet and will be made"), hint);
    }
    match tempfile::tempfile_in(data).and_then(|file| file.sync_all()) {
        Ok(()) => finding("data", Verdict::Ok, format!("{shown} can be written and synced"), hint),
        Err(error) => finding("data", Verdict::Bad, format!("{shown}: {error}"), hint),
    }
}

fn about_identity(config: &WorkerConfig) -> Finding {
    let hint = "get a token with `swarm consumer worker-token NAME` and start once with --join-token-file FILE";
    match identity::Identity::load(&config.data) {
        Ok(Some(identity)) => finding("identity", Verdict::Ok, format!("joined as worker {}", identity.worker), hint),
        Ok(None) if config.join_token.is_some() || config.join_token_file.is_some() => {
            finding("identity", Verdict::Ok, "a join token is given", hint)
        }
        Ok(None) => finding("identity", Verdict::Bad, "never joined, and no join token is given", hint),
        Err(error) => {
            finding("identity", Verdict::Bad, format!("{error:#}"), "join again from an empty data directory")
        }
    }
}

fn about_core(config: &WorkerConfig) -> Finding {
    let hint = "start the core, or name its address with --core";
    let shown = config.core.as_str().trim_end_matches('/');
    let addresses = config.core.socket_addrs(|| None).unwrap_or_default();
    let reached = addresses.iter().any(|address| TcpStream::connect_timeout(address, CORE_TIMEOUT).is_ok());
    match reached {
        true => finding("core", Verdict::Ok, format!("{shown} takes connections"), hint),
        false => finding("core", Verdict::Bad, format!("{shown} does not answer"), hint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fake::FakeRuntime;

    fn of<'a>(findings: &'a [Finding], check: &str) -> &'a Finding {
        findings.iter().find(|finding| finding.check == check).expect(check)
    }

    #[tokio::test]
    async fn each_thing_that_is_missing_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        // Nobody listens on the port after this.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let core = format!("http://127.0.0.1:{port}").parse().unwrap();
        let config = WorkerConfig { data: file, core, memory_bytes: Some(1 << 50), ..WorkerConfig::default() };
        let engine = FakeRuntime::new();
        engine.disk(1 << 20);
        let findings = examine(&config, Ok(&engine)).await;
        let verdicts: Vec<_> = findings.iter().map(|finding| (finding.check, finding.verdict)).collect();
        let expected = [
            ("engine", Verdict::Ok),
            ("image store", Verdict::Ok),
            ("limits", Verdict::Ok),
            ("offer", Verdict::Warning),
            ("labels", Verdict::Ok),
            ("volumes", Verdict::Ok),
            ("disk", Verdict::Warning),
            ("data", Verdict::Bad),
            ("identity", Verdict::Bad),
            ("core", Verdict::Bad),
        ];
        assert_eq!(verdicts, expected, "{findings:?}");
        assert!(findings.iter().all(|finding| finding.hint.is_some() == (finding.verdict != Verdict::Ok)));
        let error = RuntimeError::Engine { call: "connect", message: "no such socket".into() };
        let findings = examine(&config, Err(&error)).await;
        assert!(of(&findings, "engine").text.contains("no such socket"));
    }

    #[tokio::test]
    async fn a_machine_that_is_ready_is_all_ok() {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let config = WorkerConfig {
            data: dir.path().to_owned(),
            core: format!("http://{}", listener.local_addr().unwrap()).parse().unwrap(),
            join_token: Some("token".to_owned().into()),
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            ..WorkerConfig::default()
        };
        let engine = FakeRuntime::new();
        engine.disk(1 << 40);
        let findings = examine(&config, Ok(&engine)).await;
        assert!(findings.iter().all(|finding| finding.verdict == Verdict::Ok), "{findings:?}");
        let labels = &of(&findings, "labels").text;
        assert!(labels.contains("disk_limit=sampled") && labels.ends_with("zone=a"), "{labels}");
        let mut old = engine.facts().await.unwrap();
        old.api_version = "1.40".into();
        assert_eq!(about_engine(&old)[0].verdict, Verdict::Bad);
        assert_eq!(about_disk(1, None).verdict, Verdict::Warning);
        let lacks = |unenforced| about_limits(&EngineFacts { unenforced, ..old.clone() }).verdict;
        assert_eq!(
            (lacks(vec![]), lacks(vec!["swap"]), lacks(vec!["swap", "memory"])),
            (Verdict::Ok, Verdict::Warning, Verdict::Bad)
        );
        let unseen = about_volumes(&EngineFacts { sees_volumes: false, ..old });
        assert!(unseen.verdict == Verdict::Warning && unseen.text.contains("no limit"));
    }
}
