//! The supervised servers and the hub's identities against the real `nats-server`: what a node may do across the leaf,
//! revocation, users by reload, adoption, restart, and a store that cannot be read.
// These tests judge the servers from outside, with a raw client; and a test fails by a panic, also in its helpers.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, consumer, stream};
use async_nats::{Client, ConnectOptions, HeaderMap};
use bus::connection::{Bus, Login, dial};
use bus::identity::{HubKeys, Permissions, Tls};
use bus::module::{Account, EntryValue, Expect};
use bus::server::{HubLink, HubServer, LeafConfig, LeafServer, Phase, ServerStatus, User, Way};
use bus::store::{From, Seen, Store};
use futures::StreamExt;
use schemas::subject;

use support::{Ground, Hub, SOON, eventually, hub_config, kill, leaf, leaf_config, leaf_with, node};

/// How long an answer that must not come is waited for.
const NEVER: Duration = Duration::from_millis(600);

// --- who speaks, and who hears ---

async fn until(server: &LeafServer, what: &str, want: impl FnMut(&ServerStatus) -> bool) -> ServerStatus {
    let mut status = server.status();
    let found = tokio::time::timeout(SOON, status.wait_for(want)).await;
    found.unwrap_or_else(|_| panic!("not in time: {what}; {:?}", server.status().borrow())).unwrap().clone()
}

impl Hub {
    async fn client(&self, account: Account, name: &str, permissions: &Permissions) -> Client {
        let creds = self.keys.creds(account, name, permissions).unwrap();
        ConnectOptions::with_credentials(&creds)
            .unwrap()
            .custom_inbox_prefix(subject::module_inbox("hub", name))
            .add_root_certificates(self.tls.ca_file.clone())
            .connect(self.server.url())
            .await
            .unwrap()
    }
}

async fn try_login(server: &LeafServer, user: &User, inbox: &str) -> Option<Client> {
    ConnectOptions::with_user_and_password(user.name.clone(), user.password.clone())
        .custom_inbox_prefix(subject::inbox(inbox))
        .connect(server.url())
        .await
        .ok()
}

/// As a client should: a handshake that a reload of the server meets is refused once, though the user exists (measured).
async fn login(server: &LeafServer, user: &User, inbox: &str) -> Client {
    for _ in 0..20 {
        if let Some(client) = try_login(server, user, inbox).await {
            return client;
        }
    }
    panic!("{} cannot log in", user.name)
}

/// A client on the leaf with every local permission: what it cannot do is refused by the hub.
async fn on_leaf(server: &LeafServer, name: &str, account: Account, inbox: &str) -> Client {
    let user = User::new(name, account, Permissions::full());
    server.put_users(vec![user.clone()]).await.unwrap();
    login(server, &user, inbox).await
}

async fn ask(client: &Client, subject: impl Into<String>, body: &str) -> Option<async_nats::Message> {
    let request = client.request(subject.into(), body.to_owned().into());
    tokio::time::timeout(NEVER, request).await.ok()?.ok()
}

async fn ask_until(client: &Client, subject: &str, body: &str) -> async_nats::Message {
    let until = tokio::time::Instant::now() + SOON;
    loop {
        if let Some(answer) = ask(client, subject, body).await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < until, "no answer in time: {subject}");
    }
}

/// Does something published to `subject` by `from` reach `to`? `probe` proves that the path is up.
async fn crosses(from: &Client, to: &Client, subject: &str) -> bool {
    let mut heard = to.subscribe(subject.to_owned()).await.unwrap();
    to.flush().await.unwrap();
    let until = tokio::time::Instant::now() + NEVER;
    // Interest spreads in its own time: say it repeatedly.
    while tokio::time::Instant::now() < until {
        from.publish(subject.to_owned(), "x".into()).await.unwrap();
        if tokio::time::timeout(Duration::from_millis(50), heard.next()).await.is_ok_and(|m| m.is_some()) {
            return true;
        }
    }
    false
}

// --- what a node may do ---

