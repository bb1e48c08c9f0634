//! POST, PUT, PATCH, and the binding of a pod to a node.
//!
//! A write is compare-and-set on the store's revision. With a `resourceVersion` a conflict is the client's to resolve
//! (409); without one we read again and try again.

use axum::body::Bytes;
use axum::http::HeaderValue;
use axum::response::Response;
use schemas::Timestamp;
use schemas::name::NodeName;
use schemas::object::{Object, new_uid};
use schemas::subject::ObjectKey;
use serde_json::{Value, json};

use super::accept::{self, Form};
use super::{Api, Asked, CONFLICT_TRIES_MAX, json_body, prepare};
use crate::audit::Named;
use crate::patch::Patch;
use crate::resource::Kind;
use crate::status::{ApiError, json_response};
use crate::store::StoreError;
use crate::validate::{self, FieldValidation};

/// How often a generated name is tried.
const NAME_TRIES_MAX: usize = 8;

impl Api {
    pub(crate) async fn create(&self, asked: Asked, body: Bytes) -> Result<Response, ApiError> {
        let kind = asked.target.kind;
        let mode = FieldValidation::parse(asked.query.get("fieldValidation"))?;
        let dry_run = asked.query.dry_run()?;
        let mut sent = prepare::typed(kind, json_body(&asked, &body)?)?;
        let warnings = validate::shape(kind, &sent.clone().into(), mode)?;
        prepare::place(kind, &mut sent, asked.target.namespace.as_deref())?;
        let generated = sent.name().is_empty();
        let mut tries = 0;
        let created = loop {
            let object = prepare::create(kind, sent.clone(), &new_uid(), &random_suffix(), Timestamp::now())?;
            self.admit(kind, &object).await?;
            let key = object.key(&kind.resource());
            let outcome = if dry_run {
                match self.parts.store.get(&key).await? {
                    Some(_) => Err(StoreError::AlreadyExists),
                    None => Ok(object),
                }
            } else {
                self.parts.store.create(&key, &object).await
            };
            match outcome {
                Ok(object) => break object,
                Err(StoreError::AlreadyExists) if generated && tries < NAME_TRIES_MAX => tries += 1,
                Err(StoreError::AlreadyExists | StoreError::Conflict) => {
                    return Err(ApiError::already_exists(kind.plural, kind.group, &key.name));
                }
                Err(error) => return Err(error.into()),
            }
        };
        self.written(&asked, 201, &created, &warnings)
    }

    pub(crate) async fn update(&self, asked: Asked, body: Bytes) -> Result<Response, ApiError> {
        let kind = asked.target.kind;
        let mode = FieldValidation::parse(asked.query.get("fieldValidation"))?;
        let mut sent = prepare::typed(kind, json_body(&asked, &body)?)?;
        let warnings = validate::shape(kind, &sent.clone().into(), mode)?;
        prepare::place(kind, &mut sent, asked.target.namespace.as_deref())?;
        let updated = self.change(&asked, |_| Ok((sent.clone(), sent.revision()))).await?;
        self.written(&asked, 200, &updated, &warnings)
    }

    pub(crate) async fn patch(&self, asked: Asked, body: Bytes) -> Result<Response, ApiError> {
        let kind = asked.target.kind;
        let mode = FieldValidation::parse(asked.query.get("fieldValidation"))?;
        let patch = Patch::parse(asked.header("content-type"), &body)?;
        let mut warnings = Vec::new();
        let patched = self
            .change(&asked, |old| {
                // Without the old revision in it, only a patch that names one has one.
                let mut base = old.clone();
                if !matches!(patch, Patch::Json(_)) {
                    base.remove(&["metadata", "resourceVersion"]);
                }
                let mut next = prepare::typed(kind, patch.apply(&base.into())?)?;
                let expect = match &patch {
                    Patch::Json(_) if next.revision() == old.revision() => 0,
                    _ => next.revision(),
                };
                warnings = validate::shape(kind, &next.clone().into(), mode)?;
                prepare::place(kind, &mut next, asked.target.namespace.as_deref())?;
                Ok((next, expect))
            })
            .await?;
        self.written(&asked, 200, &patched, &warnings)
    }

