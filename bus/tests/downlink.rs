//! Messages from the hub to one node on the real `nats-server`: each node's own stream, DOWN as it is written and heard, and
//! who cannot do what.
// These tests judge the servers from outside, with a raw client; and a test fails by a panic, also in its helpers.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::time::Duration;

use async_nats::jetstream::{self, consumer, stream};
use async_nats::{Client, ConnectOptions, HeaderMap};
use bus::connection::{Bus, Login, dial};
use bus::downlink::{self, From};
use bus::identity::Permissions;
use bus::link::{self, LinkError, Raise};
use bus::module::Account;
use bus::provision::{self, Place};
use bus::server::{LeafServer, User};
use futures::StreamExt;
use schemas::downlink::{Holds, Taken};
use schemas::name::Namespace;
use schemas::subject::{self, STREAM_DOWN, TAKEN};

use support::{Ground, Hub, SOON, eventually, leaf, node};

/// How long what must not come is waited for.
const NEVER: Duration = Duration::from_millis(600);
const PATIENCE: Duration = Duration::from_secs(2);

impl Hub {
    async fn own(&self) -> Bus {
        let (jwt, seed) = self.keys.mint(Account::Control, "admin", &Permissions::full()).unwrap();
        let (login, inbox) = (Login::Jwt { jwt, seed }, subject::module_inbox("hub", "admin"));
        let ca = Some(self.tls.ca_file.clone());
        dial(self.server.url(), ca, login, "admin", inbox, Account::Control, "hub").await.unwrap()
    }
}

/// On the node's server, with every local right: what it cannot do is refused by the hub.
async fn on(server: &LeafServer, name: &str) -> Bus {
    let user = User::new("admin", Account::Work, Permissions::full());
    server.put_users(vec![user.clone()]).await.unwrap();
    let login = Login::Password { user: user.name, password: user.password };
    let (inbox, domain) = (subject::module_inbox(name, "admin"), subject::domain_edge(&node(name)));
    dial(server.url(), None, login, "admin", inbox, Account::Work, &domain).await.unwrap()
}

async fn pod(server: &LeafServer, name: &str, publish: &[&str], subscribe: &[&str]) -> Client {
    let all = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    let permissions = Permissions { publish_allow: all(publish), subscribe_allow: all(subscribe) };
    let user = User::new(name, Account::Work, permissions);
    server.put_users(vec![user.clone()]).await.unwrap();
    for _ in 0..20 {
        let login = ConnectOptions::with_user_and_password(user.name.clone(), user.password.clone());
        // A handshake that a reload of the server meets is refused once.
        if let Ok(client) = login.custom_inbox_prefix(format!("_INBOX.{name}")).connect(server.url()).await {
            return client;
        }
    }
    panic!("{name} cannot log in");
}

/// What the server says to a message that it is asked to store.
async fn said(client: &Client, subject: &str, body: Vec<u8>) -> String {
    match client.request(subject.to_owned(), body.into()).await {
        Ok(answer) => String::from_utf8_lossy(&answer.payload).into_owned(),
        Err(error) => error.to_string(),
    }
}

async fn send(bus: &Bus, subject: &str, body: &str) -> u64 {
    let said = said(bus.client(), subject, body.as_bytes().to_vec()).await;
    serde_json::from_str::<serde_json::Value>(&said).unwrap()["seq"]
        .as_u64()
        .unwrap_or_else(|| panic!("{said}"))
}

