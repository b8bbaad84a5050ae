//! Blobs and logs in a directory of the local disk, which belongs to one writing process:
//! `sha256/ab/<hex>` (blobs), `logs/ab/<name>` (logs), `tmp/<process>/` (uploads under way).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};
use swarm_host::files;
use swarm_protocol::ids::Digest;

use super::dirs::{Shards, make_dir, make_one_dir, parent, sync_dir};
use super::log::Logs;
use super::sealed::{DataKey, Extent, FileId, HEADER_BYTES, SegmentWriter, seal_header};
use super::sealed_file::{Cursor, SealedFile};
use super::{BlobEntry, BlobError, BlobInfo, BlobRead, BlobStore, BlobUpload, LogKey, MasterKey, StagedBlob};

/// Held, as a file lock, by the process that owns a directory of uploads.
const LOCK_NAME: &str = "lock";

/// The blob store in a directory of the local disk.
#[derive(Debug)]
pub struct DiskBlobs {
    shared: Arc<Shared>,
    logs: Logs,
}

#[derive(Debug)]
struct Shared {
    blobs: Shards,
    master: Arc<MasterKey>,
    uploads: PathBuf,
    upload_count: AtomicU64,
    /// Keeps other processes from sweeping our uploads.
    _uploads_lock: File,
    /// Held while a blob comes or goes, so that `remove` with `spare_from` judges what is really there.
    names: Mutex<()>,
}

impl DiskBlobs {
    /// Opens the store in `root`, which is made (mode 0700) where it is missing, and removes uploads that a process now
    /// gone left behind.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn open(root: &Path, master: Arc<MasterKey>) -> Result<Self, BlobError> {
        let tmp = root.join("tmp");
        make_dir(&tmp)?;
        let (blobs, logs) = (Shards::open(root.join("sha256"))?, Shards::open(root.join("logs"))?);
        // Two processes that start at once take turns, so that neither sweeps what the other is just setting up.
        let _turn = File::open(&tmp).and_then(|dir| dir.lock().map(|()| dir)).map_err(BlobError::io("lock", &tmp))?;
        sweep_uploads(&tmp)?;
        let uploads = tmp.join(uuid::Uuid::new_v4().to_string());
        make_one_dir(&uploads)?;
        let lock_path = uploads.join(LOCK_NAME);
        let lock = File::create_new(&lock_path).map_err(BlobError::io("create", &lock_path))?;
        lock.lock().map_err(BlobError::io("lock", &lock_path))?;
        let shared = Shared {
            blobs,
            master: Arc::clone(&master),
            uploads,
            upload_count: AtomicU64::new(0),
            _uploads_lock: lock,
            names: Mutex::new(()),
        };
        Ok(Self { shared: Arc::new(shared), logs: Logs::new(logs, master) })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Best effort: what stays is swept at the next start.
        let _ = fs::remove_dir_all(&self.uploads);
    }
}

impl Shared {
    fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.path(digest.0[0], &digest.hex())
    }

    fn names(&self) -> MutexGuard<'_, ()> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, path: &Path, digest: &Digest) -> Result<Box<dyn BlobRead>, BlobError> {
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => BlobError::NotFound(*digest),
            _ => BlobError::io("open", path)(error),
        })?;
        let sealed = SealedFile::open_complete(file, Arc::clone(&self.master), FileId::Blob(*digest))
            .map_err(BlobError::sealed("read", path))?;
        Ok(Box::new(DiskBlob { sealed, cursor: Cursor::default(), position: 0 }))
    }

    fn publish(&self, mut temp: TempPath, digest: &Digest) -> Result<(), BlobError> {
        let path = self.path(digest);
        self.blobs.ensure(digest.0[0])?;
        File::open(&temp.0).and_then(|file| file.sync_all()).map_err(BlobError::io("sync", &temp.0))?;
        {
            let _names = self.names();
            // Over a blob that is there already, too: the content is the same, and a damaged file is replaced.
            files::rename_synced(&temp.0, &path).map_err(BlobError::io("move an upload to", &path))?;
        }
        temp.0.clear();
        sync_dir(parent(&path))
    }
}

