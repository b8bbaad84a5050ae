//! A value that many tasks follow. A change wakes them in the order in which they began to wait, and not in a random one
//! as tokio's own `watch` does: what they then say to the core has an order that a simulation can repeat.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The value; clones are the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Latest<T>(Arc<Shared<T>>);

#[derive(Debug, Default)]
struct Shared<T> {
    /// How often it was set, and what it is.
    value: Mutex<(u64, T)>,
    changed: Notify,
}

impl<T: Clone> Latest<T> {
    /// Puts another value in its place.
    pub(crate) fn set(&self, value: T) {
        {
            let mut held = self.lock();
            *held = (held.0 + 1, value);
        }
        self.0.changed.notify_waiters();
    }

    /// The value as it is now.
    pub(crate) fn get(&self) -> T {
        self.lock().1.clone()
    }

    /// Follows the changes from now on.
    pub(crate) fn follow(&self) -> Follower<T> {
        Follower { latest: self.clone(), seen: self.lock().0 }
    }

    fn lock(&self) -> MutexGuard<'_, (u64, T)> {
        self.0.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who follows a [`Latest`].
#[derive(Debug)]
pub(crate) struct Follower<T> {
    latest: Latest<T>,
    seen: u64,
}

impl<T: Clone> Follower<T> {
    /// The value as it is now, which counts as seen.
    pub(crate) fn get(&mut self) -> T {
        let held = self.latest.lock();
        self.seen = held.0;
        held.1.clone()
    }

    /// Waits for a change that was not seen yet, which then counts as seen. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        loop {
            let changed = self.latest.0.changed.notified();
            let count = self.latest.lock().0;
            if std::mem::replace(&mut self.seen, count) != count {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_wakes_all_in_the_order_in_which_they_began_to_wait() {
        let (latest, woken) = (Latest::<u32>::default(), Arc::new(Mutex::new(Vec::new())));
        let tasks: Vec<_> = (0..40)
            .map(|n| {
                let (mut follower, woken) = (latest.follow(), woken.clone());
                tokio::spawn(async move {
                    follower.changed().await;
                    woken.lock().unwrap().push((n, follower.get()));
                })
            })
            .collect();
        tokio::task::yield_now().await;
        latest.set(7);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*woken.lock().unwrap(), (0..40).map(|n| (n, 7)).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn what_changed_before_the_wait_is_told_once() {
        let latest = Latest::<u32>::default();
        let mut follower = latest.follow();
        latest.set(1);
        follower.changed().await;
        let again = tokio::time::timeout(std::time::Duration::from_millis(1), follower.changed()).await;
        assert!(again.is_err() && follower.get() == 1 && latest.get() == 1);
    }
}
