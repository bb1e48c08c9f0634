//! Decides. Pure: what the hub wants, what containerd says and what was recorded, in; effects, out.
//!
//! Level-triggered: whatever happens, the pods it touches are looked at anew ([`PodState::next`]), and what is told of
//! them is compared with what was told last. Nothing is decided before containerd has said what it has.

use std::collections::{BTreeMap, BTreeSet};

use bus::module::{Effect, Input, Message, Module};
use schemas::Timestamp;
use schemas::command::{OpenExec, OpenLogs, Refusal, Reply};
use schemas::desired::{Content, Local};
use schemas::envelope;
use schemas::name::NodeName;
use schemas::object::Object;
use schemas::report::{EventReport, PodReport, Severity};
use schemas::subject::{self, DesiredKey};
use sha2::{Digest, Sha256};

use crate::MODULE;
use crate::effects::{Act, Done, ExecSession, Listing, LogsSession, Start, StartError, Started, Stop};
use crate::input::{self, Event};
use crate::pod::{PodState, Step};
use crate::record::{
    ContainerRecord, DATA_PREFIX, DataRecord, Origin, POD_PREFIX, Phase, PodRecord, Removal,
};
use crate::referenced::{CONFIG_MAPS, Referenced, SECRETS, data_of};
use crate::runtime::container::{Exit, FoundContainer};
use crate::runtime::image::data_hex;
use crate::status::status_of;

/// containerd is asked for everything at least so often, whatever its events said.
pub const RELIST_INTERVAL_MS: u64 = 30_000;
/// After a list that failed.
const RELIST_RETRY_MS: u64 = 1_000;
/// containerd is away for so long before it is told.
const AWAY_TOLD_MS: u64 = 5_000;

type Effects = Vec<Effect<Act>>;

/// The module's state.
pub struct Containers {
    node: NodeName,
    /// The node's address, as the last list said.
    host_ip: String,
    pods: BTreeMap<String, PodState>,
    data: BTreeMap<(String, String, String), DataRecord>,
    /// containerd has said what it has, and has not been away since.
    listed: bool,
    /// The first list after our own start: what runs is told as adopted.
    adopting: bool,
    /// All that stood in the local bucket has been told.
    current: bool,
    /// Counts acts and lists: what was listed before an act is older than it.
    count: u64,
    listing: bool,
    relist_at: Timestamp,
    list_again: bool,
    away_since: Option<Timestamp>,
    told_away: bool,
    /// Containers of pods that nobody has named yet. They run on.
    unclaimed: BTreeMap<String, Vec<FoundContainer>>,
    told_unclaimed: BTreeSet<String>,
    /// Tombstones that came before the first list.
    early_tombstones: BTreeMap<String, DesiredKey>,
}

