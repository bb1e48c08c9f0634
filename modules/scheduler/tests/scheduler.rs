//! Which node a pod gets, why it gets none, and what is written for it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails, in its helpers too"
)]

use bus::module::{Effect, Entry, EntryValue, Expect, Input, Module, Never, WriteError};
use scheduler::Scheduler;
use schemas::Timestamp;
use schemas::object::Object;
use serde_json::{Value, json};

type Effects = Vec<Effect<Never>>;
const NOW: Timestamp = Timestamp(1_700_000_000_000);

fn node(name: &str, edit: Value) -> Object {
    let mut node = Object::new("v1", "Node", "", name);
    node.set(&["metadata", "labels", "kubernetes.io/hostname"], name);
    node.set(&["status", "allocatable"], json!({"cpu": "1", "memory": "1Gi", "pods": "10"}));
    node.set_condition("Ready", "True", "EdgewireReady", "", NOW);
    merged(node, edit)
}

fn pod(name: &str, spec: Value) -> Object {
    let mut pod = Object::new("v1", "Pod", "default", name);
    pod.set(&["metadata", "uid"], format!("uid-{name}"));
    pod.set(&["spec"], spec);
    pod.set(&["status", "phase"], "Pending");
    pod
}

fn asking(cpu: &str) -> Value {
    json!({"containers": [{"resources": {"requests": {"cpu": cpu}}}]})
}

/// `edit` laid over the object, objects within objects too.
fn merged(object: Object, edit: Value) -> Object {
    fn lay(to: &mut Value, edit: Value) {
        match (to, edit) {
            (Value::Object(to), Value::Object(edit)) => {
                for (name, value) in edit {
                    lay(to.entry(name).or_insert(Value::Null), value);
                }
            }
            (to, edit) => *to = edit,
        }
    }
    let mut value = Value::from(object);
    lay(&mut value, edit);
    Object::try_from(value).unwrap()
}

fn key(object: &Object) -> String {
    match object.kind() {
        "Node" => format!("=.nodes.=.{}", object.name()),
        _ => format!("=.pods.default.{}", object.name()),
    }
}

fn entry(object: &Object, revision: u64) -> Input<Never> {
    let value = EntryValue::Put(object.to_bytes());
    Input::Entry(Entry { bucket: "objects".into(), key: key(object), revision, value })
}

fn removed(object: &Object, revision: u64) -> Input<Never> {
    let value = EntryValue::Removed(object.to_bytes());
    Input::Entry(Entry { bucket: "objects".into(), key: key(object), revision, value })
}

fn current(filter: &str) -> Input<Never> {
    Input::Current { bucket: "objects".into(), filter: filter.into() }
}

fn started(nodes: &[Object]) -> Scheduler {
    let mut scheduler = Scheduler::new("seed");
    for (at, node) in nodes.iter().enumerate() {
        assert_eq!(scheduler.apply(entry(node, at as u64 + 1), NOW), vec![]);
    }
    assert_eq!(scheduler.apply(current("=.nodes.=.*"), NOW), vec![]);
    assert_eq!(scheduler.apply(current("=.pods.*.*"), NOW), vec![]);
    scheduler
}

struct Put {
    object: Object,
    expect: Expect,
    token: u64,
}

fn puts(effects: &Effects, plural: &str) -> Vec<Put> {
    let of = |key: &str| key.split('.').nth(1) == Some(plural);
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Put { key, value, expect, token, .. } if of(key) => {
                Some(Put { object: Object::from_bytes(value, 0).unwrap(), expect: *expect, token: *token })
            }
            _ => None,
        })
        .collect()
}

fn wrote(put: &Put, revision: u64) -> Input<Never> {
    Input::Wrote { token: put.token, outcome: Ok(revision) }
}

/// Where the pod goes, or the condition's message.
fn outcome(nodes: &[Object], pod: &Object) -> Result<String, String> {
    let effects = started(nodes).apply(entry(pod, 100), NOW);
    let puts = puts(&effects, "pods");
    let [put] = puts.as_slice() else { panic!("{effects:?}") };
    assert_eq!(put.expect, Expect::Revision(100));
    match put.object.text(&["spec", "nodeName"]) {
        "" => {
            assert_eq!(put.object.condition("PodScheduled"), Some("False"));
            let conditions = put.object.get(&["status", "conditions"]).unwrap();
            assert_eq!(conditions[0]["reason"], "Unschedulable");
            Err(conditions[0]["message"].as_str().unwrap().to_owned())
        }
        node => {
            assert_eq!(put.object.condition("PodScheduled"), Some("True"));
            Ok(node.to_owned())
        }
    }
}

