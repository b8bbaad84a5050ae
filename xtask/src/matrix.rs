//! The fault matrix of the whole-swarm tests: which test shows which cell, and what each of them counted. The tests print
//! both, on lines that begin with `MATRIX ` (`columns|PLACE|…`, then `FAULT|PLACE|TEST`) and `SHOWN `
//! (`TEST|ROUNDS|OK|FAILED|UNKNOWN`).

use std::collections::BTreeMap;

/// What was printed about it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Matrix {
    places: Vec<String>,
    /// Each fault, in the order of the tests' table, with the tests of each place.
    rows: Vec<(String, BTreeMap<String, Vec<String>>)>,
    shown: BTreeMap<String, Counts>,
}

/// Faults injected, and how operations ended as their callers saw it; violations fail their test and so show nothing.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    rounds: u64,
    ok: u64,
    failed: u64,
    unknown: u64,
}

impl Counts {
    fn add(self, other: Self) -> Self {
        Self {
            rounds: self.rounds + other.rounds,
            ok: self.ok + other.ok,
            failed: self.failed + other.failed,
            unknown: self.unknown + other.unknown,
        }
    }
}

impl Matrix {
    /// Takes in one line of a test's output; all others are passed over.
    pub(crate) fn read(&mut self, line: &str) {
        if let Some(cell) = line.strip_prefix("MATRIX ") {
            match cell.split('|').collect::<Vec<_>>()[..] {
                ["columns", ref places @ ..] => self.places = places.iter().map(|&place| place.to_owned()).collect(),
                [fault, place, test] => self.expect(fault, place, test),
                _ => {}
            }
        } else if let Some(shown) = line.strip_prefix("SHOWN ")
            && let [test, rounds, ok, failed, unknown] = shown.split('|').collect::<Vec<_>>()[..]
            && let (Ok(rounds), Ok(ok), Ok(failed), Ok(unknown)) =
                (rounds.parse(), ok.parse(), failed.parse(), unknown.parse())
        {
            let counts = self.shown.entry(test.to_owned()).or_default();
            *counts = counts.add(Counts { rounds, ok, failed, unknown });
        }
    }

    fn expect(&mut self, fault: &str, place: &str, test: &str) {
        if self.rows.last().is_none_or(|(last, _)| last != fault) {
            self.rows.push((fault.to_owned(), BTreeMap::new()));
        }
        let (_, cells) = self.rows.last_mut().expect("there is one now");
        cells.entry(place.to_owned()).or_default().push(test.to_owned());
    }

    /// Adds what another command printed.
    pub(crate) fn add(&mut self, other: Self) {
        if self.rows.is_empty() {
            (self.places, self.rows) = (other.places, other.rows);
        }
        for (test, counts) in other.shown {
            let sum = self.shown.entry(test).or_default();
            *sum = sum.add(counts);
        }
    }

    /// Leaves out all tests but those with one of these parts in their names, and what is empty then.
    pub(crate) fn keep(&mut self, parts: &[&str]) {
        for (_, cells) in &mut self.rows {
            for tests in cells.values_mut() {
                tests.retain(|test| parts.iter().any(|part| test.contains(part)));
            }
            cells.retain(|_, tests| !tests.is_empty());
        }
        self.rows.retain(|(_, cells)| !cells.is_empty());
    }

    /// Cells that a test did not report on, or in which it injected no fault: that one shows nothing.
    pub(crate) fn missing(&self) -> Vec<String> {
        let of_row = |(fault, cells): &(String, BTreeMap<String, Vec<String>>)| {
            let named = cells.iter().flat_map(|(place, tests)| tests.iter().map(move |test| (place, test)));
            let missing = named.filter_map(|(place, test)| {
                let what = match self.shown.get(test).map(|counts| counts.rounds) {
                    None => "MISSING",
                    Some(0) => "NO FAULT",
                    Some(_) => return None,
                };
                Some(format!("{what}: {fault} / {place}: {test}"))
            });
            missing.collect::<Vec<_>>()
        };
        self.rows.iter().flat_map(of_row).collect()
    }

