//! What nodes tell becomes Events: counted once, kept for a while.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::collections::BTreeMap;

use bus::module::{Delivery, Effect, Entry, EntryValue, Expect, Input, Module, Never, WriteError};
use events::{EVENT_TTL_MS, EVENTS_MAX, Events, REMOVALS_MAX};
use schemas::Timestamp;
use schemas::audit::AuditRecord;
use schemas::object::Object;
use schemas::report::{EventReport, Severity};
use serde_json::json;

const T0: Timestamp = Timestamp(1_700_000_000_000);

fn report(id: &str, at_ms: u64) -> EventReport {
    EventReport {
        id: id.into(),
        node: "n1".into(),
        module: "containers".into(),
        at: T0.plus_ms(at_ms),
        severity: Severity::Warning,
        reason: "BackOff".into(),
        message: "restarting failed container".into(),
        regarding: ("Pod".into(), "default".into(), "web".into(), "uid-1".into()),
    }
}

fn delivery(report: &EventReport) -> Input<Never> {
    delivered(
        &format!("ew.in.{}.events.ew.evt.{}.{}", report.node, report.module, report.reason),
        schemas::encode(report),
    )
}

fn delivered(subject: &str, payload: Vec<u8>) -> Input<Never> {
    Input::Delivery(Delivery {
        stream: "UP".into(),
        sequence: 1,
        subject: subject.into(),
        headers: Default::default(),
        payload,
        attempt: 1,
    })
}

/// The bucket with compare-and-set, and the module on it.
struct World {
    module: Events,
    entries: BTreeMap<String, (u64, EntryValue)>,
    sequence: u64,
    dead: Vec<String>,
    now: Timestamp,
}

impl World {
    fn new() -> Self {
        let mut world =
            Self { module: Events::new("s"), entries: BTreeMap::new(), sequence: 0, dead: vec![], now: T0 };
        world.start();
        world
    }

    fn start(&mut self) {
        self.module = Events::new("s2");
        for (key, (revision, value)) in self.entries.clone() {
            self.apply(Input::Entry(Entry { bucket: "objects".into(), key, revision, value }));
        }
        self.apply(Input::Current { bucket: "objects".into(), filter: "=.events.*.*".into() });
    }

    fn write(&mut self, key: &str, value: EntryValue, expect: Expect) -> Result<u64, WriteError> {
        let have = self.entries.get(key);
        let fits = match expect {
            Expect::Any => panic!("every write says what it expects"),
            Expect::Absent => have.is_none_or(|(_, value)| matches!(value, EntryValue::Removed(_))),
            Expect::Revision(revision) => have.map_or(0, |(at, _)| *at) == revision,
        };
        if !fits {
            return Err(WriteError::Conflict);
        }
        self.sequence += 1;
        self.entries.insert(key.into(), (self.sequence, value));
        Ok(self.sequence)
    }

    /// Applies a slice of inputs, then carries out their effects, as the runner does; gives back whose all succeeded.
    fn slice(&mut self, inputs: Vec<Input<Never>>) -> Vec<bool> {
        let decided: Vec<Vec<Effect<Never>>> =
            inputs.into_iter().map(|input| self.module.apply(input, self.now)).collect();
        let mut succeeded = Vec::new();
        let mut told = Vec::new();
        for effects in decided {
            let mut all = true;
            for effect in effects {
                let (key, value, expect, token) = match effect {
                    Effect::Put { key, value, expect, token, .. } => {
                        (key, EntryValue::Put(value), expect, token)
                    }
                    Effect::Remove { key, value, expect, token, .. } => {
                        (key, EntryValue::Removed(value), expect, token)
                    }
                    Effect::Dead { reason, .. } => {
                        self.dead.push(reason);
                        continue;
                    }
                    other => panic!("undeclared {other:?}"),
                };
                let outcome = self.write(&key, value, expect);
                all &= outcome.is_ok();
                told.push(Input::Wrote { token, outcome });
            }
            succeeded.push(all);
        }
        for input in told {
            self.slice(vec![input]);
        }
        succeeded
    }

    fn apply(&mut self, input: Input<Never>) -> bool {
        self.slice(vec![input])[0]
    }

    fn events(&self) -> Vec<Object> {
        self.entries
            .values()
            .filter_map(|(revision, value)| match value {
                EntryValue::Put(bytes) => Some(Object::from_bytes(bytes, *revision).unwrap()),
                EntryValue::Removed(_) => None,
            })
            .collect()
    }

    fn counts(&self) -> Vec<u64> {
        self.events().iter().map(|event| event.get(&["count"]).unwrap().as_u64().unwrap()).collect()
    }
}

