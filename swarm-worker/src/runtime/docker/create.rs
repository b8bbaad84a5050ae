//! From our allow-list to the engine's create call.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType, MountVolumeOptions,
    ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use bollard::query_parameters::CreateContainerOptions;

use super::DockerRuntime;
use super::errors::{map_create, timed_out};
use super::points::around;
use super::quota::is_refusal;
use crate::runtime::{ContainerId, ContainerSpec, DiskQuota, Labels, Network, RuntimeError, VolumeMount};

impl DockerRuntime {
    pub(super) async fn create_container(&self, spec: &ContainerSpec) -> Result<ContainerId, RuntimeError> {
        spec.check()?;
        let disk_bytes = spec.disk_bytes.filter(|_| self.quota.may_hold());
        match self.try_create(spec, disk_bytes).await {
            Err(error) if disk_bytes.is_some() && is_refusal(&error) => {
                self.quota.note(DiskQuota::No);
                self.try_create(spec, None).await
            }
            Ok(id) => {
                if disk_bytes.is_some() {
                    self.quota.note(DiskQuota::Yes);
                }
                Ok(id)
            }
            failed => failed,
        }
    }

    async fn try_create(&self, spec: &ContainerSpec, disk_bytes: Option<u64>) -> Result<ContainerId, RuntimeError> {
        let options = CreateContainerOptions { name: Some(spec.name.clone()), ..Default::default() };
        let mut body = body(spec, self.cpu_limit.load(Ordering::Relaxed));
        if let (Some(bytes), Some(host)) = (disk_bytes, &mut body.host_config) {
            host.storage_opt = Some(HashMap::from([("size".to_owned(), bytes.to_string())]));
        }
        let deadline = self.deadlines.call;
        let created = around("create", self.docker.create_container(Some(options), body));
        match tokio::time::timeout(deadline, created).await {
            Ok(Ok(created)) => Ok(ContainerId(created.id)),
            Ok(Err(error)) => Err(map_create(deadline, error)),
            Err(_) => Err(timed_out("create", deadline)),
        }
    }
}

fn body(spec: &ContainerSpec, cpu_limit: u32) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(spec.image.to_string()),
        labels: Some(spec.labels.clone().into_iter().collect()),
        entrypoint: spec.entrypoint.clone(),
        cmd: spec.cmd.clone(),
        user: spec.user.clone(),
        working_dir: spec.workdir.clone(),
        env: Some(spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        // The image's health check would run commands of its own beside the job.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        tty: Some(false),
        open_stdin: Some(false),
        host_config: Some(host_config(spec, cpu_limit)),
        ..Default::default()
    }
}

fn host_config(spec: &ContainerSpec, cpu_limit: u32) -> HostConfig {
    let memory = i64::try_from(spec.memory_bytes).unwrap_or(i64::MAX);
    HostConfig {
        cap_drop: Some(vec!["ALL".to_owned()]),
        // No `seccomp=` here: naming none keeps the engine's default profile.
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        privileged: Some(false),
        group_add: Some(spec.groups.iter().map(ToString::to_string).collect()),
        network_mode: Some(match &spec.network {
            Network::None => "none".to_owned(),
            Network::Of(other) => format!("container:{other}"),
        }),
        ipc_mode: Some("private".to_owned()),
        init: Some(false),
        auto_remove: Some(false),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        pids_limit: Some(i64::from(spec.pids)),
        memory: Some(memory),
        // Memory and swap together: equal to `memory` means no swap.
        memory_swap: Some(memory),
        nano_cpus: nano_cpus(spec.cpu_millis, cpu_limit),
        // A crash must not leave a copy of a job's memory on the disk.
        ulimits: Some(vec![ulimit("core", 0), ulimit("nofile", i64::from(spec.open_files))]),
        readonly_rootfs: Some(spec.read_only_root),
        tmpfs: Some(
            spec.tmpfs
                .iter()
                .map(|mount| (mount.path.clone(), format!("rw,nosuid,nodev,size={},mode=1777", mount.bytes)))
                .collect(),
        ),
        mounts: Some(mounts(spec)),
        log_config: Some(HostConfigLogConfig {
            // json-file would replace bytes that are not UTF-8.
            typ: Some("local".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), spec.log.file_bytes.to_string()),
                ("max-file".to_owned(), spec.log.files.to_string()),
                ("compress".to_owned(), "false".to_owned()),
            ])),
        }),
        ..Default::default()
    }
}

/// All there are, where a worker offers more cores than its engine has and a job asks for them; none where the engine
/// cannot enforce any.
fn nano_cpus(cpu_millis: u64, cpu_limit: u32) -> Option<i64> {
    let millis = cpu_millis.min(u64::from(cpu_limit) * 1000);
    i64::try_from(millis.saturating_mul(1_000_000)).ok().filter(|nanos| *nanos > 0)
}

fn ulimit(name: &str, most: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(most), hard: Some(most) }
}

fn mounts(spec: &ContainerSpec) -> Vec<Mount> {
    let own = spec.volumes.iter().map(|mount| volume_mount(mount, &spec.labels));
    own.chain(spec.image_volumes.iter().map(|path| image_volume(path, &spec.labels))).collect()
}

/// In place of the volume without labels that the engine would make here. Without a name it is as that one otherwise:
/// filled from the image, and removed with the container.
fn image_volume(path: &str, labels: &Labels) -> Mount {
    Mount {
        typ: Some(MountType::VOLUME),
        target: Some(path.to_owned()),
        volume_options: Some(MountVolumeOptions {
            labels: Some(labels.clone().into_iter().collect()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn volume_mount(mount: &VolumeMount, labels: &Labels) -> Mount {
    Mount {
        typ: Some(MountType::VOLUME),
        source: Some(mount.volume.clone()),
        target: Some(mount.path.clone()),
        volume_options: Some(MountVolumeOptions {
            // Otherwise an empty volume would be filled with what the image has at that path.
            no_copy: Some(true),
            // The engine makes a volume that is missing; then it shall be found and swept as ours.
            labels: Some(labels.clone().into_iter().collect()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_container_gets_more_cores_than_there_are_and_none_a_limit_that_nobody_enforces() {
        assert_eq!(nano_cpus(1500, 4), Some(1_500_000_000));
        assert_eq!(nano_cpus(6000, 4), Some(4_000_000_000));
        assert_eq!(nano_cpus(1500, u32::MAX), Some(1_500_000_000), "not known yet");
        assert_eq!(nano_cpus(1500, 0), None);
    }
}
