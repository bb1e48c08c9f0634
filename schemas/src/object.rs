//! Kubernetes objects, stored whole: what a user sent comes back, unknown fields too.
//!
//! [`Object`] is the JSON document. Typed structs of `k8s-openapi` are views for reading ([`Object::view`]), never a
//! round trip that would drop what they don't know. `metadata.resourceVersion` is the revision of the object's KV
//! entry: it is set on reading and never stored.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::subject::{ObjectKey, Resource};

/// One object. The inner value is always a JSON object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Object(Map<String, Value>);

/// Why a document is not an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// The document's top is an array, a string, ...
    #[error("the document is not a JSON object")]
    NotAnObject,
    /// A typed view does not fit.
    #[error("{field}")]
    View {
        /// serde's words: path and what was wrong.
        field: String,
    },
}

impl TryFrom<Value> for Object {
    type Error = ObjectError;
    fn try_from(value: Value) -> Result<Self, ObjectError> {
        match value {
            Value::Object(map) => Ok(Self(map)),
            _ => Err(ObjectError::NotAnObject),
        }
    }
}

impl From<Object> for Value {
    fn from(object: Object) -> Value {
        Value::Object(object.0)
    }
}

impl Object {
    /// An object of that kind with a name, and nothing else.
    pub fn new(api_version: &str, kind: &str, namespace: &str, name: &str) -> Self {
        let mut this = Self(Map::new());
        this.set(&["apiVersion"], api_version);
        this.set(&["kind"], kind);
        this.set(&["metadata", "name"], name);
        if !namespace.is_empty() {
            this.set(&["metadata", "namespace"], namespace);
        }
        this
    }

    /// The document.
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The document, to edit.
    pub fn as_map_mut(&mut self) -> &mut Map<String, Value> {
        &mut self.0
    }

    /// The value at a path of field names; `None` where any part is missing.
    pub fn get(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.0.get(*first)?, |value, name| value.get(name))
    }

    /// The text at a path; empty where it is missing or is not text.
    pub fn text(&self, path: &[&str]) -> &str {
        self.get(path).and_then(Value::as_str).unwrap_or("")
    }

    /// Sets the value at a path, making the objects on the way (and replacing what is none).
    pub fn set(&mut self, path: &[&str], value: impl Into<Value>) {
        let Some((last, parents)) = path.split_last() else { return };
        let mut map = &mut self.0;
        for name in parents {
            let entry = map.entry((*name).to_owned()).or_insert_with(|| Value::Object(Map::new()));
            if !entry.is_object() {
                *entry = Value::Object(Map::new());
            }
            match entry {
                Value::Object(inner) => map = inner,
                _ => return,
            }
        }
        map.insert((*last).to_owned(), value.into());
    }

    /// Removes the value at a path and gives it back.
    pub fn remove(&mut self, path: &[&str]) -> Option<Value> {
        let (last, parents) = path.split_last()?;
        let mut map = &mut self.0;
        for name in parents {
            map = map.get_mut(*name)?.as_object_mut()?;
        }
        map.remove(*last)
    }

    /// A typed view for reading, such as `k8s_openapi::api::core::v1::Pod`.
    pub fn view<T: DeserializeOwned>(&self) -> Result<T, ObjectError> {
        T::deserialize(Value::Object(self.0.clone()))
            .map_err(|error| ObjectError::View { field: error.to_string() })
    }

    /// `kind`.
    pub fn kind(&self) -> &str {
        self.text(&["kind"])
    }
    /// `apiVersion`.
    pub fn api_version(&self) -> &str {
        self.text(&["apiVersion"])
    }
    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.text(&["metadata", "name"])
    }
    /// `metadata.namespace`; empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        self.text(&["metadata", "namespace"])
    }
    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        self.text(&["metadata", "uid"])
    }
    /// `metadata.deletionTimestamp` is set: the object is on its way out.
    pub fn is_deleting(&self) -> bool {
        self.get(&["metadata", "deletionTimestamp"]).is_some_and(|v| !v.is_null())
    }
    /// `metadata.resourceVersion` as the revision it stands for; 0 when it is not set.
    pub fn revision(&self) -> u64 {
        self.text(&["metadata", "resourceVersion"]).parse().unwrap_or(0)
    }
    /// One of `metadata.labels`.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.get(&["metadata", "labels", key]).and_then(Value::as_str)
    }
    /// One of `metadata.annotations`.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.get(&["metadata", "annotations", key]).and_then(Value::as_str)
    }

    /// Where the object stands in the store, as an object of `resource`.
    pub fn key(&self, resource: &Resource) -> ObjectKey {
        ObjectKey {
            resource: resource.clone(),
            namespace: self.namespace().to_owned(),
            name: self.name().to_owned(),
        }
    }

    /// The bytes to store: MessagePack, without `resourceVersion`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut stored = self.clone();
        stored.remove(&["metadata", "resourceVersion"]);
        crate::encode(&stored)
    }

    /// Reads stored bytes; `revision` becomes `resourceVersion`.
    pub fn from_bytes(bytes: &[u8], revision: u64) -> Result<Self, crate::DecodeError> {
        let mut object: Self = crate::decode(bytes)?;
        if revision > 0 {
            object.set(&["metadata", "resourceVersion"], revision.to_string());
        }
        Ok(object)
    }

    /// Adds or replaces the condition of that type in `status.conditions`; `lastTransitionTime` moves only when the
    /// status changes. Says whether anything changed.
    pub fn set_condition(
        &mut self,
        kind: &str,
        status: &str,
        reason: &str,
        message: &str,
        now: crate::Timestamp,
    ) -> bool {
        let mut conditions =
            self.get(&["status", "conditions"]).and_then(Value::as_array).cloned().unwrap_or_default();
        let found = conditions.iter_mut().find(|c| c.get("type").and_then(Value::as_str) == Some(kind));
        let text = |c: &Value, name: &str| c.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
        let mut since = now.rfc3339();
        if let Some(old) = found.as_deref().filter(|old| text(old, "status") == status) {
            if text(old, "reason") == reason && text(old, "message") == message {
                return false;
            }
            since = text(old, "lastTransitionTime");
        }
        let mut new = serde_json::json!({"type": kind, "status": status, "lastTransitionTime": since});
        for (name, value) in [("reason", reason), ("message", message)] {
            if let (false, Some(map)) = (value.is_empty(), new.as_object_mut()) {
                map.insert(name.to_owned(), value.into());
            }
        }
        match found {
            Some(old) => *old = new,
            None => conditions.push(new),
        }
        self.set(&["status", "conditions"], conditions);
        true
    }

    /// `status` of the condition of that type.
    pub fn condition(&self, kind: &str) -> Option<&str> {
        self.get(&["status", "conditions"])?
            .as_array()?
            .iter()
            .find(|c| c.get("type").and_then(Value::as_str) == Some(kind))?
            .get("status")?
            .as_str()
    }
}

