//! The simulator's model of JetStream against the real nats-server: the same random programs run on both, and every answer
//! must be the same. What is asked goes through `bus`, so the client's side is the one that modules use.
//!
//! `EDGEWIRE_MODEL_SEED=<seed>` runs one program again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a panic is how a test fails

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bus::connection::{Bus, Connector};
use bus::link::{self, LinkError, Raise};
use bus::module::{Account, Entry, Expect, WriteError};
use bus::provision::{Place, provision};
use bus::store::Store;
use bytes::Bytes;
use schemas::envelope::Headers;
use schemas::name::NodeName;
use schemas::subject::{self, BUCKET_DESIRED, DOMAIN_HUB, STREAM_UP};
use tests::sim::jetstream::{Config, ConsumerConfig, MSG_ID, New, OPERATION, Refused, Stream};
use tests::sim::random::Random;

/// Programs in a plain run.
const PROGRAMS: u64 = 25;
/// An answer of the server on this machine.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
/// Steps of a program.
const STEPS: u64 = 80;
/// How long a pull waits for what is not there.
const PULL_WAIT: Duration = Duration::from_millis(40);
/// How long anything may take.
const SOON: Duration = Duration::from_secs(10);
/// Between two tries to connect.
const LOOK: Duration = Duration::from_millis(20);
/// A writer lets a pull begin: it waits by then, or soon. Either must do.
const HEAD_START: Duration = Duration::from_millis(5);
/// Between two writes, so many times one of the rounds' numbers: neither may be missed, however close they are.
const CLOSE: Duration = Duration::from_micros(50);
/// Bound of the small stream.
const SMALL_MAX_BYTES: u64 = 2_000;

// --- the real server ---

fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("EDGEWIRE_NATS_SERVER") {
        return path.into();
    }
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/nats-server");
    if fetched.exists() { fetched } else { "nats-server".into() }
}

/// A bare server of the test's own, killed when dropped.
struct Server {
    child: Child,
    url: String,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = dir.path().join("server.conf");
        let text = format!(
            "listen: \"127.0.0.1:{port}\"\nmax_payload: 8MiB\njetstream {{ domain: {DOMAIN_HUB}, store_dir: {:?} }}\n",
            dir.path().join("store")
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new(binary()).arg("-c").arg(&config).stderr(Stdio::null()).spawn().unwrap();
        Self { child, url: format!("nats://127.0.0.1:{port}"), _dir: dir }
    }

