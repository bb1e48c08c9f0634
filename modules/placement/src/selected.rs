//! Objects that go to every node that they select: Topics, TopicMaps, Rules and RuleEndpoints.
//!
//! A selection is read off the object, and compared with the labels of the nodes. A node that is not known, and a selection that
//! cannot be read, select nothing and leave out nothing: what a node was told then stays.

use std::collections::{BTreeMap, BTreeSet};

use bus::module::{Entry, EntryValue};
use schemas::name::NodeName;
use schemas::object::Object;
use schemas::rule::NODE_NAME;
use serde_json::Value;

/// The plurals of these kinds.
pub const SELECTED: [&str; 4] = ["topics", "topicmaps", "rules", "ruleendpoints"];

/// Nodes that are remembered after they went: a guard against late entries.
pub const GONE_MAX: usize = 10_000;

/// Does an object of that plural go to the nodes that it selects?
pub fn is_selected(plural: &str) -> bool {
    SELECTED.contains(&plural)
}

/// Which nodes an object is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Those with all of these labels; with none given, all nodes.
    Labels(BTreeMap<String, String>),
    /// These.
    Names(BTreeSet<NodeName>),
}

impl Selection {
    /// What the object says; `None` for kinds that select nothing, and where it cannot be read.
    pub fn of(plural: &str, object: &Object) -> Option<Self> {
        match plural {
            "topics" | "topicmaps" => labels(object.get(&["spec", "nodeSelector"])).map(Self::Labels),
            "rules" => {
                let named = ["sourceResource", "targetResource"]
                    .iter()
                    .filter_map(|side| object.get(&["spec", side, NODE_NAME]))
                    .map(|name| NodeName::new(name.as_str().unwrap_or("")).ok())
                    .collect::<Option<BTreeSet<NodeName>>>()?;
                Some(if named.is_empty() { Self::Labels(BTreeMap::new()) } else { Self::Names(named) })
            }
            "ruleendpoints" => Some(Self::Labels(BTreeMap::new())),
            _ => None,
        }
    }

    fn takes(&self, node: &NodeName, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::Labels(wanted) => wanted.iter().all(|(key, value)| labels.get(key) == Some(value)),
            Self::Names(names) => names.contains(node),
        }
    }
}

/// A map of texts; nothing there is an empty one.
fn labels(value: Option<&Value>) -> Option<BTreeMap<String, String>> {
    match value {
        None | Some(Value::Null) => Some(BTreeMap::new()),
        Some(Value::Object(map)) => {
            map.iter().map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
        }
        Some(_) => None,
    }
}

struct Node {
    revision: u64,
    /// `None`: it is gone.
    labels: Option<BTreeMap<String, String>>,
}

/// The nodes as the watch tells them.
#[derive(Default)]
pub struct Nodes(BTreeMap<NodeName, Node>);

impl Nodes {
    /// Takes an entry of the watch. Gives the node when there is something new to decide about it.
    pub fn take(&mut self, name: &str, entry: &Entry) -> Option<NodeName> {
        let name = NodeName::new(name).ok()?;
        if self.0.get(&name).is_some_and(|node| node.revision >= entry.revision) {
            return None;
        }
        let known = match &entry.value {
            EntryValue::Put(bytes) => {
                let read = Object::from_bytes(bytes, entry.revision).map_err(|error| error.to_string());
                let read = read.and_then(|object| {
                    labels(object.get(&["metadata", "labels"])).ok_or("its labels are no texts".to_owned())
                });
                // It keeps the labels that it had.
                Some(
                    read.inspect_err(|error| tracing::warn!(node = %name, error, "node cannot be read"))
                        .ok()?,
                )
            }
            EntryValue::Removed(_) => None,
        };
        let changed = self.0.get(&name).is_none_or(|node| node.labels != known) && known.is_some();
        self.0.insert(name.clone(), Node { revision: entry.revision, labels: known });
        if self.0.len() > GONE_MAX {
            let gone = self.0.iter().filter(|(_, node)| node.labels.is_none());
            if let Some(oldest) = gone.min_by_key(|(_, node)| node.revision).map(|(name, _)| name.clone()) {
                self.0.remove(&oldest);
            }
        }
        changed.then_some(name)
    }

