//! Objects that go to the nodes that they select.

use schemas::desired::Content;
use serde_json::json;

use crate::world::{World, node, pod, selecting};

fn site(site: &str) -> serde_json::Value {
    json!({"nodeSelector": {"site": site}})
}

/// Two nodes of site `a` and one of site `b`.
fn world() -> World {
    let mut world = World::new();
    for (name, at) in [("n1", "a"), ("n2", "a"), ("n3", "b")] {
        world.put("nodes", &node(name, json!({"site": at})));
    }
    world
}

#[test]
fn each_kind_reaches_the_nodes_that_it_selects_and_no_other() {
    let mut world = world();
    world.put("topics", &selecting("Topic", "t", "1", site("a")));
    world.put("topicmaps", &selecting("TopicMap", "m", "2", json!({})));
    world.put("rules", &selecting("Rule", "r", "3", json!({"sourceResource": {"node_name": "n3"}})));
    world.put("rules", &selecting("Rule", "all", "4", json!({"sourceResource": {"path": "/"}})));
    world.put("ruleendpoints", &selecting("RuleEndpoint", "e", "5", json!({"ruleEndpointType": "rest"})));
    assert_eq!(world.told("n1"), ["ruleendpoints/e/5", "rules/all/4", "topicmaps/m/2", "topics/t/1"]);
    assert_eq!(world.told("n2"), world.told("n1"));
    assert_eq!(world.told("n3"), ["ruleendpoints/e/5", "rules/all/4", "rules/r/3", "topicmaps/m/2"]);
    let before = world.writes;
    world.start();
    assert_eq!(world.writes, before, "a restart writes nothing anew");
    // Nodes that come later are told as well; what a Rule's counters say goes nowhere.
    world.put("nodes", &node("n4", json!({"site": "b"})));
    assert_eq!(world.told("n4"), ["ruleendpoints/e/5", "rules/all/4", "topicmaps/m/2"]);
    let before = world.writes;
    let mut rule = world.object("rules", "r").unwrap();
    rule.set(&["status", "successMessages"], 7);
    world.put("rules", &rule);
    assert_eq!(world.writes, before);
}

#[test]
fn an_edit_is_told_and_a_removal_leaves_a_tombstone() {
    let mut world = world();
    world.put("topics", &selecting("Topic", "t", "1", json!({"v": 1})));
    let revision = world.put("topics", &selecting("Topic", "t", "1", json!({"v": 2})));
    let held = world.held("n1", "topics", "t", "1").unwrap();
    assert_eq!(held.resource_version, revision);
    let Content::Object(object) = held.content else { panic!() };
    assert_eq!(object.get(&["spec", "v"]).unwrap(), 2);
    let gone = world.remove("topics", "t");
    for node in ["n1", "n2", "n3"] {
        assert_eq!(world.told(node), ["-topics/t/1"]);
        assert_eq!(world.held(node, "topics", "t", "1").unwrap().resource_version, gone);
    }
    world.put("topics", &selecting("Topic", "t", "2", json!({})));
    assert_eq!(world.told("n1"), ["-topics/t/1", "topics/t/2"]);
}

#[test]
fn a_removal_while_nobody_looked_leaves_a_tombstone() {
    let mut world = world();
    world.put("topics", &selecting("Topic", "t", "1", json!({})));
    let last = world.object("topics", "t").unwrap().to_bytes();
    let value = bus::module::EntryValue::Removed(last);
    let key = "edgewire=2Eio.topics.default.t";
    world.objects.write(key, value, bus::module::Expect::Any).unwrap();
    world.start();
    assert_eq!(world.told("n1"), ["-topics/t/1"]);
    assert_eq!(world.module.orphans().count(), 0);
}

