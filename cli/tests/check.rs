//! `edgewire check` against what may stand where a hub should: nothing, a closed port, a silent one, one that talks
//! nonsense, one that re-signs TLS, one with another clock. A real hub is checked by the end-to-end suite; here fakes
//! do what a hub never does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

mod support;

use std::net::SocketAddr;
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bus::identity::Tls;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use schemas::credential::JoinToken;
use serde_json::Value;
use support::{finish, stderr, stdout, tool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// Whatever hangs: no check takes longer, with room for a busy machine.
const CHECK_MAX: Duration = Duration::from_secs(15);

/// What listens at one port.
#[derive(Clone)]
enum Part {
    /// Takes connections and says nothing.
    Sink,
    /// Says this in the clear.
    Says(&'static str),
    /// TLS, and then this answer to whatever is asked.
    Api(TlsAcceptor, String),
    /// What a nats-server's leaf port does up to TLS.
    Leaf(TlsAcceptor),
    /// What its port for WebSocket does.
    Wss(TlsAcceptor),
    /// A proxy that lets `me` with the password `hush` through to these ports.
    Proxy(Vec<u16>),
}

/// A listener that is gone with the test.
struct Fake {
    address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Fake {
    async fn start(part: Part) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let part = part.clone();
                tokio::spawn(async move { drop(serve(part, tcp).await) });
            }
        });
        Self { address, serving }
    }
}

async fn serve(part: Part, mut tcp: TcpStream) -> std::io::Result<()> {
    match part {
        Part::Sink => std::future::pending().await,
        Part::Says(text) => {
            tcp.write_all(text.as_bytes()).await?;
            tcp.read_to_end(&mut Vec::new()).await.map(drop)
        }
        Part::Api(acceptor, answer) => {
            let mut tls = acceptor.accept(tcp).await?;
            let mut request = [0; 4096];
            let size = tls.read(&mut request).await?;
            assert!(request[..size].starts_with(b"GET /healthz HTTP/1.1\r\n"), "only that is asked");
            let secret = request[..size].windows(4).any(|part| part == b"hush");
            assert!(!secret, "the token's secret went to a stranger");
            tls.write_all(answer.as_bytes()).await?;
            tls.shutdown().await
        }
        Part::Leaf(acceptor) => {
            tcp.write_all(b"INFO {\"version\":\"2.15.1\",\"tls_required\":true}\r\n").await?;
            let mut tls = acceptor.accept(tcp).await?;
            tls.read_to_end(&mut Vec::new()).await.map(drop)
        }
        Part::Wss(acceptor) => {
            let mut tls = acceptor.accept(tcp).await?;
            let mut request = [0; 4096];
            let size = tls.read(&mut request).await?;
            assert!(request[..size].starts_with(b"GET /leafnode HTTP/1.1\r\n"), "as a leaf does");
            tls.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n").await
        }
        Part::Proxy(ports) => {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(tcp.read_u8().await?);
            }
            let request = String::from_utf8_lossy(&request);
            let to = request.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap();
            let port: u16 = to.rsplit(':').next().unwrap().parse().unwrap();
            let answer = match (request.contains("Basic bWU6aHVzaA==\r\n"), ports.contains(&port)) {
                (false, _) => "407 Proxy Authentication Required",
                (true, false) => "403 Forbidden",
                (true, true) => "200 OK",
            };
            tcp.write_all(format!("HTTP/1.1 {answer}\r\n\r\n").as_bytes()).await?;
            if answer == "200 OK" {
                let mut far = TcpStream::connect(to).await?;
                tokio::io::copy_bidirectional(&mut tcp, &mut far).await?;
            }
            Ok(())
        }
    }
}

/// A hub's keys, made by the code that makes them for a hub, and what it listens with.
struct Keys {
    fingerprint: String,
    api: TlsAcceptor,
    leaf: TlsAcceptor,
}

fn keys() -> Keys {
    let dir = tempfile::tempdir().unwrap();
    let tls = Tls::load_or_create(dir.path(), &[]).unwrap();
    let (cert, key) = (tls.server_pem.clone(), tls.server_pem.clone());
    let chain = |pem: &str| CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect();
    let api = acceptor(chain(&format!("{cert}{}", tls.ca_pem)), &key);
    Keys { fingerprint: tls.fingerprint.clone(), api, leaf: acceptor(chain(&cert), &key) }
}

