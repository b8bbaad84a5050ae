//! Requests that are to be done once, however often they are sent: those that spend a one-use token, and submits under a
//! key. Whoever repeats one that is under way gets the same answer, and so does, for a little while, whoever may not have
//! heard it: otherwise a slow database or a connection that breaks would make a thief of a client that asks again. Servers
//! of OAuth that rotate refresh tokens (RFC 9700, 4.14) allow the same; 30 s is what Okta does by default.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio_util::task::AbortOnDropHandle;

/// How long an answer waits to be asked for again: several times what clients let pass between two tries.
const GRACE: Duration = Duration::from_secs(30);
/// Requests under way, or with an answer that waits, at one time.
const REQUESTS_MAX: usize = 4096;

/// Too many such requests at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many requests of this kind wait for the database at this moment")]
pub struct Full;

/// The answers that somebody may have missed, by what makes two requests the same. Lies in this core's memory alone; secrets in the
/// answers are to wipe themselves when they are dropped.
pub(crate) struct Once<K: Key, T: Answer>(Mutex<HashMap<K, Entry<T>>>);

struct Entry<T> {
    flight: Arc<Flight<T>>,
    /// Requests that take part in it.
    places: usize,
}

/// One request under way, or its answer.
type Flight<T> = OnceCell<Waiting<T>>;

struct Waiting<T> {
    answer: T,
    _until: AbortOnDropHandle<()>,
}

pub(crate) trait Key: Hash + Eq + Clone + Send + Sync + 'static {}
impl<K: Hash + Eq + Clone + Send + Sync + 'static> Key for K {}
pub(crate) trait Answer: Clone + Send + Sync + 'static {}
impl<T: Clone + Send + Sync + 'static> Answer for T {}

impl<K: Key, T: Answer> Default for Once<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Key, T: Answer> Once<K, T> {
    /// The answer of `work`, or that of an earlier request for `key` that still waits. Of requests at the same time one
    /// works; when it fails, another one does.
    ///
    /// # Errors
    /// Those of `work`, and [`Full`].
    pub(crate) async fn answer<E: From<Full>>(
        self: &Arc<Self>,
        key: K,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<Undelivered<T>, E> {
        let place = self.place(key)?;
        let fly = async || Ok::<_, E>(Waiting { answer: work.await?, _until: place.forget_later() });
        let answer = place.flight.get_or_try_init(fly).await?.answer.clone();
        Ok(Undelivered { answer, delivered: Box::new(move || place.forget()) })
    }

    fn place(self: &Arc<Self>, key: K) -> Result<Place<K, T>, Full> {
        let mut entries = self.entries();
        if entries.len() >= REQUESTS_MAX && !entries.contains_key(&key) {
            // An answer that waits gives way to who has none yet.
            let waits = entries.iter().find(|(_, entry)| entry.places == 0).map(|(key, _)| key.clone());
            entries.remove(&waits.ok_or(Full)?);
        }
        let entry = entries.entry(key.clone()).or_insert_with(|| Entry { flight: Arc::default(), places: 0 });
        entry.places += 1;
        Ok(Place { all: Arc::clone(self), key, flight: Arc::clone(&entry.flight) })
    }

    /// As if every answer had waited long enough.
    #[cfg(test)]
    pub(crate) fn forget_all(&self) {
        self.entries().clear();
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<K, Entry<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an entry out if it is of this flight and `is_over`.
    fn forget_if(&self, key: &K, flight: &Arc<Flight<T>>, is_over: impl FnOnce(&mut Entry<T>) -> bool) {
        let mut entries = self.entries();
        if entries.get_mut(key).is_some_and(|entry| Arc::ptr_eq(&entry.flight, flight) && is_over(entry)) {
            entries.remove(key);
        }
    }
}

/// A request's part in a flight.
struct Place<K: Key, T: Answer> {
    all: Arc<Once<K, T>>,
    key: K,
    flight: Arc<Flight<T>>,
}

impl<K: Key, T: Answer> Place<K, T> {
    fn forget(&self) {
        self.all.forget_if(&self.key, &self.flight, |_| true);
    }

    fn forget_later(&self) -> AbortOnDropHandle<()> {
        let (all, key, flight) = (Arc::downgrade(&self.all), self.key.clone(), Arc::downgrade(&self.flight));
        AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            if let (Some(all), Some(flight)) = (all.upgrade(), flight.upgrade()) {
                all.forget_if(&key, &flight, |_| true);
            }
        }))
    }
}

impl<K: Key, T: Answer> Drop for Place<K, T> {
    /// A flight that came to nothing ends with the last who took part in it.
    fn drop(&mut self) {
        self.all.forget_if(&self.key, &self.flight, |entry| {
            entry.places -= 1;
            entry.places == 0 && !entry.flight.initialized()
        });
    }
}

