use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use swarm_protocol::ids::Digest;

use super::ImageLimits;
use super::error::{ImageError, shown};

/// How a layer's tar is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerMedia {
    /// Plain.
    Tar,
    /// Compressed with gzip.
    Gzip,
}

/// A layer of an image, as it lies in the blob store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// SHA-256 of the stored bytes.
    pub digest: Digest,
    /// SHA-256 of the uncompressed tar.
    pub diff_id: Digest,
    /// Stored bytes.
    pub size_bytes: u64,
    /// How the tar is stored.
    pub media: LayerMedia,
}

/// A compressed layer may always become this large.
const EXPANSION_FREE_BYTES: u64 = 16 * 1024 * 1024;

/// What the first bytes of a file say about its compression.
pub(super) enum Compression {
    None,
    Gzip,
    Other(&'static str),
}

impl Compression {
    pub(super) fn of(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Other("zstd"),
            [0xfd, b'7', b'z', b'X', ..] => Self::Other("xz"),
            [b'B', b'Z', b'h', ..] => Self::Other("bzip2"),
            _ => Self::None,
        }
    }
}

/// A layer's bytes, of which digest and size are known.
#[derive(Debug, Clone, Copy)]
pub struct StoredLayer<'a> {
    /// Shown in errors.
    pub name: &'a str,
    /// SHA-256 of the stored bytes.
    pub digest: Digest,
    /// How many they are.
    pub size_bytes: u64,
}

/// Checks that a layer's uncompressed tar has the digest `diff_id`, reading it to its end where the stored digest does
/// not say so already. `expanded` counts uncompressed bytes over all layers of the image.
///
/// # Errors
/// [`ImageError::Compression`] for anything but plain and gzip, [`ImageError::TooLarge`] beyond the limits,
/// [`ImageError::WrongDiffId`] when the result is not `diff_id`, [`ImageError::ReadBack`] when reading fails.
pub fn verify_layer(
    layer: &StoredLayer<'_>,
    mut stored: impl Read,
    diff_id: Digest,
    expanded: &mut u64,
    limits: &ImageLimits,
) -> Result<LayerMedia, ImageError> {
    let StoredLayer { name, digest, size_bytes } = *layer;
    let read_back = |source| ImageError::ReadBack { what: shown(name), source };
    let mut first = [0u8; 6];
    let taken = read_full(&mut stored, &mut first).map_err(read_back)?;
    let whole = first[..taken].chain(stored);
    let (media, actual) = match Compression::of(&first[..taken]) {
        Compression::Other(format) => return Err(ImageError::Compression { what: shown(name), format }),
        Compression::None => {
            // The stored bytes are the tar itself, so the digest taken when they came in is the answer.
            let limit = Expansion { name, left: limits.expanded_bytes_max.saturating_sub(*expanded), limits };
            limit.check(size_bytes)?;
            *expanded = expanded.saturating_add(size_bytes);
            (LayerMedia::Tar, digest)
        }
        Compression::Gzip => {
            let ratio = size_bytes.saturating_mul(limits.expansion_ratio_max).saturating_add(EXPANSION_FREE_BYTES);
            let left = limits.expanded_bytes_max.saturating_sub(*expanded).min(ratio);
            let limit = Expansion { name, left, limits };
            let broken = |error: io::Error| match error.kind() {
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                    let problem = "is a damaged gzip file".to_owned();
                    ImageError::Member { member: shown(name), problem }
                }
                _ => read_back(error),
            };
            (LayerMedia::Gzip, hash(MultiGzDecoder::new(whole), &limit, expanded, broken)?)
        }
    };
    if actual == diff_id {
        Ok(media)
    } else {
        Err(ImageError::WrongDiffId { layer: shown(name), expected: diff_id, actual })
    }
}

struct Expansion<'a> {
    name: &'a str,
    left: u64,
    limits: &'a ImageLimits,
}

impl Expansion<'_> {
    fn check(&self, total: u64) -> Result<(), ImageError> {
        if total <= self.left {
            return Ok(());
        }
        let what = format!(
            "layer `{}`, unpacked (at most {} times its stored size, and at most {} bytes over all layers),",
            shown(self.name),
            self.limits.expansion_ratio_max,
            self.limits.expanded_bytes_max
        );
        Err(ImageError::TooLarge { what, max: self.left, unit: "bytes" })
    }
}

fn hash(
    mut plain: impl Read,
    limit: &Expansion<'_>,
    expanded: &mut u64,
    failed: impl Fn(io::Error) -> ImageError,
) -> Result<Digest, ImageError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0u64;
    loop {
        let taken = match plain.read(&mut buffer) {
            Ok(0) => break,
            Ok(taken) => taken,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        total += taken as u64;
        limit.check(total)?;
        hash.update(&buffer[..taken]);
    }
    *expanded = expanded.saturating_add(total);
    Ok(Digest(hash.finalize().into()))
}

/// Reads until the buffer is full or the source ends.
pub(super) fn read_full(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match source.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(taken) => done += taken,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
