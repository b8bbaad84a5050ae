//! The way from async code to work that may block: files, fsync, hashing.
//!
//! In a simulation no other thread takes part: the same work is done by a task of its own, after the simulated time that
//! it takes. As with a thread, whoever awaits it may be dropped and the work is done all the same.

use tokio::task::JoinHandle;

/// Runs `work` on a thread that may block; a panic there goes on here.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match begin(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going away, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

fn begin<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    #[cfg(feature = "testing")]
    if let Some(takes) = simulated::takes() {
        return tokio::spawn(async move {
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
            work()
        });
    }
    tokio::task::spawn_blocking(work)
}

#[cfg(feature = "testing")]
pub use simulated::simulate;

#[cfg(feature = "testing")]
mod simulated {
    use std::cell::RefCell;
    use std::time::Duration;

    /// How long the next piece of work is to take.
    type Durations = Box<dyn FnMut() -> Duration>;

    thread_local! {
        static DURATIONS: RefCell<Option<Durations>> = const { RefCell::new(None) };
    }

    /// From now on, work that is begun on this thread is done on this thread, in tasks of the runtime that begins it.
    /// Each piece takes as much of the runtime's time as `durations` says, and none where that is zero.
    pub fn simulate(durations: impl FnMut() -> Duration + 'static) {
        DURATIONS.set(Some(Box::new(durations)));
    }

    pub(super) fn takes() -> Option<Duration> {
        DURATIONS.with_borrow_mut(|durations| durations.as_mut().map(|next| next()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn simulated_work_is_done_on_this_thread_in_its_time_even_if_nobody_waits() {
        simulate(|| Duration::from_secs(3));
        let (here, began) = (std::thread::current().id(), tokio::time::Instant::now());
        assert_eq!(run(move || std::thread::current().id()).await, here);
        assert_eq!(began.elapsed(), Duration::from_secs(3));
        let (done, mut told) = tokio::sync::oneshot::channel();
        let dropped = tokio::time::timeout(Duration::from_secs(1), run(move || done.send(()).unwrap())).await;
        assert!(dropped.is_err() && told.try_recv().is_err());
        told.await.unwrap();
    }
}
