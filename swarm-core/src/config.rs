//! The core's configuration, settled once at start: defaults, then a TOML file, then `SWARM_CORE_…` variables (`__`
//! between levels), then flags. An unknown key is refused, so a typo fails at start and not at night.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize};

use crate::cache::{RedisSettings, RedisUrl};
use crate::images::ImageLimits;
use crate::logger::Filter;
use crate::plan::policy::PolicyConfig;
use crate::store::Source;

/// The prefix of the variables read.
pub const ENV_PREFIX: &str = "SWARM_CORE_";
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// Everything that can be set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CoreConfig {
    /// Where keys, blobs, logs and, by default, the database lie. Made when missing.
    pub data_dir: PathBuf,
    /// Where HTTP and the links listen. Loopback only, as long as there is no TLS.
    pub listen: SocketAddr,
    /// Where heartbeats are received (UDP); the address of `listen` when absent.
    pub heartbeat_listen: Option<SocketAddr>,
    /// `sqlite://PATH` or `postgres://…`; a file in `data_dir` when absent.
    #[serde(skip_serializing)]
    pub database_url: Option<DatabaseUrl>,
    /// The schema in Postgres that is this installation's alone, made at the first start; the role's own when absent.
    pub database_schema: Option<String>,
    /// Whether the link to a Postgres on another host may go without encryption, or without verification of the server.
    pub database_plaintext: bool,
    /// `redis://…`, `rediss://…` (TLS) or `redis+unix://…`; what is cached lies in the process when absent.
    #[serde(skip_serializing)]
    pub redis: Option<RedisUrl>,
    /// Certificates (PEM) by which the one of Redis has to be signed; the public authorities when absent.
    pub redis_ca_file: Option<PathBuf>,
    /// Whether a Redis on another machine may be talked to without TLS.
    pub redis_plaintext: bool,
    /// Which job is next: `{ name = "fifo" }` or `{ name = "priority-ageing", points_per_hour = 60 }`. Not among the
    /// serialised defaults, since layers are merged key by key and one policy's keys do not fit another.
    #[serde(skip_serializing)]
    pub policy: PolicyConfig,
    /// Pause between a worker's heartbeats, in milliseconds.
    pub heartbeat_interval_ms: u32,
    /// How long past the end of a lease the core waits before it gives an attempt up, in milliseconds.
    pub lease_margin_ms: u64,
    /// How long a worker may take to accept an order, in seconds.
    pub start_deadline_s: u64,
    /// How long a worker may prepare an attempt until its container starts, image and inputs included, in seconds.
    pub prepare_deadline_s: u64,
    /// From the image's STOPSIGNAL to SIGKILL when a job is cancelled or runs out of time, in milliseconds.
    pub grace_ms: u32,
    /// Whether jobs of the first account's group may run as root; counts at every start.
    pub allow_root: bool,
    /// Bounds.
    pub limits: Limits,
    /// The log of the core itself.
    pub log: LogSettings,
}

/// Bounds on what comes from outside.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of one uploaded file.
    pub upload_bytes: u64,
    /// Bytes of one image archive.
    pub image_bytes: u64,
    /// Bytes of one attempt's encoded log; what comes after is counted and cut.
    pub log_bytes: u64,
    /// Bytes of all outputs of one attempt.
    pub output_bytes: u64,
    /// Bytes of a JSON body.
    pub json_bytes: u64,
    /// How long a request waits for the database, in milliseconds; then it is told to come again.
    pub answer_ms: u64,
    /// Uploads of users under way at a time, and as many of workers; further ones wait. One user has a quarter of them.
    pub uploads: u32,
    /// Logins and joins from one address at once.
    pub login_burst: u32,
    /// One further login from that address every so many milliseconds.
    pub login_interval_ms: u64,
    /// While Redis is set but does not answer, a core lets through one in so many of these: the number of cores.
    pub login_share: u32,
}

