//! The link: one WebSocket to the core, kept up for ever. It announces everything held whenever it comes up, carries
//! frames both ways in batches, and renews leases beside the heartbeats.

mod frames;
mod orders;
mod renewals;
mod session;

use std::sync::Arc;
use std::time::Duration;

use swarm_protocol::link::FrameError;
use swarm_protocol::text::sanitise;
use tokio::time::Instant;

pub(crate) use renewals::Renewals;

use crate::chance::Backoff;
use crate::context::Ctx;

/// Why a link session ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// No connection, or it broke.
    #[error("the connection to the core failed: {0}")]
    Socket(#[from] std::io::Error),
    /// The key is not accepted.
    #[error("the core does not accept this worker's key ({0}): it may have been revoked")]
    Unauthorised(u16),
    /// Nothing came for too long.
    #[error("the core was silent for {0:?}")]
    Silent(Duration),
    /// The core closed the link.
    #[error("the core closed the link")]
    Closed,
    /// What came cannot be understood.
    #[error("the core sent something that cannot be understood: {0}")]
    Frame(#[from] FrameError),
    /// The core chose a version this build does not speak.
    #[error("the core wants link version {0}, which this worker does not speak")]
    Version(u8),
    /// The core does not want this worker.
    #[error("the core refused the link: {}", sanitise(reason, false))]
    Refused {
        /// The core's words.
        reason: String,
        /// Whether trying again can help.
        retry: bool,
    },
    /// This data directory belongs to another swarm or worker.
    #[error("the core at this address is of another swarm than this data directory; give it another directory")]
    OtherSwarm,
    /// What the last handshake said of this worker is not true any more.
    #[error("what this worker offers has changed")]
    NewOffer,
    /// The heartbeat's socket failed.
    #[error("the heartbeat socket failed: {0}")]
    Heartbeat(std::io::Error),
    /// The identity cannot be kept.
    #[error("{0}")]
    Identity(String),
}

impl LinkError {
    const fn is_final(&self) -> bool {
        matches!(self, Self::Refused { retry: false, .. } | Self::OtherSwarm | Self::Identity(_))
    }
}

/// Keeps the link up until the worker stops. Returns an error only when trying again cannot help.
pub(crate) async fn keep(ctx: Arc<Ctx>) -> anyhow::Result<()> {
    let mut backoff = Backoff::new(&ctx.chance);
    loop {
        let began = Instant::now();
        let ended = tokio::select! {
            biased;
            () = ctx.stop.cancelled() => Ok(()),
            ended = session::run(&ctx) => ended.map(|never| match never {}),
        };
        ctx.hub.set_session(None);
        let Err(error) = ended else { return Ok(()) };
        if error.is_final() {
            return Err(error.into());
        }
        if matches!(error, LinkError::NewOffer) {
            tracing::info!("what this worker offers has changed: shaking hands anew");
            continue;
        }
        if began.elapsed() > Duration::from_secs(10) {
            backoff.reset();
        }
        let pause = backoff.next_pause();
        tracing::warn!(core = %ctx.config.core, %error, pause_ms = pause.as_millis() as u64, "the link is down, trying again");
        tokio::select! {
            biased;
            () = ctx.stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}
