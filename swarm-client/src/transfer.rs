//! Large bodies: never whole in memory, always checked.

use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _};
use reqwest::{Response, StatusCode};
use serde::de::DeserializeOwned;
use sha2::Digest as _;
use swarm_protocol::api::{FileView, ImageView, OutputView, UploadView};
use swarm_protocol::{AttemptNo, Digest, TaskId};
use tokio_util::io::ReaderStream;

use crate::call::Call;
use crate::http::UploadError;
use crate::{Client, ClientError, Packing, retry};

const READ_BYTES: usize = 256 << 10;

/// Told of every piece that moved: bytes so far.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// Where a download ends up.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    /// The file; its directory must exist. It appears there whole or not at all.
    pub path: &'a Path,
    /// Replaces a file that is there.
    pub overwrite: bool,
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> ClientError + Clone + use<> {
    let path = path.to_owned();
    move |source| ClientError::Io { action, path: path.clone(), source }
}

/// The bytes of a file from `offset` on.
///
/// # Errors
/// When it cannot be opened.
pub async fn read_from(path: &Path, offset: u64) -> io::Result<ReaderStream<tokio::fs::File>> {
    let mut file = tokio::fs::File::open(path).await?;
    tokio::io::AsyncSeekExt::seek(&mut file, SeekFrom::Start(offset)).await?;
    Ok(ReaderStream::with_capacity(file, READ_BYTES))
}

