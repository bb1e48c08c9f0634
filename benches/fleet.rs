//! A fleet after the hub was killed: as many real leaf servers as told, each enrolled over the real endpoint and with a real
//! `sync` of its own. They have no agent process and no containerd: all their modules are in this process.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bus::connection::{Bus, Connector, Login, Mint, dial};
use bus::durable::Durable;
use bus::host::Host;
use bus::identity::{Permissions, membership};
use bus::module::Account;
use bus::provision::{self, Place};
use bus::runner::Spec;
use bus::server::child::{Files, Record};
use bus::server::{LeafConfig, LeafServer, User};
use futures::{StreamExt, TryStreamExt};
use nix::sys::signal::Signal;
use reqwest::Method;
use schemas::name::NodeName;
use schemas::subject;
use serde_json::json;
use sync::edge::Sync;
use sync::facts::NodeConfig;
use sync::rim::EdgeRim;
use tests::cluster::pods::{IDLE, pod};
use tests::cluster::{Cluster, programs};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::api::{Api, PATIENCE};
use crate::{row, until};

/// Rounds of killing the hub.
const KILLS: usize = 3;
/// Leafs that are made beside each other.
const BESIDE: usize = 4;
const STORE_MAX_BYTES: u64 = 1 << 30;
/// Between two looks at a leaf's links.
const LOOK: Duration = Duration::from_millis(300);
/// Between two tries of an edit while the hub is down.
const EDIT_LOOK: Duration = Duration::from_millis(20);
/// Between two kills: each meets a fleet at rest, as all links stood before it.
const PAUSE: Duration = Duration::from_secs(5);
const READY: Duration = Duration::from_secs(60);
/// Looks for servers that are still there after the end, and what lies between them: longer than a supervisor's first pauses.
const GONE_LOOKS: u32 = 10;
const GONE_LOOK: Duration = Duration::from_millis(200);

/// One of them.
struct Leaf {
    node: NodeName,
    server: Arc<LeafServer>,
    /// A connection to its own bus, and one in its server's own account.
    bus: Bus,
    system: async_nats::Client,
    modules: AbortOnDropHandle<()>,
}

/// Kills the servers on every way out.
struct Fleet {
    dirs: Vec<std::path::PathBuf>,
}

impl Fleet {
    fn servers(&self) -> Vec<Record> {
        let files = |dir: &Path| Files { dir: dir.join("nats"), name: "nats-server" };
        self.dirs.iter().filter_map(|dir| Record::find(&files(dir))).collect()
    }
}

impl Drop for Fleet {
    /// More than once: who looks after a server ends when its task is next run, and until then starts what was killed anew.
    fn drop(&mut self) {
        for _ in 0..GONE_LOOKS {
            for server in self.servers() {
                server.signal(Signal::SIGKILL);
            }
            std::thread::sleep(GONE_LOOK);
        }
    }
}

