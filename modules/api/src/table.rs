//! What `kubectl get` shows: the columns and cells of each kind, and the `meta.k8s.io/v1` Table around them.
//!
//! Source: Kubernetes "Receiving resources as Tables" and the columns that kubectl's users know. Columns of priority 1
//! are those of `-o wide`. Pure: `now` is given, so ages can be tested.

use schemas::Timestamp;
use schemas::object::Object;
use serde_json::{Map, Value, json};

use crate::resource::Kind;

/// One column.
#[derive(Debug)]
pub struct Column {
    name: &'static str,
    /// `string`, `integer`.
    kind: &'static str,
    /// 0: always shown; 1: with `-o wide`.
    priority: u8,
}

const fn text(name: &'static str) -> Column {
    Column { name, kind: "string", priority: 0 }
}
const fn wide(name: &'static str) -> Column {
    Column { name, kind: "string", priority: 1 }
}
const fn number(name: &'static str) -> Column {
    Column { name, kind: "integer", priority: 0 }
}

/// For kinds without columns of their own.
pub const NAME_AND_AGE: &[Column] = &[text("Name"), text("Age")];
/// ConfigMap.
pub const CONFIG_MAP: &[Column] = &[text("Name"), number("Data"), text("Age")];
/// Secret.
pub const SECRET: &[Column] = &[text("Name"), text("Type"), number("Data"), text("Age")];
/// Namespace.
pub const NAMESPACE: &[Column] = &[text("Name"), text("Status"), text("Age")];
/// Event.
pub const EVENT: &[Column] = &[
    text("Last Seen"),
    text("Type"),
    text("Reason"),
    text("Object"),
    wide("Subobject"),
    wide("Source"),
    text("Message"),
    wide("First Seen"),
    wide("Count"),
    wide("Name"),
];
/// Node.
pub const NODE: &[Column] = &[
    text("Name"),
    text("Status"),
    text("Roles"),
    text("Age"),
    text("Version"),
    wide("Internal-IP"),
    wide("External-IP"),
    wide("OS-Image"),
    wide("Kernel-Version"),
    wide("Container-Runtime"),
];
/// Pod.
pub const POD: &[Column] = &[
    text("Name"),
    text("Ready"),
    text("Status"),
    text("Restarts"),
    text("Age"),
    wide("IP"),
    wide("Node"),
    wide("Nominated Node"),
    wide("Readiness Gates"),
];

/// Topic.
pub const TOPIC: &[Column] = &[text("Name"), text("Class"), text("Size"), text("Subjects"), text("Age")];
/// TopicMap.
pub const TOPIC_MAP: &[Column] = &[text("Name"), number("Maps"), text("Age")];
/// Rule.
pub const RULE: &[Column] =
    &[text("Name"), text("Source"), text("Target"), number("Success"), number("Failed"), text("Age")];
/// RuleEndpoint.
pub const RULE_ENDPOINT: &[Column] = &[text("Name"), text("Type"), text("Age")];

/// How much of each object goes with its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// Its metadata: the default.
    Metadata,
    /// All of it.
    Object,
}

/// A Table. `columns` is false for the later events of a watch, which repeat rows only.
pub fn table(
    kind: &Kind,
    objects: &[&Object],
    list_metadata: Value,
    include: Include,
    columns: bool,
    now: Timestamp,
) -> Value {
    let definitions: Vec<Value> = kind
        .columns
        .iter()
        .map(|column| {
            let format = if column.name == "Name" { "name" } else { "" };
            json!({"name": column.name, "type": column.kind, "format": format, "description": "", "priority": column.priority})
        })
        .collect();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let with = match include {
                Include::None => Value::Null,
                Include::Metadata => partial(object),
                Include::Object => Value::from((*object).clone()),
            };
            json!({"cells": (kind.cells)(object, now), "object": with})
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata,
        "columnDefinitions": if columns { Value::Array(definitions) } else { Value::Null },
        "rows": rows,
    })
}

