//! The admins' terminal as a program of its own; `swarm deck` is the same.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    commanddeck::main(std::env::args_os()).await
}
