//! A core without sockets, for runs that are repeated: it answers as [`Seen`] says, over a network that takes a few
//! milliseconds, and writes down what it was told and when.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, sink, stream};
use secrecy::SecretString;
use swarm_protocol::api::{JoinAnswer, JoinRequest};
use swarm_protocol::heartbeat::{CoreEnd, Handshake};
use swarm_protocol::link::{HANDSHAKE, Hello, ToCore, ToWorker, VERSION, Welcome, decode, encode};
use swarm_protocol::problem::Problem;
use swarm_protocol::{AttemptId, Digest, Epoch, SessionId, SwarmId, WorkerId};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::Seen;
use crate::chance::Chance;
use crate::machine::Machine;
use crate::network::{CallError, ConnectError, Datagrams, Link, Network, Rest};
use crate::runtime::ByteStream;

/// A machine whose clocks are tokio's.
pub(crate) struct TokioMachine(pub(crate) Instant);

impl Machine for TokioMachine {
    fn now_ns(&self) -> u64 {
        1_000_000_000 + self.0.elapsed().as_nanos() as u64
    }

    fn wall_us(&self) -> u64 {
        1_700_000_000_000_000 + self.0.elapsed().as_micros() as u64
    }

    fn boot(&self) -> String {
        "boot".to_owned()
    }

    fn load_millis(&self) -> u32 {
        0
    }
}

/// See the module.
#[derive(Clone)]
pub(crate) struct MemoryCore(Arc<Inner>);

struct Inner {
    seen: Mutex<Seen>,
    told: Mutex<Vec<String>>,
    link: Mutex<Option<mpsc::UnboundedSender<ToWorker>>>,
    changed: Notify,
    chance: Chance,
    born: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryCore {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Inner {
            seen: Mutex::new(Seen::healthy()),
            told: Mutex::default(),
            link: Mutex::default(),
            changed: Notify::new(),
            chance: Chance::seeded(seed),
            born: Instant::now(),
        }))
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.0.seen)
    }

    /// Everything that was said so far, with its instant.
    pub(crate) fn trace(&self) -> Vec<String> {
        lock(&self.0.told).clone()
    }

    pub(crate) fn tell(&self, frame: ToWorker) {
        lock(&self.0.link).as_ref().expect("a link").send(frame).unwrap();
    }

    /// Closes the link without a word.
    pub(crate) fn cut(&self) {
        lock(&self.0.link).take();
    }

    /// Waits until `look` finds something, for an hour of the paused clock.
    pub(crate) async fn until<T>(&self, what: &str, look: impl Fn(&Seen) -> Option<T>) -> T {
        let found = tokio::time::timeout(Duration::from_secs(3600), async {
            loop {
                let changed = self.0.changed.notified();
                if let Some(found) = look(&self.seen()) {
                    return found;
                }
                changed.await;
            }
        });
        match found.await {
            Ok(found) => found,
            Err(_) => {
                panic!("waited in vain for {what}: {:#?}", self.trace().iter().rev().take(50).collect::<Vec<_>>())
            }
        }
    }

    fn note(&self, what: String) {
        lock(&self.0.told).push(format!("{:?} {what}", self.0.born.elapsed()));
        self.0.changed.notify_waiters();
    }

    async fn latency(&self) {
        tokio::time::sleep(self.0.chance.spread(Duration::from_millis(10), 0.5..2.0)).await;
    }

    async fn serve(self, mut from_worker: mpsc::Receiver<Bytes>, to_worker: mpsc::UnboundedSender<Bytes>) {
        let Some(hello) = from_worker.recv().await else { return };
        let hello: Hello = decode(HANDSHAKE, &hello).unwrap().remove(0);
        self.note(format!("Hello {} {:?}", hello.boot, hello.facts));
        let (out, mut orders) = mpsc::unbounded_channel();
        let session = {
            let mut seen = self.seen();
            seen.sessions += 1;
            SessionId(seen.sessions)
        };
        let welcome = Welcome::Accepted {
            version: VERSION,
            swarm: SwarmId(uuid::Uuid::from_u128(7)),
            worker: WorkerId(3),
            epoch: Epoch(1),
            session,
            nonce: [1; 32],
            secret: [2; 32],
            heartbeat_port: 1,
            heartbeat_interval_ms: 1000,
        };
        let handshake = Handshake {
            worker_nonce: hello.nonce,
            core_nonce: [1; 32],
            session,
            worker: WorkerId(3),
            epoch: Epoch(1),
            link_version: VERSION,
        };
        self.seen().keep_end(session, CoreEnd::new(&[2; 32], &handshake));
        let _ = to_worker.send(encode(HANDSHAKE, &[welcome]).into());
        *lock(&self.0.link) = Some(out);
        loop {
            tokio::select! {
                biased;
                order = orders.recv() => {
                    let Some(order) = order else { return };
                    let _ = to_worker.send(encode(VERSION, &[order]).into());
                }
                message = from_worker.recv() => {
                    let Some(message) = message else { return };
                    self.latency().await;
                    for frame in decode::<ToCore>(VERSION, &message).unwrap() {
                        let answers = self.seen().hear(frame.clone());
                        self.note(format!("{frame:?}"));
                        if !answers.is_empty() {
                            let _ = to_worker.send(encode(VERSION, &answers).into());
                        }
                    }
                }
            }
        }
    }
}

