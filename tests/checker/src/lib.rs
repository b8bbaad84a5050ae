//! The checker: reads what a test observed (a history), what the store holds (SQLite or Postgres) and what the engine
//! did (container stamps), and says for each invariant I1–I12 how much was checked, what broke it and what stays
//! unknown. It shares no code with the store it judges: it reads the tables by their published names.
//!
//! An unknown is never folded into a pass: it has a column of its own.

mod checks;
mod db;
mod history;
mod report;
mod rows;
mod stamps;
mod unended;
mod world;

pub use checks::{Evidence, Frozen, check};
pub use db::{Held, LoadError, create_database, drop_database, load};
pub use history::{
    Entry, Expectation, JobSeen, LogRead, Op, Probe, ReadError, Seen, Submit, TaskSeen, Verdict, read_history,
};
pub use report::{Finding, Invariant, Report};
pub use stamps::{Action, Listed, Stamp, Stamps, read_stamps};
pub use unended::{Late, Standing, Unended, unended};
pub use world::{AttemptRow, EndedRow, JobRow, LaunchRow, LiveRow, World};
