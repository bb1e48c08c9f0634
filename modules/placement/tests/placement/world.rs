//! A model of the hub's buckets with compare-and-set, and one placement module on it. The module is told of every write,
//! either at once or when the test says so.

use std::collections::{BTreeMap, VecDeque};

use bus::module::{
    Account, Delivery, Effect, Entry, EntryValue, Expect, Input, Message, Module, Never, WriteError,
};
use placement::Placement;
use schemas::Timestamp;
use schemas::desired::{Content, Desired, Lineage};
use schemas::name::NodeName;
use schemas::object::Object;
use schemas::report::PodReport;
use schemas::subject::{BUCKET_DESIRED, BUCKET_OBJECTS, DesiredKey, KEY_LINEAGE, ObjectKey};
use serde_json::{Value, json};

pub const NOW: Timestamp = Timestamp(1_700_000_000_000);

#[derive(Default, Clone)]
pub struct Bucket {
    pub sequence: u64,
    pub entries: BTreeMap<String, (u64, EntryValue)>,
}

impl Bucket {
    pub fn write(&mut self, key: &str, value: EntryValue, expect: Expect) -> Result<u64, WriteError> {
        let have = self.entries.get(key);
        let fits = match expect {
            Expect::Any => true,
            Expect::Absent => have.is_none_or(|(_, value)| matches!(value, EntryValue::Removed(_))),
            Expect::Revision(revision) => have.map_or(0, |(at, _)| *at) == revision,
        };
        if !fits {
            return Err(WriteError::Conflict);
        }
        self.sequence += 1;
        self.entries.insert(key.to_owned(), (self.sequence, value));
        Ok(self.sequence)
    }
}

pub struct World {
    pub objects: Bucket,
    pub desired: Bucket,
    pub module: Placement,
    /// Entries of the watches that were not told yet.
    pub untold: VecDeque<Entry>,
    pub writes: usize,
    pub dead: Vec<String>,
    pub replies: Vec<Vec<u8>>,
    pub now: Timestamp,
}

impl World {
    /// An empty hub in its first epoch, with the module current.
    pub fn new() -> Self {
        let mut world = Self::stopped();
        world.start();
        world
    }

    /// The same, with the module not yet told anything.
    pub fn stopped() -> Self {
        let mut world = Self {
            objects: Bucket::default(),
            desired: Bucket::default(),
            module: Placement::new(),
            untold: VecDeque::new(),
            writes: 0,
            dead: Vec::new(),
            replies: Vec::new(),
            now: NOW,
        };
        world.begin_epoch("g", "e1");
        world
    }

    pub fn begin_epoch(&mut self, generation: &str, epoch: &str) {
        let mut lineage = match self.desired.entries.get(KEY_LINEAGE) {
            Some((_, EntryValue::Put(bytes))) => schemas::decode(bytes).unwrap(),
            _ => Lineage::new(generation.into()),
        };
        lineage.begin(epoch.into(), self.desired.sequence);
        self.write(BUCKET_DESIRED, KEY_LINEAGE, EntryValue::Put(schemas::encode(&lineage)), Expect::Any)
            .unwrap();
    }

    /// A new incarnation of the module reads everything, as after a restart of the hub.
    pub fn start(&mut self) {
        self.module = Placement::new();
        self.untold.clear();
        for (name, bucket) in [(BUCKET_OBJECTS, &self.objects), (BUCKET_DESIRED, &self.desired)] {
            for (key, (revision, value)) in &bucket.entries {
                self.untold.push_back(Entry {
                    bucket: name.into(),
                    key: key.clone(),
                    revision: *revision,
                    value: value.clone(),
                });
            }
        }
        self.settle();
        for flow in placement::flows() {
            if let bus::flow::Kind::Watch { bucket } = flow.kind {
                self.apply(Input::Current { bucket: bucket.into(), filter: flow.subject });
            }
        }
        self.settle();
    }

    pub fn bucket(&mut self, bucket: &str) -> &mut Bucket {
        if bucket == BUCKET_OBJECTS { &mut self.objects } else { &mut self.desired }
    }

