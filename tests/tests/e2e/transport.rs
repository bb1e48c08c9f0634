//! Ways to the hub: WebSocket where the port for leafs is shut, a proxy where all is, and back again when it opens.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;
use tests::cluster::{Cluster, Edge, Gateway, eventually, programs};

use crate::support::{IDLE, acked_more, agent_serves, all_arrived, pod, runs, sensor, the_same, told};

const WSS_PORT: u16 = 443;
/// As it would be typed, and what it stands for.
const LOGIN: [&str; 2] = ["site:hush%40hush", "site:hush@hush"];
const PASSWORD: &str = "hush@hush";

/// The hub, once it is started, also listens for WebSocket.
fn with_wss(cluster: &Cluster) {
    let wss = format!("{}:{WSS_PORT}", cluster.site().hub_address());
    cluster.hub().set_flags(&["--leaf-wss", &wss]);
}

/// The ports of the hub to which the node's server has connections.
fn linked_to(edge: &Edge) -> anyhow::Result<Vec<u16>> {
    let server = format!("pid={},", edge.server_pid()?);
    let shown = edge.exec(&["ss", "-Htnp", "state", "established"])?;
    let ours = shown.lines().filter(|line| line.contains(&server));
    let port = |line: &str| line.split_whitespace().nth(3)?.rsplit(':').next()?.parse().ok();
    let mut ports: Vec<u16> = ours.filter_map(port).filter(|port| *port < 30_000).collect();
    ports.sort_unstable();
    Ok(ports)
}

