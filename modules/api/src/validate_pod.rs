//! What a Pod must fulfil, and what of a Pod may change.
//!
//! Source: Kubernetes `pkg/apis/core/validation`. Only what Edgewire runs by is checked; fields that nothing reads
//! yet are kept as sent. Pure.

use std::collections::BTreeSet;

use schemas::name::NodeName;
use schemas::object::Object;
use serde_json::{Value, json};

use crate::status::Cause;
use crate::validate::{check_label_value, check_qualified_name};

fn items(value: Option<&Value>) -> impl Iterator<Item = (usize, &Value)> {
    value.and_then(Value::as_array).into_iter().flatten().enumerate()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or("")
}

fn one_of(causes: &mut Vec<Cause>, path: String, value: &str, known: &[&str]) {
    if !known.contains(&value) {
        causes.push(Cause::unsupported(path, value, known));
    }
}

/// A DNS label: names of containers and volumes.
fn label(causes: &mut Vec<Cause>, path: String, name: &str) {
    if name.is_empty() {
        causes.push(Cause::required(path, ""));
    } else if let Err(why) = NodeName::new(name) {
        // The rule is the node name's: one RFC 1123 label. Its words would name the wrong thing.
        let why = why.to_string().replacen("node name", "name", 1);
        causes.push(Cause::invalid(path, &name.into(), why));
    }
}

/// What is wrong with a pod.
pub fn pod(object: &Object) -> Vec<Cause> {
    let mut causes = Vec::new();
    let Some(spec) = object.get(&["spec"]) else {
        return vec![Cause::required("spec", "")];
    };
    let mut volumes = BTreeSet::new();
    for (i, volume) in items(spec.get("volumes")) {
        let path = format!("spec.volumes[{i}]");
        let name = text(volume, "name");
        label(&mut causes, format!("{path}.name"), name);
        if !volumes.insert(name) {
            causes.push(Cause::duplicate(format!("{path}.name"), name));
        }
        volume_source(&mut causes, &path, volume);
    }
    if items(spec.get("containers")).next().is_none() {
        causes.push(Cause::required("spec.containers", ""));
    }
    let mut names = BTreeSet::new();
    for list in ["initContainers", "containers"] {
        for (i, value) in items(spec.get(list)) {
            let path = format!("spec.{list}[{i}]");
            let name = text(value, "name");
            if !name.is_empty() && !names.insert(name) {
                causes.push(Cause::duplicate(format!("{path}.name"), name));
            }
            container(&mut causes, &path, value, &volumes);
        }
    }
    one_of(
        &mut causes,
        "spec.restartPolicy".into(),
        text(spec, "restartPolicy"),
        &["Always", "OnFailure", "Never"],
    );
    one_of(
        &mut causes,
        "spec.dnsPolicy".into(),
        text(spec, "dnsPolicy"),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    for field in ["terminationGracePeriodSeconds", "activeDeadlineSeconds"] {
        if let Some(value) = spec.get(field).filter(|v| v.as_i64().is_some_and(|n| n < 0)) {
            causes.push(Cause::invalid(format!("spec.{field}"), value, "must be greater than or equal to 0"));
        }
    }
    let node = text(spec, "nodeName");
    if !node.is_empty() && NodeName::new(node).is_err() {
        causes.push(Cause::invalid("spec.nodeName", &node.into(), "must be a lower case RFC 1123 label"));
    }
    for (key, value) in spec.get("nodeSelector").and_then(Value::as_object).into_iter().flatten() {
        let check = check_qualified_name(key).and_then(|()| check_label_value(value.as_str().unwrap_or("")));
        if let Err(why) = check {
            causes.push(Cause::invalid(format!("spec.nodeSelector[{key}]"), value, why));
        }
    }
    for (i, value) in items(spec.get("tolerations")) {
        toleration(&mut causes, &format!("spec.tolerations[{i}]"), value);
    }
    causes
}

fn volume_source(causes: &mut Vec<Cause>, path: &str, volume: &Value) {
    let sources: Vec<&String> = volume
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| *key != "name" && !value.is_null())
        .map(|(key, _)| key)
        .collect();
    if let [_, second, ..] = sources.as_slice() {
        causes.push(Cause::forbidden(format!("{path}.{second}"), "may not specify more than 1 volume type"));
    }
    for (source, field) in [("configMap", "name"), ("secret", "secretName"), ("hostPath", "path")] {
        if volume.get(source).is_some_and(|v| v.is_object() && text(v, field).is_empty()) {
            causes.push(Cause::required(format!("{path}.{source}.{field}"), ""));
        }
    }
}

