//! From objects to entries.

use schemas::desired::Content;
use serde_json::json;

use crate::world::{World, data, pod};

fn referencing() -> serde_json::Value {
    json!({
        "imagePullSecrets": [{"name": "pull"}],
        "volumes": [
            {"name": "a", "configMap": {"name": "vol"}},
            {"name": "b", "projected": {"sources": [{"secret": {"name": "proj"}}]}},
        ],
        "containers": [{
            "name": "c",
            "envFrom": [{"configMapRef": {"name": "all"}}],
            "env": [{"name": "K", "valueFrom": {"secretKeyRef": {"name": "one", "key": "k"}}}],
        }],
    })
}

#[test]
fn a_node_gets_its_pods_and_what_they_reference_and_nothing_else() {
    let mut world = World::new();
    for (kind, plural, name) in [
        ("ConfigMap", "configmaps", "vol"),
        ("ConfigMap", "configmaps", "all"),
        ("ConfigMap", "configmaps", "other"),
        ("Secret", "secrets", "pull"),
        ("Secret", "secrets", "proj"),
        ("Secret", "secrets", "one"),
        ("Secret", "secrets", "vol"),
    ] {
        world.put(plural, &data(kind, name, &format!("u-{name}"), "v"));
    }
    world.put("pods", &pod("a", "1", "n1", referencing()));
    world.put("pods", &pod("b", "2", "n2", json!({})));
    world.put("pods", &pod("waiting", "3", "", referencing()));
    assert_eq!(
        world.told("n1"),
        [
            "configmaps/all/u-all",
            "configmaps/vol/u-vol",
            "pods/a/1",
            "secrets/one/u-one",
            "secrets/proj/u-proj",
            "secrets/pull/u-pull"
        ]
    );
    assert_eq!(world.told("n2"), ["pods/b/2"]);
    let before = world.writes;
    world.start();
    assert_eq!(world.writes, before, "a restart writes nothing anew");
}

#[test]
fn only_what_matters_to_the_node_is_told_again() {
    let mut world = World::new();
    let mut pod = pod("a", "1", "n1", json!({}));
    let made = world.put("pods", &pod);
    let told = |world: &World| world.held("n1", "pods", "a", "1").unwrap().resource_version;
    assert_eq!(told(&world), made);
    for path in [
        &["status", "phase"][..],
        &["metadata", "annotations", "edgewire.io/report-sequence"],
        &["metadata", "annotations", "kubectl.kubernetes.io/last-applied-configuration"],
        &["metadata", "managedFields"],
    ] {
        pod.set(path, "x");
        world.put("pods", &pod);
        assert_eq!(told(&world), made, "{path:?}");
    }
    for path in [
        &["metadata", "labels", "a"][..],
        &["metadata", "annotations", "a"],
        &["metadata", "deletionTimestamp"],
        &["metadata", "deletionGracePeriodSeconds"],
        &["spec", "unknown"],
    ] {
        pod.set(path, "x");
        let revision = world.put("pods", &pod);
        assert_eq!(told(&world), revision, "{path:?}");
    }
}

#[test]
fn a_configmap_edit_is_told_and_its_removal_leaves_a_tombstone() {
    let mut world = World::new();
    world.put("pods", &pod("a", "1", "n1", referencing()));
    assert_eq!(world.told("n1"), ["pods/a/1"], "what does not exist yet cannot be told");
    world.put("configmaps", &data("ConfigMap", "vol", "u", "1"));
    let revision = world.put("configmaps", &data("ConfigMap", "vol", "u", "2"));
    let held = world.held("n1", "configmaps", "vol", "u").unwrap();
    assert_eq!(held.resource_version, revision);
    let Content::Object(object) = held.content else { panic!() };
    assert_eq!(object.text(&["data", "k"]), "2");
    let gone = world.remove("configmaps", "vol");
    assert_eq!(world.told("n1"), ["-configmaps/vol/u", "pods/a/1"]);
    assert_eq!(world.held("n1", "configmaps", "vol", "u").unwrap().resource_version, gone);
}

#[test]
fn what_is_no_longer_referenced_goes_and_comes_back() {
    let mut world = World::new();
    world.put("configmaps", &data("ConfigMap", "vol", "u", "1"));
    world.put("pods", &pod("a", "1", "n1", referencing()));
    world.put("pods", &pod("a", "1", "n1", json!({})));
    assert_eq!(world.told("n1"), ["-configmaps/vol/u", "pods/a/1"]);
    world.put("pods", &pod("a", "1", "n1", referencing()));
    assert_eq!(world.told("n1"), ["configmaps/vol/u", "pods/a/1"]);
}

#[test]
fn a_removed_pod_leaves_a_tombstone_also_when_it_went_while_nobody_looked() {
    for looked in [true, false] {
        let mut world = World::new();
        world.put("configmaps", &data("ConfigMap", "vol", "u", "1"));
        world.put("pods", &pod("a", "1", "n1", referencing()));
        if looked {
            world.remove("pods", "a");
        } else {
            let last = world.object("pods", "a").unwrap().to_bytes();
            let value = bus::module::EntryValue::Removed(last);
            world.objects.write("=.pods.default.a", value, bus::module::Expect::Any).unwrap();
            world.start();
        }
        assert_eq!(world.told("n1"), ["-configmaps/vol/u", "-pods/a/1"], "looked: {looked}");
        assert_eq!(world.module.orphans().count(), 0);
    }
}

