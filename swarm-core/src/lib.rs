//! The core of swarm-sync: decides when and where jobs run, and keeps what they leave. See ARCHITECTURE.md for the map.

pub mod archive;
pub mod blobs;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dispatcher;
pub mod harvester;
pub mod hibernator;
pub mod http;
pub mod identity;
pub mod images;
pub mod ledger;
pub mod link;
pub mod logger;
pub mod messages;
pub mod modules;
mod once;
pub mod plan;
pub mod receiver;
pub mod recover;
pub mod run;
pub mod scheduler;
pub mod store;
pub mod supervise;
pub mod sweep;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
