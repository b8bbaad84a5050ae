//! A process of the simulated world: a runtime of one thread with paused time, which runs when it is stepped. Its crash is
//! the end of the runtime, and while it is not stepped it is frozen.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::{Instant, advance, sleep_until};

use crate::time;

pub(crate) struct Host {
    /// `None` only while it is being dropped.
    runtime: Option<Runtime>,
    /// One of its instants, and the world's time then.
    origin: (Instant, u64),
}

impl Host {
    pub(crate) fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without input and output needs nothing");
        let origin = runtime.block_on(async { Instant::now() });
        Self { runtime: Some(runtime), origin: (origin, time::now_us()) }
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it is not being dropped")
    }

    pub(crate) fn handle(&self) -> Handle {
        self.runtime().handle().clone()
    }

    pub(crate) fn spawn(&self, body: impl Future<Output = ()> + Send + 'static) {
        self.runtime().spawn(body);
    }

    /// Lets it run until `until_us`.
    pub(crate) fn step(&self, until_us: u64) {
        let until = self.origin.0 + Duration::from_micros(until_us - self.origin.1);
        time::inside(self.origin, || self.runtime().block_on(async { sleep_until(until).await }));
    }

    /// After it was frozen: it finds that it is `now_us` all at once.
    pub(crate) fn thaw(&self, now_us: u64) {
        let now = self.origin.0 + Duration::from_micros(now_us - self.origin.1);
        time::inside(self.origin, || {
            self.runtime().block_on(async { advance(now.saturating_duration_since(Instant::now())).await });
        });
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What its tasks do when they are dropped happens now, however long it was frozen.
        time::inside(self.origin, || drop(self.runtime.take()));
    }
}
