//! Which modules run on a node, and what each is given.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bus::connection::{Connector, Login, Mint};
use bus::durable::Durable;
use bus::flow::{self, Flow};
use bus::host::{self, Host};
use bus::identity::{Permissions, membership, write_private};
use bus::module::Account;
use bus::provision::{self, Place};
use bus::runner::Spec;
use bus::server::{LeafConfig, LeafServer, ServerError};
use containers::runtime::RuntimeConfig;
use credentials::{Credentials, CredentialsRim};
use door::{DoorModule, DoorRim};
use identity::edge::{Membership, MembershipRim};
use router::edge::{Router, RouterRim};
use schemas::name::NodeName;
use schemas::subject;
use sync::edge::Sync;
use sync::facts::NodeConfig;
use sync::rim::EdgeRim;
use tokio_util::sync::CancellationToken;
use topicmap::{TopicMapRim, TopicMaps};

use crate::config::Config;
use crate::containerd::{self, Containerd};
use crate::network;

/// How long the node's bus may take to be ready; a large store takes a while to be read.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Bound of all streams together.
const STORE_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// The modules' clock.
const TICK: Duration = Duration::from_millis(250);
/// The directory of the node's server.
pub const LEAF_DIR: &str = "nats";
/// Streams are made again so often: one that the server lost is back by then.
const PROVISION_INTERVAL: Duration = Duration::from_secs(15);

/// Runs the node until `stop`.
pub async fn run(config: &Config, stop: &CancellationToken) -> anyhow::Result<()> {
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("EW-DATA-DIR: cannot make {}", config.data_dir.display()))?;
    let joined = membership::load(&config.data_dir)?;
    let (node, hub) = match (joined, &config.node) {
        (Some((membership, _)), Some(name)) if membership.node != *name => bail!(
            "EW-NODE-NAME: this machine joined as {}, but is told to be {name}; use another data directory",
            membership.node
        ),
        (Some((membership, mut link)), _) => {
            if let Some(proxy) = &config.proxy {
                link.proxy = proxy.clone();
            }
            (membership.node, Some(link))
        }
        (None, Some(name)) => (name.clone(), None),
        (None, None) => {
            bail!("EW-NOT-JOINED: this node has not joined a hub; run `edgewire join TOKEN` first")
        }
    };
    if let Some(link) = &hub {
        let through = link.proxy.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
        tracing::info!(ways = link.urls.join(" "), proxy = through, "the ways to the hub");
    }
    network::ensure_bridge(&config.bridge, config.pod_cidr).await?;
    let reserve = config.data_dir.join(sync::housekeeping::RESERVE);
    let (durable, broken) = Durable::open_with_reserve(&config.data_dir.join("state"), reserve)?;
    let mut notices: Vec<(String, String)> =
        broken.into_iter().map(|text| ("StoreReplaced".to_owned(), text)).collect();

    let private = match &config.containerd {
        None => Some(Arc::new(Containerd::start(&config.data_dir).await?)),
        Some(_) => None,
    };
    let leaf = Arc::new(
        LeafServer::start(LeafConfig {
            node: node.clone(),
            data_dir: config.data_dir.join(LEAF_DIR),
            listen: (config.pod_cidr.gateway(), config.bus_port).into(),
            mqtt: config.mqtt_port.map(|port| (config.pod_cidr.gateway(), port).into()),
            binary: config.nats_server.clone(),
            store_max_bytes: STORE_BYTES_MAX,
            hub,
        })
        .await?,
    );
    leaf.ready(READY_TIMEOUT).await?;
    let status = leaf.status().borrow().clone();
    if let Some(moved) = status.store_moved {
        notices
            .push(("StoreReplaced".to_owned(), format!("{}; moved to {}", moved.reason, moved.to.display())));
    }
    if let Some(address) = status.left_out {
        let error = ServerError::PortInUse { address };
        notices.push((
            "MqttPortTaken".to_owned(),
            format!("{error}; the node runs without MQTT until its next start"),
        ));
    }
    let mqtt = config.mqtt_port.is_some();
    let connector = connector(&leaf, &node);
    register(&leaf, &connector, &node).await?;
    provision_all(&connector, mqtt).await?;
    let mut host = Host::new(connector.clone(), durable, stop);
    modules(&mut host, config, &node, &leaf, notices);
    operator(&leaf, config, &node).await?;
    tracing::info!(%node, bus = leaf.url(), "node runs");

    let keeping = tokio::spawn(keep_streams(leaf.clone(), connector, mqtt, stop.clone()));
    let containerd = private.clone().map(|private| {
        let stop = stop.clone();
        tokio::spawn(async move { private.keep(stop).await })
    });
    let ended = host.run().await;
    keeping.abort();
    if let Some(task) = containerd {
        task.abort();
    }
    // A stop is not an end: workloads go on, and so does what they talk to. `edge-runtime` adopts it all again.
    leaf.leave_running().await?;
    Ok(ended?)
}

