//! `make bench`: how long a pod takes, how long a change takes, and how much memory an idle system holds.
//!
//! Ratios in one run, on one machine, against a stated peer: `ctr run` of the same image on the same containerd. Prints the
//! table that `docs/benchmarks.md` keeps; nothing is asserted. The measured programs are the release build
//! (`EDGEWIRE_BIN_DIR`), this program need not be.

mod api;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tests::cluster::{Cluster, eventually};

use api::{Api, PATIENCE};

/// Pods started on each side.
const PODS: usize = 20;
/// Changes of a ConfigMap.
const CHANGES: usize = 60;
/// What is idle is looked at after so long.
const SETTLE: Duration = Duration::from_secs(30);
/// Between two looks at the API, for what is not measured.
const LOOK: Duration = Duration::from_millis(20);
/// Between two looks at a file whose change is measured.
const LOOK_CLOSELY: Duration = Duration::from_millis(1);
const PODS_PATH: &str = "/api/v1/namespaces/default/pods";
const IMAGE: &str = "docker.io/library/busybox:demo";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tests::quiet::or_refuse()?;
    tests::stop::unless_asked(Box::pin(measure())).await
}

async fn measure() -> anyhow::Result<()> {
    let cluster = Cluster::new("bench").await?;
    cluster.up(&["edge-a"]).await?;
    let api = Api::of(&cluster).await?;
    // The image is imported and unpacked before anything is timed.
    api.create_and_wait("warm-up").await?;

    let mut pods = Vec::new();
    let mut peers = Vec::new();
    for n in 0..PODS {
        // In turn, so that both meet the same machine.
        pods.push(api.create_and_wait(&format!("pod-{n}")).await?);
        api.delete_and_wait(&format!("pod-{n}")).await?;
        peers.push(ctr_run(&cluster, &format!("peer-{n}"))?);
    }
    api.delete_and_wait("warm-up").await?;
    let changes = config_changes(&cluster, &api).await?;
    api.create_and_wait("idle").await?;
    tokio::time::sleep(SETTLE).await;
    let memory = memory(&cluster)?;
    report(&mut pods, &mut peers, changes, &memory);
    cluster.done().await
}

impl Api {
    /// From the acknowledgement of the create to Running in a watch that was open before.
    async fn create_and_wait(&self, name: &str) -> anyhow::Result<Duration> {
        let path = format!("{PODS_PATH}?watch=true&fieldSelector=metadata.name%3D{name}");
        let mut watch = self.request(reqwest::Method::GET, &path).send().await?.error_for_status()?;
        self.send(reqwest::Method::POST, PODS_PATH, &pod(name)).await?;
        let acknowledged = Instant::now();
        let mut text = Vec::new();
        loop {
            let chunk =
                tokio::time::timeout(PATIENCE, watch.chunk()).await.context("the pod does not run")?;
            text.extend_from_slice(&chunk?.context("the watch ended before the pod ran")?);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let event: Value = serde_json::from_slice(&line)?;
                if event.pointer("/object/status/phase").and_then(Value::as_str) == Some("Running") {
                    return Ok(acknowledged.elapsed());
                }
            }
        }
    }

    /// Until it is gone.
    async fn delete_and_wait(&self, name: &str) -> anyhow::Result<()> {
        let path = format!("{PODS_PATH}/{name}");
        self.send(reqwest::Method::DELETE, &path, &json!({})).await?;
        let begun = Instant::now();
        while self.request(reqwest::Method::GET, &path).send().await?.status()
            != reqwest::StatusCode::NOT_FOUND
        {
            anyhow::ensure!(begun.elapsed() < PATIENCE, "{name} does not go");
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

fn pod(name: &str) -> Value {
    pod_with(name, &json!([]), &json!([]))
}

/// A pod that mounts the ConfigMap.
fn reader() -> Value {
    let volumes = json!([{"name": "v", "configMap": {"name": "settings"}}]);
    pod_with("reader", &volumes, &json!([{"name": "v", "mountPath": "/etc/settings"}]))
}

fn pod_with(name: &str, volumes: &Value, mounts: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 1, "volumes": volumes, "containers": [{
            "name": "c", "image": IMAGE, "imagePullPolicy": "Never",
            "command": ["/bin/busybox", "sleep", "100000"], "volumeMounts": mounts,
        }]},
    })
}

/// `ctr run -d` until it returns: the task runs.
fn ctr_run(cluster: &Cluster, name: &str) -> anyhow::Result<Duration> {
    let edge = cluster.edge("edge-a")?;
    let begun = Instant::now();
    edge.ctr(&["run", "-d", IMAGE, name, "/bin/busybox", "sleep", "100000"])?;
    let took = begun.elapsed();
    edge.ctr(&["task", "rm", "-f", name])?;
    edge.ctr(&["container", "rm", name])?;
    Ok(took)
}

