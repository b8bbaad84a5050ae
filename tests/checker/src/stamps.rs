//! What the engine says it did: events and a final listing of the containers that carry the swarm's labels.

use std::collections::BTreeMap;
use std::io::BufRead;

use serde::{Deserialize, Serialize};
use swarm_protocol::{AttemptId, JobId};

use crate::history::{ReadError, read_lines};

/// What happened to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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

/// One event, or with `listed` one row of the final listing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// The container.
    pub container: String,
    /// From its labels.
    pub job: u64,
    /// From its labels.
    pub task: u32,
    /// From its labels.
    pub attempt: u16,
    /// The worker's number, from its labels.
    pub worker: u64,
    /// The engine's time, Unix time in microseconds; of the listing for a listed one.
    pub at_us: i64,
    /// What happened; none in a listing.
    #[serde(default)]
    pub action: Option<Action>,
    /// Set in a listing.
    #[serde(default)]
    pub listed: Option<Listed>,
}

/// A row of the final listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// When it was made, Unix time in microseconds.
    pub created_us: i64,
    /// Whether it runs.
    pub running: bool,
}

impl Stamp {
    /// The attempt it was made for.
    #[must_use]
    pub fn attempt_id(&self) -> AttemptId {
        AttemptId { job: JobId(self.job), task: self.task, attempt: self.attempt }
    }
}

/// All stamps of one test.
#[derive(Debug, Clone, Default)]
pub struct Stamps(pub Vec<Stamp>);

/// One run of a container.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) container: String,
    pub(crate) attempt: AttemptId,
    pub(crate) worker: u64,
    pub(crate) started_us: i64,
    /// `None`: no end was seen.
    pub(crate) ended_us: Option<i64>,
}

impl Stamps {
    /// Every run of every container, in order of the start; one that started twice has two.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let mut events: Vec<_> = self.0.iter().filter_map(|stamp| Some((stamp.at_us, stamp.action?, stamp))).collect();
        events.sort_by_key(|(at, ..)| *at);
        let (mut open, mut spans) = (BTreeMap::<&str, Span>::new(), Vec::new());
        for (at, action, stamp) in events {
            match action {
                Action::Create => {}
                Action::Start => {
                    let span = Span {
                        container: stamp.container.clone(),
                        attempt: stamp.attempt_id(),
                        worker: stamp.worker,
                        started_us: at,
                        ended_us: None,
                    };
                    spans.extend(open.insert(&stamp.container, span));
                }
                Action::Die | Action::Destroy => {
                    if let Some(mut span) = open.remove(stamp.container.as_str()) {
                        span.ended_us = Some(at);
                        spans.push(span);
                    }
                }
            }
        }
        spans.extend(open.into_values());
        spans.sort_by_key(|span| span.started_us);
        spans
    }

    /// The final listing.
    pub(crate) fn listing(&self) -> impl Iterator<Item = (&Stamp, Listed)> {
        self.0.iter().filter_map(|stamp| Some((stamp, stamp.listed?)))
    }
}

/// Reads stamps, one JSON object a line.
///
/// # Errors
/// [`ReadError`] names the line.
pub fn read_stamps(source: impl BufRead) -> Result<Stamps, ReadError> {
    read_lines(source).map(Stamps)
}
