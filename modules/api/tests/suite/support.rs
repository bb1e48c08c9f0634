//! The API on a free port over a store in memory, and a real kubectl with a home of its own to drive it.
//!
//! The store in memory keeps the real one's promises (global revisions, compare-and-set, tombstones with the last state,
//! watches from a revision); the node behind logs and exec is a few lines, because no containers are under test here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::audit::{Audit, Wanted};
use api::store::{Store, StoreError, StoreEvent, StoreWatch};
use api::{ByteStream, Config, EdgeStreams, Identity, Parts, Server, Token};
use async_trait::async_trait;
use bytes::Bytes;
use schemas::audit::AuditRecord;
use schemas::command::{Frame, OpenExec, OpenLogs, Refusal, Reply, channel};
use schemas::name::NodeName;
use schemas::object::Object;
use schemas::subject::{ObjectKey, Resource};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub const TOKEN: &str = "a-token-for-tests";

#[derive(Default)]
struct Memory {
    objects: BTreeMap<ObjectKey, Object>,
    log: Vec<StoreEvent>,
}

pub struct MemoryStore {
    memory: Arc<Mutex<Memory>>,
    changed: tokio::sync::watch::Sender<usize>,
}

impl MemoryStore {
    pub fn new() -> Self {
        Self { memory: Arc::default(), changed: tokio::sync::watch::Sender::new(0) }
    }

    fn write(
        &self,
        key: &ObjectKey,
        object: &Object,
        deleted: bool,
        check: impl FnOnce(Option<u64>) -> Result<(), StoreError>,
    ) -> Result<Object, StoreError> {
        let mut memory = self.memory.lock().unwrap();
        check(memory.objects.get(key).map(Object::revision))?;
        let revision = memory.log.len() as u64 + 1;
        let mut object = object.clone();
        object.set(&["metadata", "resourceVersion"], revision.to_string());
        if deleted {
            memory.objects.remove(key);
        } else {
            memory.objects.insert(key.clone(), object.clone());
        }
        memory.log.push(StoreEvent { key: key.clone(), revision, deleted, object: object.clone() });
        self.changed.send_replace(memory.log.len());
        Ok(object)
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        Ok(self.memory.lock().unwrap().objects.get(key).cloned())
    }
    async fn list(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
    ) -> Result<(Vec<Object>, u64), StoreError> {
        let memory = self.memory.lock().unwrap();
        let wanted =
            |key: &ObjectKey| key.resource == *resource && namespace.is_none_or(|ns| key.namespace == ns);
        let objects = memory.objects.iter().filter(|(key, _)| wanted(key)).map(|(_, o)| o.clone()).collect();
        Ok((objects, memory.log.len() as u64))
    }
    async fn create(&self, key: &ObjectKey, object: &Object) -> Result<Object, StoreError> {
        self.write(key, object, false, |have| have.map_or(Ok(()), |_| Err(StoreError::AlreadyExists)))
    }
    async fn update(&self, key: &ObjectKey, object: &Object, expect: u64) -> Result<Object, StoreError> {
        self.write(
            key,
            object,
            false,
            |have| if have == Some(expect) { Ok(()) } else { Err(StoreError::Conflict) },
        )
    }
    async fn delete(&self, key: &ObjectKey, expect: u64, last: &Object) -> Result<u64, StoreError> {
        let check = |have| if have == Some(expect) { Ok(()) } else { Err(StoreError::Conflict) };
        Ok(self.write(key, last, true, check)?.revision())
    }
    async fn revision(&self) -> Result<u64, StoreError> {
        Ok(self.memory.lock().unwrap().log.len() as u64)
    }
    async fn watch(&self, resource: &Resource, from: u64) -> Result<StoreWatch, StoreError> {
        let (tell, told) = mpsc::channel(16);
        let mut changed = self.changed.subscribe();
        let log = |from: usize, memory: &Memory| memory.log.get(from..).unwrap_or_default().to_vec();
        let mut waiting = log(from as usize, &self.memory.lock().unwrap());
        let mut next = from as usize + waiting.len();
        let memory = self.memory.clone();
        let resource = resource.clone();
        tokio::spawn(async move {
            loop {
                for event in waiting.drain(..).filter(|e| e.key.resource == resource) {
                    if tell.send(Ok(event)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    changed = changed.changed() => if changed.is_err() { return },
                    () = tell.closed() => return,
                }
                waiting = log(next, &memory.lock().unwrap());
                next += waiting.len();
            }
        });
        Ok(Box::pin(futures::stream::unfold(
            told,
            |mut told| async move { Some((told.recv().await?, told)) },
        )))
    }
}

/// A node that says its command back: enough to see bytes flow both ways.
pub struct EchoNode;

fn data(channel: u8, text: impl Into<Bytes>) -> Frame {
    Frame::Data { sequence: 0, channel, bytes: text.into() }
}

#[async_trait]
impl EdgeStreams for EchoNode {
    async fn open_logs(&self, node: &NodeName, open: OpenLogs) -> Result<ByteStream, Refusal> {
        if node.as_str() == "away" {
            return Err(Refusal::new(503, "EW-NODE-UNREACHABLE", "node away does not answer"));
        }
        let (say, incoming) = mpsc::channel(8);
        let (outgoing, hear) = mpsc::channel(8);
        tokio::spawn(async move {
            let _hear = hear;
            let lines = open.tail_lines.unwrap_or(3);
            for line in (3 - lines.min(3))..3 {
                let _ = say
                    .send(data(
                        channel::STDOUT,
                        format!("{} line {line} previous={}\n", open.container, open.previous),
                    ))
                    .await;
            }
            if open.follow {
                let _ = say.send(data(channel::STDOUT, "followed\n")).await;
            }
            let _ = say.send(Frame::End { exit_code: None, error: None }).await;
        });
        Ok(ByteStream { incoming, outgoing })
    }