    pub fn write(
        &mut self,
        bucket: &str,
        key: &str,
        value: EntryValue,
        expect: Expect,
    ) -> Result<u64, WriteError> {
        let revision = self.bucket(bucket).write(key, value.clone(), expect)?;
        self.untold.push_back(Entry { bucket: bucket.into(), key: key.into(), revision, value });
        Ok(revision)
    }

    /// Applies one input and carries out its effects; says whether all of them succeeded.
    pub fn apply(&mut self, input: Input<Never>) -> bool {
        let effects = self.module.apply(input, self.now);
        self.carry_out(effects)
    }

    pub fn carry_out(&mut self, effects: Vec<Effect<Never>>) -> bool {
        let mut succeeded = true;
        let mut told = Vec::new();
        for effect in effects {
            let (bucket, key, value, expect, token) = match effect {
                Effect::Put { bucket, key, value, expect, token } => {
                    (bucket, key, EntryValue::Put(value), expect, token)
                }
                Effect::Remove { bucket, key, value, expect, token } => {
                    (bucket, key, EntryValue::Removed(value), expect, token)
                }
                Effect::Dead { reason, .. } => {
                    self.dead.push(reason);
                    continue;
                }
                Effect::Reply { payload, .. } => {
                    self.replies.push(payload);
                    continue;
                }
                other => panic!("undeclared {other:?}"),
            };
            let outcome = self.write(&bucket, &key, value, expect);
            self.writes += usize::from(outcome.is_ok());
            succeeded &= outcome.is_ok();
            told.push((token, outcome));
        }
        for (token, outcome) in told {
            self.apply(Input::Wrote { token, outcome });
        }
        succeeded
    }

    /// Tells the module everything that was written.
    pub fn settle(&mut self) {
        while let Some(entry) = self.untold.pop_front() {
            self.apply(Input::Entry(entry));
        }
    }

    /// Somebody writes an object.
    pub fn put(&mut self, plural: &str, object: &Object) -> u64 {
        let key = object_key(plural, object.namespace(), object.name());
        let revision =
            self.write(BUCKET_OBJECTS, &key, EntryValue::Put(object.to_bytes()), Expect::Any).unwrap();
        self.settle();
        revision
    }

    /// Somebody removes an object.
    pub fn remove(&mut self, plural: &str, name: &str) -> u64 {
        let key = object_key(plural, "default", name);
        let last = self.object(plural, name).unwrap();
        let revision =
            self.write(BUCKET_OBJECTS, &key, EntryValue::Removed(last.to_bytes()), Expect::Any).unwrap();
        self.settle();
        revision
    }

    pub fn object(&self, plural: &str, name: &str) -> Option<Object> {
        match self.objects.entries.get(&object_key(plural, "default", name))? {
            (revision, EntryValue::Put(bytes)) => Some(Object::from_bytes(bytes, *revision).unwrap()),
            _ => None,
        }
    }

    /// Delivers a report until it is acknowledged, as the runner does.
    pub fn report(&mut self, report: &PodReport) {
        self.arrives(1, report);
    }

    /// The same, of one that stands at `arrival` in UP.
    pub fn arrives(&mut self, arrival: u64, report: &PodReport) {
        for _ in 0..10 {
            if self.apply(arrived(arrival, report)) {
                self.settle();
                return;
            }
            self.settle();
        }
        panic!("never acknowledged");
    }

    pub fn held(&self, node: &str, plural: &str, name: &str, uid: &str) -> Option<Desired> {
        match self.desired.entries.get(&key(plural, name, uid).desired_key(&NodeName::new(node).unwrap()))? {
            (_, EntryValue::Put(bytes)) => Some(schemas::decode(bytes).unwrap()),
            _ => None,
        }
    }

    /// `plural/name/uid` of what a node must have; tombstones begin with `-`.
    pub fn told(&self, node: &str) -> Vec<String> {
        let mut told: Vec<String> = self
            .desired
            .entries
            .iter()
            .filter_map(|(key, (_, value))| Some((DesiredKey::parse_desired(key)?, value)))
            .filter(|((of, _), _)| of.as_str() == node)
            .map(|((_, key), value)| {
                let EntryValue::Put(bytes) = value else { panic!("an entry was removed") };
                let desired: Desired = schemas::decode(bytes).unwrap();
                let sign = if desired.content == Content::Tombstone { "-" } else { "" };
                format!("{sign}{}/{}/{}", key.plural, key.name, key.uid)
            })
            .collect();
        told.sort();
        told
    }

