//! Random access to the plaintext of a sealed file on disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::keys::MasterKey;
use super::sealed::{
    DataKey, Extent, FileId, HEADER_BYTES, SEGMENT_BYTES, SealError, TAG_BYTES, extent_bytes, open_header, segments,
};

/// Where an extent lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placed {
    /// Offset of its header in the file.
    pub(crate) at: u64,
    /// Plaintext bytes before it.
    pub(crate) start: u64,
    /// Plaintext bytes in it.
    pub(crate) length: u64,
}

/// A sealed file whose extents are known: random access to its plaintext.
pub(crate) struct SealedFile {
    pub(crate) file: File,
    pub(crate) master: Arc<MasterKey>,
    pub(crate) id: FileId,
    pub(crate) extents: Vec<Placed>,
    /// Plaintext bytes in all extents.
    pub(crate) length: u64,
    /// Bytes of the file that the extents take.
    pub(crate) end: u64,
    /// The last header seen said that nothing follows.
    complete: bool,
}

impl SealedFile {
    pub(crate) const fn empty(file: File, master: Arc<MasterKey>, id: FileId) -> Self {
        Self { file, master, id, extents: Vec::new(), length: 0, end: 0, complete: false }
    }

    /// Opens a complete file, such as a blob: anything missing or left over is an error.
    pub(crate) fn open_complete(file: File, master: Arc<MasterKey>, id: FileId) -> Result<Self, SealError> {
        let mut sealed = Self::empty(file, master, id);
        let file_bytes = sealed.file.metadata()?.len();
        while !sealed.complete {
            sealed.take_extent(file_bytes)?;
        }
        if file_bytes > sealed.end {
            return Err(SealError::Trailing { at: sealed.end });
        }
        if sealed.length == 0 {
            // Nothing will be read, so nothing else would ever open the empty segment.
            Cursor::default().verify(&sealed, 0)?;
        }
        Ok(sealed)
    }

    /// Reads and adds the extent that begins where the known ones end, in a file of `file_bytes` bytes.
    pub(crate) fn take_extent(&mut self, file_bytes: u64) -> Result<(), SealError> {
        let at = self.end;
        if at.checked_add(HEADER_BYTES as u64).is_none_or(|end| end > file_bytes) {
            return Err(SealError::Truncated { at: file_bytes });
        }
        let (extent, _) = self.header(at)?;
        if extent.index as usize != self.extents.len() || extent.start != self.length {
            return Err(SealError::Header { at });
        }
        let end = extent_bytes(extent.length).and_then(|bytes| at.checked_add(bytes)).ok_or(SealError::TooLong)?;
        if end > file_bytes {
            return Err(SealError::Truncated { at: file_bytes });
        }
        self.push(extent.length, end);
        self.complete = extent.last;
        Ok(())
    }

    /// Adds an extent of `length` plaintext bytes that was written up to byte `end` of the file.
    pub(crate) fn push(&mut self, length: u64, end: u64) {
        self.extents.push(Placed { at: self.end, start: self.length, length });
        self.length += length;
        self.end = end;
    }

    /// Forgets the last extent.
    pub(crate) fn pop(&mut self) {
        if let Some(extent) = self.extents.pop() {
            self.length = extent.start;
            self.end = extent.at;
        }
    }

    pub(crate) fn header(&self, at: u64) -> Result<(Extent, DataKey), SealError> {
        let mut header = [0u8; HEADER_BYTES];
        self.file.read_exact_at(&mut header, at)?;
        open_header(&self.master, &self.id, &header, at)
    }

    /// The index of the extent that holds plaintext byte `offset`.
    fn extent_of(&self, offset: u64) -> Option<usize> {
        if offset >= self.length {
            return None;
        }
        Some(self.extents.partition_point(|extent| extent.start + extent.length <= offset))
    }
}

/// Reads plaintext of one [`SealedFile`]; keeps the key and the segment used last, so that reading on is cheap.
#[derive(Default)]
pub(crate) struct Cursor {
    key: Option<(usize, DataKey)>,
    segment: Vec<u8>,
    /// Extent and segment number that `segment` holds.
    holds: Option<(usize, u64)>,
}

impl Cursor {
    /// Copies plaintext from `offset` on into `buffer`: as much as lies in the same segment, 0 at the end.
    pub(crate) fn read_at(&mut self, sealed: &SealedFile, offset: u64, buffer: &mut [u8]) -> Result<usize, SealError> {
        let Some(index) = sealed.extent_of(offset) else { return Ok(0) };
        let within = offset - sealed.extents[index].start;
        let (number, skip) = (within / SEGMENT_BYTES as u64, (within % SEGMENT_BYTES as u64) as usize);
        self.load(sealed, index, number)?;
        let taken = buffer.len().min(self.segment.len() - skip);
        buffer[..taken].copy_from_slice(&self.segment[skip..skip + taken]);
        Ok(taken)
    }

    /// Opens every segment of one extent.
    pub(crate) fn verify(&mut self, sealed: &SealedFile, index: usize) -> Result<(), SealError> {
        for number in 0..segments(sealed.extents[index].length) {
            self.load(sealed, index, number)?;
        }
        Ok(())
    }

    fn load(&mut self, sealed: &SealedFile, index: usize, number: u64) -> Result<(), SealError> {
        if self.holds == Some((index, number)) {
            return Ok(());
        }
        self.holds = None;
        let extent = sealed.extents[index];
        if self.key.as_ref().is_none_or(|(of, _)| *of != index) {
            self.key = Some((index, sealed.header(extent.at)?.1));
        }
        let Some((_, key)) = &self.key else { return Err(SealError::Header { at: extent.at }) };
        let at = extent.at + HEADER_BYTES as u64 + number * (SEGMENT_BYTES + TAG_BYTES) as u64;
        let plain = (extent.length - number * SEGMENT_BYTES as u64).min(SEGMENT_BYTES as u64) as usize;
        self.segment.resize(plain + TAG_BYTES, 0);
        sealed.file.read_exact_at(&mut self.segment, at)?;
        key.open(number, number + 1 == segments(extent.length), &mut self.segment, at)?;
        self.holds = Some((index, number));
        Ok(())
    }
}
