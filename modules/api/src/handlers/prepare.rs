//! From what a client sent to what is stored: identity, defaults, validation. Pure: time and randomness are given.

use schemas::Timestamp;
use schemas::object::Object;
use serde_json::{Value, json};

use crate::defaults;
use crate::resource::Kind;
use crate::status::ApiError;
use crate::validate;

/// Metadata that the server gives and no client can change.
const SERVERS_OWN: &[&str] =
    &["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"];

/// Checks that the document is of the kind that the path names, and fills in what may be left out.
pub fn typed(kind: &Kind, document: Value) -> Result<Object, ApiError> {
    let mut object = Object::try_from(document).map_err(|error| ApiError::bad_request(error.to_string()))?;
    for (field, want) in [("apiVersion", kind.api_version()), ("kind", kind.kind.to_owned())] {
        let given = object.text(&[field]).to_owned();
        if given.is_empty() {
            object.set(&[field], want);
        } else if given != want {
            return Err(ApiError::bad_request(format!(
                "the {field} in the data ({given}) does not match the expected {field} ({want})"
            )));
        }
    }
    if !object.get(&["metadata"]).is_some_and(Value::is_object) {
        object.set(&["metadata"], json!({}));
    }
    Ok(object)
}

/// The namespace of the path is the namespace of the object.
pub fn place(kind: &Kind, object: &mut Object, namespace: Option<&str>) -> Result<(), ApiError> {
    match (kind.namespaced, namespace) {
        (false, _) => {
            object.remove(&["metadata", "namespace"]);
            Ok(())
        }
        (true, None) => {
            Err(ApiError::bad_request(format!("{} live in a namespace: name it in the path", kind.plural)))
        }
        (true, Some(namespace)) => {
            let given = object.namespace().to_owned();
            if !given.is_empty() && given != namespace {
                return Err(ApiError::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
            object.set(&["metadata", "namespace"], namespace);
            Ok(())
        }
    }
}

/// Makes a new object of what was sent. `suffix` completes `generateName`.
pub fn create(
    kind: &Kind,
    mut object: Object,
    uid: &str,
    suffix: &str,
    now: Timestamp,
) -> Result<Object, ApiError> {
    /// As in Kubernetes: the longest base of a generated name.
    const BASE_MAX_CHARS: usize = 58;
    if object.revision() != 0 {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let base = object.text(&["metadata", "generateName"]).to_owned();
    if object.name().is_empty() && !base.is_empty() {
        let base: String = base.chars().take(BASE_MAX_CHARS).collect();
        object.set(&["metadata", "name"], format!("{base}{suffix}"));
    }
    for field in SERVERS_OWN.iter().chain(&["resourceVersion", "managedFields", "selfLink"]) {
        object.remove(&["metadata", field]);
    }
    object.set(&["metadata", "uid"], uid);
    object.set(&["metadata", "creationTimestamp"], now.rfc3339());
    if kind.generation {
        object.set(&["metadata", "generation"], 1);
    }
    (kind.defaults)(&mut object);
    match kind.kind {
        "Pod" => defaults::pod_status(&mut object),
        "Namespace" => object.set(&["status"], json!({"phase": "Active"})),
        _ => {}
    }
    check(kind, &object)?;
    Ok(object)
}

fn check(kind: &Kind, object: &Object) -> Result<(), ApiError> {
    let mut causes = validate::metadata(kind, object);
    causes.extend((kind.validate)(object));
    if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid(kind.kind, object.name(), causes)) }
}

/// Makes the next state of `old` of what was sent for it, at the path of `subresource`.
pub fn update(kind: &Kind, old: &Object, mut new: Object, subresource: &str) -> Result<Object, ApiError> {
    if new.name() != old.name() {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            new.name(),
            old.name()
        )));
    }
    if !new.uid().is_empty() && new.uid() != old.uid() {
        let why = format!(
            "Precondition failed: UID in precondition: {}, UID in object meta: {}",
            new.uid(),
            old.uid()
        );
        return Err(ApiError::conflict(&kind.qualified(), old.name(), why));
    }
    for field in SERVERS_OWN {
        match old.get(&["metadata", field]).cloned() {
            Some(value) => new.set(&["metadata", field], value),
            None => {
                new.remove(&["metadata", field]);
            }
        }
    }
    for field in ["managedFields", "selfLink"] {
        new.remove(&["metadata", field]);
    }
    match subresource {
        "status" => {
            // Only the status, and what of the metadata belongs to nobody in particular.
            let mut next = old.clone();
            for path in [&["status"][..], &["metadata", "labels"], &["metadata", "annotations"]] {
                match new.get(path).cloned() {
                    Some(value) => next.set(path, value),
                    None => {
                        next.remove(path);
                    }
                }
            }
            new = next;
        }
        "finalize" => {
            let finalizers = new.get(&["spec", "finalizers"]).cloned().unwrap_or_else(|| json!([]));
            new = old.clone();
            new.set(&["spec", "finalizers"], finalizers);
        }
        _ => {
            if kind.has_status() {
                match old.get(&["status"]).cloned() {
                    Some(status) => new.set(&["status"], status),
                    None => {
                        new.remove(&["status"]);
                    }
                }
            }
            (kind.defaults)(&mut new);
        }
    }
    if old.is_deleting() {
        let before = finalizers(old);
        if let Some(added) = finalizers(&new).iter().find(|f| !before.contains(f)) {
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizer {added:?}"
            );
            let cause = crate::status::Cause::forbidden("metadata.finalizers", &why);
            return Err(ApiError::invalid(kind.kind, old.name(), vec![cause]));
        }
    }
    check(kind, &new)?;
    if subresource.is_empty() {
        let causes = (kind.validate_update)(old, &new);
        if !causes.is_empty() {
            return Err(ApiError::invalid(kind.kind, old.name(), causes));
        }
    }
    if kind.generation && old.get(&["spec"]) != new.get(&["spec"]) {
        let generation = old.get(&["metadata", "generation"]).and_then(Value::as_u64).unwrap_or(0);
        new.set(&["metadata", "generation"], generation + 1);
    }
    new.set(&["metadata", "resourceVersion"], old.revision().to_string());
    Ok(new)
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Object) -> Vec<&str> {
    let list = object.get(&["metadata", "finalizers"]).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(plural: &str) -> &'static Kind {
        crate::resource::find("", "v1", plural).unwrap()
    }

    fn pod() -> Object {
        let sent = json!({"metadata": {"generateName": "web-", "namespace": "default", "uid": "mine", "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "a", "image": "x"}]}, "status": {"phase": "Running"}});
        create(kind("pods"), typed(kind("pods"), sent).unwrap(), "u1", "abcde", Timestamp(0)).unwrap()
    }

    #[test]
    fn the_server_gives_identity_and_the_first_status() {
        let pod = pod();
        assert_eq!((pod.name(), pod.uid(), pod.kind(), pod.api_version()), ("web-abcde", "u1", "Pod", "v1"));
        assert_eq!(pod.text(&["status", "phase"]), "Pending");
        assert_eq!(pod.get(&["metadata", "generation"]).unwrap(), 1);
        assert_eq!(typed(kind("pods"), json!({"kind": "Node"})).unwrap_err().code, 400);
    }

    #[test]
    fn an_update_keeps_what_is_not_its_own() {
        let old = pod();
        let mut sent = old.clone();
        sent.set(&["status", "phase"], "Failed");
        sent.set(&["metadata", "creationTimestamp"], "2001-01-01T00:00:00Z");
        sent.set(&["metadata", "labels", "c"], "d");
        let next = update(kind("pods"), &old, sent.clone(), "").unwrap();
        assert_eq!(next.text(&["status", "phase"]), "Pending");
        assert_eq!(next.label("c"), Some("d"));
        assert_eq!(next.text(&["metadata", "creationTimestamp"]), "1970-01-01T00:00:00Z");
        assert_eq!(next.get(&["metadata", "generation"]).unwrap(), 1);
        sent.set(&["spec", "tolerations"], json!([{"key": "a"}]));
        let next = update(kind("pods"), &old, sent.clone(), "").unwrap();
        assert_eq!(next.get(&["metadata", "generation"]).unwrap(), 2);
        let next = update(kind("pods"), &old, sent.clone(), "status").unwrap();
        assert_eq!(next.text(&["status", "phase"]), "Failed");
        assert_eq!(next.get(&["spec"]), old.get(&["spec"]));
        sent.set(&["metadata", "uid"], "other");
        assert_eq!(update(kind("pods"), &old, sent, "").unwrap_err().code, 409);
    }
}
