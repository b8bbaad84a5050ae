//! Bytes in and out: bridges between async bodies and code that blocks, bounded in both directions.

use std::io::{self, Read, Seek, SeekFrom};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream};
use rocket::data::{Data, ToByteUnit};
use rocket::http::{ContentType, Status};
use rocket::request::Request;
use rocket::response::{Responder, Response, Result as Responded};
use swarm_protocol::Digest;
use swarm_protocol::problem::Problem;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncSeek, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use super::ApiState;
use super::parked::{Parked, Sender};
use super::problem::{Answer, Failure, cut_short, disk_full, internal, invalid, too_large, unavailable};
use super::turns::Turn;
use crate::blobs::{BlobRead, BlobStore, BlobUpload, StagedBlob, expect_digest};
use swarm_host::blocking;

/// The longest pause within an upload.
pub(crate) const CHUNK_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes that earn an upload another second: slower ones end, for they keep others waiting.
const BYTES_PER_S_MIN: u32 = 16 << 10;
/// What is still read of a refused upload, so that its sender comes to read the answer.
pub(crate) const DRAIN_BYTES_MAX: u64 = 16 << 20;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
const CHUNK_BYTES: usize = 64 << 10;
const DOWNLOAD_CHUNK_BYTES: usize = 256 << 10;
/// Chunks between the network and the disk.
const CHUNKS_WAITING: usize = 16;

/// A body as code that blocks reads it.
pub(crate) struct Pipe {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

/// Feeds a body of at most `bytes_max` to `consume`, which may block. The turn ends with the latter.
pub(crate) async fn receive<T: Send + 'static>(
    state: &ApiState,
    turn: Turn,
    data: Data<'_>,
    bytes_max: u64,
    consume: impl FnOnce(Pipe) -> Answer<T> + Send + 'static,
) -> Answer<T> {
    let (sender, chunks) = mpsc::channel(CHUNKS_WAITING);
    let work = tokio::spawn(blocking::run(move || {
        let _held = turn;
        consume(Pipe { chunks, current: Bytes::new() })
    }));
    let mut body = data.open((bytes_max + DRAIN_BYTES_MAX).bytes());
    tokio::select! {
        () = pump(&mut body, bytes_max, sender, Patience::default()) => {}
        // The pump's sender is dropped; the consumer sees an end, and its answer no longer matters.
        () = state.stop().cancelled() => return Err(unavailable("the core is stopping")),
    }
    let answer = work.await.map_err(|error| internal(&error))?;
    if answer.is_err() {
        drain(&mut body).await;
    }
    answer
}

/// How long an upload may still pause: spent by waiting, earned by bytes, never more than [`CHUNK_TIMEOUT`].
struct Patience {
    left: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { left: CHUNK_TIMEOUT }
    }
}

impl Patience {
    fn spend(&mut self, waited: Duration, bytes: usize) {
        let earned = Duration::from_secs(bytes as u64) / BYTES_PER_S_MIN;
        self.left = (self.left.saturating_sub(waited) + earned).min(CHUNK_TIMEOUT);
    }
}

async fn pump(
    body: &mut (impl AsyncRead + Unpin),
    bytes_max: u64,
    sender: mpsc::Sender<io::Result<Bytes>>,
    mut patience: Patience,
) {
    let (mut buffer, mut left) = (BytesMut::new(), bytes_max);
    loop {
        buffer.reserve(CHUNK_BYTES);
        // Only waiting for the sender counts: that the disk is slow is not its fault.
        let asked = tokio::time::Instant::now();
        let chunk = match tokio::time::timeout(patience.left, body.read_buf(&mut buffer)).await {
            Ok(Ok(0)) => return,
            Ok(Ok(_)) => Ok(buffer.split().freeze()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the upload stalled or is too slow")),
        };
        patience.spend(asked.elapsed(), chunk.as_ref().map_or(0, Bytes::len));
        let chunk = chunk.and_then(|bytes| match left.checked_sub(bytes.len() as u64) {
            Some(rest) => {
                left = rest;
                Ok(bytes)
            }
            None => Err(io::ErrorKind::FileTooLarge.into()),
        });
        let last = chunk.is_err();
        // Refused when the consumer has given up.
        if sender.send(chunk).await.is_err() || last {
            return;
        }
    }
}

/// Reads on for a moment.
pub(crate) async fn drain(body: &mut (impl AsyncRead + Unpin)) {
    let mut rest = body.take(DRAIN_BYTES_MAX);
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
}

/// A body that is to become a blob.
pub(crate) struct Incoming<'r> {
    pub(crate) data: Data<'r>,
    pub(crate) bytes_max: u64,
    pub(crate) expected: Option<Digest>,
    /// Where in the blob the body begins: one that broke off goes on.
    pub(crate) offset: u64,
    pub(crate) sender: Sender,
}

