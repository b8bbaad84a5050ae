//! Import of an image archive: what `docker save` writes (old and new layout) and OCI image layouts, plain or gzipped.
//!
//! Members are staged in the blob store as they stream by; only when the whole image has been checked are its config and
//! layers published. All else, and everything after an error, is dropped with the stage.

use std::collections::{BTreeSet, HashMap};
use std::io::Read;

use flate2::read::MultiGzDecoder;
use swarm_protocol::ids::Digest;

use super::error::{ImageError, shown, shown_list};
use super::layer::{Compression, StoredLayer, read_full, verify_layer};
use super::manifest::{Descriptor, Index, Manifest, OciLayout, SavedImage, parse};
use super::tar_reader::{MemberKind, TarReader};
use super::{DOCUMENT_BYTES_MAX, ImageConfig, ImageLimits, Layer};
use crate::blobs::{BlobStore, StagedBlob};

/// Links followed from one name to a file.
const LINK_HOPS_MAX: usize = 8;
/// Indexes inside indexes.
const INDEX_DEPTH_MAX: usize = 3;
const NAMES_MAX: usize = 32;
const NAME_BYTES_MAX: usize = 255;
const DOCKER_MANIFEST: &str = "manifest.json";
const OCI_INDEX: &str = "index.json";
const OCI_LAYOUT: &str = "oci-layout";
const BLOB_DIR: &str = "blobs/sha256/";

/// An image that is whole, checked and stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedImage {
    /// The image's identity.
    pub config_digest: Digest,
    /// Bytes of its config.
    pub config_size_bytes: u64,
    /// Its layers, lowest first; an image may have the same layer twice.
    pub layers: Vec<Layer>,
    /// The names it was saved under, as they stand in the archive: to be parsed, and shown only sanitised.
    pub names: Vec<String>,
    /// What its config says.
    pub config: ImageConfig,
}

/// Reads an archive to its end and stores the one image in it. Blocks; takes as long as the bytes take to come.
///
/// # Errors
/// [`ImageError`]; the store is then as before, except that blobs of a complete image may stay when storing it failed.
pub fn import(mut reader: impl Read, blobs: &dyn BlobStore, limits: &ImageLimits) -> Result<ImportedImage, ImageError> {
    let mut first = [0u8; 6];
    let taken = read_full(&mut reader, &mut first).map_err(ImageError::Read)?;
    let whole = first[..taken].chain(reader);
    let members = match Compression::of(&first[..taken]) {
        Compression::None => Members::collect(whole, blobs, limits)?,
        Compression::Gzip => Members::collect(MultiGzDecoder::new(whole), blobs, limits)?,
        Compression::Other(format) => {
            return Err(ImageError::Compression { what: "the archive".to_owned(), format });
        }
    };
    let parts = members.resolve()?;
    members.store(parts, limits)
}

/// Which members make the image.
struct Parts {
    config: String,
    layers: Vec<String>,
    names: Vec<String>,
    /// The document that says so.
    listed_by: String,
}

/// Everything an archive holds, by normalised path.
#[derive(Default)]
struct Members {
    files: HashMap<String, Box<dyn StagedBlob>>,
    links: HashMap<String, String>,
    directories: BTreeSet<String>,
}

impl Members {
    fn collect(source: impl Read, blobs: &dyn BlobStore, limits: &ImageLimits) -> Result<Self, ImageError> {
        let mut tar = TarReader::new(source, limits);
        let mut members = Self::default();
        while let Some(member) = tar.next()? {
            let path = normal(&member.path, &member.path)?;
            members.check_free(&path, &member.path, matches!(member.kind, MemberKind::Directory))?;
            match member.kind {
                MemberKind::Directory => drop(members.directories.insert(path)),
                MemberKind::Symlink { target } => {
                    let base = path.rsplit_once('/').map_or("", |(dir, _)| dir);
                    let target = joined(base, &target).ok_or_else(|| outside(&member.path))?;
                    members.links.insert(path, target);
                }
                MemberKind::HardLink { target } => {
                    let target = joined("", &target).ok_or_else(|| outside(&member.path))?;
                    members.links.insert(path, target);
                }
                MemberKind::File { bytes } => {
                    let staged = stage(&mut tar, bytes, &path, blobs)?;
                    check_blob_name(&path, &staged.info().digest)?;
                    members.files.insert(path, staged);
                }
            }
        }
        tar.drain()?;
        Ok(members)
    }

