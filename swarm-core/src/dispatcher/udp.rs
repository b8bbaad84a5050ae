//! The UDP side: takes sealed heartbeats, has the harvester renew the leases, and answers sealed.
//!
//! A datagram passes, in this order: its length, the sender's token bucket, the look-up of its session, and only then
//! the cipher. What fails is dropped without an answer and counted. An answer is always smaller than its request.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use swarm_protocol::SessionId;
use swarm_protocol::heartbeat::{DATAGRAM_BYTES_MAX, HeartbeatAnswer, REQUEST_BYTES, session_of};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::sessions::Sessions;
use crate::clock::Clock;
use crate::messages::HarvesterMsg;

/// Datagrams a sender may send at once, and per second in the long run.
const BURST: u64 = 40;
const PER_SECOND: u64 = 20;
/// Senders watched at one time.
const SENDERS_MAX: usize = 8192;
/// Heartbeats whose renewal is awaited at one time.
const IN_FLIGHT_MAX: usize = 1024;
/// How long a renewal is awaited.
const RENEWAL_MAX: Duration = Duration::from_secs(2);

/// Why the heartbeat socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Only loopback is served.
    #[error("heartbeats cannot be received on {0}: only loopback addresses such as 127.0.0.1:0 are served without TLS")]
    NotLoopback(SocketAddr),
    /// The system refused.
    #[error("heartbeats cannot be received on {address}")]
    Io {
        /// The address.
        address: SocketAddr,
        /// The system's word.
        source: io::Error,
    },
}

/// What datagrams come and go by: a UDP socket, or what stands in for one in a simulation.
#[async_trait]
pub trait HeartbeatSocket: Send + Sync + 'static {
    /// Where it is reached.
    ///
    /// # Errors
    /// The system's.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Waits for a datagram: its length, cut to that of `buffer`, and its sender. Cancel safe.
    ///
    /// # Errors
    /// The system's; the next one may be received all the same.
    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)>;

    /// Sends a datagram, which may get lost.
    ///
    /// # Errors
    /// The system's.
    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()>;
}

#[async_trait]
impl HeartbeatSocket for UdpSocket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        Self::recv_from(self, buffer).await
    }

    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        Self::send_to(self, datagram, to).await.map(drop)
    }
}

/// Opens the heartbeat socket; port 0 lets the system choose.
///
/// # Errors
/// [`BindError`].
pub async fn bind(address: SocketAddr) -> Result<Arc<dyn HeartbeatSocket>, BindError> {
    if !address.ip().is_loopback() {
        return Err(BindError::NotLoopback(address));
    }
    let socket = UdpSocket::bind(address).await.map_err(|source| BindError::Io { address, source })?;
    Ok(Arc::new(socket))
}

