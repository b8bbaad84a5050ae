//! The way from async code to work that may block: files, fsync, hashing.
//!
//! In a simulation no other thread takes part: the same work is done by a task of its own, after the simulated time that
//! it takes. As with a thread, whoever awaits it may be dropped and the work is done all the same.

use std::io;
use std::sync::mpsc::{Sender, channel};

use tokio::sync::oneshot;
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

/// A thread of its own, for work that must not wait until others leave one of the shared threads free. It ends with this.
pub struct Thread(Option<Sender<Work>>);

type Work = Box<dyn FnOnce() + Send>;

impl Thread {
    /// Starts the thread; in a simulation there is none.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(name: &str) -> io::Result<Self> {
        #[cfg(feature = "testing")]
        if simulated::is_on() {
            return Ok(Self(None));
        }
        let (sender, inbox) = channel::<Work>();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || inbox.into_iter().for_each(|work| work()))?;
        Ok(Self(Some(sender)))
    }

    /// Runs `work` on this thread, after what was given to it before. It is done even if nobody waits for it.
    ///
    /// # Panics
    /// When `work` panics, and after that.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let Some(sender) = &self.0 else { return run(work).await };
        let (reply, answer) = oneshot::channel();
        let given = sender.send(Box::new(move || drop(reply.send(work()))));
        given.expect("the thread has not panicked");
        answer.await.expect("the work has not panicked")
    }
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

    pub(super) fn is_on() -> bool {
        DURATIONS.with_borrow(Option::is_some)
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
        let (done, mut told) = oneshot::channel();
        let dropped = tokio::time::timeout(Duration::from_secs(1), run(move || done.send(()).unwrap())).await;
        assert!(dropped.is_err() && told.try_recv().is_err());
        told.await.unwrap();
    }

    #[tokio::test]
    async fn a_thread_of_its_own_works_in_order_and_its_panic_goes_on_at_who_waits() {
        let thread = Thread::start("own").unwrap();
        let (here, there) = (std::thread::current().id(), thread.run(|| std::thread::current().id()).await);
        assert_ne!(here, there);
        assert_eq!(thread.run(|| std::thread::current().id()).await, there);
        let panicked = tokio::spawn(async move { thread.run(|| panic!("of a bug")).await });
        assert!(panicked.await.unwrap_err().is_panic());
    }

    #[tokio::test(start_paused = true)]
    async fn a_simulation_has_no_thread_of_its_own() {
        simulate(|| Duration::ZERO);
        let thread = Thread::start("own").unwrap();
        assert_eq!(thread.run(|| std::thread::current().id()).await, std::thread::current().id());
    }
}
