//! The engine's calls.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use swarm_protocol::ids::Digest;

use super::FakeRuntime;
use super::events::Action;
use super::faults::Call;
use super::play::answer;
use super::state::{State, Volume, conflict, matches, not_found};
use crate::runtime::archive::once;
use crate::runtime::spec::check_name;
use crate::runtime::{
    ByteStream, ContainerId, ContainerPhase, ContainerRuntime, ContainerSpec, ContainerState, EngineFacts, ExitInfo,
    Labels, LogItems, OurContainer, OurImage, OurVolume, Reading, RuntimeError, Sibling, check_filter,
};

async fn collect(call: &'static str, mut stream: ByteStream) -> Result<Vec<u8>, RuntimeError> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        let failed = |error: std::io::Error| RuntimeError::Engine { call, message: error.to_string() };
        all.extend_from_slice(&chunk.map_err(failed)?);
    }
    Ok(all)
}

#[async_trait]
impl ContainerRuntime for FakeRuntime {
    async fn facts(&self) -> Result<EngineFacts, RuntimeError> {
        let facts = |state: &mut State| EngineFacts {
            cpus: state.cpus,
            memory_bytes: 8 << 30,
            engine_version: "0.0.0-fake".to_owned(),
            api_version: "1.41".to_owned(),
            storage_driver: "memory".to_owned(),
            os: "linux".to_owned(),
            arch: "x86_64".to_owned(),
            kernel: "0.0.0-fake".to_owned(),
            cgroup_version: "2".to_owned(),
            host: "fake".to_owned(),
            runtimes: vec!["runc".to_owned()],
            devices: Vec::new(),
            disk_bytes: Some(1 << 40),
            unenforced: Vec::new(),
            sees_volumes: true,
            disk_quota: state.disk_quota,
            image_id_is_config_digest: !state.in_containerd,
        };
        self.perform(Call::Facts, "", |state| Ok(facts(state))).await
    }

    async fn ping(&self) -> Result<(), RuntimeError> {
        self.perform(Call::Ping, "", |_| Ok(())).await
    }

    async fn image_exists(&self, config: &Digest) -> Result<bool, RuntimeError> {
        self.perform(Call::ImageExists, &config.to_string(), |state| Ok(state.images.contains_key(config))).await
    }

    async fn known_layers(&self, diff_ids: &[Digest]) -> Result<usize, RuntimeError> {
        self.perform(Call::KnownLayers, "", |state| Ok(state.leading_layers(diff_ids, true))).await
    }

    async fn load_image(&self, archive: ByteStream, expect: &Digest) -> Result<(), RuntimeError> {
        let lost = self.enter(Call::LoadImage, &expect.to_string()).await?;
        let archive = collect("load image", archive).await?;
        answer(lost, self.change(|state| state.load(&archive, expect)))
    }

    async fn tag_image(&self, config: &Digest) -> Result<(), RuntimeError> {
        let subject = config.to_string();
        let tag = |state: &mut State| {
            state.images.get_mut(config).ok_or_else(|| not_found("tag image", &subject))?.ours = true;
            Ok(())
        };
        self.perform(Call::TagImage, &subject, tag).await
    }

    async fn remove_image(&self, config: &Digest) -> Result<(), RuntimeError> {
        let subject = config.to_string();
        let remove = |state: &mut State| match state.images.get(config) {
            Some(image) if image.ours => {
                if state.containers.values().any(|container| container.spec.image == *config) {
                    return Err(conflict("remove image", "a container uses it"));
                }
                state.images.remove(config);
                Ok(())
            }
            _ => Err(not_found("remove image", &subject)),
        };
        self.perform(Call::RemoveImage, &subject, remove).await
    }

    async fn our_images(&self) -> Result<Vec<OurImage>, RuntimeError> {
        let list = |state: &mut State| {
            let ours = state.images.iter().filter(|(_, image)| image.ours);
            Ok(ours.map(|(config, image)| OurImage { config: *config, bytes: image.bytes }).collect())
        };
        self.perform(Call::OurImages, "", list).await
    }

