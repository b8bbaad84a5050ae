//! Files that survive a crash: written beside, synced, renamed, and the directory synced. All calls may block.
//!
//! Whoever must not lose a file, or must not see a lost one again, changes it through this module alone, for only then
//! does a simulated power cut know what the disk may have kept.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

#[cfg(feature = "testing")]
pub mod simulated;

/// Tells the simulation, if there is one, what became of a path.
macro_rules! note {
    ($($note:tt)*) => {
        #[cfg(feature = "testing")]
        simulated::$($note)*;
    };
}

/// Replaces `path` by `bytes` (mode 0600); when this returns, either crash leaves the old or the new content, and after
/// it the new one.
///
/// # Errors
/// As the file system's; the old content stays, but for an error of the last sync.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = beside(path);
    write_to(&temporary, bytes)?.sync_all()?;
    std::fs::rename(&temporary, path)?;
    note!(synced_write(path, bytes));
    path.parent().map_or(Ok(()), sync_dir)
}

/// As [`write()`] without syncing: for what is worthless after a reboot, yet must never be seen half-written.
///
/// # Errors
/// As the file system's; the old content stays.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = beside(path);
    write_to(&temporary, bytes)?;
    std::fs::rename(&temporary, path)?;
    note!(unsynced_write(path, bytes));
    Ok(())
}

/// Overwrites the beginning of `file`, which is open as `path`, without syncing: for what has to be noted even where no
/// further file can be opened or made. A crash, or a reader at that moment, may find it half-written.
///
/// # Errors
/// As the file system's.
#[cfg_attr(not(feature = "testing"), expect(unused_variables, reason = "only a simulation wants to know"))]
pub fn overwrite(file: &File, path: &Path, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(bytes, 0)?;
    note!(unsynced_write(path, bytes));
    Ok(())
}

/// A hidden name in the same directory: whoever lists the directory skips it.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

fn write_to(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    Ok(file)
}

/// Makes the names in `dir` durable.
///
/// # Errors
/// As the file system's.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    note!(synced_dir(dir));
    Ok(())
}

/// Moves a file whose bytes are synced; its new name is durable once its directory is synced.
///
/// # Errors
/// As the file system's; nothing was moved.
pub fn rename_synced(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    note!(synced_as_it_is(to));
    Ok(())
}

/// Says that a file was made, and its bytes synced, by other means than this module's: nothing is done but in a simulation.
#[cfg_attr(not(feature = "testing"), expect(unused_variables, reason = "only a simulation wants to know"))]
pub fn note_synced(path: &Path) {
    note!(synced_as_it_is(path));
}

/// Makes a directory with these permission bits; its name is durable once the directory it is in is synced.
///
/// # Errors
/// As the file system's.
pub fn create_dir(dir: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().mode(mode).create(dir)?;
    note!(made_dir(dir));
    Ok(())
}

/// Makes a directory and those above it; their names are durable once the directories they are in are synced.
///
/// # Errors
/// As the file system's.
pub fn create_dir_all(dir: &Path) -> io::Result<()> {
    if let Some(above) = dir.parent().filter(|above| !above.as_os_str().is_empty() && !above.exists()) {
        create_dir_all(above)?;
    }
    match std::fs::create_dir(dir) {
        Ok(()) => {
            note!(made_dir(dir));
            Ok(())
        }
        Err(_) if dir.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a directory and those above it that lack, all with these permission bits; their names are durable when this
/// returns.
///
/// # Errors
/// As the file system's.
pub fn create_dir_durable(dir: &Path, mode: u32) -> io::Result<()> {
    let above = dir.parent().map(|above| if above.as_os_str().is_empty() { Path::new(".") } else { above });
    if dir.is_dir() {
        // An earlier start may have ended before it synced the name. Whoever may not read there did not make it.
        let _ = above.map(sync_dir);
        return Ok(());
    }
    let Some(above) = above else { return Err(io::ErrorKind::NotFound.into()) };
    create_dir_durable(above, mode)?;
    match create_dir(dir, mode) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_dir(above),
    }
}

/// Removes a file; it may be there again after a crash.
///
/// # Errors
/// As the file system's.
pub fn remove(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)?;
    note!(removed(path));
    Ok(())
}

/// Removes a directory and all it holds, which may be there again after a crash, in whole or in part.
///
/// # Errors
/// As the file system's.
pub fn remove_dir_all(dir: &Path) -> io::Result<()> {
    note!(removed_all(dir));
    std::fs::remove_dir_all(dir)
}
