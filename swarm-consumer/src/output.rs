//! Three ways to show the same answer: for people, as JSON, or as bare ids.

use std::io::{self, Write};

use serde_json::Value;

use crate::failure::{Done, stdout_failed};

/// How answers are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Tables and sentences.
    #[default]
    Human,
    /// Exactly one JSON value; JSON lines for logs.
    Json,
    /// Ids only, one a line.
    Quiet,
}

/// What a command has to tell.
pub(crate) trait Report {
    /// For people; ends with a newline unless empty. Words from elsewhere are sanitised here.
    fn human(&self) -> String;
    /// For programs.
    fn json(&self) -> Value;
    /// The ids of what it is about.
    fn ids(&self) -> Vec<String>;
}

/// A printer of reports.
pub(crate) trait Output: Send {
    /// Writes one report.
    fn print(&mut self, report: &dyn Report) -> io::Result<()>;
}

struct Human<W>(W);
struct Json<W>(W);
struct Quiet<W>(W);

impl<W: Write + Send> Output for Human<W> {
    fn print(&mut self, report: &dyn Report) -> io::Result<()> {
        self.0.write_all(report.human().as_bytes())?;
        self.0.flush()
    }
}

impl<W: Write + Send> Output for Json<W> {
    fn print(&mut self, report: &dyn Report) -> io::Result<()> {
        writeln!(self.0, "{}", report.json())?;
        self.0.flush()
    }
}

impl<W: Write + Send> Output for Quiet<W> {
    fn print(&mut self, report: &dyn Report) -> io::Result<()> {
        for id in report.ids() {
            writeln!(self.0, "{id}")?;
        }
        self.0.flush()
    }
}

/// The printer for a format.
pub(crate) fn printer(format: Format, to: impl Write + Send + 'static) -> Box<dyn Output> {
    match format {
        Format::Human => Box::new(Human(to)),
        Format::Json => Box::new(Json(to)),
        Format::Quiet => Box::new(Quiet(to)),
    }
}

/// Prints one report to standard output.
pub(crate) fn show(format: Format, report: &dyn Report) -> Done<()> {
    printer(format, io::stdout()).print(report).map_err(|error| stdout_failed(&error))
}

/// A sentence for people, on standard error.
pub(crate) fn note(text: &str) {
    // Standard error is the last resort; when it is closed there is nobody to tell.
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}
