//! Events about pods: what `kubectl describe pod` and `kubectl get events` show of the scheduler.

use schemas::Timestamp;
use schemas::object::{Object, uid_from};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Longest part of the pod's name in the Event's, so that the whole stays a legal name.
const NAME_PART_MAX_BYTES: usize = 230;

/// The Event that says `message` of `pod`. Its name follows from what is said, so it is made once; `seed` makes its UID.
pub fn event(
    pod: &Object,
    severity: &str,
    reason: &str,
    message: &str,
    seed: &str,
    now: Timestamp,
) -> Object {
    let said: String = Sha256::digest(format!("{}\n{reason}\n{message}", pod.uid()))
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let part: String = pod.name().chars().take(NAME_PART_MAX_BYTES).collect();
    let mut event =
        Object::new("v1", "Event", pod.namespace(), &format!("{}.{said}", part.trim_end_matches(['.', '-'])));
    let mut uid = [0u8; 16];
    for (to, from) in uid.iter_mut().zip(Sha256::digest(format!("{seed}\n{said}"))) {
        *to = from;
    }
    let at = now.rfc3339();
    event.set(&["metadata", "uid"], uid_from(uid));
    event.set(&["metadata", "creationTimestamp"], at.as_str());
    event.set(
        &["involvedObject"],
        json!({"apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace(), "name": pod.name(), "uid": pod.uid()}),
    );
    event.set(&["type"], severity);
    event.set(&["reason"], reason);
    event.set(&["message"], message);
    event.set(&["count"], 1);
    event.set(&["firstTimestamp"], at.as_str());
    event.set(&["lastTimestamp"], at.as_str());
    event.set(&["source"], json!({"component": crate::SCHEDULER_NAME}));
    event.set(&["reportingComponent"], crate::SCHEDULER_NAME);
    event.set(&["reportingInstance"], "hub");
    event
}