impl BlobStore for DiskBlobs {
    fn begin(&self, max_bytes: u64) -> Result<Box<dyn BlobUpload>, BlobError> {
        let number = self.shared.upload_count.fetch_add(1, Ordering::Relaxed);
        let temp = TempPath(self.shared.uploads.join(number.to_string()));
        let upload = DiskUpload::begin(&self.shared, temp, max_bytes);
        upload.map(|upload| Box::new(upload) as Box<dyn BlobUpload>)
    }

    fn open(&self, digest: &Digest) -> Result<Box<dyn BlobRead>, BlobError> {
        self.shared.read(&self.shared.path(digest), digest)
    }

    fn contains(&self, digest: &Digest) -> Result<bool, BlobError> {
        let path = self.shared.path(digest);
        path.try_exists().map_err(BlobError::io("look for", &path))
    }

    fn remove(&self, digest: &Digest, spare_from: Option<SystemTime>) -> Result<bool, BlobError> {
        let path = self.shared.path(digest);
        {
            let _names = self.shared.names();
            let uploaded_at = match fs::metadata(&path).and_then(|meta| meta.modified()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                other => other.map_err(BlobError::io("inspect", &path))?,
            };
            if spare_from.is_some_and(|from| uploaded_at >= from) {
                return Ok(false);
            }
            files::remove(&path).map_err(BlobError::io("remove", &path))?;
        }
        sync_dir(parent(&path))?;
        Ok(true)
    }

    fn list(&self, after: Option<&Digest>, count_max: usize) -> Result<Vec<BlobEntry>, BlobError> {
        let mut found = Vec::new();
        let first = after.map_or(0, |digest| digest.0[0]);
        for shard in first..=u8::MAX {
            if found.len() >= count_max {
                break;
            }
            list_shard(&self.shared.blobs.dir(shard), after, &mut found)?;
        }
        found.truncate(count_max);
        Ok(found)
    }

    fn log_append(&self, log: &LogKey, offset: u64, bytes: &[u8]) -> Result<u64, BlobError> {
        self.logs.append(log, offset, bytes)
    }

    fn log_len(&self, log: &LogKey) -> Result<u64, BlobError> {
        self.logs.len(log)
    }

    fn log_read(&self, log: &LogKey, offset: u64, len_max: usize) -> Result<Vec<u8>, BlobError> {
        self.logs.read(log, offset, len_max)
    }

    fn log_remove(&self, log: &LogKey) -> Result<bool, BlobError> {
        self.logs.remove(log)
    }
}

/// Adds the blobs of one directory that come after `after`, sorted.
fn list_shard(dir: &Path, after: Option<&Digest>, found: &mut Vec<BlobEntry>) -> Result<(), BlobError> {
    let io = || BlobError::io("list", dir);
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(io())?,
    };
    let begin = found.len();
    for entry in entries {
        let entry = entry.map_err(io())?;
        let name = entry.file_name();
        let digest = name.to_str().and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
        let Some(digest) = digest.filter(|digest| after.is_none_or(|after| digest > after)) else { continue };
        let meta = match entry.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(io())?,
        };
        found.push(BlobEntry { digest, stored_bytes: meta.len(), uploaded_at: meta.modified().map_err(io())? });
    }
    found[begin..].sort_unstable_by_key(|entry| entry.digest);
    Ok(())
}

/// Removes the upload directories whose owner is gone.
fn sweep_uploads(tmp: &Path) -> Result<(), BlobError> {
    for entry in fs::read_dir(tmp).map_err(BlobError::io("list", tmp))? {
        let dir = entry.map_err(BlobError::io("list", tmp))?.path();
        let owned = File::open(dir.join(LOCK_NAME)).is_ok_and(|lock| lock.try_lock().is_err());
        if !owned {
            fs::remove_dir_all(&dir).map_err(BlobError::io("remove", &dir))?;
        }
    }
    Ok(())
}

