//! What travels between the parts of swarm-sync: identifiers, the job spec, states, API types, link frames and sealed
//! heartbeats. No sockets and no database: everything here is pure and can be tested without either.

pub mod ids;
pub mod tasks;
