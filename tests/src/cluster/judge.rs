//! Views from outside: `kubectl`, `ctr`, and the hub's streams as they stand, through the operator's own login.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use bus::connection::{Bus, Login, dial};
use bus::module::Account;
use futures::StreamExt;
use schemas::subject;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::programs::{self, Version};
use super::site::Site;
use super::{Cluster, command, eventually};

/// One call of kubectl may take so long.
const KUBECTL_TIMEOUT: Duration = Duration::from_secs(90);
/// One call of edgewire may take so long.
const EDGEWIRE_TIMEOUT: Duration = Duration::from_secs(30);
/// Reading a stream waits so long for its next message.
const STREAM_TIMEOUT: Duration = Duration::from_secs(15);
/// Heartbeats are waited for so long.
const HEARTBEATS_TIMEOUT: Duration = Duration::from_secs(60);
/// containerd's namespace of a node's containers.
const CONTAINERD_NAMESPACE: &str = "edgewire";

/// What a program said.
#[derive(Debug, Clone)]
pub struct Output {
    /// What was called, for messages.
    pub call: String,
    /// Did it succeed?
    pub success: bool,
    /// Its output.
    pub stdout: String,
    /// Its complaints.
    pub stderr: String,
}

impl Output {
    /// The output of a success; of a failure, the complaints as an error.
    pub fn ok(self) -> anyhow::Result<String> {
        anyhow::ensure!(self.success, "`{}` failed: {}", self.call, self.stderr.trim());
        Ok(self.stdout)
    }
}

/// Runs a program to its end, with `input`.
pub(super) async fn run(mut command: Command, input: &str, timeout: Duration) -> anyhow::Result<Output> {
    let std = command.as_std();
    let words = std.get_args().map(|arg| arg.to_string_lossy());
    let call = format!("{} {}", std.get_program().to_string_lossy(), words.collect::<Vec<_>>().join(" "));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("cannot run `{call}`"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input closes it.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = tokio::time::timeout(timeout, child.wait_with_output()).await;
    let output = output.with_context(|| format!("`{call}` did not end within {} s", timeout.as_secs()))??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let success = output.status.success();
    Ok(Output { call, success, stdout: text(&output.stdout), stderr: text(&output.stderr) })
}

/// The command `kubectl`, for this cluster and no other.
pub(super) fn kubectl_command(site: &Site, args: &[&str]) -> Command {
    let mut command = Command::new("kubectl");
    command.arg("--kubeconfig").arg(&site.kubeconfig).arg("--cache-dir").arg(site.dir.join("kubectl-cache"));
    command.args(args).env("PATH", programs::path()).env_remove("KUBECONFIG");
    // The hub is on this machine.
    for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env_remove(name);
    }
    command
}

pub(super) async fn kubectl(site: &Site, args: &[&str]) -> anyhow::Result<Output> {
    kubectl_with(site, args, "").await
}

pub(super) async fn kubectl_with(site: &Site, args: &[&str], input: &str) -> anyhow::Result<Output> {
    run(kubectl_command(site, args), input, KUBECTL_TIMEOUT).await
}

/// A running container, as `ctr` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its ID.
    pub id: String,
    /// Its process.
    pub pid: i32,
    /// Namespace of its pod.
    pub namespace: String,
    /// Name of its pod.
    pub pod: String,
    /// UID of its pod.
    pub uid: String,
    /// Its own name.
    pub container: String,
    /// Which start of it this is, from 0.
    pub attempt: u32,
}

#[derive(Deserialize)]
struct Info {
    #[serde(rename = "Labels", default)]
    labels: std::collections::BTreeMap<String, String>,
}

pub(super) fn ctr(socket: &Path, args: &[&str]) -> anyhow::Result<String> {
    let socket = socket.to_string_lossy();
    command("ctr", &[&["-a", &socket, "-n", CONTAINERD_NAMESPACE], args].concat())
}

pub(super) fn running(socket: &Path) -> anyhow::Result<Vec<Running>> {
    let tasks = ctr(socket, &["tasks", "ls"])?;
    let mut running = Vec::new();
    for line in tasks.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [id, pid, "RUNNING"] = fields.as_slice() else { continue };
        let info: Info = serde_json::from_str(&ctr(socket, &["containers", "info", id])?)?;
        let label = |name: &str| info.labels.get(name).cloned().unwrap_or_default();
        running.push(Running {
            id: (*id).to_owned(),
            pid: pid.parse()?,
            namespace: label("io.kubernetes.pod.namespace"),
            pod: label("io.kubernetes.pod.name"),
            uid: label("io.kubernetes.pod.uid"),
            container: label("io.kubernetes.container.name"),
            attempt: label("io.edgewire/attempt").parse().unwrap_or_default(),
        });
    }
    Ok(running)
}

/// Answer of `GET /edgewire/v1/bus`.
#[derive(Deserialize)]
struct BusAnswer {
    url: String,
    ca_pem: String,
    control: HubLogin,
    work: HubLogin,
    inbox: String,
}

#[derive(Deserialize)]
struct HubLogin {
    jwt: String,
    seed: String,
}

/// A message as a stream holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// Its headers; the first value of each.
    pub headers: std::collections::BTreeMap<String, String>,
    /// Its body.
    pub payload: Vec<u8>,
    /// When it was stored, in ms since 1970.
    pub at_ms: i64,
}