    /// Faults by places; empty without any. A cell is `rounds: ok/failed/unknown`, summed over its tests.
    pub(crate) fn table(&self) -> Option<String> {
        if self.rows.is_empty() {
            return None;
        }
        let head = ["faults: ok/failed/unknown".to_owned()].into_iter().chain(self.places.iter().cloned());
        let rows = self.rows.iter().map(|(fault, cells)| {
            let cell = |place| cells.get(place).map_or_else(|| "-".to_owned(), |tests| self.cell(tests));
            [fault.clone()].into_iter().chain(self.places.iter().map(cell)).collect::<Vec<_>>()
        });
        let lines: Vec<Vec<String>> = [head.collect()].into_iter().chain(rows).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..=self.places.len()).map(width).collect();
        let padded = |line: &Vec<String>| {
            let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        Some(lines.iter().map(padded).collect::<Vec<_>>().join("\n"))
    }

    fn cell(&self, tests: &[String]) -> String {
        let shown: Option<Vec<Counts>> = tests.iter().map(|test| self.shown.get(test).copied()).collect();
        let Some(shown) = shown else { return "MISSING".to_owned() };
        let Counts { rounds, ok, failed, unknown } = shown.into_iter().fold(Counts::default(), Counts::add);
        format!("{rounds}: {ok}/{failed}/{unknown}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(lines: &str) -> Matrix {
        let mut matrix = Matrix::default();
        lines.lines().for_each(|line| matrix.read(line));
        matrix
    }

    const CELLS: &str = "MATRIX columns|core|worker\nMATRIX kill -9|core|a\nMATRIX kill -9|core|b\n\
                         MATRIX kill -9|worker|c\nMATRIX full disk|worker|d\nno MATRIX x|core|e\n";

    #[test]
    fn cells_are_summed_over_their_tests() {
        let matrix = matrix(&format!(
            "{CELLS}SHOWN a|1|10|0|2\nSHOWN a|2|1|1|0\nSHOWN b|3|5|0|0\nSHOWN c|1|1|0|0\nSHOWN d|50|9|8|7\n"
        ));
        assert_eq!(matrix.missing(), Vec::<String>::new());
        let expected = "faults: ok/failed/unknown  core       worker\n\
                        kill -9                    6: 16/1/2  1: 1/0/0\n\
                        full disk                  -          50: 9/8/7";
        assert_eq!(matrix.table().as_deref(), Some(expected));
    }

    #[test]
    fn a_part_of_the_tests_has_a_part_of_the_table() {
        let mut matrix = matrix(&format!("{CELLS}SHOWN b|3|5|0|0\n"));
        matrix.keep(&["b", "x"]);
        assert_eq!(matrix.missing(), Vec::<String>::new());
        let expected = "faults: ok/failed/unknown  core      worker\n\
                        kill -9                    3: 5/0/0  -";
        assert_eq!(matrix.table().as_deref(), Some(expected));
        matrix.keep(&["nothing"]);
        assert_eq!(matrix.table(), None);
    }

    #[test]
    fn a_test_that_injected_no_fault_shows_nothing() {
        let whole = format!("{CELLS}SHOWN a|1|1|0|0\nSHOWN b|0|9|0|0\nSHOWN c|1|1|0|0\nSHOWN d|1|1|0|0\n");
        assert_eq!(matrix(&whole).missing(), ["NO FAULT: kill -9 / core: b"]);
    }

    #[test]
    fn a_cell_without_a_report_is_missing() {
        let mut sum = Matrix::default();
        assert_eq!(sum.table(), None);
        sum.add(matrix(&format!("{CELLS}SHOWN a|1|1|0|0\nSHOWN c|1|1|0|0\nSHOWN d|x|1|0|0\n")));
        assert_eq!(sum.missing(), ["MISSING: kill -9 / core: b", "MISSING: full disk / worker: d"]);
        assert!(sum.table().is_some_and(|table| table.matches("MISSING").count() == 2));
    }
}
