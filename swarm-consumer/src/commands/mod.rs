//! What each command does. A command returns the exit code; errors travel up as [`Failure`].

mod fetch;
mod image;
mod interrupt;
mod jobfile;
mod jobs;
mod logs;
mod run;
mod schedule;
mod session;
mod waiting;

use std::io::Write as _;

pub(crate) use image::bar;
pub(crate) use jobs::Verdict;

use crate::cli::{Cli, Command, Global};
use crate::exit::Exit;
use crate::failure::{Done, Failure};
use crate::output::{Format, json_text, show};
use crate::views::ExitCodes;

/// Does what the command line says and tells of errors; the exit code.
pub(crate) async fn run(cli: Cli) -> u8 {
    let Cli { global, command } = cli;
    let short = command.short();
    let format = global.format(&short);
    // These end with the container's code, so their own troubles must not look like one.
    let passes_code = matches!(command, Command::Run(_) | Command::Wait(_));
    match act(&global, command, format).await {
        Ok(code) => code,
        Err(failure) => {
            let exit = if passes_code { failure.exit.of_run() } else { failure.exit };
            tell(&failure, exit, format);
            exit.code()
        }
    }
}

fn tell(failure: &Failure, exit: Exit, format: Format) {
    if failure.silent {
        return;
    }
    let text = if format == Format::Json { format!("{}\n", json_text(&failure.json(exit))) } else { failure.human() };
    // Standard error is the last resort; when it is closed there is nobody to tell.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

async fn act(global: &Global, command: Command, format: Format) -> Done<u8> {
    let url = global.url.as_deref();
    let client = || crate::session::client(url);
    match command {
        Command::Login(login) => session::login(url, login, format).await,
        Command::Logout(_) => session::logout(&client()?, format).await,
        Command::Whoami(_) => session::whoami(&client()?, format).await,
        Command::Image(command) => image::run(&client()?, command, format).await,
        Command::Run(run) => run::run(&client()?, &run, format).await,
        Command::Submit(submit) => run::submit(&client()?, &submit, format).await,
        Command::Job(command) => jobfile::run(&command, format),
        Command::Ls(ls) => jobs::list(&client()?, &ls, format).await,
        Command::Show(show) => jobs::show_job(&client()?, &show, format).await,
        Command::Logs(logs) => logs::run(&client()?, &logs, format).await,
        Command::Wait(wait) => jobs::wait(&client()?, &wait, format).await,
        Command::Cancel(one) => jobs::cancel(&client()?, one.job, format).await,
        Command::Fetch(fetch) => fetch::run(&client()?, &fetch, format).await,
        Command::Why(one) => jobs::why(&client()?, one.job, format).await,
        Command::Schedule(command) => schedule::run(&client()?, command, format).await,
        Command::WorkerToken(token) => session::worker_token(&client()?, &token, format).await,
        Command::ExitCodes(_) => show(format, &ExitCodes).map(|()| 0),
    }
}

/// What the user typed to get here, for lines that say how to go on.
pub(crate) fn program() -> &'static str {
    let first = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&first).file_name().unwrap_or_default().to_owned();
    if name == "swarm-consumer" { "swarm-consumer" } else { "swarm consumer" }
}
