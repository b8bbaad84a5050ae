//! Turns to upload: so many at a time in all, and so many of them for one key, so that nobody holds up all others.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::{Answer, unavailable};
use crate::messages::Stopping;

/// How long an upload waits for its turn. Half of the patience of its sender, of whose bytes none is read meanwhile.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// See the module.
pub(crate) struct Turns<K> {
    all: Arc<Semaphore>,
    each: usize,
    /// One for each key that has a turn or waits for one.
    own: Mutex<HashMap<K, Arc<Semaphore>>>,
}

/// An upload under way, until the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Turn {
    _permits: Arc<[OwnedSemaphorePermit; 2]>,
}

impl<K: Eq + Hash> Turns<K> {
    /// `all` turns at a time, `each` of them for one key.
    pub(crate) fn new(all: usize, each: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), each, own: Mutex::default() }
    }

    /// Waits for a turn: not for so long that the sender takes its upload for stuck.
    pub(crate) async fn take(&self, key: K) -> Answer<Turn> {
        let taken = tokio::time::timeout(WAIT_MAX, self.wait(key)).await;
        taken.unwrap_or_else(|_| Err(unavailable("as many uploads as may be are under way")))
    }

    async fn wait(&self, key: K) -> Answer<Turn> {
        // First among its own: who waits there keeps nobody else waiting.
        let own = self.own(key).acquire_owned().await.map_err(|_| Stopping)?;
        let all = Arc::clone(&self.all).acquire_owned().await.map_err(|_| Stopping)?;
        Ok(Turn { _permits: Arc::new([own, all]) })
    }

    fn own(&self, key: K) -> Arc<Semaphore> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.retain(|_, turns| Arc::strong_count(turns) > 1);
        Arc::clone(own.entry(key).or_insert_with(|| Arc::new(Semaphore::new(self.each))))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, poll};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_long_is_told_to_come_again() {
        let turns = Turns::new(1, 1);
        let _held = turns.take("ann").await.unwrap();
        let refusal = turns.take("bob").await.err().expect("none is left");
        assert!(refusal.0.status == 503 && refusal.0.retryable, "{refusal:?}");
    }

    #[tokio::test]
    async fn one_key_never_has_all_turns_and_is_forgotten_with_its_last() {
        let turns = Turns::new(4, 2);
        let first = turns.take("ann").await.unwrap();
        let _second = turns.take("ann").await.unwrap();
        let mut third = std::pin::pin!(turns.take("ann"));
        assert!(poll!(&mut third).is_pending());
        let others = [turns.take("bob").await.unwrap(), turns.take("eve").await.unwrap()];
        assert!(turns.take("eve").now_or_never().is_none(), "all are taken");
        let clone = first.clone();
        drop(first);
        assert!(poll!(&mut third).is_pending(), "a clone holds it");
        drop(clone);
        let third = third.await.unwrap();
        drop((others, third));
        let _last = turns.take("joe").await.unwrap();
        assert_eq!(turns.own.lock().unwrap().len(), 2, "ann and joe");
    }
}