    async fn connect(&self) -> Bus {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        let connector = Connector::open("hub", DOMAIN_HUB, &self.url);
        loop {
            match connector.connect("model", &[], Account::Control).await {
                Ok(bus) => return bus,
                Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn api(bus: &Bus, verb: &str, body: serde_json::Value) -> serde_json::Value {
    let answer = bus.client().request(format!("$JS.{DOMAIN_HUB}.API.{verb}"), body.to_string().into()).await;
    serde_json::from_slice(&answer.unwrap().payload).unwrap()
}

// --- both ---

struct Both {
    bus: Bus,
    random: Random,
    node: NodeName,
    desired: Stream,
    up: Stream,
    small: Stream,
    step: u64,
    /// What was pulled and not settled: revision and where to acknowledge it.
    unacked: Vec<(u64, String)>,
    made_consumer: bool,
    /// Something was given back since the last pull.
    given_back: bool,
}

fn empty(subjects: &[&str], size_bytes_max: u64, bucket: bool) -> Stream {
    let subjects = subjects.iter().map(|s| (*s).to_owned()).collect();
    Stream::new(Config { subjects, size_bytes_max, bucket }, 1)
}

fn conflict(outcome: Result<u64, Refused>) -> Result<u64, WriteError> {
    outcome.map_err(|refused| match refused {
        Refused::WrongLastSequence => WriteError::Conflict,
        other => WriteError::Failed(format!("{other:?}")),
    })
}

impl Both {
    async fn new(bus: &Bus, seed: u64) -> Self {
        for stream in ["KV_desired", STREAM_UP, "SMALL"] {
            api(bus, &format!("STREAM.DELETE.{stream}"), serde_json::json!({})).await;
        }
        provision(bus, Place::Hub).await.unwrap();
        let small = serde_json::json!({
            "name": "SMALL", "subjects": ["small.>"], "max_bytes": SMALL_MAX_BYTES, "discard": "new",
            "storage": "file", "retention": "limits", "num_replicas": 1, "max_msgs": -1, "max_age": 0,
            "max_msgs_per_subject": -1, "allow_direct": true, "allow_atomic": true,
        });
        let made = api(bus, "STREAM.CREATE.SMALL", small).await;
        assert!(made.get("error").is_none(), "{made}");
        Self {
            bus: bus.clone(),
            random: Random::new(seed),
            node: NodeName::new("n1").unwrap(),
            desired: empty(&["$KV.desired.>"], u64::MAX / 4, true),
            up: empty(&["ew.in.>"], u64::MAX / 4, false),
            small: empty(&["small.>"], SMALL_MAX_BYTES, false),
            step: 0,
            unacked: Vec::new(),
            made_consumer: false,
            given_back: false,
        }
    }

    fn key(&mut self) -> String {
        format!("n{}.pods.default.p{}.u", self.random.between(1, 3), self.random.below(4))
    }

    /// A revision that fits, more often than not.
    fn expect(&mut self, subject: &str) -> Expect {
        let last = self.desired.get(subject).map_or(0, |stored| stored.sequence);
        match self.random.below(6) {
            0 => Expect::Absent,
            1 => Expect::Revision(self.random.below(last + 3)),
            2 | 3 if last > 0 => Expect::Revision(last),
            _ => Expect::Any,
        }
    }

    async fn write(&mut self) {
        let (key, removed) = (self.key(), self.random.per_mille(250));
        let subject = subject::kv(BUCKET_DESIRED, &key);
        let expect = self.expect(&subject);
        let length = usize::try_from(self.random.below(300)).unwrap();
        let value = vec![b'x'; length];
        let store = Store::new(&self.bus, BUCKET_DESIRED);
        let real = if removed {
            store.remove(&key, value.clone(), expect).await
        } else {
            store.put(&key, value.clone(), expect).await
        };
        let expect = match expect {
            Expect::Any => None,
            Expect::Revision(revision) => Some(revision),
            Expect::Absent => {
                let last = self.desired.get(&subject).filter(|last| last.is_tombstone());
                Some(last.map_or(0, |last| last.sequence))
            }
        };
        let mut headers = Headers::new();
        if removed {
            headers.insert(OPERATION.to_owned(), "DEL".to_owned());
        }
        let new = New { subject, headers, payload: Bytes::from(value) };
        let model = conflict(self.desired.publish(new, expect, 0));
        assert_eq!(real, model, "write of {key}, removed {removed}, {expect:?}");
    }

    async fn get(&mut self) {
        let key = self.key();
        let real = Store::new(&self.bus, BUCKET_DESIRED).get(&key).await.unwrap();
        let stored = self.desired.get(&subject::kv(BUCKET_DESIRED, &key));
        assert_eq!(real, stored.map(entry), "get of {key}");
    }

    async fn list(&mut self) {
        let filter = self.random.pick(&[">", "n1.>", "*.pods.default.p0.u"]).copied().unwrap();
        let store = Store::new(&self.bus, BUCKET_DESIRED);
        let (real, at) = store.list(filter).await.unwrap();
        let filter_subject = subject::kv(BUCKET_DESIRED, filter);
        let stored = self.desired.read(&filter_subject, 0).filter(|stored| !stored.is_tombstone());
        assert_eq!(real, stored.map(entry).collect::<Vec<_>>(), "list of {filter}");
        assert_eq!(at, self.desired.last_sequence());
    }

    async fn commit(&mut self) {
        let cursor = format!("ew.in.n{}._cursor.events", self.random.between(1, 3));
        let last = self.up.get(&cursor).map_or(0, |stored| stored.sequence);
        let expect = if self.random.per_mille(250) { self.random.below(last + 3) } else { last };
        let count = self.random.below(6);
        let messages: Vec<Raise> = (0..count)
            .map(|n| Raise {
                subject: format!("ew.in.n1.events.ew.evt.m.T{}", self.random.below(3)),
                headers: [("n".to_owned(), n.to_string())].into(),
                payload: Bytes::from(vec![b'm'; usize::try_from(n * 7).unwrap()]),
            })
            .collect();
        let value = self.step.to_string();
        let at =
            Raise { subject: cursor.clone(), headers: Headers::new(), payload: Bytes::from(value.clone()) };
        let real = link::commit(&self.bus, &messages, &at, expect, PATIENCE).await;
        let mut batch: Vec<New> = messages
            .into_iter()
            .map(|raise| New { subject: raise.subject, headers: raise.headers, payload: raise.payload })
            .collect();
        batch.push(New { subject: cursor.clone(), headers: Headers::new(), payload: Bytes::from(value) });
        let model = self.up.commit(batch, Some(expect), 0);
        let model = model.map_err(|refused| match refused {
            Refused::WrongLastSequence => LinkError::CursorMoved,
            other => LinkError::Lost(format!("{other:?}")),
        });
        assert_eq!(real, model, "batch of {count} under {cursor} at {expect}");
        let real = link::cursor(&self.bus, STREAM_UP, &cursor).await.unwrap();
        let model = self.up.get(&cursor).map(|stored| (stored.sequence, stored.payload.to_vec()));
        assert_eq!(real, model, "cursor {cursor}");
    }

    async fn read(&mut self) {
        let filter = self.random.pick(&["ew.in.>", "ew.in.n1.events.>", "ew.in.*._cursor.*", "ew.in.x.>"]);
        let filter = filter.copied().unwrap();
        let from = self.random.below(self.up.last_sequence() + 3);
        let real = link::read(&self.bus, STREAM_UP, filter, from, 1 << 20).await.unwrap();
        let real: Vec<_> = real.into_iter().map(|s| (s.sequence, s.subject, s.headers, s.payload)).collect();
        let model: Vec<_> = self
            .up
            .read(filter, from)
            .take(link::BATCH_MESSAGES_MAX)
            .cloned()
            .map(|mut s| {
                s.headers.retain(|name, _| !name.starts_with("Nats-")); // as bus does
                (s.sequence, s.subject, s.headers, s.payload)
            })
            .collect();
        assert_eq!(real, model, "read of {filter} from {from}");
        // Bounded by bytes: the beginning of the same, and at least one.
        let few = link::read(&self.bus, STREAM_UP, filter, from, 100).await.unwrap();
        let few: Vec<u64> = few.into_iter().map(|s| s.sequence).collect();
        let all: Vec<u64> = model.iter().map(|s| s.0).collect();
        assert!(
            all.starts_with(&few) && few.is_empty() == all.is_empty(),
            "read of {filter} from {from}: {few:?}"
        );
    }

    async fn trim(&mut self) {
        let filter = self.random.pick(&["ew.in.n1.events.>", "ew.in.*.events.ew.evt.m.T1"]).copied().unwrap();
        let until = self.random.below(self.up.last_sequence() + 2);
        link::trim(&self.bus, STREAM_UP, Some(filter), until).await.unwrap();
        self.up.purge(filter, until);
    }

    async fn state(&mut self) {
        let real = link::state(&self.bus, STREAM_UP).await.unwrap();
        let model = (self.up.first_sequence(), self.up.last_sequence(), self.up.len());
        assert_eq!((real.first_sequence, real.last_sequence, real.messages), model, "state of UP");
        let last = Store::new(&self.bus, BUCKET_DESIRED).last_revision().await.unwrap();
        assert_eq!(last, self.desired.last_sequence());
        let info = api(&self.bus, "STREAM.INFO.SMALL", serde_json::json!({})).await;
        assert_eq!(info["state"]["bytes"].as_u64(), Some(self.small.size_bytes()), "size of SMALL");
    }

    async fn make_consumer(&mut self) {
        if self.random.per_mille(300) {
            let name = subject::desired_consumer(&self.node);
            api(&self.bus, &format!("CONSUMER.DELETE.KV_desired.{name}"), serde_json::json!({})).await;
            self.desired.remove_consumer(&name);
            self.unacked.clear();
        }
        link::ensure_consumer(&self.bus, &self.node).await.unwrap();
        self.desired.ensure_consumer(
            &subject::desired_consumer(&self.node),
            ConsumerConfig {
                filter: subject::kv(BUCKET_DESIRED, &subject::desired_filter(&self.node)),
                last_per_subject: true,
                ack_wait_ms: 30_000,
                pending_max: 1_000,
            },
        );
        self.made_consumer = true;
    }

    async fn pull(&mut self) {
        if !self.made_consumer {
            self.make_consumer().await;
        }
        // Until nothing comes: the server takes its own time to line up what was given back.
        let mut real = Vec::new();
        loop {
            let (pulled, _) = link::pull(&self.bus, &self.node, 1 << 20, PULL_WAIT, SOON).await.unwrap();
            if pulled.is_empty() {
                break;
            }
            real.extend(pulled);
        }
        let name = subject::desired_consumer(&self.node);
        let pulled = self.desired.pull(&name, link::PULL_MESSAGES_MAX, 1 << 20, 0);
        let mut model: Vec<_> = pulled
            .iter()
            .filter_map(|(sequence, _)| self.desired.at(*sequence))
            .map(|stored| (stored.sequence, stored.subject.clone(), stored.payload.len()))
            .collect();
        let mut seen: Vec<_> =
            real.iter().map(|p| (p.revision, subject::kv(BUCKET_DESIRED, &p.key), p.payload.len())).collect();
        if std::mem::take(&mut self.given_back) {
            seen.sort();
            model.sort();
        }
        assert_eq!(seen, model, "pull");
        self.unacked.extend(real.into_iter().map(|pulled| (pulled.revision, pulled.ack)));
    }

    /// Acknowledges some of what was pulled, and gives some of it back.
    async fn settle(&mut self) {
        let name = subject::desired_consumer(&self.node);
        for (revision, ack) in std::mem::take(&mut self.unacked) {
            let word = match self.random.below(3) {
                0 => "+ACK",
                1 => "-NAK",
                _ => {
                    self.unacked.push((revision, ack));
                    continue;
                }
            };
            // Confirmed, so that what is asked next comes after it.
            self.bus.client().request(ack, word.into()).await.unwrap();
            if word == "+ACK" {
                self.desired.ack(&name, revision);
            } else {
                self.given_back = true;
                self.desired.nak(&name, revision, 0, 0);
            }
        }
    }

    /// The small stream fills up: one by one, or in batches.
    async fn fill(&mut self) {
        if self.random.per_mille(250) {
            let until = self.random.below(self.small.last_sequence() + 1);
            link::trim(&self.bus, "SMALL", Some("small.>"), until).await.unwrap();
            self.small.purge("small.>", until);
        }
        let payload = Bytes::from(vec![b's'; usize::try_from(self.random.between(20, 400)).unwrap()]);
        if self.random.per_mille(500) {
            let mut headers = Headers::new();
            if self.random.per_mille(500) {
                headers.insert(MSG_ID.to_owned(), format!("id{}", self.random.below(8)));
            }
            let sent = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            let (sent, client) = (sent.collect(), self.bus.client());
            let answer = client.request_with_headers("small.one", sent, payload.clone()).await.unwrap();
            let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
            let new = New { subject: "small.one".into(), headers, payload };
            let model = self.small.publish(new, None, 0);
            assert_eq!(answer["error"].is_null(), model.is_ok(), "{answer} {model:?}");
            assert_eq!(answer["seq"].as_u64().filter(|seq| *seq > 0), model.ok(), "{answer}");
            return;
        }
        let expect = self.small.get("small.cursor").map_or(0, |stored| stored.sequence);
        let raise = Raise { subject: "small.two".into(), headers: Headers::new(), payload };
        let messages = vec![raise; usize::try_from(self.random.between(1, 4)).unwrap()];
        let at = Raise {
            subject: "small.cursor".into(),
            headers: Headers::new(),
            payload: Bytes::from_static(b"c"),
        };
        let real = link::commit(&self.bus, &messages, &at, expect, PATIENCE).await;
        let mut batch: Vec<New> = messages
            .into_iter()
            .map(|raise| New { subject: raise.subject, headers: raise.headers, payload: raise.payload })
            .collect();
        batch.push(New {
            subject: "small.cursor".into(),
            headers: Headers::new(),
            payload: Bytes::from_static(b"c"),
        });
        let model = self.small.commit(batch, Some(expect), 0);
        assert_eq!(real.is_ok(), model.is_ok(), "batch into the small stream: {real:?} {model:?}");
        assert_eq!(real.ok(), model.ok());
    }

    async fn step(&mut self) {
        self.step += 1;
        match self.random.below(100) {
            0..35 => self.write().await,
            35..42 => self.get().await,
            42..45 => self.list().await,
            45..60 => self.commit().await,
            60..68 => self.read().await,
            68..73 => self.trim().await,
            73..77 => self.state().await,
            77..80 => self.make_consumer().await,
            80..88 => self.pull().await,
            88..93 => self.settle().await,
            _ => self.fill().await,
        }
    }
}

fn entry(stored: &tests::sim::jetstream::Stored) -> Entry {
    tests::sim::server::entry(BUCKET_DESIRED, stored).unwrap()
}

#[tokio::test]
async fn the_model_answers_as_the_server_does() {
    let server = Server::start();
    let bus = server.connect().await;
    let one = std::env::var("EDGEWIRE_MODEL_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    for seed in one.map_or(0..PROGRAMS, |seed| seed..seed + 1) {
        let mut both = Both::new(&bus, seed).await;
        println!("EDGEWIRE_MODEL_SEED={seed}");
        for _ in 0..STEPS {
            both.step().await;
        }
    }
}

/// Two entries are written close together while a node waits for the first: neither may wait for the consumer's ack_wait,
/// and one that is larger than a step comes too.
#[tokio::test(flavor = "multi_thread")]
async fn a_pull_leaves_nothing_behind() {
    let server = Server::start();
    let (edge, hub) = (server.connect().await, server.connect().await);
    provision(&hub, Place::Hub).await.unwrap();
    let node = NodeName::new("n1").unwrap();
    link::ensure_consumer(&hub, &node).await.unwrap();
    for round in 0..40u32 {
        let store = Store::new(&hub, BUCKET_DESIRED);
        let keys = [format!("n1.pods.d.a{round}.u"), format!("n1.pods.d.b{round}.u")];
        let mut missing = keys.to_vec();
        let writer = tokio::spawn(async move {
            tokio::time::sleep(HEAD_START).await;
            let size = if round % 7 == 0 { 40_000 } else { 100 };
            for key in keys {
                store.put(&key, vec![1; size], Expect::Any).await.unwrap();
                tokio::time::sleep(CLOSE * (round % 20)).await;
            }
        });
        let all = async {
            while !missing.is_empty() {
                let (pulled, _) = link::pull(&edge, &node, 16 * 1024, SOON, SOON).await.unwrap();
                missing.retain(|key| pulled.iter().all(|entry| entry.key != *key));
                let acks: Vec<String> = pulled.into_iter().map(|entry| entry.ack).collect();
                link::acknowledge(&edge, &acks).await.unwrap();
            }
        };
        tokio::time::timeout(SOON, all)
            .await
            .unwrap_or_else(|_| panic!("round {round}: {SOON:?} were not enough"));
        writer.await.unwrap();
    }
}
