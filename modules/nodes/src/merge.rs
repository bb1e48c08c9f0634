//! A node's report and the Node object become one.
//!
//! The node owns `status` but for the condition `Ready` (the hub's). Users own the rest: labels that the node starts
//! with are only added where they are missing, and annotations, taints and `unschedulable` are never touched. What was
//! reported last stands in annotations, so the guard survives a restart of the hub.

use schemas::Timestamp;
use schemas::name::NodeName;
use schemas::object::Object;
use schemas::report::NodeReport;
use serde_json::{Map, Value, json};

/// Annotation: [`NodeReport::sequence`] of the last report that was merged.
pub const SEQUENCE: &str = "edgewire.io/report-sequence";
/// Annotation: [`NodeReport::boot_id`] of the last report that was merged.
pub const BOOT_ID: &str = "edgewire.io/boot-id";

/// Annotation: where in UP that report stood.
pub const ARRIVAL: &str = "edgewire.io/report-arrival";

/// Is the report newer than the object? A node whose disk was wiped counts from the start again: its report is news when
/// it is of another boot and came (`arrival`: its sequence in UP) after what was merged. Reports arrive in order; what
/// failed is delivered again.
pub fn is_news(object: &Object, report: &NodeReport, arrival: u64) -> bool {
    let merged = |name: &str| object.annotation(name).and_then(|text| text.parse().ok()).unwrap_or(0);
    let other_boot = object.annotation(BOOT_ID) != Some(report.boot_id.as_str());
    report.sequence > merged(SEQUENCE) || other_boot && arrival > merged(ARRIVAL)
}

/// A Node object that nothing is known of yet.
pub fn new_object(node: &NodeName, uid: String, now: Timestamp) -> Object {
    let mut object = Object::new("v1", "Node", "", node.as_str());
    object.set(&["metadata", "uid"], uid);
    object.set(&["metadata", "creationTimestamp"], now.rfc3339());
    object.set(&["metadata", "labels", "kubernetes.io/hostname"], node.as_str());
    object.set(&["spec"], Map::new());
    object
}

/// Brings the report into the object.
pub fn merge(object: &mut Object, report: &NodeReport, arrival: u64, now: Timestamp) {
    for (name, value) in &report.labels {
        if object.label(name).is_none() {
            object.set(&["metadata", "labels", name], value.as_str());
        }
    }
    object.set(&["metadata", "annotations", SEQUENCE], report.sequence.to_string());
    object.set(&["metadata", "annotations", BOOT_ID], report.boot_id.as_str());
    object.set(&["metadata", "annotations", ARRIVAL], arrival.to_string());
    object.set(&["status", "nodeInfo"], report.node_info.clone());
    for (field, resources) in [("capacity", &report.capacity), ("allocatable", &report.allocatable)] {
        let resources: Map<String, Value> =
            resources.iter().map(|(name, amount)| (name.clone(), amount.as_str().into())).collect();
        object.set(&["status", field], resources);
    }
    let addresses: Vec<Value> =
        report.addresses.iter().map(|(kind, address)| json!({"type": kind, "address": address})).collect();
    object.set(&["status", "addresses"], addresses);
    for (kind, (status, reason, message)) in report.conditions.iter().filter(|(kind, _)| *kind != "Ready") {
        object.set_condition(kind, status, reason, message, now);
    }
}
