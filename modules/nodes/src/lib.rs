//! Nodes: who is there, what it has, and whether it can be heard.
//!
//! A node's report (durable, up through UP) makes or updates its Node object; its heartbeat (live, answered) proves that
//! the link works both ways. Heartbeats stay in memory: only a change of the `Ready` condition is written. A node that
//! falls silent becomes `Unknown` and is tainted `NoSchedule`, never `NoExecute`: a partition kills no pod.
//!
//! | in | what |
//! |---|---|
//! | `ew.hb.*` | heartbeat, answered with [`HeartbeatAck`] |
//! | UP `ew.in.*.state.ew.rep.sync.node.>` | [`NodeReport`] |
//! | bucket objects `=.nodes.=.*` | the Node objects, read and written |
//!
//! | UP `ew.in.hub.events.ew.evt.nodes.*` | [`EventReport`]s of links that fell silent and came back |
//!
//! * [`beat`] which heartbeat is news; [`merge`] a report and an object become one; [`told`] what is told of a link

pub mod beat;
pub mod merge;
pub mod told;

use std::collections::{BTreeMap, BTreeSet};

use bus::flow::Flow;
use bus::module::{Delivery, Effect, Entry, EntryValue, Expect, Input, Message, Module, Never, WriteError};
use schemas::Timestamp;
use schemas::envelope;
use schemas::name::NodeName;
use schemas::object::Object;
use schemas::report::{EventReport, Heartbeat, HeartbeatAck, NodeReport};
use schemas::subject::{self, BUCKET_OBJECTS, DOMAIN_HUB, Lane, ObjectKey, Resource, STREAM_UP};
use sha2::{Digest, Sha256};

use crate::beat::Beat;

/// Nodes whose heartbeats are remembered at most. Above it, only nodes that have an object are.
pub const NODES_MAX: usize = 10_000;
/// A write that was not answered for so long is taken as failed.
pub const WRITE_TIMEOUT_MS: u64 = 10_000;
/// Removed names whose revision is remembered, so that a late entry does not bring them back.
pub const GONE_MAX: usize = 10_000;

/// What the module reads and writes.
pub fn flows() -> Vec<Flow> {
    vec![
        Flow::respond(HEARTBEATS, "Heartbeat -> HeartbeatAck"),
        Flow::consume(STREAM_UP, "nodes", subject::raised_reports("sync", "node"), "NodeReport"),
        Flow::watch(BUCKET_OBJECTS, filter(), "Node"),
        Flow::write(BUCKET_OBJECTS, filter(), "Node"),
        Flow::report(hub_event("*"), "EventReport"),
    ]
}

const HEARTBEATS: &str = "ew.hb.*";

/// The hub's own events stand where those of nodes arrive.
fn hub_event(reason: &str) -> String {
    subject::raised_at_hub("nodes", reason)
}

fn filter() -> String {
    subject::objects_filter(&Resource::core("nodes"), Some(""))
}

/// The module's state.
pub struct Nodes {
    hub_boot_id: String,
    seed: String,
    uids_made: u64,
    /// When the watch was current: no node is called silent before a full grace has passed since then.
    since: Option<Timestamp>,
    known: BTreeMap<String, Object>,
    gone: BTreeMap<String, u64>,
    beats: BTreeMap<String, Beat>,
    writing: BTreeMap<u64, Writing>,
    /// A write failed: decide again when a newer entry or the next tick comes, not at once.
    waiting: BTreeSet<String>,
    tokens_made: u64,
}

struct Writing {
    object: Object,
    at: Timestamp,
    /// What is told once it is written.
    told: Option<EventReport>,
}

impl Nodes {
    /// `hub_boot_id` changes with every start of the hub (nodes then list and repair); `seed` is random: the UIDs of
    /// new Node objects are made from it.
    pub fn new(hub_boot_id: impl Into<String>, seed: impl Into<String>) -> Self {
        Self {
            hub_boot_id: hub_boot_id.into(),
            seed: seed.into(),
            uids_made: 0,
            since: None,
            known: BTreeMap::new(),
            gone: BTreeMap::new(),
            beats: BTreeMap::new(),
            writing: BTreeMap::new(),
            waiting: BTreeSet::new(),
            tokens_made: 0,
        }
    }

