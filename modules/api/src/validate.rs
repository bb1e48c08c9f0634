//! What every object must fulfil, and the small kinds' own rules. Pods have a file of their own.
//!
//! Source: Kubernetes' API conventions and `apimachinery/pkg/api/validation`. Everything here is pure: an object goes
//! in, causes come out.

use k8s_openapi::serde::{Serialize, de::DeserializeOwned};
use schemas::name::{Namespace, NodeName, check_object_name};
use schemas::object::Object;
use serde_json::Value;

use crate::resource::Kind;
use crate::status::{ApiError, Cause};

/// As in Kubernetes: all annotations of an object together.
const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;
/// As in Kubernetes: the data of a ConfigMap or Secret.
const DATA_MAX_BYTES: usize = 1024 * 1024;

/// How to treat fields that the kind's typed struct does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    /// Keep them, say nothing.
    Ignore,
    /// Keep them and warn: the default.
    Warn,
    /// Refuse them.
    Strict,
}

impl FieldValidation {
    /// Reads the query parameter.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        match text {
            "Ignore" => Ok(Self::Ignore),
            "" | "Warn" => Ok(Self::Warn),
            "Strict" => Ok(Self::Strict),
            other => Err(ApiError::new(
                422,
                "Invalid",
                format!("fieldValidation: Unsupported value: {other:?}: use Ignore, Warn or Strict"),
            )),
        }
    }
}

/// Reads `value` as `T` and writes it again. The error names the path of what does not fit.
pub fn round_trip<T: DeserializeOwned + Serialize>(value: &Value) -> Result<Value, String> {
    let typed: T = serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        format!("{path}: {}", error.into_inner())
    })?;
    serde_json::to_value(typed).map_err(|error| error.to_string())
}

/// Checks that the document has the kind's shape. Gives the warnings to send (unknown fields), or refuses.
pub fn shape(kind: &Kind, document: &Value, mode: FieldValidation) -> Result<Vec<String>, ApiError> {
    let known = (kind.view)(document).map_err(|why| {
        ApiError::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {why}",
            kind.kind,
            kind.api_version(),
            kind.kind
        ))
    })?;
    if mode == FieldValidation::Ignore {
        return Ok(Vec::new());
    }
    let mut unknown = Vec::new();
    collect_unknown(document, &known, "", &mut unknown);
    let warnings: Vec<String> = unknown.into_iter().map(|path| format!("unknown field {path:?}")).collect();
    if mode == FieldValidation::Strict && !warnings.is_empty() {
        return Err(ApiError::bad_request(format!("strict decoding error: {}", warnings.join(", "))));
    }
    Ok(warnings)
}

/// The most unknown fields that are named.
const UNKNOWN_MAX: usize = 20;