/// The log of the core itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// Such as `info` or `scheduler=debug,info`.
    pub filter: String,
    /// Entries kept in memory for live readers.
    pub ring_entries: usize,
    /// The size at which a file is put aside, in bytes.
    pub file_bytes: u64,
    /// How many files are kept.
    pub files: usize,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("swarm-data"),
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7077),
            heartbeat_listen: None,
            database_url: None,
            database_schema: None,
            database_plaintext: false,
            redis: None,
            redis_ca_file: None,
            redis_plaintext: false,
            policy: PolicyConfig::default(),
            heartbeat_interval_ms: 1000,
            lease_margin_ms: 5000,
            start_deadline_s: 60,
            prepare_deadline_s: 6 * 3600,
            grace_ms: 10_000,
            allow_root: false,
            limits: Limits::default(),
            log: LogSettings::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            upload_bytes: 16 * GIB,
            image_bytes: 32 * GIB,
            log_bytes: 256 * MIB,
            output_bytes: 16 * GIB,
            json_bytes: MIB,
            answer_ms: 10_000,
            uploads: 32,
            login_burst: 20,
            login_interval_ms: 1000,
            login_share: 4,
        }
    }
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { filter: "info".to_owned(), ring_entries: 10_000, file_bytes: 64 * MIB, files: 5 }
    }
}

/// A database's address. It may hold a password, so it is never printed.
#[derive(Debug, Clone)]
pub struct DatabaseUrl(SecretString);

impl DatabaseUrl {
    /// The address in the clear, for the one who connects.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<String> for DatabaseUrl {
    fn from(url: String) -> Self {
        Self(SecretString::from(url))
    }
}

impl<'de> Deserialize<'de> for DatabaseUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

/// The flags that outrank file and environment.
#[derive(Debug, Clone, Default, clap::Args, Serialize)]
pub struct CoreFlags {
    /// Directory for keys, blobs, logs and the database.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// Address of HTTP and the links, for instance 127.0.0.1:7077.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Address for heartbeats (UDP); that of --listen by default.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_listen: Option<SocketAddr>,
}

/// Why the configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A key is unknown or a value has the wrong form.
    #[error("the configuration cannot be read")]
    Unreadable(#[from] Box<figment::Error>),
    /// A value is well-formed but cannot be used.
    #[error("configuration `{key}`: {problem}; {hint}")]
    Value {
        /// Which.
        key: &'static str,
        /// What is wrong.
        problem: String,
        /// What to try.
        hint: &'static str,
    },
}

impl CoreConfig {
    /// Settles the configuration. A `file` that is named must exist. The variable `SWARM_CORE_CONFIG`, which names the
    /// file to whoever calls this, is no key.
    ///
    /// # Errors
    /// [`ConfigError`] names the key and where it came from.
    pub fn load(file: Option<&Path>, flags: &CoreFlags) -> Result<Self, ConfigError> {
        Self::load_over(Self::default(), file, flags)
    }

