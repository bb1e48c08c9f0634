//! Knocking at a hub's doors, as a node would: the API, and the ports where its leaf connects; directly, or through a proxy.
//! Facts only; what they mean is decided in `reach.rs`.
//!
//! Every step has its own bound, so that what hangs is named. Nothing secret is sent, but a proxy's own login to the proxy:
//! the API is asked for `/healthz`, a leaf's port for nothing, or to speak WebSocket.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use bus::proxy::{Proxy, with_port};
use bus::server::way::Way;
use futures::stream::{FuturesUnordered, StreamExt};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{DATE, HOST, SERVER, USER_AGENT};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{getsockopt, sockopt::IpMtu};
use rustls::pki_types::ServerName;
use schemas::Timestamp;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificate::{Chain, Recorder};
use super::target::{Hub, Leaf};
use crate::failure::chain;

/// Finding the hub's addresses may take so long.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection may take so long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The server's first words, TLS and the answer together may take so long.
const TALK_TIMEOUT: Duration = Duration::from_secs(3);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;
/// The largest answer that is read.
const ANSWER_MAX_BYTES: usize = 16 * 1024;
/// The longest first line that is read of the leaf's port.
const GREETING_MAX_BYTES: usize = 16 * 1024;
/// Any sixteen bytes: it is only to show that WebSocket is spoken (RFC 6455, 4.1).
const WEBSOCKET_KEY: &str = "ZWRnZXdpcmUgY2hlY2tzIQ==";
/// How much of what a stranger says is shown.
const SHOWN_MAX_CHARS: usize = 40;

/// What was learned of one hub's API.
#[derive(Debug, Clone)]
pub struct HubFacts {
    /// Which.
    pub hub: Hub,
    /// What its name leads to, or why to nothing. Nothing is looked up if a proxy does it.
    pub addresses: Result<Vec<IpAddr>, String>,
    /// The API.
    pub api: Door<Answer>,
}

/// What was learned of one address where nodes connect.
#[derive(Debug, Clone)]
pub struct LeafFacts {
    /// Which.
    pub leaf: Leaf,
    /// What its name leads to, or why to nothing. A node's server looks it up even behind a proxy (measured).
    pub addresses: Result<Vec<IpAddr>, String>,
    /// What is there: the server's version, if it says it.
    pub door: Door<Option<String>>,
}

/// What was learned at one port. Each step is there if the one before it succeeded.
#[derive(Debug, Clone)]
pub struct Door<T> {
    /// Was a connection made?
    pub reached: Result<Reached, String>,
    /// What it said that only the right one says: to `/healthz`, or its greeting.
    pub answer: Option<Result<T, String>>,
    /// The certificates that it showed.
    pub shown: Option<Result<Chain, String>>,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// To where.
    pub address: IpAddr,
    /// From where.
    pub own: IpAddr,
    /// How long it took.
    pub took_ms: u128,
    /// The largest packet that gets there, as far as the kernel has learned.
    pub path_mtu: Option<u32>,
}

/// What the API said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The clock of whoever answered.
    pub date: Option<Timestamp>,
    /// Ours, at that moment.
    pub now: Timestamp,
}

impl<T> Door<T> {
    fn closed(cause: String) -> Self {
        Self { reached: Err(cause), answer: None, shown: None }
    }
}

/// How to get to a door.
#[derive(Clone, Copy)]
enum Via<'a> {
    /// To one of its addresses.
    Addresses(&'a [IpAddr]),
    /// Through this proxy.
    Proxy(&'a Proxy),
}

/// Tries a hub's API.
pub async fn knock(hub: Hub, proxy: Option<&Proxy>) -> HubFacts {
    let addresses = match proxy {
        Some(_) => Ok(Vec::new()),
        None => resolve(&hub.host, hub.port).await,
    };
    let api = match (&addresses, proxy) {
        (_, Some(proxy)) => Box::pin(api(&hub, Via::Proxy(proxy))).await,
        (Ok(addresses), None) => Box::pin(api(&hub, Via::Addresses(addresses))).await,
        (Err(cause), None) => Door::closed(cause.clone()),
    };
    HubFacts { hub, addresses, api }
}

/// Tries one address where nodes connect.
pub async fn knock_leaf(leaf: Leaf, proxy: Option<&Proxy>) -> LeafFacts {
    let addresses = resolve(&leaf.host, leaf.port).await;
    let door = match (&addresses, proxy) {
        (Err(cause), _) => Door::closed(cause.clone()),
        (Ok(_), Some(proxy)) => Box::pin(self::leaf(&leaf, Via::Proxy(proxy))).await,
        (Ok(addresses), None) => Box::pin(self::leaf(&leaf, Via::Addresses(addresses))).await,
    };
    LeafFacts { leaf, addresses, door }
}

async fn resolve(host: &str, port: u16) -> Result<Vec<IpAddr>, String> {
    let found = within(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, port))).await?;
    let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).take(ADDRESSES_MAX).collect();
    addresses.dedup();
    if addresses.is_empty() { Err("no address".to_owned()) } else { Ok(addresses) }
}

