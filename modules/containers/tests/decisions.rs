//! What the module decides, against a model of containerd: no clock, no disk, no network.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use bus::module::{Effect, Entry, EntryValue, Input, Message, Module};
use containers::Containers;
use containers::effects::{Act, Done, Listing, StartError, Started};
use containers::runtime::container::{ContainerState, Exit, FoundContainer, container_id};
use schemas::Timestamp;
use schemas::command::{OpenExec, OpenLogs, Reply};
use schemas::desired::{Content, Desired, Lineage, Local};
use schemas::name::NodeName;
use schemas::object::Object;
use schemas::report::{EventReport, PodReport};
use schemas::subject::DesiredKey;
use serde_json::{Value, json};

const T0: Timestamp = Timestamp(1_700_000_000_000);

/// The module, what it saved, and a containerd that does what it is told at once.
struct World {
    module: Containers,
    saved: BTreeMap<String, Vec<u8>>,
    found: BTreeMap<String, FoundContainer>,
    images: Vec<&'static str>,
    /// Names of all acts, in order.
    acts: Vec<String>,
    reports: Vec<PodReport>,
    events: Vec<EventReport>,
    replies: Vec<Vec<u8>>,
    dead: Vec<String>,
    /// While true acts are kept back.
    hold: bool,
    held: VecDeque<Act>,
    now: Timestamp,
}

