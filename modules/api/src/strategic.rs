//! Kubernetes' strategic merge patch, for the kinds that are served: a merge patch that knows which lists are sets.
//!
//! Source: kubernetes/community `strategic-merge-patch.md` and the patch keys in the API reference. A list is merged
//! by the key that [`strategy`] names for its field; every other list is replaced. Directives: `$patch`
//! (`replace`, `delete`, `merge`), `$deleteFromPrimitiveList/<field>`, `$setElementOrder/<field>`, `$retainKeys`.
//! Pure; one function in, one out.

use serde_json::{Map, Value};

/// How a list is merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strategy {
    /// Items are objects, told apart by this field.
    Key(&'static str),
    /// Items are plain values: a set.
    Primitive,
    /// The list as a whole is one value.
    Atomic,
}

/// The strategy of a list by the name of its field. `parent` tells apart what has one name in several places.
fn strategy(parent: &str, field: &str) -> Strategy {
    match (parent, field) {
        (_, "containers" | "initContainers" | "ephemeralContainers") => Strategy::Key("name"),
        ("spec", "ports") => Strategy::Key("port"),
        (_, "ports") => Strategy::Key("containerPort"),
        (_, "env" | "volumes" | "imagePullSecrets" | "resourceClaims" | "schedulingGates") => {
            Strategy::Key("name")
        }
        (_, "volumeMounts") => Strategy::Key("mountPath"),
        (_, "volumeDevices") => Strategy::Key("devicePath"),
        (_, "hostAliases" | "podIPs" | "hostIPs") => Strategy::Key("ip"),
        (_, "topologySpreadConstraints") => Strategy::Key("topologyKey"),
        ("status", "conditions" | "addresses") => Strategy::Key("type"),
        ("metadata", "ownerReferences") => Strategy::Key("uid"),
        ("metadata", "finalizers") | ("spec", "podCIDRs") => Strategy::Primitive,
        _ => Strategy::Atomic,
    }
}

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// Applies `patch` to a copy of `document`. The error is for people: what in the patch is wrong.
pub fn apply(document: &Value, patch: &Value) -> Result<Value, String> {
    match (document, patch) {
        (Value::Object(document), Value::Object(patch)) => {
            merge_map(document.clone(), patch, "").map(Value::Object)
        }
        _ => Err("document and patch must be JSON objects".into()),
    }
}

fn merge_map(
    mut original: Map<String, Value>,
    patch: &Map<String, Value>,
    name: &str,
) -> Result<Map<String, Value>, String> {
    match patch.get(PATCH).map(|v| v.as_str().unwrap_or("")) {
        None | Some("merge") => {}
        Some("replace") => return Ok(fresh_map(patch)),
        Some("delete") => return Ok(Map::new()),
        Some(other) => return Err(format!("unknown directive {PATCH}: {other:?}")),
    }
    if let Some(keep) = patch.get(RETAIN_KEYS) {
        let keep = keep.as_array().ok_or_else(|| format!("{RETAIN_KEYS} must be a list"))?;
        original.retain(|key, _| keep.iter().any(|k| k.as_str() == Some(key)));
    }
    for (key, list) in patch {
        let Some(field) = key.strip_prefix(DELETE_FROM) else { continue };
        let gone = list.as_array().ok_or_else(|| format!("{key} must be a list"))?;
        if let Some(Value::Array(have)) = original.get_mut(field) {
            have.retain(|item| !gone.contains(item));
        }
    }
    for (key, value) in patch {
        if key.starts_with('$') {
            continue;
        }
        if value.is_null() {
            original.remove(key);
            continue;
        }
        let merged = match (original.remove_entry_in_place(key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                if new.get(PATCH).and_then(Value::as_str) == Some("delete") {
                    original.shift_remove(key);
                    continue;
                }
                Value::Object(merge_map(old, new, key)?)
            }
            (Some(Value::Array(old)), Value::Array(new)) => {
                Value::Array(merge_list(old, new, strategy(name, key), key)?)
            }
            (_, value) => fresh(value, strategy(name, key)),
        };
        original.insert(key.clone(), merged);
    }
    for (key, order) in patch {
        let Some(field) = key.strip_prefix(ELEMENT_ORDER) else { continue };
        let order = order.as_array().ok_or_else(|| format!("{key} must be a list"))?;
        if let Some(Value::Array(have)) = original.get_mut(field) {
            let by = strategy(name, field);
            let items = std::mem::take(have);
            *have = reorder(items, order, by);
        }
    }
    Ok(original)
}

