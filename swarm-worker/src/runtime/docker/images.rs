//! Images: loaded from archives, recognised by config digest, kept by a tag of our own.

use std::collections::{HashMap, HashSet};

use bollard::errors::Error;
use bollard::models::ImageSummary;
use bollard::query_parameters::{ImportImageOptions, ListImagesOptions, RemoveImageOptions, TagImageOptions};
use futures_util::StreamExt;
use swarm_protocol::ids::Digest;

use super::DockerRuntime;
use super::errors::map;
use super::moving::Pulse;
use crate::runtime::{ByteStream, OurImage, RuntimeError};

/// How the engine announces a loaded image without a tag, and one with tags.
const LOADED_ID: &str = "Loaded image ID: ";
const LOADED_TAG: &str = "Loaded image: ";

/// Words in a failed load that blame the archive. The core has checked every layer of it, so all else is the machine's
/// fault: a full disk or quota, or a child of the engine that was killed.
const ARCHIVE_FAULTS: [&str; 8] = [
    "archive/tar: ",
    "unexpected EOF",
    "gzip: invalid",
    "corrupt",
    "invalid diffID",
    "length mismatch",
    "invalid character",
    "no RootFS key",
];

impl DockerRuntime {
    fn tag_of(&self, config: &Digest) -> String {
        format!("{}:{}", self.repository, config.hex())
    }

