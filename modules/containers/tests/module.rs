//! The whole module on real parts: a nats-server, a private containerd, its sled; the hub's part is played by writing the
//! local bucket.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bus::connection::{Bus, Connector};
use bus::durable::Durable;
use bus::module::{Account, Expect};
use bus::provision::{Place, provision};
use bus::runner::{self, Spec};
use bus::store::Store;
use bus::stream::{ByteStream, new_session};
use containers::runtime::RuntimeConfig;
use containers::{Containers, ContainersRim};
use futures::StreamExt;
use schemas::command::{Frame, OpenExec, OpenLogs, Refusal, Reply, channel};
use schemas::credential::{Issue, Issued};
use schemas::desired::{Content, Desired, Local};
use schemas::name::NodeName;
use schemas::object::Object;
use schemas::report::{EventReport, PodReport};
use schemas::subject::{self, DesiredKey};
use serde_json::{Value, json};
use support::{Containerd, Nats, docker_archive, eventually};
use tokio_util::sync::CancellationToken;

fn node() -> NodeName {
    NodeName::new("n1").unwrap()
}

/// What was told, latest report per UID.
#[derive(Default)]
struct Told {
    pods: BTreeMap<String, PodReport>,
    events: Vec<EventReport>,
}

/// The node's bus, with a stand-in for the module `credentials`.
struct Node {
    nats: Nats,
    connector: Connector,
    bus: Bus,
    told: Arc<Mutex<Told>>,
    revision: u64,
}

