//! commanddeck: the swarm on one screen of a terminal.
//!
//! It is a fold. `update` alone writes the model and does no I/O; `view` only reads it; what is to be
//! done comes back as effects, which `app` carries out beside the keyboard, so that input never waits for the core.

mod app;
mod model;
mod update;
mod view;

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use swarm_client::Client;
use swarm_consumer::{CredentialsFile, Exit};

/// Watch and steer a swarm from a terminal.
#[derive(Debug, Parser)]
#[command(
    name = "commanddeck",
    version,
    after_help = "\
Log in first, with `swarm consumer login`; the session is shared.
Keys: 1 2 3 or Tab choose the screen, arrows or j k move, x cancels a job, ? helps, q quits.
NO_COLOR takes the colours away; nothing is told by colour alone."
)]
pub struct Cli {
    /// The core's address [default: that of the last login, else http://127.0.0.1:7077]
    #[arg(long, env = "SWARM_URL", hide_env_values = true, value_name = "URL")]
    url: Option<String>,
}

/// Parses `args`, the program's name first, and shows the screen until it is left.
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

/// Shows the screen until it is left.
pub async fn run(cli: Cli) -> ExitCode {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return fail(Exit::Usage, "commanddeck needs a terminal", "in scripts use `swarm consumer`");
    }
    let client = CredentialsFile::open(cli.url.as_deref()).map_err(|error| error.to_string()).and_then(|file| {
        let url = file.url().to_owned();
        Client::new(&url, Arc::new(file)).map_err(|error| error.to_string())
    });
    let client = match client {
        Ok(client) => client,
        Err(what) => return fail(Exit::Usage, &what, "see `commanddeck --help`"),
    };
    let mono = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    match app::run(client, mono).await {
        Ok(()) => Exit::Ok.into(),
        Err(error) => {
            fail(Exit::Error, &format!("the terminal failed: {error}"), "try another terminal, or TERM=xterm")
        }
    }
}

fn fail(exit: Exit, what: &str, hint: &str) -> ExitCode {
    let text = format!("error: {}\nhint: {hint}\n", swarm_protocol::text::sanitise(what, false));
    // Standard error is the last resort; when it is closed there is nobody to tell.
    let _ = std::io::stderr().write_all(text.as_bytes());
    exit.into()
}
