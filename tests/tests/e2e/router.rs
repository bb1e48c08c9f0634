//! KubeEdge's rules: its sample manifests apply unchanged, every pair of endpoints goes, nothing is lost on the way up, and a
//! slow target holds up no other.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::Context;
use bus::module::Account;
use futures::StreamExt;
use reqwest::{Client, Method, StatusCode};
use schemas::subject::STREAM_MQTT_MESSAGES;
use serde_json::{Value, json};
use tests::cluster::paho::{Login, Paho};
use tests::cluster::{Cluster, Edge, eventually};

use crate::mqtt::on_node;
use crate::support::{agent_serves, inside};
use crate::web::{Answer, FINE, Web};

/// KubeEdge's documentation, "Router Manager": the endpoints.
const ENDPOINTS: &str = r#"
apiVersion: rules.kubeedge.io/v1
kind: RuleEndpoint
metadata:
  name: my-rest
  labels:
    description: test
spec:
  ruleEndpointType: "rest"
  properties: {}
---
apiVersion: rules.kubeedge.io/v1
kind: RuleEndpoint
metadata:
  name: my-eventbus
  labels:
    description: test
spec:
  ruleEndpointType: "eventbus"
  properties: {}
---
apiVersion: rules.kubeedge.io/v1
kind: RuleEndpoint
metadata:
  name: my-servicebus
  labels:
    description: test
spec:
  ruleEndpointType: "servicebus"
  properties: {"service_port":"6666"}
"#;

/// The same documentation: the two rules from the cloud, as they stand there.
const FROM_REST: &str = r#"
apiVersion: rules.kubeedge.io/v1
kind: Rule
metadata:
  name: my-rule
  labels:
    description: test
spec:
  source: "my-rest"
  sourceResource: {"path":"/a"}
  target: "my-eventbus"
  targetResource: {"topic":"test"}
---
apiVersion: rules.kubeedge.io/v1
kind: Rule
metadata:
  name: my-rule-rest-servicebus
  labels:
    description: test
spec:
  source: "my-rest"
  sourceResource: {"path":"/source"}
  target: "my-servicebus"
  targetResource: {"path":"/target"}
"#;

/// The rule to the cloud, with the node and the address that its reader fills in.
fn from_eventbus(name: &str, topic: &str, url: &str) -> String {
    format!(
        r#"
apiVersion: rules.kubeedge.io/v1
kind: Rule
metadata:
  name: {name}
  labels:
    description: test
spec:
  source: "my-eventbus"
  sourceResource: {{"topic": "{topic}","node_name": "edge-a"}}
  target: "my-rest"
  targetResource: {{"resource":"{url}"}}
"#
    )
}

fn from_servicebus(url: &str) -> String {
    from_eventbus("my-rule-servicebus-rest", "x", url)
        .replace("my-eventbus", "my-servicebus")
        .replace(r#""topic": "x""#, r#""target_url": "http://target/hello""#)
}

/// Calls the hub's REST entry as a user would: the hub's authority, a bearer token.
struct Rest {
    client: Client,
    url: String,
    token: String,
}

impl Rest {
    fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = cluster.hub().data_dir();
        let ca = reqwest::Certificate::from_pem(&std::fs::read(dir.join("tls/ca.crt"))?)?;
        let client =
            Client::builder().add_root_certificate(ca).no_proxy().timeout(Duration::from_secs(60)).build()?;
        let url = format!("https://{}:{}", cluster.site().hub_address(), cluster.site().ports.rest);
        Ok(Self { client, url, token: std::fs::read_to_string(dir.join("admin.token"))?.trim().to_owned() })
    }

    fn call(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token)
    }

    async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> anyhow::Result<(StatusCode, String)> {
        let answer = self.call(Method::POST, path).body(body).send().await?;
        Ok((answer.status(), answer.text().await?))
    }
}

/// A web service at the hub's end.
fn web(cluster: &Cluster, answer: Answer) -> anyhow::Result<Web> {
    Web::start(TcpListener::bind((cluster.site().hub_address(), 0))?, answer)
}

/// Asks the node's service bus, as a program on the node would.
async fn service_bus(edge: &Edge, body: String) -> anyhow::Result<Value> {
    inside(edge, async move || {
        let client = Client::builder().no_proxy().build()?;
        Ok(client.post("http://127.0.0.1:9060/").body(body).send().await?.json().await?)
    })
    .await
}