fn acceptor(chain: Vec<CertificateDer<'static>>, key_pem: &str) -> TlsAcceptor {
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).unwrap();
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

fn ok_at(date: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
}

fn now() -> String {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

fn token(hubs: &[SocketAddr], fingerprint: &str) -> String {
    token_with(hubs, &[], fingerprint)
}

fn token_with(hubs: &[SocketAddr], leafs: &[String], fingerprint: &str) -> String {
    let hubs = hubs.iter().map(|hub| format!("https://{hub}")).collect();
    let (ca_sha256, id, secret) = (fingerprint.to_owned(), "id".to_owned(), "hush".to_owned());
    let token =
        serde_json::to_vec(&JoinToken { hubs, ca_sha256, id, secret, leafs: leafs.to_vec() }).unwrap();
    format!("ew1.{}", BASE64_URL_SAFE_NO_PAD.encode(token))
}

/// Runs it; every finding, and the raw output.
async fn check(hub: &str, leaf_port: u16, more: &[(&str, &str)]) -> (Vec<Value>, Output) {
    check_with(hub, &["--leaf-port", &leaf_port.to_string()], more).await
}

async fn check_with(hub: &str, flags: &[&str], more: &[(&str, &str)]) -> (Vec<Value>, Output) {
    let mut command = tool(&[&["check", hub, "--json"], flags].concat());
    for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        command.env_remove(name);
    }
    command.envs(more.iter().copied());
    let begun = Instant::now();
    let output = finish(command).await;
    let took = begun.elapsed();
    assert!(took < CHECK_MAX, "it took {took:?}");
    assert!(!stdout(&output).contains("hush") && !stderr(&output).contains("hush"), "the secret is shown");
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let fails = findings.iter().filter(|finding| finding["result"] == "fail").count();
    assert_eq!(output.status.code(), Some(i32::from(fails > 0)), "{}", stderr(&output));
    assert_eq!(stderr(&output).contains(&format!("EW-CHECK-FAILED: {fails} of ")), fails > 0);
    (findings, output)
}

/// The finding of that name, as `result: found`.
fn of(findings: &[Value], check: &str) -> String {
    let found = findings.iter().find(|finding| finding["check"] == check);
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    found.map_or_else(String::new, |finding| {
        assert_eq!(finding["cure"].is_null(), finding["result"] == "ok", "{finding}");
        assert!(text(finding, "code").starts_with("EW-CHECK-"));
        format!("{}: {}", text(finding, "result"), text(finding, "found"))
    })
}

