//! Scheduler: gives each pod that has none a node.
//!
//! It watches pods and nodes and writes `spec.nodeName` with the condition `PodScheduled`. A pod that fits nowhere gets
//! the condition `Unschedulable` with the reason in Kubernetes' words, and an Event `FailedScheduling`. A pod that was
//! created with a node name is left on it; when no such node has joined, its condition says so.
//!
//! | in | what |
//! |---|---|
//! | bucket objects `=.pods.*.*` | pods, read and written |
//! | bucket objects `=.nodes.=.*` | nodes, read |
//! | bucket objects `=.events.*.*` | Events, written |
//!
//! * [`demand`] what a pod asks for; [`affinity`] where it wants to be and what it bears; [`fit`] which node it gets
//! * [`event`] what people are told

pub mod affinity;
pub mod demand;
pub mod event;
pub mod fit;

use std::collections::{BTreeMap, BTreeSet};

use bus::flow::Flow;
use bus::module::{Effect, Entry, EntryValue, Expect, Input, Module, Never, WriteError};
use schemas::Timestamp;
use schemas::object::Object;
use schemas::subject::{self, BUCKET_OBJECTS, ObjectKey, Resource};

use crate::demand::Amounts;
use crate::fit::{Node, Used};

/// A write that was not answered for so long is taken as failed.
pub const WRITE_TIMEOUT_MS: u64 = 10_000;
/// Removed keys whose revision is remembered, so that a late entry does not bring them back.
pub const GONE_MAX: usize = 10_000;
/// `spec.schedulerName` of the pods that are ours.
pub const SCHEDULER_NAME: &str = "default-scheduler";

/// What the module reads and writes.
pub fn flows() -> Vec<Flow> {
    vec![
        Flow::watch(BUCKET_OBJECTS, pods_filter(), "Pod"),
        Flow::watch(BUCKET_OBJECTS, nodes_filter(), "Node"),
        Flow::write(BUCKET_OBJECTS, pods_filter(), "Pod"),
        Flow::write(BUCKET_OBJECTS, subject::objects_filter(&Resource::core("events"), None), "Event"),
    ]
}

fn pods_filter() -> String {
    subject::objects_filter(&Resource::core("pods"), None)
}

fn nodes_filter() -> String {
    subject::objects_filter(&Resource::core("nodes"), Some(""))
}

/// The module's state.
pub struct Scheduler {
    seed: String,
    current: BTreeSet<String>,
    pods: BTreeMap<String, Pod>,
    nodes: BTreeMap<String, Node>,
    gone: BTreeMap<String, u64>,
    /// Writes without a known outcome. The node of a pod being bound counts as used.
    writing: BTreeMap<u64, Writing>,
    /// Somebody else wrote first: look again when a newer entry or the next tick comes.
    waiting: BTreeSet<String>,
    made: u64,
}

/// What is kept of a pod; the whole of it only while there is something to write.
struct Pod {
    revision: u64,
    node: String,
    demand: Amounts,
    open: Option<Object>,
}

struct Writing {
    key: String,
    object: Object,
    at: Timestamp,
    /// It failed, and may have been written all the same: counted until the next tick.
    failed: bool,
}

impl Scheduler {
    /// `seed` is random: the UIDs of new Events are made from it.
    pub fn new(seed: impl Into<String>) -> Self {
        Self {
            seed: seed.into(),
            current: BTreeSet::new(),
            pods: BTreeMap::new(),
            nodes: BTreeMap::new(),
            gone: BTreeMap::new(),
            writing: BTreeMap::new(),
            waiting: BTreeSet::new(),
            made: 0,
        }
    }

    fn is_current(&self) -> bool {
        [pods_filter(), nodes_filter()].iter().all(|filter| self.current.contains(filter))
    }

