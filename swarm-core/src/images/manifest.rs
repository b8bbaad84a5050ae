//! The documents that say what belongs to an image: OCI image manifest and index (image specification 1.1), their
//! Docker forerunners, and the `manifest.json` of `docker save`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use swarm_protocol::ids::Digest;

use super::config::nullable;
use super::error::{ImageError, shown};

/// A reference to content by digest, size and type.
#[derive(Debug, Clone, Deserialize)]
pub struct Descriptor {
    /// Type of the content.
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) platform: Option<Platform>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

impl Descriptor {
    /// Whether it leads to several images rather than one.
    pub(super) fn is_index(&self) -> bool {
        self.media_type == "application/vnd.oci.image.index.v1+json"
            || self.media_type == "application/vnd.docker.distribution.manifest.list.v2+json"
    }

    /// Whether it is a build's attestation, which lies beside an image without being one.
    pub(super) fn is_attestation(&self) -> bool {
        self.annotations.get("vnd.docker.reference.type").is_some_and(|kind| kind == "attestation-manifest")
    }

    /// The image's name, where a tool noted it.
    pub(super) fn name(&self) -> Option<&String> {
        let whole = self.annotations.get("io.containerd.image.name");
        whole.or_else(|| self.annotations.get("org.opencontainers.image.ref.name"))
    }

    /// A text that tells it from its neighbours.
    pub(super) fn label(&self) -> String {
        match (self.name(), &self.platform) {
            (Some(name), _) => name.clone(),
            (None, Some(platform)) => format!("{}/{}", platform.os, platform.architecture),
            (None, None) => self.digest.to_string(),
        }
    }
}

/// One image: its config and its layers, lowest first.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The image's config, whose digest is the image's identity.
    pub config: Descriptor,
    /// Its layers.
    pub layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct ManifestDocument {
    #[serde(rename = "schemaVersion")]
    schema_version: u32,
    #[serde(rename = "mediaType", default)]
    media_type: String,
    config: Descriptor,
    #[serde(deserialize_with = "nullable", default)]
    layers: Vec<Descriptor>,
}

const MANIFEST_TYPES: [&str; 3] =
    ["", "application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

impl Manifest {
    /// Reads an OCI image manifest or a Docker manifest of schema 2; `document` names it in errors.
    ///
    /// # Errors
    /// [`ImageError::Document`] when it does not parse, [`ImageError::Content`] when it is not the manifest of an image,
    /// [`ImageError::Compression`] for zstd layers.
    pub fn parse(document: &str, json: &[u8]) -> Result<Self, ImageError> {
        let parsed: ManifestDocument = parse(document, json, "image manifest")?;
        let refuse = |problem: String| Err(ImageError::Content { document: shown(document), problem });
        if parsed.schema_version != 2 {
            return refuse(format!(
                "has schema version {}; only 2 is read, save the image anew",
                parsed.schema_version
            ));
        }
        if !MANIFEST_TYPES.contains(&parsed.media_type.as_str()) {
            return refuse(format!("has the type `{}`, which is no image manifest", shown(&parsed.media_type)));
        }
        if !CONFIG_TYPES.contains(&parsed.config.media_type.as_str()) {
            return refuse(format!(
                "has a config of type `{}`, so it is an artifact and no container image",
                shown(&parsed.config.media_type)
            ));
        }
        if let Some(layer) = parsed.layers.iter().find(|layer| layer.media_type.ends_with("zstd")) {
            return Err(ImageError::Compression { what: layer.digest.to_string(), format: "zstd" });
        }
        Ok(Self { config: parsed.config, layers: parsed.layers })
    }
}

#[derive(Deserialize)]
pub(super) struct Index {
    #[serde(deserialize_with = "nullable", default)]
    pub(super) manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
pub(super) struct OciLayout {
    #[serde(rename = "imageLayoutVersion")]
    pub(super) version: String,
}

/// One image in the `manifest.json` of `docker save`.
#[derive(Deserialize)]
pub(super) struct SavedImage {
    #[serde(rename = "Config")]
    pub(super) config: String,
    #[serde(rename = "RepoTags", deserialize_with = "nullable", default)]
    pub(super) names: Vec<String>,
    #[serde(rename = "Layers", deserialize_with = "nullable", default)]
    pub(super) layers: Vec<String>,
}

pub(super) fn parse<T: DeserializeOwned>(document: &str, json: &[u8], expected: &'static str) -> Result<T, ImageError> {
    serde_json::from_slice(json).map_err(|source| ImageError::Document { document: shown(document), expected, source })
}