    async fn open_exec(&self, node: &NodeName, open: OpenExec) -> Result<ByteStream, Refusal> {
        if node.as_str() == "away" {
            return Err(Refusal::new(503, "EW-NODE-UNREACHABLE", "node away does not answer"));
        }
        let (say, incoming) = mpsc::channel(8);
        let (outgoing, mut hear) = mpsc::channel(8);
        tokio::spawn(async move {
            let words: Vec<&str> = open.command.iter().map(String::as_str).collect();
            let mut exit_code = 0;
            match words.as_slice() {
                ["cat"] => {
                    while let Some(Frame::Data { channel, bytes, .. }) = hear.recv().await {
                        if channel == channel::STDIN && bytes.is_empty() {
                            break;
                        }
                        if channel == channel::STDIN {
                            let _ = say.send(data(channel::STDOUT, bytes)).await;
                        }
                    }
                }
                ["exit", code] => {
                    exit_code = code.parse().unwrap();
                    let _ = say.send(data(channel::STDERR, "going\n")).await;
                }
                words => {
                    let _ = say
                        .send(data(channel::STDOUT, format!("{} in {}\n", words.join(" "), open.container)))
                        .await;
                }
            }
            let _ = say.send(Frame::End { exit_code: Some(exit_code), error: None }).await;
        });
        Ok(ByteStream { incoming, outgoing })
    }
}

/// Audit records in memory.
#[derive(Default)]
pub struct Records(std::sync::Mutex<Vec<AuditRecord>>);

#[async_trait]
impl Audit for Records {
    async fn write(&self, record: AuditRecord) {
        self.0.lock().unwrap().push(record);
    }
    async fn read(&self, wanted: Wanted) -> Result<Vec<AuditRecord>, Refusal> {
        Ok(self.0.lock().unwrap().iter().filter(|record| wanted.wants(record)).cloned().collect())
    }
}

/// An identity module that says back what it was asked.
pub struct EchoIdentity;

#[async_trait]
impl Identity for EchoIdentity {
    async fn call(&self, verb: &str, body: Value) -> Reply<Value> {
        if body.get("token") == Some(&json!("expired")) {
            return Err(Refusal::new(403, "EW-TOKEN-EXPIRED", "the token has expired: make another one"));
        }
        Ok(json!({"verb": verb, "body": body}))
    }
}

/// A kubectl with a home, a kubeconfig and files of its own.
pub struct Kubectl {
    pub url: String,
    pub ca_pem: String,
    home: tempfile::TempDir,
}

/// The API over the store in memory, running. Dropping it ends it.
pub struct Hub {
    kubectl: Kubectl,
    stop: CancellationToken,
    runtime: Option<tokio::runtime::Runtime>,
}

impl std::ops::Deref for Hub {
    type Target = Kubectl;
    fn deref(&self) -> &Kubectl {
        &self.kubectl
    }
}

/// A configuration on a port of its own, and the certificate that clients trust.
pub fn config(port: u16) -> (Config, String) {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
    let ca_pem = key.cert.pem();
    let config = Config {
        listen: ([127, 0, 0, 1], port).into(),
        certificate: api::Certificate::new(&ca_pem, &key.signing_key.serialize_pem()).unwrap(),
        tokens: vec![Token { secret: TOKEN.into(), user: "admin".into() }],
    };
    (config, ca_pem)
}

impl Hub {
    pub fn start() -> Self {
        let (config, ca_pem) = config(0);
        let stop = CancellationToken::new();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let parts = Parts {
            store: Arc::new(MemoryStore::new()),
            streams: Arc::new(EchoNode),
            identity: Arc::new(EchoIdentity),
            audit: Arc::new(Records::default()),
        };
        let server = runtime.block_on(Server::bind(config, parts)).unwrap();
        let kubectl = Kubectl::new(server.local_addr().port(), ca_pem);
        runtime.spawn(server.run(stop.clone()));
        kubectl.ready();
        Self { kubectl, stop, runtime: Some(runtime) }
    }
}

impl Kubectl {
    pub fn new(port: u16, ca_pem: String) -> Self {
        let url = format!("https://127.0.0.1:{port}");
        let this = Self { url, ca_pem, home: tempfile::tempdir().unwrap() };
        std::fs::write(this.path("ca.pem"), &this.ca_pem).unwrap();
        std::fs::write(this.path("kubeconfig"), this.kubeconfig()).unwrap();
        this
    }

