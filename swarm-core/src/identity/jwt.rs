//! Access tokens: short-lived JWTs, signed with HMAC-SHA-256 and nothing else.
//!
//! Sources: RFC 7519 (JWT), RFC 8725 (best current practices: one algorithm, checked issuer and audience).

mod provider;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use secrecy::{ExposeSecret, SecretBox};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use swarm_protocol::api::Role;
use swarm_protocol::ids::{GroupId, SwarmId, UserId};
use uuid::Uuid;

/// The audience of every access token.
pub const AUDIENCE: &str = "swarm-sync-api";
/// How long an access token lives unless configured otherwise.
pub const LIFETIME: Duration = Duration::from_secs(600);
/// How far the clocks of two cores may differ, in seconds.
const LEEWAY_S: i64 = 5;
/// The longest token looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 4096;

/// What a valid access token says about its bearer. Whether the token is revoked or its version is out of date is for the
/// caller to look up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    /// Who.
    pub user: UserId,
    /// The account's name when the token was issued.
    pub name: String,
    /// What the bearer may do.
    pub role: Role,
    /// Whose jobs and files.
    pub group: GroupId,
    /// Must equal the account's token version; raising that version ends all tokens of the account at once.
    pub token_version: u32,
    /// This token; listed when revoked.
    pub token_id: Uuid,
    /// The login it comes from; shared with that login's refresh tokens.
    pub family: Uuid,
    /// When the token ends, to the second.
    pub expires_at: DateTime<Utc>,
}

/// Whom a token is issued to.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Who.
    pub user: UserId,
    /// The account's name.
    pub name: &'a str,
    /// What the user may do.
    pub role: Role,
    /// Whose jobs and files.
    pub group: GroupId,
    /// The account's present token version.
    pub token_version: u32,
    /// The login.
    pub family: Uuid,
}

/// Why a token is not accepted. The text is for logs and for the bearer; it holds nothing of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Longer than any token issued here.
    #[error("the access token is longer than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    /// Not three parts of base64url with JSON inside, or a header this swarm does not write.
    #[error("the access token is malformed")]
    Malformed,
    /// Another algorithm than HS256.
    #[error("the access token is signed with another algorithm than HS256")]
    Algorithm,
    /// Signed with a key that is not in use (any more).
    #[error("the access token was signed with an unknown key; log in again")]
    UnknownKey,
    /// The signature does not fit.
    #[error("the signature of the access token does not fit")]
    Signature,
    /// A claim is missing or has the wrong type.
    #[error("the access token lacks a claim, or a claim has the wrong type")]
    Claims,
    /// Made for somebody else.
    #[error("the access token is meant for another audience")]
    Audience,
    /// Made by another swarm.
    #[error("the access token was issued by another swarm")]
    Issuer,
    /// Over.
    #[error("the access token has expired; refresh it or log in again")]
    Expired,
    /// Issued in the future.
    #[error("the access token was issued in the future; refresh it or log in again")]
    FromTheFuture,
    /// Signing failed.
    #[error("signing the access token failed")]
    Signing,
}

impl JwtError {
    /// Whether a fresh token may help: the client should refresh instead of asking the user. One from the future was issued
    /// here as well, before the clock was set back.
    #[must_use]
    pub const fn is_expiry(self) -> bool {
        matches!(self, Self::Expired | Self::FromTheFuture)
    }
}

impl From<jsonwebtoken::errors::Error> for JwtError {
    fn from(error: jsonwebtoken::errors::Error) -> Self {
        match error.kind() {
            ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::UnsupportedAlgorithm => {
                Self::Algorithm
            }
            ErrorKind::InvalidSignature => Self::Signature,
            ErrorKind::InvalidAudience => Self::Audience,
            ErrorKind::InvalidIssuer => Self::Issuer,
            ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => Self::Claims,
            _ => Self::Malformed,
        }
    }
}

/// A signing key: 32 random bytes.
pub struct SigningKey {
    secret: SecretBox<[u8; 32]>,
    id: String,
}

impl SigningKey {
    /// A new random key.
    #[must_use]
    pub fn generate() -> Self {
        Self::from_secret(SecretBox::init_with_mut(|bytes: &mut [u8; 32]| rand::fill(bytes)))
    }

    /// The key stored as `secret`.
    #[must_use]
    pub fn from_secret(secret: SecretBox<[u8; 32]>) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"swarm-sync access token key id");
        hash.update(secret.expose_secret());
        let id = hex::encode(&hash.finalize()[..8]);
        Self { secret, id }
    }

    /// What to store, sealed.
    #[must_use]
    pub const fn secret(&self) -> &SecretBox<[u8; 32]> {
        &self.secret
    }

    /// The `kid` in token headers; derived from the key, of which it reveals nothing.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// The claims on the wire.
