//! The one true time of a simulated world, in microseconds, and the trace of what happens in it. Both belong to the thread
//! that the world lives on.

use std::cell::{Cell, RefCell};
use std::fmt;

use tokio::time::Instant;

/// When a world begins: not at zero, so that whatever looks back finds something.
pub(crate) const BEGIN_US: u64 = 3_600_000_000;
/// Unix time when a world begins, if nothing else is set: 2027-01-15.
const WALL_BEGIN_US: u64 = 1_800_003_600_000_000;

thread_local! {
    /// The time between the steps of runtimes.
    static OUTSIDE_US: Cell<u64> = const { Cell::new(BEGIN_US) };
    /// Unix time when the world begins.
    static WALL_US: Cell<u64> = const { Cell::new(WALL_BEGIN_US) };
    /// Of the runtime that is being stepped: an instant of its own, and the time then.
    static INSIDE: Cell<Option<(Instant, u64)>> = const { Cell::new(None) };
    static TRACE: RefCell<Trace> = const { RefCell::new(Trace { hash: FNV_OFFSET, lines: 0, is_shown: false }) };
}

/// What time it is.
pub(crate) fn now_us() -> u64 {
    match INSIDE.get() {
        Some((origin, then_us)) => then_us + u64::try_from(origin.elapsed().as_micros()).unwrap_or(u64::MAX),
        None => OUTSIDE_US.get(),
    }
}

/// The same as Unix time; no clock of the world jumps with it.
pub(crate) fn wall_us() -> u64 {
    WALL_US.get() + now_us() - BEGIN_US
}

/// Sets what [`wall_us`] is when the world begins: Unix time in seconds.
pub(crate) fn begin_at(wall_s: Option<u64>) {
    WALL_US.set(wall_s.map_or(WALL_BEGIN_US, |wall_s| wall_s * 1_000_000));
}

pub(crate) fn set(now_us: u64) {
    OUTSIDE_US.set(now_us);
}

/// Does `work` in a runtime, one of whose instants is known.
pub(crate) fn inside<T>(origin: (Instant, u64), work: impl FnOnce() -> T) -> T {
    INSIDE.set(Some(origin));
    let done = work();
    INSIDE.set(None);
    done
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// Everything that happened so far, as a hash (FNV-1a of the lines).
struct Trace {
    hash: u64,
    lines: u64,
    is_shown: bool,
}

/// Begins a trace, which is also printed if it `is_shown`.
pub(crate) fn begin_trace(is_shown: bool) {
    TRACE.set(Trace { hash: FNV_OFFSET, lines: 0, is_shown });
}

/// Adds a line to the trace.
pub(crate) fn trace(what: fmt::Arguments<'_>) {
    let line = format!("{:>14.6} {what}\n", (now_us() - BEGIN_US) as f64 / 1e6);
    TRACE.with_borrow_mut(|trace| {
        trace.lines += 1;
        trace.hash = line.bytes().fold(trace.hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME));
        if trace.is_shown {
            use std::io::Write as _;
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    });
}

/// The hash of the trace so far, and its lines.
pub(crate) fn traced() -> (u64, u64) {
    TRACE.with_borrow(|trace| (trace.hash, trace.lines))
}
