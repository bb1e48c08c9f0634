//! MQTT on a node: what paho clients see of it, what it survives, and what a client of one namespace gains over another's.

use std::sync::Arc;

use anyhow::Context;
use bus::module::Account;
use futures::StreamExt;
use serde_json::{Value, json};
use tests::cluster::paho::{self, Login, Paho};
use tests::cluster::{Cluster, Edge, eventually, programs};

use crate::support::{IDLE, agent_serves, inside, pod, runs, the_same, told};

/// A pod's variable, asked in its own shell.
async fn variable(cluster: &Cluster, namespace: &str, pod: &str, name: &str) -> anyhow::Result<String> {
    let line = format!("echo ${{{name}-unset}}");
    let said = cluster.kubectl_ok(&["exec", "-n", namespace, pod, "--", "sh", "-c", &line]).await?;
    Ok(said.trim().to_owned())
}

async fn idle(cluster: &Cluster, namespace: &str, name: &str, more: &Value) -> anyhow::Result<()> {
    let mut pod = pod(name, "edge-a", IDLE);
    pod["metadata"]["namespace"] = json!(namespace);
    for (key, value) in more.as_object().into_iter().flatten() {
        match key.as_str() {
            "annotations" => pod["metadata"]["annotations"] = value.clone(),
            _ => pod["spec"]["containers"][0][key] = value.clone(),
        }
    }
    cluster.apply(&pod.to_string()).await
}

