//! Whether the engine holds containers to their size. overlay2 can on xfs that is mounted with project quotas, and only
//! shows it when asked to. Other drivers that know of sizes are not asked: btrfs counts the image as well, and forgets its
//! limits when another subvolume is removed (seen on Linux 6.18).

use std::sync::{Mutex, PoisonError};

use crate::runtime::{DiskQuota, RuntimeError};

/// The storage driver that is asked.
const DRIVER: &str = "overlay2";

/// What is known of this engine.
#[derive(Debug, Default)]
pub(super) struct Quota(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    driver: String,
    quota: DiskQuota,
}

impl Quota {
    /// What is known now that the engine says its driver. With another driver than before nothing is.
    pub(super) fn of_driver(&self, driver: &str) -> DiskQuota {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.driver != driver {
            let quota = if driver == DRIVER { DiskQuota::Unknown } else { DiskQuota::No };
            *known = Known { driver: driver.to_owned(), quota };
        }
        known.quota
    }

    /// Whether it is worth asking for.
    pub(super) fn may_hold(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).quota != DiskQuota::No
    }

    pub(super) fn note(&self, quota: DiskQuota) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).quota = quota;
    }
}

/// Whether this is how an engine refuses the option.
pub(super) fn is_refusal(error: &RuntimeError) -> bool {
    let (RuntimeError::Engine { message, .. } | RuntimeError::Invalid { reason: message, .. }) = error else {
        return false;
    };
    message.contains("--storage-opt is") || message.contains("quota not supported")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_without_quotas_is_never_asked_and_another_driver_is_asked_anew() {
        let quota = Quota::default();
        assert_eq!(quota.of_driver("fuse-overlayfs"), DiskQuota::No);
        assert!(!quota.may_hold());
        assert_eq!(quota.of_driver("overlay2"), DiskQuota::Unknown);
        assert!(quota.may_hold());
        quota.note(DiskQuota::Yes);
        assert_eq!(quota.of_driver("overlay2"), DiskQuota::Yes);
        quota.note(DiskQuota::No);
        assert_eq!(quota.of_driver("overlay2"), DiskQuota::No);
        assert_eq!(quota.of_driver("btrfs"), DiskQuota::No);
        assert_eq!(quota.of_driver("overlay2"), DiskQuota::Unknown);
    }

    #[test]
    fn only_a_refusal_of_the_option_is_one() {
        let engine = |message: &str| RuntimeError::Engine { call: "create", message: message.to_owned() };
        let xfs = "--storage-opt is supported only for overlay over xfs with 'pquota' mount option (status 500)";
        assert!(is_refusal(&engine(xfs)) && is_refusal(&engine("--storage-opt is not supported (status 500)")));
        assert!(!is_refusal(&engine("no space left on device")));
        assert!(!is_refusal(&RuntimeError::NotFound { call: "create", message: xfs.to_owned() }));
    }
}
