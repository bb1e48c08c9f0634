//! DELETE of one object and of a collection: grace for pods, finalizers, preconditions.
//!
//! A pod on a node is only marked (`deletionTimestamp`); it goes when its node has reported it stopped. A pod that was
//! never bound, has ended, or is deleted with grace 0 goes at once. A namespace is marked, emptied, then removed.

use axum::body::Bytes;
use axum::response::Response;
use schemas::Timestamp;
use schemas::object::Object;
use schemas::subject::ObjectKey;
use serde_json::{Value, json};

use super::{Api, Asked, CONFLICT_TRIES_MAX, json_body, prepare};
use crate::resource::Kind;
use crate::selector::Selector;
use crate::status::{ApiError, json_response};
use crate::store::StoreError;

/// Namespaces that stay.
pub const NAMESPACES_KEPT: &[&str] = &["default", "kube-system", "kube-public"];

/// `metav1.DeleteOptions`, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    grace_seconds: Option<i64>,
    uid: Option<String>,
    revision: Option<String>,
    dry_run: bool,
}

impl Options {
    fn parse(asked: &Asked, body: &[u8]) -> Result<Self, ApiError> {
        let mut this = Self { dry_run: asked.query.dry_run()?, ..Self::default() };
        if !body.iter().all(u8::is_ascii_whitespace) {
            let body = json_body(asked, body)?;
            this.grace_seconds = body.get("gracePeriodSeconds").and_then(Value::as_i64);
            let precondition =
                |name: &str| body.pointer(&format!("/preconditions/{name}")).and_then(Value::as_str);
            this.uid = precondition("uid").map(str::to_owned);
            this.revision = precondition("resourceVersion").map(str::to_owned);
            this.dry_run |= body.get("dryRun").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
        }
        if let Some(seconds) = asked.query.number("gracePeriodSeconds")? {
            this.grace_seconds = i64::try_from(seconds).ok();
        }
        if this.grace_seconds.is_some_and(|s| s < 0) {
            return Err(ApiError::new(
                422,
                "Invalid",
                "gracePeriodSeconds: Invalid value: must be greater than or equal to 0",
            ));
        }
        Ok(this)
    }
}

/// What a DELETE does to an object.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// It is on its way out already.
    Nothing,
    /// Mark it.
    Mark(Object),
    /// Remove it; this is its last state.
    Remove(Object),
}