    /// Waits until the API serves.
    pub fn ready(&self) {
        eventually("the API is ready", || self.kubectl(&["get", "ns", "kube-public"]).status.success());
    }

    fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": self.url, "certificate-authority": self.path("ca.pem")}}],
            "users": [{"name": "u", "user": {"token": TOKEN}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        })
        .to_string()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn file(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let program = std::env::var("KUBECTL").unwrap_or_else(|_| {
            let pinned = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.tools/bin/kubectl");
            if std::path::Path::new(pinned).exists() { pinned.into() } else { "kubectl".into() }
        });
        let mut command = Command::new(program);
        command
            .args(args)
            .env("HOME", self.home.path())
            .env("KUBECONFIG", self.path("kubeconfig"))
            .stdin(Stdio::null());
        command
    }

    pub fn kubectl(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs kubectl, which has to succeed; gives what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.kubectl(args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "kubectl {args:?}\n{text}\n{error}");
        text
    }

    /// Runs kubectl, which has to fail; gives what it complained.
    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.kubectl(args);
        assert!(
            !output.status.success(),
            "kubectl {args:?} succeeded: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Runs kubectl with a manifest on its standard input.
    pub fn with_input(&self, args: &[&str], input: &str) -> Output {
        use std::io::Write;
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    pub fn apply(&self, manifest: &str) -> String {
        let output = self.with_input(&["apply", "-f", "-"], manifest);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// A raw request through kubectl's own transport.
    pub fn raw(&self, path: &str) -> String {
        self.ok(&["get", "--raw", path])
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

/// How long a fact may take to become true on a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// Between two looks.
const POLL: Duration = Duration::from_millis(50);

/// Waits for a fact.
pub fn eventually(what: &str, mut fact: impl FnMut() -> bool) {
    let until = Instant::now() + SOON;
    while !fact() {
        assert!(Instant::now() < until, "did not happen in time: {what}");
        std::thread::sleep(POLL);
    }
}
