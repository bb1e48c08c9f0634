//! Which part of an object matters to a node, and which ConfigMaps and Secrets a pod references.
//!
//! A node is told only of changes it can act on. A status that the node itself reported, our own notes in annotations
//! and kubectl's copy of the manifest are left out, so writing them sends nothing down again.

use std::collections::BTreeSet;

use schemas::object::Object;
use serde_json::Value;

/// Annotations that no node needs: kubectl's copy of the whole manifest.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Annotations under this prefix are our own notes.
const OURS: &str = "edgewire.io/report-";

/// The part of an object that its node is told. Two versions that differ elsewhere are the same to the node.
pub fn relevant(object: &Object) -> Object {
    let mut part = object.clone();
    part.remove(&["status"]);
    part.remove(&["metadata", "managedFields"]);
    part.remove(&["metadata", "resourceVersion"]);
    let kept = object.get(&["metadata", "annotations"]).and_then(Value::as_object).map(|annotations| {
        let mut kept = annotations.clone();
        kept.retain(|name, _| name != LAST_APPLIED && !name.starts_with(OURS));
        kept
    });
    match kept {
        Some(kept) if !kept.is_empty() => part.set(&["metadata", "annotations"], kept),
        _ => drop(part.remove(&["metadata", "annotations"])),
    }
    part
}

/// A ConfigMap or Secret in the pod's namespace: (plural, name).
pub type Reference = (&'static str, String);

/// What the pod references: in volumes (projected ones too), env, envFrom and imagePullSecrets.
pub fn references(pod: &Object) -> BTreeSet<Reference> {
    let mut found = BTreeSet::new();
    let list = |name: &str| pod.get(&["spec", name]).and_then(Value::as_array).into_iter().flatten();
    let mut add = |plural: &'static str, from: &Value, path: &str| {
        if let Some(name) = from.pointer(path).and_then(Value::as_str).filter(|name| !name.is_empty()) {
            found.insert((plural, name.to_owned()));
        }
    };
    for secret in list("imagePullSecrets") {
        add("secrets", secret, "/name");
    }
    for volume in list("volumes") {
        add("configmaps", volume, "/configMap/name");
        add("secrets", volume, "/secret/secretName");
        for source in volume.pointer("/projected/sources").and_then(Value::as_array).into_iter().flatten() {
            add("configmaps", source, "/configMap/name");
            add("secrets", source, "/secret/name");
        }
    }
    for container in ["containers", "initContainers", "ephemeralContainers"].into_iter().flat_map(list) {
        for from in container.get("envFrom").and_then(Value::as_array).into_iter().flatten() {
            add("configmaps", from, "/configMapRef/name");
            add("secrets", from, "/secretRef/name");
        }
        for variable in container.get("env").and_then(Value::as_array).into_iter().flatten() {
            add("configmaps", variable, "/valueFrom/configMapKeyRef/name");
            add("secrets", variable, "/valueFrom/secretKeyRef/name");
        }
    }
    found
}
