//! MQTT clients as users have them: paho, in a process of its own in a node's network, told what to do line by line.

#![allow(clippy::indexing_slicing)] // of JSON values: a field that is not there is null

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::{Edge, programs};

/// How long a client may take to tell what is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pinned wheel, as the set-up leaves it.
const WHEEL: &str = ".tools/python/paho_mqtt-2.2.0-py3-none-any.whl";

/// The library, as Python reads it: in `PYTHONPATH`.
pub fn wheel() -> PathBuf {
    programs::root().join(WHEEL)
}

/// Where MQTT is served, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Address of the server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// User.
    pub user: String,
    /// Password.
    pub password: String,
}

impl Login {
    /// From `mqtt://user:password@address:port`.
    pub fn parse(url: &str) -> anyhow::Result<Self> {
        let (login, address) = url
            .trim()
            .strip_prefix("mqtt://")
            .and_then(|rest| rest.split_once('@'))
            .with_context(|| format!("{url:?} is no MQTT URL with a login"))?;
        let (user, password) = login.split_once(':').context("a password")?;
        let (host, port) = address.split_once(':').context("a port")?;
        Ok(Self { host: host.into(), port: port.parse()?, user: user.into(), password: password.into() })
    }
}

/// All MQTT clients of a test on one node.
pub struct Paho {
    _child: Child,
    orders: ChildStdin,
    told: Lines<BufReader<ChildStdout>>,
    /// Told and not yet waited for.
    waiting: VecDeque<Value>,
}

impl Paho {
    /// Starts the process in the node's network.
    pub fn start(edge: &Edge) -> anyhow::Result<Self> {
        let wheel = wheel();
        anyhow::ensure!(wheel.is_file(), "EW-DEMO-SETUP: {} is missing; run `make setup`", wheel.display());
        let script = programs::root().join("tests/tests/e2e/mqtt_clients.py");
        let mut child = Command::new("nsenter")
            .arg(format!("--net={}", edge.namespace().display()))
            .args(["--", "python3", "-u"])
            .arg(script)
            .env("PYTHONPATH", wheel)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let orders = child.stdin.take().context("its input")?;
        let told = BufReader::new(child.stdout.take().context("its output")?).lines();
        Ok(Self { _child: child, orders, told, waiting: VecDeque::new() })
    }

    /// Has a client do something; see the script.
    pub async fn order(&mut self, client: &str, what: &str, mut order: Value) -> anyhow::Result<()> {
        order["c"] = json!(client);
        order["do"] = json!(what);
        Ok(self.orders.write_all(format!("{order}\n").as_bytes()).await?)
    }

    /// Connects a client, whatever comes of it; `more` as the script has it.
    pub async fn connecting(&mut self, client: &str, login: &Login, more: Value) -> anyhow::Result<Value> {
        let mut order =
            json!({"host": login.host, "port": login.port, "user": login.user, "password": login.password});
        for (name, value) in more.as_object().into_iter().flatten() {
            order[name] = value.clone();
        }
        self.order(client, "connect", order).await?;
        self.wait(client, "an answer to its CONNECT", |event| {
            event["event"] == "connected" || event["event"] == "refused"
        })
        .await
    }

    /// Connects a client.
    pub async fn connect(&mut self, client: &str, login: &Login, more: Value) -> anyhow::Result<Value> {
        let answer = self.connecting(client, login, more).await?;
        anyhow::ensure!(answer["event"] == "connected", "{client}: {answer}");
        Ok(answer)
    }

    /// Subscribes; says whether it was granted.
    pub async fn subscribe(&mut self, client: &str, topic: &str, qos: u8) -> anyhow::Result<bool> {
        self.order(client, "subscribe", json!({"topic": topic, "qos": qos})).await?;
        let answer = self.wait(client, "a SUBACK", |event| event["event"] == "subscribed").await?;
        Ok(answer["granted"] == true)
    }

    /// Publishes, and waits for the acknowledgement that the quality of service has.
    pub async fn publish(&mut self, client: &str, topic: &str, payload: &str, qos: u8) -> anyhow::Result<()> {
        self.publish_as(client, json!({"topic": topic, "payload": payload, "qos": qos})).await
    }

    /// As [`publish`](Self::publish), with what else the script has.
    pub async fn publish_as(&mut self, client: &str, order: Value) -> anyhow::Result<()> {
        let payload = order["payload"].clone();
        self.order(client, "publish", order).await?;
        let sent = self
            .wait(client, "its own publishing", |event| {
                event["event"] == "publishing" && event["payload"] == payload
            })
            .await?;
        self.wait(client, "an acknowledgement", |event| {
            event["event"] == "published" && event["mid"] == sent["mid"]
        })
        .await
        .map(drop)
    }

    /// Waits until the client hears that; gives the event.
    pub async fn hears(&mut self, client: &str, payload: &str) -> anyhow::Result<Value> {
        self.wait(client, &format!("{payload:?}"), |event| {
            event["event"] == "heard" && event["payload"] == payload
        })
        .await
    }

    /// Waits for an event of that client; those of before stay.
    pub async fn wait(
        &mut self,
        client: &str,
        what: &str,
        is: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let mut at = 0;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            while let Some(event) = self.waiting.get(at) {
                if event["c"] == client && is(event) {
                    return self.waiting.remove(at).context("it was there");
                }
                at += 1;
            }
            let line = tokio::time::timeout_at(deadline, self.told.next_line()).await;
            let line =
                line.map_err(|_| anyhow::anyhow!("{client} never tells {what}, only {:?}", self.waiting))??;
            self.waiting.push_back(serde_json::from_str(&line.context("the clients ended")?)?);
        }
    }

    /// What that client heard so far and nobody waited for.
    pub fn heard(&mut self, client: &str) -> Vec<(String, String)> {
        let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
        let (of_client, others) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|event| event["c"] == client && event["event"] == "heard");
        self.waiting = others;
        let of_client: VecDeque<Value> = of_client;
        of_client.iter().map(|event| (text(event, "topic"), text(event, "payload"))).collect()
    }
}
