//! Bad input of every kind: an error that names the thing, and nothing crashes, loops or is lost.

use std::time::Duration;

use anyhow::Context;
use bus::module::Account;
use serde_json::{Value, json};
use tests::cluster::{Cluster, eventually, programs};

use crate::support::{
    IDLE, acked_more, all_arrived, field_is, modules, pod, runs, sensor, shell, the_same, told,
};

/// Nothing may happen; so we look for a while. A hot loop would show as restarts or processor time.
const WATCH: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn bad_manifests_and_tokens_are_named() -> anyhow::Result<()> {
    let cluster = Cluster::new("bad").await?;
    cluster.up(&["edge-a"]).await?;
    manifests(&cluster).await?;
    images_and_nodes(&cluster).await?;
    tokens(&cluster).await?;
    eventually("all modules run and none was restarted", 10, async || {
        Ok(modules(&cluster)
            .await?
            .iter()
            .all(|(_, state, restarts, _)| state == "Running" && *restarts == 0))
    })
    .await?;
    cluster.done().await
}

async fn manifests(cluster: &Cluster) -> anyhow::Result<()> {
    let with = |change: fn(&mut Value)| {
        let mut pod = pod("bad", "edge-a", "true");
        change(&mut pod);
        pod.to_string()
    };
    let malformed: [(String, &[&str]); 8] = [
        ("{\"apiVersion\": \"v1\", ".to_owned(), &["error"]),
        ("kind: Pod\nmetadata: {name: bad}\n".to_owned(), &["apiVersion"]),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bad"}}).to_string(),
            &["spec.containers"],
        ),
        (with(|pod| pod["metadata"]["name"] = json!("Not_A_Name")), &["metadata.name", "Not_A_Name"]),
        (with(|pod| pod["spec"]["containers"][0]["image"] = json!(7)), &["image"]),
        (with(|pod| pod["spec"]["containers"][0]["name"] = json!("")), &["name"]),
        (
            with(|pod| pod["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "lots"}})),
            &["lots"],
        ),
        (
            with(|pod| {
                pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "nope", "mountPath": "/x"}])
            }),
            &["volumeMounts[0].name", "nope"],
        ),
    ];
    for (manifest, words) in malformed {
        let output = cluster.kubectl_with(&["create", "-f", "-"], &manifest).await?;
        anyhow::ensure!(!output.success, "taken: {manifest}");
        for word in words {
            anyhow::ensure!(
                output.stderr.contains(word),
                "no {word:?} in {:?} for {manifest}",
                output.stderr
            );
        }
    }

    let typo =
        with(|pod| pod["spec"]["containers"][0]["comand"] = json!(["x"])).replace("\"bad\"", "\"typo\"");
    let strict = cluster.kubectl_with(&["create", "--validate=strict", "-f", "-"], &typo).await?;
    anyhow::ensure!(!strict.success && strict.stderr.contains("comand"), "strict: {}", strict.stderr);
    let warned = cluster.kubectl_with(&["create", "--validate=warn", "-f", "-"], &typo).await?;
    anyhow::ensure!(warned.success && warned.stderr.contains("unknown field"), "warned: {}", warned.stderr);
    anyhow::ensure!(warned.stderr.contains("comand"), "the field is named: {}", warned.stderr);
    cluster.kubectl_ok(&["delete", "pod", "typo"]).await?;

    let unserved =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}).to_string();
    let output = cluster.kubectl_with(&["create", "-f", "-"], &unserved).await?;
    anyhow::ensure!(!output.success && output.stderr.contains("Deployment"), "{}", output.stderr);
    Ok(())
}

