//! Starts, watches and counts the core's modules. No module dies silently: one that ends unasked or panics stops the
//! whole core in order, which is then started anew from the store, for half a core is worse than none. See `run`.

mod gauge;
mod history;

use std::future::Future;
use std::sync::{Arc, Mutex};

use swarm_protocol::api::ModuleView;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use gauge::Gauge;
pub use history::History;

/// All modules of one core.
#[derive(Clone, Default)]
pub struct Supervisor {
    tasks: TaskTracker,
    stop: CancellationToken,
    gauges: Arc<Mutex<Vec<Gauge>>>,
    failure: Arc<Mutex<Option<anyhow::Error>>>,
    history: History,
}

impl Supervisor {
    /// No modules yet; they stop when `stop` is cancelled, and go on from `history`.
    #[must_use]
    pub fn new(stop: CancellationToken, history: History) -> Self {
        Self { stop, history, ..Self::default() }
    }

    /// Modules that outlive these: they stop by a token of their own, but their failure stops these as well, and their
    /// status is shown with the others.
    #[must_use]
    pub fn beneath(&self) -> Self {
        let below = Self { gauges: Arc::clone(&self.gauges), history: self.history.clone(), ..Self::default() };
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
        let name = gauge.name();
        gauge.continue_from(self.history.of(name));
        self.gauges.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(gauge.clone());
        let (stop, failure, history) = (self.stop.clone(), Arc::clone(&self.failure), self.history.clone());
        let module = tokio::spawn(body);
        self.tasks.spawn(async move {
            let _stop_all = stop.clone().drop_guard();
            let ended = match module.await {
                Ok(Ok(())) if stop.is_cancelled() => Ok(()),
                Ok(Ok(())) => Err(anyhow::anyhow!("ended unasked")),
                Ok(Err(error)) => Err(error),
                Err(panic) => Err(anyhow::Error::from(panic)),
            };
            let Err(error) = ended else { return gauge.state("stopped") };
            let reason = format!("{error:#}");
            tracing::error!(module = name, "module `{name}` failed: {reason}");
            gauge.error(&reason);
            gauge.state("failed");
            history.failed(name, reason);
            let mut first = failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            first.get_or_insert(error.context(format!("module `{name}` failed")));
        });
    }

    /// Shows a module that has no task of its own but works within others' until the stop.
    pub fn show(&self, gauge: Gauge) {
        gauge.continue_from(self.history.of(gauge.name()));
        self.gauges.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(gauge.clone());
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.cancelled().await;
            gauge.state("stopped");
        });
    }

    /// Every module's status, in the order they were started.
    #[must_use]
    pub fn views(&self) -> Vec<ModuleView> {
        let gauges = self.gauges.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut views: Vec<ModuleView> = gauges.iter().map(Gauge::view).collect();
        if self.stop.is_cancelled() {
            views.iter_mut().filter(|view| view.state == "running").for_each(|view| view.state = "stopping".to_owned());
        }
        views
    }

    /// Waits until every module has ended; to be called after the stop. Cancel safe.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// How they ended so far; told once.
    ///
    /// # Errors
    /// What the first module to fail failed of.
    pub fn outcome(&self) -> anyhow::Result<()> {
        match self.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
}

/// What a module does when another one that it needs is gone: that end is the failure, and stops this module, too.
///
/// # Errors
/// None; the signature is that of a module's end.
pub async fn until_stopped(stop: &CancellationToken) -> anyhow::Result<()> {
    stop.cancelled().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_module_asked_to_stop_is_stopping_until_it_has_stopped() {
        let supervisor = Supervisor::new(CancellationToken::new(), History::default());
        let (let_go, held) = tokio::sync::oneshot::channel();
        supervisor.spawn(Gauge::without_inbox("slow"), async move {
            held.await?;
            Ok(())
        });
        let states = || supervisor.views().into_iter().map(|view| view.state).collect::<Vec<_>>();
        assert_eq!(states(), ["running"]);
        supervisor.stop().cancel();
        assert_eq!(states(), ["stopping"]);
        let_go.send(()).unwrap();
        supervisor.ended().await;
        supervisor.outcome().unwrap();
        assert_eq!(states(), ["stopped"]);
    }

    #[tokio::test]
    async fn one_module_that_panics_stops_all_and_is_named() {
        let supervisor = Supervisor::new(CancellationToken::new(), History::default());
        let stop = supervisor.stop().clone();
        supervisor.spawn(Gauge::without_inbox("steady"), async move {
            stop.cancelled().await;
            Ok(())
        });
        supervisor.spawn(Gauge::without_inbox("shaky"), async { panic!("of a bug") });
        tokio::time::timeout(std::time::Duration::from_secs(5), supervisor.ended()).await.unwrap();
        let error = supervisor.outcome().unwrap_err();
        assert!(error.to_string().contains("shaky"), "{error}");
        let states: Vec<_> = supervisor.views().into_iter().map(|view| view.state).collect();
        assert_eq!(states, ["stopped", "failed"]);
    }
}
