//! What the module writes for what it hears, as tables. Every guard is shown from both sides.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails, in its helpers too"
)]

use bus::module::{
    Account, Delivery, Effect, Entry, EntryValue, Expect, Input, Message, Module, Never, WriteError,
};
use nodes::Nodes;
use schemas::Timestamp;
use schemas::object::Object;
use schemas::report::{EventReport, Heartbeat, HeartbeatAck, NODE_GRACE_MS, NodeReport};
use schemas::subject::Lane;
use serde_json::json;

type Effects = Vec<Effect<Never>>;

const KEY: &str = "=.nodes.=.n1";
const T0: Timestamp = Timestamp(1_700_000_000_000);

fn at(ms: u64) -> Timestamp {
    T0.plus_ms(ms)
}

fn current() -> Input<Never> {
    Input::Current { bucket: "objects".into(), filter: "=.nodes.=.*".into() }
}

fn started() -> Nodes {
    let mut nodes = Nodes::new("hub-boot", "seed");
    assert_eq!(nodes.apply(current(), T0), vec![]);
    nodes
}

fn entry(object: &Object, revision: u64) -> Input<Never> {
    let value = EntryValue::Put(object.to_bytes());
    Input::Entry(Entry { bucket: "objects".into(), key: KEY.into(), revision, value })
}

fn removed(revision: u64) -> Input<Never> {
    let value = EntryValue::Removed(Vec::new());
    Input::Entry(Entry { bucket: "objects".into(), key: KEY.into(), revision, value })
}

fn report(boot: &str, sequence: u64) -> NodeReport {
    NodeReport {
        node: "n1".into(),
        boot_id: boot.into(),
        sequence,
        node_info: json!({"architecture": "amd64"}),
        capacity: [("cpu".to_owned(), "2".to_owned())].into(),
        allocatable: [("cpu".to_owned(), "1900m".to_owned())].into(),
        addresses: vec![("InternalIP".into(), "10.0.0.1".into())],
        labels: [("kubernetes.io/arch".to_owned(), "amd64".to_owned())].into(),
        conditions: [("MemoryPressure".to_owned(), ("False".into(), "Enough".into(), String::new()))].into(),
    }
}

fn delivery(report: &NodeReport) -> Input<Never> {
    delivered("ew.in.n1.state.ew.rep.sync.node.n1", schemas::encode(report))
}

fn delivered(subject: &str, payload: Vec<u8>) -> Input<Never> {
    delivered_at(7, subject, payload)
}

fn delivered_at(arrival: u64, subject: &str, payload: Vec<u8>) -> Input<Never> {
    Input::Delivery(Delivery {
        stream: "UP".into(),
        sequence: arrival,
        subject: subject.into(),
        headers: Default::default(),
        payload,
        attempt: 1,
    })
}

fn heartbeat(boot: &str, sequence: u64) -> Input<Never> {
    let body = Heartbeat {
        boot_id: boot.into(),
        sequence,
        at: T0,
        desired: None,
        waiting: [(Lane::State, 3), (Lane::Workload, 5)].into(),
        waiting_bytes: [(Lane::State, 40), (Lane::Workload, 700)].into(),
    };
    message(schemas::encode(&body))
}

fn message(payload: Vec<u8>) -> Input<Never> {
    Input::Message(Message {
        account: Account::Control,
        subject: "ew.hb.n1".into(),
        headers: Default::default(),
        payload,
        reply: Some("_INBOX.x".into()),
    })
}

/// The one event among the effects, where the hub's own events stand.
fn told(effects: &Effects) -> EventReport {
    let events: Vec<EventReport> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Report { subject, payload, .. } => {
                assert!(subject.starts_with("ew.in.hub.events.ew.evt.nodes.Link"), "{subject}");
                schemas::decode(payload).ok()
            }
            _ => None,
        })
        .collect();
    assert_eq!(events.len(), 1, "{effects:?}");
    events.into_iter().next().unwrap()
}

/// The one write among the effects.
fn write(effects: &Effects) -> (Object, Expect, u64) {
    let puts: Vec<_> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Put { bucket, key, value, expect, token } => {
                assert_eq!((bucket.as_str(), key.as_str()), ("objects", KEY));
                Some((Object::from_bytes(value, 0).unwrap(), *expect, *token))
            }
            _ => None,
        })
        .collect();
    assert_eq!(puts.len(), 1, "{effects:?}");
    puts.into_iter().next().unwrap()
}

