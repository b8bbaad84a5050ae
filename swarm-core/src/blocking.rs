//! The way from async code to work that may block: database reads, fsync, hashing.
//!
//! In a simulation ([`simulate`]) no other thread takes part: the same work is done by a task of its own, after the
//! simulated time that it takes. As with a thread, whoever awaits it may be dropped and the work is done all the same.

use std::cell::RefCell;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinError;

/// How long the next piece of work is to take.
type Durations = Box<dyn FnMut() -> Duration>;

thread_local! {
    static SIMULATED: RefCell<Option<Durations>> = const { RefCell::new(None) };
}

/// From now on, work that is begun on this thread is done on this thread, in tasks of the runtime that begins it. Each
/// piece takes as much of the runtime's time as `durations` says, and none of it where that is zero. For simulations,
/// whose runs must not depend on the scheduling of threads.
pub fn simulate(durations: impl FnMut() -> Duration + 'static) {
    SIMULATED.set(Some(Box::new(durations)));
}

fn simulated() -> Option<Duration> {
    SIMULATED.with_borrow_mut(|durations| durations.as_mut().map(|next| next()))
}

/// Runs `work` on a thread that may block; a panic there goes on here.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = match simulated() {
        Some(duration) => simulate_run(duration, work).await,
        None => tokio::task::spawn_blocking(work).await,
    };
    match done {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going away, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

async fn simulate_run<T: Send + 'static>(
    duration: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    let task = tokio::spawn(async move {
        if !duration.is_zero() {
            tokio::time::sleep(duration).await;
        }
        work()
    });
    task.await
}

/// A thread of its own, for work that must not wait until uploads leave one of the shared threads free. It ends with
/// this.
pub(crate) struct Thread(Option<Sender<Work>>);

type Work = Box<dyn FnOnce() + Send>;

impl Thread {
    /// Starts the thread; in a simulation there is none.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub(crate) fn start(name: &str) -> std::io::Result<Self> {
        if SIMULATED.with_borrow(Option::is_some) {
            return Ok(Self(None));
        }
        let (sender, inbox) = channel::<Work>();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || inbox.into_iter().for_each(|work| work()))?;
        Ok(Self(Some(sender)))
    }

    /// Runs `work` on this thread, after what was given to it before.
    ///
    /// # Panics
    /// When `work` panics, and after that.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let Some(sender) = &self.0 else { return run(work).await };
        let (reply, answer) = oneshot::channel();
        let given = sender.send(Box::new(move || drop(reply.send(work()))));
        given.expect("the thread has not panicked");
        answer.await.expect("the work has not panicked")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thread_of_its_own_works_in_order_and_its_panic_goes_on_at_who_waits() {
        let thread = Thread::start("own").unwrap();
        let (here, there) = (std::thread::current().id(), thread.run(|| std::thread::current().id()).await);
        assert_ne!(here, there);
        assert_eq!(thread.run(|| std::thread::current().id()).await, there);
        let panicked = tokio::spawn(async move { thread.run(|| panic!("of a bug")).await });
        assert!(panicked.await.unwrap_err().is_panic());
    }

    #[test]
    fn simulated_work_takes_simulated_time_here_and_is_done_though_nobody_waits() {
        let one = std::thread::spawn(|| {
            simulate(|| Duration::from_secs(60));
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_time().start_paused(true).build().unwrap().block_on(async {
                let (began, here) = (tokio::time::Instant::now(), std::thread::current().id());
                let thread = Thread::start("own").unwrap();
                assert_eq!(thread.run(|| std::thread::current().id()).await, here);
                assert_eq!(began.elapsed(), Duration::from_secs(60));
                let (done, later) = oneshot::channel();
                let abandoned = run(move || drop(done.send(())));
                assert!(tokio::time::timeout(Duration::from_secs(1), abandoned).await.is_err());
                later.await.unwrap();
                assert_eq!(began.elapsed(), Duration::from_secs(120));
            });
        });
        one.join().unwrap();
    }
}
