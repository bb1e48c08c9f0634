//! The module's state and its one function: what happened, and what shall be written for it.
//!
//! Nothing is decided before every watch is current and the lineage is known. One write per entry and per pod is under
//! way at a time as far as we know; what a write expects to find is always the revision that the decision was made on.

use std::collections::{BTreeMap, BTreeSet};

use bus::module::{Delivery, Effect, Entry, EntryValue, Expect, Input, Message, Module, Never, WriteError};
use schemas::Timestamp;
use schemas::command::{Refusal, Reply};
use schemas::desired::{Content, Desired, Release};
use schemas::name::NodeName;
use schemas::object::Object;
use schemas::report::PodReport;
use schemas::subject::{
    self, BUCKET_DESIRED, BUCKET_OBJECTS, DesiredKey, KEY_LINEAGE, Lane, ObjectKey, Resource,
};

use crate::entries::{Change, Entries, stamped};
use crate::known::{Fate, Objects, object_key};
use crate::selected::is_selected;
use crate::status::Arrived;
use crate::{DESIRED_FILTER, NAME, NODES, RELEASE, answer, objects_filter, status};

/// Writes of entries that are under way at once; the rest waits its turn.
pub const ENTRY_WRITES_MAX: usize = 512;
/// A write that was not answered for so long is taken as failed.
pub const WRITE_TIMEOUT_MS: u64 = 10_000;
/// The revision of no object: a write that expects it fails, and the delivery that caused it comes again.
const NEVER: u64 = i64::MAX as u64;

/// The module.
#[derive(Default)]
pub struct Placement {
    current: BTreeSet<(String, String)>,
    objects: Objects,
    entries: Entries,
    writing: BTreeMap<u64, Write>,
    /// Entries being written.
    busy: BTreeSet<(NodeName, DesiredKey)>,
    /// To decide again when there is room, or at the next tick.
    later: BTreeSet<NodeName>,
    later_pods: BTreeSet<ObjectKey>,
    /// The newest report of a pod that lost against another writer.
    latest: BTreeMap<ObjectKey, Arrived>,
    orphans: BTreeMap<NodeName, BTreeSet<DesiredKey>>,
    unknown_reports: u64,
    tokens_made: u64,
}

struct Write {
    what: What,
    at: Timestamp,
}

enum What {
    Entry { node: NodeName, change: Change },
    Status { key: ObjectKey, object: Object, report: Arrived },
    Remove { key: ObjectKey, object: Object },
}

type Effects = Vec<Effect<Never>>;

impl Placement {
    /// Nothing about it is random or configured.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reports about pods that the hub knows nothing of. After a hub came back smaller they say what is missing.
    pub fn unknown_reports(&self) -> u64 {
        self.unknown_reports
    }

    /// Entries that stay although their object is missing or older than they are.
    pub fn orphans(&self) -> impl Iterator<Item = (&NodeName, &DesiredKey)> {
        self.orphans.iter().flat_map(|(node, keys)| keys.iter().map(move |key| (node, key)))
    }

    fn is_ready(&self) -> bool {
        let current = |bucket: &str, filter: String| self.current.contains(&(bucket.to_owned(), filter));
        subject::TOLD.iter().all(|(_, plural)| current(BUCKET_OBJECTS, objects_filter(plural)))
            && current(BUCKET_OBJECTS, NODES.to_owned())
            && current(BUCKET_DESIRED, DESIRED_FILTER.to_owned())
            && current(BUCKET_DESIRED, KEY_LINEAGE.to_owned())
            && self.entries.lineage().is_some()
    }

    fn entry(&mut self, entry: &Entry, now: Timestamp) -> Effects {
        match entry.bucket.as_str() {
            BUCKET_OBJECTS => self.object_entry(entry, now),
            BUCKET_DESIRED if entry.key == KEY_LINEAGE => {
                let lineage = match &entry.value {
                    EntryValue::Put(bytes) => schemas::decode(bytes)
                        .inspect_err(
                            |error| tracing::error!(%error, "the lineage of bucket desired cannot be read"),
                        )
                        .ok(),
                    EntryValue::Removed(_) => None,
                };
                if self.entries.take_lineage(entry.revision, lineage) {
                    self.everything(now)
                } else {
                    Vec::new()
                }
            }
            BUCKET_DESIRED => self.desired_entry(entry, now),
            _ => Vec::new(),
        }
    }