/// Each with another ID for its store, as in edge-runtime.
fn module() -> Containers {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let store = format!("store-{}", MADE.fetch_add(1, Ordering::Relaxed));
    Containers::new(NodeName::new("n1").unwrap(), store)
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            module: module(),
            saved: BTreeMap::new(),
            found: BTreeMap::new(),
            images: vec!["img"],
            acts: vec![],
            reports: vec![],
            events: vec![],
            replies: vec![],
            dead: vec![],
            hold: false,
            held: VecDeque::new(),
            now: T0,
        };
        world.boot();
        world
    }

    /// kill -9 of the agent and a new start.
    fn boot(&mut self) {
        self.module = module();
        self.held.clear();
        self.acts.clear();
        let saved = self.saved.clone().into_iter().collect();
        let effects = self.module.restore(saved, self.now);
        self.carry_out(effects);
        self.apply(Input::Current { bucket: "local".into(), filter: ">".into() });
    }

    /// Everything but the disk is gone.
    fn reboot(&mut self) {
        for container in self.found.values_mut() {
            if container.state == ContainerState::Running {
                container.state = ContainerState::Lost;
            }
        }
        self.boot();
    }

    fn apply(&mut self, input: Input<Done>) {
        let effects = self.module.apply(input, self.now);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect<Act>>) {
        let mut acts = vec![];
        for effect in effects {
            match effect {
                Effect::Save { key, value } => drop(self.saved.insert(key, value)),
                Effect::Forget { key } => drop(self.saved.remove(&key)),
                Effect::Report { subject, payload, .. } if subject.starts_with("ew.rep.containers.pod.") => {
                    self.reports.push(schemas::decode(&payload).unwrap());
                }
                Effect::Report { subject, payload, .. } => {
                    assert!(subject.starts_with("ew.evt.containers."), "{subject}");
                    self.events.push(schemas::decode(&payload).unwrap());
                }
                Effect::Reply { payload, .. } => self.replies.push(payload),
                Effect::Dead { reason, .. } => self.dead.push(reason),
                Effect::Act(act) => acts.push(act),
                other => panic!("undeclared {other:?}"),
            }
        }
        for act in acts {
            if self.hold {
                self.held.push_back(act);
            } else {
                self.act(act);
            }
        }
    }

    fn release(&mut self) {
        self.hold = false;
        while let Some(act) = self.held.pop_front() {
            self.act(act);
        }
    }

    fn act(&mut self, act: Act) {
        let done = match act {
            Act::List(asked) => {
                let containers = self.found.values().cloned().collect();
                Done::Listed {
                    asked,
                    result: Ok(Listing { containers, sandboxes: vec![], host_ip: "192.0.2.1".into() }),
                }
            }
            Act::Start(start) => {
                let uid = start.pod.metadata.uid.clone().unwrap();
                let spec = start.pod.spec.clone().unwrap();
                let all = spec.init_containers.into_iter().flatten().chain(spec.containers);
                let container = all.into_iter().find(|c| c.name == start.container).unwrap();
                self.acts.push(format!("start {uid}/{}/{}", start.container, start.attempt));
                let image = container.image.clone().unwrap_or_default();
                let wanted = start.pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
                let missing = wanted
                    .filter_map(|v| v.config_map.as_ref())
                    .find(|c| !start.referenced.config_maps.contains_key(&c.name));
                let fail = |reason: &str, message: String| StartError {
                    reason: reason.into(),
                    message,
                    away: false,
                };
                let result = if !self.images.contains(&image.as_str()) {
                    Err(fail("ErrImageNeverPull", format!("no {image}")))
                } else if let Some(missing) = missing {
                    Err(fail("CreateContainerConfigError", format!("configmap {} not found", missing.name)))
                } else {
                    let id = container_id(&uid, &start.container, start.attempt);
                    let found = FoundContainer {
                        id: id.clone(),
                        pod_uid: uid.clone(),
                        pod_ip: "10.0.0.2".into(),
                        namespace: "d".into(),
                        pod: start.pod.metadata.name.clone().unwrap(),
                        container: start.container.clone(),
                        attempt: start.attempt,
                        spec_hash: start.spec_hash.clone(),
                        image: image.clone(),
                        image_id: "sha256:1".into(),
                        log_path: "/log".into(),
                        started_at: self.now,
                        state: ContainerState::Running,
                    };
                    let known = self.found.entry(id).or_insert(found);
                    if matches!(known.state, ContainerState::Lost | ContainerState::Created) {
                        known.state = ContainerState::Running;
                    }
                    Ok(Started { ip: "10.0.0.2".into(), image, image_id: "sha256:1".into(), since: self.now })
                };
                Done::Started { uid, container: start.container, result }
            }
            Act::Reap { uid, id } => {
                self.acts.push(format!("reap {uid}"));
                let exit = match self.found.get(&id).map(|f| f.state) {
                    Some(ContainerState::Exited(exit)) => Some(exit),
                    _ => None,
                };
                Done::Reaped { uid, id, result: Ok(exit) }
            }
            Act::Replace { uid, id, .. } => {
                self.acts.push(format!("replace {uid}"));
                let exit = Exit { code: 143, oom_killed: false, finished_at: self.now };
                self.found.get_mut(&id).unwrap().state = ContainerState::Exited(exit);
                Done::Reaped { uid, id, result: Ok(Some(exit)) }
            }
            Act::Stop(stop) => {
                self.acts.push(format!("stop {} {}", stop.uid, stop.grace_ms));
                let exit = Exit { code: 0, oom_killed: false, finished_at: self.now };
                let exits = self
                    .found
                    .values()
                    .filter(|f| f.pod_uid == stop.uid)
                    .map(|f| (f.id.clone(), exit))
                    .collect();
                self.found.retain(|_, f| f.pod_uid != stop.uid);
                Done::Stopped { uid: stop.uid, result: Ok(exits) }
            }
            Act::Volumes { pod, referenced } => {
                let uid = pod.metadata.uid.unwrap();
                let text: Vec<_> = referenced
                    .config_maps
                    .values()
                    .flat_map(|d| d.values())
                    .map(|b| String::from_utf8_lossy(b).into_owned())
                    .collect();
                self.acts.push(format!("volumes {uid} {}", text.join(",")));
                Done::VolumesWritten { uid, result: Ok(()) }
            }
            Act::Logs(logs) => {
                self.acts.push(format!("logs {}/{}/{}", logs.uid, logs.container, logs.attempt));
                return;
            }
            Act::Exec(exec) => {
                self.acts.push(format!("exec {:?}", exec.open.command));
                return;
            }
        };
        self.apply(Input::Done(done));
    }

    fn entry(&mut self, plural: &str, name: &str, uid: &str, revision: u64, content: Content) {
        let desired =
            Desired { generation: "g".into(), epoch: "e".into(), resource_version: revision, content };
        let key =
            DesiredKey { plural: plural.into(), namespace: "d".into(), name: name.into(), uid: uid.into() };
        let value = EntryValue::Put(schemas::encode(&Local { revision, desired }));
        self.apply(Input::Entry(Entry { bucket: "local".into(), key: key.local_key(), revision, value }));
    }

    fn pod(&mut self, uid: &str, revision: u64, spec: Value) {
        self.entry("pods", "web", uid, revision, Content::Object(pod(uid, spec, false)));
    }

    fn tombstone(&mut self, uid: &str) {
        self.entry("pods", "web", uid, 99, Content::Tombstone);
    }

    /// A container ends by itself, and containerd says so.
    fn exits(&mut self, uid: &str, container: &str, code: i32) {
        let running = self
            .found
            .values_mut()
            .find(|f| f.pod_uid == uid && f.container == container && f.state == ContainerState::Running);
        let found = running.expect("it runs");
        found.state = ContainerState::Exited(Exit { code, oom_killed: false, finished_at: self.now });
        let id = found.id.clone();
        self.apply(Input::Done(Done::Exited { id }));
    }

    fn wait(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        self.apply(Input::Tick);
    }

    fn acts(&mut self) -> Vec<String> {
        std::mem::take(&mut self.acts)
    }

    fn last(&self) -> &PodReport {
        self.reports.last().unwrap()
    }

    fn reasons(&mut self) -> Vec<String> {
        std::mem::take(&mut self.events).into_iter().map(|event| event.reason).collect()
    }
}

fn pod(uid: &str, spec: Value, deleting: bool) -> Object {
    let mut metadata = json!({"name": "web", "namespace": "d", "uid": uid});
    if deleting {
        metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        metadata["deletionGracePeriodSeconds"] = json!(5);
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}).try_into().unwrap()
}

