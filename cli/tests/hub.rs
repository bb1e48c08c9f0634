//! `nodes` and `token` over HTTPS, through a kubeconfig.
//!
//! A fake stands in for the hub here, because a real one neither pages after one object nor answers wrongly; that a real
//! one is understood is shown by the end-to-end suite.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

mod support;

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use support::{bad, finish, good};

type Answer = fn(&str, &Value) -> (u16, Value);

/// The fake: a certificate of its own, one function that answers, and a record of what was asked.
struct Fake {
    address: std::net::SocketAddr,
    ca_pem: String,
    asked: Arc<Mutex<Vec<String>>>,
    dir: tempfile::TempDir,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Fake {
    async fn start(answer: Answer) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(ring)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let record = asked.clone();
        let serving = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(tls) = acceptor.accept(tcp).await else { continue };
                let record = record.clone();
                let service =
                    hyper::service::service_fn(move |request| respond(request, answer, record.clone()));
                let serving =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service);
                tokio::spawn(async move { drop(serving.await) });
            }
        });
        Self { address, ca_pem: made.cert.pem(), asked, dir: tempfile::tempdir().unwrap(), serving }
    }

    fn kubeconfig(&self, ca_pem: &str, token: &str) -> PathBuf {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: edgewire\n\
             contexts:\n- name: edgewire\n  context: {{cluster: edgewire, user: admin}}\n\
             clusters:\n- name: edgewire\n  cluster:\n    server: https://{}\n    certificate-authority-data: {}\n\
             users:\n- name: admin\n  user:\n    token: {token}\n",
            self.address,
            BASE64_STANDARD.encode(ca_pem)
        );
        let path = self.dir.path().join("kubeconfig");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn tool(&self, args: &[&str]) -> Command {
        let mut command = support::tool(args);
        command.env("KUBECONFIG", self.kubeconfig(&self.ca_pem, "good"));
        command
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

async fn respond(
    request: Request<Incoming>,
    answer: Answer,
    record: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Full<bytes::Bytes>>, hyper::Error> {
    let asked = format!("{} {}", request.method(), request.uri());
    let allowed = request.headers().get("authorization").is_some_and(|value| value == "Bearer good");
    let body = request.into_body().collect().await?.to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let (status, json) = match allowed {
        true => answer(&asked, &body),
        false => (401, json!({"kind": "Status", "code": 401, "message": "Unauthorized"})),
    };
    record.lock().unwrap().push(if body.is_null() { asked } else { format!("{asked} {body}") });
    let mut response = Response::new(Full::new(json.to_string().into()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    Ok(response)
}

fn hub(asked: &str, _body: &Value) -> (u16, Value) {
    let node = |name: &str, ready: &str| {
        json!({
            "metadata": {"name": name, "creationTimestamp": "2020-01-01T00:00:00Z"},
            "status": {"conditions": [{"type": "Ready", "status": ready}], "nodeInfo": {"kubeletVersion": "v1"}},
        })
    };
    match asked {
        "GET /api/v1/nodes?limit=500" => {
            (200, json!({"metadata": {"continue": "a/b"}, "items": [node("edge-a", "True")]}))
        }
        "GET /api/v1/nodes?limit=500&continue=a%2Fb" => {
            (200, json!({"metadata": {}, "items": [node("edge-b", "Unknown")]}))
        }
        "GET /api/v1/pods?limit=500" => {
            let pod = json!({"spec": {"nodeName": "edge-b"}, "status": {"phase": "Running"}});
            (200, json!({"metadata": {}, "items": [pod]}))
        }
        "POST /edgewire/v1/tokens" => {
            (200, json!({"token": "ew1.abc", "id": "k1", "expires": "2026-05-04T10:00:00Z"}))
        }
        "GET /edgewire/v1/tokens" => {
            let token = json!({"id": "k1", "node": null, "uses": 3, "expires": "2020-01-01T00:00:00Z"});
            (200, json!({"tokens": [token]}))
        }
        "DELETE /edgewire/v1/tokens/k1" => (200, json!({"id": "k1"})),
        _ => {
            let message = "EW-TOKEN-UNKNOWN: there is no token \"x/y\"";
            (404, json!({"kind": "Status", "code": 404, "message": message}))
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_listed_page_by_page() {
    let fake = Fake::start(hub).await;
    let shown = good(&finish(fake.tool(&["nodes"])).await);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[0], "NAME     STATUS    PODS   VERSION   AGE");
    assert!(lines[1].starts_with("edge-a   Ready     0/0    v1        "), "{shown}");
    assert!(lines[2].starts_with("edge-b   Unknown   1/1    v1        "), "{shown}");
    let json: Value = serde_json::from_str(&good(&finish(fake.tool(&["nodes", "--json"])).await)).unwrap();
    assert_eq!(json[1]["pods_running"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_comes_with_the_next_command() {
    let fake = Fake::start(hub).await;
    let made = good(
        &finish(fake.tool(&["token", "create", "--ttl", "2h", "--node", "edge-c", "--uses", "3"])).await,
    );
    assert_eq!(
        made,
        "ew1.abc\n\nGood 3 times, until 2026-05-04T10:00:00Z. On the new node run:\n  \
         edgewire join ew1.abc --name edge-c\n"
    );
    assert_eq!(fake.asked(), [r#"POST /edgewire/v1/tokens {"ttl_s":7200,"node":"edge-c","uses":3}"#]);
    let listed = good(&finish(fake.tool(&["token", "ls"])).await);
    assert_eq!(listed, "ID   NODE   USES LEFT   EXPIRES IN\nk1   any    3           expired\n");
    assert_eq!(good(&finish(fake.tool(&["token", "revoke", "k1"])).await), "token k1 is revoked\n");
    let line = bad(&finish(fake.tool(&["token", "revoke", "x/y"])).await, "EW-TOKEN-UNKNOWN");
    assert!(line.contains("there is no token \"x/y\"; "), "{line}");
    assert_eq!(fake.asked().last().unwrap(), "DELETE /edgewire/v1/tokens/x%2Fy");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_the_hub_gets_nothing_of_ours() {
    let fake = Fake::start(hub).await;
    let mut wrong_token = support::tool(&["nodes"]);
    wrong_token.arg("--kubeconfig").arg(fake.kubeconfig(&fake.ca_pem, "stale"));
    bad(&finish(wrong_token).await, "EW-HUB-UNAUTHORIZED");
    fake.asked();

    let other = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap().cert.pem();
    let mut wrong_ca = support::tool(&["nodes"]);
    wrong_ca.arg("--kubeconfig").arg(fake.kubeconfig(&other, "good"));
    bad(&finish(wrong_ca).await, "EW-HUB-NOT-TRUSTED");
    assert_eq!(fake.asked(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_hub_is_said() {
    let fake = Fake::start(hub).await;
    let mut gone = fake.tool(&["nodes"]);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let path = fake.dir.path().join("kubeconfig");
    let text = std::fs::read_to_string(&path).unwrap().replace(&fake.address.to_string(), &free.to_string());
    std::fs::write(&path, text).unwrap();
    gone.env("KUBECONFIG", &path);
    bad(&finish(gone).await, "EW-HUB-UNREACHABLE");

    let fake = Fake::start(|_, _| (500, json!({"message": "the store is full"}))).await;
    let line = bad(&finish(fake.tool(&["nodes"])).await, "EW-HUB-FAILED");
    assert!(line.contains("the hub says: the store is full; "), "{line}");
}
