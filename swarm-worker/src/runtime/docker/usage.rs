//! What containers use: CPU and memory from the engine's statistics, disk from its sizes and from volumes' files.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bollard::models::{ContainerInspectResponse, ContainerStatsResponse, ContainerSummary};
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptions, ListVolumesOptions, StatsOptions};
use futures_util::stream::{self, StreamExt};
use walkdir::WalkDir;

use super::errors::within;
use super::{DockerRuntime, label_filter};
use crate::runtime::{Labels, Reading, RuntimeError};

/// What `st_blocks` counts in.
const BLOCK_BYTES: u64 = 512;
/// How long the engine may take to measure all containers: it walks their files.
const SIZES_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for one of them, when it could not measure all.
const SIZE_TIMEOUT: Duration = Duration::from_secs(10);
/// Containers measured one by one at the same time.
const SIZES_AT_ONCE: usize = 4;

/// How long one volume is walked: of one with more files the bytes seen until then count.
const WALK_MAX: Duration = Duration::from_secs(10);

/// Labels of a container or volume, and the bytes in it.
type Measured = (Labels, Option<u64>);

impl DockerRuntime {
    pub(super) async fn read_usage(&self, id: &str) -> Result<Option<Reading>, RuntimeError> {
        // `one-shot`: otherwise the engine takes a second reading a second later, for a rate.
        let options = StatsOptions { stream: false, one_shot: true };
        let mut answers = self.docker.stats(id, Some(options)).boxed();
        match self.call("stats", async { answers.next().await.transpose() }).await {
            Ok(answer) => Ok(answer.and_then(reading)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn free_bytes(&self) -> Result<Option<u64>, RuntimeError> {
        let info = self.call("info", self.docker.info()).await?;
        let disk = self.data_root(info.docker_root_dir).await;
        Ok(disk.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize)))
    }

    /// The file system of the engine's data root, if that is on this machine.
    pub(super) async fn data_root(&self, place: Option<String>) -> Option<rustix::fs::StatVfs> {
        let place = place.filter(|_| self.is_local)?;
        tokio::task::spawn_blocking(move || rustix::fs::statvfs(place)).await.ok()?.ok()
    }

    /// Whether files in the engine's volumes can be seen from here.
    pub(super) async fn sees_volumes(&self, data_root: Option<String>) -> bool {
        let Some(data_root) = data_root.filter(|_| self.is_local) else { return false };
        let look = move || std::fs::read_dir(Path::new(&data_root).join("volumes")).is_ok();
        tokio::task::spawn_blocking(look).await.unwrap_or(false)
    }

    pub(super) async fn measure_disk(&self, labels: &Labels) -> Result<Vec<Measured>, RuntimeError> {
        let (containers, volumes) = tokio::join!(self.measure_containers(labels), self.measure_volumes(labels));
        Ok(containers?.into_iter().chain(volumes?).collect())
    }

    /// All in one call, or one by one where that takes too long: of a container with very many files only its own size
    /// is not known then.
    async fn measure_containers(&self, labels: &Labels) -> Result<Vec<Measured>, RuntimeError> {
        match self.list_sizes(labels, true, SIZES_TIMEOUT.min(self.deadlines.call)).await {
            Ok(containers) => Ok(containers.into_iter().filter_map(|one| sized(one.labels, one.size_rw)).collect()),
            Err(error) => {
                tracing::debug!(%error, "containers cannot be measured together, measuring each");
                let containers = self.list_sizes(labels, false, self.deadlines.call).await?;
                let ids = containers.into_iter().filter_map(|one| one.id);
                let sizes = stream::iter(ids).map(|id| self.measure_container(id)).buffer_unordered(SIZES_AT_ONCE);
                Ok(sizes.filter_map(std::future::ready).collect().await)
            }
        }
    }

    async fn list_sizes(
        &self,
        labels: &Labels,
        size: bool,
        deadline: Duration,
    ) -> Result<Vec<ContainerSummary>, RuntimeError> {
        let filters = Some(label_filter(labels)?);
        let options = ListContainersOptions { all: true, size, filters, ..Default::default() };
        within("container sizes", deadline, self.docker.list_containers(Some(options))).await
    }

    pub(super) async fn measure_root(&self, id: &str) -> Result<u64, RuntimeError> {
        let answer = self.inspect_size(id).await?;
        Ok(answer.size_rw.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0))
    }

    async fn inspect_size(&self, id: &str) -> Result<ContainerInspectResponse, RuntimeError> {
        let asked = self.docker.inspect_container(id, Some(InspectContainerOptions { size: true }));
        within("container size", SIZE_TIMEOUT.min(self.deadlines.call), asked).await
    }

    async fn measure_container(&self, id: String) -> Option<Measured> {
        match self.inspect_size(&id).await {
            Ok(answer) => sized(answer.config.and_then(|config| config.labels), answer.size_rw),
            Err(error) if error.is_not_found() => None,
            Err(error) => {
                tracing::warn!(container = %id, %error, "what a container has written cannot be measured");
                None
            }
        }
    }