fn container(causes: &mut Vec<Cause>, path: &str, value: &Value, volumes: &BTreeSet<&str>) {
    label(causes, format!("{path}.name"), text(value, "name"));
    let image = text(value, "image");
    if image.trim().is_empty() {
        causes.push(Cause::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        causes.push(Cause::invalid(
            format!("{path}.image"),
            &image.into(),
            "must not have leading or trailing whitespace",
        ));
    }
    let policy = text(value, "imagePullPolicy");
    one_of(causes, format!("{path}.imagePullPolicy"), policy, &["Always", "IfNotPresent", "Never"]);
    for (i, env) in items(value.get("env")) {
        let name = text(env, "name");
        if name.is_empty() {
            causes.push(Cause::required(format!("{path}.env[{i}].name"), ""));
        } else if name.contains('=') || !name.chars().all(|c| c.is_ascii_graphic()) {
            let why = "a valid environment variable name has only printable ASCII characters other than '='";
            causes.push(Cause::invalid(format!("{path}.env[{i}].name"), &name.into(), why));
        }
        if !text(env, "value").is_empty() && env.get("valueFrom").is_some_and(Value::is_object) {
            let why = "may not be specified when `value` is not empty";
            causes.push(Cause::invalid(format!("{path}.env[{i}].valueFrom"), &"".into(), why));
        }
    }
    let mut port_names = BTreeSet::new();
    for (i, port) in items(value.get("ports")) {
        let number = port.get("containerPort").and_then(Value::as_i64).unwrap_or(0);
        if !(1..=65535).contains(&number) {
            let why = "must be between 1 and 65535, inclusive";
            causes.push(Cause::invalid(format!("{path}.ports[{i}].containerPort"), &number.into(), why));
        }
        let name = text(port, "name");
        if !name.is_empty() && !port_names.insert(name) {
            causes.push(Cause::duplicate(format!("{path}.ports[{i}].name"), name));
        }
        one_of(
            causes,
            format!("{path}.ports[{i}].protocol"),
            text(port, "protocol"),
            &["TCP", "UDP", "SCTP"],
        );
    }
    let mut paths = BTreeSet::new();
    for (i, mount) in items(value.get("volumeMounts")) {
        let (name, at) = (text(mount, "name"), text(mount, "mountPath"));
        if name.is_empty() {
            causes.push(Cause::required(format!("{path}.volumeMounts[{i}].name"), ""));
        } else if !volumes.contains(name) {
            causes.push(Cause::not_found(format!("{path}.volumeMounts[{i}].name"), name));
        }
        if at.is_empty() {
            causes.push(Cause::required(format!("{path}.volumeMounts[{i}].mountPath"), ""));
        } else if !paths.insert(at) {
            causes.push(Cause::invalid(
                format!("{path}.volumeMounts[{i}].mountPath"),
                &at.into(),
                "must be unique",
            ));
        }
        if text(mount, "subPath").split('/').any(|part| part == "..")
            || text(mount, "subPath").starts_with('/')
        {
            let why = "must be a relative path without '..'";
            causes.push(Cause::invalid(
                format!("{path}.volumeMounts[{i}].subPath"),
                &text(mount, "subPath").into(),
                why,
            ));
        }
    }
    resources(causes, path, value);
}

fn resources(causes: &mut Vec<Cause>, path: &str, container: &Value) {
    let amount = |which: &str, name: &str| {
        let value = container.get("resources")?.get(which)?.get(name)?;
        schemas::quantity::milli(value.as_str()?)
    };
    for which in ["limits", "requests"] {
        let amounts = container.get("resources").and_then(|r| r.get(which)).and_then(Value::as_object);
        for (name, value) in amounts.into_iter().flatten() {
            let path = format!("{path}.resources.{which}[{name}]");
            match amount(which, name) {
                None => causes.push(Cause::invalid(path, value, "must be a quantity such as 100m or 64Mi")),
                Some(request) if which == "requests" => {
                    if amount("limits", name).is_some_and(|limit| request > limit) {
                        let why = format!("must be less than or equal to {name} limit");
                        causes.push(Cause::invalid(path, value, why));
                    }
                }
                Some(_) => {}
            }
        }
    }
}

fn toleration(causes: &mut Vec<Cause>, path: &str, value: &Value) {
    let (key, operator, effect) = (text(value, "key"), text(value, "operator"), text(value, "effect"));
    if !key.is_empty() {
        if let Err(why) = check_qualified_name(key) {
            causes.push(Cause::invalid(format!("{path}.key"), &key.into(), why));
        }
    } else if operator != "Exists" {
        let why =
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        causes.push(Cause::invalid(format!("{path}.operator"), &operator.into(), why));
    }
    one_of(causes, format!("{path}.operator"), operator, &["", "Equal", "Exists"]);
    one_of(causes, format!("{path}.effect"), effect, &["", "NoSchedule", "PreferNoSchedule", "NoExecute"]);
    if operator == "Exists" && !text(value, "value").is_empty() {
        let why = "value must be empty when `operator` is 'Exists'";
        causes.push(Cause::invalid(format!("{path}.value"), &text(value, "value").into(), why));
    }
    if value.get("tolerationSeconds").is_some_and(|v| !v.is_null()) && effect != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        causes.push(Cause::invalid(format!("{path}.effect"), &effect.into(), why));
    }
}

