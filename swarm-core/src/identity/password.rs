//! Passwords: Argon2id in PHC strings, computed off the async threads and only two at a time.
//!
//! Source of the parameters: OWASP Password Storage Cheat Sheet (19 MiB, 2 passes, 1 lane).

use std::sync::Arc;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The shortest password accepted, in characters.
pub const PASSWORD_CHARS_MIN: usize = 12;
/// The longest password accepted, in bytes.
pub const PASSWORD_BYTES_MAX: usize = 1024;

/// Memory per hash, in KiB.
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// Hashes computed at once: each takes a processor and 19 MiB.
const CONCURRENT: usize = 2;
/// Requests that compute or wait; further ones are turned away.
const QUEUED: usize = 64;

/// Compared with when the user is unknown, so that the answer takes as long as for a known one. No password matches it:
/// the result is refused even if one did.
const DUMMY: &str = "$argon2id$v=19$m=19456,t=2,p=1$c3dhcm0tc3luYy1kdW1teQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Why a new password is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PasswordRule {
    /// Too short.
    #[error(
        "the password has {chars} characters, it needs at least {PASSWORD_CHARS_MIN}; a few words in a row do well"
    )]
    TooShort {
        /// How many it has.
        chars: usize,
    },
    /// Too long.
    #[error("the password is longer than {PASSWORD_BYTES_MAX} bytes; choose a shorter one")]
    TooLong,
    /// It repeats the user's name or a single character.
    #[error("the password is the user name or one character repeated; choose one that cannot be guessed from outside")]
    Obvious,
}

/// Why no answer could be given.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// Too many are waiting already.
    #[error("too many passwords are being checked at this moment; try again in a few seconds")]
    Busy,
    /// The stored text is no Argon2 hash.
    #[error("the stored password hash is unreadable; set the password anew")]
    Stored,
    /// Argon2 itself failed.
    #[error("hashing the password failed")]
    Hash(#[from] argon2::password_hash::Error),
    /// The thread computing it ended early.
    #[error("the thread hashing the password ended early")]
    Thread(#[from] tokio::task::JoinError),
}

/// Checks a new password of `user` against the rules.
///
/// # Errors
/// The rule it breaks; the message is meant for the user.
pub fn check_rules(password: &SecretString, user: &str) -> Result<(), PasswordRule> {
    let password = password.expose_secret();
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(PasswordRule::TooLong);
    }
    let chars = password.chars().count();
    if chars < PASSWORD_CHARS_MIN {
        return Err(PasswordRule::TooShort { chars });
    }
    let first = password.chars().next();
    if password.eq_ignore_ascii_case(user) || password.chars().all(|c| Some(c) == first) {
        return Err(PasswordRule::Obvious);
    }
    Ok(())
}

/// Hashes and checks passwords with bounded effort. Clones share the bounds.
#[derive(Debug, Clone)]
pub struct Passwords {
    computing: Arc<Semaphore>,
    queued: Arc<Semaphore>,
}

impl Default for Passwords {
    fn default() -> Self {
        Self { computing: Arc::new(Semaphore::new(CONCURRENT)), queued: Arc::new(Semaphore::new(QUEUED)) }
    }
}

impl Passwords {
    /// The PHC string to store for `password`. The rules are not checked here: see [`check_rules`].
    ///
    /// # Errors
    /// [`PasswordError::Busy`] when 64 requests are under way, [`PasswordError::Hash`] or [`PasswordError::Thread`] when
    /// the computation fails.
    pub async fn hash(&self, password: SecretString) -> Result<String, PasswordError> {
        self.compute(move || Ok(argon2()?.hash_password(password.expose_secret().as_bytes())?.to_string())).await
    }

