//! Pure decisions: state and time come in as arguments, nothing here does I/O.

pub mod cron;
pub mod fit;
pub mod launches;
pub mod place;
pub mod policy;
pub mod queue;
pub mod sweep;
pub mod why;
