//! What a worker is told: defaults, then a TOML file, then `SWARM_WORKER_*`, then flags. Unknown keys are refused.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serialize};
use swarm_protocol::Digest;
use swarm_protocol::labels::Labels;
use url::{Host, Url};

use crate::runtime::docker::DockerSettings;

/// Prefix of the environment variables that set a field each, for instance `SWARM_WORKER_SLOTS=4`.
pub const ENV_PREFIX: &str = "SWARM_WORKER_";

/// Settings of one worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerConfig {
    /// The core's address, `http://HOST:PORT`; loopback only.
    #[serde(with = "url_text")]
    pub core: Url,
    /// Where identity and spool are kept; one worker per directory.
    pub data: PathBuf,
    /// The worker's name, as the join token has it; the host's name by default.
    pub name: String,
    /// A one-use token, needed at the first start only. From the environment or the file, never from flags.
    #[serde(skip_serializing, deserialize_with = "secret")]
    pub join_token: Option<SecretString>,
    /// A file that holds the join token; `-` is standard input.
    pub join_token_file: Option<PathBuf>,
    /// Containers at a time; the engine's cores by default.
    pub slots: Option<u32>,
    /// Thousandths of cores offered; all of the engine's cores by default.
    pub cpu_millis: Option<u32>,
    /// Bytes of memory offered; 80 % of the engine's memory by default.
    pub memory_bytes: Option<u64>,
    /// What this worker is known by beside what it finds out itself; jobs may require it.
    pub labels: Labels,
    /// The engine's socket, as `DOCKER_HOST` has it; the local default without it.
    pub docker_host: Option<String>,
    /// Bytes of images kept for later jobs, layers that images share counted for each; 50 GiB by default.
    pub image_cache_bytes: u64,
    /// Images that no job wants are dropped while fewer bytes than this are free on the engine's disk; 5 GiB by default.
    pub disk_floor_bytes: u64,
    /// Sandboxes kept for jobs that neither run as root nor use a network; one for each slot by default, and at most.
    pub sandboxes: Option<u32>,
    /// A sandbox is renewed after so many jobs.
    pub sandbox_joins: u32,
    /// On SIGTERM wait until everything held has ended. Otherwise containers stay and the next start adopts them.
    pub drain_on_stop: bool,
    /// Words that make this executable the watchdog (before `--data`); `None` runs without one, for tests.
    #[serde(skip)]
    pub watchdog: Option<Vec<String>>,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            core: Url::parse("http://127.0.0.1:7077").expect("a valid address"),
            data: default_data(),
            name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            join_token: None,
            join_token_file: None,
            slots: None,
            cpu_millis: None,
            memory_bytes: None,
            labels: Labels::new(),
            docker_host: None,
            image_cache_bytes: 50 << 30,
            disk_floor_bytes: 5 << 30,
            sandboxes: None,
            sandbox_joins: 100,
            drain_on_stop: false,
            watchdog: Some(vec!["watchdog".into()]),
        }
    }
}

fn default_data() -> PathBuf {
    match std::env::var_os("HOME") {
        Some(home) if !rustix::process::geteuid().is_root() => Path::new(&home).join(".local/share/swarm-worker"),
        _ => PathBuf::from("/var/lib/swarm-worker"),
    }
}

fn secret<'de, D: Deserializer<'de>>(source: D) -> Result<Option<SecretString>, D::Error> {
    Ok(Option::<String>::deserialize(source)?.map(Into::into))
}

/// A URL as its text.
mod url_text {
    use serde::{Deserialize, Deserializer, Serializer};
    use url::Url;

    pub(super) fn serialize<S: Serializer>(url: &Url, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(url.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Url, D::Error> {
        let text = String::deserialize(from)?;
        Url::parse(&text).map_err(|error| serde::de::Error::custom(format!("`{text}` is not a URL: {error}")))
    }
}

/// Why the settings cannot be used; each names the field and the way out.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A layer cannot be read, or holds something unknown or of the wrong kind.
    #[error("the worker's settings cannot be used: {0}")]
    Layers(Box<figment::Error>),
    /// A value that cannot be used.
    #[error("{field}: {problem}; {hint}")]
    Value {
        /// Which setting.
        field: String,
        /// What is wrong with it.
        problem: String,
        /// What to try.
        hint: &'static str,
    },
}

impl WorkerConfig {
    /// Settles defaults, `file`, the environment and `flags` (in that order) and checks the result.
    ///
    /// # Errors
    /// [`ConfigError`]: an unknown key, a wrong type, or a value that cannot be used.
    pub fn settle(file: Option<&Path>, flags: impl Serialize) -> Result<Self, ConfigError> {
        let config = Self::gather(file, flags)?;
        config.check()?;
        Ok(config)
    }