async fn api(hub: &Hub, via: Via<'_>) -> Door<Answer> {
    let (tcp, mut reached) = match connect(via, &hub.host, hub.port).await {
        Ok(made) => made,
        Err(cause) => return Door::closed(cause),
    };
    let until = tokio::time::Instant::now() + TALK_TIMEOUT;
    let (shown, answer) = match before(until, secure(&hub.host, tcp)).await {
        Ok((tls, chain)) => {
            let answer = before(until, ask(tls, &with_port(&hub.host, hub.port), &mut reached)).await;
            (Ok(chain), Some(answer))
        }
        Err(cause) => (Err(cause), None),
    };
    Door { reached: Ok(reached), answer, shown: Some(shown) }
}

async fn leaf(leaf: &Leaf, via: Via<'_>) -> Door<Option<String>> {
    let (mut tcp, reached) = match connect(via, &leaf.host, leaf.port).await {
        Ok(made) => made,
        Err(cause) => return Door::closed(cause),
    };
    let until = tokio::time::Instant::now() + TALK_TIMEOUT;
    let (answer, shown) = match leaf.way {
        // The server speaks first there (`INFO {…}`), in the clear, and then takes TLS.
        Way::Tls => match before(until, greeting(&mut tcp)).await {
            Ok(version) => {
                let shown = before(until, secure(&leaf.host, tcp)).await.map(|(_, chain)| chain);
                (Some(Ok(Some(version))), Some(shown))
            }
            Err(cause) => (Some(Err(cause)), None),
        },
        Way::Wss => match before(until, secure(&leaf.host, tcp)).await {
            Ok((tls, chain)) => {
                (Some(before(until, upgrade(tls, leaf)).await.map(|()| None)), Some(Ok(chain)))
            }
            Err(cause) => (None, Some(Err(cause))),
        },
    };
    Door { reached: Ok(reached), answer, shown }
}

/// Asks whether it speaks WebSocket there, as a leaf does.
async fn upgrade(mut tls: TlsStream<TcpStream>, leaf: &Leaf) -> Result<(), String> {
    let request = format!(
        "GET /leafnode HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {WEBSOCKET_KEY}\r\n\r\n",
        with_port(&leaf.host, leaf.port)
    );
    tls.write_all(request.as_bytes()).await.map_err(|error| plain(&error))?;
    let line = line(&mut tls).await?;
    let text = String::from_utf8_lossy(&line);
    let status = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.split(' ').next());
    match status {
        Some("101") => Ok(()),
        Some(status) => Err(format!("it answers with status {} instead of WebSocket", shown(status))),
        None => Err(format!("it says {:?}", shown(&text))),
    }
}

/// All addresses at once, the first that takes us; or the proxy.
async fn connect(via: Via<'_>, host: &str, port: u16) -> Result<(TcpStream, Reached), String> {
    let addresses = match via {
        Via::Addresses(addresses) => addresses,
        Via::Proxy(proxy) => {
            let begun = Instant::now();
            let tunnel = tokio::time::timeout(CONNECT_TIMEOUT, proxy.connect(host, port)).await;
            let tcp = match tunnel {
                Ok(tunnel) => tunnel.map_err(|error| error.to_string())?,
                Err(_) => {
                    return Err(format!("no answer in {} s through {proxy}", CONNECT_TIMEOUT.as_secs()));
                }
            };
            let address = tcp.peer_addr().map_err(|error| plain(&error))?.ip();
            let reached = reached(&tcp, address, begun)?;
            return Ok((tcp, reached));
        }
    };
    let one = async |address: IpAddr| {
        let begun = Instant::now();
        let tcp = within(CONNECT_TIMEOUT, TcpStream::connect(SocketAddr::new(address, port))).await?;
        let reached = reached(&tcp, address, begun)?;
        Ok::<_, String>((tcp, reached))
    };
    let mut trying: FuturesUnordered<_> = addresses.iter().map(|address| one(*address)).collect();
    let mut causes: Vec<String> = Vec::new();
    while let Some(outcome) = trying.next().await {
        match outcome {
            Ok(made) => return Ok(made),
            Err(cause) if causes.contains(&cause) => {}
            Err(cause) => causes.push(cause),
        }
    }
    Err(causes.join("; "))
}

fn reached(tcp: &TcpStream, address: IpAddr, begun: Instant) -> Result<Reached, String> {
    let own = tcp.local_addr().map_err(|error| error.to_string())?.ip();
    Ok(Reached { address, own, took_ms: begun.elapsed().as_millis(), path_mtu: path_mtu(tcp) })
}

/// IPv4 only: the kernel has it for a connected socket.
fn path_mtu(socket: &impl AsFd) -> Option<u32> {
    getsockopt(socket, IpMtu).ok().and_then(|mtu| u32::try_from(mtu).ok())
}

