//! What must hold after a fault, judged from outside: the sensor's list against the hub's stream, `kubectl` against `ctr`,
//! the file in the pod against the ConfigMap.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};

use super::load::{CONFIG, Load};
use super::{NODE, RECOVERY_SECONDS};
use crate::cluster::judge::Running;
use crate::cluster::pods::{IDLE, pod};
use crate::cluster::readings::{acked, all_arrived, sensor};
use crate::cluster::{Cluster, Edge, eventually};

/// Between two readings.
const READING_INTERVAL_MS: u64 = 20;
/// A pod that nobody touches, with the edited ConfigMap as a file.
const READER: &str = "reader";
/// Another, with nothing.
const STEADY: &str = "steady";

/// The pods that no one changes, as they ran before the fault.
pub struct Standing(Vec<Running>);

impl Standing {
    /// Starts them, with the sensor that makes the messages, and waits until they run.
    pub async fn begin(cluster: &Cluster, edge: &Edge) -> anyhow::Result<Self> {
        let mut reader = pod(READER, NODE, IDLE);
        let mount = json!([{"name": "config", "mountPath": "/config"}]);
        let volumes = json!([{"name": "config", "configMap": {"name": CONFIG}}]);
        insert(&mut reader, "/spec/containers/0", "volumeMounts", mount)?;
        insert(&mut reader, "/spec", "volumes", volumes)?;
        let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CONFIG}, "data": {"n": "0"}});
        for manifest in [config, reader, pod(STEADY, NODE, IDLE), sensor(edge, READING_INTERVAL_MS)] {
            cluster.apply(&manifest.to_string()).await?;
        }
        let mut running = Vec::new();
        for (namespace, name) in [("demo", "sensor"), ("default", READER), ("default", STEADY)] {
            let what = format!("{namespace}/{name} runs");
            let container = async || edge.container_of(namespace, name);
            running.push(eventually(&what, RECOVERY_SECONDS, container).await?);
        }
        Ok(Self(running))
    }

    /// Fails unless each runs as it did: the same container and process; after a loss of power the same pod.
    pub fn still(&self, edge: &Edge, power_was_lost: bool) -> anyhow::Result<()> {
        let now = edge.running()?;
        for before in &self.0 {
            let same = match power_was_lost {
                true => now.iter().any(|now| now.uid == before.uid && now.pid != before.pid),
                false => now.contains(before),
            };
            anyhow::ensure!(same, "{before:?} no longer runs as it did; now: {now:#?}");
        }
        Ok(())
    }
}

fn insert(object: &mut Value, at: &str, field: &str, value: Value) -> anyhow::Result<()> {
    let object = object.pointer_mut(at).and_then(Value::as_object_mut).with_context(|| at.to_owned())?;
    object.insert(field.to_owned(), value);
    Ok(())
}

/// Waits until the node is Ready, what the sensor had acknowledged by now is at the hub, and an edit made from now on is
/// in the pod: the load goes on meanwhile.
pub async fn both_ways(cluster: &Cluster, edge: &Edge, load: &Load) -> anyhow::Result<()> {
    let (tried, _) = load.edits();
    let start = Instant::now();
    eventually("an edit made after the fault is in the pod's file", RECOVERY_SECONDS, async || {
        Ok(edit_in_the_pod(edge)? > tried)
    })
    .await?;
    note(start, "an edit has come down");
    all_arrived(cluster, edge, RECOVERY_SECONDS).await?;
    note(start, "messages have come up");
    cluster.ready(NODE, "True").await?;
    note(start, "the node is Ready");
    Ok(())
}

/// What a run tells of its recovery.
fn note(start: Instant, what: &str) {
    println!("  {what} after {:.1} s", start.elapsed().as_secs_f64());
}

/// The edit that the reader's file shows.
fn edit_in_the_pod(edge: &Edge) -> anyhow::Result<u64> {
    let reader = edge.container_of("default", READER)?.context("the reader does not run")?;
    let file = format!("/proc/{}/root/config/n", reader.pid);
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    text.trim().parse().with_context(|| format!("{file} holds {text:?}"))
}

