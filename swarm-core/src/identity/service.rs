//! Accounts, sessions and workers' keys: what is decided here is committed through the ledger first and then taken into
//! memory, from which every request is answered.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use chrono::TimeDelta;
use secrecy::{ExposeSecret, SecretString};
use swarm_protocol::api::{
    JoinAnswer, JoinRequest, JoinToken, JoinTokenRequest, LoginRequest, RefreshRequest, Role, Tokens, UserRequest,
};
use swarm_protocol::problem::FieldError;
use swarm_protocol::validate::is_name;
use swarm_protocol::{Digest, GroupId, SwarmId, Timestamp, UserId, WorkerId};
use uuid::Uuid;

use super::jwt::{AccessTokens, Bearer, JwtError, LIFETIME, Subject};
use super::keyfile::{self, KeyFileError};
use super::limits::{Limited, Limiter, Lockout, Rate};
use super::password::{PasswordError, Passwords, check_rules};
use super::tokens::{OpaqueToken, TokenKind};
use super::workers::{WorkerKeys, WorkerPeer};
use crate::blocking;
use crate::clock::Clock;
use crate::messages::{LedgerHandle, Stopping};
use crate::store::{Applied, NewUser, Refusal, Store, StoreError, Transition, UserRecord};

/// How long a refresh token lives.
const REFRESH_DAYS: i64 = 30;
/// Addresses, and names with failed logins, that are remembered.
const REMEMBERED_MAX: usize = 10_000;
/// The longest life of a join token, in seconds.
const JOIN_S_MAX: u64 = 900;
/// The account of the first start.
const FIRST_ACCOUNT: &str = "admin";

/// What the service needs to know.
#[derive(Debug, Clone)]
pub struct IdentityConfig {
    /// Where `jwt.key` and `admin-password` lie; must exist.
    pub data_dir: PathBuf,
    /// Issuer of the tokens.
    pub swarm: SwarmId,
    /// Whether jobs of the first account's group may run as root.
    pub allow_root: bool,
    /// Logins and joins from one address.
    pub logins: Rate,
}

/// Who is asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its number.
    pub id: UserId,
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Its group.
    pub group: GroupId,
    /// The group's name.
    pub group_name: String,
    /// JWTs with another version are dead.
    pub token_version: u32,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Why somebody was turned away.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Not known, revoked or not readable; the text is for the asker.
    #[error("{0}")]
    Unauthenticated(String),
    /// A good access token that is too old: refresh it.
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
    clients: Mutex<Limiter<IpAddr>>,
    /// Failures in a row by name, known or not, and the last one in ms: so that a locked name does not tell whether it
    /// exists, and failures count before they are committed.
    failures: Mutex<HashMap<String, (u32, u64)>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl From<UserRecord> for Account {
    fn from(record: UserRecord) -> Self {
        let UserRecord { id, name, role, group, group_name, token_version, created_at, .. } = record;
        Self { id, name, role, group, group_name, token_version, created_at }
    }
}

fn wrong_login() -> AuthError {
    AuthError::Unauthenticated("the user name or the password is wrong".to_owned())
}

fn dead_session() -> AuthError {
    AuthError::Unauthenticated("this session is over; log in again".to_owned())
}

