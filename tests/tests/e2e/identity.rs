//! Who is in and who is out: a node that is shut out stays out, and what runs on it runs on.

use std::path::Path;

use anyhow::Context;
use base64::Engine;
use tests::cluster::{Cluster, Edge, eventually};

use crate::support::{
    IDLE, acked_more, agent_serves, all_arrived, edgewire, pod, runs, sensor, the_same, told,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_out_and_its_pods_run_on() -> anyhow::Result<()> {
    let cluster = Cluster::new("revoke").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.apply(&sensor(&edge, 200).to_string()).await?;
    cluster.apply(&pod("steady", "edge-a", IDLE).to_string()).await?;
    let sensing = runs(&cluster, &edge, "demo", "sensor").await?;
    let steady = runs(&cluster, &edge, "default", "steady").await?;
    let server = edge.server_pid()?;

    edgewire(&cluster, &["node", "revoke", "edge-a"]).await?.ok()?;
    eventually("the node no longer hears the hub", 10, async || {
        let hosts = edgewire(&cluster, &["modules", "--json"]).await?.ok()?;
        let hosts: serde_json::Value = serde_json::from_str(&hosts)?;
        Ok(hosts
            .as_array()
            .is_some_and(|all| all.iter().any(|host| host["node"] == "edge-a" && host["answers"] == false)))
    })
    .await?;
    cluster.ready("edge-a", "Unknown").await?;
    let listed = edgewire(&cluster, &["node", "ls"]).await?.ok()?;
    anyhow::ensure!(listed.contains("shut out"), "{listed}");
    eventually("the node says why", 60, async || {
        Ok(std::fs::read_to_string(edge.log())?.contains("EW-LINK-REFUSED"))
    })
    .await?;
    anyhow::ensure!(edge.server_pid()? == server, "the node's server was restarted for nothing");

    // Nothing that the node does by itself brings it back.
    edge.kill9_leaf().await?;
    edge.kill9_agent().await?;
    edge.start().await?;
    agent_serves(&edge).await?;
    acked_more(&edge, 10).await?;
    the_same(&edge, &[&sensing, &steady], "while the node is shut out")?;
    anyhow::ensure!(cluster.node_ready("edge-a").await? == "Unknown");
    let token = cluster.hub().token(5, 600).await?;
    for name in ["edge-a", "edge-z"] {
        let said = edge.join_as(&token, &["--name", name]).await?;
        anyhow::ensure!(!said.success && said.stderr.contains("EW-NODE-REVOKED"), "{name}: {}", said.stderr);
    }

    // A person may let the machine in again: with new keys, and nothing was lost meanwhile.
    edge.join_as(&token, &["--name", "edge-a", "--new-keys"]).await?.ok()?;
    cluster.ready("edge-a", "True").await?;
    all_arrived(&cluster, &edge, 60).await?;
    the_same(&edge, &[&sensing, &steady], "after it was let in again")?;
    told(&cluster, &["LinkRefused"], "edge-a").await?;
    let nobody = edgewire(&cluster, &["node", "revoke", "nobody"]).await?;
    anyhow::ensure!(!nobody.success && nobody.stderr.contains("EW-NODE-UNKNOWN"), "{}", nobody.stderr);
    cluster.done().await
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_that_join_at_once_with_one_token_all_get_in() -> anyhow::Result<()> {
    let cluster = Cluster::new("together").await?;
    cluster.hub().start().await?;
    let token = cluster.hub().token(8, 600).await?;
    let edges: Vec<_> = (0..8).map(|n| cluster.edge(&format!("edge-{n}"))).collect::<anyhow::Result<_>>()?;
    // A hub that is not the one of the token is not told the token's secret: its authority is another.
    let stranger = altered(&token, "ca_sha256", &"00".repeat(32))?;
    let wrong = edges.first().context("a machine")?.join_with(&stranger).await?;
    anyhow::ensure!(!wrong.success && wrong.stderr.contains("token's fingerprint"), "{}", wrong.stderr);
    let joins = futures::future::try_join_all(edges.iter().map(|edge| edge.join_with(&token)));
    for output in joins.await? {
        output.ok()?;
    }
    let listed = edgewire(&cluster, &["node", "ls"]).await?.ok()?;
    let missing: Vec<&str> =
        edges.iter().map(|edge| edge.name()).filter(|name| !listed.contains(name)).collect();
    anyhow::ensure!(missing.is_empty(), "{missing:?} are not in:\n{listed}");
    // Each spent one use, and no more.
    let spent = cluster.edge("edge-8")?.join_with(&token).await?;
    anyhow::ensure!(!spent.success && spent.stderr.contains("used already"), "{}", spent.stderr);
    cluster.done().await
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_renewed_under_a_running_node_and_the_old_ones_open_nothing() -> anyhow::Result<()> {
    let cluster = Cluster::new("rotate").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.apply(&sensor(&edge, 50).to_string()).await?;
    let sensing = runs(&cluster, &edge, "demo", "sensor").await?;
    let dir = edge.data_dir().join("hub");
    let stolen = edge.data_dir().join("stolen.creds");
    for round in 1..=2 {
        std::fs::copy(dir.join("control.creds"), &stolen)?;
        opens(&cluster, &edge, &stolen).await.context("the present keys")?;
        let said = edgewire(&cluster, &["node", "rotate", "edge-a"]).await?.ok()?;
        anyhow::ensure!(said.contains("has new keys"), "{said}");
        anyhow::ensure!(
            opens(&cluster, &edge, &stolen).await.is_err(),
            "round {round}: a copy of the old keys still opens"
        );
        opens(&cluster, &edge, &dir.join("control.creds")).await.context("the new keys")?;
        acked_more(&edge, 20).await?;
        all_arrived(&cluster, &edge, 60).await?;
    }
    told(&cluster, &["KeysRenewed"], "edge-a").await?;
    let of_node = ["audit", "--json", "--user", "edge-a", "--verb", "node.renew"];
    eventually("both renewals are on record", 30, async || {
        let records: serde_json::Value = serde_json::from_str(&edgewire(&cluster, &of_node).await?.ok()?)?;
        Ok(records.as_array().is_some_and(|all| all.len() == 2))
    })
    .await?;
    the_same(&edge, &[&sensing], "while its node changed keys")?;

    // The machine starts again with what it has; nobody who is away is waited for.
    edge.kill9_all().await?;
    edge.start().await?;
    agent_serves(&edge).await?;
    cluster.heartbeats("edge-a", 2).await?;
    acked_more(&edge, 5).await?;
    all_arrived(&cluster, &edge, 60).await?;
    edge.cut()?;
    cluster.ready("edge-a", "Unknown").await?;
    let away = edgewire(&cluster, &["node", "rotate", "edge-a"]).await?;
    anyhow::ensure!(!away.success && away.stderr.contains("EW-NODE-UNREACHABLE"), "{}", away.stderr);
    edge.heal()?;
    cluster.ready("edge-a", "True").await?;
    the_same(&edge, &[&sensing], "at the end")?;
    cluster.done().await
}

/// Does the hub's bus let these credentials in?
async fn opens(cluster: &Cluster, edge: &Edge, creds: &Path) -> anyhow::Result<()> {
    let options = async_nats::ConnectOptions::with_credentials_file(creds).await?;
    let options = options.add_root_certificates(edge.data_dir().join("hub/ca.crt")).require_tls(true);
    let url = format!("tls://{}:{}", cluster.site().hub_address(), cluster.site().ports.bus);
    options.connect(url).await.map(drop).context("the hub's bus")
}

/// Speaks NATS by hand, as the pod that it is: publishes into another namespace.
const KNOCK: &str = r#"u=${NATS_URL#nats://}; login=${u%@*}; at=${u#*@}
{ printf 'CONNECT {"verbose":false,"user":"%s","pass":"%s"}\r\n' "${login%%:*}" "${login#*:}"
  printf 'PUB app.other.x 1\r\nx\r\nPING\r\n'; sleep 2; } | nc "${at%%:*}" "${at##*:}"
trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_and_what_was_refused_is_on_record() -> anyhow::Result<()> {
    let cluster = Cluster::new("audit").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.apply(&pod("steady", "edge-a", IDLE).to_string()).await?;
    runs(&cluster, &edge, "default", "steady").await?;
    cluster.kubectl_ok(&["exec", "steady", "--", "true"]).await?;
    let stranger = cluster.kubectl(&["--token=stranger", "get", "secrets"]).await?;
    anyhow::ensure!(!stranger.success, "a stranger was let in");
    let forged = altered(&cluster.hub().token(1, 600).await?, "secret", "guessed")?;
    for _ in 0..5 {
        let refused = cluster.edge("edge-b")?.join_with(&forged).await?;
        anyhow::ensure!(!refused.success, "a forged token was taken");
    }

    // What is refused on a node that is cut off is kept there.
    cluster.apply(&pod("knocker", "edge-a", KNOCK).to_string()).await?;
    let knocker = runs(&cluster, &edge, "default", "knocker").await?;
    edge.cut()?;
    cluster.ready("edge-a", "Unknown").await?;
    edge.signal(knocker.pid, nix::sys::signal::Signal::SIGKILL)?; // started again, it knocks again
    let again = || Ok(edge.container_of("default", "knocker")?.is_some_and(|now| now.id != knocker.id));
    eventually("the knocker was started again", 60, async || again()).await?;
    edge.heal()?;

    let user = format!("pod-{}", knocker.uid);
    let want = [
        ("hub", "edgewire-admin", "create", "pods/default/steady", false),
        ("hub", "edgewire-admin", "exec", "pods/default/steady", false),
        ("hub", "edgewire-admin", "token.create", "tokens/", false),
        ("hub", "", "join", "nodes/edge-a", false),
        ("hub", "", "join", "nodes", true),
        ("hub", "", "get", "secrets/default", true),
        ("edge-a", user.as_str(), "publish", "app.other.x", true),
    ];
    for (node, user, verb, object, refused) in want {
        eventually(&format!("{verb} {object} by {user:?} on {node} is on record"), 60, async || {
            let records = edgewire(&cluster, &["audit", "--json"]).await?.ok()?;
            let records: Vec<serde_json::Value> = serde_json::from_str(&records)?;
            Ok(records.iter().any(|record| {
                record["node"] == node
                    && record["user"] == user
                    && record["verb"] == verb
                    && record["object"].as_str().is_some_and(|have| have.starts_with(object))
                    && (record["code"].as_u64() >= Some(400)) == refused
            }))
        })
        .await?;
    }
    let refused = edgewire(&cluster, &["audit", "--refused", "--verb", "join"]).await?.ok()?;
    anyhow::ensure!(refused.lines().count() == 2, "five knocks at once are one record:\n{refused}");
    let none = edgewire(&cluster, &["audit", "--node", "nobody"]).await?;
    anyhow::ensure!(none.success && none.stderr.contains("nothing recorded"), "{}", none.stderr);
    cluster.done().await
}

/// That token with another value in one of its fields.
fn altered(token: &str, field: &str, value: &str) -> anyhow::Result<String> {
    let url_safe = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let body = token.strip_prefix("ew1.").context("a token begins with ew1.")?;
    let mut body: serde_json::Value = serde_json::from_slice(&url_safe.decode(body)?)?;
    body[field] = value.into();
    Ok(format!("ew1.{}", url_safe.encode(body.to_string())))
}