fn writes(effects: &Effects) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Put { .. } | Effect::Remove { .. })).count()
}

fn ack(effects: &Effects) -> HeartbeatAck {
    let Some(Effect::Reply { to, payload, .. }) = effects.first() else { panic!("{effects:?}") };
    assert_eq!(to, "_INBOX.x");
    schemas::decode(payload).unwrap()
}

fn has_taint(object: &Object, key: &str) -> bool {
    object
        .get(&["spec", "taints"])
        .and_then(|taints| taints.as_array().cloned())
        .unwrap_or_default()
        .iter()
        .any(|taint| taint["key"] == key)
}

/// A node that has reported and been heard, as the store then has it.
fn ready() -> (Nodes, Object) {
    let mut nodes = started();
    nodes.apply(heartbeat("b1", 1), at(10));
    let (object, expect, token) = write(&nodes.apply(delivery(&report("b1", 5)), at(20)));
    assert_eq!(expect, Expect::Absent);
    assert_eq!(writes(&nodes.apply(Input::Wrote { token, outcome: Ok(7) }, at(30))), 0);
    assert_eq!(writes(&nodes.apply(entry(&object, 7), at(31))), 0);
    (nodes, object)
}

#[test]
fn a_report_makes_the_node_and_a_heartbeat_makes_it_ready() {
    let (_, object) = ready();
    assert_eq!(object.condition("Ready"), Some("True"));
    assert_eq!(object.condition("MemoryPressure"), Some("False"));
    assert_eq!(object.text(&["status", "allocatable", "cpu"]), "1900m");
    assert_eq!(object.label("kubernetes.io/arch"), Some("amd64"));
    assert_eq!(object.label("kubernetes.io/hostname"), Some("n1"));
    assert_eq!(object.uid().len(), 36);
    assert!(object.view::<k8s_openapi::api::core::v1::Node>().is_ok());
}

#[test]
fn heartbeats_are_answered_and_write_nothing_while_nothing_changes() {
    let (mut nodes, _) = ready();
    let effects = nodes.apply(heartbeat("b1", 2), at(2_000));
    assert_eq!(writes(&effects), 0);
    assert_eq!(
        ack(&effects),
        HeartbeatAck { sequence: 2, at: at(2_000), known: true, hub_boot_id: "hub-boot".into() }
    );
}

#[test]
fn a_node_without_an_object_is_asked_to_report_but_not_before_the_store_was_read() {
    let mut nodes = Nodes::new("b", "s");
    assert!(ack(&nodes.apply(heartbeat("b1", 1), T0)).known);
    nodes.apply(current(), T0);
    assert!(!ack(&nodes.apply(heartbeat("b1", 2), T0)).known);
    let (mut nodes, _) = ready();
    nodes.apply(removed(9), at(40));
    assert!(!ack(&nodes.apply(heartbeat("b1", 2), at(50))).known);
    assert_eq!(write(&nodes.apply(delivery(&report("b1", 6)), at(60))).1, Expect::Absent);
}

#[test]
fn silence_taints_no_schedule_and_the_return_takes_it_away() {
    let (mut nodes, _) = ready();
    assert_eq!(writes(&nodes.apply(Input::Tick, at(10 + NODE_GRACE_MS))), 0, "the grace is not over");
    let (object, expect, token) = write(&nodes.apply(Input::Tick, at(11 + NODE_GRACE_MS)));
    assert_eq!(expect, Expect::Revision(7));
    assert_eq!(object.condition("Ready"), Some("Unknown"));
    assert!(has_taint(&object, "node.kubernetes.io/unreachable"));
    assert!(!format!("{object:?}").contains("NoExecute"));
    assert_eq!(writes(&nodes.apply(Input::Tick, at(12_000))), 0, "one write at a time");
    let down = told(&nodes.apply(Input::Wrote { token, outcome: Ok(8) }, at(12_001)));
    assert_eq!((down.reason.as_str(), down.regarding.2.as_str()), ("LinkDown", "n1"));
    assert_eq!(writes(&nodes.apply(Input::Tick, at(30_000))), 0, "only changes are written");
    let (object, expect, token) = write(&nodes.apply(heartbeat("b1", 2), at(31_000)));
    assert_eq!(expect, Expect::Revision(8));
    let up = told(&nodes.apply(Input::Wrote { token, outcome: Ok(9) }, at(31_002)));
    assert_eq!(up.reason, "LinkUp");
    let want = "heard again after 21 s; 3 reports and events (40 bytes), 5 workload messages (700 bytes)";
    assert!(up.message.contains(want), "{}", up.message);
    assert_eq!(object.condition("Ready"), Some("True"));
    assert!(object.get(&["spec", "taints"]).is_none());
}

