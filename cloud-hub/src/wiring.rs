//! Which modules run at the hub, and what each is given.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bus::connection::{Bus, Connector, Login, Mint};
use bus::durable::Durable;
use bus::host::Host;
use bus::identity::{HubKeys, Tls};
use bus::module::{Account, NoRim};
use bus::provision::{self, Place};
use bus::proxy::with_port;
use bus::runner::Spec;
use bus::server::{HubConfig, HubServer, ServerError};
use identity::keeper::Keeper;
use identity::{Addresses, IdentityRim};
use ledger::{Ledger, LedgerRim, Streams};
use router::hub::{Authorize, Rest};
use schemas::command::Refusal;
use schemas::subject;
use sync::downlink::hub::{DownlinkRim, Downlinks};
use sync::hub::{Links, LinksRim};
use tokio_util::sync::CancellationToken;

use crate::access;
use crate::backup::restore;
use crate::config::Config;

/// How long the server may take to be ready; a large store takes a while to be read.
pub const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Bound of all streams together: the server sets each one's bound aside. Beside those of the hub there is room for the messages
/// of some 1,700 nodes.
pub const STORE_BYTES_MAX: u64 = 32 * 1024 * 1024 * 1024;
/// Whom the one token stands for.
const ADMIN: &str = "edgewire-admin";
/// The modules' clock.
const TICK: Duration = Duration::from_millis(500);

/// A taken port of the API is told before anything is started, to whoever just typed the command. Later the module `api`
/// tries again by itself.
fn check_free(address: SocketAddr) -> Result<(), ServerError> {
    TcpListener::bind(address).map(drop).map_err(|source| match source.kind() {
        ErrorKind::AddrInUse => ServerError::PortInUse { address },
        _ => ServerError::Address { address, source },
    })
}

/// Runs the hub until `stop`.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    // Keys made anew beside half a store would be another hub.
    anyhow::ensure!(
        !config.data_dir.join(restore::STAGING).exists(),
        "EW-RESTORE-UNFINISHED: a restore into {} was interrupted; run it again: edgewire hub restore FILE --force",
        config.data_dir.display()
    );
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("EW-DATA-DIR: cannot make {}", config.data_dir.display()))?;
    check_free(config.api_listen)?;
    let keys = Arc::new(HubKeys::load_or_create(&config.data_dir.join("keys"))?);
    let tls = Tls::load_or_create(&config.data_dir.join("tls"), &config.names)?;
    let server = HubServer::start(
        HubConfig {
            data_dir: config.data_dir.join("nats"),
            listen: config.bus_listen,
            leaf_listen: config.leaf_listen,
            leaf_wss_listen: config.leaf_wss,
            binary: config.nats_server.clone(),
            store_max_bytes: STORE_BYTES_MAX,
        },
        keys.clone(),
        &tls,
    )
    .await
    .map(Arc::new)?;
    server.ready(READY_TIMEOUT).await?;
    let connector = connector(&server, keys.clone(), &tls);
    let (control, streams) = provision_all(&connector).await?;
    let boot_id = schemas::object::new_uid();
    sync::hub::begin_epoch(&control, boot_id.clone(), schemas::object::new_uid())
        .await
        .context("the epoch of the hub's store cannot begin")?;
    let (durable, broken) = Durable::open(&config.data_dir.join("state"))?;
    if let Some(broken) = broken {
        tracing::error!(broken, "the hub's store was replaced; it holds nothing that is not rebuilt");
    }
    let mut host = Host::new(connector, durable, &stop);
    let token = access::token(&config.data_dir)?;
    access::write_kubeconfig(&config, &tls, &token, config.api_listen.port())?;
    let certificate = api::Certificate::new(&(tls.server_pem.clone() + &tls.ca_pem), &tls.server_pem)?;
    let keeper = keeper(&config, tls, &server, &token, certificate.clone());
    modules(&mut host, &config, &keys, &server, &Arc::new(keeper), &boot_id, &streams);
    route(&mut host, &config, &certificate, &token);
    serve(&mut host, &config, certificate, token);
    tracing::info!(
        api = %config.api_listen,
        leafs = %config.leaf_listen,
        kubeconfig = %config.kubeconfig.display(),
        "hub runs; next: export KUBECONFIG={}",
        config.kubeconfig.display()
    );
    let ended = host.run().await;
    server.stop().await?;
    Ok(ended?)
}

/// Connects modules with a credential that the hub signs for each, holding what their flows declare.
pub fn connector(server: &HubServer, keys: Arc<HubKeys>, tls: &Tls) -> Connector {
    let mint: Mint = Arc::new(move |account, owner, permissions| {
        let keys = keys.clone();
        Box::pin(async move {
            let (jwt, seed) = keys.mint(account, &owner, &permissions).map_err(|error| error.to_string())?;
            Ok(Login::Jwt { jwt, seed })
        })
    });
    Connector {
        node: subject::DOMAIN_HUB.to_owned(),
        domain: subject::DOMAIN_HUB.to_owned(),
        url: server.url().to_owned(),
        ca: Some(tls.ca_file.clone()),
        mint,
    }
}

