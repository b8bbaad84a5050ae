//! A container beside the one this process runs in, made after it.

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, HostConfig, HostConfigLogConfig, Mount, MountPoint, MountType,
};
use bollard::query_parameters::CreateContainerOptions;

use super::DockerRuntime;
use crate::runtime::spec::invalid;
use crate::runtime::{RuntimeError, Sibling};

/// Bytes of memory and processes: it only reads small files and makes a few calls.
const MEMORY_BYTES: i64 = 256 << 20;
const PIDS: i64 = 64;
/// The label that tells people what it is; sweeps do not touch it, for it ends by itself.
const LABEL: &str = "io.swarm-sync.watchdog";

impl DockerRuntime {
    pub(super) async fn start_beside(&self, own: &str, sibling: &Sibling) -> Result<(), RuntimeError> {
        let own = self.call("inspect", self.docker.inspect_container(own, None)).await?;
        let body = body(own, sibling)?;
        let options = CreateContainerOptions { name: Some(sibling.name.clone()), ..Default::default() };
        let id = match self.call("create", self.docker.create_container(Some(options), body)).await {
            Ok(created) => created.id,
            // Made before, and perhaps not started.
            Err(RuntimeError::Conflict { .. }) => sibling.name.clone(),
            Err(error) => return Err(error),
        };
        self.start_container(&id).await
    }
}

fn body(own: ContainerInspectResponse, sibling: &Sibling) -> Result<ContainerCreateBody, RuntimeError> {
    let (config, host) = (own.config.unwrap_or_default(), own.host_config.unwrap_or_default());
    let mounts: Vec<Mount> = own.mounts.unwrap_or_default().into_iter().filter_map(mount).collect();
    let holds = |mount: &Mount| mount.target.as_ref().is_some_and(|target| sibling.data.starts_with(Path::new(target)));
    if !mounts.iter().any(holds) {
        let reason = format!("{} lies on none of the mounts of this worker's container", sibling.data.display());
        return invalid("data", reason);
    }
    let engine = config.env.unwrap_or_default().into_iter().find(|variable| variable.starts_with("DOCKER_HOST="));
    let address = sibling.words.iter().skip_while(|word| *word != "--docker-host").nth(1);
    let remote = address.cloned().or(engine.clone()).is_some_and(|address| address.contains("tcp://"));
    Ok(ContainerCreateBody {
        image: own.image,
        entrypoint: Some(sibling.words.clone()),
        cmd: Some(Vec::new()),
        user: config.user,
        env: Some(engine.into_iter().collect()),
        labels: Some(HashMap::from([(LABEL.to_owned(), own.id.unwrap_or_default())])),
        host_config: Some(HostConfig {
            mounts: Some(mounts),
            network_mode: if remote { host.network_mode } else { Some("none".to_owned()) },
            group_add: host.group_add,
            auto_remove: Some(true),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            readonly_rootfs: Some(true),
            memory: Some(MEMORY_BYTES),
            pids_limit: Some(PIDS),
            log_config: Some(HostConfigLogConfig { typ: Some("local".to_owned()), config: None }),
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// The same mount for another container; none for what is not made of the host's files.
fn mount(point: MountPoint) -> Option<Mount> {
    let (typ, source) = match point.typ?.as_str() {
        "bind" => (MountType::BIND, point.source?),
        "volume" => (MountType::VOLUME, point.name?),
        _ => return None,
    };
    let read_only = point.rw.map(|writable| !writable);
    Some(Mount { typ: Some(typ), source: Some(source), target: point.destination, read_only, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> ContainerInspectResponse {
        serde_json::from_value(serde_json::json!({
            "Id": "abc", "Image": "sha256:def",
            "Config": { "User": "1000", "Env": ["SECRET=x", "PATH=/bin"] },
            "HostConfig": { "NetworkMode": "host", "GroupAdd": ["999"] },
            "Mounts": [
                { "Type": "bind", "Source": "/var/run/docker.sock", "Destination": "/var/run/docker.sock", "RW": true },
                { "Type": "volume", "Name": "data", "Source": "/v/data", "Destination": "/var/lib/swarm", "RW": true },
                { "Type": "tmpfs", "Destination": "/run" },
            ],
        }))
        .unwrap()
    }

    fn sibling(data: &str, words: &[&str]) -> Sibling {
        Sibling { name: "w".into(), words: words.iter().map(ToString::to_string).collect(), data: data.into() }
    }

    #[test]
    fn it_is_made_after_its_own_and_has_less() {
        let body = body(own(), &sibling("/var/lib/swarm/worker", &["/bin/swarm", "watchdog"])).unwrap();
        assert_eq!((body.image.as_deref(), body.user.as_deref()), (Some("sha256:def"), Some("1000")));
        assert_eq!(body.env, Some(vec![]), "nothing of the worker's environment but the engine's address");
        let host = body.host_config.unwrap();
        let mounts: Vec<_> = host.mounts.unwrap().into_iter().map(|m| (m.source.unwrap(), m.target.unwrap())).collect();
        let pair = |source: &str, target: &str| (source.to_owned(), target.to_owned());
        assert_eq!(mounts, [pair("/var/run/docker.sock", "/var/run/docker.sock"), pair("data", "/var/lib/swarm")]);
        assert_eq!((host.network_mode.as_deref(), host.auto_remove), (Some("none"), Some(true)));
    }

    #[test]
    fn it_needs_the_data_and_the_way_to_the_engine() {
        let elsewhere = body(own(), &sibling("/var/lib/swarmish", &["/bin/swarm"])).unwrap_err();
        assert!(elsewhere.to_string().contains("none of the mounts"), "{elsewhere}");
        let words = ["/bin/swarm", "--docker-host", "tcp://10.0.0.1:2375"];
        let host = body(own(), &sibling("/var/lib/swarm", &words)).unwrap().host_config.unwrap();
        assert_eq!(host.network_mode.as_deref(), Some("host"));
    }
}
