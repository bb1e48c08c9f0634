//! What is kept and what is told: records, reports and events.

use bus::module::Effect;
use schemas::report::{EventReport, PodReport, Severity};
use schemas::{Timestamp, envelope, subject};
use sha2::{Digest, Sha256};

use super::{Containers, Effects};
use crate::MODULE;
use crate::pod::PodState;
use crate::record::POD_PREFIX;
use crate::runtime::image::data_hex;
use crate::status::status_of;

/// Saved under this: the ID of our store.
pub(super) const STORE_KEY: &str = "store";

impl Containers {
    pub(super) fn save(&mut self, uid: &str, out: &mut Effects) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let value = schemas::encode(&pod.record);
        let hash = data_hex(&Sha256::digest(&value));
        if hash != std::mem::replace(&mut pod.saved, hash.clone()) {
            out.push(Effect::Save { key: format!("{POD_PREFIX}{uid}"), value });
        }
    }

    /// Saves the pod, and says what it does when that is not what was said last.
    pub(super) fn report(&mut self, uid: &str, now: Timestamp, out: &mut Effects) {
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
            // Above all that was said of a pod that went, too: it may be this one, come back. From the clock for hubs
            // that do not know of stores.
            let by_clock = u64::try_from(now.0).unwrap_or(0);
            let last = pod.record.report_sequence.max(self.rewound.said());
            pod.record.report_sequence = last.saturating_add(1).max(by_clock);
            let (object, sequence) = (&pod.record.object, pod.record.report_sequence);
            let report = PodReport {
                node: self.node.to_string(),
                namespace: object.namespace().to_owned(),
                name: object.name().to_owned(),
                uid: uid.to_owned(),
                sequence,
                status,
                stopped,
                store: self.store.clone(),
            };
            let parts = [report.namespace.as_str(), report.name.as_str(), uid];
            out.push(Effect::Report {
                subject: subject::report(MODULE, "pod", &parts),
                headers: envelope::headers(
                    self.node.as_str(),
                    MODULE,
                    "PodReport",
                    &format!("{uid}/{}/{sequence}", self.store),
                    now,
                ),
                payload: schemas::encode(&report),
            });
        }
        self.save(uid, out);
    }

    pub(super) fn tell(
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

    pub(super) fn tell_about(
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
        out.push(Effect::event(&event));
    }
}
