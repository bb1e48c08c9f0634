//! What must hold: some of it at every step, the rest when the world has healed and come to rest.

mod ends;

use std::collections::{BTreeMap, BTreeSet};

use bus::durable::Owed;
use containers::referenced::Data;
use schemas::desired::{Content, Desired, Local};
use schemas::envelope::header;
use schemas::object::Object;
use schemas::report::PodReport;
use schemas::subject::{self, BUCKET_DESIRED, BUCKET_LOCAL, BUCKET_OBJECTS, ObjectKey};
use serde_json::Value;
use sync::up::Cursor;

use super::downlink::{self, Downs};
use super::jetstream::Stored;
use super::planted::{desired_of, local_of};
use super::server::{HUB, ORIGIN};
use super::users::{self, LABEL, VERSION};
use super::world::World;
use ends::Ends;
pub use ends::{lost_local, stopped};

/// What Edgewire promises, as the simulator holds it to. The first group at every step, the rest once all has healed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invariant {
    /// A stored message arrives at the hub once, and in the order of its lane.
    ArrivesOnceInOrder,
    /// A cursor goes up only, but with another stream.
    CursorGoesUp,
    /// A pod that nobody deleted is never stopped, whatever the hub says or forgets.
    NothingStoppedUnasked,
    /// A container that nobody edited is never replaced.
    NothingReplacedUnasked,
    /// A container runs once on its node.
    RunsOnce,
    /// What was stopped for good is not started again.
    StoppedForGood,
    /// A container's attempts are numbered upwards, whatever falls: the number says what is an old one.
    AttemptsGoUp,
    /// The hub removes no object, and tells no node that one is gone, unless somebody deleted it.
    NothingRemovedUnasked,
    /// A node never goes back to an older version of an object.
    VersionsGoUp,
    /// A pod has no status but one that its node reported of this pod.
    StatusIsTheNodes,
    /// A message that the hub acknowledged for a node is written there once, and in order.
    ComesDownOnceInOrder,
    /// Every such message comes to its node, while the hub's store lasts.
    NothingLostDown,
    /// Every message and report that was on a node's disk arrives.
    NothingLost,
    /// The status that was reported last is the status that the API shows.
    StatusArrives,
    /// A user's edit is there, whoever else wrote the object.
    EditsStay,
    /// What is deleted ends, and goes.
    DeletionIsDone,
    /// Every pod gets a node, is reported, and runs there; nothing else does.
    DesiredIsActual,
    /// A node has what it shall have, and nothing else.
    NodeHasWhatIsDesired,
    /// A pod's files show the last edit of its ConfigMap.
    FilesAreNew,
    /// When nothing goes wrong any more, everything comes to rest.
    ComesToRest,
}

/// What came up in one history of the hub's store.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// The last sequence of each node's stream and lane.
    arrived: BTreeMap<String, u64>,
    cursors: BTreeMap<String, Cursor>,
}

/// What is known of the truth.
#[derive(Default)]
pub struct Checks {
    /// The first thing that did not hold.
    pub failure: Option<(Invariant, String)>,
    /// Of the hub's present history.
    pub ledger: Ledger,
    /// The hub's store was replaced: it may know less than the nodes, or something else.
    pub diverged: bool,
    /// Dead letters.
    pub dead: u64,
    /// Messages from the hub to nodes.
    pub downs: Downs,
    waiting: BTreeSet<String>,
    stored: u64,
    reports: BTreeMap<(String, u64), Vec<Value>>,
    last_report: BTreeMap<String, PodReport>,
    owed: BTreeSet<String>,
    doomed: BTreeSet<String>,
    edited: BTreeSet<String>,
    ends: Ends,
    runs: BTreeMap<(usize, String, String), bool>,
    attempts: BTreeMap<(usize, String, String), u32>,
    files: BTreeMap<(usize, String), BTreeMap<String, Data>>,
    /// Versions that the hub told nodes since its store was replaced: subject of the entry, and version.
    told: BTreeSet<(String, u64)>,
}

