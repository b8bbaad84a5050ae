//! Sealed heartbeats: one datagram each way, no socket here.
//!
//! A datagram is `version:u8, direction:u8, session:u64 LE, counter:u64 LE` and the sealed body with its 16-byte tag.
//! Keys come fresh from every link session, one per direction; the nonce is 4 zero bytes and the direction's 64-bit
//! counter (little endian), which starts at 0 and never repeats under a key; the first 10 bytes are associated data.
//! Sources: RFC 8439 §2.8 (construction), RFC 5869 (HKDF), RFC 6479 (replay window moved after the tag verifies).

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, KeyInit, Nonce};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::ids::{Epoch, SessionId, WorkerId};
use crate::link::LiveSet;

/// The version byte of every datagram.
pub const VERSION: u8 = 1;
/// Bytes before the sealed body.
pub const HEADER_BYTES: usize = 18;
const TAG_BYTES: usize = 16;
/// No datagram is longer; longer ones are dropped unread.
pub const DATAGRAM_BYTES_MAX: usize = 256;
/// Requests are padded to this length, so that an answer is never larger than its request.
pub const REQUEST_BYTES: usize = 128;
const REQUEST_BODY_BYTES: usize = REQUEST_BYTES - HEADER_BYTES - TAG_BYTES;

/// What a worker says a few times a second to a few times a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Counted from 1 within the session; names the renewal.
    pub seq: u64,
    /// The attempts it holds: the renewal of their leases.
    pub live: LiveSet,
    /// Slots without a task.
    pub free_slots: u32,
    /// One-minute load average in thousandths.
    pub load_millis: u32,
    /// Whether it takes new work.
    pub accepting: bool,
}

/// The core's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAnswer {
    /// The heartbeat answered.
    pub seq: u64,
    /// Whether the leases were renewed; if not, a state report is due on the link.
    pub renewed: bool,
}

/// Why a datagram was not opened or sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Too short, too long, another version or direction.
    #[error("not a heartbeat of this version and direction")]
    Malformed,
    /// The session is not the key's.
    #[error("a heartbeat of another session")]
    Session,
    /// The tag does not verify.
    #[error("a forged or damaged heartbeat")]
    Forged,
    /// Seen before, too old to tell, or the last counter, which no honest peer uses.
    #[error("a replayed heartbeat")]
    Replayed,
    /// The direction's counter is used up: make a new session, never wrap.
    #[error("the key of this session is used up")]
    CounterSpent,
}

/// Which way a datagram goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToCore = 1,
    ToWorker = 2,
}

/// What both sides of a handshake know; equal on both or the keys differ.
#[derive(Debug, Clone, Copy)]
pub struct Handshake {
    /// The worker's nonce.
    pub worker_nonce: [u8; 32],
    /// The core's nonce.
    pub core_nonce: [u8; 32],
    /// The session.
    pub session: SessionId,
    /// The worker.
    pub worker: WorkerId,
    /// The core's term.
    pub epoch: Epoch,
    /// The link version agreed.
    pub link_version: u8,
}

fn derive(secret: &[u8; 32], hello: &Handshake, direction: Direction) -> ChaCha20Poly1305 {
    let salt = [hello.worker_nonce, hello.core_nonce].concat();
    let mut info = b"swarm-sync heartbeat 1".to_vec();
    info.push(direction as u8);
    info.push(hello.link_version);
    info.extend(hello.session.0.to_le_bytes());
    info.extend(hello.worker.0.to_le_bytes());
    info.extend(hello.epoch.0.to_le_bytes());
    let mut key = Zeroizing::new([0u8; 32]);
    hkdf::Hkdf::<Sha256>::new(Some(&salt), secret).expand(&info, key.as_mut()).expect("32 bytes are a valid length");
    ChaCha20Poly1305::new(&Key::from(*key))
}

fn header(direction: Direction, session: SessionId, counter: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0u8; HEADER_BYTES];
    header[0] = VERSION;
    header[1] = direction as u8;
    header[2..10].copy_from_slice(&session.0.to_le_bytes());
    header[10..].copy_from_slice(&counter.to_le_bytes());
    header
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0u8; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::from(bytes)
}

/// The session a datagram claims to belong to: how the core finds the key before it can check anything.
#[must_use]
pub fn session_of(datagram: &[u8]) -> Option<SessionId> {
    let plausible = (HEADER_BYTES + TAG_BYTES..=DATAGRAM_BYTES_MAX).contains(&datagram.len()) && datagram[0] == VERSION;
    plausible.then(|| SessionId(u64::from_le_bytes(datagram[2..10].try_into().expect("eight bytes"))))
}

/// One end's half of a session: seals one direction and opens the other.
struct Channel {
    session: SessionId,
    out: (Direction, ChaCha20Poly1305),
    inn: (Direction, ChaCha20Poly1305),
    next: u64,
    window: ReplayWindow,
}

