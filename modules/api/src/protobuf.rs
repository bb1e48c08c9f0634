//! Kubernetes' protobuf bodies as JSON, for the few messages that kubectl sends so.
//!
//! Measured: kubectl 1.32's `create namespace`, `create configmap` and `create secret` send
//! `application/vnd.kubernetes.protobuf` and do not fall back to JSON; its answers may be JSON. So these kinds (and
//! `DeleteOptions`) are read here, by tables of field numbers from `generated.proto` of k8s.io/api; any other
//! kind is refused with 415. The envelope is `k8s\0` and a `runtime.Unknown`. Pure.

use base64::Engine;
use schemas::Timestamp;
use serde_json::{Map, Value, json};

/// The media type.
pub const MEDIA: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";

/// What a field holds.
#[derive(Clone, Copy)]
enum Type {
    Text,
    Int,
    Bool,
    Time,
    Message(&'static [Field]),
    TextMap,
    BytesMap,
}

/// Number, JSON name, content, repeated?
type Field = (u64, &'static str, Type, bool);

use Type::{Bool, BytesMap, Int, Message, Text, TextMap, Time};

const OWNER_REFERENCE: &[Field] = &[
    (1, "kind", Text, false),
    (3, "name", Text, false),
    (4, "uid", Text, false),
    (5, "apiVersion", Text, false),
    (6, "controller", Bool, false),
    (7, "blockOwnerDeletion", Bool, false),
];
const OBJECT_META: &[Field] = &[
    (1, "name", Text, false),
    (2, "generateName", Text, false),
    (3, "namespace", Text, false),
    (5, "uid", Text, false),
    (6, "resourceVersion", Text, false),
    (7, "generation", Int, false),
    (8, "creationTimestamp", Time, false),
    (9, "deletionTimestamp", Time, false),
    (10, "deletionGracePeriodSeconds", Int, false),
    (11, "labels", TextMap, false),
    (12, "annotations", TextMap, false),
    (13, "ownerReferences", Message(OWNER_REFERENCE), true),
    (14, "finalizers", Text, true),
];
const NAMESPACE: &[Field] = &[
    (1, "metadata", Message(OBJECT_META), false),
    (2, "spec", Message(&[(1, "finalizers", Text, true)]), false),
    (3, "status", Message(&[(1, "phase", Text, false)]), false),
];
const CONFIG_MAP: &[Field] = &[
    (1, "metadata", Message(OBJECT_META), false),
    (2, "data", TextMap, false),
    (3, "binaryData", BytesMap, false),
    (4, "immutable", Bool, false),
];
const SECRET: &[Field] = &[
    (1, "metadata", Message(OBJECT_META), false),
    (2, "data", BytesMap, false),
    (3, "type", Text, false),
    (4, "stringData", TextMap, false),
    (5, "immutable", Bool, false),
];
const DELETE_OPTIONS: &[Field] = &[
    (1, "gracePeriodSeconds", Int, false),
    (2, "preconditions", Message(&[(1, "uid", Text, false), (2, "resourceVersion", Text, false)]), false),
    (4, "propagationPolicy", Text, false),
    (5, "dryRun", Text, true),
];

/// Why a body was not read.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// The bytes are not what they say.
    Broken,
    /// A kind without a table here.
    Kind(String),
}

/// A protobuf body as the JSON document it stands for.
pub fn to_json(body: &[u8]) -> Result<Value, Refused> {
    let envelope = body.strip_prefix(MAGIC).ok_or(Refused::Broken)?;
    let (mut kind, mut api_version, mut raw) = (String::new(), String::new(), &[][..]);
    for field in fields(envelope) {
        match field? {
            (1, Wire::Bytes(type_meta)) => {
                for field in fields(type_meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => api_version = utf8(text)?,
                        (2, Wire::Bytes(text)) => kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let table = match kind.as_str() {
        "Namespace" => NAMESPACE,
        "ConfigMap" => CONFIG_MAP,
        "Secret" => SECRET,
        "DeleteOptions" => DELETE_OPTIONS,
        _ => return Err(Refused::Kind(kind)),
    };
    let mut document = message(raw, table)?;
    document.insert("apiVersion".into(), api_version.into());
    document.insert("kind".into(), kind.into());
    Ok(Value::Object(document))
}

fn message(bytes: &[u8], table: &[Field]) -> Result<Map<String, Value>, Refused> {
    let mut out = Map::new();
    for field in fields(bytes) {
        let (number, wire) = field?;
        let Some((_, name, kind, repeated)) = table.iter().find(|(n, ..)| *n == number) else { continue };
        let value = match (kind, wire) {
            (Text, Wire::Bytes(text)) => {
                let text = utf8(text)?;
                // Go writes every string, set or not; an empty one says "not given".
                if text.is_empty() {
                    continue;
                }
                text.into()
            }
            (Int, Wire::Number(number)) => json!(number.cast_signed()),
            (Bool, Wire::Number(number)) => json!(number != 0),
            (Time, Wire::Bytes(bytes)) => match time(bytes)? {
                Some(time) => time.into(),
                None => continue,
            },
            (Message(inner), Wire::Bytes(bytes)) => {
                let inner = message(bytes, inner)?;
                if inner.is_empty() && !repeated {
                    continue;
                }
                Value::Object(inner)
            }
            (TextMap | BytesMap, Wire::Bytes(bytes)) => {
                let (key, value) = entry(bytes)?;
                let value = if matches!(kind, TextMap) { utf8(value)?.into() } else { base64(value) };
                let map = out.entry(*name).or_insert_with(|| json!({}));
                if let Some(map) = map.as_object_mut() {
                    map.insert(key, value);
                }
                continue;
            }
            _ => return Err(Refused::Broken),
        };
        if *repeated {
            let list = out.entry(*name).or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut() {
                list.push(value);
            }
        } else {
            out.insert((*name).to_owned(), value);
        }
    }
    Ok(out)
}

fn entry(bytes: &[u8]) -> Result<(String, &[u8]), Refused> {
    let (mut key, mut value) = (String::new(), &[][..]);
    for field in fields(bytes) {
        match field? {
            (1, Wire::Bytes(text)) => key = utf8(text)?,
            (2, Wire::Bytes(bytes)) => value = bytes,
            _ => {}
        }
    }
    Ok((key, value))
}

fn time(bytes: &[u8]) -> Result<Option<String>, Refused> {
    for field in fields(bytes) {
        if let (1, Wire::Number(seconds)) = field? {
            return Ok(Some(Timestamp(seconds.cast_signed().saturating_mul(1000)).rfc3339()));
        }
    }
    Ok(None)
}

fn utf8(bytes: &[u8]) -> Result<String, Refused> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Refused::Broken)
}

fn base64(bytes: &[u8]) -> Value {
    base64::engine::general_purpose::STANDARD.encode(bytes).into()
}

/// A value on the wire.
#[derive(Debug, PartialEq)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, in order. The first broken one ends it.
fn fields(mut rest: &[u8]) -> impl Iterator<Item = Result<(u64, Wire<'_>), Refused>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = next_field(&mut rest);
        if field.is_none() {
            rest = &[];
        }
        Some(field.ok_or(Refused::Broken))
    })
}

fn next_field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Wire<'a>)> {
    let tag = varint(rest)?;
    let wire = match tag & 7 {
        0 => Wire::Number(varint(rest)?),
        1 => Wire::Bytes(take(rest, 8)?),
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            Wire::Bytes(take(rest, length)?)
        }
        5 => Wire::Bytes(take(rest, 4)?),
        _ => return None,
    };
    Some((tag >> 3, wire))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// An OpenAPI v2 document without any schema, as gnostic's protobuf. kubectl reads `/openapi/v2` in no other form, and
