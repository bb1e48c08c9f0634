//! A link of 64 kbit/s, and forty pods to learn of after an outage: it converges, and is never given up for another.

use serde_json::json;
use tests::cluster::{Cluster, eventually};

use crate::support::{acked_more, all_arrived, padding, pod, runs, sensor, the_same};

const PODS: usize = 40;
/// Makes a pod about 4 KiB long.
const PADDING_BYTES: usize = 3 * 1024;
/// What 64 kbit/s carry in a second.
const LINK_BYTES_PER_S: usize = 8_000;

#[tokio::test(flavor = "multi_thread")]
async fn forty_pods_arrive_over_64_kbit_with_one_connection() -> anyhow::Result<()> {
    let cluster = Cluster::new("slow").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.apply(&sensor(&edge, 500).to_string()).await?;
    let sensing = runs(&cluster, &edge, "demo", "sensor").await?;
    edge.throttle(64).await?;
    cluster.ready("edge-a", "True").await?;
    eventually("the link goes through the slow proxy", 30, async || Ok(edge.connections() >= 2)).await?;
    // Both of its halves work: a cut in the middle of a handshake is another matter.
    acked_more(&edge, 4).await?;
    all_arrived(&cluster, &edge, 60).await?;
    cluster.kubectl_ok(&["logs", "-n", "demo", "sensor", "--tail=1"]).await?;
    cluster.ready("edge-a", "True").await?;

    edge.cut()?;
    cluster.ready("edge-a", "Unknown").await?;
    let before = edge.connections();
    let pods: Vec<_> = (0..PODS)
        .map(|n| {
            // Nothing runs: what counts is that the node knows each of them and says so.
            let mut pod = pod(&format!("slow-{n}"), "edge-a", "true");
            pod["spec"]["containers"][0]["image"] = json!("edgewire.local/absent:1");
            pod["metadata"]["annotations"] = json!({"padding": padding(n as u64, PADDING_BYTES)});
            pod
        })
        .collect();
    // `create`: the last-applied annotation would double each.
    let list = json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string();
    cluster.kubectl_with(&["create", "-f", "-"], &list).await?.ok()?;
    acked_more(&edge, 5).await?;
    edge.heal()?;
    let healed = std::time::Instant::now();
    let waiting = r"jsonpath={range .items[*]}{.status.containerStatuses[0].state.waiting.reason}{'\n'}{end}";
    eventually("the node has answered for all forty pods", 180, async || {
        let reasons = cluster.kubectl_ok(&["get", "pods", "-o", waiting]).await?;
        Ok(reasons.lines().filter(|reason| *reason == "ErrImageNeverPull").count() == PODS)
    })
    .await?;
    let took = healed.elapsed().as_secs_f64();
    println!("{PODS} pods over 64 kbit/s after {took:.1} s");
    anyhow::ensure!(
        took > (PODS * PADDING_BYTES / LINK_BYTES_PER_S) as f64,
        "it was not the slow link: {took:.1} s"
    );
    cluster.ready("edge-a", "True").await?;
    all_arrived(&cluster, &edge, 120).await?;
    // One for each account: the one that replaced the cut one, and no other.
    let made = edge.connections() - before;
    anyhow::ensure!(made <= 2, "{made} connections were made instead of at most 2");
    the_same(&edge, &[&sensing], "over the slow link")?;
    cluster.done().await
}