    fn check_free(&self, path: &str, shown_path: &str, directory: bool) -> Result<(), ImageError> {
        let taken = self.files.contains_key(path) || self.links.contains_key(path);
        if taken || (!directory && self.directories.contains(path)) {
            return Err(refused(shown_path, "occurs twice"));
        }
        if !directory && path.is_empty() {
            return Err(refused(shown_path, "has no name"));
        }
        Ok(())
    }

    /// The file behind a name, over links inside the archive.
    fn file(&self, path: &str, needed_by: &str) -> Result<(&str, &dyn StagedBlob), ImageError> {
        let mut at = normal(path, path)?;
        for _ in 0..LINK_HOPS_MAX {
            if let Some((name, staged)) = self.files.get_key_value(&at) {
                return Ok((name, staged.as_ref()));
            }
            match self.links.get(&at) {
                Some(target) => at.clone_from(target),
                None => return Err(ImageError::Missing { member: shown(path), needed_by: shown(needed_by) }),
            }
        }
        Err(refused(path, "is a link that leads in a circle or too far"))
    }

    fn has(&self, path: &str) -> bool {
        self.files.contains_key(path) || self.links.contains_key(path)
    }

    fn document(&self, path: &str, needed_by: &str) -> Result<Vec<u8>, ImageError> {
        let (name, staged) = self.file(path, needed_by)?;
        if staged.info().size_bytes > DOCUMENT_BYTES_MAX {
            let what = format!("`{}`", shown(name));
            return Err(ImageError::TooLarge { what, max: DOCUMENT_BYTES_MAX, unit: "bytes" });
        }
        let mut bytes = Vec::new();
        let read = staged.open()?.read_to_end(&mut bytes);
        read.map_err(|source| ImageError::ReadBack { what: shown(name), source })?;
        Ok(bytes)
    }

    /// Finds the one image. Docker 25 and later write both kinds of documents; `manifest.json` then goes first, since
    /// its index may also name platforms that were not saved.
    fn resolve(&self) -> Result<Parts, ImageError> {
        if self.has(DOCKER_MANIFEST) {
            self.resolve_saved()
        } else if self.has(OCI_INDEX) {
            self.resolve_layout()
        } else {
            Err(ImageError::NoImage)
        }
    }

    fn resolve_saved(&self) -> Result<Parts, ImageError> {
        let json = self.document(DOCKER_MANIFEST, DOCKER_MANIFEST)?;
        let mut images: Vec<SavedImage> = parse(DOCKER_MANIFEST, &json, "list of saved images")?;
        if images.len() > 1 {
            let label = |image: &SavedImage| image.names.first().unwrap_or(&image.config).clone();
            let names: Vec<_> = images.iter().map(label).collect();
            return Err(several(&names, "`docker save NAME`"));
        }
        let Some(image) = images.pop() else { return Err(ImageError::NoImage) };
        check_config_name(&image.config, &self.file(&image.config, DOCKER_MANIFEST)?.1.info().digest)?;
        Ok(Parts {
            config: image.config,
            layers: image.layers,
            names: usable_names(image.names),
            listed_by: DOCKER_MANIFEST.to_owned(),
        })
    }