fn term(key: &str, operator: &str, values: Value) -> Value {
    affinity(json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]))
}

fn affinity(terms: Value) -> Value {
    json!({"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
}

#[test]
fn a_node_that_cannot_have_the_pod_says_why_in_kubernetes_words() {
    let taint = |key: &str, value: &str, effect: &str| json!({"spec": {"taints": [{"key": key, "value": value, "effect": effect}]}});
    let tolerate = |toleration: Value| json!({"tolerations": [toleration]});
    let labels = json!({"metadata": {"labels": {"zone": "a", "size": "5"}}});
    let ok: Result<&str, &str> = Ok("n1");
    let tainted = Err("0/1 nodes are available: 1 node(s) had untolerated taint {k: v}.");
    let elsewhere = Err("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.");
    let none = json!({});
    for (node_edit, spec, want) in [
        (none.clone(), none.clone(), ok),
        (
            json!({"spec": {"unschedulable": true}}),
            none.clone(),
            Err("0/1 nodes are available: 1 node(s) were unschedulable."),
        ),
        (
            json!({"spec": {"unschedulable": true}}),
            tolerate(json!({"key": "node.kubernetes.io/unschedulable", "operator": "Exists"})),
            ok,
        ),
        (
            json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}),
            tolerate(json!({"operator": "Exists"})),
            Err("0/1 nodes are available: 1 node(s) were not ready."),
        ),
        (
            json!({"metadata": {"deletionTimestamp": "x"}}),
            none.clone(),
            Err("0/1 nodes are available: 1 node(s) were not ready."),
        ),
        (taint("k", "v", "NoSchedule"), none.clone(), tainted),
        (taint("k", "v", "NoExecute"), none.clone(), tainted),
        (taint("k", "v", "PreferNoSchedule"), none.clone(), ok),
        (taint("k", "v", "NoSchedule"), tolerate(json!({"key": "k", "value": "v"})), ok),
        (
            taint("k", "v", "NoSchedule"),
            tolerate(json!({"key": "k", "operator": "Equal", "value": "w"})),
            tainted,
        ),
        (
            taint("k", "v", "NoSchedule"),
            tolerate(json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"})),
            ok,
        ),
        (
            taint("k", "v", "NoSchedule"),
            tolerate(json!({"key": "k", "operator": "Exists", "effect": "NoExecute"})),
            tainted,
        ),
        (taint("k", "v", "NoSchedule"), tolerate(json!({"operator": "Exists"})), ok),
        (taint("k", "v", "NoSchedule"), tolerate(json!({"value": "v"})), tainted),
        (labels.clone(), json!({"nodeSelector": {"zone": "a"}}), ok),
        (labels.clone(), json!({"nodeSelector": {"zone": "b"}}), elsewhere),
        (labels.clone(), json!({"nodeSelector": {"absent": ""}}), elsewhere),
        (labels.clone(), term("zone", "In", json!(["b", "a"])), ok),
        (labels.clone(), term("zone", "In", json!(["b"])), elsewhere),
        (labels.clone(), term("zone", "NotIn", json!(["b"])), ok),
        (labels.clone(), term("absent", "NotIn", json!(["b"])), ok),
        (labels.clone(), term("zone", "NotIn", json!(["a"])), elsewhere),
        (labels.clone(), term("zone", "Exists", Value::Null), ok),
        (labels.clone(), term("absent", "Exists", Value::Null), elsewhere),
        (labels.clone(), term("absent", "DoesNotExist", Value::Null), ok),
        (labels.clone(), term("zone", "DoesNotExist", Value::Null), elsewhere),
        (labels.clone(), term("size", "Gt", json!(["4"])), ok),
        (labels.clone(), term("size", "Gt", json!(["5"])), elsewhere),
        (labels.clone(), term("size", "Lt", json!(["6"])), ok),
        (labels.clone(), term("size", "Lt", json!(["5"])), elsewhere),
        (labels.clone(), term("zone", "Gt", json!(["5"])), elsewhere),
        (labels.clone(), term("zone", "Unheard", json!(["a"])), elsewhere),
        (none.clone(), affinity(json!([])), elsewhere),
        (none.clone(), affinity(json!([{}])), elsewhere),
        (
            none.clone(),
            affinity(
                json!([{}, {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]),
            ),
            ok,
        ),
        (
            none.clone(),
            affinity(
                json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}]),
            ),
            elsewhere,
        ),
        (none.clone(), asking("1"), ok),
        (none.clone(), asking("1001m"), Err("0/1 nodes are available: 1 Insufficient cpu.")),
        (
            none.clone(),
            json!({"containers": [{"resources": {"limits": {"cpu": 2, "memory": "2Gi"}}}]}),
            Err("0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory."),
        ),
        (
            none.clone(),
            json!({"containers": [{"resources": {"requests": {"vendor/gpu": "1", "ephemeral-storage": "1Gi"}}}]}),
            Err("0/1 nodes are available: 1 Insufficient vendor/gpu."),
        ),
        (
            none.clone(),
            json!({"initContainers": [{"resources": {"requests": {"cpu": "900m"}}}],
            "containers": [{"resources": {"requests": {"cpu": "800m"}}}]}),
            ok,
        ),
        (
            none.clone(),
            json!({"initContainers": [{"resources": {"requests": {"cpu": "1100m"}}}]}),
            Err("0/1 nodes are available: 1 Insufficient cpu."),
        ),
        (
            none.clone(),
            json!({"initContainers": [{"restartPolicy": "Always", "resources": {"requests": {"cpu": "300m"}}}],
            "containers": [{"resources": {"requests": {"cpu": "800m"}}}]}),
            Err("0/1 nodes are available: 1 Insufficient cpu."),
        ),
        (
            json!({"status": {"allocatable": {"pods": "0"}}}),
            none.clone(),
            Err("0/1 nodes are available: 1 Too many pods."),
        ),
        (none.clone(), json!({"containers": 7, "tolerations": "x", "nodeSelector": []}), ok),
    ] {
        let nodes = [node("n1", node_edit.clone())];
        let got = outcome(&nodes, &pod("a", spec.clone()));
        assert_eq!(got.as_deref().map_err(String::as_str), want, "{node_edit} {spec}");
    }
}

