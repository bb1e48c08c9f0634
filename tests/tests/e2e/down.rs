//! What the hub sends to a node: each message once and in order, whatever falls on the way, for who listens and for who was
//! away; and what one absent node does to another, and many messages to the node's desired state.

use std::time::{Duration, Instant};

use anyhow::Context;
use async_nats::HeaderMap;
use async_nats::jetstream;
use bus::module::Account;
use futures::StreamExt;
use schemas::subject::{STORED_GROUP, STREAM_DOWN};
use serde_json::json;
use tests::cluster::{Cluster, Edge, eventually};

use crate::support::{IDLE, agent_serves, inside, padding, pod, runs, told};
use crate::workload::Credential;

/// Sends numbered messages, each until the hub has acknowledged it.
async fn send(
    cluster: &Cluster,
    subject: &str,
    numbers: std::ops::RangeInclusive<u64>,
) -> anyhow::Result<()> {
    let mut js = cluster.hub_js(Account::Control).await?;
    for number in numbers {
        let what = format!("message {number} is acknowledged");
        let tried = eventually(&what, 60, async || {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", format!("{subject}-{number}").as_str());
            let sent = js.publish_with_headers(subject.to_owned(), headers, number.to_string().into());
            let acked = async { anyhow::Ok(sent.await?.await?) };
            match tokio::time::timeout(Duration::from_secs(5), acked).await {
                Ok(Ok(_)) => Ok(true),
                // The hub's server fell, and may have its login's connection anew.
                _ => {
                    js = cluster.hub_js(Account::Control).await?;
                    Ok(false)
                }
            }
        });
        tried.await?;
    }
    Ok(())
}

