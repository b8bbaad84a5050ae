use std::io;
use std::path::{Path, PathBuf};

use swarm_protocol::ids::Digest;

use super::{LogKey, SealError};

/// What the blob store could not do.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The blob is not stored.
    #[error("{0} is not stored here")]
    NotFound(Digest),
    /// The uploaded bytes are not the announced ones.
    #[error("the bytes have the digest {actual}, not {expected}; upload them again")]
    WrongDigest {
        /// What the uploader announced.
        expected: Digest,
        /// What arrived.
        actual: Digest,
    },
    /// The upload is larger than allowed.
    #[error("the upload is larger than the {max_bytes} bytes allowed here")]
    TooLarge {
        /// The upload's limit.
        max_bytes: u64,
    },
    /// The bytes appended do not follow what the log has.
    #[error("log {log} has {have} bytes, so bytes from offset {offset} would leave a gap; resend from {have}")]
    Gap {
        /// The log.
        log: LogKey,
        /// Its length.
        have: u64,
        /// Where the bytes would have begun.
        offset: u64,
    },
    /// One append is larger than an extent may be.
    #[error("{bytes} bytes are too many for one append to log {log}; send at most {max_bytes}")]
    AppendTooLarge {
        /// The log.
        log: LogKey,
        /// Bytes given.
        bytes: usize,
        /// Bytes allowed.
        max_bytes: usize,
    },
    /// Stored bytes do not open.
    #[error("{path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SealError,
    },
    /// The operating system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl BlobError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    pub(super) fn sealed(action: &'static str, path: &Path) -> impl FnOnce(SealError) -> Self {
        move |error| match error {
            SealError::Io(source) => Self::Io { action, path: path.to_owned(), source },
            source => Self::Damaged { path: path.to_owned(), source },
        }
    }
}