/// Says these on the node, as one of its devices would: each on its subject, in order.
async fn say(edge: &Edge, messages: Vec<(String, String)>) -> anyhow::Result<()> {
    let operator = edge.operator()?;
    inside(edge, async move || {
        let bus = operator.dial(Account::Work).await?;
        for (subject, body) in messages {
            bus.client().publish(subject, body.into()).await?;
        }
        bus.client().flush().await?;
        Ok(bus.round_trip().await?)
    })
    .await
}

/// Waits until the node's server keeps what its rules name.
async fn captures(edge: &Edge, subject: &'static str) -> anyhow::Result<()> {
    let operator = edge.operator()?;
    inside(edge, async move || {
        let js = operator.js(Account::Work).await?;
        eventually(&format!("RULES captures {subject}"), 30, async || {
            let mut stream = js.get_stream("RULES").await?;
            Ok(stream.info().await?.config.subjects.iter().any(|found| found == subject))
        })
        .await
    })
    .await
}

/// What somebody on the node hears on `filter` while `work` is done.
async fn heard_during(
    edge: &Edge,
    filter: &'static str,
    count: usize,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<Vec<(String, String)>> {
    let (ready, listens) = tokio::sync::oneshot::channel();
    let operator = edge.operator()?;
    let hearing = inside(edge, async move || {
        let bus = operator.dial(Account::Work).await?;
        let messages = bus.client().subscribe(filter).await?;
        bus.round_trip().await?;
        let _ = ready.send(());
        let heard = messages.take(count).map(|message| {
            (message.subject.to_string(), String::from_utf8_lossy(&message.payload).into_owned())
        });
        Ok(tokio::time::timeout(Duration::from_secs(30), heard.collect()).await?)
    });
    let working = async {
        listens.await?;
        work.await
    };
    let (heard, worked) = tokio::join!(hearing, working);
    worked?;
    heard
}

async fn status(cluster: &Cluster, rule: &str) -> anyhow::Result<(u64, u64, Vec<String>)> {
    let rule = cluster.kubectl_json(&["get", "rule.rules.kubeedge.io", rule]).await?;
    let number = |name: &str| rule["status"][name].as_u64().unwrap_or(0);
    let errors = rule["status"]["errors"].as_array().cloned().unwrap_or_default();
    let errors = errors.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    Ok((number("successMessages"), number("failMessages"), errors))
}

#[tokio::test(flavor = "multi_thread")]
async fn kubeedges_sample_rules_apply_unchanged_and_every_pair_goes() -> anyhow::Result<()> {
    let cluster = Cluster::new("router").await?;
    cluster.up(&["edge-a"]).await?;
    let (edge, rest) = (cluster.edge("edge-a")?, Rest::of(&cluster)?);
    let target = web(&cluster, FINE)?;
    for manifest in [
        ENDPOINTS,
        FROM_REST,
        &from_eventbus("my-rule-eventbus-rest", "test", &target.url("/hello")),
        &from_servicebus(&target.url("/service")),
    ] {
        cluster.apply(manifest).await?;
    }

    // rest -> eventbus
    let calls = async {
        for (path, body) in [("/edge-a/default/a", "one"), ("/edge-a/default/a/b/c", "two")] {
            eventually("the rule is followed", 30, async || {
                Ok(rest.post(path, body).await? == (StatusCode::OK, "message delivered".to_owned()))
            })
            .await?;
        }
        Ok(())
    };
    let heard = heard_during(&edge, "test.>", 1, calls).await?;
    anyhow::ensure!(heard == [("test.b.c".to_owned(), "two".to_owned())], "{heard:?}");

    // eventbus -> rest
    captures(&edge, "default.test").await?;
    say(&edge, vec![("default.test".into(), r#"{"edgemsg":"msgtocloud"}"#.into())]).await?;
    let call = eventually("the target is called", 30, async || Ok(target.calls().pop())).await?;
    anyhow::ensure!(call.line == "POST /hello" && call.text() == r#"{"edgemsg":"msgtocloud"}"#, "{call:?}");
    anyhow::ensure!(call.header("content-type") == Some("application/json"), "{call:?}");
    anyhow::ensure!(call.header("edgewire-node") == Some("edge-a"), "{call:?}");

    // rest -> servicebus: method, path, query, headers and body go there, and all of the answer comes back.
    let socket = inside(&edge, async || Ok(TcpListener::bind("127.0.0.1:6666")?)).await?;
    let service = Web::start(socket, Answer { status: "418 I'm a teapot", body: "short and stout", ..FINE })?;
    let asked = rest.call(Method::PUT, "/edge-a/default/source/x?y=1").header("x-mine", "yes").body("tea?");
    let answer = asked.send().await?;
    anyhow::ensure!(answer.status() == StatusCode::IM_A_TEAPOT, "{answer:?}");
    anyhow::ensure!(answer.headers().get("x-judge").is_some_and(|value| value == "e2e"), "{answer:?}");
    anyhow::ensure!(answer.text().await? == "short and stout");
    let call = service.calls().pop().unwrap();
    anyhow::ensure!(call.line == "PUT /target/x?y=1" && call.text() == "tea?", "{call:?}");
    anyhow::ensure!(
        call.header("x-mine") == Some("yes") && call.header("authorization").is_none(),
        "{call:?}"
    );

    // servicebus -> rest
    let ask = json!({"method": "POST", "targetURL": "http://target/hello", "payload": "p"}).to_string();
    let answer = eventually("the service bus serves", 30, async || {
        Ok(Some(service_bus(&edge, ask.clone()).await?).filter(|answer| answer["code"] != 404))
    })
    .await?;
    anyhow::ensure!(answer["code"] == 200 && answer["body"] == "fine", "{answer}");
    let call = target.calls().pop().unwrap();
    anyhow::ensure!(call.line == "POST /service" && call.text() == ask, "{call:?}");
    let other = ask.replace("hello", "other");
    let refused = service_bus(&edge, other).await?;
    anyhow::ensure!(refused["code"] == 404, "{refused}");

    // Who is not let in, what is not known, what is too large.
    let stranger = rest.client.post(format!("{}/edge-a/default/a", rest.url)).send().await?;
    anyhow::ensure!(stranger.status() == StatusCode::UNAUTHORIZED, "{stranger:?}");
    for (path, bytes, want, code) in [
        ("/edge-a/default/nothing", 1, StatusCode::NOT_FOUND, "EW-RULE-NOT-FOUND"),
        ("/edge-a/other/a", 1, StatusCode::NOT_FOUND, "EW-RULE-NOT-FOUND"),
        ("/edge-a/default/a", 9 << 20, StatusCode::PAYLOAD_TOO_LARGE, "the link to a node carries at most"),
        ("/edge-a/default/a", 13 << 20, StatusCode::PAYLOAD_TOO_LARGE, "EW-PAYLOAD-TOO-LARGE"),
        ("/edge-b/default/a", 1, StatusCode::SERVICE_UNAVAILABLE, "EW-NODE-AWAY"),
    ] {
        let (status, text) = rest.post(path, vec![b'x'; bytes]).await?;
        anyhow::ensure!(status == want && text.contains(code), "{path} {bytes}: {status} {text}");
    }
    let large = heard_during(&edge, "test", 1, async {
        let (status, text) = rest.post("/edge-a/default/a", vec![b'x'; 7 << 20]).await?;
        anyhow::ensure!(status == StatusCode::OK, "{status} {text}");
        Ok(())
    });
    anyhow::ensure!(large.await?[0].1.len() == 7 << 20, "seven mebibytes go through");

    // What was counted.
    eventually("the rules' status tells", 30, async || {
        Ok(status(&cluster, "my-rule").await?.0 >= 3
            && status(&cluster, "my-rule-eventbus-rest").await? == (1, 0, vec![])
            && status(&cluster, "my-rule-rest-servicebus").await? == (1, 0, vec![])
            && status(&cluster, "my-rule-servicebus-rest").await? == (1, 0, vec![]))
    })
    .await?;

    // A node that goes away is told within the time of its heartbeats, and then at once.
    edge.cut()?;
    for within in [Duration::from_secs(8), Duration::from_secs(1)] {
        let began = Instant::now();
        let (status, text) = rest.post("/edge-a/default/a", "lost?").await?;
        let (took, told) = (began.elapsed(), serde_json::from_str::<Value>(&text)?);
        anyhow::ensure!(
            status == StatusCode::SERVICE_UNAVAILABLE && told["code"] == "EW-NODE-AWAY",
            "{status} {text}"
        );
        anyhow::ensure!(took < within, "told after {took:?}");
    }
    edge.heal()?;
    eventually("it is there again", 60, async || {
        Ok(rest.post("/edge-a/default/a", "back").await?.0 == StatusCode::OK)
    })
    .await?;
    cluster.done().await
}

/// Messages numbered from..to on the rule's topic.
fn numbered(from: usize, to: usize) -> Vec<(String, String)> {
    (from..to).map(|n| ("default.test".to_owned(), n.to_string())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rule_carries_up_arrives_once_and_in_order_whatever_falls() -> anyhow::Result<()> {
    let cluster = Cluster::new("router-up").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    let target = web(&cluster, FINE)?;
    cluster.apply(ENDPOINTS).await?;
    cluster.apply(&from_eventbus("up", "test", &target.url("/up"))).await?;
    captures(&edge, "default.test").await?;

    say(&edge, numbered(0, 30)).await?;
    edge.cut()?;
    say(&edge, numbered(30, 60)).await?;
    // While there is no agent the node's server keeps what comes.
    edge.kill9_agent().await?;
    say(&edge, numbered(60, 90)).await?;
    edge.start().await?;
    agent_serves(&edge).await?;
    say(&edge, numbered(90, 120)).await?;
    let came = target.calls().len();
    anyhow::ensure!(came <= 30, "{came} came through a link that is cut");
    edge.heal()?;
    eventually("some of what waited is there", 60, async || Ok(target.calls().len() > came)).await?;
    edge.kill9_all().await?;
    edge.start().await?;
    agent_serves(&edge).await?;
    say(&edge, numbered(120, 150)).await?;
    let got = || -> Vec<String> { target.calls().iter().map(crate::web::Call::text).collect() };
    let all = eventually("all is there", 60, async || Ok(target.calls().len() >= 150)).await;
    all.with_context(|| format!("of 0 to 149 there are {:?}", got()))?;
    let want: Vec<String> = (0..150).map(|n| n.to_string()).collect();
    anyhow::ensure!(got() == want, "{:?}", got());
    eventually("all are counted", 30, async || Ok(status(&cluster, "up").await?.0 == 150)).await?;

    // A node that fell between storing a message and acknowledging it carries it again: it is known by its name.
    let rule = cluster.kubectl_json(&["get", "rule.rules.kubeedge.io", "up"]).await?;
    let uid = rule["metadata"]["uid"].as_str().unwrap_or_default();
    let js = cluster.hub_js(Account::Control).await?;
    for (name, body) in [("1-a", "again"), ("1-a", "again"), ("2-a", "next")] {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("ew-rule-message", name);
        let to = format!("from.edge-a._rule.default.up.{uid}");
        js.publish_with_headers(to, headers, body.into()).await?.await?;
    }
    eventually("the next is there", 30, async || {
        Ok(target.calls().last().is_some_and(|call| call.text() == "next"))
    })
    .await?;
    let again = target.calls().iter().filter(|call| call.text() == "again").count();
    anyhow::ensure!(again == 1, "it came {again} times");
    cluster.done().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_device_was_acknowledged_reaches_a_rules_target_whatever_falls() -> anyhow::Result<()> {
    let cluster = Cluster::new("router-mqtt").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    let target = web(&cluster, FINE)?;
    cluster.apply(ENDPOINTS).await?;
    cluster.apply(&from_eventbus("up", "test", &target.url("/up"))).await?;
    captures(&edge, "default.test").await?;
    let operator = edge.operator()?;
    inside(&edge, async move || {
        let js = operator.js(Account::Work).await?;
        eventually("the server keeps what MQTT clients say for the rules", 30, async || {
            let stream = js.get_stream(STREAM_MQTT_MESSAGES).await?;
            Ok(stream.consumer_info("rules").await.is_ok())
        })
        .await
    })
    .await?;
    let made =
        on_node(&edge, &["creds", "create", "press", "-n", "default", "--topics", "default/#", "--json"])?;
    let made: Value = serde_json::from_str(&made)?;
    let device = Login::parse(made["env"]["MQTT_URL"].as_str().context("a door")?)?;
    let mut paho = Paho::start(&edge)?;
    paho.connect("press", &device, json!({})).await?;
    let mut said = 0_u8..;
    let mut say = async |paho: &mut Paho, count: usize| -> anyhow::Result<()> {
        for n in said.by_ref().take(count) {
            paho.publish("press", "default/test", &n.to_string(), 1 + n % 2).await?;
        }
        Ok(())
    };
    say(&mut paho, 20).await?;
    // Nobody was promised these.
    paho.publish("press", "default/test", "live", 0).await?;
    edge.kill9_agent().await?;
    say(&mut paho, 20).await?;
    edge.start().await?;
    agent_serves(&edge).await?;
    for _ in 0..3 {
        say(&mut paho, 20).await?;
        edge.kill9_leaf().await?;
        paho.wait("press", "being back", |event| event["event"] == "connected").await?;
    }
    let got = || -> Vec<String> {
        target.calls().iter().map(crate::web::Call::text).filter(|text| text != "live").collect()
    };
    let all = eventually("all that was acknowledged is there", 60, async || Ok(got().len() >= 100)).await;
    all.with_context(|| format!("of 0 to 99 there are {:?}", got()))?;
    let want: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    anyhow::ensure!(got() == want, "{:?}", got());
    cluster.done().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_target_holds_up_no_other_and_a_dead_one_is_told() -> anyhow::Result<()> {
    const MESSAGES: usize = 400;
    let cluster = Cluster::new("router-slow").await?;
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    let slow = web(&cluster, Answer { after: Duration::from_secs(20), ..FINE })?;
    let (fast, wrong) = (web(&cluster, FINE)?, web(&cluster, Answer { status: "400 Bad Request", ..FINE })?);
    cluster.apply(ENDPOINTS).await?;
    for (name, web) in [("slow", &slow), ("fast", &fast), ("wrong", &wrong)] {
        cluster.apply(&from_eventbus(name, name, &web.url("/"))).await?;
    }
    let mut picky = from_eventbus("picky", "picky", &fast.url("/picky"));
    picky.push_str("  filter: payload.c > 20.0\n  map: \"{'celsius': payload.c}\"\n");
    cluster.apply(&picky).await?;
    for topic in ["default.slow", "default.fast", "default.wrong", "default.picky"] {
        captures(&edge, topic).await?;
    }
    let each =
        (0..MESSAGES).flat_map(|n| ["slow", "fast"].map(|topic| (format!("default.{topic}"), n.to_string())));
    say(&edge, each.collect()).await?;
    eventually("all of the fast one's are there", 60, async || Ok(fast.calls().len() == MESSAGES)).await?;
    anyhow::ensure!(slow.calls().len() <= 4, "the slow one was not slow: {}", slow.calls().len());

    // What the target refuses is a dead letter with its reason, and the rule goes on.
    say(&edge, vec![("default.wrong".into(), "bad".into())]).await?;
    let (_, failed, errors) = eventually("the failure is told", 30, async || {
        Ok(Some(status(&cluster, "wrong").await?).filter(|(_, failed, _)| *failed > 0))
    })
    .await?;
    anyhow::ensure!(failed == 1 && errors[0].contains("400 Bad Request"), "{errors:?}");
    let dead = cluster.stored(Account::Control, "DEAD", "ew.dead.router").await?;
    anyhow::ensure!(dead.len() == 1 && dead[0].payload == b"bad", "{dead:?}");

    // Filter and map; an expression that fails on a message is told, too.
    let said =
        [r#"{"c": 19.5}"#, r#"{"c": 21.5}"#, "no json"].map(|body| ("default.picky".into(), body.to_owned()));
    say(&edge, said.into()).await?;
    eventually("the one that is wanted is there", 30, async || Ok(fast.calls().len() == MESSAGES + 1))
        .await?;
    let call = fast.calls().pop().unwrap();
    anyhow::ensure!(call.line == "POST /picky" && call.text() == r#"{"celsius":21.5}"#, "{call:?}");
    eventually("the one that failed is told", 30, async || {
        let (_, failed, errors) = status(&cluster, "picky").await?;
        Ok(failed == 1 && errors.iter().any(|error| error.contains("filter: ")))
    })
    .await?;
    slow.answer(FINE);
    cluster.done().await
}
