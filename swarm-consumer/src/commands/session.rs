//! `login`, `logout`, `whoami`.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use swarm_client::Client;

use crate::cli::Login;
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
    client.login(&user, password.expose_secret()).await?;
    let who = client.whoami().await?;
    let text = format!("logged in to {address} as {} ({}, group {})", who.user, who.role.as_str(), who.group);
    show(format, &Said { text, json: json!(who), id: who.id.to_string() })?;
    Ok(0)
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

pub(crate) async fn whoami(client: &Client, format: Format) -> Done<u8> {
    show(format, &client.whoami().await?)?;
    Ok(0)
}
