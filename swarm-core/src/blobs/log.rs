//! Logs: sealed files that grow by one extent per append, each synced before it is acknowledged.
//!
//! After a power loss the extent that was being appended may be torn; it was never acknowledged and is cut when the
//! log is opened again. Only the last extent can be torn, so damage with a genuine extent behind it is reported and left
//! as it is. Damage to the very last extent looks like a torn one: the log is then shorter than what was acknowledged,
//! which a caller that remembers the acknowledged length can see. A log is open in one process at a time.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use swarm_host::files;
use swarm_protocol::ids::Digest;

use super::dirs::{Shards, parent, sync_dir};
use super::sealed::{FileId, HEADER_BYTES, MAGIC, open_header, seal_extent};
use super::sealed_file::{Cursor, SealedFile};
use super::{BlobError, LogKey, MasterKey, SealError};

/// Most plaintext bytes of one append.
pub const LOG_APPEND_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Logs kept open at a time, as long as no more are in use at that very moment.
const OPEN_LOGS_MAX: usize = 256;
/// Extents remembered over all open logs, at 24 bytes each.
const OPEN_EXTENTS_MAX: usize = 1 << 20;
const SCAN_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Logs {
    files: Shards,
    master: Arc<MasterKey>,
    open: Mutex<HashMap<LogKey, Arc<Slot>>>,
    clock: AtomicU64,
}

/// A log's place in memory; its mutex orders all that is done to the log, also over file I/O.
#[derive(Default)]
struct Slot {
    log: Mutex<Option<OpenLog>>,
    used: AtomicU64,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("used", &self.used).finish_non_exhaustive()
    }
}

struct OpenLog {
    sealed: SealedFile,
    cursor: Cursor,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Option<OpenLog>> {
        self.log.lock().unwrap_or_else(|poisoned| {
            // A panic in the middle of a change: forget what memory says and read the file again.
            let mut log = PoisonError::into_inner(poisoned);
            *log = None;
            log
        })
    }

    /// Extents remembered; an empty slot and one in use count as nothing.
    fn extents(&self) -> usize {
        self.log.try_lock().map_or(0, |log| log.as_ref().map_or(0, |log| log.sealed.extents.len()))
    }
}

impl Logs {
    pub(super) fn new(files: Shards, master: Arc<MasterKey>) -> Self {
        Self { files, master, open: Mutex::default(), clock: AtomicU64::new(0) }
    }

    pub(super) fn append(&self, key: &LogKey, offset: u64, bytes: &[u8]) -> Result<u64, BlobError> {
        if bytes.len() > LOG_APPEND_BYTES_MAX {
            let (log, bytes, max_bytes) = (key.clone(), bytes.len(), LOG_APPEND_BYTES_MAX);
            return Err(BlobError::AppendTooLarge { log, bytes, max_bytes });
        }
        let path = self.path(key);
        let slot = self.slot(key);
        let mut guard = slot.lock();
        let mut log = match self.take(&mut guard, key, &path)? {
            Some(log) => log,
            None if offset > 0 => return Err(BlobError::Gap { log: key.clone(), have: 0, offset }),
            None if bytes.is_empty() => return Ok(0),
            None => self.create(key, &path)?,
        };
        let have = log.sealed.length;
        if offset > have {
            *guard = Some(log);
            return Err(BlobError::Gap { log: key.clone(), have, offset });
        }
        let known = usize::try_from(have - offset).unwrap_or(usize::MAX);
        if let Some(fresh) = bytes.get(known..).filter(|fresh| !fresh.is_empty()) {
            // On an error the slot stays empty: the file decides anew what was kept.
            append_extent(&mut log.sealed, fresh).map_err(BlobError::sealed("append to", &path))?;
            files::note_synced(&path);
        }
        let length = log.sealed.length;
        *guard = Some(log);
        Ok(length)
    }

    pub(super) fn len(&self, key: &LogKey) -> Result<u64, BlobError> {
        self.with(key, |log, _| Ok(log.map_or(0, |log| log.sealed.length)))
    }

