//! The one typed client of the HTTP API. Everything that talks to a core as a user goes through [`Client`]: it carries
//! the bearer token, renews it, retries what may be retried, and moves large bodies as streams whose digests it checks.
//!
//! ```no_run
//! # async fn example() -> Result<(), swarm_client::ClientError> {
//! use std::sync::Arc;
//! use swarm_client::{Client, MemoryTokens};
//!
//! let client = Client::new("http://127.0.0.1:7077", Arc::new(MemoryTokens::default()))?;
//! client.login("admin", "correct horse battery staple").await?;
//! let job = client.submit(&swarm_protocol::spec::JobSpec::new("alpine"), Some("my-key")).await?;
//! println!("job {}", job.job);
//! # Ok(())
//! # }
//! ```

mod address;
mod call;
mod client;
mod directory;
mod error;
mod http;
mod logs;
mod retry;
mod routes;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod testserver;
mod tokens;
mod transfer;

pub use address::DEFAULT_URL;
pub use client::{Client, Timeouts};
pub use directory::{PackError, Packing};
pub use error::ClientError;
pub use http::{Http, UploadError};
pub use logs::{LogOptions, LogTail};
pub use routes::JobFilter;
pub use tokens::{MemoryTokens, SavedTokens, TokenStore};
pub use transfer::{Destination, Progress, read_from};
