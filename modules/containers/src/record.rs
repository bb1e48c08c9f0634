//! What survives a restart of ours: for each pod its accepted spec and how far its containers are, for each ConfigMap and
//! Secret its data. One saved value each, MessagePack; the bus adds the version byte and flushes before anything that was
//! decided from it is done.

use std::collections::BTreeMap;

use schemas::Timestamp;
use schemas::desired::Desired;
use schemas::object::Object;
use serde::{Deserialize, Serialize};

use crate::referenced::Data;

/// Prefix of saved pods; the rest of the key is the UID.
pub const POD_PREFIX: &str = "pod.";
/// Prefix of saved ConfigMaps and Secrets; the rest is the key in the local bucket.
pub const DATA_PREFIX: &str = "data.";

/// Which write of the hub something came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Generation of the hub's bucket.
    pub generation: String,
    /// Epoch of the write.
    pub epoch: String,
    /// The object's revision.
    pub resource_version: u64,
}

impl Origin {
    /// Of an entry.
    pub fn of(desired: &Desired) -> Self {
        Self {
            generation: desired.generation.clone(),
            epoch: desired.epoch.clone(),
            resource_version: desired.resource_version,
        }
    }

    /// Is `other` older than this, as far as one can tell? Between histories only `sync` can, and it has.
    pub fn is_after(&self, other: &Origin) -> bool {
        self.generation == other.generation
            && self.epoch == other.epoch
            && self.resource_version > other.resource_version
    }
}

/// Shall the pod go?
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Removal {
    /// No.
    #[default]
    None,
    /// It has a `deletionTimestamp`.
    Deleting,
    /// A tombstone named its UID: nobody waits for a report any more.
    Gone,
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodRecord {
    /// The accepted object.
    pub object: Object,
    /// Where it came from.
    pub origin: Origin,
    /// Shall it go?
    pub removal: Removal,
    /// It has been stopped and nothing of it is left on the node.
    pub stopped: bool,
    /// When the node took it on: `status.startTime`.
    pub start_time: Timestamp,
    /// Its address.
    pub ip: String,
    /// Sequence of its last report.
    pub report_sequence: u64,
    /// What the last report said, as a hash: the same is not said twice.
    pub reported: String,
    /// Conditions: what they are and since when.
    pub conditions: BTreeMap<String, (bool, Timestamp)>,
    /// Its containers, init containers too, by name.
    pub containers: BTreeMap<String, ContainerRecord>,
}

impl PodRecord {
    /// A pod that was just accepted.
    pub fn new(object: Object, origin: Origin, now: Timestamp) -> Self {
        Self {
            object,
            origin,
            removal: Removal::None,
            stopped: false,
            start_time: now,
            ip: String::new(),
            report_sequence: 0,
            reported: String::new(),
            conditions: BTreeMap::new(),
            containers: BTreeMap::new(),
        }
    }

    /// UID of the pod.
    pub fn uid(&self) -> &str {
        self.object.uid()
    }
}

/// One container of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Which start the phase is about, from 0: Kubernetes' `restartCount`.
    pub attempt: u32,
    /// ID of that attempt.
    pub id: String,
    /// What it was made from.
    pub spec_hash: String,
    /// Its image in full, and the digest of its config.
    pub image: String,
    /// Digest of the image's config.
    pub image_id: String,
    /// Where it is.
    pub phase: Phase,
    /// How the attempt before ended.
    pub last: Option<Ended>,
    /// The pause before the next restart.
    pub backoff_ms: u64,
    /// It was stopped because its spec changed: it is started anew whatever `restartPolicy` says.
    pub replaced: bool,
}

/// Where a container is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// This attempt has not been started, or nobody knows yet whether it was.
    #[default]
    Waiting,
    /// It runs.
    Running {
        /// Since when.
        since: Timestamp,
    },
    /// It has ended.
    Ended(Ended),
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// ID of the attempt.
    pub id: String,
    /// Exit code.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled` or `ContainerStatusUnknown`.
    pub reason: String,
    /// When it was started.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// One ConfigMap or Secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataRecord {
    /// `configmaps` or `secrets`.
    pub plural: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Where it came from.
    pub origin: Origin,
    /// What it holds.
    pub data: Data,
}
