//! What a node must have, and the lineage that guards it.
//!
//! **Absence is never deletion.** A hub can come back empty, or restored from an older backup, and then know less than
//! the node does. [`Lineage`] makes that visible: the bucket has a random `generation`, and each start of the hub adds an
//! [`Epoch`] that says from which revision on it wrote. A node remembers the [`Position`] it has followed to. Only a
//! lineage that [contains](Lineage::contains) that position is a continuation of what the node knows; of any other the
//! node takes what it has and drops nothing.

use serde::{Deserialize, Serialize};

use crate::name::NodeName;
use crate::object::Object;
use crate::subject::DesiredKey;

/// One entry of a node's desired state, in [`crate::subject::BUCKET_DESIRED`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// Generation of the bucket it was written into.
    pub generation: String,
    /// Epoch in which it was written ([`Lineage::current`] then): with its revision it names this very write, so that a
    /// node can ask a lineage whether it ever knew it.
    pub epoch: String,
    /// `resourceVersion` of the object it was made from. Within a generation, older is ignored.
    pub resource_version: u64,
    /// What to have, or that it shall be gone.
    pub content: Content,
}

/// What an entry says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Have this object. (`deletionTimestamp` set: stop it and report it stopped.)
    Object(Object),
    /// The object of the entry's UID is gone for good: a node that has it drops it.
    Tombstone,
}

/// The history of the `desired` bucket, at key [`crate::subject::KEY_LINEAGE`]. At that key of a node's bucket `local`
/// stands that of a hub which was found to have lost reports that it had confirmed: who reports, reports anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// Random, made with the bucket.
    pub generation: String,
    /// Starts of the hub, oldest first; at most [`EPOCHS_MAX`].
    pub epochs: Vec<Epoch>,
}

/// One start of the hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// Random.
    pub id: String,
    /// The first revision that it could write.
    pub start: u64,
}

/// One write of the bucket: an entry's own, or the newest that a node knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Generation of the bucket.
    pub generation: String,
    /// Epoch in which it was written.
    pub epoch: String,
    /// Its revision.
    pub revision: u64,
}

/// Older epochs are forgotten; a node that was away for so many starts of the hub is treated as diverged (nothing of
/// its own is dropped).
pub const EPOCHS_MAX: usize = 256;

impl Local {
    /// The write that made this entry.
    pub fn position(&self) -> Position {
        Position {
            generation: self.desired.generation.clone(),
            epoch: self.desired.epoch.clone(),
            revision: self.revision,
        }
    }
}

impl Lineage {
    /// The lineage of a new bucket. `generation` is random.
    pub fn new(generation: String) -> Self {
        Self { generation, epochs: Vec::new() }
    }

    /// Adds the start of a hub which finds `last_revision` in the store.
    pub fn begin(&mut self, id: String, last_revision: u64) {
        self.epochs.push(Epoch { id, start: last_revision + 1 });
        if self.epochs.len() > EPOCHS_MAX {
            self.epochs.drain(..self.epochs.len() - EPOCHS_MAX);
        }
    }

    /// The epoch now running.
    pub fn current(&self) -> Option<&Epoch> {
        self.epochs.last()
    }

    /// Does this history hold that write? The revision must lie before the start of the epoch that followed: a revision
    /// that a restored hub writes again is not the one the node knows.
    pub fn contains(&self, position: &Position) -> bool {
        let at = self.epochs.iter().position(|epoch| epoch.id == position.epoch);
        let next = at.and_then(|at| self.epochs.get(at + 1));
        self.generation == position.generation
            && at.is_some()
            && next.is_none_or(|next| position.revision < next.start)
    }
}

/// A node asks for the list of what it must have: `ew.req.<node>.desired.list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListRequest {
    /// The node's position; `None` before the first contact.
    pub position: Option<Position>,
    /// Continue after this key; `None` for the first page.
    pub after: Option<DesiredKey>,
    /// At most so many bytes of answer.
    pub max_bytes: u32,
    /// The answer must be of this revision or newer pages are refused; 0 for the first page.
    pub at_revision: u64,
}

/// One page of the list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListPage {
    /// The history of the bucket.
    pub lineage: Lineage,
    /// All entries as of this revision of the bucket.
    pub at_revision: u64,
    /// Key and revision of each entry that exists, in key order. No contents: missing ones come through the consumer or
    /// are asked for.
    pub entries: Vec<ListEntry>,
    /// There is more: ask again with `after` the last key.
    pub more: bool,
}

/// One entry of a [`ListPage`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListEntry {
    /// Which entry.
    pub key: DesiredKey,
    /// Revision of the entry in the bucket `desired`.
    pub revision: u64,
}

/// A node asks for entries by key: `ew.req.<node>.desired.get`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GetRequest {
    /// Which; the answer holds the first of them that fit into `max_bytes` (at least one).
    pub keys: Vec<DesiredKey>,
    /// At most so many bytes of answer.
    pub max_bytes: u32,
}

/// The entries asked for, in the order of the request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GetPage {
    /// Key, revision and content; no content for a key that does not exist (any more).
    pub entries: Vec<(DesiredKey, u64, Option<Desired>)>,
}

/// A node's answer to `ew.cmd.<node>.sync.diverged`: what it has and the hub does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diverged {
    /// Does the node follow the hub just now? Otherwise the list says nothing.
    pub settled: bool,
    /// In the order of their keys; bounded.
    pub objects: Vec<DivergedObject>,
    /// So many more.
    pub more: u64,
}

/// One object that a node has otherwise than its hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DivergedObject {
    /// Which.
    pub key: DesiredKey,
    /// The hub has it, in an older version; otherwise the hub does not have it.
    pub hub_has_older: bool,
}

/// A person asks the hub (`ew.local.placement.release`) to have a node drop an object that the hub does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The node.
    pub node: NodeName,
    /// What it is to drop.
    pub key: DesiredKey,
}

/// What the edge keeps of an entry, in [`crate::subject::BUCKET_LOCAL`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Local {
    /// Revision of the entry at the hub.
    pub revision: u64,
    /// The entry.
    pub desired: Desired,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_is_told_from_a_continuation() {
        let mut hub = Lineage::new("g".into());
        hub.begin("e1".into(), 0);
        let backup = hub.clone();
        let at = |generation: &str, epoch: &str, revision| Position {
            generation: generation.into(),
            epoch: epoch.into(),
            revision,
        };
        hub.begin("e2".into(), 10);
        assert!(hub.contains(&at("g", "e1", 10)), "told before the restart");
        assert!(hub.contains(&at("g", "e2", 99)), "told in this epoch");
        assert!(!hub.contains(&at("g", "e1", 11)), "e1 never wrote 11 in this history");
        assert!(!hub.contains(&at("other", "e2", 5)), "another bucket");
        let mut restored = backup;
        restored.begin("e3".into(), 4);
        assert!(!restored.contains(&at("g", "e2", 12)), "an epoch the backup does not know");
        assert!(!restored.contains(&at("g", "e1", 7)), "told after the backup was taken");
        assert!(restored.contains(&at("g", "e1", 4)));
    }

    #[test]
    fn epochs_are_bounded() {
        let mut hub = Lineage::new("g".into());
        for n in 0..EPOCHS_MAX as u64 + 5 {
            hub.begin(n.to_string(), n);
        }
        assert_eq!(hub.epochs.len(), EPOCHS_MAX);
        assert_eq!(hub.current().unwrap().id, (EPOCHS_MAX + 4).to_string());
    }
}
