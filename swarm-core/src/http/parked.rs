//! Uploads that broke off, kept for a while so that their senders can go on from there. In memory only: after a restart of
//! the core an upload begins again.

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use swarm_protocol::{AttemptId, Digest, UserId, WorkerId};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::blobs::BlobUpload;
use swarm_host::blocking;

/// How long one is kept.
const KEPT: Duration = Duration::from_secs(600);
/// How long the end of one that is still being written is awaited.
const SETTLE_MAX: Duration = Duration::from_secs(20);
/// How many are kept at a time: each is a file of the core.
const PARKED_MAX: usize = 64;
/// How many of one user, or of one worker.
const OF_ONE_MAX: usize = 8;

/// Whose upload it is: nobody else can go on with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sender {
    /// A user.
    User(UserId),
    /// A worker, for one of its attempts.
    Worker(WorkerId, AttemptId),
}

impl Sender {
    /// Whether both are of one user, or of one worker.
    fn is_with(self, other: Self) -> bool {
        match (self, other) {
            (Self::User(one), Self::User(other)) => one == other,
            (Self::Worker(one, _), Self::Worker(other, _)) => one == other,
            _ => false,
        }
    }
}

/// An upload by its sender and what it is to become.
pub type Key = (Sender, Digest);

struct Entry {
    upload: Box<dyn BlobUpload>,
    until: Instant,
}

#[derive(Default)]
struct Kept {
    entries: HashMap<Key, Entry>,
    /// Whether [`expire`] runs.
    timed: bool,
}

/// See the module.
#[derive(Default)]
pub struct Parked {
    kept: Mutex<Kept>,
    /// Those whose bytes are being written now, and how often.
    active: Mutex<HashMap<Key, usize>>,
    /// One of them has ended.
    ended: Notify,
}

/// Held while an upload is being written.
pub struct Active {
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
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn active(&self) -> MutexGuard<'_, HashMap<Key, usize>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An upload begins, or goes on.
    pub fn begin(self: &Arc<Self>, key: Key) -> Active {
        *self.active().entry(key).or_default() += 1;
        Active { parked: Arc::clone(self), key }
    }

    /// How much of it is there, once nothing of it is being written any more: its sender may know of the break before
    /// the core has written what came.
    pub async fn settled_offset(&self, key: &Key) -> u64 {
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

    /// Keeps an upload, unless more of it is kept already. Where too many are, the oldest goes. Files are removed by this:
    /// call it where that may block, in a runtime.
    pub fn park(self: &Arc<Self>, key: Key, upload: Box<dyn BlobUpload>) {
        let mut kept = self.kept();
        let gone = kept.put(key, Entry { upload, until: Instant::now() + KEPT });
        if !std::mem::replace(&mut kept.timed, true) {
            tokio::spawn(expire(Arc::downgrade(self)));
        }
        drop(kept);
        drop(gone);
    }

    /// How many bytes of it are there.
    fn offset(&self, key: &Key) -> u64 {
        self.kept().entries.get(key).map_or(0, Entry::written)
    }

    /// Takes it to go on from `offset`; where that is not where it stands, it stays.
    ///
    /// # Errors
    /// Where it stands.
    pub fn take(&self, key: &Key, offset: u64) -> Result<Box<dyn BlobUpload>, u64> {
        let mut kept = self.kept();
        let entries = &mut kept.entries;
        match entries.remove(key) {
            Some(entry) if entry.written() == offset => Ok(entry.upload),
            Some(entry) => {
                let stands = entry.written();
                entries.insert(*key, entry);
                Err(stands)
            }
            None => Err(0),
        }
    }
}

impl Entry {
    fn written(&self) -> u64 {
        self.upload.written_bytes()
    }
}

/// What these give back is no longer kept: to be dropped once the lock is free, for that removes files.
impl Kept {
    fn put(&mut self, key: Key, entry: Entry) -> Vec<Entry> {
        if self.entries.get(&key).is_some_and(|kept| kept.written() >= entry.written()) {
            return vec![entry];
        }
        let mut gone: Vec<_> = self.entries.insert(key, entry).into_iter().collect();
        gone.extend(self.take_oldest(OF_ONE_MAX, |other| other.0.is_with(key.0)));
        gone.extend(self.take_oldest(PARKED_MAX, |_| true));
        gone
    }

    /// The oldest of those that count, if they are more than `count_max`: never more than one too many.
    fn take_oldest(&mut self, count_max: usize, counts: impl Fn(&Key) -> bool) -> Option<Entry> {
        let counted = || self.entries.iter().filter(|(key, _)| counts(key));
        let oldest = counted().min_by_key(|(_, entry)| entry.until).map(|(key, _)| *key);
        oldest.filter(|_| counted().count() > count_max).and_then(|key| self.entries.remove(&key))
    }

    fn take_expired(&mut self, now: Instant) -> Vec<Entry> {
        self.entries.extract_if(|_, entry| entry.until <= now).map(|(_, entry)| entry).collect()
    }