/// From the acknowledgement of a ConfigMap's change to the file that the running pod sees.
async fn config_changes(cluster: &Cluster, api: &Api) -> anyhow::Result<Vec<Duration>> {
    let path = "/api/v1/namespaces/default/configmaps";
    let config = |n: usize| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"n": n.to_string()}});
    api.send(reqwest::Method::POST, path, &config(0)).await?;
    api.send(reqwest::Method::POST, PODS_PATH, &reader()).await?;
    let file = eventually("the pod has the ConfigMap's file", PATIENCE.as_secs(), async || {
        let found = std::process::Command::new("find")
            .arg(cluster.edge("edge-a")?.data_dir())
            .args(["-path", "*/v/n"])
            .output()?;
        Ok(String::from_utf8_lossy(&found.stdout).lines().next().map(PathBuf::from))
    })
    .await?;
    let mut took = Vec::new();
    for n in 1..=CHANGES {
        api.send(reqwest::Method::PUT, &format!("{path}/settings"), &config(n)).await?;
        let acknowledged = Instant::now();
        while std::fs::read_to_string(&file).unwrap_or_default() != n.to_string() {
            anyhow::ensure!(acknowledged.elapsed() < PATIENCE, "change {n} did not arrive");
            tokio::time::sleep(LOOK_CLOSELY).await;
        }
        took.push(acknowledged.elapsed());
    }
    api.delete_and_wait("reader").await?;
    Ok(took)
}

/// Resident and private (clean and dirty) MiB of every process that stays.
fn memory(cluster: &Cluster) -> anyhow::Result<Vec<(&'static str, f64, f64, &'static str)>> {
    let edge = cluster.edge("edge-a")?;
    let pid = |path: PathBuf| -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(&path).with_context(|| path.display().to_string())?.trim().to_owned())
    };
    let leaf = pid(edge.data_dir().join("nats/nats-server.pid"))?;
    let server = pid(cluster.hub().data_dir().join("nats/nats-server.pid"))?;
    let named = |word: &str, dir: PathBuf| -> anyhow::Result<String> {
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let program = line.split('\0').next().unwrap_or_default();
            if program.ends_with(word) && line.contains(&dir.display().to_string()) {
                return Ok(entry.file_name().to_string_lossy().into_owned());
            }
        }
        bail!("no process {word}")
    };
    let agent = named("edge-runtime", edge.data_dir())?;
    let hub = named("cloud-hub", cluster.hub().data_dir())?;
    [
        ("edge-runtime", agent, "<= 15"),
        ("its nats-server", leaf, "<= 25"),
        ("cloud-hub", hub, "<= 40"),
        ("its nats-server", server, "stated"),
    ]
    .into_iter()
    .map(|(name, pid, aim)| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let kib = |field: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(field));
            line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0.0)
        };
        Ok((name, kib("Rss:") / 1024.0, (kib("Private_Clean:") + kib("Private_Dirty:")) / 1024.0, aim))
    })
    .collect()
}

fn quantile(sorted: &[Duration], q: f64) -> f64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let at = ((sorted.len() - 1) as f64 * q).round() as usize;
    sorted.get(at).map_or(0.0, |took| took.as_secs_f64() * 1000.0)
}

fn report(
    pods: &mut [Duration],
    peers: &mut [Duration],
    mut changes: Vec<Duration>,
    memory: &[(&str, f64, f64, &str)],
) {
    pods.sort();
    peers.sort();
    changes.sort();
    let (ours, theirs) = (quantile(pods, 0.5), quantile(peers, 0.5));
    println!("| what | measured | aim |\n|---|---|---|");
    println!(
        "| create acknowledged to Running in a watch, median of {PODS} (p90) | {ours:.0} ms ({:.0} ms) | |",
        quantile(pods, 0.9)
    );
    println!("| `ctr run -d` of the same image, same containerd, median of {PODS} | {theirs:.0} ms | |");
    println!("| ratio | {:.2}x | <= 2x |", ours / theirs);
    println!(
        "| ConfigMap change acknowledged to the running pod's file, p50 / p99 of {CHANGES} | {:.1} / {:.1} ms | |",
        quantile(&changes, 0.5),
        quantile(&changes, 0.99)
    );
    for (name, resident, private, aim) in memory {
        println!(
            "| {name}, idle with one pod: resident / private | {resident:.1} / {private:.1} MiB | {aim} MiB |"
        );
    }
}