    fn entry(&mut self, entry: Entry, now: Timestamp) -> Vec<Effect<Never>> {
        let Some(key) = ObjectKey::parse(&entry.key).filter(|_| entry.bucket == BUCKET_OBJECTS) else {
            return Vec::new();
        };
        let seen = match key.resource.plural.as_str() {
            "pods" => self.pods.get(&entry.key).map(|pod| pod.revision),
            "nodes" => self.nodes.get(&key.name).map(|node| node.revision),
            _ => return Vec::new(),
        };
        if entry.revision <= seen.max(self.gone.get(&entry.key).copied()).unwrap_or(0) {
            return Vec::new();
        }
        let object = match &entry.value {
            EntryValue::Put(bytes) => match Object::from_bytes(bytes, entry.revision) {
                Ok(object) => Some(object),
                Err(error) => {
                    tracing::warn!(key = entry.key, %error, "object cannot be read: it is taken as not there");
                    None
                }
            },
            EntryValue::Removed(_) => None,
        };
        if object.is_none() {
            self.forget(&entry.key, entry.revision);
        }
        if key.resource.plural == "nodes" {
            match object {
                Some(object) => self.nodes.insert(key.name, Node::read(&object)),
                None => self.nodes.remove(&key.name),
            };
            return self.schedule(None, now);
        }
        self.waiting.remove(&entry.key);
        self.writing.retain(|_, writing| !(writing.failed && writing.key == entry.key));
        let before = match object {
            Some(object) => self.take(&entry.key, object),
            None => self.pods.remove(&entry.key),
        };
        let holds = |pod: Option<&Pod>| pod.is_some_and(|pod| !pod.node.is_empty());
        let freed = holds(before.as_ref()) && !holds(self.pods.get(&entry.key));
        self.schedule(if freed { None } else { Some(&entry.key) }, now)
    }

    /// Keeps what matters of a pod; gives back what was known before.
    fn take(&mut self, key: &str, object: Object) -> Option<Pod> {
        self.gone.remove(key);
        let phase = object.text(&["status", "phase"]);
        let ended = phase == "Succeeded" || phase == "Failed";
        let node = if ended { "" } else { object.text(&["spec", "nodeName"]) }.to_owned();
        let scheduler = object.text(&["spec", "schedulerName"]);
        let gated = object.get(&["spec", "schedulingGates"]).and_then(|gates| gates.as_array());
        let ours = (scheduler.is_empty() || scheduler == SCHEDULER_NAME)
            && gated.is_none_or(Vec::is_empty)
            && (node.is_empty()
                || ((phase.is_empty() || phase == "Pending")
                    && object.condition("PodScheduled") != Some("True")));
        let demand = if ended { Amounts::new() } else { demand::of_pod(&object) };
        let open = ours && !ended && !object.is_deleting();
        let revision = object.revision();
        self.pods.insert(key.to_owned(), Pod { revision, node, demand, open: open.then_some(object) })
    }

