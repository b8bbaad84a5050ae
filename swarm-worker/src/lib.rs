//! The daemon on every machine: it runs what the core sends and reports what came of it.

pub mod runtime;
