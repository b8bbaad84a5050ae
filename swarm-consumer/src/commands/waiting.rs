//! Why a job waits, on a line that goes away when it runs.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use swarm_client::Client;
use swarm_protocol::JobId;
use swarm_protocol::text::sanitise;

/// A job that starts within this time is not asked about.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is asked about then.
const ASK_AGAIN: Duration = Duration::from_secs(3);

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
