//! The model itself: flags for clap, keys for serde, both described by the same words.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Cores, Indices, Mount, Program, Size, Span, Variable, instant, labels, program, variables, words};

/// A job. Every key is a flag of `submit` as well, with `-` for `_`.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "swarm-sync job file")]
pub struct JobFile {
    /// An image uploaded with `image push`, `NAME[:TAG]` or sha256:DIGEST
    #[arg(value_name = "IMAGE", required_unless_present = "file")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The command and its arguments; replaces the image's own
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    #[serde(deserialize_with = "words::deserialize", skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// A name for people; need not be unique
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Make one task for each index of a range; each finds its own in SWARM_TASK_INDEX
    #[arg(long, value_name = "A-B")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub array: Option<Indices>,
    /// Cores of one task, such as 0.5 [default: 1]
    #[arg(long, value_name = "CORES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cores>,
    /// Memory of one task, such as 512MiB [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// Run only on workers with this label, such as zone=a; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = swarm_protocol::labels::parse)]
    #[serde(with = "labels", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    pub require: Vec<(String, String)>,
    /// Processes and threads of one task [default: 256]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<u32>,
    /// Open files of one process [default: 1024]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u32>,
    /// End an attempt that has written more to disk, outputs included, such as 20GiB [default: 10GiB]
    #[arg(long, value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Size>,
    /// Keep at most so much of an attempt's log; the rest is counted [default: what the core allows]
    #[arg(long, value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_log: Option<Size>,
    /// Mount scratch space in memory, such as /tmp:64MiB; what is written there counts as the task's memory
    #[arg(long, value_name = "PATH:SIZE")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tmpfs: Vec<Mount>,
    /// Mount the image read-only; outputs, inputs and scratch stay writable
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Try a failed task so often again [default: 0]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u16>,
    /// Try a task so often again that was lost with its worker [default: 2]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries_lost: Option<u16>,
    /// End an attempt that runs longer, such as 10m
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// How long a silent worker keeps a task [default: 30m]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<Span>,
    /// Higher runs earlier, -100 to 100 [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Run as this user: a name, a uid or uid:gid
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Run in this directory of the container
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Run this program instead of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    #[serde(with = "program", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "program_schema")]
    pub entrypoint: Option<Program>,
    /// Set a variable; K alone passes on the one of this shell
    #[arg(short, long = "env", value_name = "K[=V]")]
    #[serde(with = "variables", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "variables_schema")]
    pub env: Vec<Variable>,
    /// Set the variables of a file with a K=V or K on each line
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env_file: Vec<PathBuf>,
    /// Upload a file for each task to find at PATH [default: /in/NAME]. PATH's directory is a volume of its own: what the
    /// image has there is hidden, so name one the image does not need. A directory is uploaded whole, with its modes and
    /// the links within it, and is a volume itself; so is what the tar archive FILE holds, if PATH ends in `/`
    #[arg(short, long = "input", value_name = "FILE|DIR[:PATH]")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub input: Vec<String>,
    /// Keep this file or directory of the container, or the files that match, such as '/out/**/*.csv'. The directory it
    /// lies in is a volume of its own and empty at the start, whatever the image has there
    #[arg(short = 'o', long = "out", value_name = "PATH")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub out: Vec<String>,
    /// Start after this long
    #[arg(long = "in", value_name = "DURATION", value_parser = delay, conflicts_with = "at")]
    #[serde(rename = "in", skip_serializing_if = "Option::is_none")]
    pub delay: Option<Span>,
    /// Start at this instant, such as 2030-01-31T08:00:00Z
    #[arg(long, value_name = "RFC3339", value_parser = instant::parse)]
    #[serde(deserialize_with = "instant::deserialize", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub at: Option<DateTime<Utc>>,
    /// Never run a task again that may have run
    #[arg(long, conflicts_with = "eager")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub at_most_once: bool,
    /// Run again on the mere suspicion that a worker is lost; may run twice
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub eager: bool,
    /// When to make this job again and again; for `schedule create` alone
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
}

/// When a job is made again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Five fields: minute, hour, day of month, month, day of week
    pub cron: String,
    /// The time zone the fields are meant in, an IANA name [default: UTC]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

pub(crate) fn delay(text: &str) -> Result<Span, String> {
    let delay: Span = text.parse()?;
    let max = std::time::Duration::from_secs(swarm_protocol::validate::bounds::START_AHEAD_DAYS_MAX as u64 * 86_400);
    if delay.0 <= max { Ok(delay) } else { Err("no job is held for longer than 5 years".to_owned()) }
}

fn program_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "oneOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
}

fn variables_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "oneOf": [
        { "type": "object", "additionalProperties": { "type": ["string", "number", "boolean", "null"] } },
        { "type": "array", "items": { "type": "string" } },
    ] })
}
