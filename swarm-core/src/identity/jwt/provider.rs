//! HMAC-SHA-256 by ring for `jsonwebtoken`, which brings no cryptography of its own in this build.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature::{Error as SignatureError, Signer, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, EncodingKey};
use ring::hmac;

/// Makes the library use ring. May be called any number of times.
pub(super) fn install() {
    static RING: CryptoProvider =
        CryptoProvider { signer_factory: signer, verifier_factory: verifier, key_utils: KeyUtils::new_unimplemented() };
    // An error only means that it is installed already: nobody else in this process installs another.
    let _ = RING.install_default();
}

struct Hs256(hmac::Key);

impl Hs256 {
    /// Refuses every other algorithm, and every key that is not a shared secret: a public key used as one is the classic
    /// way to forge tokens.
    fn new(algorithm: Algorithm, family: AlgorithmFamily, secret: &[u8]) -> Result<Self, Error> {
        if algorithm != Algorithm::HS256 {
            return Err(ErrorKind::UnsupportedAlgorithm.into());
        }
        if family != AlgorithmFamily::Hmac {
            return Err(ErrorKind::InvalidKeyFormat.into());
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, secret)))
    }
}

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>, Error> {
    Ok(Box::new(Hs256::new(*algorithm, key.family(), key.as_bytes())?))
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    Ok(Box::new(Hs256::new(*algorithm, key.family(), key.try_get_as_bytes()?)?))
}

impl Signer<Vec<u8>> for Hs256 {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        Ok(hmac::sign(&self.0, message).as_ref().to_vec())
    }
}

impl Verifier<Vec<u8>> for Hs256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        hmac::verify(&self.0, message, signature).map_err(|_| SignatureError::new())
    }
}

impl JwtSigner for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mac_is_that_of_rfc_4231_test_case_2() {
        let key = EncodingKey::from_secret(b"Jefe");
        let mac = signer(&Algorithm::HS256, &key).unwrap().try_sign(b"what do ya want for nothing?").unwrap();
        assert_eq!(hex::encode(&mac), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        let verifier = verifier(&Algorithm::HS256, &DecodingKey::from_secret(b"Jefe")).unwrap();
        assert!(verifier.verify(b"what do ya want for nothing?", &mac).is_ok());
        assert!(verifier.verify(b"what do ya want for nothing!", &mac).is_err());
        assert!(verifier.verify(b"what do ya want for nothing?", &mac[..16].to_vec()).is_err(), "no truncated MACs");
    }

    #[test]
    fn other_algorithms_and_keys_of_other_families_are_refused() {
        let secret = DecodingKey::from_secret(&[7; 32]);
        for algorithm in [Algorithm::HS384, Algorithm::HS512, Algorithm::EdDSA, Algorithm::RS256, Algorithm::ES256] {
            assert!(verifier(&algorithm, &secret).is_err(), "{algorithm:?}");
        }
        assert!(verifier(&Algorithm::HS256, &DecodingKey::from_ed_der(&[7; 32])).is_err());
        assert!(signer(&Algorithm::HS256, &EncodingKey::from_ed_der(&[7; 32])).is_err());
        assert!(verifier(&Algorithm::HS256, &DecodingKey::from_rsa_der(&[7; 32])).is_err());
    }
}
