//! The objects as the watch tells them, and the proof that one is gone.
//!
//! Only what is needed is kept: pods whole (their status is edited), the others as the part that nodes are told. A revision is never replaced by an older one.

use std::collections::{BTreeMap, BTreeSet};

use bus::module::{Entry, EntryValue};
use schemas::name::NodeName;
use schemas::object::Object;
use schemas::subject::{self, DesiredKey, ObjectKey};

use crate::relevant::{self, Reference};
use crate::selected::{Nodes, Selection, is_selected};

/// Removed objects that are remembered: proof of their removal, and a guard against late entries.
pub const GONE_MAX: usize = 10_000;

/// One object.
pub struct Known {
    /// `metadata.resourceVersion`.
    pub revision: u64,
    /// `metadata.uid`.
    pub uid: String,
    /// What a node is told.
    pub relevant: Object,
    /// The node it is on; `None` for what is no pod, and for pods without a node.
    pub node: Option<NodeName>,
    /// What it references.
    pub references: BTreeSet<Reference>,
    /// The nodes that it is for, if its kind selects them.
    pub selection: Option<Selection>,
    /// The whole object, for pods.
    pub whole: Option<Object>,
}

/// What became of the object that an entry was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It exists, in this revision.
    Lives(u64),
    /// It is proven to be gone since this revision.
    Gone(u64),
    /// There is no trace of it: no proof of anything.
    Unknown,
}

struct Gone {
    revision: u64,
    uid: String,
}

/// All objects.
#[derive(Default)]
pub struct Objects {
    live: BTreeMap<ObjectKey, Known>,
    gone: BTreeMap<ObjectKey, Gone>,
    on: BTreeMap<NodeName, BTreeSet<ObjectKey>>,
    selecting: BTreeSet<ObjectKey>,
    /// The nodes and their labels.
    pub nodes: Nodes,
}

impl Objects {
    /// The object at a key.
    pub fn get(&self, key: &ObjectKey) -> Option<&Known> {
        self.live.get(key)
    }

    /// The pods on a node.
    pub fn pods_on(&self, node: &NodeName) -> impl Iterator<Item = (&ObjectKey, &Known)> {
        self.on.get(node).into_iter().flatten().filter_map(|key| Some((key, self.live.get(key)?)))
    }

