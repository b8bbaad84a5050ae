//! The ledger: the one way into the store. It commits what the modules send in batches, on a thread of its own; a batch
//! is what arrived while the last one was being committed, so no timer delays a lone transition and a flood shares its
//! syncs. Nothing is answered before its commit, and what is refused says why.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use swarm_protocol::Epoch;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::messages::LedgerEntry;
use crate::store::{Refusal, Store, StoreError, Transition, Verdict};
use crate::supervise::Gauge;
use swarm_host::blocking::{self, Thread};

/// Transitions in one transaction.
const BATCH_MAX: usize = 1000;
/// The first pause after the database could not be reached; it doubles each time.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause: how late a database that came back is noticed.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often a transition that stands alone is tried before the database's refusal is believed.
const TRIES: u32 = 4;
/// How often a ledger with nothing to commit asks whether it still may: much less than a lease lasts, which a core that was
/// deposed would go on renewing.
const LEADS_EVERY: Duration = Duration::from_secs(4);
/// What a stop leaves of any pause.
const PAUSE_STOPPING: Duration = Duration::from_millis(50);

/// Runs the ledger under `epoch`. On `stop` nothing more is taken, but all that is queued is committed and answered.
///
/// # Errors
/// When another core has taken over, when the store is unreachable while stopping, or when there is no thread: what was
/// not answered then may or may not be committed.
pub async fn run(
    inbox: mpsc::Receiver<LedgerEntry>,
    store: Arc<dyn Store>,
    epoch: Epoch,
    gauge: Gauge,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let thread = Thread::start("ledger").context("cannot start the ledger's thread")?;
    Writer { inbox, store, thread, epoch, gauge, stop, number: 0 }.run().await
}

struct Writer {
    inbox: mpsc::Receiver<LedgerEntry>,
    store: Arc<dyn Store>,
    thread: Thread,
    epoch: Epoch,
    gauge: Gauge,
    stop: CancellationToken,
    /// Of the last batch tried; never used again for another one.
    number: u64,
}

impl Writer {
    async fn run(mut self) -> anyhow::Result<()> {
        loop {
            let (transitions, replies) = self.next_batch().await?;
            if transitions.is_empty() {
                return Ok(());
            }
            let verdicts = self.settle(transitions.into()).await?;
            self.gauge.handled_many(verdicts.len() as u64);
            for (reply, verdict) in replies.into_iter().zip(verdicts) {
                // Whoever asked may be gone; what is committed stays committed.
                let _ = reply.send(verdict);
            }
        }
    }

    /// Waits for entries and takes all that are there; empty when the inbox is closed and drained.
    async fn next_batch(&mut self) -> anyhow::Result<(Vec<Transition>, Vec<oneshot::Sender<Verdict>>)> {
        let mut entries = Vec::new();
        while !self.stop.is_cancelled() {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {}
                _ = self.inbox.recv_many(&mut entries, BATCH_MAX) => break,
                theirs = epoch_after_pause(Arc::clone(&self.store)) => {
                    // One that cannot be read tells nothing, nor does that of a standby which lags behind.
                    let ours = self.epoch;
                    if let Some(theirs) = theirs.ok().filter(|theirs| *theirs > ours) {
                        return Err(StoreError::Deposed { ours, theirs }.into());
                    }
                }
            }
        }
        if entries.is_empty() {
            self.inbox.close();
            self.inbox.recv_many(&mut entries, BATCH_MAX).await;
        }
        Ok(entries.into_iter().map(|entry| (entry.transition, entry.reply)).unzip())
    }

    /// The verdicts of `transitions` once they are durable. When one of them breaks the transaction, halves are tried
    /// until the guilty one stands alone.
    async fn settle(&mut self, transitions: Arc<[Transition]>) -> anyhow::Result<Vec<Verdict>> {
        let mut verdicts = Vec::with_capacity(transitions.len());
        // The halves that are left, the first one last.
        let mut open: Vec<_> = std::iter::once(0..transitions.len()).collect();
        while let Some(part) = open.pop() {
            match self.commit(&transitions, &part).await? {
                Ok(settled) => verdicts.extend(settled),
                Err(broken) if part.len() <= 1 => verdicts.extend(self.insist(&transitions, &part, broken).await?),
                Err(_) => {
                    let middle = part.start + part.len() / 2;
                    open.extend([middle..part.end, part.start..middle]);
                }
            }
        }
        Ok(verdicts)
    }

    /// Tries a transition that stands alone some more times: it is given up for good, and the database may have had
    /// troubles of its own that its error does not tell.
    async fn insist(
        &mut self,
        transitions: &Arc<[Transition]>,
        alone: &Range<usize>,
        mut broken: String,
    ) -> anyhow::Result<Vec<Verdict>> {
        for done in 1..TRIES {
            self.wait(PAUSE_MIN * done).await;
            match self.commit(transitions, alone).await? {
                Ok(verdicts) => return Ok(verdicts),
                Err(again) => broken = again,
            }
        }
        self.gauge.error(&broken);
        tracing::error!(transition = ?transitions[alone.clone()].first(), "a transition breaks its transaction: {broken}");
        Ok(vec![Err(Refusal::Broken(broken)); alone.len()])
    }

    /// Commits a part of `transitions` as one batch, however often the database goes away meanwhile; the inner error is
    /// a transaction that its own content breaks.
    async fn commit(
        &mut self,
        transitions: &Arc<[Transition]>,
        part: &Range<usize>,
    ) -> anyhow::Result<Result<Vec<Verdict>, String>> {
        self.number += 1;
        let mut pause = PAUSE_MIN;
        let mut unknown: Option<Vec<Verdict>> = None;
        loop {
            let answer = match unknown.take() {
                None => self.try_commit(transitions, part).await,
                Some(verdicts) => match self.is_committed().await {
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
            self.wait(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn try_commit(
        &self,
        transitions: &Arc<[Transition]>,
        part: &Range<usize>,
    ) -> Result<Vec<Verdict>, StoreError> {
        let (store, epoch, number) = (Arc::clone(&self.store), self.epoch, self.number);
        let (transitions, part) = (Arc::clone(transitions), part.clone());
        let commit = move || {
            abort_point("ledger-commit-before");
            let answer = store.commit(epoch, number, &transitions[part]);
            abort_point("ledger-commit-after");
            answer
        };
        self.thread.run(commit).await
    }

    /// Whether the last batch tried is in the store.
    async fn is_committed(&self) -> Result<bool, StoreError> {
        let (store, epoch, number) = (Arc::clone(&self.store), self.epoch, self.number);
        self.thread.run(move || store.batch_committed(epoch, number)).await
    }

    /// A pause that a stop cuts short: the last tries before the end come in quick succession.
    async fn wait(&self, pause: Duration) {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => tokio::time::sleep(PAUSE_STOPPING.min(pause)).await,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The epoch in the store, in a while. Read beside what commits, which must not wait for it.
async fn epoch_after_pause(store: Arc<dyn Store>) -> Result<Epoch, StoreError> {
    tokio::time::sleep(LEADS_EVERY).await;
    blocking::run(move || store.epoch()).await
}

/// Where a test may end the process, by `NAME=return` in `FAILPOINTS`. Nothing in releases.
fn abort_point(name: &str) {
    fail::fail_point!(name, |_| std::process::abort());
    let _ = name;
}

#[cfg(test)]
mod tests;
