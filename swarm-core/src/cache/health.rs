//! How the cache is, in words.

use std::fmt;

use humantime::format_duration;
use swarm_protocol::api::ModuleView;

/// Notices that are away for less than this are not worth a word: their line is just being made.
pub(super) const NOTICES_MS_MIN: u64 = 3_000;

/// How the cache is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It lies in the process: there is nothing that could be away.
    InProcess,
    /// It lies in Redis.
    Redis {
        /// The line for all but notices.
        commands: Line,
        /// The line on which notices of other cores come.
        notices: Line,
        /// Values found in Redis that make no sense; they were ignored.
        odd: u64,
    },
}

/// One line to Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// It works.
    Up,
    /// It does not.
    Away {
        /// For so many milliseconds.
        for_ms: u64,
        /// Why.
        reason: String,
    },
}

impl Line {
    fn away(&self, at_least_ms: u64) -> Option<String> {
        let Self::Away { for_ms, reason } = self else { return None };
        let whole = std::time::Duration::from_secs(for_ms / 1000);
        (*for_ms >= at_least_ms).then(|| format!("away for {}: {reason}", format_duration(whole)))
    }
}

impl Health {
    /// Whether everything works.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        match self {
            Self::InProcess => true,
            Self::Redis { commands, notices, .. } => *commands == Line::Up && notices.away(NOTICES_MS_MIN).is_none(),
        }
    }

    /// Without durations, reasons and counts: what anybody may know.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::InProcess => "in process",
            Self::Redis { .. } if self.is_whole() => "redis: up",
            Self::Redis { commands: Line::Up, .. } => "redis: up, without notices",
            Self::Redis { .. } => "redis: away",
        }
    }

    /// Puts it into the view of the module.
    pub fn show_in(&self, view: &mut ModuleView) {
        view.detail = Some(self.to_string());
        if view.state == "running" && !self.is_whole() {
            view.state = "degraded".to_owned();
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Redis { commands, notices, odd } = self else { return f.write_str(self.word()) };
        match (commands.away(0), notices.away(NOTICES_MS_MIN)) {
            (Some(away), _) => write!(f, "redis: {away}")?,
            (None, Some(away)) => write!(f, "redis: up; notices {away}")?,
            (None, None) => f.write_str("redis: up")?,
        }
        if *odd > 0 {
            write!(f, "; {odd} senseless values ignored")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away(for_ms: u64) -> Line {
        Line::Away { for_ms, reason: "connection refused".into() }
    }

    #[test]
    fn it_says_what_is_away_for_how_long_and_why() {
        let redis = |commands, notices, odd| Health::Redis { commands, notices, odd };
        for (health, words, word, whole) in [
            (Health::InProcess, "in process", "in process", true),
            (redis(Line::Up, Line::Up, 0), "redis: up", "redis: up", true),
            (redis(Line::Up, away(2_999), 0), "redis: up", "redis: up", true),
            (redis(away(12_345), away(12_345), 0), "redis: away for 12s: connection refused", "redis: away", false),
            (
                redis(Line::Up, away(61_000), 7),
                "redis: up; notices away for 1m 1s: connection refused; 7 senseless values ignored",
                "redis: up, without notices",
                false,
            ),
        ] {
            assert_eq!((health.to_string().as_str(), health.word(), health.is_whole()), (words, word, whole));
        }
    }
}
