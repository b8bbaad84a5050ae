//! One directory for everything a run puts on disk, removed at its end.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// A directory that goes when this does. The path is short, since sockets in it have to stay below 108 bytes.
#[derive(Debug)]
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    /// Makes an empty directory that other users may enter but not list: Postgres runs as one.
    pub(crate) fn make(run: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(run);
        std::fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        let dir = Self(path);
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711))?;
        Ok(dir)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            crate::report::say(format_args!("xtask: cannot remove {}: {error}", self.0.display()));
        }
    }
}
