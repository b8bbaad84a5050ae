//! What the fake engine remembers: images, containers and volumes. Synchronous and without a clock of its own.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use swarm_protocol::ids::Digest;
use swarm_protocol::logs::LogStream;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::events::{Action, EngineEvent};
use super::faults::{CallRecord, FaultPlan};
use super::script::{Program, Script};
use crate::runtime::spec::invalid;
use crate::runtime::{
    ContainerId, ContainerPhase, ContainerSpec, ContainerState, DiskQuota, Labels, LogItem, OurContainer, Reading,
    RuntimeError, VolumeMount, archive::TarEntry,
};

/// A file in a container or volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeFile {
    /// Its content.
    pub bytes: Bytes,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
}

pub(super) type Files = BTreeMap<String, FakeFile>;

#[derive(Default)]
pub(super) struct Image {
    pub(super) layers: Vec<Digest>,
    pub(super) ours: bool,
    pub(super) files: Files,
    pub(super) bytes: u64,
    /// Paths at which it declares volumes.
    pub(super) volumes: Vec<String>,
    pub(super) stop_signal: Option<String>,
}

#[derive(Default)]
pub(super) struct Volume {
    pub(super) labels: Labels,
    /// By path relative to the volume's root.
    pub(super) files: Files,
    pub(super) root: Option<TarEntry>,
}

pub(super) struct Container {
    pub(super) spec: ContainerSpec,
    pub(super) phase: ContainerPhase,
    /// By absolute path; files in volumes live there.
    pub(super) files: Files,
    /// Volumes without a name of ours: they go with it.
    pub(super) anonymous: Vec<String>,
    pub(super) log: Vec<LogItem>,
    /// As in its script.
    pub(super) heeds: Option<String>,
    pub(super) stop_signal: Option<String>,
    pub(super) started_at_us: Option<u64>,
    pub(super) finished_at_us: Option<u64>,
    pub(super) exit_code: Option<i64>,
    pub(super) oom_killed: bool,
    /// The engine was told to signal it.
    pub(super) interrupted: bool,
    pub(super) reading: Reading,
    pub(super) player: Option<AbortHandle>,
}

pub(super) struct State {
    pub(super) images: BTreeMap<Digest, Image>,
    pub(super) containers: BTreeMap<ContainerId, Container>,
    pub(super) volumes: BTreeMap<String, Volume>,
    pub(super) history: Vec<CallRecord>,
    pub(super) events: Vec<EngineEvent>,
    pub(super) faults: FaultPlan,
    /// Where containers live, if not with whoever starts them.
    pub(super) home: Option<Handle>,
    pub(super) program: Program,
    pub(super) down: bool,
    /// What the disk holds, where it can be seen.
    pub(super) disk_bytes: Option<u64>,
    pub(super) archive_bytes_max: usize,
    pub(super) archives_stall: bool,
    /// Held by every archive that is being read.
    pub(super) archives: Arc<()>,
    pub(super) in_containerd: bool,
    pub(super) cpus: u32,
    pub(super) disk_quota: DiskQuota,
    made: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            images: BTreeMap::new(),
            containers: BTreeMap::new(),
            volumes: BTreeMap::new(),
            history: Vec::new(),
            events: Vec::new(),
            faults: FaultPlan::new(),
            home: None,
            program: Box::new(|_| Script::new()),
            down: false,
            disk_bytes: None,
            archive_bytes_max: usize::MAX,
            archives_stall: false,
            archives: Arc::default(),
            in_containerd: false,
            cpus: 4,
            disk_quota: DiskQuota::No,
            made: 0,
        }
    }
}

pub(super) fn not_found(call: &'static str, what: &str) -> RuntimeError {
    RuntimeError::NotFound { call, message: format!("no such thing: {what}") }
}

pub(super) fn conflict(call: &'static str, message: impl Into<String>) -> RuntimeError {
    RuntimeError::Conflict { call, message: message.into() }
}

/// Whether `labels` holds all of `filter`.
pub(super) fn matches(labels: &Labels, filter: &Labels) -> bool {
    filter.iter().all(|(key, value)| labels.get(key) == Some(value))
}

