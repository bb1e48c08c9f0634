//! Those who use the API: random operations on pods and ConfigMaps, as the `api` module does them on the store.
//!
//! Each edit reads, waits a little, and writes under compare-and-set, so it meets the hub's modules and other users on the
//! way. What the user was told is what the checks hold the system to.

use std::collections::BTreeMap;

use bus::module::Expect;
use schemas::object::Object;
use schemas::subject::{self, BUCKET_OBJECTS, ObjectKey};
use serde_json::json;

use super::server::{self, HUB};
use super::world::{MS, World};

/// Names of pods: few, so that they are used again and again.
const PODS: u64 = 6;
/// Names of ConfigMaps.
const CONFIG_MAPS: u64 = 2;
/// Annotation: grows with every edit of anybody.
pub const VERSION: &str = "sim/version";
/// Label that users edit.
pub const LABEL: &str = "colour";
/// An edit that loses against others is tried so often.
const TRIES: u32 = 8;

/// What the users know.
#[derive(Default)]
pub struct Users {
    version: u64,
    /// They have all they want.
    pub done: bool,
    /// The label each living pod was given last, by UID.
    pub labels: BTreeMap<String, String>,
}

/// One operation, if the hub takes any now.
pub fn act(w: &mut World) {
    if !w.servers[HUB].up || !w.hub.up {
        return;
    }
    let key = pod_key(w.random.below(PODS));
    match w.random.below(100) {
        0..30 => create(w, &key),
        30..40 => delete(w, &key, false),
        40..46 => delete(w, &key, true),
        46..52 => {
            delete(w, &key, true);
            let delay = w.near_us() * 3;
            w.after(delay, move |w| create(w, &key));
        }
        52..75 => edit(w, &key, TRIES, Edit::Label),
        75..80 => edit(w, &key, TRIES, Edit::Image),
        _ => {
            let name = format!("c{}", w.random.below(CONFIG_MAPS));
            config_map(w, &name);
        }
    }
}

fn pod_key(n: u64) -> ObjectKey {
    ObjectKey::core("pods", "default", &format!("p{n}"))
}

/// The object of that key, as the store has it.
pub fn get(w: &World, key: &ObjectKey) -> Option<Object> {
    let stream = w.servers[HUB].server.stream(&subject::bucket_stream(BUCKET_OBJECTS))?;
    let stored = stream.get(&subject::kv(BUCKET_OBJECTS, &key.key()))?;
    if stored.is_tombstone() {
        return None;
    }
    Object::from_bytes(&stored.payload, stored.sequence).ok()
}

/// All pods of the store.
pub fn pods(w: &World) -> Vec<Object> {
    (0..PODS).filter_map(|n| get(w, &pod_key(n))).collect()
}

fn next_version(w: &mut World) -> String {
    w.users.version += 1;
    w.users.version.to_string()
}

fn put(w: &mut World, key: &ObjectKey, object: &Object, expect: Expect) -> bool {
    if !w.servers[HUB].up {
        return false;
    }
    server::write(w, HUB, BUCKET_OBJECTS, &key.key(), &object.to_bytes(), expect, false).is_ok()
}

