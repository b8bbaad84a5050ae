//! HTTP below the session: connections, and bodies that are watched on their way. The worker, which has a key instead
//! of a session, sends its files through this too.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use reqwest::{Body, IntoUrl, Method, RequestBuilder, Response};
use tokio::sync::watch;

use crate::{Progress, Timeouts};

/// Connections to one core. Cheap to clone; clones share them.
#[derive(Debug, Clone)]
pub struct Http {
    calls: reqwest::Client,
    /// Without a read timeout: reqwest counts it from the request's first byte until the head of the answer, so that an
    /// upload that takes longer would always be broken off.
    uploads: reqwest::Client,
    timeouts: Timeouts,
}

/// Why an upload got no answer.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The connection failed.
    #[error("the connection broke")]
    Broken(#[source] reqwest::Error),
    /// The bytes could not be read.
    #[error("what is to be sent cannot be read")]
    Source(#[source] io::Error),
    /// The connection stands but nothing moves.
    #[error("nothing moved for {} s", .0.as_secs())]
    Stalled(Duration),
}

impl Http {
    /// Connections under these timeouts. `is_plain` says that the core is reached by `http://`, and so on this machine.
    /// Install a rustls crypto provider before the call.
    ///
    /// # Errors
    /// When the TLS backend cannot be set up.
    pub fn new(timeouts: Timeouts, is_plain: bool) -> Result<Self, reqwest::Error> {
        let builder = || {
            let builder = reqwest::Client::builder()
                .connect_timeout(timeouts.connect)
                .redirect(reqwest::redirect::Policy::none())
                .tcp_keepalive(Duration::from_secs(20))
                .user_agent(concat!("swarm-sync/", env!("CARGO_PKG_VERSION")));
            // A proxy could not reach this machine's loopback, and must not see what goes there. Nor is any certificate
            // needed, and a small container image has none.
            if is_plain { builder.no_proxy().tls_certs_only([]) } else { builder }
        };
        let calls = builder().read_timeout(timeouts.idle).build()?;
        Ok(Self { calls, uploads: builder().build()?, timeouts })
    }

    pub(crate) fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// A request whose answer begins soon, however long it then is.
    pub fn call(&self, method: Method, url: impl IntoUrl) -> RequestBuilder {
        self.calls.request(method, url)
    }

    /// A request for [`upload`](Self::upload).
    pub fn upload_call(&self, method: Method, url: impl IntoUrl) -> RequestBuilder {
        self.uploads.request(method, url)
    }

    /// Sends `bytes` as the body of `request`, for as long as something moves: see [`Timeouts`].
    ///
    /// # Errors
    /// [`UploadError`]; an answer with an error status is none.
    pub async fn upload(
        &self,
        request: RequestBuilder,
        size_bytes: Option<u64>,
        bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        progress: Progress,
    ) -> Result<Response, UploadError> {
        let (moved, watched) = watch::channel(Some(0u64));
        let mut request = request.header(CONTENT_TYPE, "application/octet-stream");
        if let Some(size) = size_bytes {
            request = request.header(CONTENT_LENGTH, size);
        }
        let fault = Arc::new(Mutex::new(None));
        let bytes = counted(noting_faults(bytes, Arc::clone(&fault)), moved, progress);
        let sending = request.body(Body::wrap_stream(bytes)).send();
        tokio::select! {
            answer = sending => answer.map_err(|source| {
                let fault = fault.lock().unwrap_or_else(PoisonError::into_inner).take();
                fault.map_or_else(|| UploadError::Broken(source), UploadError::Source)
            }),
            silent = self.stalled(watched) => Err(UploadError::Stalled(silent)),
        }
    }

    /// Ends when the upload has stood still for too long; how long that was.
    async fn stalled(&self, mut moved: watch::Receiver<Option<u64>>) -> Duration {
        loop {
            let sending = moved.borrow_and_update().is_some();
            let patience = if sending { self.timeouts.upload_idle } else { self.timeouts.upload_verdict };
            match tokio::time::timeout(patience, moved.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    // The body is gone: sent, or given up by the connection. The verdict is awaited.
                    tokio::time::sleep(self.timeouts.upload_verdict).await;
                    return self.timeouts.upload_verdict;
                }
                Err(_) => return patience,
            }
        }
    }
}

/// Keeps the error of `bytes`, which on its way through the connection would become one of the network.
fn noting_faults(
    bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    fault: Arc<Mutex<Option<io::Error>>>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    bytes.map_err(move |error| {
        let told = io::Error::from(error.kind());
        fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        told
    })
}

/// Passes `bytes` on and tells of each piece: `Some(total)` while they flow, `None` after the last.
fn counted(
    bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    moved: watch::Sender<Option<u64>>,
    progress: Progress,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let mut total = 0u64;
    let tell = moved.clone();
    bytes
        .inspect_ok(move |piece| {
            total += piece.len() as u64;
            tell.send_replace(Some(total));
            progress(total);
        })
        .chain(futures_util::stream::poll_fn(move |_| {
            moved.send_replace(None);
            std::task::Poll::Ready(None)
        }))
}