    /// The nodes that are there.
    pub fn names(&self) -> impl Iterator<Item = &NodeName> {
        self.0.iter().filter(|(_, node)| node.labels.is_some()).map(|(name, _)| name)
    }

    /// Is the object for that node? `None`: nobody knows.
    pub fn selects(&self, selection: Option<&Selection>, node: &NodeName) -> Option<bool> {
        let labels = self.0.get(node)?.labels.as_ref()?;
        Some(selection?.takes(node, labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn selection(plural: &str, spec: Value) -> Option<Selection> {
        let mut object = Object::new("v1", "X", "default", "x");
        object.set(&["spec"], spec);
        Selection::of(plural, &object)
    }

    fn node(name: &str, revision: u64, labels: Value) -> Entry {
        let mut object = Object::new("v1", "Node", "", name);
        object.set(&["metadata", "labels"], labels);
        let value = EntryValue::Put(object.to_bytes());
        Entry { bucket: "objects".into(), key: format!("=.nodes.=.{name}"), revision, value }
    }

    #[test]
    fn objects_select_nodes() {
        let mut nodes = Nodes::default();
        nodes.take("n1", &node("n1", 1, json!({"site": "a", "x": "1"})));
        nodes.take("n2", &node("n2", 2, json!({})));
        for (plural, spec, want) in [
            ("topics", json!({}), [Some(true), Some(true), None]),
            ("topics", json!({"nodeSelector": null}), [Some(true), Some(true), None]),
            ("topics", json!({"nodeSelector": {"site": "a"}}), [Some(true), Some(false), None]),
            ("topics", json!({"nodeSelector": {"site": "a", "x": "2"}}), [Some(false), Some(false), None]),
            ("topicmaps", json!({"nodeSelector": {"site": "a"}}), [Some(true), Some(false), None]),
            ("topics", json!({"nodeSelector": [1]}), [None, None, None]),
            ("topics", json!({"nodeSelector": {"site": 1}}), [None, None, None]),
            ("rules", json!({}), [Some(true), Some(true), None]),
            ("rules", json!({"sourceResource": {"node_name": "n2"}}), [Some(false), Some(true), None]),
            ("rules", json!({"targetResource": {"node_name": "n2"}}), [Some(false), Some(true), None]),
            (
                "rules",
                json!({"sourceResource": {"node_name": "n1"}, "targetResource": {"node_name": "n2"}}),
                [Some(true), Some(true), None],
            ),
            ("rules", json!({"sourceResource": {"node_name": "No!"}}), [None, None, None]),
            ("ruleendpoints", json!({}), [Some(true), Some(true), None]),
        ] {
            let selection = selection(plural, spec.clone());
            let have = ["n1", "n2", "n3"]
                .map(|name| nodes.selects(selection.as_ref(), &NodeName::new(name).unwrap()));
            assert_eq!(have, want, "{plural} {spec}");
        }
        assert_eq!(selection("configmaps", json!({})), None);
    }

    #[test]
    fn only_labels_matter_and_old_entries_do_not() {
        let mut nodes = Nodes::default();
        let n1 = Some(NodeName::new("n1").unwrap());
        assert_eq!(nodes.take("n1", &node("n1", 5, json!({"a": "b"}))), n1);
        assert_eq!(nodes.take("n1", &node("n1", 4, json!({}))), None, "older");
        assert_eq!(nodes.take("n1", &node("n1", 6, json!({"a": "b"}))), None, "unchanged");
        assert_eq!(nodes.take("n1", &node("n1", 7, json!({"a": "c"}))), n1);
        assert_eq!(nodes.take("n1", &node("n1", 8, json!(7))), None, "unreadable: it keeps what it had");
        let gone = Entry { value: EntryValue::Removed(Vec::new()), ..node("n1", 9, json!({})) };
        assert_eq!(nodes.take("n1", &gone), None, "its absence decides nothing");
        assert_eq!(nodes.names().count(), 0);
        assert_eq!(nodes.take("n1", &node("n1", 8, json!({}))), None);
        assert_eq!(nodes.take("n1", &node("n1", 10, json!({}))), n1);
        assert_eq!(nodes.take("No such", &node("No such", 1, json!({}))), None);
    }
}
