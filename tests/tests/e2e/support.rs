//! What the subjects share: facts to wait for. Small pods, the sensor and its list are `tests::cluster`'s.

use std::time::Duration;

use anyhow::Context;
use async_nats::{Client, ConnectOptions, jetstream};
use bus::module::Account;
use schemas::subject;
use serde_json::Value;
pub use tests::cluster::inside;
use tests::cluster::judge::Running;
pub use tests::cluster::pods::{BUSYBOX, IDLE, pod, shell};
pub use tests::cluster::readings::{acked, acked_more, all_arrived, sensor};
use tests::cluster::{Cluster, Edge, Output, eventually, programs};

/// A connection that takes longer than this is not made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Waits until the hub says that the pod runs; gives its container as `ctr` sees it.
pub async fn runs(cluster: &Cluster, edge: &Edge, namespace: &str, pod: &str) -> anyhow::Result<Running> {
    let (name, of) = (format!("pod/{pod}"), format!("--namespace={namespace}"));
    cluster.kubectl_ok(&["wait", &of, &name, "--for=condition=Ready", "--timeout=60s"]).await?;
    container(edge, namespace, pod).await
}

/// Waits until `ctr` shows exactly one container of the pod.
pub async fn container(edge: &Edge, namespace: &str, pod: &str) -> anyhow::Result<Running> {
    eventually(&format!("{namespace}/{pod} runs on {}", edge.name()), 60, async || {
        edge.container_of(namespace, pod)
    })
    .await
}

/// Waits until `ctr` shows no container of the pod.
pub async fn gone(edge: &Edge, namespace: &str, pod: &str) -> anyhow::Result<()> {
    eventually(&format!("nothing of {namespace}/{pod} runs on {}", edge.name()), 60, async || {
        Ok(!edge.running()?.iter().any(|running| running.namespace == namespace && running.pod == pod))
    })
    .await
}

/// Fails unless each of these containers runs as it did: the same ID, process and start.
pub fn the_same(edge: &Edge, before: &[&Running], when: &str) -> anyhow::Result<()> {
    let now = edge.running()?;
    for running in before {
        let same = now.contains(running);
        anyhow::ensure!(same, "{when}: {running:?} no longer runs as it did; now: {now:#?}");
    }
    Ok(())
}

/// A field of a pod at the hub, by jsonpath without the braces.
pub async fn field(cluster: &Cluster, pod: &str, path: &str) -> anyhow::Result<String> {
    cluster.kubectl_ok(&["get", "pod", pod, "-o", &format!("jsonpath={{{path}}}")]).await
}

/// Waits for a field of a pod in namespace `default`.
pub async fn field_is(cluster: &Cluster, pod: &str, path: &str, want: &str) -> anyhow::Result<()> {
    let last = std::cell::RefCell::new(String::new());
    let what = format!("{path} of {pod} is {want:?}");
    let found = eventually(&what, 60, async || {
        let now = field(cluster, pod, path).await?;
        let settled = now == want;
        last.replace(now);
        Ok(settled)
    });
    found.await.with_context(|| format!("it is {:?}", last.borrow()))
}

/// The hub's Events of that reason about that object, as their messages.
pub async fn events(cluster: &Cluster, reason: &str, about: &str) -> anyhow::Result<Vec<String>> {
    let list = cluster.kubectl_json(&["get", "events", "-A"]).await?;
    let items = list["items"].as_array().context("events are a list")?.iter();
    let of = items.filter(|event| event["reason"] == reason && event["involvedObject"]["name"] == about);
    Ok(of.map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect())
}

/// Waits for an Event of one of these reasons; gives its message.
pub async fn told(cluster: &Cluster, reasons: &[&str], about: &str) -> anyhow::Result<String> {
    eventually(&format!("an Event of {reasons:?} about {about}"), 60, async || {
        for reason in reasons {
            if let Some(message) = events(cluster, reason, about).await?.pop() {
                return Ok(Some(message));
            }
        }
        Ok(None)
    })
    .await
}

