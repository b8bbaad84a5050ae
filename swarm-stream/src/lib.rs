//! STREAM over ChaCha20-Poly1305 for one key. A crate of its own, so that a debug build optimises it: the ciphers are
//! generic, and would else be compiled where they are used, fifty times slower.
//!
//! Sources: RFC 8439 (ChaCha20-Poly1305); Hoang, Reyhanitabar, Rogaway and Vizár, "Online Authenticated-Encryption and its
//! Nonce-Reuse Misuse-Resistance" (CRYPTO 2015), which describes STREAM.

use aead_stream::{NewStream, StreamBE32, StreamPrimitive};
use chacha20poly1305::{ChaCha20Poly1305, Key, KeyInit};

/// Seals and opens the segments of one stream; its key is wiped when it is dropped.
pub struct Stream(StreamBE32<ChaCha20Poly1305>);

/// A segment that cannot be sealed or does not authenticate; the cipher tells no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

impl Stream {
    /// For a key that no other stream has had: nonces count from 0.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self(StreamBE32::from_aead(ChaCha20Poly1305::new(&Key::from(*key)), &Default::default()))
    }

    /// Turns a segment's plaintext into its sealed bytes, 16 more.
    ///
    /// # Errors
    /// [`Refused`] for a segment beyond any cipher's reach.
    pub fn seal(&self, index: u32, last: bool, segment: &mut Vec<u8>) -> Result<(), Refused> {
        self.0.encrypt_in_place(index, last, &[], segment).map_err(|_| Refused)
    }

    /// Turns a segment's sealed bytes into its plaintext.
    ///
    /// # Errors
    /// [`Refused`] when it was not sealed with this key, at this place.
    pub fn open(&self, index: u32, last: bool, segment: &mut Vec<u8>) -> Result<(), Refused> {
        self.0.decrypt_in_place(index, last, &[], segment).map_err(|_| Refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_opens_at_its_own_place_alone() {
        let stream = Stream::new(&[7; 32]);
        let mut segment = b"content".to_vec();
        stream.seal(3, false, &mut segment).unwrap();
        assert_eq!(segment.len(), 7 + 16);
        let open = |stream: &Stream, index, last| {
            let mut copy = segment.clone();
            stream.open(index, last, &mut copy).map(|()| copy)
        };
        assert_eq!(open(&stream, 3, false), Ok(b"content".to_vec()));
        for (index, last) in [(2, false), (3, true)] {
            assert_eq!(open(&stream, index, last), Err(Refused));
        }
        assert_eq!(open(&Stream::new(&[8; 32]), 3, false), Err(Refused));
    }
}
