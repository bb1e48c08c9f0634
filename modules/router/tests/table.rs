//! The routing table as tables: which rules can be followed and why not, what goes where, and what a node has to keep.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

use std::collections::BTreeMap;

use proptest::prelude::*;
use router::table::{From, Name, Table, To, givable, union};
use schemas::name::NodeName;
use schemas::object::Object;
use schemas::rule::{RuleEndpointSpec, read_endpoint};
use schemas::{pattern, subject};
use serde_json::{Value, json};

fn endpoints(namespace: &str) -> BTreeMap<Name, RuleEndpointSpec> {
    let kinds = [
        ("my-rest", json!({"ruleEndpointType": "rest", "properties": {}})),
        ("my-eventbus", json!({"ruleEndpointType": "eventbus"})),
        ("my-servicebus", json!({"ruleEndpointType": "servicebus", "properties": {"service_port": "6666"}})),
        ("my-nats", json!({"ruleEndpointType": "nats"})),
    ];
    let read = |(name, spec): (&str, Value)| {
        let mut object = Object::new("rules.kubeedge.io/v1", "RuleEndpoint", namespace, name);
        object.set(&["spec"], spec);
        ((namespace.to_owned(), name.to_owned()), read_endpoint(&object).unwrap())
    };
    kinds.map(read).into()
}

fn rule(name: &str, source: &str, of: Value, target: &str, to: Value) -> Object {
    let mut object = Object::new("rules.kubeedge.io/v1", "Rule", "default", name);
    object.set(&["metadata", "uid"], format!("uid-{name}"));
    let (source, target) = (format!("my-{source}"), format!("my-{target}"));
    let spec = json!({"source": source, "sourceResource": of, "target": target, "targetResource": to});
    object.set(&["spec"], spec);
    object
}

fn table(rules: &[Object]) -> Table {
    Table::compile(rules.iter(), &endpoints("default"))
}

fn one(rule: Object) -> Result<(From, To), String> {
    let table = table(&[rule]);
    match table.routes.values().next() {
        Some(route) => Ok((route.from.clone(), route.to.clone())),
        None => Err(table.broken.into_values().next().unwrap()),
    }
}

fn n1() -> NodeName {
    NodeName::new("n1").unwrap()
}

#[test]
fn the_rules_of_kubeedges_documentation_are_followed() {
    let filters = |topic: &str| From::Node(n1(), vec![topic.to_owned()]);
    let path = |path: &str| From::Rest(vec![Some(path.to_owned())]);
    let url = || To::Url("http://127.0.0.1:8080/hello".into());
    for (source, of, target, to, want) in [
        (
            "rest",
            json!({"path": "/a"}),
            "eventbus",
            json!({"topic": "test"}),
            (path("a"), To::Topic("test".into())),
        ),
        (
            "eventbus",
            json!({"topic": "test", "node_name": "n1"}),
            "rest",
            json!({"resource": "http://127.0.0.1:8080/hello"}),
            (filters("default.test"), url()),
        ),
        (
            "rest",
            json!({"path": "/source/"}),
            "servicebus",
            json!({"path": "target"}),
            (path("source"), To::Service { port: 6666, path: "/target".into() }),
        ),
        (
            "servicebus",
            json!({"target_url": "http://x/y", "node_name": "n1"}),
            "rest",
            json!({"resource": "http://127.0.0.1:8080/hello"}),
            (From::Service(n1(), "http://x/y".into()), url()),
        ),
    ] {
        assert_eq!(one(rule("r", source, of.clone(), target, to)), Ok(want), "{source} {of}");
    }
}