#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_its_own_work_across_the_leaf_and_nothing_else() {
    let ground = Ground::new("allow");
    let hub = Hub::start(&ground).await;
    let full = Permissions::full();
    let admin = hub.client(Account::Control, "admin", &full).await;
    let js = jetstream::new(admin.clone());
    js.create_stream(stream::Config {
        name: "KV_desired".into(),
        subjects: vec!["$KV.desired.>".into()],
        allow_direct: true,
        ..Default::default()
    })
    .await
    .unwrap();
    js.create_stream(stream::Config {
        name: "UP".into(),
        subjects: vec!["ew.in.>".into()],
        allow_direct: true,
        allow_atomic_publish: true,
        allow_rollup: true,
        ..Default::default()
    })
    .await
    .unwrap();
    for n in ["n1", "n2"] {
        js.publish(format!("$KV.desired.{n}.pods.default.a.1"), format!("pod of {n}").into())
            .await
            .unwrap()
            .await
            .unwrap();
        let config = consumer::pull::Config {
            durable_name: Some(subject::desired_consumer(&node(n))),
            filter_subject: format!("$KV.desired.{n}.>"),
            ..Default::default()
        };
        js.get_stream("KV_desired").await.unwrap().create_consumer(config).await.unwrap();
        js.publish(format!("ew.in.{n}._cursor.events"), format!("cursor of {n}").into())
            .await
            .unwrap()
            .await
            .unwrap();
    }

    let (link, _) = hub.enrol("n1");
    let edge = leaf(&ground, "n1", Some(link)).await;
    let control = on_leaf(&edge, "sync", Account::Control, "n1").await;

    // Heartbeat: a request that a hub module with a prefixed inbox answers.
    // It has no right to publish at all: it may answer what it hears.
    let hear_only = Permissions { publish_allow: vec![], subscribe_allow: vec!["ew.hb.*".into()] };
    let nodes = hub.client(Account::Control, "nodes", &hear_only).await;
    let mut beats = nodes.subscribe("ew.hb.*").await.unwrap();
    let answering = nodes.clone();
    tokio::spawn(async move {
        while let Some(beat) = beats.next().await {
            answering.publish(beat.reply.unwrap(), "alive".into()).await.unwrap();
        }
    });
    assert_eq!(ask_until(&control, "ew.hb.n1", "").await.payload, "alive");
    assert!(ask(&control, "ew.hb.n2", "").await.is_none(), "a node spoke as another");

    // The hub asks the node: interest crosses in spite of request_isolation. The answer goes to one of the node's own
    // subjects: it may publish to no inbox.
    let mut commands = control.subscribe("ew.cmd.n1.>").await.unwrap();
    let mut foreign = control.subscribe("ew.cmd.n2.>").await.unwrap();
    let answering = control.clone();
    tokio::spawn(async move {
        while let Some(command) = commands.next().await {
            answering.publish(command.reply.unwrap(), "done".into()).await.unwrap();
        }
    });
    let mut answers = admin.subscribe("ew.str.n1.session").await.unwrap();
    let until = tokio::time::Instant::now() + SOON;
    let answer = loop {
        let (to, reply) = ("ew.cmd.n1.containers.logs", "ew.str.n1.session");
        admin.publish_with_reply(to, reply, "".into()).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_millis(200), answers.next()).await;
        // Until interest has spread the hub's own server answers: nobody hears it (an empty body with a status).
        if let Some(answer) = answer.ok().flatten().filter(|answer| answer.status.is_none()) {
            break answer;
        }
        assert!(tokio::time::Instant::now() < until, "no answer from the node");
    };
    assert_eq!(answer.payload, "done");
    assert!(ask(&admin, "ew.cmd.n1.containers.logs", "").await.is_none(), "a node wrote to the hub's inbox");
    assert!(ask(&admin, "ew.cmd.n2.containers.logs", "").await.is_none());
    assert!(tokio::time::timeout(NEVER, foreign.next()).await.is_err(), "a node heard another's commands");

    assert!(
        !crosses(&nodes, &control, "ew.cmd.n1.containers.stop").await,
        "a module without the right commanded"
    );
    assert!(!crosses(&control, &admin, "_INBOX.n2.guess").await, "a node answered another node's requests");

    // Desired state: pull and acknowledge its own, with its own consumer.
    let pull = |n: &str| format!("$JS.hub.API.CONSUMER.MSG.NEXT.KV_desired.node_{n}");
    let inbox = control.new_inbox();
    let mut pulled = control.subscribe(inbox.clone()).await.unwrap();
    let body = r#"{"batch":1,"expires":10000000000,"max_bytes":16000}"#;
    control.publish_with_reply(pull("n1"), inbox, body.into()).await.unwrap();
    let got = tokio::time::timeout(SOON, pulled.next()).await.unwrap().unwrap();
    assert_eq!(
        (got.subject.as_str(), &got.payload[..]),
        ("$KV.desired.n1.pods.default.a.1", &b"pod of n1"[..])
    );
    let ack = got.reply.unwrap();
    assert!(
        ask(&control, ack.to_string(), "+ACK").await.is_some(),
        "acknowledgement {ack} was not confirmed"
    );
    let stream = js.get_stream("KV_desired").await.unwrap();
    let info = stream.get_consumer::<consumer::pull::Config>("node_n1").await.unwrap().cached_info().clone();
    assert_eq!((info.num_ack_pending, info.ack_floor.stream_sequence), (0, 1));
    assert!(
        ask(&control, pull("n2"), r#"{"batch":1,"no_wait":true}"#).await.is_none(),
        "a node pulled another's"
    );

    // An atomic batch that ends with the cursor, under compare-and-set.
    let cursor = "ew.in.n1._cursor.state";
    let read_cursor = format!("$JS.hub.API.DIRECT.GET.UP.{cursor}");
    assert_eq!(ask(&control, read_cursor.clone(), "").await.unwrap().status.unwrap().as_u16(), 404);
    let committed = batch(&control, "b1", cursor, 0).await;
    assert!(committed.get("error").is_none(), "{committed}");
    let read = ask(&control, read_cursor.clone(), "").await.unwrap();
    assert_eq!(read.payload, "cursor b1");
    let refused = batch(&control, "b2", cursor, 0).await;
    assert!(refused.get("error").is_some(), "a cursor went back: {refused}");
    let at: u64 = read.headers.unwrap().get("Nats-Sequence").unwrap().as_str().parse().unwrap();
    assert!(batch(&control, "b3", cursor, at).await.get("error").is_none());

    // What is another's, or would open another's.
    for (subject, body) in [
        ("$JS.hub.API.DIRECT.GET.UP.ew.in.n2._cursor.events", ""),
        ("$JS.hub.API.DIRECT.GET.UP", r#"{"last_by_subj":"ew.in.n2._cursor.events"}"#),
        ("$JS.hub.API.DIRECT.GET.KV_desired", r#"{"last_by_subj":"$KV.desired.n2.pods.default.a.1"}"#),
        ("$JS.hub.API.DIRECT.GET.KV_desired.$KV.desired.n2.pods.default.a.1", ""),
        ("$JS.hub.API.STREAM.MSG.GET.KV_desired", r#"{"seq":1}"#),
        ("$JS.hub.API.STREAM.INFO.KV_desired", ""),
        ("$JS.hub.API.STREAM.NAMES", ""),
        ("$JS.hub.API.STREAM.DELETE.KV_desired", ""),
        ("$JS.hub.API.CONSUMER.CREATE.KV_desired", r#"{"stream_name":"KV_desired","config":{}}"#),
        ("$JS.hub.API.CONSUMER.CREATE.KV_desired.x", r#"{"stream_name":"KV_desired","config":{"name":"x"}}"#),
        ("$JS.hub.API.CONSUMER.DURABLE.CREATE.KV_desired.x", "{}"),
        ("$JS.hub.API.CONSUMER.DELETE.KV_desired.node_n1", ""),
        ("$JS.hub.API.CONSUMER.INFO.KV_desired.node_n1", ""),
        ("ew.in.n2.state.ew.rep.x.y.z", "x"),
        ("$KV.desired.n1.pods.default.b.2", "x"),
    ] {
        assert!(ask(&control, subject, body).await.is_none(), "a node reached {subject}");
    }
    hub.server.stop().await.unwrap();
    edge.stop().await.unwrap();
}

/// The server does not look at the reply subject that somebody names, so what it answers a node must have nowhere to go.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_hub_answers_a_node_gets_nowhere_that_the_node_may_not_write() {
    let ground = Ground::new("answers");
    let hub = Hub::start(&ground).await;
    let admin = hub.client(Account::Control, "admin", &Permissions::full()).await;
    let js = jetstream::new(admin.clone());
    for (name, subjects) in [
        ("UP", vec!["ew.in.>"]),
        ("KV_objects", vec!["$KV.objects.>"]),
        ("KV_desired", vec!["$KV.desired.>"]),
        ("AUDIT", vec!["ew.audit.>"]),
        (subject::STREAM_FROM, vec!["from.>", "_cursor.>"]),
    ] {
        let subjects = subjects.into_iter().map(str::to_owned).collect();
        let config =
            stream::Config { name: name.to_owned(), subjects, allow_direct: true, ..Default::default() };
        js.create_stream(config).await.unwrap();
    }
    let other_lane = subject::cursor(&node("n2"), subject::Lane::Workload);
    let kept = ["$KV.objects.a", "ew.in.n2._cursor.state", "ew.audit.done.x", other_lane.as_str()];
    for subject in kept.into_iter().chain(["$KV.desired.n1.a"]) {
        js.publish(subject.to_owned(), "kept".into()).await.unwrap().await.unwrap();
    }
    let stream = js.get_stream("KV_desired").await.unwrap();
    let config = consumer::pull::Config {
        durable_name: Some(subject::desired_consumer(&node("n1"))),
        ..Default::default()
    };
    stream.create_consumer(config).await.unwrap();
    let mut beats = admin.subscribe("ew.hb.*").await.unwrap();
    let answering = admin.clone();
    tokio::spawn(async move {
        while let Some(beat) = beats.next().await {
            answering.publish(beat.reply.unwrap(), "of a module".into()).await.unwrap();
        }
    });

    let taken = leaf(&ground, "n1", Some(hub.enrol("n1").0)).await;
    let other = leaf(&ground, "n2", Some(hub.enrol("n2").0)).await;
    let control = on_leaf(&taken, "taken-control", Account::Control, "n1").await;
    let work = on_leaf(&taken, "taken-work", Account::Work, "n1").await;
    let mut told =
        on_leaf(&other, "other", Account::Control, "n2").await.subscribe("ew.cmd.n2.>").await.unwrap();
    // What it says itself may be anything.
    ask_until(&control, "ew.in.n1._cursor.state", "forged").await;
    ask_until(&work, "from.n1.default.x", "forged").await;
    let lane = subject::cursor(&node("n1"), subject::Lane::Workload);
    ask_until(&work, &lane, "forged").await;

    let read_control = "$JS.hub.API.DIRECT.GET.UP.ew.in.n1._cursor.state";
    let read_work = format!("$JS.hub.API.DIRECT.GET.FROM.{lane}");
    let pull = "$JS.hub.API.CONSUMER.MSG.NEXT.KV_desired.node_n1";
    let to = kept.into_iter().chain([
        "$JS.API.STREAM.DELETE.KV_objects",
        "$JS.hub.API.STREAM.PURGE.AUDIT",
        "ew.cmd.n2.containers.exec",
    ]);
    for to in to {
        for (client, subject, body) in [
            (&control, "ew.in.n1.state.ew.rep.x.y.z", "forged"),
            (&control, read_control, ""),
            // The same without the server's headers: all of it is the node's own word.
            (&control, read_control, r#"{"no_hdr":true}"#),
            (&control, pull, r#"{"batch":1,"no_wait":true}"#),
            (&control, "ew.hb.n1", ""),
            (&work, "from.n1.default.x", "forged"),
            (&work, read_work.as_str(), r#"{"no_hdr":true}"#),
        ] {
            client.publish_with_reply(subject.to_owned(), to.to_owned(), body.into()).await.unwrap();
        }
    }
    // Both links have taken all of it when the answer to the last comes.
    ask_until(&control, "ew.in.n1._cursor.state", "last").await;
    ask_until(&work, &lane, "last").await;
    ask_until(&control, "ew.hb.n1", "").await;
    for subject in kept {
        for name in ["UP", "KV_objects", "AUDIT", subject::STREAM_FROM] {
            let stream = js.get_stream(name).await.unwrap_or_else(|error| panic!("{name}: {error}"));
            if let Ok(message) = stream.get_last_raw_message_by_subject(subject).await {
                assert_eq!(message.payload, "kept", "{subject}");
            }
        }
    }
    // The other node hears what it is told by nobody, and can tell: the hub's commands have a reply subject.
    let mut heard = 0;
    while let Ok(Some(message)) = tokio::time::timeout(NEVER, told.next()).await {
        let reply = message.reply.as_deref().unwrap_or_default();
        assert!(reply.is_empty() || reply.starts_with("$JS.ACK."), "{message:?}");
        heard += 1;
    }
    assert!(heard > 0, "the server was not made to say anything: what was tried was not tried");
    for server in [taken, other] {
        server.stop().await.unwrap();
    }
    hub.server.stop().await.unwrap();
}

/// Publishes one message and the cursor as an atomic batch; the answer to the commit.
async fn batch(client: &Client, id: &str, cursor: &str, expect: u64) -> serde_json::Value {
    batch_of(client, id, "ew.in.n1.state.ew.rep.containers.pod.a", cursor, expect).await
}

async fn batch_of(client: &Client, id: &str, subject: &str, cursor: &str, expect: u64) -> serde_json::Value {
    let headers = |sequence: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Batch-Id", id);
        headers.insert("Nats-Batch-Sequence", sequence);
        headers
    };
    client.publish_with_headers(subject.to_owned(), headers("1"), "report".into()).await.unwrap();
    let mut last = headers("2");
    last.insert("Nats-Batch-Commit", "1");
    last.insert("Nats-Rollup", "sub");
    last.insert("Nats-Expected-Last-Subject-Sequence", expect.to_string().as_str());
    let answer =
        client.request_with_headers(cursor.to_owned(), last, format!("cursor {id}").into()).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn workloads_of_two_nodes_hear_each_other_on_app_alone() {
    let ground = Ground::new("work");
    let hub = Hub::start(&ground).await;
    let first = leaf(&ground, "n1", Some(hub.enrol("n1").0)).await;
    let second = leaf(&ground, "n2", Some(hub.enrol("n2").0)).await;
    let (a, b) = (
        on_leaf(&first, "pod-a", Account::Work, "n1").await,
        on_leaf(&second, "pod-b", Account::Work, "n2").await,
    );
    let at_hub = hub.client(Account::Work, "tail", &Permissions::full()).await;

    eventually("app.> crosses between nodes", || crosses(&a, &b, "app.default.temp")).await;
    assert!(crosses(&b, &a, "app.default.temp").await);
    assert!(crosses(&a, &at_hub, "app.default.temp").await);
    assert!(crosses(&at_hub, &b, "app.default.temp").await);
    assert!(crosses(&a, &at_hub, "from.n1.default.temp").await);
    let stay = [
        "local.default.x",
        "up.default.x",
        "down.x",
        "other",
        "$KV.x.y",
        "_INBOX.hub.x",
        "_INBOX.x",
        "from.n2.a",
    ];
    let checks = stay.map(|subject| {
        let (a, b, at_hub) = (&a, &b, &at_hub);
        async move {
            assert!(!crosses(a, b, subject).await, "{subject} crossed between nodes");
            assert!(!crosses(a, at_hub, subject).await, "{subject} reached the hub");
            assert!(!crosses(at_hub, a, subject).await, "{subject} came from the hub");
        }
    });
    futures::future::join_all(checks).await;
    // What is stored below `up.` crosses by its own name at the hub, with its cursor.
    let js = jetstream::new(hub.client(Account::Control, "streams", &Permissions::full()).await);
    js.create_stream(stream::Config {
        name: subject::STREAM_FROM.into(),
        subjects: vec!["_cursor.>".into(), "from.>".into()],
        allow_direct: true,
        allow_atomic_publish: true,
        allow_rollup: true,
        ..Default::default()
    })
    .await
    .unwrap();
    // The node's server learns of a new stream's subjects in their order, and a little later than its maker.
    eventually("the node knows of the stream", || async { ask(&a, "from.n1.probe", "").await.is_some() })
        .await;
    let cursor = subject::cursor(&node("n1"), subject::Lane::Workload);
    let committed = batch_of(&a, "w1", "from.n1.default.temp", &cursor, 0).await;
    assert!(committed.get("error").is_none(), "{committed}");
    let read = ask(&a, format!("$JS.hub.API.DIRECT.GET.FROM.{cursor}"), "").await.unwrap();
    assert_eq!(read.payload, "cursor w1");
    let other = subject::cursor(&node("n2"), subject::Lane::Workload);
    assert!(ask(&a, format!("$JS.hub.API.DIRECT.GET.FROM.{other}"), "").await.is_none());
    assert!(ask(&a, other, "x").await.is_none(), "a node wrote another's cursor");

    // A request from one node is answered on the other.
    let mut asked = b.subscribe("app.default.ask").await.unwrap();
    let answering = b.clone();
    tokio::spawn(async move {
        while let Some(request) = asked.next().await {
            answering.publish(request.reply.unwrap(), "from b".into()).await.unwrap();
        }
    });
    // Only with an inbox below `app.>`: others do not cross.
    assert!(ask(&a, "app.default.ask", "").await.is_none());
    let asker = on_leaf(&first, "asker", Account::Work, "n1").await;
    let mut inbox = asker.subscribe("app.default._INBOX.1").await.unwrap();
    asker.publish_with_reply("app.default.ask", "app.default._INBOX.1", "".into()).await.unwrap();
    assert_eq!(tokio::time::timeout(SOON, inbox.next()).await.unwrap().unwrap().payload, "from b");
    for server in [first, second] {
        server.stop().await.unwrap();
    }
    hub.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_out_at_once_and_stays_out() {
    let ground = Ground::new("revoke");
    let hub = Hub::start(&ground).await;
    let (link, key) = hub.enrol("n1");
    let edge = leaf(&ground, "n1", Some(link)).await;
    let admin = hub.client(Account::Control, "admin", &Permissions::full()).await;
    let control = on_leaf(&edge, "sync", Account::Control, "n1").await;
    eventually("the link is up", || crosses(&control, &admin, "ew.hb.n1")).await;

    // Local users come and go: the link stays.
    edge.put_users(vec![User::new("pod", Account::Work, Permissions::full())]).await.unwrap();
    edge.remove_users(&["pod".to_owned()]).await.unwrap();
    let log = std::fs::read_to_string(ground.dir("n1").join("nats-server.log")).unwrap();
    assert!(log.contains("Reloaded") && !log.contains("Leafnode connection closed"), "{log}");

    // A link can be rebuilt: dropped by us, made anew by the server.
    let ids = || async {
        let mut ids: Vec<_> = edge.links().await.unwrap().into_iter().map(|l| (l.account, l.id)).collect();
        ids.sort();
        ids
    };
    let before = ids().await;
    assert_eq!(before.iter().map(|(account, _)| account.as_str()).collect::<Vec<_>>(), ["CONTROL", "WORK"]);
    edge.rebuild_links().await.unwrap();
    eventually("both links are new", || async {
        let now = ids().await;
        now.len() == 2 && now.iter().all(|link| !before.contains(link))
    })
    .await;
    eventually("the link is up again", || crosses(&control, &admin, "ew.hb.n1")).await;

    hub.server.revoke(Account::Control, &key).await.unwrap();
    eventually("the revoked node is out", || async { !crosses(&control, &admin, "ew.hb.n1").await }).await;
    assert!(!crosses(&control, &admin, "ew.hb.n1").await, "it came back");
    edge.stop().await.unwrap();
    hub.server.stop().await.unwrap();

    // Keys, tokens and revocations are on disk, for their owner alone.
    let keys = HubKeys::load_or_create(&ground.dir("keys")).unwrap();
    assert_eq!(keys.accounts(), hub.keys.accounts());
    for entry in std::fs::read_dir(ground.dir("keys")).unwrap() {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o077, 0);
    }
    std::fs::remove_file(ground.dir("keys").join("operator.nk")).unwrap();
    let lost = HubKeys::load_or_create(&ground.dir("keys")).unwrap_err().to_string();
    assert!(lost.contains("EW-IDENTITY-KEY") && lost.contains("operator.nk"), "{lost}");
}

// --- the supervisor ---

/// Passes connections on to an address until it is dropped, and all of them with it.
struct Relay(SocketAddr, tokio::task::JoinHandle<()>);

impl Relay {
    async fn to(url: &str) -> Self {
        let to = url.split_once("://").unwrap().1.to_owned();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut passing = tokio::task::JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let to = to.clone();
                passing.spawn(async move {
                    let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await; // either end may close
                });
            }
        });
        Self(address, task)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.1.abort();
    }
}

/// Where the links go, one for each account.
async fn linked_to(edge: &LeafServer) -> Vec<u16> {
    edge.links().await.unwrap_or_default().into_iter().map(|link| link.port).collect()
}

fn port_of(url: &str) -> u16 {
    url.rsplit_once(':').unwrap().1.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_addresses_one_that_dies_is_left_for_another() {
    let ground = Ground::new("addresses");
    let hub = Hub::start(&ground).await;
    let mut relays = [Relay::to(&hub.leaf_url()).await, Relay::to(&hub.leaf_url()).await].map(Some);
    let (mut link, _) = hub.enrol("n1");
    link.urls = relays.iter().flatten().map(|relay| format!("tls://{}", relay.0)).collect();
    link.urls.push("tls://127.0.0.1:1".to_owned()); // nobody is there
    let edge = leaf(&ground, "n1", Some(link)).await;
    eventually("both links stand", || async { linked_to(&edge).await.len() == 2 }).await;
    let used = linked_to(&edge).await;
    assert_eq!(used[0], used[1], "both go to the same");
    for relay in &mut relays {
        relay.take_if(|relay| relay.0.port() == used[0]);
    }
    let left = relays.iter().flatten().next().unwrap().0.port();
    eventually("both links go to the other", || async { linked_to(&edge).await == [left, left] }).await;
    edge.stop().await.unwrap();
    hub.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_goes_another_way_and_no_client_notices() {
    let ground = Ground::new("ways");
    let hub = Hub::start(&ground).await;
    let (mut link, key) = hub.enrol("n1");
    link.urls.push(hub.wss_url());
    let other_ca = Tls::load_or_create(&ground.dir("other"), &["hub.test".into()]).unwrap().ca_file;
    assert_eq!(link.open().await, [Way::Tls, Way::Wss]);
    let stranger = HubLink { ca_file: other_ca, ..link.clone() };
    assert_eq!(stranger.open().await, [], "somebody answers, but not the hub");
    let one = HubLink { urls: vec!["tls://127.0.0.1:1".into(), hub.wss_url()], ..link.clone() };
    assert_eq!(one.open().await, [Way::Wss]);

    let config = leaf_config(&ground, "n1", Some(link));
    let edge = leaf_with(&config).await;
    let admin = hub.client(Account::Control, "admin", &Permissions::full()).await;
    let control = on_leaf(&edge, "sync", Account::Control, "n1").await;
    let (tls, wss) = (port_of(&hub.leaf_url()), port_of(&hub.wss_url()));
    eventually("the better way first", || async { linked_to(&edge).await == [tls, tls] }).await;
    for (way, port) in [(Way::Wss, wss), (Way::Tls, tls), (Way::Wss, wss)] {
        edge.set_way(way).await.unwrap();
        eventually("the link goes there", || async { linked_to(&edge).await == [port, port] }).await;
        eventually("and carries", || crosses(&control, &admin, "ew.hb.n1")).await;
    }
    assert_eq!(
        control.statistics().connects.load(std::sync::atomic::Ordering::Relaxed),
        1,
        "a client noticed"
    );
    let facts = edge.look(true).await.unwrap();
    assert_eq!((facts.linked, facts.way, facts.ways.len()), (true, Some(Way::Wss), 2));
    assert!(facts.moved_bytes.is_some_and(|bytes| bytes > 0), "{facts:?}");

    // The next life finds it as it is, whichever way it began.
    let pid = edge.status().borrow().pid;
    edge.leave_running().await.unwrap();
    let edge = leaf_with(&config).await;
    assert_eq!((edge.status().borrow().pid, linked_to(&edge).await), (pid, vec![wss, wss]));
    // Revoked over this way too.
    hub.server.revoke(Account::Control, &key).await.unwrap();
    eventually("the revoked node is out", || async { !crosses(&control, &admin, "ew.hb.n1").await }).await;
    eventually("it says why", || async {
        edge.look(false).await.is_some_and(|facts| facts.refusal.is_some())
    })
    .await;
    edge.stop().await.unwrap();
    hub.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_link_is_told_at_once_and_a_client_that_leaves_is_not() {
    let ground = Ground::new("unlinked");
    let hub = Hub::start(&ground).await;
    let edge = leaf(&ground, "n1", Some(hub.enrol("n1").0)).await;
    let linked = async || linked_to(&edge).await.len() == 2;
    let both = || futures::future::join(edge.link_lost(Account::Control), edge.link_lost(Account::Work));
    // It listens from a moment after its start on; a link that is dropped shows that it does.
    let listens = async || {
        let lost = both();
        edge.rebuild_links().await.is_ok() && tokio::time::timeout(NEVER, lost).await.is_ok()
    };
    eventually("both links stand", linked).await;
    eventually("it listens", listens).await;
    eventually("both links are back", linked).await;

    let lost = [Account::Control, Account::Work].map(|account| edge.link_lost(account));
    let mut first = futures::future::select_all(lost.map(Box::pin));
    for account in [Account::Control, Account::Work] {
        let judge = edge.sys_client().await.unwrap();
        let mut left =
            judge.subscribe(format!("$SYS.ACCOUNT.{}.DISCONNECT", account.as_str())).await.unwrap();
        judge.flush().await.unwrap();
        drop(on_leaf(&edge, "passer-by", account, "n1").await);
        let told =
            tokio::time::timeout(SOON, left.next()).await.expect("the server tells of a client that left");
        assert!(told.is_some());
    }
    assert!(tokio::time::timeout(NEVER, &mut first).await.is_err(), "a client is no link");
    let lost = both();
    kill(&hub.server.status().borrow());
    tokio::time::timeout(SOON, lost).await.expect("told that the hub's server fell");
    eventually("the links are back with the hub", linked).await;

    // The next life of the node's own server is listened to as well.
    kill(&edge.status().borrow());
    until(&edge, "restarted", |s| s.restarts == 1 && s.phase == Phase::Ready).await;
    eventually("both links stand again", linked).await;
    eventually("it listens again", listens).await;
    eventually("both links are back again", linked).await;
    let lost = both();
    kill(&hub.server.status().borrow());
    tokio::time::timeout(SOON, lost).await.expect("told again");

    eventually("the links are back with the hub once more", linked).await;

    // The listening ends with its owner; an end is no broken link.
    let unheard = both();
    drop(edge);
    hub.server.stop().await.unwrap();
    assert!(tokio::time::timeout(NEVER, unheard).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn users_come_and_go_without_dropping_the_others_and_survive() {
    let ground = Ground::new("users");
    let config = leaf_config(&ground, "n1", None);
    let edge = LeafServer::start(config.clone()).await.unwrap();
    edge.ready(SOON).await.unwrap();
    let pods: Vec<User> = (0..20)
        .map(|i| {
            let own = vec![format!("app.ns{i}.>")];
            let permissions = Permissions { publish_allow: own.clone(), subscribe_allow: own };
            User::new(format!("pod-{i}"), Account::Work, permissions)
        })
        .collect();
    // All at once: coalesced, and every one in force when its own call returns.
    let logins = pods.iter().map(|pod| async {
        edge.put_users(vec![pod.clone()]).await.unwrap();
        login(&edge, pod, "x").await
    });
    let clients = futures::future::join_all(logins).await;
    let log = std::fs::read_to_string(ground.dir("n1").join("nats-server.log")).unwrap();
    let reloads = log.matches("Reloaded server configuration").count();
    assert!((1..20).contains(&reloads), "{reloads} reloads for 20 users");

    assert!(crosses(&clients[0], &clients[0], "app.ns0.x").await);
    // From here on: a handshake that met one of the reloads above may have been refused once.
    let connects = || clients[0].statistics().connects.load(std::sync::atomic::Ordering::Relaxed);
    let before = connects();
    let (heard, spoken) = ("app.ns1.x", &clients[0]);
    assert!(!crosses(spoken, &clients[1], heard).await, "a pod spoke in another's namespace");

    // Asked for again, they stand as they are; only what changed is made anew.
    let again = |pod: &User| (pod.name.clone(), pod.account, pod.permissions.clone());
    let mut wanted: Vec<_> = pods.iter().take(2).map(again).collect();
    wanted.push(("pod-2".to_owned(), Account::Work, Permissions::full()));
    let ensured = edge.ensure_users(wanted).await.unwrap();
    assert_eq!(ensured[..2], pods[..2]);
    assert_ne!(ensured[2].password, pods[2].password);

    edge.remove_users(&["pod-1".to_owned()]).await.unwrap();
    eventually("the removed user is out", || async {
        clients[1].connection_state() != async_nats::connection::State::Connected
    })
    .await;
    assert!(try_login(&edge, &pods[1], "x").await.is_none());
    assert!(crosses(&clients[0], &clients[0], "app.ns0.x").await);
    assert_eq!(connects(), before, "an untouched user was dropped");

    // A reboot: no server, no supervisor; credentials still hold.
    edge.stop().await.unwrap();
    let edge = LeafServer::start(config).await.unwrap();
    edge.ready(SOON).await.unwrap();
    assert_eq!(edge.user("pod-0").await.as_ref(), Some(&pods[0]));
    assert!(try_login(&edge, &pods[0], "x").await.is_some());
    assert!(try_login(&edge, &pods[1], "x").await.is_none());
    edge.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_message_is_read_is_what_the_server_says_not_its_sender() {
    let ground = Ground::new("headers");
    let edge = leaf(&ground, "n1", None).await;
    let user = User::new("sync", Account::Work, Permissions::full());
    edge.put_users(vec![user.clone()]).await.unwrap();
    let login = Login::Password { user: user.name, password: user.password };
    let bus = dial(edge.url(), None, login, "sync", "_INBOX.n1.sync".into(), Account::Work, "edge-n1")
        .await
        .unwrap();
    let js = jetstream::new(bus.client().clone());
    let uplink = stream::Config {
        name: "UPLINK".into(),
        subjects: vec!["up.>".into()],
        allow_direct: true,
        ..Default::default()
    };
    js.create_stream(uplink).await.unwrap();
    for n in 1..=3 {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Sequence", "77");
        headers.insert("Nats-Subject", "up.other.forged");
        headers.insert("Nats-Num-Pending", "0");
        headers.insert("Nats-Stream", "OTHER");
        js.publish_with_headers(format!("up.demo.{n}"), headers, "x".into()).await.unwrap().await.unwrap();
    }
    let read = bus::link::read(&bus, "UPLINK", "up.>", 1, 1 << 20).await.unwrap();
    let found: Vec<_> = read.iter().map(|stored| (stored.sequence, stored.subject.as_str())).collect();
    assert_eq!(found, [(1, "up.demo.1"), (2, "up.demo.2"), (3, "up.demo.3")]);
    assert!(read.iter().all(|stored| stored.headers.is_empty()));
    edge.stop().await.unwrap();
}

/// To be heard by oneself, with a reply subject of one's choice, must give no right to publish there.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_asks_itself_may_say_no_more_than_before() {
    let ground = Ground::new("itself");
    let edge = leaf(&ground, "n1", None).await;
    let judge = on_leaf(&edge, "judge", Account::Work, "judge").await;
    let js = jetstream::new(judge.clone());
    let uplink =
        stream::Config { name: "UPLINK".into(), subjects: vec!["up.>".into()], ..Default::default() };
    js.create_stream(uplink).await.unwrap();
    let mut elsewhere = judge.subscribe("app.other.>").await.unwrap();
    judge.flush().await.unwrap();
    let own = Permissions {
        publish_allow: vec!["app.demo.>".into()],
        subscribe_allow: vec!["app.demo.>".into(), "_INBOX.pod.>".into()],
    };
    let pod = User::new("pod", Account::Work, own);
    edge.put_users(vec![pod.clone()]).await.unwrap();
    let pod = login(&edge, &pod, "pod").await;
    let mut heard = pod.subscribe("app.demo.itself").await.unwrap();
    for (reply, body) in [
        ("$JS.API.STREAM.CREATE.MINE", r#"{"name":"MINE","subjects":["app.>"]}"#),
        ("$JS.API.STREAM.DELETE.UPLINK", ""),
        ("app.other.x", "x"),
    ] {
        pod.publish_with_reply("app.demo.itself", reply, "".into()).await.unwrap();
        let asked = tokio::time::timeout(SOON, heard.next()).await.unwrap().unwrap();
        pod.publish(asked.reply.unwrap(), body.to_owned().into()).await.unwrap();
    }
    // Who answers another is heard; by then all of it was dealt with.
    let answering = pod.clone();
    tokio::spawn(async move {
        while let Some(asked) = heard.next().await {
            answering.publish(asked.reply.unwrap(), "answered".into()).await.unwrap();
        }
    });
    assert_eq!(ask_until(&judge, "app.demo.itself", "").await.payload, "answered");
    let names: Vec<String> = futures::TryStreamExt::try_collect(js.stream_names()).await.unwrap();
    assert_eq!(names, ["UPLINK"]);
    assert!(tokio::time::timeout(NEVER, elsewhere.next()).await.is_err(), "it spoke in another namespace");
    edge.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_outlives_us_and_is_adopted_and_restarted() {
    let ground = Ground::new("adopt");
    let hub = Hub::start(&ground).await;
    let mut config = leaf_config(&ground, "n1", None);
    let edge = LeafServer::start(config.clone()).await.unwrap();
    edge.ready(SOON).await.unwrap();
    let user = User::new("pod", Account::Work, Permissions::full());
    edge.put_users(vec![user.clone()]).await.unwrap();
    let client = try_login(&edge, &user, "x").await.unwrap();
    let pid = edge.status().borrow().pid;
    drop(edge); // as a kill -9 of us leaves it

    let edge = LeafServer::start(config.clone()).await.unwrap();
    let status = until(&edge, "adopted", |s| s.phase == Phase::Ready).await;
    assert_eq!((status.pid, status.adopted), (pid, true));
    assert!(crosses(&client, &client, "app.x.y").await);
    assert_eq!(client.statistics().connects.load(std::sync::atomic::Ordering::Relaxed), 1);

    // It dies: another comes, with the users.
    kill(&status);
    let status = until(&edge, "restarted", |s| s.restarts == 1 && s.phase == Phase::Ready).await;
    assert!(!status.adopted && status.pid != pid);
    assert!(try_login(&edge, &user, "x").await.is_some());
    kill(&status);
    until(&edge, "restarted again", |s| s.restarts == 2 && s.phase == Phase::Ready).await;

    // It joins: another configuration, another process, the same users.
    edge.set_hub(Some(hub.enrol("n1").0)).await.unwrap();
    let control = on_leaf(&edge, "sync", Account::Control, "n1").await;
    let admin = hub.client(Account::Control, "admin", &Permissions::full()).await;
    eventually("the link is up", || crosses(&control, &admin, "ew.hb.n1")).await;
    assert!(try_login(&edge, &user, "x").await.is_some());
    let joined = edge.status().borrow().pid;

    // A record that was lost (we died between start and writing it): found all the same, and replaced.
    drop(edge);
    config.hub = Some(hub.enrol("n1").0);
    std::fs::remove_file(ground.dir("n1").join("nats-server.json")).unwrap();
    let edge = LeafServer::start(config.clone()).await.unwrap();
    let status = until(&edge, "replaced", |s| s.phase == Phase::Ready).await;
    assert!(!status.adopted && status.pid != joined);

    edge.leave_running().await.unwrap();
    assert_eq!(edge.status().borrow().phase, Phase::Stopped);
    assert!(try_login(&edge, &user, "x").await.is_some());
    let other =
        LeafServer::start(LeafConfig { node: node("n2"), data_dir: ground.dir("n2"), ..config.clone() })
            .await;
    assert_eq!(other.unwrap_err().code(), "EW-PORT-IN-USE");
    let edge = LeafServer::start(config).await.unwrap();
    edge.ready(SOON).await.unwrap();
    edge.stop().await.unwrap();
    assert!(try_login(&edge, &user, "x").await.is_none());
    hub.server.stop().await.unwrap();
}

/// A connection of ours to the server of node `n1`.
async fn judge_of(edge: &LeafServer) -> Bus {
    let user = User::new("judge", Account::Control, Permissions::full());
    edge.put_users(vec![user.clone()]).await.unwrap();
    let login = Login::Password { user: user.name.clone(), password: user.password.clone() };
    let domain = subject::domain_edge(&node("n1"));
    dial(edge.url(), None, login, "judge", "_INBOX.judge".into(), Account::Control, &domain).await.unwrap()
}

/// The bucket `local`.
async fn bucket(bus: &Bus) {
    let js = jetstream::with_domain(bus.client().clone(), subject::domain_edge(&node("n1")));
    let config = jetstream::kv::Config { bucket: "local".into(), ..Default::default() };
    js.create_key_value(config).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_as_soon_as_its_server_is_back() {
    let ground = Ground::new("watch");
    let edge = leaf(&ground, "n1", None).await;
    let bus = judge_of(&edge).await;
    bucket(&bus).await;
    let store = Store::new(&bus, "local");
    let (tell, mut seen) = tokio::sync::mpsc::channel(8);
    let watching = tokio::spawn({
        let store = store.clone();
        async move { store.watch(">", From::All, tell).await }
    });
    assert_eq!(seen.recv().await, Some(Seen::Current));
    for round in 1..=2 {
        kill(&edge.status().borrow());
        until(&edge, "restarted", |s| s.restarts == round && s.phase == Phase::Ready).await;
        let written = Instant::now();
        eventually("it can be written again", || async {
            store.put("k", round.to_string().into(), Expect::Any).await.is_ok()
        })
        .await;
        let Some(Seen::Entry(entry)) = seen.recv().await else { panic!("no entry") };
        assert_eq!(entry.value, EntryValue::Put(round.to_string().into()));
        // Without a look at the connection it takes the client 15 s to miss the consumer.
        assert!(written.elapsed() < Duration::from_secs(8), "{:?}", written.elapsed());
        while let Ok(again) = seen.try_recv() {
            assert!(matches!(again, Seen::Entry(_)), "{again:?}");
        }
    }
    watching.abort();
    edge.stop().await.unwrap();
}

/// One writer, who names the revision that it wrote last: an answer that is lost with its server would show as a conflict
/// with itself, as a revision left out, or as a wait until the time-out.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_was_lost_is_carried_out_once() {
    let ground = Ground::new("answer");
    let edge = leaf(&ground, "n1", None).await;
    let bus = judge_of(&edge).await;
    bucket(&bus).await;
    let store = Store::new(&bus, "local");
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writing = tokio::spawn({
        let done = done.clone();
        async move {
            let (mut revision, mut longest) = (0, Duration::ZERO);
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let expect = if revision == 0 { Expect::Absent } else { Expect::Revision(revision) };
                let asked = Instant::now();
                let there = store.get("k").await.unwrap();
                assert_eq!(there.map_or(0, |entry| entry.revision), revision, "after {:?}", asked.elapsed());
                let written = store.put("k", revision.to_string().into(), expect).await;
                longest = longest.max(asked.elapsed());
                assert_eq!(written, Ok(revision + 1), "after {:?}", asked.elapsed());
                revision += 1;
            }
            (revision, longest)
        }
    });
    for round in 1..=3 {
        tokio::time::sleep(Duration::from_millis(300)).await; // writes are in flight; how many does not matter
        kill(&edge.status().borrow());
        until(&edge, "restarted", |s| s.restarts == round && s.phase == Phase::Ready).await;
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    let (written, longest) = writing.await.unwrap();
    assert!(written > 3);
    println!("{written} writes, the longest took {longest:?}");
    edge.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_hub_is_adopted() {
    let ground = Ground::new("hub");
    let tls = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        Tls::load_or_create(&ground.dir("tls"), &names).unwrap()
    };
    let config = hub_config(&ground);
    let mut pids = Vec::new();
    let user = nkeys::KeyPair::new_user();
    for names in [vec!["hub.test"], vec!["hub.test"], vec!["hub.test", "other.test"]] {
        let keys = Arc::new(HubKeys::load_or_create(&ground.dir("keys")).unwrap());
        let hub = HubServer::start(config.clone(), keys, &tls(&names)).await.unwrap();
        hub.ready(SOON).await.unwrap();
        pids.push(hub.status().borrow().pid);
        hub.revoke(Account::Work, &user.public_key()).await.unwrap();
        drop(hub);
    }
    assert_eq!(pids[0], pids[1], "a revocation is no reason to restart");
    assert_eq!(pids[1], pids[2], "nor is another certificate: it is read again");
    let before = tls(&["hub.test"]).fingerprint;
    assert_eq!(before, tls(&["third.test"]).fingerprint, "the authority stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named() {
    let ground = Ground::new("wrong");
    let config = leaf_config(&ground, "n1", None);
    let missing = LeafConfig { binary: Some("/nowhere/nats-server".into()), ..config.clone() };
    let error = LeafServer::start(missing).await.unwrap_err();
    assert_eq!(error.code(), "EW-NATS-NOT-FOUND");
    assert!(error.to_string().contains("/nowhere/nats-server"), "{error}");

    let old = ground.dir("old-nats-server");
    std::fs::write(&old, "#!/bin/sh\necho 'nats-server: v2.9.10'\n").unwrap();
    std::fs::set_permissions(&old, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let error = LeafServer::start(LeafConfig { binary: Some(old), ..config.clone() }).await.unwrap_err();
    assert_eq!(error.code(), "EW-NATS-VERSION");
    assert!(error.to_string().contains("2.9.10"), "{error}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let config_taken = LeafConfig { listen: taken.local_addr().unwrap(), ..config.clone() };
    assert_eq!(LeafServer::start(config_taken).await.unwrap_err().code(), "EW-PORT-IN-USE");
    let elsewhere = LeafConfig { listen: "192.0.2.1:4222".parse().unwrap(), ..config.clone() };
    assert_eq!(LeafServer::start(elsewhere).await.unwrap_err().code(), "EW-ADDRESS");
    let unjoined = HubLink {
        urls: vec!["tls://127.0.0.1:1".into()],
        ca_file: "/nowhere/ca".into(),
        control_creds: "/nowhere/c".into(),
        work_creds: "/nowhere/w".into(),
        proxy: None,
    };
    let error = LeafServer::start(LeafConfig { hub: Some(unjoined), ..config.clone() }).await.unwrap_err();
    assert!(error.code() == "EW-NATS-CONFIG" && error.to_string().contains("/nowhere/ca"), "{error}");

    // A subject that the server refuses: the caller is told, the server lives on.
    let edge = LeafServer::start(config).await.unwrap();
    edge.ready(SOON).await.unwrap();
    let bad = Permissions { publish_allow: vec!["a..b".into()], subscribe_allow: vec![] };
    let error = edge.put_users(vec![User::new("bad", Account::Work, bad)]).await.unwrap_err();
    assert_eq!(error.code(), "EW-NATS-CONFIG", "{error}");
    edge.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_mqtt_port_is_left_out_until_a_start_finds_it_free() {
    let ground = Ground::new("mqtt");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = LeafConfig { mqtt: Some(address), ..leaf_config(&ground, "n1", None) };
    let start = async || {
        let server = leaf_with(&config).await;
        let status = server.status().borrow().clone();
        (server, status)
    };
    let (server, first) = start().await;
    assert_eq!((first.left_out, server.mqtt().await), (Some(address), None));
    // A reload changes nothing of it: the server would refuse to begin to listen.
    let user = User::new("one", Account::Work, Permissions::full());
    server.put_users(vec![user.clone()]).await.unwrap();
    server.leave_running().await.unwrap();
    let (server, second) = start().await;
    assert_eq!(
        (second.left_out, second.pid, second.adopted),
        (Some(address), first.pid, true),
        "nothing to gain"
    );
    server.leave_running().await.unwrap();
    drop(taken);
    let (server, third) = start().await;
    assert_eq!((third.left_out, third.adopted, server.mqtt().await), (None, false, Some(address)));
    std::net::TcpStream::connect(address).unwrap();
    server.put_users(vec![User::new("two", Account::Work, Permissions::full())]).await.unwrap();
    server.leave_running().await.unwrap();
    let (server, fourth) = start().await;
    assert_eq!((fourth.left_out, fourth.pid, fourth.adopted), (None, third.pid, true));
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_told_and_never_keeps_the_server_down() {
    let ground = Ground::new("store");
    let config = leaf_config(&ground, "n1", None);
    let data = ground.dir("n1");
    let outbox = || stream::Config {
        name: subject::STREAM_OUTBOX.into(),
        subjects: vec!["ew.rep.>".into()],
        ..Default::default()
    };
    let edge = leaf_with(&config).await;
    let js = jetstream::new(on_leaf(&edge, "m", Account::Control, "n1").await);
    js.create_stream(outbox()).await.unwrap();
    for i in 0..20 {
        js.publish(format!("ew.rep.{i}"), "report".into()).await.unwrap().await.unwrap();
    }
    assert_eq!(edge.status().borrow().store_warnings, Vec::<String>::new());

    // One byte of the stream's description, then kill -9: the server starts without the stream and says so; made again, it
    // has all its messages.
    let damaged = data.join("jetstream/CONTROL/streams/OUTBOX/meta.inf");
    let mut bytes = std::fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    std::fs::write(&damaged, bytes).unwrap();
    kill(&edge.status().borrow());
    let status = until(&edge, "restarted", |s| s.restarts == 1 && s.phase == Phase::Ready).await;
    assert!(status.store_warnings.len() == 1 && status.store_warnings[0].contains("OUTBOX"), "{status:?}");
    let js = jetstream::new(login(&edge, &edge.user("m").await.unwrap(), "n1").await);
    assert!(js.get_stream("OUTBOX").await.is_err());
    assert_eq!(js.create_stream(outbox()).await.unwrap().cached_info().state.messages, 20);
    edge.stop().await.unwrap();

    // A store that is none: moved aside, kept for a look, and an empty one in its place.
    std::fs::rename(data.join("jetstream"), data.join("before")).unwrap();
    std::fs::write(data.join("jetstream"), "not a directory").unwrap();
    let edge = leaf_with(&config).await;
    let moved = edge.status().borrow().store_moved.clone().expect("it is told");
    assert!(moved.reason.contains("JetStream"), "{moved:?}");
    assert_eq!(std::fs::read_to_string(&moved.to).unwrap(), "not a directory");
    let js = jetstream::new(login(&edge, &edge.user("m").await.unwrap(), "n1").await);
    assert_eq!(js.create_stream(outbox()).await.unwrap().cached_info().state.messages, 0);
    edge.stop().await.unwrap();
}
