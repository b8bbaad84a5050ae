//! Which core, as whom: the address and the credentials file.

use std::any::Any;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use swarm_client::{Client, DEFAULT_URL, SavedTokens, TokenStore};

use crate::exit::Exit;
use crate::failure::{Done, Failure};

/// The credentials file's content.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// The core they are for; they are sent to no other.
    pub url: String,
    /// The account's name, for people.
    pub user: String,
    access_token: String,
    refresh_token: String,
}

/// The credentials file, `credentials.json` in the configuration directory, mode 0600.
#[derive(Debug, Clone)]
pub struct CredentialsFile {
    path: PathBuf,
    url: String,
    user: Option<String>,
}

/// `$SWARM_CONFIG_DIR`, else `swarm-sync` in the user's configuration directory.
fn directory() -> io::Result<PathBuf> {
    use etcetera::BaseStrategy as _;
    if let Some(dir) = std::env::var_os("SWARM_CONFIG_DIR").filter(|dir| !dir.is_empty()) {
        return Ok(dir.into());
    }
    let base = etcetera::choose_base_strategy().map_err(io::Error::other)?;
    Ok(base.config_dir().join("swarm-sync"))
}

impl CredentialsFile {
    /// The file of this user on this machine, for sessions with the core at `url`; where that is `None`, with the core
    /// of the last login, else with the one on this machine.
    ///
    /// # Errors
    /// When the home directory is not known or the file cannot be read.
    pub fn open(url: Option<&str>) -> io::Result<Self> {
        Self::at(directory()?.join("credentials.json"), url)
    }

    /// As [`open`](Self::open), with the file at `path`.
    ///
    /// # Errors
    /// When the file is there but cannot be read.
    pub fn at(path: PathBuf, url: Option<&str>) -> io::Result<Self> {
        let mut file = Self { path, url: String::new(), user: None };
        let last = || file.read().map(|saved| saved.map(|saved| saved.url));
        // An empty SWARM_URL is one that is not set.
        let url = match url.filter(|url| !url.is_empty()) {
            Some(url) => url.to_owned(),
            None => last()?.unwrap_or_else(|| DEFAULT_URL.to_owned()),
        };
        url.trim_end_matches('/').clone_into(&mut file.url);
        Ok(file)
    }

    /// The core's address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// As whom the next tokens are saved.
    #[must_use]
    pub fn with_user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    fn read(&self) -> io::Result<Option<Credentials>> {
        let text = match std::fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.named(&error)),
        };
        // The parser's message could quote a token, so only its place is told.
        let fault = |error: serde_json::Error| {
            let place = format!("line {} is not what `login` wrote; log in again", error.line());
            self.named(&io::Error::new(io::ErrorKind::InvalidData, place))
        };
        serde_json::from_slice(&text).map(Some).map_err(fault)
    }

    fn named(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
    }

    /// Written beside and renamed, so that a crash leaves the old tokens or the new ones, and nobody else reads either.
    fn write(&self, credentials: &Credentials) -> io::Result<()> {
        use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
        let dir = self.path.parent().unwrap_or(std::path::Path::new("."));
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let beside = dir.join(format!(".credentials.{}", std::process::id()));
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(&serde_json::to_vec_pretty(credentials)?)?;
        file.sync_all()?;
        std::fs::rename(&beside, &self.path)?;
        File::open(dir)?.sync_all()
    }
}

impl TokenStore for CredentialsFile {
    fn load(&self) -> io::Result<Option<SavedTokens>> {
        let saved = self.read()?.filter(|saved| saved.url == self.url);
        Ok(saved.map(|saved| SavedTokens { access: saved.access_token.into(), refresh: saved.refresh_token.into() }))
    }

    fn save(&self, tokens: Option<&SavedTokens>) -> io::Result<()> {
        let Some(tokens) = tokens else {
            // Another core's session is none of this one's business.
            if self.read()?.is_some_and(|saved| saved.url != self.url) {
                return Ok(());
            }
            return match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.named(&error)),
                _ => Ok(()),
            };
        };
        let user = match &self.user {
            Some(user) => user.clone(),
            None => self.read()?.map(|saved| saved.user).unwrap_or_default(),
        };
        let text = |secret: &SecretString| secret.expose_secret().to_owned();
        let credentials = Credentials {
            url: self.url.clone(),
            user,
            access_token: text(&tokens.access),
            refresh_token: text(&tokens.refresh),
        };
        self.write(&credentials).map_err(|error| self.named(&error))
    }

    fn lock(&self) -> io::Result<Box<dyn Any + Send>> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.path.with_extension("lock");
        let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        file.lock()?;
        Ok(Box::new(file))
    }
}

/// A client of the core that flags, environment or the last login name.
pub(crate) fn client(url: Option<&str>) -> Done<Client> {
    let file = credentials(url)?;
    let url = file.url().to_owned();
    Ok(Client::new(&url, Arc::new(file))?)
}

pub(crate) fn credentials(url: Option<&str>) -> Done<CredentialsFile> {
    CredentialsFile::open(url).map_err(|error| {
        Failure::new(Exit::Auth, format!("cannot read the credentials: {error}"))
            .hint("log in again, or set SWARM_CONFIG_DIR to a directory of yours")
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn tokens_are_private_and_go_to_their_own_core_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/credentials.json");
        let file = CredentialsFile::at(path.clone(), Some("http://127.0.0.1:1/")).unwrap().with_user("ana");
        assert!(file.load().unwrap().is_none());
        file.save(Some(&SavedTokens { access: "a".into(), refresh: "r".into() })).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(file.load().unwrap().unwrap().refresh.expose_secret(), "r");

        let same = CredentialsFile::at(path.clone(), None).unwrap();
        assert_eq!(same.url(), "http://127.0.0.1:1");
        assert!(same.load().unwrap().is_some());
        assert_eq!(CredentialsFile::at(path.clone(), Some("")).unwrap().url(), "http://127.0.0.1:1");
        let other = CredentialsFile::at(path.clone(), Some("http://127.0.0.1:2")).unwrap();
        assert!(other.load().unwrap().is_none());
        other.save(None).unwrap();
        assert!(path.exists(), "a logout elsewhere ended this session");

        same.save(None).unwrap();
        assert!(!path.exists());
        same.save(None).unwrap();
    }

    #[test]
    fn a_broken_file_is_named_and_not_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials.json");
        std::fs::write(&path, "{\"access_token\": secret}").unwrap();
        let error = CredentialsFile::at(path, None).unwrap_err().to_string();
        assert!(error.contains("credentials.json") && !error.contains("secret"), "{error}");
    }
}