    fn object_entry(&mut self, entry: &Entry, now: Timestamp) -> Effects {
        let Some(key) = ObjectKey::parse(&entry.key) else { return Vec::new() };
        if key.resource == Resource::core("nodes") {
            let node = self.objects.nodes.take(&key.name, entry);
            return node.map(|node| self.reconcile(&node, now)).unwrap_or_default();
        }
        if !subject::TOLD.contains(&(key.resource.group.as_str(), key.resource.plural.as_str())) {
            return Vec::new();
        }
        let Some(mut nodes) = self.objects.take(&key, entry) else { return Vec::new() };
        if is_selected(&key.resource.plural) {
            nodes.extend(self.entries.holding(&key).cloned());
        }
        self.later_pods.remove(&key);
        let mut effects = self.pod(&key, now);
        effects.extend(nodes.into_iter().flat_map(|node| self.reconcile(&node, now)));
        effects
    }

    fn desired_entry(&mut self, entry: &Entry, now: Timestamp) -> Effects {
        let Some((node, key)) = DesiredKey::parse_desired(&entry.key) else { return Vec::new() };
        let desired = match &entry.value {
            EntryValue::Put(bytes) => schemas::decode::<Desired>(bytes)
                .inspect_err(|error| {
                    tracing::warn!(key = entry.key, %error, "entry cannot be read: it is written again");
                })
                .ok(),
            EntryValue::Removed(_) => None,
        };
        if !self.entries.take(&node, key, entry.revision, desired) {
            return Vec::new();
        }
        self.reconcile(&node, now)
    }

    /// Writes what the node's entries lack.
    fn reconcile(&mut self, node: &NodeName, now: Timestamp) -> Effects {
        if !self.is_ready() {
            return Vec::new();
        }
        self.later.remove(node);
        let found = self.entries.changes(node, &self.objects);
        if self.orphans.get(node).map_or(!found.orphans.is_empty(), |before| *before != found.orphans) {
            for key in &found.orphans {
                tracing::warn!(
                    %node, plural = key.plural, namespace = key.namespace, name = key.name, uid = key.uid,
                    "the node has an object that the hub's store does not have (any more): it is left running; \
                     restore the store, or force its removal"
                );
            }
        }
        if found.orphans.is_empty() {
            self.orphans.remove(node);
        } else {
            self.orphans.insert(node.clone(), found.orphans);
        }
        let mut effects = Vec::new();
        for change in found.changes {
            if self.busy.contains(&(node.clone(), change.key.clone())) {
                continue;
            }
            if self.busy.len() >= ENTRY_WRITES_MAX {
                self.later.insert(node.clone());
                break;
            }
            effects.push(self.put_entry(node, change, now));
        }
        effects
    }

    fn put_entry(&mut self, node: &NodeName, change: Change, now: Timestamp) -> Effect<Never> {
        let expect = match change.revision {
            0 => Expect::Absent,
            revision => Expect::Revision(revision),
        };
        let key = change.key.desired_key(node);
        let value = schemas::encode(&change.desired);
        self.busy.insert((node.clone(), change.key.clone()));
        let token = self.write(What::Entry { node: node.clone(), change }, now);
        Effect::put(BUCKET_DESIRED, key, value, expect, token)
    }

    fn write(&mut self, what: What, at: Timestamp) -> u64 {
        self.tokens_made += 1;
        self.writing.insert(self.tokens_made, Write { what, at });
        self.tokens_made
    }

    /// Decides again about every node.
    fn everything(&mut self, now: Timestamp) -> Effects {
        let nodes: BTreeSet<NodeName> = self.objects.nodes().chain(self.entries.nodes()).cloned().collect();
        let pods: Vec<ObjectKey> =
            nodes.iter().flat_map(|node| self.objects.pods_on(node)).map(|(key, _)| key.clone()).collect();
        let mut effects: Effects = pods.iter().flat_map(|key| self.pod(key, now)).collect();
        effects.extend(nodes.iter().flat_map(|node| self.reconcile(node, now)));
        effects
    }