/// Waits until, with no more load, desired equals actual, the hub has what it acknowledged, and every module runs.
pub async fn settled(cluster: &Cluster, edge: &Edge, load: &Load) -> anyhow::Result<()> {
    let start = Instant::now();
    eventually("what is desired is what runs", RECOVERY_SECONDS, async || {
        let list = cluster.kubectl_json(&["get", "pods", "-A"]).await?;
        let pods = list.get("items").and_then(Value::as_array).context("pods are a list")?;
        agree(pods, &edge.running()?)?;
        let config = cluster.kubectl_json(&["get", "configmap", CONFIG]).await?;
        let edit = config
            .pointer("/data/n")
            .and_then(Value::as_str)
            .context("the ConfigMap has no edit")?
            .parse()?;
        load.is_kept(pods, edit)?;
        let there = edit_in_the_pod(edge)?;
        anyhow::ensure!(there == edit, "the ConfigMap has edit {edit}, the pod's file {there}");
        Ok(true)
    })
    .await?;
    note(start, "with no more load, what is desired is what runs");
    eventually("each start is told in an Event, once", RECOVERY_SECONDS, async || {
        let list = cluster.kubectl_json(&["get", "events", "-A"]).await?;
        told_once(
            list.get("items").and_then(Value::as_array).context("events are a list")?,
            &edge.running()?,
        )?;
        Ok(true)
    })
    .await?;
    eventually("the hub's own ledger misses nothing and has nothing twice", RECOVERY_SECONDS, async || {
        cluster.edgewire_ok(&["loss", "--check"]).await.map(|_| true)
    })
    .await?;
    eventually("every module runs", RECOVERY_SECONDS, async || {
        let idle: Vec<String> =
            modules(cluster).await?.into_iter().filter(|line| !line.ends_with(" Running")).collect();
        anyhow::ensure!(idle.is_empty(), "{idle:?}");
        Ok(true)
    })
    .await
}

/// Fails unless the hub's pods are exactly those that run, each with its container and Ready.
fn agree(pods: &[Value], running: &[Running]) -> anyhow::Result<()> {
    let text = |pod: &Value, at: &str| pod.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut desired = BTreeMap::new();
    for pod in pods {
        let name = text(pod, "/metadata/name");
        anyhow::ensure!(text(pod, "/metadata/deletionTimestamp").is_empty(), "{name} is still being deleted");
        let ready = pod.pointer("/status/containerStatuses/0/ready") == Some(&json!(true));
        let phase = text(pod, "/status/phase");
        anyhow::ensure!(ready && phase == "Running", "the hub says that {name} is {phase}, ready: {ready}");
        let id = text(pod, "/status/containerStatuses/0/containerID");
        let id = id.rsplit('/').next().unwrap_or_default().to_owned();
        desired.insert((name, text(pod, "/metadata/uid")), id);
    }
    let mut actual = BTreeMap::new();
    for running in running {
        let twice = actual.insert((running.pod.clone(), running.uid.clone()), running.id.clone());
        anyhow::ensure!(twice.is_none(), "two containers of {} run", running.pod);
    }
    anyhow::ensure!(desired == actual, "the hub wants {desired:?}, and {actual:?} run");
    Ok(())
}

/// Fails unless the hub has one Event for each attempt of each container that runs, and counted none twice: that it was
/// started, or that the fault cut its start short.
fn told_once(events: &[Value], running: &[Running]) -> anyhow::Result<()> {
    for running in running {
        let of = |event: &&Value| {
            let text = |field: &str| event.get(field).and_then(Value::as_str).unwrap_or_default();
            let attempt = match text("reason") {
                "Started" => true,
                "Failed" => text("message").contains("was cut short"),
                _ => false,
            };
            attempt && event.pointer("/involvedObject/uid") == Some(&json!(running.uid))
        };
        let count = |event: &Value| event.get("count").and_then(Value::as_u64).unwrap_or(1);
        let told: u64 = events.iter().filter(of).map(count).sum();
        let starts = u64::from(running.attempt) + 1;
        anyhow::ensure!(
            told == starts,
            "{} is at its start number {starts}, and {told} are told",
            running.pod
        );
    }
    Ok(())
}

