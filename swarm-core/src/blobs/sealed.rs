//! The one format of everything kept at rest: blobs and logs. Frozen: a change is a new version number.
//!
//! A file is a sequence of *extents*; each has a data key of its own, so an append or a resumed upload is simply a
//! further extent. All numbers are big-endian.
//!
//! ```text
//! extent = header (112 bytes) | segment 0 | segment 1 | ... | segment n-1
//!
//! header
//!   0   8  magic, ASCII "SWARMEXT"
//!   8   2  version, 1
//!  10   1  kind of file: 1 = blob, 2 = log
//!  11   1  flags: bit 0 = the file's last extent (every blob ends with one, a log never does); other bits are 0
//!  12   4  index of this extent in its file, from 0
//!  16   8  start: plaintext bytes in the extents before this one
//!  24   8  length: plaintext bytes in this extent
//!  32   8  key id: the first 8 bytes of the SHA-256 of the master key
//!  40  24  nonce of the wrapping, random
//!  64  48  the data key (32 bytes, random), wrapped: XChaCha20-Poly1305 under the master key; associated data are
//!          header bytes 0..40 followed by the 32-byte file id
//!
//! segment i of n = max(1, ceil(length / 65536)); the plaintext is 65536 bytes, in the last segment what is left
//!   ChaCha20-Poly1305 under the data key, ciphertext followed by the 16-byte tag, no associated data;
//!   nonce (STREAM, BE32) = 7 zero bytes | i as 4 bytes | 1 in the last segment, else 0
//!
//! file id: of a blob the SHA-256 of its plaintext; of a log the SHA-256 of its name
//! ```
//!
//! The nonce prefix may be zero because no data key is used for more than one extent. The wrapping nonce has 24 bytes
//! because one master key wraps a key per log append: with 12 random bytes a collision would come into sight.
//! What the tags prove: a segment that is changed, moved, doubled or dropped does not open (key and counter); neither
//! does an extent that is moved, doubled or taken from another file (index, start and file id are authenticated with the
//! key); a cut shows in the authenticated length or the missing last-extent flag. A log cut at an extent boundary, or
//! put back to an older state as a whole, cannot be told from a shorter log; the database knows the lengths.
//!
//! The header holds the length, so it is written when the extent is complete: a writer that does not know the length
//! leaves room for the header and fills it in last; one that cannot seek cuts its bytes into extents it can buffer.
//!
//! Sources: RFC 8439 (ChaCha20-Poly1305), draft-irtf-cfrg-xchacha (XChaCha20), Hoang, Reyhanitabar, Rogaway and Vizár,
//! "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", 2015 (STREAM).

use std::io::{self, Write};

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{Key, KeyInit, XChaCha20Poly1305, XNonce};
use rand::TryRng;
use sha2::{Digest as _, Sha256};
use swarm_protocol::ids::Digest;
use swarm_stream::Stream;
use zeroize::Zeroizing;

use super::keys::{KeyId, MasterKey};

/// Plaintext bytes of every segment but an extent's last.
pub(crate) const SEGMENT_BYTES: usize = 64 * 1024;
/// Bytes of an extent's header.
pub(crate) const HEADER_BYTES: usize = 112;
pub(super) const MAGIC: [u8; 8] = *b"SWARMEXT";
pub(super) const TAG_BYTES: usize = 16;
const VERSION: u16 = 1;
const FLAG_LAST: u8 = 1;
/// What the wrapping authenticates beside the file id.
const BOUND_BYTES: usize = 40;
const NONCE_BYTES: usize = 24;

/// Why sealed bytes do not open.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// No extent begins here.
    #[error("byte {at}: no sealed extent begins here")]
    NotSealed {
        /// Offset in the file.
        at: u64,
    },
    /// Written by a newer release.
    #[error("byte {at}: sealed format version {version} is not known here; use the release that wrote it")]
    Version {
        /// Offset in the file.
        at: u64,
        /// The version found.
        version: u16,
    },
    /// Sealed under another master key.
    #[error("byte {at}: sealed under master key {found}, but the key in use is {ours}; restore that key file")]
    OtherKey {
        /// Offset in the file.
        at: u64,
        /// The key it was sealed under.
        found: KeyId,
        /// The key in use.
        ours: KeyId,
    },
    /// The header does not authenticate, or stands where it does not belong.
    #[error("byte {at}: the extent's header was changed or belongs elsewhere")]
    Header {
        /// Offset in the file.
        at: u64,
    },
    /// A segment does not authenticate.
    #[error("byte {at}: the segment was changed or belongs elsewhere")]
    Segment {
        /// Offset in the file.
        at: u64,
    },
    /// The file ends too early.
    #[error("the file ends at byte {at}, before its sealed content does")]
    Truncated {
        /// Length of the file.
        at: u64,
    },
    /// There is more than was sealed.
    #[error("byte {at}: bytes after the last extent")]
    Trailing {
        /// Offset in the file.
        at: u64,
    },
    /// More than one extent can hold.
    #[error("an extent holds at most 256 TiB")]
    TooLong,
    /// The operating system refused.
    #[error("reading or writing sealed bytes failed")]
    Io(#[from] io::Error),
}

