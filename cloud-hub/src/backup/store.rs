//! Opening a copy of a hub's store with a server of its own, on loopback, to see that it opens and what is in it. A backup
//! that was never opened is a hope.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use bus::identity::{HubKeys, Tls};
use bus::module::Account;
use bus::provision;
use bus::server::child::{Files, Record};
use bus::server::{HubConfig, HubServer, binary};
use schemas::backup::StreamSummary;
use schemas::subject::DOMAIN_HUB;

use crate::wiring::{READY_TIMEOUT, STORE_BYTES_MAX, connector};

/// What the server leaves beside the store.
const LEFT: [&str; 5] =
    ["nats-server.conf", "nats-server.json", "nats-server.log", "nats-server.pid", "accounts"];

/// The server of the hub in `data_dir`, if it runs.
pub fn running(data_dir: &Path) -> Option<Record> {
    Record::find(&files(data_dir))
}

fn files(data_dir: &Path) -> Files {
    Files { dir: data_dir.join("nats"), name: binary::NAME }
}

/// Starts a server on the store in `dir` where nobody else reaches it, reads what is there, and stops it.
pub async fn open(dir: &Path, binary: Option<PathBuf>) -> anyhow::Result<Vec<StreamSummary>> {
    let unopened = "EW-BACKUP-STORE: the copy of the streams does not open";
    let keys = Arc::new(HubKeys::load_or_create(&dir.join("keys")).context(unopened)?);
    let tls = tls(dir).context(unopened)?;
    // Both at once, or they could be one.
    let free = [TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?];
    let [listen, leaf_listen] = free.map(|socket| socket.local_addr());
    let config = HubConfig {
        data_dir: dir.join("nats"),
        listen: listen?,
        leaf_listen: leaf_listen?,
        leaf_wss_listen: None,
        binary,
        store_max_bytes: STORE_BYTES_MAX,
    };
    let server = HubServer::start(config, keys.clone(), &tls).await.context(unopened)?;
    let looked = look(&server, keys, &tls).await.context(unopened);
    let stopped = server.stop().await.context(unopened);
    let streams = looked?;
    stopped?;
    for name in LEFT {
        let path = dir.join("nats").join(name);
        let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
    }
    Ok(streams)
}

async fn look(server: &HubServer, keys: Arc<HubKeys>, tls: &Tls) -> anyhow::Result<Vec<StreamSummary>> {
    server.ready(READY_TIMEOUT).await?;
    let status = server.status().borrow().clone();
    anyhow::ensure!(status.store_moved.is_none(), "the server does not read it: {:?}", status.store_moved);
    anyhow::ensure!(
        status.store_warnings.is_empty(),
        "the server leaves out a part of it: {}",
        status.store_warnings.join("; ")
    );
    let connector = connector(server, keys, tls);
    let permissions = provision::permissions_to_list(DOMAIN_HUB);
    let bus = connector.connect_with("backup", permissions, Account::Control).await?;
    Ok(provision::summaries(&bus).await?)
}

/// The certificates as they lie there: not made anew for the names of this machine.
fn tls(dir: &Path) -> anyhow::Result<Tls> {
    Ok(Tls::read(&dir.join("tls"))?)
}

/// Removes a directory that a backup or a restore worked in, also when its server was left running by a kill.
pub async fn remove(dir: &Path) -> std::io::Result<()> {
    if let Some(record) = running(dir) {
        record.stop(std::time::Duration::from_secs(10)).await;
    }
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// Fingerprint of the authority in `dir`.
pub fn authority(dir: &Path) -> anyhow::Result<String> {
    Ok(tls(dir)?.present.fingerprint)
}