#[test]
fn the_message_counts_all_nodes() {
    let taint = json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}});
    let nodes = [node("a", taint), node("b", json!({})), node("c", json!({}))];
    let want = "0/3 nodes are available: 1 node(s) had untolerated taint {k: v}, 2 Insufficient cpu.";
    assert_eq!(outcome(&nodes, &pod("p", asking("2"))), Err(want.to_owned()));
    assert_eq!(outcome(&[], &pod("p", json!({}))), Err("no nodes available to schedule pods".to_owned()));
}

#[test]
fn the_best_node_is_the_emptiest_then_the_first() {
    let soft = json!({"spec": {"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}});
    let big = json!({"status": {"allocatable": {"cpu": "8", "memory": "8Gi"}}});
    let prefer = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 50, "preference": {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}}]}}});
    for (nodes, spec, want) in [
        ([node("a", json!({})), node("b", json!({}))], json!({}), "a"),
        ([node("a", json!({})), node("b", big.clone())], json!({}), "b"),
        ([node("a", soft.clone()), node("b", json!({}))], json!({}), "b"),
        ([node("a", soft), node("b", json!({"spec": {"unschedulable": true}}))], json!({}), "a"),
        ([node("a", json!({})), node("b", json!({}))], prefer, "b"),
    ] {
        assert_eq!(outcome(&nodes, &pod("p", spec)).as_deref(), Ok(want));
    }
}

#[test]
fn pods_being_bound_count_and_spread() {
    let mut scheduler = started(&[node("a", json!({})), node("b", json!({}))]);
    let mut placed = Vec::new();
    for (at, name) in ["p1", "p2", "p3", "p4", "p5"].into_iter().enumerate() {
        let effects = scheduler.apply(entry(&pod(name, asking("400m")), 100 + at as u64), NOW);
        placed.extend(puts(&effects, "pods").iter().map(|p| p.object.text(&["spec", "nodeName"]).to_owned()));
    }
    assert_eq!(placed, ["a", "b", "a", "b", ""], "no write was confirmed yet");
}