/// See the file's words.
pub async fn run(count: usize) -> anyhow::Result<()> {
    let cluster = Cluster::new("bench-fleet").await?;
    cluster.hub().start().await?;
    let api = Api::of(&cluster).await?;
    let token = cluster.hub().token(u32::try_from(count)?, 3600).await?;
    let names: Vec<String> = (0..count).map(|n| format!("leaf-{n}")).collect();
    let base = cluster.site().dir.join("fleet");
    let fleet = Fleet { dirs: names.iter().map(|name| base.join(name)).collect() };
    let stop = CancellationToken::new();
    let leafs: Vec<Leaf> = futures::stream::iter(names.iter().zip(&fleet.dirs))
        .map(|(name, dir)| leaf(name, dir, &token, &stop))
        .buffer_unordered(BESIDE)
        .try_collect()
        .await?;
    eprintln!("{count} leafs run");
    let config = |text: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "fleet"}, "data": {"n": text}});
    let configs = "/api/v1/namespaces/default/configmaps";
    let heard = writes(&leafs).await?;
    api.send(Method::POST, configs, &config("first")).await?;
    for name in &names {
        let mut pod = pod(&format!("on-{name}"), name, IDLE);
        if let Some(spec) = pod.get_mut("spec").and_then(serde_json::Value::as_object_mut) {
            spec.insert("volumes".into(), json!([{"name": "v", "configMap": {"name": "fleet"}}]));
        }
        api.send(Method::POST, "/api/v1/namespaces/default/pods", &pod).await?;
    }
    current(heard, "first").await?;
    let (mut linked, mut all, mut since_start) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..KILLS * 2 {
        // In turn: the hub with its server, which this starts again at once; and its server alone, which the hub does.
        let whole = n % 2 == 0;
        let text = format!("after-{n}");
        let heard = writes(&leafs).await?;
        let before = futures::future::try_join_all(leafs.iter().map(Leaf::links)).await?;
        let killed = Instant::now();
        if whole {
            cluster.hub().kill9().await?;
            cluster.hub().start().await?;
        } else {
            cluster.hub().kill9_server().await?;
        }
        let edit = async {
            until("the hub takes an edit", EDIT_LOOK, async || {
                api.send(Method::PUT, &format!("{configs}/fleet"), &config(&text)).await.map(|()| true)
            })
            .await?;
            let serves = Instant::now();
            current(heard, &text).await?;
            anyhow::Ok((killed.elapsed(), serves.elapsed()))
        };
        let links = async { links(&leafs, &before).await.map(|()| killed.elapsed()) };
        let ((done, served), links) = tokio::try_join!(edit, links)?;
        eprintln!(
            "killed (whole: {whole}): links {links:.2?}, all current {done:.2?}, {served:.2?} after the edit"
        );
        linked.push(links);
        all.push(done);
        since_start.push(served);
        tokio::time::sleep(PAUSE).await;
    }
    row(&format!("{count} leafs, the hub or its server killed: all links stand"), &mut linked, "");
    row(&format!("{count} leafs: all have an edit made after the kill"), &mut all, "<= 5 s");
    row("of it: from the edit's acknowledgement", &mut since_start, "");
    stop.cancel();
    for leaf in leafs {
        leaf.modules.await?;
        leaf.server.stop().await?;
    }
    drop(fleet);
    cluster.done().await
}

/// Enrols a leaf and starts its server and its `sync`.
async fn leaf(name: &str, dir: &Path, token: &str, stop: &CancellationToken) -> anyhow::Result<Leaf> {
    let mut join = tokio::process::Command::new(programs::ours("edge-runtime"));
    join.args(["join", token, "--name", name]).arg("--data-dir").arg(dir).kill_on_drop(true);
    let joined = join.output().await?;
    anyhow::ensure!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
    let (_, link) = membership::load(dir)?.context("it has joined")?;
    let node = NodeName::new(name)?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let config = LeafConfig {
        node: node.clone(),
        data_dir: dir.join("nats"),
        listen: port,
        mqtt: None,
        binary: Some(programs::nats_server()),
        store_max_bytes: STORE_MAX_BYTES,
        hub: Some(link),
    };
    let server = Arc::new(LeafServer::start(config).await?);
    server.ready(READY).await?;
    let connector = connector(&server, &node);
    for account in [Account::Control, Account::Work] {
        let permissions = provision::permissions(&connector.domain);
        let bus = connector.connect_with("provision", permissions, account).await?;
        provision::provision(&bus, Place::Edge).await?;
    }
    let judge = User::new("judge", Account::Control, Permissions::full());
    server.put_users(vec![judge.clone()]).await?;
    let login = Login::Password { user: judge.name, password: judge.password };
    let (inbox, domain) = (subject::inbox("judge"), subject::domain_edge(&node));
    let bus = dial(server.url(), None, login, "judge", inbox, Account::Control, &domain).await?;
    let (durable, _) = Durable::open(&dir.join("state"))?;
    let mut host = Host::new(connector, durable, stop);
    let spec =
        Spec { name: sync::edge::NAME, flows: sync::edge::flows(&node), tick: Duration::from_millis(250) };
    let facts = NodeConfig { data_dir: dir.to_owned(), version: "bench".into(), ..NodeConfig::default() };
    let (name, rim_server) = (node.clone(), server.clone());
    host.module(spec, move || {
        let boot = "bench".to_owned();
        let rim = EdgeRim::new(name.clone(), boot.clone(), facts.clone(), rim_server.clone());
        (Sync::new(name.clone(), boot, Vec::new()), rim)
    });
    let modules = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = host.run().await {
            eprintln!("a leaf's modules ended: {error}");
        }
    }));
    let system = server.sys_client().await?;
    Ok(Leaf { node, server, bus, system, modules })
}