impl Channel {
    fn seal<T: Serialize>(&mut self, message: &T, body_bytes: usize) -> Result<Vec<u8>, WireError> {
        let counter = self.next;
        self.next = counter.checked_add(1).ok_or(WireError::CounterSpent)?;
        let mut body =
            postcard::to_extend(message, Vec::with_capacity(body_bytes)).map_err(|_| WireError::Malformed)?;
        body.resize(body.len().max(body_bytes), 0);
        let header = header(self.out.0, self.session, counter);
        let payload = Payload { msg: &body, aad: &header[..10] };
        let sealed = self.out.1.encrypt(&nonce(counter), payload).map_err(|_| WireError::Malformed)?;
        Ok([header.as_slice(), &sealed].concat())
    }

    fn open<T: DeserializeOwned>(&mut self, datagram: &[u8]) -> Result<T, WireError> {
        let session = session_of(datagram).ok_or(WireError::Malformed)?;
        if datagram[1] != self.inn.0 as u8 {
            return Err(WireError::Malformed);
        }
        if session != self.session {
            return Err(WireError::Session);
        }
        let counter = u64::from_le_bytes(datagram[10..HEADER_BYTES].try_into().expect("eight bytes"));
        if !self.window.is_new(counter) {
            return Err(WireError::Replayed);
        }
        let payload = Payload { msg: &datagram[HEADER_BYTES..], aad: &datagram[..10] };
        let body = self.inn.1.decrypt(&nonce(counter), payload).map_err(|_| WireError::Forged)?;
        self.window.mark(counter);
        postcard::take_from_bytes(&body).map(|(message, _padding)| message).map_err(|_| WireError::Malformed)
    }
}

/// The worker's end.
pub struct WorkerEnd(Channel);

impl WorkerEnd {
    /// Derives both keys.
    #[must_use]
    pub fn new(secret: &[u8; 32], hello: &Handshake) -> Self {
        Self(Channel {
            session: hello.session,
            out: (Direction::ToCore, derive(secret, hello, Direction::ToCore)),
            inn: (Direction::ToWorker, derive(secret, hello, Direction::ToWorker)),
            next: 0,
            window: ReplayWindow::default(),
        })
    }

    /// Seals one heartbeat; the result is [`REQUEST_BYTES`] long.
    ///
    /// # Errors
    /// [`WireError::CounterSpent`] when this key's counter is used up.
    pub fn seal(&mut self, heartbeat: &Heartbeat) -> Result<Vec<u8>, WireError> {
        self.0.seal(heartbeat, REQUEST_BODY_BYTES)
    }

    /// Opens one answer.
    ///
    /// # Errors
    /// [`WireError`]; the datagram is to be dropped.
    pub fn open(&mut self, datagram: &[u8]) -> Result<HeartbeatAnswer, WireError> {
        self.0.open(datagram)
    }
}

/// The core's end.
pub struct CoreEnd(Channel);

impl CoreEnd {
    /// Derives both keys.
    #[must_use]
    pub fn new(secret: &[u8; 32], hello: &Handshake) -> Self {
        Self(Channel {
            session: hello.session,
            out: (Direction::ToWorker, derive(secret, hello, Direction::ToWorker)),
            inn: (Direction::ToCore, derive(secret, hello, Direction::ToCore)),
            next: 0,
            window: ReplayWindow::default(),
        })
    }

    /// Opens one heartbeat.
    ///
    /// # Errors
    /// [`WireError`]; the datagram is to be dropped and not answered.
    pub fn open(&mut self, datagram: &[u8]) -> Result<Heartbeat, WireError> {
        self.0.open(datagram)
    }

    /// Seals one answer, shorter than any request.
    ///
    /// # Errors
    /// [`WireError::CounterSpent`] when this key's counter is used up.
    pub fn seal(&mut self, answer: &HeartbeatAnswer) -> Result<Vec<u8>, WireError> {
        self.0.seal(answer, 0)
    }
}

/// The last 128 counters seen. It belongs to one key and dies with it.
/// Source: RFC 6479, with one 128-bit block.
#[derive(Debug, Default)]
struct ReplayWindow {
    /// One more than the highest counter accepted.
    top: u64,
    /// Bit i is set when counter `top - 1 - i` was accepted.
    seen: u128,
}

impl ReplayWindow {
    /// Whether `counter` may still come. The last one may not: no sender uses it, and `top` could not lie above it.
    fn is_new(&self, counter: u64) -> bool {
        if counter == u64::MAX {
            return false;
        }
        if counter >= self.top {
            return true;
        }
        let age = self.top - 1 - counter;
        age < 128 && self.seen & (1 << age) == 0
    }