#[test]
fn old_heartbeats_do_not_make_a_silent_node_look_alive() {
    for (boot, sequence, wakes) in [("b1", 1, false), ("b2", 1, true), ("b1", 2, true)] {
        let (mut nodes, _) = ready();
        let (_, _, token) = write(&nodes.apply(Input::Tick, at(20_000)));
        nodes.apply(Input::Wrote { token, outcome: Ok(8) }, at(20_001));
        let effects = nodes.apply(heartbeat(boot, sequence), at(20_002));
        assert_eq!(writes(&effects) == 1, wakes, "{boot} {sequence}");
    }
    let (mut nodes, _) = ready();
    nodes.apply(heartbeat("b2", 1), at(100));
    let (_, _, token) = write(&nodes.apply(Input::Tick, at(20_000)));
    nodes.apply(Input::Wrote { token, outcome: Ok(8) }, at(20_001));
    assert_eq!(writes(&nodes.apply(heartbeat("b1", 9), at(20_002))), 0, "boot b1 is over");
}

#[test]
fn a_started_hub_gives_every_node_a_full_grace() {
    let (_, object) = ready();
    let mut nodes = Nodes::new("b", "s");
    assert_eq!(writes(&nodes.apply(entry(&object, 7), at(100_000))), 0);
    assert_eq!(writes(&nodes.apply(Input::Tick, at(190_000))), 0, "nothing before the watch is current");
    assert_eq!(writes(&nodes.apply(current(), at(200_000))), 0);
    assert_eq!(writes(&nodes.apply(Input::Tick, at(200_000 + NODE_GRACE_MS))), 0);
    let (unknown, ..) = write(&nodes.apply(Input::Tick, at(200_001 + NODE_GRACE_MS)));
    assert_eq!(unknown.condition("Ready"), Some("Unknown"));
    // A heartbeat that came while the hub was busy reading does not shorten it.
    let mut nodes = Nodes::new("b", "s");
    nodes.apply(entry(&object, 7), at(100_000));
    nodes.apply(heartbeat("b1", 1), at(100_000));
    nodes.apply(current(), at(200_000));
    assert_eq!(writes(&nodes.apply(Input::Tick, at(200_000 + NODE_GRACE_MS))), 0);
}

#[test]
fn only_newer_reports_are_merged_and_a_wiped_node_may_count_anew() {
    let subject = "ew.in.n1.state.ew.rep.sync.node.n1";
    // The one that was merged: boot b1, sequence 5, at 7 in UP.
    for (boot, sequence, arrival, merged) in [
        ("b1", 5, 8, false),
        ("b1", 4, 8, false),
        ("b1", 6, 8, true),
        ("b2", 1, 8, true),
        // Delivered again, after what came later.
        ("b2", 1, 6, false),
        // UP itself was made anew.
        ("b2", 6, 1, true),
    ] {
        let (_, object) = ready();
        // No heartbeat was heard yet: a hub that was just started.
        let mut nodes = started();
        nodes.apply(entry(&object, 7), at(40));
        let effects =
            nodes.apply(delivered_at(arrival, subject, schemas::encode(&report(boot, sequence))), at(50));
        assert_eq!(writes(&effects) == 1, merged, "{boot} {sequence} {arrival}");
    }
}