/// `PartialObjectMetadata`: an object's metadata alone.
pub fn partial(object: &Object) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get(&["metadata"]).cloned().unwrap_or_else(|| Value::Object(Map::new())),
    })
}

/// `2d5h`: Kubernetes' way to write a length of time.
pub fn human_duration(ms: u64) -> String {
    let seconds = ms / 1000;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let two = |big: u64, b: &str, small: u64, s: &str| {
        if small == 0 { format!("{big}{b}") } else { format!("{big}{b}{small}{s}") }
    };
    if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        two(minutes, "m", seconds % 60, "s")
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        two(hours, "h", minutes % 60, "m")
    } else if hours < 48 {
        format!("{hours}h")
    } else if hours < 24 * 8 {
        two(hours / 24, "d", hours % 24, "h")
    } else if hours < 24 * 365 * 2 {
        format!("{}d", hours / 24)
    } else if hours < 24 * 365 * 8 {
        let days = hours / 24;
        two(days / 365, "y", days % 365, "d")
    } else {
        format!("{}y", hours / 24 / 365)
    }
}

fn since(time: &str, now: Timestamp) -> String {
    Timestamp::parse(time).map_or_else(|| "<unknown>".to_owned(), |at| human_duration(now.since_ms(at)))
}

fn age(object: &Object, now: Timestamp) -> Value {
    since(object.text(&["metadata", "creationTimestamp"]), now).into()
}

fn or_none(text: &str) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

fn length(object: &Object, field: &str) -> usize {
    object.get(&[field]).and_then(Value::as_object).map_or(0, Map::len)
}

/// Name and age.
pub fn name_and_age(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![object.name().into(), age(object, now)]
}

/// ConfigMap.
pub fn config_map(object: &Object, now: Timestamp) -> Vec<Value> {
    let count = length(object, "data") + length(object, "binaryData");
    vec![object.name().into(), count.into(), age(object, now)]
}

/// Secret.
pub fn secret(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![object.name().into(), object.text(&["type"]).into(), length(object, "data").into(), age(object, now)]
}

/// Namespace.
pub fn namespace(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![object.name().into(), object.text(&["status", "phase"]).into(), age(object, now)]
}

/// Topic.
pub fn topic(object: &Object, now: Timestamp) -> Vec<Value> {
    let subjects = object.get(&["spec", "subjects"]).and_then(Value::as_array).into_iter().flatten();
    let subjects: Vec<&str> = subjects.filter_map(Value::as_str).collect();
    vec![
        object.name().into(),
        object.text(&["spec", "class"]).into(),
        object.text(&["spec", "sizeMax"]).into(),
        subjects.join(",").into(),
        age(object, now),
    ]
}

/// TopicMap.
pub fn topic_map(object: &Object, now: Timestamp) -> Vec<Value> {
    let maps = object.get(&["spec", "maps"]).and_then(Value::as_array).map_or(0, Vec::len);
    vec![object.name().into(), maps.into(), age(object, now)]
}

/// Rule.
pub fn rule(object: &Object, now: Timestamp) -> Vec<Value> {
    let count = |name: &str| object.get(&["status", name]).and_then(Value::as_u64).unwrap_or(0);
    vec![
        object.name().into(),
        object.text(&["spec", "source"]).into(),
        object.text(&["spec", "target"]).into(),
        count("successMessages").into(),
        count("failMessages").into(),
        age(object, now),
    ]
}

/// RuleEndpoint.
pub fn rule_endpoint(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![object.name().into(), object.text(&["spec", "ruleEndpointType"]).into(), age(object, now)]
}

