//! Names of messages from the hub to one node.

use super::is_publishable;
use crate::name::{Namespace, NodeName};

/// What the name of a hub's stream of messages for one node begins with (`to.<node>.>`). Each node has its own: one that
/// is away for long fills its own alone.
pub const STREAM_TO: &str = "TO";
/// Edge stream of the messages that came from the hub, in WORK: written on [`ARRIVING`], stored and heard as `down.>`.
pub const STREAM_DOWN: &str = "DOWN";
/// What `sync` writes into [`STREAM_DOWN`]. Nobody else may, and nobody hears it: it is heard when it is stored.
pub const ARRIVING: &str = "_down.>";
/// The same as it is stored, and heard by workloads.
pub const ARRIVED: &str = "down.>";
/// Of what is stored, what workloads hear: not the cursor.
pub const ARRIVED_HEARD: &str = "down.*.>";
/// The queue group of those who take a namespace's stored messages: each goes to one of them.
pub const STORED_GROUP: &str = "stored";

/// The hub's stream of messages for one node.
pub fn to_stream(node: &NodeName) -> String {
    format!("{STREAM_TO}_{node}")
}

/// What that stream captures.
pub fn to_filter(node: &NodeName) -> String {
    format!("to.{node}.>")
}

/// For which node is a message of the hub? `None` when it is for none.
pub fn sent_to(subject: &str) -> Option<NodeName> {
    let (node, _) = subject.strip_prefix("to.")?.split_once('.')?;
    NodeName::new(node).ok()
}

/// A message of the hub for that node, as it is written on the node: its namespace and subject. `None` when it is not for that
/// node, or its namespace is no name: then nobody could hear it.
pub fn arriving(node: &NodeName, subject: &str) -> Option<(Namespace, String)> {
    let rest = subject.strip_prefix("to.")?.strip_prefix(node.as_str())?.strip_prefix('.')?;
    let (namespace, topic) = rest.split_once('.')?;
    let namespace = Namespace::new(namespace).ok().filter(|_| is_publishable(topic))?;
    let subject = format!("_down.{namespace}.{topic}");
    Some((namespace, subject))
}

/// Where the node's cursor is written, in the stream of what it counts; and as what it is stored. No namespace has that name.
pub const TAKEN: [&str; 2] = ["_down._cursor", "down._cursor"];

/// A namespace's own part of what came from the hub.
pub fn arrived_filter(namespace: &Namespace) -> String {
    format!("down.{namespace}.>")
}

/// Where what a namespace has not acknowledged yet is handed out, to the group [`STORED_GROUP`].
pub fn stored(namespace: &Namespace) -> String {
    format!("stored.{namespace}")
}
