//! What containers use: CPU and memory from the engine's statistics, disk from its sizes and from volumes' files.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bollard::models::ContainerStatsResponse;
use bollard::query_parameters::{ListContainersOptions, ListVolumesOptions, StatsOptions};
use futures_util::StreamExt;
use walkdir::WalkDir;

use super::{DockerRuntime, label_filter};
use crate::runtime::{Labels, Reading, RuntimeError};

/// What `st_blocks` counts in.
const BLOCK_BYTES: u64 = 512;

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

    pub(super) async fn measure_disk(&self, labels: &Labels) -> Result<Vec<(Labels, u64)>, RuntimeError> {
        let filters = Some(label_filter(labels)?);
        let options = ListContainersOptions { all: true, size: true, filters: filters.clone(), ..Default::default() };
        let containers = self.call("container sizes", self.docker.list_containers(Some(options))).await?;
        let mut measured: Vec<(Labels, u64)> = containers
            .into_iter()
            .filter_map(|one| Some((one.labels?.into_iter().collect(), u64::try_from(one.size_rw?).ok()?)))
            .collect();
        let volumes = self.call("list volumes", self.docker.list_volumes(Some(ListVolumesOptions { filters }))).await?;
        let volumes = volumes.volumes.filter(|_| self.is_local).unwrap_or_default();
        let walked = tokio::task::spawn_blocking(move || {
            let size = |place: &str| bytes_below(Path::new(place));
            volumes.into_iter().map(|one| (one.labels.into_iter().collect(), size(&one.mountpoint))).collect::<Vec<_>>()
        });
        measured.extend(walked.await.unwrap_or_default());
        Ok(measured)
    }
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

/// Bytes on disk of all files below `place`; 0 where it cannot be seen. Follows no link and leaves no filesystem: what
/// lies there was written by a job.
fn bytes_below(place: &Path) -> u64 {
    let entries = WalkDir::new(place).follow_links(false).same_file_system(true).into_iter().filter_map(Result::ok);
    entries.filter_map(|entry| entry.metadata().ok()).map(|file| file.blocks().saturating_mul(BLOCK_BYTES)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_files_count_what_they_take_and_links_are_not_followed() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let empty = bytes_below(dir.path());
        std::fs::write(outside.path().join("big"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        std::fs::File::create(dir.path().join("sparse")).unwrap().set_len(1 << 30).unwrap();
        std::fs::write(dir.path().join("full"), vec![1; 256 << 10]).unwrap();
        let grown = bytes_below(dir.path()) - empty;
        assert!((256 << 10..512 << 10).contains(&grown), "{grown}");
        assert_eq!(bytes_below(Path::new("/no/such/place")), 0);
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
