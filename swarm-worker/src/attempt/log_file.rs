//! The encoded log in the spool: appended whole records, cut at the bound, taken up again after a break.
//!
//! The engine replays a container's log from its start, entry by entry. Encoding is a pure function of the entries, so
//! the log is continued by skipping as many bytes as the file has; where these are not those of the file, an earlier
//! replay was given something else, and a mark says that something may be missing. Where the engine has rotated the first
//! entry away, timestamps must decide, and the same mark is made.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use swarm_host::{blocking, files};
use swarm_protocol::Digest;
use swarm_protocol::logs::{AT_LEAST_ONE, HEADER_BYTES, LogDecoder, LogRecord, LogStream, PAYLOAD_BYTES_MAX};

use crate::runtime::LogItem;

/// Room kept for the final cut mark: its header, `>=` and the digits of any count.
const MARK_BYTES: u64 = HEADER_BYTES as u64 + 22;
/// What the engine's log takes for an entry beside its bytes, at most: times, stream, parts of a long line.
const ENTRY_BYTES: u64 = 128;
/// A finished log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogEnd {
    /// Length of the encoded log.
    pub(super) bytes: u64,
    /// Its digest.
    pub(super) digest: Digest,
    /// Payload bytes dropped, at least.
    pub(super) cut_bytes: u64,
}

/// What a file already holds.
#[derive(Default)]
struct Past {
    bytes: u64,
    hasher: Sha256,
    first: Option<LogRecord>,
    last_at_us: u64,
    gap: bool,
}

/// The log of an attempt, open for the entries the engine replays.
pub(super) struct LogFile {
    path: PathBuf,
    file: Arc<File>,
    hasher: Sha256,
    bytes: u64,
    bytes_max: u64,
    /// Payload bytes of this replay, and what they take in the engine's log at most.
    seen: u64,
    engine_bytes: u64,
    /// Payload bytes dropped at the bound; once anything is dropped, everything after it is.
    dropped: u64,
    full: bool,
    /// More may have been dropped than was counted.
    is_vague: bool,
    /// The engine does not have what the file begins with, so that nothing proves the file to be whole.
    is_torn: bool,
    /// Entries were lost at the engine.
    gap: bool,
    last_at_us: u64,
    replay: Replay,
}

