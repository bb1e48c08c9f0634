//! The kinds of the message channel, by real kubectl: non-core groups, tables, validation, status.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::support::{Hub, Kubectl};
use serde_json::{Value, json};

const TOPIC: &str = r#"
apiVersion: edgewire.io/v1alpha1
kind: Topic
metadata:
  name: readings
spec:
  subjects: ["app.default.readings.>"]
  ageMax: 24h
  consumers:
  - name: archive
  - name: hot
    filter: app.default.readings.hot
    deliver: new
"#;

const TOPIC_MAP: &str = r#"
apiVersion: edgewire.io/v1alpha1
kind: TopicMap
metadata:
  name: factory
spec:
  nodeSelector: {site: a}
  maps:
  - from: {mqtt: "factory/+/temp"}
    to: {subject: "up.default.factory.{1}.temp"}
  - from: {subject: "app.default.cmd.*"}
    to: {mqtt: "factory/{1}/cmd"}
    qos: 1
    retain: true
"#;

/// As KubeEdge's documentation has them.
const KUBEEDGE: &str = r#"
apiVersion: rules.kubeedge.io/v1
kind: RuleEndpoint
metadata:
  name: my-rest
  labels:
    description: test
spec:
  ruleEndpointType: "rest"
  properties: {}
---
apiVersion: rules.kubeedge.io/v1
kind: RuleEndpoint
metadata:
  name: my-eventbus
  labels:
    description: test
spec:
  ruleEndpointType: "eventbus"
  properties: {}
---
apiVersion: rules.kubeedge.io/v1
kind: Rule
metadata:
  name: my-rule
  labels:
    description: test
spec:
  source: "my-rest"
  sourceResource: {"path":"/test"}
  target: "my-eventbus"
  targetResource: {"topic":"test"}
"#;

fn object(hub: &Kubectl, args: &[&str]) -> Value {
    let mut all = vec!["get", "-o", "json"];
    all.extend_from_slice(args);
    serde_json::from_str(&hub.ok(&all)).unwrap()
}

