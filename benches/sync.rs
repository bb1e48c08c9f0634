//! `make bench WHAT=sync`: how soon a node is current again: after a cut of its link, after the hub's server fell, after joining;
//! how fast what it queued goes up, against bare atomic batches in the same run; and a fleet after the hub was killed.
//!
//! Prints the table that `docs/benchmarks.md` keeps; nothing is asserted. Which parts: `catch-up`, `drain`, `server`, `join`,
//! `fleet`, as arguments; all of them without. `CUTS=5,5,15` are the cuts' lengths in seconds, `LEAFS=100` the fleet's size.

mod api;
mod fleet;
mod uplink;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use reqwest::Method;
use serde_json::{Value, json};
use tests::cluster::pods::{IDLE, pod};
use tests::cluster::{Cluster, Edge};

use api::{Api, PATIENCE};
use uplink::{Arrivals, MESSAGE_BYTES, MESSAGES};

const NODE: &str = "edge-a";
const CONFIGS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
/// Cuts, in seconds, unless told.
const CUTS_S: &str = "5,15,30,60,5,15,30,60,5,15,30,60";
/// Rounds of draining, each beside a bare one.
const DRAINS: usize = 5;
/// Times that the hub's server is killed.
const SERVER_KILLS: usize = 10;
/// Heartbeats that show that a link stands again; the first may have waited for it.
const HEARTBEATS: usize = 2;
/// Nodes that join, one after the other.
const JOINS: usize = 5;
/// Leafs of the fleet, unless told.
const LEAFS: &str = "100";
/// Between two looks at a file or at the API.
const LOOK: Duration = Duration::from_millis(5);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tests::quiet::or_refuse()?;
    tests::stop::unless_asked(Box::pin(measure())).await
}

async fn measure() -> anyhow::Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let wants = |part: &str| wanted.is_empty() || wanted.iter().any(|word| word == part);
    println!("| what | measured | aim |\n|---|---|---|");
    if ["catch-up", "drain", "server", "join"].iter().any(|part| wants(part)) {
        let cluster = Cluster::new("bench-sync").await?;
        cluster.up(&[NODE]).await?;
        let scene = Scene::set(&cluster).await?;
        if wants("drain") {
            scene.drain().await?;
        }
        if wants("catch-up") {
            scene.catch_up().await?;
        }
        if wants("server") {
            scene.server_kills().await?;
        }
        if wants("join") {
            scene.joins().await?;
        }
        drop(scene);
        cluster.done().await?;
    }
    if wants("fleet") {
        fleet::run(setting("LEAFS", LEAFS).parse()?).await?;
    }
    Ok(())
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// A node with a pod that reads a ConfigMap.
struct Scene<'a> {
    cluster: &'a Cluster,
    api: Api,
    edge: std::sync::Arc<Edge>,
    file: PathBuf,
}

impl<'a> Scene<'a> {
    async fn set(cluster: &'a Cluster) -> anyhow::Result<Self> {
        let (api, edge) = (Api::of(cluster).await?, cluster.edge(NODE)?);
        api.send(Method::POST, CONFIGS, &config("first")).await?;
        let mut reader = pod("reader", NODE, IDLE);
        if let Some(spec) = reader.get_mut("spec").and_then(Value::as_object_mut) {
            spec.insert("volumes".into(), json!([{"name": "v", "configMap": {"name": "settings"}}]));
        }
        if let Some(container) = reader.pointer_mut("/spec/containers/0").and_then(Value::as_object_mut) {
            container.insert("volumeMounts".into(), json!([{"name": "v", "mountPath": "/etc/settings"}]));
        }
        api.send(Method::POST, PODS, &reader).await?;
        let mut file = PathBuf::new();
        until("the pod's file", Duration::from_millis(100), async || {
            let found =
                std::process::Command::new("find").arg(edge.data_dir()).args(["-path", "*/v/n"]).output()?;
            file = String::from_utf8_lossy(&found.stdout).lines().next().unwrap_or_default().into();
            Ok(!file.as_os_str().is_empty())
        })
        .await?;
        let this = Self { cluster, api, edge, file };
        this.seen("first").await?;
        Ok(this)
    }

