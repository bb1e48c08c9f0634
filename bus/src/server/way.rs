//! The ways to a hub: `tls://` addresses, and `wss://` ones for where nothing but HTTPS gets out. And whether a way is open.
//!
//! A `nats-server` takes no mixture of the two in one remote (measured, 2.15.1), so its link goes one way at a time; another
//! way is a reload that drops no client (measured: 20 ms). Among the addresses of one way the server goes on to the next by
//! itself. Which way to take is decided by the node's `sync`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join;
use futures::stream::{FuturesOrdered, FuturesUnordered};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use schemas::name::NodeName;
use schemas::subject::{ACCOUNT_CONTROL, ACCOUNT_WORK};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsConnector;

use super::ServerError;
use super::hub::compression;
use crate::identity::write_private;
use crate::proxy::{self, Proxy};

/// Addresses of one way.
const HUB_URLS_MAX: usize = 16;
/// A way that does not answer within this is shut.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest first line of a hub's port for leafs.
const GREETING_MAX_BYTES: usize = 32 * 1024;
/// A fleet that lost its hub shall not come back in one beat: each node has an interval of its own between these two, and
/// the server adds up to as much again at random (measured).
const RECONNECT_MS: [u64; 2] = [250, 500];
/// Where it stands which way the link went last, in the server's directory.
const FILE: &str = "way";

/// See the file's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// `tls://`, to the hub's port for leafs.
    Tls,
    /// `wss://`: WebSocket over HTTPS.
    Wss,
}

impl Way {
    /// All, the better first.
    pub const ALL: [Self; 2] = [Self::Tls, Self::Wss];

    /// As in URLs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Wss => "wss",
        }
    }

    /// The port of a URL that names none.
    fn port(self) -> u16 {
        match self {
            Self::Tls => 7422,
            Self::Wss => 443,
        }
    }
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A node's ways to its hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubLink {
    /// `tls://host:port` and `wss://host:port`, of each hub.
    pub urls: Vec<String>,
    /// The hub's authority (PEM).
    pub ca_file: PathBuf,
    /// Credentials file of the node in CONTROL. Replaced at the same path, it is used at the next connection.
    pub control_creds: PathBuf,
    /// Credentials file of the node in WORK.
    pub work_creds: PathBuf,
    /// Through which all of it goes.
    pub proxy: Option<Proxy>,
}

/// The way, host and port of a URL.
pub fn parse(url: &str) -> Option<(Way, &str, u16)> {
    let (scheme, rest) = url.split_once("://")?;
    let way = Way::ALL.into_iter().find(|way| way.as_str() == scheme)?;
    let (host, port) = proxy::authority(rest.trim_end_matches('/'))?;
    Some((way, host, port.unwrap_or(way.port())))
}

impl HubLink {
    /// The ways that there are, the better first.
    pub fn ways(&self) -> Vec<Way> {
        Way::ALL.into_iter().filter(|way| self.of(*way).next().is_some()).collect()
    }

    /// The addresses of a way.
    pub fn of(&self, way: Way) -> impl Iterator<Item = &String> {
        self.urls.iter().filter(move |url| parse(url).is_some_and(|(of, ..)| of == way))
    }

    /// Which ways are open: somebody answers there whom the hub's authority has signed for.
    pub async fn open(&self) -> Vec<Way> {
        let Ok(tls) = trusting(&self.ca_file) else { return Vec::new() };
        let [tls_way, wss_way] = Way::ALL.map(|way| any(self.of(way), &tls, self.proxy.as_ref()));
        let (over_tls, over_wss) = join(tls_way, wss_way).await;
        Way::ALL.into_iter().zip([over_tls, over_wss]).filter_map(|(way, open)| open.then_some(way)).collect()
    }

    /// The best way that is open; without waiting for the others.
    pub async fn best_open(&self) -> Option<Way> {
        let tls = trusting(&self.ca_file).ok()?;
        let call = async |way| any(self.of(way), &tls, self.proxy.as_ref()).await.then_some(way);
        let mut calls: FuturesOrdered<_> = Way::ALL.into_iter().map(call).collect();
        while let Some(open) = calls.next().await {
            if open.is_some() {
                return open;
            }
        }
        None
    }

