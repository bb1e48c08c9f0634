//! What the two modules decide, told as they would be told: the node's on its bucket and its stream, the hub's on its objects.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

use bus::module::{Account, Delivery, Effect, Entry, EntryValue, Input, Message, Module, WriteError};
use router::{edge, hub};
use schemas::Timestamp;
use schemas::command::Reply;
use schemas::desired::{Content, Desired, Local};
use schemas::envelope::Headers;
use schemas::name::NodeName;
use schemas::object::Object;
use schemas::report::EventReport;
use schemas::routing::{BODY_MAX_BYTES, Deliver, Delivered, Destination, header};
use schemas::subject::{
    BUCKET_LOCAL, BUCKET_OBJECTS, DesiredKey, ObjectKey, Resource, STREAM_RULES, entrusted,
};
use serde_json::{Value, json};

const T0: Timestamp = Timestamp(1_700_000_000_000);

fn object(kind: &str, name: &str, spec: Value) -> Object {
    let mut object = Object::new("rules.kubeedge.io/v1", kind, "default", name);
    object.set(&["metadata", "uid"], format!("uid-{name}"));
    object.set(&["spec"], spec);
    object
}

fn endpoint(name: &str, kind: &str) -> Object {
    object("RuleEndpoint", name, json!({"ruleEndpointType": kind}))
}

fn eventbus_rule(name: &str, topic: &str) -> Object {
    let source = json!({"topic": topic, "node_name": "n1"});
    let target = json!({"resource": "http://127.0.0.1:8080/hello"});
    object(
        "Rule",
        name,
        json!({"source": "bus", "sourceResource": source, "target": "web", "targetResource": target}),
    )
}

fn message(subject: &str, payload: Vec<u8>) -> Message {
    let reply = Some("_INBOX.hub.router.1".to_owned());
    Message { account: Account::Control, subject: subject.into(), headers: Headers::new(), payload, reply }
}

/// A node's module, whose bucket has been told.
struct Node(edge::Router);

impl Node {
    fn key(object: &Object) -> String {
        let plural = if object.kind() == "Rule" { "rules" } else { "ruleendpoints" };
        DesiredKey {
            plural: plural.into(),
            namespace: object.namespace().into(),
            name: object.name().into(),
            uid: object.uid().into(),
        }
        .local_key()
    }

    fn entry(&mut self, object: &Object, content: Content) -> Vec<Effect<edge::Act>> {
        let desired = Desired { generation: "g".into(), epoch: "e".into(), resource_version: 1, content };
        let value = EntryValue::Put(schemas::encode(&Local { revision: 1, desired }));
        let entry = Entry { bucket: BUCKET_LOCAL.into(), key: Self::key(object), revision: 1, value };
        self.0.apply(Input::Entry(entry), T0)
    }

    fn have(&mut self, object: &Object) -> Vec<Effect<edge::Act>> {
        self.entry(object, Content::Object(object.clone()))
    }

    fn current(&mut self) -> Vec<Effect<edge::Act>> {
        let mut effects = Vec::new();
        for filter in ["rules.*.*.*", "ruleendpoints.*.*.*"] {
            let input = Input::Current { bucket: BUCKET_LOCAL.into(), filter: filter.into() };
            effects.extend(self.0.apply(input, T0));
        }
        effects
    }

    fn new(objects: &[Object]) -> Self {
        let mut node = Self(edge::Router::new(NodeName::new("n1").unwrap()));
        for object in objects {
            assert_eq!(captures(&node.have(object)), None, "before all are known nothing is let go");
        }
        node.current();
        node
    }

    fn deliver(&mut self, sequence: u64, subject: &str, payload: &[u8]) -> Vec<Effect<edge::Act>> {
        let delivery = Delivery {
            stream: STREAM_RULES.into(),
            sequence,
            subject: subject.into(),
            headers: Headers::new(),
            payload: payload.to_vec(),
            attempt: 1,
        };
        self.0.apply(Input::Delivery(delivery), T0)
    }
}

fn captures(effects: &[Effect<edge::Act>]) -> Option<Vec<String>> {
    effects.iter().find_map(|effect| match effect {
        Effect::Act(edge::Act::Capture(subjects)) => Some(subjects.clone()),
        _ => None,
    })
}

