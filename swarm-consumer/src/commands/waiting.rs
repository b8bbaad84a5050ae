//! Waiting for a job: why it does not run yet, on a line that goes away when it runs, and for a core that went away.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use swarm_client::{Client, ClientError};
use swarm_protocol::JobId;
use swarm_protocol::text::sanitise;

use crate::output::note;

/// A job that starts within this time is not asked about.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is asked about then.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// How long a core may be away while its jobs are followed: time enough for an upgrade.
const ABSENCE_MAX: Duration = Duration::from_secs(600);

/// A client for commands that wait for a job's end. The job does not need the core to go on, so neither do they.
pub(super) fn patient(client: &Client) -> Client {
    client.patient(ABSENCE_MAX, |error: &ClientError| {
        // A log, or a line of progress, may stand at any column.
        let begin = if std::io::stderr().is_terminal() { "\n" } else { "" };
        let minutes = ABSENCE_MAX.as_secs() / 60;
        note(&format!("{begin}{error}; waiting for it, {minutes} minutes at most. Jobs go on meanwhile."));
    })
}

/// What is known of a wait.
pub(super) struct Waiting {
    ask_at: Instant,
    reason: String,
}

impl Waiting {
    /// A wait that begins now; `expected` when the core has said already that it will be one.
    pub(super) fn new(expected: bool) -> Self {
        Self { ask_at: Instant::now() + if expected { Duration::ZERO } else { PATIENCE }, reason: String::new() }
    }

    /// The core's reason in one line; empty in the first moments. A core that does not answer leaves the last one.
    pub(super) async fn reason(&mut self, client: &Client, job: JobId) -> &str {
        if Instant::now() >= self.ask_at {
            if let Ok(why) = client.why(job).await {
                self.reason = sanitise(&why.summary, false);
            }
            self.ask_at = Instant::now() + ASK_AGAIN;
        }
        &self.reason
    }
}

/// The line; nothing is shown where standard error is no terminal.
pub(super) fn line() -> ProgressBar {
    let style =
        ProgressStyle::with_template("{spinner} {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
    ProgressBar::new_spinner().with_style(style)
}
