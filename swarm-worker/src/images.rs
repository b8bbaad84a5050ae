//! Images on this machine: brought once, however many attempts want them at the same time, and kept as long as there is
//! room.

pub(crate) mod cache;
mod ledger;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use swarm_protocol::link::TaskOrder;
use swarm_protocol::{Digest, LossReason, Outcome};

use self::cache::InUse;
use self::ledger::Ledger;
use crate::attempt::Owner;
use crate::context::Ctx;
use crate::offer;
use crate::runtime::archive::{ArchiveLayer, docker_archive};
use crate::runtime::{ByteStream, RuntimeError};
use crate::transfer::{Fault, TransferError, Tries};

/// The largest image config read; real ones have a few KiB.
const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// Volumes that an image may declare.
const VOLUMES_MAX: usize = 64;
/// Images remembered; beyond it the memory is cleared, which only costs a look at the engine.
const REMEMBERED_MAX: usize = 1024;

/// What an attempt needs to know of its image.
#[derive(Debug, Default)]
pub(crate) struct ImageFacts {
    /// USER, if the image names one.
    pub(crate) user: Option<String>,
    /// Each VOLUME by its path, as the engine cleans it.
    pub(crate) volumes: BTreeSet<String>,
}

type Slot = Arc<tokio::sync::Mutex<Option<Arc<ImageFacts>>>>;

/// An image and a user as named there.
type UserKey = (Digest, String);

/// See the module.
#[derive(Debug)]
pub(crate) struct Images {
    pub(crate) in_use: InUse,
    ledger: Ledger,
    slots: Mutex<HashMap<Digest, Slot>>,
    /// What the images' accounts say. An image never changes, so what was read once stays true.
    owners: Mutex<HashMap<UserKey, Owner>>,
}

impl Images {
    /// With what an earlier start knew of them.
    pub(crate) fn open(data: &Path) -> Self {
        let (in_use, ledger) = (InUse::default(), Ledger::open(data));
        Self { in_use, ledger, slots: Mutex::default(), owners: Mutex::default() }
    }

    /// Whom a name means in an image, if that was looked up already.
    pub(crate) fn owner(&self, key: &UserKey) -> Option<Owner> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Remembers whom a name means in an image.
    pub(crate) fn keep_owner(&self, key: UserKey, owner: Owner) {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if owners.len() >= REMEMBERED_MAX {
            owners.clear();
        }
        owners.insert(key, owner);
    }

    fn slot(&self, config: Digest) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= REMEMBERED_MAX {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        slots.entry(config).or_default().clone()
    }
}

/// Makes sure that the engine holds the order's image. Attempts that want the same image wait for one of them.
pub(crate) async fn ensure(ctx: &Ctx, order: &TaskOrder) -> Result<Arc<ImageFacts>, Outcome> {
    let config = order.image.config;
    let slot = ctx.images.slot(config);
    let mut known = slot.lock().await;
    let held = ctx.runtime.image_exists(&config).await.map_err(|error| engine(&error))?;
    if let (true, Some(facts)) = (held, known.as_ref()) {
        ctx.images.ledger.touch(config, ctx.machine.wall_us() / 1000);
        return Ok(facts.clone());
    }
    if order.image.config_bytes > CONFIG_BYTES_MAX {
        return Err(refused(format!("the image's config has {} bytes", order.image.config_bytes)));
    }
    let blob = ctx.transfer.small_blob(order.attempt, config, order.image.config_bytes).await;
    let blob = blob.map_err(|error| transfer(&error))?;
    let facts = Arc::new(read_config(&blob)?);
    if held {
        // Ours from now on too, or somebody else's clean-up could take it from under a container.
        ctx.runtime.tag_image(&config).await.map_err(|error| engine(&error))?;
    } else {
        bring(ctx, order, blob).await?;
    }
    // Only now: what the engine does not hold is forgotten.
    ctx.images.ledger.touch(config, ctx.machine.wall_us() / 1000);
    *known = Some(facts.clone());
    Ok(facts)
}

