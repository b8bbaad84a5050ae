//! The users' command line: submit container jobs, watch them, fetch what they made.
//!
//! Data goes to standard output, everything else to standard error. What the exit codes mean is [`Exit`].

mod cli;
mod commands;
mod exit;
mod failure;
mod flags;
mod logtext;
mod output;
mod session;
#[cfg(test)]
#[path = "../../swarm-client/src/testserver.rs"]
mod testserver;
mod views;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

pub use cli::Cli;
pub use exit::Exit;
pub use session::{Credentials, CredentialsFile};

/// Parses `args`, the program's name first, and does what they say.
pub async fn main<I, T>(args: I) -> ExitCode
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let words: Vec<OsString> = args.into_iter().map(Into::into).collect();
    match Cli::try_parse_from(&words) {
        Ok(cli) => run(cli).await,
        Err(error) => {
            // A closed pipe is the only way this fails, and then nobody reads it.
            let _ = error.print();
            let exit = if error.use_stderr() { misspelt(&words) } else { Exit::Ok };
            exit.into()
        }
    }
}

/// What a command line that cannot be parsed ends with: that depends on the command, as far as there is one.
fn misspelt(words: &[OsString]) -> Exit {
    let parsed = Cli::command().ignore_errors(true).try_get_matches_from(words);
    let passes_code = parsed.is_ok_and(|found| matches!(found.subcommand_name(), Some("run" | "wait")));
    if passes_code { Exit::Usage.of_run() } else { Exit::Usage }
}

/// Does what a parsed command line says.
pub async fn run(cli: Cli) -> ExitCode {
    ExitCode::from(commands::run(cli).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_run_does_not_look_like_a_container_s_code() {
        let exit = |line: &str| {
            let words: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
            assert!(Cli::try_parse_from(&words).is_err(), "{line}");
            misspelt(&words)
        };
        for line in
            ["x run --bogus a", "x run", "x run --cpus many a", "x -q --url u run --bogus", "x wait", "x wait me"]
        {
            assert_eq!(exit(line), Exit::NoCode, "{line}");
        }
        for line in ["x ls --bogus", "x", "x bogus", "x submit --run", "x cancel run"] {
            assert_eq!(exit(line), Exit::Usage, "{line}");
        }
    }
}
