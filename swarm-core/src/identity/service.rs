//! Accounts, sessions and workers' keys: what is decided here is committed through the ledger first and then taken into
//! memory, from which every request is answered.

mod accounts;
mod sessions;
mod workers;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use chrono::TimeDelta;
use swarm_protocol::problem::FieldError;
use swarm_protocol::validate::{NAME_HINT, is_name};
use swarm_protocol::{Digest, SwarmId, Timestamp, UserId};
use uuid::Uuid;

pub use self::accounts::Account;
use super::jwt::{AccessTokens, JwtError, LIFETIME};
use super::keyfile::{self, KeyFileError};
use super::limits::{Limited, Lockout};
use super::password::{PasswordError, Passwords};
use super::workers::WorkerKeys;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::messages::{LedgerHandle, Stopping};
pub use crate::once::Undelivered;
use crate::once::{Full, Once};
use crate::store::{Applied, Refusal, Store, StoreError, Transition};
use swarm_host::blocking;

/// How long a revocation is kept after its token ended, since clocks differ.
const REVOKED_LONGER: TimeDelta = TimeDelta::minutes(1);
/// Names with failed logins that are remembered.
const REMEMBERED_MAX: usize = 10_000;

/// What the service needs to know.
#[derive(Debug, Clone)]
pub struct IdentityConfig {
    /// Where `jwt.key` and `admin-password` lie; must exist.
    pub data_dir: PathBuf,
    /// Issuer of the tokens.
    pub swarm: SwarmId,
    /// Whether jobs of the first account's group may run as root.
    pub allow_root: bool,
}

/// Why somebody was turned away.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Not known, revoked or not readable; the text is for the asker.
    #[error("{0}")]
    Unauthenticated(String),
    /// A good access token that is too old, or of before the clock was set back: refresh it.
    #[error("the access token has expired; refresh it or log in again")]
    Expired,
    /// Too many tries.
    #[error(transparent)]
    Limited(#[from] Limited),
    /// A field of the request is wrong.
    #[error("{}: {}", .0.field, .0.problem)]
    Field(FieldError),
    /// The ledger refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Too many passwords are being checked, or checking one failed.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// Too many tokens are being exchanged.
    #[error(transparent)]
    Busy(#[from] Full),
    /// A token could not be signed.
    #[error(transparent)]
    Jwt(JwtError),
    /// A secret file cannot be used.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The core is stopping.
    #[error(transparent)]
    Stopping(#[from] Stopping),
}

#[derive(Default)]
struct Memory {
    accounts: HashMap<UserId, Arc<Account>>,
    /// Revoked access tokens and when they would have ended anyway.
    revoked: HashMap<Uuid, Timestamp>,
    workers: WorkerKeys,
}

/// The service. Shared as `Arc<Identity>`.
pub struct Identity {
    store: Arc<dyn Store>,
    ledger: LedgerHandle,
    clock: Arc<dyn Clock>,
    passwords: Passwords,
    tokens: AccessTokens,
    lockout: Lockout,
    memory: RwLock<Memory>,
    /// Counts logins and joins from each address.
    cache: Arc<dyn Cache>,
    /// Failures in a row by name, known or not, and the last one in ms: so that a locked name does not tell whether it
    /// exists, and failures count before they are committed.
    failures: Mutex<HashMap<String, (u32, u64)>>,
    /// By the hash of the token that is refreshed.
    refreshed: Arc<Once<Digest, sessions::Opened>>,
    /// By the hash of the join token and the name of the worker.
    joined: Arc<Once<(Digest, String), workers::Joined>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

fn field(name: &str, problem: impl Into<String>, hint: &str) -> AuthError {
    AuthError::Field(FieldError::new(name, problem, hint))
}

fn check_name(what: &str, name: &str) -> Result<(), AuthError> {
    if is_name(name) { Ok(()) } else { Err(field(what, "is not a name", NAME_HINT)) }
}

impl Identity {
    /// Reads everything into memory; on the first start it makes the account `admin`, whose random password it leaves in
    /// `<data_dir>/admin-password`. The ledger must be running.
    ///
    /// # Errors
    /// [`AuthError`] when the store or a secret file cannot be read, or the first account cannot be made.
    pub async fn start(
        config: IdentityConfig,
        store: Arc<dyn Store>,
        ledger: LedgerHandle,
        cache: Arc<dyn Cache>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, AuthError> {
        let path = config.data_dir.join("jwt.key");
        let reader = Arc::clone(&store);
        let since = clock.now() - REVOKED_LONGER;
        let (key, users, revoked, workers) = blocking::run(move || {
            let key = keyfile::signing_key(&path)?;
            Ok::<_, AuthError>((key, reader.users()?, reader.revoked_jwts(since)?, reader.workers()?))
        })
        .await?;
        let fresh = users.is_empty();
        let memory = Memory {
            accounts: users.into_iter().map(|user| (user.id, Arc::new(Account::from(user)))).collect(),
            revoked: revoked.into_iter().collect(),
            workers: WorkerKeys::load(workers),
        };
        let identity = Self {
            store,
            ledger,
            clock,
            passwords: Passwords::default(),
            tokens: AccessTokens::new(config.swarm, LIFETIME, &key, &[]),
            lockout: Lockout::default(),
            memory: RwLock::new(memory),
            cache,
            failures: Mutex::default(),
            refreshed: Arc::default(),
            joined: Arc::default(),
        };
        if fresh {
            identity.make_first_account(&config).await?;
        } else {
            identity.apply_policy(&config).await?;
        }
        Ok(Arc::new(identity))
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, AuthError> {
        let store = Arc::clone(&self.store);
        Ok(blocking::run(move || read(&*store)).await?)
    }

    async fn commit(&self, transition: Transition) -> Result<Applied, AuthError> {
        Ok(self.ledger.commit(transition).await??)
    }

    fn memory<R>(&self, read: impl FnOnce(&Memory) -> R) -> R {
        read(&self.memory.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn remember<R>(&self, change: impl FnOnce(&mut Memory) -> R) -> R {
        change(&mut self.memory.write().unwrap_or_else(PoisonError::into_inner))
    }

    async fn throttle(&self, client: IpAddr) -> Result<(), AuthError> {
        Ok(self.cache.take_login(client).await?)
    }
}
