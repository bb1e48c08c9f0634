//! The hub's server: operator mode, TLS for clients and leafs, JetStream domain `hub`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use schemas::MESSAGE_MAX_BYTES;
use schemas::subject::DOMAIN_HUB;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::binary::{self, Binary};
use super::child::Files;
use super::home;
use super::probe::{Login, Probe};
use super::process::{Plan, Supervisor};
use super::{Denials, ServerError, ServerStatus};
use crate::identity::{HubKeys, Tls};
use crate::module::Account;

/// Log of a server, before it is rotated.
pub(super) const LOG_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Rotated logs that are kept.
pub(super) const LOGS_MAX: u32 = 2;
/// Atomic batches that may be open in one stream. Each node holds at most one.
const BATCHES_PER_STREAM_MAX: u32 = 1000;
/// Atomic batches that may be open in all.
const BATCHES_MAX: u32 = 4000;
/// A line of the protocol. CONNECT is one, and holds the user token with its allow-lists; the default is 4 KiB.
const CONTROL_LINE_MAX_BYTES: u32 = 32 * 1024;
/// A reload is waited for so long; a server that is down takes longer.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Where the server keeps the accounts' tokens. Hubs before HUB was have theirs in `accounts`.
const ACCOUNTS: &str = "accounts-2";
/// TLS over a 64 kbit/s link takes its time.
const TLS_TIMEOUT_S: u32 = 10;

/// How the hub's server is to run.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// Its directory: configuration, log, store. For itself alone.
    pub data_dir: PathBuf,
    /// Where modules and tools connect (TLS).
    pub listen: SocketAddr,
    /// Where nodes connect (TLS).
    pub leaf_listen: SocketAddr,
    /// Where nodes connect that get out by HTTPS alone (WebSocket over TLS); `None`: nowhere.
    pub leaf_wss_listen: Option<SocketAddr>,
    /// The `nats-server` to run; searched for when `None`, see [`Binary::find`].
    pub binary: Option<PathBuf>,
    /// Bound of all streams on disk.
    pub store_max_bytes: u64,
}

/// The hub's server, supervised.
#[derive(Debug)]
pub struct HubServer {
    supervisor: Supervisor,
    config: HubConfig,
    server_file: PathBuf,
    keys: Arc<HubKeys>,
    probe: Probe,
    files: Files,
}

impl HubServer {
    /// Starts it, or adopts it when it runs already. See [`HubServer::ready`]. The addresses that others connect to must be
    /// among the names that `tls` was made for.
    pub async fn start(config: HubConfig, keys: Arc<HubKeys>, tls: &Tls) -> Result<Self, ServerError> {
        let binary = Binary::find(config.binary.as_deref()).await?;
        let files = Files { dir: config.data_dir.clone(), name: binary::NAME };
        let (before, home) = keys.homes();
        home::share(&files.store(), &before, &home)?;
        let text = server_config(&config, &files, &keys, &tls.server_file);
        let probe = Probe {
            url: format!("tls://{}", reachable(config.listen)),
            ca_file: Some(tls.ca_file.clone()),
            login: Login::Creds(keys.sys_creds("supervisor")?),
        };
        // Accounts' tokens change with each revocation and are pushed to the running server.
        let mut fixed = text.clone();
        if let Value::Object(fields) = &mut fixed {
            fields.remove("resolver_preload");
        }
        let plan = Plan {
            name: "hub".to_owned(),
            // Nor is another certificate: an adopted server reads its files again.
            digest: digest(&[&binary.version, &fixed.to_string()]),
            binary,
            files: files.clone(),
            config: text,
            env: Vec::new(),
            listen: [config.listen, config.leaf_listen].into_iter().chain(config.leaf_wss_listen).collect(),
            extra: None,
            probe: probe.clone(),
        };
        let server_file = tls.server_file.clone();
        Ok(Self { supervisor: Supervisor::start(plan).await?, config, server_file, keys, probe, files })
    }

    /// Waits until it takes connections and knows every revocation.
    pub async fn ready(&self, timeout: Duration) -> Result<(), ServerError> {
        self.supervisor.ready(timeout).await?;
        self.push_accounts().await
    }

    async fn push_accounts(&self) -> Result<(), ServerError> {
        let sys = self.sys_client().await?;
        for account in [Account::Control, Account::Work] {
            self.keys.push(&sys, account).await?;
        }
        Ok(())
    }

    /// Has the server show the certificate that its file holds now. Connections that stand go on; one whose handshake meets
    /// this is refused once (measured) and comes again.
    pub async fn reload(&self) -> Result<(), ServerError> {
        let text = server_config(&self.config, &self.files, &self.keys, &self.server_file);
        let in_force = self.supervisor.enqueue_reload(text).await?;
        match tokio::time::timeout(RELOAD_TIMEOUT, in_force).await {
            Ok(outcome) => outcome.unwrap_or(Err(ServerError::Stopped))?,
            // It is down: what its files say is in force once it is up.
            Err(_) => return self.supervisor.ready(Duration::ZERO).await,
        }
        // A revocation may have been made between the reading of the accounts and the reload.
        self.push_accounts().await
    }

