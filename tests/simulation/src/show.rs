//! Messages as the trace has them: all that a seed determines, and nothing else.

use std::fmt::Write as _;

use swarm_protocol::link::{ToCore, ToWorker, VERSION, decode};

/// What a worker hears.
pub(crate) fn to_worker(bytes: &[u8]) -> String {
    list(decode::<ToWorker>(VERSION, bytes).unwrap_or_default().iter().map(|frame| match frame {
        ToWorker::Assign(order) => format!("assign {} for {} ms", order.attempt, order.lease_ms),
        frame => short(frame),
    }))
}

/// What the core hears.
pub(crate) fn to_core(bytes: &[u8]) -> String {
    list(decode::<ToCore>(VERSION, bytes).unwrap_or_default().iter().map(|frame| match frame {
        ToCore::Log { attempt, offset, bytes } => format!("log {attempt} {offset}+{}", bytes.len()),
        frame => short(frame),
    }))
}

/// Labels and reports are long.
pub(crate) fn short(frame: &impl std::fmt::Debug) -> String {
    let mut text = format!("{frame:?}");
    if let Some((at, _)) = text.char_indices().nth(300) {
        text.truncate(at);
        text.push('…');
    }
    text
}

fn list(frames: impl Iterator<Item = String>) -> String {
    frames.fold(String::new(), |mut all, frame| {
        let _ = write!(all, "[{frame}]");
        all
    })
}
