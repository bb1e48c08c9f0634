//! The hub's certificate is made anew and its authority is followed by another under running nodes: no connection ends, who
//! was away gets in, and what nobody told is out until a person joins it again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;
use tests::cluster::{Cluster, Edge, eventually, programs};

use crate::support::{IDLE, acked_more, all_arrived, edgewire, finish, pod, runs, sensor, the_same, told};

const TIMEOUT_S: u64 = 60;

/// The addresses of the node's own ends of its link.
fn sockets(cluster: &Cluster, edge: &Edge) -> anyhow::Result<BTreeSet<String>> {
    let port = format!("dport = :{}", cluster.site().ports.leaf);
    let said = edge.exec(&["ss", "-Htn", "state", "established", &port])?;
    Ok(said.lines().filter_map(|line| line.split_whitespace().nth(2).map(str::to_owned)).collect())
}

/// `edgewire ca ls`: by authority, which nodes do not know it.
async fn unknown_to(cluster: &Cluster, authority: &str) -> anyhow::Result<Option<Vec<String>>> {
    let rows: Value = serde_json::from_str(&edgewire(cluster, &["ca", "ls", "--json"]).await?.ok()?)?;
    let row = rows.as_array().into_iter().flatten().find(|row| row["authority"] == authority).cloned();
    Ok(row.map(|row| serde_json::from_value(row["unknown_to"].clone())).transpose()?)
}

async fn known_to_all(cluster: &Cluster, authority: &str) -> anyhow::Result<()> {
    eventually(&format!("all nodes know the {authority} authority"), TIMEOUT_S, async || {
        Ok(unknown_to(cluster, authority).await?.is_some_and(|nodes| nodes.is_empty()))
    })
    .await
}

/// How many authorities the node trusts.
fn trusted(edge: &Edge) -> anyhow::Result<usize> {
    let pem = std::fs::read_to_string(edge.data_dir().join("hub/ca.crt"))?;
    Ok(pem.matches("BEGIN CERTIFICATE").count())
}

/// A watch that was begun before: what it has seen lies in a file.
struct Watch {
    _child: tokio::process::Child,
    seen: PathBuf,
}

impl Watch {
    async fn begin(cluster: &Cluster, kubeconfig: &Path) -> anyhow::Result<Self> {
        let seen = cluster.site().dir.join("watch.out");
        let mut command = tokio::process::Command::new("kubectl");
        command.args(["get", "configmaps", "--watch-only", "-o", "name", "--kubeconfig"]).arg(kubeconfig);
        command.env("PATH", programs::path()).env_remove("KUBECONFIG").kill_on_drop(true);
        command.stdin(std::process::Stdio::null()).stdout(std::fs::File::create(&seen)?);
        let this = Self { _child: command.spawn()?, seen };
        // A watch that has not begun yet misses what is made now: until it sees one.
        eventually("the watch has begun", TIMEOUT_S, async || {
            cluster.kubectl(&["delete", "configmap", "first", "--ignore-not-found"]).await?.ok()?;
            cluster.kubectl_ok(&["create", "configmap", "first"]).await?;
            this.has("first")
        })
        .await?;
        Ok(this)
    }

    fn has(&self, name: &str) -> anyhow::Result<bool> {
        Ok(std::fs::read_to_string(&self.seen)?.lines().any(|line| line == format!("configmap/{name}")))
    }