fn refused(hub: &Hub, manifest: &str) -> String {
    let output = hub.with_input(&["apply", "-f", "-"], manifest);
    assert!(!output.status.success(), "accepted: {manifest}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn words(line: Option<&str>) -> Vec<&str> {
    line.unwrap_or("").split_whitespace().collect()
}

#[test]
fn groups_other_than_core_are_discovered_and_explained() {
    let hub = Hub::start();
    let resources = hub.ok(&["api-resources"]);
    for row in [
        "topics edgewire.io/v1alpha1 true Topic",
        "topicmaps edgewire.io/v1alpha1 true TopicMap",
        "rules rules.kubeedge.io/v1 true Rule",
        "ruleendpoints rules.kubeedge.io/v1 true RuleEndpoint",
    ] {
        let row: Vec<&str> = row.split(' ').collect();
        assert!(resources.lines().any(|line| words(Some(line)) == row), "{row:?} in\n{resources}");
    }
    let versions = hub.ok(&["api-versions"]);
    for version in ["edgewire.io/v1alpha1", "rules.kubeedge.io/v1", "v1"] {
        assert!(versions.lines().any(|line| line == version), "{versions}");
    }
    // Older clients ask one group at a time.
    let groups: Value = serde_json::from_str(&hub.raw("/apis")).unwrap();
    assert_eq!(groups["groups"].as_array().unwrap().len(), 2, "{groups}");
    let list: Value = serde_json::from_str(&hub.raw("/apis/rules.kubeedge.io/v1")).unwrap();
    let names: Vec<_> = list["resources"].as_array().unwrap().iter().map(|r| r["name"].clone()).collect();
    assert_eq!(names, ["rules", "rules/status", "ruleendpoints"]);
    let explained = hub.ok(&["explain", "topics"]);
    assert!(explained.contains("GROUP:      edgewire.io") && explained.contains("sizeMax"), "{explained}");
    assert!(hub.ok(&["explain", "rules.rules.kubeedge.io"]).contains("KubeEdge's"));
    assert!(hub.fails(&["get", "--raw", "/apis/edgewire.io/v1/topics"]).contains("not served yet"));
}

#[test]
fn a_topic_is_applied_edited_patched_watched_and_deleted() {
    let hub = Hub::start();
    // What nobody knows is refused, unless the user insists: then it is kept.
    let vendor = format!("{TOPIC}  vendor: {{kept: true}}\n");
    assert!(refused(&hub, &vendor).contains("unknown field \"spec.vendor\""));
    let applied = hub.with_input(&["apply", "--validate=warn", "-f", "-"], &vendor);
    let warned = String::from_utf8_lossy(&applied.stderr).into_owned();
    assert!(applied.status.success() && warned.contains("unknown field \"spec.vendor\""), "{warned}");
    assert_eq!(object(&hub, &["topic", "readings"])["spec"]["vendor"], json!({"kept": true}));
    assert_eq!(hub.apply(TOPIC).trim(), "topic.edgewire.io/readings configured");
    assert_eq!(hub.apply(TOPIC).trim(), "topic.edgewire.io/readings unchanged");
    let topic = object(&hub, &["topic", "readings"]);
    assert_eq!((&topic["spec"]["class"], &topic["spec"]["sizeMax"]), (&json!("durable"), &json!("64Mi")));

    let table = hub.ok(&["get", "topics"]);
    assert_eq!(words(table.lines().next()), ["NAME", "CLASS", "SIZE", "SUBJECTS", "AGE"]);
    assert_eq!(words(table.lines().nth(1))[..4], ["readings", "durable", "64Mi", "app.default.readings.>"]);

    let mut watch =
        hub.command(&["get", "topics", "-w", "-o", "name"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "topic.edgewire.io/readings");

    assert_eq!(hub.apply(&TOPIC.replace("24h", "48h")).trim(), "topic.edgewire.io/readings configured");
    assert_eq!(lines.next().unwrap().unwrap(), "topic.edgewire.io/readings");
    watch.kill().unwrap();
    watch.wait().unwrap();
    hub.ok(&["patch", "topic", "readings", "--type=merge", "-p", r#"{"spec":{"sizeMax":"1Mi"}}"#]);
    let json = r#"[{"op":"replace","path":"/spec/consumers/1/name","value":"warm"}]"#;
    hub.ok(&["patch", "topic", "readings", "--type=json", "-p", json]);
    hub.ok(&["label", "topic", "readings", "tier=front"]);
    let editor = hub.file("editor.sh", "#!/bin/sh\nsed -i 's/1Mi/2Mi/' \"$1\"\n");
    std::process::Command::new("chmod").args(["+x", &editor]).status().unwrap();
    let output = hub.command(&["edit", "topic", "readings"]).env("KUBE_EDITOR", &editor).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let topic = object(&hub, &["topics.edgewire.io", "readings"]);
    assert_eq!((&topic["spec"]["sizeMax"], &topic["spec"]["ageMax"]), (&json!("2Mi"), &json!("48h")));
    assert_eq!(topic["spec"]["consumers"][1]["name"], "warm");
    assert_eq!(topic["metadata"]["generation"], 6);
    assert_eq!(hub.ok(&["get", "topics", "-A", "-l", "tier=front", "-o", "name"]).lines().count(), 1);
    let error =
        hub.fails(&["patch", "topic", "readings", "--type=merge", "-p", r#"{"spec":{"class":"bulk"}}"#]);
    assert!(error.contains("spec.class") && error.contains("immutable"), "{error}");
    assert!(hub.ok(&["delete", "topic", "readings"]).contains("deleted"));
    assert!(hub.fails(&["get", "topic", "readings"]).contains("topics.edgewire.io \"readings\" not found"));
}

#[test]
fn what_is_wrong_is_refused_with_its_path() {
    let hub = Hub::start();
    for (from, to, field) in [
        ("app.default.readings.>", "app.other.>", "spec.subjects[0]"),
        ("app.default.readings.>", "up.default.x", "spec.subjects[0]"),
        ("ageMax: 24h", "ageMax: never", "spec.ageMax"),
        ("ageMax: 24h", "class: fast", "spec.class"),
        ("ageMax: 24h", "sizeMax: 9Gi", "spec.sizeMax"),
        ("deliver: new", "deliver: old", "spec.consumers[1].deliver"),
        ("name: hot", "name: archive", "spec.consumers[1].name"),
        ("ageMax: 24h", "nodeSelector: {\"a b\": c}", "spec.nodeSelector"),
    ] {
        let error = refused(&hub, &TOPIC.replace(from, to));
        assert!(error.contains(&format!(" {field}: ")), "{field}: {error}");
    }
    let error = refused(&hub, &TOPIC_MAP.replace("factory/+/temp", "#"));
    assert!(error.contains("spec.maps[0].from.mqtt"), "{error}");
    let error = refused(&hub, &KUBEEDGE.replace("\"rest\"", "\"kafka\""));
    assert!(error.contains("spec.ruleEndpointType: Unsupported value: \"kafka\""), "{error}");
    let error = refused(&hub, &TOPIC.replace("subjects: [\"app.default.readings.>\"]", "subjects: 7"));
    assert!(error.contains("spec.subjects: invalid type"), "{error}");
}

#[test]
fn kubeedges_own_manifests_apply_unchanged_and_status_has_a_path_of_its_own() {
    let hub = Hub::start();
    assert_eq!(hub.apply(KUBEEDGE).lines().count(), 3);
    assert!(hub.apply(KUBEEDGE).lines().all(|line| line.ends_with("unchanged")));
    let status = r#"{"status":{"successMessages":3,"failMessages":1,"errors":["no answer"]}}"#;
    hub.ok(&["patch", "rule", "my-rule", "--subresource=status", "--type=merge", "-p", status]);
    let other = r#"{"status":{"successMessages":9},"spec":{"sourceResource":{"path":"/other"}}}"#;
    hub.ok(&["patch", "rule", "my-rule", "--type=merge", "-p", other]);
    let rule = object(&hub, &["rule", "my-rule"]);
    assert_eq!(
        (&rule["status"]["successMessages"], &rule["spec"]["sourceResource"]["path"]),
        (&json!(3), &json!("/other"))
    );
    let table = hub.ok(&["get", "rules"]);
    assert_eq!(words(table.lines().next()), ["NAME", "SOURCE", "TARGET", "SUCCESS", "FAILED", "AGE"]);
    assert_eq!(words(table.lines().nth(1))[..5], ["my-rule", "my-rest", "my-eventbus", "3", "1"]);
    hub.apply(TOPIC_MAP);
    assert_eq!(words(hub.ok(&["get", "topicmaps"]).lines().nth(1))[..2], ["factory", "2"]);
    assert_eq!(words(hub.ok(&["get", "ruleendpoints"]).lines().nth(1))[..2], ["my-eventbus", "eventbus"]);
    hub.ok(&["delete", "rule,ruleendpoint", "--all"]);
    assert!(hub.kubectl(&["get", "rules"]).stdout.is_empty());
}

#[test]
fn a_namespace_that_goes_takes_them_with_it() {
    let hub = Hub::start();
    hub.ok(&["create", "namespace", "demo"]);
    hub.apply(
        &TOPIC
            .replace("  name: readings", "  name: readings\n  namespace: demo")
            .replace("app.default", "app.demo"),
    );
    assert!(hub.ok(&["get", "topics", "-n", "demo", "-o", "name"]).contains("readings"));
    hub.ok(&["delete", "namespace", "demo"]);
    assert!(hub.kubectl(&["get", "topics", "-A"]).stdout.is_empty());
}