impl Checks {
    /// Something does not hold.
    pub fn fail(&mut self, broken: Invariant, what: impl Into<String>) {
        if self.failure.is_none() {
            self.failure = Some((broken, what.into()));
        }
    }

    /// A user asked for the end of that pod.
    pub fn doom(&mut self, uid: &str) {
        self.doomed.insert(uid.to_owned());
    }

    /// A user changed that pod's containers.
    pub fn edited(&mut self, uid: &str) {
        self.edited.insert(uid.to_owned());
    }

    /// Messages stored on nodes so far.
    pub fn stored(&self) -> u64 {
        self.stored
    }

    /// A container was started.
    pub fn started(&mut self, edge: usize, uid: &str, container: &str, attempt: u32) {
        if self.ends.has(edge, uid) {
            self.fail(
                Invariant::StoppedForGood,
                format!("pod {uid} was started again on node {edge} after it was stopped for good"),
            );
        }
        let key = (edge, uid.to_owned(), container.to_owned());
        if let Some(before) = self.attempts.insert(key.clone(), attempt).filter(|before| attempt <= *before) {
            let what =
                format!("container {container} of pod {uid} is started as attempt {attempt} after {before}");
            self.fail(Invariant::AttemptsGoUp, what);
        }
        if self.runs.insert(key, true) == Some(true) {
            self.fail(
                Invariant::RunsOnce,
                format!("container {container} of pod {uid} runs twice on node {edge}"),
            );
        }
    }

    /// A container ended.
    pub fn ended(&mut self, edge: usize, uid: &str, container: &str) {
        self.runs.insert((edge, uid.to_owned(), container.to_owned()), false);
    }

    /// Nothing runs any more.
    pub fn rebooted(&mut self, edge: usize) {
        self.runs.iter_mut().filter(|((at, ..), _)| *at == edge).for_each(|(_, runs)| *runs = false);
    }

    /// The hub's store was replaced by an older one, or by nothing.
    pub fn replaced_store(&mut self, ledger: Ledger) {
        self.ledger = ledger;
        self.diverged = true;
        self.told.clear();
    }

    /// What waited on the node is lost.
    pub fn lost_disk(&mut self, edge: usize) {
        let of = format!("{} ", edge + 1);
        self.waiting.retain(|waiting| !waiting.starts_with(&of));
        self.owed.retain(|owed| !owed.starts_with(&of));
        self.downs.lost_disk(edge);
    }

    /// A container is stopped, to be started anew.
    pub fn replaced(&mut self, edge: usize, uid: &str) {
        if !self.edited.contains(uid) {
            self.fail(
                Invariant::NothingReplacedUnasked,
                format!("an unchanged container of pod {uid} is restarted on node {edge}"),
            );
        }
    }

    /// A pod's files are written.
    pub fn files(&mut self, edge: usize, uid: &str, data: BTreeMap<String, Data>) {
        self.files.insert((edge, uid.to_owned()), data);
    }
}

/// A report is on a node's disk: from now on it must arrive.
pub fn owed(w: &mut World, at: usize, owed: &Owed) {
    if let Some(id) = owed.headers.get(header::ID) {
        w.checks.owed.insert(format!("{at} {id}"));
    }
    if let Ok(report) = schemas::decode::<PodReport>(&owed.payload) {
        let of = (report.uid.clone(), report.sequence);
        // Two stores of one node may give the same number.
        w.checks.reports.entry(of).or_default().push(report.status.clone());
        w.checks.last_report.insert(report.uid.clone(), report);
    }
}

