//! The module as a table: what it is told, and what it does and says.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

use bus::declared::{self, DeclareError, Declared};
use bus::module::{Effect, Entry, EntryValue, Input, Module};
use schemas::Timestamp;
use schemas::desired::{Content, Desired, Local};
use schemas::object::Object;
use schemas::report::EventReport;
use schemas::subject::{BUCKET_LOCAL, DesiredKey};
use schemas::topic::Topic;
use topics::plan::{Plan, Removal};
use topics::{ACT_TIMEOUT_MS, Act, Done, FILTER, LOOK_INTERVAL_MS, RETRY_MS, Topics};

fn object(name: &str) -> Object {
    let mut object = Object::new(schemas::topic::API_VERSION, "Topic", "demo", name);
    object.set(&["metadata", "uid"], format!("u-{name}"));
    object.set(&["spec", "subjects"], vec![format!("app.demo.{name}")]);
    object
}

fn topic(name: &str) -> Topic {
    Topic::read(&object(name)).unwrap()
}

fn there(name: &str) -> Declared {
    let topic = topic(name);
    Declared {
        stream: topic.stream(),
        owner: topic.uid.clone(),
        size_max_bytes: topic.size_max_bytes,
        form: declared::form(&topic),
        consumers: 0,
    }
}

fn entry(name: &str, value: EntryValue) -> Input<Done> {
    let key = DesiredKey {
        plural: "topics".into(),
        namespace: "demo".into(),
        name: name.into(),
        uid: format!("u-{name}"),
    };
    Input::Entry(Entry { bucket: BUCKET_LOCAL.into(), key: key.local_key(), revision: 1, value })
}

fn put(name: &str, content: Content) -> Input<Done> {
    let desired = Desired { generation: "g".into(), epoch: "e".into(), resource_version: 1, content };
    entry(name, EntryValue::Put(schemas::encode(&Local { revision: 1, desired })))
}

fn current() -> Input<Done> {
    Input::Current { bucket: BUCKET_LOCAL.into(), filter: FILTER.into() }
}

struct World {
    module: Topics,
    now: Timestamp,
}

impl World {
    fn new() -> Self {
        Self { module: Topics::new("n1".parse().unwrap()), now: Timestamp(1_000_000) }
    }

    /// The acts of an input, and what it tells as `reason message`.
    fn apply(&mut self, input: Input<Done>) -> (Vec<Act>, Vec<String>) {
        let (mut acts, mut told) = (Vec::new(), Vec::new());
        for effect in self.module.apply(input, self.now) {
            match effect {
                Effect::Act(act) => acts.push(act),
                Effect::Report { payload, .. } => {
                    let event: EventReport = schemas::decode(&payload).unwrap();
                    assert_eq!(event.regarding.0, "Topic");
                    told.push(format!("{} {}", event.reason, event.message));
                }
                Effect::Dead { reason, .. } => told.push(format!("dead {reason}")),
                other => panic!("{other:?}"),
            }
        }
        (acts, told)
    }

    fn tick(&mut self, ms: u64) -> Vec<Act> {
        self.now = self.now.plus_ms(ms);
        self.apply(Input::Tick).0
    }
}

fn nothing() -> (Vec<Act>, Vec<String>) {
    (Vec::new(), Vec::new())
}

fn declares(name: &str) -> Act {
    Act::Keep(Plan { remove: Vec::new(), declare: vec![topic(name)] })
}

fn kept(name: &str, outcome: Result<declared::Done, DeclareError>) -> Input<Done> {
    Input::Done(Done::Kept { removed: Vec::new(), declared: vec![(topic(name), outcome)] })
}

#[test]
fn a_topic_is_made_told_and_looked_after() {
    let mut world = World::new();
    assert_eq!(world.apply(put("a", Content::Object(object("a")))), nothing(), "not before all are known");
    assert_eq!(world.apply(current()), (vec![Act::Look], vec![]));
    assert_eq!(world.apply(Input::Done(Done::Found(Ok(vec![])))), (vec![declares("a")], vec![]));
    let (acts, told) = world.apply(kept("a", Ok(declared::Done::Made)));
    assert_eq!(acts, []);
    assert!(told[0].starts_with("TopicMade stream T_demo_a"), "{told:?}");
    assert_eq!(world.tick(LOOK_INTERVAL_MS), [Act::Look]);
    assert_eq!(world.apply(Input::Done(Done::Found(Ok(vec![there("a")])))), nothing());
    // The server came back without it.
    assert_eq!(world.tick(LOOK_INTERVAL_MS), [Act::Look]);
    assert_eq!(world.apply(Input::Done(Done::Found(Ok(vec![])))), (vec![declares("a")], vec![]));
}

