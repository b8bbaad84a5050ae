//! The shared log every module writes to, through `tracing` and the macros [`audit!`](crate::audit) and
//! [`notice!`](crate::notice).
//!
//! One layer turns events into [`Entry`] values with hostile characters already escaped, and hands each to three places:
//! a bounded ring with live readers, a persistent copy (rotated JSON lines), and stderr for people. The two writers run
//! on threads of their own behind bounded channels; when one cannot keep up, entries are dropped and counted, and the
//! count is written as soon as it can. The logger's mutex covers memory only and is never held over I/O.
//!
//! Filters change while everything runs: `scheduler=debug,info`. An `audit` entry passes every filter.

mod drain;
mod entry;
mod file;
mod filter;
mod layer;
mod ring;
mod terminal;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use swarm_protocol::api::ModuleView;
use tracing::Dispatch;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use entry::{Entry, Level};
pub use filter::{Filter, FilterError};
pub use ring::Subscription;

use crate::supervise::Gauge;
use drain::Drain;
use layer::LogLayer;
use ring::Ring;

#[doc(hidden)]
pub use tracing as __tracing;

/// Records who did what: always kept, whatever the filter. Takes what `tracing::info!` takes after its options.
#[macro_export]
macro_rules! audit {
    ($($event:tt)+) => { $crate::logger::__tracing::info!(swarm.level = "audit", $($event)+) };
}

/// Records something worth an operator's glance that is no warning. Takes what `tracing::info!` takes after its options.
#[macro_export]
macro_rules! notice {
    ($($event:tt)+) => { $crate::logger::__tracing::info!(swarm.level = "notice", $($event)+) };
}

/// How many entries may wait for a writer before further ones are dropped and counted.
const WRITER_QUEUE: usize = 8192;

/// Where the log goes and what gets in.
#[derive(Debug, Clone)]
pub struct LoggerConfig {
    /// The filter to start with, such as `info` or `scheduler=debug,info`.
    pub filter: String,
    /// Entries kept for live readers.
    pub ring_entries: usize,
    /// The persistent copy; `None` keeps none.
    pub file: Option<FileConfig>,
    /// What people see on stderr.
    pub stderr: Stderr,
}

impl Default for LoggerConfig {
    fn default() -> Self {
        Self { filter: "info".to_owned(), ring_entries: 10_000, file: None, stderr: Stderr::All }
    }
}

/// The persistent copy: JSON lines in `<name>.jsonl`, older ones in `<name>.jsonl.1`, `.2`, and so on.
#[derive(Debug, Clone)]
pub struct FileConfig {
    /// The directory; made when missing, readable by its owner only.
    pub dir: PathBuf,
    /// The file's name without its ending, such as `core`.
    pub name: String,
    /// The size at which a file is put aside, in bytes.
    pub file_bytes_max: u64,
    /// How many files are kept in all, at least 1.
    pub files_max: usize,
}

/// What people see on stderr. Colour is used on a terminal only, and not when `NO_COLOR` is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stderr {
    /// Everything the filter lets through.
    All,
    /// Warnings and errors only.
    Quiet,
    /// Nothing, as when a terminal UI owns the screen.
    Off,
}