/// A message was stored on a server.
pub fn stored(w: &mut World, at: usize, stream: &str, before: Option<&Stored>, stored: &Stored) {
    if at != HUB {
        if stream == subject::STREAM_OUTBOX || stream == subject::STREAM_UPLINK {
            if let Some(origin) = stored.headers.get(ORIGIN) {
                w.checks.stored += 1;
                w.checks.waiting.insert(format!("{at} {origin}"));
            }
        } else if stream == subject::bucket_stream(BUCKET_LOCAL) {
            local_written(w, at - 1, before, stored);
        }
        return;
    }
    if stream == subject::STREAM_UP || stream == subject::STREAM_FROM {
        if stored.subject.starts_with("ew.in.hub.") {
            let id = stored.headers.get(header::ID).map_or("", String::as_str); // the hub's own: it is there
            w.checks.owed.remove(&format!("{HUB} {id}"));
        } else if stored.subject.contains("_cursor.") {
            cursor_moved(w, stored);
        } else {
            arrived(w, stored);
        }
    } else if stream == subject::bucket_stream(BUCKET_OBJECTS) {
        object_written(w, before, stored);
    } else if stream == subject::bucket_stream(BUCKET_DESIRED) {
        let desired = schemas::decode::<Desired>(&stored.payload);
        if let Ok(Desired { content: Content::Object(object), .. }) = &desired
            && w.checks.diverged
        {
            w.checks.told.insert((stored.subject.clone(), version(object)));
        }
        let key = stored.subject.strip_prefix("$KV.desired.").and_then(subject::DesiredKey::parse_desired);
        if let (Ok(Desired { content: Content::Tombstone, .. }), Some((node, key))) = (desired, key)
            && key.plural == "pods"
            && !w.checks.doomed.contains(&key.uid)
        {
            w.checks.fail(
                Invariant::NothingRemovedUnasked,
                format!("the hub tells {node} that {} is gone, and nobody deleted it", key.uid),
            );
        }
    }
}

fn arrived(w: &mut World, stored: &Stored) {
    let Some(origin) = stored.headers.get(ORIGIN) else { return };
    let (node, lane) = match subject::lowered(&stored.subject) {
        Some((node, lane, _)) => (node.to_string(), lane.as_str()),
        None => (stored.subject.split('.').nth(1).unwrap_or("").to_owned(), "workload"),
    };
    let mut parts = origin.split(' ');
    let (generation, sequence) = (parts.nth(1).unwrap_or(""), parts.next().unwrap_or(""));
    let sequence: u64 = sequence.parse().unwrap_or(0);
    let of = format!("{node} {lane} {generation}");
    let last = w.checks.ledger.arrived.insert(of.clone(), sequence).unwrap_or(0);
    if sequence <= last {
        let what = if sequence == last { "twice" } else { "twice or out of order" };
        w.checks.fail(
            Invariant::ArrivesOnceInOrder,
            format!("message {sequence} of {of} arrives {what}, after {last}"),
        );
    }
    let edge = w.edges.iter().position(|edge| edge.name.as_str() == node).map_or(0, |edge| edge + 1);
    w.checks.waiting.remove(&format!("{edge} {origin}"));
    if let Some(id) = stored.headers.get(header::ID) {
        w.checks.owed.remove(&format!("{edge} {id}"));
    }
}

fn cursor_moved(w: &mut World, stored: &Stored) {
    let Ok(cursor) = schemas::decode::<Cursor>(&stored.payload) else {
        w.checks.fail(Invariant::CursorGoesUp, "a cursor cannot be read");
        return;
    };
    let before = w.checks.ledger.cursors.insert(stored.subject.clone(), cursor.clone());
    if let Some(before) = before.filter(|before| before.outbox_generation == cursor.outbox_generation)
        && cursor.sequence <= before.sequence
    {
        w.checks.fail(
            Invariant::CursorGoesUp,
            format!("cursor {} goes from {} to {}", stored.subject, before.sequence, cursor.sequence),
        );
    }
}

