//! Docker behind [`ContainerRuntime`], by bollard. API 1.41 (engine 20.10) is enough.

mod containers;
mod create;
mod errors;
mod images;
mod logs;
mod moving;
mod points;
mod quota;
mod sibling;
mod usage;
mod volumes;

#[cfg(test)]
mod scripted;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bollard::{API_DEFAULT_VERSION, Docker};
use swarm_protocol::ids::Digest;

use self::errors::{map, within};
use super::spec::{check_name, invalid};
use super::{
    ByteStream, ContainerId, ContainerRuntime, ContainerSpec, ContainerState, EngineFacts, ExitInfo, Labels, LogItems,
    OurContainer, OurImage, OurVolume, Reading, RuntimeError, Sibling,
};

/// How long the engine may take, by kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// A plain call, the first bytes of a stream, and each further piece of a file being fetched.
    pub call: Duration,
    /// An upload of which the engine takes no byte, and its answer after the last byte of a file's.
    pub stall: Duration,
    /// Its answer after an image's last byte: it begins to work on the layers only then.
    pub load: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        let (call, stall) = (Duration::from_secs(120), Duration::from_secs(120));
        Self { call, stall, load: Duration::from_secs(3600) }
    }
}

/// Which engine, and under which name this worker keeps images there.
#[derive(Debug, Clone)]
pub struct DockerSettings {
    /// `unix:///path` or `tcp://host:port`; when not set, `DOCKER_HOST`, else the usual socket.
    pub host: Option<String>,
    /// The repository under which our images are tagged, such as `swarm-sync/w12`: lower case letters, digits, `-`,
    /// `.`, `_` and `/`. Workers that share an engine need different ones, or one removes the other's images.
    pub repository: String,
    /// How long calls may take.
    pub deadlines: Deadlines,
}

impl Default for DockerSettings {
    /// The usual engine, for the only worker that uses it.
    fn default() -> Self {
        Self { host: None, repository: "swarm-sync/local".to_owned(), deadlines: Deadlines::default() }
    }
}

/// Longer than any upload: whether one moves is what counts.
const UPLOAD_MAX: Duration = Duration::from_secs(7 * 86_400);

/// A Docker engine.
pub struct DockerRuntime {
    /// For calls: its own timeout, until the response's head has arrived, is [`Deadlines::call`].
    docker: Docker,
    /// For calls whose response comes late by nature: uploads.
    patient: Docker,
    deadlines: Deadlines,
    repository: String,
    /// Its files are on this machine, as far as this process may see them.
    is_local: bool,
    quota: quota::Quota,
    /// Logical CPUs, as it said last; no bound before. It refuses containers that are to have more, and any limit at all
    /// where it can enforce none: that is 0.
    cpu_limit: AtomicU32,
    /// Layers of our images by config digest. An image never changes, so what was read once stays true.
    layers: Mutex<HashMap<Digest, Vec<Digest>>>,
}

impl DockerRuntime {
    /// Connects and agrees on an API version.
    ///
    /// # Errors
    /// [`RuntimeError::Invalid`] for an unusable address or repository; infrastructure errors when no engine answers.
    pub async fn connect(settings: DockerSettings) -> Result<Self, RuntimeError> {
        let DockerSettings { host, repository, deadlines } = settings;
        check_repository(&repository)?;
        let seconds = deadlines.call.as_secs().max(1);
        let address = host.clone().or_else(|| std::env::var("DOCKER_HOST").ok());
        let is_local = address.is_none_or(|address| address.is_empty() || address.starts_with("unix://"));
        let docker = match host.as_deref() {
            None => Docker::connect_with_defaults(),
            Some(path) if path.starts_with("unix://") => Docker::connect_with_unix(path, seconds, API_DEFAULT_VERSION),
            Some(address) if address.starts_with("tcp://") => {
                Docker::connect_with_http(address, seconds, API_DEFAULT_VERSION)
            }
            Some(other) => return invalid("host", format!("`{other}` is neither unix:///path nor tcp://host:port")),
        };
        let docker = docker.map_err(|error| map("connect", deadlines.call, error))?;
        let docker = docker.with_timeout(Duration::from_secs(seconds));
        let docker = within("connect", deadlines.call, docker.negotiate_version()).await?;
        let patient = docker.clone().with_timeout(UPLOAD_MAX);
        Ok(Self {
            docker,
            patient,
            deadlines,
            repository,
            is_local,
            quota: quota::Quota::default(),
            cpu_limit: AtomicU32::new(u32::MAX),
            layers: Mutex::default(),
        })
    }

    /// One plain call under its deadline.
    async fn call<T>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, RuntimeError> {
        within(call, self.deadlines.call, work).await
    }
}

fn check_repository(repository: &str) -> Result<(), RuntimeError> {
    let part = |part: &str| {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_');
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        part.bytes().all(plain) && edge(part.as_bytes().first()) && edge(part.as_bytes().last())
    };
    if repository.len() <= 120 && repository.split('/').all(part) {
        return Ok(());
    }
    invalid("repository", format!("`{}` is not a name such as swarm-sync/w12", repository.escape_debug()))
}

/// Refuses ids that would change the request's path.
fn id_of(id: &ContainerId) -> Result<&str, RuntimeError> {
    check_name("container", &id.0)?;
    Ok(&id.0)
}

