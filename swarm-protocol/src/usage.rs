//! What an attempt used.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Measured by the worker. CPU time and memory are read from the engine while the container runs, at its end for the last
/// time; a container that ends before the first reading has neither.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// CPU time of all its processes in milliseconds, at least.
    pub cpu_ms: Option<u64>,
    /// The most memory it was seen to have, in bytes.
    pub memory_peak_bytes: Option<u64>,
    /// The most it was seen to have written to its root filesystem and volumes, in bytes.
    pub disk_peak_bytes: Option<u64>,
    /// Bytes of its inputs.
    pub input_bytes: u64,
    /// Bytes of its collected outputs.
    pub output_bytes: u64,
}

impl Usage {
    /// Takes a further reading into account: counters and peaks only grow.
    pub fn observe(&mut self, cpu_ms: Option<u64>, memory_bytes: Option<u64>, disk_bytes: Option<u64>) {
        self.cpu_ms = self.cpu_ms.max(cpu_ms);
        self.memory_peak_bytes = self.memory_peak_bytes.max(memory_bytes);
        self.disk_peak_bytes = self.disk_peak_bytes.max(disk_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_only_grow_and_what_was_never_read_stays_unknown() {
        let mut usage = Usage::default();
        usage.observe(Some(10), Some(500), None);
        usage.observe(Some(30), Some(200), None);
        usage.observe(None, None, None);
        assert_eq!((usage.cpu_ms, usage.memory_peak_bytes, usage.disk_peak_bytes), (Some(30), Some(500), None));
    }
}