    /// As [`load`](Self::load), with other defaults.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_over(defaults: Self, file: Option<&Path>, flags: &CoreFlags) -> Result<Self, ConfigError> {
        let mut layers = Figment::from(Serialized::defaults(defaults));
        if let Some(file) = file {
            layers = layers.merge(Toml::file_exact(file));
        }
        layers = layers.merge(Env::prefixed(ENV_PREFIX).ignore(&["config"]).split("__"));
        let config: Self = layers.merge(Serialized::defaults(flags)).extract().map_err(Box::new)?;
        config.check()?;
        Ok(config)
    }

    /// Checks what one value says about another.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let loopback = "set a loopback address such as 127.0.0.1:7077: without TLS nothing else is safe";
        for (key, address) in [("listen", self.listen), ("heartbeat_listen", self.heartbeat())] {
            let problem = || format!("{address} can be reached from other machines");
            ensure(address.ip().is_loopback(), key, problem, loopback)?;
        }
        let interval = self.heartbeat_interval_ms;
        let within = (50..=60_000).contains(&interval);
        ensure(within, "heartbeat_interval_ms", || format!("{interval} ms is out of range"), "give 50 to 60000")?;
        for (key, deadline, max, hint) in [
            ("start_deadline_s", self.start_deadline_s, 86_400, "give 1 to 86400"),
            ("prepare_deadline_s", self.prepare_deadline_s, 604_800, "give 1 to 604800"),
        ] {
            ensure((1..=max).contains(&deadline), key, || format!("{deadline} s is out of range"), hint)?;
        }
        let limits = &self.limits;
        let json = limits.json_bytes;
        let within = (4096..=16 * MIB).contains(&json);
        ensure(within, "limits.json_bytes", || format!("{json} is out of range"), "give 4096 to 16777216")?;
        for (key, value) in [
            ("limits.upload_bytes", limits.upload_bytes),
            ("limits.image_bytes", limits.image_bytes),
            ("limits.log_bytes", limits.log_bytes),
            ("limits.output_bytes", limits.output_bytes),
            ("limits.answer_ms", limits.answer_ms),
            ("limits.uploads", limits.uploads.into()),
            ("limits.login_burst", limits.login_burst.into()),
            ("limits.login_interval_ms", limits.login_interval_ms),
            ("limits.login_share", limits.login_share.into()),
        ] {
            ensure(value > 0, key, || "it is 0, so nothing would be let through".to_owned(), "give at least 1")?;
        }
        if let Some(Err(error)) = self.redis_settings().map(|settings| settings.check()) {
            ensure(
                false,
                "redis",
                || error.to_string(),
                "write for instance rediss://:PASSWORD@redis.example.org:6379",
            )?;
        }
        match self.log.filter.parse::<Filter>() {
            Ok(_) => Ok(()),
            Err(error) => ensure(false, "log.filter", || error.to_string(), "write for instance scheduler=debug,info"),
        }
    }

    /// Where heartbeats are received.
    #[must_use]
    pub fn heartbeat(&self) -> SocketAddr {
        self.heartbeat_listen.unwrap_or(self.listen)
    }

    /// The database's address, settled.
    #[must_use]
    pub fn database(&self) -> DatabaseUrl {
        let default = || format!("sqlite://{}", self.data_dir.join("swarm.db").display());
        self.database_url.clone().unwrap_or_else(|| DatabaseUrl::from(default()))
    }

    /// Which store to open, and how.
    #[must_use]
    pub fn store(&self) -> Source {
        Source {
            url: self.database().expose().to_owned(),
            schema: self.database_schema.clone(),
            plaintext: self.database_plaintext,
        }
    }

    /// What is said of Redis, if anything.
    #[must_use]
    pub fn redis_settings(&self) -> Option<RedisSettings> {
        let (ca_file, plain_text) = (self.redis_ca_file.clone(), self.redis_plaintext);
        self.redis.clone().map(|url| RedisSettings { url, ca_file, plain_text })
    }

    /// The bounds of images.
    #[must_use]
    pub fn image_limits(&self) -> ImageLimits {
        ImageLimits { archive_bytes_max: self.limits.image_bytes, ..ImageLimits::default() }
    }
}

