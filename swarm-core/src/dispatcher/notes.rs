//! What workers say of themselves is kept in the store, for answers after a restart. Nothing waits for it.

use tokio::sync::oneshot;

use super::Dispatcher;
use crate::messages::LedgerEntry;
use crate::store::Refusal;

/// Until what the database refused is tried again, in milliseconds; each one that it refuses holds up the ledger.
const AGAIN_MS: u64 = 60_000;

impl Dispatcher {
    /// Has the store keep what changed, and again what it refused, as far as the ledger has room. For the sweep, so that no worker makes more than a
    /// write of a kind in a while.
    pub(super) fn note(&mut self) {
        let now_ms = self.clock.boot_ms();
        while let Some(done) = self.notes.try_join_next() {
            if let Ok(Some((worker, said))) = done {
                self.picture.note_again(worker, said, now_ms + AGAIN_MS);
            }
        }
        for (worker, said, transition) in self.picture.take_notes(now_ms) {
            let Ok(place) = self.ledger.0.try_reserve() else {
                self.picture.note_again(worker, said, now_ms);
                continue;
            };
            let (reply, verdict) = oneshot::channel();
            place.send(LedgerEntry { transition, reply });
            self.notes.spawn(async move {
                let Ok(Err(Refusal::Broken(reason))) = verdict.await else { return None };
                tracing::warn!(%worker, ?said, "what a worker says of itself is not kept: {reason}");
                Some((worker, said))
            });
        }
    }
}