    async fn edit(&self, text: &str) -> anyhow::Result<()> {
        self.api.send(Method::PUT, &format!("{CONFIGS}/settings"), &config(text)).await
    }

    /// Waits until the running pod's file says so.
    async fn seen(&self, text: &str) -> anyhow::Result<()> {
        until(&format!("the pod's file says {text}"), LOOK, async || {
            Ok(std::fs::read_to_string(&self.file)? == text)
        })
        .await
    }

    async fn ready(&self, node: &str) -> anyhow::Result<()> {
        until(&format!("{node} is Ready"), LOOK * 4, async || {
            let path = format!("/api/v1/nodes/{node}");
            let answer = self.api.request(Method::GET, &path).send().await?;
            let object: Value = answer.error_for_status()?.json().await?;
            let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
            Ok(conditions.into_iter().flatten().any(|of| {
                of.get("type").and_then(Value::as_str) == Some("Ready")
                    && of.get("status").and_then(Value::as_str) == Some("True")
            }))
        })
        .await
    }

    /// From the link's return until the hub has what was queued, the node is Ready, and the pod has the edit.
    async fn catch_up(&self) -> anyhow::Result<()> {
        let lengths = setting("CUTS", CUTS_S);
        let (mut whole, mut arrived, mut edits) = (Vec::new(), Vec::new(), Vec::new());
        for (n, length) in lengths.split(',').enumerate() {
            let length = Duration::from_secs(length.trim().parse()?);
            let run = format!("cut{n}");
            let (since, text) = (Instant::now(), format!("edit-{run}"));
            self.edge.cut()?;
            let queued = uplink::queue(&self.edge, &run).await?;
            self.edit(&text).await?;
            let arrivals = Arrivals::of(self.cluster, format!("from.{NODE}.bench.{run}")).await?;
            tokio::time::sleep(length.saturating_sub(since.elapsed())).await;
            let cut = since.elapsed();
            self.edge.heal()?;
            let healed = Instant::now();
            let (all, seen, ready) = tokio::try_join!(
                async { arrivals.all().await.map(|()| healed.elapsed()) },
                async { self.seen(&text).await.map(|()| healed.elapsed()) },
                async { self.ready(NODE).await.map(|()| healed.elapsed()) },
            )?;
            eprintln!(
                "cut of {cut:.1?} (queued in {queued:.1?}): all {all:.2?}, edit {seen:.2?}, ready {ready:.2?}"
            );
            whole.push(all.max(seen).max(ready));
            arrived.push(all);
            edits.push(seen);
        }
        let what =
            format!("link back after a cut of {lengths} s, {MESSAGES} messages of {MESSAGE_BYTES} B queued");
        row(&format!("{what}: all at the hub, node Ready, edit in the pod's file"), &mut whole, "<= 3 s");
        row("of it: all messages at the hub", &mut arrived, "");
        row("of it: the edit in the pod's file", &mut edits, "");
        Ok(())
    }