    fn entry(&mut self, entry: Entry, now: Timestamp) -> Vec<Effect<Never>> {
        let Some(key) = ObjectKey::parse(&entry.key).filter(|_| entry.bucket == BUCKET_OBJECTS) else {
            return Vec::new();
        };
        let name = key.name;
        let seen = self.known.get(&name).map_or(0, Object::revision);
        if entry.revision <= seen.max(self.gone.get(&name).copied().unwrap_or(0)) {
            return Vec::new();
        }
        self.waiting.remove(&name);
        match entry.value {
            EntryValue::Put(bytes) => match Object::from_bytes(&bytes, entry.revision) {
                Ok(object) => {
                    self.gone.remove(&name);
                    self.known.insert(name.clone(), object);
                }
                Err(error) => {
                    tracing::warn!(node = name, %error, "node object cannot be read: it is left alone");
                    self.known.remove(&name);
                }
            },
            EntryValue::Removed(_) => {
                self.known.remove(&name);
                self.gone.insert(name.clone(), entry.revision);
                if self.gone.len() > GONE_MAX {
                    let oldest = self.gone.iter().min_by_key(|(_, revision)| **revision);
                    if let Some(name) = oldest.map(|(name, _)| name.clone()) {
                        self.gone.remove(&name);
                    }
                }
            }
        }
        self.decide(&name, now).into_iter().collect()
    }

    fn heartbeat(&mut self, message: &Message, now: Timestamp) -> Vec<Effect<Never>> {
        let dead = |reason: String| {
            vec![Effect::Dead { subject: message.subject.clone(), payload: message.payload.clone(), reason }]
        };
        let Some(node) = message.subject.strip_prefix("ew.hb.").and_then(|node| NodeName::new(node).ok())
        else {
            return dead("the subject names no node: heartbeats go to ew.hb.<node>".to_owned());
        };
        let heartbeat: Heartbeat = match schemas::decode(&message.payload) {
            Ok(heartbeat) => heartbeat,
            Err(error) => return dead(error.to_string()),
        };
        let name = node.as_str();
        // Before the watch is current nothing is known; nobody shall report again for that.
        let known = self.since.is_none() || self.known.contains_key(name);
        let ack = HeartbeatAck {
            sequence: heartbeat.sequence,
            at: now,
            known,
            hub_boot_id: self.hub_boot_id.clone(),
        };
        let mut effects: Vec<_> = Effect::reply(message, &ack).into_iter().collect();
        let room = self.known.contains_key(name) || self.beats.len() < NODES_MAX;
        let heard = match self.beats.get_mut(name) {
            Some(beat) => beat.hear(&heartbeat, now),
            None if room => {
                self.beats.insert(name.to_owned(), Beat::new(&heartbeat, now));
                true
            }
            None => false,
        };
        if heard {
            effects.extend(self.decide(name, now));
        }
        effects
    }

    fn report(&mut self, delivery: &Delivery, now: Timestamp) -> Vec<Effect<Never>> {
        let dead = |reason: String| {
            vec![Effect::Dead {
                subject: delivery.subject.clone(),
                payload: delivery.payload.clone(),
                reason,
            }]
        };
        let report: NodeReport = match schemas::decode(&delivery.payload) {
            Ok(report) => report,
            Err(error) => return dead(error.to_string()),
        };
        let Some((node, Lane::State, original)) = subject::lowered(&delivery.subject) else {
            return dead("the subject is not one of a node's reports".to_owned());
        };
        if report.node != node.as_str() || original != subject::report("sync", "node", &[node.as_str()]) {
            return dead(format!("node {node} may report of itself only, not of {:?}", report.node));
        }
        let held = self.known.get(node.as_str());
        if held.is_some_and(|held| !merge::is_news(held, &report, delivery.sequence)) {
            return Vec::new();
        }
        let mut object = match held {
            Some(held) => held.clone(),
            None => {
                self.uids_made += 1;
                merge::new_object(&node, uid(&self.seed, self.uids_made, node.as_str()), now)
            }
        };
        merge::merge(&mut object, &report, delivery.sequence, now);
        self.judge(&mut object, now);
        // Without an object in sight the write must find none. If there is one after all (the watch is behind, or not
        // yet current), it conflicts, and the report comes again.
        vec![self.put(object, now)]
    }