    fn forget(&mut self, key: &str, revision: u64) {
        self.gone.insert(key.to_owned(), revision);
        if self.gone.len() > GONE_MAX {
            let oldest = self.gone.iter().min_by_key(|(_, revision)| **revision).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.gone.remove(&oldest);
            }
        }
    }

    /// Decides about one open pod, or about all of them.
    fn schedule(&mut self, only: Option<&str>, now: Timestamp) -> Vec<Effect<Never>> {
        if !self.is_current() {
            return Vec::new();
        }
        let busy: BTreeSet<&String> = self.writing.values().map(|writing| &writing.key).collect();
        let mut open: Vec<(i64, String, String)> = self
            .pods
            .iter()
            .filter(|(key, _)| only.is_none_or(|only| only == *key))
            .filter(|(key, _)| !busy.contains(key) && !self.waiting.contains(*key))
            .filter_map(|(key, pod)| {
                let object = pod.open.as_ref()?;
                let priority =
                    object.get(&["spec", "priority"]).and_then(serde_json::Value::as_i64).unwrap_or(0);
                let created = object.text(&["metadata", "creationTimestamp"]).to_owned();
                Some((-priority, created, key.clone()))
            })
            .collect();
        if open.is_empty() {
            return Vec::new();
        }
        open.sort();
        let mut used = self.used();
        let mut effects = Vec::new();
        for (_, _, key) in open {
            let Some(pod) = self.pods.get(&key) else { continue };
            let Some(mut object) = pod.open.clone() else { continue };
            let told = if pod.node.is_empty() {
                match fit::place(&object, &pod.demand, &self.nodes, &used) {
                    Ok(node) => {
                        used.entry(node.clone()).or_default().add(&pod.demand);
                        object.set(&["spec", "nodeName"], node);
                        object.set_condition("PodScheduled", "True", "", "", now);
                        None
                    }
                    Err(why) => {
                        if !object.set_condition("PodScheduled", "False", "Unschedulable", &why, now) {
                            continue;
                        }
                        Some(why)
                    }
                }
            } else if self.nodes.contains_key(&pod.node) {
                object.set_condition("PodScheduled", "True", "", "", now);
                None
            } else {
                let why = format!(
                    "node {:?} not found: no node of that name has joined; correct spec.nodeName or join it",
                    pod.node
                );
                if !object.set_condition("PodScheduled", "False", "NodeNotFound", &why, now) {
                    continue;
                }
                Some(why)
            };
            if let Some(why) = told {
                effects.push(self.event(&object, "Warning", "FailedScheduling", &why, now));
            }
            effects.push(self.put(key, object, now));
        }
        effects
    }

    /// What the pods on each node ask for together, those being bound among them.
    fn used(&self) -> BTreeMap<String, Used> {
        let binding: BTreeMap<&String, &str> =
            self.writing.values().map(|w| (&w.key, w.object.text(&["spec", "nodeName"]))).collect();
        let mut used: BTreeMap<String, Used> = BTreeMap::new();
        for (key, pod) in &self.pods {
            let node = match (pod.node.as_str(), &pod.open) {
                ("", Some(_)) => binding.get(key).copied().unwrap_or(""),
                (node, _) => node,
            };
            if !node.is_empty() {
                used.entry(node.to_owned()).or_default().add(&pod.demand);
            }
        }
        used
    }

    fn put(&mut self, key: String, object: Object, now: Timestamp) -> Effect<Never> {
        self.made += 1;
        let expect = Expect::Revision(object.revision());
        let effect = Effect::put(BUCKET_OBJECTS, key.clone(), object.to_bytes(), expect, self.made);
        self.writing.insert(self.made, Writing { key, object, at: now, failed: false });
        effect
    }

    /// The same thing said of the same pod is one Event: the name is made from it, and a second one finds it there.
    fn event(
        &mut self,
        pod: &Object,
        severity: &str,
        reason: &str,
        message: &str,
        now: Timestamp,
    ) -> Effect<Never> {
        self.made += 1;
        let event =
            event::event(pod, severity, reason, message, &format!("{}\n{}", self.seed, self.made), now);
        let key = event.key(&Resource::core("events")).key();
        Effect::put(BUCKET_OBJECTS, key, event.to_bytes(), Expect::Absent, self.made)
    }

    fn wrote(&mut self, token: u64, outcome: Result<u64, WriteError>, now: Timestamp) -> Vec<Effect<Never>> {
        let Some(mut writing) = self.writing.remove(&token) else { return Vec::new() };
        match outcome {
            Ok(revision) => {
                let Writing { key, mut object, .. } = writing;
                let seen = self.pods.get(&key).map(|pod| pod.revision).max(self.gone.get(&key).copied());
                object.set(&["metadata", "resourceVersion"], revision.to_string());
                let node = object.text(&["spec", "nodeName"]).to_owned();
                let mut effects = Vec::new();
                if object.condition("PodScheduled") == Some("True") {
                    let said =
                        format!("Successfully assigned {}/{} to {node}", object.namespace(), object.name());
                    effects.push(self.event(&object, "Normal", "Scheduled", &said, now));
                }
                if revision > seen.unwrap_or(0) {
                    self.take(&key, object);
                }
                effects.extend(self.schedule(Some(&key), now));
                effects
            }
            Err(WriteError::Conflict) => {
                // The newer entry may have been seen already; then nothing else will wake us before the tick.
                let seen = self.pods.get(&writing.key).map_or(0, |pod| pod.revision);
                if seen > writing.object.revision() {
                    return self.schedule(Some(&writing.key), now);
                }
                self.waiting.insert(writing.key);
                Vec::new()
            }
            Err(WriteError::Failed(_)) => {
                writing.failed = true;
                self.writing.insert(token, writing);
                Vec::new()
            }
        }
    }

    fn tick(&mut self, now: Timestamp) -> Vec<Effect<Never>> {
        let before = self.writing.len() + self.waiting.len();
        self.waiting.clear();
        self.writing.retain(|_, w| !w.failed && now.since_ms(w.at) < WRITE_TIMEOUT_MS);
        // Decisions follow from the state alone: nothing was given up, nothing would be decided differently.
        if before == self.writing.len() { Vec::new() } else { self.schedule(None, now) }
    }
}

impl Module for Scheduler {
    type Act = Never;
    type Done = Never;

    fn apply(&mut self, input: Input<Never>, now: Timestamp) -> Vec<Effect<Never>> {
        match input {
            Input::Entry(entry) => self.entry(entry, now),
            Input::Current { bucket, filter } if bucket == BUCKET_OBJECTS => {
                self.current.insert(filter);
                self.schedule(None, now)
            }
            Input::Wrote { token, outcome } => self.wrote(token, outcome, now),
            Input::Tick => self.tick(now),
            Input::Done(never) => match never {},
            Input::Current { .. } | Input::Message(_) | Input::Delivery(_) | Input::Answered { .. } => {
                Vec::new()
            }
        }
    }
}