/// `progress` of an upload that goes on.
fn after(offset: u64, progress: &Progress) -> Progress {
    let progress = Arc::clone(progress);
    Arc::new(move |bytes| progress(offset + bytes))
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

impl Client {
    /// Makes a file on this machine available to the caller's jobs. Sends nothing when the core has it already; goes on
    /// where it stopped when the connection breaks.
    ///
    /// # Errors
    /// [`ClientError::Io`] when the file cannot be read, else as every call.
    pub async fn upload_file(&self, path: &Path, progress: Progress) -> Result<FileView, ClientError> {
        self.upload_source(&Source::File(path), progress).await
    }

    /// As [`upload_file`](Self::upload_file), with the archive of a directory. It is read twice, first for its digest, and
    /// lies nowhere in between.
    ///
    /// # Errors
    /// [`ClientError::Io`] when something of it cannot be read or is changed meanwhile, else as every call.
    pub async fn upload_directory(&self, packing: &Arc<Packing>, progress: Progress) -> Result<FileView, ClientError> {
        self.upload_source(&Source::Directory(packing), progress).await
    }

    async fn upload_source(&self, source: &Source<'_>, progress: Progress) -> Result<FileView, ClientError> {
        let path = source.path();
        let (digest, size_bytes) = source.digest().await.map_err(io_error("read", path))?;
        if let Some(known) = self.file_size(digest).await? {
            progress(size_bytes);
            return Ok(FileView { size_bytes, ..known });
        }
        let (mut failures, mut offset, mut furthest) = (0, 0, 0);
        loop {
            let bytes = source.read_from(offset).await.map_err(io_error("read", path))?;
            let mut call = Call::post("files").header("digest-expected", &digest.to_string());
            if offset > 0 {
                call = call.header("upload-offset", &offset.to_string());
            }
            let rest = Some(size_bytes.saturating_sub(offset));
            match self.upload::<FileView>(&call, rest, bytes, after(offset, &progress)).await {
                Err(ClientError::Source(source)) => return Err(io_error("read", path)(source)),
                Ok(view) if view.digest != digest => {
                    return Err(ClientError::Digest { expected: digest, got: view.digest });
                }
                Err(error) if error.is_retryable() => {
                    failures += 1;
                    retry::wait(failures, None).await;
                    let call = Call::get(format!("files/{digest}/upload"));
                    offset = self.json::<UploadView>(call).await.map_or(0, |there| there.offset.min(size_bytes));
                    if offset > furthest {
                        (failures, furthest) = (0, offset);
                    } else if failures >= retry::TRIES_MAX {
                        return Err(error);
                    }
                }
                other => return other,
            }
        }
    }

    /// Uploads an image archive (docker save, or an OCI layout as tar; gzip is fine). `name` may be left out when the
    /// archive names exactly one image.
    ///
    /// # Errors
    /// [`ClientError::Source`] when `bytes` fail, else as every call.
    pub async fn upload_image(
        &self,
        name: Option<&str>,
        bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        progress: Progress,
    ) -> Result<ImageView, ClientError> {
        let call = Call::post("images").query("name", name);
        self.upload(&call, None, bytes, progress).await
    }

    async fn upload<T: DeserializeOwned>(
        &self,
        call: &Call,
        size_bytes: Option<u64>,
        bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        progress: Progress,
    ) -> Result<T, ClientError> {
        let request = self.upload_request(call).await?;
        let response = self.http().upload(request, size_bytes, bytes, progress).await.map_err(|error| match error {
            UploadError::Broken(source) => self.unreachable(source),
            UploadError::Source(source) => ClientError::Source(source),
            UploadError::Stalled(silent) => {
                ClientError::Stalled { url: self.url().to_owned(), silent_s: silent.as_secs() }
            }
        })?;
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        let answer = self.read(response, crate::call::ANSWER_BYTES_MAX).await?;
        serde_json::from_slice(&answer).map_err(|error| self.protocol(error.to_string()))
    }

    /// Fetches the `n`th output (from 0) of a task's final or given attempt. The bytes go to a temporary file beside the
    /// destination, over as many connections as it takes, and are renamed once their digest is right.
    ///
    /// # Errors
    /// [`ClientError::Io`] with `AlreadyExists` when the file is there and may not be replaced; [`ClientError::Digest`]
    /// when other bytes came; else as every call.
    pub async fn download_output(
        &self,
        TaskId { job, task }: TaskId,
        attempt: Option<AttemptNo>,
        n: usize,
        output: &OutputView,
        destination: Destination<'_>,
        progress: Progress,
    ) -> Result<(), ClientError> {
        let call = Call::get(format!("jobs/{job}/tasks/{task}/outputs/{n}")).query("attempt", attempt);
        // Set-user-id and the like are the container's business, not this machine's.
        let part = Part::create(destination.path, output.mode & 0o777).await?;
        let part = self.fill(&call, part, output, progress).await?;
        part.finish(destination.overwrite).await
    }

    async fn fill(
        &self,
        call: &Call,
        mut part: Part,
        want: &OutputView,
        progress: Progress,
    ) -> Result<Part, ClientError> {
        let mut failures = 0;
        while part.received < want.size_bytes || part.received == 0 {
            let before = part.received;
            let broken = match self.resume(call, &mut part).await {
                Ok(response) => {
                    let mut pieces = response.bytes_stream();
                    loop {
                        match pieces.next().await {
                            Some(Ok(piece)) => {
                                if part.received + piece.len() as u64 > want.size_bytes {
                                    return Err(self.protocol("the output is longer than announced"));
                                }
                                part.write(piece).await?;
                                progress(part.received);
                            }
                            Some(Err(source)) => break Some(self.unreachable(source)),
                            None => break None,
                        }
                    }
                }
                Err(error) => return Err(error),
            };
            if part.received == want.size_bytes {
                break;
            }
            failures = if part.received > before { 1 } else { failures + 1 };
            if failures >= retry::TRIES_MAX {
                return Err(broken.unwrap_or_else(|| self.protocol("the output is shorter than announced")));
            }
            retry::wait(failures, None).await;
        }
        let got = part.digest();
        if got == want.digest { Ok(part) } else { Err(ClientError::Digest { expected: want.digest, got }) }
    }

    /// Asks for what is missing of `part`, which begins anew when the core sends everything instead.
    async fn resume(&self, call: &Call, part: &mut Part) -> Result<Response, ClientError> {
        let mut call = call.clone();
        if part.received > 0 {
            call = call.header("range", &format!("bytes={}-", part.received));
        }
        let response = self.open(&call).await?;
        if part.received > 0 {
            if response.status() == StatusCode::PARTIAL_CONTENT {
                let begin = format!("bytes {}-", part.received);
                let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
                if !range.is_some_and(|range| range.starts_with(&begin)) {
                    return Err(self.protocol("the output goes on at another byte than was asked for"));
                }
            } else {
                part.restart().await?;
            }
        }
        Ok(response)
    }
}

/// What is uploaded, read as often as it takes.
enum Source<'a> {
    File(&'a Path),
    Directory(&'a Arc<Packing>),
}

impl Source<'_> {
    fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Directory(packing) => packing.root(),
        }
    }

    async fn read_from(&self, offset: u64) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        Ok(match self {
            Self::File(path) => read_from(path, offset).await?.boxed(),
            Self::Directory(packing) => packing.stream(offset).await?.boxed(),
        })
    }

    async fn digest(&self) -> io::Result<(Digest, u64)> {
        match self {
            Self::File(path) => {
                let path = path.to_path_buf();
                blocking(move || digest(std::fs::File::open(path)?)).await
            }
            Self::Directory(packing) => {
                let packing = Arc::clone(packing);
                blocking(move || digest(packing.reader(0)?)).await
            }
        }
    }
}