impl State {
    pub(super) fn container(&mut self, call: &'static str, id: &ContainerId) -> Result<&mut Container, RuntimeError> {
        let id = self.id_of(id);
        self.containers.get_mut(&id).ok_or_else(|| not_found(call, &id.0))
    }

    /// The engine takes a container's name wherever it takes its id.
    pub(super) fn id_of(&self, id: &ContainerId) -> ContainerId {
        let named = self.containers.iter().find(|(_, container)| container.spec.name == id.0);
        named.map_or_else(|| id.clone(), |(id, _)| id.clone())
    }

    pub(super) fn create(&mut self, spec: &ContainerSpec, now_us: u64) -> Result<ContainerId, RuntimeError> {
        spec.check()?;
        let Some(image) = self.images.get(&spec.image) else {
            return Err(not_found("create", &spec.image.to_string()));
        };
        let (files, declared, stop_signal) = (image.files.clone(), image.volumes.clone(), image.stop_signal.clone());
        if self.containers.values().any(|container| container.spec.name == spec.name) {
            return Err(conflict("create", format!("the name {} is in use", spec.name)));
        }
        for mount in &spec.volumes {
            let fresh = || Volume { labels: spec.labels.clone(), ..Volume::default() };
            self.volumes.entry(mount.volume.clone()).or_insert_with(fresh);
        }
        if spec.disk_bytes.is_some() && self.disk_quota == DiskQuota::Unknown {
            self.disk_quota = DiskQuota::Yes;
        }
        self.made += 1;
        let id = ContainerId(format!("{:064x}", self.made));
        let mut spec = spec.clone();
        let anonymous = self.add_anonymous(&mut spec, declared);
        let container = Container {
            spec,
            anonymous,
            phase: ContainerPhase::Created,
            files,
            log: Vec::new(),
            heeds: None,
            stop_signal,
            started_at_us: None,
            finished_at_us: None,
            exit_code: None,
            oom_killed: false,
            interrupted: false,
            reading: Reading { cpu_ms: 0, memory_bytes: 0 },
            player: None,
        };
        self.containers.insert(id.clone(), container);
        self.note(&id, Action::Create, now_us);
        Ok(id)
    }

    /// Mounts the volumes that have no name: with our labels where those were asked for, and without for the rest of what
    /// the image declares. Their names.
    fn add_anonymous(&mut self, spec: &mut ContainerSpec, declared: Vec<String>) -> Vec<String> {
        let ours = spec.image_volumes.iter().map(|path| (path.clone(), spec.labels.clone()));
        let is_free = |path: &String| spec.volumes.iter().all(|mount| mount.path != *path);
        let rest = declared.into_iter().filter(|path| !spec.image_volumes.contains(path) && is_free(path));
        let all: Vec<_> = ours.chain(rest.map(|path| (path, Labels::new()))).collect();
        let mut names = Vec::new();
        for (n, (path, labels)) in all.into_iter().enumerate() {
            let name = format!("anonymous-{}-{n}", self.made);
            self.volumes.insert(name.clone(), Volume { labels, ..Volume::default() });
            spec.volumes.push(VolumeMount { volume: name.clone(), path });
            names.push(name);
        }
        names
    }

    pub(super) fn list(id: &ContainerId, container: &Container) -> OurContainer {
        OurContainer {
            id: id.clone(),
            name: container.spec.name.clone(),
            labels: container.spec.labels.clone(),
            phase: container.phase,
        }
    }

    pub(super) fn describe(container: &Container) -> ContainerState {
        ContainerState {
            phase: container.phase,
            started_at_us: container.started_at_us,
            finished_at_us: container.finished_at_us,
            exit_code: container.exit_code,
            oom_killed: container.oom_killed,
            stop_signal: container.stop_signal.clone(),
        }
    }

    pub(super) fn use_up(&mut self, id: &ContainerId, reading: Reading) {
        if let Some(container) = self.containers.get_mut(id) {
            container.reading = reading;
        }
    }

