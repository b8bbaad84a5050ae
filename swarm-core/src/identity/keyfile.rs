//! Small secret files: whole or absent, readable by their owner only, durable before they count.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretBox, SecretString};

use super::jwt::SigningKey;

/// What is wrong with a secret file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Not a key.
    #[error("{} is not a key of 32 bytes; restore it, or remove it to end all sessions and make a new one", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
    },
    /// Others may read it.
    #[error("{} can be read by others (mode {mode:o}); set it to 600, and remove it if it may have been seen", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyFileError {
    move |source| KeyFileError::Io { action, path: path.to_owned(), source }
}

/// The signing key in `path`, made there when the file is missing.
pub(super) fn signing_key(path: &Path) -> Result<SigningKey, KeyFileError> {
    match fs::metadata(path) {
        Ok(metadata) => {
            let mode = metadata.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(KeyFileError::Exposed { path: path.to_owned(), mode });
            }
            let bytes = zeroize::Zeroizing::new(fs::read(path).map_err(io_error("read", path))?);
            let shape = |_| KeyFileError::Shape { path: path.to_owned() };
            let secret: [u8; 32] = bytes.as_slice().try_into().map_err(shape)?;
            Ok(SigningKey::from_secret(SecretBox::new(Box::new(secret))))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = SigningKey::generate();
            write(path, key.secret().expose_secret())?;
            Ok(key)
        }
        Err(error) => Err(io_error("read", path)(error)),
    }
}

/// Writes a password with a newline, replacing an earlier one.
pub(super) fn write_password(path: &Path, password: &SecretString) -> Result<(), KeyFileError> {
    let line = zeroize::Zeroizing::new(format!("{}\n", password.expose_secret()));
    write(path, line.as_bytes())
}

/// Writes beside the file, syncs, renames, and syncs the directory.
fn write(path: &Path, bytes: &[u8]) -> Result<(), KeyFileError> {
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &beside)(error)),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .map_err(io_error("create", &beside))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io_error("write", &beside))?;
    fs::rename(&beside, path).map_err(io_error("rename", path))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(io_error("sync", parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jwt.key");
        let id = signing_key(&path).unwrap().id().to_owned();
        assert_eq!(signing_key(&path).unwrap().id(), id);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(signing_key(&path), Err(KeyFileError::Exposed { mode: 0o644, .. })));
        fs::remove_file(&path).unwrap();
        write(&path, b"short").unwrap();
        assert!(matches!(signing_key(&path), Err(KeyFileError::Shape { .. })));
    }
}
