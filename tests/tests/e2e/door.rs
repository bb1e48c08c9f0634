//! The bus by HTTP, as a pod has it: with the URL of its own environment, from its own network, through what a node has to
//! live through.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use bus::module::Account;
use futures::StreamExt;
use schemas::subject::STREAM_FROM;
use tests::cluster::{Cluster, Edge, eventually};

use crate::support::{IDLE, agent_serves, inside, pod, runs, the_same};

/// What was told, of one reading.
#[derive(Debug, Default)]
struct Told {
    messages: Vec<String>,
    gaps: usize,
    /// To come back with.
    last: Option<String>,
}

impl Told {
    /// Reads until `last` is told, or the stream ends.
    async fn read(&mut self, url: &str, filter: &str, until: &str) -> anyhow::Result<()> {
        let mut request = http().get(format!("{url}/v1/sub/{filter}"));
        if let Some(last) = &self.last {
            request = request.header("last-event-id", last);
        }
        // 503 says: the node's server is away, again. Whatever was just killed is back soon.
        let answer = eventually("the door listens", 30, async || {
            let again = request.try_clone().context("a request without a body")?;
            Ok(again.send().await.ok().and_then(|answer| answer.error_for_status().ok()))
        })
        .await?;
        let (mut body, mut text) = (answer.bytes_stream(), String::new());
        while let Some(piece) = body.next().await {
            text.push_str(std::str::from_utf8(&piece?)?);
            while let Some((block, rest)) = text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                text = rest;
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
                if let Some(id) = field("id: ") {
                    self.last = Some(id.to_owned());
                }
                match field("event: ") {
                    Some("message") => {
                        let data: serde_json::Value = serde_json::from_str(field("data: ").context("data")?)?;
                        self.messages.push(data["data"].as_str().context("text")?.to_owned());
                    }
                    Some("gap") => self.gaps += 1,
                    _ => {}
                }
                if self.messages.last().is_some_and(|message| message == until) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

fn http() -> reqwest::Client {
    // A second call finds the provider installed: that is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

async fn url_of(cluster: &Cluster, pod: &str) -> anyhow::Result<String> {
    let said = cluster.kubectl_ok(&["exec", pod, "--", "sh", "-c", "echo $BUS_HTTP_URL"]).await?;
    anyhow::ensure!(said.starts_with("http://"), "no BUS_HTTP_URL: {said:?}");
    Ok(said.trim().to_owned())
}

/// Publishes from the pods' network, until it has this answer; tries with the same ID.
async fn say(edge: &Edge, url: &str, subject: &str, id: &str, want: u16) -> anyhow::Result<()> {
    let (url, subject, id) = (url.to_owned(), subject.to_owned(), id.to_owned());
    inside(edge, async move || {
        let http = http();
        eventually(&format!("{subject} {id} is answered with {want}"), 60, async || {
            let said = http.post(format!("{url}/v1/pub/{subject}")).header("Nats-Msg-Id", &id);
            let answer = said.body(id.clone()).timeout(Duration::from_secs(10)).send().await;
            Ok(answer.is_ok_and(|answer| answer.status() == want))
        })
        .await
    })
    .await
}

/// Reads on, where `told` was, until that message.
async fn hear(edge: &Edge, url: &str, mut told: Told, until: &str) -> anyhow::Result<Told> {
    let (url, until) = (url.to_owned(), until.to_owned());
    inside(edge, async move || {
        let reading = told.read(&url, "app.default.>", &until);
        tokio::time::timeout(Duration::from_secs(60), reading).await.context("it is not told")??;
        Ok(told)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_the_bus_by_http_through_kills_and_a_cut() -> anyhow::Result<()> {
    let cluster = Cluster::new("door").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.apply(&pod("talker", "edge-a", IDLE).to_string()).await?;
    let talker = runs(&cluster, &edge, "default", "talker").await?;
    let url = url_of(&cluster, "talker").await?;

    // From the container itself, with what it has.
    let line = "wget -q -O - --post-data hello $BUS_HTTP_URL/v1/pub/up.default.first";
    let said = cluster.kubectl_ok(&["exec", "talker", "--", "sh", "-c", line]).await?;
    anyhow::ensure!(said.contains("\"stream\":\"UPLINK\""), "{said}");
    say(&edge, &url, "app.other.t", "no", 403).await?;

    // Another pod answers questions.
    let (operator, of) = (edge.operator()?, url.clone());
    inside(&edge, async move || {
        let bus = operator.dial(Account::Work).await?;
        let mut asked = bus.client().subscribe("app.default.ask").await?;
        bus.client().flush().await?;
        let asking = http().post(format!("{of}/v1/req/app.default.ask")).body("?").send();
        let answering = async {
            let question = asked.next().await.context("closed")?;
            bus.client().publish(question.reply.context("reply")?, "!".into()).await?;
            anyhow::Ok(())
        };
        let (answer, answered) = tokio::join!(asking, answering);
        answered?;
        anyhow::ensure!(answer?.text().await? == "!", "another answer");
        Ok(())
    })
    .await?;

    // Who comes back misses nothing.
    let mut told = Told::default();
    let opening = hear(&edge, &url, std::mem::take(&mut told), "a-1");
    let (told, said) = tokio::join!(opening, async {
        // Until it listens nothing is kept for it.
        for n in 0.. {
            say(&edge, &url, "app.default.t", if n < 20 { "a-0" } else { "a-1" }, 202).await?;
            if n >= 20 {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    });
    said?;
    let mut told = told?;
    told.messages.clear();
    for n in 2..6 {
        say(&edge, &url, "app.default.t", &format!("a-{n}"), 202).await?;
    }
    let mut told = hear(&edge, &url, told, "a-5").await?;
    anyhow::ensure!(told.messages == ["a-2", "a-3", "a-4", "a-5"] && told.gaps == 0, "{told:?}");

    // The agent is killed: what was kept for readers is gone with it, and is said to be.
    told.messages.clear();
    edge.kill9_agent().await?;
    edge.start().await?;
    agent_serves(&edge).await?;
    say(&edge, &url, "up.default.t", "b-0", 200).await?;
    let (heard, said) = tokio::join!(hear(&edge, &url, told, "a-9"), async {
        for n in 0..20 {
            say(&edge, &url, "app.default.t", if n < 19 { "a-8" } else { "a-9" }, 202).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    });
    said?;
    let mut told = heard?;
    anyhow::ensure!(told.gaps == 1, "{told:?}");

    // The server is killed under a reader: a gap, and the same stream goes on.
    told.messages.clear();
    told.gaps = 0;
    let (heard, said) = tokio::join!(hear(&edge, &url, told, "c-9"), async {
        edge.kill9_leaf().await?;
        say(&edge, &url, "up.default.t", "b-1", 200).await?;
        for n in 0..40 {
            say(&edge, &url, "app.default.t", if n < 39 { "c-8" } else { "c-9" }, 202).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    });
    said?;
    let told = heard?;
    anyhow::ensure!(told.gaps == 1, "{told:?}");

    // Offline: what is stored is carried when the link is back, once, however often it was said.
    edge.cut()?;
    cluster.ready("edge-a", "Unknown").await?;
    let wanted: BTreeSet<String> = (0..10).map(|n| format!("o-{n}")).collect();
    for id in &wanted {
        for _ in 0..3 {
            say(&edge, &url, "up.default.off", id, 200).await?;
        }
    }
    let none = cluster.stored(Account::Control, STREAM_FROM, "from.edge-a.default.off").await?;
    anyhow::ensure!(none.is_empty(), "the link was not cut");
    edge.heal()?;
    let arrived = async || {
        let stored = cluster.stored(Account::Control, STREAM_FROM, "from.edge-a.default.off").await?;
        let bodies = stored.iter().map(|stored| String::from_utf8_lossy(&stored.payload).into_owned());
        anyhow::Ok(bodies.collect::<Vec<_>>())
    };
    eventually("all are at the hub", 60, async || Ok(arrived().await?.len() >= wanted.len())).await?;
    // One more behind them: what came twice would have come before it.
    say(&edge, &url, "up.default.last", "last", 200).await?;
    eventually("the last is at the hub", 60, async || {
        Ok(!cluster.stored(Account::Control, STREAM_FROM, "from.edge-a.default.last").await?.is_empty())
    })
    .await?;
    let bodies = arrived().await?;
    let all: BTreeSet<String> = bodies.iter().cloned().collect();
    anyhow::ensure!(all == wanted && bodies.len() == wanted.len(), "{bodies:?}");
    the_same(&edge, &[&talker], "at the end")?;
    cluster.done().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_told_and_keeps_no_pod_from_running() -> anyhow::Result<()> {
    let cluster = Cluster::new("door-port").await?;
    cluster.hub().start().await?;
    let edge = cluster.edge("edge-a")?;
    edge.join(cluster.hub()).await?;
    let holder =
        inside(&edge, async || std::net::TcpListener::bind("0.0.0.0:9480").context("the port is free"))
            .await?;
    edge.start().await?;
    cluster.ready("edge-a", "True").await?;
    cluster.apply(&pod("talker", "edge-a", IDLE).to_string()).await?;
    runs(&cluster, &edge, "default", "talker").await?;
    let message = crate::support::told(&cluster, &["HttpDoorShut"], "edge-a").await?;
    anyhow::ensure!(message.contains("EW-HTTP-PORT") && message.contains(":9480"), "{message}");
    drop(holder);
    let url = url_of(&cluster, "talker").await?;
    say(&edge, &url, "app.default.t", "x", 202).await?;
    crate::support::told(&cluster, &["HttpDoorOpen"], "edge-a").await?;
    cluster.done().await
}