impl LogFile {
    /// Opens the log at `path` for a replay from the engine's first entry. What is torn at the file's end is cut off.
    pub(super) async fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let owned = path.to_owned();
        let (file, past) = blocking::run(move || open_past(&owned)).await?;
        let replay = match past.first {
            None => Replay::Live,
            Some(first) => {
                let known = Known { bytes: past.bytes, expected: past.hasher.clone(), hasher: Sha256::new() };
                Replay::First { first, known, last_at_us: past.last_at_us }
            }
        };
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
            hasher: past.hasher,
            bytes: past.bytes,
            bytes_max,
            seen: 0,
            engine_bytes: 0,
            dropped: 0,
            full: false,
            is_vague: false,
            is_torn: false,
            gap: past.gap,
            last_at_us: past.last_at_us,
            replay,
        })
    }

    /// Bytes in the file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Payload bytes of this replay so far, known or new.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// Allows for what the engine has rotated away, which keeps `engine_keeps` bytes of log at least, when an earlier
    /// replay had seen `seen_before` bytes: what is dropped here then is only counted as far as the engine still has it.
    pub(super) fn allow_for_rotation(&mut self, engine_keeps: u64, seen_before: u64) {
        self.is_vague |= seen_before > self.seen || self.engine_bytes >= engine_keeps;
    }

    /// Appends what of these entries is new.
    pub(super) async fn append(&mut self, items: Vec<LogItem>) -> io::Result<()> {
        let mut out = Vec::new();
        for item in items {
            for piece in pieces(&item) {
                self.admit(&piece, &mut out);
            }
        }
        self.write(out).await
    }

    fn admit(&mut self, record: &LogRecord, out: &mut Vec<u8>) {
        self.seen += record.bytes.len() as u64;
        self.engine_bytes += record.bytes.len() as u64 + ENTRY_BYTES;
        let verdict = self.replay.judge(record);
        // The engine has rotated its log: while it does, a reader may be given entries twice or miss some.
        self.is_torn |= matches!(self.replay, Replay::Seeking { .. }) || verdict == Verdict::KnownOtherwise;
        if matches!(verdict, Verdict::Known | Verdict::KnownOtherwise) {
            return;
        }
        if verdict == Verdict::NewAfterGap {
            self.gap = true;
            // Without room for the mark, the last one speaks for both.
            self.is_vague |= !self.take(&mark(record.at_us, AT_LEAST_ONE.to_vec()), out);
        }
        self.last_at_us = record.at_us;
        if !self.take(record, out) {
            self.dropped += record.bytes.len() as u64;
        }
    }

    /// Encodes a record where there is room.
    fn take(&mut self, record: &LogRecord, out: &mut Vec<u8>) -> bool {
        let room = self.bytes_max.saturating_sub(MARK_BYTES).saturating_sub(self.bytes + out.len() as u64);
        self.full |= (HEADER_BYTES + record.bytes.len()) as u64 > room;
        if !self.full {
            record.encode(out);
        }
        !self.full
    }

    async fn write(&mut self, out: Vec<u8>) -> io::Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let file = self.file.clone();
        let out = blocking::run(move || (&*file).write_all(&out).map(|()| out)).await?;
        self.hasher.update(&out);
        self.bytes += out.len() as u64;
        Ok(())
    }

    /// The log as it is, for where the spool takes no mark any more: only the report tells then that it is cut.
    pub(super) fn unmarked(&self) -> LogEnd {
        LogEnd { bytes: self.bytes, digest: Digest(self.hasher.clone().finalize().into()), cut_bytes: 1 }
    }

    /// Ends the log: the last mark, if anything was dropped or may be missing. `incomplete` says that the engine failed
    /// before the end. The bytes are durable then: the container goes, and nothing else has them.
    pub(super) async fn finish(mut self, incomplete: bool) -> io::Result<LogEnd> {
        // The engine had less than the file has.
        let is_short = match &self.replay {
            Replay::First { .. } => true,
            Replay::Skipping(known) => known.bytes > 0,
            Replay::Seeking { .. } | Replay::Live => false,
        };
        let may_lack = incomplete || self.is_torn || is_short;
        let cut_bytes = self.dropped.max(u64::from(may_lack || self.gap));
        let mut out = Vec::new();
        if self.dropped > 0 || may_lack {
            let at_least = if self.is_vague || may_lack { ">=" } else { "" };
            let text = format!("{at_least}{}", self.dropped.max(1));
            mark(self.last_at_us, text.into_bytes()).encode(&mut out);
        }
        self.write(out).await?;
        if self.bytes > 0 {
            let (file, path) = (self.file.clone(), self.path.clone());
            blocking::run(move || file.sync_data().map(|()| files::note_synced(&path))).await?;
        }
        Ok(LogEnd { bytes: self.bytes, digest: Digest(self.hasher.finalize().into()), cut_bytes })
    }
}

fn mark(at_us: u64, bytes: Vec<u8>) -> LogRecord {
    LogRecord { stream: LogStream::Cut, at_us, bytes }
}

fn pieces(item: &LogItem) -> impl Iterator<Item = LogRecord> + '_ {
    item.bytes.chunks(PAYLOAD_BYTES_MAX).map(|bytes| LogRecord {
        stream: item.stream,
        at_us: item.at_us,
        bytes: bytes.to_vec(),
    })
}

/// What the file had when the replay began.
struct Known {
    /// Encoded bytes still to come.
    bytes: u64,
    /// Over all of them.
    expected: Sha256,
    /// Over those that came again.
    hasher: Sha256,
}

impl Known {
    fn pass(&mut self, record: &LogRecord) -> Verdict {
        let mut encoded = Vec::with_capacity(HEADER_BYTES + record.bytes.len());
        record.encode(&mut encoded);
        self.hasher.update(&encoded);
        self.bytes = self.bytes.saturating_sub(encoded.len() as u64);
        let is_other = self.bytes == 0 && self.hasher.clone().finalize() != self.expected.clone().finalize();
        if is_other { Verdict::KnownOtherwise } else { Verdict::Known }
    }
}