/// Writes a body that is to become a blob, and checks its digest. One that breaks off is kept for a while if its digest
/// is known.
pub(crate) async fn stage_blob(
    state: &ApiState,
    turn: Turn,
    parked: &Arc<Parked>,
    Incoming { data, bytes_max, expected, offset, sender }: Incoming<'_>,
) -> Answer<Box<dyn StagedBlob>> {
    let key = expected.map(|digest| (sender, digest));
    let (blobs, parked) = (Arc::clone(&state.blobs), Arc::clone(parked));
    let (runtime, active) = (tokio::runtime::Handle::current(), key.map(|key| parked.begin(key)));
    receive(state, turn, data, bytes_max.saturating_sub(offset), move |mut pipe| {
        let _active = active;
        let mut upload = match (offset, key) {
            (0, _) => blobs.begin(bytes_max)?,
            (_, None) => {
                let hint = "send Digest-Expected too: an upload is known by what it is to become";
                return Err(invalid("Upload-Offset", "is of an upload that is not named", hint));
            }
            (_, Some(key)) => parked.take(&key, offset).map_err(|stands| wrong_offset(offset, stands))?,
        };
        match fill(&mut *upload, &mut pipe, bytes_max) {
            Ok(()) => Ok(expect_digest(upload.stage()?, expected)?),
            Err(Unfilled::CutShort) => {
                if let Some(key) = key.filter(|_| upload.written_bytes() > 0) {
                    let _guard = runtime.enter();
                    parked.park(key, upload);
                }
                Err(cut_short())
            }
            Err(Unfilled::Refused(failure)) => Err(failure),
        }
    })
    .await
}

fn wrong_offset(offset: u64, stands: u64) -> Failure {
    let detail = format!("there are {stands} bytes of this upload, not {offset}");
    let problem = Problem::new(412, "upload-offset", "The upload stands elsewhere", detail);
    problem.with_hint("ask how many bytes are there, and go on from that one").retryable().into()
}

enum Unfilled {
    /// The source ended early; what was written stays good.
    CutShort,
    Refused(Failure),
}

fn fill(upload: &mut dyn BlobUpload, source: &mut Pipe, bytes_max: u64) -> Result<(), Unfilled> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                return Err(Unfilled::Refused(too_large("the upload", bytes_max)));
            }
            Err(_) => return Err(Unfilled::CutShort),
        };
        upload.write_all(&buffer[..count]).map_err(|error| {
            Unfilled::Refused(match error.kind() {
                io::ErrorKind::FileTooLarge => too_large("the upload", bytes_max),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => disk_full(),
                _ => internal(&error),
            })
        })?;
    }
}

/// A blob as an answer, from some byte on.
pub(crate) struct Download {
    blob: Box<dyn BlobRead>,
    digest: Digest,
    size_bytes: u64,
    from: Option<u64>,
}

/// Opens a stored blob for an answer; `range` is the Range header, of which `bytes=N-` is understood.
pub(crate) async fn send_blob(state: &ApiState, digest: Digest, range: Option<&str>) -> Answer<Download> {
    let wanted = range.and_then(range_start);
    let blobs: Arc<dyn BlobStore> = Arc::clone(&state.blobs);
    let blob = state.served(blocking::run(move || blobs.open(&digest)).await)?;
    blocking::run(move || {
        let mut blob = blob;
        let size_bytes = blob.size_bytes();
        if let Some(from) = wanted {
            if from >= size_bytes {
                let detail = format!("the blob has {size_bytes} bytes; there is nothing from byte {from} on");
                let problem = Problem::new(416, "out-of-range", "Nothing in this range", detail);
                return Err(problem.with_hint("what is there is whole; leave Range out to have it again").into());
            }
            blob.seek(SeekFrom::Start(from)).map_err(|error| internal(&error))?;
        }
        Ok(Download { blob, digest, size_bytes, from: wanted })
    })
    .await
}