/// Makes sure that the engine holds, as ours, an image that this program packs itself.
pub(crate) async fn have(ctx: &Ctx, image: Digest, archive: impl FnOnce() -> ByteStream) -> Result<(), RuntimeError> {
    match ctx.runtime.image_exists(&image).await? {
        true => ctx.runtime.tag_image(&image).await,
        false => ctx.runtime.load_image(archive(), &image).await,
    }
}

/// Keeps to the bounds, and keeps what is known of the images.
pub(crate) async fn tidy(ctx: &Ctx) {
    if let Err(error) = cache::make_room(ctx, 0).await {
        tracing::warn!(%error, "it cannot be seen whether there is room for images");
    }
    if let Err(error) = ctx.images.ledger.save() {
        tracing::warn!(%error, "when images were used cannot be noted");
    }
}

/// Marks what a killed worker had loaded but not marked yet: an image that nobody marked would stay for ever.
pub(crate) async fn take_up(ctx: &Ctx) {
    for image in ctx.images.ledger.unfinished() {
        let marked = match ctx.runtime.image_exists(&image).await {
            Ok(true) => ctx.runtime.tag_image(&image).await,
            answer => answer.map(drop),
        };
        match marked {
            Ok(()) => ctx.images.ledger.end_load(&image),
            Err(error) => tracing::warn!(image = %image.short(), %error, "an unfinished load cannot be looked at"),
        }
    }
}

async fn bring(ctx: &Ctx, order: &TaskOrder, config: Bytes) -> Result<(), Outcome> {
    let image = order.image.config;
    let incoming = order.image.layers.iter().map(|layer| layer.size_bytes).sum();
    cache::make_room(ctx, incoming).await.map_err(|error| engine(&error))?;
    ctx.images.ledger.begin_load(image).map_err(|error| spool(&error))?;
    let loaded = load(ctx, order, config).await;
    // A load that failed for the machine may have left the image all the same.
    if !matches!(loaded, Err(Outcome::Lost { .. })) {
        ctx.images.ledger.end_load(&image);
    }
    loaded
}

/// Hands the image to the engine; from the start again when a layer was changed on its way, of which the engine keeps
/// nothing.
async fn load(ctx: &Ctx, order: &TaskOrder, config: Bytes) -> Result<(), Outcome> {
    let mut tries = Tries::default();
    loop {
        let fault = Fault::default();
        let Err(error) = load_once(ctx, order, config.clone(), &fault).await? else { return Ok(()) };
        match fault.get() {
            Some(fault) if tries.again(order.attempt, fault) => {}
            Some(fault) => return Err(transfer(fault)),
            None => return Err(image_fault(ctx, &error).await),
        }
    }
}

async fn load_once(
    ctx: &Ctx,
    order: &TaskOrder,
    config: Bytes,
    fault: &Fault,
) -> Result<Result<(), RuntimeError>, Outcome> {
    let diff_ids: Vec<Digest> = order.image.layers.iter().map(|layer| layer.diff_id).collect();
    let known = ctx.runtime.known_layers(&diff_ids).await.map_err(|error| engine(&error))?;
    tracing::info!(attempt = %order.attempt, image = %order.image.config.short(), known, layers = diff_ids.len(), "bringing an image");
    let layers = order.image.layers.iter().enumerate().map(|(at, layer)| ArchiveLayer {
        diff_id: layer.diff_id,
        body: (at >= known).then(|| {
            (layer.size_bytes, ctx.transfer.blob(order.attempt, layer.digest, layer.size_bytes, fault.clone()))
        }),
    });
    let archive = docker_archive(config, layers.collect());
    Ok(ctx.runtime.load_image(archive, &order.image.config).await)
}

async fn image_fault(ctx: &Ctx, error: &RuntimeError) -> Outcome {
    if !matches!(error, RuntimeError::ImageInvalid { .. }) {
        return engine(error);
    }
    // An engine that was set up otherwise meanwhile may know images by other names.
    offer::look(ctx).await;
    match ctx.engine.borrow().check_images() {
        Err(unfit) => engine(&unfit),
        Ok(()) => refused(format!("{error}; push the image again")),
    }
}

