//! The API as a module of a real hub: JetStream KV behind it, with the permissions that its flows give and no more.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{Kubectl, eventually};
use api::{ApiModule, ApiRim};
use bus::connection::{Connector, Login, Mint};
use bus::durable::Durable;
use bus::host::Host;
use bus::identity::{HubKeys, Tls};
use bus::module::Account;
use bus::provision::{self, Place};
use bus::runner::Spec;
use bus::server::{HubConfig, HubServer};
use schemas::command::{Frame, OpenExec, OpenLogs, channel};
use schemas::name::NodeName;
use schemas::subject;
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(20);

fn nats_server() -> Option<PathBuf> {
    let pinned = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/bin/nats-server");
    std::env::var_os("EDGEWIRE_NATS_SERVER").map(PathBuf::from).or_else(|| pinned.exists().then_some(pinned))
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn connector(server: &HubServer, keys: Arc<HubKeys>, tls: &Tls) -> Connector {
    let mint: Mint = Arc::new(move |account, owner, permissions| {
        let keys = keys.clone();
        Box::pin(async move {
            let creds = keys.creds(account, &owner, &permissions).map_err(|error| error.to_string())?;
            let between = |from: &str, to: &str| {
                let rest = &creds[creds.find(from).unwrap() + from.len()..];
                rest[..rest.find(to).unwrap()].trim_matches(['-', '\n', '\r', ' ']).to_owned()
            };
            let jwt = between("BEGIN NATS USER JWT", "------END");
            let seed = between("BEGIN USER NKEY SEED", "------END");
            Ok(Login::Jwt { jwt, seed })
        })
    });
    Connector {
        node: subject::DOMAIN_HUB.to_owned(),
        domain: subject::DOMAIN_HUB.to_owned(),
        url: server.url().to_owned(),
        ca: Some(tls.ca_file.clone()),
        mint,
    }
}

/// Also after a failure the server of this test must go: it is named in the record that its supervisor keeps.
struct ServerEnds(PathBuf);

impl Drop for ServerEnds {
    fn drop(&mut self) {
        let Some(pid) = pid_in(&self.0) else { return };
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.contains(self.0.parent().and_then(Path::to_str).unwrap()) {
            let _ = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}

fn pid_in(record: &Path) -> Option<i64> {
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(record).ok()?).ok()?;
    record["pid"].as_i64()
}

/// Says a line of log, then what it is typed, back.
async fn node(connector: Connector, name: &str) {
    let node = NodeName::new(name).unwrap();
    let bus =
        connector.connect_with("node", bus::identity::Permissions::full(), Account::Control).await.unwrap();
    let mut commands = bus.listen(&subject::command(&node, "containers", "*")).await.unwrap();
    while let Some(command) = futures::StreamExt::next(&mut commands).await {
        let logs: Result<OpenLogs, _> = schemas::decode(&command.payload);
        let exec: Result<OpenExec, _> = schemas::decode(&command.payload);
        let session = exec.as_ref().map(|e| e.session.clone()).unwrap_or_else(|_| logs.unwrap().session);
        let mut stream = bus::stream::ByteStream::accept(&bus, &node, &session).await.unwrap();
        stream.answer(&Ok(())).await.unwrap();
        if exec.is_err() {
            for _ in 0..40 {
                // More than the credit, so that it has to be granted again.
                let line = format!("{}\n", "l".repeat(16 * 1024 - 1)).into_bytes();
                let mut rest = line.as_slice();
                while !rest.is_empty() {
                    let taken = stream.send(channel::STDOUT, rest).await.unwrap();
                    rest = &rest[taken..];
                    if taken == 0 {
                        stream.next().await.unwrap();
                    }
                }
            }
            stream.end(None, None).await.unwrap();
            continue;
        }
        loop {
            match stream.next().await.unwrap() {
                Some(Frame::Data { channel: channel::STDIN, bytes, .. }) if !bytes.is_empty() => {
                    stream.send(channel::STDOUT, &bytes).await.unwrap();
                }
                Some(Frame::Data { channel: channel::STDIN, .. }) => break,
                Some(Frame::End { .. }) => break,
                _ => {}
            }
        }
        stream.end(Some(7), None).await.unwrap();
    }
}

#[test]
fn kubectl_over_a_real_hub() {
    let dir = tempfile::tempdir().unwrap();
    let _server_ends = ServerEnds(dir.path().join("nats/nats-server.json"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let port = free_port();
    let (config, ca_pem) = crate::support::config(port);
    let stop = CancellationToken::new();
    let (server, running) = runtime.block_on(async {
        let keys = Arc::new(HubKeys::load_or_create(&dir.path().join("keys")).unwrap());
        let tls = Tls::load_or_create(&dir.path().join("tls"), &["127.0.0.1".into()]).unwrap();
        let listen = |port| ([127, 0, 0, 1], port).into();
        let hub = HubConfig {
            data_dir: dir.path().join("nats"),
            listen: listen(free_port()),
            leaf_listen: listen(free_port()),
            leaf_wss_listen: None,
            binary: nats_server(),
            store_max_bytes: 8 << 30,
        };
        let server = HubServer::start(hub, keys.clone(), &tls).await.unwrap();
        server.ready(SOON).await.unwrap();
        let connector = connector(&server, keys, &tls);
        for account in [Account::Control, Account::Work] {
            let rights = provision::permissions(&connector.domain);
            let bus = connector.connect_with("provision", rights, account).await.unwrap();
            provision::provision(&bus, Place::Hub).await.unwrap();
        }
        tokio::spawn(node(connector.clone(), "n1"));
        let mut host = Host::new(connector, Durable::temporary().unwrap(), &stop);
        let spec = Spec { name: api::NAME, flows: api::flows(), tick: Duration::from_secs(1) };
        host.module(spec, move || (ApiModule, ApiRim { config: config.clone() }));
        (server, tokio::spawn(host.run()))
    });
    let kubectl = Kubectl::new(port, ca_pem);
    judge(&kubectl);
    outlives_its_server(&kubectl, &dir.path().join("nats/nats-server.json"));
    stop.cancel();
    runtime.block_on(async {
        let _ = tokio::time::timeout(SOON, running).await;
        server.stop().await.unwrap();
    });
}

fn judge(hub: &Kubectl) {
    hub.ready();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {nodeName: n1, containers: [{name: c, image: 'x:1'}]}\n";
    let mut watching =
        hub.command(&["get", "pods", "-w", "--output-watch-events"]).stdout(Stdio::piped()).spawn().unwrap();
    assert!(hub.apply(pod).contains("created"));
    assert!(hub.apply(pod).contains("unchanged"));
    hub.ok(&["label", "pod", "web", "a=b"]);
    assert!(hub.ok(&["get", "pods", "-A"]).contains("web"));
    assert!(hub.ok(&["describe", "pod", "web"]).contains("x:1"));
    assert_eq!(hub.ok(&["logs", "web"]).len(), 40 * 16 * 1024);
    let output = hub.with_input(&["exec", "-i", "web", "--", "cat"], "typed");
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"typed"[..], Some(7)));
    hub.ok(&["delete", "pod", "web", "--force", "--grace-period=0"]);
    assert!(hub.apply(pod).contains("created"), "a tombstone does not stand in the way");
    hub.ok(&["delete", "pod", "web", "--wait=false"]);
    hub.ok(&["delete", "pod", "web", "--force", "--grace-period=0"]);
    hub.ok(&["create", "namespace", "demo"]);
    hub.ok(&["-n", "demo", "create", "configmap", "c", "--from-literal=k=v"]);
    hub.ok(&["delete", "namespace", "demo", "--timeout=20s"]);
    eventually("the node that is not there is said to be so", || {
        hub.apply(&pod.replace("n1", "n2").replace("web", "far"));
        hub.fails(&["logs", "far"]).contains("EW-NODE-UNREACHABLE")
    });
    watching.kill().unwrap();
    let told = String::from_utf8(watching.wait_with_output().unwrap().stdout).unwrap();
    let told: Vec<&str> =
        told.lines().filter_map(|line| line.split_whitespace().next()).filter(|w| *w != "EVENT").collect();
    assert!(told.starts_with(&["ADDED", "MODIFIED", "DELETED", "ADDED", "MODIFIED", "DELETED"]), "{told:?}");
}

/// The store's server dies and is started again: nothing is lost, and the API goes on by itself.
fn outlives_its_server(hub: &Kubectl, record: &Path) {
    hub.ok(&["create", "configmap", "kept", "--from-literal=k=v"]);
    let old = pid_in(record).unwrap();
    std::process::Command::new("kill").args(["-9", &old.to_string()]).status().unwrap();
    eventually("the server is started again", || pid_in(record).is_some_and(|pid| pid != old));
    eventually("kubectl reads again", || hub.kubectl(&["get", "configmap", "kept"]).status.success());
    let mut waiting =
        hub.command(&["wait", "--for=jsonpath={.data.k}=w", "cm/kept", "--timeout=20s"]).spawn().unwrap();
    eventually("kubectl writes again", || {
        hub.kubectl(&["patch", "configmap", "kept", "--type=merge", "-p", r#"{"data":{"k":"w"}}"#])
            .status
            .success()
    });
    assert!(waiting.wait().unwrap().success(), "a watch tells what was written after the restart");
}