/// The start of `bytes=N-`. Anything else is ignored, as RFC 9110 §14.2 allows: the whole is sent then.
fn range_start(range: &str) -> Option<u64> {
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

impl<'r> Responder<'r, 'static> for Download {
    fn respond_to(self, _: &'r Request<'_>) -> Responded<'static> {
        let from = self.from.unwrap_or(0);
        let length = self.size_bytes - from;
        let mut answer = bytes_answer();
        answer
            .raw_header("ETag", format!("\"{}\"", self.digest))
            .raw_header("Accept-Ranges", "bytes")
            .raw_header("Content-Disposition", "attachment");
        if self.from.is_some() {
            let range = format!("bytes {from}-{}/{}", self.size_bytes - 1, self.size_bytes);
            answer.status(Status::PartialContent).raw_header("Content-Range", range);
        }
        let length = usize::try_from(length).map_err(|_| Status::InternalServerError)?;
        let body = Unseekable(StreamReader::new(Box::pin(chunks(self.blob))));
        answer.sized_body(length, body).max_chunk_size(CHUNK_BYTES).ok()
    }
}

/// An answer whose bytes no browser may take for anything else.
pub(crate) fn bytes_answer() -> rocket::response::Builder<'static> {
    let mut answer = Response::build();
    answer.header(ContentType::Binary).raw_header("Cache-Control", "no-store");
    answer
}

/// Reads piece by piece; no thread is held while the client takes its time.
fn chunks(blob: Box<dyn BlobRead>) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold(blob, |mut blob| {
        blocking::run(move || {
            let mut buffer = vec![0; DOWNLOAD_CHUNK_BYTES];
            let count = blob.read(&mut buffer)?;
            buffer.truncate(count);
            Ok((count > 0).then(|| (Bytes::from(buffer), blob)))
        })
    })
}

/// A body of known length for which Rocket asks seeking, though it never seeks.
struct Unseekable<R>(R);

impl<R: AsyncRead + Unpin> AsyncRead for Unseekable<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<R: Unpin> AsyncSeek for Unseekable<R> {
    fn start_seek(self: Pin<&mut Self>, _: SeekFrom) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_earned_by_bytes_and_has_a_bound() {
        let mut patience = Patience::default();
        patience.spend(Duration::from_secs(50), 1);
        assert!(patience.left < Duration::from_secs(11));
        patience.spend(Duration::from_secs(1), 16 << 10);
        assert!((10..11).contains(&patience.left.as_secs()), "just fast enough: {:?}", patience.left);
        patience.spend(Duration::ZERO, 1 << 30);
        assert_eq!(patience.left, CHUNK_TIMEOUT);
        patience.spend(Duration::from_secs(99), 0);
        assert_eq!(patience.left, Duration::ZERO);
    }

    /// It never pauses for as long as it may, and is ended all the same.
    #[tokio::test]
    async fn an_upload_that_crawls_is_ended() {
        let crawling = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Some((Ok::<_, io::Error>(Bytes::from_static(b"x")), ()))
        });
        let (sender, mut chunks) = mpsc::channel::<io::Result<Bytes>>(CHUNKS_WAITING);
        let mut body = Box::pin(StreamReader::new(Box::pin(crawling)));
        let last = async {
            let mut last = None;
            while let Some(chunk) = chunks.recv().await {
                last = Some(chunk);
            }
            last.expect("an error at the end")
        };
        let patience = Patience { left: Duration::from_millis(400) };
        let both = async { tokio::join!(pump(&mut body, u64::MAX, sender, patience), last) };
        let ((), last) = tokio::time::timeout(Duration::from_secs(30), both).await.expect("an end");
        assert_eq!(last.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn one_form_of_range_is_understood() {
        assert_eq!(range_start("bytes=0-"), Some(0));
        assert_eq!(range_start("bytes=17-"), Some(17));
        for other in ["bytes=-5", "bytes=1-2", "bytes=1-,3-", "lines=1-", "bytes=99999999999999999999-", "", "bytes=-"]
        {
            assert_eq!(range_start(other), None, "{other}");
        }
    }
}
