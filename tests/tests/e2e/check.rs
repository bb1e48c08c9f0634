//! `edgewire check` tells of a machine what joining and running on it then show to be so.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::Value;
use tests::cluster::site::MARK_ENV;
use tests::cluster::{Cluster, Edge, eventually, programs};
use tokio::process::Command;

/// A check that takes longer is not worth waiting for.
const CHECK_MAX: Duration = Duration::from_secs(10);

/// What it found, by name and result; and its exit code.
struct Checked {
    code: Option<i32>,
    findings: Vec<Value>,
}

impl Checked {
    fn result(&self, check: &str) -> &str {
        let found = self.findings.iter().find(|finding| finding["check"] == check);
        found.map_or("absent", |finding| finding["result"].as_str().unwrap())
    }

    fn found(&self, check: &str) -> String {
        let of = |finding: &&Value| finding["check"] == check;
        self.findings.iter().filter(of).map(|finding| format!("{} ", finding["found"])).collect()
    }
}

async fn check(cluster: &Cluster, edge: &Edge, hub: &str) -> anyhow::Result<Checked> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", edge.namespace().display())).arg("--");
    command.arg(programs::ours("edgewire")).args(["check", hub, "--json", "--pod-cidr", "10.85.1.0/24"]);
    command.arg("--data-dir").arg(edge.data_dir());
    command.env(MARK_ENV, cluster.site().mark(edge.name())).kill_on_drop(true);
    command.env("PATH", programs::path()).env("EDGEWIRE_NATS_SERVER", programs::nats_server());
    let begun = Instant::now();
    let output = command.output().await?;
    let took = begun.elapsed();
    anyhow::ensure!(took < CHECK_MAX, "it took {took:?}");
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    for finding in &findings {
        let well = finding["result"] == "ok";
        anyhow::ensure!(well == finding["cure"].is_null(), "a cure is for what is not well: {finding}");
    }
    let fails = findings.iter().any(|finding| finding["result"] == "fail");
    anyhow::ensure!(output.status.code() == Some(i32::from(fails)), "{:?} with {findings:?}", output.status);
    Ok(Checked { code: output.status.code(), findings })
}

/// The token as a hub with other keys would have made it.
fn of_another_hub(token: &str) -> anyhow::Result<String> {
    let body = token.strip_prefix("ew1.").unwrap();
    let mut json: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(body)?)?;
    json["ca_sha256"] = "ab".repeat(32).into();
    Ok(format!("ew1.{}", BASE64_URL_SAFE_NO_PAD.encode(json.to_string())))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_tells_what_joining_shows() -> anyhow::Result<()> {
    let cluster = Cluster::new("check").await?;
    cluster.hub().start().await?;
    let edge = cluster.edge("edge-a")?;
    let token = cluster.hub().token(1, 600).await?;

    let before = check(&cluster, &edge, &token).await?;
    anyhow::ensure!(before.code == Some(0), "{:?}", before.findings);
    for name in ["api", "api tls", "leaf", "leaf tls", "mtu", "kernel", "cgroup", "bridge", "pod network"] {
        anyhow::ensure!(before.result(name) == "ok", "{name}: {:?}", before.findings);
    }
    anyhow::ensure!(
        before.found("clock").contains("the hub's, within a second"),
        "{}",
        before.found("clock")
    );
    anyhow::ensure!(before.found("bridge").contains("is free"), "{}", before.found("bridge"));
    let made = std::fs::read_dir(edge.data_dir()).map_or(0, Iterator::count);
    anyhow::ensure!(made == 0, "it left {made} things in the data directory");

    let other = check(&cluster, &edge, &of_another_hub(&token)?).await?;
    anyhow::ensure!(other.result("api tls") == "fail" && other.result("api") == "ok", "{:?}", other.findings);
    anyhow::ensure!(other.found("api tls").contains("edgewire authority"), "{}", other.found("api tls"));

    edge.cut()?;
    let cut = check(&cluster, &edge, &token).await?;
    for name in ["api", "leaf"] {
        anyhow::ensure!(cut.result(name) == "fail", "{name}: {:?}", cut.findings);
    }
    anyhow::ensure!(cut.result("api tls") == "absent");
    edge.heal()?;

    // The token was shown to nobody: it is still good for its one use.
    edge.join_with(&token).await?.ok()?;
    edge.start().await?;
    cluster.ready("edge-a", "True").await?;
    eventually("the check knows its own node", 20, async || {
        let after = check(&cluster, &edge, &token).await?;
        let known = after.found("bus port").contains("this node's own nats-server");
        Ok(known && after.found("bridge").contains("a node runs here") && after.code == Some(0))
    })
    .await?;
    cluster.done().await
}