/// Every module that runs here, with its flows.
fn all_flows(node: &NodeName) -> Vec<(&'static str, Vec<Flow>)> {
    vec![
        (sync::edge::NAME, sync::edge::flows(node)),
        (containers::MODULE, containers::flows(node)),
        (credentials::NAME, credentials::flows(node)),
        (door::NAME, door::flows()),
        (identity::edge::NAME, identity::edge::flows(node)),
        (router::NAME, router::edge::flows(node)),
        (topicmap::NAME, topicmap::flows()),
        ("host", host::flows(node.as_str())),
    ]
}

fn user_name(account: Account, owner: &str) -> String {
    format!("mod-{owner}-{}", account.as_str().to_lowercase())
}

/// All users of the modules in one change of the server's config.
async fn register(leaf: &LeafServer, connector: &Connector, node: &NodeName) -> anyhow::Result<()> {
    let mut users = Vec::new();
    for account in [Account::Control, Account::Work] {
        for (owner, flows) in all_flows(node) {
            let permissions = flow::permissions(node.as_str(), owner, &flows, account, &connector.domain);
            users.push((user_name(account, owner), account, permissions));
        }
        let permissions = provision::permissions(&connector.domain);
        users.push((user_name(account, "provision"), account, permissions));
        users.push((user_name(account, "operator"), account, Permissions::full()));
    }
    Ok(leaf.ensure_users(users).await.map(drop)?)
}

/// Connects modules as users of the node's own server, each with what its flows declare.
fn connector(leaf: &Arc<LeafServer>, node: &NodeName) -> Connector {
    let server = leaf.clone();
    let mint: Mint = Arc::new(move |account, owner, permissions| {
        let server = server.clone();
        Box::pin(async move {
            let name = user_name(account, &owner);
            let wanted = vec![(name.clone(), account, permissions)];
            server.ensure_users(wanted).await.map_err(|error| error.to_string())?;
            let user = server.user(&name).await.ok_or("the user is not there")?;
            Ok(Login::Password { user: user.name, password: user.password })
        })
    });
    Connector {
        node: node.as_str().to_owned(),
        domain: subject::domain_edge(node),
        url: leaf.url().to_owned(),
        ca: None,
        mint,
    }
}

async fn provision_all(connector: &Connector, mqtt: bool) -> anyhow::Result<()> {
    for account in [Account::Control, Account::Work] {
        let permissions = provision::permissions(&connector.domain);
        let bus = connector.connect_with("provision", permissions, account).await?;
        provision::provision(&bus, Place::Edge).await?;
        if mqtt && account == Account::Work {
            provision::provision_mqtt(&bus).await?;
        }
    }
    Ok(())
}

/// Streams that the server lost (measured: damaged metadata makes it start without the stream, and making it again brings
/// its messages back) are made again, soon after each start of the server and from time to time.
async fn keep_streams(leaf: Arc<LeafServer>, connector: Connector, mqtt: bool, stop: CancellationToken) {
    let mut status = leaf.status();
    while !stop.is_cancelled() {
        let changed = tokio::time::timeout(PROVISION_INTERVAL, status.changed()).await;
        if matches!(changed, Ok(Err(_))) {
            return;
        }
        if let Err(error) = provision_all(&connector, mqtt).await {
            tracing::debug!(%error, "streams are made again at the next turn");
        }
    }
}