/// Takes a value out but leaves its place, so that a merged field stays where it stood in the document.
trait TakeInPlace {
    fn remove_entry_in_place(&mut self, key: &str) -> Option<Value>;
}

impl TakeInPlace for Map<String, Value> {
    fn remove_entry_in_place(&mut self, key: &str) -> Option<Value> {
        self.get_mut(key).map(Value::take)
    }
}

/// A value that had nothing to merge with: directives have done their work and nulls say nothing.
fn fresh(value: &Value, by: Strategy) -> Value {
    match value {
        Value::Object(map) => Value::Object(fresh_map(map)),
        Value::Array(list) => Value::Array(
            list.iter()
                .filter(|item| by == Strategy::Atomic || item.get(PATCH).is_none())
                .map(|item| fresh(item, Strategy::Atomic))
                .collect(),
        ),
        other => other.clone(),
    }
}

fn fresh_map(map: &Map<String, Value>) -> Map<String, Value> {
    map.iter()
        .filter(|(key, value)| !key.starts_with('$') && !value.is_null())
        .map(|(key, value)| (key.clone(), fresh(value, strategy("", key))))
        .collect()
}

fn merge_list(
    mut original: Vec<Value>,
    patch: &[Value],
    by: Strategy,
    field: &str,
) -> Result<Vec<Value>, String> {
    let key = match by {
        Strategy::Atomic => return Ok(patch.iter().map(|item| fresh(item, by)).collect()),
        Strategy::Primitive => {
            for item in patch {
                if !original.contains(item) {
                    original.push(item.clone());
                }
            }
            return Ok(original);
        }
        Strategy::Key(key) => key,
    };
    let directive = |item: &Value| item.get(PATCH).and_then(Value::as_str).map(str::to_owned);
    if patch.iter().any(|item| directive(item).as_deref() == Some("replace")) {
        let kept = patch.iter().filter(|item| item.get(key).is_some());
        return Ok(kept.map(|item| fresh(item, Strategy::Atomic)).collect());
    }
    for item in patch {
        let map = item.as_object().ok_or_else(|| format!("an item of {field} is not an object"))?;
        let id = map.get(key).ok_or_else(|| format!("an item of {field} lacks its merge key {key:?}"))?;
        if directive(item).as_deref() == Some("delete") {
            original.retain(|have| have.get(key) != Some(id));
            continue;
        }
        match original.iter_mut().find(|have| have.get(key) == Some(id)) {
            Some(Value::Object(have)) => *have = merge_map(std::mem::take(have), map, "")?,
            _ => original.push(fresh(item, Strategy::Atomic)),
        }
    }
    Ok(original)
}

