//! Sessions of accounts: login, the tokens behind it, and their end.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, MutexGuard, PoisonError};

use chrono::TimeDelta;
use secrecy::{ExposeSecret, SecretString};
use swarm_protocol::api::{LoginRequest, RefreshRequest, Tokens};
use swarm_protocol::validate::is_name;
use swarm_protocol::{Digest, Timestamp, UserId};
use uuid::Uuid;

use super::super::jwt::{Bearer, Subject};
use super::super::limits::Limited;
use super::super::tokens::{OpaqueToken, TokenKind};
use super::{Account, AuthError, Identity, REMEMBERED_MAX, REVOKED_LONGER};
use crate::messages::Stopping;
use crate::store::{RefreshRecord, Refusal, Transition, UserRecord};

/// How long a refresh token lives.
const REFRESH_DAYS: i64 = 30;

/// A session, or the next piece of one, that is committed.
#[derive(Clone)]
pub(super) struct Opened {
    access: SecretString,
    access_ends: Timestamp,
    refresh: OpaqueToken,
}

fn wrong_login() -> AuthError {
    AuthError::Unauthenticated("the user name or the password is wrong".to_owned())
}

fn dead_token() -> AuthError {
    AuthError::Unauthenticated("the refresh token is not valid; log in again".to_owned())
}

fn dead_session() -> AuthError {
    AuthError::Unauthenticated("this session is over; log in again".to_owned())
}

impl Identity {
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

    /// Opens a session. An unknown name gets the same answers, after the same time, as a known one with a wrong password.
    ///
    /// # Errors
    /// [`AuthError::Unauthenticated`], or [`AuthError::Limited`] after too many failures.
    pub async fn login(&self, client: IpAddr, request: LoginRequest) -> Result<Tokens, AuthError> {
        self.throttle(client).await?;
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
                match self.open_session(&record, Uuid::new_v4(), None).await {
                    // Reset while the former password was being checked.
                    Err(AuthError::Refused(Refusal::Stale(_))) => Err(wrong_login()),
                    opened => Ok(self.tokens_of(&opened?)),
                }
            }
            record => {
                self.note_failure(&name, record.map(|record| record.id)).await?;
                Err(wrong_login())
            }
        }
    }

    fn failures(&self) -> MutexGuard<'_, HashMap<String, (u32, u64)>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// The name may be tried again at once.
    pub(super) fn forget_failures(&self, name: &str) {
        self.failures().remove(name);
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

    /// The account must still be as `record` says when the session is committed.
    async fn open_session(
        &self,
        record: &UserRecord,
        family: Uuid,
        replaces: Option<Digest>,
    ) -> Result<Opened, AuthError> {
        let UserRecord { id: user, ref name, role, group, token_version, .. } = *record;
        let refresh = OpaqueToken::generate(TokenKind::Refresh);
        let now = self.clock.now();
        let expires_at = now + TimeDelta::days(REFRESH_DAYS);
        let hash = Digest(refresh.hash().0);
        let issue = Transition::IssueRefresh { hash, family, user, token_version, expires_at, replaces };
        self.commit(issue).await?;
        let subject = Subject { user, name, role, group, token_version, family };
        let (access, Bearer { expires_at: access_ends, .. }) =
            self.tokens.issue(&subject, now).map_err(AuthError::Jwt)?;
        Ok(Opened { access: access.into(), access_ends, refresh })
    }

    fn tokens_of(&self, opened: &Opened) -> Tokens {
        let lasts = opened.access_ends - self.clock.now();
        Tokens {
            access_token: opened.access.expose_secret().to_owned(),
            expires_in_s: u64::try_from(lasts.num_seconds()).unwrap_or(0),
            refresh_token: opened.refresh.reveal().expose_secret().to_owned(),
        }
    }

    /// Exchanges a refresh token, which is thereby used up. A second use of one revokes all tokens of its login: either
    /// the user or a thief holds a copy, and nobody can tell which. For 30 s it is none: an answer can be lost on its way.
    ///
    /// # Errors
    /// [`AuthError::Unauthenticated`].
    pub async fn refresh(&self, request: RefreshRequest) -> Result<Tokens, AuthError> {
        let token = OpaqueToken::parse(&request.refresh_token, TokenKind::Refresh).map_err(|_| dead_token())?;
        let hash = Digest(token.hash().0);
        let opened = self.refreshed.answer(hash, self.exchange(hash)).await?.kept();
        // Given again, it must still be good: its session may be over. Once it was used it had arrived, and this is theft.
        let new = Digest(opened.refresh.hash().0);
        let record = self.read(move |store| store.refresh_token(&new)).await?.ok_or_else(dead_token)?;
        if record.revoked || record.used {
            return self.unused(hash).await.and(Err(dead_token()));
        }
        Ok(self.tokens_of(&opened))
    }

    /// As if the answers to all refreshes were of long ago.
    #[cfg(test)]
    pub(crate) fn forget_refreshes(&self) {
        self.refreshed.forget_all();
    }

    async fn exchange(&self, hash: Digest) -> Result<Opened, AuthError> {
        let RefreshRecord { family, user_name, .. } = self.unused(hash).await?;
        let user = self.read(move |store| store.user(&user_name)).await?.ok_or_else(dead_token)?;
        match self.open_session(&user, family, Some(hash)).await {
            // Overtaken by a second use at another core, or by a reset of the account: the token tells.
            Err(AuthError::Refused(Refusal::Stale(_))) => self.unused(hash).await.and(Err(dead_token())),
            answer => answer,
        }
    }

    /// A refresh token that is still good. One that was used before ends its family.
    async fn unused(&self, hash: Digest) -> Result<RefreshRecord, AuthError> {
        let record = self.read(move |store| store.refresh_token(&hash)).await?.ok_or_else(dead_token)?;
        if record.revoked || record.expires_at <= self.clock.now() {
            return Err(dead_token());
        }
        if !record.used {
            return Ok(record);
        }
        let RefreshRecord { family, user_name: user, .. } = record;
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
            memory.revoked.retain(|_, ends| *ends + REVOKED_LONGER > now);
            memory.revoked.insert(jti, expires_at);
        });
        Ok(())
    }
}