#[test]
fn a_report_becomes_an_event_that_kubernetes_understands() {
    let mut world = World::new();
    assert!(world.apply(delivery(&report("1", 1_234))));
    let events = world.events();
    let [event] = events.as_slice() else { panic!() };
    assert!(event.name().starts_with("web."));
    assert_eq!(event.namespace(), "default");
    let view: k8s_openapi::api::core::v1::Event = event.view().unwrap();
    assert_eq!(view.involved_object.uid.as_deref(), Some("uid-1"));
    assert_eq!(
        (view.count, view.type_.as_deref(), view.reason.as_deref()),
        (Some(1), Some("Warning"), Some("BackOff"))
    );
    assert_eq!(view.source.unwrap().host.as_deref(), Some("n1"));
    assert_eq!(event.text(&["eventTime"]), "2023-11-14T22:13:21.234000Z");
    assert_eq!(event.text(&["lastTimestamp"]), "2023-11-14T22:13:21Z");
}

#[test]
fn the_same_counts_up_and_the_rest_stands_apart() {
    let mut world = World::new();
    world.apply(delivery(&report("1", 5_000)));
    world.apply(delivery(&report("2", 1_000)));
    world.apply(delivery(&report("3", 9_000)));
    assert_eq!(world.counts(), [3]);
    let event = &world.events()[0];
    assert_eq!(Timestamp::parse(event.text(&["firstTimestamp"])), Some(T0.plus_ms(1_000)));
    assert_eq!(Timestamp::parse(event.text(&["lastTimestamp"])), Some(T0.plus_ms(9_000)));
    let edits: [fn(&mut EventReport); 4] = [
        |r| r.reason = "Killing".into(),
        |r| r.message = "other".into(),
        |r| r.regarding.3 = "uid-2".into(),
        |r| r.regarding = ("Node".into(), String::new(), "n1".into(), String::new()),
    ];
    for (at, edit) in edits.into_iter().enumerate() {
        let mut other = report(&format!("x{at}"), 0);
        edit(&mut other);
        world.apply(delivery(&other));
    }
    assert_eq!(world.counts().len(), 5);
}

#[test]
fn a_report_that_comes_again_counts_once_also_after_a_restart() {
    for restart in [false, true] {
        let mut world = World::new();
        for id in ["1", "2"] {
            world.apply(delivery(&report(id, 0)));
        }
        if restart {
            world.start();
        }
        for id in ["1", "2", "1"] {
            assert!(world.apply(delivery(&report(id, 0))), "acknowledged");
        }
        assert_eq!(world.counts(), [2], "restart: {restart}");
    }
}

#[test]
fn a_burst_is_counted_whole_with_few_writes() {
    let mut world = World::new();
    let mut owed: Vec<EventReport> = (0..64).map(|n| report(&n.to_string(), n)).collect();
    let mut rounds = 0;
    while !owed.is_empty() {
        let acked = world.slice(owed.iter().map(delivery).collect());
        owed = owed.into_iter().zip(acked).filter(|(_, acked)| !acked).map(|(report, _)| report).collect();
        rounds += 1;
    }
    assert_eq!(world.counts(), [64]);
    assert_eq!(rounds, 2, "each delivery comes at most twice");
    assert!(world.sequence <= 3, "{} writes", world.sequence);
}

#[test]
fn an_event_that_was_there_before_the_watch_was_current_is_not_overwritten() {
    let mut world = World::new();
    world.apply(delivery(&report("1", 0)));
    world.module = Events::new("s3");
    assert!(!world.apply(delivery(&report("2", 0))), "not acknowledged: it comes again");
    world.start();
    assert!(world.apply(delivery(&report("2", 0))));
    assert_eq!(world.counts(), [2]);
}

#[test]
fn stale_entries_change_nothing() {
    let mut world = World::new();
    world.apply(delivery(&report("1", 0)));
    let (key, (revision, value)) =
        world.entries.first_key_value().map(|(k, v)| (k.clone(), v.clone())).unwrap();
    let old = Input::Entry(Entry { bucket: "objects".into(), key, revision, value });
    world.apply(delivery(&report("2", 0)));
    world.apply(old.clone());
    assert!(world.apply(delivery(&report("3", 0))), "it still knows the newest");
    world.now = T0.plus_ms(2 * EVENT_TTL_MS);
    world.apply(Input::Tick);
    world.apply(old);
    assert!(world.apply(delivery(&report("4", 0))), "what was removed stays removed");
    assert_eq!(world.counts(), [1]);
}

#[test]
fn others_edits_are_kept() {
    let mut world = World::new();
    world.apply(delivery(&report("1", 0)));
    let mut event = world.events().remove(0);
    event.set(&["vendor"], json!({"x": 1}));
    let key = world.entries.keys().next().unwrap().clone();
    world.write(&key, EntryValue::Put(event.to_bytes()), Expect::Revision(1)).unwrap();
    assert!(!world.apply(delivery(&report("2", 0))), "it knew an older one");
    let (revision, value) = world.entries[&key].clone();
    world.apply(Input::Entry(Entry { bucket: "objects".into(), key, revision, value }));
    assert!(world.apply(delivery(&report("2", 0))));
    assert_eq!(world.counts(), [2]);
    assert_eq!(world.events()[0].get(&["vendor"]), Some(&json!({"x": 1})));
}

