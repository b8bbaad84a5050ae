//! A tar archive read member by member as it streams by. What it says is hostile: extension records are bounded, and
//! nothing is kept of a member's bytes.

use std::io;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tar::{EntryType, Header, PaxExtensions};

use super::{BLOCK_BYTES, ByteStream, cut_short, damaged};

/// The most an extension record (long name, PAX) may have before the archive is called hostile.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// What a member of an archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    /// A device, a pipe, or something that only some programs know.
    Other,
}

/// What the header of a member says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) kind: Kind,
    /// As archived; hostile, as is `link`.
    pub(crate) path: Vec<u8>,
    /// Where a link leads; empty for all else.
    pub(crate) link: Vec<u8>,
    /// Bytes that follow.
    pub(crate) size: u64,
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Last change, Unix time in seconds.
    pub(crate) mtime: u64,
}

/// What extension records said about the member that follows them.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
}

impl Extended {
    fn read_pax(&mut self, records: &[u8]) -> io::Result<()> {
        for record in PaxExtensions::new(records) {
            let record = record?;
            let value = record.value_bytes();
            let number = || {
                let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
                number.ok_or_else(|| damaged("an extension record holds no number"))
            };
            match record.key_bytes() {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number()?),
                b"uid" => self.uid = number().ok(),
                b"gid" => self.gid = number().ok(),
                key if key.starts_with(b"GNU.sparse") => return Err(damaged("sparse files are not supported")),
                _ => {}
            }
        }
        Ok(())
    }

    fn member(self, header: &Header, size: u64) -> io::Result<Member> {
        let link = || header.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::HardLink,
            _ => Kind::Other,
        };
        // Of anything else the bits mean nothing.
        let counts = matches!(kind, Kind::File | Kind::Directory);
        Ok(Member {
            kind,
            path: self.path.unwrap_or_else(|| header.path_bytes().into_owned()),
            link: self.link.unwrap_or_else(link),
            size: self.size.unwrap_or(size),
            mode: if counts { header.mode()? & 0o7777 } else { 0o777 },
            // Some programs leave owners out.
            uid: self.uid.unwrap_or_else(|| header.uid().unwrap_or_default()),
            gid: self.gid.unwrap_or_else(|| header.gid().unwrap_or_default()),
            mtime: header.mtime().unwrap_or_default(),
        })
    }
}

/// See the module.
pub(crate) struct TarReader {
    source: ByteStream,
    pending: BytesMut,
    /// Of the member's bytes, and of what fills their last block.
    left: u64,
    padding: usize,
}

impl TarReader {
    pub(crate) fn new(source: ByteStream) -> Self {
        Self { source, pending: BytesMut::new(), left: 0, padding: 0 }
    }

    /// The next member, once the bytes of the one before were read; `None` at the end that the archive marks.
    ///
    /// # Errors
    /// `InvalidData` when the archive is damaged, `UnexpectedEof` when it ends early, and what the source says.
    pub(crate) async fn next_member(&mut self) -> io::Result<Option<Member>> {
        while self.chunk().await?.is_some() {}
        let padding = std::mem::take(&mut self.padding);
        self.take(padding).await?;
        let mut extended = Extended::default();
        loop {
            let block = self.take(BLOCK_BYTES).await?;
            if block.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let header = checked_header(&block)?;
            let size = header.entry_size()?;
            match header.entry_type() {
                EntryType::XHeader => extended.read_pax(&self.extension(size).await?)?,
                EntryType::XGlobalHeader => drop(self.extension(size).await?),
                EntryType::GNULongName => extended.path = Some(until_nul(&self.extension(size).await?)),
                EntryType::GNULongLink => extended.link = Some(until_nul(&self.extension(size).await?)),
                _ => {
                    let member = extended.member(&header, size)?;
                    let over = member.size % BLOCK_BYTES as u64;
                    self.left = member.size;
                    self.padding = if over == 0 { 0 } else { BLOCK_BYTES - over as usize };
                    return Ok(Some(member));
                }
            }
        }
    }

    /// More of the member's bytes; `None` when that were all.
    ///
    /// # Errors
    /// As [`next_member`](Self::next_member).
    pub(crate) async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        if self.pending.is_empty() {
            self.read_on().await?;
        }
        let count = self.pending.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= count as u64;
        Ok(Some(self.pending.split_to(count).freeze()))
    }

    /// Passes over whatever is left of the source, marked as the end or not: only then the source has told its faults.
    ///
    /// # Errors
    /// What the source says.
    pub(crate) async fn drain(&mut self) -> io::Result<()> {
        while self.source.next().await.transpose()?.is_some() {}
        Ok(())
    }

    async fn read_on(&mut self) -> io::Result<()> {
        let chunk = self.source.next().await.ok_or_else(cut_short)??;
        self.pending.extend_from_slice(&chunk);
        Ok(())
    }

    /// Exactly `count` bytes, kept in memory: only for headers and bounded extension records.
    async fn take(&mut self, count: usize) -> io::Result<Bytes> {
        while self.pending.len() < count {
            self.read_on().await?;
        }
        Ok(self.pending.split_to(count).freeze())
    }

    async fn extension(&mut self, size: u64) -> io::Result<Bytes> {
        if size > EXTENSION_BYTES_MAX {
            return Err(damaged("an extension record is too long"));
        }
        let size = usize::try_from(size).map_err(io::Error::other)?;
        Ok(self.take(size.next_multiple_of(BLOCK_BYTES)).await?.slice(..size))
    }
}

fn checked_header(block: &[u8]) -> io::Result<Header> {
    let header = Header::from_byte_slice(block).clone();
    let mut again = header.clone();
    again.set_cksum();
    // Of what is no archive, nothing of the text that it holds instead is repeated.
    match (header.cksum(), again.cksum()) {
        (Ok(found), Ok(right)) if found == right => Ok(header),
        _ => Err(damaged("a header's checksum is wrong")),
    }
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes[..end].to_vec()
}
