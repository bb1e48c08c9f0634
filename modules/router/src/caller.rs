//! Calling a rule's target over HTTP: bounded in time and bytes, without redirects and without a proxy.
//!
//! A target's own certificate has to be trusted by the machine (its usual store of authorities).

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, StatusCode};
use rustls::{ClientConfig, RootCertStore};
use schemas::routing::{BODY_MAX_BYTES, Delivered, HEADERS_MAX_BYTES};

/// A connection is made within so long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A call has so long for its answer, all of it.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Headers of one connection, and those that are ours to set.
const NOT_PASSED: [&str; 12] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "host",
    "content-length",
    "expect",
];

/// Why a call brought nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Failed {
    /// For people.
    pub why: String,
    /// May it be otherwise later?
    pub is_passing: bool,
    /// The HTTP status that fits.
    pub status: u16,
}

/// Calls; its copies share their connections.
#[derive(Debug, Clone)]
pub struct Caller(Client);

impl Caller {
    /// One that trusts the machine's authorities.
    pub fn new() -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::debug!(%error, "not all of the machine's authorities could be read");
        }
        roots.add_parsable_certificates(found.certs);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = Client::builder()
            .use_preconfigured_tls(tls)
            .redirect(Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self(client))
    }

    /// Calls once; any status is an answer.
    pub async fn call(
        &self,
        method: &str,
        url: &str,
        headers: &[(String, String)],
        body: Bytes,
    ) -> Result<Delivered, Failed> {
        let failed = |why: String, is_passing, status| Failed { why, is_passing, status };
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_| failed(format!("{method:?} is no HTTP method"), false, 400))?;
        let mut map = HeaderMap::new();
        for (name, value) in headers.iter().filter(|(name, _)| passes(name)) {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                map.append(name, value);
            }
        }
        let sent = self.0.request(method, url).headers(map).body(body).send().await;
        let answer = sent.map_err(|error| {
            let status = if error.is_timeout() { 504 } else { 502 };
            failed(format!("{url}: {}", innermost(&error)), !error.is_builder(), status)
        })?;
        let status = answer.status().as_u16();
        let headers = passed(answer.headers());
        let (mut bytes, mut parts) = (BytesMut::new(), answer.bytes_stream());
        while let Some(part) = parts.next().await {
            let part = part.map_err(|error| failed(format!("{url}: {}", innermost(&error)), true, 502))?;
            if bytes.len() + part.len() > BODY_MAX_BYTES {
                let why = format!("{url}: its answer is over the bound of {BODY_MAX_BYTES} bytes");
                return Err(failed(why, false, 502));
            }
            bytes.extend_from_slice(&part);
        }
        Ok(Delivered { status, headers, body: bytes.freeze() })
    }
}

/// The reason at the end of an error's chain: that of the system.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(next) = inner.source() {
        inner = next;
    }
    inner.to_string()
}

/// Headers that go on with a message, as many as fit.
pub fn passed(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut room = HEADERS_MAX_BYTES;
    let text = headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    text.filter(|(name, _)| passes(name))
        .take_while(|(name, value)| {
            let left = room.checked_sub(name.len() + value.len());
            room = left.unwrap_or(0);
            left.is_some()
        })
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn passes(name: &str) -> bool {
    !NOT_PASSED.iter().any(|not| name.eq_ignore_ascii_case(not))
}

/// Is a call with that answer to be made again?
pub fn judge(url: &str, answer: &Delivered) -> Result<(), Failed> {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    if status.is_success() {
        return Ok(());
    }
    let is_passing = status.is_server_error()
        || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS]
            .contains(&status);
    Err(Failed { why: format!("{url} answered {status}"), is_passing, status: 502 })
}