    /// The lane's rate, each time beside bare batches; of as many messages as ours hold, and of 200.
    async fn drain(&self) -> anyhow::Result<()> {
        let batch = bus::link::BATCH_MESSAGES_MAX as u64;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for n in 0..DRAINS {
            let run = format!("drain{n}");
            self.edge.cut()?;
            uplink::queue(&self.edge, &run).await?;
            self.edge.heal()?;
            let arrivals = Arrivals::of(self.cluster, format!("from.{NODE}.bench.{run}")).await?;
            arrivals.all().await?;
            ours.push(arrivals.rate(self.cluster).await?);
            let run = format!("bare{n}");
            uplink::bare(&self.edge, &run, batch).await?;
            let arrivals = Arrivals::of(self.cluster, format!("from.{NODE}.bench.{run}")).await?;
            theirs.push(arrivals.rate(self.cluster).await?);
            eprintln!("drain: ours {:.0?}/s, bare batches of {batch} {:.0?}/s", ours.last(), theirs.last());
        }
        ours.sort_by(f64::total_cmp);
        theirs.sort_by(f64::total_cmp);
        let median = |of: &[f64]| of.get(of.len() / 2).copied().unwrap_or_default();
        let (ours, theirs) = (median(&ours), median(&theirs));
        println!(
            "| uplink drain of {MESSAGES} messages of {MESSAGE_BYTES} B, median of {DRAINS} | {ours:.0} /s | |"
        );
        println!(
            "| bare atomic batches of {batch}, one at a time, same link, stream, run | {theirs:.0} /s | |"
        );
        println!("| ratio | {:.2}x | >= 0.7x |", ours / theirs);
        Ok(())
    }

    /// The hub's server alone is killed, and the hub starts it again: until an edit is with the pod.
    async fn server_kills(&self) -> anyhow::Result<()> {
        let (mut since_kill, mut since_edit) = (Vec::new(), Vec::new());
        for n in 0..SERVER_KILLS {
            let text = format!("kill-{n}");
            self.cluster.hub().kill9_server().await?;
            let killed = Instant::now();
            until("the hub takes an edit", LOOK * 4, async || self.edit(&text).await.map(|()| true)).await?;
            let acknowledged = Instant::now();
            self.seen(&text).await?;
            eprintln!(
                "server killed: edit taken after {:.2?}, seen after {:.2?}",
                acknowledged - killed,
                killed.elapsed()
            );
            since_kill.push(killed.elapsed());
            since_edit.push(acknowledged.elapsed());
            // The next one meets a node that follows again.
            self.cluster.heartbeats(NODE, HEARTBEATS).await?;
        }
        row("kill -9 of the hub's server: until an edit is in the pod's file", &mut since_kill, "");
        row("of it: from the edit's acknowledgement", &mut since_edit, "");
        Ok(())
    }

    async fn joins(&self) -> anyhow::Result<()> {
        let (mut whole, mut joined, mut started) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..JOINS {
            let name = format!("join-{n}");
            let (edge, token) = (self.cluster.edge(&name)?, self.cluster.hub().token(1, 600).await?);
            let begun = Instant::now();
            edge.join_with(&token).await?.ok()?;
            let join = begun.elapsed();
            edge.start().await?;
            self.ready(&name).await?;
            let all = begun.elapsed();
            edge.kill9_all().await?;
            eprintln!("join: {join:.2?}, Ready {all:.2?}");
            whole.push(all);
            joined.push(join);
            started.push(all - join);
        }
        row("`join TOKEN`, then the node's start, until the API says Ready", &mut whole, "<= 3 s");
        row("of it: `join TOKEN`", &mut joined, "");
        row("of it: from the node's start (containerd and nats-server too) to Ready", &mut started, "");
        Ok(())
    }
}

fn config(text: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"n": text}})
}

/// One line of the table: median, p99 and the worst.
pub fn row(what: &str, took: &mut [Duration], aim: &str) {
    took.sort();
    let at = |q: f64| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let at = (took.len().saturating_sub(1) as f64 * q).round() as usize;
        took.get(at).map_or(0.0, Duration::as_secs_f64)
    };
    println!("| {what}; p50 / max of {} | {:.2} / {:.2} s | {aim} |", took.len(), at(0.5), at(1.0));
}

/// Waits until it is so, looking every `every`; an error of the look means not yet.
pub async fn until(
    what: &str,
    every: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let found = tokio::time::timeout(PATIENCE, look()).await.with_context(|| what.to_owned())?;
        if matches!(found, Ok(true)) {
            return Ok(());
        }
        anyhow::ensure!(begun.elapsed() < PATIENCE, "not in time: {what}; last: {found:?}");
        tokio::time::sleep(every).await;
    }
}