fn stores(effects: &[Effect<edge::Act>]) -> Vec<(String, Headers, Vec<u8>)> {
    let store = |effect: &Effect<edge::Act>| match effect {
        Effect::Store { account: Account::Work, subject, headers, payload } => {
            Some((subject.clone(), headers.clone(), payload.clone()))
        }
        _ => None,
    };
    effects.iter().filter_map(store).collect()
}

#[test]
fn the_node_keeps_what_its_rules_name_from_when_it_knows_them_all() {
    let all = [endpoint("bus", "eventbus"), endpoint("web", "rest"), eventbus_rule("r", "test")];
    let mut node = Node(edge::Router::new(NodeName::new("n1").unwrap()));
    all.iter().for_each(|object| drop(node.have(object)));
    assert_eq!(captures(&node.current()), Some(vec!["default.test".to_owned()]));
    assert_eq!(
        captures(&node.have(&eventbus_rule("s", "u"))),
        Some(vec!["default.test".into(), "default.u".into()])
    );
    let mut told = eventbus_rule("s", "u");
    told.set(&["status", "successMessages"], 7);
    assert!(node.have(&told).is_empty(), "a status changes nothing");
    assert_eq!(captures(&node.entry(&all[2], Content::Tombstone)), Some(vec!["default.u".to_owned()]));
    assert_eq!(captures(&node.entry(&told, Content::Tombstone)), Some(Vec::new()));
}

