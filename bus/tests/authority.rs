//! What connections stand on is replaced under real servers, and none of them ends for it: authorities that follow one
//! another, certificates that are made anew, a node's keys. Afterwards the old ones are worth nothing.
// These tests judge the servers from outside, with a raw client; and a test fails by a panic, also in its helpers.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use async_nats::ConnectOptions;
use bus::identity::deferral::Deferral;
use bus::identity::{Permissions, Tls, fingerprints};
use bus::module::Account;
use bus::server::{HubConfig, HubLink, LeafServer, Refusal};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use schemas::credential::NodeKeys;

use support::{Ground, Hub, eventually, hub_config, leaf, sans};

/// A hub at every address of loopback, so that a name can be missing in its certificate.
async fn start_hub(ground: &Ground) -> Hub {
    let any = |at: SocketAddr| SocketAddr::from(([0, 0, 0, 0], at.port()));
    let config = hub_config(ground);
    let (listen, leaf_listen) = (any(config.listen), any(config.leaf_listen));
    Hub::start_as(ground, HubConfig { listen, leaf_listen, leaf_wss_listen: None, ..config }).await
}

impl Hub {
    /// What each kind of client would trust, in a file.
    fn trust(&self, name: &str, pem: &str) -> PathBuf {
        let path = self.dir.join(format!("{name}.ca"));
        std::fs::write(&path, pem).unwrap();
        path
    }

    /// Is a client (rustls) that trusts this let in, at this address?
    async fn lets_in(&self, ip: &str, trust: &Path) -> Result<(), String> {
        let creds = self.keys.creds(Account::Control, "client", &Permissions::full()).unwrap();
        let url = format!("tls://{ip}:{}", self.config.listen.port());
        let options = ConnectOptions::with_credentials(&creds).unwrap().max_reconnects(1);
        let options = options.add_root_certificates(trust.to_owned()).require_tls(true);
        options.connect(url).await.map(drop).map_err(|error| format!("{error:?}"))
    }

    /// A node (Go) that trusts this: its server.
    async fn node(&self, ground: &Ground, name: &str, trust: &Path) -> LeafServer {
        let link = HubLink { ca_file: trust.to_owned(), ..self.enrol(name).0 };
        leaf(ground, name, Some(link)).await
    }
}

/// The connections of a node's links, both accounts'.
async fn links(node: &LeafServer) -> Vec<u64> {
    let mut ids: Vec<u64> = node.links().await.unwrap_or_default().iter().map(|link| link.id).collect();
    ids.sort_unstable();
    ids
}

async fn linked(node: &LeafServer, what: &str) -> Vec<u64> {
    eventually(what, async || links(node).await.len() == 2).await;
    links(node).await
}

