//! Reads a tar stream member by member with every length bounded. The `tar` crate's own iterator keeps long names and
//! PAX records of any announced size in memory, so only its header type is used here.

use std::io::{self, Read};

use tar::{EntryType, Header};

use super::ImageLimits;
use super::error::{ImageError, shown};

const BLOCK: usize = 512;
/// Bytes of one PAX record set or GNU long name.
const EXTENSION_BYTES_MAX: u64 = 64 * 1024;

/// One member; its content follows in the stream.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) path: String,
    pub(super) kind: MemberKind,
}

#[derive(Debug)]
pub(super) enum MemberKind {
    File { bytes: u64 },
    Directory,
    Symlink { target: String },
    HardLink { target: String },
}

pub(super) struct TarReader<'a, R> {
    source: R,
    limits: &'a ImageLimits,
    read: u64,
    members: usize,
    /// Content and padding of the current member not read yet.
    content_left: u64,
    padding_left: u64,
    place: String,
}

/// What earlier headers said about the next member.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<'a, R: Read> TarReader<'a, R> {
    pub(super) fn new(source: R, limits: &'a ImageLimits) -> Self {
        let place = "its first header".to_owned();
        Self { source, limits, read: 0, members: 0, content_left: 0, padding_left: 0, place }
    }

    /// The next member, or `None` at the end of the archive. What was left of the one before is skipped.
    pub(super) fn next(&mut self) -> Result<Option<Member>, ImageError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_content()?;
            let Some(header) = self.header()? else { return Ok(None) };
            self.members += 1;
            if self.members > self.limits.members_max {
                let (what, max) = ("the number of archive members".to_owned(), self.limits.members_max as u64);
                return Err(ImageError::TooLarge { what, max, unit: "members" });
            }
            let size = header.entry_size().map_err(|_| member(&header.path_bytes(), "has an unreadable size"))?;
            match header.entry_type() {
                EntryType::XHeader => self.pax(size, &mut extensions)?,
                EntryType::XGlobalHeader => drop(self.extension(size)?),
                EntryType::GNULongName => extensions.path = Some(self.c_string(size)?),
                EntryType::GNULongLink => extensions.link = Some(self.c_string(size)?),
                kind => return self.member(&header, kind, size, extensions).map(Some),
            }
        }
    }

    /// Reads from the current member's content; 0 at its end.
    pub(super) fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize, ImageError> {
        let want = buffer.len().min(usize::try_from(self.content_left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let taken = self.read_some(&mut buffer[..want])?;
        if taken == 0 {
            return Err(ImageError::Truncated { place: self.place.clone() });
        }
        self.content_left -= taken as u64;
        Ok(taken)
    }

    /// Reads what follows the archive's end, so that a compressed stream's checksum is checked.
    pub(super) fn drain(&mut self) -> Result<(), ImageError> {
        let mut buffer = [0; 8192];
        while self.read_some(&mut buffer)? > 0 {}
        Ok(())
    }

    fn member(
        &mut self,
        header: &Header,
        kind: EntryType,
        size: u64,
        extensions: Extensions,
    ) -> Result<Member, ImageError> {
        let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let path = self.text(&path)?;
        let size = extensions.size.unwrap_or(size);
        if size > self.limits.member_bytes_max {
            let (what, max) = (format!("archive member `{}`", shown(&path)), self.limits.member_bytes_max);
            return Err(ImageError::TooLarge { what, max, unit: "bytes" });
        }
        self.place = format!("member `{}`", shown(&path));
        self.expect_content(size);
        let link = extensions.link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
        let target = |reader: &Self| reader.text(&link.unwrap_or_default());
        let kind = match kind {
            EntryType::Regular | EntryType::Continuous if path.ends_with('/') => MemberKind::Directory,
            EntryType::Regular | EntryType::Continuous => MemberKind::File { bytes: size },
            EntryType::Directory => MemberKind::Directory,
            EntryType::Symlink => MemberKind::Symlink { target: target(self)? },
            EntryType::Link => MemberKind::HardLink { target: target(self)? },
            _ => return Err(member(path.as_bytes(), "is a device, a pipe or a sparse file")),
        };
        Ok(Member { path, kind })
    }

    fn expect_content(&mut self, size: u64) {
        self.content_left = size;
        self.padding_left = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn text(&self, bytes: &[u8]) -> Result<String, ImageError> {
        if bytes.len() > self.limits.path_bytes_max {
            let what = format!("the name of archive member `{}`", shown(&String::from_utf8_lossy(bytes)));
            return Err(ImageError::TooLarge { what, max: self.limits.path_bytes_max as u64, unit: "bytes" });
        }
        String::from_utf8(bytes.to_vec()).map_err(|_| member(bytes, "has a name that is not UTF-8"))
    }

    /// The next header; `None` at a zero block or the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, ImageError> {
        let mut block = [0u8; BLOCK];
        let taken = self.fill(&mut block)?;
        if taken == 0 && self.members > 0 {
            return Ok(None);
        }
        if taken < BLOCK {
            return Err(if self.members == 0 {
                ImageError::NotAnArchive { what: "it is shorter than a tar header" }
            } else {
                ImageError::Truncated { place: format!("the header after {}", self.place) }
            });
        }
        if block == [0; BLOCK] {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block);
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(i, byte)| u32::from(if (148..156).contains(&i) { b' ' } else { *byte }))
            .sum();
        if header.cksum().ok() == Some(sum) {
            return Ok(Some(header.clone()));
        }
        Err(if self.members == 0 {
            ImageError::NotAnArchive { what: "it does not begin with a tar header" }
        } else {
            member(&header.path_bytes(), "has a header whose checksum is wrong")
        })
    }

    fn skip_content(&mut self) -> Result<(), ImageError> {
        let mut buffer = [0; 8192];
        while self.read_content(&mut buffer)? > 0 {}
        let mut padding = [0u8; BLOCK];
        let want = self.padding_left as usize;
        if self.fill(&mut padding[..want])? < want {
            return Err(ImageError::Truncated { place: self.place.clone() });
        }
        self.padding_left = 0;
        Ok(())
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ImageError> {
        if size > EXTENSION_BYTES_MAX {
            let what = "an extended tar header".to_owned();
            return Err(ImageError::TooLarge { what, max: EXTENSION_BYTES_MAX, unit: "bytes" });
        }
        self.expect_content(size);
        let mut bytes = vec![0; size as usize];
        if self.fill(&mut bytes)? < bytes.len() {
            return Err(ImageError::Truncated { place: "an extended tar header".to_owned() });
        }
        self.content_left = 0;
        Ok(bytes)
    }

    fn c_string(&mut self, size: u64) -> Result<Vec<u8>, ImageError> {
        let mut bytes = self.extension(size)?;
        if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
            bytes.truncate(end);
        }
        Ok(bytes)
    }

    fn pax(&mut self, size: u64, extensions: &mut Extensions) -> Result<(), ImageError> {
        let bytes = self.extension(size)?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let malformed = || member(b"PAX header", "is malformed");
            let (key, value, after) = pax_record(rest).ok_or_else(malformed)?;
            match key {
                b"path" => extensions.path = Some(value.to_vec()),
                b"linkpath" => extensions.link = Some(value.to_vec()),
                b"size" => {
                    let number = str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    extensions.size = Some(number.ok_or_else(malformed)?);
                }
                key if key.starts_with(b"GNU.sparse") => return Err(member(b"PAX header", "describes a sparse file")),
                _ => {}
            }
            rest = after;
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, ImageError> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read_some(&mut buffer[done..])? {
                0 => break,
                taken => done += taken,
            }
        }
        Ok(done)
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, ImageError> {
        let taken = loop {
            match self.source.read(buffer) {
                Ok(taken) => break taken,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A compressed stream reports its own cut as an error.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(ImageError::Truncated { place: self.place.clone() });
                }
                Err(error) => return Err(ImageError::Read(error)),
            }
        };
        self.read = self.read.saturating_add(taken as u64);
        if self.read > self.limits.archive_bytes_max {
            let (what, max) = ("the unpacked archive".to_owned(), self.limits.archive_bytes_max);
            return Err(ImageError::TooLarge { what, max, unit: "bytes" });
        }
        Ok(taken)
    }
}

/// `"<length> <key>=<value>\n"`, where the length counts all of it; answers key, value and the rest.
fn pax_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(8).position(|byte| *byte == b' ')?;
    let length: usize = str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &bytes[length..]))
}

fn member(path: &[u8], problem: &str) -> ImageError {
    ImageError::Member { member: shown(&String::from_utf8_lossy(path)), problem: problem.to_owned() }
}
