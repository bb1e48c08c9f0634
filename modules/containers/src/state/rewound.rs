//! After the hub came back older than its nodes: everything is reported anew, once for each such return.
//!
//! `sync` finds that the hub lacks reports that it had confirmed, and writes the hub's history into the local bucket. What
//! was reported then is said again; and of a pod that went after the hub's copy was made, that it is gone: the hub has it
//! again, and its UID does not come back here.

use std::collections::BTreeMap;

use bus::module::Effect;
use schemas::Timestamp;
use schemas::desired::{Content, Lineage, Local, Position};
use schemas::envelope;
use schemas::report::PodReport;
use schemas::subject::{self, DesiredKey};
use serde_json::{Value, json};

use super::{Containers, Effects};
use crate::MODULE;
use crate::effects::Act;

/// Saved under this: the epoch of the hub to which everything was reported anew last.
pub(super) const KEY: &str = "rewound";
/// Saved under this: the highest sequence of a report of any pod that is gone.
pub(super) const SAID_KEY: &str = "said";
/// Pods that are gone and remembered for this, about 300 bytes each. Of more, the hub would not be told.
const GONE_MAX: usize = 100_000;

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Rewound {
    /// The hub's history, when it was last found to be an older one.
    lineage: Option<Lineage>,
    /// To which everything was reported.
    reported_to: String,
    /// The highest sequence of a report of any pod that is gone.
    said: u64,
    /// Pods whose tombstone stands in the local bucket, and which write of the hub that was.
    gone: BTreeMap<DesiredKey, Position>,
}

impl Rewound {
    pub(super) fn restore(&mut self, saved: &[u8]) {
        self.reported_to = schemas::decode(saved).unwrap_or_default();
    }

    pub(super) fn restore_said(&mut self, saved: &[u8]) {
        self.said = schemas::decode(saved).unwrap_or_default();
    }

    pub(super) fn said(&self) -> u64 {
        self.said
    }

    /// The last report of a pod that is gone had that sequence. Gives what is to be kept.
    pub(super) fn said_last(&mut self, sequence: u64) -> Option<Effect<Act>> {
        let higher = sequence > self.said;
        self.said = self.said.max(sequence);
        higher.then(|| Effect::Save { key: SAID_KEY.to_owned(), value: schemas::encode(&self.said) })
    }

    pub(super) fn seen(&mut self, lineage: Lineage) {
        self.lineage = Some(lineage);
    }

    /// An entry of the local bucket.
    pub(super) fn note(&mut self, key: &DesiredKey, local: &Local) {
        if key.plural != "pods" {
            return;
        }
        match local.desired.content {
            Content::Object(_) => drop(self.gone.remove(key)),
            Content::Tombstone if self.gone.len() < GONE_MAX => {
                self.gone.insert(key.clone(), local.position());
            }
            Content::Tombstone => {}
        }
    }

    /// The hub to which everything is to be reported, if that was not done.
    fn due(&self) -> Option<(&Lineage, String)> {
        let lineage = self.lineage.as_ref()?;
        let epoch = lineage.current()?.id.clone();
        (epoch != self.reported_to).then_some((lineage, epoch))
    }
}

impl Containers {
    /// Reports everything anew, when the hub is an older one and all is known here.
    pub(super) fn report_anew(&mut self, now: Timestamp, out: &mut Effects) {
        if !self.listed || !self.current {
            return;
        }
        let Some((lineage, epoch)) = self.rewound.due() else { return };
        let gone = self.rewound.gone.iter();
        // A tombstone of the hub's own history is nothing new to it. What is still being stopped tells its own end.
        let gone: Vec<DesiredKey> = gone
            .filter(|(key, position)| !lineage.contains(position) && !self.pods.contains_key(&key.uid))
            .map(|(key, _)| key.clone())
            .collect();
        out.push(Effect::Save { key: KEY.to_owned(), value: schemas::encode(&epoch) });
        self.rewound.reported_to = epoch;
        let uids: Vec<String> = self.pods.keys().cloned().collect();
        for uid in uids {
            if let Some(pod) = self.pods.get_mut(&uid) {
                pod.record.reported.clear();
            }
            self.report(&uid, now, out);
        }
        for key in gone {
            self.report_gone(&key, now, out);
        }
    }

    fn report_gone(&mut self, key: &DesiredKey, now: Timestamp, out: &mut Effects) {
        // Above all that was said of it while it was there, whatever the clock shows now.
        let sequence = u64::try_from(now.0).unwrap_or(0).max(self.rewound.said.saturating_add(1));
        out.extend(self.rewound.said_last(sequence));
        let report = PodReport {
            node: self.node.to_string(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            uid: key.uid.clone(),
            sequence,
            status: gone_status(now),
            stopped: true,
            store: self.store.clone(),
        };
        let parts = [report.namespace.as_str(), report.name.as_str(), report.uid.as_str()];
        let id = format!("{}/{}/{sequence}/gone", key.uid, self.store);
        out.push(Effect::Report {
            subject: subject::report(MODULE, "pod", &parts),
            headers: envelope::headers(self.node.as_str(), MODULE, "PodReport", &id, now),
            payload: schemas::encode(&report),
        });
    }
}

/// The status of a pod that was deleted, at a hub that has it again.
fn gone_status(now: Timestamp) -> Value {
    let condition = |kind: &str| {
        json!({"type": kind, "status": "False", "reason": "PodFailed", "lastProbeTime": null,
            "lastTransitionTime": now.rfc3339()})
    };
    json!({
        "phase": "Failed",
        "reason": "DeletedBefore",
        "message": "the pod was deleted after the backup that the hub was restored from; it does not come back: delete it, or make it anew",
        "conditions": [condition("ContainersReady"), condition("Ready")],
    })
}