fn field(name: &str, problem: impl Into<String>, hint: &str) -> AuthError {
    AuthError::Field(FieldError::new(name, problem, hint))
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
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, AuthError> {
        let path = config.data_dir.join("jwt.key");
        let reader = Arc::clone(&store);
        let (key, users, revoked, workers) = blocking::run(move || {
            let key = keyfile::signing_key(&path)?;
            Ok::<_, AuthError>((key, reader.users()?, reader.revoked_jwts()?, reader.workers()?))
        })
        .await?;
        let now = clock.now();
        let ends = now + TimeDelta::seconds(LIFETIME.as_secs() as i64);
        let fresh = users.is_empty();
        let memory = Memory {
            accounts: users.into_iter().map(|user| (user.id, Arc::new(Account::from(user)))).collect(),
            revoked: revoked.into_iter().map(|id| (id, ends)).collect(),
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
            clients: Mutex::new(Limiter::new(config.logins, REMEMBERED_MAX)),
            failures: Mutex::default(),
        };
        if fresh {
            identity.make_first_account(&config).await?;
        }
        Ok(Arc::new(identity))
    }

    /// The password's file is durable before the account is, so there is never an account nobody can use.
    async fn make_first_account(&self, config: &IdentityConfig) -> Result<(), AuthError> {
        let password = random_password();
        let path = config.data_dir.join("admin-password");
        let (file, secret) = (path.clone(), password.clone());
        blocking::run(move || keyfile::write_password(&file, &secret)).await?;
        let request = (FIRST_ACCOUNT.to_owned(), password, Role::Admin, FIRST_ACCOUNT.to_owned());
        self.commit_user(request, config.allow_root).await?;
        crate::notice!(path = %path.display(), "made the account `admin`; its password is in {}", path.display());
        Ok(())
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

    fn failures(&self) -> MutexGuard<'_, HashMap<String, (u32, u64)>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ── sessions ────────────────────────────────────────────────────────────────────────────────────────────────

    /// The account behind an access token.
    ///
    /// # Errors
    /// [`AuthError::Expired`] when a refresh helps, else [`AuthError::Unauthenticated`].
    pub fn authenticate(&self, token: &str) -> Result<(Arc<Account>, Bearer), AuthError> {
        let bearer = self.tokens.verify(token, self.clock.now()).map_err(|error| {
            if error.is_expiry() { AuthError::Expired } else { AuthError::Unauthenticated(error.to_string()) }
        })?;
        self.memory(|memory| {
            let account = memory.accounts.get(&bearer.user).filter(|account| {
                account.token_version == bearer.token_version && !memory.revoked.contains_key(&bearer.token_id)
            });
            account.map(|account| (Arc::clone(account), bearer.clone())).ok_or_else(dead_session)
        })
    }

    fn throttle(&self, client: IpAddr) -> Result<(), AuthError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(clients.take(&client, self.clock.boot_ms())?)
    }

    /// Opens a session. An unknown name gets the same answers, after the same time, as a known one with a wrong password.
    ///
    /// # Errors
    /// [`AuthError::Unauthenticated`], or [`AuthError::Limited`] after too many failures.
    pub async fn login(&self, client: IpAddr, request: LoginRequest) -> Result<Tokens, AuthError> {
        self.throttle(client)?;
        let LoginRequest { user: name, password } = request;
        let password = SecretString::from(password);
        if !is_name(&name) {
            // No account has such a name; the effort is spent all the same.
            self.passwords.verify(password, None).await?;
            return Err(wrong_login());
        }
        let wanted = name.clone();
        let record = self.read(move |store| store.user(&wanted)).await?;
        self.refuse_locked(&name, record.as_ref())?;
        let hash = record.as_ref().map(|record| record.password_hash.clone());
        let fits = self.passwords.verify(password, hash).await?;
        match record {
            Some(record) if fits => {
                let cleared = self.failures().remove(&name).is_some() || record.failed_logins > 0;
                if cleared {
                    let at = self.clock.now();
                    self.commit(Transition::NoteLogin { user: record.id, failed: false, at }).await?;
                }
                crate::audit!(user = name, "`{name}` logged in");
                self.open_session(record.id, Uuid::new_v4(), None).await
            }
            record => {
                self.note_failure(&name, record.map(|record| record.id)).await?;
                Err(wrong_login())
            }
        }
    }

    fn refuse_locked(&self, name: &str, record: Option<&UserRecord>) -> Result<(), AuthError> {
        let stored = record.map_or((0, 0), |record| {
            let at = record.last_failed_at.map_or(0, |at| at.timestamp_millis().max(0) as u64);
            (record.failed_logins, at)
        });
        let (count, at_ms) = self.failures().get(name).copied().unwrap_or_default().max(stored);
        match self.lockout.remaining_ms(count, at_ms, self.now_ms()) {
            0 => Ok(()),
            retry_ms => Err(Limited { retry_ms }.into()),
        }
    }

    fn now_ms(&self) -> u64 {
        self.clock.now().timestamp_millis().max(0) as u64
    }

    /// Counts in memory at once, and queues the durable count without waiting for its commit: the answer would otherwise
    /// come later for accounts that exist.
    async fn note_failure(&self, name: &str, user: Option<UserId>) -> Result<(), AuthError> {
        let now_ms = self.now_ms();
        {
            let mut failures = self.failures();
            if failures.len() >= REMEMBERED_MAX && !failures.contains_key(name) {
                // The least tried names go first: a flood of names does not free the one that is being guessed at.
                let count = failures.values().map(|(count, _)| *count).min().unwrap_or_default();
                failures.retain(|_, (kept, _)| *kept > count);
            }
            let entry = failures.entry(name.to_owned()).or_default();
            *entry = (entry.0.saturating_add(1), now_ms);
        }
        crate::audit!(user = name, "a login as `{name}` failed");
        if let Some(user) = user {
            let note = Transition::NoteLogin { user, failed: true, at: self.clock.now() };
            drop(self.ledger.queue(note).await?);
        }
        Ok(())
    }

    async fn open_session(&self, user: UserId, family: Uuid, replaces: Option<Digest>) -> Result<Tokens, AuthError> {
        let account = self.memory(|memory| memory.accounts.get(&user).cloned()).ok_or_else(dead_session)?;
        let refresh = OpaqueToken::generate(TokenKind::Refresh);
        let now = self.clock.now();
        let expires_at = now + TimeDelta::days(REFRESH_DAYS);
        let hash = Digest(refresh.hash().0);
        self.commit(Transition::IssueRefresh { hash, family, user, expires_at, replaces }).await?;
        let Account { name, role, group, token_version, .. } = &*account;
        let subject = Subject { user, name, role: *role, group: *group, token_version: *token_version, family };
        let (access_token, _) = self.tokens.issue(&subject, now).map_err(AuthError::Jwt)?;
        let refresh_token = refresh.reveal().expose_secret().to_owned();
        Ok(Tokens { access_token, expires_in_s: LIFETIME.as_secs(), refresh_token })
    }

    /// Exchanges a refresh token, which is thereby used up. A second use of one revokes all tokens of its login: either
    /// the user or a thief holds a copy, and nobody can tell which.
    ///
    /// # Errors
    /// [`AuthError::Unauthenticated`].
    pub async fn refresh(&self, request: RefreshRequest) -> Result<Tokens, AuthError> {
        let unknown = || AuthError::Unauthenticated("the refresh token is not valid; log in again".to_owned());
        let token = OpaqueToken::parse(&request.refresh_token, TokenKind::Refresh).map_err(|_| unknown())?;
        let hash = Digest(token.hash().0);
        let record = self.read(move |store| store.refresh_token(&hash)).await?.ok_or_else(unknown)?;
        if record.revoked || record.expires_at <= self.clock.now() {
            return Err(unknown());
        }
        if record.used {
            return self.revoke_reused(record.family, &record.user_name).await;
        }
        let name = record.user_name.clone();
        let user = self.read(move |store| store.user(&name)).await?.ok_or_else(unknown)?;
        match self.open_session(user.id, record.family, Some(hash)).await {
            Err(AuthError::Refused(Refusal::Stale(_))) => self.revoke_reused(record.family, &record.user_name).await,
            answer => answer,
        }
    }

    async fn revoke_reused(&self, family: Uuid, user: &str) -> Result<Tokens, AuthError> {
        self.commit(Transition::RevokeFamily { family }).await?;
        crate::audit!(user, "a refresh token of `{user}` was used twice; its session is revoked");
        let text = "this refresh token was used before; its session is revoked, log in again";
        Err(AuthError::Unauthenticated(text.to_owned()))
    }

    /// Ends the session of an access token.
    ///
    /// # Errors
    /// [`AuthError`] when it cannot be committed.
    pub async fn logout(&self, bearer: &Bearer) -> Result<(), AuthError> {
        let Bearer { token_id: jti, expires_at, family, .. } = *bearer;
        let family = self.ledger.queue(Transition::RevokeFamily { family }).await?;
        self.commit(Transition::RevokeJwt { jti, expires_at }).await?;
        family.await.map_err(|_| Stopping)??;
        let now = self.clock.now();
        self.remember(|memory| {
            memory.revoked.retain(|_, ends| *ends + TimeDelta::minutes(1) > now);
            memory.revoked.insert(jti, expires_at);
        });
        Ok(())
    }

    // ── accounts ────────────────────────────────────────────────────────────────────────────────────────────────

    /// Every account, by number.
    #[must_use]
    pub fn accounts(&self) -> Vec<Arc<Account>> {
        let mut accounts: Vec<_> = self.memory(|memory| memory.accounts.values().cloned().collect());
        accounts.sort_by_key(|account| account.id);
        accounts
    }

    /// Makes an account.
    ///
    /// # Errors
    /// [`AuthError::Field`] for a name or password that cannot be used, [`AuthError::Refused`] for a taken name.
    pub async fn create_user(&self, request: UserRequest) -> Result<Arc<Account>, AuthError> {
        let UserRequest { user, password, role, group } = request;
        let group = group.unwrap_or_else(|| user.clone());
        for (name, text) in [("user", &user), ("group", &group)] {
            if !is_name(text) {
                let hint = "use at most 128 letters, digits, `.`, `_`, `-`, `/`, beginning with a letter or digit";
                return Err(field(name, "is not a name", hint));
            }
        }
        let password = SecretString::from(password);
        check_rules(&password, &user)
            .map_err(|rule| field("password", rule.to_string(), "choose a longer password that nobody can guess"))?;
        self.commit_user((user, password, role, group), false).await
    }

    async fn commit_user(
        &self,
        (name, password, role, group): (String, SecretString, Role, String),
        allow_root: bool,
    ) -> Result<Arc<Account>, AuthError> {
        let password_hash = self.passwords.hash(password).await?;
        let created_at = self.clock.now();
        let new = NewUser { name: name.clone(), password_hash, role, group: group.clone(), allow_root, created_at };
        let Applied::User(id, group_id) = self.commit(Transition::CreateUser(Box::new(new))).await? else {
            return Err(Refusal::Broken("the store made no account".to_owned()).into());
        };
        let account =
            Arc::new(Account { id, name, role, group: group_id, group_name: group, token_version: 0, created_at });
        // The version comes from the store, whatever it begins with.
        let wanted = account.name.clone();
        let stored = self.read(move |store| store.user(&wanted)).await?.map(|record| Arc::new(record.into()));
        let account = stored.unwrap_or(account);
        self.remember(|memory| memory.accounts.insert(id, Arc::clone(&account)));
        Ok(account)
    }

    // ── workers ─────────────────────────────────────────────────────────────────────────────────────────────────

    /// A one-use token with which a worker of that name may join.
    ///
    /// # Errors
    /// [`AuthError::Field`] for a name or life that cannot be used.
    pub async fn join_token(&self, request: JoinTokenRequest) -> Result<JoinToken, AuthError> {
        let JoinTokenRequest { worker, expires_in_s } = request;
        check_worker_name(&worker)?;
        if !(1..=JOIN_S_MAX).contains(&expires_in_s) {
            return Err(field("expires_in_s", format!("{expires_in_s} s is out of range"), "give 1 to 900"));
        }
        let token = OpaqueToken::generate(TokenKind::Join);
        let expires_at = self.clock.now() + TimeDelta::seconds(expires_in_s as i64);
        let hash = Digest(token.hash().0);
        self.commit(Transition::CreateJoinToken { hash, worker: worker.clone(), expires_at }).await?;
        Ok(JoinToken { token: token.reveal().expose_secret().to_owned(), worker, expires_at })
    }

    /// Exchanges a join token for a worker's key.
    ///
    /// # Errors
    /// [`AuthError::Unauthenticated`] for a token that is unknown, used, expired or for another name.
    pub async fn join(&self, client: IpAddr, request: JoinRequest) -> Result<JoinAnswer, AuthError> {
        self.throttle(client)?;
        let refused = || {
            let text = "the join token is unknown, used up, expired, or for another worker; ask an admin for a new one";
            AuthError::Unauthenticated(text.to_owned())
        };
        let token = OpaqueToken::parse(&request.token, TokenKind::Join).map_err(|_| refused())?;
        let (key, hash) = (OpaqueToken::generate(TokenKind::WorkerKey), Digest(token.hash().0));
        let (at, worker) = (self.clock.now(), request.worker.clone());
        let join = Transition::JoinWorker { token: hash, worker, key: Digest(key.hash().0), at };
        match self.take_in(join, &request.worker, &key).await {
            Ok(worker) => {
                crate::audit!(worker = request.worker, "worker `{}` joined", request.worker);
                Ok(JoinAnswer { worker, key: key.reveal().expose_secret().to_owned() })
            }
            Err(AuthError::Refused(_)) => Err(refused()),
            Err(error) => Err(error),
        }
    }

    /// A key for the worker `name`, made if it is new: for the embedded worker, which needs no token.
    ///
    /// # Errors
    /// [`AuthError::Field`] for a name that cannot be used, [`AuthError::Refused`] for a revoked worker.
    pub async fn add_worker(&self, name: &str) -> Result<(WorkerId, SecretString), AuthError> {
        check_worker_name(name)?;
        let key = OpaqueToken::generate(TokenKind::WorkerKey);
        let (worker, at) = (name.to_owned(), self.clock.now());
        let add = Transition::AddWorker { worker, key: Digest(key.hash().0), at };
        Ok((self.take_in(add, name, &key).await?, key.reveal()))
    }

    async fn take_in(&self, transition: Transition, name: &str, key: &OpaqueToken) -> Result<WorkerId, AuthError> {
        let Applied::Worker(id) = self.commit(transition).await? else {
            return Err(Refusal::Broken("the store made no worker".to_owned()).into());
        };
        let peer = WorkerPeer { id, name: name.to_owned() };
        self.remember(|memory| memory.workers.put(Digest(key.hash().0), peer));
        Ok(id)
    }

    /// The worker behind a key.
    ///
    /// # Errors
    /// [`AuthError::Unauthenticated`].
    pub fn worker(&self, key: &str) -> Result<WorkerPeer, AuthError> {
        let unknown = || AuthError::Unauthenticated("the worker's key is unknown or revoked; join again".to_owned());
        let key = OpaqueToken::parse(key, TokenKind::WorkerKey).map_err(|_| unknown())?;
        self.memory(|memory| memory.workers.find(&key.hash())).ok_or_else(unknown)
    }

    /// Whether the worker still has a key that works.
    #[must_use]
    pub fn is_accepted(&self, worker: WorkerId) -> bool {
        self.memory(|memory| memory.workers.is_accepted(worker))
    }

    /// A worker's name, revoked ones included.
    #[must_use]
    pub fn worker_name(&self, worker: WorkerId) -> Option<String> {
        self.memory(|memory| memory.workers.name(worker))
    }

    /// Takes a worker's key away for good.
    ///
    /// # Errors
    /// [`AuthError::Refused`] for a worker that does not exist.
    pub async fn revoke_worker(&self, worker: WorkerId) -> Result<(), AuthError> {
        self.commit(Transition::RevokeWorker { worker }).await?;
        self.remember(|memory| memory.workers.revoke(worker));
        Ok(())
    }
}

fn check_worker_name(name: &str) -> Result<(), AuthError> {
    if is_name(name) {
        return Ok(());
    }
    let hint = "use at most 128 letters, digits, `.`, `_`, `-`, `/`, beginning with a letter or digit";
    Err(field("worker", "is not a name", hint))
}

/// 24 characters of 62 kinds: 142 bits.
fn random_password() -> SecretString {
    const KINDS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let password: String = (0..24).map(|_| char::from(KINDS[rand::random_range(0..KINDS.len())])).collect();
    SecretString::from(password)
}
