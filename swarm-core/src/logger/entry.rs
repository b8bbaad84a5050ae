//! One log entry, safe to show: sizes are bounded and no character can steer a terminal or forge a line.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use swarm_protocol::text::is_hostile;

/// The longest message kept, in bytes after escaping.
pub(super) const MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// The longest field value kept, in bytes after escaping.
pub(super) const VALUE_BYTES_MAX: usize = 4 * 1024;
/// The most fields kept per entry.
pub(super) const FIELDS_MAX: usize = 64;

/// How much an entry matters. The order is the order of filtering; `Audit` is above all filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Every step.
    Trace,
    /// For whoever looks for a fault.
    Debug,
    /// The normal course of things.
    Info,
    /// Worth a glance, yet no warning.
    Notice,
    /// Something is not as it should be.
    Warn,
    /// Something failed.
    Error,
    /// Who did what.
    Audit,
}

impl Level {
    /// The level's name in lower case, as used in filters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Notice => "notice",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Audit => "audit",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Level {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let all = [Self::Trace, Self::Debug, Self::Info, Self::Notice, Self::Warn, Self::Error, Self::Audit];
        all.into_iter().find(|level| level.name().eq_ignore_ascii_case(text)).ok_or(())
    }
}

impl From<tracing::Level> for Level {
    fn from(level: tracing::Level) -> Self {
        match level {
            tracing::Level::TRACE => Self::Trace,
            tracing::Level::DEBUG => Self::Debug,
            tracing::Level::INFO => Self::Info,
            tracing::Level::WARN => Self::Warn,
            tracing::Level::ERROR => Self::Error,
        }
    }
}

/// One log entry. All text in it is escaped and bounded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Counts the entries of this process from 1, without gaps.
    pub seq: u64,
    /// Wall-clock time.
    pub at: DateTime<Utc>,
    /// How much it matters.
    pub level: Level,
    /// The module's name: the last part of the target, or the `swarm.tag` field.
    pub tag: String,
    /// The full module path.
    pub target: String,
    /// The sentence.
    pub message: String,
    /// The fields of the event and of the spans around it; the innermost wins.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, serde_json::Value>,
}

impl Entry {
    /// An entry the logger itself adds, outside the ring.
    pub(super) fn own(level: Level, message: String) -> Self {
        Self {
            seq: 0,
            at: Utc::now(),
            level,
            tag: "logger".to_owned(),
            target: module_path!().to_owned(),
            message,
            fields: BTreeMap::new(),
        }
    }
}

/// Collects text into a string that holds at most `limit` bytes and no character that acts instead of showing.
pub(super) struct SafeText {
    text: String,
    limit: usize,
    cut_bytes: usize,
}

impl SafeText {
    pub(super) const fn new(limit: usize) -> Self {
        Self { text: String::new(), limit, cut_bytes: 0 }
    }

    /// `value` as safe text.
    pub(super) fn of(limit: usize, value: &dyn fmt::Debug) -> String {
        let mut safe = Self::new(limit);
        // A failing Debug impl leaves what it wrote so far, which is the best there is.
        let _ = write!(safe, "{value:?}");
        safe.finish()
    }

    /// `text` as safe text.
    pub(super) fn of_str(limit: usize, text: &str) -> String {
        Self::of(limit, &format_args!("{text}"))
    }

    fn finish(mut self) -> String {
        if self.cut_bytes > 0 {
            let _ = write!(self.text, "… ({} bytes cut)", self.cut_bytes);
        }
        self.text
    }

    fn push(&mut self, piece: &str, source: char) {
        if self.cut_bytes > 0 || self.text.len() + piece.len() > self.limit {
            self.cut_bytes += source.len_utf8();
        } else {
            self.text.push_str(piece);
        }
    }
}

impl fmt::Write for SafeText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut buffer = [0u8; 4];
        for c in text.chars() {
            if is_hostile(c) {
                let escaped = c.escape_default().to_string();
                self.push(&escaped, c);
            } else {
                self.push(c.encode_utf8(&mut buffer), c);
            }
        }
        Ok(())
    }
}
