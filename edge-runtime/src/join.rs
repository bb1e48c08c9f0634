//! Joining a hub: keys are made here, only their public halves travel, over TLS pinned to the authority whose
//! fingerprint stands in the token.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use base64::Engine;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use schemas::credential::{Enroll, Enrolled, JoinToken};
use schemas::name::NodeName;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::JoinArgs;
use crate::wiring::LEAF_DIR;
use bus::identity::membership::{self, Keys};
use bus::pause::jittered;
use bus::proxy::{self, DialError, Proxy};
use bus::server::way;

/// One hub's answer is waited for so long.
const TIMEOUT: Duration = Duration::from_secs(15);
/// A hub that is busy, with other nodes that join, is asked again for so long, with a pause that grows up to so much.
const BUSY_MAX: Duration = Duration::from_secs(60);
const BUSY_PAUSE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];
/// The largest answer that is read.
const ANSWER_MAX_BYTES: u64 = 256 * 1024;

/// Joins, trying the token's hubs in order.
pub async fn join(args: JoinArgs) -> anyhow::Result<()> {
    let token = read_token(&args.token)?;
    let name = match args.node {
        Some(name) => name,
        None => std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_lowercase(),
    };
    let node = NodeName::new(name).context("EW-NODE-NAME: choose one with --name")?;
    let keys = Keys::load_or_create(&args.data_dir, args.new_keys)?;
    let enroll = Enroll {
        id: token.id.clone(),
        secret: token.secret.clone(),
        node: node.clone(),
        control_key: keys.control.public_key(),
        work_key: keys.work.public_key(),
    };
    let mut last =
        anyhow!("EW-JOIN-TOKEN: the token names no hub; make a new one with `edgewire token create`");
    let proxy = proxy(args.proxy.as_deref(), &[token.hubs.as_slice(), &token.leafs].concat())?;
    for hub in &token.hubs {
        match ask(hub, proxy.as_ref(), &token.ca_sha256, &enroll).await {
            Ok(enrolled) => {
                membership::save(&args.data_dir, node.clone(), &keys, enrolled, proxy)?;
                choose_way(&args.data_dir).await?;
                println!(
                    "joined {hub} as {node}; next: edgewire edge --data-dir {}",
                    args.data_dir.display()
                );
                return Ok(());
            }
            Err(error) => last = error.context(format!("hub {hub}")),
        }
    }
    Err(last)
}

/// The proxy that was given, else the one that this shell's variables name: then it is said, because the node keeps it.
fn proxy(given: Option<&str>, urls: &[String]) -> anyhow::Result<Option<Proxy>> {
    if let Some(text) = given.filter(|text| !text.is_empty()) {
        return Ok(Proxy::setting(text)?);
    }
    let hosts: Vec<String> = urls.iter().filter_map(|url| Some(proxy::host(url)?.to_owned())).collect();
    let found = Proxy::of_environment(&hosts, |name| std::env::var(name).ok())?;
    Ok(found.map(|(proxy, variable)| {
        println!("{variable} is set: joining through {proxy}, and so will the node go; `--proxy none` if it shall not");
        proxy
    }))
}

/// The link begins on a way that is open, if one is: the node then need not find out.
async fn choose_way(data_dir: &Path) -> anyhow::Result<()> {
    let Some((_, link)) = membership::load(data_dir)? else { return Ok(()) };
    let through = link.proxy.as_ref().map(|proxy| format!(" through {proxy}")).unwrap_or_default();
    match link.best_open().await {
        Some(way) => {
            way::remember(&data_dir.join(LEAF_DIR), way)?;
            let urls: Vec<&str> = link.of(way).map(String::as_str).collect();
            println!("the link will go to {}{through}", urls.join(" or "));
        }
        None => eprintln!(
            "edge-runtime: warning: EW-LINK-SHUT: the hub answers on none of {}{through}; the node will go on trying; \
             `edgewire check` with the token says what is in the way",
            link.urls.join(", ")
        ),
    }
    Ok(())
}

