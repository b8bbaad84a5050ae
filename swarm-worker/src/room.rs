//! Whether the disk of the data directory has room for what the worker must keep there. While it has not, the worker takes
//! no work: it could promise nothing.

use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{StatVfs, statvfs};
use swarm_host::blocking;

use crate::context::Ctx;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(2);
/// Bytes for the orders, marks and reports of what is held already; logs and outputs wait for room of their own.
const BYTES_MIN: u64 = 4 << 20;
/// Files and directories for the same.
const INODES_MIN: u64 = 128;

/// Looks for ever.
pub(crate) async fn keep_looking(ctx: Arc<Ctx>) -> anyhow::Result<()> {
    loop {
        let dir = ctx.data.path.clone();
        match blocking::run(move || statvfs(&dir)).await {
            Ok(disk) => note(&ctx, lacking(&disk)),
            Err(error) => tracing::warn!(%error, "the disk of the data directory cannot be measured"),
        }
        tokio::select! {
            () = ctx.stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// What there is too little of. A filesystem that makes inodes as it needs them says that it has none at all.
fn lacking(disk: &StatVfs) -> Option<&'static str> {
    if disk.f_bavail.saturating_mul(disk.f_frsize) < BYTES_MIN {
        Some("bytes")
    } else if disk.f_files > 0 && disk.f_favail < INODES_MIN {
        Some("inodes")
    } else {
        None
    }
}

fn note(ctx: &Ctx, lacking: Option<&'static str>) {
    if ctx.hub.set_room(lacking.is_none()) == lacking.is_none() {
        return;
    }
    match lacking {
        None => tracing::info!("the disk of the data directory has room again"),
        Some(what) => {
            let dir = ctx.data.path.display();
            tracing::error!(%dir, what, "the disk of the data directory is full: no work is taken until it has room");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(free_bytes: u64, inodes: (u64, u64)) -> StatVfs {
        let mut disk = statvfs("/").unwrap();
        (disk.f_frsize, disk.f_bavail) = (1, free_bytes);
        (disk.f_files, disk.f_favail) = inodes;
        disk
    }

    #[test]
    fn a_disk_lacks_bytes_or_inodes() {
        assert_eq!(lacking(&disk(BYTES_MIN, (1000, INODES_MIN))), None);
        assert_eq!(lacking(&disk(BYTES_MIN - 1, (1000, 1000))), Some("bytes"));
        assert_eq!(lacking(&disk(u64::MAX, (1000, INODES_MIN - 1))), Some("inodes"));
        assert_eq!(lacking(&disk(BYTES_MIN, (0, 0))), None, "they are made as they are needed");
    }
}