#[test]
fn a_rule_that_cannot_be_followed_says_why() {
    let topic = |topic: &str| json!({"topic": topic, "node_name": "n1"});
    let at = |subject: &str| json!({"subject": subject, "node_name": "n1"});
    let url = || json!({"resource": "http://a/b"});
    for (source, of, target, to, word) in [
        ("rest", json!({}), "eventbus", json!({"topic": "t"}), "spec.sourceResource.path is missing"),
        ("rest", json!({"path": "/"}), "eventbus", json!({"topic": "t"}), "from 1 to 64 segments"),
        ("rest", json!({"path": "/a"}), "eventbus", json!({}), "spec.targetResource.topic is missing"),
        ("rest", json!({"path": "/a"}), "eventbus", json!({"topic": "a/#"}), "no wildcard"),
        ("rest", json!({"path": "/a"}), "eventbus", json!({"topic": "a b"}), "can be published to"),
        (
            "rest",
            json!({"path": "/a"}),
            "eventbus",
            json!({"topic": "$JS/API/STREAM/DELETE/UPLINK"}),
            "reserved",
        ),
        ("rest", json!({"path": "/a"}), "eventbus", json!({"topic": "up/default/x"}), "reserved"),
        ("rest", json!({"path": "/a"}), "eventbus", json!({"topic": "app/other/x"}), "reserved"),
        ("rest", json!({"path": "/a"}), "eventbus", json!({"topic": "_INBOX/x"}), "reserved"),
        (
            "rest",
            json!({"path": "/a"}),
            "eventbus",
            json!({"topic": "$hw/events/device/other/d/x"}),
            "reserved",
        ),
        ("rest", json!({"path": "/a"}), "rest", url(), "no rule goes to"),
        ("eventbus", json!({"topic": "t"}), "rest", url(), "spec.sourceResource.node_name is missing"),
        ("eventbus", topic("a b"), "rest", url(), "space"),
        ("eventbus", topic("t"), "eventbus", json!({"topic": "t"}), "no rule goes to"),
        ("eventbus", topic("t"), "rest", json!({"resource": "ftp://a/b"}), "http:// or https://"),
        ("eventbus", topic("t"), "rest", json!({"resource": "x"}), "spec.targetResource.resource"),
        (
            "servicebus",
            json!({"node_name": "n1"}),
            "rest",
            url(),
            "spec.sourceResource.target_url is missing",
        ),
        (
            "servicebus",
            json!({"node_name": "n1", "target_url": "u"}),
            "nats",
            json!({"subject": "app.default.x"}),
            "no rule goes to",
        ),
        ("nats", at("up.default.x"), "rest", url(), "reserved"),
        ("nats", at("app.other.x"), "rest", url(), "reserved"),
        ("nats", at(">"), "rest", url(), "not within"),
        ("nats", json!({"subject": "from.*.other.x"}), "rest", url(), "use from."),
        ("nats", json!({"subject": "from.>"}), "rest", url(), "use from."),
        ("nats", json!({"subject": "from.*._rule.default.>"}), "rest", url(), "use from."),
        ("eventbus", topic("t"), "nats", json!({"subject": "x.y"}), "at the hub"),
        ("gone", json!({}), "rest", url(), "there is no RuleEndpoint \"my-gone\""),
    ] {
        let why = one(rule("r", source, of.clone(), target, to.clone())).unwrap_err();
        assert!(why.contains(word), "{source} {of} {target} {to}: {why}");
    }
    let mut wrong = rule("r", "rest", json!({"path": "/a"}), "eventbus", json!({"topic": "t"}));
    wrong.set(&["spec", "filter"], "payload.c >");
    let why = one(wrong).unwrap_err();
    assert!(why.contains("spec.filter") && why.contains("line 1, column"), "{why}");
}

#[test]
fn a_namespace_that_is_called_as_a_class_gets_no_more_than_its_own() {
    for namespace in ["up", "from", "ew", "app"] {
        let mut object = rule(
            "r",
            "eventbus",
            json!({"topic": "t", "node_name": "n1"}),
            "rest",
            json!({"resource": "http://a"}),
        );
        object.set(&["metadata", "namespace"], namespace);
        let table = Table::compile([object].iter(), &endpoints(namespace));
        assert!(table.routes.is_empty(), "{namespace}: {table:?}");
    }
}