    pub fn ask<T: serde::de::DeserializeOwned>(
        &mut self,
        node: &str,
        verb: &str,
        body: &impl serde::Serialize,
    ) -> schemas::command::Reply<T> {
        self.ask_bytes(node, verb, schemas::encode(body))
    }

    pub fn ask_bytes<T: serde::de::DeserializeOwned>(
        &mut self,
        node: &str,
        verb: &str,
        payload: Vec<u8>,
    ) -> schemas::command::Reply<T> {
        self.ask_at(format!("ew.req.{node}.{verb}"), payload)
    }

    pub fn ask_at<T: serde::de::DeserializeOwned>(
        &mut self,
        subject: String,
        payload: Vec<u8>,
    ) -> schemas::command::Reply<T> {
        self.apply(Input::Message(Message {
            account: Account::Control,
            subject,
            headers: Default::default(),
            payload,
            reply: Some("_INBOX.r".into()),
        }));
        schemas::decode(&self.replies.pop().unwrap()).unwrap()
    }
}

fn object_key(plural: &str, namespace: &str, name: &str) -> String {
    let resource = schemas::subject::told(plural);
    ObjectKey { resource, namespace: namespace.into(), name: name.into() }.key()
}

pub fn node(name: &str, labels: Value) -> Object {
    let mut node = Object::new("v1", "Node", "", name);
    node.set(&["metadata", "labels"], labels);
    node
}

/// An object that selects nodes.
pub fn selecting(kind: &str, name: &str, uid: &str, spec: Value) -> Object {
    let mut object = Object::new("x/v1", kind, "default", name);
    object.set(&["metadata", "uid"], uid);
    object.set(&["spec"], spec);
    object
}

pub fn key(plural: &str, name: &str, uid: &str) -> DesiredKey {
    DesiredKey { plural: plural.into(), namespace: "default".into(), name: name.into(), uid: uid.into() }
}

pub fn pod(name: &str, uid: &str, node: &str, spec: Value) -> Object {
    let mut pod = Object::new("v1", "Pod", "default", name);
    pod.set(&["metadata", "uid"], uid);
    pod.set(&["spec"], spec);
    if !node.is_empty() {
        pod.set(&["spec", "nodeName"], node);
    }
    pod
}

pub fn data(kind: &str, name: &str, uid: &str, value: &str) -> Object {
    let mut object = Object::new("v1", kind, "default", name);
    object.set(&["metadata", "uid"], uid);
    object.set(&["data", "k"], value);
    object
}

pub fn status(name: &str, uid: &str, sequence: u64, phase: &str) -> PodReport {
    PodReport {
        node: "n1".into(),
        namespace: "default".into(),
        name: name.into(),
        uid: uid.into(),
        sequence,
        status: json!({"phase": phase, "conditions": [{"type": "Ready", "status": "True"}]}),
        stopped: false,
        store: String::new(),
    }
}

pub fn delivery(report: &PodReport) -> Input<Never> {
    arrived(1, report)
}

pub fn arrived(arrival: u64, report: &PodReport) -> Input<Never> {
    let PodReport { node, namespace, name, uid, .. } = report;
    delivered_at(
        arrival,
        &format!("ew.in.{node}.state.ew.rep.containers.pod.{namespace}.{name}.{uid}"),
        schemas::encode(report),
    )
}

pub fn delivered(subject: &str, payload: Vec<u8>) -> Input<Never> {
    delivered_at(1, subject, payload)
}

fn delivered_at(arrival: u64, subject: &str, payload: Vec<u8>) -> Input<Never> {
    Input::Delivery(Delivery {
        stream: "UP".into(),
        sequence: arrival,
        subject: subject.into(),
        headers: Default::default(),
        payload,
        attempt: 1,
    })
}