    /// Whether `password` fits `stored`; with `None`, for an unknown user, false after the same effort.
    ///
    /// # Errors
    /// As for [`Passwords::hash`], and [`PasswordError::Stored`] when `stored` is not an Argon2 PHC string.
    pub async fn verify(&self, password: SecretString, stored: Option<String>) -> Result<bool, PasswordError> {
        self.compute(move || {
            let known = stored.is_some();
            let hash = PasswordHash::new(stored.as_deref().unwrap_or(DUMMY)).map_err(|_| PasswordError::Stored)?;
            let password = password.expose_secret().as_bytes();
            if password.len() > PASSWORD_BYTES_MAX {
                return Ok(false); // no stored password is that long
            }
            match argon2()?.verify_password(password, &hash) {
                Ok(()) => Ok(known),
                Err(argon2::password_hash::Error::PasswordInvalid) => Ok(false),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// Runs `work` on a blocking thread. The permits go along, so a caller who leaves does not free a place early.
    async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, PasswordError> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let queued = Arc::clone(&self.queued).try_acquire_owned().map_err(|_| PasswordError::Busy)?;
        // The semaphore is never closed.
        let computing = Arc::clone(&self.computing).acquire_owned().await.map_err(|_| PasswordError::Busy)?;
        let permits: [OwnedSemaphorePermit; 2] = [queued, computing];
        tokio::task::spawn_blocking(move || {
            let _held = permits;
            work()
        })
        .await?
    }
}

fn argon2() -> Result<Argon2<'static>, PasswordError> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(argon2::password_hash::Error::from)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn secret(text: &str) -> SecretString {
        SecretString::from(text.to_owned())
    }

    #[tokio::test]
    async fn a_password_fits_its_own_hash_only() {
        let passwords = Passwords::default();
        let hash = passwords.hash(secret("correct horse battery")).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(passwords.verify(secret("correct horse battery"), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify(secret("correct horse battery "), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify(secret(""), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify(secret(&"x".repeat(1 << 20)), Some(hash.clone())).await.unwrap());
        let again = passwords.hash(secret("correct horse battery")).await.unwrap();
        assert_ne!(hash, again, "each hash has its own salt");
    }

    #[tokio::test]
    async fn an_unknown_user_costs_as_much_as_a_known_one() {
        let passwords = Passwords::default();
        let hash = passwords.hash(secret("correct horse battery")).await.unwrap();
        let dummy = PasswordHash::new(DUMMY).unwrap();
        let real = PasswordHash::new(&hash).unwrap();
        assert_eq!(
            (dummy.algorithm, dummy.version, &dummy.params),
            (real.algorithm, real.version, &real.params),
            "the dummy has the cost of a real hash"
        );
        // Of several runs the fastest: the machine may be busy, but never speeds up.
        let mut fastest = [Duration::MAX; 2];
        for _ in 0..3 {
            for (known, fastest) in [false, true].into_iter().zip(&mut fastest) {
                let start = Instant::now();
                let stored = known.then(|| hash.clone());
                assert!(!passwords.verify(secret("wrong horse battery"), stored).await.unwrap());
                *fastest = start.elapsed().min(*fastest);
            }
        }
        assert!(fastest[0] * 3 > fastest[1], "unknown {:?}, known {:?}", fastest[0], fastest[1]);
    }

    #[tokio::test]
    async fn a_broken_stored_hash_is_an_error_and_no_match() {
        for stored in ["", "secret", "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA"] {
            let result = Passwords::default().verify(secret("correct horse battery"), Some(stored.to_owned())).await;
            assert!(result.is_err(), "{stored:?}: {result:?}");
        }
    }

    #[tokio::test]
    async fn a_flood_is_turned_away_and_the_place_freed_afterwards() {
        let passwords = Passwords::default();
        let all = Arc::clone(&passwords.computing).acquire_many_owned(2).await.unwrap();
        let waiting: Vec<_> = (0..QUEUED)
            .map(|_| {
                let passwords = passwords.clone();
                tokio::spawn(async move { passwords.hash(secret("correct horse battery")).await })
            })
            .collect();
        while passwords.queued.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let refused = passwords.verify(secret("correct horse battery"), None).await;
        assert!(matches!(refused, Err(PasswordError::Busy)), "{refused:?}");
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
        for task in waiting {
            assert!(task.await.unwrap_err().is_cancelled());
        }
        drop(all);
        assert!(!passwords.verify(secret("correct horse battery"), None).await.unwrap());
    }

    #[test]
    fn rules_say_what_is_missing() {
        assert_eq!(check_rules(&secret("correct horse battery"), "ada"), Ok(()));
        assert_eq!(check_rules(&secret("ééééééééééé"), "ada"), Err(PasswordRule::TooShort { chars: 11 }));
        assert_eq!(check_rules(&secret("aaaaaaaaaaaaaaa"), "ada"), Err(PasswordRule::Obvious));
        assert_eq!(check_rules(&secret("Administrator"), "administrator"), Err(PasswordRule::Obvious));
        assert_eq!(check_rules(&secret(&"ab".repeat(513)), "ada"), Err(PasswordRule::TooLong));
        let message = check_rules(&secret("short"), "ada").unwrap_err().to_string();
        assert!(message.contains("5 characters") && message.contains("at least 12"), "{message}");
    }
}