#[test]
fn what_a_rule_names_goes_up_once_for_each_rule_and_is_known_again() {
    let mut filtered = eventbus_rule("f", "+");
    filtered.set(&["spec", "filter"], "payload.c > 1");
    filtered.set(&["spec", "map"], "{'t': payload.c}");
    let mut node = Node::new(&[
        endpoint("bus", "eventbus"),
        endpoint("web", "rest"),
        eventbus_rule("r", "test"),
        filtered,
    ]);
    let first = stores(&node.deliver(5, "default.test", br#"{"c":2}"#));
    let subjects: Vec<_> = first.iter().map(|(subject, ..)| subject.as_str()).collect();
    assert_eq!(subjects, ["up._rule.default.f.uid-f", "up._rule.default.r.uid-r"]);
    assert_eq!((first[0].2.as_slice(), first[1].2.as_slice()), (&br#"{"t":2}"#[..], &br#"{"c":2}"#[..]));
    assert_eq!(first[1].1[header::SUBJECT], "default.test");
    let again = stores(&node.deliver(5, "default.test", br#"{"c":2}"#));
    assert_eq!(again, first, "the same when it comes again");
    let next = stores(&node.deliver(6, "default.test", br#"{"c":2}"#));
    assert_ne!(
        next[0].1["Nats-Msg-Id"], first[0].1["Nats-Msg-Id"],
        "another message, though it says the same"
    );
    assert_eq!(stores(&node.deliver(7, "default.test", br#"{"c":1}"#)).len(), 1, "not wanted by one");
    let failed = stores(&node.deliver(8, "default.test", b"text"));
    assert!(failed[0].1[header::FAILURE].starts_with("filter: "), "the hub counts it: {failed:?}");
    assert!(stores(&node.deliver(9, "default.x.y", b"{}")).is_empty());
}

#[test]
fn what_comes_before_the_rules_are_read_comes_again() {
    let mut node = Node(edge::Router::new(NodeName::new("n1").unwrap()));
    assert_eq!(node.deliver(1, "default.test", b"a"), [Effect::Later]);
    let all = [endpoint("bus", "eventbus"), endpoint("web", "rest"), eventbus_rule("r", "test")];
    all.iter().for_each(|object| drop(node.have(object)));
    assert_eq!(node.deliver(1, "default.test", b"a"), [Effect::Later], "more may be to come");
    node.current();
    assert_eq!(stores(&node.deliver(1, "default.test", b"a")).len(), 1);
}

#[test]
fn what_an_mqtt_client_entrusted_is_taken_once() {
    let mut node =
        Node::new(&[endpoint("bus", "eventbus"), endpoint("web", "rest"), eventbus_rule("r", "test")]);
    let mut deliver = |subject: &str, qos: &str| {
        let headers = [("Nmqtt-Pub".to_owned(), qos.to_owned())].into();
        let delivery = Delivery {
            stream: STREAM_RULES.into(),
            sequence: 1,
            subject: subject.into(),
            headers,
            payload: b"a".to_vec(),
            attempt: 1,
        };
        stores(&node.0.apply(Input::Delivery(delivery), T0))
    };
    assert_eq!(deliver("default.test", "1").len(), 0, "it comes from where the server keeps it");
    assert_eq!(deliver("default.test", "0").len(), 1, "nobody was promised it, and nobody keeps it");
    let taken = stores(&node.deliver(2, &entrusted("default.test"), b"a"));
    assert_eq!(
        taken.iter().map(|(_, headers, _)| headers[header::SUBJECT].as_str()).collect::<Vec<_>>(),
        ["default.test"]
    );
}

#[test]
fn what_cannot_be_carried_is_put_aside_and_what_was_dropped_is_told() {
    let mut node =
        Node::new(&[endpoint("bus", "eventbus"), endpoint("web", "rest"), eventbus_rule("r", "test")]);
    let effects = node.deliver(1, "default.test", &vec![0; BODY_MAX_BYTES + 1]);
    assert!(
        matches!(&effects[..], [Effect::Dead { payload, .. }] if payload.len() < 1_000_000),
        "{effects:?}"
    );
    let answer = br#"{"stream":"UPLINK","domain":"edge-n1","seq":7}"#;
    let effects = node.deliver(2, "default.test", answer);
    assert!(
        matches!(&effects[..], [Effect::Dead { .. }]),
        "the server's own answer is no workload's: {effects:?}"
    );
    node.deliver(12, "default.test", b"b");
    let told = |effects: Vec<Effect<edge::Act>>| {
        effects.into_iter().find_map(|effect| match effect {
            Effect::Report { payload, .. } => schemas::decode::<EventReport>(&payload).ok(),
            _ => None,
        })
    };
    assert!(told(node.0.apply(Input::Tick, T0.plus_ms(1_000))).is_none(), "gathered for a while");
    let event = told(node.0.apply(Input::Tick, T0.plus_ms(20_000))).unwrap();
    assert_eq!((event.reason.as_str(), event.message.contains("9 messages")), ("RuleMessagesDropped", true));
    let refused =
        |node: &mut Node| told(node.0.apply(Input::Done(edge::Done::Captured(Err("overlap".into()))), T0));
    assert_eq!(refused(&mut node).unwrap().reason, "RuleSourcesRefused");
    assert!(refused(&mut node).is_none(), "told once");
}

#[test]
fn the_node_hands_over_a_bounded_number_and_answers_rubbish() {
    let mut node = Node::new(&[]);
    let to = Destination::Publish { subject: "test".into() };
    let deliver = Deliver { to, headers: Vec::new(), body: "x".into() };
    let ask = |node: &mut Node, body: Vec<u8>| {
        node.0.apply(Input::Message(message("ew.cmd.n1.router.deliver", body)), T0)
    };
    let mut handed = 0;
    let refused = loop {
        match &ask(&mut node, schemas::encode(&deliver))[..] {
            [Effect::Act(edge::Act::Deliver(..))] => handed += 1,
            [Effect::Reply { payload, .. }] => break schemas::decode::<Reply<Delivered>>(payload).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((handed, refused.unwrap_err().code.as_str()), (64, "EW-NODE-BUSY"));
    node.0.apply(Input::Done(edge::Done::Answer(message("x", vec![]), vec![])), T0);
    assert!(matches!(&ask(&mut node, schemas::encode(&deliver))[..], [Effect::Act(_)]), "one is done");
    assert!(matches!(&ask(&mut node, b"rubbish".to_vec())[..], [Effect::Reply { .. }]));
}

/// The hub's module.
#[derive(Default)]
struct Hub(hub::Router, u64);

impl Hub {
    fn key(object: &Object) -> ObjectKey {
        let plural = if object.kind() == "Rule" { "rules" } else { "ruleendpoints" };
        object.key(&Resource { group: "rules.kubeedge.io".into(), plural: plural.into() })
    }

    fn put(&mut self, object: &Object) -> Vec<Effect<hub::Act>> {
        self.1 += 1;
        let key = Self::key(object).key();
        let value = EntryValue::Put(object.to_bytes());
        self.0.apply(Input::Entry(Entry { bucket: BUCKET_OBJECTS.into(), key, revision: self.1, value }), T0)
    }

    fn remove(&mut self, object: &Object) -> Vec<Effect<hub::Act>> {
        self.1 += 1;
        let (key, value) = (Self::key(object).key(), EntryValue::Removed(object.to_bytes()));
        self.0.apply(Input::Entry(Entry { bucket: BUCKET_OBJECTS.into(), key, revision: self.1, value }), T0)
    }

    fn new(objects: &[Object]) -> Self {
        let mut hub = Self::default();
        for object in objects {
            assert!(hub.put(object).is_empty(), "before all are known nothing is taken for gone");
        }
        for filter in ["rules=2Ekubeedge=2Eio.rules.*.*", "rules=2Ekubeedge=2Eio.ruleendpoints.*.*"] {
            hub.0.apply(Input::Current { bucket: BUCKET_OBJECTS.into(), filter: filter.into() }, T0);
        }
        hub
    }

    fn counted(&mut self, outcome: Result<(), String>) -> Vec<Effect<hub::Act>> {
        let done = hub::Done::Counted { uid: "uid-r".into(), message: Some("5-a".into()), outcome };
        self.0.apply(Input::Done(done), T0)
    }

    /// What is written at that time: token and status.
    fn writes(&mut self, at_ms: u64) -> Vec<(u64, Object)> {
        let put = |effect| match effect {
            Effect::Put { token, value, .. } => Some((token, Object::from_bytes(&value, 0).unwrap())),
            _ => None,
        };
        self.0.apply(Input::Tick, T0.plus_ms(at_ms)).into_iter().filter_map(put).collect()
    }
}

#[test]
fn the_hub_counts_into_the_rules_status_now_and_then() {
    let rule = eventbus_rule("r", "test");
    let mut hub = Hub::new(&[endpoint("bus", "eventbus"), endpoint("web", "rest"), rule.clone()]);
    assert!(hub.writes(0).is_empty());
    let saved = hub.counted(Ok(()));
    assert!(matches!(&saved[..], [Effect::Save { key, .. }] if key == "last.uid-r"));
    hub.counted(Err("web is away".into()));
    let (token, written) = hub.writes(10).remove(0);
    let status = written.get(&["status"]).unwrap();
    assert_eq!((&status["successMessages"], &status["failMessages"]), (&json!(1), &json!(1)));
    hub.0.apply(Input::Wrote { token, outcome: Err(WriteError::Conflict) }, T0);
    assert!(hub.writes(1_000).is_empty(), "every few seconds at most");
    let mut edited = rule.clone();
    edited.set(&["metadata", "labels", "a"], "b");
    assert!(hub.put(&edited).is_empty(), "nothing that is followed has changed");
    let (_, written) = hub.writes(4_000).remove(0);
    assert_eq!(
        (&written.get(&["status"]).unwrap()["successMessages"], written.label("a")),
        (&json!(1), Some("b"))
    );
    assert!(
        hub.remove(&edited)
            .iter()
            .any(|effect| matches!(effect, Effect::Forget { key } if key == "last.uid-r"))
    );
    assert!(
        hub.counted(Ok(())).is_empty() && hub.writes(9_000).is_empty(),
        "of a rule that is gone nothing is kept"
    );
}

#[test]
fn a_rule_that_is_not_followed_says_so_until_it_is() {
    let mut hub = Hub::new(&[eventbus_rule("r", "test"), endpoint("bus", "eventbus")]);
    let (token, written) = hub.writes(0).remove(0);
    let error = written.get(&["status", "errors"]).unwrap()[0].as_str().unwrap().to_owned();
    assert!(error.starts_with("EW-RULE-INVALID: there is no RuleEndpoint \"web\""), "{error}");
    hub.0.apply(Input::Wrote { token, outcome: Ok(9) }, T0);
    hub.put(&written);
    let followed = hub.put(&endpoint("web", "rest"));
    assert!(matches!(&followed[..], [Effect::Act(hub::Act::Follow(table, _))] if table.routes.len() == 1));
    let (_, written) = hub.writes(4_000).remove(0);
    assert_eq!(written.get(&["status", "errors"]).unwrap(), &json!([]));
}

#[test]
fn the_hub_hears_nodes_and_answers_rubbish() {
    let mut hub = Hub::new(&[]);
    let heard = hub.0.apply(Input::Message(message("ew.hb.n1", vec![])), T0);
    assert_eq!(heard, [Effect::Act(hub::Act::Heard(NodeName::new("n1").unwrap()))]);
    let answered = hub.0.apply(Input::Message(message("ew.req.n1.router.call", b"x".to_vec())), T0);
    assert!(matches!(&answered[..], [Effect::Reply { .. }]));
    assert!(hub.0.apply(Input::Message(message("ew.req.N!.router.call", vec![])), T0).is_empty());
}