fn version(object: &Object) -> u64 {
    object.annotation(VERSION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn local_written(w: &mut World, edge: usize, before: Option<&Stored>, stored: &Stored) {
    let read = |stored: &Stored| schemas::decode::<Local>(&stored.payload).ok();
    let before = before.filter(|before| !before.is_tombstone()).and_then(read);
    let after = read(stored);
    if let Some(Content::Object(told)) = after.as_ref().map(|local| &local.desired.content) {
        w.checks.ends.told_anew(edge, told);
    }
    let (Some(before), Some(after)) = (before, after) else { return };
    if let (Content::Object(before), Content::Object(after)) =
        (&before.desired.content, &after.desired.content)
    {
        // A hub that lost an edit and now tells its own version anew is followed; what it told before its loss is not.
        let key = stored.subject.strip_prefix("$KV.local.").unwrap_or("");
        let told = (format!("$KV.desired.{}.{key}", w.edges[edge].name), version(after));
        if version(after) < version(before) && !w.checks.told.contains(&told) {
            w.checks.fail(
                Invariant::VersionsGoUp,
                format!(
                    "node {edge} replaces version {} of {} {} by the older {}",
                    version(before),
                    after.kind(),
                    after.name(),
                    version(after)
                ),
            );
        }
    }
}

fn object_written(w: &mut World, before: Option<&Stored>, stored: &Stored) {
    let Ok(object) = Object::from_bytes(&stored.payload, stored.sequence) else { return };
    if object.kind() != "Pod" {
        return;
    }
    if stored.is_tombstone() {
        if !w.checks.doomed.contains(object.uid()) {
            w.checks.fail(
                Invariant::NothingRemovedUnasked,
                format!("the hub removes pod {}, and nobody deleted it", object.uid()),
            );
        }
        return;
    }
    let old = before.filter(|before| !before.is_tombstone());
    let old = old.and_then(|before| Object::from_bytes(&before.payload, 0).ok());
    let merged = |pod: &Object| {
        let number = |name: &str| pod.annotation(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        (number(placement::status::SEQUENCE), number(placement::status::ARRIVAL))
    };
    if old.as_ref().map_or((0, 0), merged) == merged(&object) {
        return;
    }
    let reported = w.checks.reports.get(&(object.uid().to_owned(), merged(&object).0));
    let same = reported.is_some_and(|reported| reported.iter().any(|status| same_status(&object, status)));
    if !same {
        w.checks.fail(
            Invariant::StatusIsTheNodes,
            format!("pod {} has a status that its node never reported of it", object.uid()),
        );
    }
}

/// Conditions are merged with the hub's own; everything else is the report's.
fn same_status(pod: &Object, status: &Value) -> bool {
    status
        .as_object()
        .into_iter()
        .flatten()
        .all(|(field, value)| field == "conditions" || pod.get(&["status", field]) == Some(value))
}

/// What does not hold although the world has come to rest.
pub fn at_rest(w: &World) -> Vec<(Invariant, String)> {
    let mut wrong = Vec::new();
    if !w.hub.is_idle() {
        wrong.push((Invariant::ComesToRest, "the hub's modules are not done".to_owned()));
    }
    let checks = &w.checks;
    if let Some(first) = checks.waiting.first() {
        wrong.push((
            Invariant::NothingLost,
            format!("{} stored messages never arrived, such as {first}", checks.waiting.len()),
        ));
    }
    if let Some(first) = checks.owed.first() {
        wrong.push((
            Invariant::NothingLost,
            format!("{} owed reports never arrived, such as {first}", checks.owed.len()),
        ));
    }
    downlink::at_rest(w, &mut wrong);
    let pods = users::pods(w);
    for edge in 0..w.edges.len() {
        if !w.edges[edge].is_settled() {
            wrong.push((Invariant::ComesToRest, format!("node {edge} is not settled")));
        }
        node_at_rest(w, edge, &pods, &mut wrong);
    }
    for pod in &pods {
        let uid = pod.uid();
        if pod.text(&["spec", "nodeName"]).is_empty() && !checks.diverged {
            wrong.push((Invariant::DesiredIsActual, format!("pod {uid} has no node")));
        }
        match checks.last_report.get(uid) {
            Some(report) if !same_status(pod, &report.status) => {
                wrong.push((
                    Invariant::StatusArrives,
                    format!("pod {uid} has not the status that was reported last"),
                ));
            }
            None if !checks.diverged => {
                wrong.push((Invariant::DesiredIsActual, format!("pod {uid} was never reported")))
            }
            _ => {}
        }
    }
    for pod in &pods {
        let (have, want) = (pod.label(LABEL).unwrap_or(""), w.users.labels.get(pod.uid()));
        if want.is_some_and(|want| want != have) {
            wrong.push((
                Invariant::EditsStay,
                format!("pod {} has label {have}, a user set {want:?}", pod.uid()),
            ));
        }
    }
    wrong
}

fn node_at_rest(w: &World, edge: usize, pods: &[Object], wrong: &mut Vec<(Invariant, String)>) {
    let name = w.edges[edge].name.as_str();
    let (desired, local) = (desired_of(w, edge), local_of(w, edge));
    let running = w.edges[edge].running();
    let here = |pod: &&Object| pod.text(&["spec", "nodeName"]) == name;
    for pod in pods.iter().filter(here) {
        let uid = pod.uid();
        if w.checks.doomed.contains(uid) && w.checks.diverged {
            continue; // deleted in a history that the hub has lost
        }
        if pod.is_deleting() {
            wrong.push((
                Invariant::DeletionIsDone,
                format!("pod {uid} is still being deleted on node {edge}"),
            ));
        } else if !running.contains(uid) {
            wrong.push((Invariant::DesiredIsActual, format!("pod {uid} does not run on node {edge}")));
        }
        files_at_rest(w, edge, pod, wrong);
    }
    if w.checks.diverged {
        return;
    }
    for uid in &running {
        if !pods.iter().filter(here).any(|pod| pod.uid() == uid) {
            wrong.push((Invariant::DeletionIsDone, format!("pod {uid} still runs on node {edge}")));
        }
    }
    for (key, (_, entry)) in &desired {
        let held = local.get(key).map(|local| &local.desired.content);
        let same = match &entry.content {
            Content::Tombstone => !matches!(held, Some(Content::Object(_))),
            object => held == Some(object),
        };
        if !same {
            wrong.push((
                Invariant::NodeHasWhatIsDesired,
                format!("node {edge} has {} {} otherwise than desired", key.plural, key.name),
            ));
        }
    }
    for (key, entry) in &local {
        if entry.desired.content != Content::Tombstone && !desired.contains_key(key) {
            wrong.push((
                Invariant::NodeHasWhatIsDesired,
                format!("node {edge} has {} {}, which is not desired", key.plural, key.name),
            ));
        }
    }
}

fn files_at_rest(w: &World, edge: usize, pod: &Object, wrong: &mut Vec<(Invariant, String)>) {
    if w.checks.diverged {
        return;
    }
    let volumes = pod.get(&["spec", "volumes"]).and_then(Value::as_array).into_iter().flatten();
    for name in volumes.filter_map(|volume| volume.pointer("/configMap/name").and_then(Value::as_str)) {
        let Some(object) = users::get(w, &ObjectKey::core("configmaps", "default", name)) else { continue };
        let want = object.text(&["data", "version"]);
        let files = w.checks.files.get(&(edge, pod.uid().to_owned()));
        let have = files.and_then(|files| files.get(name)?.get("version").cloned()).unwrap_or_default();
        if have != want.as_bytes() {
            wrong.push((
                Invariant::FilesAreNew,
                format!("pod {} on node {edge} has an old ConfigMap {name}", pod.uid()),
            ));
        }
    }
}