#[test]
fn a_call_finds_the_rule_with_the_longest_path() {
    let rest =
        |name: &str, path: &str| rule(name, "rest", json!({"path": path}), "eventbus", json!({"topic": "t"}));
    let table =
        table(&[rest("a", "/a"), rest("ab", "a/b/"), rest("wild", "/a/{any}/c"), rest("abc", "/a/b/c")]);
    for (namespace, path, want) in [
        ("default", "a", Some(("a", ""))),
        ("default", "a/x", Some(("a", "x"))),
        ("default", "a/b", Some(("ab", ""))),
        ("default", "a/b/x/y", Some(("ab", "x/y"))),
        ("default", "a/b/c", Some(("abc", ""))),
        ("default", "a/x/c/d", Some(("wild", "d"))),
        ("default", "a//b", Some(("ab", ""))),
        ("default", "ab", None),
        ("default", "", None),
        ("other", "a", None),
    ] {
        let found = table.rest(namespace, path);
        let found = found.as_ref().map(|(route, beyond)| (route.name.as_str(), beyond.as_str()));
        assert_eq!(found, want, "{namespace} {path}");
    }
}

#[test]
fn a_node_keeps_what_its_rules_take_and_each_message_finds_its_rules() {
    let of = |name: &str, node: &str, topic: &str| {
        let of = json!({"topic": topic, "node_name": node});
        rule(name, "eventbus", of, "rest", json!({"resource": "http://a"}))
    };
    let table = table(&[
        of("one", "n1", "t/x"),
        of("two", "n1", "/t/+"),
        of("all", "n1", "u/#"),
        of("far", "n2", "t/x"),
    ]);
    assert_eq!(table.sources(&n1()), ["default.t.*", "default.u", "default.u.>"]);
    for (subject, want) in [
        ("default.t.x", vec!["one", "two"]),
        ("default.t.y", vec!["two"]),
        ("default.u", vec!["all"]),
        ("default.u.v.w", vec!["all"]),
        ("default.t", vec![]),
        ("other.t.x", vec![]),
    ] {
        let mut names: Vec<_> =
            table.on_node(&n1(), subject).into_iter().map(|route| route.name.clone()).collect();
        names.sort();
        assert_eq!(names, want, "{subject}");
    }
}

#[test]
fn what_a_rule_may_say_is_free_or_its_own() {
    for (subject, may) in [
        ("test", true),
        ("factory.temp", true),
        ("default.x", true),
        ("app.default.x", true),
        ("local.default.x", true),
        ("$hw.events.device.default.d1.twin.update", true),
        ("app.default", false),
        ("app.other.x", false),
        ("down.default.x", false),
        ("bulk.default.x", false),
        ("ew.cmd.n1.x", false),
        ("$KV.local.x", false),
        ("$MQTT.sub.x", false),
        ("_rules.none", false),
        ("", false),
        ("a..b", false),
        ("a.*", false),
        ("a.b>", false),
    ] {
        assert_eq!(givable(subject, "default").is_ok(), may, "{subject:?}");
    }
}

#[test]
fn filters_that_meet_become_one() {
    for (filters, want) in [
        (vec![], vec![]),
        (vec!["d.a", "d.a"], vec!["d.a"]),
        (vec!["d.a", "d.b"], vec!["d.a", "d.b"]),
        (vec!["d.*", "d.a", "d.a.b"], vec!["d.*", "d.a.b"]),
        (vec!["d.a.>", "d.a.b.c", "d.*"], vec!["d.*", "d.a.>"]),
        (vec!["d.*.c", "d.b.*"], vec!["d.>"]),
        (vec!["d.x.*.c", "d.x.b.*", "d.x.q"], vec!["d.x.>"]),
    ] {
        let filters = filters.into_iter().map(str::to_owned).collect();
        assert_eq!(union(filters), want);
    }
}

proptest! {
    #[test]
    fn a_union_misses_nothing_and_no_two_of_it_meet(
        filters in prop::collection::vec("d(\\.[abc*]){1,3}(\\.>)?", 0..6), subject in "d(\\.[abc]){1,4}"
    ) {
        let all = union(filters.clone());
        if filters.iter().any(|filter| subject::matches(filter, &subject)) {
            prop_assert!(all.iter().any(|filter| subject::matches(filter, &subject)), "{all:?} misses {subject}");
        }
        for (at, one) in all.iter().enumerate() {
            prop_assert!(all[at + 1..].iter().all(|other| !pattern::overlaps(one, other)), "{all:?}");
        }
    }
}