/// A file that goes with its owner; empty once it was moved away.
#[derive(Debug)]
struct TempPath(PathBuf);

impl Drop for TempPath {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            // Best effort: what stays is swept at the next start.
            let _ = fs::remove_file(&self.0);
        }
    }
}

struct DiskUpload {
    shared: Arc<Shared>,
    temp: TempPath,
    writer: SegmentWriter<File>,
    hash: Sha256,
    written: u64,
    max_bytes: u64,
    failed: bool,
}

impl DiskUpload {
    fn begin(shared: &Arc<Shared>, temp: TempPath, max_bytes: u64) -> Result<Self, BlobError> {
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create_new(true).mode(0o600).open(&temp.0).map_err(BlobError::io("create", &temp.0))?;
        // The header is written last: it holds the length, and its wrapping is bound to the digest.
        file.write_all(&[0; HEADER_BYTES]).map_err(BlobError::io("write", &temp.0))?;
        let key = DataKey::random().map_err(BlobError::io("draw a key for", &temp.0))?;
        Ok(Self {
            shared: Arc::clone(shared),
            temp,
            writer: SegmentWriter::new(key, file),
            hash: Sha256::new(),
            written: 0,
            max_bytes,
            failed: false,
        })
    }

    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::other("an earlier write of this upload failed"));
        }
        if bytes.len() as u64 > self.max_bytes - self.written {
            let error = BlobError::TooLarge { max_bytes: self.max_bytes };
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, error));
        }
        let taken = self.writer.write(bytes)?;
        self.hash.update(&bytes[..taken]);
        self.written += taken as u64;
        Ok(taken)
    }
}

impl Write for DiskUpload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.write_some(bytes);
        self.failed |= result.is_err();
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobUpload for DiskUpload {
    fn written_bytes(&self) -> u64 {
        self.written
    }

    fn stage(self: Box<Self>) -> Result<Box<dyn StagedBlob>, BlobError> {
        let Self { shared, temp, writer, hash, written, failed, .. } = *self;
        let io = || BlobError::io("write", &temp.0);
        if failed {
            return Err(io()(io::Error::other("an earlier write of this upload failed")));
        }
        let digest = Digest(hash.finalize().into());
        let (key, file) = writer.finish().map_err(io())?;
        let extent = Extent { index: 0, start: 0, length: written, last: true };
        let header = seal_header(&shared.master, &FileId::Blob(digest), &extent, &key).map_err(io())?;
        file.write_all_at(&header, 0).map_err(io())?;
        let info = BlobInfo { digest, size_bytes: written };
        Ok(Box::new(DiskStaged { shared, temp, info }))
    }
}

struct DiskStaged {
    shared: Arc<Shared>,
    temp: TempPath,
    info: BlobInfo,
}

impl StagedBlob for DiskStaged {
    fn info(&self) -> BlobInfo {
        self.info
    }

    fn open(&self) -> Result<Box<dyn BlobRead>, BlobError> {
        self.shared.read(&self.temp.0, &self.info.digest)
    }

    fn publish(self: Box<Self>) -> Result<BlobInfo, BlobError> {
        let Self { shared, temp, info } = *self;
        shared.publish(temp, &info.digest)?;
        Ok(info)
    }
}

struct DiskBlob {
    sealed: SealedFile,
    cursor: Cursor,
    position: u64,
}

impl BlobRead for DiskBlob {
    fn size_bytes(&self) -> u64 {
        self.sealed.length
    }
}

impl Read for DiskBlob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let taken = self.cursor.read_at(&self.sealed, self.position, buffer)?;
        self.position += taken as u64;
        Ok(taken)
    }
}

impl Seek for DiskBlob {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(delta) => self.sealed.length.checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        self.position =
            target.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek before the first byte"))?;
        Ok(self.position)
    }
}
