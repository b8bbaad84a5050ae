//! What gets into the log: directives such as `scheduler=debug,rocket=warn,info`.

use std::fmt;
use std::str::FromStr;

use super::entry::{Entry, Level};

/// The most directives one filter may have: each event is compared with all of them.
const DIRECTIVES_MAX: usize = 64;

/// Why a text is not a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("log filter part {part:?}: {problem}; write for example scheduler=debug,info")]
pub struct FilterError {
    /// The part that is wrong.
    pub part: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// A lower bound on the level, per tag. Without a directive that fits, `info` is the bound; `off` lets only audit through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    default: Bound,
    directives: Vec<(String, Bound)>,
}

/// The least level let through; `None` is `off`.
type Bound = Option<Level>;

impl Default for Filter {
    fn default() -> Self {
        Self { default: Some(Level::Info), directives: Vec::new() }
    }
}

impl Filter {
    /// A filter that lets everything through.
    #[must_use]
    pub const fn everything() -> Self {
        Self { default: Some(Level::Trace), directives: Vec::new() }
    }

    /// Whether an entry of `level` under `target`, tagged `tag` if it carries a tag of its own, gets in.
    pub(super) fn lets(&self, level: Level, target: &str, tag: Option<&str>) -> bool {
        level == Level::Audit || self.bound(target, tag).is_some_and(|bound| level >= bound)
    }

    /// Whether `entry` gets in.
    #[must_use]
    pub fn lets_entry(&self, entry: &Entry) -> bool {
        self.lets(entry.level, &entry.target, Some(&entry.tag))
    }

    /// The lowest bound anywhere in the filter: nothing below it ever gets in.
    pub(super) fn lowest(&self) -> Bound {
        self.directives.iter().map(|(_, bound)| *bound).chain([self.default]).flatten().min()
    }

    /// The directive that fits most closely decides: one equal to the tag, else the one naming the innermost part of the
    /// target; of equals the last one.
    fn bound(&self, target: &str, tag: Option<&str>) -> Bound {
        let fitting = self.directives.iter().filter_map(|(name, bound)| {
            let closeness = if tag == Some(name) { Some(usize::MAX) } else { innermost_end(target, name) };
            Some((closeness?, *bound))
        });
        // `max_by_key` keeps the last of equals.
        fitting.max_by_key(|(closeness, _)| *closeness).map_or(self.default, |(_, bound)| bound)
    }
}

/// Where in the path `target` the whole-segment run `name` ends last, in bytes.
fn innermost_end(target: &str, name: &str) -> Option<usize> {
    let whole = |start: usize| {
        let end = start + name.len();
        let opens = start == 0 || target[..start].ends_with("::");
        let closes = end == target.len() || target[end..].starts_with("::");
        (opens && closes).then_some(end)
    };
    target.rmatch_indices(name).find_map(|(start, _)| whole(start))
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let refuse = |part: &str, problem| FilterError { part: part.chars().take(80).collect(), problem };
        let mut filter = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let bound = |text: &str| match text.trim().parse() {
                Ok(level) => Ok(Some(level)),
                Err(()) if text.trim().eq_ignore_ascii_case("off") => Ok(None),
                Err(()) => {
                    Err(refuse(part, "the level is not one of trace, debug, info, notice, warn, error, audit, off"))
                }
            };
            match part.split_once('=') {
                None => filter.default = bound(part)?,
                Some((name, level)) => {
                    let name = name.trim();
                    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ':' | '.');
                    if name.is_empty() || name.len() > 128 || !name.chars().all(plain) {
                        return Err(refuse(part, "the tag before = must be a module or tag name"));
                    }
                    if filter.directives.len() == DIRECTIVES_MAX {
                        return Err(refuse(part, "there are more than 64 parts"));
                    }
                    filter.directives.push((name.to_owned(), bound(level)?));
                }
            }
        }
        Ok(filter)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |bound: Bound| bound.map_or("off", Level::name);
        for (tag, bound) in &self.directives {
            write!(f, "{tag}={},", name(*bound))?;
        }
        f.write_str(name(self.default))
    }
}