fn ensure(
    ok: bool,
    key: &'static str,
    problem: impl FnOnce() -> String,
    hint: &'static str,
) -> Result<(), ConfigError> {
    if ok { Ok(()) } else { Err(ConfigError::Value { key, problem: problem(), hint }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(toml: &str, flags: &CoreFlags) -> Result<CoreConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("core.toml");
        std::fs::write(&file, toml).unwrap();
        CoreConfig::load(Some(&file), flags).map_err(|error| format!("{:#}", anyhow::Error::from(error)))
    }

    #[test]
    fn flags_outrank_the_file_and_the_file_outranks_defaults() {
        let listen = Some("[::1]:99".parse().unwrap());
        let flags = CoreFlags { listen, ..CoreFlags::default() };
        let toml = "listen = '127.0.0.1:1'\nallow_root = true\npolicy = { name = 'fifo' }\n[limits]\nuploads = 3\n";
        let config = load(toml, &flags).unwrap();
        assert_eq!(config.listen, "[::1]:99".parse().unwrap());
        assert_eq!(config.heartbeat(), config.listen);
        assert_eq!((config.allow_root, config.limits.uploads), (true, 3));
        assert_eq!(config.policy, PolicyConfig::Fifo {});
        assert_eq!(config.limits.json_bytes, MIB);
    }

    #[test]
    fn other_defaults_yield_to_what_is_configured() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("core.toml");
        let allowed = |toml: &str| {
            std::fs::write(&file, toml).unwrap();
            let defaults = CoreConfig { allow_root: true, ..CoreConfig::default() };
            CoreConfig::load_over(defaults, Some(&file), &CoreFlags::default()).unwrap().allow_root
        };
        assert!(allowed(""), "the configuration is silent");
        assert!(!allowed("allow_root = false"));
    }

    #[test]
    fn mistakes_are_named() {
        for (toml, part) in [
            ("lisen = '127.0.0.1:1'", "lisen"),
            ("[limits]\nuplods = 1", "uplods"),
            ("listen = '0.0.0.0:7077'", "can be reached from other machines"),
            ("heartbeat_listen = '10.0.0.1:7077'", "heartbeat_listen"),
            ("heartbeat_interval_ms = 0", "heartbeat_interval_ms"),
            ("start_deadline_s = 0", "start_deadline_s"),
            ("prepare_deadline_s = 604801", "prepare_deadline_s"),
            ("[limits]\nupload_bytes = 0", "limits.upload_bytes"),
            ("[limits]\nlogin_share = 0", "limits.login_share"),
            ("redis = 'redis://10.0.0.1'", "without TLS"),
            ("redis = 'http://127.0.0.1'", "no address of a Redis"),
            ("redis = 'redis://127.0.0.1'\nredis_ca_file = 'ca.pem'", "an address without TLS"),
            ("[log]\nfilter = 'a=b=c'", "log.filter"),
        ] {
            let error = load(toml, &CoreFlags::default()).unwrap_err();
            assert!(error.contains(part), "{toml}: {error}");
        }
        assert!(CoreConfig::load(Some(Path::new("/nonexistent.toml")), &CoreFlags::default()).is_err());
    }

    #[test]
    fn the_sample_shows_the_defaults() {
        let sample = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docker/core.toml"));
        let loaded = CoreConfig::load(Some(sample), &CoreFlags::default()).unwrap();
        let default = CoreConfig { data_dir: loaded.data_dir.clone(), ..CoreConfig::default() };
        assert_eq!(format!("{loaded:#?}"), format!("{default:#?}"));
        let text = std::fs::read_to_string(sample).unwrap();
        let keys =
            ["heartbeat_listen", "database_url", "database_schema", "database_plaintext", "redis", "redis_ca_file"];
        let whole = keys.iter().fold(text, |text, key| text.replace(&format!("# {key} ="), &format!("{key} =")));
        assert!(load(&whole, &CoreFlags::default()).is_ok(), "what is commented out is right too");
    }

    #[test]
    fn the_database_address_is_never_printed() {
        let config = load("database_url = 'postgres://u:hunter2@localhost/db'", &CoreFlags::default()).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(config.database().expose().contains("hunter2"));
        let config = load("redis = 'rediss://:hunter2@redis.example.org'", &CoreFlags::default()).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        let error = load("redis = 'redis://:hunter2@redis.example.org'", &CoreFlags::default()).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
        assert!(CoreConfig::default().database().expose().starts_with("sqlite://"));
    }
}