    async fn disk_free(&self) -> Result<Option<u64>, RuntimeError> {
        let free = |state: &mut State| {
            let taken: u64 = state.images.values().map(|image| image.bytes).sum();
            Ok(state.disk_bytes.map(|bytes| bytes.saturating_sub(taken)))
        };
        self.perform(Call::DiskFree, "", free).await
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId, RuntimeError> {
        let now_us = self.now_us();
        self.perform(Call::Create, &spec.name, |state| state.create(spec, now_us)).await
    }

    async fn put_archive(&self, id: &ContainerId, path: &str, tar: ByteStream) -> Result<(), RuntimeError> {
        let lost = self.enter(Call::PutArchive, &id.0).await?;
        let tar = collect("put archive", tar).await?;
        answer(lost, self.change(|state| state.unpack(id, path, &tar)))
    }

    async fn get_archive(&self, id: &ContainerId, path: &str) -> Result<ByteStream, RuntimeError> {
        let pack = |state: &mut State| {
            let mut tar = state.pack(id, path)?;
            let stalls = state.archives_stall;
            let most = if stalls { tar.len() / 2 } else { state.archive_bytes_max };
            tar.truncate(most);
            Ok((tar, stalls, state.archives.clone()))
        };
        let (tar, stalls, open) = self.perform(Call::GetArchive, &id.0, pack).await?;
        let rest = if stalls { stream::pending().boxed() } else { stream::empty().boxed() };
        Ok(once(Bytes::from(tar)).chain(rest).inspect(move |_| _ = &open).boxed())
    }

    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.perform(Call::Start, &id.0, |state| self.begin(state, id)).await
    }

