//! Who somebody is and what they may do: passwords, tokens and the limits on guessing them.

pub mod jwt;
mod keyfile;
pub mod limits;
pub mod password;
mod service;
pub mod tokens;
mod workers;

pub use keyfile::KeyFileError;
pub use service::{Account, AuthError, Identity, IdentityConfig, Undelivered};
pub use workers::WorkerPeer;
