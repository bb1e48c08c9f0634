//! A pod's report and the pod's object become one.
//!
//! The node owns `status`, but for what it does not know: conditions that others set (`PodScheduled`) and the fields in
//! [`KEPT`]. Which report was merged last stands in annotations, so the guard survives a restart of the hub. An edit of
//! the object by somebody else does not matter here: the caller merges into whatever version is the newest.

use schemas::object::Object;
use schemas::report::PodReport;
use serde_json::Value;

/// Annotation: [`PodReport::sequence`] of the last report that was merged.
pub const SEQUENCE: &str = "edgewire.io/report-sequence";
/// Annotation: the node has nothing left of the pod.
pub const STOPPED: &str = "edgewire.io/report-stopped";
/// Fields of `status` that the hub sets and a report does not take away.
pub const KEPT: [&str; 2] = ["qosClass", "nominatedNodeName"];

/// The sequence of the last report that was merged; 0 for none.
pub fn merged_sequence(pod: &Object) -> u64 {
    pod.annotation(SEQUENCE).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The object with the report in it; `None` when the report is not newer than what it has, or is of another UID.
pub fn merge(pod: &Object, report: &PodReport) -> Option<Object> {
    if pod.uid() != report.uid || report.sequence <= merged_sequence(pod) {
        return None;
    }
    let mut status = report.status.as_object()?.clone();
    for field in KEPT {
        if let (false, Some(old)) = (status.contains_key(field), pod.get(&["status", field])) {
            status.insert(field.to_owned(), old.clone());
        }
    }
    let kind = |condition: &Value| condition.get("type").cloned();
    let mut conditions = status.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    for old in pod.get(&["status", "conditions"]).and_then(Value::as_array).into_iter().flatten() {
        if !conditions.iter().any(|condition| kind(condition) == kind(old)) {
            conditions.push(old.clone());
        }
    }
    if !conditions.is_empty() {
        status.insert("conditions".to_owned(), conditions.into());
    }
    let mut pod = pod.clone();
    pod.set(&["status"], status);
    pod.set(&["metadata", "annotations", SEQUENCE], report.sequence.to_string());
    if report.stopped {
        pod.set(&["metadata", "annotations", STOPPED], "true");
    } else {
        pod.remove(&["metadata", "annotations", STOPPED]);
    }
    Some(pod)
}

/// Deleting, stopped on its node, and nobody holds it: the object may be removed.
pub fn may_go(pod: &Object) -> bool {
    let held = pod.get(&["metadata", "finalizers"]).and_then(Value::as_array);
    pod.is_deleting() && pod.annotation(STOPPED) == Some("true") && held.is_none_or(Vec::is_empty)
}