    /// As [`settle`](Self::settle), for a caller that changes some of them before it checks.
    ///
    /// # Errors
    /// [`ConfigError::Layers`].
    pub fn gather(file: Option<&Path>, flags: impl Serialize) -> Result<Self, ConfigError> {
        let mut layers = Figment::from(Serialized::defaults(Self::default()));
        if let Some(file) = file {
            layers = layers.merge(Toml::file_exact(file));
        }
        layers
            // It names the file.
            .merge(Env::prefixed(ENV_PREFIX).ignore(&["config"]))
            .merge(Serialized::globals(flags))
            .extract()
            .map_err(|error| ConfigError::Layers(Box::new(error)))
    }

    /// Checks values against each other and against what is possible.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for the first that cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse =
            |field: &str, problem: String, hint| Err(ConfigError::Value { field: field.to_owned(), problem, hint });
        if self.core.scheme() != "http" || self.core.path() != "/" || self.core.query().is_some() {
            let problem = format!("`{}` is not the address of a core", self.core);
            return refuse("core", problem, "write http://HOST:PORT");
        }
        if self.core_ip().is_none() {
            let problem = format!("`{}` is not on this machine's loopback", self.core);
            return refuse("core", problem, "there is no TLS yet: use 127.0.0.1, or tunnel the port to it");
        }
        if !swarm_protocol::validate::is_name(&self.name) {
            let name = swarm_protocol::text::sanitise(&self.name, false);
            let hint = "use at most 128 letters, digits, `.`, `_`, `-`, beginning with a letter or digit";
            return refuse("name", format!("`{name}` is not a name"), hint);
        }
        if self.join_token.is_some() && self.join_token_file.is_some() {
            return refuse("join_token_file", "is given beside `join_token`".into(), "keep one of the two");
        }
        if !(1..=4096).contains(&self.slots.unwrap_or(1)) {
            return refuse("slots", "is out of range".into(), "give 1 to 4096");
        }
        if self.sandbox_joins == 0 {
            return refuse("sandbox_joins", "is 0".into(), "give at least 1, or `sandboxes = 0` to do without");
        }
        if self.cpu_millis.is_some_and(|millis| millis < 10) {
            return refuse("cpu_millis", "is less than the smallest task needs".into(), "give at least 10");
        }
        if self.memory_bytes.is_some_and(|bytes| bytes < 6 << 20) {
            return refuse("memory_bytes", "is less than the smallest task needs".into(), "give at least 6 MiB");
        }
        if let Some((field, problem, hint)) = crate::labels::fault(&self.labels) {
            return refuse(&field, problem.into(), hint);
        }
        Ok(())
    }

    /// Whether this worker has a key already, and needs no join token.
    #[must_use]
    pub fn has_joined(&self) -> bool {
        crate::identity::exists(&self.data)
    }

    /// How to reach the engine. Images are kept under a name of the data directory's own, so that workers that share an
    /// engine do not remove each other's.
    #[must_use]
    pub fn engine_settings(&self) -> DockerSettings {
        let data = std::path::absolute(&self.data).unwrap_or_else(|_| self.data.clone());
        let own = &Digest::of(data.as_os_str().as_encoded_bytes()).hex()[..12];
        let repository = format!("swarm-sync/w{own}");
        DockerSettings { host: self.docker_host.clone(), repository, ..DockerSettings::default() }
    }

