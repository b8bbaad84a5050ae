//! The core over HTTP: the link as a WebSocket, heartbeats over UDP, the rest as plain calls.
//!
//! Blobs come from `GET /api/v1/link/attempts/{job}/{task}/{attempt}/blobs/{digest}` (with `Range: bytes=N-` after a
//! break), outputs go to `POST …/outputs` with `Digest-Expected` (after a break with `Upload-Offset` too, as
//! `GET …/outputs/{digest}` tells it), all with the worker's key.

use std::future::ready;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, TryStreamExt};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use swarm_client::{Http, Timeouts, UploadError};
use swarm_protocol::api::{FileView, JoinAnswer, JoinRequest, UploadView};
use swarm_protocol::link::MESSAGE_BYTES_MAX;
use swarm_protocol::problem::Problem;
use swarm_protocol::text::sanitise;
use swarm_protocol::{AttemptId, Digest};
use tokio::net::UdpSocket;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Request};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use url::Url;

use super::{CallError, ConnectError, Datagrams, Link, Network, Rest};
use crate::config::WorkerConfig;
use crate::runtime::ByteStream;

/// For a whole join.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug, Clone)]
pub struct HttpNetwork {
    http: Http,
    core: Url,
    ip: IpAddr,
}

impl HttpNetwork {
    /// The way to the core that the settings name. Install a rustls crypto provider before the call.
    ///
    /// # Errors
    /// When the TLS backend cannot be set up.
    pub fn new(config: &WorkerConfig) -> anyhow::Result<Self> {
        Self::with_timeouts(config, Timeouts::default())
    }

    pub(crate) fn with_timeouts(config: &WorkerConfig, timeouts: Timeouts) -> anyhow::Result<Self> {
        let core = config.core.clone();
        let ip = config.core_ip().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        Ok(Self { http: Http::new(timeouts, core.scheme() == "http")?, core, ip })
    }

    fn url(&self, attempt: AttemptId, rest: &str) -> String {
        let AttemptId { job, task, attempt } = attempt;
        format!("{}api/v1/link/attempts/{job}/{task}/{attempt}/{rest}", self.core)
    }

    fn get(&self, key: &SecretString, url: String) -> RequestBuilder {
        self.http.call(Method::GET, url).bearer_auth(key.expose_secret())
    }

    fn link_request(&self, key: &SecretString) -> Result<Request<()>, ConnectError> {
        let url = format!("ws{}api/v1/link", self.core.as_str().trim_start_matches("http"));
        let mut request = url.into_client_request().map_err(io::Error::other)?;
        let bearer = HeaderValue::from_str(&format!("Bearer {}", key.expose_secret()));
        let mut bearer = bearer.map_err(|error| ConnectError::Damaged(error.to_string()))?;
        bearer.set_sensitive(true);
        request.headers_mut().insert("Authorization", bearer);
        Ok(request)
    }
}

#[async_trait]
impl Network for HttpNetwork {
    async fn join(&self, request: &JoinRequest) -> Result<JoinAnswer, CallError> {
        let url = self.core.join("/api/v1/workers/join").map_err(|error| CallError::Again(error.to_string()))?;
        let answer = self.http.call(Method::POST, url).json(request).timeout(JOIN_TIMEOUT).send().await;
        json(succeeded(answer.map_err(again)?).await?).await
    }

