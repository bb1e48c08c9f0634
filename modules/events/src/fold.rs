//! Reports and an Event become one.
//!
//! The Event's name follows from what is said of what, so the same is found again. The age of an Event is counted by the
//! hub's clock (an annotation): what a node tells after a day without a link is news here, whenever it happened.

use std::collections::BTreeMap;

use schemas::Timestamp;
use schemas::name::{Namespace, check_object_name};
use schemas::object::{Object, uid_from};
use schemas::report::EventReport;
use schemas::subject::ObjectKey;
use serde_json::json;
use sha2::{Digest, Sha256};

/// Annotation: when the hub was last told, RFC 3339.
pub const TOLD_AT: &str = "edgewire.io/told-at";
/// Annotation: short hashes of the reports counted last, joined by spaces.
pub const COUNTED: &str = "edgewire.io/counted";
/// How many hashes stand there.
pub const COUNTED_IN_OBJECT_MAX: usize = 16;
/// `count` is a 32-bit number in Kubernetes' API.
const COUNT_MAX: u64 = i32::MAX as u64;
/// Longest message that is kept, as in Kubernetes.
pub const MESSAGE_MAX_BYTES: usize = 1024;
/// Longest part of the object's name in the Event's, so that the whole stays a legal name.
const NAME_PART_MAX_BYTES: usize = 230;

fn hash(text: &str, bytes: usize) -> String {
    Sha256::digest(text).iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
}

/// The Event that a report belongs to. An error says why there can be none.
pub fn key(report: &EventReport) -> Result<ObjectKey, String> {
    let (kind, namespace, name, uid) = &report.regarding;
    let namespace = if namespace.is_empty() { "default" } else { namespace };
    Namespace::new(namespace).map_err(|error| error.to_string())?;
    check_object_name(name).map_err(|error| error.to_string())?;
    if report.reason.is_empty() || report.id.is_empty() {
        return Err("an event needs an id and a reason".to_owned());
    }
    let said = [kind, namespace, name, uid, &report.node, &report.module, &report.reason, &report.message];
    let part: String = name.chars().take(NAME_PART_MAX_BYTES).collect();
    let name = format!("{}.{}", part.trim_end_matches(['.', '-']), hash(&format!("{said:?}"), 8));
    Ok(ObjectKey::core("events", namespace, &name))
}

/// When the hub was last told of it.
pub fn told(event: &Object) -> Option<Timestamp> {
    let told = event.annotation(TOLD_AT).or(Some(event.text(&["metadata", "creationTimestamp"])));
    told.and_then(Timestamp::parse)
}

/// Was the report with that ID among the last ones counted?
pub fn holds(event: &Object, id: &str) -> bool {
    let id = hash(id, 4);
    event.annotation(COUNTED).unwrap_or("").split(' ').any(|counted| counted == id)
}

/// The Event with all those reports counted (all of them belong to it). `None` when there is none to count.
pub fn fold(
    known: Option<Object>,
    reports: &BTreeMap<String, EventReport>,
    seed: &str,
    now: Timestamp,
) -> Option<Object> {
    let first = reports.values().min_by_key(|report| report.at)?;
    let last = reports.values().max_by_key(|report| report.at)?;
    let mut event = match known {
        Some(event) => event,
        None => new_event(first, seed, now)?,
    };
    let count = event.get(&["count"]).and_then(serde_json::Value::as_u64).unwrap_or(0);
    event.set(&["count"], count.saturating_add(reports.len() as u64).min(COUNT_MAX));
    let stands = |event: &Object, field: &str| Timestamp::parse(event.text(&[field]));
    if stands(&event, "firstTimestamp").is_none_or(|at| first.at < at) {
        event.set(&["firstTimestamp"], first.at.rfc3339());
    }
    if stands(&event, "lastTimestamp").is_none_or(|at| last.at > at) {
        event.set(&["lastTimestamp"], last.at.rfc3339());
    }
    let mut counted: Vec<String> = event
        .annotation(COUNTED)
        .unwrap_or("")
        .split(' ')
        .filter(|id| !id.is_empty())
        .map(str::to_owned)
        .collect();
    counted.extend(reports.keys().map(|id| hash(id, 4)));
    let counted: Vec<String> = counted.split_off(counted.len().saturating_sub(COUNTED_IN_OBJECT_MAX));
    event.set(&["metadata", "annotations", COUNTED], counted.join(" "));
    event.set(&["metadata", "annotations", TOLD_AT], now.rfc3339());
    Some(event)
}

fn new_event(report: &EventReport, seed: &str, now: Timestamp) -> Option<Object> {
    let key = key(report).ok()?;
    let (kind, namespace, name, uid) = &report.regarding;
    let mut event = Object::new("v1", "Event", &key.namespace, &key.name);
    let mut bytes = [0u8; 16];
    for (to, from) in bytes.iter_mut().zip(Sha256::digest(format!("{seed}\n{}\n{}", key.name, report.id))) {
        *to = from;
    }
    event.set(&["metadata", "uid"], uid_from(bytes));
    event.set(&["metadata", "creationTimestamp"], now.rfc3339());
    let mut regarding = json!({"apiVersion": "v1", "kind": kind, "name": name, "uid": uid});
    if let (false, Some(map)) = (namespace.is_empty(), regarding.as_object_mut()) {
        map.insert("namespace".to_owned(), namespace.as_str().into());
    }
    event.set(&["involvedObject"], regarding);
    event.set(&["type"], report.severity.as_str());
    event.set(&["reason"], report.reason.as_str());
    event.set(&["message"], clip(&report.message));
    event.set(&["eventTime"], micro_time(report.at));
    event.set(&["source"], json!({"component": report.module, "host": report.node}));
    event.set(&["reportingComponent"], report.module.as_str());
    event.set(&["reportingInstance"], report.node.as_str());
    Some(event)
}

fn clip(text: &str) -> String {
    let end = text
        .char_indices()
        .map(|(at, c)| at + c.len_utf8())
        .take_while(|end| *end <= MESSAGE_MAX_BYTES)
        .last();
    text.get(..end.unwrap_or(0)).unwrap_or("").to_owned()
}

/// `metav1.MicroTime`.
fn micro_time(at: Timestamp) -> String {
    let seconds = at.rfc3339();
    format!("{}.{:06}Z", seconds.trim_end_matches('Z'), at.0.rem_euclid(1000) * 1000)
}
