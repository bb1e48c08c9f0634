//! What the rim tells: what containerd has, what became of acts, what ended by itself.

use std::collections::BTreeMap;

use schemas::Timestamp;
use schemas::report::Severity;

use super::{AWAY_TOLD_MS, Containers, Effects, RELIST_INTERVAL_MS, RELIST_RETRY_MS};
use crate::effects::{Done, Listing, StartError, Started};
use crate::record::{ContainerRecord, Phase};
use crate::runtime::container::{Exit, FoundContainer};

impl Containers {
    pub(super) fn done(&mut self, done: Done, now: Timestamp, out: &mut Effects) {
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
    pub(super) fn settle(&mut self, uid: &str) {
        self.count += 1;
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.busy = false;
            pod.changed_at = self.count;
        }
    }

    /// Nothing is known of what runs until containerd has been listed again.
    pub(super) fn away(&mut self, now: Timestamp) {
        // Said again, it must not put off the next list.
        if self.listed || self.relist_at <= now {
            self.relist_at = now.plus_ms(RELIST_RETRY_MS);
        }
        self.listed = false;
        self.away_since.get_or_insert(now);
    }

    /// A restart of containerd is not worth a word; one that does not come back is.
    pub(super) fn tell_away(&mut self, now: Timestamp, out: &mut Effects) {
        let long = self.away_since.is_some_and(|since| now.since_ms(since) >= AWAY_TOLD_MS);
        if long && !self.told_away {
            self.told_away = true;
            let regarding = ("Node".to_owned(), String::new(), self.node.to_string(), String::new());
            let message = "containerd does not answer; what runs goes on, nothing can be started";
            self.tell_about(regarding, Severity::Warning, "ContainerdAway", message, now, out);
        }
    }

    pub(super) fn listed(&mut self, asked: u64, listing: Listing, now: Timestamp, out: &mut Effects) {
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
            self.took_in(&uid, &observed, now, out);
            if adopting {
                self.adopted(&uid, &observed.running, now, out);
            }
            self.drive_and_tell(&uid, now, out);
        }
        self.unclaimed = by_pod;
        self.tell_unclaimed(now, out);
        self.report_anew(now, out);
    }

    /// Containers whose pod neither our record nor the local bucket names: somebody should look. They run on.
    pub(super) fn tell_unclaimed(&mut self, now: Timestamp, out: &mut Effects) {
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

    pub(super) fn started(
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
                self.tell_started(uid, container, now, out);
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

    /// Once for each attempt of which containerd says that it was carried out.
    pub(super) fn tell_started(&self, uid: &str, container: &str, now: Timestamp, out: &mut Effects) {
        let Some(pod) = self.pods.get(uid) else { return };
        for reason in ["Created", "Started"] {
            let message = format!("{reason} container {container}");
            self.tell(pod, Severity::Normal, reason, &message, now, out);
        }
    }

    pub(super) fn reaped(
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
            // It runs after all, or containerd is away: the next list says. If it was to be replaced, it still is.
            self.relist_at = now.plus_ms(RELIST_RETRY_MS);
            pod.stop_retry_at = self.relist_at;
            return;
        };
        pod.stop_retry_at = Timestamp(0);
        let Some(name) = pod.ended(id, Some(exit), now) else { return };
        let backoff_ms = pod.record_of(&name).map_or(0, |record| record.backoff_ms);
        if backoff_ms > 0 && pod.restarts(&name, exit.code) {
            let message = format!("Back-off restarting failed container {name}: {} s", backoff_ms / 1000);
            if let Some(pod) = self.pods.get(uid) {
                self.tell(pod, Severity::Warning, "BackOff", &message, now, out);
            }
        }
    }

    pub(super) fn stopped(
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
}