    async fn link(&self, key: &SecretString) -> Result<Link, ConnectError> {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX))
            .max_write_buffer_size(3 * MESSAGE_BYTES_MAX);
        let connected = tokio_tungstenite::connect_async_with_config(self.link_request(key)?, Some(config), true).await;
        let (sink, stream) = match connected {
            Ok((socket, _)) => socket.split(),
            Err(WsError::Http(answer)) if matches!(answer.status().as_u16(), 401 | 403) => {
                return Err(ConnectError::Unauthorised(answer.status().as_u16()));
            }
            Err(error) => return Err(io::Error::other(error).into()),
        };
        let to_core = sink.with(|bytes: Bytes| ready(Ok::<_, WsError>(Message::Binary(bytes))));
        // Pings are answered on the way. Anything but them and binary messages counts as the end.
        let is_known = |message: &Message| matches!(message, Message::Binary(_) | Message::Ping(_) | Message::Pong(_));
        let from_core = stream
            .try_take_while(move |message| ready(Ok(is_known(message))))
            .try_filter_map(|message| ready(Ok(if let Message::Binary(bytes) = message { Some(bytes) } else { None })));
        Ok(Link {
            to_core: Box::pin(to_core.sink_map_err(io::Error::other)),
            from_core: from_core.map_err(io::Error::other).boxed(),
        })
    }

    async fn heartbeats(&self, port: u16) -> io::Result<Box<dyn Datagrams>> {
        let local: IpAddr = if self.ip.is_ipv6() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        let socket = UdpSocket::bind(SocketAddr::new(local, 0)).await?;
        socket.connect(SocketAddr::new(self.ip, port)).await?;
        Ok(Box::new(socket))
    }

    async fn blob(
        &self,
        key: &SecretString,
        attempt: AttemptId,
        digest: Digest,
        offset: u64,
    ) -> Result<ByteStream, CallError> {
        let mut request = self.get(key, self.url(attempt, &format!("blobs/{digest}")));
        if offset > 0 {
            request = request.header("Range", format!("bytes={offset}-"));
        }
        let expected = if offset > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        let answer = request.send().await.map_err(again)?;
        if answer.status() != expected {
            return Err(refusal(answer).await);
        }
        Ok(answer.bytes_stream().map_err(|error| io::Error::other(error.without_url())).boxed())
    }

    async fn upload(&self, key: &SecretString, attempt: AttemptId, rest: Rest) -> Result<Digest, CallError> {
        let mut request = self
            .http
            .upload_call(Method::POST, self.url(attempt, "outputs"))
            .bearer_auth(key.expose_secret())
            .header("Digest-Expected", rest.digest.to_string());
        if rest.offset > 0 {
            request = request.header("Upload-Offset", rest.offset);
        }
        match self.http.upload(request, Some(rest.size_bytes), rest.bytes, Arc::new(|_| ())).await {
            Ok(answer) => Ok(json::<FileView>(succeeded(answer).await?).await?.digest),
            Err(UploadError::Broken(error)) => Err(again(error)),
            Err(UploadError::Source(error)) => Err(CallError::Source(error)),
            Err(stalled @ UploadError::Stalled(_)) => Err(CallError::Again(stalled.to_string())),
        }
    }

    async fn sent(&self, key: &SecretString, attempt: AttemptId, digest: Digest) -> Result<u64, CallError> {
        let answer = self.get(key, self.url(attempt, &format!("outputs/{digest}"))).send().await.map_err(again)?;
        Ok(json::<UploadView>(succeeded(answer).await?).await?.offset)
    }
}

#[async_trait]
impl Datagrams for UdpSocket {
    async fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        Self::send(self, datagram).await
    }

    async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Self::recv(self, buffer).await
    }
}

fn again(error: reqwest::Error) -> CallError {
    CallError::Again(format!("{:#}", anyhow::Error::from(error.without_url())))
}

async fn json<T: DeserializeOwned>(answer: Response) -> Result<T, CallError> {
    answer.json().await.map_err(again)
}

async fn succeeded(answer: Response) -> Result<Response, CallError> {
    if answer.status().is_success() { Ok(answer) } else { Err(refusal(answer).await) }
}

/// What an answer other than the one hoped for means.
async fn refusal(answer: Response) -> CallError {
    let status = answer.status();
    let problem = problem_of(answer).await;
    // The core ends an upload that comes too slowly, and says that more of it is welcome.
    if problem.retryable || is_transient(status) {
        return CallError::Again(problem.to_string());
    }
    CallError::Refused(Box::new(Problem { status: status.as_u16(), ..problem }))
}

fn is_transient(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS | StatusCode::PRECONDITION_FAILED
        )
}

/// The problem in an error answer, or one made of its status.
async fn problem_of(mut answer: Response) -> Problem {
    let status = answer.status();
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > 64 << 10 {
            break;
        }
    }
    let plain = || Problem::new(status.as_u16(), "http", "The request failed", status.to_string());
    let mut problem: Problem = serde_json::from_slice(&body).unwrap_or_else(|_| plain());
    problem.detail = sanitise(&problem.detail, false);
    problem
}
