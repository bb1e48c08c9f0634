//! From the state before to this one and back, under load: hub first, a node that was offline meanwhile last. No container
//! is restarted, nothing is lost, and each stop on the way is a place to stay.

use anyhow::Context;
use bus::module::Account;
use serde_json::json;
use tests::cluster::judge::Running;
use tests::cluster::programs::{self, Version};
use tests::cluster::{Cluster, Edge, eventually};

use crate::support::{
    IDLE, acked_more, agent_serves, all_arrived, edgewire, field_is, gone, inside, loss_of, pod, publish,
    runs, sensor, the_same,
};

/// What must go on at every stop of the way: a new pod runs and goes, an edit reaches the pod, messages arrive, and what ran
/// runs on as it was.
async fn works(cluster: &Cluster, edges: &[(&Edge, &[&Running])], stop: &str) -> anyhow::Result<()> {
    let work = async {
        let edit = json!({"data": {"n": stop}}).to_string();
        cluster.kubectl_ok(&["patch", "configmap", "settings", "--type=merge", "-p", &edit]).await?;
        for (edge, before) in edges {
            cluster.ready(edge.name(), "True").await?;
            let name = format!("new-{}", edge.name());
            cluster.apply(&pod(&name, edge.name(), IDLE).to_string()).await?;
            runs(cluster, edge, "default", &name).await?;
            cluster.kubectl_ok(&["exec", &name, "--", "true"]).await?;
            cluster.kubectl_ok(&["delete", "pod", &name]).await?;
            gone(edge, "default", &name).await?;
            acked_more(edge, 10).await?;
            all_arrived(cluster, edge, 60).await?;
            let reader = before.last().context("the reader")?;
            let file = format!("/proc/{}/root/config/n", reader.pid);
            eventually("the edit is in the pod", 60, async || {
                Ok(std::fs::read_to_string(&file)?.trim() == stop)
            })
            .await?;
            the_same(edge, before, stop)?;
        }
        anyhow::Ok(())
    };
    work.await.with_context(|| stop.to_owned())
}

/// The agent is stopped and started as that version.
async fn change(edge: &Edge, version: Version) -> anyhow::Result<()> {
    edge.stop_agent().await?;
    edge.set_version(version);
    edge.start().await?;
    agent_serves(edge).await
}

async fn change_hub(cluster: &Cluster, version: Version) -> anyhow::Result<()> {
    cluster.hub().stop().await?;
    cluster.hub().set_version(version);
    cluster.hub().start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn from_the_state_before_to_this_one_and_back() -> anyhow::Result<()> {
    if !programs::has_previous()? {
        eprintln!(
            "NOT TESTED: the programs of the state before could not be built without the project's history"
        );
        return Ok(());
    }
    let cluster = Cluster::new("upgrade").await?;
    let (near, away) = (cluster.edge("edge-a")?, cluster.edge("edge-b")?);
    cluster.hub().set_version(Version::Previous);
    for edge in [&near, &away] {
        edge.set_version(Version::Previous);
    }
    cluster.up(&["edge-a", "edge-b"]).await?;
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"n": "0"}});
    cluster.apply(&config.to_string()).await?;
    let mut before = Vec::new();
    for edge in [&near, &away] {
        let name = format!("reader-{}", edge.name());
        let mut reader = pod(&name, edge.name(), IDLE);
        reader["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "config", "mountPath": "/config"}]);
        reader["spec"]["volumes"] = json!([{"name": "config", "configMap": {"name": "settings"}}]);
        cluster.apply(&reader.to_string()).await?;
        let mut sensor = sensor(edge, 50);
        sensor["items"][1]["metadata"]["name"] = json!(format!("sensor-{}", edge.name()));
        cluster.apply(&sensor.to_string()).await?;
        let sensing = runs(&cluster, edge, "demo", &format!("sensor-{}", edge.name())).await?;
        before.push([sensing, runs(&cluster, edge, "default", &name).await?]);
    }
    let (on_near, on_away) = ([&before[0][0], &before[0][1]], [&before[1][0], &before[1][1]]);
    let near_only: &[(&Edge, &[&Running])] = &[(&near, &on_near)];
    let both: &[(&Edge, &[&Running])] = &[(&near, &on_near), (&away, &on_away)];
    works(&cluster, both, "all of it is the state before").await?;

    // One node is offline while hub and other node are changed.
    away.cut()?;
    cluster.ready("edge-b", "Unknown").await?;
    change_hub(&cluster, Version::Present).await?;
    works(&cluster, near_only, "the hub is new").await?;
    change(&near, Version::Present).await?;
    works(&cluster, near_only, "hub and one node are new").await?;
    acked_more(&away, 20).await?;
    away.heal()?;
    works(&cluster, both, "a node of the state before comes back to a new hub").await?;
    change(&away, Version::Present).await?;
    works(&cluster, both, "all of it is new").await?;
    // A node that was let in by the state before may do, by itself, what only this one knows.
    for edge in [&near, &away] {
        let operator = edge.operator()?;
        inside(edge, async move || publish(&operator.js(Account::Work).await?, "bulk.demo.t", 5).await)
            .await?;
        eventually("telemetry comes up", 60, async || {
            Ok(loss_of(&cluster, edge.name(), "BULK").await?.is_some())
        })
        .await?;
        the_same(edge, if edge.name() == "edge-a" { &on_near } else { &on_away }, "with new keys")?;
    }
    edgewire(&cluster, &["loss", "--check"]).await?.ok().context("nothing is lost on the way")?;

    // And back: nodes first.
    change(&near, Version::Previous).await?;
    change(&away, Version::Previous).await?;
    works(&cluster, both, "the nodes are the state before again").await?;
    change_hub(&cluster, Version::Previous).await?;
    works(&cluster, both, "all of it is the state before again").await?;
    field_is(&cluster, "reader-edge-a", ".status.containerStatuses[0].restartCount", "0").await?;
    cluster.done().await
}
