//! The image of sandboxes: one layer with one program, both made by this worker's own build.

use bytes::Bytes;
use swarm_protocol::Digest;
use tar::Header;

use crate::runtime::ByteStream;
use crate::runtime::archive::{ArchiveLayer, docker_archive, once};

/// `pause/pause.rs` as a static executable; empty where the build does not know the architecture.
pub(super) const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));

/// See the module. The same build always packs the same image.
pub(super) struct PauseImage {
    config: Bytes,
    layer: Bytes,
}

impl PauseImage {
    /// Puts it together.
    pub(super) fn pack() -> Self {
        let layer = Bytes::from(layer());
        let config = serde_json::json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": { "Entrypoint": ["/pause"], "User": "65534:65534", "Labels": { "io.swarm-sync.pause": "1" } },
            "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer).to_string()] },
            "history": [{ "created_by": "swarm-worker" }],
        });
        Self { config: Bytes::from(config.to_string()), layer }
    }

    /// Its identity.
    pub(super) fn config_digest(&self) -> Digest {
        Digest::of(&self.config)
    }

    /// The whole of it, to be loaded.
    pub(super) fn archive(&self) -> ByteStream {
        let body = Some((self.layer.len() as u64, once(self.layer.clone())));
        docker_archive(self.config.clone(), vec![ArchiveLayer { diff_id: Digest::of(&self.layer), body }])
    }
}

fn layer() -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_size(PROGRAM.len() as u64);
    header.set_mode(0o755);
    let mut tar = tar::Builder::new(Vec::new());
    let written = tar.append_data(&mut header, "pause", PROGRAM).and_then(|()| tar.into_inner());
    written.expect("memory takes what is written to it")
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn the_program_needs_nothing_and_ends_at_once_when_told_to() {
        assert!(PROGRAM.starts_with(b"\x7fELF") && PROGRAM.len() < 64 << 10);
        let dir = tempfile::tempdir().unwrap();
        // With no environment, no directory and no open file of its own.
        let path = dir.path().join("pause");
        std::fs::write(&path, PROGRAM).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
            let mut command = Command::new(&path);
            command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            let (pid, deadline) = (rustix::process::Pid::from_child(&child), Instant::now() + Duration::from_secs(10));
            let stat = format!("/proc/{}/stat", child.id());
            let sleeps = || std::fs::read_to_string(&stat).unwrap().contains(") S ");
            while !sleeps() && Instant::now() < deadline {
                std::thread::yield_now();
            }
            rustix::process::kill_process(pid, signal).unwrap();
            let ended = (0..1000).find_map(|_| {
                std::thread::sleep(Duration::from_millis(10));
                child.try_wait().unwrap()
            });
            let _ = child.kill();
            assert_eq!(ended.and_then(|status| status.code()), Some(0), "{signal:?}");
        }
    }

    #[test]
    fn the_same_image_is_packed_every_time() {
        assert_eq!(PauseImage::pack().config_digest(), PauseImage::pack().config_digest());
    }
}