/// Runs `edgewire` at the hub.
pub async fn edgewire(cluster: &Cluster, args: &[&str]) -> anyhow::Result<Output> {
    let mut command = tokio::process::Command::new(programs::ours("edgewire"));
    command.args(args).arg("--kubeconfig").arg(&cluster.site().kubeconfig);
    finish(command, 30).await
}

/// Runs a program to its end.
pub async fn finish(mut command: tokio::process::Command, timeout_seconds: u64) -> anyhow::Result<Output> {
    let call = format!("{:?}", command.as_std());
    let run = command.stdin(std::process::Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(timeout_seconds), run).await;
    let output = output.with_context(|| format!("`{call}` does not end"))??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Output {
        call,
        success: output.status.success(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    })
}

/// Letters that no compression makes fewer: a link compresses.
pub fn padding(seed: u64, count: usize) -> String {
    let mut state = seed + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'0' + (state >> 58) as u8)
    };
    (0..count).map(|_| next()).collect()
}

/// A raw client with the node's own credentials at the hub's bus, as who has the machine would use them.
pub async fn as_node(cluster: &Cluster, edge: &Edge, account: Account) -> anyhow::Result<Client> {
    let dir = edge.data_dir().join("hub");
    let creds = dir.join(format!("{}.creds", account.as_str().to_lowercase()));
    let client = ConnectOptions::with_credentials_file(creds)
        .await?
        .add_root_certificates(dir.join("ca.crt"))
        .require_tls(true)
        .custom_inbox_prefix(subject::inbox(edge.name()))
        .connection_timeout(CONNECT_TIMEOUT);
    let url = format!("tls://{}:{}", cluster.site().hub_address(), cluster.site().ports.bus);
    client.connect(url).await.context("the node's own credentials")
}

/// Publishes so many messages of 1 kB and waits for each to be acknowledged: their sequences.
pub async fn publish(js: &jetstream::Context, subject: &str, count: u64) -> anyhow::Result<Vec<u64>> {
    let mut sequences = Vec::new();
    for n in 0..count {
        let body = format!("{n} {}", "x".repeat(1_000));
        sequences.push(js.publish(subject.to_owned(), body.into()).await?.await?.sequence);
    }
    Ok(sequences)
}

/// What `edgewire loss` says of a stream of the node.
pub async fn loss_of(cluster: &Cluster, node: &str, stream: &str) -> anyhow::Result<Option<Value>> {
    let report = edgewire(cluster, &["loss", "--node", node, "--json"]).await?.ok()?;
    let report: Value = serde_json::from_str(&report)?;
    let rows = report["streams"].as_array().context("rows")?;
    Ok(rows.iter().find(|row| row["stream"] == stream).cloned())
}

/// Every module of hub and nodes: `node/module`, state, restarts, last error.
pub async fn modules(cluster: &Cluster) -> anyhow::Result<Vec<(String, String, u64, String)>> {
    let hosts: Value = serde_json::from_str(&edgewire(cluster, &["modules", "--json"]).await?.ok()?)?;
    let mut all = Vec::new();
    for host in hosts.as_array().context("hosts")? {
        anyhow::ensure!(host["answers"] == true, "{host}");
        for module in host["modules"].as_array().context("modules")? {
            let text = |of: &Value, field: &str| of[field].as_str().unwrap_or_default().to_owned();
            let name = format!("{}/{}", text(host, "node"), text(module, "module"));
            let restarts = module["restarts"].as_u64().context("restarts")?;
            all.push((name, text(module, "state"), restarts, text(module, "last_error")));
        }
    }
    Ok(all)
}

/// Waits until the node's own agent serves, whatever the link: its module `containers` runs.
pub async fn agent_serves(edge: &Edge) -> anyhow::Result<()> {
    let (program, dir) = (programs::ours("edgewire"), edge.data_dir());
    let args = [&program.to_string_lossy(), "modules", "--json", "--edge", &*dir.to_string_lossy()];
    eventually(&format!("the agent of {} serves", edge.name()), 60, async || {
        let hosts: Value = serde_json::from_str(&edge.exec(&args)?)?;
        let modules = hosts[0]["modules"].as_array().context("no answer")?.clone();
        Ok(!modules.is_empty() && modules.iter().all(|module| module["state"] == "Running"))
    })
    .await
}