fn private(path: &Path) -> anyhow::Result<String> {
    let mode = std::fs::metadata(path)?.permissions().mode() & 0o777;
    anyhow::ensure!(mode == 0o600, "{} has mode {mode:o}", path.display());
    Ok(std::fs::read_to_string(path)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_only_a_proxy_lets_out_joins_and_runs_pods() -> anyhow::Result<()> {
    let cluster = Cluster::new("proxy").await?;
    with_wss(&cluster);
    cluster.hub().start().await?;
    let (address, ports) = (cluster.site().hub_address(), cluster.site().ports);
    let edge = cluster.edge("edge-a")?;
    edge.shut(&[ports.api, ports.bus, ports.leaf, WSS_PORT])?;
    let gateway = Gateway::start(address.into(), LOGIN[1], &[ports.api, WSS_PORT]).await?;
    let token = cluster.hub().token(1, 600).await?;
    let through = |login: &str| format!("http://{login}@{}", gateway.address());
    let join = async |proxy: &str| edge.join_as(&token, &["--name", "edge-a", "--proxy", proxy]).await;

    // What `edgewire check` tells of it is what joining then shows.
    let proxy = through(LOGIN[0]);
    let dir = edge.data_dir();
    let program = programs::ours("edgewire");
    let (program, kept) = (program.to_string_lossy(), dir.to_string_lossy());
    let line = format!(
        "{program} check {token} --json --data-dir {kept} --pod-cidr 10.85.1.0/24 --proxy {proxy} || true"
    );
    let findings: Value = serde_json::from_str(&edge.exec(&["sh", "-c", &line])?)?;
    let result = |check: &str| {
        let of = findings.as_array().into_iter().flatten().find(|finding| finding["check"] == check);
        of.and_then(|finding| finding["result"].as_str()).unwrap_or("absent").to_owned()
    };
    for (check, want) in [
        ("api", "ok"),
        ("api tls", "ok"),
        ("leaf", "warn"),
        ("leaf wss", "ok"),
        ("leaf wss tls", "ok"),
        ("proxy", "ok"),
    ] {
        anyhow::ensure!(result(check) == want, "{check}: {findings:#}");
    }

    let said = join(&through("site:wrong")).await?;
    anyhow::ensure!(!said.success && said.stderr.contains("EW-PROXY-LOGIN"), "{}", said.stderr);
    anyhow::ensure!(!said.stderr.contains("wrong"), "it shows the password: {}", said.stderr);
    let said = join(&proxy).await?.ok()?;
    let want = format!("the link will go to wss://{address}:{WSS_PORT} through http://{}", gateway.address());
    anyhow::ensure!(said.contains(&want), "{said}");
    edge.start().await?;
    cluster.ready("edge-a", "True").await?;
    cluster.apply(&pod("steady", "edge-a", IDLE).to_string()).await?;
    let steady = runs(&cluster, &edge, "default", "steady").await?;
    cluster.kubectl_ok(&["exec", "steady", "--", "true"]).await?;
    let served = gateway.served();
    let to = |port: u16| served.tunnels.iter().filter(|to| **to == format!("{address}:{port}")).count();
    anyhow::ensure!(to(ports.api) >= 2 && to(WSS_PORT) >= 3 && to(ports.leaf) == 0, "{served:?}");
    anyhow::ensure!(linked_to(&edge)?.is_empty(), "past the proxy");

    // The password is in two files, which are root's alone, and nowhere else.
    anyhow::ensure!(private(&dir.join("hub/membership.json"))?.contains(PASSWORD));
    anyhow::ensure!(private(&dir.join("nats/nats-server.conf"))?.contains(PASSWORD));
    for log in [edge.log(), dir.join("nats/nats-server.log")] {
        let text = std::fs::read_to_string(&log)?;
        anyhow::ensure!(!text.contains("hush"), "{} shows the password", log.display());
    }
    for pid in [i32::try_from(edge.agent_pid().await.context("the agent runs")?)?, edge.server_pid()?] {
        let line = std::fs::read(format!("/proc/{pid}/cmdline"))?;
        anyhow::ensure!(!String::from_utf8_lossy(&line).contains("hush"), "`ps` shows the password");
    }

    // The link dies in silence, between the node and its proxy: it is noticed and made anew.
    edge.cut()?;
    cluster.ready("edge-a", "Unknown").await?;
    edge.heal()?;
    cluster.ready("edge-a", "True").await?;
    // Nobody is told the way again: not by the agent's next life, nor by a boot.
    edge.kill9_all().await?;
    edge.start().await?;
    cluster.apply(&pod("later", "edge-a", IDLE).to_string()).await?;
    runs(&cluster, &edge, "default", "later").await?;
    the_same(&edge, &[&steady], "behind the proxy")?;
    cluster.done().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_link_goes_over_another_way_and_back() -> anyhow::Result<()> {
    let cluster = Cluster::new("ways").await?;
    with_wss(&cluster);
    let edge = cluster.edge_with("edge-a", &["--link-return-s", "5"])?;
    cluster.up(&["edge-a"]).await?;
    let leaf = cluster.site().ports.leaf;
    cluster.apply(&sensor(&edge, 100).to_string()).await?;
    let sensing = runs(&cluster, &edge, "demo", "sensor").await?;
    let server = edge.server_pid()?;
    anyhow::ensure!(linked_to(&edge)? == [leaf, leaf], "the better way first: {:?}", linked_to(&edge)?);

    for round in 1..=2 {
        edge.shut(&[leaf])?;
        eventually(
            "the link goes over WebSocket",
            60,
            async || Ok(linked_to(&edge)? == [WSS_PORT, WSS_PORT]),
        )
        .await
        .with_context(|| format!("round {round}"))?;
        acked_more(&edge, 10).await?;
        all_arrived(&cluster, &edge, 30).await?;
        cluster.ready("edge-a", "True").await?;
        // The agent's next life finds the link as it is.
        edge.kill9_agent().await?;
        edge.start().await?;
        agent_serves(&edge).await?;
        anyhow::ensure!(linked_to(&edge)? == [WSS_PORT, WSS_PORT], "the agent's start moved the link");
        edge.shut(&[])?;
        eventually("the link is back", 90, async || Ok(linked_to(&edge)? == [leaf, leaf]))
            .await
            .with_context(|| format!("round {round}"))?;
    }
    let told = told(&cluster, &["LinkMoved"], "edge-a").await?;
    anyhow::ensure!(told.contains("the link goes over"), "{told}");
    all_arrived(&cluster, &edge, 60).await?;
    the_same(&edge, &[&sensing], "while its link went other ways")?;
    anyhow::ensure!(edge.server_pid()? == server, "the node's server was started anew");
    cluster.done().await
}
