//! Everything the core keeps as bytes: blobs (images, inputs, outputs), content-addressed and immutable, and logs,
//! which grow at their end. Both lie sealed on disk (see `sealed.rs` for the format); callers see plaintext only.
//!
//! All methods block (hashing, fsync): call them through `spawn_blocking` or on a thread of their own.
//! What a call acknowledges is durable: file and directory are synced before it returns.

mod dirs;
mod disk;
mod error;
mod keys;
mod log;
mod sealed;
mod sealed_file;

use std::fmt;
use std::io::{Read, Seek, Write};
use std::str::FromStr;
use std::time::SystemTime;

use swarm_protocol::ids::{AttemptId, Digest};

pub use disk::DiskBlobs;
pub use error::BlobError;
pub use keys::{KeyError, KeyId, MasterKey};
pub use log::LOG_APPEND_BYTES_MAX;
pub use sealed::SealError;

/// What is known of a stored blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobInfo {
    /// SHA-256 of the plaintext.
    pub digest: Digest,
    /// Plaintext bytes.
    pub size_bytes: u64,
}

/// A blob as listed for garbage collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobEntry {
    /// Which blob.
    pub digest: Digest,
    /// Bytes it takes on disk, a little more than its plaintext.
    pub stored_bytes: u64,
    /// When it was last uploaded; storing a blob that is there already renews this.
    pub uploaded_at: SystemTime,
}

/// Plaintext of a blob, verified as it is read; damage is an [`std::io::ErrorKind::InvalidData`] error.
pub trait BlobRead: Read + Seek + Send {
    /// Plaintext bytes in all.
    fn size_bytes(&self) -> u64;
}

/// A blob being written; dropped without [`BlobUpload::finish`] it leaves nothing behind.
///
/// A write beyond the upload's limit fails with [`std::io::ErrorKind::FileTooLarge`]; after any failed write only
/// dropping is left.
pub trait BlobUpload: Write + Send {
    /// Plaintext bytes written so far.
    fn written_bytes(&self) -> u64;

    /// Ends the writing without putting the blob in the store yet, so that it can be read and judged first.
    ///
    /// # Errors
    /// [`BlobError::Io`], also after an earlier failed write.
    fn stage(self: Box<Self>) -> Result<Box<dyn StagedBlob>, BlobError>;

    /// Ends the writing, checks the digest where one is expected, and makes the blob durable under its digest.
    /// Storing what is stored already succeeds.
    ///
    /// # Errors
    /// [`BlobError::WrongDigest`] when the bytes are not the expected ones, [`BlobError::Io`] for the rest; nothing is
    /// left behind then.
    fn finish(self: Box<Self>, expected: Option<Digest>) -> Result<BlobInfo, BlobError> {
        expect_digest(self.stage()?, expected)?.publish()
    }
}

/// A blob written whole but not in the store; dropped without [`StagedBlob::publish`] it leaves nothing behind.
pub trait StagedBlob: Send {
    /// Its digest and size.
    fn info(&self) -> BlobInfo;

    /// Reads it.
    ///
    /// # Errors
    /// [`BlobError::Io`] or [`BlobError::Damaged`].
    fn open(&self) -> Result<Box<dyn BlobRead>, BlobError>;

    /// Makes it durable under its digest.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn publish(self: Box<Self>) -> Result<BlobInfo, BlobError>;
}

/// A staged blob with the digest that is expected, where one is.
pub(crate) fn expect_digest(
    staged: Box<dyn StagedBlob>,
    expected: Option<Digest>,
) -> Result<Box<dyn StagedBlob>, BlobError> {
    let actual = staged.info().digest;
    match expected {
        Some(expected) if expected != actual => Err(BlobError::WrongDigest { expected, actual }),
        _ => Ok(staged),
    }
}