fn read_token(text: &str) -> anyhow::Result<JoinToken> {
    let bad =
        "EW-JOIN-TOKEN: this is not a join token (`ew1.…`); copy all of what `edgewire token create` printed";
    let body = text.trim().strip_prefix("ew1.").context(bad)?;
    let json = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(body).map_err(|_| anyhow!(bad))?;
    serde_json::from_slice(&json).map_err(|_| anyhow!(bad))
}

/// The hub is busy: the same may be taken later.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Busy(String);

/// Asks one hub, again while it is busy.
async fn ask(hub: &str, proxy: Option<&Proxy>, ca_sha256: &str, enroll: &Enroll) -> anyhow::Result<Enrolled> {
    let [mut pause, pause_max] = BUSY_PAUSE;
    let deadline = tokio::time::Instant::now() + BUSY_MAX;
    loop {
        let answer = tokio::time::timeout(TIMEOUT, post(hub, proxy, ca_sha256, enroll)).await;
        let answer =
            answer.with_context(|| format!("EW-HUB-UNREACHABLE: no answer in {} s", TIMEOUT.as_secs()))?;
        match answer {
            Err(error) if error.is::<Busy>() && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(jittered(pause)).await;
                pause = (pause * 2).min(pause_max);
            }
            other => return other,
        }
    }
}

async fn post(
    hub: &str,
    proxy: Option<&Proxy>,
    ca_sha256: &str,
    enroll: &Enroll,
) -> anyhow::Result<Enrolled> {
    let authority = hub.strip_prefix("https://").context("EW-JOIN-TOKEN: the hub's address is not https")?;
    let authority = authority.trim_end_matches('/');
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "443"));
    let host = host.trim_matches(['[', ']']);
    let port: u16 = port.parse().context("EW-JOIN-TOKEN: the hub's port is not a number")?;
    let unreachable =
        || format!("EW-HUB-UNREACHABLE: cannot reach {authority}; is the hub running and the port open?");
    let tcp = match proxy::connect(proxy, host, port).await {
        Ok(tcp) => tcp,
        Err(DialError::Direct(error)) => return Err(error).with_context(unreachable),
        Err(DialError::Proxy(error)) => return Err(error.into()),
    };
    let connector = tokio_rustls::TlsConnector::from(Arc::new(pinned(ca_sha256)?));
    let name = ServerName::try_from(host.to_owned()).context("EW-JOIN-TOKEN: the hub's name is not valid")?;
    let mut tls = connector.connect(name, tcp).await.context(
        "EW-HUB-UNTRUSTED: this is not the hub that made the token (or its certificate lacks this name)",
    )?;
    let body = serde_json::to_vec(enroll)?;
    // One small request on a connection of its own: not worth an HTTP client.
    let head = format!(
        "POST /edgewire/v1/enroll HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    tls.write_all(head.as_bytes()).await?;
    tls.write_all(&body).await?;
    tls.flush().await?;
    let mut answer = Vec::new();
    // A server that closes without TLS' own farewell has still said all: the length is checked below.
    let read = (&mut tls).take(ANSWER_MAX_BYTES).read_to_end(&mut answer).await;
    if answer.is_empty() {
        read.context("EW-HUB-UNREACHABLE: the hub closed the connection")?;
    }
    let (status, body) = parse_answer(&answer)?;
    if status == 200 {
        return serde_json::from_slice(&body).context("EW-HUB-ANSWER: the hub's answer is not understood");
    }
    let message = serde_json::from_slice::<serde_json::Value>(&body)
        .ok()
        .and_then(|json| json.get("message").and_then(|m| m.as_str()).map(str::to_owned))
        .unwrap_or_else(|| format!("HTTP status {status}"));
    if status == 503 {
        return Err(Busy(message).into());
    }
    bail!("{message}")
}

