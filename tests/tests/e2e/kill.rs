//! Everything of a node is killed, in turn and together, with the link cut: what runs is adopted, or comes back from the
//! disk alone. A damaged store stops nothing.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;
use tests::cluster::{Cluster, Edge, eventually};

use crate::support::{
    IDLE, acked_more, agent_serves, all_arrived, container, field_is, gone, pod, runs, sensor, the_same, told,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_killed_is_adopted_and_what_is_rebooted_comes_back() -> anyhow::Result<()> {
    let cluster = Cluster::new("kill").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.apply(&sensor(&edge, 50).to_string()).await?;
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"k": "v"}});
    cluster.apply(&config.to_string()).await?;
    let mut steady = pod("steady", "edge-a", IDLE);
    steady["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "settings"}}]);
    cluster.apply(&steady.to_string()).await?;
    let sensing = runs(&cluster, &edge, "demo", "sensor").await?;
    let steady = runs(&cluster, &edge, "default", "steady").await?;
    let both = [&sensing, &steady];
    acked_more(&edge, 20).await?;

    edge.cut()?;
    cluster.ready("edge-a", "Unknown").await?;
    edge.kill9_agent().await?;
    acked_more(&edge, 20).await?; // with no agent at all
    edge.start().await?;
    agent_serves(&edge).await?;
    the_same(&edge, &both, "after kill -9 of the agent")?;

    edge.kill9_leaf().await?;
    agent_serves(&edge).await?;
    acked_more(&edge, 20).await?;
    the_same(&edge, &both, "after kill -9 of the nats-server")?;

    edge.kill9_containerd().await?;
    container(&edge, "default", "steady").await?;
    agent_serves(&edge).await?;
    the_same(&edge, &both, "after kill -9 of containerd")?;

    edge.kill9_all().await?;
    edge.start().await?;
    agent_serves(&edge).await?;
    acked_more(&edge, 20).await?;
    the_same(&edge, &both, "after kill -9 of all three")?;

    edge.heal()?;
    cluster.ready("edge-a", "True").await?;
    all_arrived(&cluster, &edge, 60).await?;
    the_same(&edge, &both, "when the hub is back")?;
    field_is(&cluster, "steady", ".status.containerStatuses[0].restartCount", "0").await?;

    edge.cut()?;
    edge.reboot().await?;
    let boot = Instant::now();
    edge.start().await?;
    let again = container(&edge, "default", "steady").await?;
    container(&edge, "demo", "sensor").await?;
    println!("both pods run {:.1} s after the boot, with no hub", boot.elapsed().as_secs_f64());
    anyhow::ensure!(again.pid != steady.pid && again.uid == steady.uid, "the same pod anew: {again:?}");
    acked_more(&edge, 20).await?;

    edge.heal()?;
    cluster.ready("edge-a", "True").await?;
    all_arrived(&cluster, &edge, 60).await?;
    the_same(&edge, &[&again], "when the hub is back after the reboot")?;
    let said = cluster.kubectl_ok(&["exec", "steady", "--", "sh", "-c", "echo $k"]).await?;
    anyhow::ensure!(said.trim() == "v", "the ConfigMap came back with the pod: {said:?}");
    cluster.done().await
}

/// The file with the messages of the node's own copy of what it must have.
fn local_block(edge: &Edge) -> anyhow::Result<PathBuf> {
    let messages = edge.data_dir().join("nats/jetstream/CONTROL/streams/KV_local/msgs");
    let blocks = std::fs::read_dir(&messages)?.flatten().map(|entry| entry.path());
    let largest = blocks.filter(|path| path.extension().is_some_and(|ext| ext == "blk"));
    largest
        .max_by_key(|path| path.metadata().map_or(0, |of| of.len()))
        .ok_or_else(|| anyhow::anyhow!("no block"))
}

/// Damages the middle of it in place, as a disk would: the server has the file open.
fn flip_a_byte(edge: &Edge) -> anyhow::Result<()> {
    let block = std::fs::File::options().read(true).write(true).open(local_block(edge)?)?;
    let middle = block.metadata()?.len() / 2;
    let mut byte = [0];
    block.read_exact_at(&mut byte, middle)?;
    block.write_all_at(&[byte[0] ^ 0x20], middle)?;
    Ok(())
}

/// How often a repair of the node's store was told.
async fn repairs(cluster: &Cluster) -> anyhow::Result<u64> {
    let list =
        cluster.kubectl_json(&["get", "events", "-A", "--field-selector=reason=StoreRepaired"]).await?;
    let items = list["items"].as_array().into_iter().flatten();
    Ok(items.map(|event| event["count"].as_u64().unwrap_or(1)).sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_stops_no_pod_and_is_repaired() -> anyhow::Result<()> {
    let cluster = Cluster::new("flip").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    for name in ["one", "two", "three"] {
        cluster.apply(&pod(name, "edge-a", IDLE).to_string()).await?;
    }
    let mut running = Vec::new();
    for name in ["one", "two", "three"] {
        running.push(runs(&cluster, &edge, "default", name).await?);
    }
    let before: Vec<_> = running.iter().collect();

    edge.cut()?;
    flip_a_byte(&edge)?;
    edge.kill9_all().await?;
    edge.start().await?;
    agent_serves(&edge).await?;
    the_same(&edge, &before, "with a damaged store and no hub")?;

    edge.heal()?;
    cluster.ready("edge-a", "True").await?;
    println!("told: {}", told(&cluster, &["StoreRepaired", "StoreReplaced"], "edge-a").await?);
    the_same(&edge, &before, "while it is repaired")?;

    // The server alone falls, over another such byte, while the agent and the hub look on.
    let so_far = repairs(&cluster).await?;
    flip_a_byte(&edge)?;
    edge.kill9_leaf().await?;
    eventually("the second repair is told", 90, async || Ok(repairs(&cluster).await? > so_far)).await?;
    the_same(&edge, &before, "while it is repaired again")?;

    // The node follows the hub again, for each of them.
    cluster.apply(&pod("four", "edge-a", IDLE).to_string()).await?;
    runs(&cluster, &edge, "default", "four").await?;
    for name in ["one", "three"] {
        cluster.kubectl_ok(&["delete", "pod", name]).await?;
        gone(&edge, "default", name).await?;
    }
    the_same(&edge, &before[1..2], "after it is repaired")?;
    eventually("the hub has no pod that it should not", 10, async || {
        let names = cluster.kubectl_ok(&["get", "pods", "-o", "name"]).await?;
        Ok(names.lines().eq(["pod/four", "pod/two"]))
    })
    .await?;
    cluster.done().await
}
