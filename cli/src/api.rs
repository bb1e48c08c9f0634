//! The hub's HTTP API, as far as the tool needs it: one request on one connection, JSON in and out.
//!
//! The server must show a certificate of the kubeconfig's own CA; the bearer token goes nowhere else, and no redirect is
//! followed. Bodies and waiting are bounded.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::failure::{Failure, Outcome, chain};
use crate::kubeconfig::Hub;

/// The largest answer that is read.
const RESPONSE_MAX_BYTES: usize = 32 * 1024 * 1024;
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one request may take, connecting included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Objects asked for in one page of a list.
const PAGE_OBJECTS: usize = 500;
/// Pages read of one list: more is a server that never ends.
const PAGES_MAX: usize = 1_000;

/// The hub's API.
pub struct Api {
    hub: Hub,
    host: String,
    port: u16,
    prefix: String,
    name: ServerName<'static>,
    tls: TlsConnector,
}

impl Api {
    /// The API of `hub`. Nothing is sent yet.
    pub fn new(hub: Hub) -> Outcome<Self> {
        let next = "mend the kubeconfig: the hub's own has the right one";
        let broken = |cause: String| Failure::new("EW-CONFIG-INVALID", cause, next);
        let uri: Uri =
            hub.server.parse().map_err(|error| broken(format!("server {:?}: {error}", hub.server)))?;
        let host = uri.host().ok_or_else(|| broken(format!("server {:?} has no host", hub.server)))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let wanted = hub.tls_server_name.clone().unwrap_or_else(|| host.clone());
        let name = ServerName::try_from(wanted.clone())
            .map_err(|error| broken(format!("server name {wanted:?}: {error}")))?;

        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&hub.ca_pem) {
            let certificate = certificate.map_err(|error| broken(format!("the CA is not PEM: {error}")))?;
            roots.add(certificate).map_err(|error| broken(format!("the CA is no certificate: {error}")))?;
        }
        if roots.is_empty() {
            return Err(broken("the CA holds no certificate".to_owned()));
        }
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(ring)
            .with_safe_default_protocol_versions()
            .map_err(|error| broken(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let prefix = uri.path().trim_end_matches('/').to_owned();
        let port = uri.port_u16().unwrap_or(443);
        Ok(Self { host, port, prefix, name, tls: TlsConnector::from(Arc::new(config)), hub })
    }

    fn unreachable(&self, cause: impl std::fmt::Display) -> Failure {
        Failure::new(
            "EW-HUB-UNREACHABLE",
            format!("the hub at {} does not answer: {cause}", self.hub.server),
            "is it running (`edgewire hub`) and is this its kubeconfig? on an edge node pass --edge DIR",
        )
    }

    /// One request; the answer's JSON.
    pub async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Outcome<Value> {
        match tokio::time::timeout(REQUEST_TIMEOUT, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.unreachable(format!("nothing within {} s", REQUEST_TIMEOUT.as_secs()))),
        }
    }

    /// Reads one document.
    pub async fn get(&self, path: &str) -> Outcome<Value> {
        self.send(Method::GET, path, None).await
    }

