//! Calls that carry a body to the engine: they may take as long as the bytes do, and fail when the engine takes no more.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::time::Instant;

use super::errors::timed_out;
use super::points::around;
use crate::runtime::{ByteStream, RuntimeError};

/// What a body waits for.
#[derive(Debug, Clone, Copy)]
enum Beat {
    /// The engine has been given a piece, and has not asked for the next one since.
    Engine(Instant),
    /// The engine asks for a piece that has not come yet: however long that takes is not its fault.
    Source,
    /// The engine has all of it.
    Given(Instant),
}

/// The state of one body, shared by it and by whoever watches over the call.
#[derive(Debug, Clone)]
pub(super) struct Pulse(Arc<Mutex<Beat>>);

impl Pulse {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Beat::Engine(Instant::now()))))
    }

    /// `body` as it is, watched.
    pub(super) fn of(&self, body: ByteStream) -> ByteStream {
        Watched { body, pulse: self.clone() }.boxed()
    }

    fn lock(&self) -> MutexGuard<'_, Beat> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the engine has taken nothing for `stall`, or has had everything for `rest`: which of the two.
    async fn stopped(&self, stall: Duration, rest: Duration) -> Duration {
        loop {
            let beat = *self.lock();
            let (since, limit) = match beat {
                Beat::Engine(since) => (since, stall),
                Beat::Given(since) => (since, rest),
                Beat::Source => (Instant::now(), stall),
            };
            if since.elapsed() >= limit {
                return limit;
            }
            tokio::time::sleep_until(since + limit).await;
        }
    }

    /// Waits for a call whose body is watched.
    ///
    /// # Errors
    /// [`RuntimeError::Timeout`] when the engine takes no byte for `stall`, or does not answer within `rest` after the
    /// last one.
    pub(super) async fn watch<T>(
        &self,
        call: &'static str,
        (stall, rest): (Duration, Duration),
        work: impl Future<Output = Result<T, RuntimeError>>,
    ) -> Result<T, RuntimeError> {
        tokio::select! {
            biased;
            done = around(call, work) => done,
            limit = self.stopped(stall, rest) => Err(timed_out(call, limit)),
        }
    }
}

struct Watched {
    body: ByteStream,
    pulse: Pulse,
}

impl Stream for Watched {
    type Item = std::io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.body.poll_next_unpin(context);
        *self.pulse.lock() = match &polled {
            Poll::Pending => Beat::Source,
            Poll::Ready(Some(_)) => Beat::Engine(Instant::now()),
            Poll::Ready(None) => Beat::Given(Instant::now()),
        };
        polled
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Nobody asks for more: all that is left is the answer.
        let mut beat = self.pulse.lock();
        if !matches!(*beat, Beat::Given(_)) {
            *beat = Beat::Given(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LIMITS: (Duration, Duration) = (SECOND, Duration::from_secs(10));

    fn piece() -> std::io::Result<Bytes> {
        Ok(Bytes::from_static(b"piece"))
    }

    /// A call that takes the next piece of `body` whenever `pause` has passed, `count` at most, and then takes `rest`.
    async fn taken(body: ByteStream, pause: Duration, count: usize, rest: Duration) -> Result<usize, RuntimeError> {
        let pulse = Pulse::new();
        let mut body = pulse.of(body).take(count);
        let work = async move {
            let mut taken = 0;
            while let Some(Ok(_)) = body.next().await {
                taken += 1;
                tokio::time::sleep(pause).await;
            }
            tokio::time::sleep(rest).await;
            drop(body);
            Ok(taken)
        };
        pulse.watch("upload", LIMITS, work).await
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_engine_that_takes_nothing_is_given_up() {
        let pieces = || stream::iter((0..100).map(|_| piece())).boxed();
        let slow_source = stream::iter(0..5).then(|_| async {
            tokio::time::sleep(30 * SECOND).await;
            piece()
        });
        let gave_up = |after: Duration| RuntimeError::Timeout { call: "upload", after_ms: after.as_millis() as u64 };
        assert_eq!(taken(pieces(), SECOND / 2, 1000, SECOND / 2).await, Ok(100), "it takes 50 s, and always moves");
        assert_eq!(taken(slow_source.boxed(), SECOND / 10, 1000, 5 * SECOND).await, Ok(5), "the source is slow");
        assert_eq!(taken(pieces(), 2 * SECOND, 1000, SECOND).await, Err(gave_up(SECOND)), "it stands still");
        assert_eq!(taken(pieces(), SECOND / 2, 9, 5 * SECOND).await, Err(gave_up(SECOND)), "it stops half way");
        assert_eq!(taken(pieces(), Duration::ZERO, 1000, 9 * SECOND).await, Ok(100), "it works on what it has");
        assert_eq!(taken(pieces(), Duration::ZERO, 1000, 11 * SECOND).await, Err(gave_up(10 * SECOND)));
    }
}