fn create(w: &mut World, key: &ObjectKey) {
    if !w.servers[HUB].up || get(w, key).is_some() {
        return;
    }
    let mut pod = Object::new("v1", "Pod", &key.namespace, &key.name);
    let uid = w.random.uid();
    pod.set(&["metadata", "uid"], uid.as_str());
    pod.set(&["metadata", "creationTimestamp"], w.now(HUB).rfc3339());
    let version = next_version(w);
    pod.set(&["metadata", "annotations", VERSION], version.as_str());
    pod.set(&["metadata", "labels", LABEL], version.as_str());
    let mut spec = json!({
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 2,
        "containers": [{"name": "c", "image": "sim:1", "resources": {"requests": {"cpu": "100m"}}}],
    });
    if w.random.per_mille(400) {
        spec["nodeName"] = format!("n{}", w.random.below(w.edges.len() as u64)).into();
    }
    if w.random.per_mille(400) {
        let name = format!("c{}", w.random.below(CONFIG_MAPS));
        spec["volumes"] = json!([{"name": "v", "configMap": {"name": name, "optional": true}}]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    }
    pod.set(&["spec"], spec);
    pod.set(&["status", "phase"], "Pending");
    if put(w, key, &pod, Expect::Absent) {
        w.tell(|| format!("user creates {} {uid:.8}", key.name));
        w.users.labels.insert(uid, version);
    }
}

/// Deletes gracefully, or with force.
fn delete(w: &mut World, key: &ObjectKey, force: bool) {
    let Some(mut pod) = get(w, key) else { return };
    let uid = pod.uid().to_owned();
    let expect = Expect::Revision(pod.revision());
    let bound = !pod.text(&["spec", "nodeName"]).is_empty();
    if force || !bound {
        w.checks.doom(&uid);
        let bytes = pod.to_bytes();
        let done = server::write(w, HUB, BUCKET_OBJECTS, &key.key(), &bytes, expect, true).is_ok();
        w.tell(|| format!("user deletes {} {uid:.8} at once: {done}", key.name));
        return;
    }
    if pod.is_deleting() {
        return;
    }
    pod.set(&["metadata", "deletionTimestamp"], w.now(HUB).rfc3339());
    pod.set(&["metadata", "deletionGracePeriodSeconds"], 2);
    let version = next_version(w);
    pod.set(&["metadata", "annotations", VERSION], version);
    w.checks.doom(&uid);
    let done = put(w, key, &pod, expect);
    w.tell(|| format!("user deletes {} {uid:.8}: {done}", key.name));
}

#[derive(Clone, Copy)]
enum Edit {
    Label,
    Image,
}

/// Reads, thinks, writes; again when somebody else was first.
fn edit(w: &mut World, key: &ObjectKey, tries: u32, what: Edit) {
    let Some(mut pod) = get(w, key).filter(|_| tries > 0) else { return };
    let key = key.clone();
    let thinking = w.random.between(500, 60 * MS);
    w.after(thinking, move |w| {
        let version = next_version(w);
        pod.set(&["metadata", "annotations", VERSION], version.as_str());
        match what {
            Edit::Label => pod.set(&["metadata", "labels", LABEL], version.as_str()),
            Edit::Image => {
                let image = format!("sim:{version}");
                pod.set(&["spec", "containers"], json!([{"name": "c", "image": image}]));
                w.checks.edited(pod.uid());
            }
        }
        let uid = pod.uid().to_owned();
        if put(w, &key, &pod, Expect::Revision(pod.revision())) {
            w.tell(|| format!("user edits {} {uid:.8}: version {version}", key.name));
            if matches!(what, Edit::Label) {
                w.users.labels.insert(uid, version);
            }
        } else {
            edit(w, &key, tries - 1, what);
        }
    });
}

fn config_map(w: &mut World, name: &str) {
    let key = ObjectKey::core("configmaps", "default", name);
    let (mut object, expect) = match get(w, &key) {
        Some(object) => {
            let expect = Expect::Revision(object.revision());
            (object, expect)
        }
        None => {
            let mut object = Object::new("v1", "ConfigMap", "default", name);
            object.set(&["metadata", "uid"], w.random.uid());
            (object, Expect::Absent)
        }
    };
    let version = next_version(w);
    object.set(&["metadata", "annotations", VERSION], version.as_str());
    object.set(&["data", "version"], version);
    put(w, &key, &object, expect);
}

/// The store was replaced: what users see now is what it has.
pub fn look_again(w: &mut World) {
    let labels = pods(w);
    w.users.labels =
        labels.iter().map(|pod| (pod.uid().to_owned(), pod.label(LABEL).unwrap_or("").to_owned())).collect();
}