    fn report(&mut self, delivery: &Delivery, now: Timestamp) -> Effects {
        let dead = |reason: String| {
            vec![Effect::Dead {
                subject: delivery.subject.clone(),
                payload: delivery.payload.clone(),
                reason,
            }]
        };
        let report: PodReport = match schemas::decode(&delivery.payload) {
            Ok(report) => report,
            Err(error) => return dead(error.to_string()),
        };
        let Some((node, Lane::State, original)) = subject::lowered(&delivery.subject) else {
            return dead("the subject is not one of a node's reports".to_owned());
        };
        let parts = [report.namespace.as_str(), &report.name, &report.uid];
        if report.node != node.as_str() || original != subject::report("containers", "pod", &parts) {
            return dead("the report is of another node or pod than its subject says".to_owned());
        }
        if !report.status.is_object() {
            return dead("status is not an object".to_owned());
        }
        let key = ObjectKey::core("pods", &report.namespace, &report.name);
        if !self.is_ready() {
            // Nobody knows yet whether the pod exists: not acknowledged, so it comes again.
            return vec![Effect::put(BUCKET_OBJECTS, key.key(), Vec::new(), Expect::Revision(NEVER), 0)];
        }
        match self.objects.get(&key).filter(|known| known.uid == report.uid) {
            Some(known) if known.node.as_ref() == Some(&node) => {
                self.pod_reported(&key, Arrived { report, arrival: delivery.sequence }, now)
            }
            Some(known) if known.node.is_some() => dead(format!("the pod is not on node {node}")),
            _ => self.unknown_reported(&node, &report, now),
        }
    }

    fn pod_reported(&mut self, key: &ObjectKey, report: Arrived, now: Timestamp) -> Effects {
        let pod = self.objects.get(key).and_then(|known| known.whole.as_ref());
        match pod.and_then(|pod| status::merge(pod, &report)) {
            Some(merged) => vec![self.put_pod(key, merged, report, now)],
            // Said before; but the object may still be there.
            None => self.pod(key, now),
        }
    }

    fn put_pod(&mut self, key: &ObjectKey, pod: Object, report: Arrived, now: Timestamp) -> Effect<Never> {
        let expect = Expect::Revision(pod.revision());
        let value = pod.to_bytes();
        if status::may_go(&pod) {
            return self.remove_pod(key, pod, now);
        }
        let token = self.write(What::Status { key: key.clone(), object: pod, report }, now);
        Effect::put(BUCKET_OBJECTS, key.key(), value, expect, token)
    }

    fn remove_pod(&mut self, key: &ObjectKey, pod: Object, now: Timestamp) -> Effect<Never> {
        let expect = Expect::Revision(pod.revision());
        let value = pod.to_bytes();
        let token = self.write(What::Remove { key: key.clone(), object: pod }, now);
        Effect::Remove { bucket: BUCKET_OBJECTS.to_owned(), key: key.key(), value, expect, token }
    }

    /// The node has (or had) a pod of a UID that is not the object's. Nothing is merged and nothing removed there: a hub
    /// that came back smaller must not stop what it forgot.
    fn unknown_reported(&mut self, node: &NodeName, report: &PodReport, now: Timestamp) -> Effects {
        let key = DesiredKey {
            plural: "pods".to_owned(),
            namespace: report.namespace.clone(),
            name: report.name.clone(),
            uid: report.uid.clone(),
        };
        let held = self.entries.get(node, &key);
        let told = held.and_then(|held| Some((held.revision, held.desired.as_ref()?)));
        let made_from = told.map_or(0, |(_, desired)| desired.resource_version);
        let fate = self.objects.fate(&key, made_from);
        let known_gone = matches!(fate, Fate::Gone(_))
            || told.is_some_and(|(_, desired)| desired.content == Content::Tombstone);
        if !known_gone {
            self.unknown_reports += 1;
            tracing::warn!(
                %node, namespace = key.namespace, name = key.name, uid = key.uid,
                "the node reports a pod that the hub's store does not have: left running, its status is not kept"
            );
        }
        // The node itself says that it is gone: proof enough for the entry.
        match (told, self.entries.lineage()) {
            (Some((revision, desired)), Some(lineage))
                if report.stopped && fate == Fate::Unknown && desired.content != Content::Tombstone =>
            {
                let desired = stamped(lineage, made_from, Content::Tombstone);
                vec![self.put_entry(node, Change { key, revision, desired }, now)]
            }
            _ => Vec::new(),
        }
    }