    pub(super) fn read(&self, key: &LogKey, offset: u64, len_max: usize) -> Result<Vec<u8>, BlobError> {
        self.with(key, |log, path| {
            let Some(OpenLog { sealed, cursor }) = log else { return Ok(Vec::new()) };
            let left = usize::try_from(sealed.length.saturating_sub(offset)).unwrap_or(usize::MAX);
            let mut bytes = vec![0; left.min(len_max)];
            let mut done = 0;
            while done < bytes.len() {
                let taken = cursor
                    .read_at(sealed, offset + done as u64, &mut bytes[done..])
                    .map_err(BlobError::sealed("read", path))?;
                if taken == 0 {
                    break;
                }
                done += taken;
            }
            bytes.truncate(done);
            Ok(bytes)
        })
    }

    pub(super) fn remove(&self, key: &LogKey) -> Result<bool, BlobError> {
        let path = self.path(key);
        let slot = self.slot(key);
        let mut guard = slot.lock();
        *guard = None;
        match files::remove(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(BlobError::io("remove", &path))?,
        }
        sync_dir(parent(&path))?;
        Ok(true)
    }

    fn with<T>(
        &self,
        key: &LogKey,
        work: impl FnOnce(Option<&mut OpenLog>, &Path) -> Result<T, BlobError>,
    ) -> Result<T, BlobError> {
        let path = self.path(key);
        let slot = self.slot(key);
        let mut guard = slot.lock();
        *guard = self.take(&mut guard, key, &path)?;
        work(guard.as_mut(), &path)
    }

    /// The log out of its slot, or from disk; `None` where there is no such log.
    fn take(&self, slot: &mut Option<OpenLog>, key: &LogKey, path: &Path) -> Result<Option<OpenLog>, BlobError> {
        if let Some(log) = slot.take() {
            return Ok(Some(log));
        }
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(BlobError::io("open", path))?,
        };
        lock(&file, path)?;
        let sealed = SealedFile::empty(file, Arc::clone(&self.master), FileId::log(key.as_str()));
        recover(sealed, path).map(Some).map_err(BlobError::sealed("recover", path))
    }

    fn create(&self, key: &LogKey, path: &Path) -> Result<OpenLog, BlobError> {
        self.files.ensure(shard(key))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(BlobError::io("create", path))?;
        lock(&file, path)?;
        files::note_synced(path);
        sync_dir(parent(path))?;
        let sealed = SealedFile::empty(file, Arc::clone(&self.master), FileId::log(key.as_str()));
        Ok(OpenLog { sealed, cursor: Cursor::default() })
    }

    fn path(&self, key: &LogKey) -> PathBuf {
        self.files.path(shard(key), key.as_str())
    }

    /// The log's slot; the least recently used slots make room. A slot in use is never dropped from the map, so there
    /// is at most one for each log.
    fn slot(&self, key: &LogKey) -> Arc<Slot> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = open.get(key) {
            slot.used.store(now, Ordering::Relaxed);
            return Arc::clone(slot);
        }
        evict(&mut open);
        let slot = Arc::new(Slot { log: Mutex::default(), used: AtomicU64::new(now) });
        open.insert(key.clone(), Arc::clone(&slot));
        slot
    }
}

/// The first byte of the name's hash.
fn shard(key: &LogKey) -> u8 {
    Digest::of(key.as_str().as_bytes()).0[0]
}

fn evict(open: &mut HashMap<LogKey, Arc<Slot>>) {
    let mut extents: usize = open.values().map(|slot| slot.extents()).sum();
    if open.len() < OPEN_LOGS_MAX && extents <= OPEN_EXTENTS_MAX {
        return;
    }
    let idle = open.iter().filter(|(_, slot)| Arc::strong_count(slot) == 1);
    let mut idle: Vec<_> =
        idle.map(|(key, slot)| (slot.used.load(Ordering::Relaxed), slot.extents(), key.clone())).collect();
    idle.sort_unstable_by_key(|(used, ..)| *used);
    for (_, freed, key) in idle {
        if open.len() < OPEN_LOGS_MAX && extents <= OPEN_EXTENTS_MAX {
            break;
        }
        open.remove(&key);
        extents = extents.saturating_sub(freed);
    }
}

