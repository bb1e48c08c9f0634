//! What the hub deletes while a node is away: it stops when the node returns, and only it.

use tests::cluster::{Cluster, eventually};

use crate::support::{IDLE, field_is, gone, pod, runs, the_same};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_while_the_node_was_away() -> anyhow::Result<()> {
    let cluster = Cluster::new("delete").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    let names = ["left", "deleted", "forced", "renewed"];
    for name in names {
        cluster.apply(&pod(name, "edge-a", IDLE).to_string()).await?;
    }
    let mut running = Vec::new();
    for name in names {
        running.push(runs(&cluster, &edge, "default", name).await?);
    }
    let before: Vec<_> = running.iter().collect();

    edge.cut()?;
    cluster.ready("edge-a", "Unknown").await?;
    cluster.kubectl_ok(&["delete", "pod", "deleted", "--wait=false"]).await?;
    cluster.kubectl_ok(&["delete", "pod", "forced", "renewed", "--force", "--grace-period=0"]).await?;
    cluster.apply(&pod("renewed", "edge-a", IDLE).to_string()).await?;
    let uid = cluster.kubectl_ok(&["get", "pod", "renewed", "-o", "jsonpath={.metadata.uid}"]).await?;
    anyhow::ensure!(uid != running[3].uid, "a pod created again is another one");
    let at_hub = cluster.kubectl_ok(&["get", "pods", "-o", "name"]).await?;
    anyhow::ensure!(
        at_hub.lines().eq(["pod/deleted", "pod/left", "pod/renewed"]),
        "a pod that may still run stays, one deleted by force goes: {at_hub}"
    );
    the_same(&edge, &before, "the node is away and knows of nothing")?;

    edge.heal()?;
    gone(&edge, "default", "deleted").await?;
    gone(&edge, "default", "forced").await?;
    eventually("the new pod runs, the old of its name does not", 60, async || {
        Ok(edge.container_of("default", "renewed")?.is_some_and(|container| container.uid == uid))
    })
    .await?;
    eventually("the hub has let go of the deleted pod", 30, async || {
        let names = cluster.kubectl_ok(&["get", "pods", "-o", "name"]).await?;
        Ok(names.lines().eq(["pod/left", "pod/renewed"]))
    })
    .await?;
    field_is(&cluster, "renewed", ".status.phase", "Running").await?;
    the_same(&edge, &before[..1], "the pod that nobody touched")?;

    // With the link up, and nothing left behind of it on the node.
    cluster.kubectl_ok(&["delete", "pod", "renewed"]).await?;
    gone(&edge, "default", "renewed").await?;
    let containers = edge.ctr(&["containers", "ls", "-q"])?;
    anyhow::ensure!(
        containers.lines().eq([running[0].id.as_str()]),
        "only one is left in containerd: {containers}"
    );
    cluster.done().await
}