/// An answer on its way. Unless it is [`delivered`](Self::delivered), it waits to be asked for again.
pub struct Undelivered<T> {
    answer: T,
    delivered: Box<dyn FnOnce() + Send>,
}

impl<T> Undelivered<T> {
    /// What is handed out for it.
    pub(crate) fn map<U>(self, shape: impl FnOnce(T) -> U) -> Undelivered<U> {
        Undelivered { answer: shape(self.answer), delivered: self.delivered }
    }

    /// Hands it out, and again to who asks again: nobody knows yet whether it arrives.
    pub(crate) fn kept(self) -> T {
        self.answer
    }

    /// Hands it out; from then on the request is another one.
    #[must_use]
    pub fn delivered(self) -> T {
        (self.delivered)();
        self.answer
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A service that spends tokens: counts how often it worked.
    #[derive(Default)]
    struct Desk {
        once: Arc<Once<u32, u32>>,
        worked: AtomicU32,
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Failed {
        Full,
        Work,
    }

    impl From<Full> for Failed {
        fn from(_: Full) -> Self {
            Self::Full
        }
    }

    impl Desk {
        async fn ask(&self, token: u32, work: impl Future<Output = bool>) -> Result<Undelivered<u32>, Failed> {
            let work = async {
                let is_good = work.await;
                let count = self.worked.fetch_add(1, Ordering::Relaxed) + 1;
                if is_good { Ok(count) } else { Err(Failed::Work) }
            };
            self.once.answer(token, work).await
        }

        /// The number of the answer that is handed out.
        async fn get(&self, token: u32) -> u32 {
            self.ask(token, std::future::ready(true)).await.map(Undelivered::delivered).unwrap()
        }

        fn len(&self) -> usize {
            self.once.entries().len()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_at_the_same_time_share_one_answer_and_a_later_one_has_its_own() {
        let desk = Desk::default();
        let slow = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            true
        };
        let ((one, other), third) =
            tokio::join!(async { tokio::join!(desk.ask(7, slow), desk.ask(7, async { false })) }, desk.get(8));
        assert_eq!((one.unwrap().delivered(), other.unwrap().delivered(), third), (2, 2, 1));
        assert_eq!(desk.len(), 0);
        assert_eq!(desk.get(7).await, 3, "delivered answers are not given again");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_came_too_late_or_may_be_lost_is_given_again_within_its_grace() {
        let desk = Desk::default();
        drop(desk.ask(7, async { true }).await.unwrap());
        tokio::time::sleep(GRACE - Duration::from_secs(1)).await;
        assert_eq!([desk.get(7).await, desk.get(7).await], [1, 2]);
        for _ in 0..2 {
            assert_eq!(desk.ask(7, async { true }).await.unwrap().kept(), 3);
            tokio::time::sleep(GRACE / 2 - Duration::from_secs(1)).await;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(desk.len(), 0, "it does not wait longer for being given again");
        drop(desk.ask(7, async { true }).await.unwrap());
        tokio::time::sleep(GRACE + Duration::from_secs(1)).await;
        assert_eq!(desk.len(), 0, "nobody came for it");
    }

    #[tokio::test]
    async fn work_that_fails_or_breaks_off_leaves_nothing_and_the_next_one_works() {
        let desk = Desk::default();
        let (one, other) = tokio::join!(desk.ask(7, async { false }), desk.ask(7, async { true }));
        assert_eq!((one.map(drop), other.map(Undelivered::delivered)), (Err(Failed::Work), Ok(2)));
        let pending = tokio::time::timeout(Duration::from_millis(1), desk.ask(8, std::future::pending()));
        assert!(pending.await.is_err());
        assert_eq!((desk.ask(9, async { false }).await.map(drop), desk.len()), (Err(Failed::Work), 0));
    }

    #[tokio::test]
    async fn requests_are_bounded_and_answers_that_wait_give_way() {
        let desk = Desk::default();
        for token in 0..=REQUESTS_MAX as u32 {
            drop(desk.ask(token, async { true }).await.unwrap());
        }
        assert_eq!(desk.len(), REQUESTS_MAX);
        let places: Vec<_> = (0..REQUESTS_MAX as u32).map(|n| desk.once.place(u32::MAX - n).unwrap()).collect();
        assert_eq!(desk.ask(7, async { true }).await.map(drop), Err(Failed::Full), "all are under way");
        drop(places);
        assert_eq!(desk.ask(7, async { true }).await.map(drop), Ok(()));
    }
}
