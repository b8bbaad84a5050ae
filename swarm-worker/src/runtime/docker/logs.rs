//! What a container wrote, with the engine's timestamps taken off again.

use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptions;
use bytes::{Buf, Bytes};
use chrono::DateTime;
use futures_util::stream::{self, StreamExt};
use swarm_protocol::logs::LogStream;

use super::DockerRuntime;
use super::errors::map;
use super::points::pass;
use crate::runtime::{LogItem, LogItems, RuntimeError};

/// The engine's stamp has 30 bytes; a little more allows for zones written as offsets.
const STAMP_BYTES_MAX: usize = 40;

impl DockerRuntime {
    pub(super) async fn follow_logs(&self, id: &str) -> Result<LogItems, RuntimeError> {
        // A missing container shall be an error of this call, not of the stream's first item.
        self.inspect_container(id).await?;
        let options = LogsOptions {
            follow: true,
            stdout: true,
            stderr: true,
            timestamps: true,
            tail: "all".to_owned(),
            ..Default::default()
        };
        let deadline = self.deadlines.call;
        pass("logs", "before");
        let source = self.docker.logs(id, Some(options)).boxed();
        pass("logs", "after");
        let items = stream::unfold(Some((source, Assembler::default())), move |state| async move {
            let (mut source, mut assembler) = state?;
            loop {
                match source.next().await?.map_err(|error| map("logs", deadline, error)) {
                    Err(error) => return Some((Err(error), None)),
                    Ok(output) => match assembler.item(output).transpose() {
                        None => {}
                        Some(Ok(item)) => return Some((Ok(item), Some((source, assembler)))),
                        Some(Err(error)) => return Some((Err(error), None)),
                    },
                }
            }
        });
        Ok(items.boxed())
    }
}

/// Makes items of frames. All pieces of one long line carry the stamp of the first; the `local` driver of engine 20.10
/// loses the newline behind the last piece. So a line left open is closed when the next frame of its stream has another
/// stamp; at the very end it cannot be told whether a newline was there, and none is added.
#[derive(Default)]
struct Assembler {
    last_us: u64,
    /// The stamp in nanoseconds of an open line, of standard output and standard error.
    open: [Option<i64>; 2],
}

impl Assembler {
    /// The frame's bytes without their stamp, or `None` where nothing is left. Should a frame lack its stamp, the bytes
    /// count more than the time: they pass whole, at the time of the item before.
    fn item(&mut self, output: LogOutput) -> Result<Option<LogItem>, RuntimeError> {
        let (stream, mut bytes) = match output {
            LogOutput::StdOut { message } => (LogStream::Stdout, message),
            LogOutput::StdErr { message } => (LogStream::Stderr, message),
            // Containers here have no terminal and no input: this is the engine reporting trouble while it reads.
            LogOutput::Console { message } | LogOutput::StdIn { message } => {
                let message = format!("the log broke off: {}", String::from_utf8_lossy(&message).escape_debug());
                return Err(RuntimeError::Engine { call: "logs", message });
            }
        };
        if let Some((at_us, at_ns, prefix_bytes)) = stamp(&bytes) {
            bytes.advance(prefix_bytes);
            self.last_us = at_us;
            let open = &mut self.open[usize::from(stream == LogStream::Stderr)];
            let closes = open.is_some_and(|opened_ns| opened_ns != at_ns);
            *open = (!bytes.ends_with(b"\n")).then_some(at_ns);
            if closes {
                bytes = [b"\n", &bytes[..]].concat().into();
            }
        }
        Ok((!bytes.is_empty()).then_some(LogItem { stream, at_us: self.last_us, bytes }))
    }
}

/// The time in front of a frame, in Unix microseconds and nanoseconds, and how many bytes it takes with the space behind.
fn stamp(bytes: &Bytes) -> Option<(u64, i64, usize)> {
    let space = bytes.iter().take(STAMP_BYTES_MAX).position(|byte| *byte == b' ')?;
    let text = std::str::from_utf8(&bytes[..space]).ok()?;
    let at = DateTime::parse_from_rfc3339(text).ok()?;
    Some((u64::try_from(at.timestamp_micros()).ok()?, at.timestamp_nanos_opt()?, space + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stdout(message: &'static [u8]) -> LogItem {
        let mut assembler = Assembler { last_us: 7, ..Assembler::default() };
        assembler.item(LogOutput::StdOut { message: Bytes::from_static(message) }).expect("readable").expect("an item")
    }

    #[test]
    fn the_stamp_is_taken_off_and_nothing_else() {
        let plain = stdout(b"1970-01-01T00:00:02.000003999Z  two spaces\xff\n");
        assert_eq!((plain.at_us, &plain.bytes[..]), (2_000_003, &b" two spaces\xff\n"[..]));
        let offset = stdout(b"1970-01-01T01:00:02.5+01:00 x");
        assert_eq!((offset.at_us, &offset.bytes[..]), (2_500_000, &b"x"[..]));
    }

    #[test]
    fn a_frame_without_stamp_keeps_all_its_bytes() {
        for message in [&b"no stamp here"[..], b"1970-01-01T00:00:02Z", b"\xff\xfe x"] {
            let item = stdout(message);
            assert_eq!((item.at_us, &item.bytes[..]), (7, message));
        }
    }

    #[test]
    fn the_newline_of_a_long_line_is_restored() {
        let mut assembler = Assembler::default();
        let mut all = Vec::new();
        for frame in ["01Z aa", "01Z ", "02Z b\n", "03Z c", "03Z c\n", "04Z d"] {
            let message = Bytes::from(format!("1970-01-01T00:00:{frame}"));
            let item = assembler.item(LogOutput::StdOut { message }).expect("readable");
            all.extend(item.map(|item| item.bytes.to_vec()).unwrap_or_default());
            // The other stream's lines are their own.
            let message = Bytes::from_static(b"1970-01-01T00:00:09Z e\n");
            let item = assembler.item(LogOutput::StdErr { message }).expect("readable").expect("an item");
            assert_eq!(&item.bytes[..], b"e\n");
        }
        assert_eq!(String::from_utf8_lossy(&all), "aa\nb\ncc\nd");
    }

    #[test]
    fn the_engines_own_words_are_an_error() {
        let output = LogOutput::Console { message: Bytes::from_static(b"\x03\0\0\0\0\0\0\x04oops") };
        let error = Assembler::default().item(output).expect_err("not a log line");
        assert!(error.is_infrastructure() && error.to_string().contains("oops"), "{error}");
    }
}
