//! The link is cut in silence: pods run on, everything durable waits at the edge, and arrives once and in order.

use nix::sys::signal::Signal;
use tests::cluster::{Cluster, eventually};

use crate::support::{
    IDLE, acked_more, all_arrived, container, events, field_is, gone, pod, runs, sensor, the_same, told,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_link_loses_and_stops_nothing() -> anyhow::Result<()> {
    let cluster = Cluster::new("outage").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.apply(&sensor(&edge, 20).to_string()).await?;
    cluster.apply(&pod("steady", "edge-a", IDLE).to_string()).await?;
    cluster.apply(&pod("phoenix", "edge-a", IDLE).to_string()).await?;
    let (sensing, steady, phoenix) = (
        runs(&cluster, &edge, "demo", "sensor").await?,
        runs(&cluster, &edge, "default", "steady").await?,
        runs(&cluster, &edge, "default", "phoenix").await?,
    );
    acked_more(&edge, 50).await?;
    all_arrived(&cluster, &edge, 10).await?;

    edge.cut()?;
    cluster.ready("edge-a", "Unknown").await?;
    // Something happens offline: a container dies and is started again, by the node alone.
    edge.signal(phoenix.pid, Signal::SIGKILL)?;
    eventually("phoenix is started again with no hub", 30, async || {
        Ok(edge.container_of("default", "phoenix")?.is_some_and(|again| again.id != phoenix.id))
    })
    .await?;
    acked_more(&edge, 200).await?;
    the_same(&edge, &[&sensing, &steady], "while the link is cut")?;
    anyhow::ensure!(events(&cluster, "LinkUp", "edge-a").await?.iter().all(|text| !text.contains("after")));
    let unaware = cluster.kubectl_ok(&["get", "pod", "steady", "-o", "jsonpath={.status.phase}"]).await?;
    anyhow::ensure!(unaware == "Running", "the hub keeps what it knew, not {unaware}");

    edge.heal()?;
    cluster.ready("edge-a", "True").await?;
    all_arrived(&cluster, &edge, 60).await?;
    told(&cluster, &["LinkDown"], "edge-a").await?;
    // The node noticed before the servers' own pings did.
    told(&cluster, &["LinkRebuilt"], "edge-a").await?;
    eventually("the return of the link is told, with how long it was away", 30, async || {
        Ok(events(&cluster, "LinkUp", "edge-a").await?.iter().any(|text| text.contains("after")))
    })
    .await?;
    field_is(&cluster, "phoenix", ".status.containerStatuses[0].restartCount", "1").await?;
    field_is(&cluster, "phoenix", ".status.containerStatuses[0].lastState.terminated.exitCode", "137")
        .await?;
    field_is(&cluster, "steady", ".status.containerStatuses[0].restartCount", "0").await?;
    the_same(&edge, &[&sensing, &steady], "after the link is back")?;

    // The list of a sensor that has ended holds all it will ever hold.
    cluster.kubectl_ok(&["delete", "pod", "sensor", "-n", "demo"]).await?;
    gone(&edge, "demo", "sensor").await?;
    let received = all_arrived(&cluster, &edge, 30).await?;
    println!("{} readings, each once and in order", received.len());
    container(&edge, "default", "steady").await?;
    cluster.done().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_comes_and_goes_loses_and_doubles_nothing() -> anyhow::Result<()> {
    let cluster = Cluster::new("flap").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.apply(&sensor(&edge, 10).to_string()).await?;
    let sensing = runs(&cluster, &edge, "demo", "sensor").await?;
    for round in 0..8 {
        // In silence, or with a reset that both sides see; and each server falls once while it goes on.
        if round % 2 == 0 {
            edge.cut()?
        } else {
            edge.polite_cut()?
        }
        acked_more(&edge, 40).await?;
        match round {
            3 => edge.kill9_leaf().await?,
            5 => cluster.hub().kill9().await?,
            _ => {}
        }
        edge.heal()?;
        if round == 5 {
            cluster.hub().start().await?;
        }
        acked_more(&edge, 40).await?;
    }
    cluster.ready("edge-a", "True").await?;
    let received = all_arrived(&cluster, &edge, 90).await?;
    println!("{} readings, each once and in order", received.len());
    the_same(&edge, &[&sensing], "after a link that came and went")?;
    cluster.done().await
}