    /// The loopback address the core is at, if it is one.
    #[must_use]
    pub fn core_ip(&self) -> Option<IpAddr> {
        let ip = match self.core.host()? {
            Host::Ipv4(ip) => IpAddr::V4(ip),
            Host::Ipv6(ip) => IpAddr::V6(ip),
            Host::Domain("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Host::Domain(_) => return None,
        };
        ip.is_loopback().then_some(ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(flags: serde_json::Value) -> String {
        WorkerConfig::settle(None, flags).unwrap_err().to_string()
    }

    #[test]
    fn flags_win_and_unknown_keys_are_refused() {
        let config = WorkerConfig::settle(None, serde_json::json!({"name": "w1", "slots": 3})).unwrap();
        assert_eq!((config.name.as_str(), config.slots), ("w1", Some(3)));
        assert!(fault(serde_json::json!({"name": "w1", "slotz": 3})).contains("slotz"));
    }

    #[test]
    fn a_file_is_read_and_its_typos_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("worker.toml");
        std::fs::write(&file, "name = 'from-file'\nslots = 7\n").unwrap();
        let config = WorkerConfig::settle(Some(&file), serde_json::json!({"slots": 8})).unwrap();
        assert_eq!((config.name.as_str(), config.slots), ("from-file", Some(8)));
        std::fs::write(&file, "[labels]\nzone = 'a'\nrack = '4'\n").unwrap();
        let flags = serde_json::json!({"labels": {"zone": "b"}});
        let labels = WorkerConfig::settle(Some(&file), flags).unwrap().labels;
        let told: Vec<_> = labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(told, [("rack", "4"), ("zone", "b")]);
        std::fs::write(&file, "[labels]\nkernel = '7'\n").unwrap();
        let error = WorkerConfig::settle(Some(&file), serde_json::json!({})).unwrap_err().to_string();
        assert!(error.starts_with("labels.kernel: is a label the worker finds out itself"), "{error}");
        std::fs::write(&file, "nmae = 'x'\n").unwrap();
        let error = WorkerConfig::settle(Some(&file), serde_json::json!({})).unwrap_err();
        assert!(error.to_string().contains("nmae"), "{error}");
    }

    #[test]
    fn the_sample_is_right_with_and_without_what_is_commented_out() {
        let sample = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docker/worker.toml"));
        let loaded = WorkerConfig::settle(Some(sample), serde_json::json!({})).unwrap();
        let given = WorkerConfig { data: loaded.data.clone(), name: loaded.name.clone(), ..WorkerConfig::default() };
        assert_eq!(format!("{loaded:#?}"), format!("{given:#?}"));
        let whole = std::fs::read_to_string(sample).unwrap().replace("\n# slots", "\nslots");
        let whole = ["cpu_millis", "memory_bytes", "docker_host", "join_token_file", "sandboxes"]
            .iter()
            .fold(whole, |text, key| text.replace(&format!("# {key} ="), &format!("{key} =")));
        let whole = whole.replace("\n# [labels]\n# zone", "\n[labels]\nzone");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("worker.toml");
        std::fs::write(&file, whole).unwrap();
        let loaded = WorkerConfig::settle(Some(&file), serde_json::json!({})).unwrap();
        assert_eq!((loaded.slots, loaded.cpu_millis, loaded.memory_bytes), (Some(2), Some(2000), Some(4 << 30)));
        assert_eq!(loaded.sandboxes, Some(0));
        assert_eq!(loaded.labels.keys().collect::<Vec<_>>(), ["zone"]);
    }

    #[test]
    fn only_loopback_cores_are_accepted_and_the_message_says_why() {
        for good in ["http://127.0.0.1:7077", "http://[::1]:7077", "http://localhost:1"] {
            WorkerConfig::settle(None, serde_json::json!({"name": "w", "core": good})).unwrap();
        }
        for bad in ["http://10.0.0.1:7077", "http://example.com", "http://0.0.0.0:7077"] {
            let error = fault(serde_json::json!({"name": "w", "core": bad}));
            assert!(error.contains("loopback") && error.contains("no TLS yet"), "{error}");
        }
        assert!(fault(serde_json::json!({"name": "w", "core": "https://127.0.0.1"})).contains("http://HOST:PORT"));
    }

    #[test]
    fn the_join_token_never_prints() {
        let flags = serde_json::json!({"name": "w", "join_token": "very-secret"});
        let config = WorkerConfig::settle(None, flags).unwrap();
        assert!(config.join_token.is_some());
        assert!(!format!("{config:?}").contains("very-secret"));
        assert!(fault(serde_json::json!({"name": "w", "slots": 0})).contains("slots"));
        assert!(fault(serde_json::json!({"name": "w", "sandbox_joins": 0})).contains("sandbox_joins"));
    }
}
