//! What is written into Redis, and how it is read again: by the assumption that somebody else wrote it. Every value is a
//! version byte and postcard; what is too long, of another version, or not exactly one value is garbage.

use serde::Serialize;
use serde::de::DeserializeOwned;
use swarm_protocol::SwarmId;

use super::LogNotice;

/// The layout of all values and keys. Another one lies under other keys, so cores of two versions share a Redis.
const VERSION: u8 = 1;
/// The longest notice.
pub(super) const NOTICE_BYTES_MAX: usize = 64;
/// The longest table of workers: more than 10,000 of them.
pub(super) const TABLE_BYTES_MAX: usize = 1 << 20;

/// On the channel of the notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
pub(super) struct Notice {
    /// The core that says it, by a number it drew.
    pub(super) from: u64,
    /// What it says; nothing but that it is heard when absent.
    pub(super) log: Option<LogNotice>,
}

/// Not written by a core of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a value of this version")]
pub(super) struct Garbage;

/// The bytes of a value.
pub(super) fn encode(value: &impl Serialize) -> Vec<u8> {
    postcard::to_extend(value, vec![VERSION]).expect("plain data without maps can be written")
}

/// The value in `bytes`, of which there are at most `bytes_max`.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8], bytes_max: usize) -> Result<T, Garbage> {
    let [VERSION, body @ ..] = bytes else { return Err(Garbage) };
    if bytes.len() > bytes_max {
        return Err(Garbage);
    }
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        _ => Err(Garbage),
    }
}

/// The keys of one swarm. They are made of numbers and addresses alone: no text of a user's ever gets into one.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(swarm: SwarmId) -> Self {
        Self { prefix: format!("swarm:{swarm}:v{VERSION}") }
    }

    pub(super) fn login(&self, client: std::net::IpAddr) -> String {
        format!("{}:login:{client}", self.prefix)
    }

    pub(super) fn workers(&self) -> String {
        format!("{}:workers", self.prefix)
    }

    /// A key that is there as long as Redis keeps what it is given: one of the core with this number, or one of all.
    pub(super) fn mark(&self, of: Option<u64>) -> String {
        of.map_or_else(|| format!("{}:mark", self.prefix), |core| format!("{}:mark:{core:x}", self.prefix))
    }

    pub(super) fn notices(&self) -> String {
        format!("{}:notices", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use swarm_protocol::{AttemptId, Epoch, JobId, WorkerId};

    use super::super::{WorkerRow, WorkerState, WorkerTable};
    use super::*;

    fn table(rows: u64) -> WorkerTable {
        let row = |id| WorkerRow {
            id: WorkerId(id),
            state: WorkerState::Ready,
            live: u32::MAX,
            used_cpu_millis: u32::MAX,
            used_memory_bytes: u64::MAX,
            free_slots: Some(u32::MAX),
            load_millis: Some(u32::MAX),
            heard_at_us: Some(i64::MAX),
        };
        WorkerTable { epoch: Epoch(7), workers: (0..rows).map(row).collect() }
    }

    #[test]
    fn what_is_written_is_read_again_and_fits() {
        let attempt = AttemptId { job: JobId(u64::MAX), task: u32::MAX, attempt: u16::MAX };
        let longest = Notice { from: u64::MAX, log: Some(LogNotice { attempt, bytes: u64::MAX, ended: true }) };
        assert_eq!(decode(&encode(&longest), NOTICE_BYTES_MAX), Ok(longest));
        let table = table(10_000);
        assert_eq!(decode(&encode(&table), TABLE_BYTES_MAX), Ok(table));
    }

    #[test]
    fn garbage_is_told_from_values() {
        let good = encode(&table(2));
        let longer = [&good[..], b"x"].concat();
        let other_version = [&[2][..], &good[1..]].concat();
        for bad in [&[][..], &[VERSION], &good[..good.len() - 1], &longer, &other_version, b"hello", &[VERSION; 40]] {
            assert_eq!(decode::<WorkerTable>(bad, TABLE_BYTES_MAX), Err(Garbage), "{bad:?}");
        }
        assert_eq!(decode::<WorkerTable>(&good, good.len() - 1), Err(Garbage), "too long");
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), versioned in any::<bool>()) {
            if versioned && !bytes.is_empty() {
                bytes[0] = VERSION;
            }
            if let Ok(table) = decode::<WorkerTable>(&bytes, TABLE_BYTES_MAX) {
                prop_assert!(table.workers.len() <= bytes.len());
            }
            let _ = decode::<Notice>(&bytes, NOTICE_BYTES_MAX);
        }
    }
}
