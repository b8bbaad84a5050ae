//! Small filesystems that a test can fill.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A tmpfs, mounted until it is dropped. Needs root.
pub(crate) struct SmallDisk {
    dir: PathBuf,
}

/// What is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    Bytes,
    Inodes,
}

impl SmallDisk {
    /// Mounts one on `dir`, which is made; `options` as for `mount -t tmpfs -o`.
    pub(crate) fn mount(dir: &Path, options: &str) -> Self {
        fs::create_dir_all(dir).expect("a directory can be made");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir).status();
        assert!(status.expect("mount can be run").success(), "a tmpfs can be mounted on {}", dir.display());
        Self { dir: dir.to_owned() }
    }

    /// Uses up what is left, until [`clear`](Self::clear).
    pub(crate) fn fill(&self, what: Full) {
        let ballast = self.ballast();
        fs::create_dir_all(&ballast).expect("the first directory fits");
        let full = match what {
            Full::Bytes => fill_bytes(&ballast.join("bytes")),
            Full::Inodes => (0..).map(|n| File::create(ballast.join(format!("{n}"))).map(drop)).find_map(Result::err),
        };
        let full = full.expect("it was filled until it refused");
        assert_eq!(full.kind(), ErrorKind::StorageFull, "{full}");
    }

    pub(crate) fn clear(&self) {
        fs::remove_dir_all(self.ballast()).expect("the ballast can be removed");
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }
}

/// Down to the last byte: small files must not fit either.
fn fill_bytes(path: &Path) -> Option<std::io::Error> {
    let mut file = File::create(path).ok()?;
    for size in [1 << 20, 1 << 12, 1] {
        let block = vec![0x5a; size];
        loop {
            match file.write(&block) {
                Ok(_) => {}
                Err(error) if size == 1 => return Some(error),
                Err(_) => break,
            }
        }
    }
    None
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--quiet", "--lazy"]).arg(&self.dir).stderr(Stdio::null()).status();
    }
}