    fn resolve_layout(&self) -> Result<Parts, ImageError> {
        let layout: OciLayout = parse(OCI_LAYOUT, &self.document(OCI_LAYOUT, OCI_INDEX)?, "OCI layout file")?;
        if layout.version != "1.0.0" {
            let problem = format!("has version `{}`; only 1.0.0 is read", shown(&layout.version));
            return Err(ImageError::Content { document: OCI_LAYOUT.to_owned(), problem });
        }
        let mut document = OCI_INDEX.to_owned();
        let mut names = Vec::new();
        for depth in 0..INDEX_DEPTH_MAX {
            let index: Index = parse(&document, &self.document(&document, OCI_INDEX)?, "image index")?;
            let chosen = self.choose(index, depth, &mut names)?;
            let next = self.described(&chosen, &document)?;
            if !chosen.is_index() {
                return self.resolve_manifest(next, names);
            }
            document = next;
        }
        let problem = "holds indexes inside indexes too deep; save one image alone".to_owned();
        Err(ImageError::Content { document: OCI_INDEX.to_owned(), problem })
    }

    /// The one entry of an index that is an image in this archive. One image under several names is one image.
    fn choose(&self, index: Index, depth: usize, names: &mut Vec<String>) -> Result<Descriptor, ImageError> {
        let mut images: Vec<Descriptor> = Vec::new();
        let mut labels = Vec::new();
        for entry in index.manifests {
            // Below the top, an index lists all platforms of an image; only those saved are in the archive.
            if entry.is_attestation() || (depth > 0 && !self.has(&blob_path(&entry.digest))) {
                continue;
            }
            names.extend(entry.name().filter(|_| names.len() < NAMES_MAX).cloned());
            if images.iter().all(|known| known.digest != entry.digest) {
                labels.push(entry.label());
                images.push(entry);
            }
        }
        if images.len() > 1 {
            let hint = if depth == 0 {
                "name it to the tool that wrote the archive, such as `docker save NAME`"
            } else {
                "one platform, such as `docker save --platform linux/amd64 NAME`"
            };
            return Err(several(&labels, hint));
        }
        images.pop().ok_or(ImageError::NoImage)
    }

    fn resolve_manifest(&self, document: String, names: Vec<String>) -> Result<Parts, ImageError> {
        let manifest = Manifest::parse(&document, &self.document(&document, OCI_INDEX)?)?;
        let layers = manifest.layers.iter().map(|layer| self.described(layer, &document));
        Ok(Parts {
            config: self.described(&manifest.config, &document)?,
            layers: layers.collect::<Result<_, _>>()?,
            names: usable_names(names),
            listed_by: document,
        })
    }

    /// The member a descriptor means. Its digest was checked against its name when it was staged.
    fn described(&self, descriptor: &Descriptor, needed_by: &str) -> Result<String, ImageError> {
        let path = blob_path(&descriptor.digest);
        let info = self.file(&path, needed_by)?.1.info();
        if info.digest != descriptor.digest {
            return Err(wrong_digest(&path, descriptor.digest, info.digest));
        }
        if info.size_bytes != descriptor.size {
            let problem = format!(
                "says that {} has {} bytes, but it has {}; make the archive anew",
                descriptor.digest, descriptor.size, info.size_bytes
            );
            return Err(ImageError::Content { document: shown(needed_by), problem });
        }
        Ok(path)
    }

    /// Checks config and layers against each other and publishes them.
    fn store(mut self, parts: Parts, limits: &ImageLimits) -> Result<ImportedImage, ImageError> {
        let config = ImageConfig::parse(&parts.config, &self.document(&parts.config, &parts.listed_by)?)?;
        let (config_name, staged) = self.file(&parts.config, &parts.listed_by)?;
        let config_info = staged.info();
        if parts.layers.len() > limits.layers_max {
            let what = "the number of the image's layers".to_owned();
            return Err(ImageError::TooLarge { what, max: limits.layers_max as u64, unit: "layers" });
        }
        if parts.layers.len() != config.diff_ids.len() {
            let problem = format!(
                "lists {} layers, but the image's config lists {}; make the archive anew with `docker save IMAGE`",
                parts.layers.len(),
                config.diff_ids.len()
            );
            return Err(ImageError::Content { document: shown(&parts.listed_by), problem });
        }
        let mut wanted = BTreeSet::from([config_name.to_owned()]);
        let mut layers: Vec<Layer> = Vec::with_capacity(parts.layers.len());
        let mut expanded = 0;
        for (path, diff_id) in parts.layers.iter().zip(&config.diff_ids) {
            let (name, staged) = self.file(path, &parts.listed_by)?;
            wanted.insert(name.to_owned());
            let info = staged.info();
            let known = layers.iter().find(|known| known.digest == info.digest && known.diff_id == *diff_id).cloned();
            let layer = match known {
                Some(known) => known,
                None => {
                    let stored = StoredLayer { name, digest: info.digest, size_bytes: info.size_bytes };
                    let media = verify_layer(&stored, staged.open()?, *diff_id, &mut expanded, limits)?;
                    Layer { digest: info.digest, diff_id: *diff_id, size_bytes: info.size_bytes, media }
                }
            };
            layers.push(layer);
        }
        for staged in wanted.iter().filter_map(|name| self.files.remove(name)) {
            staged.publish()?;
        }
        Ok(ImportedImage {
            config_digest: config_info.digest,
            config_size_bytes: config_info.size_bytes,
            layers,
            names: parts.names,
            config,
        })
    }
}

