//! Who has a node in their hands, or nothing but the network, gains nothing, slows nobody down, and is on record.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_nats::{Client, HeaderMap};
use bus::module::Account;
use futures::StreamExt;
use rustls::pki_types::ServerName;
use schemas::subject::STREAM_FROM;
use tests::cluster::{Cluster, Operator, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{IDLE, as_node, edgewire, inside, pod, runs, the_same};

/// A question that nobody may answer is waited for so long.
const SILENCE: Duration = Duration::from_millis(700);
/// A listener that says nothing for so long will not.
const PATIENCE: Duration = Duration::from_secs(15);

/// Who has the machine goes another way: its own server, where it may do all, and the link that this server has.
async fn through_the_link(operator: &Operator) -> anyhow::Result<()> {
    let bus = operator.dial(Account::Control).await?;
    let client = bus.client();
    for (subject, body) in [
        ("ew.req.edge-a.desired.list", ""),
        ("$JS.hub.API.CONSUMER.MSG.NEXT.KV_desired.node_edge-a", r#"{"batch":1,"no_wait":true}"#),
        ("$JS.hub.API.DIRECT.GET.UP.ew.in.edge-a._cursor.state", ""),
    ] {
        client.request(subject, body.into()).await.with_context(|| format!("its own question {subject}"))?;
    }
    answered_nothing(client).await
}

async fn answered_nothing(client: &Client) -> anyhow::Result<()> {
    let secret_key = "$KV.desired.edge-b.secrets.default.theirs";
    let body = |text: &str| text.to_owned();
    let questions = [
        ("ew.req.edge-b.desired.list", String::new()),
        ("ew.local.identity.token.create", String::new()),
        ("ew.local.identity.bus", String::new()),
        ("ew.cmd.edge-b.host.modules", String::new()),
        ("ew.cmd.edge-b.containers.exec", String::new()),
        ("ew.cmd.hub.host.modules", String::new()),
        ("$JS.hub.API.STREAM.NAMES", String::new()),
        ("$JS.hub.API.STREAM.CREATE.MINE", body(r#"{"name":"MINE","subjects":["mine.>"]}"#)),
        ("$JS.hub.API.STREAM.PURGE.UP", String::new()),
        ("$JS.hub.API.STREAM.DELETE.KV_objects", String::new()),
        ("$JS.hub.API.STREAM.SNAPSHOT.KV_identity", body(r#"{"deliver_subject":"_INBOX.edge-a.s"}"#)),
        ("$JS.hub.API.STREAM.MSG.GET.KV_desired", body(r#"{"seq":1}"#)),
        ("$JS.hub.API.DIRECT.GET.KV_desired", format!(r#"{{"last_by_subj":"{secret_key}"}}"#)),
        ("$JS.hub.API.DIRECT.GET.KV_identity", body(r#"{"seq":1}"#)),
        ("$JS.hub.API.DIRECT.GET.UP.ew.in.edge-b._cursor.state", String::new()),
        (
            "$JS.hub.API.CONSUMER.CREATE.KV_desired.mine",
            body(
                r#"{"stream_name":"KV_desired","config":{"name":"mine","deliver_subject":"_INBOX.edge-a.d"}}"#,
            ),
        ),
        ("$JS.hub.API.CONSUMER.DURABLE.CREATE.KV_desired.node_edge-a", body("{}")),
        ("$JS.hub.API.CONSUMER.MSG.NEXT.KV_desired.node_edge-b", body(r#"{"batch":1}"#)),
        ("ew.in.edge-b.state.ew.rep.containers.pod.default.theirs.x", body("x")),
        ("ew.hb.edge-b", body("x")),
        ("ew.audit.done.hub.create", body("x")),
        ("$KV.objects.=.pods.default.theirs", body("x")),
        ("$KV.identity.node.edge-b", body("x")),
    ];
    let answers = questions.map(|(subject, body)| async move {
        let answer = tokio::time::timeout(SILENCE, client.request(subject, body.into())).await;
        anyhow::ensure!(!matches!(answer, Ok(Ok(_))), "a node was answered on {subject}: {answer:?}");
        Ok(())
    });
    futures::future::try_join_all(answers).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_node_has_that_node_alone() -> anyhow::Result<()> {
    let cluster = Cluster::new("attack").await?;
    cluster.up(&["edge-a", "edge-b"]).await?;
    let (taken, other) = (cluster.edge("edge-a")?, cluster.edge("edge-b")?);
    cluster.kubectl_ok(&["create", "secret", "generic", "theirs", "--from-literal=key=sesame"]).await?;
    let mut theirs = pod("theirs", "edge-b", IDLE);
    theirs["spec"]["volumes"] = serde_json::json!([{"name": "s", "secret": {"secretName": "theirs"}}]);
    cluster.apply(&theirs.to_string()).await?;
    let running = runs(&cluster, &other, "default", "theirs").await?;
    let control = as_node(&cluster, &taken, Account::Control).await?;
    let work = as_node(&cluster, &taken, Account::Work).await?;

    // It hears nothing that is not its own, while all of it is said.
    let mut heard = Vec::new();
    for (client, subject) in [
        (&control, ">"),
        (&control, "ew.>"),
        (&control, "ew.cmd.edge-b.>"),
        (&control, "ew.in.>"),
        (&control, "ew.local.>"),
        (&control, "ew.audit.>"),
        (&control, "$KV.>"),
        (&control, "$JS.>"),
        (&control, "$SYS.>"),
        (&control, "_INBOX.>"),
        (&control, "_INBOX.hub.>"),
        (&control, "_INBOX.edge-b.>"),
        (&work, ">"),
        (&work, "from.>"),
        (&work, "$MQTT.>"),
        (&work, "_INBOX.>"),
        (&work, "$JS.>"),
    ] {
        heard.push((subject, client.subscribe(subject).await?));
    }
    cluster.kubectl_ok(&["exec", "theirs", "--", "true"]).await?;
    cluster.kubectl_ok(&["logs", "theirs"]).await?;
    edgewire(&cluster, &["token", "create"]).await?.ok()?;

    // It is answered nothing that is not its own, neither by the hub's bus nor through its own server and the link.
    control.request("ew.req.edge-a.desired.list", "".into()).await.context("its own question, at the hub")?;
    answered_nothing(&control).await?;
    let operator = taken.operator()?;
    inside(&taken, async move || through_the_link(&operator).await).await?;
    for (subject, mut messages) in heard {
        let message = tokio::time::timeout(Duration::from_millis(50), messages.next()).await;
        anyhow::ensure!(!matches!(message, Ok(Some(_))), "a node heard {message:?} on {subject}");
    }

    // One message that it may send cannot take away what others sent.
    let before = cluster.stored(Account::Control, STREAM_FROM, ">").await?.len();
    for header in ["all", "sub"] {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Rollup", header);
        let sent = work.request_with_headers("from.edge-a.default.x", headers.clone(), "x".into()).await?;
        anyhow::ensure!(sent.payload.starts_with(b"{\"error\""), "{header}: {:?}", sent.payload);
        let sent =
            control.request_with_headers("ew.in.edge-a.events.ew.evt.a.B", headers, "x".into()).await?;
        anyhow::ensure!(sent.payload.starts_with(b"{\"error\""), "{header}: {:?}", sent.payload);
    }
    anyhow::ensure!(cluster.stored(Account::Control, STREAM_FROM, ">").await?.len() >= before);

    // It holds as many batches open as it can, in streams of its own right; the other node's word still gets through.
    for n in 0..400 {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Batch-Id", format!("open-{n}").as_str());
        headers.insert("Nats-Batch-Sequence", "1");
        control.publish_with_headers("ew.in.edge-a.state.ew.rep.x.y.z", headers.clone(), "x".into()).await?;
        work.publish_with_headers("from.edge-a.default.x", headers, "x".into()).await?;
    }
    // Frames of the largest size that is let in, as fast as they go; and one that is too large.
    let large = bytes::Bytes::from(vec![0x93; 7 * 1024 * 1024]);
    for _ in 0..4 {
        control.publish("ew.in.edge-a.events.ew.evt.containers.Started", large.clone()).await?;
    }
    control.flush().await?;
    anyhow::ensure!(control.publish("ew.hb.edge-a", vec![0; 9 * 1024 * 1024].into()).await.is_err());
    cluster.apply(&pod("after", "edge-b", IDLE).to_string()).await?;
    runs(&cluster, &other, "default", "after").await?;
    the_same(&other, &[&running], "while another node is in wrong hands")?;
    cluster.kubectl_ok(&["exec", "after", "--", "true"]).await?;

    eventually("who tried is on record", 30, async || {
        let records =
            edgewire(&cluster, &["audit", "--refused", "--user", "edge-a", "--json"]).await?.ok()?;
        let records: Vec<serde_json::Value> = serde_json::from_str(&records)?;
        Ok(["publish", "subscribe"].iter().all(|verb| records.iter().any(|record| record["verb"] == **verb)))
    })
    .await?;

    // Shut out, a copy of its credentials opens nothing any more.
    edgewire(&cluster, &["node", "revoke", "edge-a"]).await?.ok()?;
    for account in [Account::Control, Account::Work] {
        anyhow::ensure!(as_node(&cluster, &taken, account).await.is_err(), "revoked credentials were taken");
    }
    cluster.done().await
}

/// What a listener says to who shows nothing. `speak` is said after a TLS handshake of that version, or in the clear.
async fn knock(
    address: SocketAddr,
    tls: Option<&'static rustls::SupportedProtocolVersion>,
    info_first: bool,
    speak: &[u8],
) -> anyhow::Result<String> {
    let (mut stream, said) = open(address, tls, info_first).await?;
    stream.write_all(speak).await?;
    Ok(said + &read(&mut *stream).await)
}

/// A connection, and its greeting if it has one.
async fn open(
    address: SocketAddr,
    tls: Option<&'static rustls::SupportedProtocolVersion>,
    info_first: bool,
) -> anyhow::Result<(Box<dyn Stream>, String)> {
    let mut said = String::new();
    let mut tcp = TcpStream::connect(address).await?;
    if info_first {
        let mut info = vec![0; 4096];
        let n = tokio::time::timeout(PATIENCE, tcp.read(&mut info)).await??;
        said.push_str(&String::from_utf8_lossy(&info[..n]));
    }
    let Some(version) = tls else { return Ok((Box::new(tcp), said)) };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_no_client_auth();
    let name = ServerName::from(address.ip());
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = tokio::time::timeout(PATIENCE, connector.connect(name, tcp)).await??;
    Ok((Box::new(stream), said))
}

/// Until it says no more, or closes.
async fn read(stream: &mut dyn Stream) -> String {
    let mut answer = vec![0; 64 * 1024];
    let mut all = String::new();
    while let Ok(Ok(n @ 1..)) = tokio::time::timeout(Duration::from_secs(3), stream.read(&mut answer)).await {
        all.push_str(&String::from_utf8_lossy(&answer[..n]));
    }
    all
}

trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> Stream for T {}

/// Trusts whatever it is shown: it is the server that is on trial.
#[derive(Debug)]
struct Anyone(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The request that makes a WebSocket of an HTTPS connection, from a page of `origin` or from a program.
fn upgrade(path: &str, origin: Option<&str>) -> Vec<u8> {
    let origin = origin.map(|origin| format!("Origin: {origin}\r\n")).unwrap_or_default();
    format!(
        "GET {path} HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{origin}\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .into_bytes()
}

/// A frame of a WebSocket's client, with a mask that leaves it as it is.
fn frame(payload: &[u8]) -> Vec<u8> {
    [&[0x82, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0], payload].concat()
}

/// What a stranger finds at the port where nodes connect by WebSocket: plain clients may speak there too, and need a login.
async fn a_stranger_at_the_websocket(wss: SocketAddr) -> anyhow::Result<()> {
    let (tls12, tls13) = (&rustls::version::TLS12, &rustls::version::TLS13);
    anyhow::ensure!(knock(wss, Some(tls12), false, b"").await.is_err(), "TLS 1.2 was taken");
    let plain = knock(wss, None, false, &upgrade("/", None)).await.unwrap_or_default();
    anyhow::ensure!(!plain.contains("101"), "it talks in the clear: {plain}");
    let page = knock(wss, Some(tls13), false, &upgrade("/", Some("https://evil.example"))).await?;
    anyhow::ensure!(page.starts_with("HTTP/1.1 403 "), "a page of another's was let in: {page}");
    let request = b"GET /edgewire/v1/tokens HTTP/1.1\r\nHost: hub\r\n\r\n";
    let page = knock(wss, Some(tls13), false, request).await?;
    anyhow::ensure!(page.starts_with("HTTP/1.1 400 "), "it serves more than WebSocket: {page}");
    let hello = frame(b"CONNECT {\"verbose\":false}\r\nSUB > 1\r\nPING\r\n");
    for path in ["/", "/leafnode"] {
        let (mut stream, _) = open(wss, Some(tls13), false).await?;
        stream.write_all(&upgrade(path, None)).await?;
        let mut head = [0; 13];
        stream.read_exact(&mut head).await?;
        anyhow::ensure!(&head == b"HTTP/1.1 101 ", "{path}: {}", String::from_utf8_lossy(&head));
        stream.write_all(&hello).await?;
        let said = read(&mut *stream).await;
        anyhow::ensure!(said.contains("Authorization Violation") && !said.contains("PONG"), "{path}: {said}");
    }
    let said = knock(wss, Some(tls13), false, &upgrade("/mqtt", None)).await?;
    anyhow::ensure!(!said.starts_with("HTTP/1.1 101 "), "MQTT is not served: {said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_in_nowhere_and_slows_nobody() -> anyhow::Result<()> {
    let cluster = Cluster::new("stranger").await?;
    let wss = SocketAddr::from((cluster.site().hub_address(), 443));
    cluster.hub().set_flags(&["--leaf-wss", &wss.to_string()]);
    cluster.up(&["edge-a"]).await?;
    let edge = cluster.edge("edge-a")?;
    cluster.apply(&pod("steady", "edge-a", IDLE).to_string()).await?;
    let steady = runs(&cluster, &edge, "default", "steady").await?;
    let (host, ports) = (cluster.site().hub_address(), cluster.site().ports);
    let [api, bus, leaf] = [ports.api, ports.bus, ports.leaf].map(|port| SocketAddr::from((host, port)));
    let (tls12, tls13) = (&rustls::version::TLS12, &rustls::version::TLS13);
    let hello = b"CONNECT {\"verbose\":false}\r\nSUB > 1\r\nPING\r\n";

    for (name, address, info) in [("API", api, false), ("bus", bus, true), ("leaf", leaf, true)] {
        let old = knock(address, Some(tls12), info, b"").await;
        anyhow::ensure!(old.is_err(), "{name}: TLS 1.2 was taken");
    }
    for path in [
        "/api/v1/secrets",
        "/api/v1/pods",
        "/edgewire/v1/tokens",
        "/edgewire/v1/bus",
        "/edgewire/v1/audit",
        "/openapi/v2",
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let said = knock(api, Some(tls13), false, request.as_bytes()).await?;
        anyhow::ensure!(said.starts_with("HTTP/1.1 401 "), "{path}: {said}");
    }
    for (name, address) in [("bus", bus), ("leaf", leaf)] {
        let said = knock(address, Some(tls13), true, hello).await?;
        anyhow::ensure!(said.contains("Authorization Violation"), "{name}: {said}");
        anyhow::ensure!(!said.contains("PONG"), "{name} talks to a stranger: {said}");
        let plain = knock(address, None, true, hello).await.unwrap_or_default();
        anyhow::ensure!(!plain.contains("PONG"), "{name} talks in the clear: {plain}");
    }
    a_stranger_at_the_websocket(wss).await?;
    let plain =
        knock(api, None, false, b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap_or_default();
    anyhow::ensure!(!plain.contains("200"), "the API talks in the clear: {plain}");
    // The node's own bus is reached from its pods, and lets nobody in without a login.
    let said = inside(&edge, async move || {
        knock("10.85.1.1:4222".parse()?, None, true, b"CONNECT {\"verbose\":false}\r\nSUB > 1\r\nPING\r\n")
            .await
    })
    .await?;
    anyhow::ensure!(said.contains("Authorization Violation") && !said.contains("PONG"), "node's bus: {said}");

    // Names that would mean something else inside a subject.
    let token = cluster.hub().token(20, 600).await?;
    for name in ["*", ">", "edge-b.x", "hub", "", "a b", "EDGE", "../x", "=", &"n".repeat(300)] {
        let said = cluster.edge("edge-c")?.join_as(&token, &["--name", name]).await?;
        anyhow::ensure!(!said.success, "a node joined as {name:?}");
    }

    // Three hundred connections that say nothing, and noise on each door, keep nobody waiting.
    let mut idle = Vec::new();
    for n in 0..300 {
        let mut stream = TcpStream::connect([api, bus, leaf, wss][n % 4]).await?;
        if n % 8 < 4 {
            let _ = stream.write_all(&[(n % 251) as u8; 512]).await; // a door that is shut already is what is hoped for
        }
        idle.push(stream);
    }
    cluster.kubectl_ok(&["exec", "steady", "--", "true"]).await?;
    cluster.apply(&pod("meanwhile", "edge-a", IDLE).to_string()).await?;
    runs(&cluster, &edge, "default", "meanwhile").await?;
    the_same(&edge, &[&steady], "under strangers")?;
    drop(idle);
    let modules = crate::support::modules(&cluster).await?;
    anyhow::ensure!(
        modules.iter().all(|(_, state, restarts, _)| state == "Running" && *restarts == 0),
        "{modules:?}"
    );
    cluster.done().await
}