/// Every module of the hub and of its nodes, as `<node>/<module> <state>`.
async fn modules(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let hosts: Value = serde_json::from_str(&cluster.edgewire_ok(&["modules", "--json"]).await?)?;
    let text = |of: &Value, field: &str| of.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (hosts, mut lines) = (hosts.as_array().cloned().unwrap_or_default(), Vec::new());
    anyhow::ensure!(hosts.len() == 2, "{} hosts of modules instead of hub and node", hosts.len());
    for host in &hosts {
        anyhow::ensure!(host.get("answers") == Some(&json!(true)), "does not answer: {host}");
        for module in host.get("modules").and_then(Value::as_array).context("modules")? {
            lines.push(format!(
                "{}/{} {}",
                text(host, "node"),
                text(module, "module"),
                text(module, "state")
            ));
        }
    }
    Ok(lines)
}

/// Every reading acknowledged so far is at the hub, once and in order; how many there are.
pub async fn messages(cluster: &Cluster, edge: &Edge) -> anyhow::Result<usize> {
    let acknowledged = acked(edge).len();
    let received = all_arrived(cluster, edge, RECOVERY_SECONDS).await?;
    anyhow::ensure!(received.len() >= acknowledged, "{} of {acknowledged}", received.len());
    Ok(received.len())
}

/// A pod can be made, seen and taken away as ever.
pub async fn life_goes_on(cluster: &Cluster, edge: &Edge) -> anyhow::Result<()> {
    cluster.apply(&pod("after", NODE, IDLE).to_string()).await?;
    let wait = ["wait", "pod/after", "--for=condition=Ready", "--timeout=60s"];
    cluster.kubectl_ok(&wait).await?;
    cluster.kubectl_ok(&["delete", "pod", "after"]).await?;
    eventually("it is gone", RECOVERY_SECONDS, async || Ok(!edge.running()?.iter().any(|r| r.pod == "after")))
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(name: &str, id: &str) -> Value {
        json!({"metadata": {"name": name, "uid": format!("{name}-uid")},
            "status": {"phase": "Running", "containerStatuses": [{"ready": true, "containerID": format!("containerd://{id}")}]}})
    }

    fn runs(name: &str, id: &str) -> Running {
        Running {
            id: id.to_owned(),
            pid: 1,
            namespace: "default".to_owned(),
            pod: name.to_owned(),
            uid: format!("{name}-uid"),
            container: "main".to_owned(),
            attempt: 0,
        }
    }

    #[test]
    fn a_start_that_is_not_told_or_told_twice_is_found() {
        let event = |reason: &str, count: u64| json!({"reason": reason, "count": count, "involvedObject": {"uid": "a-uid"}});
        let running = [runs("a", "1")];
        told_once(&[event("Started", 1), event("Created", 2)], &running).unwrap();
        assert!(told_once(&[event("Started", 2)], &running).is_err());
        assert!(told_once(&[event("Created", 1)], &running).is_err());
        let mut cut_short = event("Failed", 1);
        cut_short["message"] = json!("Error: the start of container main was cut short; it is started anew");
        let again = [Running { attempt: 1, ..runs("a", "1") }];
        told_once(&[cut_short.clone(), event("Started", 1)], &again).unwrap();
        assert!(told_once(&[cut_short], &again).is_err());
        assert!(told_once(&[event("Failed", 1), event("Started", 1)], &again).is_err());
    }

    #[test]
    fn a_difference_between_desired_and_actual_is_found() {
        agree(&[wanted("a", "1"), wanted("b", "2")], &[runs("b", "2"), runs("a", "1")]).unwrap();
        let mut leaving = wanted("a", "1");
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let mut unready = wanted("a", "1");
        unready["status"]["containerStatuses"][0]["ready"] = json!(false);
        for (pods, running) in [
            (vec![wanted("a", "1")], vec![]),
            (vec![], vec![runs("a", "1")]),
            (vec![wanted("a", "1")], vec![runs("a", "2")]),
            (vec![wanted("a", "1")], vec![runs("a", "1"), runs("a", "2")]),
            (vec![leaving], vec![runs("a", "1")]),
            (vec![unready], vec![runs("a", "1")]),
        ] {
            assert!(agree(&pods, &running).is_err(), "{pods:?} {running:?}");
        }
    }
}
