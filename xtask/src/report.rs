//! The table at the end, the last line, and the report of the full tier.

use std::fmt::{self, Display, Write as _};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::stage::{Stage, Tier};
use crate::tally::Tally;

/// Prints one line. A closed pipe must not keep the run from cleaning up, so that error is not looked at.
pub(crate) fn say(line: impl Display) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// What became of one stage.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// Which.
    pub(crate) stage: Stage,
    /// What it may take.
    pub(crate) budget: Duration,
    /// What it took.
    pub(crate) took: Duration,
    /// Tests counted; a stage without tests counts as one.
    pub(crate) tally: Tally,
    /// What went wrong beside single tests.
    pub(crate) problems: Vec<String>,
}

impl Outcome {
    /// Whether nothing failed.
    pub(crate) fn passed(&self) -> bool {
        self.tally.failed == 0 && self.problems.is_empty()
    }
}

fn minutes(time: Duration) -> String {
    format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}

/// Passed and failed, over all stages.
pub(crate) fn totals(outcomes: &[Outcome]) -> (u64, u64) {
    outcomes
        .iter()
        .fold((0, 0), |(passed, failed), outcome| (passed + outcome.tally.passed, failed + outcome.tally.failed))
}

/// The table, what failed, and as last line `N passed, N failed`.
pub(crate) fn summary(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_summary(&mut text, outcomes);
    text
}

fn write_summary(text: &mut String, outcomes: &[Outcome]) -> fmt::Result {
    writeln!(text, "{:<10}{:>8}{:>8}{:>9}{:>9}", "stage", "budget", "took", "passed", "failed")?;
    for Outcome { stage, budget, took, tally, .. } in outcomes {
        let (stage, budget, took) = (stage.as_str(), minutes(*budget), minutes(*took));
        writeln!(text, "{stage:<10}{budget:>8}{took:>8}{:>9}{:>9}", tally.passed, tally.failed)?;
    }
    let sum = |pick: fn(&Outcome) -> Duration| minutes(outcomes.iter().map(pick).sum());
    let (passed, failed) = totals(outcomes);
    let (budget, took) = (sum(|outcome| outcome.budget), sum(|outcome| outcome.took));
    writeln!(text, "{:<10}{budget:>8}{took:>8}{passed:>9}{failed:>9}", "sum")?;
    for table in outcomes.iter().filter_map(|outcome| outcome.tally.matrix.table()) {
        writeln!(text, "\n{table}\n")?;
    }
    for outcome in outcomes {
        let stage = outcome.stage.as_str();
        for what in outcome.problems.iter().chain(&outcome.tally.failures) {
            writeln!(text, "FAILED {stage}: {what}")?;
        }
    }
    writeln!(text, "{passed} passed, {failed} failed")
}

/// Writes what closing notes quote: the tests' own result lines and the table.
pub(crate) fn write_full(path: &Path, outcomes: &[Outcome]) -> Result<()> {
    let mut text = String::from("# Full test run\n");
    for outcome in outcomes.iter().filter(|outcome| !outcome.tally.reports.is_empty()) {
        let _ = write!(text, "\n## {}\n\n", outcome.stage.as_str());
        for report in &outcome.tally.reports {
            let _ = writeln!(text, "- {report}");
        }
    }
    let _ = write!(text, "\n## Stages\n\n```text\n{}```\n", summary(outcomes));
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// What is about to be run, and how long it may take.
pub(crate) fn plan(stages: &[Stage], tier: Tier) -> String {
    let sum: Duration = stages.iter().map(|stage| stage.budget(tier)).sum();
    let list: Vec<String> =
        stages.iter().map(|stage| format!("{} {}", stage.as_str(), minutes(stage.budget(tier)))).collect();
    format!("{} tier, at most {} (min:s): {}", tier.as_str(), minutes(sum), list.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_sum() {
        let outcome = |stage: Stage, passed, failed: u64| Outcome {
            stage,
            budget: stage.budget(Tier::Quick),
            took: Duration::from_secs(61),
            tally: Tally { passed, failed, ..Tally::default() },
            problems: (0..failed).map(|n| format!("no {n}")).collect(),
        };
        let text = summary(&[outcome(Stage::Fmt, 1, 0), outcome(Stage::Unit, 41, 1)]);
        assert_eq!(text.lines().last(), Some("42 passed, 1 failed"));
        assert!(text.contains("FAILED unit: no 0\n"), "{text}");
        assert!(text.contains("1:01"), "{text}");
    }
}
