//! What the nodes are told: the entries of bucket `desired` as the watch shows them, and which of them must change.

use std::collections::{BTreeMap, BTreeSet};

use schemas::desired::{Content, Desired, Lineage};
use schemas::name::NodeName;
use schemas::object::Object;
use schemas::subject::{DesiredKey, ObjectKey};

use crate::known::{Fate, Objects};
use crate::relevant;
use crate::selected::is_selected;

/// One entry of the bucket.
pub struct Held {
    /// Its revision in the bucket.
    pub revision: u64,
    /// What it says; `None` when somebody removed it.
    pub desired: Option<Desired>,
}

/// All entries.
#[derive(Default)]
pub struct Entries {
    by_node: BTreeMap<NodeName, BTreeMap<DesiredKey, Held>>,
    lineage: Option<Lineage>,
    lineage_revision: u64,
    highest: u64,
}

/// An entry that must be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Which.
    pub key: DesiredKey,
    /// The revision it has; 0 for none.
    pub revision: u64,
    /// What it shall say.
    pub desired: Desired,
}

/// What [`Entries::changes`] found.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// To write.
    pub changes: Vec<Change>,
    /// Entries that contradict the objects without a proof of which is right; they stay.
    pub orphans: BTreeSet<DesiredKey>,
}

impl Entries {
    /// Takes an entry; `false` for an old one.
    pub fn take(
        &mut self,
        node: &NodeName,
        key: DesiredKey,
        revision: u64,
        desired: Option<Desired>,
    ) -> bool {
        let entries = self.by_node.entry(node.clone()).or_default();
        if entries.get(&key).is_some_and(|held| held.revision >= revision) {
            return false;
        }
        entries.insert(key, Held { revision, desired });
        self.highest = self.highest.max(revision);
        true
    }

    /// Takes the lineage; `false` for an old one.
    pub fn take_lineage(&mut self, revision: u64, lineage: Option<Lineage>) -> bool {
        if revision <= self.lineage_revision {
            return false;
        }
        self.lineage = lineage;
        self.lineage_revision = revision;
        self.highest = self.highest.max(revision);
        true
    }

    /// The history of the bucket; `None` before it was told, or while no hub has begun an epoch.
    pub fn lineage(&self) -> Option<&Lineage> {
        self.lineage.as_ref().filter(|lineage| lineage.current().is_some())
    }

    /// The highest revision seen in the bucket.
    pub fn highest(&self) -> u64 {
        self.highest
    }

    /// Has nothing that a list of this node shows changed after `revision`?
    pub fn is_unchanged_since(&self, node: &NodeName, revision: u64) -> bool {
        revision <= self.highest
            && self.lineage_revision <= revision
            && self.of(node).all(|(_, held)| held.revision <= revision)
    }

    /// A node's entries, in key order.
    pub fn of(&self, node: &NodeName) -> impl Iterator<Item = (&DesiredKey, &Held)> {
        self.by_node.get(node).into_iter().flatten()
    }

    /// One of a node's entries.
    pub fn get(&self, node: &NodeName, key: &DesiredKey) -> Option<&Held> {
        self.by_node.get(node)?.get(key)
    }