/// Keeps other processes from appending to the log, or from taking an append under way for a torn one.
fn lock(file: &File, path: &Path) -> Result<(), BlobError> {
    file.try_lock().map_err(|error| match error {
        TryLockError::Error(source) => BlobError::io("lock", path)(source),
        TryLockError::WouldBlock => BlobError::io("lock", path)(io::Error::other("another process has it open")),
    })
}

fn append_extent(sealed: &mut SealedFile, bytes: &[u8]) -> Result<(), SealError> {
    let index = u32::try_from(sealed.extents.len()).map_err(|_| SealError::TooLong)?;
    let extent = seal_extent(&sealed.master, &sealed.id, index, sealed.length, false, bytes)?;
    let written = sealed.file.write_all_at(&extent, sealed.end).and_then(|()| sealed.file.sync_data());
    if let Err(error) = written {
        // Part of it may be there. Cut it, so that space is free again; should that fail too, recovery cuts it.
        let _ = sealed.file.set_len(sealed.end);
        return Err(error.into());
    }
    let end = sealed.end + extent.len() as u64;
    sealed.push(bytes.len() as u64, end);
    Ok(())
}

/// Finds the extents of a log and cuts a torn one at its end.
fn recover(mut sealed: SealedFile, path: &Path) -> Result<OpenLog, SealError> {
    let file_bytes = sealed.file.metadata()?.len();
    let mut cursor = Cursor::default();
    while sealed.end < file_bytes {
        match sealed.take_extent(file_bytes) {
            Ok(()) => {}
            Err(error)
                if may_be_torn(&error, sealed.extents.len()) && !genuine_extent_follows(&sealed, file_bytes)? =>
            {
                break;
            }
            Err(error) => return Err(error),
        }
    }
    if sealed.end == file_bytes && !sealed.extents.is_empty() {
        match cursor.verify(&sealed, sealed.extents.len() - 1) {
            Err(SealError::Segment { .. }) => sealed.pop(),
            other => other?,
        }
    }
    if sealed.end < file_bytes {
        tracing::warn!(
            log.path = %path.display(), cut_bytes = file_bytes - sealed.end, kept_bytes = sealed.length,
            "cut the torn end of a log that was being written when the core stopped"
        );
        sealed.file.set_len(sealed.end)?;
        sealed.file.sync_all()?;
        files::note_synced(path);
    }
    Ok(OpenLog { sealed, cursor: Cursor::default() })
}

/// Whether an interrupted append can have left this. Another key or version can not, and must never lead to a cut.
fn may_be_torn(error: &SealError, extents_before: usize) -> bool {
    match error {
        SealError::Truncated { .. } | SealError::NotSealed { .. } | SealError::Header { .. } => true,
        SealError::Version { version, .. } => *version == 0,
        SealError::OtherKey { found, .. } => extents_before > 0 || found.0 == [0; 8],
        _ => false,
    }
}

/// Looks behind the known extents for a header of this log that authenticates, other than the one due there.
fn genuine_extent_follows(sealed: &SealedFile, file_bytes: u64) -> Result<bool, SealError> {
    let mut window = vec![0u8; SCAN_BYTES];
    let mut at = sealed.end;
    while file_bytes.saturating_sub(at) >= HEADER_BYTES as u64 {
        let taken = usize::try_from(file_bytes - at).unwrap_or(usize::MAX).min(SCAN_BYTES);
        sealed.file.read_exact_at(&mut window[..taken], at)?;
        for begin in 0..=taken - HEADER_BYTES {
            let Some(header) = window[begin..].first_chunk::<HEADER_BYTES>() else { break };
            if header[..MAGIC.len()] != MAGIC {
                continue;
            }
            let Ok((extent, _)) = open_header(&sealed.master, &sealed.id, header, at + begin as u64) else { continue };
            let due = at + begin as u64 == sealed.end
                && extent.index as usize == sealed.extents.len()
                && extent.start == sealed.length;
            if !due {
                return Ok(true);
            }
        }
        at += (taken - HEADER_BYTES + 1) as u64;
    }
    Ok(false)
}