/// Of a pod's spec only images, tolerations (added), activeDeadlineSeconds (set or lowered) and
/// terminationGracePeriodSeconds (to 1, when it was negative) may change.
pub fn pod_update(old: &Object, new: &Object) -> Vec<Cause> {
    let empty = json!({});
    let before = old.get(&["spec"]).unwrap_or(&empty);
    let after = new.get(&["spec"]).unwrap_or(&empty);
    let mut causes = Vec::new();
    let added_only =
        items(before.get("tolerations")).all(|(_, t)| items(after.get("tolerations")).any(|(_, n)| n == t));
    if !added_only {
        let why =
            "existing toleration can not be modified except its tolerationSeconds; it may not be removed";
        causes.push(Cause::forbidden("spec.tolerations", why));
    }
    let deadline = |spec: &Value| spec.get("activeDeadlineSeconds").and_then(Value::as_i64);
    match (deadline(before), deadline(after)) {
        (Some(_), None) => causes.push(Cause::invalid(
            "spec.activeDeadlineSeconds",
            &Value::Null,
            "must not update from a positive integer to nil value",
        )),
        (Some(old), Some(new)) if new > old => causes.push(Cause::invalid(
            "spec.activeDeadlineSeconds",
            &new.into(),
            format!("must be less than or equal to previous value {old}"),
        )),
        _ => {}
    }
    if comparable(before, after) != *before {
        causes.push(Cause::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
             `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
             `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative); \
             delete the pod and create it again",
        ));
    }
    causes
}

