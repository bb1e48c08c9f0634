//! Small pods to run: a shell line of busybox.

use serde_json::{Value, json};

/// The image of all small pods.
pub const BUSYBOX: &str = "docker.io/library/busybox:demo";
/// A container that runs until it is told to stop, and then does.
pub const IDLE: &str = "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done";

/// A pod of one container that runs a shell line.
pub fn pod(name: &str, node: &str, line: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 2, "containers": [shell("main", line)]}})
}

/// A container that runs a shell line.
pub fn shell(name: &str, line: &str) -> Value {
    json!({"name": name, "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["/bin/sh", "-c", line]})
}
