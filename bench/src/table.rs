//! Figures of several rounds: median, least and most, and the median of the ratios to the first series of the table.

/// One figure, measured once a round.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    name: &'static str,
    rounds: Vec<f64>,
}

impl Series {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, rounds: Vec::new() }
    }

    pub(crate) fn add(&mut self, figure: f64) {
        self.rounds.push(figure);
    }
}

/// The middle one, or the mean of the two in the middle; 0 of none.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (count, half) if count % 2 == 1 => sorted[half],
        (_, half) => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

/// A Markdown table; ratios are taken within each round.
pub(crate) fn table(title: &str, all: &[Series]) -> String {
    let mut table = format!("| {title} | median | least | most | ratio |\n|---|---|---|---|---|\n");
    let base = all.first().map_or(&[][..], |base| &base.rounds);
    for series in all {
        let ratios: Vec<f64> = series.rounds.iter().zip(base).map(|(one, base)| one / base).collect();
        let least = series.rounds.iter().copied().fold(f64::INFINITY, f64::min);
        let most = series.rounds.iter().copied().fold(0.0, f64::max);
        let (name, middle, ratio) = (series.name, median(&series.rounds), median(&ratios));
        table += &format!("| {name} | {middle:.1} | {least:.1} | {most:.1} | {ratio:.2} |\n");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).abs() < f64::EPSILON);
    }

    #[test]
    fn ratios_are_those_within_a_round() {
        let series = |name, rounds: &[f64]| Series { name, rounds: rounds.to_vec() };
        let table = table("jobs", &[series("base", &[10.0, 1.0, 4.0]), series("other", &[5.0, 2.0, 4.0])]);
        assert!(table.ends_with("| base | 4.0 | 1.0 | 10.0 | 1.00 |\n| other | 4.0 | 2.0 | 5.0 | 1.00 |\n"), "{table}");
    }
}