    async fn logs(&self, id: &ContainerId) -> Result<LogItems, RuntimeError> {
        self.perform(Call::Logs, &id.0, |state| state.container("logs", id).map(drop)).await?;
        let follow = Some((self.clone(), id.clone(), 0));
        let items = stream::unfold(follow, |follow| async move {
            let (engine, id, next) = follow?;
            let found = engine.until(|state| {
                let container = state.container("logs", &id)?;
                match container.log.get(next) {
                    Some(item) => Ok(Some(Some(item.clone()))),
                    None => Ok((container.phase != ContainerPhase::Running).then_some(None)),
                }
            });
            match found.await {
                Ok(None) => None,
                Ok(Some(item)) => Some((Ok(item), Some((engine.clone(), id.clone(), next + 1)))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(items.boxed())
    }

    async fn wait(&self, id: &ContainerId) -> Result<ExitInfo, RuntimeError> {
        let lost = self.enter(Call::Wait, &id.0).await?;
        let ended = self.until(|state| {
            let container = state.container("wait", id)?;
            match container.phase {
                ContainerPhase::Created => Err(conflict("wait", "the container was never started")),
                ContainerPhase::Running => Ok(None),
                ContainerPhase::Exited => Ok(Some(ExitInfo {
                    exit_code: container.exit_code.unwrap_or(-1),
                    oom_killed: container.oom_killed,
                    started_at_us: container.started_at_us,
                    finished_at_us: container.finished_at_us,
                    error: None,
                    interrupted: container.interrupted,
                })),
            }
        });
        answer(lost, ended.await)
    }

    async fn kill(&self, id: &ContainerId, signal: &str) -> Result<(), RuntimeError> {
        let now_us = self.now_us();
        let kill = |state: &mut State| {
            let container = state.container("kill", id)?;
            if container.phase != ContainerPhase::Running {
                return Err(conflict("kill", "it does not run"));
            }
            let deadly = matches!(signal, "SIGKILL" | "KILL" | "9");
            container.interrupted = true;
            if deadly || container.heeds.as_ref().is_none_or(|heeded| heeded == signal) {
                state.end(id, if deadly { 137 } else { 143 }, false, now_us);
            }
            Ok(())
        };
        self.perform(Call::Kill, &id.0, kill).await
    }

    async fn remove(&self, id: &ContainerId, force: bool) -> Result<(), RuntimeError> {
        let now_us = self.now_us();
        let remove = |state: &mut State| {
            let running = state.container("remove", id)?.phase == ContainerPhase::Running;
            if running && !force {
                return Err(conflict("remove", "it runs"));
            }
            state.end(id, 137, false, now_us);
            let id = state.id_of(id);
            state.note(&id, Action::Destroy, now_us);
            let anonymous = state.containers.remove(&id).map(|container| container.anonymous).unwrap_or_default();
            state.volumes.retain(|name, _| !anonymous.contains(name));
            Ok(())
        };
        self.perform(Call::Remove, &id.0, remove).await
    }

    async fn inspect(&self, id: &ContainerId) -> Result<ContainerState, RuntimeError> {
        let describe = |state: &mut State| Ok(State::describe(state.container("inspect", id)?));
        self.perform(Call::Inspect, &id.0, describe).await
    }

    async fn list_ours(&self, labels: &Labels) -> Result<Vec<OurContainer>, RuntimeError> {
        check_filter(labels)?;
        let list = |state: &mut State| {
            let ours = state.containers.iter().filter(|(_, container)| matches(&container.spec.labels, labels));
            Ok(ours.map(|(id, container)| State::list(id, container)).collect())
        };
        self.perform(Call::ListOurs, "", list).await
    }

    /// Its end is not played: a sibling is not among the containers.
    async fn start_sibling(&self, own: &ContainerId, _: &Sibling) -> Result<(), RuntimeError> {
        self.perform(Call::StartSibling, &own.0, |state| state.container("inspect", own).map(drop)).await
    }

    async fn reading(&self, id: &ContainerId) -> Result<Option<Reading>, RuntimeError> {
        self.perform(Call::Reading, &id.0, |state| {
            let container = state.container("reading", id)?;
            Ok((container.phase == ContainerPhase::Running).then_some(container.reading))
        })
        .await
    }

    async fn disk_usage(&self, labels: &Labels) -> Result<Vec<(Labels, Option<u64>)>, RuntimeError> {
        check_filter(labels)?;
        self.perform(Call::DiskUsage, "", |state| Ok(state.disk_usage(labels))).await
    }

    async fn root_usage(&self, id: &ContainerId) -> Result<u64, RuntimeError> {
        let sum = |state: &mut State| {
            Ok(state.container("root usage", id)?.files.values().map(|file| file.bytes.len() as u64).sum())
        };
        self.perform(Call::DiskUsage, &id.0, sum).await
    }

    async fn create_volume(&self, name: &str, labels: &Labels) -> Result<(), RuntimeError> {
        check_name("volume", name)?;
        check_filter(labels)?;
        let create = |state: &mut State| {
            let fresh = || Volume { labels: labels.clone(), ..Volume::default() };
            let volume = state.volumes.entry(name.to_owned()).or_insert_with(fresh);
            if volume.labels == *labels { Ok(()) } else { Err(conflict("create volume", "it has other labels")) }
        };
        self.perform(Call::CreateVolume, name, create).await
    }

    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError> {
        let remove = |state: &mut State| {
            let uses = |spec: &ContainerSpec| spec.volumes.iter().any(|mount| mount.volume == name);
            if state.containers.values().any(|container| uses(&container.spec)) {
                return Err(conflict("remove volume", "a container uses it"));
            }
            state.volumes.remove(name).map(drop).ok_or_else(|| not_found("remove volume", name))
        };
        self.perform(Call::RemoveVolume, name, remove).await
    }

    async fn list_our_volumes(&self, labels: &Labels) -> Result<Vec<OurVolume>, RuntimeError> {
        check_filter(labels)?;
        let list = |state: &mut State| {
            let ours = state.volumes.iter().filter(|(_, volume)| matches(&volume.labels, labels));
            Ok(ours.map(|(name, volume)| OurVolume { name: name.clone(), labels: volume.labels.clone() }).collect())
        };
        self.perform(Call::ListOurVolumes, "", list).await
    }
}
