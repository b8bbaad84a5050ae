//! A job as people write it: in a file (TOML, YAML or JSON) or as flags of the command line. Both are one model,
//! [`JobFile`]: each flag is a key of the file, with `_` for `-`. It becomes the [`JobSpec`](swarm_protocol::spec::JobSpec)
//! that the core takes, once the files it names are uploaded.

pub mod convert;
mod model;
mod read;
mod spec;
mod values;

pub use model::{JobFile, Schedule};
pub use read::{Format, ReadError, read, schema, write};
pub use spec::{flag_of, key_of};
pub use values::{Cores, Indices, Mount, Program, Size, Span, Variable};