/// A random UID (RFC 9562 version 4), as Kubernetes gives objects. For the rim only.
pub fn new_uid() -> String {
    let mut bytes = [0u8; 16];
    // Without randomness nothing safe can go on; the kernel's source fails only before it is seeded.
    if getrandom::fill(&mut bytes).is_err() {
        let now = crate::Timestamp::now().0.to_le_bytes();
        for (byte, seed) in bytes.iter_mut().zip(now.iter().cycle()) {
            *byte ^= seed;
        }
    }
    uid_from(bytes)
}

/// The version 4 UUID of 16 given bytes.
pub fn uid_from(mut bytes: [u8; 16]) -> String {
    let [_, _, _, _, _, _, version, _, variant, ..] = &mut bytes;
    *version = (*version & 0x0f) | 0x40;
    *variant = (*variant & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or("");
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_fields_survive_the_store() {
        let sent = json!({"kind": "Pod", "metadata": {"name": "a", "resourceVersion": "3"}, "vendor": {"x": [1, 2.5, null]}});
        let object = Object::try_from(sent).unwrap();
        let back = Object::from_bytes(&object.to_bytes(), 9).unwrap();
        assert_eq!(back.get(&["vendor"]), object.get(&["vendor"]));
        assert_eq!(back.revision(), 9);
        assert_eq!(Object::from_bytes(&object.to_bytes(), 0).unwrap().revision(), 0);
    }

    #[test]
    fn a_condition_moves_its_time_only_with_its_status() {
        let mut node = Object::new("v1", "Node", "", "n");
        assert!(node.set_condition("Ready", "True", "A", "", crate::Timestamp(0)));
        assert!(!node.set_condition("Ready", "True", "A", "", crate::Timestamp(5_000)));
        assert!(node.set_condition("Ready", "True", "B", "", crate::Timestamp(5_000)));
        let since = |o: &Object| o.get(&["status", "conditions"]).unwrap()[0]["lastTransitionTime"].clone();
        assert_eq!(since(&node), json!("1970-01-01T00:00:00Z"));
        assert!(node.set_condition("Ready", "Unknown", "B", "", crate::Timestamp(5_000)));
        assert_eq!(since(&node), json!("1970-01-01T00:00:05Z"));
        assert_eq!(node.condition("Ready"), Some("Unknown"));
    }

    #[test]
    fn uids_have_the_form_of_uuid_4() {
        let uid = new_uid();
        assert_eq!(uid.len(), 36);
        assert_eq!(uid.as_bytes()[14], b'4');
        assert_ne!(uid, new_uid());
    }
}
