//! The hub is killed and started again: nothing at the edge notices, and no word is lost. Edits meet reports.

use std::time::{Duration, Instant};

use serde_json::json;
use tests::cluster::{Cluster, eventually};

use crate::support::{IDLE, acked_more, all_arrived, field, field_is, pod, runs, sensor, the_same};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_hub_loses_no_status() -> anyhow::Result<()> {
    let cluster = Cluster::new("hub").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.apply(&sensor(&edge, 50).to_string()).await?;
    cluster.apply(&pod("steady", "edge-a", IDLE).to_string()).await?;
    let flag = edge.host_dir("flag");
    std::fs::create_dir_all(&flag)?;
    let mut quitter = pod("quitter", "edge-a", "while [ ! -f /flag/go ]; do sleep 0.1; done; exit 3");
    quitter["spec"]["restartPolicy"] = json!("Never");
    quitter["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "flag", "mountPath": "/flag"}]);
    quitter["spec"]["volumes"] = json!([{"name": "flag", "hostPath": {"path": flag}}]);
    cluster.apply(&quitter.to_string()).await?;
    let sensing = runs(&cluster, &edge, "demo", "sensor").await?;
    let steady = runs(&cluster, &edge, "default", "steady").await?;
    let quitter = runs(&cluster, &edge, "default", "quitter").await?;

    cluster.hub().kill9().await?;
    std::fs::write(flag.join("go"), "")?;
    eventually("the quitter has quit", 20, async || Ok(!edge.running()?.contains(&quitter))).await?;
    acked_more(&edge, 50).await?;
    cluster.hub().start().await?;
    cluster.ready("edge-a", "True").await?;
    field_is(&cluster, "quitter", ".status.phase", "Failed").await?;
    field_is(&cluster, "quitter", ".status.containerStatuses[0].state.terminated.exitCode", "3").await?;
    all_arrived(&cluster, &edge, 60).await?;
    the_same(&edge, &[&sensing, &steady], "after kill -9 of the hub and its server")?;

    // The process alone; its server runs on and is adopted.
    cluster.hub().kill9_process().await?;
    acked_more(&edge, 20).await?;
    cluster.hub().start().await?;
    cluster.ready("edge-a", "True").await?;
    all_arrived(&cluster, &edge, 60).await?;
    the_same(&edge, &[&sensing, &steady], "after kill -9 of the hub's process")?;
    let restarts = field(&cluster, "steady", ".status.containerStatuses[0].restartCount").await?;
    anyhow::ensure!(restarts == "0", "{restarts} restarts");
    let logs = cluster.kubectl_ok(&["exec", "steady", "--", "echo", "still here"]).await?;
    anyhow::ensure!(logs.trim() == "still here");
    cluster.done().await
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_meet_reports_and_reach_the_pod() -> anyhow::Result<()> {
    let cluster = Cluster::new("edits").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    labels_and_statuses(&cluster).await?;

    let config =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm"}, "data": {"a": "0"}});
    cluster.apply(&config.to_string()).await?;
    let mut reader = pod("reader", "edge-a", IDLE);
    reader["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "cm", "mountPath": "/cm"}]);
    reader["spec"]["volumes"] = json!([{"name": "cm", "configMap": {"name": "cm"}}]);
    cluster.apply(&reader.to_string()).await?;
    let reader = runs(&cluster, &edge, "default", "reader").await?;
    let file = format!("/proc/{}/root/cm/a", reader.pid);
    anyhow::ensure!(std::fs::read_to_string(&file)? == "0");
    let mut took = Vec::new();
    for n in 1..=5 {
        let patch = json!({"data": {"a": n.to_string()}}).to_string();
        cluster.kubectl_ok(&["patch", "configmap", "cm", "--type=merge", "-p", &patch]).await?;
        let acknowledged = Instant::now();
        eventually("the file in the pod has the edit", 20, async || {
            Ok(std::fs::read_to_string(&file)? == n.to_string())
        })
        .await?;
        took.push(acknowledged.elapsed());
    }
    took.sort();
    println!("a ConfigMap edit is in the pod's file after {took:?}");
    anyhow::ensure!(took[2] < Duration::from_secs(1), "half of the edits take a second or more: {took:?}");
    let said = cluster.kubectl_ok(&["exec", "reader", "--", "cat", "/cm/a"]).await?;
    anyhow::ensure!(said == "5", "the pod itself reads {said:?}");
    the_same(&edge, &[&reader], "after the edits")?;
    cluster.done().await
}

/// Pods come and go while each is labelled again and again: neither the labels nor the outcome are lost.
async fn labels_and_statuses(cluster: &Cluster) -> anyhow::Result<()> {
    const PODS: usize = 5;
    const LABELS: usize = 4;
    let pods: Vec<_> = (0..PODS)
        .map(|n| {
            let mut pod = pod(&format!("brief-{n}"), "edge-a", &format!("sleep 0.{n}; exit {n}"));
            pod["spec"]["restartPolicy"] = json!("Never");
            pod
        })
        .collect();
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string()).await?;
    for label in 0..LABELS {
        cluster.kubectl_ok(&["label", "pod", "--all", &format!("edit-{label}=made")]).await?;
    }
    for n in 0..PODS {
        let name = format!("brief-{n}");
        field_is(cluster, &name, ".status.containerStatuses[0].state.terminated.exitCode", &n.to_string())
            .await?;
        field_is(cluster, &name, ".status.phase", if n == 0 { "Succeeded" } else { "Failed" }).await?;
        let object = cluster.kubectl_json(&["get", "pod", &name]).await?;
        for label in 0..LABELS {
            let made = &object["metadata"]["labels"][format!("edit-{label}")];
            anyhow::ensure!(made == "made", "{name} lost label edit-{label}: {}", object["metadata"]);
        }
    }
    Ok(())
}
