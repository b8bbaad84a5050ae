//! What the demo's containers run: this same executable, in a mode of its own. Plain standard library, so that it works
//! in a container that holds nothing but the executable and its libraries.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// Count the words of a text and write a table, the most frequent first
    CountWords {
        /// The text
        input: PathBuf,
        /// The table
        output: PathBuf,
    },
    /// Print a few lines and fail
    Fail {
        /// The exit code
        #[arg(default_value_t = 3)]
        code: u8,
    },
}

pub(crate) fn main(options: Options) -> ExitCode {
    let done = match options.work {
        Work::CountWords { input, output } => count_words(&input, &output),
        Work::Fail { code } => return fail(code),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn count_words(input: &std::path::Path, output: &std::path::Path) -> std::io::Result<()> {
    let text = std::fs::read_to_string(input)?;
    let mut counts = BTreeMap::<String, usize>::new();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        *counts.entry(word.to_lowercase()).or_default() += 1;
    }
    let mut table: Vec<_> = counts.into_iter().collect();
    table.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let lines: String = table.iter().map(|(word, count)| format!("{count:>6}  {word}\n")).collect();
    std::fs::write(output, lines)?;
    writeln!(std::io::stdout(), "{} words, {} different", table.iter().map(|(_, n)| n).sum::<usize>(), table.len())
}

fn fail(code: u8) -> ExitCode {
    let _ = writeln!(std::io::stdout(), "reading the configuration");
    let _ = writeln!(std::io::stderr(), "error: no such table: customers");
    ExitCode::from(code)
}
