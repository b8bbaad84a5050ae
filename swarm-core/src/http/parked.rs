//! Uploads that broke off, kept for a while so that their senders can go on from there. In memory only: after a restart of
//! the core an upload begins again.

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use swarm_protocol::{AttemptId, Digest, UserId, WorkerId};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::blobs::BlobUpload;

/// How long one is kept.
const KEPT: Duration = Duration::from_secs(600);
/// How long the end of one that is still being written is awaited.
const SETTLE_MAX: Duration = Duration::from_secs(20);
/// How many are kept at a time: each is a file of the core.
const PARKED_MAX: usize = 64;
/// How many of one sender.
const OF_ONE_MAX: usize = 8;

/// Whose upload it is: nobody else can go on with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Sender {
    User(UserId),
    Worker(WorkerId, AttemptId),
}

/// An upload by its sender and what it is to become.
pub(crate) type Key = (Sender, Digest);

struct Entry {
    upload: Box<dyn BlobUpload>,
    until: Instant,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Parked {
    entries: Mutex<HashMap<Key, Entry>>,
    /// Those whose bytes are being written now, and how often.
    active: Mutex<HashMap<Key, usize>>,
    /// One of them has ended.
    ended: Notify,
}

/// Held while an upload is being written.
pub(crate) struct Active {
    parked: Arc<Parked>,
    key: Key,
}

impl Drop for Active {
    fn drop(&mut self) {
        let mut active = self.parked.active();
        if let Some(count) = active.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                active.remove(&self.key);
            }
        }
        drop(active);
        self.parked.ended.notify_waiters();
    }
}

impl fmt::Debug for Parked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parked").finish_non_exhaustive()
    }
}

impl Parked {
    fn entries(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn active(&self) -> MutexGuard<'_, HashMap<Key, usize>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An upload begins, or goes on.
    pub(crate) fn begin(self: &Arc<Self>, key: Key) -> Active {
        *self.active().entry(key).or_default() += 1;
        Active { parked: Arc::clone(self), key }
    }

    /// As [`offset`](Self::offset), once nothing of it is being written any more: its sender may know of the break before
    /// the core has written what came.
    pub(crate) async fn settled_offset(&self, key: &Key) -> u64 {
        let settled = async {
            loop {
                let mut ended = pin!(self.ended.notified());
                ended.as_mut().enable();
                if !self.active().contains_key(key) {
                    return;
                }
                ended.await;
            }
        };
        // After that it counts as lost: its connection may hang for long.
        let _ = tokio::time::timeout(SETTLE_MAX, settled).await;
        self.offset(key)
    }

    /// Keeps an upload, unless more of it is kept already. Where too many are, the oldest goes.
    pub(crate) fn park(self: &Arc<Self>, key: Key, upload: Box<dyn BlobUpload>) {
        let written = |entry: &Entry| entry.upload.written_bytes();
        let mut entries = self.entries();
        if entries.get(&key).is_some_and(|kept| written(kept) >= upload.written_bytes()) {
            return;
        }
        entries.insert(key, Entry { upload, until: Instant::now() + KEPT });
        drop_oldest(&mut entries, OF_ONE_MAX, |other| other.0 == key.0);
        drop_oldest(&mut entries, PARKED_MAX, |_| true);
        let parked = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(KEPT).await;
            parked.entries().retain(|_, entry| entry.until > Instant::now());
        });
    }

    /// How many bytes of it are there.
    fn offset(&self, key: &Key) -> u64 {
        self.entries().get(key).map_or(0, |entry| entry.upload.written_bytes())
    }

    /// Takes it to go on from `offset`; where that is not where it stands, it stays.
    ///
    /// # Errors
    /// Where it stands.
    pub(crate) fn take(&self, key: &Key, offset: u64) -> Result<Box<dyn BlobUpload>, u64> {
        let mut entries = self.entries();
        match entries.remove(key) {
            Some(entry) if entry.upload.written_bytes() == offset => Ok(entry.upload),
            Some(entry) => {
                let stands = entry.upload.written_bytes();
                entries.insert(*key, entry);
                Err(stands)
            }
            None => Err(0),
        }
    }
}

fn drop_oldest(entries: &mut HashMap<Key, Entry>, count_max: usize, counts: impl Fn(&Key) -> bool) {
    while entries.keys().filter(|key| counts(key)).count() > count_max {
        let oldest = entries.iter().filter(|(key, _)| counts(key)).min_by_key(|(_, entry)| entry.until);
        let Some(key) = oldest.map(|(key, _)| *key) else { return };
        entries.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blobs::{BlobError, StagedBlob};

    struct Written(u64);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl BlobUpload for Written {
        fn written_bytes(&self) -> u64 {
            self.0
        }

        fn stage(self: Box<Self>) -> Result<Box<dyn StagedBlob>, BlobError> {
            unreachable!("it is only kept")
        }
    }

    fn key(user: u64, of: &str) -> Key {
        (Sender::User(UserId(user)), Digest::of(of.as_bytes()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_is_kept_for_its_sender_and_for_a_while() {
        let parked = Arc::new(Parked::default());
        let one = key(1, "a");
        parked.park(one, Box::new(Written(10)));
        parked.park(one, Box::new(Written(7)));
        assert_eq!((parked.offset(&one), parked.offset(&key(2, "a")), parked.offset(&key(1, "b"))), (10, 0, 0));
        assert_eq!(parked.take(&one, 7).err(), Some(10));
        assert!(parked.take(&one, 10).is_ok());
        let active = parked.begin(one);
        let settled = parked.settled_offset(&one);
        tokio::pin!(settled);
        assert!(futures_util::poll!(&mut settled).is_pending(), "it is still being written");
        parked.park(one, Box::new(Written(11)));
        drop(active);
        assert_eq!(settled.await, 11);
        assert!(parked.take(&one, 11).is_ok());
        assert_eq!(parked.take(&one, 10).err(), Some(0), "taken");
        parked.park(one, Box::new(Written(10)));
        tokio::time::sleep(KEPT + Duration::from_secs(1)).await;
        assert_eq!(parked.offset(&one), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_are_kept_of_one_sender_and_of_all() {
        let parked = Arc::new(Parked::default());
        for user in 0..20 {
            for n in 0..10 {
                parked.park(key(user, &n.to_string()), Box::new(Written(1)));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert_eq!(parked.entries().len(), PARKED_MAX);
        let kept = |user: u64| (0..10).filter(|n| parked.offset(&key(user, &n.to_string())) > 0).count();
        assert_eq!((kept(0), kept(19)), (0, OF_ONE_MAX));
    }
}