    /// Decides about one pod again: a newer report that waits, or its removal.
    fn pod(&mut self, key: &ObjectKey, now: Timestamp) -> Effects {
        let busy = self.writing.values().any(|write| match &write.what {
            What::Status { key: other, .. } | What::Remove { key: other, .. } => other == key,
            What::Entry { .. } => false,
        });
        if busy || !self.is_ready() || self.later_pods.contains(key) {
            return Vec::new();
        }
        let latest = self.latest.remove(key);
        let Some(pod) = self.objects.get(key).and_then(|known| known.whole.as_ref()) else {
            return Vec::new();
        };
        if let Some((merged, report)) = latest.and_then(|report| Some((status::merge(pod, &report)?, report)))
        {
            return vec![self.put_pod(key, merged, report, now)];
        }
        if status::may_go(pod) {
            let pod = pod.clone();
            return vec![self.remove_pod(key, pod, now)];
        }
        Vec::new()
    }

    fn wrote(&mut self, token: u64, outcome: Result<u64, WriteError>, now: Timestamp) -> Effects {
        let Some(Write { what, .. }) = self.writing.remove(&token) else { return Vec::new() };
        match what {
            What::Entry { node, change } => {
                self.busy.remove(&(node.clone(), change.key.clone()));
                match outcome {
                    Ok(revision) => {
                        self.entries.take(&node, change.key, revision, Some(change.desired));
                        let mut effects = self.reconcile(&node, now);
                        if self.busy.len() < ENTRY_WRITES_MAX / 2 {
                            effects.extend(self.owed(now));
                        }
                        effects
                    }
                    Err(WriteError::Conflict)
                        if self.entries.get(&node, &change.key).map_or(0, |held| held.revision)
                            > change.revision =>
                    {
                        self.reconcile(&node, now)
                    }
                    Err(_) => {
                        self.later.insert(node);
                        Vec::new()
                    }
                }
            }
            What::Status { key, mut object, report } => {
                let nodes = match outcome {
                    Ok(revision) => {
                        object.set(&["metadata", "resourceVersion"], revision.to_string());
                        self.objects.put(&key, object).unwrap_or_default()
                    }
                    Err(error) => {
                        self.keep_latest(&key, report);
                        self.lost(&key, object.revision(), &error);
                        BTreeSet::new()
                    }
                };
                let mut effects = self.pod(&key, now);
                effects.extend(nodes.iter().flat_map(|node| self.reconcile(node, now)));
                effects
            }
            What::Remove { key, object } => match outcome {
                Ok(revision) => {
                    let nodes = self.objects.remove(&key, revision, object.uid().to_owned());
                    let nodes = nodes.unwrap_or_default();
                    nodes.iter().flat_map(|node| self.reconcile(node, now)).collect()
                }
                Err(error) => {
                    self.lost(&key, object.revision(), &error);
                    self.pod(&key, now)
                }
            },
        }
    }

    /// A write about a pod failed. When the newer version was not seen yet, or the outcome is unknown, the pod waits.
    fn lost(&mut self, key: &ObjectKey, expected: u64, error: &WriteError) {
        let seen = self.objects.get(key).map_or(0, |known| known.revision);
        if *error != WriteError::Conflict || seen <= expected {
            self.later_pods.insert(key.clone());
        }
    }

    fn keep_latest(&mut self, key: &ObjectKey, report: Arrived) {
        let kept = self.latest.get(key);
        let newer = kept.is_none_or(|kept| kept.report.uid != report.report.uid || report.is_after(kept));
        if newer {
            self.latest.insert(key.clone(), report);
        }
    }