    /// Which way the link went last, as it stands in the server's directory; else the best.
    pub(super) fn last(&self, dir: &Path) -> Way {
        let text = std::fs::read_to_string(dir.join(FILE)).unwrap_or_default();
        let ways = self.ways();
        let last = ways.iter().find(|way| way.as_str() == text.trim());
        last.or(ways.first()).copied().unwrap_or(Way::Tls)
    }

    /// The part of the server's configuration.
    pub(super) fn config(&self, node: &NodeName, way: Way) -> Value {
        let mut urls: Vec<&String> = self.of(way).collect();
        // A fleet spreads over the addresses, and both links of a node go to the same.
        urls.sort_by_key(|url| Sha256::digest(format!("{node} {url}")));
        let remote = |account: &str, creds: &PathBuf, isolated: bool| {
            let mut remote = json!({
                "urls": urls,
                "no_randomize": true,
                "account": account,
                "credentials": creds,
                // CONTROL hears only what it asks for: without this every node learns of every other's subscriptions. WORK
                // needs them: `app.>` goes from node to node.
                "request_isolation": isolated,
                "first_info_timeout": "10s",
                "compression": compression(),
                "tls": {"ca_file": self.ca_file, "timeout": 10},
            });
            if let (Some(proxy), Value::Object(fields)) = (&self.proxy, &mut remote) {
                let mut through = json!({"url": proxy.to_string(), "timeout": "5s"});
                if let (Some(login), Value::Object(fields)) = (&proxy.login, &mut through) {
                    fields.insert("username".to_owned(), json!(login.user));
                    fields.insert("password".to_owned(), json!(login.password));
                }
                fields.insert("proxy".to_owned(), through);
            }
            remote
        };
        json!({
            "reconnect": format!("{}ms", reconnect_ms(node)),
            "remotes": [
                remote(ACCOUNT_CONTROL, &self.control_creds, true),
                remote(ACCOUNT_WORK, &self.work_creds, false),
            ],
        })
    }

    pub(super) fn check(&self) -> Result<(), ServerError> {
        if let Some(url) = self.urls.iter().find(|url| parse(url).is_none()) {
            return Err(ServerError::Config(format!(
                "hub url {url:?} is neither tls://HOST:PORT nor wss://HOST:PORT"
            )));
        }
        if self.urls.is_empty() || Way::ALL.iter().any(|way| self.of(*way).count() > HUB_URLS_MAX) {
            return Err(ServerError::Config(format!("a link has 1 to {HUB_URLS_MAX} hub urls")));
        }
        let missing =
            [&self.ca_file, &self.control_creds, &self.work_creds].into_iter().find(|f| !f.is_file());
        match missing {
            Some(file) => Err(ServerError::Config(format!("{} is missing; join the hub", file.display()))),
            None => Ok(()),
        }
    }
}

/// Writes down which way the link goes, for the server in `dir`: its next life takes the same.
pub fn remember(dir: &Path, way: Way) -> Result<(), ServerError> {
    let file = dir.join(FILE);
    write_private(&file, way.as_str().as_bytes()).map_err(|source| ServerError::io(&file, source))
}

fn reconnect_ms(node: &NodeName) -> u64 {
    let [min, max] = RECONNECT_MS;
    let [first, second, ..] = <[u8; 32]>::from(Sha256::digest(node.as_str()));
    min + u64::from(u16::from_be_bytes([first, second])) * (max - min) / u64::from(u16::MAX)
}

type Client = Arc<rustls::ClientConfig>;

