//! Workers: how they get their key, and lose it.

use std::net::IpAddr;

use chrono::TimeDelta;
use secrecy::ExposeSecret;
use swarm_protocol::api::{JoinAnswer, JoinRequest, JoinToken, JoinTokenRequest};
use swarm_protocol::{Digest, WorkerId};

use super::super::tokens::{OpaqueToken, TokenKind};
use super::super::workers::WorkerPeer;
use super::{AuthError, Identity, Undelivered, check_name, field};
use crate::store::{Applied, Refusal, Transition};

/// The longest life of a join token, in seconds.
const JOIN_S_MAX: u64 = 900;

/// A worker that joined.
#[derive(Clone)]
pub(super) struct Joined {
    worker: WorkerId,
    key: OpaqueToken,
}

fn refused() -> AuthError {
    let text = "the join token is unknown, used up, expired, or for another worker; ask an admin for a new one";
    AuthError::Unauthenticated(text.to_owned())
}

impl Identity {
    /// A one-use token with which a worker of that name may join.
    ///
    /// # Errors
    /// [`AuthError::Field`] for a name or life that cannot be used.
    pub async fn join_token(&self, request: JoinTokenRequest) -> Result<JoinToken, AuthError> {
        let JoinTokenRequest { worker, expires_in_s } = request;
        check_name("worker", &worker)?;
        if !(1..=JOIN_S_MAX).contains(&expires_in_s) {
            return Err(field("expires_in_s", format!("{expires_in_s} s is out of range"), "give 1 to 900"));
        }
        let token = OpaqueToken::generate(TokenKind::Join);
        let expires_at = self.clock.now() + TimeDelta::seconds(expires_in_s as i64);
        let hash = Digest(token.hash().0);
        self.commit(Transition::CreateJoinToken { hash, worker: worker.clone(), expires_at }).await?;
        Ok(JoinToken { token: token.reveal().expose_secret().to_owned(), worker, expires_at })
    }

    /// Exchanges a join token for a worker's key. An answer that came too late waits 30 s to be asked
    /// for; one that was given is not given again, or who saw the token could have the key as well and nobody would notice.
    ///
    /// # Errors
    /// [`AuthError::Unauthenticated`] for a token that is unknown, used, expired or for another name.
    pub async fn join(&self, client: IpAddr, request: JoinRequest) -> Result<Undelivered<JoinAnswer>, AuthError> {
        self.throttle(client).await?;
        let token = OpaqueToken::parse(&request.token, TokenKind::Join).map_err(|_| refused())?;
        let (hash, name) = (Digest(token.hash().0), request.worker);
        let joined = self.joined.answer((hash, name.clone()), self.exchange_for_key(hash, name)).await?;
        Ok(joined.map(|Joined { worker, key }| JoinAnswer { worker, key: key.reveal().expose_secret().to_owned() }))
    }

    async fn exchange_for_key(&self, token: Digest, name: String) -> Result<Joined, AuthError> {
        let (at, key) = (self.clock.now(), OpaqueToken::generate(TokenKind::WorkerKey));
        let join = Transition::JoinWorker { token, worker: name.clone(), key: Digest(key.hash().0), at };
        match self.take_in(join, &name, &key).await {
            Ok(worker) => {
                crate::audit!(worker = name, "worker `{name}` joined");
                Ok(Joined { worker, key })
            }
            Err(AuthError::Refused(_)) => Err(refused()),
            Err(error) => Err(error),
        }
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