fn stage<R: Read>(
    tar: &mut TarReader<'_, R>,
    bytes: u64,
    path: &str,
    blobs: &dyn BlobStore,
) -> Result<Box<dyn StagedBlob>, ImageError> {
    let mut upload = blobs.begin(bytes)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let taken = tar.read_content(&mut buffer)?;
        if taken == 0 {
            return Ok(upload.stage()?);
        }
        let written = upload.write_all(&buffer[..taken]);
        written.map_err(|source| ImageError::StoreMember { member: shown(path), source })?;
    }
}

/// A member's path without `./` and closing `/`; what leaves the archive is refused.
fn normal(path: &str, shown_path: &str) -> Result<String, ImageError> {
    if path.starts_with('/') {
        return Err(refused(shown_path, "has an absolute path"));
    }
    if path.chars().any(char::is_control) {
        return Err(refused(shown_path, "has control characters in its name"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(refused(shown_path, "has `..` in its path"));
    }
    Ok(path.split('/').filter(|part| !matches!(*part, "" | ".")).collect::<Vec<_>>().join("/"))
}

/// A link's target seen from directory `base`; `None` where it leaves the archive.
fn joined(base: &str, target: &str) -> Option<String> {
    if target.is_empty() || target.starts_with('/') || target.chars().any(char::is_control) {
        return None;
    }
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn blob_path(digest: &Digest) -> String {
    format!("{BLOB_DIR}{}", digest.hex())
}

/// A member named after a digest has that digest.
fn check_blob_name(path: &str, actual: &Digest) -> Result<(), ImageError> {
    path.strip_prefix(BLOB_DIR).map_or(Ok(()), |hex| check_hex(path, hex, actual))
}

/// `docker save` names a config after its digest.
fn check_config_name(path: &str, actual: &Digest) -> Result<(), ImageError> {
    path.strip_suffix(".json").map_or(Ok(()), |hex| check_hex(path, hex, actual))
}

fn check_hex(path: &str, hex: &str, actual: &Digest) -> Result<(), ImageError> {
    match format!("sha256:{hex}").parse::<Digest>() {
        Ok(expected) if expected != *actual => Err(wrong_digest(path, expected, *actual)),
        _ => Ok(()),
    }
}

fn usable_names(names: Vec<String>) -> Vec<String> {
    let usable = |name: &String| name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control);
    names.into_iter().filter(usable).take(NAMES_MAX).collect()
}

fn wrong_digest(path: &str, expected: Digest, actual: Digest) -> ImageError {
    ImageError::WrongDigest { document: shown(path), expected, actual }
}

fn several(names: &[String], hint: &'static str) -> ImageError {
    ImageError::SeveralImages { count: names.len(), names: shown_list(names), hint }
}

fn refused(path: &str, problem: &str) -> ImageError {
    ImageError::Member { member: shown(path), problem: problem.to_owned() }
}

fn outside(path: &str) -> ImageError {
    refused(path, "is a link that points outside the archive")
}