    /// The nodes that have entries.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.by_node.keys()
    }

    /// The nodes that have an entry of the object, in whatever version.
    pub fn holding(&self, object: &ObjectKey) -> impl Iterator<Item = &NodeName> {
        let first = desired_key(object, "");
        let same = |one: &DesiredKey, other: &DesiredKey| {
            (&one.plural, &one.namespace, &one.name) == (&other.plural, &other.namespace, &other.name)
        };
        let holds = move |held: &BTreeMap<DesiredKey, Held>| {
            held.range(first.clone()..).next().is_some_and(|(key, _)| same(key, &first))
        };
        self.by_node.iter().filter(move |(_, held)| holds(held)).map(|(node, _)| node)
    }

    /// What must be written so that the node's entries say what the objects say.
    pub fn changes(&self, node: &NodeName, objects: &Objects) -> Changes {
        let mut found = Changes::default();
        let Some(lineage) = self.lineage() else { return found };
        let generation = lineage.generation.as_str();
        let mut wanted: BTreeMap<DesiredKey, (&Object, u64)> = BTreeMap::new();
        let mut references: BTreeSet<ObjectKey> = BTreeSet::new();
        let refer =
            |references: &mut BTreeSet<ObjectKey>, namespace: &str, of: &BTreeSet<relevant::Reference>| {
                references.extend(of.iter().map(|(plural, name)| ObjectKey::core(plural, namespace, name)));
            };
        for (key, pod) in objects.pods_on(node).filter(|(_, pod)| !pod.uid.is_empty()) {
            wanted.insert(desired_key(key, &pod.uid), (&pod.relevant, pod.revision));
            refer(&mut references, &key.namespace, &pod.references);
        }
        // Pods that the node was told to have, and that are not among the objects (any more).
        for (key, desired, object, revision) in self.objects_of(node).filter(|(key, ..)| key.plural == "pods")
        {
            if wanted.contains_key(key) {
                continue;
            }
            match objects.fate(key, desired.resource_version) {
                Fate::Gone(at) => found.tombstone(key, revision, lineage, at.max(desired.resource_version)),
                Fate::Lives(at) if at > desired.resource_version => {
                    found.tombstone(key, revision, lineage, at);
                }
                Fate::Lives(_) | Fate::Unknown => {
                    found.orphans.insert(key.clone());
                    refer(&mut references, &key.namespace, &relevant::references(object));
                }
            }
        }
        for key in &references {
            if let Some(known) = objects.get(key) {
                wanted.insert(desired_key(key, &known.uid), (&known.relevant, known.revision));
            }
        }
        let is_referenced = |key: &DesiredKey| key.plural != "pods" && !is_selected(&key.plural);
        for (key, desired, _, revision) in self.objects_of(node).filter(|(key, ..)| is_referenced(key)) {
            if wanted.contains_key(key) {
                continue;
            }
            let referenced = references.contains(&ObjectKey::core(&key.plural, &key.namespace, &key.name));
            match objects.fate(key, desired.resource_version) {
                Fate::Unknown if referenced => drop(found.orphans.insert(key.clone())),
                Fate::Gone(at) | Fate::Lives(at) => {
                    found.tombstone(key, revision, lineage, at.max(desired.resource_version));
                }
                Fate::Unknown => found.tombstone(key, revision, lineage, desired.resource_version),
            }
        }
        for (key, known) in objects.selecting(node).filter(|(_, known)| !known.uid.is_empty()) {
            wanted.insert(desired_key(key, &known.uid), (&known.relevant, known.revision));
        }
        for (key, desired, _, revision) in self.objects_of(node).filter(|(key, ..)| is_selected(&key.plural))
        {
            if wanted.contains_key(key) {
                continue;
            }
            match objects.fate(key, desired.resource_version) {
                Fate::Gone(at) => {
                    found.tombstone(key, revision, lineage, at.max(desired.resource_version));
                }
                Fate::Lives(at) if at >= desired.resource_version => {
                    // Of a node that is not there nobody knows.
                    if objects.leaves_out(key, node) {
                        found.tombstone(key, revision, lineage, at);
                    }
                }
                Fate::Lives(_) | Fate::Unknown => drop(found.orphans.insert(key.clone())),
            }
        }
        for (key, (object, resource_version)) in wanted {
            let held = self.get(node, &key);
            let desired = held.and_then(|held| held.desired.as_ref());
            let write = match desired.map(|desired| (desired, &desired.content)) {
                None => true,
                // The UID was gone for good. A pod in an older version is one that a restored store brought back; a
                // ConfigMap may just be referenced again.
                Some((desired, Content::Tombstone)) => {
                    let back = if key.plural == "pods" {
                        resource_version > desired.resource_version
                    } else {
                        resource_version >= desired.resource_version
                    };
                    if !back {
                        found.orphans.insert(key.clone());
                    }
                    back
                }
                Some((desired, Content::Object(told))) => {
                    let older =
                        resource_version < desired.resource_version && desired.generation == generation;
                    if older && told != object {
                        found.orphans.insert(key.clone());
                    }
                    !older && (told != object || desired.generation != generation)
                }
            };
            if write {
                found.changes.push(Change {
                    revision: held.map_or(0, |held| held.revision),
                    desired: stamped(lineage, resource_version, Content::Object(object.clone())),
                    key,
                });
            }
        }
        found
    }

    /// The entries of a node that say: have this object.
    fn objects_of(&self, node: &NodeName) -> impl Iterator<Item = (&DesiredKey, &Desired, &Object, u64)> {
        self.of(node).filter_map(|(key, held)| match &held.desired {
            Some(desired) => match &desired.content {
                Content::Object(object) => Some((key, desired, object, held.revision)),
                Content::Tombstone => None,
            },
            None => None,
        })
    }
}

impl Changes {
    fn tombstone(&mut self, key: &DesiredKey, revision: u64, lineage: &Lineage, resource_version: u64) {
        self.changes.push(Change {
            key: key.clone(),
            revision,
            desired: stamped(lineage, resource_version, Content::Tombstone),
        });
    }
}

/// What is written now, by this hub.
pub fn stamped(lineage: &Lineage, resource_version: u64, content: Content) -> Desired {
    Desired {
        generation: lineage.generation.clone(),
        epoch: lineage.current().map(|epoch| epoch.id.clone()).unwrap_or_default(),
        resource_version,
        content,
    }
}

fn desired_key(key: &ObjectKey, uid: &str) -> DesiredKey {
    DesiredKey {
        plural: key.resource.plural.clone(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        uid: uid.to_owned(),
    }
}