/// Why the logger could not start.
#[derive(Debug, thiserror::Error)]
pub enum LoggerError {
    /// The filter is not one.
    #[error("log filter refused")]
    Filter(#[from] FilterError),
    /// The directory or file of the persistent copy cannot be written.
    #[error("cannot open the log file {}", path.display())]
    File {
        /// What was to be opened.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A writer thread could not be started.
    #[error("cannot start a log writer thread")]
    Thread(#[source] io::Error),
    /// `init` was called twice, or somebody else installed a subscriber first.
    #[error("a global logger is already installed; call init once, at the start of main")]
    AlreadyInstalled,
}

/// Reads and steers the log; cheap to clone.
#[derive(Clone)]
pub struct LoggerHandle {
    shared: Arc<Shared>,
}

/// What layer and handles share.
pub(crate) struct Shared {
    filter: RwLock<Arc<Filter>>,
    ring: Ring,
    drains: Vec<Drain>,
    /// Entries taken in, and those that wait for the slowest writer.
    gauge: Gauge,
}

impl Shared {
    fn filter(&self) -> Arc<Filter> {
        // A poisoned lock still holds a whole filter: writers only ever swap it.
        self.filter.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes in one entry: the same order in the ring, for readers and for the writers.
    fn accept(&self, entry: Entry) {
        self.ring.push(entry, |entry| self.drains.iter().for_each(|drain| drain.offer(entry)));
        self.gauge.handled();
    }
}

/// Installs the logger for the whole process, including what libraries send through the `log` crate.
///
/// # Errors
/// [`LoggerError`] for a bad filter, a file that cannot be opened, or a second call.
pub fn init(config: &LoggerConfig) -> Result<LoggerHandle, LoggerError> {
    let ((handle, settling), subscriber) = build(config, true)?;
    subscriber.try_init().map_err(|_| LoggerError::AlreadyInstalled)?;
    // While `try_init` ran, the layer claimed to want everything, because the `log` bridge asks only once.
    settling.settle();
    tracing::callsite::rebuild_interest_cache();
    Ok(handle)
}

/// The logger without installing it: for tests, with `tracing::dispatcher::with_default(&dispatch, || …)`.
///
/// # Errors
/// As for [`init`].
pub fn scoped(config: &LoggerConfig) -> Result<(Dispatch, LoggerHandle), LoggerError> {
    let ((handle, _), subscriber) = build(config, false)?;
    Ok((Dispatch::new(subscriber), handle))
}

type Built<S> = ((LoggerHandle, layer::Settling), S);

fn build(
    config: &LoggerConfig,
    settling: bool,
) -> Result<Built<impl tracing::Subscriber + Send + Sync + use<>>, LoggerError> {
    let filter: Filter = config.filter.parse()?;
    let mut drains = Vec::new();
    if let Some(file) = &config.file {
        let sink = file::RotatingFile::open(file)?;
        drains.push(Drain::start("log-file", WRITER_QUEUE, sink).map_err(LoggerError::Thread)?);
    }
    if config.stderr != Stderr::Off {
        let sink = terminal::Terminal::stderr(config.stderr == Stderr::Quiet);
        drains.push(Drain::start("log-stderr", WRITER_QUEUE, sink).map_err(LoggerError::Thread)?);
    }
    let filter = RwLock::new(Arc::new(filter));
    let depths: Vec<_> = drains.iter().map(Drain::depth).collect();
    let gauge = Gauge::with_depth("logger", WRITER_QUEUE as u64, move || {
        depths.iter().map(|depth| depth()).max().unwrap_or_default()
    });
    let shared = Arc::new(Shared { filter, ring: Ring::new(config.ring_entries), drains, gauge });
    let (layer, settling) = LogLayer::new(Arc::clone(&shared), settling);
    Ok(((LoggerHandle { shared }, settling), tracing_subscriber::registry().with(layer)))
}

impl LoggerHandle {
    /// Replaces the filter, at once and for all threads.
    ///
    /// # Errors
    /// [`FilterError`] when `text` is no filter; the former one then stays.
    pub fn set_filter(&self, text: &str) -> Result<(), FilterError> {
        let filter: Filter = text.parse()?;
        *self.shared.filter.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(filter);
        tracing::callsite::rebuild_interest_cache();
        Ok(())
    }

    /// The filter in force, in the notation [`LoggerHandle::set_filter`] takes.
    #[must_use]
    pub fn filter(&self) -> String {
        self.shared.filter().to_string()
    }

    /// The newest `n` entries of the ring that `filter` lets through, oldest first.
    #[must_use]
    pub fn recent(&self, n: usize, filter: &Filter) -> Vec<Arc<Entry>> {
        self.shared.ring.recent(n, filter)
    }

    /// Every entry from now on. A reader that falls behind by more than 1024 entries loses the oldest, and is told how many.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        self.shared.ring.subscribe()
    }

    /// How many entries the writers have dropped since the start because they could not keep up or could not
    /// write; after a failed write this may count entries that did arrive.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.drains.iter().map(Drain::dropped).sum()
    }

    /// Its status among the modules: entries dropped count as errors.
    #[must_use]
    pub fn view(&self) -> ModuleView {
        let dropped = self.dropped();
        let last_error = (dropped > 0).then(|| format!("{dropped} entries were dropped by writers"));
        ModuleView { errors: dropped, last_error, ..self.shared.gauge.view() }
    }

    /// Waits until everything logged so far is written and the file is synced, at most for `limit`; false if it was not
    /// done in time. Blocks: call it at the end of `main`, or from a blocking thread.
    #[must_use]
    pub fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        // No short cut: a stuck terminal must not keep the file from being flushed.
        let done: Vec<bool> = self.shared.drains.iter().map(|drain| drain.flush(deadline)).collect();
        done.into_iter().all(|done| done)
    }
}