    /// Takes in a counter that [`ReplayWindow::is_new`] let through.
    fn mark(&mut self, counter: u64) {
        if counter >= self.top {
            let shift = counter + 1 - self.top;
            self.seen = if shift < 128 { self.seen << shift } else { 0 };
            self.seen |= 1;
            self.top = counter + 1;
        } else {
            self.seen |= 1 << (self.top - 1 - counter);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn handshake(session: u64) -> Handshake {
        Handshake {
            worker_nonce: [1; 32],
            core_nonce: [2; 32],
            session: SessionId(session),
            worker: WorkerId(3),
            epoch: Epoch(4),
            link_version: 1,
        }
    }

    fn ends() -> (WorkerEnd, CoreEnd) {
        (WorkerEnd::new(&[9; 32], &handshake(5)), CoreEnd::new(&[9; 32], &handshake(5)))
    }

    fn beat(seq: u64) -> Heartbeat {
        let live = LiveSet { count: u32::MAX, hash: u64::MAX };
        Heartbeat { seq, live, free_slots: u32::MAX, load_millis: u32::MAX, accepting: true }
    }

    #[test]
    fn a_heartbeat_is_answered_by_something_smaller() {
        let (mut worker, mut core) = ends();
        let request = worker.seal(&beat(u64::MAX)).unwrap();
        assert_eq!(request.len(), REQUEST_BYTES);
        assert_eq!(session_of(&request), Some(SessionId(5)));
        assert_eq!(core.open(&request), Ok(beat(u64::MAX)));
        let answer = core.seal(&HeartbeatAnswer { seq: u64::MAX, renewed: true }).unwrap();
        assert!(answer.len() < request.len());
        assert_eq!(worker.open(&answer), Ok(HeartbeatAnswer { seq: u64::MAX, renewed: true }));
    }

    #[test]
    fn replay_reflection_and_other_sessions_are_refused() {
        let (mut worker, mut core) = ends();
        let first = worker.seal(&beat(1)).unwrap();
        assert_eq!(worker.open(&first), Err(WireError::Malformed));
        core.open(&first).unwrap();
        assert_eq!(core.open(&first), Err(WireError::Replayed));
        assert_eq!(CoreEnd::new(&[9; 32], &handshake(6)).open(&first), Err(WireError::Session));
        assert_eq!(CoreEnd::new(&[8; 32], &handshake(5)).open(&first), Err(WireError::Forged));
        let mut late = Vec::new();
        for seq in 2..200 {
            late.push(worker.seal(&beat(seq)).unwrap());
        }
        core.open(late.last().unwrap()).unwrap();
        assert!(core.open(&late[late.len() - 2]).is_ok(), "reordering within the window is fine");
        assert_eq!(core.open(&late[0]), Err(WireError::Replayed), "older than the window");
    }

    #[test]
    fn a_forgery_does_not_move_the_window() {
        let (mut worker, mut core) = ends();
        let honest = worker.seal(&beat(1)).unwrap();
        let mut forged = honest.clone();
        forged[10..18].copy_from_slice(&(u64::MAX - 1).to_le_bytes());
        assert_eq!(core.open(&forged), Err(WireError::Forged));
        assert!(core.open(&honest).is_ok());
    }

    #[test]
    fn the_last_counter_is_refused_however_often_it_comes() {
        let (mut worker, mut core) = ends();
        worker.0.next = u64::MAX - 1;
        let near = worker.seal(&beat(1)).unwrap();
        assert_eq!(worker.seal(&beat(2)), Err(WireError::CounterSpent));
        let last = seal_as(&worker, u64::MAX, &beat(3));
        for _ in 0..2 {
            assert_eq!(core.open(&last), Err(WireError::Replayed));
        }
        assert_eq!(core.open(&near), Ok(beat(1)), "the window did not move");
    }

    /// What a worker with a valid key sends that keeps to no counter.
    fn seal_as(worker: &WorkerEnd, counter: u64, heartbeat: &Heartbeat) -> Vec<u8> {
        let mut body = postcard::to_stdvec(heartbeat).unwrap();
        body.resize(REQUEST_BODY_BYTES, 0);
        let header = header(Direction::ToCore, worker.0.session, counter);
        let payload = Payload { msg: &body, aad: &header[..10] };
        [header.as_slice(), &worker.0.out.1.encrypt(&nonce(counter), payload).unwrap()].concat()
    }

    proptest! {
        #[test]
        fn every_changed_byte_is_noticed(at in 0usize..REQUEST_BYTES, flip in 1u8..) {
            let (mut worker, mut core) = ends();
            let mut datagram = worker.seal(&beat(1)).unwrap();
            datagram[at] ^= flip;
            prop_assert!(core.open(&datagram).is_err());
        }

        #[test]
        fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let (mut worker, mut core) = ends();
            prop_assert!(core.open(&bytes).is_err());
            prop_assert!(worker.open(&bytes).is_err());
        }

        #[test]
        fn the_window_accepts_each_counter_once(
            low in prop::collection::vec(0u64..400, 0..300),
            high in prop::collection::vec(u64::MAX - 200..=u64::MAX, 0..300),
        ) {
            let (mut window, mut accepted) = (ReplayWindow::default(), std::collections::HashSet::new());
            for counter in low.into_iter().chain(high) {
                if window.is_new(counter) {
                    prop_assert!(accepted.insert(counter));
                    window.mark(counter);
                }
            }
        }
    }
}