async fn images_and_nodes(cluster: &Cluster) -> anyhow::Result<()> {
    let mut never = pod("never", "edge-a", "true");
    never["spec"]["containers"][0]["image"] = json!("edgewire.local/absent:1");
    let mut pulled = pod("pulled", "edge-a", "true");
    pulled["spec"]["containers"][0] = json!({"name": "main", "image": "127.0.0.1:1/absent:1"});
    let nowhere = pod("nowhere", "no-such-node", "true");
    let mut unmatched = pod("unmatched", "", "true");
    unmatched["spec"]["nodeName"] = Value::Null;
    unmatched["spec"]["nodeSelector"] = json!({"colour": "blue"});
    for pod in [&never, &pulled, &nowhere, &unmatched] {
        cluster.apply(&pod.to_string()).await?;
    }
    field_is(cluster, "never", ".status.containerStatuses[0].state.waiting.reason", "ErrImageNeverPull")
        .await?;
    let said = told(cluster, &["ErrImageNeverPull", "Failed"], "never").await?;
    anyhow::ensure!(said.contains("edgewire.local/absent:1"), "the image is named: {said}");
    eventually("the image that nobody has is named", 60, async || {
        let waiting = &cluster.kubectl_json(&["get", "pod", "pulled"]).await?["status"]["containerStatuses"]
            [0]["state"]["waiting"];
        let reason = waiting["reason"].as_str().unwrap_or_default();
        let named = waiting["message"].as_str().is_some_and(|text| text.contains("127.0.0.1:1/absent:1"));
        Ok(["ErrImagePull", "ImagePullBackOff"].contains(&reason) && named)
    })
    .await?;
    let said = told(cluster, &["FailedScheduling"], "unmatched").await?;
    anyhow::ensure!(said.contains("0/1 nodes are available"), "{said}");
    field_is(cluster, "nowhere", ".status.phase", "Pending").await?;
    let logs = cluster.kubectl(&["logs", "nowhere"]).await?;
    anyhow::ensure!(
        !logs.success && logs.stderr.contains("no-such-node"),
        "the node is named: {}",
        logs.stderr
    );
    for (args, word) in [
        (vec!["logs", "absent"], "absent"),
        (vec!["exec", "absent", "--", "true"], "absent"),
        (vec!["logs", "never"], "never"),
        (vec!["exec", "never", "--", "true"], "never"),
        (vec!["logs", "never", "-c", "other"], "other"),
        (vec!["get", "node", "no-such-node"], "no-such-node"),
    ] {
        let output = cluster.kubectl(&args).await?;
        anyhow::ensure!(!output.success && output.stderr.contains(word), "{args:?}: {}", output.stderr);
    }
    cluster.kubectl_ok(&["delete", "pod", "never", "pulled", "unmatched"]).await?;
    cluster.kubectl_ok(&["delete", "pod", "nowhere", "--force", "--grace-period=0"]).await?;
    Ok(())
}

async fn tokens(cluster: &Cluster) -> anyhow::Result<()> {
    let edge = cluster.edge("edge-b")?;
    let brief = cluster.hub().token(1, 1).await?;
    eventually("a token's whole life is over", 20, async || {
        let list: Value =
            serde_json::from_str(&cluster.kubectl_ok(&["get", "--raw", "/edgewire/v1/tokens"]).await?)?;
        let tokens = list["tokens"].as_array().context("a list of tokens")?;
        Ok(tokens.iter().any(|token| token["expired"] == true))
    })
    .await?;
    for (token, word) in [(brief.as_str(), "expired"), ("rubbish", "ew1."), ("ew1.rubbish", "EW-JOIN-TOKEN")]
    {
        let output = edge.join_with(token).await?;
        let said = &output.stderr;
        anyhow::ensure!(
            !output.success && said.contains("EW-JOIN-TOKEN") && said.contains(word),
            "{token}: {said}"
        );
        anyhow::ensure!(said.contains("edgewire token create"), "what to do: {said}");
    }
    let once = cluster.hub().token(1, 600).await?;
    edge.join_with(&once).await?.ok()?;
    let output = cluster.edge("edge-c")?.join_with(&once).await?;
    let said = &output.stderr;
    anyhow::ensure!(
        !output.success && said.contains("EW-JOIN-TOKEN") && said.contains("used already"),
        "{said}"
    );
    Ok(())
}

