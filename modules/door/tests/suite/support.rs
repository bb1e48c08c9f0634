//! What these tests stand on: a node's own server with its users and streams, a door to it, and a reader of events.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bus::connection::{Bus, Login, dial};
use bus::guest::Guests;
use bus::identity::Permissions;
use bus::module::Account;
use bus::provision::{self, Place};
use bus::server::child::{Files, Record};
use bus::server::{LeafConfig, LeafServer, User, binary};
use door::answer::Door;
use door::captures::Captures;
use futures::StreamExt;
use nix::sys::signal::Signal;
use reqwest::{Client, RequestBuilder, Response};
use schemas::name::NodeName;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// How long a fact may take to become true on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);
const STORE_MAX_BYTES: u64 = 1 << 30;

fn nats_server() -> PathBuf {
    if let Some(path) = std::env::var_os("EDGEWIRE_NATS_SERVER") {
        return path.into();
    }
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/bin/nats-server");
    if fetched.exists() { fetched } else { "/usr/lib/edgewire/nats-server".into() }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let until = tokio::time::Instant::now() + SOON;
    while !check().await {
        assert!(tokio::time::Instant::now() < until, "not in time: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// A directory of the test's own. Dropped, also after a failure, the server in it is killed.
struct Ground(PathBuf);

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some(record) = Record::find(&Files { dir: self.0.clone(), name: binary::NAME }) {
            record.signal(Signal::SIGKILL);
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A node with its bus and its door.
pub struct House {
    ground: Ground,
    pub server: LeafServer,
    /// Somebody who may do everything on the bus.
    pub judge: Bus,
    pub url: String,
    pub at: SocketAddr,
    pub http: Client,
    stop: CancellationToken,
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl House {
    pub async fn open(name: &str) -> Self {
        let ground =
            Ground(std::env::temp_dir().join(format!("edgewire-door-{name}-{}", std::process::id())));
        let _ = std::fs::remove_dir_all(&ground.0);
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = LeafConfig {
            node: NodeName::new("n1").unwrap(),
            data_dir: ground.0.clone(),
            listen: free(),
            mqtt: None,
            binary: Some(nats_server()),
            store_max_bytes: STORE_MAX_BYTES,
            hub: None,
        };
        let server = LeafServer::start(config).await.unwrap();
        server.ready(SOON).await.unwrap();
        let operator = User::new("operator", Account::Work, Permissions::full());
        server.put_users(vec![operator.clone()]).await.unwrap();
        let login = Login::Password { user: operator.name.clone(), password: operator.password };
        let judge = dial(server.url(), None, login, "judge", "_INBOX.judge".into(), Account::Work, "edge-n1");
        let judge = judge.await.unwrap();
        provision::provision(&judge, Place::Edge).await.unwrap();

        let (at, stop) = door(server.url(), &judge).await;
        Self { ground, server, judge, url: format!("http://{at}"), at, http: Client::new(), stop }
    }

    /// Another door in the place of this one: what it kept is gone.
    pub async fn renew_door(&mut self) {
        self.stop.cancel();
        (self.at, self.stop) = door(self.server.url(), &self.judge).await;
        self.url = format!("http://{}", self.at);
    }

    /// A pod of that namespace, with the rights that `credentials` gives one.
    pub async fn pod(&self, name: &str, namespace: &str) -> Pod<'_> {
        let own = |class: &str| format!("{class}.{namespace}.>");
        let inbox = format!("_INBOX.{name}.>");
        let permissions = Permissions {
            publish_allow: vec![own("app"), own("up"), own("bulk"), own("local"), inbox.clone()],
            subscribe_allow: vec![own("app"), own("down"), own("local"), inbox],
        };
        let user = User::new(name, Account::Work, permissions);
        self.server.put_users(vec![user.clone()]).await.unwrap();
        Pod { house: self, user }
    }

    /// One that is there already.
    pub fn known(&self, user: User) -> Pod<'_> {
        Pod { house: self, user }
    }

    /// The server dies; its supervisor starts it again. Gives the process that it was.
    pub fn strike_server(&self) -> u32 {
        let pid = self.server.status().borrow().pid.unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL)
            .unwrap();
        pid
    }

    /// The same, until it is back.
    pub async fn kill_server(&self) {
        let before = self.strike_server();
        eventually("the server is back", async || {
            self.server.status().borrow().pid.is_some_and(|pid| pid != before)
                && self.server.ready(LOOK).await.is_ok()
        })
        .await;
    }

    /// What the server logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(Files { dir: self.ground.0.clone(), name: binary::NAME }.log())
            .unwrap_or_default()
    }
}

async fn door(url: &str, judge: &Bus) -> (SocketAddr, CancellationToken) {
    let stop = CancellationToken::new();
    let door = Door::new(Arc::new(Guests::new(url)), Captures::new(Some(judge.clone())), stop.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(door::server::serve(listener, door));
    (at, stop)
}

/// Somebody with a login.
pub struct Pod<'a> {
    pub house: &'a House,
    pub user: User,
}

impl Pod<'_> {
    /// As it stands in `BUS_HTTP_URL`.
    pub fn url(&self) -> String {
        format!("http://{}:{}@{}", self.user.name, self.user.password, self.house.at)
    }

    fn with(&self, request: RequestBuilder) -> RequestBuilder {
        request.basic_auth(&self.user.name, Some(&self.user.password))
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.with(self.house.http.post(format!("{}{path}", self.house.url)))
    }

    pub fn publish(&self, subject: &str) -> RequestBuilder {
        self.post(&format!("/v1/pub/{subject}"))
    }

    /// Publishes; gives the status.
    pub async fn says(&self, subject: &str, body: impl Into<String>) -> u16 {
        self.publish(subject).body(body.into()).send().await.unwrap().status().as_u16()
    }

    pub async fn subscribe(&self, filter: &str, last: Option<&str>) -> Response {
        let mut request = self.with(self.house.http.get(format!("{}/v1/sub/{filter}", self.house.url)));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        request.send().await.unwrap()
    }

    pub async fn hears(&self, filter: &str, last: Option<&str>) -> Events {
        let response = self.subscribe(filter, last).await;
        assert_eq!(response.status(), 200, "{filter}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut events = Events::new(response);
        events.opening().await;
        events
    }
}

/// An answer, refused or not.
pub async fn refusal(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    (status, body["code"].as_str().unwrap_or_default().to_owned())
}

#[derive(Debug, Clone)]
pub struct Told {
    pub id: String,
    pub name: String,
    pub data: Value,
}

impl Told {
    pub fn text(&self) -> &str {
        self.data["data"].as_str().unwrap_or_default()
    }
}

/// Reads events as the HTML standard has it.
pub struct Events {
    body: futures::stream::BoxStream<'static, Vec<u8>>,
    text: String,
    pub last: String,
}

impl Events {
    fn new(response: Response) -> Self {
        let body = response.bytes_stream();
        let body = body.take_while(|chunk| std::future::ready(chunk.is_ok()));
        let body = body.map(|chunk| chunk.unwrap().to_vec()).boxed();
        Self { body, text: String::new(), last: String::new() }
    }

    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                return Some(block);
            }
            let chunk =
                tokio::time::timeout(SOON, self.body.next()).await.expect("nothing is told in time")?;
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    async fn opening(&mut self) {
        let block = self.block().await.unwrap();
        assert!(block.starts_with("retry: "), "{block}");
        self.last = block.split_once("\nid: ").unwrap().1.to_owned();
    }

    /// The next; `None` at the end.
    pub async fn next(&mut self) -> Option<Told> {
        tokio::time::timeout(SOON, self.unbounded()).await.expect("nothing is told in time")
    }

    async fn unbounded(&mut self) -> Option<Told> {
        loop {
            let block = self.block().await?;
            let field = |name: &str| {
                block
                    .lines()
                    .find_map(|line| line.strip_prefix(&format!("{name}: ")))
                    .unwrap_or_default()
                    .to_owned()
            };
            if block.starts_with(':') {
                continue;
            }
            let told = Told {
                id: field("id"),
                name: field("event"),
                data: serde_json::from_str(&field("data"))
                    .unwrap_or_else(|error| panic!("{block:?}: {error}")),
            };
            if !told.id.is_empty() {
                self.last.clone_from(&told.id);
            }
            return Some(told);
        }
    }

    /// The texts of so many messages.
    pub async fn texts(&mut self, count: usize) -> Vec<String> {
        let mut texts = Vec::new();
        while texts.len() < count {
            let told = self.next().await.expect("it ended");
            assert_eq!(told.name, "message", "{told:?}");
            texts.push(told.text().to_owned());
        }
        texts
    }
}
