//! What an operator sees: on a node that is cut off its own streams, and at the hub what came of them.

use anyhow::Context;
use serde_json::Value;
use tests::cluster::{Cluster, Edge, programs};

use crate::support::edgewire;

/// Runs `edgewire` on the node.
fn on_node(edge: &Edge, args: &[&str]) -> anyhow::Result<String> {
    let (program, dir) = (programs::ours("edgewire"), edge.data_dir());
    let (program, dir) = (program.to_string_lossy(), dir.to_string_lossy());
    edge.exec(&[&[&*program], args, &["--edge", &*dir]].concat())
}

/// The numbers in a tail's lines.
fn numbers(shown: &str) -> anyhow::Result<Vec<u64>> {
    let number = |line: &str| {
        let line: Value = serde_json::from_str(line)?;
        line["payload"]["n"].as_u64().with_context(|| format!("no number in {line}"))
    };
    shown.lines().map(number).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_reads_what_a_cut_off_node_holds_and_then_what_the_hub_got() -> anyhow::Result<()> {
    let cluster = Cluster::new("tail").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;

    edge.cut()?;
    for n in 1..=3 {
        let said = on_node(&edge, &["pub", "up.default.n", &format!("{{\"n\":{n}}}")])?;
        anyhow::ensure!(said.trim() == format!("stored in UPLINK as {n}"), "{said}");
    }
    let held = on_node(&edge, &["tail", "up.default.>", "--since", "1h", "--until", "1ms", "--json"])?;
    anyhow::ensure!(numbers(&held)? == [1, 2, 3], "{held}");
    let bus = on_node(&edge, &["topics", "up.>", "--for", "1s"])?;
    anyhow::ensure!(bus.is_empty(), "{bus}");
    anyhow::ensure!(on_node(&edge, &["dead"])?.is_empty(), "nothing is dead");

    edge.heal()?;
    let came = ["tail", "from.edge-a.>", "--since", "1h", "--where", "payload.n > 1", "-n", "2", "--json"];
    let came = edgewire(&cluster, &came).await?.ok()?;
    anyhow::ensure!(numbers(&came)? == [2, 3], "{came}");
    // The hub's server answers for its own accounts too.
    let asked = edgewire(&cluster, &["topics", "--all", "--for", "3s", "--json"]).await?.ok()?;
    let topics: Value = serde_json::from_str(&asked)?;
    let beat = topics.as_array().context("topics")?.iter().find(|row| row["subject"] == "ew.hb.edge-a");
    let listeners = beat.and_then(|row| row["subscribers"].as_u64());
    anyhow::ensure!(listeners.is_some_and(|count| count >= 1), "{topics}");
    cluster.done().await
}