async fn secure(host: &str, tcp: TcpStream) -> Result<(TlsStream<TcpStream>, Chain), String> {
    let (config, recorder) = Recorder::client().map_err(|error| error.to_string())?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let connector = TlsConnector::from(std::sync::Arc::new(config));
    let tls = connector.connect(name, tcp).await.map_err(|error| chain(&error))?;
    Ok((tls, recorder.chain()))
}

/// Asks for `/healthz`, which every hub answers to everybody.
async fn ask(tls: TlsStream<TcpStream>, host: &str, reached: &mut Reached) -> Result<Answer, String> {
    // By now packets of full size have come and gone.
    reached.path_mtu = path_mtu(tls.get_ref().0);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(|error| chain(&error))?;
    let request = hyper::Request::get("/healthz")
        .header(HOST, host)
        .header(USER_AGENT, concat!("edgewire/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answering = async {
        let response = sender.send_request(request).await.map_err(|error| chain(&error))?;
        let now = Timestamp::now();
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let date = text(DATE).and_then(http_date);
        let (status, by) = (response.status(), text(SERVER).map(shown));
        let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await;
        let body = body.map_err(|error| format!("its answer broke off: {error}"))?.to_bytes();
        if status.is_success() && body.as_ref() == b"ok" {
            return Ok(Answer { date, now });
        }
        let by = by.map(|by| format!(" from {by:?}")).unwrap_or_default();
        Err(format!("it answers /healthz with status {}{by}", status.as_u16()))
    };
    tokio::select! {
        answer = answering => answer,
        // It ends when the answer is there, or before: then the answer knows.
        _ = async { drop(connection.await); std::future::pending::<()>().await } => Err("closed".to_owned()),
    }
}

/// The first line that it says.
async fn line(from: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, String> {
    let mut line = Vec::new();
    // Byte by byte: what follows the line may belong to TLS.
    while line.last() != Some(&b'\n') && line.len() < GREETING_MAX_BYTES {
        match from.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(error) if line.is_empty() => return Err(format!("it closes at once ({error})")),
            Err(_) => break,
        }
    }
    Ok(line)
}

async fn greeting(tcp: &mut TcpStream) -> Result<String, String> {
    let line = line(tcp).await?;
    version(&line).ok_or_else(|| format!("it says {:?}", shown(&String::from_utf8_lossy(&line))))
}

/// The version in `INFO {"version": …}`.
fn version(line: &[u8]) -> Option<String> {
    let info: serde_json::Value = serde_json::from_slice(line.strip_prefix(b"INFO ")?).ok()?;
    info.get("version")?.as_str().map(shown)
}

fn shown(text: &str) -> String {
    let text = text.trim();
    let cut: String = text.chars().take(SHOWN_MAX_CHARS).collect();
    if cut.len() < text.len() { cut + "…" } else { cut }
}

/// An HTTP date: always in this one form (RFC 9110, 5.6.7).
fn http_date(text: &str) -> Option<Timestamp> {
    let text = text.strip_suffix(" GMT")?;
    let at = jiff::fmt::strtime::parse("%a, %d %b %Y %H:%M:%S", text).ok()?.to_datetime().ok()?;
    let at = at.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    Some(Timestamp(at.timestamp().as_millisecond()))
}

async fn within<T>(limit: Duration, work: impl Future<Output = std::io::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done.map_err(|error| plain(&error)),
        Err(_) => Err(format!("no answer in {} s", limit.as_secs())),
    }
}

async fn before<T>(
    until: tokio::time::Instant,
    work: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    match tokio::time::timeout_at(until, work).await {
        Ok(done) => done,
        Err(_) => Err(format!("it says nothing in {} s", TALK_TIMEOUT.as_secs())),
    }
}

/// Without the number that Rust adds.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.strip_prefix("failed to lookup address information: ").unwrap_or(text).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_read_as_http_writes_it() {
        let at = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(at.rfc3339(), "1994-11-06T08:49:37Z");
        for bad in ["", "now", "Sun, 06 Nov 1994 08:49:37", "Sun, 36 Nov 1994 08:49:37 GMT"] {
            assert_eq!(http_date(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_leaf_port_is_known_by_its_greeting() {
        assert_eq!(version(b"INFO {\"version\":\"2.15.1\",\"tls_required\":true} \r\n").unwrap(), "2.15.1");
        for bad in [&b""[..], b"SSH-2.0-x\r\n", b"INFO nonsense\r\n", b"INFO {}\r\n"] {
            assert_eq!(version(bad), None);
        }
        assert_eq!(shown(&"x".repeat(100)).chars().count(), SHOWN_MAX_CHARS + 1);
    }

    #[test]
    fn whatever_the_other_end_says_is_read() {
        let samples = [
            b"INFO {\"version\":\"2.15.1\",\"server_id\":\"x\"}\r\n".to_vec(),
            b"Mon, 04 May 2026 10:00:00 GMT".to_vec(),
        ];
        crate::fuzz::try_bytes("what a door says", &samples, |bytes| {
            let _ = version(bytes);
            let text = String::from_utf8_lossy(bytes);
            let _ = (http_date(&text), shown(&text));
        });
    }
}