impl Node {
    async fn start(dir: &Path) -> Self {
        let nats = Nats::start(dir).await;
        let connector = Connector::open("n1", "edge-n1", &nats.url);
        let bus = eventually("the server answers", async || {
            connector.connect("test", &[], Account::Control).await.ok()
        })
        .await;
        eventually("streams are made", async || provision(&bus, Place::Edge).await.ok()).await;
        let told = Arc::new(Mutex::new(Told::default()));
        let mut reports = bus.client().subscribe("ew.*.containers.>").await.unwrap();
        let mut asked = bus.client().subscribe("ew.local.credentials.*").await.unwrap();
        let (tell, client) = (told.clone(), bus.client().clone());
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(message) = reports.next() => {
                        let mut told = tell.lock().unwrap();
                        if let Ok(report) = schemas::decode::<PodReport>(&message.payload) {
                            told.pods.insert(report.uid.clone(), report);
                        } else if let Ok(event) = schemas::decode::<EventReport>(&message.payload) {
                            told.events.push(event);
                        }
                    }
                    Some(message) = asked.next() => {
                        let answer = match schemas::decode::<Issue>(&message.payload) {
                            Ok(issue) => schemas::encode(&Reply::Ok(Issued {
                                url: format!("nats://pod-{}:pw@10.211.8.1:4222", issue.uid),
                                inbox: "_INBOX.pod".into(),
                                user: format!("pod-{}", issue.uid),
                                password: "pw".into(),
                                mqtt_url: None,
                                http_url: None,
                            })),
                            Err(_) => schemas::encode(&Reply::Ok(())),
                        };
                        client.publish(message.reply.unwrap(), answer.into()).await.unwrap();
                    }
                    else => return,
                }
            }
        });
        Self { nats, connector, bus, told, revision: 0 }
    }

    async fn put(&mut self, plural: &str, name: &str, uid: &str, content: Content) {
        self.revision += 1;
        let revision = self.revision;
        let desired =
            Desired { generation: "g".into(), epoch: "e".into(), resource_version: revision, content };
        let key = DesiredKey {
            plural: plural.into(),
            namespace: "demo".into(),
            name: name.into(),
            uid: uid.into(),
        };
        let value = schemas::encode(&Local { revision, desired });
        Store::new(&self.bus, subject::BUCKET_LOCAL).put(&key.local_key(), value, Expect::Any).await.unwrap();
    }

    async fn pod(&mut self, name: &str, uid: &str, spec: Value, deleting: bool) {
        let mut metadata = json!({"name": name, "namespace": "demo", "uid": uid});
        if deleting {
            metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            metadata["deletionGracePeriodSeconds"] = json!(3);
        }
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        self.put("pods", name, uid, Content::Object(object.try_into().unwrap())).await;
    }

    fn report(&self, uid: &str) -> Option<PodReport> {
        self.told.lock().unwrap().pods.get(uid).cloned()
    }

    /// Waits for a report that `check` likes.
    async fn until(&self, what: &str, uid: &str, check: impl Fn(&PodReport) -> bool) -> PodReport {
        let mut last = None;
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            last = self.report(uid);
            if let Some(report) = last.as_ref().filter(|report| check(report)) {
                return report.clone();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not within 20 s: {what}: {last:#?}");
    }

    async fn running(&self, uid: &str) -> PodReport {
        self.until("it runs", uid, ready).await
    }

    fn reasons(&self) -> Vec<String> {
        self.told.lock().unwrap().events.iter().map(|event| event.reason.clone()).collect()
    }

    async fn stream<T: serde::Serialize>(
        &self,
        verb: &str,
        session: &str,
        open: &T,
    ) -> Result<ByteStream, Refusal> {
        ByteStream::open(&self.bus, &node(), "containers", verb, session, open).await
    }

    async fn logs(&self, pod: &str, previous: bool) -> Result<String, Refusal> {
        let open = OpenLogs {
            session: new_session(),
            namespace: "demo".into(),
            pod: pod.into(),
            container: String::new(),
            follow: false,
            tail_lines: None,
            since_seconds: None,
            timestamps: false,
            previous,
            limit_bytes: None,
        };
        let mut stream = self.stream("logs", &open.session, &open).await?;
        let mut out = Vec::new();
        loop {
            match stream.next().await? {
                Some(Frame::Data { bytes, .. }) => out.extend_from_slice(&bytes),
                Some(Frame::End { error, .. }) => {
                    assert_eq!(error, None);
                    return Ok(String::from_utf8(out).unwrap());
                }
                _ => {}
            }
        }
    }

    async fn exec(&self, pod: &str, command: &str, input: &str) -> (String, String, Option<i32>) {
        let open = OpenExec {
            session: new_session(),
            namespace: "demo".into(),
            pod: pod.into(),
            container: "main".into(),
            command: ["sh", "-c", command].map(str::to_owned).to_vec(),
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        let mut stream = self.stream("exec", &open.session, &open).await.unwrap();
        let mut left = input.as_bytes();
        let (mut out, mut err, mut closed) = (Vec::new(), Vec::new(), false);
        loop {
            while !left.is_empty() && stream.can_send() {
                let n = stream.send(channel::STDIN, left).await.unwrap();
                left = &left[n..];
            }
            if left.is_empty() && !closed {
                stream.send(channel::STDIN, &[]).await.unwrap();
                closed = true;
            }
            match stream.next().await.unwrap() {
                Some(Frame::Data { channel: channel::STDOUT, bytes, .. }) => out.extend_from_slice(&bytes),
                Some(Frame::Data { bytes, .. }) => err.extend_from_slice(&bytes),
                Some(Frame::End { exit_code, error }) => {
                    assert_eq!(error, None);
                    return (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), exit_code);
                }
                _ => {}
            }
        }
    }
}

fn ready(report: &PodReport) -> bool {
    let conditions = report.status["conditions"].as_array().unwrap();
    conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn id_of(report: &PodReport) -> String {
    report.status["containerStatuses"][0]["containerID"].as_str().unwrap().replace("containerd://", "")
}

/// The module running, until it is killed.
struct Agent {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Agent {
    async fn start(node: &Node, state: PathBuf, config: RuntimeConfig) -> Self {
        let stop = CancellationToken::new();
        let (token, connector) = (stop.clone(), node.connector.clone());
        let spec = Spec {
            name: containers::MODULE,
            flows: containers::flows(&self::node()),
            tick: Duration::from_millis(100),
        };
        let (up, is_up) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let (durable, _) = Durable::open(&state).unwrap();
            let handles = connector.handles(spec.name, &spec.flows).await.unwrap();
            let rim = ContainersRim::new(self::node(), "192.0.2.7".into(), config);
            let module = Containers::new(self::node(), "store".to_owned());
            let ended =
                runner::run(&spec, module, rim, handles, &durable, token, || up.send(()).unwrap()).await;
            ended.unwrap();
        });
        is_up.await.unwrap();
        Self { stop, task }
    }

    /// As far as that goes within a process: nothing is drained or flushed.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn sensor() -> Value {
    let script = "echo hello $GREETING from $POD; trap 'exit 0' TERM; while :; do sleep 0.1; done";
    json!({
        "terminationGracePeriodSeconds": 3,
        "volumes": [{"name": "v", "configMap": {"name": "cm"}}],
        "containers": [{
            "name": "main", "image": "ew/busybox:1", "command": ["sh", "-c", script],
            "env": [{"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}},
                    {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "volumeMounts": [{"name": "v", "mountPath": "/cfg"}],
        }],
    })
}

fn config_map(text: &str) -> Content {
    let object =
        json!({"kind": "ConfigMap", "metadata": {"name": "cm", "namespace": "demo"}, "data": {"k": text}});
    Content::Object(Object::try_from(object).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_from_the_local_bucket_to_containerd_and_back() {
    let mut containerd = Containerd::start("ewt-mod");
    let runtime = containerd.connect("10.211.8.0/24").await;
    runtime.import_archive(&docker_archive(containerd.path(), "ew/busybox:1")).await.unwrap();
    let mut node = Node::start(containerd.path()).await;
    let state = containerd.path().join("state");
    let config = containerd.config("10.211.8.0/24");
    let agent = Agent::start(&node, state.clone(), config.clone()).await;

    // Created, running, told.
    node.put("configmaps", "cm", "c1", config_map("one")).await;
    let begun = Instant::now();
    node.pod("sensor", "u1", sensor(), false).await;
    let report = node.running("u1").await;
    println!("put to Running told: {:?}", begun.elapsed());
    let id = id_of(&report);
    assert!(containerd.ctr(&["tasks", "ls"]).contains(&id));
    assert_eq!(report.status["hostIP"], "192.0.2.7");
    assert!(report.status["podIP"].as_str().unwrap().starts_with("10.211.8."));
    eventually("its log", async || {
        let text = node.logs("sensor", false).await;
        // A start that containerd failed late is tried again: then it says it twice.
        text.unwrap().ends_with("hello one from sensor\n").then_some(())
    })
    .await;

    // Exec: streams, code, the credential; more input than the credit.
    let (out, err, code) = node.exec("sensor", "echo $NATS_URL; echo oops >&2; exit 5", "").await;
    assert_eq!((out.as_str(), err.as_str(), code), ("nats://pod-u1:pw@10.211.8.1:4222\n", "oops\n", Some(5)));
    let much = "0123456789abcdef\n".repeat(60_000);
    let (out, _, code) = node.exec("sensor", "cat", &much).await;
    assert_eq!((out.len(), out == much, code), (much.len(), true, Some(0)));
    assert_eq!(node.logs("none", false).await.unwrap_err().code, "EW-POD-NOT-FOUND");

    // A followed log goes on with what is written later.
    let follow = OpenLogs {
        session: new_session(),
        namespace: "demo".into(),
        pod: "sensor".into(),
        container: "main".into(),
        follow: true,
        tail_lines: Some(0),
        since_seconds: None,
        timestamps: false,
        previous: false,
        limit_bytes: None,
    };
    let mut following = node.stream("logs", &follow.session, &follow).await.unwrap();
    node.exec("sensor", "echo said later > /proc/1/fd/1", "").await;
    let later = async {
        loop {
            if let Some(Frame::Data { bytes, .. }) = following.next().await.unwrap() {
                return bytes;
            }
        }
    };
    let later = tokio::time::timeout(Duration::from_secs(5), later).await.expect("the log goes on");
    assert_eq!(later, "said later\n");
    following.end(None, None).await.unwrap();

    // A ConfigMap edit reaches the file.
    let begun = Instant::now();
    node.put("configmaps", "cm", "c1", config_map("two")).await;
    eventually("the edit is in the file", async || {
        let seen = node.exec("sensor", "cat /cfg/k", "").await;
        (seen.0 == "two").then_some(())
    })
    .await;
    println!("edit to file: {:?}", begun.elapsed());

    // Killed and started again: adopted, nothing restarted.
    agent.kill().await;
    let agent = Agent::start(&node, state.clone(), config.clone()).await;
    eventually("adopted", async || node.reasons().contains(&"Adopted".to_owned()).then_some(())).await;
    assert_eq!(id_of(&node.running("u1").await), id);

    // The server and containerd killed and started again, the agent too.
    containerd.kill_9();
    agent.kill().await;
    containerd.restart();
    node.nats.restart();
    let agent = Agent::start(&node, state.clone(), config.clone()).await;
    let adopted = async || node.reasons().iter().filter(|reason| *reason == "Adopted").count() > 1;
    eventually("adopted again", async || adopted().await.then_some(())).await;
    assert_eq!(id_of(&node.running("u1").await), id);
    // Only containerd, under the agent's feet.
    containerd.kill_9();
    containerd.restart();
    assert!(containerd.processes().iter().any(|line| line.contains(&id)));

    // A container that crashes is seen at once, restarted, then backs off; its last words can be read.
    let crash = json!({"containers": [{"name": "main", "image": "ew/busybox:1", "command": ["sh", "-c", "echo dying; exit 7"]}]});
    node.pod("crash", "u2", crash, false).await;
    let report = node
        .until("it backs off", "u2", |r| {
            r.status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        })
        .await;
    let container = &report.status["containerStatuses"][0];
    assert_eq!(
        (&container["restartCount"], &container["lastState"]["terminated"]["exitCode"]),
        (&json!(1), &json!(7))
    );
    assert_eq!(node.logs("crash", true).await.unwrap(), "dying\n");
    assert!(node.reasons().contains(&"BackOff".to_owned()));

    // No such image.
    let absent = json!({"containers": [{"name": "main", "image": "no/such:1", "imagePullPolicy": "Never"}]});
    node.pod("absent", "u3", absent, false).await;
    let report = node
        .until("it says why", "u3", |r| {
            r.status["containerStatuses"][0]["state"]["waiting"]["message"].is_string()
        })
        .await;
    let waiting = &report.status["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(waiting["reason"], "ErrImageNeverPull");
    assert!(waiting["message"].as_str().unwrap().contains("docker.io/no/such:1"), "{waiting}");

    // Reboot: every process of the pod dies, containerd too; the agent starts with neither hub nor news.
    agent.kill().await;
    containerd.kill_workloads();
    containerd.restart();
    let begun = Instant::now();
    let agent = Agent::start(&node, state.clone(), config.clone()).await;
    let report = node.until("it runs again", "u1", |r| ready(r) && id_of(r) != id).await;
    println!("agent start to Running told, after a reboot: {:?}", begun.elapsed());
    assert_eq!(report.status["containerStatuses"][0]["restartCount"], 1);

    // Deleted: stopped within its grace, told, gone; forgotten with the tombstone.
    let begun = Instant::now();
    node.pod("sensor", "u1", sensor(), true).await;
    node.until("it is stopped", "u1", |report| report.stopped).await;
    println!("deletion to stopped told: {:?}", begun.elapsed());
    for (name, uid) in [("sensor", "u1"), ("crash", "u2"), ("absent", "u3")] {
        node.put("pods", name, uid, Content::Tombstone).await;
    }
    eventually("nothing is left in containerd", async || {
        containerd.ctr(&["containers", "ls", "-q"]).is_empty().then_some(())
    })
    .await;
    eventually("no process is left", async || {
        containerd.processes().iter().all(|line| line.contains("nats-server")).then_some(())
    })
    .await;
    eventually("no mount is left", async || containerd.mounts().is_empty().then_some(())).await;
    let data = containerd.path().join("data");
    eventually("no directory is left", async || {
        let count = |dir: &str| std::fs::read_dir(data.join(dir)).unwrap().count();
        (count("pods") + count("sandboxes") + count("logs") == 0).then_some(())
    })
    .await;
    // Nothing of the pods is kept either; an agent that is stopped too early finishes that at its next start.
    let mut agent = Some(agent);
    eventually("the pods are forgotten", async || {
        if let Some(agent) = agent.take() {
            agent.stop().await;
        }
        let saved = {
            let (durable, _) = Durable::open(&state).unwrap();
            durable.part(containers::MODULE).unwrap().saved().unwrap()
        };
        if !saved.iter().any(|(key, _)| key.starts_with("pod.")) {
            return Some(());
        }
        agent = Some(Agent::start(&node, state.clone(), config.clone()).await);
        tokio::time::sleep(Duration::from_millis(300)).await;
        None
    })
    .await;
    runtime.remove_network().await.unwrap();
    runtime.remove_cgroup_parent();
}