impl From<SealError> for io::Error {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Io(error) => error,
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}

/// What a file is, bound into each of its extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileId {
    Blob(Digest),
    Log([u8; 32]),
}

impl FileId {
    pub(crate) fn log(name: &str) -> Self {
        Self::Log(Sha256::digest(name.as_bytes()).into())
    }

    const fn kind(&self) -> u8 {
        match self {
            Self::Blob(_) => 1,
            Self::Log(_) => 2,
        }
    }

    const fn bytes(&self) -> &[u8; 32] {
        match self {
            Self::Blob(digest) => &digest.0,
            Self::Log(hash) => hash,
        }
    }
}

/// The authenticated facts of an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) index: u32,
    /// Plaintext bytes before it.
    pub(crate) start: u64,
    /// Plaintext bytes in it.
    pub(crate) length: u64,
    pub(crate) last: bool,
}

pub(super) const fn segments(length: u64) -> u64 {
    if length == 0 { 1 } else { length.div_ceil(SEGMENT_BYTES as u64) }
}

/// Bytes an extent of `length` plaintext bytes takes in the file, header included; `None` beyond any file's size.
pub(crate) fn extent_bytes(length: u64) -> Option<u64> {
    let tags = segments(length).checked_mul(TAG_BYTES as u64)?;
    length.checked_add(tags)?.checked_add(HEADER_BYTES as u64)
}

/// The key of one extent, ready for use; wiped when dropped.
pub(crate) struct DataKey {
    bytes: Zeroizing<[u8; 32]>,
    stream: Stream,
}

impl DataKey {
    pub(crate) fn random() -> io::Result<Self> {
        let mut bytes = Zeroizing::new([0u8; 32]);
        rand::rngs::SysRng.try_fill_bytes(bytes.as_mut_slice()).map_err(io::Error::other)?;
        Ok(Self::from_bytes(bytes))
    }

    fn from_bytes(bytes: Zeroizing<[u8; 32]>) -> Self {
        let stream = Stream::new(&bytes);
        Self { bytes, stream }
    }

    /// Turns a segment's plaintext into its sealed bytes.
    fn seal(&self, index: u64, last: bool, segment: &mut Vec<u8>) -> Result<(), SealError> {
        let index = u32::try_from(index).map_err(|_| SealError::TooLong)?;
        self.stream.seal(index, last, segment).map_err(|_| SealError::TooLong)
    }

    pub(super) fn open(&self, index: u64, last: bool, segment: &mut Vec<u8>, at: u64) -> Result<(), SealError> {
        let index = u32::try_from(index).map_err(|_| SealError::TooLong)?;
        self.stream.open(index, last, segment).map_err(|_| SealError::Segment { at })
    }
}

/// The header of `extent`, with its data key wrapped under `master`.
pub(crate) fn seal_header(
    master: &MasterKey,
    file: &FileId,
    extent: &Extent,
    key: &DataKey,
) -> io::Result<[u8; HEADER_BYTES]> {
    let mut header = [0u8; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..10].copy_from_slice(&VERSION.to_be_bytes());
    header[10] = file.kind();
    header[11] = if extent.last { FLAG_LAST } else { 0 };
    header[12..16].copy_from_slice(&extent.index.to_be_bytes());
    header[16..24].copy_from_slice(&extent.start.to_be_bytes());
    header[24..32].copy_from_slice(&extent.length.to_be_bytes());
    header[32..BOUND_BYTES].copy_from_slice(&master.id().0);
    let mut nonce = [0u8; NONCE_BYTES];
    rand::rngs::SysRng.try_fill_bytes(&mut nonce).map_err(io::Error::other)?;
    let aad = bound(&header, file);
    let wrapped = XChaCha20Poly1305::new(&Key::from(*master.bytes()))
        .encrypt(&XNonce::from(nonce), Payload { msg: key.bytes.as_slice(), aad: &aad })
        .map_err(|_| io::Error::other("wrapping a data key failed"))?;
    header[BOUND_BYTES..BOUND_BYTES + NONCE_BYTES].copy_from_slice(&nonce);
    header[BOUND_BYTES + NONCE_BYTES..].copy_from_slice(&wrapped);
    Ok(header)
}

