//! A pod's report and the pod's object become one.
//!
//! The node owns `status`, but for what it does not know: conditions that others set (`PodScheduled`) and the fields in
//! [`KEPT`]. Which report was merged last stands in annotations, so the guard survives a restart of the hub. An edit of
//! the object by somebody else does not matter here: the caller merges into whatever version is the newest.
//!
//! A node whose store was lost numbers its reports anew, from its clock, which may be behind what it was. So a sequence
//! counts only among reports out of one store; of two stores the one counts whose report came later.

use schemas::object::Object;
use schemas::report::PodReport;
use serde_json::Value;

/// Annotation: [`PodReport::sequence`] of the last report that was merged.
pub const SEQUENCE: &str = "edgewire.io/report-sequence";
/// Annotation: [`PodReport::store`] of that report.
pub const STORE: &str = "edgewire.io/report-store";
/// Annotation: its [`Arrived::arrival`].
pub const ARRIVAL: &str = "edgewire.io/report-arrival";
/// Annotation: the node has nothing left of the pod.
pub const STOPPED: &str = "edgewire.io/report-stopped";
/// Fields of `status` that the hub sets and a report does not take away.
pub const KEPT: [&str; 2] = ["qosClass", "nominatedNodeName"];

/// A report as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrived {
    /// What the node says.
    pub report: PodReport,
    /// Its sequence in the hub's stream UP. Reports arrive there once and in order; what failed is delivered again.
    pub arrival: u64,
}

impl Arrived {
    /// Was it said after `other`, of the same pod?
    pub fn is_after(&self, other: &Self) -> bool {
        self.mark().is_after(&other.mark())
    }

    fn mark(&self) -> Mark<'_> {
        Mark { store: &self.report.store, sequence: self.report.sequence, arrival: self.arrival }
    }
}

/// Where a report stands among those of its pod.
struct Mark<'a> {
    store: &'a str,
    sequence: u64,
    arrival: u64,
}

impl<'a> Mark<'a> {
    /// Of the last report that was merged; before all others when there was none.
    fn merged(pod: &'a Object) -> Self {
        let number = |name: &str| pod.annotation(name).and_then(|text| text.parse().ok()).unwrap_or(0);
        let store = pod.annotation(STORE).unwrap_or_default();
        Self { store, sequence: number(SEQUENCE), arrival: number(ARRIVAL) }
    }

    fn is_after(&self, other: &Self) -> bool {
        if self.store == other.store { self.sequence > other.sequence } else { self.arrival > other.arrival }
    }
}

/// The object with the report in it; `None` when the report is not newer than what it has, or is of another UID.
pub fn merge(pod: &Object, arrived: &Arrived) -> Option<Object> {
    let report = &arrived.report;
    if pod.uid() != report.uid || !arrived.mark().is_after(&Mark::merged(pod)) {
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
    pod.set(&["metadata", "annotations", ARRIVAL], arrived.arrival.to_string());
    if report.store.is_empty() {
        pod.remove(&["metadata", "annotations", STORE]);
    } else {
        pod.set(&["metadata", "annotations", STORE], report.store.as_str());
    }
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
