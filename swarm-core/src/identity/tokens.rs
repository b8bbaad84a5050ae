//! Opaque tokens: random, recognisable by their prefix, and stored only as a hash.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// Random bytes per token.
const SECRET_BYTES: usize = 32;
/// Their length in base64url without padding.
const SECRET_CHARS: usize = 43;

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// Gets a new access token; used once.
    Refresh,
    /// Lets one worker join; used once, short-lived.
    Join,
    /// A worker's own key, which it uses from joining on.
    WorkerKey,
}

impl TokenKind {
    /// The first four characters of every token of this kind, for people and for leak scanners.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Refresh => "swr_",
            Self::Join => "swj_",
            Self::WorkerKey => "swk_",
        }
    }
}

/// Why a text is not a token of the kind expected. Never shows the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It begins otherwise.
    #[error("this is not a token that begins with {}; check that you copied the right one", expected.prefix())]
    Kind {
        /// What was asked for.
        expected: TokenKind,
    },
    /// It has the right beginning but not the right shape.
    #[error("the token is cut or misspelt; copy it again, {} and 43 characters", expected.prefix())]
    Shape {
        /// What was asked for.
        expected: TokenKind,
    },
}

/// A token in the clear: held for as long as it takes to hand it out or to look it up.
#[derive(Clone, ZeroizeOnDrop)]
pub struct OpaqueToken {
    #[zeroize(skip)]
    kind: TokenKind,
    secret: [u8; SECRET_BYTES],
}

impl OpaqueToken {
    /// A new random token.
    #[must_use]
    pub fn generate(kind: TokenKind) -> Self {
        let mut secret = [0u8; SECRET_BYTES];
        rand::fill(&mut secret);
        Self { kind, secret }
    }

    /// Reads a token of the kind `expected`. Exactly one text stands for each token.
    ///
    /// # Errors
    /// [`TokenError`] for anything else.
    pub fn parse(text: &str, expected: TokenKind) -> Result<Self, TokenError> {
        let encoded = text.strip_prefix(expected.prefix()).ok_or(TokenError::Kind { expected })?;
        if encoded.len() != SECRET_CHARS {
            return Err(TokenError::Shape { expected });
        }
        let mut token = Self { kind: expected, secret: [0u8; SECRET_BYTES] };
        match URL_SAFE_NO_PAD.decode_slice(encoded, &mut token.secret) {
            Ok(SECRET_BYTES) => Ok(token),
            _ => Err(TokenError::Shape { expected }),
        }
    }

    /// What the token is good for.
    #[must_use]
    pub const fn kind(&self) -> TokenKind {
        self.kind
    }

    /// The text to hand out, once.
    #[must_use]
    pub fn reveal(&self) -> SecretString {
        SecretString::from(self.text().as_str().to_owned())
    }

    /// What is stored and looked up instead of the token. With 256 random bits no salt or slow hash is needed. The kind
    /// is part of it, so that the hash of one kind never passes for another.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.text().as_bytes()).into())
    }

    fn text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(4 + SECRET_CHARS));
        text.push_str(self.kind.prefix());
        URL_SAFE_NO_PAD.encode_string(self.secret, &mut text);
        text
    }
}

impl fmt::Debug for OpaqueToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[hidden]", self.kind.prefix())
    }
}

/// The SHA-256 of a token's text. Compared in constant time.
#[derive(Debug, Clone, Copy, Hash)]
#[expect(clippy::derived_hash_with_manual_eq, reason = "equality is the same as the derived one, only slower to leak")]
pub struct TokenHash(pub [u8; 32]);

impl PartialEq for TokenHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for TokenHash {}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use secrecy::ExposeSecret;

    use super::*;

    const KINDS: [TokenKind; 3] = [TokenKind::Refresh, TokenKind::Join, TokenKind::WorkerKey];

    #[test]
    fn a_token_survives_its_text_and_only_its_own_kind_reads_it() {
        for kind in KINDS {
            let token = OpaqueToken::generate(kind);
            let text = token.reveal();
            assert_eq!(text.expose_secret().len(), 47);
            for other in KINDS {
                let parsed = OpaqueToken::parse(text.expose_secret(), other);
                if other == kind {
                    assert_eq!(parsed.unwrap().hash(), token.hash());
                } else {
                    assert_eq!(parsed.unwrap_err(), TokenError::Kind { expected: other });
                }
            }
        }
    }

    #[test]
    fn the_hash_is_that_of_the_text_and_depends_on_the_kind() {
        let parse =
            |kind: TokenKind| OpaqueToken::parse(&format!("{}{}", kind.prefix(), "A".repeat(43)), kind).unwrap();
        // printf 'swr_AAAA…' | sha256sum
        let expected: [u8; 32] = Sha256::digest(format!("swr_{}", "A".repeat(43))).into();
        assert_eq!(parse(TokenKind::Refresh).hash(), TokenHash(expected));
        assert_ne!(parse(TokenKind::Refresh).hash(), parse(TokenKind::Join).hash());
    }

    #[test]
    fn misspelt_tokens_are_refused() {
        let good = format!("swj_{}", "A".repeat(43));
        let expected = TokenKind::Join;
        assert!(OpaqueToken::parse(&good, expected).is_ok());
        for bad in [
            String::new(),
            "swj_".to_owned(),
            good[..46].to_owned(),
            format!("{good}A"),
            format!(" {good}"),
            format!("{good}="),
            format!("swj_{}B", "A".repeat(42)), // bits beyond the 32 bytes: a second spelling
            format!("swj_{}+", "A".repeat(42)),
            format!("swj_{}é", "A".repeat(41)),
            good.to_uppercase(),
        ] {
            let error = OpaqueToken::parse(&bad, expected).unwrap_err();
            assert!(!error.to_string().contains("AAAA"), "{error}");
        }
    }

    #[test]
    fn tokens_differ_and_do_not_show_in_debug_output() {
        let tokens: Vec<_> = (0..100).map(|_| OpaqueToken::generate(TokenKind::WorkerKey)).collect();
        let hashes: HashSet<_> = tokens.iter().map(OpaqueToken::hash).collect();
        assert_eq!(hashes.len(), 100);
        assert_eq!(format!("{:?}", tokens[0]), "swk_[hidden]");
    }

    proptest! {
        #[test]
        fn hostile_text_is_refused_without_panic(text in "\\PC{0,60}", tail in "[ -~]{43}") {
            prop_assert!(OpaqueToken::parse(&text, TokenKind::Refresh).is_err() || text.starts_with("swr_"));
            if let Ok(token) = OpaqueToken::parse(&format!("swr_{tail}"), TokenKind::Refresh) {
                let revealed = token.reveal();
                prop_assert_eq!(&revealed.expose_secret()[4..], &tail, "one text per token");
            }
        }
    }
}