    /// The nodes that are there or have pods.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.on.keys().chain(self.nodes.names())
    }

    /// What is for that node because it selects it.
    pub fn selecting(&self, node: &NodeName) -> impl Iterator<Item = (&ObjectKey, &Known)> {
        let known = self.selecting.iter().filter_map(|key| Some((key, self.live.get(key)?)));
        known.filter(move |(_, known)| self.nodes.selects(known.selection.as_ref(), node) == Some(true))
    }

    /// Is the object there, and not for that node?
    pub fn leaves_out(&self, key: &DesiredKey, node: &NodeName) -> bool {
        let known = self.live.get(&object_key(key)).filter(|known| known.uid == key.uid);
        known.is_some_and(|known| self.nodes.selects(known.selection.as_ref(), node) == Some(false))
    }

    fn nodes_selected(&self, selection: Option<&Selection>) -> BTreeSet<NodeName> {
        let selects = |node: &&NodeName| self.nodes.selects(selection, node) == Some(true);
        self.nodes.names().filter(selects).cloned().collect()
    }

    /// The nodes with a pod that references that object.
    pub fn nodes_referencing(&self, key: &ObjectKey) -> BTreeSet<NodeName> {
        let wanted = |pod: &Known| {
            pod.references.iter().any(|(plural, name)| *plural == key.resource.plural && *name == key.name)
        };
        self.live
            .iter()
            .filter(|(pod_key, pod)| pod_key.namespace == key.namespace && wanted(pod))
            .filter_map(|(_, pod)| pod.node.clone())
            .collect()
    }

    /// Takes an entry of the watch. Gives back the nodes that must be told something; `None` for an old entry.
    pub fn take(&mut self, key: &ObjectKey, entry: &Entry) -> Option<BTreeSet<NodeName>> {
        match &entry.value {
            EntryValue::Put(bytes) => match Object::from_bytes(bytes, entry.revision) {
                Ok(object) => self.put(key, object),
                Err(error) => {
                    // Neither there nor gone: its entries stay as they are.
                    tracing::warn!(key = entry.key, %error, "object cannot be read: its nodes keep what they have");
                    None
                }
            },
            EntryValue::Removed(last) => {
                let uid =
                    Object::from_bytes(last, 0).map(|object| object.uid().to_owned()).unwrap_or_default();
                self.remove(key, entry.revision, uid)
            }
        }
    }

    /// The object is there, in the revision it says.
    pub fn put(&mut self, key: &ObjectKey, object: Object) -> Option<BTreeSet<NodeName>> {
        if object.revision() <= self.seen(key) {
            return None;
        }
        self.gone.remove(key);
        let is_pod = key.resource.plural == "pods";
        let node_name = object.text(&["spec", "nodeName"]);
        let node = if is_pod && !node_name.is_empty() {
            NodeName::new(node_name)
                .inspect_err(|error| tracing::warn!(pod = %key.name, %error, "spec.nodeName names no node"))
                .ok()
        } else {
            None
        };
        let known = Known {
            revision: object.revision(),
            uid: object.uid().to_owned(),
            relevant: relevant::relevant(&object),
            node: node.clone(),
            references: if is_pod { relevant::references(&object) } else { BTreeSet::new() },
            selection: Selection::of(&key.resource.plural, &object),
            whole: is_pod.then_some(object),
        };
        let is_selected = is_selected(&key.resource.plural);
        if is_selected {
            self.selecting.insert(key.clone());
        }
        if let Some(node) = &node {
            self.on.entry(node.clone()).or_default().insert(key.clone());
        }
        let before = self.live.insert(key.clone(), known);
        let unchanged = |known: &Known| {
            before.as_ref().is_some_and(|before| {
                before.uid == known.uid && before.node == known.node && before.relevant == known.relevant
            })
        };
        if self.live.get(key).is_some_and(unchanged) {
            return Some(BTreeSet::new());
        }
        if is_selected {
            let mut nodes = self.nodes_selected(self.get(key).and_then(|known| known.selection.as_ref()));
            nodes.extend(self.nodes_selected(before.and_then(|before| before.selection).as_ref()));
            return Some(nodes);
        }
        let left = before.and_then(|before| before.node).filter(|left| Some(left) != node.as_ref());
        if let Some(left) = &left {
            self.leave(left, key);
        }
        Some(if is_pod { left.into_iter().chain(node).collect() } else { self.nodes_referencing(key) })
    }

    /// The object is gone since `revision`.
    pub fn remove(&mut self, key: &ObjectKey, revision: u64, uid: String) -> Option<BTreeSet<NodeName>> {
        if revision <= self.seen(key) {
            return None;
        }
        let before = self.live.remove(key);
        self.selecting.remove(key);
        self.gone.insert(key.clone(), Gone { revision, uid });
        if self.gone.len() > GONE_MAX {
            let oldest = self.gone.iter().min_by_key(|(_, gone)| gone.revision).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.gone.remove(&oldest);
            }
        }
        let mut nodes = self.nodes_referencing(key);
        if let Some(node) = before.and_then(|before| before.node) {
            self.leave(&node, key);
            nodes.insert(node);
        }
        Some(nodes)
    }

    fn leave(&mut self, node: &NodeName, key: &ObjectKey) {
        if let Some(pods) = self.on.get_mut(node) {
            pods.remove(key);
            if pods.is_empty() {
                self.on.remove(node);
            }
        }
    }

    fn seen(&self, key: &ObjectKey) -> u64 {
        let live = self.live.get(key).map_or(0, |known| known.revision);
        live.max(self.gone.get(key).map_or(0, |gone| gone.revision))
    }

    /// What became of the object with that UID, of which an entry was made in revision `made_from`. A store that was
    /// restored from before then proves nothing.
    pub fn fate(&self, key: &DesiredKey, made_from: u64) -> Fate {
        let uid = &key.uid;
        let key = object_key(key);
        match (self.live.get(&key), self.gone.get(&key)) {
            (Some(known), _) if known.uid == *uid => Fate::Lives(known.revision),
            (Some(known), _) if known.revision > made_from => Fate::Gone(known.revision),
            (None, Some(gone)) if gone.uid == *uid || gone.revision > made_from => Fate::Gone(gone.revision),
            _ => Fate::Unknown,
        }
    }
}

/// The object that an entry is of.
pub fn object_key(key: &DesiredKey) -> ObjectKey {
    ObjectKey {
        resource: subject::told(&key.plural),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    }
}
