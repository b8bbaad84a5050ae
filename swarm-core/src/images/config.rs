use serde::{Deserialize, Deserializer};
use swarm_protocol::ids::Digest;

use super::error::{ImageError, shown};

/// What an image's config says that matters for running it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// `amd64`, `arm64`, ... (Go's names).
    pub architecture: String,
    /// Always `linux`.
    pub os: String,
    /// `user[:group]`, by name or number; empty means root.
    pub user: String,
    /// What runs, before the command.
    pub entrypoint: Vec<String>,
    /// The command where the job gives none.
    pub cmd: Vec<String>,
    /// Where it runs; empty means `/`.
    pub workdir: String,
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// SHA-256 of each layer's uncompressed tar, lowest first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<Section>,
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Section {
    #[serde(rename = "User", deserialize_with = "nullable")]
    user: String,
    #[serde(rename = "Entrypoint", deserialize_with = "nullable")]
    entrypoint: Vec<String>,
    #[serde(rename = "Cmd", deserialize_with = "nullable")]
    cmd: Vec<String>,
    #[serde(rename = "WorkingDir", deserialize_with = "nullable")]
    workdir: String,
    #[serde(rename = "Env", deserialize_with = "nullable")]
    env: Vec<String>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    #[serde(deserialize_with = "nullable", default)]
    diff_ids: Vec<Digest>,
}

/// Docker writes `null` where a field is empty.
pub(super) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl ImageConfig {
    /// Reads an image config; `document` names it in errors.
    ///
    /// # Errors
    /// [`ImageError::Document`] when it does not parse, [`ImageError::Content`] when it is for another system than Linux.
    pub fn parse(document: &str, json: &[u8]) -> Result<Self, ImageError> {
        let name = || shown(document);
        let parsed: Document = serde_json::from_slice(json).map_err(|source| ImageError::Document {
            document: name(),
            expected: "image config",
            source,
        })?;
        let refuse = |problem: String| Err(ImageError::Content { document: name(), problem });
        if parsed.os != "linux" {
            return refuse(format!(
                "is for the system `{}`, but jobs run on linux; build the image for linux",
                shown(&parsed.os)
            ));
        }
        if parsed.architecture.is_empty() {
            return refuse("names no architecture; build the image anew".to_owned());
        }
        if parsed.rootfs.kind != "layers" {
            return refuse(format!("has a rootfs of type `{}`, not `layers`", shown(&parsed.rootfs.kind)));
        }
        let section = parsed.config.unwrap_or_default();
        Ok(Self {
            architecture: parsed.architecture,
            os: parsed.os,
            user: section.user,
            entrypoint: section.entrypoint,
            cmd: section.cmd,
            workdir: section.workdir,
            env: section.env,
            diff_ids: parsed.rootfs.diff_ids,
        })
    }
}
