//! The master key: 32 random bytes in a file of their own, outside the database, that wrap the data key of every
//! extent at rest. The file holds 64 hex digits and a line end, is readable by its owner alone, and is part of every
//! backup plan: without it nothing stored can be read again.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rand::TryRng;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// Text of a key file: 64 hex digits; anything longer than this many bytes is refused unread.
const KEY_FILE_BYTES_MAX: u64 = 256;

/// Why there is no master key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Others than the owner may read or write the file.
    #[error(
        "the master key file {path} has mode {mode:04o}, so others could read it; run `chmod 600 {path}` \
         (for a Docker secret set `mode: 0400`)"
    )]
    TooOpen {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file does not hold 64 hex digits.
    #[error(
        "the master key file {path} does not hold exactly 64 hex digits; restore it from a backup \
         (`openssl rand -hex 32` makes one for a new, empty data directory)"
    )]
    Malformed {
        /// The key file.
        path: PathBuf,
    },
    /// There is data, but the key that seals it is gone.
    #[error(
        "the master key file {path} is missing but the data directory is not new; restore the file from a backup: \
         without it nothing stored can be read"
    )]
    Missing {
        /// The key file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} the master key file {path}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The key file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Names a master key without telling it: the first 8 bytes of the key's SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId(pub [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The key that wraps data keys. Wiped from memory when dropped; its `Debug` shows the id alone.
pub struct MasterKey {
    bytes: Zeroizing<[u8; 32]>,
    id: KeyId,
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl MasterKey {
    /// A key of these bytes.
    #[must_use]
    pub fn from_bytes(bytes: Zeroizing<[u8; 32]>) -> Self {
        let hash: [u8; 32] = Sha256::digest(bytes.as_slice()).into();
        let mut id = [0; 8];
        id.copy_from_slice(&hash[..8]);
        Self { bytes, id: KeyId(id) }
    }

    /// The name of this key, safe to show and to store.
    #[must_use]
    pub const fn id(&self) -> KeyId {
        self.id
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// Reads the key file.
    ///
    /// # Errors
    /// [`KeyError::Missing`] when there is none, [`KeyError::TooOpen`] when others may read it, [`KeyError::Malformed`]
    /// when it holds something else, [`KeyError::Io`] for the rest.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let io = |action| move |source| KeyError::Io { action, path: path.to_owned(), source };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(KeyError::Missing { path: path.to_owned() });
            }
            Err(error) => return Err(io("open")(error)),
        };
        let mode = file.metadata().map_err(io("inspect"))?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::TooOpen { path: path.to_owned(), mode });
        }
        let mut text = Zeroizing::new(String::with_capacity(KEY_FILE_BYTES_MAX as usize));
        let malformed = || KeyError::Malformed { path: path.to_owned() };
        file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => malformed(),
            _ => io("read")(error),
        })?;
        let mut bytes = Zeroizing::new([0u8; 32]);
        hex::decode_to_slice(text.trim(), bytes.as_mut_slice()).map_err(|_| malformed())?;
        Ok(Self::from_bytes(bytes))
    }

    /// Reads the key file or, when there is none and the data directory is new, makes one: random, mode 0600, synced
    /// (file and directory) before it is used. Two processes that start at once agree on one key.
    ///
    /// # Errors
    /// As [`MasterKey::load`]; a missing file is only made good when `data_is_new`.
    pub fn load_or_create(path: &Path, data_is_new: bool) -> Result<Self, KeyError> {
        match Self::load(path) {
            Err(KeyError::Missing { .. }) if data_is_new => {
                create(path).map_err(|source| KeyError::Io { action: "create", path: path.to_owned(), source })?;
                Self::load(path)
            }
            other => other,
        }
    }
}

fn create(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut bytes = Zeroizing::new([0u8; 32]);
    rand::rngs::SysRng.try_fill_bytes(bytes.as_mut_slice()).map_err(io::Error::other)?;
    let mut text = Zeroizing::new([0u8; 65]);
    hex::encode_to_slice(bytes.as_slice(), &mut text[..64]).map_err(io::Error::other)?;
    text[64] = b'\n';
    // Made aside (with mode 0600) and moved in place whole, so that a crash never leaves half a key under the name.
    let mut aside = tempfile::NamedTempFile::new_in(parent)?;
    aside.write_all(text.as_slice())?;
    aside.as_file().sync_all()?;
    match aside.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error.error),
    }
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_key_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        let made = MasterKey::load_or_create(&path, true).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = MasterKey::load_or_create(&path, true).unwrap();
        assert_eq!(made.bytes(), again.bytes());
        assert_ne!(made.bytes(), &[0; 32]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside the key");
        let hash: [u8; 32] = Sha256::digest(made.bytes()).into();
        assert_eq!(made.id().0, hash[..8]);
    }

    #[test]
    fn a_key_others_could_read_is_refused_with_the_fix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        MasterKey::load_or_create(&path, true).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o644, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = MasterKey::load_or_create(&path, true).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")), "{error}");
            assert!(error.contains(&format!("chmod 600 {}", path.display())), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        MasterKey::load(&path).unwrap();
    }

    #[test]
    fn a_lost_key_is_never_replaced_silently() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        assert!(matches!(MasterKey::load_or_create(&path, false), Err(KeyError::Missing { .. })));
        assert!(!path.exists());
    }

    #[test]
    fn anything_but_64_hex_digits_is_refused_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        let (short, long) = ("ab".repeat(31), "ab".repeat(33));
        for text in ["", &short, &long, &"zz".repeat(32), "\u{fffd}", &"ab".repeat(5000)] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let error = MasterKey::load_or_create(&path, true).unwrap_err();
            assert!(matches!(error, KeyError::Malformed { .. }), "{error}");
        }
        fs::write(&path, [0xff; 64]).unwrap();
        assert!(matches!(MasterKey::load(&path), Err(KeyError::Malformed { .. })));
        fs::write(&path, "ab".repeat(32)).unwrap();
        let key = MasterKey::load(&path).unwrap();
        assert!(!format!("{key:?}").contains("abab") && !format!("{key:?}").contains("171"), "{key:?}");
    }
}