/// Decides. Pure.
fn step(kind: &Kind, old: &Object, options: &Options, now: Timestamp) -> Step {
    let marked = |grace: i64| {
        let mut object = old.clone();
        let until = now.plus_ms(u64::try_from(grace).unwrap_or(0).saturating_mul(1000));
        object.set(&["metadata", "deletionTimestamp"], until.rfc3339());
        object.set(&["metadata", "deletionGracePeriodSeconds"], grace);
        object
    };
    if kind.kind == "Namespace" {
        if old.is_deleting() {
            return Step::Nothing;
        }
        let mut object = marked(0);
        object.remove(&["metadata", "deletionGracePeriodSeconds"]);
        object.set(&["status", "phase"], "Terminating");
        return Step::Mark(object);
    }
    let grace = if kind.kind == "Pod" { pod_grace(old, options) } else { 0 };
    let earlier = old.get(&["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64).unwrap_or(0);
    if grace > 0 {
        return if old.is_deleting() && earlier <= grace { Step::Nothing } else { Step::Mark(marked(grace)) };
    }
    if prepare::finalizers(old).is_empty() {
        return Step::Remove(if old.is_deleting() { old.clone() } else { marked(0) });
    }
    if old.is_deleting() && earlier == 0 { Step::Nothing } else { Step::Mark(marked(0)) }
}

/// The seconds that a pod gets to end.
fn pod_grace(pod: &Object, options: &Options) -> i64 {
    let ended = matches!(pod.text(&["status", "phase"]), "Succeeded" | "Failed");
    if pod.text(&["spec", "nodeName"]).is_empty() || ended {
        return 0;
    }
    let own = pod.get(&["spec", "terminationGracePeriodSeconds"]).and_then(Value::as_i64);
    options.grace_seconds.or(own).unwrap_or(30).max(0)
}

impl Api {
    pub(crate) async fn delete(&self, asked: Asked, body: Bytes) -> Result<Response, ApiError> {
        let kind = asked.target.kind;
        let options = Options::parse(&asked, &body)?;
        let key = asked.key()?;
        let (object, gone) = self.delete_one(kind, &key, &options).await?;
        if !gone || kind.kind == "Pod" {
            return Ok(json_response(200, &object.into()));
        }
        let details =
            json!({"name": key.name, "group": kind.group, "kind": kind.plural, "uid": object.uid()});
        Ok(json_response(
            200,
            &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}),
        ))
    }

    /// Deletes one object; gives its last state, and whether it is gone.
    pub(crate) async fn delete_one(
        &self,
        kind: &Kind,
        key: &ObjectKey,
        options: &Options,
    ) -> Result<(Object, bool), ApiError> {
        if kind.kind == "Namespace" && NAMESPACES_KEPT.contains(&key.name.as_str()) {
            return Err(ApiError::forbidden("namespaces", &key.name, "this namespace may not be deleted"));
        }
        for _ in 0..CONFLICT_TRIES_MAX {
            let old = self.parts.store.get(key).await?;
            let old = old.ok_or_else(|| ApiError::not_found(kind.plural, kind.group, &key.name))?;
            for (what, want, have) in [
                ("UID", &options.uid, old.uid()),
                ("ResourceVersion", &options.revision, old.text(&["metadata", "resourceVersion"])),
            ] {
                if let Some(want) = want.as_deref().filter(|want| *want != have) {
                    let why = format!(
                        "Precondition failed: {what} in precondition: {want}, {what} in object meta: {have}"
                    );
                    return Err(ApiError::conflict(&kind.qualified(), &key.name, why));
                }
            }
            let outcome = match step(kind, &old, options, Timestamp::now()) {
                Step::Nothing => return Ok((old, false)),
                Step::Mark(object) if options.dry_run => return Ok((object, false)),
                Step::Remove(object) if options.dry_run => return Ok((object, true)),
                Step::Mark(object) => {
                    self.parts.store.update(key, &object, old.revision()).await.map(|o| (o, false))
                }
                Step::Remove(mut object) => match self.parts.store.delete(key, old.revision(), &object).await
                {
                    Ok(revision) => {
                        object.set(&["metadata", "resourceVersion"], revision.to_string());
                        Ok((object, true))
                    }
                    Err(error) => Err(error),
                },
            };
            match outcome {
                Err(StoreError::Conflict) => {}
                outcome => return Ok(outcome?),
            }
        }
        Err(ApiError::modified(&kind.qualified(), &key.name))
    }

    pub(crate) async fn delete_collection(&self, asked: Asked, body: Bytes) -> Result<Response, ApiError> {
        let kind = asked.target.kind;
        if kind.namespaced && asked.target.namespace.is_none() {
            return Err(asked.not_allowed());
        }
        let options = Options::parse(&asked, &body)?;
        let selector =
            Selector::parse(kind, asked.query.get("labelSelector"), asked.query.get("fieldSelector"))?;
        let (objects, revision) = self.chosen(&asked, &selector).await?;
        let mut items = Vec::new();
        for object in objects {
            match self.delete_one(kind, &object.key(&kind.resource()), &options).await {
                Ok((object, _)) => items.push(Value::from(object)),
                Err(error) if error.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(json_response(
            200,
            &json!({
                "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(),
                "metadata": {"resourceVersion": revision.to_string()}, "items": items,
            }),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_delete_does() {
        let kind = |plural: &str| crate::resource::find("", "v1", plural).unwrap();
        let pod = |extra: Value| {
            let mut pod = Object::new("v1", "Pod", "default", "a");
            pod.set(&["spec"], json!({"nodeName": "n", "terminationGracePeriodSeconds": 5}));
            for (pointer, value) in extra.as_object().unwrap() {
                pod.set(&pointer.split('.').collect::<Vec<_>>(), value.clone());
            }
            pod
        };
        let name = |kind: &Kind, object: &Object, grace: Option<i64>| {
            let options = Options { grace_seconds: grace, ..Options::default() };
            match step(kind, object, &options, Timestamp(0)) {
                Step::Nothing => "nothing".to_owned(),
                Step::Mark(o) => format!(
                    "mark {}",
                    o.get(&["metadata", "deletionGracePeriodSeconds"]).unwrap_or(&Value::Null)
                ),
                Step::Remove(_) => "remove".to_owned(),
            }
        };
        let deleting = |grace: i64| json!({"metadata.deletionTimestamp": "x", "metadata.deletionGracePeriodSeconds": grace});
        for (extra, grace, want) in [
            (json!({}), None, "mark 5"),
            (json!({}), Some(9), "mark 9"),
            (json!({}), Some(0), "remove"),
            (json!({"spec.nodeName": ""}), None, "remove"),
            (json!({"status.phase": "Failed"}), None, "remove"),
            (deleting(5), None, "nothing"),
            (deleting(5), Some(1), "mark 1"),
            (deleting(5), Some(0), "remove"),
            (json!({"metadata.finalizers": ["x"]}), Some(0), "mark 0"),
            (json!({"metadata.finalizers": ["x"], "spec.nodeName": ""}), None, "mark 0"),
        ] {
            assert_eq!(name(kind("pods"), &pod(extra.clone()), grace), want, "{extra} {grace:?}");
        }
        assert_eq!(name(kind("configmaps"), &Object::new("v1", "ConfigMap", "d", "a"), None), "remove");
        assert_eq!(name(kind("namespaces"), &Object::new("v1", "Namespace", "", "a"), None), "mark null");
    }
}
