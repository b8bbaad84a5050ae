//! Who this worker is: one data directory held by one process, one join, and the key that is used ever after.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use swarm_host::{blocking, files};
use swarm_protocol::api::JoinRequest;
use swarm_protocol::{SwarmId, WorkerId};
use tokio_util::sync::CancellationToken;

use crate::chance::{Backoff, Chance};
use crate::config::WorkerConfig;
use crate::network::{CallError, Network};

/// The data directory, locked as long as this lives.
#[derive(Debug)]
pub(crate) struct DataDir {
    /// Where it is.
    pub(crate) path: PathBuf,
    _lock: File,
}

/// The name of the worker's lock file, which the watchdog tries as well.
pub(crate) const LOCK: &str = "lock";

impl DataDir {
    /// Makes the directory (mode 0700) if need be and locks it.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        files::create_dir_durable(path, 0o700).with_context(|| format!("data: cannot make {}", path.display()))?;
        // A watchdog that is about to leave tries the lock for an instant, so one refusal proves nothing.
        for _ in 0..3 {
            let lock = try_lock(&path.join(LOCK));
            if let Some(lock) = lock.with_context(|| format!("data: cannot lock {}", path.display()))? {
                return Ok(Self { path: path.to_owned(), _lock: lock });
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        bail!("data: another worker uses {}; stop it, or give this one its own directory", path.display());
    }
}

/// Locks the file `path`, or returns `None` if another process holds it.
pub(crate) fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

const UNJOINED: &str = "stopped before the worker had joined";
const IDENTITY: &str = "identity.json";

/// Whether `data` holds an identity.
pub(crate) fn exists(data: &Path) -> bool {
    data.join(IDENTITY).exists()
}

/// What a join gave, kept in the data directory.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// The worker's number.
    pub(crate) worker: WorkerId,
    /// For `Authorization: Bearer`.
    pub(crate) key: SecretString,
    /// Known from the first welcome on; labels every container.
    pub(crate) swarm: Option<SwarmId>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    worker: WorkerId,
    key: String,
    swarm: Option<SwarmId>,
}

impl Identity {
    /// The identity kept in `data`, if this worker has joined.
    pub(crate) fn load(data: &Path) -> anyhow::Result<Option<Self>> {
        let path = data.join(IDENTITY);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let kept: Kept = serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
        Ok(Some(Self { worker: kept.worker, key: kept.key.into(), swarm: kept.swarm }))
    }

    /// Keeps this identity in `data`, mode 0600, synced.
    pub(crate) fn save(&self, data: &Path) -> anyhow::Result<()> {
        let kept = Kept { worker: self.worker, key: self.key.expose_secret().to_owned(), swarm: self.swarm };
        files::write(&data.join(IDENTITY), &serde_json::to_vec(&kept)?).context("cannot keep the identity")
    }
}

/// The identity in `data`; joins first if there is none. Waits for a core that is not there yet.
pub(crate) async fn obtain(
    config: &WorkerConfig,
    data: &Path,
    network: &dyn Network,
    chance: &Chance,
    stop: &CancellationToken,
) -> anyhow::Result<Identity> {
    if let Some(identity) = Identity::load(data)? {
        return Ok(identity);
    }
    let settings = config.clone();
    // Apart from the runtime's own threads: standard input may say nothing for long, and a stop must not wait for it.
    let read = blocking::run(move || join_token(&settings));
    let Some(token) = stop.run_until_cancelled(read).await else { bail!(UNJOINED) };
    let request = JoinRequest { token: token?.expose_secret().to_owned(), worker: config.name.clone() };
    let mut backoff = Backoff::new(chance);
    let answer = loop {
        match network.join(&request).await {
            Ok(answer) => break answer,
            Err(CallError::Refused(problem)) => {
                bail!("the core refused the join: {problem}{}", hint(&problem));
            }
            Err(error) => tracing::warn!(core = %config.core, %error, "cannot join yet, trying again"),
        }
        if stop.run_until_cancelled(tokio::time::sleep(backoff.next_pause())).await.is_none() {
            bail!(UNJOINED);
        }
    };
    let identity = Identity { worker: answer.worker, key: answer.key.into(), swarm: None };
    identity.save(data)?;
    tracing::info!(worker = %identity.worker, name = config.name, "joined the swarm");
    Ok(identity)
}

fn hint(problem: &swarm_protocol::problem::Problem) -> String {
    problem.hint.as_ref().map_or_else(String::new, |hint| format!("; {hint}"))
}

fn join_token(config: &WorkerConfig) -> anyhow::Result<SecretString> {
    if let Some(token) = &config.join_token {
        return Ok(token.clone());
    }
    let Some(file) = &config.join_token_file else {
        bail!(
            "this worker has not joined yet and has no join token; make one with `swarm consumer worker-token {}` and hand it over in \
             {}JOIN_TOKEN or in a file named by --join-token-file (`-` is standard input)",
            config.name,
            crate::config::ENV_PREFIX
        );
    };
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        io::stdin().lock().take(4096).read_to_string(&mut text)
    } else {
        File::open(file).and_then(|file| file.take(4096).read_to_string(&mut text))
    };
    read.with_context(|| format!("join_token_file: cannot read {}", file.display()))?;
    if text.trim().is_empty() {
        bail!("join_token_file: {} is empty", file.display());
    }
    Ok(text.trim().to_owned().into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_data_directory_has_one_worker() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(dir.path()).unwrap();
        let error = DataDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("another worker uses"), "{error}");
        drop(held);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_new_data_directory_outlives_a_power_cut() {
        use swarm_host::files::simulated;
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("new/data");
        simulated::begin();
        let held = DataDir::open(&data).unwrap();
        let identity = Identity { worker: WorkerId(7), key: "swk_x".to_owned().into(), swarm: None };
        identity.save(&data).unwrap();
        drop(held);
        // Of what may be lost, all is.
        simulated::cut(dir.path(), &mut |of| of - 1).unwrap();
        assert_eq!(Identity::load(&data).unwrap().expect("its key is there").worker, WorkerId(7));
    }

    #[test]
    fn the_identity_is_kept_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Identity::load(dir.path()).unwrap().is_none());
        let identity = Identity { worker: WorkerId(7), key: "swk_x".to_owned().into(), swarm: None };
        identity.save(dir.path()).unwrap();
        let file = dir.path().join("identity.json");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let loaded = Identity::load(dir.path()).unwrap().unwrap();
        assert_eq!((loaded.worker, loaded.key.expose_secret()), (WorkerId(7), "swk_x"));
        std::fs::write(&file, "{").unwrap();
        assert!(Identity::load(dir.path()).unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn without_a_token_the_message_says_where_to_get_one() {
        let config = WorkerConfig { name: "w1".into(), ..WorkerConfig::default() };
        let error = join_token(&config).unwrap_err().to_string();
        assert!(
            error.contains("swarm consumer worker-token w1") && error.contains("SWARM_WORKER_JOIN_TOKEN"),
            "{error}"
        );
    }
}