    async fn goes_on(&mut self, cluster: &Cluster, name: &str) -> anyhow::Result<()> {
        cluster.kubectl_ok(&["create", "configmap", name]).await?;
        eventually(&format!("the watch sees {name}"), 20, async || self.has(name)).await?;
        anyhow::ensure!(self._child.try_wait()?.is_none(), "the watch has ended");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_follows_another_and_nobody_is_locked_out() -> anyhow::Result<()> {
    let cluster = Cluster::new("ca-roll").await?;
    cluster.up(&["edge-a", "edge-b"]).await?;
    let (hub, edge, away) = (cluster.hub(), cluster.edge("edge-a")?, cluster.edge("edge-b")?);
    cluster.apply(&sensor(&edge, 50).to_string()).await?;
    let sensing = runs(&cluster, &edge, "demo", "sensor").await?;
    let token = hub.token(5, 600).await?;
    let copied = cluster.site().dir.join("copied.kubeconfig");
    std::fs::copy(&cluster.site().kubeconfig, &copied)?;
    known_to_all(&cluster, "present").await?;
    let mut watch = Watch::begin(&cluster, &copied).await?;
    let standing = sockets(&cluster, &edge)?;
    anyhow::ensure!(standing.len() == 2, "{standing:?}");

    let before = edgewire(&cluster, &["certificate", "ls"]).await?.ok()?;
    let renewed = edgewire(&cluster, &["certificate", "renew"]).await?.ok()?;
    println!("{before}{renewed}");
    anyhow::ensure!(before != renewed, "{renewed}");
    watch.goes_on(&cluster, "after-renewal").await?;
    anyhow::ensure!(sockets(&cluster, &edge)? == standing, "a renewal ends no connection");

    // A roll, while a node is away.
    away.cut()?;
    cluster.ready("edge-b", "Unknown").await?;
    println!("{}", edgewire(&cluster, &["ca", "roll"]).await?.ok()?);
    eventually("the node that is there knows the next authority", TIMEOUT_S, async || {
        Ok(unknown_to(&cluster, "next").await? == Some(vec!["edge-b".to_owned()]))
    })
    .await?;
    println!("{}", edgewire(&cluster, &["ca", "ls"]).await?.ok()?);
    anyhow::ensure!(trusted(&edge)? == 2 && trusted(&away)? == 1);
    let early = edgewire(&cluster, &["ca", "finish"]).await?;
    anyhow::ensure!(!early.success && early.stderr.contains("EW-CA-UNCONFIRMED"), "{}", early.stderr);
    anyhow::ensure!(early.stderr.contains("edge-b") && !early.stderr.contains("edge-a"), "{}", early.stderr);
    let twice = edgewire(&cluster, &["ca", "roll"]).await?;
    anyhow::ensure!(!twice.success && twice.stderr.contains("EW-CA-ROLLING"), "{}", twice.stderr);
    watch.goes_on(&cluster, "after-roll").await?;
    anyhow::ensure!(sockets(&cluster, &edge)? == standing, "a roll ends no connection");
    told(&cluster, &["AuthoritiesChanged"], "edge-a").await?;
    drop(watch);

    // Everything falls in the middle of it; a backup of this moment is of use later.
    let file = cluster.site().dir.join("hub.tar.gz");
    let name = file.to_str().context("a path is text")?;
    finish(hub.command(&["backup", name]), TIMEOUT_S).await?.ok()?;
    hub.kill9().await?;
    hub.start().await?;
    edge.kill9_all().await?;
    edge.start().await?;
    cluster.ready("edge-a", "True").await?;
    let old = |kubeconfig: &Path| {
        let mut command = tokio::process::Command::new("kubectl");
        command.args(["get", "namespaces", "--kubeconfig"]).arg(kubeconfig);
        command.env("PATH", programs::path()).env_remove("KUBECONFIG");
        finish(command, TIMEOUT_S)
    };
    old(&copied).await?.ok().context("a kubeconfig from before the roll")?;

    // Who was away knows the old one alone, and so does a token from before.
    away.heal()?;
    cluster.ready("edge-b", "True").await?;
    let late = cluster.edge("edge-c")?;
    late.join_with(&token).await?.ok().context("a token from before the roll")?;
    late.start().await?;
    cluster.ready("edge-c", "True").await?;
    let later_token = hub.token(5, 600).await?;
    known_to_all(&cluster, "next").await?;

    println!("{}", edgewire(&cluster, &["ca", "finish"]).await?.ok()?);
    known_to_all(&cluster, "present").await?;
    for edge in [&edge, &away, &late] {
        eventually("the old authority is trusted no more", TIMEOUT_S, async || Ok(trusted(edge)? == 1))
            .await?;
    }
    anyhow::ensure!(!old(&copied).await?.success, "a kubeconfig from before still opens");
    // With all connections made anew.
    hub.kill9_server().await?;
    edge.kill9_leaf().await?;
    for name in ["edge-a", "edge-b", "edge-c"] {
        cluster.heartbeats(name, 2).await?;
    }
    let stale = cluster.edge("edge-d")?;
    anyhow::ensure!(!stale.join_with(&token).await?.success, "a token from before still opens");
    stale.join_with(&later_token).await?.ok().context("a token that was made during the roll")?;
    acked_more(&edge, 20).await?;
    all_arrived(&cluster, &edge, TIMEOUT_S).await?;

    // The hub comes back from the middle of the roll: whoever trusts the old, the new or both gets in.
    hub.kill9().await?;
    hub.destroy().await?;
    finish(hub.command(&["restore", name]), TIMEOUT_S).await?.ok()?;
    hub.start().await?;
    for name in ["edge-a", "edge-b"] {
        cluster.heartbeats(name, 2).await?;
    }
    anyhow::ensure!(unknown_to(&cluster, "next").await?.is_some(), "the roll is under way again");
    the_same(&edge, &[&sensing], "through renewal, roll, falls and restore")?;
    cluster.done().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_nobody_told_runs_on_says_so_and_joins_again_with_its_keys() -> anyhow::Result<()> {
    let cluster = Cluster::new("ca-forced").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.apply(&sensor(&edge, 100).to_string()).await?;
    cluster.apply(&pod("steady", "edge-a", IDLE).to_string()).await?;
    let sensing = runs(&cluster, &edge, "demo", "sensor").await?;
    let steady = runs(&cluster, &edge, "default", "steady").await?;
    let none = edgewire(&cluster, &["ca", "finish"]).await?;
    anyhow::ensure!(!none.success && none.stderr.contains("EW-CA-NOT-ROLLING"), "{}", none.stderr);
    edge.cut()?;
    cluster.ready("edge-a", "Unknown").await?;
    edgewire(&cluster, &["ca", "roll"]).await?.ok()?;
    edgewire(&cluster, &["ca", "finish", "--force"]).await?.ok()?;
    edge.heal()?;
    eventually("the node says why it is out", TIMEOUT_S, async || {
        Ok(std::fs::read_to_string(edge.log())?.contains("EW-LINK-UNTRUSTED"))
    })
    .await?;
    let server = edge.server_pid()?;
    acked_more(&edge, 20).await?;
    the_same(&edge, &[&sensing, &steady], "while the hub is not trusted")?;

    let token = cluster.hub().token(1, 600).await?;
    edge.join_with(&token).await?.ok()?;
    cluster.ready("edge-a", "True").await?;
    known_to_all(&cluster, "present").await?;
    all_arrived(&cluster, &edge, TIMEOUT_S).await?;
    the_same(&edge, &[&sensing, &steady], "after it joined again")?;
    anyhow::ensure!(edge.server_pid()? == server, "the node's server was restarted for nothing");
    told(&cluster, &["LinkUntrusted"], "edge-a").await?;
    eventually("each step is on record", TIMEOUT_S, async || {
        let records: Value = serde_json::from_str(&edgewire(&cluster, &["audit", "--json"]).await?.ok()?)?;
        let has = |verb: &str| records.as_array().is_some_and(|all| all.iter().any(|r| r["verb"] == verb));
        Ok(has("ca.roll") && has("ca.finish"))
    })
    .await?;
    cluster.done().await
}