    /// All items of a list, page by page.
    pub async fn list(&self, path: &str) -> Outcome<Vec<Value>> {
        let mut items = Vec::new();
        let mut from = String::new();
        for _ in 0..PAGES_MAX {
            let mut page = self.get(&format!("{path}?limit={PAGE_OBJECTS}{from}")).await?;
            if let Some(Value::Array(more)) = page.get_mut("items").map(Value::take) {
                items.extend(more);
            }
            match page.pointer("/metadata/continue").and_then(Value::as_str) {
                Some(next) if !next.is_empty() => from = format!("&continue={}", encode(next)),
                _ => break,
            }
        }
        Ok(items)
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<&Value>) -> Outcome<Value> {
        let connecting = async {
            let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
            self.tls.connect(self.name.clone(), tcp).await
        };
        let tls = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected.map_err(|error| self.connect_failed(&error))?,
            Err(_) => {
                return Err(self.unreachable(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())));
            }
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
            .await
            .map_err(|error| self.unreachable(chain(&error)))?;
        let authority =
            self.hub.server.trim_start_matches("https://").split('/').next().unwrap_or(&self.host);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.prefix))
            .header(HOST, authority)
            .header(USER_AGENT, concat!("edgewire/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json")
            .header(AUTHORIZATION, format!("Bearer {}", self.hub.token));
        let bytes = match body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        let request = request.body(Full::new(bytes)).map_err(|error| self.unreachable(error))?;
        let answering = async {
            let answer =
                sender.send_request(request).await.map_err(|error| self.unreachable(chain(&error)))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), RESPONSE_MAX_BYTES).collect().await;
            let body = body.map_err(|error| self.unreachable(format!("its answer broke off: {error}")))?;
            self.read(status, path, &body.to_bytes())
        };
        // The connection has to be driven while the answer is read; it ends with it.
        tokio::pin!(answering);
        tokio::select! {
            answer = &mut answering => answer,
            _ = connection => answering.await,
        }
    }

    fn connect_failed(&self, error: &std::io::Error) -> Failure {
        let cause = chain(error);
        if cause.contains("certificate") {
            return Failure::new(
                "EW-HUB-NOT-TRUSTED",
                format!(
                    "the server at {} is not the one that the kubeconfig names: {cause}",
                    self.hub.server
                ),
                "was the hub made anew? then take its new kubeconfig; else do not go on",
            );
        }
        self.unreachable(cause)
    }

    fn read(&self, status: StatusCode, path: &str, body: &[u8]) -> Outcome<Value> {
        let json: Option<Value> = serde_json::from_slice(body).ok();
        if status.is_success() {
            if body.is_empty() {
                return Ok(Value::Null);
            }
            return json.ok_or_else(|| self.unreachable(format!("its answer on {path} is not JSON")));
        }
        let message = json.as_ref().and_then(|json| json.get("message")).and_then(Value::as_str);
        let message = message.map_or_else(|| format!("{status} on {path}"), str::to_owned);
        // The hub's own code, where it gives one, is the stable one.
        let code = json.as_ref().and_then(|json| json.get("code")).and_then(Value::as_str);
        let (own_code, message) = match (code, message.split_once(": ")) {
            (Some(code), _) => (Some(code.to_owned()), message),
            (None, Some((code, rest))) if code.starts_with("EW-") && !code.contains(' ') => {
                (Some(code.to_owned()), rest.to_owned())
            }
            _ => (None, message),
        };
        let (code, next) = match status {
            StatusCode::UNAUTHORIZED => ("EW-HUB-UNAUTHORIZED", "take the hub's current kubeconfig"),
            StatusCode::FORBIDDEN => ("EW-HUB-FORBIDDEN", "use a kubeconfig with more rights"),
            StatusCode::NOT_FOUND if own_code.is_some() => {
                ("EW-NOT-FOUND", "check the name: the listing shows what there is")
            }
            StatusCode::NOT_FOUND => ("EW-NOT-FOUND", "check the name; is the hub as new as this tool?"),
            s if s.is_server_error() => {
                ("EW-HUB-FAILED", "see `edgewire modules --node hub` and the hub's log")
            }
            _ => ("EW-HUB-REFUSED", "mend the request and try again"),
        };
        Err(Failure::new(own_code.as_deref().unwrap_or(code), format!("the hub says: {message}"), next))
    }
}

/// Text as a part of a URL.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::encode;

    #[test]
    fn a_part_of_a_url_stays_one_part() {
        assert_eq!(encode("a-b_c.~"), "a-b_c.~");
        assert_eq!(encode("../x?y&z=ü"), "..%2Fx%3Fy%26z%3D%C3%BC");
    }
}
