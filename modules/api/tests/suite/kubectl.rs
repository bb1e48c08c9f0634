//! Real kubectl against the API: what an operator types, and what comes back.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::{Hub, Kubectl, eventually};
use serde_json::{Value, json};

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
spec:
  nodeName: n1
  containers:
  - name: c
    image: nginx:1
    env: [{name: A, value: "1"}]
"#;

fn object(hub: &Kubectl, args: &[&str]) -> Value {
    let mut all = vec!["get", "-o", "json"];
    all.extend_from_slice(args);
    serde_json::from_str(&hub.ok(&all)).unwrap()
}

#[test]
fn discovery_says_what_is_served() {
    let hub = Hub::start();
    let resources = hub.ok(&["api-resources"]);
    for word in ["pods", "po ", "configmaps", "cm ", "secrets", "namespaces", "nodes", "events"] {
        assert!(resources.contains(word), "{word} in\n{resources}");
    }
    assert!(hub.ok(&["api-versions"]).lines().any(|l| l == "v1"));
    assert!(hub.ok(&["version"]).contains("Server Version: v1.32"));
    assert!(hub.ok(&["cluster-info"]).contains("is running at"));
    assert!(
        hub.fails(&["get", "deployments"])
            .contains("the server doesn't have a resource type \"deployments\"")
    );
    assert!(hub.fails(&["get", "--raw", "/apis/apps/v1/deployments"]).contains("not served yet"));
    let error = hub.fails(&["create", "service", "clusterip", "x", "--tcp=80:80"]);
    assert!(error.contains("not served yet"), "{error}");
    assert!(hub.fails(&["get", "pods", "--as", "someone"]).contains("impersonation is not served yet"));
    // Older clients ask one group at a time.
    let list: Value = serde_json::from_str(&hub.raw("/api/v1")).unwrap();
    assert_eq!(list["kind"], "APIResourceList");
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(hub.raw(path), "ok");
    }
}