#[test]
fn labels_and_selectors_move_objects_between_nodes() {
    let mut world = world();
    world.put("topics", &selecting("Topic", "t", "1", site("a")));
    assert_eq!(world.told("n3"), Vec::<String>::new());
    world.put("nodes", &node("n3", json!({"site": "a"})));
    assert_eq!(world.told("n3"), ["topics/t/1"]);
    world.put("nodes", &node("n3", json!({"site": "c"})));
    assert_eq!(world.told("n3"), ["-topics/t/1"]);
    world.put("nodes", &node("n3", json!({"site": "a"})));
    assert_eq!(world.told("n3"), ["topics/t/1"], "a label that comes back brings it back");
    world.put("topics", &selecting("Topic", "t", "1", site("b")));
    for node in ["n1", "n2", "n3"] {
        assert_eq!(world.told(node), ["-topics/t/1"]);
    }
}

#[test]
fn absence_is_never_deletion() {
    let mut world = world();
    world.put("topics", &selecting("Topic", "t", "1", site("a")));
    world.put("rules", &selecting("Rule", "r", "2", json!({})));
    let before = world.told("n1");
    assert_eq!(before, ["rules/r/2", "topics/t/1"]);
    // A node that is gone, with and without a trace, and then the whole store.
    let key = "=.nodes.=.n1";
    let value = bus::module::EntryValue::Removed(Vec::new());
    world.write("objects", key, value, bus::module::Expect::Any).unwrap();
    world.settle();
    assert_eq!(world.told("n1"), before);
    world.objects.entries.remove(key);
    world.start();
    assert_eq!(world.told("n1"), before);
    // But what goes then goes there too.
    world.remove("rules", "r");
    assert_eq!(world.told("n1"), ["-rules/r/2", "topics/t/1"]);
    world.objects = Default::default();
    world.start();
    assert_eq!(world.told("n1"), ["-rules/r/2", "topics/t/1"]);
    assert!(world.module.orphans().count() >= 1);
    world.put("nodes", &node("n1", json!({"site": "elsewhere"})));
    assert_eq!(world.told("n1"), ["-rules/r/2", "topics/t/1"], "nobody knows what the Topic says now");
}

#[test]
fn an_older_backup_takes_nothing_away_and_brings_nothing_back() {
    let mut world = world();
    world.put("topics", &selecting("Topic", "t", "1", site("b")));
    world.put("topics", &selecting("Topic", "gone", "2", json!({})));
    let backup = world.objects.clone();
    world.put("topics", &selecting("Topic", "t", "1", site("a")));
    world.remove("topics", "gone");
    let before = world.told("n1");
    assert_eq!(before, ["-topics/gone/2", "topics/t/1"]);
    world.objects = backup;
    world.start();
    assert_eq!(world.told("n1"), before);
}

#[test]
fn a_selector_that_cannot_be_read_decides_nothing() {
    let mut world = world();
    world.put("topics", &selecting("Topic", "t", "1", site("a")));
    world.put("topics", &selecting("Topic", "t", "1", json!({"nodeSelector": 7})));
    assert_eq!(world.told("n1"), ["topics/t/1"]);
    world.put("rules", &selecting("Rule", "r", "2", json!({"sourceResource": {"node_name": "No!"}})));
    assert_eq!(world.told("n1"), ["topics/t/1"]);
}

#[test]
fn a_persons_release_knows_the_group() {
    let mut world = world();
    world.put("topics", &selecting("Topic", "t", "1", json!({})));
    let release = |world: &mut World| {
        let body = schemas::desired::Release {
            node: "n1".parse().unwrap(),
            key: crate::world::key("topics", "t", "1"),
        };
        world.ask_at::<()>("ew.local.placement.release".into(), schemas::encode(&body))
    };
    assert_eq!(release(&mut world).unwrap_err().code, "EW-RELEASE-KNOWN");
    world.objects = Default::default();
    world.start();
    assert_eq!(release(&mut world), Ok(()));
    assert_eq!(world.told("n1"), ["-topics/t/1"]);
}

#[test]
fn pods_and_what_selects_live_side_by_side() {
    let mut world = world();
    world.put("pods", &pod("a", "1", "n1", json!({})));
    world.put("topics", &selecting("Topic", "t", "1", json!({})));
    world.remove("pods", "a");
    assert_eq!(world.told("n1"), ["-pods/a/1", "topics/t/1"]);
}
