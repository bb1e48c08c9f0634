//! Events: what nodes tell becomes Kubernetes' `Event` objects, for a while.
//!
//! The same thing said again of the same object counts up in one Event. A report that comes twice counts once: what was
//! counted is remembered here, and the last few also in the object. Events older than an hour go, and there are never
//! more than [`EVENTS_MAX`]; the same bounds hold for Events that others wrote.
//!
//! | in / out | what |
//! |---|---|
//! | UP `ew.in.*.events.ew.evt.>` | [`EventReport`] |
//! | bucket objects `=.events.*.*` | the Events, read, written and removed |
//! | stream REFUSED `ew.audit.refused.>` | what a node's server refused there ([`AuditRecord`]), passed on |
//!
//! * [`fold`] reports and an Event become one

pub mod fold;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bus::flow::Flow;
use bus::module::{Delivery, Effect, Entry, EntryValue, Expect, Input, Module, Never, WriteError};
use schemas::Timestamp;
use schemas::audit::AuditRecord;
use schemas::object::Object;
use schemas::report::EventReport;
use schemas::subject::{self, BUCKET_OBJECTS, Lane, ObjectKey, Resource, STREAM_UP};

/// Events that are kept at most; the oldest go first.
pub const EVENTS_MAX: usize = 10_000;
/// How long an Event is kept after it was last told.
pub const EVENT_TTL_MS: u64 = 3_600_000;
/// Events that are removed in one tick.
pub const REMOVALS_MAX: usize = 500;
/// Reports that are remembered as counted.
pub const COUNTED_MAX: usize = 10_000;
/// Removed keys whose revision is remembered, so that a late entry does not bring them back.
pub const GONE_MAX: usize = 10_000;
/// A write that was not answered for so long is taken as failed.
pub const WRITE_TIMEOUT_MS: u64 = 10_000;

/// What the module reads and writes.
pub fn flows() -> Vec<Flow> {
    vec![
        Flow::consume(STREAM_UP, "events", subject::raised_events(), "EventReport"),
        Flow::report(subject::audit_filter(true), "AuditRecord"),
        Flow::watch(BUCKET_OBJECTS, filter(), "Event"),
        Flow::write(BUCKET_OBJECTS, filter(), "Event"),
    ]
}

/// A node's record goes on to the hub's audit, as what was refused there: what is done is done through the hub.
fn audit(record: AuditRecord) -> Effect<Never> {
    let text = |text: &str| schemas::audit::text(text);
    let record = AuditRecord {
        user: text(&record.user),
        verb: text(&record.verb),
        object: text(&record.object),
        detail: text(&record.detail),
        code: record.code.clamp(400, 599),
        ..record
    };
    let (subject, headers) = bus::audit::addressed(&record, "events");
    Effect::Report { subject, headers, payload: schemas::encode(&record) }
}

fn filter() -> String {
    subject::objects_filter(&Resource::core("events"), None)
}

/// The module's state.
pub struct Events {
    seed: String,
    current: bool,
    held: BTreeMap<String, Held>,
    gone: BTreeMap<String, u64>,
    /// Reports that are in no Event yet, by the Event's key and the report's ID. Not acknowledged: they come again.
    pending: BTreeMap<String, BTreeMap<String, EventReport>>,
    counted: BTreeSet<String>,
    counted_in_order: VecDeque<String>,
    writing: BTreeMap<u64, Writing>,
    tokens_made: u64,
}

/// An Event as it is stored (not unpacked: there may be many).
struct Held {
    revision: u64,
    bytes: Vec<u8>,
    told: Timestamp,
}

struct Writing {
    key: String,
    at: Timestamp,
    expected: u64,
    /// What it writes, and the reports that it counts; `None` for a removal.
    fold: Option<(Vec<u8>, Vec<String>)>,
}

impl Events {
    /// `seed` is random: the UIDs of new Events are made from it.
    pub fn new(seed: impl Into<String>) -> Self {
        Self {
            seed: seed.into(),
            current: false,
            held: BTreeMap::new(),
            gone: BTreeMap::new(),
            pending: BTreeMap::new(),
            counted: BTreeSet::new(),
            counted_in_order: VecDeque::new(),
            writing: BTreeMap::new(),
            tokens_made: 0,
        }
    }

