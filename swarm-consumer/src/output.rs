//! Three ways to show the same answer: for people, as JSON, or as bare ids.

use std::io::{self, IsTerminal as _, Write};

use serde_json::Value;
use swarm_protocol::text::sanitise;

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
/// Ids, and whether they go to a terminal: then nothing in them may act on it, elsewhere they stay exact.
struct Quiet<W>(W, bool);

impl<W: Write + Send> Output for Human<W> {
    fn print(&mut self, report: &dyn Report) -> io::Result<()> {
        self.0.write_all(report.human().as_bytes())?;
        self.0.flush()
    }
}

impl<W: Write + Send> Output for Json<W> {
    fn print(&mut self, report: &dyn Report) -> io::Result<()> {
        writeln!(self.0, "{}", json_text(&report.json()))?;
        self.0.flush()
    }
}

impl<W: Write + Send> Output for Quiet<W> {
    fn print(&mut self, report: &dyn Report) -> io::Result<()> {
        for id in report.ids() {
            let id = if self.1 { sanitise(&id, false) } else { id };
            writeln!(self.0, "{id}")?;
        }
        self.0.flush()
    }
}

/// A JSON value as text that no terminal obeys: JSON itself lets C1 controls and bidirectional overrides through.
pub(crate) fn json_text(value: &Value) -> String {
    swarm_protocol::text::escape_json(&value.to_string())
}

/// The printer for a format; `is_terminal` says what `to` is.
pub(crate) fn printer(format: Format, to: impl Write + Send + 'static, is_terminal: bool) -> Box<dyn Output> {
    match format {
        Format::Human => Box::new(Human(to)),
        Format::Json => Box::new(Json(to)),
        Format::Quiet => Box::new(Quiet(to, is_terminal)),
    }
}

/// Prints one report to standard output.
pub(crate) fn show(format: Format, report: &dyn Report) -> Done<()> {
    let stdout = io::stdout();
    let is_terminal = stdout.is_terminal();
    printer(format, stdout, is_terminal).print(report).map_err(|error| stdout_failed(&error))
}

/// Prints a text to standard output as it is.
pub(crate) fn print(text: &str) -> Done<()> {
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| stdout_failed(&error))
}

/// A sentence for people, on standard error.
pub(crate) fn note(text: &str) {
    // Standard error is the last resort; when it is closed there is nobody to tell.
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Hostile;

    impl Report for Hostile {
        fn human(&self) -> String {
            String::new()
        }

        fn json(&self) -> Value {
            Value::from("\u{9b}31m\u{202e}\u{1b}\u{7f}é")
        }

        fn ids(&self) -> Vec<String> {
            vec!["/out/\u{1b}]52;c;eA==\u{7}".to_owned()]
        }
    }

    fn printed(format: Format, is_terminal: bool) -> String {
        let paper = Paper::default();
        printer(format, paper.clone(), is_terminal).print(&Hostile).unwrap();
        let bytes = paper.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn ids_are_harmless_on_a_terminal_and_exact_elsewhere() {
        assert_eq!(printed(Format::Quiet, true), "/out/\\u{1b}]52;c;eA==\\u{7}\n");
        assert_eq!(printed(Format::Quiet, false), "/out/\u{1b}]52;c;eA==\u{7}\n");
    }

    #[test]
    fn json_is_harmless_and_means_the_same() {
        let text = printed(Format::Json, false);
        assert!(!text.trim_end().chars().any(swarm_protocol::text::is_hostile), "{text:?}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), Hostile.json());
    }
}