#[test]
fn a_manifest_is_applied_edited_patched_and_deleted() {
    let hub = Hub::start();
    assert_eq!(hub.apply(POD).trim(), "pod/web created");
    assert_eq!(hub.apply(POD).trim(), "pod/web unchanged");
    assert_eq!(hub.apply(&POD.replace("nginx:1", "nginx:2")).trim(), "pod/web configured");
    let pod = object(&hub, &["pod", "web"]);
    assert_eq!(pod["spec"]["containers"][0]["image"], "nginx:2");
    assert_eq!(pod["spec"]["restartPolicy"], "Always");
    assert_eq!(pod["metadata"]["generation"], 2);
    assert_eq!(pod["status"]["phase"], "Pending");

    hub.ok(&["label", "pod", "web", "tier=front"]);
    hub.ok(&["annotate", "pod", "web", "note=hello"]);
    assert_eq!(hub.ok(&["get", "pods", "-l", "tier in (front)", "-o", "name"]).trim(), "pod/web");
    assert_eq!(hub.ok(&["get", "pods", "-l", "tier!=front", "-o", "name"]).trim(), "");
    hub.ok(&["label", "pod", "web", "tier-"]);
    assert!(object(&hub, &["pod", "web"])["metadata"]["labels"].get("tier").is_none());

    hub.ok(&["patch", "pod", "web", "-p", r#"{"spec":{"containers":[{"name":"c","image":"nginx:3"}]}}"#]);
    hub.ok(&["patch", "pod", "web", "--type=merge", "-p", r#"{"metadata":{"labels":{"m":"1"}}}"#]);
    hub.ok(&[
        "patch",
        "pod",
        "web",
        "--type=json",
        "-p",
        r#"[{"op":"add","path":"/metadata/labels/j","value":"2"}]"#,
    ]);
    let pod = object(&hub, &["pod", "web"]);
    assert_eq!(pod["spec"]["containers"][0]["image"], "nginx:3");
    assert_eq!(pod["spec"]["containers"][0]["env"][0]["value"], "1", "a strategic patch leaves the rest");
    assert_eq!(pod["metadata"]["labels"], json!({"app": "web", "m": "1", "j": "2"}));

    let editor = hub.file("editor.sh", "#!/bin/sh\nsed -i 's/nginx:3/nginx:4/' \"$1\"\n");
    std::process::Command::new("chmod").args(["+x", &editor]).status().unwrap();
    let output = hub.command(&["edit", "pod", "web"]).env("KUBE_EDITOR", &editor).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(object(&hub, &["pod", "web"])["spec"]["containers"][0]["image"], "nginx:4");

    let error = hub.fails(&["patch", "pod", "web", "--type=merge", "-p", r#"{"spec":{"nodeName":"n2"}}"#]);
    assert!(error.contains("pod updates may not change fields other than"), "{error}");
    let output = hub.with_input(&["apply", "--server-side", "-f", "-"], POD);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("server-side apply is not served yet"), "{error}");

    let table = hub.ok(&["get", "pods"]);
    assert_eq!(
        table.lines().next().unwrap().split_whitespace().collect::<Vec<_>>(),
        ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    );
    assert!(hub.ok(&["get", "pods", "-A", "-o", "wide"]).contains("n1"));
    let described = hub.ok(&["describe", "pod", "web"]);
    assert!(described.contains("nginx:4") && described.contains("Status:       Pending"), "{described}");

    // On a node: only marked, until its node says that it has stopped; --force does not wait.
    hub.ok(&["delete", "pod", "web", "--wait=false"]);
    assert!(hub.ok(&["get", "pods"]).contains("Terminating"));
    assert_eq!(object(&hub, &["pod", "web"])["metadata"]["deletionGracePeriodSeconds"], 30);
    hub.ok(&["delete", "pod", "web", "--force", "--grace-period=0"]);
    assert!(hub.fails(&["get", "pod", "web"]).contains("pods \"web\" not found"));
}

#[test]
fn an_unbound_pod_goes_at_once_and_delete_waits() {
    let hub = Hub::start();
    hub.apply(&POD.replace("  nodeName: n1\n", ""));
    let start = Instant::now();
    assert!(hub.ok(&["delete", "pod", "web"]).contains("deleted"));
    assert!(start.elapsed() < Duration::from_secs(10));

    hub.apply(POD);
    let mut deleting = hub.command(&["delete", "pod", "web"]).stdout(Stdio::piped()).spawn().unwrap();
    eventually("the pod is marked", || hub.ok(&["get", "pods"]).contains("Terminating"));
    assert!(deleting.try_wait().unwrap().is_none(), "kubectl waits");
    hub.ok(&["delete", "pod", "web", "--force", "--grace-period=0"]);
    assert!(deleting.wait().unwrap().success());
}

#[test]
fn watches_tell_what_comes_changes_and_goes() {
    let hub = Hub::start();
    let mut child = hub
        .command(&["get", "pods", "-w", "-l", "app=web", "--output-watch-events"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut until = |word: &str| {
        let line = lines.by_ref().map(Result::unwrap).find(|line| !line.starts_with("EVENT")).unwrap();
        assert!(line.starts_with(word), "{line:?} is not {word}");
    };
    // The first event may be the first list's; both say ADDED.
    hub.apply(POD);
    until("ADDED");
    hub.ok(&["annotate", "pod", "web", "x=y"]);
    until("MODIFIED");
    hub.ok(&["label", "pod", "web", "app=other", "--overwrite"]);
    until("DELETED");
    hub.ok(&["label", "pod", "web", "app=web", "--overwrite"]);
    until("ADDED");
    hub.ok(&["delete", "pod", "web", "--force", "--grace-period=0"]);
    until("DELETED");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn wait_ends_with_the_condition() {
    let hub = Hub::start();
    hub.apply(POD);
    let mut waiting =
        hub.command(&["wait", "--for=condition=Ready", "pod/web", "--timeout=20s"]).spawn().unwrap();
    let status = r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}],"podIP":"10.0.0.9"}}"#;
    hub.ok(&["patch", "pod", "web", "--subresource=status", "--type=merge", "-p", status]);
    assert!(waiting.wait().unwrap().success());
    let pod = object(&hub, &["pod", "web"]);
    assert_eq!(pod["metadata"]["generation"], 1, "a status is no change of the spec");
    assert!(hub.ok(&["get", "pods", "--field-selector=status.phase=Running"]).contains("web"));
    assert!(!hub.ok(&["get", "pods", "--field-selector=spec.nodeName!=n1", "-o", "name"]).contains("web"));
    assert!(hub.fails(&["get", "pods", "--field-selector=spec.x=1"]).contains("field label not supported"));
    hub.ok(&["wait", "--for=jsonpath={.status.phase}=Running", "pod/web", "--timeout=5s"]);
    let mut waiting = hub.command(&["wait", "--for=delete", "pod/web", "--timeout=20s"]).spawn().unwrap();
    hub.ok(&["delete", "pod", "web", "--force", "--grace-period=0"]);
    assert!(waiting.wait().unwrap().success());
}

#[test]
fn a_namespace_goes_with_its_content() {
    let hub = Hub::start();
    hub.ok(&["create", "namespace", "demo"]);
    hub.ok(&["-n", "demo", "create", "configmap", "a", "--from-literal=k=v"]);
    let output = hub.with_input(&["-n", "demo", "apply", "-f", "-"], POD);
    assert!(output.status.success());
    hub.ok(&["delete", "namespace", "demo", "--wait=false"]);
    assert!(hub.ok(&["get", "ns", "demo"]).contains("Terminating"));
    assert!(hub.fails(&["-n", "demo", "create", "configmap", "b"]).contains("being terminated"));
    eventually("the pod is marked", || hub.ok(&["-n", "demo", "get", "pods"]).contains("Terminating"));
    eventually("the rest is gone", || hub.ok(&["-n", "demo", "get", "cm"]).trim().is_empty());
    hub.ok(&["-n", "demo", "delete", "pod", "web", "--force", "--grace-period=0"]);
    hub.ok(&["wait", "--for=delete", "ns/demo", "--timeout=20s"]);
    assert!(hub.fails(&["-n", "demo", "create", "configmap", "b"]).contains("namespaces \"demo\" not found"));
    assert!(hub.fails(&["delete", "namespace", "default"]).contains("may not be deleted"));
}

#[test]
fn manifests_are_checked() {
    let hub = Hub::start();
    let send = |args: &[&str], manifest: &str| {
        let output = hub.with_input(args, manifest);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let typo = POD.replace("image: nginx:1", "image: nginx:1\n    imagePullPolici: Never");
    let (done, error) = send(&["apply", "-f", "-"], &typo);
    assert!(!done && error.contains("unknown field \"spec.containers[0].imagePullPolici\""), "{error}");
    let (done, error) = send(&["apply", "--validate=warn", "-f", "-"], &typo);
    assert!(
        done && error.contains("Warning: unknown field \"spec.containers[0].imagePullPolici\""),
        "{error}"
    );
    assert_eq!(
        object(&hub, &["pod", "web"])["spec"]["containers"][0]["imagePullPolici"],
        "Never",
        "kept as sent"
    );
    hub.ok(&["delete", "pod", "web", "--force", "--grace-period=0"]);

    let (done, error) = send(&["apply", "-f", "-"], &POD.replace("    image: nginx:1\n", ""));
    assert!(!done && error.contains("spec.containers[0].image: Required value"), "{error}");
    let (done, error) = send(&["apply", "-f", "-"], &POD.replace("nginx:1", "{a: b}"));
    assert!(!done && error.contains("spec.containers[0].image"), "{error}");
    let (done, error) = send(&["apply", "-f", "-"], &POD.replace("name: web", "name: Web_1"));
    assert!(!done && error.contains("metadata.name"), "{error}");
    let (done, error) = send(&["apply", "-n", "nowhere", "-f", "-"], POD);
    assert!(!done && error.contains("namespaces \"nowhere\" not found"), "{error}");
    let (done, error) = send(&["create", "-f", "-"], "apiVersion: v1\nkind: Widget\nmetadata: {name: a}\n");
    assert!(!done && error.contains("Widget"), "{error}");
    let (done, error) = send(&["create", "--dry-run=server", "-f", "-"], POD);
    assert!(done, "{error}");
    assert!(hub.ok(&["get", "pods", "-o", "name"]).is_empty(), "a dry run writes nothing");
    hub.apply(POD);
    let (done, error) = send(&["create", "-f", "-"], POD);
    assert!(!done && error.contains("pods \"web\" already exists"), "{error}");
    let stale = POD.replace("name: web", "name: web\n  resourceVersion: \"1\"");
    let (done, error) = send(&["replace", "-f", "-"], &stale);
    assert!(!done && error.contains("the object has been modified"), "{error}");
}

#[test]
fn configmaps_and_secrets() {
    let hub = Hub::start();
    hub.ok(&["create", "configmap", "c", "--from-literal=a=1", "--from-literal=b=2"]);
    hub.ok(&["create", "secret", "generic", "s", "--from-literal=p=word"]);
    assert!(hub.ok(&["get", "cm", "c"]).lines().nth(1).unwrap().starts_with("c      2"));
    assert_eq!(object(&hub, &["secret", "s"])["data"]["p"], "d29yZA==");
    hub.apply("apiVersion: v1\nkind: Secret\nmetadata: {name: t}\nstringData: {x: hi}\n");
    let secret = object(&hub, &["secret", "t"]);
    assert_eq!((&secret["data"]["x"], &secret["type"]), (&json!("aGk="), &json!("Opaque")));
    assert!(secret.get("stringData").is_none());
    assert!(hub.ok(&["describe", "secret", "t"]).contains("x:  2 bytes"));
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: other}\n";
    let diff = hub.with_input(&["diff", "-f", "-"], map);
    assert_eq!(diff.status.code(), Some(1), "{}", String::from_utf8_lossy(&diff.stderr));
    assert!(String::from_utf8_lossy(&diff.stdout).contains("+  a: other"));
    hub.ok(&["delete", "cm,secret", "--all"]);
    assert!(hub.ok(&["get", "cm,secret", "-o", "name"]).is_empty());
}

#[test]
fn nodes_and_events_describe() {
    let hub = Hub::start();
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"node-role.kubernetes.io/edge": ""}},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Here", "message": "m", "lastTransitionTime": "2024-01-01T00:00:00Z", "lastHeartbeatTime": "2024-01-01T00:00:00Z"}],
                   "capacity": {"cpu": "2", "memory": "1Gi", "pods": "110"}, "allocatable": {"cpu": "2", "memory": "1Gi", "pods": "110"},
                   "addresses": [{"type": "InternalIP", "address": "10.1.1.1"}],
                   "nodeInfo": {"kubeletVersion": "v0.1", "osImage": "Debian", "kernelVersion": "6", "containerRuntimeVersion": "containerd://1.6"}},
    });
    hub.with_input(&["create", "-f", "-"], &node.to_string());
    hub.apply(POD);
    let line = hub.ok(&["get", "nodes", "-o", "wide"]);
    for word in ["n1", "Ready", "edge", "10.1.1.1", "containerd://1.6"] {
        assert!(line.contains(word), "{word} in\n{line}");
    }
    let described = hub.ok(&["describe", "node", "n1"]);
    assert!(described.contains("Non-terminated Pods:") && described.contains("web"), "{described}");
    hub.ok(&["cordon", "n1"]);
    assert!(hub.ok(&["get", "nodes"]).contains("Ready,SchedulingDisabled"));
    hub.ok(&["uncordon", "n1"]);
    hub.ok(&["run", "free-pod", "--image=x:1"]);
    hub.ok(&["set", "image", "pod/web", "c=nginx:9"]);
    hub.ok(&["taint", "node", "n1", "a=b:NoSchedule"]);
    assert_eq!(object(&hub, &["node", "n1"])["spec"]["taints"][0]["key"], "a");

    let uid = object(&hub, &["pod", "web"])["metadata"]["uid"].clone();
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "web.1", "namespace": "default"},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "web", "uid": uid},
        "reason": "Started", "message": "Started container c", "type": "Normal", "count": 1,
        "source": {"component": "containers", "host": "n1"},
        "firstTimestamp": "2024-01-01T00:00:00Z", "lastTimestamp": "2024-01-01T00:00:00Z",
    });
    hub.with_input(&["create", "-f", "-"], &event.to_string());
    assert!(hub.ok(&["describe", "pod", "web"]).contains("Started container c"));
    let events = hub.ok(&["get", "events"]);
    assert!(events.contains("pod/web") && events.contains("Started container c"), "{events}");
    assert!(hub.ok(&["events", "--for", "pod/web"]).contains("Started container c"));
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "free"}, "target": {"kind": "Node", "name": "n1"}});
    hub.apply(&POD.replace("  nodeName: n1\n", "").replace("name: web", "name: free"));
    let file = hub.file("binding.json", &binding.to_string());
    hub.ok(&["create", "--raw", "/api/v1/namespaces/default/pods/free/binding", "-f", &file]);
    let pod = object(&hub, &["pod", "free"]);
    assert_eq!(
        (&pod["spec"]["nodeName"], &pod["status"]["conditions"][0]["type"]),
        (&json!("n1"), &json!("PodScheduled"))
    );
    assert!(
        hub.fails(&["create", "--raw", "/api/v1/namespaces/default/pods/free/binding", "-f", &file])
            .contains("already assigned")
    );
}