impl Containers {
    /// A module on `node`.
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            host_ip: String::new(),
            pods: BTreeMap::new(),
            data: BTreeMap::new(),
            listed: false,
            adopting: true,
            current: false,
            count: 0,
            listing: false,
            relist_at: Timestamp(0),
            list_again: false,
            away_since: None,
            told_away: false,
            unclaimed: BTreeMap::new(),
            told_unclaimed: BTreeSet::new(),
            early_tombstones: BTreeMap::new(),
        }
    }

    /// The pods it has, by UID.
    pub fn pods(&self) -> &BTreeMap<String, PodState> {
        &self.pods
    }

    fn list(&mut self, out: &mut Effects) {
        if !self.listing {
            self.listing = true;
            self.count += 1;
            out.push(Effect::Act(Act::List(self.count)));
        }
    }

    fn handle(&mut self, event: Event, now: Timestamp, out: &mut Effects) {
        match event {
            Event::Nothing => {}
            Event::Tick => self.tick(now, out),
            Event::Current => {
                self.current = true;
                self.tell_unclaimed(now, out);
            }
            Event::Desired(key, local) => self.desired(key, *local, now, out),
            Event::Logs(open, message) => self.open_logs(open, &message, out),
            Event::Exec(open, message) => self.open_exec(open, &message, out),
            Event::Done(done) => self.done(done, now, out),
        }
    }

    fn tick(&mut self, now: Timestamp, out: &mut Effects) {
        if self.relist_at <= now {
            self.list(out);
        }
        self.tell_away(now, out);
        let due: Vec<String> =
            self.pods.iter().filter(|(_, pod)| pod.next(now).is_some()).map(|(uid, _)| uid.clone()).collect();
        for uid in due {
            self.drive(&uid, now, out);
        }
    }

    // ---- what the hub wants

    fn desired(&mut self, key: DesiredKey, local: Local, now: Timestamp, out: &mut Effects) {
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

    fn want_pod(
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
    fn claim(&mut self, uid: &str, now: Timestamp, out: &mut Effects) {
        let Some(found) = self.unclaimed.remove(uid) else { return };
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let running = pod.observe(&found.iter().collect::<Vec<_>>(), now).running;
        self.adopted(uid, &running, now, out);
    }

    fn adopted(&self, uid: &str, running: &[String], now: Timestamp, out: &mut Effects) {
        let Some(pod) = self.pods.get(uid) else { return };
        for name in running {
            let id = pod.record_of(name).map_or("", |record| record.id.as_str());
            let message = format!("Adopted running container {name} ({})", id.get(..12).unwrap_or(id));
            self.tell(pod, Severity::Normal, "Adopted", &message, now, out);
        }
    }

    fn bury_pod(&mut self, key: DesiredKey, now: Timestamp, out: &mut Effects) {
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
    fn ghost(&mut self, key: &DesiredKey, now: Timestamp) {
        let mut object = Object::new("v1", "Pod", &key.namespace, &key.name);
        object.set(&["metadata", "uid"], key.uid.as_str());
        object.set(&["spec", "containers"], serde_json::json!([]));
        let mut record = PodRecord::new(object, Origin::default(), now);
        record.removal = Removal::Gone;
        if let Ok(pod) = PodState::new(record) {
            self.pods.insert(key.uid.clone(), pod);
        }
    }

    fn want_data(
        &mut self,
        key: DesiredKey,
        data: crate::referenced::Data,
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
                // Nothing to bring up to date where nothing was started.
                pod.volumes_behind |=
                    pod.record.containers.values().any(|c| c.phase != Phase::Waiting || c.last.is_some());
                for failure in pod.failures.values_mut() {
                    failure.retry_at = now;
                }
            }
            self.drive_and_tell(&uid, now, out);
        }
    }

    fn referenced(&self, pod: &PodState) -> Referenced {
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

    // ---- what the rim tells

    fn done(&mut self, done: Done, now: Timestamp, out: &mut Effects) {
        match done {
            Done::Listed { asked, result } => {
                self.listing = false;
                match result {
                    Ok(listing) => self.listed(asked, listing, now, out),
                    Err(_) => self.away(now),
                }
            }
            Done::RuntimeBack if self.listing => self.list_again = true,
            Done::RuntimeBack => self.list(out),
            Done::RuntimeAway(_) => self.away(now),
            Done::Exited { id } => {
                let runs = |c: &ContainerRecord| c.id == id && !matches!(c.phase, Phase::Ended(_));
                let uid = self.pods.iter().find(|(_, pod)| pod.record.containers.values().any(runs));
                let Some(uid) = uid.map(|(uid, _)| uid.clone()) else { return };
                if let Some(pod) = self.pods.get_mut(&uid) {
                    pod.exited.insert(id);
                }
                self.drive(&uid, now, out);
            }
            Done::Started { uid, container, result } => {
                self.settle(&uid);
                self.started(&uid, &container, result, now, out);
                self.drive_and_tell(&uid, now, out);
            }
            Done::Reaped { uid, id, result } => {
                self.settle(&uid);
                self.reaped(&uid, &id, result, now, out);
                self.drive_and_tell(&uid, now, out);
            }
            Done::Stopped { uid, result } => {
                self.settle(&uid);
                self.stopped(&uid, result, now, out);
                self.drive_and_tell(&uid, now, out);
            }
            Done::VolumesWritten { uid, result } => {
                self.settle(&uid);
                if let (Err(message), Some(pod)) = (result, self.pods.get(&uid)) {
                    self.tell(pod, Severity::Warning, "FailedMount", &message, now, out);
                }
                self.drive(&uid, now, out);
            }
        }
    }

    /// The act of this pod has ended.
    fn settle(&mut self, uid: &str) {
        self.count += 1;
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.busy = false;
            pod.changed_at = self.count;
        }
    }

    /// Nothing is known of what runs until containerd has been listed again.
    fn away(&mut self, now: Timestamp) {
        // Said again, it must not put off the next list.
        if self.listed || self.relist_at <= now {
            self.relist_at = now.plus_ms(RELIST_RETRY_MS);
        }
        self.listed = false;
        self.away_since.get_or_insert(now);
    }

    /// A restart of containerd is not worth a word; one that does not come back is.
    fn tell_away(&mut self, now: Timestamp, out: &mut Effects) {
        let long = self.away_since.is_some_and(|since| now.since_ms(since) >= AWAY_TOLD_MS);
        if long && !self.told_away {
            self.told_away = true;
            let regarding = ("Node".to_owned(), String::new(), self.node.to_string(), String::new());
            let message = "containerd does not answer; what runs goes on, nothing can be started";
            self.tell_about(regarding, Severity::Warning, "ContainerdAway", message, now, out);
        }
    }

    fn listed(&mut self, asked: u64, listing: Listing, now: Timestamp, out: &mut Effects) {
        // Events are followed only since after this list was asked for: what happened between is in the next.
        let again = std::mem::take(&mut self.list_again);
        self.relist_at = if again { now } else { now.plus_ms(RELIST_INTERVAL_MS) };
        self.listed = true;
        self.host_ip.clone_from(&listing.host_ip);
        (self.told_away, self.away_since) = (false, None);
        let adopting = std::mem::take(&mut self.adopting);
        let mut by_pod: BTreeMap<String, Vec<FoundContainer>> = BTreeMap::new();
        for container in listing.containers {
            by_pod.entry(container.pod_uid.clone()).or_default().push(container);
        }
        for (uid, key) in std::mem::take(&mut self.early_tombstones) {
            if by_pod.contains_key(&uid) || listing.sandboxes.contains(&uid) {
                self.ghost(&key, now);
            }
        }
        let uids: Vec<String> = self.pods.keys().cloned().collect();
        for uid in uids {
            let found = by_pod.remove(&uid).unwrap_or_default();
            let Some(pod) = self.pods.get_mut(&uid) else { continue };
            if pod.busy || pod.changed_at > asked || pod.record.stopped {
                continue;
            }
            let observed = pod.observe(&found.iter().collect::<Vec<_>>(), now);
            if adopting {
                self.adopted(&uid, &observed.running, now, out);
            }
            self.drive_and_tell(&uid, now, out);
        }
        self.unclaimed = by_pod;
        self.tell_unclaimed(now, out);
    }

    /// Containers whose pod neither our record nor the local bucket names: somebody should look. They run on.
    fn tell_unclaimed(&mut self, now: Timestamp, out: &mut Effects) {
        if !self.current || !self.listed {
            return;
        }
        self.told_unclaimed.retain(|uid| self.unclaimed.contains_key(uid));
        let news: Vec<_> =
            self.unclaimed.iter().filter(|(uid, _)| !self.told_unclaimed.contains(*uid)).collect();
        let mut told = Vec::new();
        for (uid, found) in news {
            let Some(first) = found.first() else { continue };
            let regarding = ("Pod".to_owned(), first.namespace.clone(), first.pod.clone(), uid.clone());
            let message = "its containers are on the node and nothing says that it should exist or go; left as they are";
            self.tell_about(regarding, Severity::Warning, "Unclaimed", message, now, out);
            told.push(uid.clone());
        }
        self.told_unclaimed.extend(told);
    }

    fn started(
        &mut self,
        uid: &str,
        container: &str,
        result: Result<Started, StartError>,
        now: Timestamp,
        out: &mut Effects,
    ) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        match result {
            Ok(Started { ip, image, image_id, since }) => {
                pod.record.ip = ip;
                pod.started(container, image, image_id, since);
                let Some(pod) = self.pods.get(uid) else { return };
                self.tell(
                    pod,
                    Severity::Normal,
                    "Created",
                    &format!("Created container {container}"),
                    now,
                    out,
                );
                self.tell(
                    pod,
                    Severity::Normal,
                    "Started",
                    &format!("Started container {container}"),
                    now,
                    out,
                );
            }
            // Not the pod's fault: the list that comes first when containerd is back goes on from here.
            Err(error) if error.away => self.away(now),
            Err(error) => {
                let message = format!("Error: {}: {}", error.reason, error.message);
                let news = pod.start_failed(container, error.reason, error.message, now);
                if let Some(pod) = self.pods.get(uid).filter(|_| news) {
                    self.tell(pod, Severity::Warning, "Failed", &message, now, out);
                }
            }
        }
    }

    fn reaped(
        &mut self,
        uid: &str,
        id: &str,
        result: Result<Option<Exit>, String>,
        now: Timestamp,
        out: &mut Effects,
    ) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        pod.exited.remove(id);
        let Ok(Some(exit)) = result else {
            // It runs after all, or containerd is away: the next list says.
            self.relist_at = now.plus_ms(RELIST_RETRY_MS);
            return;
        };
        let Some(name) = pod.ended(id, Some(exit), now) else { return };
        let backoff_ms = pod.record_of(&name).map_or(0, |record| record.backoff_ms);
        if backoff_ms > 0 && pod.restarts(&name, exit.code) {
            let message = format!("Back-off restarting failed container {name}: {} s", backoff_ms / 1000);
            if let Some(pod) = self.pods.get(uid) {
                self.tell(pod, Severity::Warning, "BackOff", &message, now, out);
            }
        }
    }

    fn stopped(
        &mut self,
        uid: &str,
        result: Result<BTreeMap<String, Exit>, String>,
        now: Timestamp,
        out: &mut Effects,
    ) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        match result {
            Ok(exits) => {
                let ids: Vec<String> = pod
                    .record
                    .containers
                    .values()
                    .filter(|c| matches!(c.phase, Phase::Running { .. }))
                    .map(|c| c.id.clone())
                    .collect();
                for id in ids {
                    pod.ended(&id, exits.get(&id).copied(), now);
                }
                pod.exited.clear();
                pod.record.stopped = true;
            }
            Err(message) => {
                let first = pod.stop_retry_at == Timestamp(0);
                pod.stop_retry_at = now.plus_ms(RELIST_RETRY_MS);
                if let Some(pod) = self.pods.get(uid).filter(|_| first) {
                    self.tell(pod, Severity::Warning, "FailedKillPod", &message, now, out);
                }
            }
        }
    }

    // ---- what is done

    fn drive_and_tell(&mut self, uid: &str, now: Timestamp, out: &mut Effects) {
        self.drive(uid, now, out);
        self.report(uid, now, out);
    }

    /// Begins the next step of a pod, if there is one.
    fn drive(&mut self, uid: &str, now: Timestamp, out: &mut Effects) {
        let Some(step) = self.pods.get(uid).filter(|_| self.listed).and_then(|pod| pod.next(now)) else {
            return;
        };
        if step == Step::Forget {
            self.pods.remove(uid);
            out.push(Effect::Forget { key: format!("{POD_PREFIX}{uid}") });
            return;
        }
        self.count += 1;
        let count = self.count;
        let referenced = self.pods.get(uid).map(|pod| self.referenced(pod)).unwrap_or_default();
        let Some(pod) = self.pods.get_mut(uid) else { return };
        pod.busy = true;
        pod.changed_at = count;
        let mut killing = Vec::new();
        let act = match step {
            Step::Forget => return,
            Step::Reap(id) => Act::Reap { uid: uid.to_owned(), id },
            Step::Start { container, attempt } => {
                pod.starting(&container, attempt);
                let spec_hash =
                    pod.record_of(&container).map(|record| record.spec_hash.clone()).unwrap_or_default();
                Act::Start(Box::new(Start {
                    pod: pod.spec.clone(),
                    container,
                    attempt,
                    spec_hash,
                    referenced,
                }))
            }
            Step::Replace { container, id } => {
                killing.push(format!("Container {container} definition changed, will be restarted"));
                if let Some(record) = pod.record.containers.get_mut(&container) {
                    record.replaced = true;
                }
                Act::Replace { uid: uid.to_owned(), id, grace_ms: pod.grace_ms() }
            }
            Step::Volumes => {
                pod.volumes_behind = false;
                Act::Volumes { pod: Box::new(pod.spec.clone()), referenced }
            }
            Step::Stop => {
                let running =
                    pod.record.containers.iter().filter(|(_, c)| matches!(c.phase, Phase::Running { .. }));
                killing.extend(running.map(|(name, _)| format!("Stopping container {name}")));
                Act::Stop(Box::new(Stop {
                    uid: uid.to_owned(),
                    namespace: pod.record.object.namespace().to_owned(),
                    name: pod.record.object.name().to_owned(),
                    grace_ms: pod.grace_ms(),
                }))
            }
        };
        self.save(uid, out);
        if let Some(pod) = self.pods.get(uid) {
            for message in killing {
                self.tell(pod, Severity::Normal, "Killing", &message, now, out);
            }
        }
        out.push(Effect::Act(act));
    }

    fn save(&mut self, uid: &str, out: &mut Effects) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let value = schemas::encode(&pod.record);
        let hash = data_hex(&Sha256::digest(&value));
        if hash != std::mem::replace(&mut pod.saved, hash.clone()) {
            out.push(Effect::Save { key: format!("{POD_PREFIX}{uid}"), value });
        }
    }

    /// Saves the pod, and says what it does when that is not what was said last.
    fn report(&mut self, uid: &str, now: Timestamp, out: &mut Effects) {
        // Before containerd has spoken nothing is known of it.
        let Some(pod) = self.pods.get_mut(uid).filter(|_| self.listed) else {
            self.save(uid, out);
            return;
        };
        let status = status_of(pod, &self.host_ip, now);
        let stopped = pod.record.stopped;
        let said = data_hex(&Sha256::digest(format!("{stopped}{status}")));
        if said != pod.record.reported {
            pod.record.reported = said;
            // From the clock, so that it goes on upwards after our store was lost.
            let by_clock = u64::try_from(now.0).unwrap_or(0);
            pod.record.report_sequence = pod.record.report_sequence.saturating_add(1).max(by_clock);
            let (object, sequence) = (&pod.record.object, pod.record.report_sequence);
            let report = PodReport {
                node: self.node.to_string(),
                namespace: object.namespace().to_owned(),
                name: object.name().to_owned(),
                uid: uid.to_owned(),
                sequence,
                status,
                stopped,
            };
            let parts = [report.namespace.as_str(), report.name.as_str(), uid];
            out.push(Effect::Report {
                subject: subject::report(MODULE, "pod", &parts),
                headers: envelope::headers(
                    self.node.as_str(),
                    MODULE,
                    "PodReport",
                    &format!("{uid}/{sequence}"),
                    now,
                ),
                payload: schemas::encode(&report),
            });
        }
        self.save(uid, out);
    }

    fn tell(
        &self,
        pod: &PodState,
        severity: Severity,
        reason: &str,
        message: &str,
        now: Timestamp,
        out: &mut Effects,
    ) {
        let object = &pod.record.object;
        let regarding = (
            "Pod".to_owned(),
            object.namespace().to_owned(),
            object.name().to_owned(),
            object.uid().to_owned(),
        );
        self.tell_about(regarding, severity, reason, message, now, out);
    }

    fn tell_about(
        &self,
        regarding: (String, String, String, String),
        severity: Severity,
        reason: &str,
        message: &str,
        now: Timestamp,
        out: &mut Effects,
    ) {
        let (_, namespace, name, uid) = &regarding;
        let of = data_hex(&Sha256::digest(format!("{namespace}/{name}/{uid}/{reason}/{message}/{}", now.0)));
        let id = of.get(..24).unwrap_or(&of).to_owned();
        let headers = envelope::headers(self.node.as_str(), MODULE, reason, &id, now);
        let event = EventReport {
            id,
            node: self.node.to_string(),
            module: MODULE.to_owned(),
            at: now,
            severity,
            reason: reason.to_owned(),
            message: message.to_owned(),
            regarding,
        };
        out.push(Effect::Report {
            subject: subject::event(MODULE, reason),
            headers,
            payload: schemas::encode(&event),
        });
    }

    // ---- what people ask for

    /// The pod of that name, the one that stays before one that goes, and the container in it.
    fn target(&self, namespace: &str, name: &str, container: &str) -> Result<(&PodState, String), Refusal> {
        let named =
            |pod: &&PodState| pod.record.object.namespace() == namespace && pod.record.object.name() == name;
        let pod = self.pods.values().filter(named).min_by_key(|pod| pod.record.removal).ok_or_else(|| {
            let message = format!(
                "pod {namespace}/{name} is not on node {}; see `kubectl get pods -o wide`",
                self.node
            );
            Refusal::new(404, "EW-POD-NOT-FOUND", message)
        })?;
        let mut all = pod.init_containers().chain(pod.containers());
        let found =
            if container.is_empty() { pod.containers().next() } else { all.find(|c| c.name == container) };
        let found = found.ok_or_else(|| {
            let message = format!("container {container} is not valid for pod {name}");
            Refusal::new(400, "EW-CONTAINER-NOT-FOUND", message)
        })?;
        Ok((pod, found.name.clone()))
    }

    fn open_logs(&self, open: OpenLogs, message: &Message, out: &mut Effects) {
        match self.logs_of(&open) {
            Ok((uid, container, attempt, running)) => {
                out.push(Effect::Act(Act::Logs(Box::new(LogsSession {
                    open,
                    uid,
                    container,
                    attempt,
                    running,
                }))));
            }
            Err(refusal) => out.extend(Effect::reply(message, &Reply::<()>::Err(refusal))),
        }
    }

    fn logs_of(&self, open: &OpenLogs) -> Result<(String, String, u32, bool), Refusal> {
        let (pod, container) = self.target(&open.namespace, &open.pod, &open.container)?;
        let record = pod.record_of(&container).cloned().unwrap_or_default();
        let uid = pod.record.uid().to_owned();
        let running = matches!(record.phase, Phase::Running { .. });
        // A restart that waits has nothing to say yet: the last words of the attempt before are what is wanted.
        let waits = record.phase == Phase::Waiting;
        let before = record.attempt.checked_sub(1);
        match (open.previous, waits, before) {
            (true, _, Some(before)) | (false, true, Some(before)) => Ok((uid, container, before, false)),
            (true, _, None) => {
                let message =
                    format!("previous terminated container {container} in pod {} not found", open.pod);
                Err(Refusal::new(400, "EW-NO-PREVIOUS-LOG", message))
            }
            (false, true, None) => Err(waiting(&container, &open.pod)),
            (false, false, _) => Ok((uid, container, record.attempt, running)),
        }
    }

    fn open_exec(&self, open: OpenExec, message: &Message, out: &mut Effects) {
        match self.exec_of(&open) {
            Ok(id) => out.push(Effect::Act(Act::Exec(Box::new(ExecSession { open, id })))),
            Err(refusal) => out.extend(Effect::reply(message, &Reply::<()>::Err(refusal))),
        }
    }

    fn exec_of(&self, open: &OpenExec) -> Result<String, Refusal> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if open.session.is_empty() || open.session.len() > 64 || !open.session.chars().all(plain) {
            return Err(Refusal::new(
                400,
                "EW-BAD-SESSION",
                "a session name is 1 to 64 letters, digits and '-'",
            ));
        }
        let (pod, container) = self.target(&open.namespace, &open.pod, &open.container)?;
        match pod.record_of(&container).map(|record| (&record.phase, &record.id)) {
            Some((Phase::Running { .. }, id)) => Ok(id.clone()),
            Some((Phase::Ended(_), _)) => {
                let message = format!("container {container} in pod {} has ended", open.pod);
                Err(Refusal::new(400, "EW-CONTAINER-NOT-RUNNING", message))
            }
            _ => Err(waiting(&container, &open.pod)),
        }
    }
}