/// Event.
pub fn event(object: &Object, now: Timestamp) -> Vec<Value> {
    let first_of = |names: &[&str]| {
        let found = names.iter().map(|n| object.text(&[n])).find(|t| !t.is_empty());
        found.unwrap_or(object.text(&["metadata", "creationTimestamp"])).to_owned()
    };
    let involved = |name: &str| object.text(&["involvedObject", name]);
    let source = match (object.text(&["source", "component"]), object.text(&["source", "host"])) {
        ("", _) => object.text(&["reportingComponent"]).to_owned(),
        (component, "") => component.to_owned(),
        (component, host) => format!("{component}, {host}"),
    };
    let last = first_of(&["lastTimestamp", "eventTime"]);
    let first = first_of(&["firstTimestamp", "eventTime"]);
    let count = object.get(&["count"]).and_then(Value::as_u64).unwrap_or(1);
    vec![
        since(&last, now).into(),
        object.text(&["type"]).into(),
        object.text(&["reason"]).into(),
        format!("{}/{}", involved("kind").to_lowercase(), involved("name")).into(),
        involved("fieldPath").into(),
        source.into(),
        object.text(&["message"]).trim().into(),
        since(&first, now).into(),
        count.to_string().into(),
        object.name().into(),
    ]
}

/// Node.
pub fn node(object: &Object, now: Timestamp) -> Vec<Value> {
    let mut status = match object.condition("Ready") {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if object.get(&["spec", "unschedulable"]).and_then(Value::as_bool) == Some(true) {
        status.push_str(",SchedulingDisabled");
    }
    let labels = object.get(&["metadata", "labels"]).and_then(Value::as_object);
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flat_map(|l| l.keys())
        .filter_map(|key| key.strip_prefix("node-role.kubernetes.io/"))
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    let address = |kind: &str| {
        let list = object.get(&["status", "addresses"]).and_then(Value::as_array);
        let found = list.into_iter().flatten().find(|a| a.get("type").and_then(Value::as_str) == Some(kind));
        or_none(found.and_then(|a| a.get("address")).and_then(Value::as_str).unwrap_or(""))
    };
    let info = |name: &str| object.text(&["status", "nodeInfo", name]);
    let unknown = |text: &str| -> Value { if text.is_empty() { "<unknown>".into() } else { text.into() } };
    vec![
        object.name().into(),
        status.into(),
        or_none(&roles.join(",")),
        age(object, now),
        info("kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        unknown(info("osImage")),
        unknown(info("kernelVersion")),
        unknown(info("containerRuntimeVersion")),
    ]
}

/// Pod.
pub fn pod(object: &Object, now: Timestamp) -> Vec<Value> {
    let list = |path: &[&str]| object.get(path).and_then(Value::as_array).cloned().unwrap_or_default();
    let statuses = list(&["status", "containerStatuses"]);
    let total = list(&["spec", "containers"]).len();
    let ready = statuses.iter().filter(|s| s.get("ready") == Some(&Value::Bool(true))).count();
    let (status, restarts, last_restart) = pod_status(object, &statuses);
    let restarts = match Timestamp::parse(&last_restart) {
        Some(at) if restarts > 0 => format!("{restarts} ({} ago)", human_duration(now.since_ms(at))),
        _ => restarts.to_string(),
    };
    let gates = list(&["spec", "readinessGates"]);
    let gates = if gates.is_empty() { "<none>".to_owned() } else { format!("0/{}", gates.len()) };
    vec![
        object.name().into(),
        format!("{ready}/{total}").into(),
        status.into(),
        restarts.into(),
        age(object, now),
        or_none(object.text(&["status", "podIP"])),
        or_none(object.text(&["spec", "nodeName"])),
        or_none(object.text(&["status", "nominatedNodeName"])),
        gates.into(),
    ]
}

/// STATUS of a pod, its restarts, and when the last container ended before its restart.
fn pod_status(object: &Object, statuses: &[Value]) -> (String, u64, String) {
    let at = |value: &Value, pointer: &str| {
        value.pointer(pointer).and_then(Value::as_str).filter(|t| !t.is_empty()).map(str::to_owned)
    };
    let ended = |state: &Value| {
        let exit = state.pointer("/state/terminated")?;
        let signal = exit.get("signal").and_then(Value::as_i64).unwrap_or(0);
        let code = exit.get("exitCode").and_then(Value::as_i64).unwrap_or(0);
        Some(at(exit, "/reason").unwrap_or_else(|| {
            if signal != 0 { format!("Signal:{signal}") } else { format!("ExitCode:{code}") }
        }))
    };
    let phase = object.text(&["status", "phase"]);
    let own = object.text(&["status", "reason"]);
    let mut reason = if own.is_empty() { phase.to_owned() } else { own.to_owned() };
    let mut restarts = 0;
    let mut last_restart = String::new();
    let mut initializing = false;
    let inits = object.get(&["status", "initContainerStatuses"]).and_then(Value::as_array);
    let inits_total = object.get(&["spec", "initContainers"]).and_then(Value::as_array).map_or(0, Vec::len);
    for (index, init) in inits.into_iter().flatten().enumerate() {
        if init.pointer("/state/terminated/exitCode").and_then(Value::as_i64) == Some(0) {
            continue;
        }
        initializing = true;
        reason = match (ended(init), at(init, "/state/waiting/reason")) {
            (Some(ended), _) => format!("Init:{ended}"),
            (None, Some(waiting)) if waiting != "PodInitializing" => format!("Init:{waiting}"),
            _ => format!("Init:{index}/{inits_total}"),
        };
        break;
    }
    let mut running = false;
    for status in statuses.iter().rev() {
        restarts += status.get("restartCount").and_then(Value::as_u64).unwrap_or(0);
        if let Some(finished) = at(status, "/lastState/terminated/finishedAt") {
            last_restart = last_restart.max(finished);
        }
        if initializing {
            continue;
        }
        if let Some(waiting) = at(status, "/state/waiting/reason") {
            reason = waiting;
        } else if let Some(ended) = ended(status) {
            reason = ended;
        } else if status.get("ready") == Some(&Value::Bool(true))
            && status.pointer("/state/running").is_some()
        {
            running = true;
        }
    }
    if reason == "Completed" && running {
        reason = if object.condition("Ready") == Some("True") { "Running" } else { "NotReady" }.to_owned();
    }
    if object.is_deleting() {
        if own == "NodeLost" {
            reason = "Unknown".to_owned();
        } else if phase != "Failed" && phase != "Succeeded" {
            reason = "Terminating".to_owned();
        }
    }
    (reason, restarts, last_restart)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_kubectl_writes_them() {
        for (seconds, want) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 300, "3h5m"),
            (47 * 3600, "47h"),
            (50 * 3600, "2d2h"),
            (9 * 86400, "9d"),
        ] {
            assert_eq!(human_duration(seconds * 1000), want, "{seconds}");
        }
    }

    #[test]
    fn the_status_of_a_pod_is_what_holds_it_up() {
        let status = |value: Value| {
            let object = Object::try_from(value).unwrap();
            pod(&object, Timestamp(0))
                .iter()
                .skip(1)
                .take(3)
                .map(|v| v.as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        let spec = json!({"containers": [{"name": "a"}]});
        assert_eq!(status(json!({"spec": spec, "status": {"phase": "Pending"}})), ["0/1", "Pending", "0"]);
        assert_eq!(
            status(json!({"spec": spec, "status": {"phase": "Running", "containerStatuses": [
                {"ready": true, "restartCount": 2, "state": {"running": {}}}]}})),
            ["1/1", "Running", "2"]
        );
        assert_eq!(
            status(json!({"spec": spec, "status": {"phase": "Running", "containerStatuses": [
                {"ready": false, "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}})),
            ["0/1", "CrashLoopBackOff", "2"]
        );
        assert_eq!(
            status(json!({"spec": spec, "status": {"phase": "Failed", "containerStatuses": [
                {"state": {"terminated": {"exitCode": 3}}}]}})),
            ["0/1", "ExitCode:3", "0"]
        );
        assert_eq!(
            status(
                json!({"metadata": {"deletionTimestamp": "2020-01-01T00:00:00Z"}, "spec": spec, "status": {"phase": "Running"}})
            ),
            ["0/1", "Terminating", "0"]
        );
    }
}