    /// Reads, lets `next` make the next state (and say which revision it expects; 0: any), writes; again on conflict.
    async fn change(
        &self,
        asked: &Asked,
        mut next: impl FnMut(&Object) -> Result<(Object, u64), ApiError>,
    ) -> Result<Object, ApiError> {
        let kind = asked.target.kind;
        let key = asked.key()?;
        let dry_run = asked.query.dry_run()?;
        for _ in 0..CONFLICT_TRIES_MAX {
            let old = self.find(asked).await?;
            let (sent, expect) = next(&old)?;
            if expect != 0 && expect != old.revision() {
                return Err(ApiError::modified(&kind.qualified(), &key.name));
            }
            let new = prepare::update(kind, &old, sent, &asked.target.subresource)?;
            if dry_run || new == old {
                return Ok(new);
            }
            let outcome = if may_go(kind, &new) {
                self.parts.store.delete(&key, old.revision(), &new).await.map(|_| new)
            } else {
                self.parts.store.update(&key, &new, old.revision()).await
            };
            match outcome {
                Err(StoreError::Conflict) if expect == 0 => {}
                Err(StoreError::Conflict) => return Err(ApiError::modified(&kind.qualified(), &key.name)),
                outcome => return Ok(outcome?),
            }
        }
        Err(ApiError::modified(&kind.qualified(), &key.name))
    }

    /// May an object be created there? Its namespace has to be there, and to stay.
    async fn admit(&self, kind: &Kind, object: &Object) -> Result<(), ApiError> {
        if !kind.namespaced {
            return Ok(());
        }
        let name = object.namespace();
        match self.parts.store.get(&ObjectKey::core("namespaces", "", name)).await? {
            None => Err(ApiError::not_found("namespaces", "", name)),
            Some(namespace) if namespace.is_deleting() => {
                let why = format!(
                    "unable to create new content in namespace {name} because it is being terminated"
                );
                let mut error = ApiError::forbidden(&kind.qualified(), object.name(), &why);
                if let Some(details) = error.details.as_mut().and_then(Value::as_object_mut) {
                    details.insert(
                        "causes".into(),
                        json!([{"reason": "NamespaceTerminating", "field": "metadata.namespace", "message": why}]),
                    );
                }
                Err(error)
            }
            Some(_) => Ok(()),
        }
    }

    /// POST of `pods/<name>/binding`: the scheduler's decision.
    pub(crate) async fn bind(&self, asked: Asked, body: Bytes) -> Result<Response, ApiError> {
        let binding = json_body(&asked, &body)?;
        let node = binding.pointer("/target/name").and_then(Value::as_str).unwrap_or("");
        let node =
            NodeName::new(node).map_err(|error| ApiError::bad_request(format!("target.name: {error}")))?;
        let key = asked.key()?;
        for _ in 0..CONFLICT_TRIES_MAX {
            let mut pod = self.find(&asked).await?;
            let bound = pod.text(&["spec", "nodeName"]).to_owned();
            if pod.is_deleting() || !bound.is_empty() {
                let why = if bound.is_empty() {
                    format!("pod {} is being deleted, cannot be assigned to a host", key.name)
                } else {
                    format!("pod {} is already assigned to node {bound:?}", key.name)
                };
                return Err(ApiError::conflict("pods/binding", &key.name, why));
            }
            pod.set(&["spec", "nodeName"], node.as_str());
            pod.set_condition("PodScheduled", "True", "", "", Timestamp::now());
            if asked.query.dry_run()? {
                break;
            }
            match self.parts.store.update(&key, &pod, pod.revision()).await {
                Err(StoreError::Conflict) => continue,
                Err(error) => return Err(error.into()),
                Ok(_) => break,
            }
        }
        Ok(json_response(
            201,
            &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
        ))
    }

    fn written(
        &self,
        asked: &Asked,
        code: u16,
        object: &Object,
        warnings: &[String],
    ) -> Result<Response, ApiError> {
        let form = Form::parse(&asked.head.headers)?;
        let include = accept::include(&asked.query)?;
        let mut response = json_response(code, &accept::one(asked.target.kind, object, form, include));
        for warning in warnings {
            // RFC 7234 warn-code 299, as Kubernetes sends them.
            let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
            if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
                response.headers_mut().append("warning", value);
            }
        }
        if asked.target.name.is_none() {
            response.extensions_mut().insert(Named(object.name().to_owned()));
        }
        Ok(response)
    }
}

/// Was the last thing that kept a deleted object removed by this write?
fn may_go(kind: &Kind, object: &Object) -> bool {
    let waits = match kind.kind {
        // A pod with time left is removed when its node has stopped it.
        "Pod" => {
            object.get(&["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64).unwrap_or(0) > 0
        }
        "Namespace" => true,
        _ => false,
    };
    object.is_deleting() && prepare::finalizers(object).is_empty() && !waits
}

/// Five characters, as Kubernetes completes `generateName`: no vowels, so no words.
fn random_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    new_uid()
        .bytes()
        .filter(u8::is_ascii_hexdigit)
        .collect::<Vec<_>>()
        .chunks(2)
        .filter_map(|pair| {
            let pair = std::str::from_utf8(pair).ok()?;
            let byte = usize::from(u8::from_str_radix(pair, 16).ok()?);
            ALPHABET.get(byte % ALPHABET.len()).map(|c| char::from(*c))
        })
        .take(5)
        .collect()
}