/// Status and body of a whole HTTP/1.1 answer.
fn parse_answer(answer: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
    let bad = "EW-HUB-ANSWER: the hub's answer is not HTTP";
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").context(bad)?;
    let head = std::str::from_utf8(answer.get(..end).unwrap_or_default()).context(bad)?;
    let mut body = answer.get(end + 4..).unwrap_or_default().to_vec();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context(bad)?;
    let lower = head.to_ascii_lowercase();
    if lower.contains("transfer-encoding: chunked") {
        bail!("EW-HUB-ANSWER: the hub answered in chunks");
    }
    let length =
        lower.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    if let Some(length) = length {
        if body.len() < length {
            bail!("EW-HUB-ANSWER: the hub's answer was cut off");
        }
        body.truncate(length);
    }
    Ok((status, body))
}

fn pinned(ca_sha256: &str) -> anyhow::Result<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Pinned { ca_sha256: ca_sha256.to_lowercase(), provider: provider.clone() };
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// Trusts the one authority with this fingerprint, which the server has to send along, and checks the rest as usual.
#[derive(Debug)]
struct Pinned {
    ca_sha256: String,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let hex = |der: &CertificateDer<'_>| -> String {
            Sha256::digest(der.as_ref()).iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let ca = intermediates
            .iter()
            .find(|der| hex(der) == self.ca_sha256)
            .ok_or_else(|| rustls::Error::General("no certificate with the token's fingerprint".into()))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_token_is_said() {
        for bad in ["", "ew1.", "ew1.!!!", "abc", "ew1.e30"] {
            assert!(read_token(bad).unwrap_err().to_string().contains("EW-JOIN-TOKEN"), "{bad}");
        }
    }

    /// Made by a hub of before a token told where the leaf connects.
    const OLD: &str =
        "ew1.eyJodWJzIjpbImh0dHBzOi8vaHViOjY0NDMiXSwiY2Ffc2hhMjU2IjoiMDAiLCJpZCI6ImkiLCJzZWNyZXQiOiJzIn0";

    #[test]
    fn a_token_of_an_older_hub_is_read() {
        let token = read_token(OLD).unwrap();
        assert_eq!(
            (token.hubs.as_slice(), token.leafs.len()),
            (["https://hub:6443".to_owned()].as_slice(), 0)
        );
    }

    #[test]
    fn the_proxy_that_is_given_is_stronger_than_the_environment() {
        let hubs = ["https://hub:6443".to_owned()];
        assert_eq!(proxy(Some("none"), &hubs).unwrap(), None);
        assert_eq!(proxy(Some("http://p:1"), &hubs).unwrap().unwrap().to_string(), "http://p:1");
        assert!(proxy(Some("ftp://p"), &hubs).is_err());
    }

    #[test]
    fn an_answer_is_whole_or_refused() {
        let (status, body) = parse_answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi!").unwrap();
        assert_eq!((status, body.as_slice()), (200, b"hi".as_slice()));
        assert!(parse_answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi").is_err());
        assert!(parse_answer(b"rubbish").is_err());
    }

    #[test]
    fn a_token_and_the_hubs_answer_are_read_whatever_they_are() {
        let token = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .encode(r#"{"hubs":["https://h:1"],"ca_sha256":"00","id":"i","secret":"s"}"#);
        let token = format!("ew1.{token}");
        assert!(read_token(&token).is_ok());
        crate::fuzz::try_bytes("a join token", &[token.into_bytes()], |bytes| {
            let _ = read_token(&String::from_utf8_lossy(bytes));
        });
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".to_vec();
        crate::fuzz::try_bytes("the hub's answer", &[answer], |bytes| {
            if let Ok((_, body)) = parse_answer(bytes) {
                assert!(body.len() <= bytes.len());
            }
        });
        crate::fuzz::try_bytes("a network", &[b"10.85.0.0/24".to_vec(), b"0.0.0.0/0".to_vec()], |bytes| {
            let _ = crate::config::Cidr::parse(&String::from_utf8_lossy(bytes)).map(|net| net.gateway());
        });
    }
}
