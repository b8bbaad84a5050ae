//! Counts tests by reading what cargo and the test harness print.

use crate::matrix::Matrix;

/// What a stage's output said.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
    /// Names of tests that failed, as the harness prints them.
    pub(crate) failures: Vec<String>,
    /// What followed `REPORT ` at the beginning of lines.
    pub(crate) reports: Vec<String>,
    /// What tests said of the fault matrix.
    pub(crate) matrix: Matrix,
}

/// Names kept; more are counted only.
const FAILURES_MAX: usize = 100;

impl Tally {
    /// Adds what another command printed.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.reports.extend(other.reports);
        self.matrix.add(other.matrix);
    }

    /// Reads one line of output.
    pub(crate) fn read(&mut self, line: &str) {
        let line = plain(line);
        let line = line.trim();
        self.matrix.read(line);
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
        } else if let Some(report) = line.strip_prefix("REPORT ") {
            self.reports.push(report.to_owned());
        } else if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
            && self.failures.len() < FAILURES_MAX
        {
            self.failures.push(name.to_owned());
        }
    }
}

/// The number before `word` in text such as `ok. 3 passed; 0 failed; finished in 0.10s`; 0 without one.
fn count(text: &str, word: &str) -> u64 {
    let words: Vec<&str> = text.split([' ', ';']).filter(|word| !word.is_empty()).collect();
    let number = words.windows(2).find(|pair| pair[1] == word).map(|pair| pair[0].parse());
    number.and_then(Result::ok).unwrap_or(0)
}

/// The line without the escape sequences that colour it.
fn plain(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        if char != '\u{1b}' {
            text.push(char);
        } else if chars.next() == Some('[') {
            chars.by_ref().find(|end| ('@'..='~').contains(end));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &str) -> Tally {
        let mut tally = Tally::default();
        lines.lines().for_each(|line| tally.read(line));
        tally
    }

    #[test]
    fn results_of_several_harnesses_are_added() {
        let sum = tally(
            "running 3 tests\ntest a::b ... ok\ntest c ... FAILED\n\
             test result: FAILED. 2 passed; 1 failed; 4 ignored; 0 measured; 0 filtered out; finished in 0.10s\n\
             test result: ok. 10 passed; 0 failed; 0 ignored; 0 measured; 5 filtered out; finished in 2.00s\n",
        );
        assert_eq!((sum.passed, sum.failed), (12, 1));
        assert_eq!(sum.failures, ["c"]);
    }

    #[test]
    fn colour_does_not_hide_a_result() {
        let sum = tally("test result: \u{1b}[31mFAILED\u{1b}[0m. 7 passed; 2 failed; 0 ignored\n");
        assert_eq!((sum.passed, sum.failed), (7, 2));
    }

    #[test]
    fn reports_are_kept_and_other_lines_are_not() {
        let sum = tally("REPORT kill -9 | 50 runs | 0 lost\nREPORTED\nno REPORT here\ntest result: nonsense\n");
        assert_eq!(sum, Tally { reports: vec!["kill -9 | 50 runs | 0 lost".into()], ..Tally::default() });
    }
}
