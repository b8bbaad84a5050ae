//! The persistent copy: JSON lines, put aside by size.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::drain::Sink;
use super::entry::Entry;
use super::{FileConfig, LoggerError};

/// How much is gathered before it is written although more is waiting, in bytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// A file that is put aside as `.1` when full, while older ones move up and the oldest goes.
pub(super) struct RotatingFile {
    path: PathBuf,
    bytes_max: u64,
    files_max: usize,
    file: File,
    /// Bytes in the file.
    written: u64,
    buffer: Vec<u8>,
}

impl RotatingFile {
    pub(super) fn open(config: &FileConfig) -> Result<Self, LoggerError> {
        let path = config.dir.join(format!("{}.jsonl", config.name));
        let failed = |source| LoggerError::File { path: path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&config.dir).map_err(failed)?;
        let (file, written) = open_at_end(&path).map_err(failed)?;
        let (bytes_max, files_max) = (config.file_bytes_max, config.files_max.max(1));
        Ok(Self { path, bytes_max, files_max, file, written, buffer: Vec::new() })
    }

    fn numbered(&self, number: usize) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        name.into()
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        if self.files_max == 1 {
            self.file.set_len(0)?;
        } else {
            for number in (1..self.files_max - 1).rev() {
                rename_if_there(&self.numbered(number), &self.numbered(number + 1))?;
            }
            rename_if_there(&self.path, &self.numbered(1))?;
        }
        (self.file, self.written) = open_at_end(&self.path)?;
        Ok(())
    }

    /// Writes the buffer out; what could not be written is dropped rather than kept growing.
    fn write_out(&mut self) -> io::Result<()> {
        let result = self.file.write_all(&self.buffer);
        let length = self.buffer.len() as u64;
        self.buffer.clear();
        if result.is_ok() {
            self.written += length;
        } else if let Ok(reopened) = open_at_end(&self.path) {
            // How much arrived is unknown; start over at a line's beginning, or the next line would be spoiled too.
            (self.file, self.written) = reopened;
        }
        result
    }
}

impl Sink for RotatingFile {
    fn write(&mut self, entry: &Entry) -> io::Result<()> {
        let line = serde_json::to_vec(entry)?;
        let size = self.written + (self.buffer.len() + line.len() + 1) as u64;
        if size > self.bytes_max && self.written + self.buffer.len() as u64 > 0 {
            self.write_out()?;
            self.rotate()?;
        } else if self.buffer.len() >= BUFFER_BYTES {
            self.write_out()?;
        }
        self.buffer.extend_from_slice(&line);
        self.buffer.push(b'\n');
        Ok(())
    }

    fn flush(&mut self, sync: bool) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.write_out()?;
        }
        if sync { self.file.sync_data() } else { Ok(()) }
    }
}

/// Opens `path` for appending, ends a line that a crash has cut short, and says how long the file is.
fn open_at_end(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let mut length = file.metadata()?.len();
    if length > 0 {
        let mut last = [0u8];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
            length += 1;
        }
    }
    Ok((file, length))
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