#[async_trait]
impl ContainerRuntime for DockerRuntime {
    async fn facts(&self) -> Result<EngineFacts, RuntimeError> {
        let version = self.call("version", self.docker.version()).await?;
        let info = self.call("info", self.docker.info()).await?;
        let in_containerd = info.driver_status.iter().flatten().flatten().any(|word| word.contains("containerd"));
        let mut runtimes: Vec<String> = info.runtimes.unwrap_or_default().into_keys().collect();
        runtimes.sort();
        let cpus = info.ncpu.and_then(|count| u32::try_from(count).ok()).filter(|count| *count > 0);
        let cpu_limit = if info.cpu_cfs_quota == Some(false) { 0 } else { cpus.unwrap_or(u32::MAX) };
        self.cpu_limit.store(cpu_limit, Ordering::Relaxed);
        let devices = info.discovered_devices.unwrap_or_default().into_iter();
        let disk = self.data_root(info.docker_root_dir.clone()).await;
        let sees_volumes = self.sees_volumes(info.docker_root_dir).await;
        let storage_driver = info.driver.unwrap_or_default();
        let enforced = [
            ("memory", info.memory_limit),
            ("swap", info.swap_limit),
            ("cpu", info.cpu_cfs_quota),
            ("pids", info.pids_limit),
        ];
        let unenforced = enforced.into_iter().filter(|(_, is_enforced)| *is_enforced == Some(false));
        let unenforced = unenforced.map(|(limit, _)| limit).collect();
        Ok(EngineFacts {
            cpus: cpus.unwrap_or(1),
            memory_bytes: info.mem_total.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0),
            engine_version: version.version.unwrap_or_default(),
            api_version: version.api_version.unwrap_or_default(),
            unenforced,
            disk_quota: self.quota.of_driver(&storage_driver),
            storage_driver,
            os: info.os_type.unwrap_or_default(),
            arch: info.architecture.unwrap_or_default(),
            kernel: info.kernel_version.unwrap_or_default(),
            cgroup_version: info.cgroup_version.map(|version| version.to_string()).unwrap_or_default(),
            host: info.name.unwrap_or_default(),
            runtimes,
            devices: devices.filter(|one| one.source.as_deref() == Some("cdi")).filter_map(|one| one.id).collect(),
            disk_bytes: disk.map(|disk| disk.f_blocks.saturating_mul(disk.f_frsize)),
            sees_volumes,
            image_id_is_config_digest: !in_containerd,
        })
    }

    async fn ping(&self) -> Result<(), RuntimeError> {
        self.call("ping", self.docker.ping()).await.map(drop)
    }

    async fn image_exists(&self, config: &Digest) -> Result<bool, RuntimeError> {
        self.has_image(config).await
    }

    async fn known_layers(&self, diff_ids: &[Digest]) -> Result<usize, RuntimeError> {
        self.leading_layers(diff_ids).await
    }

    async fn load_image(&self, archive: ByteStream, expect: &Digest) -> Result<(), RuntimeError> {
        self.load(archive, expect).await
    }

    async fn tag_image(&self, config: &Digest) -> Result<(), RuntimeError> {
        self.tag(config).await
    }

    async fn remove_image(&self, config: &Digest) -> Result<(), RuntimeError> {
        self.untag(config).await
    }

    async fn our_images(&self) -> Result<Vec<OurImage>, RuntimeError> {
        self.tagged_images().await
    }

    async fn disk_free(&self) -> Result<Option<u64>, RuntimeError> {
        self.free_bytes().await
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId, RuntimeError> {
        self.create_container(spec).await
    }

    async fn put_archive(&self, id: &ContainerId, path: &str, tar: ByteStream) -> Result<(), RuntimeError> {
        self.upload(id_of(id)?, path, tar).await
    }

    async fn get_archive(&self, id: &ContainerId, path: &str) -> Result<ByteStream, RuntimeError> {
        self.download(id_of(id)?, path).await
    }

    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.start_container(id_of(id)?).await
    }

    async fn logs(&self, id: &ContainerId) -> Result<LogItems, RuntimeError> {
        self.follow_logs(id_of(id)?).await
    }

    async fn wait(&self, id: &ContainerId) -> Result<ExitInfo, RuntimeError> {
        self.wait_container(id_of(id)?).await
    }

    async fn kill(&self, id: &ContainerId, signal: &str) -> Result<(), RuntimeError> {
        self.kill_container(id_of(id)?, signal).await
    }

    async fn remove(&self, id: &ContainerId, force: bool) -> Result<(), RuntimeError> {
        self.remove_container(id_of(id)?, force).await
    }

    async fn inspect(&self, id: &ContainerId) -> Result<ContainerState, RuntimeError> {
        self.inspect_container(id_of(id)?).await.map(|(state, _)| state)
    }

    async fn list_ours(&self, labels: &Labels) -> Result<Vec<OurContainer>, RuntimeError> {
        self.list_containers(labels).await
    }

    async fn start_sibling(&self, own: &ContainerId, sibling: &Sibling) -> Result<(), RuntimeError> {
        self.start_beside(id_of(own)?, sibling).await
    }

    async fn reading(&self, id: &ContainerId) -> Result<Option<Reading>, RuntimeError> {
        self.read_usage(id_of(id)?).await
    }

    async fn disk_usage(&self, labels: &Labels) -> Result<Vec<(Labels, Option<u64>)>, RuntimeError> {
        self.measure_disk(labels).await
    }

    async fn root_usage(&self, id: &ContainerId) -> Result<u64, RuntimeError> {
        self.measure_root(id_of(id)?).await
    }

    async fn create_volume(&self, name: &str, labels: &Labels) -> Result<(), RuntimeError> {
        self.make_volume(name, labels).await
    }

    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError> {
        self.drop_volume(name).await
    }

    async fn list_our_volumes(&self, labels: &Labels) -> Result<Vec<OurVolume>, RuntimeError> {
        self.list_volumes(labels).await
    }
}

/// The engine's filter for these labels.
fn label_filter(labels: &Labels) -> Result<HashMap<String, Vec<String>>, RuntimeError> {
    super::check_filter(labels)?;
    let terms = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    Ok(HashMap::from([("label".to_owned(), terms)]))
}
