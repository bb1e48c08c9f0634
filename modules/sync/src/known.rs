//! Which nodes the hub knows, for its modules that keep something for each: from a node's enrolment on, so that it is there before
//! the node first asks, and by the Node object.

use std::collections::BTreeSet;

use bus::flow::Flow;
use bus::module::{Entry, EntryValue};
use schemas::name::NodeName;
use schemas::subject::{self, ObjectKey, Resource};

/// What tells of them.
pub(crate) fn flows() -> [Flow; 2] {
    let objects = subject::objects_filter(&Resource::core("nodes"), None);
    [
        Flow::watch(subject::BUCKET_OBJECTS, objects, "Object (Node)"),
        Flow::watch(subject::BUCKET_IDENTITY, "node.*", "NodeRecord"),
    ]
}

/// The nodes.
#[derive(Debug, Default)]
pub(crate) struct Known(BTreeSet<NodeName>);

impl Known {
    /// Takes an entry of [`flows`] in. Gives the node that was not known before.
    pub fn entry(&mut self, entry: &Entry) -> Option<NodeName> {
        let enrolled = entry.key.strip_prefix("node.").map(str::to_owned);
        let name = enrolled.or_else(|| ObjectKey::parse(&entry.key).map(|key| key.name))?;
        let node = NodeName::new(&name).ok()?;
        match entry.value {
            EntryValue::Put(_) => self.0.insert(node.clone()).then_some(node),
            EntryValue::Removed(_) => {
                self.0.remove(&node);
                None
            }
        }
    }

    pub fn contains(&self, node: &NodeName) -> bool {
        self.0.contains(node)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &NodeName> {
        self.0.iter()
    }
}
