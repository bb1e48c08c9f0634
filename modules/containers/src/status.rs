//! Pure: a pod's `status`, as Kubernetes has it, from what is known of the pod.
//!
//! Source: Kubernetes `pkg/kubelet/kubelet_pods.go` (`getPhase`, `convertToAPIContainerStatuses`).

use k8s_openapi::api::core::v1::Container;
use schemas::Timestamp;
use serde_json::{Value, json};

use crate::pod::PodState;
use crate::record::{Ended, Phase, Removal};

/// The status, and the conditions to remember. `host_ip` is the node's address.
pub fn status_of(pod: &mut PodState, host_ip: &str, now: Timestamp) -> Value {
    let phase = phase_of(pod);
    let init: Vec<Value> = pod.init_containers().map(|c| container_status(pod, c, true)).collect();
    let main: Vec<Value> = pod.containers().map(|c| container_status(pod, c, false)).collect();
    let ready_of =
        |list: &[Value]| list.iter().all(|c| c.get("ready").and_then(Value::as_bool).unwrap_or(false));
    let all_ready = !main.is_empty() && ready_of(&main);
    let conditions = conditions(pod, phase, ready_of(&init), all_ready, now);

    let host_network = pod.spec.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    let ip = if host_network { host_ip } else { pod.record.ip.as_str() };
    let mut status = json!({
        "phase": phase,
        "conditions": conditions,
        "hostIP": host_ip,
        "startTime": pod.record.start_time.rfc3339(),
        "containerStatuses": main,
        "qosClass": qos_class(pod),
    });
    let Some(map) = status.as_object_mut() else { return status };
    if !init.is_empty() {
        map.insert("initContainerStatuses".into(), init.into());
    }
    if !host_ip.is_empty() {
        map.insert("hostIPs".into(), json!([{"ip": host_ip}]));
    }
    if !ip.is_empty() {
        map.insert("podIP".into(), json!(ip));
        map.insert("podIPs".into(), json!([{"ip": ip}]));
    }
    status
}

fn phase_of(pod: &PodState) -> &'static str {
    let (mut running, mut waiting, mut failed, mut ended, mut total) = (0, 0, 0, 0, 0);
    for container in pod.containers() {
        total += 1;
        match pod.record_of(&container.name).map(|record| (&record.phase, record.last.is_some())) {
            Some((Phase::Running { .. }, _)) => running += 1,
            Some((Phase::Ended(end), _)) => {
                ended += 1;
                failed += i32::from(end.code != 0);
            }
            // A restart that waits has run before.
            Some((Phase::Waiting, true)) => running += 1,
            Some((Phase::Waiting, false)) | None => waiting += 1,
        }
    }
    let finished = pod.is_finished() || pod.record.stopped;
    if finished && ended == total && failed == 0 {
        "Succeeded"
    } else if finished {
        "Failed"
    } else if waiting > 0 || running + ended == 0 {
        "Pending"
    } else {
        "Running"
    }
}

fn conditions(pod: &mut PodState, phase: &str, init_done: bool, all_ready: bool, now: Timestamp) -> Value {
    let main_begun =
        pod.containers().any(|c| pod.record_of(&c.name).is_some_and(|r| r.phase != Phase::Waiting));
    let stopping = pod.record.removal != Removal::None;
    let ready = all_ready && phase == "Running" && !stopping;
    let wanted = [
        ("PodScheduled", true, ""),
        ("Initialized", init_done || main_begun, "ContainersNotInitialized"),
        ("ContainersReady", all_ready, "ContainersNotReady"),
        ("Ready", ready, "ContainersNotReady"),
    ];
    let mut out = Vec::new();
    for (name, is, reason) in wanted {
        let entry = pod.record.conditions.entry(name.to_owned()).or_insert((is, now));
        if entry.0 != is {
            *entry = (is, now);
        }
        let mut condition = json!({
            "type": name,
            "status": if is { "True" } else { "False" },
            "lastProbeTime": null,
            "lastTransitionTime": entry.1.rfc3339(),
        });
        if let (false, Some(map)) = (is, condition.as_object_mut()) {
            let reason = if phase == "Succeeded" { "PodCompleted" } else { reason };
            map.insert("reason".into(), json!(reason));
        }
        out.push(condition);
    }
    Value::Array(out)
}

fn container_status(pod: &PodState, container: &Container, init: bool) -> Value {
    let name = &container.name;
    let record = pod.record_of(name).cloned().unwrap_or_default();
    let failure = pod.failures.get(name);
    let waiting = |reason: &str, message: String| {
        let mut state = json!({"reason": reason});
        if let (false, Some(map)) = (message.is_empty(), state.as_object_mut()) {
            map.insert("message".into(), json!(message));
        }
        json!({"waiting": state})
    };
    let mut last = record.last.clone();
    let state = match (&record.phase, failure) {
        (Phase::Running { since }, _) => json!({"running": {"startedAt": since.rfc3339()}}),
        (Phase::Ended(ended), _) if pod.record.stopped || !pod.restarts(name, ended.code) => {
            terminated(ended)
        }
        (Phase::Ended(ended), None) if record.backoff_ms > 0 => {
            last = Some(ended.clone());
            let seconds = record.backoff_ms / 1000;
            let message = format!("back-off {seconds}s restarting failed container={name}");
            waiting("CrashLoopBackOff", message)
        }
        (Phase::Ended(ended), None) => terminated(ended),
        (_, Some(failure)) => waiting(&failure.reason, failure.message.clone()),
        (Phase::Waiting, None) => {
            let reason = if init || pod.init_containers().next().is_none() {
                "ContainerCreating"
            } else {
                "PodInitializing"
            };
            waiting(reason, String::new())
        }
    };
    let running = matches!(record.phase, Phase::Running { .. });
    let completed = matches!(&record.phase, Phase::Ended(ended) if ended.code == 0);
    let ready = if init { completed || running && container.restart_policy.is_some() } else { running };
    let image = if record.image.is_empty() {
        container.image.clone().unwrap_or_default()
    } else {
        record.image.clone()
    };
    let mut out = json!({
        "name": name,
        "image": image,
        "imageID": record.image_id,
        "ready": ready,
        "started": running,
        "restartCount": record.attempt,
        "state": state,
        "lastState": last.as_ref().map_or_else(|| json!({}), terminated),
    });
    let begun = running || matches!(record.phase, Phase::Ended(_));
    let id = if begun { Some(record.id.clone()) } else { last.map(|ended| ended.id) };
    if let (Some(id), Some(map)) = (id, out.as_object_mut()) {
        map.insert("containerID".into(), json!(format!("containerd://{id}")));
    }
    out
}

fn terminated(ended: &Ended) -> Value {
    json!({"terminated": {
        "exitCode": ended.code,
        "reason": ended.reason,
        "startedAt": ended.started_at.rfc3339(),
        "finishedAt": ended.finished_at.rfc3339(),
        "containerID": format!("containerd://{}", ended.id),
    }})
}

fn qos_class(pod: &PodState) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for container in pod.init_containers().chain(pod.containers()) {
        let resources = container.resources.as_ref();
        let limits = resources.and_then(|r| r.limits.as_ref());
        let requests = resources.and_then(|r| r.requests.as_ref());
        for name in ["cpu", "memory"] {
            let limit = limits.and_then(|list| list.get(name));
            let request = requests.and_then(|list| list.get(name));
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
