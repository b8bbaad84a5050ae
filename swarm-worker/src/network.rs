//! Everything a worker says to its core passes through one trait: opening a link, a socket for heartbeats, the join, and
//! bytes of blobs and outputs. What is said, how often and when it is said again is decided above it.

mod http;

use std::io;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Sink;
use secrecy::SecretString;
use swarm_protocol::api::{JoinAnswer, JoinRequest};
use swarm_protocol::problem::Problem;
use swarm_protocol::{AttemptId, Digest};

pub use self::http::HttpNetwork;
use crate::runtime::ByteStream;

/// The way to one core. Calls may take for ever where nothing else is said: callers have their own patience, and drop
/// what they do not wait for any more.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Asks for this worker's key.
    ///
    /// # Errors
    /// [`CallError`].
    async fn join(&self, request: &JoinRequest) -> Result<JoinAnswer, CallError>;

    /// Opens a link with the worker's key.
    ///
    /// # Errors
    /// [`ConnectError`].
    async fn link(&self, key: &SecretString) -> Result<Link, ConnectError>;

    /// Opens a socket for heartbeats to this port of the core.
    ///
    /// # Errors
    /// When there is no socket to be had.
    async fn heartbeats(&self, port: u16) -> io::Result<Box<dyn Datagrams>>;

    /// The bytes of a blob from `offset` on, for an attempt that needs it. The stream may break off anywhere.
    ///
    /// # Errors
    /// [`CallError`].
    async fn blob(
        &self,
        key: &SecretString,
        attempt: AttemptId,
        digest: Digest,
        offset: u64,
    ) -> Result<ByteStream, CallError>;

    /// Sends an output, or the rest of it; the digest of what the core then has durably.
    ///
    /// # Errors
    /// [`CallError`].
    async fn upload(&self, key: &SecretString, attempt: AttemptId, rest: Rest) -> Result<Digest, CallError>;

    /// How many bytes of an output that broke off the core has.
    ///
    /// # Errors
    /// [`CallError`].
    async fn sent(&self, key: &SecretString, attempt: AttemptId, digest: Digest) -> Result<u64, CallError>;
}

/// What of an output is still to be sent.
pub struct Rest {
    /// Of the whole output.
    pub digest: Digest,
    /// Where `bytes` begin.
    pub offset: u64,
    /// How many `bytes` there are.
    pub size_bytes: u64,
    /// From `offset` to the end.
    pub bytes: ByteStream,
}

/// A link that is open: whole messages both ways, in order.
pub struct Link {
    /// Takes messages; bounded, so that it may make a sender wait.
    pub to_core: Pin<Box<dyn Sink<Bytes, Error = io::Error> + Send>>,
    /// Ends when the core closes the link, and with an error when the link breaks.
    pub from_core: ByteStream,
}

/// Datagrams to and from the core: any may be lost, come twice or late.
#[async_trait]
pub trait Datagrams: Send + Sync {
    /// Sends one.
    ///
    /// # Errors
    /// When it was certainly not sent.
    async fn send(&self, datagram: &[u8]) -> io::Result<usize>;

    /// The length of the next one, which is in `buffer`; what does not fit is cut off. Cancel safe.
    ///
    /// # Errors
    /// When an earlier one found nobody there to take it.
    async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize>;
}

/// Why a link did not come up.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The key is not accepted; the HTTP status.
    #[error("the key is not accepted ({0})")]
    Unauthorised(u16),
    /// The key cannot be said: it was not kept as it was given.
    #[error("the kept key is damaged: {0}")]
    Damaged(String),
    /// Anything else.
    #[error("{0}")]
    Broken(#[from] io::Error),
}

/// Why a call did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer, half of one, or one that says to come again; the reason in words.
    #[error("{0}")]
    Again(String),
    /// Trying again cannot help.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// What was to be sent cannot be read.
    #[error("what is to be sent cannot be read: {0}")]
    Source(io::Error),
}
