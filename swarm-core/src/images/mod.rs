//! Images as they arrive: archives and manifests are checked here, their bytes lie in the blob store.
//!
//! An image is its config digest. Nothing in an archive, a manifest or a config is trusted: sizes are bounded, digests
//! are computed, and each layer's uncompressed bytes are compared with the config's `rootfs.diff_ids`.

mod archive;
mod config;
mod error;
mod layer;
mod manifest;
mod reference;
mod tar_reader;

pub use archive::{ImportedImage, import};
pub use config::ImageConfig;
pub use error::ImageError;
pub use layer::{Layer, LayerMedia, StoredLayer, verify_layer};
pub use manifest::{Descriptor, Manifest};
pub use reference::{ImageRef, ImageRefError};

/// Bounds of one image and of the archive it arrives in.
#[derive(Debug, Clone)]
pub struct ImageLimits {
    /// Members of an archive, directories and links included.
    pub members_max: usize,
    /// Bytes of a member's name or link target.
    pub path_bytes_max: usize,
    /// Bytes of one member, and of one layer as stored.
    pub member_bytes_max: u64,
    /// Bytes of the whole archive after decompression.
    pub archive_bytes_max: u64,
    /// Layers of an image.
    pub layers_max: usize,
    /// Bytes of all layers after decompression.
    pub expanded_bytes_max: u64,
    /// How many times larger than its stored bytes a compressed layer may become, beyond its first 16 MiB.
    pub expansion_ratio_max: u64,
}

impl Default for ImageLimits {
    fn default() -> Self {
        const GIB: u64 = 1 << 30;
        Self {
            members_max: 4096,
            path_bytes_max: 512,
            member_bytes_max: 16 * GIB,
            archive_bytes_max: 32 * GIB,
            layers_max: 256,
            expanded_bytes_max: 64 * GIB,
            expansion_ratio_max: 200,
        }
    }
}

/// Most bytes of a manifest, an index or a config.
pub const DOCUMENT_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[cfg(test)]
mod tests;