/// What stands in the node's DOWN on `filter`, as the numbers that it holds: by who has the machine.
async fn in_down(edge: &Edge, filter: &'static str) -> anyhow::Result<Vec<u64>> {
    let operator = edge.operator()?;
    inside(edge, async move || {
        let js = operator.js(Account::Work).await?;
        let stream = js.get_stream(STREAM_DOWN).await?;
        let config = jetstream::consumer::pull::Config {
            filter_subject: filter.to_owned(),
            ack_policy: jetstream::consumer::AckPolicy::None,
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await?;
        let count = consumer.cached_info().num_pending;
        let messages = consumer.messages().await?.take(usize::try_from(count)?);
        let numbers = messages.map(|message| {
            let message = message?;
            anyhow::Ok(String::from_utf8_lossy(&message.payload).split(' ').next().unwrap_or("").parse()?)
        });
        let numbers: Vec<_> = tokio::time::timeout(Duration::from_secs(20), numbers.collect()).await?;
        numbers.into_iter().collect()
    })
    .await
}

/// Takes what waits for the namespace, acknowledging each, until `last` came: the numbers, in the order in which they came.
async fn take(edge: &Edge, own: Credential, namespace: &'static str, last: u64) -> anyhow::Result<Vec<u64>> {
    inside(edge, async move || {
        let bus = own.dial().await?;
        let handed = format!("stored.{namespace}");
        let mut handed = bus.client().queue_subscribe(handed, STORED_GROUP.into()).await?;
        let mut numbers = Vec::new();
        while numbers.last() != Some(&last) {
            let message = tokio::time::timeout(Duration::from_secs(60), handed.next()).await;
            let message = message.with_context(|| format!("only {numbers:?}"))?.context("closed")?;
            numbers.push(String::from_utf8_lossy(&message.payload).parse()?);
            bus.client().publish(message.reply.context("an acknowledgement")?, "+ACK".into()).await?;
        }
        bus.client().flush().await?;
        Ok(numbers)
    })
    .await
}

async fn in_namespace(cluster: &Cluster, edge: &Edge, namespace: &str) -> anyhow::Result<Credential> {
    cluster.kubectl_ok(&["create", "namespace", namespace]).await?;
    let mut reader = pod("reader", edge.name(), IDLE);
    reader["metadata"]["namespace"] = json!(namespace);
    cluster.apply(&reader.to_string()).await?;
    runs(cluster, edge, namespace, "reader").await?;
    Credential::of(cluster, namespace, "reader").await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_hub_sends_comes_once_and_in_order_whatever_falls() -> anyhow::Result<()> {
    let cluster = Cluster::new("down").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    let own = in_namespace(&cluster, &edge, "demo").await?;

    // Live: who listens hears each as it comes; and it takes moments, not a poll.
    let (listening, listens) = tokio::sync::oneshot::channel();
    let ears = own.clone();
    let heard = tokio::spawn({
        let edge = edge.clone();
        async move {
            inside(&edge, async move || {
                let bus = ears.dial().await?;
                let mut heard = bus.client().subscribe("down.demo.>").await?;
                bus.client().flush().await?;
                let _ = listening.send(());
                let mut numbers: Vec<u64> = Vec::new();
                while numbers.last() != Some(&20) {
                    let message = tokio::time::timeout(Duration::from_secs(30), heard.next()).await;
                    let message = message.with_context(|| format!("only {numbers:?}"))?.context("closed")?;
                    anyhow::ensure!(message.subject.as_str() == "down.demo.n", "{}", message.subject);
                    numbers.push(String::from_utf8_lossy(&message.payload).parse()?);
                }
                Ok(numbers)
            })
            .await
        }
    });
    listens.await?;
    let since = Instant::now();
    send(&cluster, "to.edge-a.demo.n", 1..=20).await?;
    assert_eq!(heard.await??, (1..=20).collect::<Vec<_>>());
    println!("twenty messages were heard {:.2} s after the first was sent", since.elapsed().as_secs_f64());
    anyhow::ensure!(since.elapsed() < Duration::from_secs(10), "the node waits for its own looks");

    // Who sends to a node that does not exist is told at once.
    let js = cluster.hub_js(Account::Control).await?;
    let nobody = js.publish("to.edge-z.demo.n", "x".into()).await?.await;
    anyhow::ensure!(nobody.is_err(), "a message for nobody was acknowledged: {nobody:?}");

    // The link is cut while more is sent; the agent, the node's server and the hub's fall one after the other.
    edge.cut()?;
    send(&cluster, "to.edge-a.demo.n", 21..=120).await?;
    edge.kill9_agent().await?;
    edge.start().await?;
    agent_serves(&edge).await?;
    edge.heal()?;
    edge.kill9_leaf().await?;
    send(&cluster, "to.edge-a.demo.n", 121..=160).await?;
    cluster.hub().kill9_server().await?;
    send(&cluster, "to.edge-a.demo.n", 161..=200).await?;
    edge.kill9_agent().await?;
    cluster.hub().kill9_process().await?;
    cluster.hub().start().await?;
    edge.start().await?;
    send(&cluster, "to.edge-a.demo.n", 201..=240).await?;
    let all: Vec<u64> = (1..=240).collect();
    eventually("all that was sent is on the node", 60, async || {
        Ok(in_down(&edge, "down.demo.>").await?.last() == Some(&240))
    })
    .await?;
    assert_eq!(in_down(&edge, "down.demo.>").await?, all, "once and in order");

    // A reader that was away all the time has each once, and what it acknowledged is let go.
    assert_eq!(take(&edge, own.clone(), "demo", 240).await?, all);
    eventually("what was acknowledged goes", 90, async || {
        Ok(in_down(&edge, "down.demo.>").await?.is_empty())
    })
    .await?;
    // So does what the node has from the hub, but for the last: it tells whether this is still the same stream.
    let kept = cluster.stored(Account::Control, "TO_edge-a", "to.>").await?;
    anyhow::ensure!(kept.len() == 1 && kept[0].payload == b"240", "{kept:?}");

    // The hub is emptied: its numbers begin anew, and what comes then is no other's.
    cluster.hub().stop().await?;
    cluster.hub().wipe_store().await?;
    cluster.hub().start().await?;
    cluster.heartbeats("edge-a", 1).await?;
    eventually("the node has its stream again", 60, async || {
        Ok(cluster.hub_js(Account::Control).await?.get_stream("TO_edge-a").await.is_ok())
    })
    .await?;
    send(&cluster, "to.edge-a.demo.n", 241..=250).await?;
    assert_eq!(take(&edge, own, "demo", 250).await?, (241..=250).collect::<Vec<_>>());
    told(&cluster, &["DownlinkReplaced"], "edge-a").await?;
    cluster.done().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_node_fills_its_own_stream_and_its_sender_is_told() -> anyhow::Result<()> {
    let cluster = Cluster::new("away").await?;
    cluster.up(&["edge-a", "edge-b"]).await?;
    let (away, near) = (cluster.edge("edge-a")?, cluster.edge("edge-b")?);
    away.cut()?;
    let bus = cluster.hub_bus(Account::Control).await?;
    let large = "x".repeat(900 * 1024);
    let answer = async |node: &str, number: u64| {
        let body = format!("{number} {large}");
        let answer = bus.client().request(format!("to.{node}.demo.large"), body.into()).await?;
        anyhow::Ok(String::from_utf8_lossy(&answer.payload).into_owned())
    };
    let mut stored = 0;
    let refused = loop {
        let answer = answer("edge-a", stored + 1).await?;
        if answer.contains("error") {
            break answer;
        }
        stored += 1;
        anyhow::ensure!(stored < 30, "no bound");
    };
    anyhow::ensure!(refused.contains("10077") && refused.contains("maximum bytes exceeded"), "{refused}");
    anyhow::ensure!(stored >= 15, "{stored} messages of 900 kB in 16 MiB");
    // Another node's are taken and come.
    for number in 1..=3 {
        anyhow::ensure!(!answer("edge-b", number).await?.contains("error"));
    }
    eventually("the other node has its own", 60, async || {
        Ok(in_down(&near, "down.demo.>").await? == [1, 2, 3])
    })
    .await?;
    // When it is back it takes all of it, and there is room again.
    away.heal()?;
    let all: Vec<u64> = (1..=stored).collect();
    eventually("the node has what waited", 60, async || Ok(in_down(&away, "down.demo.>").await? == all))
        .await?;
    eventually("there is room again", 30, async || {
        Ok(!answer("edge-a", stored + 1).await?.contains("error"))
    })
    .await?;
    cluster.done().await
}

/// Messages of so many bytes, so many of them: a minute of a link of 64 kbit/s.
const QUEUED: [usize; 2] = [6 * 1024, 80];

#[tokio::test(flavor = "multi_thread")]
async fn messages_over_64_kbit_do_not_hold_up_the_desired_state() -> anyhow::Result<()> {
    let cluster = Cluster::new("downslow").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    edge.throttle(64).await?;
    cluster.ready("edge-a", "True").await?;
    edge.cut()?;
    cluster.ready("edge-a", "Unknown").await?;
    let before = edge.connections();
    let js = cluster.hub_js(Account::Control).await?;
    let [bytes, count] = QUEUED;
    for number in 1..=count {
        let body = format!("{number} {}", padding(number as u64, bytes));
        js.publish("to.edge-a.demo.n", body.into()).await?.await?;
    }
    let late = |name: &str| {
        let mut pod = pod(name, "edge-a", "true");
        pod["spec"]["containers"][0]["image"] = json!("edgewire.local/absent:1");
        pod
    };
    cluster.apply(&late("first").to_string()).await?;
    edge.heal()?;
    let healed = Instant::now();
    let known = async |pod: &'static str| {
        let path = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
        eventually(&format!("the node answers for {pod}"), 40, async || {
            Ok(cluster.kubectl_ok(&["get", "pod", pod, "-o", path]).await? == "ErrImageNeverPull")
        })
        .await
    };
    known("first").await?;
    let first = healed.elapsed();
    // In the middle of it: what is on its way is one step, not all that waits.
    eventually("messages come", 60, async || {
        Ok(in_down(&edge, "down.demo.>").await.is_ok_and(|came| came.len() > 5))
    })
    .await?;
    let asked = Instant::now();
    cluster.apply(&late("second").to_string()).await?;
    known("second").await?;
    let second = asked.elapsed();
    let came = in_down(&edge, "down.demo.>").await?.len();
    println!(
        "a pod is known {:.1} s after the link was back, another after {:.1} s; {came} of {count} messages had come",
        first.as_secs_f64(),
        second.as_secs_f64()
    );
    anyhow::ensure!(came < count, "it was not the slow link: all {came} messages had come");
    eventually("all messages come", 180, async || Ok(in_down(&edge, "down.demo.>").await?.len() == count))
        .await?;
    let took = healed.elapsed().as_secs_f64();
    anyhow::ensure!(took > (bytes * count / 8_000) as f64 * 0.8, "it was not the slow link: {took:.1} s");
    assert_eq!(in_down(&edge, "down.demo.>").await?, (1..=count as u64).collect::<Vec<_>>());
    anyhow::ensure!(edge.connections() - before <= 2, "the link was given up");
    cluster.done().await
}