    pub(super) fn disk_usage(&self, filter: &Labels) -> Vec<(Labels, Option<u64>)> {
        let sum = |files: &Files| files.values().map(|file| file.bytes.len() as u64).sum();
        let containers = self.containers.values().map(|container| (&container.spec.labels, sum(&container.files)));
        let volumes = self.volumes.values().map(|volume| (&volume.labels, sum(&volume.files)));
        let ours = containers.chain(volumes).filter(|(labels, _)| matches(labels, filter));
        ours.map(|(labels, bytes)| (labels.clone(), Some(bytes))).collect()
    }

    /// Ends a running container; any other is left alone.
    pub(super) fn end(&mut self, id: &ContainerId, exit_code: i64, oom_killed: bool, now_us: u64) {
        let Ok(container) = self.container("end", id) else { return };
        if container.phase != ContainerPhase::Running {
            return;
        }
        container.phase = ContainerPhase::Exited;
        container.finished_at_us = Some(now_us);
        container.exit_code = Some(exit_code);
        container.oom_killed = oom_killed;
        if let Some(player) = container.player.take() {
            player.abort();
        }
        self.note(id, Action::Die, now_us);
    }

    pub(super) fn note(&mut self, id: &ContainerId, action: Action, at_us: u64) {
        if let Ok(container) = self.container("event", id) {
            let (name, labels) = (container.spec.name.clone(), container.spec.labels.clone());
            self.events.push(EngineEvent { name, labels, action, at_us });
        }
    }

    pub(super) fn write_log(&mut self, id: &ContainerId, stream: LogStream, bytes: Bytes, at_us: u64) {
        if let Some(container) = self.containers.get_mut(id) {
            container.log.push(LogItem { stream, at_us, bytes });
        }
    }

    /// All files a container sees, by absolute path.
    pub(super) fn all_files(&self, id: &ContainerId) -> Files {
        let Some(container) = self.containers.get(id) else { return Files::new() };
        let mut all = container.files.clone();
        for mount in &container.spec.volumes {
            let files = self.volumes.get(&mount.volume).into_iter().flat_map(|volume| &volume.files);
            all.extend(files.map(|(path, file)| (format!("{}/{path}", mount.path), file.clone())));
        }
        all
    }