#[test]
fn many_waiting_pods_are_not_put_on_one_place() {
    let mut scheduler = Scheduler::new("s");
    for (at, name) in ["p1", "p2", "p3"].into_iter().enumerate() {
        scheduler.apply(entry(&pod(name, asking("400m")), 100 + at as u64), NOW);
    }
    scheduler.apply(entry(&node("a", json!({})), 1), NOW);
    assert_eq!(scheduler.apply(current("=.pods.*.*"), NOW), vec![], "nodes were not all told");
    let effects = scheduler.apply(current("=.nodes.=.*"), NOW);
    let nodes: Vec<String> =
        puts(&effects, "pods").iter().map(|p| p.object.text(&["spec", "nodeName"]).to_owned()).collect();
    assert_eq!(nodes, ["a", "a", ""]);
}

#[test]
fn a_place_that_becomes_free_is_given_away() {
    let full =
        merged(pod("full", asking("1")), json!({"spec": {"nodeName": "a"}, "status": {"phase": "Running"}}));
    let ended = merged(full.clone(), json!({"status": {"phase": "Succeeded"}}));
    type Free = fn(&Object, &Object) -> Input<Never>;
    let ways: [Free; 2] = [|full, _| removed(full, 200), |_, ended| entry(ended, 200)];
    for free in ways {
        let mut scheduler = started(&[node("a", json!({}))]);
        scheduler.apply(entry(&full, 50), NOW);
        let effects = scheduler.apply(entry(&pod("p", asking("1")), 100), NOW);
        let told = puts(&effects, "pods");
        assert_eq!(told[0].object.text(&["spec", "nodeName"]), "");
        assert_eq!(scheduler.apply(wrote(&told[0], 101), NOW), vec![]);
        let effects = scheduler.apply(free(&full, &ended), NOW);
        assert_eq!(puts(&effects, "pods")[0].object.text(&["spec", "nodeName"]), "a");
    }
}

#[test]
fn unschedulable_is_told_once_and_revised_when_a_node_comes() {
    let mut scheduler = started(&[]);
    let effects = scheduler.apply(entry(&pod("p", json!({})), 100), NOW);
    let events = puts(&effects, "events");
    let [event] = events.as_slice() else { panic!("{effects:?}") };
    assert_eq!((event.expect, event.object.text(&["reason"])), (Expect::Absent, "FailedScheduling"));
    assert_eq!(event.object.text(&["involvedObject", "uid"]), "uid-p");
    assert!(event.object.view::<k8s_openapi::api::core::v1::Event>().is_ok());
    let told = &puts(&effects, "pods")[0];
    scheduler.apply(wrote(told, 101), NOW);
    scheduler.apply(Input::Wrote { token: event.token, outcome: Err(WriteError::Conflict) }, NOW);
    assert_eq!(scheduler.apply(entry(&told.object, 101), NOW), vec![]);
    assert_eq!(scheduler.apply(Input::Tick, NOW), vec![]);
    let effects = scheduler.apply(entry(&node("a", json!({})), 102), NOW);
    let bound = &puts(&effects, "pods")[0];
    assert_eq!((bound.expect, bound.object.text(&["spec", "nodeName"])), (Expect::Revision(101), "a"));
    assert_eq!(puts(&effects, "events").len(), 0, "not said before it is written");
    let effects = scheduler.apply(wrote(bound, 103), NOW);
    assert_eq!(puts(&effects, "events")[0].object.text(&["message"]), "Successfully assigned default/p to a");
}

#[test]
fn some_pods_are_not_ours() {
    for edit in [
        json!({"spec": {"schedulerName": "other"}}),
        json!({"metadata": {"deletionTimestamp": "x"}}),
        json!({"spec": {"schedulingGates": [{"name": "g"}]}}),
        json!({"status": {"phase": "Failed"}}),
        json!({"spec": {"nodeName": "elsewhere"}, "status": {"phase": "Running"}}),
    ] {
        let pod = merged(pod("p", json!({})), edit.clone());
        assert_eq!(started(&[node("a", json!({}))]).apply(entry(&pod, 100), NOW), vec![], "{edit}");
    }
    let ours = merged(pod("p", json!({})), json!({"spec": {"schedulerName": "default-scheduler"}}));
    assert_eq!(outcome(&[node("a", json!({}))], &ours).as_deref(), Ok("a"));
}

