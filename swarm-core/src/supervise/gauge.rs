//! What one module counts about itself.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use swarm_protocol::api::ModuleView;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::history::Earlier;

/// Over how many seconds a rate is taken.
const RATE_WINDOW_S: u64 = 60;

/// What one module counts about itself. Cheap to clone; never blocks for long.
#[derive(Clone)]
pub struct Gauge(Arc<Shared>);

struct Shared {
    name: &'static str,
    capacity: u64,
    depth: Box<dyn Fn() -> u64 + Send + Sync>,
    counts: Mutex<Counts>,
}

struct Counts {
    state: &'static str,
    handled: u64,
    errors: u64,
    last_error: Option<String>,
    restarts: u64,
    /// (second since `born`, messages in it), the youngest last; at most `RATE_WINDOW_S` of them.
    recent: VecDeque<(u64, u64)>,
    born: Instant,
}

impl Gauge {
    /// A gauge for the module `name` that reads the depth of its inbox from `inbox`.
    #[must_use]
    pub fn new<T: Send + 'static>(name: &'static str, inbox: &mpsc::Sender<T>) -> Self {
        let (capacity, weak) = (inbox.max_capacity(), inbox.downgrade());
        let depth = move || weak.upgrade().map_or(0, |sender| (sender.max_capacity() - sender.capacity()) as u64);
        Self::with_depth(name, capacity as u64, depth)
    }

    /// A gauge for a module without an inbox of messages.
    #[must_use]
    pub fn without_inbox(name: &'static str) -> Self {
        Self::with_depth(name, 0, || 0)
    }

    /// A gauge that reads the depth of its queue, of at most `capacity`, from `depth`.
    pub(crate) fn with_depth(
        name: &'static str,
        capacity: u64,
        depth: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        let counts = Counts {
            state: "running",
            handled: 0,
            errors: 0,
            last_error: None,
            restarts: 0,
            recent: VecDeque::new(),
            born: Instant::now(),
        };
        Self(Arc::new(Shared { name, capacity, depth: Box::new(depth), counts: Mutex::new(counts) }))
    }

    fn counts<R>(&self, change: impl FnOnce(&mut Counts) -> R) -> R {
        change(&mut self.0.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Counts one handled message.
    pub fn handled(&self) {
        self.handled_many(1);
    }

    /// Counts `n` handled messages. Tests can make the module fail here, by its name.
    pub fn handled_many(&self, n: u64) {
        fail::fail_point!(self.0.name);
        self.counts(|counts| {
            counts.handled += n;
            let second = counts.born.elapsed().as_secs();
            match counts.recent.back_mut() {
                Some((last, count)) if *last == second => *count += n,
                _ => counts.recent.push_back((second, n)),
            }
            while counts.recent.front().is_some_and(|(at, _)| at + RATE_WINDOW_S <= second) {
                counts.recent.pop_front();
            }
        });
    }

    /// Counts an error and keeps its text.
    pub fn error(&self, error: &dyn std::fmt::Display) {
        self.counts(|counts| {
            counts.errors += 1;
            counts.last_error = Some(error.to_string());
        });
    }

    pub(super) fn state(&self, state: &'static str) {
        self.counts(|counts| counts.state = state);
    }

    pub(super) fn name(&self) -> &'static str {
        self.0.name
    }

    /// Goes on from what the module's earlier starts in this process left.
    pub(super) fn continue_from(&self, earlier: Earlier) {
        self.counts(|counts| {
            counts.restarts = earlier.restarts;
            counts.errors += earlier.failures;
            counts.last_error = earlier.last_failure;
        });
    }

    /// What `GET /modules` shows.
    #[must_use]
    pub fn view(&self) -> ModuleView {
        let queue_depth = (self.0.depth)();
        self.counts(|counts| {
            let second = counts.born.elapsed().as_secs();
            let recent = counts.recent.iter().filter(|(at, _)| at + RATE_WINDOW_S > second);
            let window = (second + 1).min(RATE_WINDOW_S);
            ModuleView {
                name: self.0.name.to_owned(),
                state: counts.state.to_owned(),
                detail: None,
                queue_depth,
                queue_capacity: self.0.capacity,
                handled: counts.handled,
                rate_per_s: recent.map(|(_, count)| count).sum::<u64>() as f64 / window as f64,
                errors: counts.errors,
                last_error: counts.last_error.clone(),
                restarts: counts.restarts,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_gauge_shows_depth_rate_and_the_last_error() {
        let (inbox, _receiver) = mpsc::channel::<u8>(4);
        let gauge = Gauge::new("scheduler", &inbox);
        inbox.send(1).await.unwrap();
        gauge.handled_many(3);
        gauge.error(&"no row");
        let view = gauge.view();
        assert_eq!((view.queue_depth, view.queue_capacity, view.handled, view.errors), (1, 4, 3, 1));
        assert!(view.rate_per_s > 0.0);
        assert_eq!(view.last_error.as_deref(), Some("no row"));
    }
}