    pub(super) fn write_file(&mut self, id: &ContainerId, path: &str, file: FakeFile) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let in_volume = |path: &str, mount: &str| path.strip_prefix(mount)?.strip_prefix('/').map(str::to_owned);
        let deepest = container.spec.volumes.iter().filter(|mount| in_volume(path, &mount.path).is_some());
        match deepest.max_by_key(|mount| mount.path.len()) {
            Some(mount) => {
                let inner = in_volume(path, &mount.path).unwrap_or_default();
                self.volumes.entry(mount.volume.clone()).or_default().files.insert(inner, file);
            }
            None => drop(container.files.insert(path.to_owned(), file)),
        }
    }

    pub(super) fn unpack(&mut self, id: &ContainerId, path: &str, tar: &[u8]) -> Result<(), RuntimeError> {
        let spec = self.container("put archive", id)?.spec.clone();
        let mount =
            spec.volumes.iter().find(|mount| path == mount.path || path.starts_with(&format!("{}/", mount.path)));
        if spec.read_only_root && mount.is_none() {
            return invalid("put archive", "the root filesystem is read-only");
        }
        let damaged = |error: std::io::Error| RuntimeError::Invalid { field: "put archive", reason: error.to_string() };
        for entry in tar::Archive::new(tar).entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let header = entry.header();
            let (uid, gid) = (header.uid().map_err(damaged)?, header.gid().map_err(damaged)?);
            let mode = header.mode().map_err(damaged)?;
            if header.entry_type().is_dir() {
                if let (Some(mount), "/") = (mount.filter(|mount| mount.path == path), name.as_str()) {
                    let volume = self.volumes.entry(mount.volume.clone()).or_default();
                    volume.root = Some(TarEntry { path: name, size: 0, mode, uid, gid });
                }
                continue;
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(damaged)?;
            let target = format!("{}/{}", path.trim_end_matches('/'), name.trim_start_matches("./"));
            self.write_file(id, &target, FakeFile { bytes: bytes.into(), mode, uid, gid });
        }
        Ok(())
    }

    /// `path` as the engine would archive it.
    pub(super) fn pack(&mut self, id: &ContainerId, path: &str) -> Result<Vec<u8>, RuntimeError> {
        let mounted = self.container("get archive", id)?.spec.volumes.iter().any(|mount| mount.path == path);
        let files = self.all_files(id);
        let base = path.rsplit('/').next().unwrap_or(path);
        let mut tar = tar::Builder::new(Vec::new());
        let failed =
            |error: std::io::Error| RuntimeError::BadFile { path: path.to_owned(), message: error.to_string() };
        if let Some(file) = files.get(path) {
            append(&mut tar, base, file).map_err(failed)?;
            return tar.into_inner().map_err(failed);
        }
        let below = format!("{}/", path.trim_end_matches('/'));
        let within: Vec<_> = files.iter().filter_map(|(name, file)| Some((name.strip_prefix(&below)?, file))).collect();
        if within.is_empty() && !mounted {
            return Err(not_found("get archive", path));
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        tar.append_data(&mut header, format!("{base}/"), std::io::empty()).map_err(failed)?;
        for (name, file) in within {
            append(&mut tar, &format!("{base}/{name}"), file).map_err(failed)?;
        }
        tar.into_inner().map_err(failed)
    }

    /// Takes in a docker-archive as the engine would: config found, layers present or known, digests right.
    pub(super) fn load(&mut self, archive: &[u8], expect: &Digest) -> Result<(), RuntimeError> {
        let refuse = |message: &str| RuntimeError::ImageInvalid { expect: *expect, message: message.to_owned() };
        let members = read_members(archive).map_err(|error| refuse(&error.to_string()))?;
        let json =
            |name: &str| members.get(name).and_then(|bytes| serde_json::from_slice::<serde_json::Value>(bytes).ok());
        let manifest = json("manifest.json").ok_or_else(|| refuse("no manifest.json"))?;
        let config_name = manifest[0]["Config"].as_str().unwrap_or_default();
        let config = json(config_name).ok_or_else(|| refuse("no config"))?;
        if Digest::of(&members[config_name]) != *expect {
            return Err(refuse("the archive held another image"));
        }
        let listed = config["rootfs"]["diff_ids"].as_array().cloned().unwrap_or_default();
        let layers: Vec<Digest> = listed.iter().filter_map(|id| id.as_str()?.parse().ok()).collect();
        let known = self.leading_layers(&layers, false);
        for diff_id in &layers[known..] {
            let bytes = members.get(&format!("{}.tar", diff_id.hex())).ok_or_else(|| refuse("a layer is missing"))?;
            // The engine unpacks what is compressed; the fake takes it on trust.
            let compressed = bytes.starts_with(&[0x1f, 0x8b]);
            if !compressed && Digest::of(bytes) != *diff_id {
                return Err(refuse("a layer has the wrong digest"));
            }
        }
        let volumes = config["config"]["Volumes"].as_object().into_iter().flatten().map(|(path, _)| path.clone());
        let (volumes, bytes) = (volumes.collect(), archive.len() as u64);
        self.images.insert(*expect, Image { layers, ours: true, bytes, volumes, ..Image::default() });
        Ok(())
    }

    pub(super) fn leading_layers(&self, diff_ids: &[Digest], ours_only: bool) -> usize {
        let shared = |image: &Image| image.layers.iter().zip(diff_ids).take_while(|(have, want)| have == want).count();
        self.images.values().filter(|image| image.ours || !ours_only).map(shared).max().unwrap_or(0)
    }
}

fn append(tar: &mut tar::Builder<Vec<u8>>, name: &str, file: &FakeFile) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(file.mode);
    header.set_uid(file.uid);
    header.set_gid(file.gid);
    header.set_size(file.bytes.len() as u64);
    tar.append_data(&mut header, name, &file.bytes[..])
}

fn read_members(archive: &[u8]) -> std::io::Result<HashMap<String, Vec<u8>>> {
    let mut members = HashMap::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        members.insert(name, bytes);
    }
    Ok(members)
}
