//! What the screen knows.

use swarm_protocol::api::{JobView, ModuleView, WorkerView};
use swarm_protocol::{JobId, Timestamp};

/// Seconds between two looks at the core.
pub(crate) const REFRESH_S: i64 = 2;
/// Seconds without news after which what is shown is called stale.
pub(crate) const STALE_S: i64 = 6;

/// A screen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Tab {
    #[default]
    Jobs,
    Workers,
    Modules,
}

impl Tab {
    pub(crate) const ALL: [Self; 3] = [Self::Jobs, Self::Workers, Self::Modules];

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Jobs => "Jobs",
            Self::Workers => "Workers",
            Self::Modules => "Modules",
        }
    }
}

/// A list from the core and when it came.
#[derive(Debug)]
pub(crate) struct List<T> {
    pub(crate) items: Vec<T>,
    pub(crate) selected: usize,
    /// When the last good answer came.
    pub(crate) fresh_at: Option<Timestamp>,
    /// When it was last asked for.
    pub(crate) asked_at: Option<Timestamp>,
    /// A question is on its way.
    pub(crate) asking: bool,
    /// Why the last question got no answer.
    pub(crate) error: Option<String>,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { items: Vec::new(), selected: 0, fresh_at: None, asked_at: None, asking: false, error: None }
    }
}

impl<T> List<T> {
    pub(crate) fn current(&self) -> Option<&T> {
        self.items.get(self.selected)
    }

    /// Whether it is time to ask again; if so, the question counts as asked.
    pub(crate) fn ask(&mut self, now: Timestamp) -> bool {
        let due = !self.asking && self.asked_at.is_none_or(|at| (now - at).num_seconds() >= REFRESH_S);
        if due {
            (self.asking, self.asked_at) = (true, Some(now));
        }
        due
    }

    /// How long nothing new came, when that is too long; `None` before the first answer.
    pub(crate) fn stale_s(&self, now: Timestamp) -> Option<i64> {
        let silent = (now - self.fresh_at?).num_seconds();
        (silent >= STALE_S).then_some(silent)
    }

    /// Takes an answer in; the selection stays on the same entry where that is still there.
    pub(crate) fn take<K: PartialEq>(&mut self, answer: Result<Vec<T>, String>, now: Timestamp, key: impl Fn(&T) -> K) {
        self.asking = false;
        match answer {
            Ok(items) => {
                let before = self.current().map(&key);
                let same = before.and_then(|before| items.iter().position(|item| key(item) == before));
                self.selected = same.unwrap_or(self.selected).min(items.len().saturating_sub(1));
                self.items = items;
                self.fresh_at = Some(now);
                self.error = None;
            }
            Err(error) => self.error = Some(error),
        }
    }

    pub(crate) fn step(&mut self, by: isize) {
        let last = self.items.len().saturating_sub(1);
        self.selected = self.selected.saturating_add_signed(by).min(last);
    }
}

/// Everything that is shown.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) url: String,
    pub(crate) now: Timestamp,
    pub(crate) tab: Tab,
    pub(crate) jobs: List<JobView>,
    pub(crate) workers: List<WorkerView>,
    pub(crate) modules: List<ModuleView>,
    /// The job whose cancelling waits for a yes.
    pub(crate) confirm: Option<JobId>,
    pub(crate) help: bool,
    /// What the last action came to.
    pub(crate) note: Option<String>,
}

impl Model {
    pub(crate) fn new(url: &str, now: Timestamp) -> Self {
        Self {
            url: url.to_owned(),
            now,
            tab: Tab::default(),
            jobs: List::default(),
            workers: List::default(),
            modules: List::default(),
            confirm: None,
            help: false,
            note: None,
        }
    }
}
