//! Flags for what a container may use beyond its cores and memory.

use bytesize::ByteSize;
use clap::Args;
use swarm_protocol::spec::{Limits, Tmpfs};

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct LimitFlags {
    /// Processes and threads of one task [default: 256]
    #[arg(long, value_name = "N")]
    pids_limit: Option<u32>,
    /// Open files of one process [default: 1024]
    #[arg(long, value_name = "N")]
    open_files: Option<u32>,
    /// End an attempt that has written more to disk, outputs included, such as 20GiB [default: 10GiB]
    #[arg(long, value_name = "SIZE")]
    disk: Option<ByteSize>,
    /// Keep at most so much of an attempt's log; the rest is counted [default: what the core allows]
    #[arg(long, value_name = "SIZE")]
    max_log: Option<ByteSize>,
    /// Mount scratch space in memory, such as /tmp:64MiB; what is written there counts as the task's memory
    #[arg(long, value_name = "PATH:SIZE", value_parser = parse_tmpfs)]
    tmpfs: Vec<Tmpfs>,
    /// Mount the image read-only; outputs, inputs and scratch stay writable
    #[arg(long)]
    read_only: bool,
}

impl LimitFlags {
    /// Puts what was given in the place of what `limits` has.
    pub(super) fn apply(&self, limits: &mut Limits) {
        limits.pids = self.pids_limit.unwrap_or(limits.pids);
        limits.open_files = self.open_files.unwrap_or(limits.open_files);
        limits.disk_bytes = self.disk.map_or(limits.disk_bytes, |size| size.0);
        limits.log_bytes = self.max_log.map(|size| size.0).or(limits.log_bytes);
        limits.tmpfs.extend(self.tmpfs.iter().cloned());
        limits.read_only_root |= self.read_only;
    }
}

/// The flag that sets a field of the spec's `limits`.
pub(super) fn flag_of(field: &str) -> Option<&'static str> {
    Some(match field.strip_prefix("limits.")? {
        "pids" => "--pids-limit",
        "open_files" => "--open-files",
        "disk_bytes" => "--disk",
        "log_bytes" => "--max-log",
        tmpfs if tmpfs.starts_with("tmpfs") => "--tmpfs",
        _ => return None,
    })
}

fn parse_tmpfs(text: &str) -> Result<Tmpfs, String> {
    let parts = text.rsplit_once(':').ok_or("write PATH:SIZE, for instance /tmp:64MiB")?;
    let size: ByteSize = parts.1.parse().map_err(|_| format!("`{}` is not a size such as 64MiB", parts.1))?;
    Ok(Tmpfs { path: parts.0.to_owned(), bytes: size.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_wins_and_the_rest_stays() {
        let flags = LimitFlags {
            disk: Some(ByteSize::gib(20)),
            tmpfs: vec![parse_tmpfs("/tmp:64MiB").unwrap()],
            ..LimitFlags::default()
        };
        let mut limits = Limits { pids: 7, ..Limits::default() };
        flags.apply(&mut limits);
        assert_eq!((limits.pids, limits.disk_bytes, limits.log_bytes), (7, 20 << 30, None));
        assert_eq!(limits.tmpfs, [Tmpfs { path: "/tmp".into(), bytes: 64 << 20 }]);
        for bad in ["/tmp", "/tmp:", "/tmp:much"] {
            assert!(parse_tmpfs(bad).is_err(), "{bad}");
        }
        assert_eq!((flag_of("limits.tmpfs[0].path"), flag_of("limits.pids")), (Some("--tmpfs"), Some("--pids-limit")));
    }
}