/// Authenticates a header found at byte `at` of `file`; answers the extent and its key.
pub(crate) fn open_header(
    master: &MasterKey,
    file: &FileId,
    header: &[u8; HEADER_BYTES],
    at: u64,
) -> Result<(Extent, DataKey), SealError> {
    if header[..8] != MAGIC {
        return Err(SealError::NotSealed { at });
    }
    let version = u16::from_be_bytes(field(header, 8));
    if version != VERSION {
        return Err(SealError::Version { at, version });
    }
    let found = KeyId(field(header, 32));
    if found != master.id() {
        return Err(SealError::OtherKey { at, found, ours: master.id() });
    }
    if header[10] != file.kind() || header[11] & !FLAG_LAST != 0 {
        return Err(SealError::Header { at });
    }
    let nonce: [u8; NONCE_BYTES] = field(header, BOUND_BYTES);
    let aad = bound(header, file);
    let plain = XChaCha20Poly1305::new(&Key::from(*master.bytes()))
        .decrypt(&XNonce::from(nonce), Payload { msg: &header[BOUND_BYTES + NONCE_BYTES..], aad: &aad })
        .map(Zeroizing::new)
        .map_err(|_| SealError::Header { at })?;
    let mut bytes = Zeroizing::new([0u8; 32]);
    bytes.copy_from_slice(&plain);
    let extent = Extent {
        index: u32::from_be_bytes(field(header, 12)),
        start: u64::from_be_bytes(field(header, 16)),
        length: u64::from_be_bytes(field(header, 24)),
        last: header[11] & FLAG_LAST != 0,
    };
    Ok((extent, DataKey::from_bytes(bytes)))
}

fn bound(header: &[u8; HEADER_BYTES], file: &FileId) -> [u8; BOUND_BYTES + 32] {
    let mut aad = [0u8; BOUND_BYTES + 32];
    aad[..BOUND_BYTES].copy_from_slice(&header[..BOUND_BYTES]);
    aad[BOUND_BYTES..].copy_from_slice(file.bytes());
    aad
}

fn field<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut bytes = [0u8; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}

/// A whole extent of known content, header included: what a log appends.
pub(crate) fn seal_extent(
    master: &MasterKey,
    file: &FileId,
    index: u32,
    start: u64,
    last: bool,
    plain: &[u8],
) -> Result<Vec<u8>, SealError> {
    let key = DataKey::random()?;
    let extent = Extent { index, start, length: plain.len() as u64, last };
    let mut sealed = seal_header(master, file, &extent, &key)?.to_vec();
    let mut writer = SegmentWriter::new(key, &mut sealed);
    writer.write_all(plain)?;
    writer.finish()?;
    Ok(sealed)
}

/// Seals what is written to it, segment by segment; the caller writes the header, for which it has left room.
pub(crate) struct SegmentWriter<W> {
    key: DataKey,
    sink: W,
    segment: Vec<u8>,
    done: u64,
}

impl<W: Write> SegmentWriter<W> {
    pub(crate) fn new(key: DataKey, sink: W) -> Self {
        Self { key, sink, segment: Vec::new(), done: 0 }
    }

    fn flush_segment(&mut self, last: bool) -> io::Result<()> {
        self.key.seal(self.done, last, &mut self.segment)?;
        self.sink.write_all(&self.segment)?;
        self.segment.clear();
        self.done += 1;
        Ok(())
    }

    /// Writes the last segment.
    pub(crate) fn finish(mut self) -> io::Result<(DataKey, W)> {
        self.flush_segment(true)?;
        Ok((self.key, self.sink))
    }
}

impl<W: Write> Write for SegmentWriter<W> {
    /// After an error the writer is of no further use: how much of the segment went out is not known.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full segment waits for the next byte, since only then it is known not to be the last.
        if self.segment.len() == SEGMENT_BYTES && !bytes.is_empty() {
            self.flush_segment(false)?;
        }
        let taken = bytes.len().min(SEGMENT_BYTES - self.segment.len());
        self.segment.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