fn modules(
    host: &mut Host,
    config: &Config,
    node: &NodeName,
    leaf: &Arc<LeafServer>,
    notices: Vec<(String, String)>,
) {
    let boot_id = schemas::object::new_uid();
    let facts = NodeConfig {
        labels: config.labels.clone(),
        address: config.address.clone(),
        version: format!("v{}", env!("CARGO_PKG_VERSION")),
        data_dir: config.data_dir.clone(),
    };
    let notices = std::sync::Mutex::new(notices);
    let (name, server) = (node.clone(), leaf.clone());
    let (link_return_ms, caps) = (config.link_return_ms, config.uplink_caps.clone());
    host.module(spec(sync::edge::NAME, sync::edge::flows(node)), move || {
        // Told once: by the first incarnation.
        let notices = std::mem::take(&mut *notices.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        let rim = EdgeRim::new(name.clone(), boot_id.clone(), facts.clone(), server.clone());
        let sync = Sync::new(name.clone(), boot_id.clone(), notices);
        (sync.returning_after(link_return_ms).capped(caps.clone()), rim)
    });
    let server = leaf.clone();
    let name = node.clone();
    let http = config.http_port.map(|port| SocketAddr::from((config.pod_cidr.gateway(), port)));
    host.module(spec(credentials::NAME, credentials::flows(node)), move || {
        (Credentials::new(name.clone()), CredentialsRim { server: server.clone(), http })
    });
    if let Some(listen) = http {
        let (name, bus_url) = (node.clone(), leaf.url().to_owned());
        host.module(spec(door::NAME, door::flows()), move || {
            (DoorModule::new(name.clone()), DoorRim { listen, bus_url: bus_url.clone() })
        });
    }
    let (name, data_dir, server) = (node.clone(), config.data_dir.clone(), leaf.clone());
    host.module(spec(identity::edge::NAME, identity::edge::flows(node)), move || {
        let rim = MembershipRim::new(name.clone(), data_dir.clone(), server.clone());
        (Membership::new(name.clone()), rim)
    });
    let (name, service_bus) = (node.clone(), config.service_bus);
    host.module(spec(router::NAME, router::edge::flows(node)), move || {
        (Router::new(name.clone()), RouterRim::new(name.clone(), service_bus))
    });
    let (name, server) = (node.clone(), leaf.clone());
    host.module(spec(topicmap::NAME, topicmap::flows()), move || {
        let rim = TopicMapRim::new(server.clone(), user_name(Account::Work, topicmap::NAME));
        (TopicMaps::new(name.clone()), rim)
    });
    let runtime = runtime_config(config);
    let (name, address) = (node.clone(), config.address.clone().unwrap_or_default());
    host.module(spec(containers::MODULE, containers::flows(node)), move || {
        let rim = containers::ContainersRim::new(name.clone(), address.clone(), runtime.clone());
        (containers::Containers::new(name.clone(), schemas::object::new_uid()), rim)
    });
}

fn runtime_config(config: &Config) -> RuntimeConfig {
    RuntimeConfig {
        socket: config.containerd.clone().unwrap_or_else(|| containerd::socket(&config.data_dir)),
        namespace: config.containerd_namespace.clone(),
        data_dir: config.data_dir.join("containers"),
        bridge: config.bridge.clone(),
        pod_cidr: config.pod_cidr.to_string(),
        image_dirs: config.images.clone(),
        ..RuntimeConfig::default()
    }
}

/// What `edgewire --edge DIR` needs to look at this node's bus, also with no hub in reach. For root's eyes.
async fn operator(leaf: &LeafServer, config: &Config, node: &NodeName) -> anyhow::Result<()> {
    let user = |account| leaf_user(leaf, account);
    let (control, work) = (user(Account::Control).await?, user(Account::Work).await?);
    let json = serde_json::json!({
        "url": leaf.url(), "node": node,
        "user": control.0, "control_password": control.1, "work_user": work.0, "work_password": work.1,
    });
    let path = config.data_dir.join("operator.json");
    write_private(&path, json.to_string().as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}

async fn leaf_user(leaf: &LeafServer, account: Account) -> anyhow::Result<(String, String)> {
    let user =
        leaf.user(&user_name(account, "operator")).await.context("the operator's user is not there")?;
    Ok((user.name, user.password))
}

fn spec(name: &'static str, flows: Vec<Flow>) -> Spec {
    Spec { name, flows, tick: TICK }
}
