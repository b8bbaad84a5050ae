//! A task's log as it is written out.

use std::io::{self, IsTerminal as _, Write as _};

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::json;
use swarm_protocol::TaskId;
use swarm_protocol::logs::{LogRecord, LogStream};
use swarm_protocol::text::sanitise_bytes;

use crate::failure::{Done, stdout_failed};
use crate::output::{Format, json_text, note};

/// What a log's records become.
pub(crate) struct LogText {
    stdout: Side,
    stderr: Side,
    timestamps: bool,
    json: Option<TaskId>,
}

/// One of the two streams of a task.
struct Side {
    /// A terminal sees control characters made visible; anything else sees the bytes.
    terminal: bool,
    /// The beginning of a character that the next record may end.
    rest: Vec<u8>,
    line_begins: bool,
    /// Bytes still to leave out, of those that would be written.
    skip: u64,
}

impl Side {
    const fn new(terminal: bool) -> Self {
        Self { terminal, rest: Vec::new(), line_begins: true, skip: 0 }
    }

    /// What is left when nothing more comes: the beginning of a character that nobody ended.
    fn finish(&mut self) -> Vec<u8> {
        self.line_begins = true;
        sanitise_bytes(&std::mem::take(&mut self.rest), true).into_bytes()
    }

    /// What of the next bytes is to be written.
    fn unskipped<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let left_out = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.skip -= left_out as u64;
        &bytes[left_out..]
    }

    fn render(&mut self, bytes: &[u8], stamp: Option<&str>) -> Vec<u8> {
        let text = if self.terminal { self.visible(bytes).into_bytes() } else { bytes.to_vec() };
        let Some(stamp) = stamp else { return text };
        let mut stamped = Vec::with_capacity(text.len() + stamp.len() + 1);
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            if self.line_begins {
                stamped.extend_from_slice(stamp.as_bytes());
                stamped.push(b' ');
            }
            stamped.extend_from_slice(line);
            self.line_begins = line.ends_with(b"\n");
        }
        stamped
    }

    /// Records are cut anywhere, so a character's last bytes may come with the next one.
    fn visible(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.rest);
        all.extend_from_slice(bytes);
        let whole = all.len() - unfinished(&all);
        self.rest = all.split_off(whole);
        sanitise_bytes(&all, true)
    }
}

/// How many bytes at the end begin a character that is not whole.
fn unfinished(bytes: &[u8]) -> usize {
    let tail = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    let begins = match tail.first() {
        Some(0xC2..=0xDF) => tail.len() < 2,
        Some(0xE0..=0xEF) => tail.len() < 3,
        Some(0xF0..=0xF4) => tail.len() < 4,
        _ => false,
    };
    if begins && bytes.ends_with(tail) { tail.len() } else { 0 }
}

impl LogText {
    pub(crate) fn new(format: Format, task: TaskId, timestamps: bool) -> Self {
        Self {
            stdout: Side::new(io::stdout().is_terminal()),
            stderr: Side::new(io::stderr().is_terminal()),
            timestamps,
            json: (format == Format::Json).then_some(task),
        }
    }

    /// Leaves out the first bytes that would be written to each stream; notes about the log are not counted.
    pub(crate) fn skipping(mut self, stdout: u64, stderr: u64) -> Self {
        (self.stdout.skip, self.stderr.skip) = (stdout, stderr);
        self
    }

    /// Writes one record where it belongs; `next` is the position in the log after it.
    pub(crate) fn write(&mut self, attempt: u16, record: &LogRecord, next: u64) -> Done<()> {
        let at = i64::try_from(record.at_us).ok().and_then(DateTime::<Utc>::from_timestamp_micros).unwrap_or_default();
        let stamp = at.to_rfc3339_opts(SecondsFormat::Millis, true);
        if let Some(task) = self.json {
            let line = json_text(&json_line(task, attempt, &stamp, record, next));
            return write_stdout(self.stdout.unskipped(format!("{line}\n").as_bytes()));
        }
        let stamp = self.timestamps.then_some(stamp.as_str());
        match record.stream {
            LogStream::Stdout => {
                let text = self.stdout.render(&record.bytes, stamp);
                write_stdout(self.stdout.unskipped(&text))
            }
            LogStream::Stderr => {
                // A closed standard error must not keep the rest of the log from being shown.
                let text = self.stderr.render(&record.bytes, stamp);
                let _ = io::stderr().write_all(self.stderr.unskipped(&text));
                Ok(())
            }
            LogStream::Cut => {
                note(&format!("[cut: {} bytes of the log were dropped here]", sanitise_bytes(&record.bytes, false)));
                Ok(())
            }
        }
    }

    /// Ends an attempt's log; another attempt's may follow.
    pub(crate) fn finish(&mut self) -> Done<()> {
        // A closed standard error must not keep the rest of the log from being shown.
        let (out, err) = (self.stdout.finish(), self.stderr.finish());
        let _ = io::stderr().write_all(self.stderr.unskipped(&err));
        write_stdout(self.stdout.unskipped(&out))
    }
}

fn write_stdout(bytes: &[u8]) -> Done<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| stdout_failed(&error))
}

/// `text` is readable, `hex` is exact and there only when the bytes are not UTF-8.
fn json_line(task: TaskId, attempt: u16, stamp: &str, record: &LogRecord, next: u64) -> serde_json::Value {
    let stream = match record.stream {
        LogStream::Stdout => "stdout",
        LogStream::Stderr => "stderr",
        LogStream::Cut => "cut",
    };
    let mut line = json!({
        "task": task.to_string(), "attempt": attempt, "at": stamp, "stream": stream, "next": next,
        "text": String::from_utf8_lossy(&record.bytes),
    });
    if std::str::from_utf8(&record.bytes).is_err() {
        line["hex"] = hex::encode(&record.bytes).into();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_gets_the_bytes_and_a_terminal_none_of_its_controls() {
        let hostile = b"\x1b]0;x\x07\xff\n";
        assert_eq!(Side::new(false).render(hostile, None), hostile);
        assert_eq!(Side::new(true).render(hostile, None), "\\u{1b}]0;x\\u{7}\u{fffd}\n".as_bytes());
    }

    #[test]
    fn a_character_cut_by_a_record_is_put_together() {
        let mut side = Side::new(true);
        let mut text = Vec::new();
        for byte in "naïve ✓ 🦀\n".as_bytes() {
            text.extend(side.render(&[*byte], None));
        }
        assert_eq!(text, "naïve ✓ 🦀\n".as_bytes());
    }

    #[test]
    fn a_character_that_nobody_ends_is_shown_and_not_glued_to_the_next_attempt() {
        let mut side = Side::new(true);
        assert_eq!(side.render(b"a\xe2\x9c", None), b"a");
        assert_eq!(side.finish(), "\u{fffd}".as_bytes());
        assert_eq!(side.render(b"\x93b\n", None), "\u{fffd}b\n".as_bytes());
        assert_eq!(side.finish(), b"");
    }

    #[test]
    fn what_was_written_before_is_left_out_to_the_byte() {
        let mut side = Side { skip: 4, ..Side::new(false) };
        let mut text = Vec::new();
        for record in ["ab", "", "cde", "f\n"] {
            let rendered = side.render(record.as_bytes(), None);
            text.extend_from_slice(side.unskipped(&rendered));
        }
        assert_eq!(text, b"ef\n");
    }

    #[test]
    fn each_line_is_stamped_once() {
        let mut side = Side::new(false);
        let mut text = side.render(b"a", Some("T"));
        text.extend(side.render(b"b\nc", Some("T")));
        assert_eq!(text, b"T ab\nT c");
    }
}