/// `edgewire` on the node itself, which needs no hub.
pub fn on_node(edge: &Edge, args: &[&str]) -> anyhow::Result<String> {
    let (program, dir) = (programs::ours("edgewire"), edge.data_dir());
    let (program, dir) = (program.to_string_lossy(), dir.to_string_lossy());
    edge.exec(&[&[&*program], args, &["--edge", &*dir]].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn mqtt_clients_are_served_offline_and_after_a_kill() -> anyhow::Result<()> {
    let cluster = Cluster::new("mqtt").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.kubectl_ok(&["create", "namespace", "demo"]).await?;
    idle(&cluster, "demo", "talker", &json!({})).await?;
    let own = json!({"env": [{"name": "NATS_URL", "value": "mine"}, {"name": "POD_NAME", "value": "me"}]});
    idle(&cluster, "demo", "stubborn", &own).await?;
    idle(&cluster, "demo", "silent", &json!({"annotations": {"edgewire.io/bus": "none"}})).await?;
    runs(&cluster, &edge, "demo", "talker").await?;
    what_a_container_is_told(&cluster, &edge).await?;

    let url = variable(&cluster, "demo", "talker", "MQTT_URL").await?;
    let login = Login::parse(&url)?;
    let (example, wheel) =
        (programs::root().join("examples/python/mqtt.py"), format!("PYTHONPATH={}", paho::wheel().display()));
    let said = edge.exec(&[
        "env",
        &wheel,
        &format!("MQTT_URL={url}"),
        "POD_NAMESPACE=demo",
        "timeout",
        "30",
        "python3",
        &example.to_string_lossy(),
    ])?;
    anyhow::ensure!(said.trim() == "app/demo/hello hello by MQTT", "{said}");
    let mut paho = Paho::start(&edge)?;
    for client in ["a", "b"] {
        paho.connect(client, &login, json!({})).await?;
    }
    anyhow::ensure!(paho.subscribe("b", "local/demo/#", 2).await?, "its own namespace with a `#`");
    for qos in [0, 1, 2] {
        let payload = format!("qos {qos}");
        paho.publish("a", "local/demo/line//1", &payload, qos).await?;
        let heard = paho.hears("b", &payload).await?;
        anyhow::ensure!(heard["topic"] == "local/demo/line//1" && heard["qos"] == qos, "{heard}");
    }
    retained_and_will(&mut paho, &login).await?;
    both_ways(&cluster, &edge, &mut paho).await?;
    refusals(&mut paho, &login).await?;

    // What is entrusted to the node at QoS 1 and 2 stays through a cut link and a killed server, in order and once.
    paho.connect("sleeper", &login, json!({"clean": false})).await?;
    anyhow::ensure!(paho.subscribe("sleeper", "app/demo/kept/+", 2).await?);
    paho.order("sleeper", "disconnect", json!({})).await?;
    paho.wait("sleeper", "its end", |event| event["event"] == "disconnected").await?;
    edge.cut()?;
    for n in 0..20 {
        paho.publish("a", "app/demo/kept/1", &format!("kept {n}"), 1 + n % 2).await?;
    }
    edge.kill9_leaf().await?;
    paho.wait("a", "its end", |event| event["event"] == "disconnected").await?;
    paho.wait("a", "being back", |event| event["event"] == "connected").await?;
    let back = paho.connect("sleeper", &login, json!({"clean": false})).await?;
    anyhow::ensure!(back["session"] == true, "its session is gone: {back}");
    paho.hears("sleeper", "kept 19").await?;
    let mut others: Vec<String> = paho.heard("sleeper").into_iter().map(|(_, payload)| payload).collect();
    others.push("kept 19".to_owned());
    // Each quality of service has its own order (MQTT 3.1.1, section 4.6): one needs more words than the other.
    for qos in [1, 2] {
        let expected: Vec<String> =
            (0..20).filter(|n| 1 + n % 2 == qos).map(|n| format!("kept {n}")).collect();
        let came: Vec<&String> = others.iter().filter(|payload| expected.contains(payload)).collect();
        anyhow::ensure!(came.iter().eq(&expected.iter().collect::<Vec<_>>()), "QoS {qos}: {came:?}");
    }
    anyhow::ensure!(others.len() == 20, "{others:?}");
    let again = paho.connect("again", &login, json!({})).await?;
    anyhow::ensure!(again["session"] == false && paho.subscribe("again", "local/demo/retained", 1).await?);
    anyhow::ensure!(paho.hears("again", "stays").await?["retained"] == true);
    devices(&edge, &mut paho).await?;
    edge.heal()?;

    // Passwords are nobody's but the pod's.
    let events = cluster.kubectl_ok(&["get", "events,pods", "-A", "-o", "json"]).await?;
    let log = std::fs::read_to_string(edge.log())?;
    anyhow::ensure!(
        !events.contains(&login.password) && !log.contains(&login.password),
        "a password is told"
    );
    inside(&edge, {
        let operator = edge.operator()?;
        async move || {
            let js = operator.js(Account::Work).await?;
            for name in bus::provision::MQTT_STREAMS {
                let config = js.get_stream(name).await?.cached_info().config.clone();
                anyhow::ensure!(config.max_bytes > 0, "{name} has no bound");
            }
            Ok(())
        }
    })
    .await?;
    cluster.done().await
}

async fn what_a_container_is_told(cluster: &Cluster, edge: &Edge) -> anyhow::Result<()> {
    runs(cluster, edge, "demo", "stubborn").await?;
    runs(cluster, edge, "demo", "silent").await?;
    let uid =
        cluster.kubectl_ok(&["get", "pod", "silent", "-n", "demo", "-o", "jsonpath={.metadata.uid}"]).await?;
    let users = std::fs::read_to_string(edge.data_dir().join("nats/users.json"))?;
    anyhow::ensure!(!users.contains(&uid), "a pod that wants no login has one");
    for (pod, name, want) in [
        ("talker", "POD_NAME", "talker"),
        ("talker", "POD_NAMESPACE", "demo"),
        ("talker", "NODE_NAME", "edge-a"),
        ("stubborn", "POD_NAME", "me"),
        ("stubborn", "NATS_URL", "mine"),
        ("silent", "POD_NAME", "silent"),
        ("silent", "NATS_URL", "unset"),
        ("silent", "NATS_PASSWORD", "unset"),
        ("silent", "MQTT_URL", "unset"),
    ] {
        let is = variable(cluster, "demo", pod, name).await?;
        anyhow::ensure!(is == want, "{name} of {pod} is {is:?}");
    }
    let url = variable(cluster, "demo", "talker", "NATS_URL").await?;
    let login = ["NATS_USER", "NATS_PASSWORD"].map(|name| variable(cluster, "demo", "talker", name));
    let login = futures::future::try_join_all(login).await?.join(":");
    anyhow::ensure!(url.contains(&format!("//{login}@")), "{url} has another login than {login}");
    Ok(())
}

async fn retained_and_will(paho: &mut Paho, login: &Login) -> anyhow::Result<()> {
    paho.publish_as(
        "a",
        json!({"topic": "local/demo/retained", "payload": "stays", "qos": 1, "retain": true}),
    )
    .await?;
    paho.connect("late", login, json!({})).await?;
    anyhow::ensure!(paho.subscribe("late", "local/demo/retained", 1).await?);
    anyhow::ensure!(paho.hears("late", "stays").await?["retained"] == true);
    paho.connect("mortal", login, json!({"will": ["local/demo/will", "gone", 1, false]})).await?;
    paho.order("mortal", "drop", json!({})).await?;
    paho.hears("b", "gone").await.map(drop)
}

/// NATS hears what MQTT says, and the reverse; `up.` reaches the hub.
async fn both_ways(cluster: &Cluster, edge: &Arc<Edge>, paho: &mut Paho) -> anyhow::Result<()> {
    let (operator, (ready, is_ready)) = (edge.operator()?, tokio::sync::oneshot::channel());
    let listening = tokio::spawn({
        let edge = edge.clone();
        async move {
            inside(&edge, async move || {
                let bus = operator.dial(Account::Work).await?;
                let mut ears = bus.client().subscribe("app.demo.from-mqtt").await?;
                bus.client().flush().await?;
                let _ = ready.send(()); // the test waits for it
                let heard = ears.next().await.context("the connection was closed")?;
                bus.client().publish("local.demo.from-nats", "nats says".into()).await?;
                bus.client().flush().await?;
                Ok(String::from_utf8_lossy(&heard.payload).into_owned())
            })
            .await
        }
    });
    is_ready.await?;
    paho.publish("a", "app/demo/from-mqtt", "mqtt says", 1).await?;
    anyhow::ensure!(listening.await?? == "mqtt says");
    let heard = paho.hears("b", "nats says").await?;
    anyhow::ensure!(heard["topic"] == "local/demo/from-nats" && heard["qos"] == 0, "{heard}");
    paho.publish("a", "up/demo/reading", "up it goes", 1).await?;
    eventually("what MQTT says on up/ is at the hub", 30, async || {
        let stored = cluster
            .stored(Account::Control, schemas::subject::STREAM_FROM, "from.edge-a.demo.reading")
            .await?;
        Ok(!stored.is_empty())
    })
    .await
}

/// What a client sees of what is not served.
async fn refusals(paho: &mut Paho, login: &Login) -> anyhow::Result<()> {
    let refused = paho.connecting("five", login, json!({"v5": true})).await?;
    anyhow::ensure!(refused["why"] == "Unsupported protocol version", "{refused}");
    let refused = paho.connecting("dotted", login, json!({"id": "a.b"})).await?;
    anyhow::ensure!(refused["why"] == "Client identifier not valid", "{refused}");
    let refused =
        paho.connecting("stranger", &Login { password: "no".into(), ..login.clone() }, json!({})).await?;
    anyhow::ensure!(refused["why"] == "Not authorized", "{refused}");
    for client in ["five", "dotted", "stranger"] {
        paho.order(client, "disconnect", json!({})).await?;
    }
    paho.connect("spaced", login, json!({})).await?;
    let spaced = json!({"topic": "local/demo/a b", "payload": "x", "qos": 1});
    paho.order("spaced", "publish", spaced).await?;
    paho.wait("spaced", "being thrown out", |event| event["event"] == "disconnected").await?;
    paho.order("spaced", "disconnect", json!({})).await
}

/// Logins outside pods: made without a hub, with topics as the device has them, kept through a restart, taken back.
async fn devices(edge: &Edge, paho: &mut Paho) -> anyhow::Result<()> {
    let made = on_node(
        edge,
        &[
            "creds",
            "create",
            "press-1",
            "-n",
            "demo",
            "--topics",
            "factory/#,/plc/+",
            "--mqtt-only",
            "--json",
        ],
    )?;
    let made: Value = serde_json::from_str(&made)?;
    anyhow::ensure!(made["env"]["NATS_URL"].is_null(), "{made}");
    let device = Login::parse(made["env"]["MQTT_URL"].as_str().context("a door")?)?;
    for bad in ["app/other/#", "#", "$SYS/#"] {
        let refused = on_node(edge, &["creds", "create", "bad", "--topics", bad]);
        anyhow::ensure!(format!("{refused:?}").contains("EW-CREDS-TOPIC"), "{bad}: {refused:?}");
    }
    let twice = on_node(edge, &["creds", "create", "press-1"]);
    anyhow::ensure!(format!("{twice:?}").contains("EW-CREDS-EXISTS"), "{twice:?}");
    edge.kill9_all().await?;
    edge.start().await?;
    agent_serves(edge).await?;
    paho.connect("press", &device, json!({})).await?;
    for (topic, may) in [
        ("factory/#", true),
        ("/plc/+", true),
        ("local/demo/#", true),
        ("factories/x", false),
        ("local/default/x", false),
    ] {
        anyhow::ensure!(paho.subscribe("press", topic, 1).await? == may, "{topic}");
    }
    paho.publish("press", "factory/line.1/temp", "21", 1).await?;
    anyhow::ensure!(paho.hears("press", "21").await?["topic"] == "factory/line.1/temp");
    let listed: Value = serde_json::from_str(&on_node(edge, &["creds", "ls", "--json"])?)?;
    anyhow::ensure!(
        listed[0]["name"] == "press-1" && !listed.to_string().contains(&device.password),
        "{listed}"
    );
    inside(edge, {
        let (url, login) = (format!("{}:4222", device.host), device.clone());
        async move || {
            let options = async_nats::ConnectOptions::new().user_and_password(login.user, login.password);
            anyhow::ensure!(options.connect(url).await.is_err(), "it may connect by MQTT alone");
            Ok(())
        }
    })
    .await?;
    on_node(edge, &["creds", "revoke", "press-1"])?;
    paho.wait("press", "its end", |event| event["event"] == "disconnected").await?;
    paho.wait("press", "being refused", |event| event["event"] == "refused").await?;
    paho.order("press", "disconnect", json!({})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_mqtt_client_gains_nothing_of_another_namespace() -> anyhow::Result<()> {
    let cluster = Cluster::new("mqttattack").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.kubectl_ok(&["create", "namespace", "demo"]).await?;
    idle(&cluster, "demo", "talker", &json!({})).await?;
    idle(&cluster, "default", "other", &json!({})).await?;
    runs(&cluster, &edge, "demo", "talker").await?;
    runs(&cluster, &edge, "default", "other").await?;
    let own = Login::parse(&variable(&cluster, "demo", "talker", "MQTT_URL").await?)?;
    let other = Login::parse(&variable(&cluster, "default", "other", "MQTT_URL").await?)?;
    let mut paho = Paho::start(&edge)?;
    paho.connect("own", &own, json!({})).await?;
    paho.publish_as("own", json!({"topic": "app/demo/r", "payload": "secret", "qos": 1, "retain": true}))
        .await?;
    anyhow::ensure!(paho.subscribe("own", "app/demo/#", 1).await?);
    paho.connect("other", &other, json!({})).await?;
    for topic in [
        "#",
        "+/#",
        "+/demo/#",
        "app/#",
        "app/demo/#",
        "app/demo/r",
        "app/+/r",
        "local/#",
        "down/demo/#",
        "up/default/#",
        "$SYS/#",
        "$MQTT/#",
        "$MQTT/sub/#",
        "$MQTT/msgs/#",
        "$MQTT/rmsgs/#",
        "$JS/#",
        "$KV/#",
        "_INBOX/#",
        "ew/#",
    ] {
        for qos in [0, 2] {
            anyhow::ensure!(!paho.subscribe("other", topic, qos).await?, "{topic} was granted at QoS {qos}");
        }
    }
    // A publish that is not allowed is acknowledged as MQTT has it, and reaches nobody: not live, not stored, not retained.
    let evil = [
        "app/demo/evil",
        "local/demo/evil",
        "$MQTT/msgs/app/demo/evil",
        "$MQTT/rmsgs/app/demo/r",
        "$SYS/evil",
        "$JS/API/STREAM/PURGE/$MQTT_msgs",
        "ew/evil",
        "down/default/evil",
        "from/edge-a/demo/evil",
    ];
    let operator = edge.operator()?;
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let judge = tokio::spawn({
        let edge = edge.clone();
        async move {
            inside(&edge, async move || {
                let bus = operator.dial(Account::Work).await?;
                let mut ears = bus.client().subscribe(">").await?;
                bus.client().flush().await?;
                let _ = ready.send(()); // the test waits for it
                let mut heard = Vec::new();
                while let Some(message) = ears.next().await {
                    // Where the server keeps what a client has not released yet: the client's own, heard by nobody.
                    let own = message.subject.starts_with("$MQTT.qos2.in.");
                    let evil = !own && message.payload.windows(4).any(|part| part == b"evil");
                    if message.subject.as_str() == "app.default.end" {
                        break;
                    } else if evil {
                        heard.push(message.subject.to_string());
                    }
                }
                Ok(heard)
            })
            .await
        }
    });
    is_ready.await?;
    for topic in evil {
        for qos in [0, 1, 2] {
            paho.publish_as("other", json!({"topic": topic, "payload": "evil", "qos": qos, "retain": true}))
                .await?;
        }
    }
    let will = json!({"will": ["app/demo/will", "evil", 1, true]});
    paho.connect("dying", &other, will).await?;
    paho.order("dying", "drop", json!({})).await?;
    paho.publish("other", "app/default/end", "end", 1).await?;
    let heard = judge.await??;
    anyhow::ensure!(heard.is_empty(), "a client of default said {heard:?}");
    paho.connect("judge", &own, json!({})).await?;
    anyhow::ensure!(paho.subscribe("judge", "app/demo/#", 1).await?);
    anyhow::ensure!(paho.hears("judge", "secret").await?["topic"] == "app/demo/r");
    paho.hears("own", "secret").await?;
    anyhow::ensure!(
        paho.heard("judge").is_empty() && paho.heard("own").is_empty(),
        "others' words were retained"
    );

    // Known and documented (docs/security.md): sessions of all namespaces of a node share one room, by client ID alone. Who
    // knows an ID can end that connection and take its session away; of what it is told nothing is heard.
    paho.connect("kept", &own, json!({"clean": false})).await?;
    anyhow::ensure!(paho.subscribe("kept", "app/demo/q", 1).await?);
    paho.order("kept", "drop", json!({})).await?;
    paho.publish("own", "app/demo/q", "for kept alone", 1).await?;
    paho.connect("thief", &other, json!({"id": "kept", "clean": false})).await?;
    paho.publish("own", "app/demo/q", "and this", 1).await?;
    paho.publish("other", "app/default/mark", "mark", 1).await?;
    anyhow::ensure!(paho.heard("thief").is_empty(), "a client of default hears what was kept for demo");
    let record = eventually("the refusal is on record", 30, async || {
        let audit = crate::support::edgewire(&cluster, &["audit", "--refused", "--json"]).await?.ok()?;
        Ok(audit.contains("mqtt client").then_some(audit))
    })
    .await?;
    anyhow::ensure!(!record.contains(&other.password));
    cluster.done().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_mqtt_port_is_told_and_keeps_no_pod_from_running() -> anyhow::Result<()> {
    let cluster = Cluster::new("mqttport").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    idle(&cluster, "default", "before", &json!({})).await?;
    let before = runs(&cluster, &edge, "default", "before").await?;
    edge.stop_agent().await?;
    edge.kill9_leaf().await?;
    let ((taken, is_taken), (free, is_free)) =
        (tokio::sync::oneshot::channel(), tokio::sync::oneshot::channel::<()>());
    let squatter = tokio::spawn({
        let edge = edge.clone();
        async move {
            inside(&edge, async move || {
                let _port = eventually("the port is free", 10, async || {
                    Ok(std::net::TcpListener::bind("0.0.0.0:1883").ok())
                })
                .await?;
                let _ = taken.send(()); // the test waits for it
                let _ = is_free.await; // or the test is over
                Ok(())
            })
            .await
        }
    });
    if is_taken.await.is_err() {
        squatter.await??;
        anyhow::bail!("the port was not taken");
    }
    edge.start().await?;
    agent_serves(&edge).await?;
    let message = told(&cluster, &["MqttPortTaken"], "edge-a").await?;
    anyhow::ensure!(message.contains("EW-PORT-IN-USE") && message.contains(":1883"), "{message}");
    idle(&cluster, "default", "meanwhile", &json!({})).await?;
    runs(&cluster, &edge, "default", "meanwhile").await?;
    let url = variable(&cluster, "default", "meanwhile", "MQTT_URL").await?;
    anyhow::ensure!(url == "unset", "a door is named that is another's: {url}");
    let _ = free.send(());
    squatter.await??;
    edge.stop_agent().await?;
    edge.start().await?;
    agent_serves(&edge).await?;
    idle(&cluster, "default", "after", &json!({})).await?;
    runs(&cluster, &edge, "default", "after").await?;
    let login = Login::parse(&variable(&cluster, "default", "after", "MQTT_URL").await?)?;
    Paho::start(&edge)?.connect("a", &login, json!({})).await?;
    the_same(&edge, &[&before], "while MQTT was away and back")?;
    cluster.done().await
}

fn topic_map(name: &str, maps: Value) -> String {
    json!({"apiVersion": "edgewire.io/v1alpha1", "kind": "TopicMap",
        "metadata": {"name": name, "namespace": "demo"}, "spec": {"maps": maps}})
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_map_loses_nothing_that_was_acknowledged_by_mqtt() -> anyhow::Result<()> {
    let cluster = Cluster::new("topicmap").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.kubectl_ok(&["create", "namespace", "demo"]).await?;
    let made = on_node(
        &edge,
        &["creds", "create", "press", "-n", "demo", "--topics", "factory/#,plc/#,a/#", "--json"],
    )?;
    let made: Value = serde_json::from_str(&made)?;
    let device = Login::parse(made["env"]["MQTT_URL"].as_str().context("a door")?)?;
    cluster
        .apply(&topic_map(
            "readings",
            json!([{"from": {"mqtt": "factory/+/temp"}, "to": {"subject": "up.demo.{1}.temp"}},
                {"from": {"subject": "local.demo.cmd.*"}, "to": {"mqtt": "plc/{1}/set"}}]),
        ))
        .await?;
    let mut paho = Paho::start(&edge)?;
    paho.connect("press", &device, json!({})).await?;
    paho.connect("plc", &device, json!({"clean": false})).await?;
    anyhow::ensure!(paho.subscribe("plc", "plc/+/set", 1).await?);
    let arrived = async || {
        let stored = cluster
            .stored(Account::Control, schemas::subject::STREAM_FROM, "from.edge-a.demo.line1.temp")
            .await?;
        Ok::<_, anyhow::Error>(
            stored.iter().map(|one| String::from_utf8_lossy(&one.payload).into_owned()).collect::<Vec<_>>(),
        )
    };
    // From when it runs on, nothing is missing: what came before the map did is not its business.
    let mut probes = 0;
    while arrived().await?.is_empty() {
        anyhow::ensure!(probes < 100, "the map does not run");
        paho.publish("press", "factory/line1/temp", &format!("probe {probes}"), 1).await?;
        probes += 1;
    }
    // The agent that carries it is killed; the server goes on to acknowledge.
    edge.kill9_agent().await?;
    for n in 0..20 {
        paho.publish("press", "factory/line1/temp", &format!("reading {n}"), 1 + n % 2).await?;
    }
    edge.start().await?;
    agent_serves(&edge).await?;
    // And the server, with what it has just acknowledged.
    for n in 20..40 {
        paho.publish("press", "factory/line1/temp", &format!("reading {n}"), 1).await?;
    }
    edge.kill9_leaf().await?;
    let expected: std::collections::BTreeSet<String> = (0..40).map(|n| format!("reading {n}")).collect();
    eventually("all that was acknowledged to the device is at the hub", 60, async || {
        let arrived = arrived().await?;
        Ok(expected.iter().all(|reading| arrived.contains(reading)))
    })
    .await?;
    let readings: Vec<String> =
        arrived().await?.into_iter().filter(|payload| payload.starts_with("reading")).collect();
    anyhow::ensure!(readings.len() == 40, "each of them once: {readings:?}");

    // What enters by NATS waits for an MQTT session that is away.
    paho.wait("plc", "being back", |event| event["event"] == "connected").await?;
    paho.order("plc", "disconnect", json!({})).await?;
    agent_serves(&edge).await?;
    inside(&edge, {
        let operator = edge.operator()?;
        async move || {
            let bus = operator.dial(Account::Work).await?;
            bus.client().publish("local.demo.cmd.3", "open".into()).await?;
            Ok(bus.client().flush().await?)
        }
    })
    .await?;
    paho.connect("witness", &device, json!({})).await?;
    anyhow::ensure!(paho.subscribe("witness", "plc/#", 1).await?);
    paho.connect("plc", &device, json!({"clean": false})).await?;
    let heard = paho.hears("plc", "open").await?;
    anyhow::ensure!(heard["topic"] == "plc/3/set" && heard["qos"] == 1, "{heard}");

    // Two that would feed each other do not run, and it is told.
    let circle = json!([{"from": {"mqtt": "a/x"}, "to": {"mqtt": "a/y"}}, {"from": {"mqtt": "a/y"}, "to": {"mqtt": "a/x"}}]);
    cluster.apply(&topic_map("circle", circle)).await?;
    let message = told(&cluster, &["TopicMapLoop"], "edge-a").await?;
    anyhow::ensure!(message.contains("demo/circle"), "{message}");
    anyhow::ensure!(paho.subscribe("witness", "a/#", 1).await?);
    paho.publish("press", "a/x", "once", 1).await?;
    paho.publish("press", "a/end", "end", 1).await?;
    paho.hears("witness", "end").await?;
    let heard = paho.heard("witness").into_iter().filter(|(_, payload)| payload == "once").count();
    anyhow::ensure!(heard == 1, "it was heard {heard} times");
    cluster.done().await
}