/// Where in the engine's replay we are.
enum Replay {
    /// The first entry decides how to go on.
    First { first: LogRecord, known: Known, last_at_us: u64 },
    /// What is known still.
    Skipping(Known),
    /// Everything up to this instant is known; `met` once such an entry came.
    Seeking { last_at_us: u64, met: bool },
    /// All is new.
    Live,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Known,
    /// The last of what the file has, and it was not all the same.
    KnownOtherwise,
    New,
    NewAfterGap,
}

impl Replay {
    fn judge(&mut self, record: &LogRecord) -> Verdict {
        match std::mem::replace(self, Self::Live) {
            Self::First { first, known, .. } if first == *record => *self = Self::Skipping(known),
            Self::First { last_at_us, .. } => *self = Self::Seeking { last_at_us, met: false },
            other => *self = other,
        }
        match self {
            Self::Skipping(Known { bytes: 0, .. }) | Self::Live | Self::First { .. } => Verdict::New,
            Self::Skipping(known) => known.pass(record),
            Self::Seeking { last_at_us, met } if record.at_us <= *last_at_us => {
                *met = true;
                Verdict::Known
            }
            Self::Seeking { met, .. } => {
                let verdict = if *met { Verdict::New } else { Verdict::NewAfterGap };
                *self = Self::Live;
                verdict
            }
        }
    }
}

/// Reads what the file holds and cuts off a torn record and the final mark, which the end of the replay writes anew.
fn open_past(path: &Path) -> io::Result<(File, Past)> {
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
    let (mut decoder, mut past, mut last_mark) = (LogDecoder::default(), Past::default(), None);
    let mut buffer = vec![0; 256 << 10];
    'file: loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        decoder.push(&buffer[..length]);
        loop {
            match decoder.next_record() {
                Ok(Some(record)) => {
                    if let Some(before) = last_mark.take() {
                        past.note(&before);
                    }
                    if record.stream == LogStream::Cut { last_mark = Some(record) } else { past.note(&record) }
                }
                Ok(None) => break,
                Err(_) => break 'file,
            }
        }
    }
    file.set_len(past.bytes)?;
    Ok((file, past))
}

impl Past {
    fn note(&mut self, record: &LogRecord) {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + record.bytes.len());
        record.encode(&mut bytes);
        self.hasher.update(&bytes);
        self.bytes += bytes.len() as u64;
        self.gap |= record.stream == LogStream::Cut;
        self.last_at_us = record.at_us;
        self.first.get_or_insert_with(|| record.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(at_us: u64, text: &str) -> LogItem {
        LogItem { stream: LogStream::Stdout, at_us, bytes: text.to_owned().into() }
    }

    fn items(range: std::ops::Range<u64>) -> Vec<LogItem> {
        range.map(|n| item(n, &format!("line {n}\n"))).collect()
    }

    async fn logged(path: &Path, parts: &[Vec<LogItem>], bytes_max: u64) -> (LogEnd, Vec<u8>) {
        let mut end = None;
        for part in parts {
            let mut log = LogFile::open(path, bytes_max).await.unwrap();
            log.append(part.clone()).await.unwrap();
            end = Some(log.finish(false).await.unwrap());
        }
        let (end, bytes) = (end.unwrap(), std::fs::read(path).unwrap());
        assert_eq!((end.bytes, end.digest), (bytes.len() as u64, Digest::of(&bytes)));
        (end, bytes)
    }

    #[tokio::test]
    async fn a_replay_adds_only_what_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let (_, whole) = logged(&dir.path().join("a"), &[items(0..9)], 1 << 20).await;
        let (end, resumed) = logged(&dir.path().join("b"), &[items(0..4), items(0..9), items(0..9)], 1 << 20).await;
        assert_eq!(resumed, whole);
        assert_eq!(end.cut_bytes, 0);
    }

