//! A hub that lost its memory, whole or in part, stops nothing at the edge: absence is never deletion.

use std::process::Command;
use std::time::Duration;

use tests::cluster::Cluster;

use crate::support::{IDLE, edgewire, events, gone, pod, runs, the_same, told};

/// Nothing may stop; so we look for a while after everything is known again.
const WATCH: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_restored_empty_or_old_stops_nothing() -> anyhow::Result<()> {
    let cluster = Cluster::new("restore").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.apply(&pod("early", "edge-a", IDLE).to_string()).await?;
    let early = runs(&cluster, &edge, "default", "early").await?;

    // A backup; then life goes on.
    cluster.hub().stop().await?;
    let store = cluster.hub().data_dir().join("nats/jetstream");
    let backup = cluster.site().dir.join("backup");
    anyhow::ensure!(Command::new("cp").arg("-a").args([&store, &backup]).status()?.success());
    cluster.hub().start().await?;
    cluster.ready("edge-a", "True").await?;
    cluster.apply(&pod("late", "edge-a", IDLE).to_string()).await?;
    let late = runs(&cluster, &edge, "default", "late").await?;

    // The backup comes back: the hub has never heard of `late`.
    cluster.hub().stop().await?;
    cluster.hub().wipe_store().await?;
    anyhow::ensure!(Command::new("cp").arg("-a").args([&backup, &store]).status()?.success());
    cluster.hub().start().await?;
    println!("older backup: {}", told(&cluster, &["DesiredDiverged"], "edge-a").await?);
    cluster.ready("edge-a", "True").await?;
    let names = cluster.kubectl_ok(&["get", "pods", "-o", "name"]).await?;
    anyhow::ensure!(names.trim() == "pod/early", "the old hub knows {names}");
    tokio::time::sleep(WATCH).await;
    the_same(&edge, &[&early, &late], "under a hub restored from an older backup")?;

    // Nothing comes back at all.
    cluster.hub().stop().await?;
    cluster.hub().wipe_store().await?;
    cluster.hub().start().await?;
    anyhow::ensure!(events(&cluster, "Started", "early").await?.is_empty(), "the hub is empty");
    println!("empty: {}", told(&cluster, &["DesiredDiverged"], "edge-a").await?);
    cluster.ready("edge-a", "True").await?;
    tokio::time::sleep(WATCH).await;
    the_same(&edge, &[&early, &late], "under an empty hub")?;

    // And it is a hub: new pods run and go, beside those that it does not know.
    cluster.apply(&pod("new", "edge-a", IDLE).to_string()).await?;
    runs(&cluster, &edge, "default", "new").await?;
    cluster.kubectl_ok(&["delete", "pod", "new"]).await?;
    gone(&edge, "default", "new").await?;
    the_same(&edge, &[&early, &late], "beside a new pod")?;

    // A person decides about one of them.
    edgewire(&cluster, &["release", &late.uid]).await?.ok()?;
    gone(&edge, "default", "late").await?;
    the_same(&edge, &[&early], "after the other was released")?;
    cluster.done().await
}
