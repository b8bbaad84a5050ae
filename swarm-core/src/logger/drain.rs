//! A writer on a thread of its own: a bounded channel in front, drops counted, and the count written once there is room.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::entry::{Entry, Level};

/// Where a drain writes. Called from one thread only, and free to block.
pub(super) trait Sink: Send + 'static {
    /// Writes one entry, perhaps only into a buffer.
    fn write(&mut self, entry: &Entry) -> io::Result<()>;

    /// Empties the buffer; with `sync` also makes it last.
    fn flush(&mut self, sync: bool) -> io::Result<()>;
}

enum Order {
    Write(Arc<Entry>),
    /// Write everything received so far, sync, then answer whether it worked.
    Flush(SyncSender<bool>),
}

/// The sending side of a writer thread.
pub(super) struct Drain {
    orders: SyncSender<Order>,
    tally: Arc<Tally>,
}

/// What a drain counts.
#[derive(Default)]
struct Tally {
    /// Orders that wait for the writer.
    waiting: AtomicU64,
    total: AtomicU64,
    unreported: AtomicU64,
}

impl Tally {
    fn add(&self, count: u64) {
        self.total.fetch_add(count, Ordering::Relaxed);
        self.unreported.fetch_add(count, Ordering::Relaxed);
    }
}

impl Drain {
    /// Starts the thread `name`, which ends when the drain is dropped.
    pub(super) fn start(name: &str, capacity: usize, sink: impl Sink) -> io::Result<Self> {
        let (orders, inbox) = sync_channel(capacity);
        let tally = Arc::new(Tally::default());
        let shared = Arc::clone(&tally);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || Worker { sink, tally: shared, pending: 0 }.run(&inbox))?;
        Ok(Self { orders, tally })
    }

    /// Hands `entry` over if there is room, and counts it as dropped otherwise. Never blocks.
    pub(super) fn offer(&self, entry: &Arc<Entry>) {
        // Counted first, or the writer could take it before.
        self.tally.waiting.fetch_add(1, Ordering::Relaxed);
        if self.orders.try_send(Order::Write(Arc::clone(entry))).is_err() {
            self.tally.waiting.fetch_sub(1, Ordering::Relaxed);
            self.tally.add(1);
        }
    }

    /// Reads how many entries wait for the writer.
    pub(super) fn depth(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let tally = Arc::clone(&self.tally);
        move || tally.waiting.load(Ordering::Relaxed)
    }

    /// How many entries were lost so far.
    pub(super) fn dropped(&self) -> u64 {
        self.tally.total.load(Ordering::Relaxed)
    }

    /// Waits until everything offered so far is written, or the deadline has passed.
    pub(super) fn flush(&self, deadline: Instant) -> bool {
        let (done, answer) = sync_channel(1);
        let mut order = Order::Flush(done);
        loop {
            match self.orders.try_send(order) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < deadline => order = back,
                Err(_) => return false,
            }
            thread::sleep(Duration::from_millis(1));
        }
        answer.recv_timeout(deadline.saturating_duration_since(Instant::now())).unwrap_or(false)
    }
}

struct Worker<S> {
    sink: S,
    tally: Arc<Tally>,
    /// Entries in the sink's buffer, not yet flushed.
    pending: u64,
}

impl<S: Sink> Worker<S> {
    fn run(mut self, inbox: &Receiver<Order>) {
        loop {
            let order = match inbox.try_recv() {
                Ok(order) => order,
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {
                    // A batch is what arrived while the last one was written.
                    self.flush(false);
                    match inbox.recv() {
                        Ok(order) => order,
                        Err(_) => break,
                    }
                }
            };
            match order {
                Order::Write(entry) => {
                    self.tally.waiting.fetch_sub(1, Ordering::Relaxed);
                    self.report_losses();
                    self.write(&entry);
                }
                Order::Flush(done) => {
                    self.report_losses();
                    // The asker may have given up waiting.
                    let _ = done.send(self.flush(true));
                }
            }
        }
        self.report_losses();
        self.flush(true);
    }

    fn report_losses(&mut self) {
        let count = self.tally.unreported.swap(0, Ordering::Relaxed);
        if count > 0 {
            let message =
                format!("{count} log entries were dropped here: the writer could not keep up or could not write");
            if self.sink.write(&Entry::own(Level::Warn, message)).is_err() {
                self.tally.unreported.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    fn write(&mut self, entry: &Entry) {
        match self.sink.write(entry) {
            Ok(()) => self.pending += 1,
            Err(_) => self.tally.add(1 + std::mem::take(&mut self.pending)),
        }
    }

    /// There is nowhere left to report a failing log to, so a failure is counted and told when writing works again.
    fn flush(&mut self, sync: bool) -> bool {
        let done = self.sink.flush(sync).is_ok();
        if !done {
            self.tally.add(self.pending);
        }
        self.pending = 0;
        done
    }
}