fn waiting(container: &str, pod: &str) -> Refusal {
    let message =
        format!("container {container} in pod {pod} is waiting to start; see `kubectl describe pod {pod}`");
    Refusal::new(400, "EW-CONTAINER-WAITING", message)
}

impl Module for Containers {
    type Act = Act;
    type Done = Done;

    fn restore(&mut self, saved: Vec<(String, Vec<u8>)>, _now: Timestamp) -> Effects {
        let mut out = Effects::new();
        for (key, value) in saved {
            let unreadable =
                |reason: String, payload: Vec<u8>| Effect::Dead { subject: key.clone(), payload, reason };
            if key.starts_with(POD_PREFIX) {
                let pod = schemas::decode::<PodRecord>(&value).map_err(|e| e.to_string());
                match pod.and_then(|record| PodState::new(record).map_err(|e| e.to_string())) {
                    Ok(pod) => drop(self.pods.insert(pod.record.uid().to_owned(), pod)),
                    Err(reason) => out.push(unreadable(reason, value)),
                }
            } else if key.starts_with(DATA_PREFIX) {
                match schemas::decode::<DataRecord>(&value) {
                    Ok(data) => {
                        let at = (data.plural.clone(), data.namespace.clone(), data.name.clone());
                        self.data.insert(at, data);
                    }
                    Err(error) => out.push(unreadable(error.to_string(), value)),
                }
            }
        }
        self.list(&mut out);
        out
    }

    fn apply(&mut self, input: Input<Done>, now: Timestamp) -> Effects {
        let mut out = Effects::new();
        match input::decode(&self.node, input) {
            Ok(event) => self.handle(event, now, &mut out),
            Err(bad) => {
                out.push(Effect::Dead { subject: bad.subject, payload: bad.payload, reason: bad.reason });
            }
        }
        out
    }
}
