//! The link sessions that are up: their heartbeat keys, and when each was last heard. Shared by the dispatcher (makes and
//! ends them), the UDP task (opens and seals) and whoever reads the links ([`Sessions::touch`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use swarm_protocol::heartbeat::{CoreEnd, Heartbeat, HeartbeatAnswer, WireError};
use swarm_protocol::{SessionId, Timestamp, WorkerId};

/// All sessions. Its mutex is held for one look-up and one sealing or opening, never across an await.
#[derive(Default)]
pub struct Sessions {
    map: Mutex<HashMap<SessionId, Session>>,
    opened: AtomicU64,
    dropped: AtomicU64,
}

struct Session {
    worker: WorkerId,
    end: CoreEnd,
    heard: Heard,
}

/// When and what a session was last heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Milliseconds of CLOCK_BOOTTIME.
    pub boot_ms: u64,
    /// The wall clock.
    pub at: Timestamp,
    /// The worker's own word in its last heartbeat; true before the first.
    pub accepting: bool,
    /// What else it said in it.
    pub said: Option<Said>,
}

/// What a worker says of itself in a heartbeat, to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// Slots without a task.
    pub free_slots: u32,
    /// One-minute load average in thousandths.
    pub load_millis: u32,
}

impl Sessions {
    fn map(&self) -> MutexGuard<'_, HashMap<SessionId, Session>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a session of this number is up.
    #[must_use]
    pub fn contains(&self, session: SessionId) -> bool {
        self.map().contains_key(&session)
    }

    pub(crate) fn insert(&self, session: SessionId, worker: WorkerId, end: CoreEnd, boot_ms: u64, at: Timestamp) {
        let heard = Heard { boot_ms, at, accepting: true, said: None };
        self.map().insert(session, Session { worker, end, heard });
    }

    /// Ends a session; its keys are gone, and what is sealed with them is garbage from now on.
    pub(crate) fn remove(&self, session: SessionId) {
        self.map().remove(&session);
    }

    /// When a session was last heard; `None` when it is not up.
    #[must_use]
    pub fn heard(&self, session: SessionId) -> Option<Heard> {
        self.map().get(&session).map(|session| session.heard)
    }

    /// Notes that something came over the link of this session, which counts as a sign of life.
    pub fn touch(&self, session: SessionId, boot_ms: u64, at: Timestamp) {
        if let Some(session) = self.map().get_mut(&session) {
            session.heard = Heard { boot_ms, at, ..session.heard };
        }
    }

    /// Opens a heartbeat and notes it.
    pub(crate) fn open(
        &self,
        session: SessionId,
        datagram: &[u8],
        boot_ms: u64,
        at: Timestamp,
    ) -> Result<(WorkerId, Heartbeat), WireError> {
        let mut map = self.map();
        let session = map.get_mut(&session).ok_or(WireError::Session)?;
        let heartbeat = session.end.open(datagram)?;
        let Heartbeat { accepting, free_slots, load_millis, .. } = heartbeat;
        session.heard = Heard { boot_ms, at, accepting, said: Some(Said { free_slots, load_millis }) };
        Ok((session.worker, heartbeat))
    }

    pub(crate) fn seal(&self, session: SessionId, answer: &HeartbeatAnswer) -> Result<Vec<u8>, WireError> {
        self.map().get_mut(&session).ok_or(WireError::Session)?.end.seal(answer)
    }

    pub(crate) fn count(&self, opened: bool) {
        if opened { &self.opened } else { &self.dropped }.fetch_add(1, Ordering::Relaxed);
    }

    /// Datagrams opened and datagrams dropped since the start.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.opened.load(Ordering::Relaxed), self.dropped.load(Ordering::Relaxed))
    }
}
