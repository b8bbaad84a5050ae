//! The ledger: the one way into the store. It owns a thread that commits what the modules send in batches; a batch is
//! what arrived while the last one was being committed, so no timer delays a lone transition and a flood shares its
//! syncs. Nothing is answered before its commit, and what is refused says why.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use swarm_protocol::Epoch;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::messages::LedgerEntry;
use crate::store::{Refusal, Store, StoreError, Transition, Verdict};
use crate::supervise::Gauge;

/// Transitions in one transaction.
const BATCH_MAX: usize = 1000;
/// The first pause after the database could not be reached; it doubles each time.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often a transition that stands alone is tried before the database's refusal is believed.
const TRIES: u32 = 4;
/// How often a pause looks whether the core is to stop.
const PAUSE_STEP: Duration = Duration::from_millis(50);

/// Runs the ledger under `epoch`. On `stop` nothing more is taken, but all that is queued is committed and answered.
///
/// # Errors
/// When another core has taken over, when the store is unreachable while stopping, or when the thread panics: what was
/// not answered then may or may not be committed.
pub async fn run(
    inbox: mpsc::Receiver<LedgerEntry>,
    store: Arc<dyn Store>,
    epoch: Epoch,
    gauge: Gauge,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (done, ended) = oneshot::channel();
    let writer = Writer { inbox, store, epoch, gauge, stop, runtime: Handle::current(), number: 0 };
    std::thread::Builder::new()
        .name("ledger".to_owned())
        .spawn(move || {
            let _ = done.send(writer.run());
        })
        .context("cannot start the ledger's thread")?;
    ended.await.context("the ledger's thread panicked")?
}

struct Writer {
    inbox: mpsc::Receiver<LedgerEntry>,
    store: Arc<dyn Store>,
    epoch: Epoch,
    gauge: Gauge,
    stop: CancellationToken,
    runtime: Handle,
    /// Of the last batch tried; never used again for another one.
    number: u64,
}

impl Writer {
    fn run(mut self) -> anyhow::Result<()> {
        loop {
            let (transitions, replies) = self.next_batch();
            if transitions.is_empty() {
                return Ok(());
            }
            let verdicts = self.settle(&transitions)?;
            self.gauge.handled_many(transitions.len() as u64);
            for (reply, verdict) in replies.into_iter().zip(verdicts) {
                // Whoever asked may be gone; what is committed stays committed.
                let _ = reply.send(verdict);
            }
        }
    }

    /// Waits for entries and takes all that are there; empty when the inbox is closed and drained.
    fn next_batch(&mut self) -> (Vec<Transition>, Vec<oneshot::Sender<Verdict>>) {
        let mut entries = Vec::new();
        let (inbox, stop, runtime) = (&mut self.inbox, &self.stop, &self.runtime);
        runtime.block_on(async {
            if !stop.is_cancelled() {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {}
                    _ = inbox.recv_many(&mut entries, BATCH_MAX) => return,
                }
            }
            inbox.close();
            inbox.recv_many(&mut entries, BATCH_MAX).await;
        });
        entries.into_iter().map(|entry| (entry.transition, entry.reply)).unzip()
    }

    /// The verdicts of `transitions` once they are durable. When one of them breaks the transaction, halves are tried
    /// until the guilty one stands alone.
    fn settle(&mut self, transitions: &[Transition]) -> anyhow::Result<Vec<Verdict>> {
        match self.commit(transitions)? {
            Ok(verdicts) => Ok(verdicts),
            Err(broken) if transitions.len() <= 1 => self.insist(transitions, broken),
            Err(_) => {
                let (left, right) = transitions.split_at(transitions.len() / 2);
                let mut verdicts = self.settle(left)?;
                verdicts.extend(self.settle(right)?);
                Ok(verdicts)
            }
        }
    }

    /// Tries a transition that stands alone some more times: it is given up for good, and the database may have had
    /// troubles of its own that its error does not tell.
    fn insist(&mut self, alone: &[Transition], mut broken: String) -> anyhow::Result<Vec<Verdict>> {
        for done in 1..TRIES {
            self.wait(PAUSE_MIN * done);
            match self.commit(alone)? {
                Ok(verdicts) => return Ok(verdicts),
                Err(again) => broken = again,
            }
        }
        self.gauge.error(&broken);
        tracing::error!(transition = ?alone.first(), "a transition breaks its transaction: {broken}");
        Ok(vec![Err(Refusal::Broken(broken)); alone.len()])
    }

    /// Commits one batch, however often the database goes away meanwhile; the inner error is a transaction that its own
    /// content breaks.
    fn commit(&mut self, transitions: &[Transition]) -> anyhow::Result<Result<Vec<Verdict>, String>> {
        self.number += 1;
        let mut pause = PAUSE_MIN;
        let mut unknown: Option<Vec<Verdict>> = None;
        loop {
            let answer = match unknown.take() {
                None => self.store.commit(self.epoch, self.number, transitions),
                Some(verdicts) => match self.store.batch_committed(self.epoch, self.number) {
                    Ok(true) => Ok(verdicts),
                    Ok(false) => continue,
                    Err(StoreError::Connection(source)) => Err(StoreError::CommitUnknown { verdicts, source }),
                    Err(error) => Err(error),
                },
            };
            let error = match answer {
                Ok(verdicts) => return Ok(Ok(verdicts)),
                Err(error @ (StoreError::Statement(_) | StoreError::Corrupt { .. })) => {
                    return Ok(Err(format!("{:#}", anyhow::Error::from(error))));
                }
                Err(StoreError::Connection(source)) => source,
                Err(StoreError::CommitUnknown { verdicts, source }) => {
                    unknown = Some(verdicts);
                    source
                }
                Err(error @ StoreError::Deposed { .. }) => return Err(error.into()),
            };
            self.gauge.error(&error);
            tracing::warn!("the store cannot be reached, trying again: {error}");
            if self.stop.is_cancelled() && pause >= PAUSE_MAX {
                anyhow::bail!("the store cannot be reached while stopping: {error}");
            }
            self.wait(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// A pause that a stop cuts short: the last tries before the end come in quick succession.
    fn wait(&self, pause: Duration) {
        let until = std::time::Instant::now() + pause;
        while std::time::Instant::now() < until && !self.stop.is_cancelled() {
            std::thread::sleep(PAUSE_STEP);
        }
        if self.stop.is_cancelled() {
            std::thread::sleep(PAUSE_STEP);
        }
    }
}

#[cfg(test)]
mod tests;