/// Puts items in the order that the client asked for. What only the server has keeps its place relative to the
/// items that the server had before it.
fn reorder(items: Vec<Value>, order: &[Value], by: Strategy) -> Vec<Value> {
    let rank = |item: &Value| match by {
        Strategy::Key(key) => {
            let id = item.get(key)?;
            order.iter().position(|want| want.get(key) == Some(id))
        }
        _ => order.iter().position(|want| want == item),
    };
    let mut named = Vec::new();
    let mut unnamed = Vec::new();
    for (at, item) in items.into_iter().enumerate() {
        match rank(&item) {
            Some(rank) => named.push((rank, at, item)),
            None => unnamed.push((at, item)),
        }
    }
    named.sort_by_key(|(rank, at, _)| (*rank, *at));
    let mut named = named.into_iter().peekable();
    let mut unnamed = unnamed.into_iter().peekable();
    let mut out = Vec::new();
    loop {
        let take_named = match (named.peek(), unnamed.peek()) {
            (Some((_, at, _)), Some((other, _))) => at < other,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => return out,
        };
        let next = if take_named {
            named.next().map(|(_, _, item)| item)
        } else {
            unnamed.next().map(|(_, item)| item)
        };
        out.extend(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(document: Value, patch: Value, want: Value) {
        assert_eq!(apply(&document, &patch).unwrap(), want, "patch {patch}");
    }

    #[test]
    fn maps_merge_and_null_removes() {
        check(
            json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
            json!({"metadata": {"labels": {"a": null, "c": "3"}, "annotations": {"x": "y", "z": null}}}),
            json!({"metadata": {"labels": {"b": "2", "c": "3"}, "annotations": {"x": "y"}}}),
        );
        check(
            json!({"data": {"a": "1"}}),
            json!({"data": {"$patch": "replace", "b": "2"}}),
            json!({"data": {"b": "2"}}),
        );
        check(json!({"data": {"a": "1"}, "x": 1}), json!({"data": {"$patch": "delete"}}), json!({"x": 1}));
        check(
            json!({"spec": {"strategy": {"type": "A", "rolling": {}}}}),
            json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "B"}}}),
            json!({"spec": {"strategy": {"type": "B"}}}),
        );
    }

    #[test]
    fn lists_merge_by_their_key() {
        check(
            json!({"spec": {"containers": [{"name": "a", "image": "x", "env": [{"name": "E", "value": "1"}]}, {"name": "b", "image": "y"}]}}),
            json!({"spec": {"containers": [{"name": "a", "image": "z", "env": [{"name": "F", "value": "2"}]}]}}),
            json!({"spec": {"containers": [
                {"name": "a", "image": "z", "env": [{"name": "E", "value": "1"}, {"name": "F", "value": "2"}]},
                {"name": "b", "image": "y"}]}}),
        );
        check(
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
            json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
            json!({"spec": {"containers": [{"name": "b"}]}}),
        );
        check(
            json!({"spec": {"volumes": [{"name": "a"}]}}),
            json!({"spec": {"volumes": [{"$patch": "replace"}, {"name": "b"}]}}),
            json!({"spec": {"volumes": [{"name": "b"}]}}),
        );
        check(
            json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
            json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "Disk", "status": "True"}]}}),
            json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "Disk", "status": "True"}]}}),
        );
        check(
            json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80}]}]}}),
            json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "web"}]}]}}),
            json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "web"}]}]}}),
        );
        check(
            json!({"spec": {"volumes": [{"name": "a", "emptyDir": {}}]}}),
            json!({"spec": {"volumes": [{"name": "a", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}}),
            json!({"spec": {"volumes": [{"name": "a", "hostPath": {"path": "/x"}}]}}),
        );
        assert!(apply(&json!({"spec": {"volumes": []}}), &json!({"spec": {"volumes": [{"x": 1}]}})).is_err());
        assert!(apply(&json!({"a": {}}), &json!({"a": {"$patch": "what"}})).is_err());
    }

    #[test]
    fn other_lists_are_one_value() {
        check(
            json!({"spec": {"tolerations": [{"key": "a"}], "containers": [{"name": "c", "args": ["1"]}]}}),
            json!({"spec": {"tolerations": [{"key": "b"}], "containers": [{"name": "c", "args": ["2", "3"]}]}}),
            json!({"spec": {"tolerations": [{"key": "b"}], "containers": [{"name": "c", "args": ["2", "3"]}]}}),
        );
        check(
            json!({"spec": {"taints": [{"key": "a"}]}}),
            json!({"spec": {"taints": [{"key": "b"}]}}),
            json!({"spec": {"taints": [{"key": "b"}]}}),
        );
    }

    #[test]
    fn primitive_lists_are_sets() {
        check(
            json!({"metadata": {"finalizers": ["a", "b"]}}),
            json!({"metadata": {"finalizers": ["b", "c"], "$deleteFromPrimitiveList/finalizers": ["a"]}}),
            json!({"metadata": {"finalizers": ["b", "c"]}}),
        );
    }

    #[test]
    fn the_client_orders_and_what_only_the_server_has_keeps_its_place() {
        check(
            json!({"spec": {"containers": [{"name": "a"}, {"name": "s"}, {"name": "b"}]}}),
            json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}], "containers": [{"name": "c"}]}}),
            json!({"spec": {"containers": [{"name": "s"}, {"name": "c"}, {"name": "a"}, {"name": "b"}]}}),
        );
        check(
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
            json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}),
            json!({"spec": {"containers": [{"name": "b"}, {"name": "a"}]}}),
        );
    }
}