#[test]
fn events_go_an_hour_after_the_hub_was_last_told() {
    let mut world = World::new();
    // Told now of what happened a day ago, on a node that was away.
    let mut late = report("1", 0);
    late.at = Timestamp(T0.0 - 86_400_000);
    world.apply(delivery(&late));
    world.now = T0.plus_ms(EVENT_TTL_MS);
    world.apply(Input::Tick);
    assert_eq!(world.counts(), [1]);
    world.apply(delivery(&report("2", 0)));
    world.now = T0.plus_ms(EVENT_TTL_MS + 1_000);
    world.apply(Input::Tick);
    assert_eq!(world.counts(), [2], "told again");
    world.start();
    world.now = T0.plus_ms(2 * EVENT_TTL_MS + 1);
    world.apply(Input::Tick);
    assert_eq!(world.counts(), [0; 0]);
    let (_, EntryValue::Removed(last)) = world.entries.values().next().unwrap() else { panic!() };
    assert!(!last.is_empty(), "with its last value");
    assert!(world.apply(delivery(&report("3", 0))));
    assert_eq!(world.counts(), [1], "it may come again");
}

#[test]
fn nothing_is_removed_before_all_was_read() {
    let mut world = World::new();
    world.apply(delivery(&report("1", 0)));
    let (key, (revision, value)) = world.entries.pop_first().unwrap();
    world.now = T0.plus_ms(2 * EVENT_TTL_MS);
    let mut module = Events::new("s");
    module.apply(Input::Entry(Entry { bucket: "objects".into(), key, revision, value }), world.now);
    assert_eq!(module.apply(Input::Tick, world.now), vec![]);
}

#[test]
fn there_are_never_more_than_the_bound() {
    let mut world = World::new();
    let over = REMOVALS_MAX + 20;
    for n in 0..EVENTS_MAX + over {
        let mut report = report(&n.to_string(), 0);
        report.message = format!("message {n}");
        world.now = T0.plus_ms(n as u64);
        world.apply(delivery(&report));
    }
    let count = |world: &World| world.events().len();
    world.apply(Input::Tick);
    assert_eq!(count(&world), EVENTS_MAX + 20, "so many in one tick");
    world.apply(Input::Tick);
    assert_eq!(count(&world), EVENTS_MAX);
}

#[test]
fn what_cannot_be_used_is_a_dead_letter_with_its_reason() {
    let subject = "ew.in.n1.events.ew.evt.containers.BackOff";
    let body = |edit: fn(&mut EventReport)| {
        let mut report = report("1", 0);
        edit(&mut report);
        schemas::encode(&report)
    };
    for (payload, reason) in [
        (b"\xff".to_vec(), "MessagePack"),
        (body(|r| r.node = "n2".into()), "may not speak for"),
        (body(|r| r.regarding.2 = "no such name!".into()), "is not valid"),
        (body(|r| r.regarding.1 = "No".into()), "is not valid"),
        (body(|r| r.id = String::new()), "needs an id"),
    ] {
        let mut world = World::new();
        assert!(world.apply(delivered(subject, payload)), "acknowledged");
        assert!(world.dead[0].contains(reason), "{:?}", world.dead);
        assert!(world.entries.is_empty());
    }
    let mut world = World::new();
    let mut long = report("1", 0);
    long.message = "ä".repeat(5_000);
    assert!(world.apply(delivery(&long)));
    assert!(world.events()[0].text(&["message"]).len() <= 1024);
}

#[test]
fn a_nodes_audit_goes_on_as_what_was_refused_there_and_for_itself_alone() {
    let record = |node: &str, code| {
        let (user, verb, object) = ("pod-x\n".into(), "publish".into(), "app.other.x".into());
        let (id, detail) = ("i".into(), "x".repeat(9_000));
        schemas::encode(&AuditRecord {
            id,
            at: T0,
            node: node.into(),
            user,
            verb,
            object,
            code,
            count: 3,
            detail,
        })
    };
    let passed_on = |payload| {
        let mut world = World::new();
        world.module.apply(delivered("ew.in.n1.events.ew.evt.credentials.Audit", payload), T0)
    };
    // A node that claims that something was done is believed as far as that it tried.
    for code in [403, 201] {
        let effects = passed_on(record("n1", code));
        let [Effect::Report { subject, payload, .. }] = effects.as_slice() else { panic!("{effects:?}") };
        assert_eq!(subject, "ew.audit.refused.n1.publish");
        let record: AuditRecord = schemas::decode(payload).unwrap();
        assert_eq!((record.user.as_str(), record.count, record.refused()), ("pod-x ", 3, true));
        assert!(record.detail.len() <= schemas::audit::TEXT_MAX_BYTES);
    }
    for payload in [record("n2", 403), record("hub", 403), b"\xff".to_vec()] {
        let effects = passed_on(payload);
        assert!(matches!(effects.as_slice(), [Effect::Dead { .. }]), "{effects:?}");
    }
}

#[test]
fn the_flows_are_those_of_the_table() {
    let subjects: Vec<String> = events::flows().into_iter().map(|flow| flow.subject).collect();
    assert_eq!(subjects, ["ew.in.*.events.ew.evt.>", "ew.audit.refused.>", "=.events.*.*", "=.events.*.*"]);
}