/// A store of blobs and logs. Shared as `Arc<dyn BlobStore>`.
pub trait BlobStore: Send + Sync + fmt::Debug {
    /// Begins an upload of at most `max_bytes` plaintext bytes.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn begin(&self, max_bytes: u64) -> Result<Box<dyn BlobUpload>, BlobError>;

    /// Reads a blob.
    ///
    /// # Errors
    /// [`BlobError::NotFound`]; [`BlobError::Damaged`] when its file is not whole.
    fn open(&self, digest: &Digest) -> Result<Box<dyn BlobRead>, BlobError>;

    /// Plaintext bytes of a blob, `None` when it is not stored.
    ///
    /// # Errors
    /// [`BlobError::Damaged`] or [`BlobError::Io`].
    fn size(&self, digest: &Digest) -> Result<Option<u64>, BlobError> {
        match self.open(digest) {
            Ok(blob) => Ok(Some(blob.size_bytes())),
            Err(BlobError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a blob is stored; its content is not read.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn contains(&self, digest: &Digest) -> Result<bool, BlobError>;

    /// Removes a blob unless it was uploaded at or after `spare_from`; answers whether it was removed. Readers that have it
    /// open read on. Garbage collection passes the instant before it looked for links, so that a blob uploaded
    /// again in between stays.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn remove(&self, digest: &Digest, spare_from: Option<SystemTime>) -> Result<bool, BlobError>;

    /// Up to `count_max` blobs in the order of their digests, beginning after `after`.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn list(&self, after: Option<&Digest>, count_max: usize) -> Result<Vec<BlobEntry>, BlobError>;

    /// Appends `bytes`, whose first byte belongs at plaintext `offset`; answers the durable plaintext length. Bytes
    /// the log has already are skipped, so a repeated append changes nothing.
    ///
    /// # Errors
    /// [`BlobError::Gap`] when `offset` lies beyond the log's end, [`BlobError::AppendTooLarge`] beyond
    /// [`LOG_APPEND_BYTES_MAX`], [`BlobError::Damaged`], [`BlobError::Io`] (nothing was acknowledged: repeat it).
    fn log_append(&self, log: &LogKey, offset: u64, bytes: &[u8]) -> Result<u64, BlobError>;

    /// Durable plaintext bytes of a log; 0 when there is none. Less than once acknowledged means that its end was
    /// damaged and cut; whoever marks the log as cut may fill the gap with a note of that length.
    ///
    /// # Errors
    /// [`BlobError::Damaged`] or [`BlobError::Io`].
    fn log_len(&self, log: &LogKey) -> Result<u64, BlobError>;

    /// Up to `len_max` plaintext bytes from `offset` on; empty at the end and where there is no log.
    ///
    /// # Errors
    /// [`BlobError::Damaged`] or [`BlobError::Io`].
    fn log_read(&self, log: &LogKey, offset: u64, len_max: usize) -> Result<Vec<u8>, BlobError>;

    /// Removes a log; answers whether there was one.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn log_remove(&self, log: &LogKey) -> Result<bool, BlobError>;
}

/// The name of a log: 1 to 100 characters of `a-z 0-9 . _ -`, the first a letter or digit, such as `42.7.1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogKey(String);

/// A text that cannot name a log.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` cannot name a log; use 1 to 100 characters of a-z, 0-9, `.`, `_` and `-`, beginning with a letter or digit"
)]
pub struct LogKeyError(String);

impl LogKey {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<AttemptId> for LogKey {
    fn from(attempt: AttemptId) -> Self {
        Self(attempt.to_string())
    }
}

impl FromStr for LogKey {
    type Err = LogKeyError;
    fn from_str(text: &str) -> Result<Self, LogKeyError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let fits = text.len() <= 100
            && text.bytes().next().is_some_and(plain)
            && text.bytes().all(|byte| plain(byte) || matches!(byte, b'.' | b'_' | b'-'));
        if fits { Ok(Self(text.to_owned())) } else { Err(LogKeyError(text.escape_debug().take(80).collect())) }
    }
}

#[cfg(test)]
mod tests;
