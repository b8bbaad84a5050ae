//! For tests against a real engine: a small image made of the host's own programs, without registry or network, and a
//! guard that removes everything a test left behind, also when it panics.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use swarm_protocol::ids::Digest;
use tempfile::NamedTempFile;

use super::archive::{ArchiveLayer, docker_archive};
use super::docker::{DockerRuntime, DockerSettings};
use super::{ByteStream, ContainerRuntime, Labels};

/// An image of one layer.
pub struct HostImage {
    /// The image's identity.
    pub config_digest: Digest,
    /// The config's exact bytes.
    pub config: Bytes,
    /// Digest of the layer, which is not compressed.
    pub diff_id: Digest,
    /// The layer's size in bytes.
    pub layer_bytes: u64,
    layer: NamedTempFile,
}

impl HostImage {
    /// The layer's tar; it goes with this value.
    #[must_use]
    pub fn layer_path(&self) -> &Path {
        self.layer.path()
    }

    /// The layer's bytes as a stream.
    ///
    /// # Panics
    /// When the file is gone.
    #[must_use]
    pub fn layer_stream(&self) -> ByteStream {
        file_stream(self.layer_path()).expect("the layer's file can be opened")
    }

    /// The whole image as [`load_image`](ContainerRuntime::load_image) wants it.
    #[must_use]
    pub fn archive(&self) -> ByteStream {
        let body = Some((self.layer_bytes, self.layer_stream()));
        docker_archive(self.config.clone(), vec![ArchiveLayer { diff_id: self.diff_id, body }])
    }
}

/// Packs `programs` (absolute paths, or names looked up in the usual directories; all into `/bin`), their loader and libraries, `/etc/passwd` with `root`
/// and `nobody` (65534), and a world-writable `/tmp`. Every call gives another image, so that tests that run at the
/// same time on one engine do not remove each other's. CMD is `/bin/sh`.
///
/// # Errors
/// When a program is missing on the host, or a file cannot be read or written.
pub fn host_image(programs: &[&str]) -> io::Result<HostImage> {
    host_image_with(programs, None, &[])
}

/// As [`host_image`], with a USER, and with further files or others in place of its own.
///
/// # Errors
/// As [`host_image`].
pub fn host_image_with(programs: &[&str], user: Option<&str>, files: &[(&str, &[u8])]) -> io::Result<HostImage> {
    let salt = uuid::Uuid::new_v4().simple().to_string();
    let mut layer = NamedTempFile::new()?;
    write_layer(layer.as_file_mut(), programs, &salt, files)?;
    let (diff_id, layer_bytes) = digest_of(layer.path())?;
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({
        "architecture": architecture,
        "os": "linux",
        "created": "2000-01-01T00:00:00Z",
        "config": {
            "Env": ["PATH=/usr/bin:/bin", "FROM_IMAGE=yes"],
            "Cmd": ["/bin/sh", "-c", "echo image command"],
            "User": user.unwrap_or_default(),
            "StopSignal": "SIGTERM",
        },
        "rootfs": { "type": "layers", "diff_ids": [diff_id.to_string()] },
        "history": [{ "created": "2000-01-01T00:00:00Z", "created_by": "host programs" }],
    });
    let config = Bytes::from(config.to_string());
    Ok(HostImage { config_digest: Digest::of(&config), config, diff_id, layer_bytes, layer })
}

fn write_layer(file: &mut std::fs::File, programs: &[&str], salt: &str, files: &[(&str, &[u8])]) -> io::Result<()> {
    let mut tar = tar::Builder::new(io::BufWriter::new(file));
    for (directory, mode) in [("etc", 0o755), ("usr", 0o755), ("usr/bin", 0o755), ("bin", 0o755), ("tmp", 0o1777)] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        tar.append_data(&mut header, directory, io::empty())?;
    }
    let passwd = b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n";
    let own: [(&str, &[u8]); 3] =
        [("etc/passwd", passwd), ("etc/group", b"root:x:0:\nnogroup:x:65534:\n"), ("etc/salt", salt.as_bytes())];
    let kept = own.into_iter().filter(|(name, _)| files.iter().all(|(other, _)| other != name));
    for (name, bytes) in kept.chain(files.iter().copied()) {
        append(&mut tar, name, 0o644, bytes)?;
    }
    let mut libraries = BTreeSet::new();
    for program in programs {
        let path = find_program(program)?;
        libraries.extend(libraries_of(&path)?);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        append(&mut tar, &format!("bin/{name}"), 0o755, &std::fs::read(&path)?)?;
    }
    for library in libraries {
        // By the name the loader looks for, with the bytes a link leads to.
        let name = library.strip_prefix("/").unwrap_or(&library).to_string_lossy().into_owned();
        append(&mut tar, &name, 0o755, &std::fs::read(&library)?)?;
    }
    tar.into_inner()?.flush()
}