fn refused(reason: String) -> Outcome {
    Outcome::Refused { reason }
}

fn spool(error: &std::io::Error) -> Outcome {
    let detail = format!("the worker's data directory cannot be written: {error}");
    Outcome::Lost { reason: LossReason::Engine, detail }
}

/// The engine failed.
pub(crate) fn engine(error: &RuntimeError) -> Outcome {
    Outcome::Lost { reason: LossReason::Engine, detail: error.to_string() }
}

/// Bytes could not be moved.
pub(crate) fn transfer(error: &TransferError) -> Outcome {
    Outcome::Lost { reason: LossReason::Transfer, detail: error.to_string() }
}

fn read_config(blob: &[u8]) -> Result<ImageFacts, Outcome> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        config: Option<Inner>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Inner {
        #[serde(default)]
        user: Option<String>,
        #[serde(default)]
        volumes: Option<BTreeMap<String, IgnoredAny>>,
    }
    let config: Config = serde_json::from_slice(blob)
        .map_err(|error| refused(format!("the image's config cannot be read: {error}; push the image again")))?;
    let Some(Inner { user, volumes }) = config.config else { return Ok(ImageFacts::default()) };
    let volumes = volumes.unwrap_or_default();
    if volumes.len() > VOLUMES_MAX {
        return Err(refused(format!("the image declares {} volumes, more than {VOLUMES_MAX}", volumes.len())));
    }
    let volumes = volumes.keys().map(|path| volume_path(path)).collect::<Result<_, _>>()?;
    Ok(ImageFacts { user: user.filter(|user| !user.is_empty()), volumes })
}

/// The path of a declared volume without `.`, `..`, `//` and a slash at its end. What cannot be mounted in the place of
/// the engine's own volume would be out of sight of the disk limit, so it is refused.
fn volume_path(path: &str) -> Result<String, Outcome> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    if !path.starts_with('/') || parts.is_empty() || path.contains('\0') {
        let shown = swarm_protocol::text::sanitise(path, false);
        return Err(refused(format!(
            "the image declares a volume at `{shown}`, which is no absolute path of a directory"
        )));
    }
    Ok(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_read_from_the_config() {
        let user = |text: &str| read_config(text.as_bytes()).map(|facts| facts.user);
        assert_eq!(user(r#"{"config":{"User":"app"}}"#), Ok(Some("app".into())));
        assert_eq!(user(r#"{"config":{"User":""}}"#), Ok(None));
        assert_eq!(user(r#"{"config":null}"#), Ok(None));
        assert_eq!(user("{}"), Ok(None));
        assert!(matches!(user("[").unwrap_err(), Outcome::Refused { .. }));
    }

    #[test]
    fn volumes_are_read_from_the_config_as_the_engine_cleans_them() {
        let volumes = |paths: &[&str]| {
            let listed: BTreeMap<&str, BTreeMap<(), ()>> = paths.iter().map(|path| (*path, BTreeMap::new())).collect();
            let config = serde_json::json!({"config": {"Volumes": listed}}).to_string();
            read_config(config.as_bytes()).map(|facts| facts.volumes.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(volumes(&["/data/", "/data", "//a/./b/../c"]), Ok(vec!["/a/c".into(), "/data".into()]));
        assert!(read_config(br#"{"config":{"Volumes":null}}"#).unwrap().volumes.is_empty());
        for path in ["data", "/", "/..", "", "/a\0"] {
            assert!(matches!(volumes(&[path]).unwrap_err(), Outcome::Refused { .. }), "{path:?}");
        }
        let many: Vec<String> = (0..=VOLUMES_MAX).map(|n| format!("/{n}")).collect();
        assert!(volumes(&many.iter().map(String::as_str).collect::<Vec<_>>()).is_err());
    }
}