#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    name: String,
    role: Role,
    grp: GroupId,
    iat: i64,
    exp: i64,
    jti: Uuid,
    aud: String,
    iss: String,
    tv: u32,
    fam: Uuid,
}

/// Issues and checks access tokens of one swarm.
pub struct AccessTokens {
    issuer: String,
    lifetime: Duration,
    header: Header,
    signing: EncodingKey,
    /// The current key first, then earlier ones whose tokens may still live.
    verifying: Vec<(String, DecodingKey)>,
    validation: Validation,
}

impl AccessTokens {
    /// Tokens of `swarm` that live for `lifetime`, signed with `current`; those signed with a key in `earlier` still pass.
    #[must_use]
    pub fn new(swarm: SwarmId, lifetime: Duration, current: &SigningKey, earlier: &[SigningKey]) -> Self {
        provider::install();
        let issuer = swarm.to_string();
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(current.id.clone());
        let verifying = std::iter::once(current)
            .chain(earlier)
            .map(|key| (key.id.clone(), DecodingKey::from_secret(key.secret.expose_secret())))
            .collect();
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[&issuer]);
        validation.required_spec_claims = HashSet::from(["exp", "sub", "aud", "iss"].map(str::to_owned));
        // The library only knows the system clock; `verify` checks both times against the clock it is given.
        validation.validate_exp = false;
        let signing = EncodingKey::from_secret(current.secret.expose_secret());
        Self { issuer, lifetime, header, signing, verifying, validation }
    }

    /// A token for `subject`, and what it will be read as.
    ///
    /// # Errors
    /// [`JwtError::Signing`] when the claims cannot be encoded or signed.
    pub fn issue(&self, subject: &Subject<'_>, now: DateTime<Utc>) -> Result<(String, Bearer), JwtError> {
        let lifetime_s = i64::try_from(self.lifetime.as_secs()).map_err(|_| JwtError::Signing)?;
        let exp = now.timestamp().checked_add(lifetime_s).ok_or(JwtError::Signing)?;
        let claims = Claims {
            sub: subject.user.to_string(),
            name: subject.name.to_owned(),
            role: subject.role,
            grp: subject.group,
            iat: now.timestamp(),
            exp,
            jti: Uuid::new_v4(),
            aud: AUDIENCE.to_owned(),
            iss: self.issuer.clone(),
            tv: subject.token_version,
            fam: subject.family,
        };
        let token = encode(&self.header, &claims, &self.signing).map_err(|_| JwtError::Signing)?;
        Ok((token, claims.bearer()?))
    }

    /// Checks `token` at `now`.
    ///
    /// # Errors
    /// [`JwtError`] names the first thing that is wrong. Times, audience and issuer are looked at only once the signature
    /// fits.
    pub fn verify(&self, token: &str, now: DateTime<Utc>) -> Result<Bearer, JwtError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(JwtError::TooLong);
        }
        let header = decode_header(token).map_err(|_| algorithm_or_malformed(token))?;
        if header.alg != Algorithm::HS256 {
            return Err(JwtError::Algorithm);
        }
        if header.crit.is_some() {
            return Err(JwtError::Malformed); // RFC 7515 §4.1.11: extensions not understood must be refused
        }
        let known = |(id, _): &&(String, DecodingKey)| header.kid.as_ref() == Some(id);
        let (_, key) = self.verifying.iter().find(known).ok_or(JwtError::UnknownKey)?;
        let claims = decode::<serde_json::Value>(token, key, &self.validation)?.claims;
        let claims: Claims = serde_json::from_value(claims).map_err(|_| JwtError::Claims)?;
        // The library also takes lists that contain the right value; tokens issued here have exactly one.
        if claims.exp.saturating_add(LEEWAY_S) <= now.timestamp() {
            return Err(JwtError::Expired);
        }
        if claims.iat.saturating_sub(LEEWAY_S) > now.timestamp() {
            return Err(JwtError::FromTheFuture);
        }
        claims.bearer()
    }
}

/// The library cannot read a header with an algorithm it does not know, `none` above all; tell that apart from noise.
fn algorithm_or_malformed(token: &str) -> JwtError {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    #[derive(Deserialize)]
    struct Named {
        #[serde(rename = "alg")]
        _alg: String,
    }
    let header = token.split('.').next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    match header.map(|json| serde_json::from_slice::<Named>(&json)) {
        Some(Ok(_)) if token.matches('.').count() == 2 => JwtError::Algorithm,
        _ => JwtError::Malformed,
    }
}

impl Claims {
    fn bearer(self) -> Result<Bearer, JwtError> {
        Ok(Bearer {
            user: self.sub.parse().map_err(|_| JwtError::Claims)?,
            name: self.name,
            role: self.role,
            group: self.grp,
            token_version: self.tv,
            token_id: self.jti,
            family: self.fam,
            expires_at: DateTime::from_timestamp(self.exp, 0).ok_or(JwtError::Claims)?,
        })
    }
}
