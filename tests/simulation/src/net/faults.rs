//! Frames that are waited for, and transfers that break off.

use rand::RngExt as _;

use super::{Inner, Net, Site};

impl Net {
    /// The next message with such a frame is told by [`seen`](Self::seen).
    pub(crate) fn watch_for(&self, frame: &'static str) {
        self.lock().awaited.push(frame);
    }

    /// Which of the frames that are watched for were delivered since the last time, and to or from which worker.
    pub(crate) fn seen(&self) -> Vec<(&'static str, Site)> {
        std::mem::take(&mut self.lock().seen)
    }

    /// Where a transfer of so many bytes breaks off, if it does.
    pub(crate) fn tears(&self, length: usize) -> Option<usize> {
        let mut inner = self.lock();
        let torn = inner.weather.torn;
        if torn == 0.0 || !inner.rng.random_bool(torn) {
            return None;
        }
        inner.count("transfer torn");
        Some(inner.rng.random_range(0..=length))
    }
}

impl Inner {
    /// Notes which of the awaited frames are in a message of this text.
    pub(super) fn see(&mut self, text: &str, worker: Site) {
        let seen = self.awaited.extract_if(.., |frame| text.contains(*frame)).map(|frame| (frame, worker));
        self.seen.extend(seen);
    }
}