    /// When the next one is to go. After `None` the timer has to be started again.
    fn next_end(&mut self) -> Option<Instant> {
        let next = self.entries.values().map(|entry| entry.until).min();
        self.timed = next.is_some();
        next
    }
}

/// The timer: removes what was kept long enough, until nothing is left.
async fn expire(parked: Weak<Parked>) {
    while let Some(next) = parked.upgrade().and_then(|parked| parked.kept().next_end()) {
        tokio::time::sleep_until(next).await;
        let expired = parked.upgrade().map(|parked| parked.kept().take_expired(Instant::now()));
        blocking::run(move || drop(expired)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::thread::ThreadId;

    use swarm_protocol::JobId;
    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

    use super::*;
    use crate::blobs::{BlobError, StagedBlob};

    /// Where one says in which thread it goes, and whether the lock was free then.
    type Gone = (Weak<Parked>, UnboundedSender<(ThreadId, bool)>);

    struct Written(u64, Option<Gone>);

    impl Drop for Written {
        fn drop(&mut self) {
            let Some((parked, gone)) = &self.1 else { return };
            let free = parked.upgrade().is_some_and(|parked| parked.kept.try_lock().is_ok());
            let _ = gone.send((std::thread::current().id(), free));
        }
    }

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

    fn written(bytes: u64) -> Box<dyn BlobUpload> {
        Box::new(Written(bytes, None))
    }

    fn key(user: u64, of: &str) -> Key {
        (Sender::User(UserId(user)), Digest::of(of.as_bytes()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_is_kept_for_its_sender_and_for_a_while() {
        let parked = Arc::new(Parked::default());
        let one = key(1, "a");
        parked.park(one, written(10));
        parked.park(one, written(7));
        assert_eq!((parked.offset(&one), parked.offset(&key(2, "a")), parked.offset(&key(1, "b"))), (10, 0, 0));
        assert_eq!(parked.take(&one, 7).err(), Some(10));
        assert!(parked.take(&one, 10).is_ok());
        let active = parked.begin(one);
        let settled = parked.settled_offset(&one);
        tokio::pin!(settled);
        assert!(futures_util::poll!(&mut settled).is_pending(), "it is still being written");
        parked.park(one, written(11));
        drop(active);
        assert_eq!(settled.await, 11);
        assert!(parked.take(&one, 11).is_ok());
        assert_eq!(parked.take(&one, 10).err(), Some(0), "taken");
        parked.park(one, written(10));
        tokio::time::sleep(KEPT + Duration::from_secs(1)).await;
        assert_eq!(parked.offset(&one), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_are_kept_of_one_sender_and_of_all() {
        let parked = Arc::new(Parked::default());
        for user in 0..20 {
            for n in 0..10 {
                parked.park(key(user, &n.to_string()), written(1));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert_eq!(parked.kept().entries.len(), PARKED_MAX);
        let kept = |user: u64| (0..10).filter(|n| parked.offset(&key(user, &n.to_string())) > 0).count();
        assert_eq!((kept(0), kept(19)), (0, OF_ONE_MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn all_attempts_of_a_worker_count_together() {
        let parked = Arc::new(Parked::default());
        parked.park(key(1, "a"), written(1));
        let of = |task| {
            let attempt = AttemptId { job: JobId(1), task, attempt: 1 };
            (Sender::Worker(WorkerId(1), attempt), Digest::of(b"o"))
        };
        for task in 0..PARKED_MAX as u32 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            parked.park(of(task), written(1));
        }
        assert_eq!(parked.kept().entries.len(), OF_ONE_MAX + 1);
        assert_eq!((parked.offset(&key(1, "a")), parked.offset(&of(PARKED_MAX as u32 - 1))), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn one_task_removes_them_all_where_that_may_block_and_without_the_lock() {
        let parked = Arc::new(Parked::default());
        let (gone, mut going) = unbounded_channel();
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let before = tasks();
        let park = |n: u32| {
            let gone = Some((Arc::downgrade(&parked), gone.clone()));
            parked.park(key(1, &n.to_string()), Box::new(Written(1, gone)));
        };
        (0..100).for_each(park);
        assert_eq!(tasks(), before + 1);
        let here = std::thread::current().id();
        for _ in OF_ONE_MAX..100 {
            assert_eq!(going.try_recv(), Ok((here, true)), "the oldest give way at once");
        }
        for _ in 0..OF_ONE_MAX {
            let (thread, free) = going.recv().await.unwrap();
            assert!(free && thread != here, "in {thread:?}, the lock free: {free}");
        }
        park(100);
        assert!(going.recv().await.is_some(), "the timer runs again");
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_hangs_is_not_awaited_for_long() {
        let parked = Arc::new(Parked::default());
        let one = key(1, "a");
        parked.park(one, written(5));
        let (_hanging, asked) = (parked.begin(one), Instant::now());
        assert_eq!(parked.settled_offset(&one).await, 5);
        assert_eq!(asked.elapsed(), SETTLE_MAX);
    }
}
