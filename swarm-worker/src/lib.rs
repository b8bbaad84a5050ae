//! The worker: the daemon on every machine that runs container jobs.
//!
//! [`run::run`] starts one, [`run_with`] one made of parts of the caller's choice; [`cli`] is its command line. `link` and
//! `heartbeat` talk to the core through [`network`], `hub` is the one picture of what is held, `attempt` runs one order
//! each, `spool` and `reconcile` carry attempts over a restart, `lease` and [`watchdog`] see to it that nothing runs on a
//! lease that has ended, `sandbox` prepares network namespaces.

mod attempt;
pub mod chance;
pub mod cli;
pub mod config;
mod context;
mod disk;
pub mod doctor;
mod engine;
mod heartbeat;
mod hub;
mod identity;
mod images;
mod labels;
mod latest;
mod lease;
mod link;
pub mod machine;
pub mod network;
mod offer;
mod reconcile;
mod room;
pub mod run;
pub mod runtime;
mod sandbox;
mod spool;
#[cfg(test)]
mod testing;
mod transfer;
pub mod watchdog;

pub use config::WorkerConfig;
pub use run::{Parts, run, run_with};