#[test]
fn what_users_set_stays() {
    let (mut nodes, mut object) = ready();
    object.set(&["metadata", "labels", "kubernetes.io/arch"], "mine");
    object.set(&["metadata", "annotations", "note"], "mine");
    object.set(&["spec", "unschedulable"], true);
    object.set(&["spec", "taints"], json!([{"key": "mine", "effect": "NoExecute"}]));
    object.set(&["vendor"], json!({"x": 1}));
    nodes.apply(entry(&object, 9), at(40));
    let (written, expect, _) = write(&nodes.apply(delivery(&report("b1", 6)), at(50)));
    assert_eq!(expect, Expect::Revision(9));
    for path in [
        &["metadata", "labels", "kubernetes.io/arch"][..],
        &["metadata", "annotations", "note"],
        &["spec"],
        &["vendor"],
        &["metadata", "uid"],
    ] {
        assert_eq!(written.get(path), object.get(path), "{path:?}");
    }
    let (silent, ..) = write(&{
        let (mut nodes, _) = ready();
        nodes.apply(entry(&object, 9), at(40));
        nodes.apply(Input::Tick, at(60_000))
    });
    assert!(has_taint(&silent, "mine") && has_taint(&silent, "node.kubernetes.io/unreachable"));
}

#[test]
fn a_lost_race_is_decided_again_when_the_newer_object_comes() {
    let (mut nodes, mut object) = ready();
    let (_, _, token) = write(&nodes.apply(Input::Tick, at(20_000)));
    let conflict = Input::Wrote { token, outcome: Err(WriteError::Conflict) };
    assert_eq!(writes(&nodes.apply(conflict, at(20_001))), 0, "not in a hot loop");
    object.set(&["metadata", "labels", "team"], "a");
    let (written, expect, token) = write(&nodes.apply(entry(&object, 12), at(20_002)));
    assert_eq!((expect, written.label("team")), (Expect::Revision(12), Some("a")));
    let failed = Input::Wrote { token, outcome: Err(WriteError::Failed("timeout".into())) };
    assert_eq!(writes(&nodes.apply(failed, at(20_003))), 0);
    assert_eq!(write(&nodes.apply(Input::Tick, at(21_000))).1, Expect::Revision(12));
}

#[test]
fn after_a_lost_race_heartbeats_do_not_write_before_the_next_tick() {
    let (mut nodes, _) = ready();
    let (_, _, token) = write(&nodes.apply(Input::Tick, at(20_000)));
    nodes.apply(Input::Wrote { token, outcome: Ok(8) }, at(20_001));
    let (_, _, token) = write(&nodes.apply(heartbeat("b1", 2), at(21_000)));
    nodes.apply(Input::Wrote { token, outcome: Err(WriteError::Conflict) }, at(21_001));
    assert_eq!(writes(&nodes.apply(heartbeat("b1", 3), at(21_002))), 0);
    assert_eq!(writes(&nodes.apply(Input::Tick, at(21_003))), 1);
}

#[test]
fn stale_and_repeated_entries_change_nothing() {
    let (mut nodes, mut object) = ready();
    nodes.apply(removed(20), at(40));
    object.set(&["metadata", "labels", "old"], "1");
    nodes.apply(entry(&object, 19), at(41));
    assert!(!ack(&nodes.apply(heartbeat("b1", 2), at(42))).known, "a late entry does not bring a node back");
    nodes.apply(entry(&object, 21), at(43));
    assert!(ack(&nodes.apply(heartbeat("b1", 3), at(44))).known);
}

#[test]
fn what_cannot_be_used_is_a_dead_letter_with_its_reason() {
    let mut foreign = report("b1", 9);
    foreign.node = "n2".into();
    for (input, reason) in [
        (message(vec![0xc1]), "MessagePack"),
        (delivered("ew.in.n1.state.ew.rep.sync.node.n1", b"\xff\xff".to_vec()), "MessagePack"),
        (delivery(&foreign), "of itself only"),
        (
            delivered("ew.in.n1.state.ew.rep.sync.node.n2", schemas::encode(&report("b1", 9))),
            "of itself only",
        ),
    ] {
        let (mut nodes, _) = ready();
        let effects = nodes.apply(input, at(50));
        let [Effect::Dead { reason: why, .. }] = effects.as_slice() else { panic!("{effects:?}") };
        assert!(why.contains(reason), "{why}");
    }
}

#[test]
fn the_flows_are_those_of_the_table() {
    let lines: Vec<String> = nodes::flows().iter().map(|flow| flow.subject.clone()).collect();
    assert_eq!(
        lines,
        [
            "ew.hb.*",
            "ew.in.*.state.ew.rep.sync.node.>",
            "=.nodes.=.*",
            "=.nodes.=.*",
            "ew.in.hub.events.ew.evt.nodes.*"
        ]
        .map(str::to_owned)
    );
}