    pub(super) async fn has_image(&self, config: &Digest) -> Result<bool, RuntimeError> {
        match self.call("inspect image", self.docker.inspect_image(&config.to_string())).await {
            Ok(image) => Ok(image.id.as_deref() == Some(&config.to_string())),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn tag(&self, config: &Digest) -> Result<(), RuntimeError> {
        let options = TagImageOptions { repo: Some(self.repository.clone()), tag: Some(config.hex()) };
        self.call("tag image", self.docker.tag_image(&config.to_string(), Some(options))).await
    }

    pub(super) async fn untag(&self, config: &Digest) -> Result<(), RuntimeError> {
        self.remove_by_name(&self.tag_of(config)).await
    }

    async fn remove_by_name(&self, name: &str) -> Result<(), RuntimeError> {
        let options = RemoveImageOptions { force: false, noprune: false, ..Default::default() };
        self.call("remove image", self.docker.remove_image(name, Some(options), None)).await.map(drop)
    }

    pub(super) async fn tagged_images(&self) -> Result<Vec<OurImage>, RuntimeError> {
        let filters = HashMap::from([("reference".to_owned(), vec![self.repository.clone()])]);
        let options = ListImagesOptions { filters: Some(filters), ..Default::default() };
        let listed = self.call("list images", self.docker.list_images(Some(options))).await?;
        let ours = |image: &ImageSummary| {
            let config = image.id.parse().ok()?;
            Some(OurImage { config, bytes: u64::try_from(image.size).unwrap_or(0) })
        };
        Ok(listed.iter().filter_map(ours).collect())
    }

    pub(super) async fn leading_layers(&self, diff_ids: &[Digest]) -> Result<usize, RuntimeError> {
        let ours: HashSet<Digest> = self.tagged_images().await?.into_iter().map(|image| image.config).collect();
        self.lock_layers().retain(|config, _| ours.contains(config));
        let mut longest = 0;
        for config in ours {
            let layers = match self.layers_of(&config).await {
                Ok(layers) => layers,
                // Removed since it was listed.
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            };
            let shared = layers.iter().zip(diff_ids).take_while(|(have, want)| have == want).count();
            longest = longest.max(shared);
        }
        Ok(longest)
    }

    async fn layers_of(&self, config: &Digest) -> Result<Vec<Digest>, RuntimeError> {
        if let Some(layers) = self.lock_layers().get(config) {
            return Ok(layers.clone());
        }
        let image = self.call("inspect image", self.docker.inspect_image(&config.to_string())).await?;
        let listed = image.root_fs.and_then(|root| root.layers).unwrap_or_default();
        let layers: Vec<Digest> = listed.iter().map_while(|layer| layer.parse().ok()).collect();
        self.lock_layers().insert(*config, layers.clone());
        Ok(layers)
    }

    fn lock_layers(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Vec<Digest>>> {
        // A cache of facts that never change: whatever a panicked holder left is still true.
        self.layers.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) async fn load(&self, archive: ByteStream, expect: &Digest) -> Result<(), RuntimeError> {
        let before = self.all_image_ids().await?;
        let pulse = Pulse::new();
        let sending = self.send_archive(pulse.of(archive), expect);
        let loaded = pulse.watch("load image", (self.deadlines.stall, self.deadlines.load), sending).await?;
        if loaded == [expect.to_string()] {
            return self.tag(expect).await;
        }
        for id in loaded.iter().filter(|id| !before.contains(*id)) {
            if let Err(error) = self.remove_by_name(id).await {
                tracing::warn!(image = %id, error = format!("{error:#}"), "a refused image could not be removed");
            }
        }
        let message = match &loaded[..] {
            [] => "the archive held no image".to_owned(),
            others => format!("the archive held {}", others.join(", ")),
        };
        Err(RuntimeError::ImageInvalid { expect: *expect, message })
    }

    async fn all_image_ids(&self) -> Result<HashSet<String>, RuntimeError> {
        let options = ListImagesOptions { all: true, ..Default::default() };
        let listed = self.call("list images", self.docker.list_images(Some(options))).await?;
        Ok(listed.into_iter().map(|image| image.id).collect())
    }

    /// Sends the archive and gives what the engine says it loaded: ids, or tags where the archive named some.
    async fn send_archive(&self, archive: ByteStream, expect: &Digest) -> Result<Vec<String>, RuntimeError> {
        let options = ImportImageOptions { quiet: true, platform: None };
        let mut progress = self.patient.import_image(options, bollard::body_try_stream(archive), None).boxed();
        let mut loaded = Vec::new();
        while let Some(step) = progress.next().await {
            let step = step.map_err(|error| self.load_error(expect, error))?;
            for line in step.stream.iter().flat_map(|text| text.lines()) {
                if let Some(name) = line.strip_prefix(LOADED_ID).or_else(|| line.strip_prefix(LOADED_TAG)) {
                    loaded.push(name.trim().to_owned());
                }
            }
        }
        Ok(loaded)
    }

    fn load_error(&self, expect: &Digest, error: Error) -> RuntimeError {
        let message = match error {
            Error::DockerStreamError { error } => error,
            Error::DockerResponseServerError { status_code: 400 | 500, message } => message,
            other => return map("load image", self.deadlines.load, other),
        };
        if is_the_archives_fault(&message) {
            return RuntimeError::ImageInvalid { expect: *expect, message: message.trim().to_owned() };
        }
        RuntimeError::Engine { call: "load image", message }
    }
}

fn is_the_archives_fault(message: &str) -> bool {
    // A member that the manifest names, in the directory where the engine unpacked the archive.
    let (_, member) = message.split_once("/docker-import-").unwrap_or_default();
    let is_absent = member.contains('/') && member.contains("no such file or directory");
    // What a child that was killed had said before counts for nothing.
    let was_killed = message.contains("signal: ");
    !was_killed && (is_absent || ARCHIVE_FAULTS.iter().any(|fault| message.contains(fault)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_fails_is_the_machines_fault_unless_the_archive_is_named() {
        for archive in [
            "Error processing tar file(exit status 1): archive/tar: invalid tar header",
            "Error processing tar file(exit status 1): unexpected EOF",
            "invalid diffID for layer 0: expected \"sha256:aa\", got \"sha256:bb\"",
            "invalid manifest, layers length mismatch: expected 1, got 2",
            "open /var/lib/docker/tmp/docker-import-123/aa.tar: no such file or directory",
            "lstat /var/lib/docker/tmp/docker-import-123/aa.tar: no such file or directory",
        ] {
            assert!(is_the_archives_fault(archive), "{archive}");
        }
        for machine in [
            "Error processing tar file(signal: killed): ",
            "Error processing tar file(signal: killed): unexpected EOF",
            "Error processing tar file(exit status 1): write /usr/lib/x: disk quota exceeded",
            "Error processing tar file(exit status 1): write /usr/lib/x: no space left on device",
            "open /var/lib/docker/overlay2/x/link: too many open files",
            "mkdir /var/lib/docker/tmp/docker-import-123: no such file or directory",
            "fork/exec /proc/self/exe: resource temporarily unavailable",
        ] {
            assert!(!is_the_archives_fault(machine), "{machine}");
        }
    }
}