#[test]
fn logs_and_exec_reach_the_container() {
    let hub = Hub::start();
    hub.apply(POD);
    assert_eq!(hub.ok(&["logs", "web"]).lines().count(), 3);
    assert_eq!(hub.ok(&["logs", "web", "-c", "c", "--tail=1", "-f"]), "c line 2 previous=false\nfollowed\n");
    assert!(hub.ok(&["logs", "web", "--previous"]).contains("previous=true"));
    assert!(hub.fails(&["logs", "web", "-c", "other"]).contains("container other is not valid for pod web"));
    assert_eq!(hub.ok(&["exec", "web", "--", "echo", "a b"]), "echo a b in c\n");
    let output = hub.with_input(&["exec", "-i", "web", "--", "cat"], &"x".repeat(200_000));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout.len(), 200_000);
    let output = hub.kubectl(&["exec", "web", "--", "exit", "3"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error.contains("going") && error.contains("command terminated with exit code 3"), "{error}");

    hub.apply(&POD.replace("name: web", "name: away").replace("n1", "away"));
    for args in [&["logs", "away"][..], &["exec", "away", "--", "true"]] {
        let start = Instant::now();
        let error = hub.fails(args);
        assert!(start.elapsed() < Duration::from_secs(5), "{args:?} is not tried again and again");
        assert!(error.contains("EW-NODE-UNREACHABLE"), "{args:?}: {error}");
    }
    hub.apply(&POD.replace("name: web", "name: free").replace("  nodeName: n1\n", ""));
    for args in [&["logs", "free"][..], &["exec", "free", "--", "true"]] {
        let error = hub.fails(args);
        assert!(error.contains("is not on a node yet"), "{args:?}: {error}");
    }
    let output = hub
        .command(&["exec", "web", "--", "true"])
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("WebSocket only"), "{error}");
}

#[test]
fn finalizers_hold_an_object() {
    let hub = Hub::start();
    hub.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: held, finalizers: [edgewire.io/test]}\n");
    hub.ok(&["delete", "cm", "held", "--wait=false"]);
    assert!(object(&hub, &["cm", "held"])["metadata"]["deletionTimestamp"].is_string());
    hub.ok(&["patch", "cm", "held", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]);
    assert!(hub.fails(&["get", "cm", "held"]).contains("not found"));
}
