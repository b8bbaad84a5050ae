//! Accounts.

use std::sync::Arc;

use secrecy::SecretString;
use swarm_protocol::api::{Role, UserRequest, UserResetRequest};
use swarm_protocol::{GroupId, Timestamp, UserId};

use super::super::keyfile;
use super::super::password::check_rules;
use super::{AuthError, Identity, IdentityConfig, check_name, field};
use crate::store::{NewUser, Refusal, Transition, UserRecord};
use swarm_host::blocking;

/// The account of the first start.
const FIRST_ACCOUNT: &str = "admin";

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

impl From<UserRecord> for Account {
    fn from(record: UserRecord) -> Self {
        let UserRecord { id, name, role, group, group_name, token_version, created_at, .. } = record;
        Self { id, name, role, group, group_name, token_version, created_at }
    }
}

impl Identity {
    /// The password's file is durable before the account is, so there is never an account nobody can use.
    pub(super) async fn make_first_account(&self, config: &IdentityConfig) -> Result<(), AuthError> {
        let password = random_password();
        let path = config.data_dir.join("admin-password");
        let (file, secret) = (path.clone(), password.clone());
        blocking::run(move || keyfile::write_password(&file, &secret)).await?;
        let request = (FIRST_ACCOUNT.to_owned(), password, Role::Admin, FIRST_ACCOUNT.to_owned());
        self.commit_user(request, config.allow_root).await?;
        crate::notice!(path = %path.display(), "made the account `admin`; its password is in {}", path.display());
        Ok(())
    }

    /// The setting counts at every start, not only at the one that made the account.
    pub(super) async fn apply_policy(&self, config: &IdentityConfig) -> Result<(), AuthError> {
        let first = self.accounts().into_iter().find(|account| account.name == FIRST_ACCOUNT);
        let Some(group) = first.map(|account| account.group) else { return Ok(()) };
        self.commit(Transition::AllowRoot { group, allow_root: config.allow_root }).await.map(drop)
    }

    /// Every account, by number.
    #[must_use]
    pub fn accounts(&self) -> Vec<Arc<Account>> {
        let mut accounts: Vec<_> = self.memory(|memory| memory.accounts.values().cloned().collect());
        accounts.sort_by_key(|account| account.id);
        accounts
    }

    /// One account.
    #[must_use]
    pub fn account(&self, user: UserId) -> Option<Arc<Account>> {
        self.memory(|memory| memory.accounts.get(&user).cloned())
    }

    /// Ends every session of an account and, with a password, sets that and lifts the lockout of its name.
    ///
    /// # Errors
    /// [`AuthError::Field`] for a password that cannot be used.
    pub async fn reset_user(&self, account: &Account, request: UserResetRequest) -> Result<(), AuthError> {
        let password_hash = match request.password.map(SecretString::from) {
            Some(password) => {
                check_password(&password, &account.name)?;
                Some(self.passwords.hash(password).await?)
            }
            None => None,
        };
        let lifted = password_hash.is_some();
        self.commit(Transition::ResetUser { user: account.id, password_hash }).await?;
        if lifted {
            self.forget_failures(&account.name);
        }
        // Counted here as the store counts, so that nothing can fail any more.
        self.remember(|memory| {
            if let Some(known) = memory.accounts.get_mut(&account.id) {
                *known = Arc::new(Account { token_version: known.token_version + 1, ..Account::clone(known) });
            }
        });
        Ok(())
    }

    /// Makes an account.
    ///
    /// # Errors
    /// [`AuthError::Field`] for a name or password that cannot be used, [`AuthError::Refused`] for a taken name.
    pub async fn create_user(&self, request: UserRequest) -> Result<Arc<Account>, AuthError> {
        let UserRequest { user, password, role, group } = request;
        let group = group.unwrap_or_else(|| user.clone());
        check_name("user", &user)?;
        check_name("group", &group)?;
        let password = SecretString::from(password);
        check_password(&password, &user)?;
        self.commit_user((user, password, role, group), false).await
    }

    async fn commit_user(
        &self,
        (name, password, role, group): (String, SecretString, Role, String),
        allow_root: bool,
    ) -> Result<Arc<Account>, AuthError> {
        let password_hash = self.passwords.hash(password).await?;
        let created_at = self.clock.now();
        let new = NewUser { name: name.clone(), password_hash, role, group, allow_root, created_at };
        self.commit(Transition::CreateUser(Box::new(new))).await?;
        // The version comes from the store, whatever it begins with.
        let wanted = name.clone();
        let record = self.read(move |store| store.user(&wanted)).await?;
        let missing = || Refusal::NotFound(format!("user `{name}`"));
        let account = Arc::new(Account::from(record.ok_or_else(missing)?));
        self.remember(|memory| memory.accounts.insert(account.id, Arc::clone(&account)));
        Ok(account)
    }
}

fn check_password(password: &SecretString, user: &str) -> Result<(), AuthError> {
    let fault = |rule| field("password", format!("{rule}"), "choose a longer password that nobody can guess");
    check_rules(password, user).map_err(fault)
}

/// 24 characters of 62 kinds: 142 bits.
fn random_password() -> SecretString {
    const KINDS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let password: String = (0..24).map(|_| char::from(KINDS[rand::random_range(0..KINDS.len())])).collect();
    SecretString::from(password)
}