#[test]
fn a_tombstone_removes_the_stream_and_an_absence_does_not() {
    let mut world = World::new();
    world.apply(put("a", Content::Object(object("a"))));
    world.apply(current());
    world.apply(Input::Done(Done::Found(Ok(vec![there("a")]))));
    world.apply(entry("a", EntryValue::Removed(Vec::new())));
    assert_eq!(world.tick(LOOK_INTERVAL_MS), [Act::Look]);
    assert_eq!(world.apply(Input::Done(Done::Found(Ok(vec![there("a")])))), nothing());
    assert_eq!(world.apply(put("a", Content::Tombstone)).0, [Act::Look]);
    let remove = vec![Removal { stream: "T_demo_a".into(), uid: "u-a".into() }];
    let (acts, _) = world.apply(Input::Done(Done::Found(Ok(vec![there("a")]))));
    assert_eq!(acts, [Act::Keep(Plan { remove: remove.clone(), declare: vec![] })]);
    // It could not be removed just now: again, soon.
    let failed = vec![(remove[0].clone(), Err(DeclareError::Lost("away".into())))];
    world.apply(Input::Done(Done::Kept { removed: failed, declared: vec![] }));
    assert_eq!(world.tick(RETRY_MS), [Act::Look]);
    // A module that starts anew knows it from the tombstone.
    let mut world = World::new();
    world.apply(put("a", Content::Tombstone));
    world.apply(current());
    let (acts, _) = world.apply(Input::Done(Done::Found(Ok(vec![there("a")]))));
    assert_eq!(acts, [Act::Keep(Plan { remove, declare: vec![] })]);
}

#[test]
fn what_is_refused_is_told_once_and_tried_again() {
    let mut world = World::new();
    world.apply(put("a", Content::Object(object("a"))));
    world.apply(current());
    world.apply(Input::Done(Done::Found(Ok(vec![]))));
    let refused = || Err(DeclareError::Refused("no room".into()));
    let (_, told) = world.apply(kept("a", refused()));
    assert!(told[0].starts_with("TopicUnmade") && told[0].contains("no room"), "{told:?}");
    assert_eq!(world.tick(LOOK_INTERVAL_MS), [Act::Look]);
    world.apply(Input::Done(Done::Found(Ok(vec![]))));
    assert_eq!(world.apply(kept("a", refused())).1, Vec::<String>::new(), "told once");
    world.tick(LOOK_INTERVAL_MS);
    world.apply(Input::Done(Done::Found(Ok(vec![]))));
    let (_, told) = world.apply(kept("a", Ok(declared::Done::Changed)));
    assert!(told[0].starts_with("TopicMade"), "what was told is taken back: {told:?}");
    // No answer is nobody's fault.
    world.tick(LOOK_INTERVAL_MS);
    world.apply(Input::Done(Done::Found(Ok(vec![]))));
    assert_eq!(world.apply(kept("a", Err(DeclareError::Lost("x".into())))), nothing());
    assert_eq!(world.tick(RETRY_MS), [Act::Look]);
}

#[test]
fn one_act_at_a_time_and_none_waits_for_ever() {
    let mut world = World::new();
    world.apply(current());
    assert_eq!(world.apply(put("a", Content::Object(object("a")))), nothing(), "it looks already");
    assert_eq!(world.apply(Input::Done(Done::Found(Ok(vec![])))).0, [declares("a")]);
    assert_eq!(world.apply(put("b", Content::Object(object("b")))), nothing());
    let (acts, _) = world.apply(kept("a", Ok(declared::Done::Made)));
    assert_eq!(acts, [Act::Look], "what changed meanwhile is looked at now");
    assert_eq!(world.tick(ACT_TIMEOUT_MS), [Act::Look], "an answer that was lost");
    world.apply(Input::Done(Done::Found(Err(DeclareError::Lost("away".into())))));
    assert_eq!(world.tick(RETRY_MS), [Act::Look]);
}

#[test]
fn rubbish_is_put_aside_and_the_stream_stays() {
    let mut world = World::new();
    world.apply(current());
    let (_, told) = world.apply(entry("a", EntryValue::Put(vec![0xc1])));
    assert!(told[0].starts_with("dead"), "{told:?}");
    let mut wrong = object("a");
    wrong.set(&["spec", "subjects"], vec!["app.other.x"]);
    let (_, told) = world.apply(put("a", Content::Object(wrong)));
    assert!(told[0].contains("spec.subjects[0]"), "{told:?}");
    let (_, told) = world.apply(put("b", Content::Object(object("a"))));
    assert!(told[0].contains("the key says"), "{told:?}");
    assert_eq!(world.apply(Input::Done(Done::Found(Ok(vec![there("a")])))).0, [Act::Look]);
    assert_eq!(world.apply(Input::Done(Done::Found(Ok(vec![there("a")])))), nothing());
}