fn append(tar: &mut tar::Builder<impl Write>, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, name, bytes)
}

fn find_program(name: &str) -> io::Result<PathBuf> {
    // Joined to an absolute path, a directory does not count.
    let candidates = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(|directory| Path::new(directory).join(name));
    let found = candidates.into_iter().find(|path| path.is_file());
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no program {name} on this host")))
}

/// The loader and libraries of a program, as `ldd` lists them; none for a static one.
fn libraries_of(program: &Path) -> io::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let absolute = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(text.lines().filter_map(absolute).collect())
}

fn digest_of(path: &Path) -> io::Result<(Digest, u64)> {
    use sha2::Digest as _;
    let mut file = std::fs::File::open(path)?;
    let (mut hasher, mut size, mut buffer) = (sha2::Sha256::new(), 0, vec![0; 1 << 16]);
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok((Digest(hasher.finalize().into()), size));
        }
        hasher.update(&buffer[..count]);
        size += count as u64;
    }
}

fn file_stream(path: &Path) -> io::Result<ByteStream> {
    let file = std::fs::File::open(path)?;
    let chunks = stream::iter(std::iter::successors(Some(Ok(Bytes::new())), move |_| {
        let mut chunk = vec![0; 1 << 16];
        match (&file).read(&mut chunk) {
            Ok(0) => None,
            Ok(count) => Some(Ok(Bytes::from(chunk).slice(..count))),
            Err(error) => Some(Err(error)),
        }
    }));
    Ok(chunks.boxed())
}

/// The real engine under labels and a repository of this test's own. Dropping it removes all that carries them.
pub struct TestEngine {
    /// The engine.
    pub runtime: std::sync::Arc<DockerRuntime>,
    /// Put these on everything made.
    pub labels: Labels,
    /// Unique, for names of containers and volumes.
    pub prefix: String,
    settings: DockerSettings,
}

impl TestEngine {
    /// Connects to the machine's engine.
    ///
    /// # Panics
    /// When none answers: tests that need one fail without it.
    pub async fn connect() -> Self {
        let prefix = format!("swarmtest-{}", uuid::Uuid::new_v4().simple());
        let settings = DockerSettings { host: None, repository: prefix.clone(), deadlines: Default::default() };
        let runtime =
            DockerRuntime::connect(settings.clone()).await.expect("a container engine is needed for this test");
        let labels = Labels::from([("swarm-sync.test".to_owned(), prefix.clone())]);
        Self { runtime: std::sync::Arc::new(runtime), labels, prefix, settings }
    }

    /// Packs and loads an image of these programs.
    ///
    /// # Panics
    /// When it cannot be made or loaded.
    pub async fn load(&self, programs: &[&str]) -> HostImage {
        let image = host_image(programs).expect("host programs can be packed");
        self.runtime.load_image(image.archive(), &image.config_digest).await.expect("the image loads");
        image
    }
}

impl Drop for TestEngine {
    fn drop(&mut self) {
        // A connection belongs to the runtime that made it, and dropping happens inside one: clean up from outside.
        let (settings, labels) = (self.settings.clone(), self.labels.clone());
        let cleaner = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(clean_up(settings, &labels)).map_err(io::Error::other)
        });
        let cleaned = cleaner.join().unwrap_or_else(|_| Err(io::Error::other("the cleaner panicked")));
        if !std::thread::panicking() {
            cleaned.expect("everything the test made can be removed");
        }
    }
}

async fn clean_up(settings: DockerSettings, labels: &Labels) -> Result<(), super::RuntimeError> {
    let engine = DockerRuntime::connect(settings).await?;
    for container in engine.list_ours(labels).await? {
        engine.remove(&container.id, true).await?;
    }
    for volume in engine.list_our_volumes(labels).await? {
        engine.remove_volume(&volume.name).await?;
    }
    for image in engine.our_images().await? {
        engine.remove_image(&image.config).await?;
    }
    Ok(())
}