    fn entry(&mut self, entry: Entry, now: Timestamp) {
        let events = ObjectKey::parse(&entry.key).is_some_and(|key| key.resource == Resource::core("events"));
        if entry.bucket == BUCKET_OBJECTS && events {
            match entry.value {
                EntryValue::Put(bytes) => self.hold(entry.key, entry.revision, bytes, now),
                EntryValue::Removed(_) => self.forget(entry.key, entry.revision),
            }
        }
    }

    fn seen(&self, key: &str) -> u64 {
        let held = self.held.get(key).map_or(0, |held| held.revision);
        held.max(self.gone.get(key).copied().unwrap_or(0))
    }

    fn hold(&mut self, key: String, revision: u64, bytes: Vec<u8>, now: Timestamp) {
        if revision <= self.seen(&key) {
            return;
        }
        self.gone.remove(&key);
        // What cannot be read is as old as its arrival here, so that it goes too.
        let told =
            Object::from_bytes(&bytes, revision).ok().and_then(|event| fold::told(&event)).unwrap_or(now);
        self.held.insert(key, Held { revision, bytes, told: told.min(now) });
    }

    fn forget(&mut self, key: String, revision: u64) {
        if revision <= self.seen(&key) {
            return;
        }
        self.held.remove(&key);
        self.gone.insert(key, revision);
        if self.gone.len() > GONE_MAX {
            let oldest = self.gone.iter().min_by_key(|(_, revision)| **revision).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.gone.remove(&oldest);
            }
        }
    }

    fn report(&mut self, delivery: &Delivery, now: Timestamp) -> Vec<Effect<Never>> {
        let dead = |reason: String| {
            vec![Effect::Dead {
                subject: delivery.subject.clone(),
                payload: delivery.payload.clone(),
                reason,
            }]
        };
        let Some((node, Lane::Events, original)) = subject::lowered(&delivery.subject) else {
            return dead("the subject is not one of a node's events".to_owned());
        };
        if original.rsplit('.').next() == Some(subject::EVENT_AUDIT) {
            return match schemas::decode::<AuditRecord>(&delivery.payload) {
                Ok(record) if record.node == node.as_str() => vec![audit(record)],
                Ok(record) => dead(format!("node {node} may not speak for node {:?}", record.node)),
                Err(error) => dead(error.to_string()),
            };
        }
        let report: EventReport = match schemas::decode(&delivery.payload) {
            Ok(report) => report,
            Err(error) => return dead(error.to_string()),
        };
        if report.node != node.as_str() {
            return dead(format!("node {node} may not speak for node {:?}", report.node));
        }
        let key = match fold::key(&report) {
            Ok(key) => key.key(),
            Err(reason) => return dead(reason),
        };
        let id = format!("{node}/{}", report.id);
        if self.is_counted(&key, &id) {
            return Vec::new();
        }
        self.pending.entry(key.clone()).or_default().insert(id, report);
        // If a write of that Event is under way this one conflicts, and the delivery comes again; by then the report was
        // counted together with all that waited (see `wrote`).
        self.put(&key, now).into_iter().collect()
    }

    fn is_counted(&self, key: &str, id: &str) -> bool {
        self.counted.contains(id)
            || self
                .held
                .get(key)
                .and_then(|held| Object::from_bytes(&held.bytes, held.revision).ok())
                .is_some_and(|event| fold::holds(&event, id))
    }

    /// Writes the Event of `key` with all reports that wait for it.
    fn put(&mut self, key: &str, now: Timestamp) -> Option<Effect<Never>> {
        let reports = self.pending.get(key).filter(|reports| !reports.is_empty())?;
        let held = self.held.get(key);
        let known = held.and_then(|held| Object::from_bytes(&held.bytes, held.revision).ok());
        let event = fold::fold(known, reports, &self.seed, now)?;
        let ids = reports.keys().cloned().collect();
        let expected = held.map_or(0, |held| held.revision);
        let expect = if expected == 0 { Expect::Absent } else { Expect::Revision(expected) };
        let bytes = event.to_bytes();
        self.tokens_made += 1;
        let writing = Writing { key: key.to_owned(), at: now, expected, fold: Some((bytes.clone(), ids)) };
        self.writing.insert(self.tokens_made, writing);
        Some(Effect::put(BUCKET_OBJECTS, key.to_owned(), bytes, expect, self.tokens_made))
    }

    fn wrote(&mut self, token: u64, outcome: Result<u64, WriteError>, now: Timestamp) -> Vec<Effect<Never>> {
        let Some(Writing { key, expected, fold, .. }) = self.writing.remove(&token) else {
            return Vec::new();
        };
        match (outcome, fold) {
            (Ok(revision), None) => self.forget(key.clone(), revision),
            (Ok(revision), Some((bytes, ids))) => {
                self.hold(key.clone(), revision, bytes, now);
                for id in ids {
                    if let Some(reports) = self.pending.get_mut(&key) {
                        reports.remove(&id);
                    }
                    if self.counted.insert(id.clone()) {
                        self.counted_in_order.push_back(id);
                    }
                }
                while self.counted.len() > COUNTED_MAX {
                    match self.counted_in_order.pop_front() {
                        Some(oldest) => drop(self.counted.remove(&oldest)),
                        None => break,
                    }
                }
            }
            // The newer version is known: what waits goes into it now. Else the delivery comes again anyway.
            (Err(WriteError::Conflict), _) if self.seen(&key) > expected => {}
            (Err(_), _) => return Vec::new(),
        }
        if self.pending.get(&key).is_some_and(BTreeMap::is_empty) {
            self.pending.remove(&key);
        }
        if self.writing.values().any(|other| other.key == key && other.expected >= self.seen(&key)) {
            return Vec::new();
        }
        self.put(&key, now).into_iter().collect()
    }

    fn tick(&mut self, now: Timestamp) -> Vec<Effect<Never>> {
        self.writing.retain(|_, writing| now.since_ms(writing.at) < WRITE_TIMEOUT_MS);
        if !self.current {
            return Vec::new();
        }
        let busy: BTreeSet<&String> = self.writing.values().map(|writing| &writing.key).collect();
        let mut by_age: Vec<(Timestamp, &String)> =
            self.held.iter().map(|(k, held)| (held.told, k)).collect();
        by_age.sort();
        let over = self.held.len().saturating_sub(EVENTS_MAX);
        let old: Vec<String> = by_age
            .iter()
            .enumerate()
            .filter(|(at, (told, _))| *at < over || now.since_ms(*told) > EVENT_TTL_MS)
            .filter(|(_, (_, key))| !busy.contains(key))
            .take(REMOVALS_MAX)
            .map(|(_, (_, key))| (*key).clone())
            .collect();
        old.into_iter().filter_map(|key| self.remove(key, now)).collect()
    }

    fn remove(&mut self, key: String, now: Timestamp) -> Option<Effect<Never>> {
        let held = self.held.get(&key)?;
        let (value, expected) = (held.bytes.clone(), held.revision);
        self.tokens_made += 1;
        self.writing.insert(self.tokens_made, Writing { key: key.clone(), at: now, expected, fold: None });
        Some(Effect::Remove {
            bucket: BUCKET_OBJECTS.to_owned(),
            key,
            value,
            expect: Expect::Revision(expected),
            token: self.tokens_made,
        })
    }
}

impl Module for Events {
    type Act = Never;
    type Done = Never;

    fn apply(&mut self, input: Input<Never>, now: Timestamp) -> Vec<Effect<Never>> {
        match input {
            Input::Entry(entry) => {
                self.entry(entry, now);
                Vec::new()
            }
            Input::Current { bucket, filter: of } => {
                self.current |= bucket == BUCKET_OBJECTS && of == filter();
                Vec::new()
            }
            // Before the watch is current an Event may exist unseen: then the write finds it, and the report comes again.
            Input::Delivery(delivery) => self.report(&delivery, now),
            Input::Wrote { token, outcome } => self.wrote(token, outcome, now),
            Input::Tick => self.tick(now),
            Input::Done(never) => match never {},
            Input::Message(_) | Input::Answered { .. } => Vec::new(),
        }
    }
}