/// Serves heartbeats until `stop`.
pub(super) async fn serve(
    socket: Arc<dyn HeartbeatSocket>,
    sessions: Arc<Sessions>,
    harvester: mpsc::Sender<HarvesterMsg>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) {
    let mut renewals = FuturesUnordered::new();
    let mut senders = Senders::default();
    // One byte more than allowed, so that a longer datagram shows.
    let mut buffer = [0u8; DATAGRAM_BYTES_MAX + 1];
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some((sender, session, answer)) = renewals.next() => {
                answer_to(&*socket, &sessions, sender, session, answer).await;
            }
            received = socket.recv_from(&mut buffer), if renewals.len() < IN_FLIGHT_MAX => match received {
                Ok((count, sender)) => {
                    let admitted = senders.admit(sender, clock.boot_ms());
                    let renewal = if admitted { take(&buffer[..count], &sessions, &harvester, &*clock) } else { None };
                    sessions.count(renewal.is_some());
                    if let Some((session, seq, verdict)) = renewal {
                        renewals.push(async move { (sender, session, await_renewal(seq, verdict).await) });
                    }
                }
                // An answer to a socket that is closed again comes back as an error; nothing to be done about it, but
                // never in a spin.
                Err(error) => {
                    tracing::debug!("receiving a heartbeat failed: {error}");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }
}

/// Opens a datagram and asks the harvester to renew; `None` drops it.
fn take(
    datagram: &[u8],
    sessions: &Sessions,
    harvester: &mpsc::Sender<HarvesterMsg>,
    clock: &dyn Clock,
) -> Option<(SessionId, u64, oneshot::Receiver<bool>)> {
    // Shorter ones do not come from our workers, and answering them could be used to amplify.
    if datagram.len() < REQUEST_BYTES {
        return None;
    }
    let session = session_of(datagram)?;
    let (worker, heartbeat) = sessions.open(session, datagram, clock.boot_ms(), clock.now()).ok()?;
    let (reply, verdict) = oneshot::channel();
    // A busy harvester is no reason to hold up other heartbeats: this one goes unanswered and is sent again.
    harvester.try_send(HarvesterMsg::Renew { worker, session, live: heartbeat.live, reply }).ok()?;
    Some((session, heartbeat.seq, verdict))
}

async fn await_renewal(seq: u64, verdict: oneshot::Receiver<bool>) -> Option<HeartbeatAnswer> {
    let renewed = tokio::time::timeout(RENEWAL_MAX, verdict).await.ok()?.ok()?;
    Some(HeartbeatAnswer { seq, renewed })
}

async fn answer_to(
    socket: &dyn HeartbeatSocket,
    sessions: &Sessions,
    sender: SocketAddr,
    session: SessionId,
    answer: Option<HeartbeatAnswer>,
) {
    let sealed = answer.and_then(|answer| sessions.seal(session, &answer).ok());
    if let Some(sealed) = sealed
        && let Err(error) = socket.send_to(&sealed, sender).await
    {
        tracing::debug!("answering a heartbeat failed: {error}");
    }
}

/// A token bucket per sender, in thousandths of datagrams.
#[derive(Default)]
struct Senders(HashMap<SocketAddr, (u64, u64)>);

impl Senders {
    fn admit(&mut self, sender: SocketAddr, now_ms: u64) -> bool {
        let refilled = |tokens: u64, at: u64| (tokens + now_ms.saturating_sub(at) * PER_SECOND).min(BURST * 1000);
        if self.0.len() >= SENDERS_MAX && !self.0.contains_key(&sender) {
            // A full bucket says no more than none at all.
            self.0.retain(|_, (tokens, at)| refilled(*tokens, *at) < BURST * 1000);
            if self.0.len() >= SENDERS_MAX {
                return false;
            }
        }
        let (tokens, at) = self.0.entry(sender).or_insert((BURST * 1000, now_ms));
        let filled = refilled(*tokens, *at);
        (*tokens, *at) = (filled.saturating_sub(1000), now_ms);
        filled >= 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_held_to_its_rate_and_others_are_not() {
        let mut senders = Senders::default();
        let [a, b] = ["127.0.0.1:1", "127.0.0.1:2"].map(|text| text.parse().unwrap());
        assert_eq!((0..100).filter(|_| senders.admit(a, 5)).count() as u64, BURST);
        assert!(senders.admit(b, 5));
        assert_eq!((0..100).filter(|_| senders.admit(a, 1005)).count() as u64, PER_SECOND);
    }

    #[test]
    fn the_table_of_senders_is_bounded_and_forgets_the_quiet() {
        let mut senders = Senders::default();
        let from = |n: usize| SocketAddr::from(([127, 0, (n >> 8) as u8, n as u8], 9));
        for n in 0..SENDERS_MAX {
            assert!(senders.admit(from(n), 0));
        }
        assert!(!senders.admit(from(SENDERS_MAX), 0));
        assert!(senders.admit(from(SENDERS_MAX), 60_000));
        assert_eq!(senders.0.len(), 1);
    }

    #[tokio::test]
    async fn only_loopback_is_served() {
        let refused = bind("0.0.0.0:0".parse().unwrap()).await.err().unwrap();
        assert!(refused.to_string().contains("only loopback"));
        assert!(bind("127.0.0.1:0".parse().unwrap()).await.is_ok());
    }
}