fn one() -> Value {
    json!({"containers": [{"name": "main", "image": "img"}]})
}

fn with(extra: Value) -> Value {
    let mut spec = one();
    for (key, value) in extra.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

#[test]
fn a_pod_is_started_once_and_told() {
    let mut world = World::new();
    world.pod("u1", 1, one());
    assert_eq!(world.acts(), ["start u1/main/0"]);
    assert_eq!(world.reasons(), ["Created", "Started"]);
    let status = world.last().status.clone();
    assert_eq!(status["phase"], "Running");
    assert_eq!((&status["podIP"], &status["hostIP"]), (&json!("10.0.0.2"), &json!("192.0.2.1")));
    let container = &status["containerStatuses"][0];
    assert_eq!(container["containerID"], format!("containerd://{}", container_id("u1", "main", 0)));
    assert!(status["conditions"].as_array().unwrap().iter().all(|c| c["status"] == "True"), "{status}");
    let told = world.reports.len();
    for revision in 1..4 {
        world.pod("u1", revision, one());
    }
    world.wait(60_000);
    assert_eq!(world.acts(), Vec::<String>::new(), "said again, nothing is done again");
    assert_eq!(world.reports.len(), told);
}

/// A hub that came back older: what runs is said again; of what went since, that it is gone; all of it once.
#[test]
fn a_container_is_replaced_for_what_it_is_made_from_and_for_nothing_else() {
    let mut world = World::new();
    world.pod("u1", 1, one());
    world.acts();
    let mut edited = pod("u1", with(json!({"tolerations": [{"key": "k", "operator": "Exists"}]})), false);
    edited.set(&["metadata", "labels", "app"], "web");
    world.entry("pods", "web", "u1", 2, Content::Object(edited));
    world.wait(60_000);
    assert_eq!(world.acts(), Vec::<String>::new(), "no container is made from labels or tolerations");
    let mut spec = one();
    spec["containers"][0]["args"] = json!(["--other"]);
    world.pod("u1", 3, spec);
    assert_eq!(world.acts(), ["replace u1", "start u1/main/1"]);
}

#[test]
fn everything_is_reported_anew_to_a_hub_that_came_back_older() {
    let rewound = |world: &mut World, epochs: &[(&str, u64)]| {
        let mut lineage = Lineage::new("g".into());
        epochs.iter().for_each(|(id, last)| lineage.begin((*id).into(), *last));
        let value = EntryValue::Put(schemas::encode(&lineage));
        world.apply(Input::Entry(Entry {
            bucket: "local".into(),
            key: "_lineage".into(),
            revision: 1,
            value,
        }));
    };
    let told = |world: &mut World| -> Vec<(String, bool, Value)> {
        let reports = std::mem::take(&mut world.reports).into_iter();
        reports.map(|report| (report.uid, report.stopped, report.status["phase"].clone())).collect()
    };
    let mut world = World::new();
    world.pod("u1", 1, one());
    for (uid, revision) in [("u2", 2), ("u3", 3)] {
        world.pod(uid, revision, one());
    }
    // One went at revision 5, one at 99.
    world.entry("pods", "web", "u2", 5, Content::Tombstone);
    world.tombstone("u3");
    world.wait(1_000);
    let sequence = world.last().sequence;
    told(&mut world);
    world.acts();
    // The backup was made when the hub had written revision 9.
    rewound(&mut world, &[("e", 0), ("later", 9)]);
    let gone = world.last().clone();
    assert_eq!(
        told(&mut world),
        [("u1".into(), false, json!("Running")), ("u3".into(), true, json!("Failed"))]
    );
    assert!(gone.sequence > sequence && gone.status["reason"] == "DeletedBefore", "{gone:?}");
    assert_eq!(world.acts(), Vec::<String>::new(), "nothing is done for it");
    rewound(&mut world, &[("e", 0), ("later", 9)]);
    assert_eq!(told(&mut world), [], "once");

    // It came while we were away, before containerd has spoken and before the tombstones are known again.
    world.module = module();
    let saved = world.saved.clone().into_iter().collect();
    world.hold = true;
    let effects = world.module.restore(saved, world.now);
    world.carry_out(effects);
    rewound(&mut world, &[("e", 0), ("again", 9)]);
    world.tombstone("u3");
    assert_eq!(told(&mut world), []);
    world.release();
    assert_eq!(told(&mut world), [], "not all entries are told yet");
    world.apply(Input::Current { bucket: "local".into(), filter: ">".into() });
    assert_eq!(told(&mut world).len(), 2);
}

/// What a clock that was wrong wrote down is no reason to wait, and no reason that the hub takes a report for an old one.
#[test]
fn a_clock_that_was_set_back_holds_nothing_up() {
    let mut world = World::new();
    let right = world.now;
    world.now = right.plus_ms(5 * 365 * 24 * 3_600_000);
    for uid in ["u1", "u2"] {
        world.pod(uid, 1, one());
    }
    world.exits("u1", "main", 1);
    world.exits("u1", "main", 1);
    world.tombstone("u2");
    world.wait(1_000);
    let said = world.reports.iter().filter(|report| report.uid == "u2").map(|report| report.sequence).max();
    world.acts();

    world.now = right;
    world.boot();
    assert_eq!(world.acts(), ["start u1/main/2"], "its back-off is not waited for until that year comes");
    let before = world.reports.len();
    world.tombstone("u2");
    world.apply(Input::Entry(Entry {
        bucket: "local".into(),
        key: "_lineage".into(),
        revision: 1,
        value: EntryValue::Put({
            let mut lineage = Lineage::new("g".into());
            lineage.begin("e".into(), 0);
            lineage.begin("later".into(), 9);
            schemas::encode(&lineage)
        }),
    }));
    let gone = world.reports.iter().skip(before).find(|report| report.uid == "u2");
    let gone = gone.map(|report| (report.sequence > said.unwrap(), report.status["reason"].clone()));
    assert_eq!(gone, Some((true, json!("DeletedBefore"))));
}

/// The hub compares sequences within one store: its ID is kept as long as what was numbered is known.
#[test]
fn a_store_has_one_id_until_something_of_it_is_lost() {
    for lost in ["nothing", "all", "pod.u1", "store"] {
        let mut world = World::new();
        world.pod("u1", 1, one());
        let first = world.last().store.clone();
        assert!(!first.is_empty());
        match lost {
            "nothing" => {}
            "all" => world.saved.clear(),
            key => drop(world.saved.insert(key.into(), b"\xc1".to_vec())),
        }
        world.boot();
        world.pod("u1", 1, one());
        world.exits("u1", "main", 1);
        assert_eq!(world.last().store == first, lost == "nothing", "{lost} is lost");
        let second = world.last().store.clone();
        world.boot();
        world.exits("u1", "main", 1);
        assert_eq!(world.last().store, second, "it is kept from then on");
    }
}

/// Its record is gone with it; what the hub has merged of it may be above what the clock now shows.
#[test]
fn a_pod_that_comes_back_goes_on_with_its_numbers() {
    let mut world = World::new();
    world.pod("u1", 1, one());
    world.tombstone("u1");
    world.wait(1_000);
    assert!(world.module.pods().is_empty());
    let said = world.last().sequence;
    world.now = T0;
    world.boot();
    world.pod("u1", 100, one());
    assert!(world.last().sequence > said, "{} after {said}", world.last().sequence);
}

#[test]
fn nothing_is_decided_before_containerd_has_spoken() {
    let mut world = World::new();
    world.hold = true;
    world.boot();
    world.pod("u1", 1, one());
    assert_eq!(world.acts(), Vec::<String>::new());
    assert!(world.saved.contains_key("pod.u1"), "but it is kept");
    world.release();
    assert_eq!(world.acts(), ["start u1/main/0"]);
    world.apply(Input::Done(Done::RuntimeAway("gone".into())));
    world.pod("u2", 2, one());
    assert_eq!(world.acts(), Vec::<String>::new(), "away");
    world.wait(6_000);
    assert_eq!(world.acts(), ["start u2/main/0"], "listed again");
}

#[test]
fn a_crashing_container_is_restarted_with_growing_pauses() {
    let mut world = World::new();
    world.pod("u1", 1, one());
    world.acts();
    world.exits("u1", "main", 1);
    assert_eq!(world.acts(), ["reap u1", "start u1/main/1"], "the first time at once");
    for (attempt, pause) in [(2, 10), (3, 20), (4, 40), (5, 80), (6, 160), (7, 300), (8, 300)] {
        world.wait(1_000);
        world.exits("u1", "main", 1);
        let container = world.last().status["containerStatuses"][0].clone();
        assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff", "{container}");
        assert_eq!(container["lastState"]["terminated"]["exitCode"], 1);
        assert_eq!(world.last().status["phase"], "Running");
        world.wait(pause * 1000 - 1);
        assert_eq!(world.acts(), ["reap u1"], "not before {pause} s");
        world.wait(1);
        assert_eq!(world.acts(), [format!("start u1/main/{attempt}")]);
    }
    assert!(world.reasons().contains(&"BackOff".to_owned()));
    world.wait(600_000);
    world.exits("u1", "main", 1);
    assert_eq!(world.acts(), ["reap u1", "start u1/main/9"], "it ran for ten minutes: at once again");
    assert_eq!(world.last().status["containerStatuses"][0]["restartCount"], 9);
}

#[test]
fn restart_policies_and_init_containers() {
    for (policy, code, restarts, phase) in [
        ("Never", 0, false, "Succeeded"),
        ("Never", 1, false, "Failed"),
        ("OnFailure", 0, false, "Succeeded"),
        ("OnFailure", 1, true, "Running"),
        ("Always", 0, true, "Running"),
    ] {
        let mut world = World::new();
        world.pod("u1", 1, with(json!({"restartPolicy": policy})));
        world.exits("u1", "main", code);
        world.wait(1_000_000);
        assert_eq!(world.acts().contains(&"start u1/main/1".to_owned()), restarts, "{policy} {code}");
        assert_eq!(world.last().status["phase"], phase, "{policy} {code}");
        world.acts();
        world.boot();
        assert_eq!(world.acts(), Vec::<String>::new(), "what has ended for good stays so: {policy} {code}");
    }
    let mut world = World::new();
    world.pod("u1", 1, with(json!({"initContainers": [{"name": "first", "image": "img"}]})));
    assert_eq!(world.acts(), ["start u1/first/0"]);
    assert_eq!(world.last().status["phase"], "Pending");
    assert_eq!(world.last().status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    world.exits("u1", "first", 0);
    assert_eq!(world.acts(), ["reap u1", "start u1/main/0"]);
    assert_eq!(world.last().status["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
}

#[test]
fn a_new_agent_adopts_what_runs() {
    let mut world = World::new();
    world.pod("u1", 1, one());
    world.reasons();
    world.boot();
    assert_eq!(world.acts(), Vec::<String>::new());
    assert_eq!(world.reasons(), ["Adopted"]);
    // Died while nobody looked.
    let id = container_id("u1", "main", 0);
    world.found.get_mut(&id).unwrap().state =
        ContainerState::Exited(Exit { code: 9, oom_killed: true, finished_at: world.now });
    world.boot();
    assert_eq!(world.acts(), ["reap u1", "start u1/main/1"]);
    let last = &world.last().status["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["containerID"]), (&json!(9), &json!(format!("containerd://{id}"))));
    // Cut off between saving a start and doing it.
    world.hold = true;
    world.exits("u1", "main", 0);
    world.release();
    world.wait(10_000);
    world.hold = true;
    world.boot();
    world.release();
    assert_eq!(world.found.values().filter(|f| f.state == ContainerState::Running).count(), 1);
}

/// containerd is killed while it starts a container, or we are: the answer never comes. Each attempt is told once, by what
/// is found of it, and one of which nothing is left is no end of the container, whatever its `restartPolicy`.
#[test]
fn a_start_whose_answer_was_lost_is_told_by_what_is_found() {
    use ContainerState::{Created, Exited, Lost, Running};
    let exit = Exit { code: 0, oom_killed: false, finished_at: T0 };
    for (found, acts, reasons, restarts) in [
        (Some(Running), vec![], vec!["Created", "Started"], 0),
        (Some(Exited(exit)), vec!["reap u1"], vec!["Created", "Started"], 0),
        (Some(Lost), vec!["start u1/main/1"], vec!["Failed", "Created", "Started"], 1),
        (Some(Created), vec!["start u1/main/0"], vec!["Created", "Started"], 0),
        (None, vec!["start u1/main/0"], vec!["Created", "Started"], 0),
    ] {
        for killed in ["containerd", "agent"] {
            let mut world = World::new();
            world.hold = true;
            world.pod("u1", 1, with(json!({"restartPolicy": "Never"})));
            let Some(start @ Act::Start(_)) = world.held.pop_front() else { panic!("it starts") };
            world.hold = false;
            // How far it came; its answer is dropped with the agent that would have heard it.
            let mut deaf = World { found: BTreeMap::new(), ..World::new() };
            deaf.act(start);
            world.found = deaf.found;
            match found {
                None => world.found.clear(),
                Some(state) => world.found.values_mut().for_each(|found| found.state = state),
            }
            if killed == "agent" {
                world.boot();
            } else {
                let error = StartError { reason: "Away".into(), message: "killed".into(), away: true };
                let (uid, container) = ("u1".to_owned(), "main".to_owned());
                world.apply(Input::Done(Done::Started { uid, container, result: Err(error) }));
                world.apply(Input::Done(Done::RuntimeBack));
            }
            let told: Vec<_> = world.reasons().into_iter().filter(|reason| reason != "Adopted").collect();
            assert_eq!(
                (world.acts(), told),
                (
                    acts.iter().map(|a| (*a).to_owned()).collect(),
                    reasons.iter().map(|r| (*r).to_owned()).collect()
                ),
                "{found:?}, {killed} killed"
            );
            let status = &world.last().status;
            assert_eq!(status["containerStatuses"][0]["restartCount"], restarts, "{found:?}: {status}");
            if found == Some(Running) {
                assert_eq!(status["podIP"], "10.0.0.2", "the address comes with what is found");
            }
            world.boot();
            assert_eq!(world.acts(), Vec::<String>::new(), "{found:?}");
            assert!(!world.reasons().contains(&"Started".to_owned()), "told once: {found:?}");
        }
    }
}

/// The start was refused, and what was made of it could not be removed: that is no start without an answer.
#[test]
fn what_a_refused_start_leaves_is_tried_again_as_the_same_attempt() {
    let mut world = World::new();
    world.hold = true;
    world.pod("u1", 1, one());
    let Some(start @ Act::Start(_)) = world.held.pop_front() else { panic!("it starts") };
    world.hold = false;
    let mut deaf = World { found: BTreeMap::new(), ..World::new() };
    deaf.act(start);
    world.found = deaf.found;
    world.found.values_mut().for_each(|found| found.state = ContainerState::Lost);
    let error = StartError { reason: "CreateContainerError".into(), message: "no space".into(), away: false };
    let (uid, container) = ("u1".to_owned(), "main".to_owned());
    world.apply(Input::Done(Done::Started { uid, container, result: Err(error) }));
    world.apply(Input::Done(Done::RuntimeBack));
    assert_eq!((world.acts(), world.reasons()), (vec![], vec!["Failed".to_owned()]));
    world.wait(1_000);
    assert_eq!(world.acts(), ["start u1/main/0"]);
    assert_eq!(world.reasons(), ["Created", "Started"]);
}

#[test]
fn a_replacement_that_fails_is_tried_again_after_a_pause_and_told_once() {
    let mut world = World::new();
    world.pod("u1", 1, one());
    world.acts();
    world.reasons();
    world.images.push("img2");
    world.hold = true;
    world.pod("u1", 8, json!({"containers": [{"name": "main", "image": "img2"}]}));
    for _ in 0..3 {
        let Some(Act::Replace { uid, id, .. }) = world.held.pop_front() else { panic!("it replaces") };
        world.apply(Input::Done(Done::Reaped { uid, id, result: Err("busy".into()) }));
        assert!(!world.held.iter().any(|act| matches!(act, Act::Replace { .. })), "not at once");
        world.held.clear();
        world.wait(10_000);
        world.held.retain(|act| matches!(act, Act::Replace { .. }));
    }
    assert_eq!(world.reasons(), ["Killing"]);
    world.release();
    assert_eq!(world.acts(), ["replace u1", "start u1/main/1"]);
}

#[test]
fn after_a_reboot_everything_is_started_without_a_hub() {
    let mut world = World::new();
    world.pod("u1", 1, one());
    world.entry(
        "pods",
        "other",
        "u2",
        2,
        Content::Object({
            let mut other = pod("u2", one(), false);
            other.set(&["metadata", "name"], "other");
            other
        }),
    );
    world.reboot();
    assert_eq!(world.acts(), ["start u1/main/1", "start u2/main/1"]);
    assert_eq!(world.last().status["containerStatuses"][0]["restartCount"], 1);
    world.reboot();
    assert_eq!(world.acts(), ["start u1/main/2", "start u2/main/2"], "a reboot is not a crash: no pause");
    world.found.clear();
    world.boot();
    assert_eq!(world.acts(), ["start u1/main/3", "start u2/main/3"], "containerd lost them too");
}

#[test]
fn a_pod_goes_by_its_own_deletion_and_is_forgotten_by_its_tombstone() {
    let mut world = World::new();
    world.pod("u1", 1, one());
    world.acts();
    world.entry("pods", "web", "u1", 2, Content::Object(pod("u1", one(), true)));
    assert_eq!(world.acts(), ["stop u1 5000"]);
    assert!(world.last().stopped);
    assert!(world.reasons().contains(&"Killing".to_owned()));
    assert!(world.saved.contains_key("pod.u1"), "until the hub has heard it");
    world.boot();
    world.entry("pods", "web", "u1", 2, Content::Object(pod("u1", one(), true)));
    assert_eq!(world.acts(), Vec::<String>::new(), "not stopped twice, not started again");
    assert!(world.last().stopped, "but said again");
    world.pod("u1", 3, one());
    assert_eq!(world.acts(), Vec::<String>::new(), "a UID that goes does not come back");
    world.tombstone("u1");
    assert!(!world.saved.keys().any(|key| key.starts_with("pod.")));
    world.pod("u2", 4, one());
    assert_eq!(world.acts(), ["start u2/main/0"]);
    world.tombstone("u2");
    assert_eq!(world.acts(), ["stop u2 30000"], "a tombstone alone will do");
    assert!(!world.saved.keys().any(|key| key.starts_with("pod.")));
}

#[test]
fn a_pod_made_again_under_its_name_runs_beside_the_old_one_until_that_goes() {
    let mut world = World::new();
    world.pod("old", 1, one());
    world.pod("new", 5, one());
    assert_eq!(world.acts(), ["start old/main/0", "start new/main/0"]);
    world.tombstone("old");
    assert_eq!(world.acts(), ["stop old 30000"]);
    assert_eq!(world.found.len(), 1);
    world.tombstone("old");
    assert_eq!(world.acts(), Vec::<String>::new());
}

#[test]
fn absence_is_never_deletion() {
    let mut world = World::new();
    world.pod("u1", 1, one());
    world.acts();
    // The entry vanishes.
    let key =
        DesiredKey { plural: "pods".into(), namespace: "d".into(), name: "web".into(), uid: "u1".into() };
    let gone = Entry {
        bucket: "local".into(),
        key: key.local_key(),
        revision: 9,
        value: EntryValue::Removed(vec![]),
    };
    world.apply(Input::Entry(gone));
    // Our own store vanishes too: nobody knows the pod.
    world.saved.clear();
    world.reasons();
    world.boot();
    world.wait(60_000);
    assert_eq!(world.acts(), Vec::<String>::new());
    assert_eq!(world.reasons(), ["Unclaimed"], "but somebody should look, and is told once");
    // The hub names it again: it is the same container.
    world.pod("u1", 1, one());
    assert_eq!(world.acts(), Vec::<String>::new());
    assert_eq!(world.reasons(), ["Adopted"]);
    assert_eq!(world.last().status["phase"], "Running");
    let before = world.last().sequence;
    world.exits("u1", "main", 1);
    assert!(world.last().sequence > before);
    // The same with a tombstone.
    world.saved.clear();
    world.boot();
    world.tombstone("u1");
    assert_eq!(world.acts(), ["stop u1 30000"]);
}

#[test]
fn a_tombstone_that_comes_before_the_first_list_is_not_lost() {
    let mut world = World::new();
    world.pod("u1", 1, one());
    world.saved.clear();
    world.hold = true;
    world.boot();
    world.tombstone("u1");
    world.release();
    assert_eq!(world.acts(), ["stop u1 30000"]);
    assert!(world.found.is_empty());
}

#[test]
fn an_older_write_of_the_same_history_is_ignored() {
    let mut world = World::new();
    world.pod("u1", 7, one());
    world.acts();
    world.pod("u1", 3, json!({"containers": [{"name": "main", "image": "old"}]}));
    assert_eq!(world.acts(), Vec::<String>::new());
    world.images.push("img2");
    world.pod("u1", 8, json!({"containers": [{"name": "main", "image": "img2"}]}));
    assert_eq!(world.acts(), ["replace u1", "start u1/main/1"], "a changed image is a new container");
}

#[test]
fn a_list_older_than_an_act_does_not_count() {
    let mut world = World::new();
    world.hold = true;
    world.wait(30_000);
    let Some(Act::List(asked)) = world.held.pop_front() else { panic!("it asks") };
    world.hold = false;
    world.pod("u1", 1, one());
    world.acts();
    world.apply(Input::Done(Done::Listed { asked, result: Ok(Listing::default()) }));
    assert_eq!(world.acts(), Vec::<String>::new(), "the list was asked for before the container was there");
}

#[test]
fn config_maps_reach_running_pods_and_waiting_ones() {
    let map =
        |text: &str| Content::Object(json!({"kind": "ConfigMap", "data": {"k": text}}).try_into().unwrap());
    let mut world = World::new();
    let spec = with(json!({"volumes": [{"name": "v", "configMap": {"name": "cm"}}]}));
    world.pod("u1", 1, spec.clone());
    world.pod("other", 1, one());
    world.acts();
    let waiting = world.reports.iter().find(|r| {
        r.uid == "u1"
            && r.status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    });
    assert!(waiting.is_some());
    world.entry("configmaps", "cm", "c1", 2, map("one"));
    assert_eq!(world.acts(), ["start u1/main/0"], "at once");
    world.entry("configmaps", "cm", "c1", 3, map("two"));
    assert_eq!(world.acts(), ["volumes u1 two"]);
    world.entry("configmaps", "cm", "c1", 3, map("two"));
    world.entry("configmaps", "cm", "c1", 2, map("one"));
    assert_eq!(world.acts(), Vec::<String>::new(), "the same, and an older one");
    world.entry("configmaps", "cm", "c2", 9, map("three"));
    assert_eq!(world.acts(), ["volumes u1 three"], "made again");
    world.entry("configmaps", "cm", "c1", 10, Content::Tombstone);
    world.reboot();
    assert_eq!(world.acts(), ["start other/main/1", "start u1/main/1"], "from what is kept");
}

/// Everything the node kept is lost while the container runs, and the ConfigMap is another when it comes again.
#[test]
fn an_adopted_pod_gets_the_config_map_of_now() {
    let map =
        |text: &str| Content::Object(json!({"kind": "ConfigMap", "data": {"k": text}}).try_into().unwrap());
    let spec = with(json!({"volumes": [{"name": "v", "configMap": {"name": "cm"}}]}));
    for map_first in [true, false] {
        let mut world = World::new();
        world.entry("configmaps", "cm", "c1", 1, map("one"));
        world.pod("u1", 2, spec.clone());
        world.acts();
        world.saved.clear();
        world.boot();
        if map_first {
            world.entry("configmaps", "cm", "c1", 3, map("two"));
            world.pod("u1", 2, spec.clone());
        } else {
            world.pod("u1", 2, spec.clone());
            assert_eq!(world.acts(), Vec::<String>::new(), "nothing is written from what is not known");
            world.entry("configmaps", "cm", "c1", 3, map("two"));
        }
        assert_eq!(world.acts(), ["volumes u1 two"], "map first: {map_first}");
    }
}

#[test]
fn a_config_map_that_changes_while_the_pod_starts_is_not_lost() {
    let map =
        |text: &str| Content::Object(json!({"kind": "ConfigMap", "data": {"k": text}}).try_into().unwrap());
    let mut world = World::new();
    world.entry("configmaps", "cm", "c1", 1, map("one"));
    world.hold = true;
    world.pod("u1", 2, with(json!({"volumes": [{"name": "v", "configMap": {"name": "cm"}}]})));
    world.entry("configmaps", "cm", "c1", 3, map("two"));
    world.release();
    assert_eq!(world.acts(), ["start u1/main/0", "volumes u1 two"]);
}

#[test]
fn a_missing_image_is_tried_again_and_told_once() {
    let mut world = World::new();
    world.pod("u1", 1, json!({"containers": [{"name": "main", "image": "later"}]}));
    world.wait(999);
    assert_eq!(world.acts(), ["start u1/main/0"]);
    world.wait(1);
    world.wait(2_000);
    assert_eq!(world.acts(), ["start u1/main/0", "start u1/main/0"]);
    assert_eq!(world.reasons(), ["Failed"]);
    let state = &world.last().status["containerStatuses"][0]["state"]["waiting"];
    assert_eq!((&state["reason"], &state["message"]), (&json!("ErrImageNeverPull"), &json!("no later")));
    assert_eq!(world.last().status["phase"], "Pending");
    world.images.push("later");
    world.wait(30_000);
    assert_eq!(world.last().status["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(world.last().status["phase"], "Running");
}

#[test]
fn commands_find_their_container_or_say_why_not() {
    let mut world = World::new();
    world.pod("u1", 1, one());
    world.acts();
    let message = |verb: &str, payload: Vec<u8>| {
        Input::Message(Message {
            account: bus::module::Account::Control,
            subject: format!("ew.cmd.n1.containers.{verb}"),
            headers: Default::default(),
            payload,
            reply: Some("ew.str.n1.s".into()),
        })
    };
    let logs = |pod: &str, previous| OpenLogs {
        session: "s".into(),
        namespace: "d".into(),
        pod: pod.into(),
        container: String::new(),
        follow: false,
        tail_lines: None,
        since_seconds: None,
        timestamps: false,
        previous,
        limit_bytes: None,
    };
    let exec = OpenExec {
        session: "s".into(),
        namespace: "d".into(),
        pod: "web".into(),
        container: "main".into(),
        command: vec!["id".into()],
        stdin: false,
        stdout: true,
        stderr: true,
        tty: false,
    };
    world.apply(message("logs", schemas::encode(&logs("web", false))));
    world.apply(message("exec", schemas::encode(&exec)));
    assert_eq!(world.acts(), ["logs u1/main/0", "exec [\"id\"]"]);
    let mut bad_session = exec.clone();
    bad_session.session = "../x".into();
    let mut bad_container = exec.clone();
    bad_container.container = "no".into();
    for (verb, payload, code) in [
        ("logs", schemas::encode(&logs("none", false)), "EW-POD-NOT-FOUND"),
        ("logs", schemas::encode(&logs("web", true)), "EW-NO-PREVIOUS-LOG"),
        ("exec", schemas::encode(&bad_session), "EW-BAD-SESSION"),
        ("exec", schemas::encode(&bad_container), "EW-CONTAINER-NOT-FOUND"),
    ] {
        world.apply(message(verb, payload));
        let reply: Reply<()> = schemas::decode(&world.replies.pop().unwrap()).unwrap();
        assert_eq!(reply.unwrap_err().code, code);
    }
    world.exits("u1", "main", 1);
    world.acts();
    world.apply(message("logs", schemas::encode(&logs("web", true))));
    assert_eq!(world.acts(), ["logs u1/main/0"]);
    world.apply(message("logs", vec![0xc1, 0xff]));
    assert_eq!(world.dead.len(), 1);
}

#[test]
fn rubbish_is_dead_lettered_and_stops_nothing() {
    let mut world = World::new();
    world.pod("u1", 1, one());
    world.acts();
    for payload in [vec![], vec![0xff; 40], schemas::encode(&json!({"revision": "x"}))] {
        let value = EntryValue::Put(payload);
        world.apply(Input::Entry(Entry {
            bucket: "local".into(),
            key: "pods.d.web.u1".into(),
            revision: 3,
            value,
        }));
    }
    world.pod("u1", 4, json!({"containers": "many"}));
    world.entry("pods", "web", "u9", 5, Content::Object(pod("u1", one(), false)));
    assert_eq!(world.dead.len(), 5, "{:?}", world.dead);
    assert_eq!(world.acts(), Vec::<String>::new());
    world.saved.insert("pod.bad".into(), vec![1, 2, 3]);
    world.boot();
    assert_eq!(world.dead.len(), 6);
    assert_eq!(world.found.len(), 1);
}