    #[tokio::test]
    async fn a_torn_record_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (_, whole) = logged(&path, &[items(0..9)], 1 << 20).await;
        for length in [whole.len() - 1, whole.len() - 25, 3] {
            OpenOptions::new().write(true).open(&path).unwrap().set_len(length as u64).unwrap();
            assert_eq!(logged(&path, &[items(0..9)], 1 << 20).await.1, whole, "cut at {length}");
        }
    }

    #[tokio::test]
    async fn the_bound_cuts_counts_and_holds_across_a_resume() {
        let dir = tempfile::tempdir().unwrap();
        let (end, bytes) = logged(&dir.path().join("a"), &[items(0..9)], 100).await;
        assert!(bytes.len() <= 100);
        // 21 bytes a record fit into 100 - 35 three times; six payloads of 7 bytes are dropped.
        assert_eq!(end.cut_bytes, 42);
        assert!(bytes.ends_with(b"42"));
        let (again, resumed) = logged(&dir.path().join("b"), &[items(0..5), items(0..9)], 100).await;
        assert_eq!((again, resumed), (end, bytes));
    }

    #[tokio::test]
    async fn a_count_that_rotation_makes_too_small_says_at_least() {
        let dir = tempfile::tempdir().unwrap();
        let cut_of = async |name: &str, replays: &[Vec<LogItem>], engine_keeps| {
            let path = dir.path().join(name);
            let mut seen_max = 0;
            for replay in replays {
                let mut log = LogFile::open(&path, 100).await.unwrap();
                log.append(replay.clone()).await.unwrap();
                log.allow_for_rotation(engine_keeps, seen_max);
                seen_max = log.seen().max(seen_max);
                log.finish(false).await.unwrap();
            }
            let bytes = std::fs::read(path).unwrap();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            text[text.find("line 2\n").unwrap() + 7 + HEADER_BYTES..].to_owned()
        };
        // All lines alike, as those of one endless line are: only the counts tell that some are gone.
        let alike = |count: usize| vec![item(5, "line 2\n"); count];
        let (some, all) = (alike(6), alike(9));
        let keeps_all = 1 << 20;
        assert!(cut_of("a", std::slice::from_ref(&all), keeps_all).await.ends_with("42"));
        assert!(!cut_of("a", std::slice::from_ref(&all), keeps_all).await.ends_with(">=42"));
        assert!(cut_of("b", &[all.clone(), some], keeps_all).await.ends_with(">=21"), "nine were seen before");
        assert!(cut_of("c", &[all], 9 * (7 + ENTRY_BYTES)).await.ends_with(">=42"), "the engine may have had more");
    }

    #[tokio::test]
    async fn what_an_earlier_replay_doubled_or_missed_is_marked() {
        let dir = tempfile::tempdir().unwrap();
        let doubled = [items(0..3), items(2..4)].concat();
        let missed = [items(0..2), items(3..5)].concat();
        for (name, first) in [("a", doubled), ("b", missed)] {
            let (end, bytes) = logged(&dir.path().join(name), &[first.clone(), items(0..9)], 1 << 20).await;
            assert_eq!(end.cut_bytes, 1, "{name}");
            assert!(bytes.ends_with(b">=1"));
            let (end, _) = logged(&dir.path().join(name), &[items(0..9), items(0..9)], 1 << 20).await;
            assert_eq!(end.cut_bytes, 1, "{name}: every further replay shows it again");
        }
        // Nothing tells whether what the file has beyond that was ever written.
        for (name, last) in [("c", items(0..3)), ("d", Vec::new())] {
            let (end, bytes) = logged(&dir.path().join(name), &[items(0..5), last], 1 << 20).await;
            assert_eq!(end.cut_bytes, 1, "{name}");
            assert!(bytes.ends_with(b">=1"));
        }
    }

    #[tokio::test]
    async fn what_the_engine_rotated_away_is_marked() {
        let dir = tempfile::tempdir().unwrap();
        let (end, bytes) = logged(&dir.path().join("a"), &[items(0..3), items(6..9)], 1 << 20).await;
        assert_eq!(end.cut_bytes, 1);
        assert!(String::from_utf8_lossy(&bytes).contains(">=1"));
        let (end, bytes) = logged(&dir.path().join("b"), &[items(0..4), items(2..6)], 1 << 20).await;
        assert_eq!(end.cut_bytes, 1, "entries overlap, but the engine has rotated");
        assert!(bytes.starts_with(&logged(&dir.path().join("c"), &[items(0..6)], 1 << 20).await.1));
        assert!(bytes.ends_with(b">=1"));
    }
}
