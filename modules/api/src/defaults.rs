//! What Kubernetes fills in when a manifest leaves it out. Done once, here, so that no reader has to guess.
//!
//! Source: Kubernetes `pkg/apis/core/v1/defaults.go`. Pure, and idempotent: defaulting twice changes nothing.

use base64::Engine;
use schemas::object::Object;
use serde_json::{Map, Value, json};

/// Pod: defaults of the pod, its containers, probes and volumes, and the first status.
pub fn pod(object: &mut Object) {
    if !object.get(&["spec"]).is_some_and(Value::is_object) {
        object.set(&["spec"], Value::Object(Map::new()));
    }
    if let Some(spec) = object.as_map_mut().get_mut("spec").and_then(Value::as_object_mut) {
        default(spec, "restartPolicy", "Always");
        default(spec, "terminationGracePeriodSeconds", 30);
        default(spec, "dnsPolicy", "ClusterFirst");
        default(spec, "securityContext", json!({}));
        default(spec, "schedulerName", "default-scheduler");
        default(spec, "enableServiceLinks", true);
        for list in ["initContainers", "containers"] {
            for container in maps(spec, list) {
                default_container(container);
            }
        }
        for volume in maps(spec, "volumes") {
            default_volume(volume);
        }
        for toleration in maps(spec, "tolerations") {
            if let Some(Value::Number(seconds)) = toleration.get("tolerationSeconds") {
                // Older clients send the number as a float.
                let seconds = seconds.as_f64().map(|s| s as i64).unwrap_or(0);
                toleration.insert("tolerationSeconds".into(), seconds.into());
            }
        }
    }
}

/// The status that a new pod has.
pub fn pod_status(object: &mut Object) {
    let class = qos_class(object);
    object.set(&["status"], json!({"phase": "Pending", "qosClass": class}));
}

fn default(map: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    let missing = map.get(name).is_none_or(|v| v.is_null() || v.as_str() == Some(""));
    if missing {
        map.insert(name.to_owned(), value.into());
    }
}

fn maps<'a>(map: &'a mut Map<String, Value>, list: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    map.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

fn default_container(container: &mut Map<String, Value>) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or("");
    let policy = if floats(image) { "Always" } else { "IfNotPresent" };
    default(container, "imagePullPolicy", policy);
    default(container, "terminationMessagePath", "/dev/termination-log");
    default(container, "terminationMessagePolicy", "File");
    default(container, "resources", json!({}));
    for port in maps(container, "ports") {
        default(port, "protocol", "TCP");
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(probe).and_then(Value::as_object_mut) else { continue };
        for (name, value) in
            [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
        {
            default(probe, name, value);
        }
        if let Some(http) = probe.get_mut("httpGet").and_then(Value::as_object_mut) {
            default(http, "path", "/");
            default(http, "scheme", "HTTP");
        }
    }
    let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) else { return };
    for list in ["limits", "requests"] {
        let Some(amounts) = resources.get_mut(list).and_then(Value::as_object_mut) else { continue };
        for amount in amounts.values_mut() {
            // `cpu: 1` is a number in YAML; a quantity is text.
            if let Value::Number(number) = amount {
                *amount = number.to_string().into();
            }
        }
    }
    let limits = resources.get("limits").and_then(Value::as_object).cloned().unwrap_or_default();
    if !limits.is_empty() {
        let requests = resources.entry("requests").or_insert_with(|| json!({}));
        if let Some(requests) = requests.as_object_mut() {
            for (name, amount) in limits {
                requests.entry(name).or_insert(amount);
            }
        }
    }
}

/// Does the image's tag float (`latest`, or none and no digest)?
fn floats(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or("");
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn default_volume(volume: &mut Map<String, Value>) {
    if volume.iter().all(|(key, value)| key == "name" || value.is_null()) {
        volume.insert("emptyDir".into(), json!({}));
    }
    for source in ["configMap", "secret", "projected", "downwardAPI"] {
        if let Some(source) = volume.get_mut(source).and_then(Value::as_object_mut) {
            default(source, "defaultMode", 0o644);
        }
    }
    if let Some(path) = volume.get_mut("hostPath").and_then(Value::as_object_mut) {
        path.entry("type").or_insert_with(|| "".into());
    }
}

/// `status.qosClass`, from the containers' CPU and memory.
fn qos_class(object: &Object) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for list in ["initContainers", "containers"] {
        for container in object.get(&["spec", list]).and_then(Value::as_array).into_iter().flatten() {
            for resource in ["cpu", "memory"] {
                let amount = |which: &str| {
                    let text = container.get("resources")?.get(which)?.get(resource)?.as_str()?;
                    schemas::quantity::milli(text).filter(|m| *m > 0)
                };
                let (limit, request) = (amount("limits"), amount("requests"));
                any |= limit.is_some() || request.is_some();
                guaranteed &= limit.is_some() && limit == request;
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Secret: `stringData` becomes `data`; the type is `Opaque`.
pub fn secret(object: &mut Object) {
    if let Some(Value::Object(texts)) = object.remove(&["stringData"]) {
        for (key, text) in texts {
            let bytes = text.as_str().unwrap_or("").as_bytes().to_vec();
            let encoded = base64::engine::general_purpose::STANDARD.encode(bytes);
            object.set(&["data", key.as_str()], encoded);
        }
    }
    default(object.as_map_mut(), "type", "Opaque");
}

/// Namespace: its name as a label, for selectors; its phase.
pub fn namespace(object: &mut Object) {
    let name = object.name().to_owned();
    if !name.is_empty() {
        object.set(&["metadata", "labels", "kubernetes.io/metadata.name"], name);
    }
    if object.get(&["spec", "finalizers"]).is_none() && !object.is_deleting() {
        object.set(&["spec", "finalizers"], json!(["kubernetes"]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_filled_in_once() {
        let mut object = Object::try_from(json!({"spec": {
            "containers": [{"name": "a", "image": "x:1", "resources": {"limits": {"cpu": 1}}, "ports": [{"containerPort": 80}]}, {"name": "b", "image": "r:5/x"}],
            "volumes": [{"name": "e"}, {"name": "c", "configMap": {"name": "x"}}],
        }}))
        .unwrap();
        pod(&mut object);
        let at = |pointer: &str| Value::from(object.clone()).pointer(pointer).cloned().unwrap();
        assert_eq!(at("/spec/restartPolicy"), "Always");
        assert_eq!(at("/spec/terminationGracePeriodSeconds"), 30);
        assert_eq!(at("/spec/containers/0/imagePullPolicy"), "IfNotPresent");
        assert_eq!(at("/spec/containers/1/imagePullPolicy"), "Always");
        assert_eq!(at("/spec/containers/0/resources/requests/cpu"), "1");
        assert_eq!(at("/spec/containers/0/ports/0/protocol"), "TCP");
        assert_eq!(at("/spec/volumes/0/emptyDir"), json!({}));
        assert_eq!(at("/spec/volumes/1/configMap/defaultMode"), 420);
        let mut again = object.clone();
        pod(&mut again);
        assert_eq!(again, object);
        pod_status(&mut again);
        assert_eq!(again.text(&["status", "qosClass"]), "Burstable");
    }

    #[test]
    fn secrets_take_text() {
        let mut object = Object::try_from(json!({"stringData": {"a": "hi"}, "data": {"b": "eA=="}})).unwrap();
        secret(&mut object);
        assert_eq!(Value::from(object), json!({"data": {"b": "eA==", "a": "aGk="}, "type": "Opaque"}));
    }
}
