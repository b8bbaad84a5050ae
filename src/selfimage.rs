//! A small container image made of this very executable: no registry, nothing pulled, no static build. It holds the
//! executable, the libraries it has mapped, and the dynamic loader, which starts it with an explicit library path.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;
use sha2::{Digest, Sha256};

/// Writes a `docker save` archive of the image `name` into `file`; its ENTRYPOINT is the hidden payload mode.
///
/// # Errors
/// When the executable or its libraries cannot be read, or the file cannot be written.
pub(crate) fn write(file: &Path, name: &str) -> anyhow::Result<()> {
    let executable = std::env::current_exe().context("this executable cannot be found")?;
    let libraries = mapped_libraries().context("the mapped libraries cannot be listed")?;
    let mut layer = tempfile::tempfile()?;
    let diff_id = write_layer(&mut layer, &executable, &libraries)?;
    let config = serde_json::to_vec(&json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Entrypoint": entrypoint(&libraries), "WorkingDir": "/tmp", "User": "65534:65534",
                    "Labels": { "io.swarm-sync.demo": "1" } },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff_id}")] },
        "history": [{ "created_by": "swarm demo" }],
    }))?;
    let config_name = format!("{}.json", hex::encode(Sha256::digest(&config)));
    let layer_name = format!("{diff_id}/layer.tar");
    let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": [layer_name] }]);
    let mut archive = tar::Builder::new(io::BufWriter::new(fs::File::create(file)?));
    append(&mut archive, &config_name, &config)?;
    let size = layer.metadata()?.len();
    io::Seek::rewind(&mut layer)?;
    archive.append_data(&mut header(size, 0o644), &layer_name, layer)?;
    append(&mut archive, "manifest.json", &serde_json::to_vec(&manifest)?)?;
    archive.into_inner()?.flush()?;
    Ok(())
}

/// The loader is among the mapped files of a dynamic executable, and absent from a static one.
fn entrypoint(libraries: &BTreeSet<PathBuf>) -> Vec<String> {
    let loader = libraries.iter().filter_map(|path| path.file_name()?.to_str()).find(|name| name.starts_with("ld-"));
    let words: Vec<String> = match loader {
        Some(loader) => vec![format!("/lib/{loader}"), "--library-path".into(), "/lib".into(), "/bin/swarm".into()],
        None => vec!["/bin/swarm".into()],
    };
    words.into_iter().chain(["payload".into()]).collect()
}

/// Shared objects mapped into this process, from /proc/self/maps.
fn mapped_libraries() -> io::Result<BTreeSet<PathBuf>> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let paths = maps.lines().filter_map(|line| line.split_once('/').map(|(_, path)| PathBuf::from(format!("/{path}"))));
    let is_library =
        |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(|n| n.contains(".so"));
    Ok(paths.filter(is_library).collect())
}

fn write_layer(layer: &mut fs::File, executable: &Path, libraries: &BTreeSet<PathBuf>) -> anyhow::Result<String> {
    let mut archive = tar::Builder::new(Hashing { inner: layer, hash: Sha256::new() });
    for (dir, mode) in [("bin/", 0o755), ("lib/", 0o755), ("tmp/", 0o1777), ("etc/", 0o755)] {
        let mut header = header(0, mode);
        header.set_entry_type(tar::EntryType::Directory);
        archive.append_data(&mut header, dir, io::empty())?;
    }
    append(&mut archive, "etc/passwd", b"root:x:0:0::/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n")?;
    let files = libraries.iter().map(|path| ("lib", path.clone())).chain([("bin", executable.to_owned())]);
    for (dir, path) in files {
        let source = fs::File::open(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let name = if dir == "bin" { "swarm".into() } else { path.file_name().unwrap_or_default().to_owned() };
        archive.append_data(&mut header(source.metadata()?.len(), 0o755), Path::new(dir).join(name), source)?;
    }
    Ok(hex::encode(archive.into_inner()?.hash.finalize()))
}

fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header
}

fn append(archive: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    archive.append_data(&mut header(bytes.len() as u64, 0o644), name, bytes)
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use swarm_core::blobs::{DiskBlobs, MasterKey};
    use swarm_core::images::{ImageLimits, import};

    /// The core takes what the demo makes, and its entrypoint starts the loader where there is one.
    #[test]
    fn the_image_is_one_the_core_accepts() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("image.tar");
        super::write(&archive, "self:latest").unwrap();
        let key = Arc::new(MasterKey::load_or_create(&dir.path().join("key"), true).unwrap());
        let blobs = DiskBlobs::open(&dir.path().join("blobs"), key).unwrap();
        let image = import(std::fs::File::open(&archive).unwrap(), &blobs, &ImageLimits::default()).unwrap();
        assert_eq!(image.names, ["self:latest"]);
        assert_eq!(image.layers.len(), 1);
        let entrypoint = image.config.entrypoint;
        assert_eq!(entrypoint.last().map(String::as_str), Some("payload"));
        assert!(entrypoint.contains(&"/bin/swarm".to_owned()));
        assert_eq!(image.config.user, "65534:65534");
    }
}