/// A little of everything that is not what anybody expects.
fn rubbish() -> Vec<Vec<u8>> {
    let mut noise = vec![Vec::new(), b"\xc1\xff\x00\x80".to_vec(), b"hello".to_vec(), b"{\"n\": 1}".to_vec()];
    noise.push(schemas::encode(&json!({"unexpected": [1, 2, {"deep": null}]})));
    noise.push(schemas::encode(&"just text"));
    noise.push(schemas::encode(&u64::MAX));
    noise.push((0..4_096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect());
    noise.push(vec![0x91; 20_000]); // arrays in arrays in arrays
    noise.push(vec![0xdd, 0xff, 0xff, 0xff, 0xff]); // an array of four billion
    noise
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_on_any_subject_stops_nothing() -> anyhow::Result<()> {
    let cluster = Cluster::new("rubbish").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.apply(&sensor(&edge, 100).to_string()).await?;
    cluster.apply(&pod("steady", "edge-a", IDLE).to_string()).await?;
    let (sensing, steady) =
        (runs(&cluster, &edge, "demo", "sensor").await?, runs(&cluster, &edge, "default", "steady").await?);

    let bus = cluster.hub_bus(Account::Control).await?;
    let at_hub = [
        "ew.in.edge-a.state.ew.rep.containers.pod.default.steady.x",
        "ew.in.edge-a.state.ew.rep.sync.node.edge-a",
        "ew.in.edge-a.state.ew.rep.nonsense",
        "ew.in.edge-a.events.ew.evt.containers.Started",
        "ew.in.no-such-node.state.ew.rep.sync.node.no-such-node",
        "ew.in.edge-a.nolane.x",
        "ew.in.x",
        "ew.hb.edge-a",
        "ew.hb.no-such-node",
        "ew.req.edge-a.desired.list",
        "ew.req.edge-a.desired.get",
        "ew.req.no-such-node.desired.list",
        "ew.req.edge-a.no.such.verb",
        "ew.local.identity.enroll",
        "ew.local.identity.token.create",
        "ew.str.edge-a.nosession",
        // These cross the link.
        "ew.cmd.edge-a.containers.logs",
        "ew.cmd.edge-a.containers.exec",
        "ew.cmd.edge-a.containers.no-such-verb",
        "ew.cmd.edge-a._stream.nosession",
        "ew.cmd.edge-a.host.modules",
        // Stores, written past the API.
        "$KV.objects.=.pods.default.garbage",
        "$KV.objects.=.nodes.=.garbage",
        "$KV.objects.=.configmaps.default.garbage",
        "$KV.objects.garbage",
        "$KV.desired.edge-a.pods.default.garbage.u1",
        "$KV.desired.edge-a.garbage",
        "$KV.desired.garbage",
        "$KV.identity.token.garbage",
        "$KV.identity.garbage",
    ];
    for subject in at_hub {
        for bytes in rubbish() {
            let reply = bus.client().new_inbox();
            bus.client().publish_with_reply(subject, reply, bytes.into()).await?;
        }
    }
    bus.client().flush().await?;
    // And on the node's own server.
    let at_edge = [
        "ew.rep.containers.pod.default.steady.x",
        "ew.rep.nonsense",
        "ew.evt.containers.Started",
        "ew.local.credentials.issue",
        "ew.local.credentials.revoke",
        "ew.cmd.edge-a.containers.logs",
        "$KV.local.pods.default.garbage.u1",
        "$KV.local.garbage",
        "up.demo.temp.noise",
        "app.demo.noise",
    ];
    let (program, dir) = (programs::ours("edgewire"), edge.data_dir());
    for subject in at_edge {
        for payload in ["", "hello", "{\"n\": 1}", "\u{80}\u{7f}\u{1}"] {
            edge.exec(&[
                &program.to_string_lossy(),
                "pub",
                subject,
                payload,
                "--edge",
                &dir.to_string_lossy(),
            ])?;
        }
    }

    acked_more(&edge, 20).await?;
    all_arrived(&cluster, &edge, 60).await?;
    the_same(&edge, &[&sensing, &steady], "after the rubbish")?;
    let settled = modules(&cluster).await?;
    cluster.ready("edge-a", "True").await?;
    // Everything still works: up, down, and between.
    let mut after = pod("after", "edge-a", IDLE);
    after["spec"]["containers"].as_array_mut().unwrap().push(shell("second", IDLE));
    cluster.apply(&after.to_string()).await?;
    cluster.kubectl_ok(&["wait", "pod/after", "--for=condition=Ready", "--timeout=60s"]).await?;
    let said = cluster.kubectl_ok(&["exec", "after", "-c", "main", "--", "echo", "well"]).await?;
    anyhow::ensure!(said.trim() == "well");
    cluster.kubectl_ok(&["get", "pods,nodes,configmaps,events", "-A"]).await?;
    cluster.kubectl_ok(&["delete", "pod", "after"]).await?;
    field_is(&cluster, "steady", ".status.phase", "Running").await?;

    tokio::time::sleep(WATCH).await;
    let last = modules(&cluster).await?;
    anyhow::ensure!(settled.len() == last.len(), "modules went away: {settled:?}, then {last:?}");
    for (name, state, restarts, error) in &last {
        anyhow::ensure!(
            state == "Running" && *restarts == 0,
            "{name} is {state}, fell {restarts} times: {error}"
        );
    }
    // What could not be read is kept, with its reason.
    let dead = cluster.stored(Account::Control, "DEAD", "ew.dead.>").await?;
    anyhow::ensure!(!dead.is_empty(), "nothing was put aside");
    let mine = edge.agent_pid().await.map_or(0, |pid| pid);
    let busy = processor_seconds(mine)?;
    tokio::time::sleep(WATCH).await;
    let share = (processor_seconds(mine)? - busy) / WATCH.as_secs_f64();
    anyhow::ensure!(share < 0.5, "the agent uses {share:.2} of a processor when nothing happens");
    cluster.done().await
}

/// Processor time of a process so far.
fn processor_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').unwrap_or_default();
    let ticks: u64 =
        rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / 100.0)
}