/// The hub's certificate is refused by this node.
async fn refused(node: &LeafServer, what: &str) {
    eventually(what, async || {
        let refusal = node.look(false).await.and_then(|facts| facts.refusal);
        matches!(refusal, Some(Refusal::OfHub(why)) if why.contains("unknown authority"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_both_are_trusted_everybody_gets_in_and_afterwards_the_old_is_worth_nothing() {
    let ground = Ground::new("roll");
    let dir = ground.dir("tls");
    let hub = start_hub(&ground).await;
    let before = Tls::load_or_create(&dir, &sans()).unwrap();
    let old = hub.trust("old", &before.ca_pem);
    let steady = hub.node(&ground, "steady", &old).await;
    let standing = linked(&steady, "linked before").await;

    let rolled = Tls::roll(&dir, &sans()).unwrap();
    hub.server.reload().await.unwrap();
    assert_eq!(fingerprints(&rolled.ca_pem).unwrap().len(), 2);
    let both = hub.trust("both", &rolled.ca_pem);
    let new = hub.trust("new", rolled.ca_pem.strip_prefix(&before.ca_pem).unwrap());
    for trust in [&old, &new, &both] {
        hub.lets_in("127.0.0.1", trust).await.unwrap_or_else(|error| panic!("{}: {error}", trust.display()));
    }
    let trusts_old = hub.node(&ground, "old", &old).await;
    let trusts_new = hub.node(&ground, "new", &new).await;
    let trusts_both = hub.node(&ground, "both", &both).await;
    for (node, what) in [(&trusts_old, "old"), (&trusts_new, "new"), (&trusts_both, "both")] {
        linked(node, what).await;
    }
    // A node that learns it: its file is read again, and its link stands.
    std::fs::copy(&both, &old).unwrap();
    assert_eq!(steady.authorities().await.unwrap(), rolled.ca_pem);
    trusts_old.authorities().await.unwrap();
    assert_eq!(links(&steady).await, standing, "neither a roll nor learning of it ends a link");

    let finished = Tls::finish(&dir, &sans()).unwrap();
    hub.server.reload().await.unwrap();
    assert_eq!(finished.present, rolled.next.clone().unwrap());
    assert_eq!((finished.next.clone(), finished.fingerprint.clone()), (None, rolled.fingerprint.clone()));
    assert_eq!(links(&steady).await, standing, "nor does its end");
    hub.trust("old", &before.ca_pem);
    assert!(hub.lets_in("127.0.0.1", &old).await.is_err(), "the old authority is trusted by nobody");
    for trust in [&new, &both] {
        hub.lets_in("127.0.0.1", trust).await.unwrap();
    }
    steady.rebuild_links().await.unwrap();
    eventually("its next connection trusts what it learned", async || {
        let now = links(&steady).await;
        now.len() == 2 && now.iter().all(|id| !standing.contains(id))
    })
    .await;
    // What was away, and what was not told: refused, until its file says otherwise.
    let away = hub.node(&ground, "away", &old).await;
    refused(&away, "who knows the old authority alone is out").await;
    std::fs::copy(&new, &old).unwrap();
    away.authorities().await.unwrap();
    linked(&away, "in again with the new one").await;
    for node in [steady, trusts_old, trusts_new, trusts_both, away] {
        node.stop().await.unwrap();
    }
    hub.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_made_anew_under_a_running_server_and_no_connection_ends() {
    let ground = Ground::new("renew");
    let dir = ground.dir("tls");
    let hub = start_hub(&ground).await;
    let before = Tls::load_or_create(&dir, &sans()).unwrap();
    let node = hub.node(&ground, "n1", &before.ca_file).await;
    let standing = linked(&node, "linked").await;
    assert!(hub.lets_in("127.0.0.2", &before.ca_file).await.is_err(), "not a name of this certificate");
    for round in 0..5 {
        let more = [sans(), vec!["127.0.0.2".to_owned(), format!("round-{round}.test")]].concat();
        let renewed = Tls::renew(&dir, &more).unwrap();
        assert_ne!(renewed.certificate.fingerprint, before.certificate.fingerprint);
        assert_eq!(renewed.ca_pem, before.ca_pem);
        hub.server.reload().await.unwrap();
        hub.lets_in("127.0.0.2", &before.ca_file).await.unwrap();
        assert_eq!(links(&node).await, standing, "round {round}");
    }
    // A server that is left running by a fall shows the new one to whoever comes next, and is not started anew.
    let (pid, config) = (hub.server.status().borrow().pid, hub.config.clone());
    hub.server.leave_running().await.unwrap();
    drop(hub);
    let hub = Hub::start_as(&ground, config).await;
    assert_eq!(hub.server.status().borrow().pid, pid);
    eventually("the names are those of the start", async || {
        hub.lets_in("127.0.0.2", &before.ca_file).await.is_err()
    })
    .await;
    assert_eq!(links(&node).await, standing);
    node.stop().await.unwrap();
    hub.server.stop().await.unwrap();
}

/// Writes the files of a hub from before authorities could follow one another, as it made them.
fn as_before(dir: &Path) -> String {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "edgewire authority");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("ca.key"), key.serialize_pem()).unwrap();
    std::fs::write(dir.join("ca.crt"), &pem).unwrap();
    pem
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_may_not_vouch_is_shown_until_the_roll_is_finished() {
    let ground = Ground::new("before");
    let dir = ground.dir("tls");
    let old_pem = as_before(&dir);
    let hub = start_hub(&ground).await;
    assert!(dir.join("ca.pem").exists() && dir.join("ca.key").exists(), "a hub of before may come back");
    let old = hub.trust("old", &old_pem);
    let steady = hub.node(&ground, "steady", &old).await;
    linked(&steady, "linked before").await;
    let rolled = Tls::roll(&dir, &sans()).unwrap();
    assert!(!dir.join("ca.key").exists(), "now it would be another hub");
    hub.server.reload().await.unwrap();
    assert_eq!(rolled.fingerprint, rolled.present.fingerprint, "what a token holds is what is shown");
    let away = hub.node(&ground, "away", &old).await;
    linked(&away, "who knows the old one alone").await;
    let both = hub.trust("both", &rolled.ca_pem);
    linked(&hub.node(&ground, "both", &both).await, "who knows both").await;
    let finished = Tls::finish(&dir, &sans()).unwrap();
    hub.server.reload().await.unwrap();
    assert_eq!(finished.fingerprint, rolled.next.unwrap().fingerprint);
    hub.lets_in("127.0.0.1", &both).await.unwrap();
    away.rebuild_links().await.unwrap();
    refused(&away, "who was not told is out").await;
    hub.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_nothing_newer_than_tls_1_2_is_refused() {
    let ground = Ground::new("versions");
    let hub = start_hub(&ground).await;
    let tls = Tls::load_or_create(&ground.dir("tls"), &sans()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(tls.ca_pem.as_bytes()).unwrap()).unwrap();
    let creds = hub.keys.creds(Account::Control, "client", &Permissions::full()).unwrap();
    for (version, is_in) in [(&rustls::version::TLS12, false), (&rustls::version::TLS13, true)] {
        let config = rustls::ClientConfig::builder_with_protocol_versions(&[version]);
        let config = config.with_root_certificates(roots.clone()).with_no_client_auth();
        let options = ConnectOptions::with_credentials(&creds).unwrap().max_reconnects(1);
        let options = options.tls_client_config(config).require_tls(true);
        let outcome = options.connect(format!("tls://127.0.0.1:{}", hub.config.listen.port())).await;
        assert_eq!(outcome.is_ok(), is_in, "{version:?}");
    }
    hub.server.stop().await.unwrap();
}

/// A node's new keys lie on disk and its link goes on; the old ones are in use until it breaks, and are then worth nothing.
#[tokio::test(flavor = "multi_thread")]
async fn new_keys_end_no_link_and_are_used_by_the_next() {
    let ground = Ground::new("deferral");
    let hub = Hub::start(&ground).await;
    let (link, old) = hub.enrol("n1");
    let edge = leaf(&ground, "n1", Some(link)).await;
    let before = linked(&edge, "both links stand").await;
    let data = ground.dir("n1-data");
    let deferral = Deferral::new(&data, &edge);
    assert_eq!(deferral.in_use(&edge).await, None);
    let of_link = NodeKeys { control_key: old.clone(), work_key: old.clone() };
    deferral.begin(of_link.clone(), &edge).await.unwrap();
    let (_, new) = hub.enrol("n1");
    assert_ne!(old, new, "others lie on disk");
    assert_eq!(deferral.in_use(&edge).await.as_ref(), Some(&of_link));
    // The agent's next life knows it too.
    let deferral = Deferral::new(&data, &edge);
    assert_eq!(deferral.in_use(&edge).await.as_ref(), Some(&of_link));
    assert_eq!(links(&edge).await, before, "the links stand");

    // However the link came to its end. (The server is listened to a moment after its start.)
    eventually("what lies on disk is in use", async || {
        edge.rebuild_links().await.is_ok() && deferral.in_use(&edge).await.is_none()
    })
    .await;
    assert_eq!(Deferral::new(&data, &edge).in_use(&edge).await, None, "for good");
    let now = linked(&edge, "both links stand again").await;
    for account in [Account::Control, Account::Work] {
        hub.server.revoke(account, &old).await.unwrap();
    }
    // A revocation is in force when it is answered.
    assert_eq!(links(&edge).await, now, "the old keys' end ends no link");
    for account in [Account::Control, Account::Work] {
        hub.server.revoke(account, &new).await.unwrap();
    }
    eventually("the links were made with the new keys", async || links(&edge).await.is_empty()).await;
    edge.stop().await.unwrap();
    hub.server.stop().await.unwrap();
}