/// `after` with everything that may change put back to what `before` has.
fn comparable(before: &Value, after: &Value) -> Value {
    let mut same = after.clone();
    let put_back = |target: &mut Value, source: &Value, name: &str| {
        if let Some(map) = target.as_object_mut() {
            match source.get(name) {
                Some(value) => map.insert(name.to_owned(), value.clone()),
                None => map.shift_remove(name),
            };
        }
    };
    put_back(&mut same, before, "tolerations");
    put_back(&mut same, before, "activeDeadlineSeconds");
    let grace = |spec: &Value| spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    if grace(before).is_some_and(|g| g < 0) && grace(after) == Some(1) {
        put_back(&mut same, before, "terminationGracePeriodSeconds");
    }
    for list in ["containers", "initContainers"] {
        let Some(containers) = same.get_mut(list).and_then(Value::as_array_mut) else { continue };
        for (container, (_, old)) in containers.iter_mut().zip(items(before.get(list))) {
            put_back(container, old, "image");
        }
    }
    same
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(spec: Value) -> Vec<String> {
        let mut object = Object::try_from(json!({"metadata": {"name": "a"}, "spec": spec})).unwrap();
        crate::defaults::pod(&mut object);
        pod(&object).into_iter().map(|c| c.field).collect()
    }

    #[test]
    fn wrong_fields_are_named() {
        let good = json!({"name": "a", "image": "x"});
        for (spec, want) in [
            (json!({"containers": [good]}), vec![]),
            (json!({}), vec!["spec.containers"]),
            (json!({"containers": [{"name": "a"}]}), vec!["spec.containers[0].image"]),
            (json!({"containers": [good, good]}), vec!["spec.containers[1].name"]),
            (json!({"containers": [good], "initContainers": [good]}), vec!["spec.containers[0].name"]),
            (json!({"containers": [good], "restartPolicy": "Maybe"}), vec!["spec.restartPolicy"]),
            (
                json!({"containers": [good], "terminationGracePeriodSeconds": -1}),
                vec!["spec.terminationGracePeriodSeconds"],
            ),
            (
                json!({"containers": [good], "tolerations": [{"operator": "Equal"}]}),
                vec!["spec.tolerations[0].operator"],
            ),
            (
                json!({"containers": [{"name": "a", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}),
                vec!["spec.containers[0].volumeMounts[0].name"],
            ),
            (
                json!({"containers": [{"name": "a", "image": "x", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}]}),
                vec!["spec.containers[0].resources.requests[cpu]"],
            ),
            (
                json!({"containers": [{"name": "a", "image": "x", "resources": {"limits": {"memory": "lots"}}}]}),
                vec![
                    "spec.containers[0].resources.limits[memory]",
                    "spec.containers[0].resources.requests[memory]",
                ],
            ),
            (
                json!({"containers": [good], "volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]}),
                vec!["spec.volumes[0].hostPath"],
            ),
            (
                json!({"containers": [{"name": "A", "image": "x", "ports": [{"containerPort": 0}]}]}),
                vec!["spec.containers[0].name", "spec.containers[0].ports[0].containerPort"],
            ),
        ] {
            assert_eq!(checked(spec.clone()), want, "{spec}");
        }
    }

    #[test]
    fn only_some_fields_may_change() {
        let base = json!({"containers": [{"name": "a", "image": "x"}], "tolerations": [{"key": "t"}], "activeDeadlineSeconds": 5, "nodeName": "n"});
        let with = |edit: &dyn Fn(&mut Value)| {
            let mut spec = base.clone();
            edit(&mut spec);
            let object = |spec: &Value| Object::try_from(json!({"spec": spec})).unwrap();
            pod_update(&object(&base), &object(&spec)).into_iter().map(|c| c.field).collect::<Vec<_>>()
        };
        assert!(with(&|_| {}).is_empty());
        assert!(with(&|s| s["containers"][0]["image"] = "y".into()).is_empty());
        assert!(with(&|s| s["tolerations"] = json!([{"key": "t"}, {"key": "u"}])).is_empty());
        assert!(with(&|s| s["activeDeadlineSeconds"] = 4.into()).is_empty());
        assert_eq!(with(&|s| s["activeDeadlineSeconds"] = 6.into()), ["spec.activeDeadlineSeconds"]);
        assert_eq!(with(&|s| s["tolerations"] = json!([])), ["spec.tolerations"]);
        assert_eq!(with(&|s| s["nodeName"] = "m".into()), ["spec"]);
        assert_eq!(with(&|s| s["containers"][0]["args"] = json!(["z"])), ["spec"]);
    }
}