    /// Writes the object if its readiness is no longer what it says.
    fn decide(&mut self, name: &str, now: Timestamp) -> Option<Effect<Never>> {
        let busy = self.waiting.contains(name) || self.writing.values().any(|w| w.object.name() == name);
        let mut object = self.known.get(name).filter(|_| !busy)?.clone();
        self.judge(&mut object, now).then(|| self.put(object, now))
    }

    fn judge(&self, object: &mut Object, now: Timestamp) -> bool {
        let Some(since) = self.since else { return false };
        let heard = self.beats.get(object.name()).map(|beat| beat.heard);
        beat::judge(object, heard, since, now)
    }

    fn put(&mut self, object: Object, now: Timestamp) -> Effect<Never> {
        self.tokens_made += 1;
        let expect = match object.revision() {
            0 => Expect::Absent,
            revision => Expect::Revision(revision),
        };
        let key = object.key(&Resource::core("nodes")).key();
        let effect = Effect::put(BUCKET_OBJECTS, key, object.to_bytes(), expect, self.tokens_made);
        let beat = self.beats.get(object.name()).map(|beat| &beat.waiting);
        let id = format!("{}-{}-{}", self.hub_boot_id, self.tokens_made, now.0);
        let before = self.known.get(object.name());
        let told = before.and_then(|before| told::told(before, &object, beat, id, now));
        self.writing.insert(self.tokens_made, Writing { object, at: now, told });
        effect
    }

    fn wrote(&mut self, token: u64, outcome: Result<u64, WriteError>, now: Timestamp) -> Vec<Effect<Never>> {
        let Some(Writing { mut object, told, .. }) = self.writing.remove(&token) else { return Vec::new() };
        let name = object.name().to_owned();
        match outcome {
            Ok(revision) => {
                let seen = self.known.get(&name).map_or(0, Object::revision);
                if revision > seen.max(self.gone.get(&name).copied().unwrap_or(0)) {
                    object.set(&["metadata", "resourceVersion"], revision.to_string());
                    self.known.insert(name.clone(), object);
                }
                let told = told.map(|event| Effect::Report {
                    subject: hub_event(&event.reason),
                    headers: envelope::headers(DOMAIN_HUB, "nodes", &event.reason, &event.id, now),
                    payload: schemas::encode(&event),
                });
                told.into_iter().chain(self.decide(&name, now)).collect()
            }
            Err(_) => {
                self.waiting.insert(name);
                Vec::new()
            }
        }
    }

    fn tick(&mut self, now: Timestamp) -> Vec<Effect<Never>> {
        self.waiting.clear();
        self.writing.retain(|_, writing| now.since_ms(writing.at) < WRITE_TIMEOUT_MS);
        let names: Vec<String> = self.known.keys().cloned().collect();
        names.iter().filter_map(|name| self.decide(name, now)).collect()
    }
}

impl Module for Nodes {
    type Act = Never;
    type Done = Never;

    fn apply(&mut self, input: Input<Never>, now: Timestamp) -> Vec<Effect<Never>> {
        match input {
            Input::Entry(entry) => self.entry(entry, now),
            Input::Current { bucket, filter: of } if bucket == BUCKET_OBJECTS && of == filter() => {
                self.since.get_or_insert(now);
                self.tick(now)
            }
            Input::Message(message) if subject::matches(HEARTBEATS, &message.subject) => {
                self.heartbeat(&message, now)
            }
            Input::Delivery(delivery) => self.report(&delivery, now),
            Input::Wrote { token, outcome } => self.wrote(token, outcome, now),
            Input::Tick => self.tick(now),
            Input::Done(never) => match never {},
            Input::Current { .. } | Input::Message(_) | Input::Answered { .. } => Vec::new(),
        }
    }
}

/// A UID that nobody else makes: the seed is random, the counter never repeats with it.
fn uid(seed: &str, count: u64, name: &str) -> String {
    let hash = Sha256::digest(format!("{seed}\n{count}\n{name}"));
    let mut bytes = [0u8; 16];
    for (to, from) in bytes.iter_mut().zip(hash) {
        *to = from;
    }
    schemas::object::uid_from(bytes)
}
