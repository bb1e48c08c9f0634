//! What the hub wants: entries of the local bucket. A pod, ConfigMap or Secret comes, changes, or is named by a tombstone.

use std::collections::BTreeSet;

use bus::module::Effect;
use schemas::Timestamp;
use schemas::desired::{Content, Local};
use schemas::object::Object;
use schemas::report::Severity;
use schemas::subject::{self, DesiredKey};

use super::{Containers, Effects};
use crate::pod::{Observed, PodState};
use crate::record::{DATA_PREFIX, DataRecord, Origin, Phase, PodRecord, Removal};
use crate::referenced::{CONFIG_MAPS, Data, Referenced, SECRETS, data_of};

impl Containers {
    pub(super) fn desired(&mut self, key: DesiredKey, local: Local, now: Timestamp, out: &mut Effects) {
        let origin = Origin::of(&local.desired);
        match (key.plural.as_str(), local.desired.content) {
            ("pods", Content::Object(object)) => self.want_pod(key, object, origin, now, out),
            ("pods", Content::Tombstone) => self.bury_pod(key, now, out),
            (CONFIG_MAPS | SECRETS, Content::Object(object)) => {
                let data = data_of(&key.plural, &object);
                self.want_data(key, data, origin, now, out);
            }
            (CONFIG_MAPS | SECRETS, Content::Tombstone) => {
                let at = (key.plural.clone(), key.namespace.clone(), key.name.clone());
                // A tombstone of an older object of the same name says nothing about this one.
                if self.data.get(&at).is_some_and(|have| have.uid == key.uid) {
                    self.data.remove(&at);
                }
                out.push(Effect::Forget { key: format!("{DATA_PREFIX}{}", key.local_key()) });
            }
            _ => {}
        }
    }

    pub(super) fn want_pod(
        &mut self,
        key: DesiredKey,
        object: Object,
        origin: Origin,
        now: Timestamp,
        out: &mut Effects,
    ) {
        let deleting = object.is_deleting();
        let dead = |reason: String| Effect::Dead {
            subject: subject::kv(subject::BUCKET_LOCAL, &key.local_key()),
            payload: object.to_bytes(),
            reason,
        };
        if object.uid() != key.uid {
            out.push(dead(format!("the pod has UID {:?}, its key says {:?}", object.uid(), key.uid)));
            return;
        }
        if let Some(pod) = self.pods.get_mut(&key.uid) {
            let stale = pod.record.origin.is_after(&origin);
            // A UID that goes does not come back.
            if stale
                || pod.record.removal == Removal::Gone
                || pod.record.removal == Removal::Deleting && !deleting
            {
                return;
            }
            if let Err(error) = pod.accept(object.clone(), origin) {
                out.push(dead(error.to_string()));
                return;
            }
            if pod.record.stopped {
                // Asked again: the answer may not have been heard.
                pod.record.reported.clear();
            }
        } else {
            match PodState::new(PodRecord::new(object.clone(), origin, now)) {
                Err(error) => {
                    out.push(dead(error.to_string()));
                    return;
                }
                Ok(pod) => drop(self.pods.insert(key.uid.clone(), pod)),
            }
            self.claim(&key.uid, now, out);
        }
        if let Some(pod) = self.pods.get_mut(&key.uid).filter(|_| deleting) {
            pod.record.removal = pod.record.removal.max(Removal::Deleting);
        }
        self.drive_and_tell(&key.uid, now, out);
    }

    /// Containers that were found before their pod was named.
    pub(super) fn claim(&mut self, uid: &str, now: Timestamp, out: &mut Effects) {
        let Some(found) = self.unclaimed.remove(uid) else { return };
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let observed = pod.observe(&found.iter().collect::<Vec<_>>(), now);
        self.took_in(uid, &observed, now, out);
        self.adopted(uid, &observed.running, now, out);
    }

    /// What was found of a pod is in its record: what follows from that.
    pub(super) fn took_in(&mut self, uid: &str, observed: &Observed, now: Timestamp, out: &mut Effects) {
        self.took_over(uid, observed);
        for name in &observed.started {
            self.tell_started(uid, name, now, out);
        }
        for name in &observed.cut_short {
            let message = format!("Error: the start of container {name} was cut short; it is started anew");
            if let Some(pod) = self.pods.get(uid) {
                self.tell(pod, Severity::Warning, "Failed", &message, now, out);
            }
        }
    }