impl Cluster {
    /// `kubectl` with these arguments.
    pub async fn kubectl(&self, args: &[&str]) -> anyhow::Result<Output> {
        kubectl(self.site(), args).await
    }

    /// `kubectl` with something to read (`-f -`).
    pub async fn kubectl_with(&self, args: &[&str], input: &str) -> anyhow::Result<Output> {
        kubectl_with(self.site(), args, input).await
    }

    /// The output of `kubectl`; its failure is an error.
    pub async fn kubectl_ok(&self, args: &[&str]) -> anyhow::Result<String> {
        self.kubectl(args).await?.ok()
    }

    /// The output of `edgewire` at the hub; its failure is an error.
    pub async fn edgewire_ok(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(programs::ours("edgewire"));
        command.args(args).arg("--kubeconfig").arg(&self.site().kubeconfig);
        run(command, "", EDGEWIRE_TIMEOUT).await?.ok()
    }

    /// `kubectl … -o json`.
    pub async fn kubectl_json(&self, args: &[&str]) -> anyhow::Result<serde_json::Value> {
        let text = self.kubectl_ok(&[args, &["-o", "json"]].concat()).await?;
        serde_json::from_str(&text).context("kubectl did not say JSON")
    }

    /// `kubectl` as a command of the caller's, for what runs on (`get -w`, `logs -f`, `exec`).
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        kubectl_command(self.site(), args)
    }

    /// `kubectl apply` of a manifest (YAML or JSON).
    pub async fn apply(&self, manifest: &str) -> anyhow::Result<()> {
        self.kubectl_with(&["apply", "-f", "-"], manifest).await?.ok().map(drop)
    }

    /// Waits for so many heartbeats of a node that come to the hub from now on: its link stands.
    pub async fn heartbeats(&self, node: &str, count: usize) -> anyhow::Result<()> {
        let bus = self.hub_bus(Account::Control).await?;
        let heard = bus.listen(&subject::heartbeat(&schemas::name::NodeName::new(node)?)).await?;
        let beats = heard.take(count).count();
        let beats = tokio::time::timeout(HEARTBEATS_TIMEOUT, beats).await;
        beats.map(drop).with_context(|| format!("{node} is not heard at the hub"))
    }

    /// A connection to the hub's bus with the operator's login. A hub whose server was just killed is waited for.
    pub async fn hub_bus(&self, account: Account) -> anyhow::Result<Bus> {
        eventually("the hub's bus is open to its operator", 30, async || {
            self.dial_hub(account).await.map(Some)
        })
        .await
    }

    async fn dial_hub(&self, account: Account) -> anyhow::Result<Bus> {
        let answer = self.kubectl_ok(&["get", "--raw", "/edgewire/v1/bus"]).await?;
        let answer: BusAnswer = serde_json::from_str(&answer).context("the hub's login is not understood")?;
        let ca = self.site().dir.join("judge-ca.pem");
        std::fs::write(&ca, &answer.ca_pem).with_context(|| format!("cannot write {}", ca.display()))?;
        let login = match account {
            Account::Control => answer.control,
            Account::Work => answer.work,
        };
        let login = Login::Jwt { jwt: login.jwt, seed: login.seed };
        Ok(dial(&answer.url, Some(ca), login, "judge", answer.inbox, account, subject::DOMAIN_HUB).await?)
    }

    /// The account of the hub's stream FROM. Hubs of the version before had it in WORK.
    pub fn from_account(&self) -> Account {
        match self.hub().version() {
            Version::Present => Account::Control,
            Version::Previous => Account::Work,
        }
    }

    /// The hub's streams of an account, raw.
    pub async fn hub_js(&self, account: Account) -> anyhow::Result<async_nats::jetstream::Context> {
        let bus = self.hub_bus(account).await?;
        Ok(async_nats::jetstream::with_domain(bus.client().clone(), subject::DOMAIN_HUB))
    }

    /// All that a stream of the hub holds on `filter`, in its order.
    pub async fn stored(&self, account: Account, stream: &str, filter: &str) -> anyhow::Result<Vec<Stored>> {
        use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
        let stream = self.hub_js(account).await?.get_stream(stream).await?;
        let config = pull::Config {
            filter_subject: filter.to_owned(),
            ack_policy: AckPolicy::None,
            deliver_policy: DeliverPolicy::All,
            inactive_threshold: Duration::from_secs(60),
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await?;
        let mut stored = Vec::new();
        if consumer.cached_info().num_pending == 0 {
            return Ok(stored);
        }
        let mut messages = consumer.messages().await?;
        loop {
            let next = tokio::time::timeout(STREAM_TIMEOUT, messages.next()).await;
            let message =
                next.context("the stream's next message does not come")?.context("the stream ended")??;
            let info = message.info().map_err(|error| anyhow::anyhow!("{error}"))?;
            let last = info.pending == 0;
            let headers = message.headers.iter().flat_map(|headers| headers.iter());
            let first =
                headers.filter_map(|(name, values)| Some((name.to_string(), values.first()?.to_string())));
            stored.push(Stored {
                sequence: info.stream_sequence,
                at_ms: i64::try_from(info.published.unix_timestamp_nanos() / 1_000_000)?,
                headers: first.collect(),
                subject: message.subject.to_string(),
                payload: message.payload.to_vec(),
            });
            if last {
                return Ok(stored);
            }
        }
    }
}
