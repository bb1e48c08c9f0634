//! What stands first in a backup of the hub: what is in it, from when, and the hash of every file.

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// The form of a backup that this version writes. It reads this one and older ones.
pub const FORMAT: u32 = 1;

/// The first file of a backup, as JSON: people read it with `tar -xzOf FILE manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// See [`FORMAT`].
    pub format: u32,
    /// Version of the Edgewire that made it.
    pub edgewire: String,
    /// Version of the `nats-server` whose store is in it.
    pub nats_server: String,
    /// The moment that it shows, in ms since 1970, UTC.
    pub at: Timestamp,
    /// The same for people.
    pub at_text: String,
    /// Name of the hub's machine.
    pub host: String,
    /// Fingerprint of the hub's authority: which hub it is.
    pub authority_sha256: String,
    /// For how long the hub's server was held still, in ms; 0 when it was not running.
    pub held_ms: u64,
    /// The streams, as a server that opened the copy showed them.
    pub streams: Vec<StreamSummary>,
    /// The files that follow, in this order.
    pub files: Vec<Item>,
}

/// One stream, or the stream behind a bucket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StreamSummary {
    /// `CONTROL` or `WORK`.
    pub account: String,
    /// Its name.
    pub stream: String,
    /// First sequence that is there.
    pub first_sequence: u64,
    /// Last sequence that was given.
    pub last_sequence: u64,
    /// Messages in it.
    pub messages: u64,
    /// Their bytes.
    pub size_bytes: u64,
    /// Its consumers.
    pub consumers: u64,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Its path in the data directory.
    pub path: String,
    /// Its size.
    pub size_bytes: u64,
    /// SHA-256 of its content, in lower case hex.
    pub sha256: String,
}
