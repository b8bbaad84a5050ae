//! `login`, `logout`, `whoami`.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use swarm_client::{Client, ClientError};
use swarm_protocol::api::JoinTokenRequest;

use crate::cli::{Login, WorkerToken};
use crate::failure::{Done, Failure};
use crate::output::{Format, show};
use crate::session::credentials;
use crate::views::Said;

const PASSWORD_BYTES_MAX: u64 = 4096;

pub(crate) async fn login(url: Option<&str>, login: Login, format: Format) -> Done<u8> {
    let file = credentials(url)?;
    let (user, password) = tokio::task::spawn_blocking(move || -> Done<_> {
        let user = match login.user {
            Some(user) => user,
            None => ask_user()?,
        };
        let password = password(login.password_file.as_deref())?;
        Ok((user, password))
    })
    .await
    .expect("asking does not panic")?;
    let address = file.url().to_owned();
    let client = Client::new(&address, Arc::new(file.with_user(&user)))?;
    client.login(&user, password.expose_secret()).await.map_err(refused)?;
    let who = client.whoami().await?;
    let text = format!("logged in to {address} as {} ({}, group {})", who.user, who.role.as_str(), who.group);
    show(format, &Said { text, json: json!(who), id: who.id.to_string() })?;
    Ok(0)
}

/// To log in again, which is what else helps against a 401, is no advice here.
fn refused(error: ClientError) -> Failure {
    let is_wrong = error.is_status(401);
    let failure = Failure::from(error);
    if !is_wrong {
        return failure;
    }
    failure.hint("check both; the first start of a core leaves admin's password in DATA_DIR/admin-password")
}

fn ask_user() -> Done<String> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("no user is named").hint("give --user NAME; it is asked for on a terminal only"));
    }
    let failed = |error| Failure::io("cannot read the user's name", &error);
    let mut stderr = std::io::stderr();
    stderr.write_all(b"user: ").and_then(|()| stderr.flush()).map_err(failed)?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(failed)?;
    Ok(line.trim().to_owned())
}

/// Only the line end is taken off: spaces may be part of a password.
fn password(file: Option<&Path>) -> Done<SecretString> {
    let text = match file {
        None if std::io::stdin().is_terminal() => rpassword::prompt_password("password: ")
            .map_err(|error| Failure::io("cannot ask for the password", &error))?,
        None => {
            return Err(Failure::usage("no password is given")
                .hint("give --password-file FILE, or --password-file - for standard input; it is asked for on a terminal only"));
        }
        Some(path) => {
            let mut text = String::new();
            let read = if path == Path::new("-") {
                std::io::stdin().take(PASSWORD_BYTES_MAX).read_to_string(&mut text)
            } else {
                std::fs::File::open(path).and_then(|file| file.take(PASSWORD_BYTES_MAX).read_to_string(&mut text))
            };
            read.map_err(|error| Failure::io(format!("cannot read the --password-file {}", path.display()), &error))?;
            text
        }
    };
    let text = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if text.is_empty() {
        return Err(Failure::usage("the password is empty"));
    }
    Ok(SecretString::from(text))
}

pub(crate) async fn logout(client: &Client, format: Format) -> Done<u8> {
    client.logout().await?;
    show(format, &Said { text: "logged out".into(), json: json!({"logged_out": true}), id: String::new() })?;
    Ok(0)
}

/// A token that a worker joins with.
pub(crate) async fn worker_token(client: &Client, wanted: &WorkerToken, format: Format) -> Done<u8> {
    let request = JoinTokenRequest { worker: wanted.name.clone(), expires_in_s: wanted.expires.as_secs() };
    let made = client.join_token(&request).await?;
    // The token alone, for it is meant for a pipe.
    show(format, &Said { text: made.token.clone(), json: json!(made), id: made.token })?;
    Ok(0)
}

pub(crate) async fn whoami(client: &Client, format: Format) -> Done<u8> {
    show(format, &client.whoami().await?)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;
    use crate::testserver::{Reply, Server};

    #[tokio::test]
    async fn a_wrong_password_is_not_answered_with_log_in_again() {
        let server = Server::start(|_| Reply::problem(401, "unauthenticated")).await;
        let client = Client::new(&server.url, Arc::new(swarm_client::MemoryTokens::default())).unwrap();
        let failure = refused(client.login("admin", "wrong").await.unwrap_err());
        assert_eq!(failure.exit, Exit::Auth);
        let hint = failure.hint.unwrap();
        assert!(!hint.contains("again") && hint.contains("admin-password"), "{hint}");
    }
}