    /// What had to wait.
    fn owed(&mut self, now: Timestamp) -> Effects {
        let nodes = std::mem::take(&mut self.later);
        nodes.iter().flat_map(|node| self.reconcile(node, now)).collect()
    }

    fn tick(&mut self, now: Timestamp) -> Effects {
        let late: Vec<u64> = self
            .writing
            .iter()
            .filter(|(_, write)| now.since_ms(write.at) >= WRITE_TIMEOUT_MS)
            .map(|(token, _)| *token)
            .collect();
        let unanswered = || Err(WriteError::Failed("no outcome in time".to_owned()));
        let mut effects: Effects =
            late.into_iter().flat_map(|token| self.wrote(token, unanswered(), now)).collect();
        let pods = std::mem::take(&mut self.later_pods);
        effects.extend(pods.iter().flat_map(|key| self.pod(key, now)));
        effects.extend(self.owed(now));
        effects
    }

    /// A person decided about an object that a node has and the hub does not: the node is told that it is gone for good.
    fn release(&mut self, message: &Message, now: Timestamp) -> Effects {
        let asked = if self.is_ready() { Ok(()) } else { Err(answer::not_ready()) };
        let asked =
            asked.and_then(|()| schemas::decode::<Release>(&message.payload).map_err(answer::bad_request));
        let written: Reply<Option<Effect<Never>>> = asked.and_then(|Release { node, key }| {
            if self.objects.get(&object_key(&key)).is_some_and(|known| known.uid == key.uid) {
                return Err(answer::not_an_orphan(&key));
            }
            let held = self.entries.get(&node, &key);
            let revision = held.map_or(0, |held| held.revision);
            let gone = held.and_then(|held| held.desired.as_ref());
            let Some(lineage) =
                self.entries.lineage().filter(|_| gone.is_none_or(|gone| gone.content != Content::Tombstone))
            else {
                return Ok(None);
            };
            // Above any version that the node can have, also of another bucket.
            let desired = stamped(lineage, NEVER, Content::Tombstone);
            Ok(Some(self.put_entry(&node, Change { key, revision, desired }, now)))
        });
        let (reply, effect) = match written {
            Ok(effect) => (Ok(()), effect),
            Err(refusal) => (Err(refusal), None),
        };
        Effect::reply::<Reply<()>>(message, &reply).into_iter().chain(effect).collect()
    }

    fn message(&self, message: &Message) -> Option<Effect<Never>> {
        let (node, verb) = message.subject.strip_prefix("ew.req.")?.split_once('.')?;
        let node = NodeName::new(node).ok()?;
        let ready = if self.is_ready() { Ok(()) } else { Err(answer::not_ready()) };
        fn read<'a, T: serde::Deserialize<'a>>(payload: &'a [u8]) -> Result<T, Refusal> {
            schemas::decode(payload).map_err(answer::bad_request)
        }
        match verb {
            "desired.list" => {
                let page: Reply<_> = ready
                    .and_then(|()| read(&message.payload))
                    .and_then(|request| answer::list(&self.entries, &node, &request));
                Effect::reply(message, &page)
            }
            "desired.get" => {
                let page: Reply<_> = ready
                    .and_then(|()| read(&message.payload))
                    .and_then(|request| answer::get(&self.entries, &node, &request));
                Effect::reply(message, &page)
            }
            _ => None,
        }
    }
}

impl Module for Placement {
    type Act = Never;
    type Done = Never;

    fn apply(&mut self, input: Input<Never>, now: Timestamp) -> Effects {
        match input {
            Input::Entry(entry) => self.entry(&entry, now),
            Input::Current { bucket, filter } => {
                self.current.insert((bucket, filter));
                if self.is_ready() { self.everything(now) } else { Vec::new() }
            }
            Input::Message(message) if message.subject == subject::local(NAME, RELEASE) => {
                self.release(&message, now)
            }
            Input::Message(message) => self.message(&message).into_iter().collect(),
            Input::Delivery(delivery) => self.report(&delivery, now),
            Input::Wrote { token, outcome } => self.wrote(token, outcome, now),
            Input::Tick => self.tick(now),
            Input::Done(never) => match never {},
            Input::Answered { .. } => Vec::new(),
        }
    }
}
