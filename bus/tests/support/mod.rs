//! What these tests stand on: a directory whose servers end with it, a hub, and nodes' servers that are joined to it.
#![allow(dead_code)] // each test binary uses its part

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bus::identity::{HubKeys, Permissions, Tls, jwt, node_permissions};
use bus::module::Account;
use bus::server::child::{Files, Record};
use bus::server::{HubConfig, HubLink, HubServer, LeafConfig, LeafServer, ServerStatus, binary};
use nix::sys::signal::Signal;
use schemas::name::NodeName;

/// How long a fact may take to become true on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);
/// Facts are looked at so often.
const LOOK: Duration = Duration::from_millis(20);
/// Bound of a server's streams on disk.
const STORE_MAX_BYTES: u64 = 1 << 30;

/// A directory of the test's own; when dropped, also after a failure, the servers recorded in it are killed.
pub struct Ground(PathBuf);

impl Ground {
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("edgewire-bus-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if let Some(record) = Record::find(&Files { dir: entry.path(), name: binary::NAME }) {
                record.signal(Signal::SIGKILL);
            }
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Kills a server as a power cut would.
pub fn kill(status: &ServerStatus) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(status.pid.unwrap()).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
}

pub fn nats_server() -> PathBuf {
    if let Some(path) = std::env::var_os("EDGEWIRE_NATS_SERVER") {
        return path.into();
    }
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/nats-server");
    if fetched.exists() { fetched } else { "/usr/lib/edgewire/nats-server".into() }
}

pub fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

pub async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let until = tokio::time::Instant::now() + SOON;
    while !check().await {
        assert!(tokio::time::Instant::now() < until, "not in time: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// The names in a hub's certificate.
pub fn sans() -> Vec<String> {
    vec!["hub.test".to_owned()]
}

/// A hub on loopback, with all its listeners.
pub fn hub_config(ground: &Ground) -> HubConfig {
    HubConfig {
        data_dir: ground.dir("hub"),
        listen: free(),
        leaf_listen: free(),
        leaf_wss_listen: Some(free()),
        binary: Some(nats_server()),
        store_max_bytes: STORE_MAX_BYTES,
    }
}

pub struct Hub {
    pub server: HubServer,
    pub keys: Arc<HubKeys>,
    pub tls: Tls,
    pub config: HubConfig,
    pub dir: PathBuf,
}

impl Hub {
    pub async fn start(ground: &Ground) -> Self {
        Self::start_as(ground, hub_config(ground)).await
    }

    pub async fn start_as(ground: &Ground, config: HubConfig) -> Self {
        let keys = Arc::new(HubKeys::load_or_create(&ground.dir("keys")).unwrap());
        let tls = Tls::load_or_create(&ground.dir("tls"), &sans()).unwrap();
        let server = HubServer::start(config.clone(), keys.clone(), &tls).await.unwrap();
        server.ready(SOON).await.unwrap();
        Self { server, keys, tls, config, dir: ground.0.clone() }
    }

    pub fn leaf_url(&self) -> String {
        format!("tls://127.0.0.1:{}", self.config.leaf_listen.port())
    }

    pub fn wss_url(&self) -> String {
        format!("wss://127.0.0.1:{}", self.config.leaf_wss_listen.unwrap().port())
    }

    /// Enrols a node as the identity module would: its keys are its own.
    pub fn enrol(&self, name: &str) -> (HubLink, String) {
        let (control, work) = node_permissions(&node(name));
        let key = nkeys::KeyPair::new_user();
        let file = |account: Account, permissions: &Permissions| {
            let token = self.keys.user(account, &key.public_key(), name, permissions, None).unwrap();
            let path = self.dir.join(format!("{name}.{}.creds", account.as_str()));
            std::fs::write(&path, jwt::creds(&token, &key.seed().unwrap())).unwrap();
            path
        };
        let link = HubLink {
            urls: vec![self.leaf_url()],
            ca_file: self.tls.ca_file.clone(),
            control_creds: file(Account::Control, &control),
            work_creds: file(Account::Work, &work),
            proxy: None,
        };
        (link, key.public_key())
    }
}

pub fn leaf_config(ground: &Ground, name: &str, hub: Option<HubLink>) -> LeafConfig {
    LeafConfig {
        node: node(name),
        data_dir: ground.dir(name),
        listen: free(),
        mqtt: None,
        binary: Some(nats_server()),
        store_max_bytes: STORE_MAX_BYTES,
        hub,
    }
}

pub async fn leaf(ground: &Ground, name: &str, hub: Option<HubLink>) -> LeafServer {
    leaf_with(&leaf_config(ground, name, hub)).await
}

pub async fn leaf_with(config: &LeafConfig) -> LeafServer {
    let server = LeafServer::start(config.clone()).await.unwrap();
    server.ready(SOON).await.unwrap();
    server
}