    /// Where it stands.
    pub fn status(&self) -> watch::Receiver<ServerStatus> {
        self.supervisor.status()
    }

    /// Where programs on this machine connect.
    pub fn url(&self) -> &str {
        &self.probe.url
    }

    /// A client in the server's own account.
    pub async fn sys_client(&self) -> Result<async_nats::Client, ServerError> {
        let failed = |reason| ServerError::NotReady { reason, log: PathBuf::from("nats-server.log") };
        self.probe.connect().await.map_err(failed)
    }

    /// Revokes a user's tokens made so far and ends its connections.
    pub async fn revoke(&self, account: Account, public_key: &str) -> Result<(), ServerError> {
        self.keys.revoke(account, public_key)?;
        let sys = self.sys_client().await?;
        Ok(self.keys.push(&sys, account).await?)
    }

    /// What the server refuses from now on.
    pub fn denials(&self) -> Denials {
        Denials::new(self.files.clone())
    }

    /// Stops it and the supervising.
    pub async fn stop(&self) -> Result<(), ServerError> {
        self.supervisor.stop(false).await
    }

    /// Ends the supervising and leaves it running, for the next life to adopt.
    pub async fn leave_running(&self) -> Result<(), ServerError> {
        self.supervisor.stop(true).await
    }
}

fn server_config(config: &HubConfig, files: &Files, keys: &HubKeys, server_file: &Path) -> Value {
    let tls = json!({
        "cert_file": server_file, "key_file": server_file, "timeout": TLS_TIMEOUT_S, "min_version": "1.3",
    });
    let preload: Map<String, Value> =
        keys.accounts().into_iter().map(|(key, token)| (key, json!(token))).collect();
    let mut text = common(files, DOMAIN_HUB, config.store_max_bytes);
    if let Value::Object(fields) = &mut text {
        fields.extend([
            ("server_name".to_owned(), json!("hub")),
            ("listen".to_owned(), json!(config.listen.to_string())),
            ("tls".to_owned(), tls.clone()),
            ("operator".to_owned(), json!(keys.operator_token())),
            ("system_account".to_owned(), json!(keys.system_account())),
            ("resolver".to_owned(), json!({"type": "full", "dir": files.dir.join(ACCOUNTS)})),
            ("resolver_preload".to_owned(), Value::Object(preload)),
            (
                "leafnodes".to_owned(),
                json!({"listen": config.leaf_listen.to_string(), "tls": tls, "no_advertise": true, "compression": compression()}),
            ),
        ]);
        if let Some(listen) = config.leaf_wss_listen {
            // A page in somebody's browser is not to try its luck here: only programs, which name no origin.
            let websocket = json!({"listen": listen.to_string(), "tls": tls, "same_origin": true});
            fields.insert("websocket".to_owned(), websocket);
        }
    }
    text
}

/// What hub and leafs have in common. An acknowledgement means "on disk"; a silent cut is noticed in 15 s.
pub(super) fn common(files: &Files, domain: &str, store_max_bytes: u64) -> Value {
    json!({
        "pid_file": files.pid(),
        "log_file": files.log(),
        "logfile_size_limit": LOG_MAX_BYTES,
        "logfile_max_num": LOGS_MAX,
        "max_payload": MESSAGE_MAX_BYTES,
        "max_control_line": CONTROL_LINE_MAX_BYTES,
        "ping_interval": "5s",
        "ping_max": 2,
        "jetstream": {
            "domain": domain,
            // The server makes its own directory `jetstream` in it.
            "store_dir": files.dir,
            "sync_interval": "always",
            "max_file_store": store_max_bytes,
            "limits": {"batch": {
                "max_inflight_per_stream": BATCHES_PER_STREAM_MAX,
                "max_inflight_total": BATCHES_MAX,
                "timeout": "2s",
            }},
        },
    })
}

/// Compression of a link, at both of its ends: none on a fast one, else the fast level. nats-server's own choice goes up to
/// `s2_best` by the round trip, which takes 8 MiB a link and is what a hub that a whole fleet comes back to has least of:
/// measured with a hundred leafs, each slow answer made the next one slower, until all links had been given up.
pub(super) fn compression() -> Value {
    json!({"mode": "s2_auto", "rtt_thresholds": ["10ms", "100ms"]})
}

/// An address to connect to for one that is listened on.
pub(super) fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

pub(super) fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    data_encoding::HEXLOWER.encode(&hash.finalize())
}
