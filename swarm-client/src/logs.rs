//! A task's log as records, over as many connections as it takes.

use std::time::{Duration, Instant};

use futures_util::stream::{BoxStream, StreamExt as _};
use swarm_protocol::logs::{HEADER_BYTES, LogDecoder, LogRecord};
use swarm_protocol::{AttemptNo, TaskId};

use crate::call::Call;
use crate::{Client, ClientError, retry};

/// A connection that broke after so long was a good one.
const GOOD: Duration = Duration::from_secs(5);

/// Which log, from where.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogOptions {
    /// The newest attempt when absent.
    pub attempt: Option<AttemptNo>,
    /// Byte of the encoded log to begin at; must be the first of a record.
    pub offset: u64,
    /// Waits for more until the attempt has ended.
    pub follow: bool,
}

/// A log being read. A broken connection is taken up at the very byte where it broke: no record is lost or doubled.
pub struct LogTail {
    client: Client,
    task: TaskId,
    attempt: Option<AttemptNo>,
    follow: bool,
    /// Bytes that have arrived, the decoder's leftovers included: where a new connection begins.
    received: u64,
    /// Bytes of the records handed out.
    delivered: u64,
    decoder: LogDecoder,
    body: Option<BoxStream<'static, reqwest::Result<bytes::Bytes>>>,
    /// When the last connection stood.
    connected: Instant,
    /// Connections in a row that broke soon and brought nothing.
    failures: u32,
    ended: bool,
}

impl Client {
    /// Reads the log of `task`. Nothing is sent before the first record is asked for.
    #[must_use]
    pub fn log(&self, task: TaskId, options: LogOptions) -> LogTail {
        LogTail {
            client: self.clone(),
            task,
            attempt: options.attempt,
            follow: options.follow,
            received: options.offset,
            delivered: options.offset,
            decoder: LogDecoder::default(),
            body: None,
            connected: Instant::now(),
            failures: 0,
            ended: false,
        }
    }
}

impl LogTail {
    /// The attempt whose log this is; known after the first record if it was not asked for.
    #[must_use]
    pub const fn attempt(&self) -> Option<AttemptNo> {
        self.attempt
    }

    /// The byte after the last record handed out: where a later reader goes on.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.delivered
    }

    /// Whether what came last is the beginning of a record only. So ends a log that is being written, one whose attempt
    /// was lost before all of it had come, and the answer of a core that stops.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        !self.decoder.is_empty()
    }

    /// The next whole record; `None` at the end. Cancel safe: a dropped call loses nothing.
    ///
    /// # Errors
    /// When the core refuses, or stays away for several tries in a row (see [`Client::patient`]), or sends what is no log.
    pub async fn next(&mut self) -> Result<Option<LogRecord>, ClientError> {
        loop {
            let decoded = self.decoder.next_record();
            if let Some(record) = decoded.map_err(|source| ClientError::Log { at: self.delivered, source })? {
                self.delivered += (HEADER_BYTES + record.bytes.len()) as u64;
                return Ok(Some(record));
            }
            if self.ended {
                return Ok(None);
            }
            let Some(body) = &mut self.body else {
                self.connect().await?;
                continue;
            };
            match body.next().await {
                Some(Ok(piece)) => {
                    self.failures = 0;
                    self.received += piece.len() as u64;
                    self.decoder.push(&piece);
                }
                Some(Err(error)) => self.broken(error).await?,
                None => self.ended = true,
            }
        }
    }

    async fn connect(&mut self) -> Result<(), ClientError> {
        let TaskId { job, task } = self.task;
        let call = Call::get(format!("jobs/{job}/tasks/{task}/log"))
            .query("attempt", self.attempt)
            .query("offset", Some(self.received))
            .query("follow", Some(self.follow));
        let response = self.client.open(&call).await?;
        let served = response.headers().get("swarm-attempt").and_then(|value| value.to_str().ok()?.parse().ok());
        // Pinned, so that a reconnect after a retry of the task does not splice two attempts' logs.
        self.attempt = self.attempt.or(served);
        if self.attempt.is_none() {
            return Err(self.client.protocol("the log names no attempt"));
        }
        if served.is_some() && served != self.attempt {
            return Err(self.client.protocol("the log is of another attempt than was asked for"));
        }
        self.body = Some(response.bytes_stream().boxed());
        self.connected = Instant::now();
        Ok(())
    }

    async fn broken(&mut self, error: reqwest::Error) -> Result<(), ClientError> {
        self.body = None;
        if self.follow && error.is_timeout() {
            // A job that says nothing for a while is no failure.
            return Ok(());
        }
        self.failures = if self.connected.elapsed() < GOOD { self.failures + 1 } else { 1 };
        if self.failures >= retry::TRIES_MAX {
            return Err(self.client.unreachable(error));
        }
        retry::wait(self.failures, None).await;
        Ok(())
    }
}