fn digest(mut bytes: impl io::Read) -> io::Result<(Digest, u64)> {
    let mut hasher = Hasher(sha2::Sha256::new());
    let size = io::copy(&mut bytes, &mut hasher)?;
    Ok((Digest(hasher.0.finalize().into()), size))
}

struct Hasher(sha2::Sha256);

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A download that is not finished; removed when dropped.
struct Part {
    path: PathBuf,
    /// `None` only while a blocking thread has it.
    open: Option<Box<(tempfile::NamedTempFile, sha2::Sha256)>>,
    received: u64,
}

impl Part {
    /// `mode` is what the file may be at most: the umask of this process takes its part of it, as from any new file.
    async fn create(path: &Path, mode: u32) -> Result<Self, ClientError> {
        use std::os::unix::fs::PermissionsExt as _;
        let permissions = std::fs::Permissions::from_mode(mode | 0o600);
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = directory.to_owned();
        let file = blocking(move || {
            let mut builder = tempfile::Builder::new();
            builder.prefix(".swarm-").suffix(".part").permissions(permissions).tempfile_in(directory)
        })
        .await
        .map_err(io_error("write", path))?;
        let open = Some(Box::new((file, sha2::Sha256::new())));
        Ok(Self { path: path.to_owned(), open, received: 0 })
    }

    async fn with_file(
        &mut self,
        work: impl FnOnce(&mut tempfile::NamedTempFile, &mut sha2::Sha256) -> io::Result<()> + Send + 'static,
    ) -> Result<(), ClientError> {
        let mut open = self.open.take().expect("one piece at a time");
        let (open, done) = tokio::task::spawn_blocking(move || {
            let done = work(&mut open.0, &mut open.1);
            (open, done)
        })
        .await
        .map_err(|panic| io_error("write", &self.path)(io::Error::other(panic)))?;
        self.open = Some(open);
        done.map_err(io_error("write", &self.path))
    }

    async fn write(&mut self, piece: Bytes) -> Result<(), ClientError> {
        self.received += piece.len() as u64;
        self.with_file(move |file, hasher| {
            hasher.update(&piece);
            file.write_all(&piece)
        })
        .await
    }

    async fn restart(&mut self) -> Result<(), ClientError> {
        self.received = 0;
        self.with_file(|file, hasher| {
            *hasher = sha2::Sha256::new();
            file.as_file().set_len(0)?;
            file.seek(SeekFrom::Start(0)).map(drop)
        })
        .await
    }

    fn digest(&self) -> Digest {
        let hasher = self.open.as_ref().map(|open| open.1.clone()).unwrap_or_default();
        Digest(hasher.finalize().into())
    }

    async fn finish(mut self, overwrite: bool) -> Result<(), ClientError> {
        let open = self.open.take().expect("nothing is being written");
        let path = self.path.clone();
        blocking(move || {
            let file = open.0;
            file.as_file().sync_all()?;
            let kept = if overwrite { file.persist(&path) } else { file.persist_noclobber(&path) };
            kept.map(drop).map_err(|error| error.error)
        })
        .await
        .map_err(io_error("write", &self.path))
    }
}