/// Users of the leaf's own server, with what the flows give.
fn connector(server: &Arc<LeafServer>, node: &NodeName) -> Connector {
    let of = server.clone();
    let mint: Mint = Arc::new(move |account, owner, permissions| {
        let of = of.clone();
        Box::pin(async move {
            let name = format!("mod-{owner}-{}", account.as_str().to_lowercase());
            let users = of.ensure_users(vec![(name, account, permissions)]).await;
            let user = users.map_err(|error| error.to_string())?.pop().ok_or("no user")?;
            Ok(Login::Password { user: user.name, password: user.password })
        })
    });
    let domain = subject::domain_edge(node);
    Connector { node: node.as_str().to_owned(), domain, url: server.url().to_owned(), ca: None, mint }
}

/// What is written to every leaf's own store from now on.
async fn writes(leafs: &[Leaf]) -> anyhow::Result<Vec<async_nats::Subscriber>> {
    let mut all = Vec::new();
    for leaf in leafs {
        all.push(leaf.bus.client().subscribe(subject::kv(subject::BUCKET_LOCAL, "configmaps.>")).await?);
        leaf.bus.client().flush().await?;
    }
    Ok(all)
}

/// Waits until every leaf has that edit in its own store.
async fn current(writes: Vec<async_nats::Subscriber>, text: &str) -> anyhow::Result<()> {
    let each = writes.into_iter().map(|mut writes| async move {
        loop {
            let next =
                tokio::time::timeout(PATIENCE, writes.next()).await.context("an edit does not come")?;
            let payload = next.context("the leaf's connection ended")?.payload;
            if payload.windows(text.len()).any(|part| part == text.as_bytes()) {
                return anyhow::Ok(());
            }
        }
    });
    futures::future::try_join_all(each).await.map(drop)
}

impl Leaf {
    /// The server's numbers for its links to the hub.
    async fn links(&self) -> anyhow::Result<BTreeSet<u64>> {
        let ask = format!("$SYS.REQ.SERVER.{}.LEAFZ", self.system.server_info().server_id);
        let answer = self.system.request(ask, "{}".into()).await?;
        let answer: serde_json::Value = serde_json::from_slice(&answer.payload)?;
        let leafs = answer.pointer("/data/leafs").and_then(serde_json::Value::as_array);
        let number = |link: &serde_json::Value| link.get("id").and_then(serde_json::Value::as_u64);
        Ok(leafs.into_iter().flatten().filter_map(number).collect())
    }
}

/// Waits until every leaf has both of its links, and neither is one from before.
async fn links(leafs: &[Leaf], before: &[BTreeSet<u64>]) -> anyhow::Result<()> {
    let each = leafs.iter().zip(before).map(|(leaf, before)| async move {
        until(&format!("{} has its links", leaf.node), LOOK, async || {
            let now = leaf.links().await?;
            Ok(now.len() == 2 && now.is_disjoint(before))
        })
        .await
    });
    futures::future::try_join_all(each).await.map(drop)
}