/// Makes the hub's streams and buckets. Gives a connection that may begin the epoch, and how far the streams had come.
async fn provision_all(connector: &Connector) -> anyhow::Result<(Bus, Streams)> {
    let permissions = provision::permissions(&connector.domain);
    let bus = connector.connect_with("provision", permissions, Account::Control).await?;
    provision::provision(&bus, Place::Hub).await?;
    let mut streams = Streams::new();
    for of in [subject::STREAM_UP, subject::STREAM_FROM] {
        let state = bus::link::state(&bus, of).await?;
        streams.insert(of.to_owned(), (state.generation, state.last_sequence));
    }
    let flows = [
        bus::flow::Flow::watch(subject::BUCKET_DESIRED, subject::KEY_LINEAGE, "Lineage"),
        bus::flow::Flow::write(subject::BUCKET_DESIRED, subject::KEY_LINEAGE, "Lineage"),
    ];
    Ok((connector.connect("epoch", &flows, Account::Control).await?, streams))
}

fn modules(
    host: &mut Host,
    config: &Config,
    keys: &Arc<HubKeys>,
    server: &Arc<HubServer>,
    keeper: &Arc<Keeper>,
    boot_id: &str,
    streams: &Streams,
) {
    let first = config.advertise.first().map_or("127.0.0.1", String::as_str);
    let addresses = Addresses {
        api: config.api_urls.clone(),
        leafs: config.leaf_urls.clone(),
        bus: format!("tls://{}", with_port(first, config.bus_listen.port())),
    };
    let (keys, server, keeper) = (keys.clone(), server.clone(), keeper.clone());
    let renew_after_ms = config.certificate_renew_days * 24 * 3_600_000;
    host.module(spec(identity::NAME, identity::flows()), move || {
        let rim = IdentityRim {
            keys: keys.clone(),
            server: server.clone(),
            keeper: keeper.clone(),
            addresses: addresses.clone(),
        };
        (identity::decide::Identity::new(keeper.facts(), renew_after_ms), rim)
    });
    let (hub_boot_id, seed) = (boot_id.to_owned(), boot_id.to_owned());
    host.module(spec("nodes", nodes::flows()), move || {
        (nodes::Nodes::new(hub_boot_id.clone(), hub_boot_id.clone()), NoRim)
    });
    let scheduler_seed = seed.clone();
    host.module(spec("scheduler", scheduler::flows()), move || {
        (scheduler::Scheduler::new(scheduler_seed.clone()), NoRim)
    });
    host.module(spec("placement", placement::flows()), || (placement::Placement::new(), NoRim));
    host.module(spec("events", events::flows()), move || (events::Events::new(seed.clone()), NoRim));
    let readers = vec![
        ("nodes", subject::raised_reports("sync", "node")),
        ("placement", subject::raised_reports("containers", "pod")),
        ("events", subject::raised_events()),
    ];
    host.module(spec(sync::hub::NAME, sync::hub::flows()), move || {
        (Links::default(), LinksRim { readers: readers.clone(), counter: ledger::READER })
    });
    host.module(spec(sync::downlink::hub::NAME, sync::downlink::hub::flows()), || {
        (Downlinks::default(), DownlinkRim)
    });
    let (epoch, streams) = (boot_id.to_owned(), streams.clone());
    host.module(spec(ledger::NAME, ledger::flows()), move || {
        (Ledger::new(epoch.clone(), streams.clone()), LedgerRim)
    });
}

/// Keeps the certificates, and tells the API and who reads the kubeconfig when they change.
fn keeper(
    config: &Config,
    tls: Tls,
    server: &Arc<HubServer>,
    token: &str,
    certificate: api::Certificate,
) -> Keeper {
    let (told_config, token) = (config.clone(), token.to_owned());
    let told = Box::new(move |tls: &Tls| {
        // The authorities too: whoever joins finds the one in the list whose fingerprint stands in the token.
        let chain = tls.server_pem.clone() + &tls.ca_pem;
        certificate.replace(&chain, &tls.server_pem).map_err(|error| error.to_string())?;
        let written = access::write_kubeconfig(&told_config, tls, &token, told_config.api_listen.port());
        written.map_err(|error| format!("{error:#}"))
    });
    Keeper::new(config.data_dir.join("tls"), config.advertise.clone(), tls, server.clone(), told)
}

/// The REST entry shows the API's certificate and takes the API's tokens.
fn route(host: &mut Host, config: &Config, certificate: &api::Certificate, token: &str) {
    let tokens = [api::Token { secret: token.to_owned(), user: ADMIN.to_owned() }];
    let authorize: Authorize = Arc::new(move |headers| {
        let user = api::auth::authenticate(&tokens, headers).map(str::to_owned);
        user.map_err(|error| Refusal::new(error.code, "EW-UNAUTHORIZED", error.message))
    });
    let rest = Rest { listen: config.rest_listen, certificate: certificate.resolver(), authorize };
    host.module(spec(router::NAME, router::hub::flows()), move || {
        (router::hub::Router::default(), router::hub::RouterRim::new(rest.clone()))
    });
}

fn serve(host: &mut Host, config: &Config, certificate: api::Certificate, token: String) {
    let serving = api::Config {
        listen: config.api_listen,
        certificate,
        tokens: vec![api::Token { secret: token, user: ADMIN.to_owned() }],
    };
    host.module(spec(api::NAME, api::flows()), move || {
        (api::ApiModule, api::ApiRim { config: serving.clone() })
    });
}

fn spec(name: &'static str, flows: Vec<bus::flow::Flow>) -> Spec {
    Spec { name, flows, tick: TICK }
}