    /// Of a pod whose record was lost nobody knows which version its files are of: they are written again, if all of them
    /// are known here. What is not is written when it comes.
    fn took_over(&mut self, uid: &str, observed: &Observed) {
        let Some(pod) = self.pods.get_mut(uid).filter(|_| observed.taken_over) else { return };
        let namespace = pod.record.object.namespace();
        let known = |plural: &str, names: &BTreeSet<String>| {
            let at = |name: &String| (plural.to_owned(), namespace.to_owned(), name.clone());
            names.iter().all(|name| self.data.contains_key(&at(name)))
        };
        let any = !pod.names.config_maps.is_empty() || !pod.names.secrets.is_empty();
        pod.volumes_behind |=
            any && known(CONFIG_MAPS, &pod.names.config_maps) && known(SECRETS, &pod.names.secrets);
    }

    pub(super) fn adopted(&self, uid: &str, running: &[String], now: Timestamp, out: &mut Effects) {
        let Some(pod) = self.pods.get(uid) else { return };
        for name in running {
            let id = pod.record_of(name).map_or("", |record| record.id.as_str());
            let message = format!("Adopted running container {name} ({})", id.get(..12).unwrap_or(id));
            self.tell(pod, Severity::Normal, "Adopted", &message, now, out);
        }
    }

    pub(super) fn bury_pod(&mut self, key: DesiredKey, now: Timestamp, out: &mut Effects) {
        if let Some(pod) = self.pods.get_mut(&key.uid) {
            pod.record.removal = Removal::Gone;
        } else if !self.listed {
            self.early_tombstones.insert(key.uid.clone(), key);
            return;
        } else if self.unclaimed.contains_key(&key.uid) {
            self.ghost(&key, now);
            self.claim(&key.uid, now, out);
        }
        self.drive_and_tell(&key.uid, now, out);
    }

    /// A pod of which only its name and what containerd has of it are known, and that it must go.
    pub(super) fn ghost(&mut self, key: &DesiredKey, now: Timestamp) {
        let mut object = Object::new("v1", "Pod", &key.namespace, &key.name);
        object.set(&["metadata", "uid"], key.uid.as_str());
        object.set(&["spec", "containers"], serde_json::json!([]));
        let mut record = PodRecord::new(object, Origin::default(), now);
        record.removal = Removal::Gone;
        if let Ok(pod) = PodState::new(record) {
            self.pods.insert(key.uid.clone(), pod);
        }
    }

    pub(super) fn want_data(
        &mut self,
        key: DesiredKey,
        data: Data,
        origin: Origin,
        now: Timestamp,
        out: &mut Effects,
    ) {
        let at = (key.plural.clone(), key.namespace.clone(), key.name.clone());
        let saved_as = format!("{DATA_PREFIX}{}", key.local_key());
        let old = self.data.get(&at);
        if old.is_some_and(|old| old.uid == key.uid && old.origin.is_after(&origin)) {
            return;
        }
        if let Some(old) = old.filter(|old| old.uid != key.uid) {
            let before = DesiredKey { uid: old.uid.clone(), ..key.clone() };
            out.push(Effect::Forget { key: format!("{DATA_PREFIX}{}", before.local_key()) });
        }
        let same = old.is_some_and(|old| old.uid == key.uid && old.data == data);
        let DesiredKey { plural, namespace, name, uid } = key;
        let record = DataRecord { plural, namespace, name, uid, origin, data };
        out.push(Effect::Save { key: saved_as, value: schemas::encode(&record) });
        let (plural, namespace, name) = at.clone();
        self.data.insert(at, record);
        if same {
            return;
        }
        let affected: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.record.object.namespace() == namespace && pod.names.has(&plural, &name))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in affected {
            if let Some(pod) = self.pods.get_mut(&uid) {
                // Nothing to bring up to date where nothing was started; a start under way took what there was then.
                pod.volumes_behind |= pod.busy
                    || pod.record.containers.values().any(|c| c.phase != Phase::Waiting || c.last.is_some());
                for failure in pod.failures.values_mut() {
                    failure.retry_at = now;
                }
            }
            self.drive_and_tell(&uid, now, out);
        }
    }

    pub(super) fn referenced(&self, pod: &PodState) -> Referenced {
        let namespace = pod.record.object.namespace();
        let take = |plural: &str, names: &BTreeSet<String>| {
            let data = |name: &String| {
                let at = (plural.to_owned(), namespace.to_owned(), name.clone());
                self.data.get(&at).map(|record| (name.clone(), record.data.clone()))
            };
            names.iter().filter_map(data).collect()
        };
        Referenced {
            config_maps: take(CONFIG_MAPS, &pod.names.config_maps),
            secrets: take(SECRETS, &pod.names.secrets),
        }
    }
}
