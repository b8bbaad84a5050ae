//! The core of swarm-sync: decides when and where jobs run, and keeps what they leave. See ARCHITECTURE.md for the map.

pub mod blobs;
pub mod clock;
pub mod harvester;
pub mod identity;
pub mod images;
pub mod ledger;
pub mod logger;
pub mod messages;
pub mod plan;
pub mod store;
pub mod supervise;
