//! Wall clocks of processes that a test can set, by libfaketime. Monotonic clocks go on as they are.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Swarm;

/// Gives the program that `command` starts a wall clock that [`Swarm::set_clock`] changes under the name `part`.
pub(super) fn fake_clock(home: &Path, part: &str, command: &mut Command) {
    let file = home.join(format!("{part}.clock"));
    if !file.exists() {
        set(&file, 0);
    }
    command.env("LD_PRELOAD", library()).env("FAKETIME_TIMESTAMP_FILE", file);
    command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
}

/// Replaced, not written: it may be read at any moment.
fn set(file: &Path, offset_s: i64) {
    let new = file.with_extension("new");
    std::fs::write(&new, format!("{offset_s:+}\n")).expect("a file can be written");
    std::fs::rename(&new, file).expect("a file can be renamed");
}

/// The one for programs with threads.
fn library() -> PathBuf {
    let name = Path::new("faketime/libfaketimeMT.so.1");
    let places = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let found = places.map(|dir| dir.join(name)).find(|path| path.exists());
    found.expect("libfaketime is installed; `cargo xtask test` does it")
}

impl Swarm {
    /// Sets the wall clock of the `core` or the `worker`, so many seconds from the true one.
    pub(crate) fn set_clock(&self, part: &str, offset_s: i64) {
        set(&self.home().join(format!("{part}.clock")), offset_s);
    }
}