fn collect_unknown(sent: &Value, known: &Value, path: &str, unknown: &mut Vec<String>) {
    if unknown.len() >= UNKNOWN_MAX {
        return;
    }
    match (sent, known) {
        (Value::Object(sent), Value::Object(known)) => {
            for (name, value) in sent {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match known.get(name) {
                    Some(other) => collect_unknown(value, other, &path, unknown),
                    // A null says "not given", which typed structs do not write.
                    None if value.is_null() => {}
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(sent), Value::Array(known)) => {
            for (index, (value, other)) in sent.iter().zip(known).enumerate() {
                collect_unknown(value, other, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

/// What is wrong with an object's metadata.
pub fn metadata(kind: &Kind, object: &Object) -> Vec<Cause> {
    let mut causes = Vec::new();
    let name = object.name();
    if name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else if let Err(why) = check_object_name(name) {
        causes.push(Cause::invalid("metadata.name", &name.into(), why));
    }
    if let Some(labels) = object.get(&["metadata", "labels"]).and_then(Value::as_object) {
        for (key, value) in labels {
            if let Err(why) = check_qualified_name(key) {
                causes.push(Cause::invalid("metadata.labels", &key.as_str().into(), why));
            }
            if let Err(why) =
                value.as_str().ok_or_else(|| "must be text".to_owned()).and_then(check_label_value)
            {
                causes.push(Cause::invalid(format!("metadata.labels[{key}]"), value, why));
            }
        }
    }
    if let Some(annotations) = object.get(&["metadata", "annotations"]).and_then(Value::as_object) {
        let mut size_bytes = 0;
        for (key, value) in annotations {
            size_bytes += key.len() + value.as_str().map_or(0, str::len);
            if let Err(why) = check_qualified_name(&key.to_lowercase()) {
                causes.push(Cause::invalid("metadata.annotations", &key.as_str().into(), why));
            }
        }
        if size_bytes > ANNOTATIONS_MAX_BYTES {
            let why =
                format!("Too long: all annotations together may have at most {ANNOTATIONS_MAX_BYTES} bytes");
            causes.push(Cause {
                reason: "FieldValueTooLong",
                field: "metadata.annotations".into(),
                message: why,
            });
        }
    }
    if let Some(list) = object.get(&["metadata", "finalizers"]).and_then(Value::as_array) {
        for value in list {
            if let Err(why) = check_qualified_name(value.as_str().unwrap_or("")) {
                causes.push(Cause::invalid("metadata.finalizers", value, why));
            }
        }
    }
    if kind.namespaced && Namespace::new(object.namespace()).is_err() {
        causes.push(Cause::invalid(
            "metadata.namespace",
            &object.namespace().into(),
            "must be a lower case RFC 1123 label",
        ));
    }
    causes
}

/// A qualified name: `name`, or `domain/name`. Label keys, annotation keys, finalizers.
pub fn check_qualified_name(text: &str) -> Result<(), String> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    if let Some(prefix) = prefix {
        check_object_name(prefix)
            .map_err(|_| format!("the part before '/' in {text:?} must be a DNS name"))?;
    }
    if name.is_empty() || !is_label_text(name) {
        return Err(format!(
            "{text:?} must be at most 63 letters, digits, '-', '_' and '.', starting and ending with a letter or digit"
        ));
    }
    Ok(())
}

/// A label's value.
pub fn check_label_value(text: &str) -> Result<(), String> {
    if text.is_empty() || is_label_text(text) {
        return Ok(());
    }
    Err("a valid label must be empty or at most 63 letters, digits, '-', '_' and '.', starting and ending with a letter \
         or digit"
        .to_owned())
}

fn is_label_text(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && edge(text.chars().next())
        && edge(text.chars().next_back())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// Namespace: its name is one label.
pub fn namespace(object: &Object) -> Vec<Cause> {
    label_name(object, Namespace::new(object.name()).err().map(|e| e.to_string()))
}

/// Node: its name is one label, because it is one token of a subject.
pub fn node(object: &Object) -> Vec<Cause> {
    label_name(object, NodeName::new(object.name()).err().map(|e| e.to_string()))
}

fn label_name(object: &Object, error: Option<String>) -> Vec<Cause> {
    error.into_iter().map(|why| Cause::invalid("metadata.name", &object.name().into(), why)).collect()
}

/// ConfigMap.
pub fn config_map(object: &Object) -> Vec<Cause> {
    let mut causes = data(object, &["data", "binaryData"]);
    let keys = |field: &str| object.get(&[field]).and_then(Value::as_object);
    if let (Some(texts), Some(binaries)) = (keys("data"), keys("binaryData")) {
        for key in texts.keys().filter(|k| binaries.contains_key(*k)) {
            causes.push(Cause::invalid(
                format!("data[{key}]"),
                &key.as_str().into(),
                "stands in binaryData too",
            ));
        }
    }
    causes
}

/// Secret.
pub fn secret(object: &Object) -> Vec<Cause> {
    data(object, &["data"])
}

fn data(object: &Object, fields: &[&str]) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut size_bytes = 0;
    for field in fields {
        let Some(map) = object.get(&[field]).and_then(Value::as_object) else { continue };
        for (key, value) in map {
            size_bytes += value.as_str().map_or(0, str::len);
            let legal = key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
            if key.is_empty()
                || key.len() > 253
                || !legal
                || key == "."
                || key == ".."
                || key.starts_with("..")
            {
                causes.push(Cause::invalid(
                    format!("{field}[{key}]"),
                    &key.as_str().into(),
                    "a valid key has at most 253 letters, digits, '-', '_' and '.', and does not begin with '..'",
                ));
            }
        }
    }
    if size_bytes > DATA_MAX_BYTES {
        let why = format!("Too long: may have at most {DATA_MAX_BYTES} bytes");
        causes.push(Cause { reason: "FieldValueTooLong", field: "data".into(), message: why });
    }
    causes
}

/// An immutable ConfigMap stays as it is.
pub fn config_map_update(old: &Object, new: &Object) -> Vec<Cause> {
    immutable(old, new, &["data", "binaryData"])
}

/// A Secret keeps its type; an immutable one stays as it is.
pub fn secret_update(old: &Object, new: &Object) -> Vec<Cause> {
    let mut causes = immutable(old, new, &["data"]);
    if old.text(&["type"]) != new.text(&["type"]) {
        causes.push(Cause::invalid("type", &new.text(&["type"]).into(), "field is immutable"));
    }
    causes
}

fn immutable(old: &Object, new: &Object, fields: &[&str]) -> Vec<Cause> {
    let is_immutable = |o: &Object| o.get(&["immutable"]).and_then(Value::as_bool) == Some(true);
    if !is_immutable(old) {
        return Vec::new();
    }
    let why = "field is immutable when `immutable` is set";
    let mut causes = Vec::new();
    if !is_immutable(new) {
        causes.push(Cause::forbidden("immutable", why));
    }
    for field in fields.iter().filter(|f| old.get(&[f]) != new.get(&[f])) {
        causes.push(Cause::forbidden(*field, why));
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kind(plural: &str) -> &'static Kind {
        crate::resource::find("", "v1", plural).unwrap()
    }

    #[test]
    fn unknown_fields_are_named_with_their_path() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "extra": 1},
            "spec": {"containers": [{"name": "c", "image": "i", "imagee": "x", "args": null}]},
        });
        let warnings = shape(kind("pods"), &pod, FieldValidation::Warn).unwrap();
        assert_eq!(
            warnings,
            ["unknown field \"metadata.extra\"", "unknown field \"spec.containers[0].imagee\""]
        );
        let error = shape(kind("pods"), &pod, FieldValidation::Strict).unwrap_err();
        assert_eq!(error.code, 400);
        assert!(error.message.starts_with("strict decoding error: unknown field"), "{}", error.message);
        assert!(shape(kind("pods"), &pod, FieldValidation::Ignore).unwrap().is_empty());
        let wrong = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": 3}]}});
        let error = shape(kind("pods"), &wrong, FieldValidation::Ignore).unwrap_err();
        assert!(error.message.contains("spec.containers[0].name"), "{}", error.message);
    }

    #[test]
    fn metadata_is_checked() {
        let check = |meta: Value| {
            let object = Object::try_from(json!({"metadata": meta})).unwrap();
            metadata(kind("configmaps"), &object).iter().map(|c| c.field.clone()).collect::<Vec<_>>()
        };
        assert!(check(json!({"name": "a.b", "namespace": "x", "labels": {"a.io/b": "c"}})).is_empty());
        assert_eq!(check(json!({"namespace": "x"})), ["metadata.name"]);
        assert_eq!(check(json!({"name": "A", "namespace": "x"})), ["metadata.name"]);
        assert_eq!(
            check(json!({"name": "a", "namespace": "x", "labels": {"-": "b c"}})),
            ["metadata.labels", "metadata.labels[-]"]
        );
        let big =
            json!({"name": "a", "namespace": "x", "annotations": {"a": "x".repeat(ANNOTATIONS_MAX_BYTES)}});
        assert_eq!(check(big), ["metadata.annotations"]);
    }

    #[test]
    fn data_keys_and_immutability() {
        let object = |value: Value| Object::try_from(value).unwrap();
        assert!(config_map(&object(json!({"data": {"a.b-c_d": "x"}}))).is_empty());
        assert_eq!(config_map(&object(json!({"data": {"a/b": "x"}}))).len(), 1);
        assert_eq!(config_map(&object(json!({"data": {"a": "x"}, "binaryData": {"a": "eA=="}}))).len(), 1);
        assert_eq!(secret(&object(json!({"data": {"a": "x".repeat(DATA_MAX_BYTES + 1)}}))).len(), 1);
        let old = object(json!({"immutable": true, "data": {"a": "1"}}));
        assert!(config_map_update(&old, &old).is_empty());
        assert_eq!(config_map_update(&old, &object(json!({"data": {"a": "2"}}))).len(), 2);
        assert_eq!(secret_update(&object(json!({"type": "A"})), &object(json!({"type": "B"}))).len(), 1);
    }
}