fn closed_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_as_it_should_be_is_well() {
    let keys = keys();
    let api = Fake::start(Part::Api(keys.api.clone(), ok_at(&now()))).await;
    let leaf = Fake::start(Part::Leaf(keys.leaf.clone())).await;
    let token = token(&[api.address], &keys.fingerprint);
    let proxy = [("HTTPS_PROXY", "http://me:hush@proxy:3128")];
    let (found, _) = check(&token, leaf.address.port(), &proxy).await;
    let at = api.address;
    assert!(of(&found, "api").starts_with(&format!("ok: {at} in ")), "{found:?}");
    assert!(of(&found, "api").ends_with("outbound; no inbound port is needed"), "{found:?}");
    assert_eq!(of(&found, "api tls"), "ok: by the authority that the token names");
    assert!(of(&found, "leaf").ends_with("nats-server 2.15.1"), "{found:?}");
    assert_eq!(of(&found, "leaf tls"), "ok: by the same authority as the API");
    assert!(of(&found, "clock").contains("the hub's, within a second"), "{found:?}");
    assert!(of(&found, "mtu").starts_with("ok: lo has "), "{found:?}");
    assert!(of(&found, "proxy").starts_with("ok: HTTPS_PROXY=http://proxy:3128 is set"), "{found:?}");

    // Of several hubs one is enough; and without a token the authority is shown.
    let two = self::token(&[closed_port(), api.address], &keys.fingerprint);
    let (found, _) = check(&two, leaf.address.port(), &[]).await;
    assert!(of(&found, "api").starts_with("warn: cannot connect"), "{found:?}");
    let (found, _) = check(&at.to_string(), leaf.address.port(), &[]).await;
    let shown = format!("ok: by a hub's authority, sha256 {}…", &keys.fingerprint[..16]);
    assert!(of(&found, "api tls").starts_with(&shown), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_addresses_of_the_token_are_tried_and_one_is_enough() {
    let keys = keys();
    let api = Fake::start(Part::Api(keys.api.clone(), ok_at(&now()))).await;
    let wss = Fake::start(Part::Wss(keys.leaf.clone())).await;
    let leafs = |wss: SocketAddr| [format!("tls://{}", closed_port()), format!("wss://{wss}")];
    let well = token_with(&[api.address], &leafs(wss.address), &keys.fingerprint);
    let (found, _) = check_with(&well, &[], &[]).await;
    assert!(of(&found, "leaf").starts_with("warn: cannot connect to 127.0.0.1:"), "{found:?}");
    assert!(of(&found, "leaf wss").starts_with(&format!("ok: {} in ", wss.address)), "{found:?}");
    assert_eq!(of(&found, "leaf wss tls"), "ok: by the same authority as the API");

    // A page is there, and no hub.
    let page = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let web = Fake::start(Part::Says(page)).await;
    let shut = token_with(&[api.address], &leafs(web.address), &keys.fingerprint);
    let (found, _) = check_with(&shut, &[], &[]).await;
    assert!(of(&found, "leaf").starts_with("fail: "), "{found:?}");
    assert!(of(&found, "leaf wss").starts_with("fail: "), "{found:?}");

    // Through a proxy, which lets through to 443 and the API alone, as most do.
    let proxy = Fake::start(Part::Proxy(vec![api.address.port(), wss.address.port()])).await;
    let leaf = Fake::start(Part::Leaf(keys.leaf.clone())).await;
    let leafs = [format!("tls://{}", leaf.address), format!("wss://{}", wss.address)];
    let token = token_with(&[api.address], &leafs, &keys.fingerprint);
    let url = format!("http://me:hush@{}", proxy.address);
    let (found, _) = check_with(&token, &["--proxy", &url], &[]).await;
    for name in ["api", "api tls", "leaf wss", "leaf wss tls"] {
        assert!(of(&found, name).starts_with("ok: "), "{name} {found:?}");
    }
    assert!(of(&found, "leaf").contains("403 Forbidden"), "{found:?}");
    let want = format!("ok: through http://{} (as given)", proxy.address);
    assert!(of(&found, "proxy").starts_with(&want), "{found:?}");
    let (found, _) =
        check_with(&token, &[], &[("EDGEWIRE_PROXY", &format!("http://{}", proxy.address))]).await;
    for name in ["api", "leaf", "leaf wss"] {
        assert!(of(&found, name).contains("does not take this login"), "{name} {found:?}");
    }
    assert!(of(&found, "proxy").starts_with("fail: through"), "{found:?}");
    let output = finish(tool(&["check", &token, "--proxy", "socks5://me:hush@p"])).await;
    assert!(
        stderr(&output).starts_with("EW-PROXY: ") && !stderr(&output).contains("hush"),
        "{}",
        stderr(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_port_is_told_with_the_proxy_that_does_not_help() {
    let closed = closed_port();
    let proxy = [("https_proxy", "http://proxy:3128")];
    let (found, output) = check(&closed.to_string(), closed.port(), &proxy).await;
    for name in ["api", "leaf"] {
        let want = format!("fail: cannot connect to {closed}: connection refused");
        assert_eq!(of(&found, name), want);
    }
    assert_eq!(of(&found, "api tls"), "");
    assert!(of(&found, "proxy").starts_with("fail: https_proxy=http://proxy:3128 is set"), "{found:?}");
    let line = stderr(&output);
    assert!(line.starts_with("EW-CHECK-FAILED: ") && line.lines().count() == 1, "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_hub_is_told_in_time() {
    let sink = Fake::start(Part::Sink).await;
    let (found, _) = check(&sink.address.to_string(), sink.address.port(), &[]).await;
    assert!(of(&found, "api").ends_with("is no hub: no TLS, it says nothing in 3 s"), "{found:?}");
    assert!(of(&found, "leaf").ends_with("is no hub: it says nothing in 3 s"), "{found:?}");

    let shell = Fake::start(Part::Says("SSH-2.0-OpenSSH_9.2\r\n")).await;
    let (found, _) = check(&shell.address.to_string(), shell.address.port(), &[]).await;
    assert!(of(&found, "api").contains("is no hub: no TLS, "), "{found:?}");
    assert!(of(&found, "leaf").ends_with("is no hub: it says \"SSH-2.0-OpenSSH_9.2\""), "{found:?}");

    let keys = keys();
    let page = "HTTP/1.1 404 Not Found\r\nServer: nginx\r\nContent-Length: 0\r\n\r\n";
    let web = Fake::start(Part::Api(keys.api.clone(), page.to_owned())).await;
    let (found, _) = check(&web.address.to_string(), web.address.port(), &[]).await;
    assert!(of(&found, "api").ends_with("answers /healthz with status 404 from \"nginx\""), "{found:?}");

    let nonsense = Fake::start(Part::Api(keys.api, "\x1b[2Jwhat?\r\n\r\n".to_owned())).await;
    let command = tool(&["check", &nonsense.address.to_string()]);
    let output = finish(command).await;
    assert_eq!(output.status.code(), Some(1));
    let shown = stdout(&output);
    assert!(shown.contains("is no hub") && !shown.contains('\x1b'), "{shown:?}");
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_re_signs_is_named() {
    let (real, other) = (keys(), keys());
    let api = Fake::start(Part::Api(other.api.clone(), ok_at(&now()))).await;
    let leaf = Fake::start(Part::Leaf(other.leaf.clone())).await;
    let (found, _) = check(&token(&[api.address], &real.fingerprint), leaf.address.port(), &[]).await;
    let tls = of(&found, "api tls");
    assert!(tls.starts_with("fail: ") && tls.contains("by \"edgewire authority\" (sha256 "), "{found:?}");

    // Both ports are re-signed, by one who does not pose as a hub.
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let middle = acceptor(vec![made.cert.der().clone()], &made.signing_key.serialize_pem());
    let api = Fake::start(Part::Api(middle.clone(), ok_at(&now()))).await;
    let leaf = Fake::start(Part::Leaf(middle)).await;
    let (found, _) = check(&token(&[api.address], &real.fingerprint), leaf.address.port(), &[]).await;
    for name in ["api tls", "leaf tls"] {
        let tls = of(&found, name);
        assert!(tls.starts_with("fail: ") && tls.contains("by \"rcgen self signed cert\""), "{found:?}");
    }

    // The API is the hub's, and something between re-signs the leaf's port only.
    let api = Fake::start(Part::Api(real.api.clone(), ok_at(&now()))).await;
    let (found, _) = check(&token(&[api.address], &real.fingerprint), leaf.address.port(), &[]).await;
    assert!(
        of(&found, "api tls").starts_with("ok: ") && of(&found, "leaf tls").starts_with("fail: "),
        "{found:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_clock_is_told() {
    let keys = keys();
    for (date, want) in [
        ("Sun, 06 Nov 2044 08:49:37 GMT", "behind the hub's clock"),
        ("Sun, 06 Nov 1994 08:49:37 GMT", "ahead of the hub's clock"),
    ] {
        let api = Fake::start(Part::Api(keys.api.clone(), ok_at(date))).await;
        let leaf = Fake::start(Part::Leaf(keys.leaf.clone())).await;
        let (found, _) = check(&token(&[api.address], &keys.fingerprint), leaf.address.port(), &[]).await;
        let clock = of(&found, "clock");
        assert!(clock.starts_with("fail: ") && clock.contains(want), "{clock}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_hub_the_machine_alone_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("not/there");
    let mut command = tool(&["check", "--json", "--data-dir"]);
    command.arg(&data_dir);
    let output = finish(command).await;
    let found: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    for name in ["api", "leaf", "name"] {
        assert_eq!(of(&found, name), "", "{found:?}");
    }
    for name in
        ["proxy", "clock", "user", "kernel", "cgroup", "disk", "memory", "bridge", "pod network", "cni"]
    {
        assert_ne!(of(&found, name), "", "no {name} in {found:?}");
    }
    assert!(of(&found, "disk").contains(&format!("to be made in {}", dir.path().display())), "{found:?}");
    assert!(!dir.path().join("not").exists(), "it made something");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_and_a_wrong_word_are_told() {
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = finish(tool(&["check", "--json", "--bus-port", &port])).await;
    let found: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let bus = of(&found, "bus port");
    assert!(bus.starts_with(&format!("fail: 0.0.0.0:{port} is taken by ")), "{found:?}");
    assert!(bus.contains(&format!("(pid {})", std::process::id())), "{bus}");
    assert_eq!(output.status.code(), Some(1));

    for wrong in ["http://hub", "ew1.nonsense"] {
        let output = finish(tool(&["check", wrong])).await;
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    }
}