fn bodies(sent: &[downlink::Sent]) -> Vec<String> {
    sent.iter().map(|sent| String::from_utf8_lossy(&sent.message.payload).into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_has_a_stream_of_its_own_that_it_alone_reads_and_fills() {
    let ground = Ground::new("to");
    let hub = Hub::start(&ground).await;
    let at_hub = hub.own().await;
    // Nobody has a stream yet: who sends is told at once.
    assert!(said(at_hub.client(), "to.n1.demo.a", Vec::new()).await.contains("no responders"));
    downlink::ensure(&at_hub, &[node("n1"), node("n2")], true).await.unwrap();
    downlink::ensure(&at_hub, &[node("n1"), node("n2")], false).await.unwrap();
    for n in 1..=3 {
        assert_eq!(send(&at_hub, "to.n1.demo.a", &format!("{n}")).await, n);
    }
    send(&at_hub, "to.n2.demo.a", "theirs").await;

    let (link, _) = hub.enrol("n1");
    let edge = leaf(&ground, "n1", Some(link)).await;
    let own = on(&edge, "n1").await;
    eventually("the link stands", async || {
        downlink::read(&own, &node("n1"), From::Sequence(1), 1_000, NEVER).await.is_ok()
    })
    .await;
    let read = async |from| downlink::read(&own, &node("n1"), from, 100_000, PATIENCE).await.unwrap().0;
    let all = read(From::Sequence(1)).await;
    assert_eq!(bodies(&all), ["1", "2", "3"]);
    assert_eq!(bodies(&read(From::Sequence(3)).await), ["3"]);
    assert_eq!(bodies(&read(From::Since(all[1].at_ns)).await), ["2", "3"]);
    assert_eq!(bodies(&read(From::Since(all[2].at_ns + 1)).await), [""; 0]);
    // One at least, however few bytes; and never another's.
    assert_eq!(downlink::read(&own, &node("n1"), From::Sequence(2), 1, PATIENCE).await.unwrap().0.len(), 1);
    assert!(downlink::read(&own, &node("n2"), From::Sequence(1), 1_000, NEVER).await.is_err());

    // What the node says that it has, the hub lets go of, but for the last; and it says whether that is still the same.
    let at = |n: usize| Taken { sequence: n as u64, at_ns: all[n - 1].at_ns };
    let waiting = async |taken| downlink::waiting(&at_hub, &node("n1"), taken).await.unwrap();
    assert_eq!(waiting(None).await.holds, None);
    let found = waiting(Some(at(2))).await;
    assert_eq!((found.last, found.holds), (3, Some(Holds::Same)));
    assert_eq!(bodies(&read(From::Sequence(1)).await), ["2", "3"]);
    assert_eq!(waiting(Some(at(1))).await.holds, Some(Holds::Gone));
    let other = Taken { at_ns: at(3).at_ns + 1, ..at(3) };
    assert_eq!(waiting(Some(other)).await.holds, Some(Holds::Other));
    assert_eq!(waiting(Some(Taken { sequence: 9, ..other })).await.holds, Some(Holds::Other));
    assert_eq!(bodies(&read(From::Sequence(1)).await), ["2", "3"], "trimmed for nobody else's word");

    // Where a message stands is the server's word, whatever its sender wrote.
    let mut forged = HeaderMap::new();
    for (name, value) in [
        ("Nats-Sequence", "77"),
        ("Nats-Subject", "to.n1.other.a"),
        ("Nats-Time-Stamp", "2000-01-01T00:00:00Z"),
    ] {
        forged.insert(name, value);
    }
    jetstream::new(at_hub.client().clone())
        .publish_with_headers("to.n1.demo.a", forged, "4".into())
        .await
        .unwrap()
        .await
        .unwrap();
    let last = read(From::Sequence(4)).await.remove(0);
    assert_eq!((last.message.sequence, last.message.subject.as_str()), (4, "to.n1.demo.a"));
    assert!(last.at_ns > at(3).at_ns && last.message.headers.is_empty(), "{last:?}");

    // A node that does not take anything fills its own stream, and its sender is told.
    let big = vec![b'x'; 900 * 1024];
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(said(at_hub.client(), "to.n1.demo.big", big.clone()).await);
    }
    assert!(answers[0].contains("\"seq\""), "{answers:?}");
    assert!(
        answers.last().unwrap().contains("10077") && answers.last().unwrap().contains("maximum bytes"),
        "{answers:?}"
    );
    assert_eq!(send(&at_hub, "to.n2.demo.a", "still").await, 2);
    let too_large = said(at_hub.client(), "to.n2.demo.a", vec![b'x'; 1024 * 1024 + 1]).await;
    assert!(too_large.contains("10054"), "{too_large}");
}

fn raise(subject: &str, body: &str) -> Raise {
    Raise { subject: subject.into(), headers: Default::default(), payload: body.to_owned().into() }
}

/// A node's server with DOWN in it, and everybody's right.
async fn with_down(ground: &Ground) -> (LeafServer, Bus) {
    let server = leaf(ground, "n1", None).await;
    let bus = on(&server, "n1").await;
    provision::provision(&bus, Place::Edge).await.unwrap();
    (server, bus)
}

async fn write(bus: &Bus, messages: &[Raise], cursor: &str, expect: u64) -> Result<u64, LinkError> {
    link::commit(bus, messages, &raise(TAKEN[0], cursor), expect, PATIENCE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_into_down_is_heard_once_and_only_when_it_is_stored() {
    let ground = Ground::new("down");
    let (server, bus) = with_down(&ground).await;
    let ears = pod(&server, "pod", &[], &["down.demo.>", "_INBOX.pod.>"]).await;
    let mut heard = ears.subscribe("down.demo.>").await.unwrap();
    ears.flush().await.unwrap();
    assert_eq!(downlink::cursor(&bus).await.unwrap(), None);
    let two = [raise("_down.demo.a", "1"), raise("_down.other.a", "2")];
    let revision = write(&bus, &two, "c1", 0).await.unwrap();
    assert_eq!(downlink::cursor(&bus).await.unwrap(), Some((revision, b"c1".to_vec())));
    // Refused as a whole, and not heard: tried again it is not there twice.
    assert_eq!(write(&bus, &two, "c1", 0).await, Err(LinkError::CursorMoved));
    write(&bus, &[raise("_down.demo.b.c", "3")], "c2", revision).await.unwrap();
    let mut said = Vec::new();
    while let Ok(Some(message)) = tokio::time::timeout(NEVER, heard.next()).await {
        said.push((message.subject.to_string(), message.payload.to_vec()));
    }
    assert_eq!(said, [("down.demo.a".into(), b"1".to_vec()), ("down.demo.b.c".into(), b"3".to_vec())]);
    let stored = link::read(&bus, STREAM_DOWN, "down.>", 1, 100_000).await.unwrap();
    let subjects: Vec<&str> = stored.iter().map(|stored| stored.subject.as_str()).collect();
    assert_eq!(subjects, ["down.demo.a", "down.other.a", TAKEN[1], "down.demo.b.c", TAKEN[1]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_is_handed_what_waits_until_it_is_acknowledged() {
    let ground = Ground::new("stored");
    let (server, bus) = with_down(&ground).await;
    let demo = Namespace::new("demo").unwrap();
    downlink::ensure_reader(&bus, &demo).await.unwrap();
    downlink::ensure_reader(&bus, &demo).await.unwrap();
    let messages: Vec<Raise> = (1..=5).map(|n| raise("_down.demo.a", &n.to_string())).collect();
    let revision = write(&bus, &messages, "c", 0).await.unwrap();
    let rights = (&["$JS.ACK.DOWN.demo.>"][..], &["stored.demo", "_INBOX.pod.>"][..]);
    let take = async |client: &Client, count: usize, ack: bool| {
        let mut handed = client.queue_subscribe("stored.demo", subject::STORED_GROUP.into()).await.unwrap();
        let mut came = Vec::new();
        while came.len() < count {
            let message = tokio::time::timeout(SOON, handed.next()).await.unwrap().unwrap();
            came.push((message.subject.to_string(), String::from_utf8_lossy(&message.payload).into_owned()));
            if ack {
                client.publish(message.reply.unwrap(), "+ACK".into()).await.unwrap();
            }
        }
        client.flush().await.unwrap();
        came
    };
    // Taken and not acknowledged: by who comes next it is not lost.
    let first = pod(&server, "pod", rights.0, rights.1).await;
    let came = take(&first, 2, true).await;
    assert_eq!(came[0], ("down.demo.a".to_owned(), "1".to_owned()));
    drop(first);
    // Somebody looks at all of it, as a tail does: what is shown is not acknowledged by that.
    let config = consumer::pull::Config {
        filter_subject: "down.demo.>".into(),
        ack_policy: consumer::AckPolicy::None,
        ..Default::default()
    };
    let looking =
        jetstream::with_domain(bus.client().clone(), "edge-n1").get_stream(STREAM_DOWN).await.unwrap();
    let looking = looking.create_consumer(config).await.unwrap();
    let shown = looking.fetch().max_messages(10).messages().await.unwrap().count().await;
    assert_eq!(shown, 5);
    eventually("two are acknowledged and let go", async || {
        downlink::tidy(&bus).await.unwrap();
        link::state(&bus, STREAM_DOWN).await.unwrap().messages == 3 + 1
    })
    .await;
    write(&bus, &[raise("_down.demo.a", "6")], "c", revision).await.unwrap();
    let stored = link::read(&bus, STREAM_DOWN, "down.demo.>", 1, 100_000).await.unwrap();
    let waits: Vec<String> =
        stored.iter().map(|s| String::from_utf8_lossy(&s.payload).into_owned()).collect();
    assert_eq!(waits, ["3", "4", "5", "6"]);
    let second = pod(&server, "pod", rights.0, rights.1).await;
    // What was handed to the first and not acknowledged comes by its deadline, the rest at once.
    let came = take(&second, 1, true).await;
    assert!(waits.contains(&came[0].1), "{came:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_down_lets_its_oldest_tenth_go_and_says_how_many() {
    let ground = Ground::new("full");
    let (_server, bus) = with_down(&ground).await;
    let js = jetstream::with_domain(bus.client().clone(), "edge-n1");
    let config = js.get_stream(STREAM_DOWN).await.unwrap().cached_info().config.clone();
    js.update_stream(stream::Config { max_bytes: 200 * 1024, ..config }).await.unwrap();
    let body = "x".repeat(1_000);
    let (mut revision, mut written, mut dropped) = (0, 0_u64, 0);
    for _ in 0..40 {
        let ten: Vec<Raise> = (0..10).map(|_| raise("_down.demo.a", &body)).collect();
        match write(&bus, &ten, "c", revision).await {
            Ok(next) => (revision, written) = (next, written + 10),
            Err(LinkError::Refused { code: 10_077, .. }) => {
                let went = downlink::tidy(&bus).await.unwrap();
                assert!(went > 0 && went <= 20, "a tenth: {went}");
                dropped += went;
                assert_eq!(downlink::cursor(&bus).await.unwrap().unwrap().0, revision, "the cursor stays");
            }
            Err(error) => panic!("{error}"),
        }
    }
    let left = link::read(&bus, STREAM_DOWN, "down.demo.>", 1, 10_000_000).await.unwrap().len() as u64;
    assert!(dropped > 0 && written > 200, "{written} {dropped}");
    assert_eq!(left + dropped, written, "each is there or was counted");
}

/// Why pods are given no right to pull: the server sends the answer wherever the asker says. Should a later server no longer do
/// so, this fails, and `modules/credentials` may be looked at again.
#[tokio::test(flavor = "multi_thread")]
async fn a_pull_is_answered_wherever_its_asker_says_and_a_push_is_not() {
    let ground = Ground::new("pull");
    let (server, bus) = with_down(&ground).await;
    let demo = Namespace::new("demo").unwrap();
    downlink::ensure_reader(&bus, &demo).await.unwrap();
    let js = jetstream::with_domain(bus.client().clone(), "edge-n1");
    let config = consumer::pull::Config { durable_name: Some("pulled".into()), ..Default::default() };
    js.get_stream(STREAM_DOWN).await.unwrap().create_consumer(config).await.unwrap();
    write(&bus, &[raise("_down.demo.a", "said to demo")], "c", 0).await.unwrap();
    let victim = pod(&server, "victim", &[], &["app.other.>"]).await;
    let mut heard = victim.subscribe("app.other.>").await.unwrap();
    victim.flush().await.unwrap();

    let pulls = "$JS.API.CONSUMER.MSG.NEXT.DOWN.pulled";
    let puller = pod(&server, "puller", &[pulls], &["_INBOX.puller.>"]).await;
    puller.publish_with_reply(pulls, "app.other.a", "".into()).await.unwrap();
    let stolen = tokio::time::timeout(SOON, heard.next()).await.unwrap().unwrap();
    assert_eq!(stolen.payload, "said to demo", "into a namespace that the asker may not publish to");

    // With what a pod is given: nothing but the server's own refusal can be sent there, and no word of anybody's.
    let own = pod(&server, "own", &["$JS.ACK.DOWN.demo.>"], &["stored.demo", "_INBOX.own.>"]).await;
    for body in ["+NXT", "+NXT {\"batch\":10}", "+ACK", "-NAK", "+TERM"] {
        own.publish_with_reply("$JS.ACK.DOWN.demo.1.1.1.1.0", "app.other.b", body.into()).await.unwrap();
    }
    own.publish_with_reply("$JS.API.CONSUMER.MSG.NEXT.DOWN.demo", "app.other.b", "".into()).await.unwrap();
    own.publish_with_reply("$JS.ACK.DOWN.pulled.1.1.1.1.0", "app.other.b", "+NXT".into()).await.unwrap();
    own.flush().await.unwrap();
    while let Ok(Some(message)) = tokio::time::timeout(NEVER, heard.next()).await {
        assert!(message.payload.is_empty(), "{message:?}");
    }
}

/// What a node has the hub's server answer gets to no other node: it ends in the nodes' account, where no stream is.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_has_answered_elsewhere_reaches_no_other_nodes_messages() {
    let ground = Ground::new("elsewhere");
    let hub = Hub::start(&ground).await;
    let at_hub = hub.own().await;
    let cursors = stream::Config {
        name: subject::STREAM_FROM.into(),
        subjects: vec!["_cursor.>".into()],
        allow_direct: true,
        max_bytes: 1 << 20,
        ..Default::default()
    };
    jetstream::new(at_hub.client().clone()).create_stream(cursors).await.unwrap();
    downlink::ensure(&at_hub, &[node("n1"), node("n2")], true).await.unwrap();
    send(&at_hub, "to.n1.demo.a", "for n1").await;
    let (link, _) = hub.enrol("n1");
    let edge = leaf(&ground, "n1", Some(link)).await;
    let own = on(&edge, "n1").await;
    eventually("the link stands", async || {
        downlink::read(&own, &node("n1"), From::Sequence(1), 1_000, NEVER).await.is_ok()
    })
    .await;
    let body = serde_json::json!({"seq": 1, "next_by_subj": "to.n1.>", "batch": 1}).to_string();
    for (to, body) in [
        ("$JS.hub.API.DIRECT.GET.TO_n1", body.as_str()),
        ("_cursor.n1.workload", "my word"),
        ("$JS.hub.API.DIRECT.GET.FROM._cursor.n1.workload", ""),
    ] {
        let body = body.to_owned().into();
        own.client().publish_with_reply(to, "to.n2.demo.forged", body).await.unwrap();
    }
    // What comes after them on the same connection is there, so they were dealt with.
    own.client().request("_cursor.n1.workload", "the last".into()).await.unwrap();
    downlink::read(&own, &node("n1"), From::Sequence(1), 1_000, PATIENCE).await.unwrap();
    assert_eq!(link::state(&at_hub, "TO_n2").await.unwrap().last_sequence, 0);
}
