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

use clap::Parser as _;

pub use cli::Cli;
pub use exit::Exit;
pub use session::{Credentials, CredentialsFile};

/// Parses `args`, the program's name first, and does what they say.
pub async fn main<I, T>(args: I) -> ExitCode
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    match Cli::try_parse_from(args) {
        Ok(cli) => run(cli).await,
        Err(error) => {
            // A closed pipe is the only way this fails, and then nobody reads it.
            let _ = error.print();
            if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() }
        }
    }
}

/// Does what a parsed command line says.
pub async fn run(cli: Cli) -> ExitCode {
    ExitCode::from(commands::run(cli).await)
}