fn trusting(ca_file: &Path) -> Result<Client, String> {
    let pem = std::fs::read(ca_file).map_err(|error| error.to_string())?;
    let mut roots = rustls::RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(&pem) {
        let der = der.map_err(|error| error.to_string())?;
        roots.add(der).map_err(|error| error.to_string())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

/// Does one of these answer?
async fn any(urls: impl Iterator<Item = &String>, tls: &Client, proxy: Option<&Proxy>) -> bool {
    let mut calls: FuturesUnordered<_> = urls.map(|url| answers(url, tls, proxy)).collect();
    while let Some(answers) = calls.next().await {
        if answers {
            return true;
        }
    }
    false
}

async fn answers(url: &str, tls: &Client, proxy: Option<&Proxy>) -> bool {
    let call = async {
        let (way, host, port) = parse(url)?;
        let mut tcp = proxy::connect(proxy, host, port).await.ok()?;
        if way == Way::Tls {
            // The server speaks first there, one line in the clear.
            for read in 0.. {
                if read >= GREETING_MAX_BYTES {
                    return None;
                }
                if tcp.read_u8().await.ok()? == b'\n' {
                    break;
                }
            }
        }
        let name = ServerName::try_from(host.to_owned()).ok()?;
        TlsConnector::from(tls.clone()).connect(name, tcp).await.ok()
    };
    matches!(tokio::time::timeout(ANSWER_TIMEOUT, Box::pin(call)).await, Ok(Some(_)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn link(urls: &[&str]) -> HubLink {
        HubLink {
            urls: urls.iter().map(|url| (*url).to_owned()).collect(),
            ca_file: "/ca".into(),
            control_creds: "/c".into(),
            work_creds: "/w".into(),
            proxy: Proxy::parse("http://me:hush@proxy:3128").ok(),
        }
    }

    #[test]
    fn one_way_at_a_time_and_a_fleet_spreads() {
        let link = link(&["tls://a:1", "wss://a", "tls://b:1", "tls://c:1"]);
        assert_eq!(link.ways(), [Way::Tls, Way::Wss]);
        let (mut firsts, mut beats) = (BTreeSet::new(), BTreeSet::new());
        for n in 0..50 {
            let node = NodeName::new(format!("edge-{n}")).unwrap();
            let config = link.config(&node, Way::Tls);
            assert_eq!(
                config,
                link.config(&node, Way::Tls),
                "the same each time: else the server is started anew"
            );
            assert_eq!(config.pointer("/remotes/0/urls"), config.pointer("/remotes/1/urls"));
            assert_eq!(
                config.pointer("/remotes/0/urls/2").map(|url| url.to_string().contains("tls")),
                Some(true)
            );
            assert_eq!(config.pointer("/remotes/0/urls/3"), None);
            firsts.insert(config.pointer("/remotes/0/urls/0").unwrap().to_string());
            let ms: u64 = config["reconnect"].as_str().unwrap().trim_end_matches("ms").parse().unwrap();
            assert!((250..=500).contains(&ms));
            beats.insert(ms);
        }
        assert_eq!(firsts.len(), 3);
        assert!(beats.len() > 30, "{beats:?}");
        let wss = link.config(&NodeName::new("n").unwrap(), Way::Wss);
        assert_eq!(wss.pointer("/remotes/1/urls"), Some(&json!(["wss://a"])));
        let through =
            json!({"url": "http://proxy:3128", "timeout": "5s", "username": "me", "password": "hush"});
        assert_eq!(wss.pointer("/remotes/0/proxy"), Some(&through));
    }

    #[test]
    fn the_last_way_is_taken_again_if_it_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let both = link(&["wss://a:1", "tls://a:1"]);
        assert_eq!(both.last(dir.path()), Way::Tls);
        remember(dir.path(), Way::Wss).unwrap();
        assert_eq!((both.last(dir.path()), link(&["tls://a:1"]).last(dir.path())), (Way::Wss, Way::Tls));
        std::fs::write(dir.path().join(FILE), "\0rubbish").unwrap();
        assert_eq!((both.last(dir.path()), link(&["wss://a:1"]).last(dir.path())), (Way::Tls, Way::Wss));
    }

    #[test]
    fn urls_are_read() {
        assert_eq!(parse("tls://hub:1"), Some((Way::Tls, "hub", 1)));
        assert_eq!(parse("wss://[::1]/"), Some((Way::Wss, "::1", 443)));
        assert_eq!(parse("tls://hub"), Some((Way::Tls, "hub", 7422)));
        for bad in ["", "hub:1", "nats://hub:1", "tls://", "tls://a b:1", "wss://u@h:1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
