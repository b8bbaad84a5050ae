//! What an engine can tell of its containers' lives.

use crate::runtime::Labels;

/// What happened to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Made, not started.
    Create,
    /// Started.
    Start,
    /// Ended.
    Die,
    /// Removed.
    Destroy,
}

/// One event in a container's life.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EngineEvent {
    /// The container's.
    pub name: String,
    /// The container's.
    pub labels: Labels,
    /// What happened.
    pub action: Action,
    /// When, Unix time in microseconds on the engine's clock.
    pub at_us: u64,
}