    async fn measure_volumes(&self, labels: &Labels) -> Result<Vec<Measured>, RuntimeError> {
        let options = ListVolumesOptions { filters: Some(label_filter(labels)?) };
        let listed = self.call("list volumes", self.docker.list_volumes(Some(options))).await?;
        let volumes = listed.volumes.filter(|_| self.is_local).unwrap_or_default().into_iter();
        let walked = tokio::task::spawn_blocking(move || {
            let measured = volumes.filter_map(|one| {
                let bytes = bytes_below(Path::new(&one.mountpoint), WALK_MAX)?;
                Some((one.labels.into_iter().collect(), bytes.ok()))
            });
            measured.collect()
        });
        Ok(walked.await.unwrap_or_default())
    }
}

/// The engine says -1 where it cannot walk a container's files: when a job has nested its directories too deeply.
fn sized(labels: Option<HashMap<String, String>>, size_rw: Option<i64>) -> Option<Measured> {
    Some((labels?.into_iter().collect(), u64::try_from(size_rw.unwrap_or(0)).ok()))
}

/// None once the container has ended: the engine answers with zeros then.
fn reading(answer: ContainerStatsResponse) -> Option<Reading> {
    let cpu_ns = answer.cpu_stats?.cpu_usage?.total_usage.filter(|ns| *ns > 0)?;
    let memory = answer.memory_stats?;
    let details = memory.stats.unwrap_or_default();
    // The names of cgroup v1 and v2.
    let cache = ["total_inactive_file", "inactive_file"].iter().find_map(|name| details.get(*name));
    let memory_bytes = memory.usage?.saturating_sub(cache.copied().unwrap_or(0));
    Some(Reading { cpu_ms: cpu_ns / 1_000_000, memory_bytes })
}

/// Bytes on disk of the files below `place`, of those at least that are seen within `time`; none where it cannot be read at
/// all. Follows no link and leaves no filesystem: what lies there was written by a job.
///
/// # Errors
/// Something below cannot be read: its path may be too long.
fn bytes_below(place: &Path, time: Duration) -> Option<Result<u64, walkdir::Error>> {
    std::fs::read_dir(place).ok()?;
    let (ends_at, mut bytes) = (Instant::now() + time, 0_u64);
    for entry in WalkDir::new(place).follow_links(false).same_file_system(true) {
        match entry.and_then(|entry| entry.metadata()) {
            Ok(file) => bytes = bytes.saturating_add(file.blocks().saturating_mul(BLOCK_BYTES)),
            Err(error) if error.io_error().is_some_and(|error| is_passed_over(error.kind())) => {}
            Err(error) => return Some(Err(error)),
        }
        if Instant::now() >= ends_at {
            break;
        }
    }
    Some(Ok(bytes))
}

/// What was removed meanwhile; and what only root may see, where this worker is not root and says that it sees no volumes.
fn is_passed_over(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::runtime::ContainerRuntime;
    use crate::runtime::docker::scripted::{Answer, ends, engine};

    /// On an engine that cannot measure its containers together, nor the one named `slow`, nor walk the one named `deep`.
    #[tokio::test]
    async fn a_container_that_cannot_be_measured_keeps_no_other_from_it() {
        let sized = |bytes: i64| ends(json!({"SizeRw": bytes, "Config": {"Labels": {"a": "b"}}}));
        let engine = engine(move |path| match path {
            _ if path.contains("/volumes") => ends(json!({"Volumes": []})),
            _ if path.contains("/containers/json") && path.contains("size=true") => Answer::Failed,
            _ if path.contains("/containers/json") => ends(json!([{"Id": "quick"}, {"Id": "slow"}, {"Id": "deep"}])),
            _ if path.contains("/containers/quick/") => sized(5),
            _ if path.contains("/containers/deep/") => sized(-1),
            _ => Answer::Open(String::new()),
        })
        .await;
        let labels = Labels::from([("a".to_owned(), "b".to_owned())]);
        let mut measured = engine.disk_usage(&labels).await.unwrap();
        measured.sort();
        assert_eq!(measured, [(labels.clone(), None), (labels, Some(5))]);
    }

    #[test]
    fn sparse_files_count_what_they_take_and_links_are_not_followed() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let bytes = |place: &Path| bytes_below(place, WALK_MAX).map(Result::unwrap);
        let empty = bytes(dir.path()).unwrap();
        std::fs::write(outside.path().join("big"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        std::fs::File::create(dir.path().join("sparse")).unwrap().set_len(1 << 30).unwrap();
        std::fs::write(dir.path().join("full"), vec![1; 256 << 10]).unwrap();
        let grown = bytes(dir.path()).unwrap() - empty;
        assert!((256 << 10..512 << 10).contains(&grown), "{grown}");
        assert_eq!(bytes(Path::new("/no/such/place")), None, "not seen is not empty");
        assert!(is_passed_over(ErrorKind::PermissionDenied) && !is_passed_over(ErrorKind::InvalidFilename));
        let hurried = bytes_below(dir.path(), Duration::ZERO).unwrap().unwrap();
        assert!(hurried < grown, "what was seen in time");
    }

    #[test]
    fn file_cache_does_not_count_as_memory_and_zeros_are_no_reading() {
        let answer = |cpu: u64| -> ContainerStatsResponse {
            serde_json::from_value(serde_json::json!({
                "cpu_stats": {"cpu_usage": {"total_usage": cpu}},
                "memory_stats": {"usage": 1000, "stats": {"total_inactive_file": 300}},
            }))
            .unwrap()
        };
        assert_eq!(reading(answer(7_500_000)), Some(Reading { cpu_ms: 7, memory_bytes: 700 }));
        assert_eq!(reading(answer(0)), None);
    }
}
