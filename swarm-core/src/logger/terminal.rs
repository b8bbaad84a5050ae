//! Log lines for people, on stderr.

use std::io::{self, IsTerminal, Write};

use super::drain::Sink;
use super::entry::{Entry, Level};

/// How much is gathered before it is written although more is waiting, in bytes.
const BUFFER_BYTES: usize = 16 * 1024;

/// Writes one line per entry; colour only repeats what the words say.
pub(super) struct Terminal<W> {
    out: W,
    colour: bool,
    quiet: bool,
    buffer: Vec<u8>,
}

impl Terminal<io::Stderr> {
    pub(super) fn stderr(quiet: bool) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let out = io::stderr();
        let colour = out.is_terminal() && !plain;
        Self::new(out, colour, quiet)
    }
}

impl<W: Write> Terminal<W> {
    pub(super) const fn new(out: W, colour: bool, quiet: bool) -> Self {
        Self { out, colour, quiet, buffer: Vec::new() }
    }

    /// Adds the line for `entry` to the buffer.
    pub(super) fn put(&mut self, entry: &Entry) -> io::Result<()> {
        if self.quiet && !matches!(entry.level, Level::Warn | Level::Error) {
            return Ok(());
        }
        let (on, off) = if self.colour { (colour(entry.level), "\x1b[0m") } else { ("", "") };
        let at = entry.at.format("%Y-%m-%dT%H:%M:%S%.3fZ");
        write!(self.buffer, "{at} {on}{:<6}{off} {}: {}", entry.level, entry.tag, entry.message)?;
        for (name, value) in &entry.fields {
            match value.as_str() {
                Some(text) => write_text(&mut self.buffer, name, text)?,
                None => write!(self.buffer, " {name}={value}")?,
            }
        }
        self.buffer.push(b'\n');
        Ok(())
    }

    /// Writes the buffer out.
    pub(super) fn put_out(&mut self) -> io::Result<()> {
        let result = self.out.write_all(&self.buffer).and_then(|()| self.out.flush());
        self.buffer.clear();
        result
    }
}

impl<W: Write + Send + 'static> Sink for Terminal<W> {
    fn write(&mut self, entry: &Entry) -> io::Result<()> {
        if self.buffer.len() >= BUFFER_BYTES {
            self.put_out()?;
        }
        self.put(entry)
    }

    fn flush(&mut self, _sync: bool) -> io::Result<()> {
        self.put_out()
    }
}

/// Quotes a value only where its end would not be clear; control characters are gone already.
fn write_text(out: &mut Vec<u8>, name: &str, text: &str) -> io::Result<()> {
    let plain = !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '='));
    if plain { write!(out, " {name}={text}") } else { write!(out, " {name}=\"{}\"", text.replace('"', "\\\"")) }
}

const fn colour(level: Level) -> &'static str {
    match level {
        Level::Trace | Level::Debug => "\x1b[2m",
        Level::Info => "\x1b[32m",
        Level::Notice => "\x1b[36m",
        Level::Warn => "\x1b[33m",
        Level::Error => "\x1b[31m",
        Level::Audit => "\x1b[35m",
    }
}
