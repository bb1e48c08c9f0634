//! Who is in and who is out: a node that is shut out stays out, and what runs on it runs on.

use tests::cluster::{Cluster, eventually};

use crate::support::{
    IDLE, acked_more, agent_serves, all_arrived, edgewire, pod, runs, sensor, the_same, told,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_out_and_its_pods_run_on() -> anyhow::Result<()> {
    let cluster = Cluster::new("revoke").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.apply(&sensor(&edge, 200).to_string()).await?;
    cluster.apply(&pod("steady", "edge-a", IDLE).to_string()).await?;
    let sensing = runs(&cluster, &edge, "demo", "sensor").await?;
    let steady = runs(&cluster, &edge, "default", "steady").await?;
    let server = edge.server_pid()?;

    edgewire(&cluster, &["node", "revoke", "edge-a"]).await?.ok()?;
    eventually("the node no longer hears the hub", 10, async || {
        let hosts = edgewire(&cluster, &["modules", "--json"]).await?.ok()?;
        let hosts: serde_json::Value = serde_json::from_str(&hosts)?;
        Ok(hosts
            .as_array()
            .is_some_and(|all| all.iter().any(|host| host["node"] == "edge-a" && host["answers"] == false)))
    })
    .await?;
    cluster.ready("edge-a", "Unknown").await?;
    let listed = edgewire(&cluster, &["node", "ls"]).await?.ok()?;
    anyhow::ensure!(listed.contains("shut out"), "{listed}");
    eventually("the node says why", 60, async || {
        Ok(std::fs::read_to_string(edge.log())?.contains("EW-LINK-REFUSED"))
    })
    .await?;
    anyhow::ensure!(edge.server_pid()? == server, "the node's server was restarted for nothing");

    // Nothing that the node does by itself brings it back.
    edge.kill9_leaf().await?;
    edge.kill9_agent().await?;
    edge.start().await?;
    agent_serves(&edge).await?;
    acked_more(&edge, 10).await?;
    the_same(&edge, &[&sensing, &steady], "while the node is shut out")?;
    anyhow::ensure!(cluster.node_ready("edge-a").await? == "Unknown");
    let token = cluster.hub().token(5, 600).await?;
    for name in ["edge-a", "edge-z"] {
        let said = edge.join_as(&token, &["--name", name]).await?;
        anyhow::ensure!(!said.success && said.stderr.contains("EW-NODE-REVOKED"), "{name}: {}", said.stderr);
    }

    // A person may let the machine in again: with new keys, and nothing was lost meanwhile.
    edge.join_as(&token, &["--name", "edge-a", "--new-keys"]).await?.ok()?;
    cluster.ready("edge-a", "True").await?;
    all_arrived(&cluster, &edge, 60).await?;
    the_same(&edge, &[&sensing, &steady], "after it was let in again")?;
    told(&cluster, &["LinkRefused"], "edge-a").await?;
    let nobody = edgewire(&cluster, &["node", "revoke", "nobody"]).await?;
    anyhow::ensure!(!nobody.success && nobody.stderr.contains("EW-NODE-UNKNOWN"), "{}", nobody.stderr);
    cluster.done().await
}
