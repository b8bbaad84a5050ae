//! Starts, watches and counts the core's modules. No module dies silently: one that ends unasked or panics stops the
//! whole core in order, and the process starts anew from the store, for half a core is worse than none.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use swarm_protocol::api::ModuleView;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

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

    fn with_depth(name: &'static str, capacity: u64, depth: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let counts = Counts {
            state: "starting",
            handled: 0,
            errors: 0,
            last_error: None,
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

    /// Counts `n` handled messages.
    pub fn handled_many(&self, n: u64) {
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

    fn state(&self, state: &'static str) {
        self.counts(|counts| counts.state = state);
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
                queue_depth,
                queue_capacity: self.0.capacity,
                handled: counts.handled,
                rate_per_s: recent.map(|(_, count)| count).sum::<u64>() as f64 / window as f64,
                errors: counts.errors,
                last_error: counts.last_error.clone(),
                restarts: 0,
            }
        })
    }
}

/// All modules of one core.
#[derive(Clone, Default)]
pub struct Supervisor {
    tasks: TaskTracker,
    stop: CancellationToken,
    gauges: Arc<Mutex<Vec<Gauge>>>,
    failure: Arc<Mutex<Option<String>>>,
}

impl Supervisor {
    /// No modules yet; they stop when `stop` is cancelled.
    #[must_use]
    pub fn new(stop: CancellationToken) -> Self {
        Self { stop, ..Self::default() }
    }

    /// Modules that outlive these: they stop by a token of their own, but their failure stops these as well, and their
    /// status is shown with the others.
    #[must_use]
    pub fn beneath(&self) -> Self {
        let below = Self { gauges: Arc::clone(&self.gauges), ..Self::default() };
        let (ended, stop) = (below.stop.clone(), self.stop.clone());
        tokio::spawn(async move {
            ended.cancelled().await;
            stop.cancel();
        });
        below
    }

    /// The token that every module watches.
    #[must_use]
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Starts a module. When it ends, for whatever reason, everything stops.
    pub fn spawn<F>(&self, gauge: Gauge, body: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let name = gauge.0.name;
        self.gauges.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(gauge.clone());
        let (stop, failure) = (self.stop.clone(), Arc::clone(&self.failure));
        gauge.state("running");
        let module = tokio::spawn(body);
        self.tasks.spawn(async move {
            let _stop_all = stop.clone().drop_guard();
            let ended = match module.await {
                Ok(Ok(())) if stop.is_cancelled() => Ok(()),
                Ok(Ok(())) => Err("ended unasked".to_owned()),
                Ok(Err(error)) => Err(format!("{error:#}")),
                Err(panic) => Err(panic.to_string()),
            };
            if let Err(reason) = ended {
                tracing::error!(module = name, "module `{name}` failed: {reason}");
                gauge.error(&reason);
                gauge.state("failed");
                let mut first = failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                first.get_or_insert(format!("module `{name}` failed: {reason}"));
            } else {
                gauge.state("stopped");
            }
        });
    }

    /// Every module's status, in the order they were started.
    #[must_use]
    pub fn views(&self) -> Vec<ModuleView> {
        self.gauges.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter().map(Gauge::view).collect()
    }

    /// Waits until every module has ended; to be called after the stop.
    ///
    /// # Errors
    /// What the first module to fail failed of.
    pub async fn wait(&self) -> anyhow::Result<()> {
        self.tasks.close();
        self.tasks.wait().await;
        match self.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            Some(reason) => Err(anyhow::anyhow!(reason)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_module_that_panics_stops_all_and_is_named() {
        let supervisor = Supervisor::new(CancellationToken::new());
        let stop = supervisor.stop().clone();
        supervisor.spawn(Gauge::without_inbox("steady"), async move {
            stop.cancelled().await;
            Ok(())
        });
        supervisor.spawn(Gauge::without_inbox("shaky"), async { panic!("of a bug") });
        let error =
            tokio::time::timeout(std::time::Duration::from_secs(5), supervisor.wait()).await.unwrap().unwrap_err();
        assert!(error.to_string().contains("shaky"), "{error}");
        let states: Vec<_> = supervisor.views().into_iter().map(|view| view.state).collect();
        assert_eq!(states, ["stopped", "failed"]);
    }

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
