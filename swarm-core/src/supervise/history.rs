//! What a module's earlier starts in this process leave to tell, for its status.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// The core's starts in this process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Past>>);

#[derive(Debug, Default)]
struct Past {
    restarts: u64,
    failed: HashMap<&'static str, (u64, String)>,
}

/// Of one module.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Earlier {
    pub(super) restarts: u64,
    pub(super) failures: u64,
    pub(super) last_failure: Option<String>,
}

impl History {
    fn past(&self) -> MutexGuard<'_, Past> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Counts a start after the first one: every module is rebuilt then, whichever failed.
    pub fn restarted(&self) {
        self.past().restarts += 1;
    }

    pub(super) fn failed(&self, module: &'static str, reason: String) {
        let mut past = self.past();
        let (failures, last) = past.failed.entry(module).or_default();
        *failures += 1;
        *last = reason;
    }

    pub(super) fn of(&self, module: &str) -> Earlier {
        let past = self.past();
        let failed = past.failed.get(module);
        Earlier {
            restarts: past.restarts,
            failures: failed.map_or(0, |(failures, _)| *failures),
            last_failure: failed.map(|(_, last)| last.clone()),
        }
    }
}