#[test]
fn a_pod_on_an_unknown_node_says_so_until_it_joins() {
    let mut scheduler = started(&[node("a", json!({}))]);
    let mut direct = pod("p", json!({"nodeName": "b"}));
    let effects = scheduler.apply(entry(&direct, 100), NOW);
    let told = &puts(&effects, "pods")[0];
    assert_eq!(told.object.text(&["spec", "nodeName"]), "b", "it is left there");
    assert_eq!(told.object.condition("PodScheduled"), Some("False"));
    let events = puts(&effects, "events");
    assert!(events[0].object.text(&["message"]).contains("node \"b\" not found"));
    scheduler.apply(wrote(told, 101), NOW);
    let effects = scheduler.apply(entry(&node("b", json!({})), 102), NOW);
    assert_eq!(puts(&effects, "pods")[0].object.condition("PodScheduled"), Some("True"));
    direct.set_condition("PodScheduled", "True", "", "", NOW);
    assert_eq!(
        started(&[]).apply(entry(&direct, 100), NOW),
        vec![],
        "its node may be gone; it was scheduled"
    );
}

#[test]
fn a_lost_race_waits_for_the_newer_pod_and_a_failed_write_for_the_tick() {
    let mut scheduler = started(&[node("a", json!({}))]);
    let bound = puts(&scheduler.apply(entry(&pod("p", json!({})), 100), NOW), "pods");
    let conflict = Input::Wrote { token: bound[0].token, outcome: Err(WriteError::Conflict) };
    assert_eq!(scheduler.apply(conflict, NOW), vec![]);
    let bound = puts(&scheduler.apply(entry(&pod("p", json!({})), 105), NOW), "pods");
    assert_eq!(bound[0].expect, Expect::Revision(105));
    let failed = Input::Wrote { token: bound[0].token, outcome: Err(WriteError::Failed("timeout".into())) };
    assert_eq!(scheduler.apply(failed, NOW), vec![]);
    let rival = puts(&scheduler.apply(entry(&pod("q", asking("1")), 106), NOW), "pods");
    assert_eq!(rival[0].object.text(&["spec", "nodeName"]), "a", "only requests count against room");
    let again = puts(&scheduler.apply(Input::Tick, NOW), "pods");
    assert_eq!((again.len(), again[0].expect), (1, Expect::Revision(105)));
}

#[test]
fn what_may_have_been_written_keeps_its_place_until_the_tick() {
    let mut scheduler = started(&[node("a", json!({}))]);
    let bound = puts(&scheduler.apply(entry(&pod("p", asking("1")), 100), NOW), "pods");
    let failed = Input::Wrote { token: bound[0].token, outcome: Err(WriteError::Failed("timeout".into())) };
    scheduler.apply(failed, NOW);
    let rival = puts(&scheduler.apply(entry(&pod("q", asking("1")), 101), NOW), "pods");
    assert_eq!(rival[0].object.text(&["spec", "nodeName"]), "", "p may be there");
}

#[test]
fn stale_and_repeated_entries_change_nothing() {
    let mut scheduler = started(&[node("a", json!({}))]);
    let put = &puts(&scheduler.apply(entry(&pod("p", json!({})), 100), NOW), "pods")[0];
    scheduler.apply(wrote(put, 110), NOW);
    assert_eq!(scheduler.apply(entry(&pod("p", json!({})), 100), NOW), vec![], "an older one");
    assert_eq!(scheduler.apply(entry(&put.object, 110), NOW), vec![]);
    scheduler.apply(removed(&put.object, 120), NOW);
    assert_eq!(scheduler.apply(entry(&pod("p", json!({})), 115), NOW), vec![], "it is gone");
    assert_eq!(puts(&scheduler.apply(entry(&pod("p", json!({})), 121), NOW), "pods").len(), 1, "made again");
}

#[test]
fn bytes_that_are_no_object_break_nothing() {
    let mut scheduler = started(&[node("a", json!({}))]);
    for key in ["=.pods.default.p", "=.nodes.=.a", "rubbish", "=.configmaps.default.c"] {
        let value = EntryValue::Put(vec![0xc1]);
        let entry = Entry { bucket: "objects".into(), key: key.into(), revision: 300, value };
        assert_eq!(scheduler.apply(Input::Entry(entry), NOW), vec![]);
    }
}