#[test]
fn a_pod_made_again_under_the_same_name_is_another() {
    let mut world = World::new();
    world.put("pods", &pod("a", "1", "n1", json!({})));
    world.put("pods", &pod("a", "2", "n1", json!({})));
    assert_eq!(world.told("n1"), ["-pods/a/1", "pods/a/2"]);
    world.put("pods", &pod("a", "3", "n2", json!({})));
    assert_eq!(world.told("n1"), ["-pods/a/1", "-pods/a/2"]);
    assert_eq!(world.told("n2"), ["pods/a/3"]);
}

#[test]
fn absence_is_never_deletion() {
    let mut world = World::new();
    world.put("configmaps", &data("ConfigMap", "vol", "u", "1"));
    world.put("pods", &pod("a", "1", "n1", referencing()));
    let before = world.told("n1");
    // The store of objects came back empty.
    world.objects = Default::default();
    world.start();
    assert_eq!(world.told("n1"), before);
    assert_eq!(world.module.orphans().count(), 2);
    // Other work goes on beside the orphans, and does not touch them.
    world.put("pods", &pod("b", "9", "n1", json!({})));
    assert_eq!(world.told("n1"), ["configmaps/vol/u", "pods/a/1", "pods/b/9"]);
}

#[test]
fn an_older_backup_of_the_objects_stops_nothing_and_brings_nothing_back() {
    let mut world = World::new();
    world.put("pods", &pod("gone", "2", "n1", json!({})));
    world.put("pods", &pod("a", "1", "", json!({})));
    let backup = world.objects.clone();
    world.put("pods", &pod("a", "1", "n1", json!({"v": 2})));
    world.remove("pods", "gone");
    let before = world.told("n1");
    assert_eq!(before, ["-pods/gone/2", "pods/a/1"]);
    world.objects = backup;
    world.start();
    assert_eq!(world.told("n1"), before);
    assert!(world.module.orphans().count() >= 1);
}

#[test]
fn an_older_pod_under_the_name_is_no_proof_that_the_newer_one_is_gone() {
    let mut world = World::new();
    world.put("pods", &pod("a", "1", "n1", json!({})));
    let backup = world.objects.clone();
    world.put("pods", &pod("a", "2", "n1", json!({})));
    let before = world.told("n1");
    assert_eq!(before, ["-pods/a/1", "pods/a/2"]);
    world.objects = backup;
    world.start();
    assert_eq!(world.told("n1"), before);
    assert_eq!(world.module.orphans().count(), 2);
}

#[test]
fn an_older_version_of_an_object_does_not_replace_a_newer_one() {
    let mut world = World::new();
    world.put("pods", &pod("a", "1", "n1", json!({"v": 1})));
    let backup = world.objects.clone();
    let newer = world.put("pods", &pod("a", "1", "n1", json!({"v": 2})));
    world.objects = backup;
    world.start();
    assert_eq!(world.held("n1", "pods", "a", "1").unwrap().resource_version, newer);
}

#[test]
fn entries_say_who_wrote_them_and_another_generation_is_written_anew() {
    let mut world = World::new();
    world.put("pods", &pod("a", "1", "n1", json!({})));
    let held = world.held("n1", "pods", "a", "1").unwrap();
    assert_eq!((held.generation.as_str(), held.epoch.as_str()), ("g", "e1"));
    world.desired.entries.remove("_lineage");
    world.begin_epoch("g2", "e2");
    world.start();
    let held = world.held("n1", "pods", "a", "1").unwrap();
    assert_eq!((held.generation.as_str(), held.epoch.as_str()), ("g2", "e2"));
}

#[test]
fn nothing_is_written_before_everything_was_read() {
    let mut world = World::stopped();
    world.put("pods", &pod("a", "1", "n1", json!({})));
    world.settle();
    assert_eq!(world.writes, 0);
    world.start();
    assert_eq!(world.told("n1"), ["pods/a/1"]);
}

#[test]
fn bad_objects_break_nothing() {
    let mut world = World::new();
    world.put("pods", &pod("ok", "1", "n1", json!({"volumes": 7, "containers": [null, {"env": "x"}]})));
    world.put("pods", &pod("badnode", "2", "No Such Node!", json!({})));
    world.put("pods", &pod("nouid", "", "n1", json!({})));
    world
        .bucket("objects")
        .write("x", bus::module::EntryValue::Put(vec![0xc1]), bus::module::Expect::Any)
        .unwrap();
    let key = "=.pods.default.ok";
    world.write("objects", key, bus::module::EntryValue::Put(vec![0xc1]), bus::module::Expect::Any).unwrap();
    world.settle();
    world.start();
    assert_eq!(world.told("n1"), ["pods/ok/1"], "what cannot be read is not gone");
}
