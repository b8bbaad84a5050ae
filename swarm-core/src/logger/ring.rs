//! The newest entries in memory, and live readers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;

use super::entry::Entry;
use super::filter::Filter;

/// How many entries a live reader may fall behind before it loses the oldest.
const READER_BACKLOG: usize = 1024;

/// A bounded ring of the newest entries.
pub(super) struct Ring {
    state: Mutex<State>,
    readers: broadcast::Sender<Arc<Entry>>,
    capacity: usize,
}

struct State {
    seq: u64,
    entries: VecDeque<Arc<Entry>>,
}

impl Ring {
    pub(super) fn new(capacity: usize) -> Self {
        let state = Mutex::new(State { seq: 0, entries: VecDeque::new() });
        Self { state, readers: broadcast::Sender::new(READER_BACKLOG), capacity: capacity.max(1) }
    }

    /// Numbers `entry`, keeps it, and passes it to live readers and to `also`, which must not block: all of this happens
    /// under one lock, so that everybody sees the same order.
    pub(super) fn push(&self, mut entry: Entry, also: impl FnOnce(&Arc<Entry>)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.seq += 1;
        entry.seq = state.seq;
        let entry = Arc::new(entry);
        if state.entries.len() == self.capacity {
            state.entries.pop_front();
        }
        state.entries.push_back(Arc::clone(&entry));
        also(&entry);
        // An error only means that nobody is reading.
        let _ = self.readers.send(entry);
    }

    pub(super) fn recent(&self, n: usize, filter: &Filter) -> Vec<Arc<Entry>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = state.entries.iter().rev().filter(|entry| filter.lets_entry(entry)).take(n);
        let mut found: Vec<_> = newest.cloned().collect();
        drop(state);
        found.reverse();
        found
    }

    pub(super) fn subscribe(&self) -> Subscription {
        Subscription { receiver: self.readers.subscribe(), lost: 0 }
    }
}

/// A live reader of the log.
pub struct Subscription {
    receiver: broadcast::Receiver<Arc<Entry>>,
    lost: u64,
}

impl Subscription {
    /// The next entry; `None` once the logger is gone. Cancel safe.
    pub async fn next(&mut self) -> Option<Arc<Entry>> {
        loop {
            match self.receiver.recv().await {
                Ok(entry) => return Some(entry),
                Err(broadcast::error::RecvError::Lagged(count)) => self.lost += count,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// How many entries this reader has lost by falling behind.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }
}
