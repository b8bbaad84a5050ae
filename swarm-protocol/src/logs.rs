//! The log of an attempt as bytes: a sequence of records, the same in the worker's spool, on the link, in the core's
//! archive and in an API answer. Positions in it are byte offsets, so copying it further is idempotent.
//!
//! A record is `stream:u8, at_us:u64 LE, len:u32 LE, bytes[len]`. Stream 1 is stdout, 2 stderr, and 3 a cut mark whose
//! bytes are the decimal count of dropped bytes, prefixed by `>=` when the engine had rotated them away first.

/// Bytes of a record before its payload.
pub const HEADER_BYTES: usize = 13;
/// The largest payload of one record.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// The payload of a cut mark where nobody counted what is lost.
pub const AT_LEAST_ONE: &[u8] = b">=1";

/// Where a piece of log came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Bytes were dropped here; the payload says how many.
    Cut,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Where it came from.
    pub stream: LogStream,
    /// The engine's timestamp, Unix time in microseconds.
    pub at_us: u64,
    /// The bytes as the job wrote them: not necessarily text, not necessarily whole lines.
    pub bytes: Vec<u8>,
}

/// The bytes are not a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogDecodeError {
    /// An unknown stream number.
    #[error("unknown stream {0} in a log record")]
    Stream(u8),
    /// A payload over the bound.
    #[error("a log record of {0} bytes is over the bound of {PAYLOAD_BYTES_MAX}")]
    TooLong(u32),
}

impl LogRecord {
    /// Appends the record's bytes to `out`.
    ///
    /// # Panics
    /// When the payload is over [`PAYLOAD_BYTES_MAX`]: the caller splits.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.bytes.len() <= PAYLOAD_BYTES_MAX, "log records are split before they are encoded");
        out.push(match self.stream {
            LogStream::Stdout => 1,
            LogStream::Stderr => 2,
            LogStream::Cut => 3,
        });
        out.extend_from_slice(&self.at_us.to_le_bytes());
        out.extend_from_slice(&(self.bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.bytes);
    }
}

/// Turns a stream of bytes, cut anywhere, back into records.
#[derive(Debug, Default)]
pub struct LogDecoder {
    pending: Vec<u8>,
    /// How much of `pending` has been handed out.
    taken: usize,
}

impl LogDecoder {
    /// Adds bytes; [`next_record`](Self::next_record) then yields what has become whole.
    pub fn push(&mut self, bytes: &[u8]) {
        // Once for all records of a piece: moving the rest up for each of them would take quadratic time.
        self.pending.drain(..self.taken);
        self.taken = 0;
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole record, or `None` until more bytes come.
    ///
    /// # Errors
    /// [`LogDecodeError`] when the bytes cannot be a log; the decoder is then of no further use.
    pub fn next_record(&mut self) -> Result<Option<LogRecord>, LogDecodeError> {
        let Some((header, rest)) = self.pending[self.taken..].split_at_checked(HEADER_BYTES) else { return Ok(None) };
        let stream = match header[0] {
            1 => LogStream::Stdout,
            2 => LogStream::Stderr,
            3 => LogStream::Cut,
            other => return Err(LogDecodeError::Stream(other)),
        };
        let at_us = u64::from_le_bytes(header[1..9].try_into().expect("eight bytes"));
        let len = u32::from_le_bytes(header[9..13].try_into().expect("four bytes"));
        if len as usize > PAYLOAD_BYTES_MAX {
            return Err(LogDecodeError::TooLong(len));
        }
        let Some(bytes) = rest.get(..len as usize) else { return Ok(None) };
        let record = LogRecord { stream, at_us, bytes: bytes.to_vec() };
        self.taken += HEADER_BYTES + len as usize;
        Ok(Some(record))
    }

    /// Whether no part of a record is left over.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.taken == self.pending.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_survive_any_cutting(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..12), step in 1usize..30) {
            let records: Vec<_> = payloads.into_iter().enumerate().map(|(at, bytes)| LogRecord {
                stream: [LogStream::Stdout, LogStream::Stderr, LogStream::Cut][at % 3], at_us: at as u64, bytes,
            }).collect();
            let mut bytes = Vec::new();
            records.iter().for_each(|record| record.encode(&mut bytes));
            let (mut decoder, mut back) = (LogDecoder::default(), Vec::new());
            for chunk in bytes.chunks(step) {
                decoder.push(chunk);
                while let Some(record) = decoder.next_record().unwrap() {
                    back.push(record);
                }
            }
            prop_assert!(decoder.is_empty());
            prop_assert_eq!(back, records);
        }

        #[test]
        fn garbage_is_an_error_or_patience_but_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = LogDecoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_record() {}
        }
    }

    #[test]
    fn a_large_piece_of_short_records_takes_linear_time() {
        let record = LogRecord { stream: LogStream::Stdout, at_us: 7, bytes: b"\n".to_vec() };
        let (mut bytes, records) = (Vec::new(), 400_000);
        (0..records).for_each(|_| record.encode(&mut bytes));
        let (mut decoder, began) = (LogDecoder::default(), std::time::Instant::now());
        decoder.push(&bytes);
        let mut back = 0;
        // In quadratic time this takes minutes.
        while began.elapsed().as_secs() < 10 && decoder.next_record().unwrap().is_some() {
            back += 1;
        }
        assert_eq!((back, decoder.is_empty()), (records, true));
    }
}
