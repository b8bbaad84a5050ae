//! What came out, as data and as a table.

use std::fmt;

/// The invariants, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// Acknowledged submits are durable.
    I1 = 1,
    /// Each task ends in exactly one final record.
    I2,
    /// Only the current attempt writes it.
    I3,
    /// At most one live container per task.
    I4,
    /// No state goes backwards.
    I5,
    /// One launch per schedule and instant.
    I6,
    /// "May have run" is visible and at-most-once holds.
    I7,
    /// Every container has a live attempt.
    I8,
    /// Logs are complete or marked cut.
    I9,
    /// The cache can be wiped.
    I10,
    /// Durations are monotonic.
    I11,
    /// What is not listed is denied.
    I12,
}

impl Invariant {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::I1,
        Self::I2,
        Self::I3,
        Self::I4,
        Self::I5,
        Self::I6,
        Self::I7,
        Self::I8,
        Self::I9,
        Self::I10,
        Self::I11,
        Self::I12,
    ];

    /// What it promises, in a few words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::I1 => "acknowledged submits are stored",
            Self::I2 => "one final record per task, counts agree",
            Self::I3 => "the final record is the current attempt's",
            Self::I4 => "one live container per task",
            Self::I5 => "no state goes backwards",
            Self::I6 => "one launch per schedule and instant",
            Self::I7 => "\"may have run\" is visible and respected",
            Self::I8 => "every container has a live attempt",
            Self::I9 => "logs complete, or cut with a count",
            Self::I10 => "the cache can be wiped",
            Self::I11 => "durations are monotonic",
            Self::I12 => "what is not listed is denied",
        }
    }
}

/// What was found about one invariant.
#[derive(Debug, Clone, Default)]
pub struct Finding {
    /// Cases that could be judged.
    pub checked: u64,
    /// Cases that broke it, each with its ids.
    pub violations: Vec<String>,
    /// Cases that could not be judged.
    pub unknown: u64,
    /// Cases that a stated exception covers.
    pub excepted: u64,
}

impl Finding {
    /// Counts a case and keeps what is wrong with it unless it holds.
    pub(crate) fn expect(&mut self, holds: bool, violation: impl FnOnce() -> String) {
        self.checked += 1;
        if !holds {
            self.violations.push(violation());
        }
    }
}

/// What was found about all of them.
#[derive(Debug, Clone, Default)]
pub struct Report([Finding; 12]);

impl Report {
    /// About one.
    #[must_use]
    pub fn of(&self, invariant: Invariant) -> &Finding {
        &self.0[invariant as usize - 1]
    }

    pub(crate) fn at(&mut self, invariant: Invariant) -> &mut Finding {
        &mut self.0[invariant as usize - 1]
    }

    /// Whether nothing was broken. Unknowns do not make it false; they are for the reader to judge.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.violations() == 0
    }

    /// How many violations there are.
    #[must_use]
    pub fn violations(&self) -> usize {
        self.0.iter().map(|finding| finding.violations.len()).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<4} {:<42} {:>8} {:>9} {:>8} {:>8}",
            "", "invariant", "checked", "violated", "excepted", "unknown"
        )?;
        for invariant in Invariant::ALL {
            let finding = self.of(invariant);
            let name = format!("{invariant:?}");
            let Finding { checked, violations, unknown, excepted } = finding;
            if *checked == 0 && *unknown == 0 && *excepted == 0 {
                writeln!(f, "{name:<4} {:<42} not exercised", invariant.words())?;
                continue;
            }
            let violated = violations.len();
            writeln!(f, "{name:<4} {:<42} {checked:>8} {violated:>9} {excepted:>8} {unknown:>8}", invariant.words())?;
        }
        for invariant in Invariant::ALL {
            for violation in &self.of(invariant).violations {
                writeln!(f, "{invariant:?} VIOLATED: {violation}")?;
            }
        }
        Ok(())
    }
}