#[async_trait]
impl Network for MemoryCore {
    async fn join(&self, request: &JoinRequest) -> Result<JoinAnswer, CallError> {
        self.latency().await;
        self.note(format!("join {}", request.worker));
        Ok(JoinAnswer { worker: WorkerId(3), key: "swk_test".into() })
    }

    async fn link(&self, _: &SecretString) -> Result<Link, ConnectError> {
        self.latency().await;
        let (to_core, from_worker) = mpsc::channel(16);
        let (to_worker, from_core) = mpsc::unbounded_channel();
        tokio::spawn(self.clone().serve(from_worker, to_worker));
        let to_core = sink::unfold(to_core, |to_core, bytes| async move {
            to_core.send(bytes).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe)).map(|()| to_core)
        });
        let from_core = stream::unfold(from_core, |mut from_core: mpsc::UnboundedReceiver<Bytes>| async move {
            Some((Ok(from_core.recv().await?), from_core))
        });
        Ok(Link { to_core: Box::pin(to_core), from_core: from_core.boxed() })
    }

    async fn heartbeats(&self, _: u16) -> io::Result<Box<dyn Datagrams>> {
        let (answers, answered) = mpsc::unbounded_channel();
        Ok(Box::new(Socket { core: self.clone(), answers, answered: tokio::sync::Mutex::new(answered) }))
    }

    async fn blob(
        &self,
        _: &SecretString,
        attempt: AttemptId,
        digest: Digest,
        offset: u64,
    ) -> Result<ByteStream, CallError> {
        self.latency().await;
        self.note(format!("blob of {attempt} {digest} from {offset}"));
        let gone = || CallError::Refused(Box::new(Problem::new(404, "blob", "There is none", "gone")));
        let blob = self.seen().blobs.get(&digest).cloned().ok_or_else(gone)?;
        Ok(stream::iter([Ok(blob.slice(offset as usize..))]).boxed())
    }

    async fn upload(&self, _: &SecretString, attempt: AttemptId, mut rest: Rest) -> Result<Digest, CallError> {
        let mut whole = Vec::new();
        while let Some(piece) = rest.bytes.next().await {
            whole.extend_from_slice(&piece.map_err(CallError::Source)?);
        }
        self.latency().await;
        let digest = Digest::of(&whole);
        self.seen().uploads.insert(digest, whole.into());
        self.note(format!("output of {attempt} {digest}"));
        Ok(digest)
    }

    async fn sent(&self, _: &SecretString, _: AttemptId, _: Digest) -> Result<u64, CallError> {
        Ok(0)
    }
}

/// A socket for heartbeats.
struct Socket {
    core: MemoryCore,
    answers: mpsc::UnboundedSender<Vec<u8>>,
    answered: tokio::sync::Mutex<mpsc::UnboundedReceiver<Vec<u8>>>,
}

#[async_trait]
impl Datagrams for Socket {
    async fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        let (length, datagram) = (datagram.len(), datagram.to_vec());
        let (core, answers) = (self.core.clone(), self.answers.clone());
        tokio::spawn(async move {
            core.latency().await;
            let answer = core.seen().hear_beat(&datagram);
            if let Some((beat, answer)) = answer {
                core.note(format!("{beat:?}"));
                core.latency().await;
                // A socket that is gone meanwhile needs no answer.
                let _ = answer.map_or(Ok(()), |answer| answers.send(answer));
            }
        });
        Ok(length)
    }

    async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(datagram) = self.answered.lock().await.recv().await else { return std::future::pending().await };
        buffer[..datagram.len()].copy_from_slice(&datagram);
        Ok(datagram.len())
    }
}
