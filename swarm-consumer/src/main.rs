//! The users' command line as a program of its own; `swarm consumer` is the same.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    swarm_consumer::main(std::env::args_os()).await
}
