//! Where tokens live between calls and between processes.

use std::any::Any;
use std::io;
use std::sync::Mutex;

use secrecy::{ExposeSecret as _, SecretString};
use swarm_protocol::api::Tokens;

/// The tokens of one session.
#[derive(Debug, Clone)]
pub struct SavedTokens {
    /// A JWT for `Authorization: Bearer`.
    pub access: SecretString,
    /// Good for one refresh.
    pub refresh: SecretString,
}

impl SavedTokens {
    pub(crate) fn same_access(&self, other: &Self) -> bool {
        self.access.expose_secret() == other.access.expose_secret()
    }
}

impl From<Tokens> for SavedTokens {
    fn from(tokens: Tokens) -> Self {
        Self { access: tokens.access_token.into(), refresh: tokens.refresh_token.into() }
    }
}

/// Keeps tokens. Called on a blocking thread; a refresh token is good for one use, so a store that loses a rotated one
/// ends the session.
pub trait TokenStore: Send + Sync {
    /// The current tokens; `None` when nobody is logged in.
    ///
    /// # Errors
    /// Whatever the medium says.
    fn load(&self) -> io::Result<Option<SavedTokens>>;

    /// Replaces them; `None` forgets them.
    ///
    /// # Errors
    /// Whatever the medium says.
    fn save(&self, tokens: Option<&SavedTokens>) -> io::Result<()>;

    /// Keeps other processes from rotating the same refresh token until the guard is dropped.
    ///
    /// # Errors
    /// Whatever the medium says.
    fn lock(&self) -> io::Result<Box<dyn Any + Send>> {
        Ok(Box::new(()))
    }
}

/// Tokens for the life of this value.
#[derive(Debug, Default)]
pub struct MemoryTokens(Mutex<Option<SavedTokens>>);

impl MemoryTokens {
    /// Begins with these.
    #[must_use]
    pub fn new(tokens: SavedTokens) -> Self {
        Self(Mutex::new(Some(tokens)))
    }

    fn guard(&self) -> std::sync::MutexGuard<'_, Option<SavedTokens>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl TokenStore for MemoryTokens {
    fn load(&self) -> io::Result<Option<SavedTokens>> {
        Ok(self.guard().clone())
    }

    fn save(&self, tokens: Option<&SavedTokens>) -> io::Result<()> {
        *self.guard() = tokens.cloned();
        Ok(())
    }
}
