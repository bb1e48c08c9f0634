//! From reports to objects.

use bus::module::Module;
use schemas::report::PodReport;
use serde_json::json;

use crate::world::{World, arrived, delivered, delivery, pod, status};

fn scheduled() -> World {
    let mut world = World::new();
    let mut pod = pod("a", "1", "n1", json!({}));
    pod.set(
        &["status"],
        json!({"qosClass": "Burstable", "message": "old",
        "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}]}),
    );
    world.put("pods", &pod);
    world
}

fn deleting(world: &mut World, finalizers: serde_json::Value) {
    let mut pod = world.object("pods", "a").unwrap();
    pod.set(&["metadata", "deletionTimestamp"], "2026-01-01T00:00:00Z");
    pod.set(&["metadata", "finalizers"], finalizers);
    world.put("pods", &pod);
}

fn stopped(sequence: u64) -> PodReport {
    PodReport { stopped: true, ..status("a", "1", sequence, "Succeeded") }
}

#[test]
fn a_status_is_merged_and_keeps_what_the_node_does_not_know() {
    let mut world = scheduled();
    world.report(&status("a", "1", 3, "Running"));
    let pod = world.object("pods", "a").unwrap();
    assert_eq!(pod.text(&["status", "phase"]), "Running");
    assert_eq!(pod.text(&["status", "qosClass"]), "Burstable");
    assert_eq!(pod.get(&["status", "message"]), None, "the node no longer says it");
    assert_eq!((pod.condition("PodScheduled"), pod.condition("Ready")), (Some("True"), Some("True")));
    let writes = world.writes;
    world.report(&status("a", "1", 3, "Running"));
    assert_eq!(world.writes, writes, "said twice, written once");
}

#[test]
fn old_reports_are_not_merged_also_after_a_restart() {
    for restart in [false, true] {
        let mut world = scheduled();
        world.report(&status("a", "1", 7, "Running"));
        if restart {
            world.start();
        }
        for sequence in [7, 6, 1] {
            world.report(&status("a", "1", sequence, "Pending"));
            assert_eq!(world.object("pods", "a").unwrap().text(&["status", "phase"]), "Running");
        }
        world.report(&status("a", "1", 8, "Failed"));
        assert_eq!(world.object("pods", "a").unwrap().text(&["status", "phase"]), "Failed");
    }
}

/// A node that lost its store numbers its reports anew, from a clock that may be behind.
#[test]
fn a_sequence_counts_within_one_store_and_the_arrival_between_two() {
    // Merged before: sequence 9 at 5 in UP, out of store "a", or of a node that does not name its store.
    for (merged, store, sequence, arrival, newer) in [
        ("a", "a", 10, 6, true),
        ("a", "a", 9, 6, false),
        ("a", "a", 8, 6, false),
        // UP was made anew meanwhile: the store's own count is enough.
        ("a", "a", 10, 1, true),
        ("a", "b", 1, 6, true),
        ("a", "b", 99, 4, false),
        ("", "", 10, 6, true),
        ("", "", 1, 6, false),
        // The node was updated, or put back to what it was.
        ("", "a", 1, 6, true),
        ("a", "", 1, 6, true),
        ("a", "", 99, 4, false),
    ] {
        for restart in [false, true] {
            let of = |store: &str, sequence, phase| PodReport {
                store: store.into(),
                ..status("a", "1", sequence, phase)
            };
            let mut world = scheduled();
            world.arrives(5, &of(merged, 9, "Pending"));
            if restart {
                world.start();
            }
            world.arrives(arrival, &of(store, sequence, "Running"));
            let phase = world.object("pods", "a").unwrap().text(&["status", "phase"]).to_owned();
            assert_eq!(phase == "Running", newer, "{merged:?} then {store:?} {sequence} at {arrival}");
            // It counts on from there.
            world.arrives(arrival + 1, &of(store, sequence + 1, "Failed"));
            let phase = world.object("pods", "a").unwrap().text(&["status", "phase"]).to_owned();
            if newer {
                assert_eq!(phase, "Failed", "{merged:?} then {store:?} {sequence} at {arrival}");
            }
        }
    }
}

/// What lost against another writer waits for the newer version of the object: the one that was said last.
#[test]
fn of_two_stores_reports_that_wait_the_later_one_is_merged() {
    for arrivals in [[3, 4], [4, 3]] {
        let mut world = scheduled();
        let mut edited = world.object("pods", "a").unwrap();
        edited.set(&["metadata", "labels", "team"], "x");
        let value = bus::module::EntryValue::Put(edited.to_bytes());
        world.write("objects", "=.pods.default.a", value, bus::module::Expect::Any).unwrap();
        for arrival in arrivals {
            let (store, sequence, phase) =
                if arrival == 3 { ("old", 9, "Pending") } else { ("new", 1, "Running") };
            let report = PodReport { store: store.into(), ..status("a", "1", sequence, phase) };
            assert!(!world.apply(arrived(arrival, &report)), "not acknowledged");
        }
        world.settle();
        assert_eq!(world.object("pods", "a").unwrap().text(&["status", "phase"]), "Running", "{arrivals:?}");
    }
}

#[test]
fn a_report_of_another_uid_is_not_merged() {
    let mut world = scheduled();
    world.put("pods", &pod("a", "2", "n1", json!({})));
    world.report(&status("a", "1", 9, "Running"));
    assert_eq!(world.object("pods", "a").unwrap().get(&["status"]), None);
    assert_eq!(world.told("n1"), ["-pods/a/1", "pods/a/2"]);
    assert_eq!(world.module.unknown_reports(), 0, "its end is known");
}

#[test]
fn a_label_edit_and_a_status_at_the_same_time_lose_neither() {
    let mut world = scheduled();
    let mut edited = world.object("pods", "a").unwrap();
    edited.set(&["metadata", "labels", "team"], "x");
    let value = bus::module::EntryValue::Put(edited.to_bytes());
    // Written, and not yet told to the module.
    world.write("objects", "=.pods.default.a", value, bus::module::Expect::Any).unwrap();
    assert!(!world.apply(delivery(&status("a", "1", 3, "Running"))), "not acknowledged");
    world.settle();
    let pod = world.object("pods", "a").unwrap();
    assert_eq!((pod.label("team"), pod.text(&["status", "phase"])), (Some("x"), "Running"));
    let writes = world.writes;
    assert!(world.apply(delivery(&status("a", "1", 3, "Running"))));
    assert_eq!(world.writes, writes);
}

#[test]
fn a_burst_of_reports_takes_few_writes() {
    let mut world = scheduled();
    let (now, before) = (world.now, world.writes);
    // As the runner does it: a slice of deliveries is applied before the first write is known.
    let slice: Vec<_> =
        (1..=64).map(|n| world.module.apply(delivery(&status("a", "1", n, &format!("p{n}"))), now)).collect();
    let mut told = Vec::new();
    for effect in slice.into_iter().flatten() {
        let bus::module::Effect::Put { bucket, key, value, expect, token } = effect else { panic!() };
        let outcome = world.write(&bucket, &key, bus::module::EntryValue::Put(value), expect);
        world.writes += usize::from(outcome.is_ok());
        told.push(bus::module::Input::Wrote { token, outcome });
    }
    for input in told {
        world.apply(input);
    }
    world.settle();
    assert_eq!(world.object("pods", "a").unwrap().text(&["status", "phase"]), "p64");
    assert!(world.writes - before < 8, "{} writes", world.writes - before);
}

#[test]
fn a_stopped_deleting_pod_is_removed_and_its_entry_becomes_a_tombstone() {
    let mut world = scheduled();
    world.report(&status("a", "1", 1, "Running"));
    world.report(&stopped(2));
    assert!(world.object("pods", "a").is_some(), "nobody deletes it");
    world.report(&status("a", "1", 3, "Running"));
    deleting(&mut world, json!([]));
    assert!(world.object("pods", "a").is_some(), "it runs (again)");
    assert_eq!(world.told("n1"), ["pods/a/1"]);
    world.report(&stopped(4));
    assert_eq!(world.object("pods", "a"), None);
    assert_eq!(world.told("n1"), ["-pods/a/1"]);
    let (_, bus::module::EntryValue::Removed(last)) = &world.objects.entries["=.pods.default.a"] else {
        panic!()
    };
    let last = schemas::object::Object::from_bytes(last, 0).unwrap();
    assert_eq!((last.uid(), last.text(&["status", "phase"])), ("1", "Succeeded"), "the final object");
    let writes = world.writes;
    world.report(&stopped(4));
    world.report(&stopped(5));
    assert_eq!(world.writes, writes);
}

#[test]
fn a_finalizer_holds_the_object_until_it_is_taken_away() {
    let mut world = scheduled();
    deleting(&mut world, json!(["keep"]));
    world.report(&stopped(2));
    assert!(world.object("pods", "a").is_some());
    world.start();
    deleting(&mut world, json!([]));
    assert_eq!(world.object("pods", "a"), None);
}

#[test]
fn a_deleting_pod_whose_node_says_nothing_stays() {
    let mut world = scheduled();
    deleting(&mut world, json!([]));
    world.report(&status("a", "1", 5, "Running"));
    world.start();
    assert!(world.object("pods", "a").is_some());
    world.remove("pods", "a");
    assert_eq!(world.told("n1"), ["-pods/a/1"], "forced by somebody");
}

#[test]
fn a_pod_that_the_hub_forgot_is_left_running() {
    let mut world = scheduled();
    let before = world.told("n1");
    world.objects = Default::default();
    world.start();
    world.report(&status("a", "1", 5, "Running"));
    world.report(&status("never-seen", "8", 5, "Running"));
    assert_eq!(world.module.unknown_reports(), 2);
    assert_eq!(world.told("n1"), before);
    assert!(world.dead.is_empty());
    world.report(&stopped(6));
    assert_eq!(world.told("n1"), ["-pods/a/1"], "the node itself says that it is gone");
}

#[test]
fn a_report_waits_until_the_objects_were_read() {
    let mut world = World::stopped();
    world.put("pods", &pod("a", "1", "n1", json!({})));
    assert!(!world.apply(delivery(&status("a", "1", 1, "Running"))), "not acknowledged");
    world.start();
    assert!(world.apply(delivery(&status("a", "1", 1, "Running"))));
    assert_eq!(world.object("pods", "a").unwrap().text(&["status", "phase"]), "Running");
}

#[test]
fn what_cannot_be_used_is_a_dead_letter_with_its_reason() {
    let subject = "ew.in.n1.state.ew.rep.containers.pod.default.a.1";
    let body = |edit: fn(&mut PodReport)| {
        let mut report = status("a", "1", 9, "Running");
        edit(&mut report);
        schemas::encode(&report)
    };
    for (subject, payload, reason) in [
        (subject, b"\xff garbage".to_vec(), "MessagePack"),
        (subject, body(|report| report.uid = "2".into()), "than its subject says"),
        (subject, body(|report| report.node = "n2".into()), "than its subject says"),
        (subject, body(|report| report.status = json!([])), "status is not an object"),
        (
            "ew.in.n2.state.ew.rep.containers.pod.default.a.1",
            body(|report| report.node = "n2".into()),
            "not on node n2",
        ),
    ] {
        let mut world = scheduled();
        let writes = world.writes;
        assert!(world.apply(delivered(subject, payload)), "acknowledged");
        assert!(world.dead[0].contains(reason), "{:?}", world.dead);
        assert_eq!(world.writes, writes);
    }
}

#[test]
fn a_status_is_not_sent_down_again() {
    let mut world = scheduled();
    let before = world.desired.sequence;
    world.report(&status("a", "1", 1, "Running"));
    world.report(&stopped(2));
    assert_eq!(world.desired.sequence, before);
}
