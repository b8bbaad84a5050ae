//! Workers' keys in memory, by their hash.

use std::collections::HashMap;

use swarm_protocol::{Digest, WorkerId};

use super::tokens::TokenHash;
use crate::store::WorkerRecord;

/// A worker that showed its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerPeer {
    /// Its number.
    pub id: WorkerId,
    /// Its name.
    pub name: String,
}

/// The keys that are accepted.
#[derive(Debug, Default)]
pub(super) struct WorkerKeys {
    by_key: HashMap<Digest, WorkerPeer>,
    names: HashMap<WorkerId, String>,
}

impl WorkerKeys {
    pub(super) fn load(records: Vec<WorkerRecord>) -> Self {
        let mut keys = Self::default();
        for record in records {
            keys.names.insert(record.id, record.name.clone());
            if !record.revoked {
                keys.by_key.insert(record.key, WorkerPeer { id: record.id, name: record.name });
            }
        }
        keys
    }

    /// Puts in the one key of a worker; an earlier one of it stops working.
    pub(super) fn put(&mut self, key: Digest, peer: WorkerPeer) {
        self.revoke(peer.id);
        self.names.insert(peer.id, peer.name.clone());
        self.by_key.insert(key, peer);
    }

    pub(super) fn revoke(&mut self, worker: WorkerId) {
        self.by_key.retain(|_, peer| peer.id != worker);
    }

    /// The worker whose key has this hash. The map finds the candidate by the SHA-256 of a random secret, about which
    /// timing says nothing useful; what decides is the comparison in constant time.
    pub(super) fn find(&self, hash: &TokenHash) -> Option<WorkerPeer> {
        let (key, peer) = self.by_key.get_key_value(&Digest(hash.0))?;
        (TokenHash(key.0) == *hash).then(|| peer.clone())
    }

    pub(super) fn is_accepted(&self, worker: WorkerId) -> bool {
        self.by_key.values().any(|peer| peer.id == worker)
    }

    pub(super) fn name(&self, worker: WorkerId) -> Option<String> {
        self.names.get(&worker).cloned()
    }
}