/// only when `/openapi/v3` does not know a kind; then it goes on to say that the kind is unknown.
pub fn empty_openapi_v2() -> Vec<u8> {
    let text = |number: u8, text: &str| {
        let mut field = vec![number << 3 | 2, u8::try_from(text.len()).unwrap_or(0)];
        field.extend_from_slice(text.as_bytes());
        field
    };
    let info = [text(1, "Edgewire"), text(2, env!("CARGO_PKG_VERSION"))].concat();
    let mut document = text(1, "2.0");
    document.extend([2 << 3 | 2, u8::try_from(info.len()).unwrap_or(0)]);
    document.extend(info);
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend_from_slice(bytes);
        out
    }

    fn body(kind: &str, raw: &[u8]) -> Vec<u8> {
        let type_meta = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &type_meta), field(2, raw)].concat()
    }

    #[test]
    fn what_kubectl_sends_is_read() {
        let entry = |key: &[u8], value: &[u8]| [field(1, key), field(2, value)].concat();
        let meta = [field(1, b"a"), field(2, b""), field(11, &entry(b"l", b"m")), field(14, b"f")].concat();
        let raw = [field(1, &meta), field(2, &entry(b"k", b"v")), vec![4 << 3, 1]].concat();
        assert_eq!(
            to_json(&body("ConfigMap", &raw)).unwrap(),
            json!({
                "metadata": {"name": "a", "labels": {"l": "m"}, "finalizers": ["f"]},
                "data": {"k": "v"}, "immutable": true, "apiVersion": "v1", "kind": "ConfigMap",
            })
        );
        assert_eq!(to_json(&body("Secret", &field(2, &entry(b"k", b"v")))).unwrap()["data"]["k"], "dg==");
        assert_eq!(to_json(&body("Lease", &[])), Err(Refused::Kind("Lease".into())));
    }

    #[test]
    fn broken_bytes_are_refused() {
        let good = body("ConfigMap", &field(1, &field(1, b"a")));
        for end in 0..good.len() {
            // Whatever it gives, it ends.
            let _ = to_json(&good[..end]);
        }
        assert_eq!(to_json(b"k8s"), Err(Refused::Broken));
        assert_eq!(to_json(&body("ConfigMap", &[0x0a, 0xff])), Err(Refused::Broken));
        assert_eq!(to_json(&body("ConfigMap", &[0x0b])), Err(Refused::Broken));
    }
}
