//! What a fake container does once it is started.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::runtime::{ContainerSpec, Reading};

/// What a program sees when it starts.
pub struct StartView<'a> {
    /// The container as it was created.
    pub spec: &'a ContainerSpec,
    /// Files put in so far, by absolute path.
    pub files: BTreeMap<String, Bytes>,
}

/// Chooses the script of a container at its start.
pub type Program = Box<dyn Fn(&StartView<'_>) -> Script + Send + Sync>;

#[derive(Debug, Clone)]
pub(super) enum Step {
    Out(Bytes),
    Err(Bytes),
    Sleep(Duration),
    Hold(CancellationToken),
    Write { path: String, bytes: Bytes },
    Use(Reading),
}

/// How a script ends by itself.
#[derive(Debug, Clone)]
pub(super) enum End {
    Exit(i64),
    OutOfMemory,
    Never,
}

/// Steps in order, then an end: exit status 0 unless said otherwise.
#[derive(Debug, Clone)]
pub struct Script {
    pub(super) steps: Vec<Step>,
    pub(super) end: End,
    /// The only signal but SIGKILL that ends it early; each does where none is named.
    pub(super) heeds: Option<String>,
    pub(super) refusal: Option<String>,
}

impl Default for Script {
    fn default() -> Self {
        Self { steps: Vec::new(), end: End::Exit(0), heeds: None, refusal: None }
    }
}

impl Script {
    /// Does nothing and exits with 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Refused at start, as by an engine that does not find the command.
    #[must_use]
    pub fn refused(message: &str) -> Self {
        Self { refusal: Some(message.to_owned()), ..Self::default() }
    }

    /// Writes to standard output.
    #[must_use]
    pub fn out(self, bytes: impl Into<Bytes>) -> Self {
        self.then(Step::Out(bytes.into()))
    }

    /// Writes to standard error.
    #[must_use]
    pub fn err(self, bytes: impl Into<Bytes>) -> Self {
        self.then(Step::Err(bytes.into()))
    }

    /// Takes its time, on tokio's clock.
    #[must_use]
    pub fn sleep(self, duration: Duration) -> Self {
        self.then(Step::Sleep(duration))
    }

    /// Goes on once `gate` is cancelled.
    #[must_use]
    pub fn hold(self, gate: CancellationToken) -> Self {
        self.then(Step::Hold(gate))
    }

    /// Writes a file at an absolute path.
    #[must_use]
    pub fn write(self, path: &str, bytes: impl Into<Bytes>) -> Self {
        self.then(Step::Write { path: path.to_owned(), bytes: bytes.into() })
    }

    /// Uses so much from now on.
    #[must_use]
    pub fn uses(self, cpu_ms: u64, memory_bytes: u64) -> Self {
        self.then(Step::Use(Reading { cpu_ms, memory_bytes }))
    }

    /// Ends with this status.
    #[must_use]
    pub fn exit(self, code: i64) -> Self {
        Self { end: End::Exit(code), ..self }
    }

    /// Ends as the kernel ends what takes too much memory.
    #[must_use]
    pub fn out_of_memory(self) -> Self {
        Self { end: End::OutOfMemory, ..self }
    }

    /// Runs until it is killed.
    #[must_use]
    pub fn forever(self) -> Self {
        Self { end: End::Never, ..self }
    }

    /// Only SIGKILL ends it early.
    #[must_use]
    pub fn ignoring_signals(self) -> Self {
        self.heeding_only("")
    }

    /// Only this signal and SIGKILL end it early.
    #[must_use]
    pub fn heeding_only(self, signal: &str) -> Self {
        Self { heeds: Some(signal.to_owned()), ..self }
    }

    fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}
