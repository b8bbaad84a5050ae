//! What core and worker take from the machine below the async runtime: threads for work that blocks, and files that
//! survive a crash. With the feature `testing` a simulation stands in for both: work is done in tasks of the simulated
//! runtime, and a power cut takes back what was never synced.

pub mod blocking;
pub mod files;
