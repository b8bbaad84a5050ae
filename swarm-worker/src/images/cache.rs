//! The worker's images as a cache: the least recently used are dropped when disk grows short or they grow too many
//! bytes. Only what this worker brought or marked is ever dropped, and nothing that a held attempt wants.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use swarm_protocol::Digest;

use super::ledger::Ledger;
use crate::context::Ctx;
use crate::runtime::{OurImage, RuntimeError};

/// How often the images held by attempts are wanted; what is in here is not dropped.
#[derive(Debug, Clone, Default)]
pub(crate) struct InUse(Arc<Mutex<HashMap<Digest, usize>>>);

/// An attempt's claim on its image, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    image: Digest,
    all: InUse,
}

impl InUse {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims an image.
    pub(crate) fn claim(&self, image: Digest) -> Claim {
        *self.lock().entry(image).or_default() += 1;
        Claim { image, all: self.clone() }
    }

    fn is_wanted(&self, image: &Digest) -> bool {
        self.lock().contains_key(image)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(count) = all.get_mut(&self.image) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.image);
            }
        }
    }
}

/// Drops images until they keep to the configured bounds and `incoming` more bytes fit.
///
/// # Errors
/// When the engine cannot be asked; an image that cannot be dropped only makes the next one go.
pub(crate) async fn make_room(ctx: &Ctx, incoming: u64) -> Result<(), RuntimeError> {
    let mut images = ctx.runtime.our_images().await?;
    ctx.images.ledger.keep_only(&images.iter().map(|image| image.config).collect::<Vec<_>>());
    loop {
        let free = ctx.runtime.disk_free().await?;
        let idle = |image: &OurImage| !ctx.images.in_use.is_wanted(&image.config);
        let bounds = Bounds {
            bytes_max: ctx.config.image_cache_bytes,
            free_min: ctx.config.disk_floor_bytes.saturating_add(incoming),
        };
        let Some(victim) = victim(&images, &ctx.images.ledger, idle, free, bounds) else { return Ok(()) };
        match ctx.runtime.remove_image(&victim).await {
            Ok(()) => {
                tracing::info!(image = %victim.short(), "dropped the image that was not used for the longest time");
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => tracing::warn!(image = %victim.short(), %error, "an unused image cannot be dropped"),
        }
        images.retain(|image| image.config != victim);
    }
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Of all images together; layers that they share count for each.
    bytes_max: u64,
    /// Free bytes wanted on the engine's disk.
    free_min: u64,
}

/// The next image to drop, if any has to go: the idle one that was not used for the longest time.
fn victim(
    images: &[OurImage],
    ledger: &Ledger,
    idle: impl Fn(&OurImage) -> bool,
    free: Option<u64>,
    bounds: Bounds,
) -> Option<Digest> {
    let bytes = images.iter().fold(0_u64, |sum, image| sum.saturating_add(image.bytes));
    let is_short = bytes > bounds.bytes_max || free.is_some_and(|free| free < bounds.free_min);
    let oldest =
        || images.iter().filter(|image| idle(image)).min_by_key(|image| (ledger.used(&image.config), image.config));
    if is_short { oldest().map(|image| image.config) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: u8, bytes: u64) -> OurImage {
        OurImage { config: Digest([name; 32]), bytes }
    }

    #[test]
    fn the_least_recently_used_idle_image_goes_first_and_only_when_it_must() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path());
        let images = [image(1, 10), image(2, 10), image(3, 10)];
        for (image, at_ms) in [(2, 5), (1, 9)] {
            ledger.touch(Digest([image; 32]), at_ms);
        }
        let next = |idle: &dyn Fn(&OurImage) -> bool, free, bytes_max| {
            victim(&images, &ledger, idle, free, Bounds { bytes_max, free_min: 100 }).map(|victim| victim.0[0])
        };
        assert_eq!(next(&|_| true, Some(100), 30), None, "all is within bounds");
        assert_eq!(next(&|_| true, Some(99), 30), Some(3), "nobody remembers when it was used");
        assert_eq!(next(&|image| image.config.0[0] != 3, Some(99), 30), Some(2));
        assert_eq!(next(&|_| false, Some(0), 0), None, "what is wanted stays");
        assert_eq!(next(&|_| true, None, 29), Some(3), "the bound counts where the disk cannot be seen");
    }

    #[test]
    fn an_image_is_wanted_as_long_as_anyone_claims_it() {
        let in_use = InUse::default();
        let digest = Digest([1; 32]);
        let (one, two) = (in_use.claim(digest), in_use.claim(digest));
        drop(one);
        assert!(in_use.is_wanted(&digest));
        drop(two);
        assert!(!in_use.is_wanted(&digest));
    }
}
