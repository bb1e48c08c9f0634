//! Decides. Pure: what the hub wants, what containerd says and what was recorded, in; effects, out.
//!
//! Level-triggered: whatever happens, the pods it touches are looked at anew ([`PodState::next`]), and what is told of
//! them is compared with what was told last. Nothing is decided before containerd has said what it has.

mod commands;
mod outcome;
mod rewound;
mod tell;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};

use bus::module::{Effect, Input, Module};
use schemas::Timestamp;
use schemas::name::NodeName;
use schemas::report::Severity;
use schemas::subject::DesiredKey;

use crate::effects::{Act, Done, Start, Stop};
use crate::input::{self, Event};
use crate::pod::{PodState, Step};
use crate::record::{DATA_PREFIX, DataRecord, POD_PREFIX, Phase, PodRecord};
use crate::runtime::container::FoundContainer;
use rewound::Rewound;

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
    /// ID of our own store: reports are numbered within it.
    store: String,
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
    rewound: Rewound,
}

impl Containers {
    /// A module on `node`. `store` is random, new with every start: the ID of its store, if that is a new one.
    pub fn new(node: NodeName, store: String) -> Self {
        Self {
            node,
            store,
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
            rewound: Rewound::default(),
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
                self.report_anew(now, out);
            }
            Event::Rewound(lineage) => {
                self.rewound.seen(lineage);
                self.report_anew(now, out);
            }
            Event::Desired(key, local) => {
                self.rewound.note(&key, &local);
                self.desired(key, *local, now, out);
            }
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
            let said = self.pods.remove(uid).map_or(0, |pod| pod.record.report_sequence);
            out.extend(self.rewound.said_last(said));
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
                if let Some(record) = pod.record.containers.get_mut(&container).filter(|of| !of.replaced) {
                    killing.push(format!("Container {container} definition changed, will be restarted"));
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
}

impl Module for Containers {
    type Act = Act;
    type Done = Done;

    fn restore(&mut self, saved: Vec<(String, Vec<u8>)>, _now: Timestamp) -> Effects {
        let mut out = Effects::new();
        let mut store = None;
        let mut whole = true;
        for (key, value) in saved {
            let unreadable =
                |reason: String, payload: Vec<u8>| Effect::Dead { subject: key.clone(), payload, reason };
            if key.starts_with(POD_PREFIX) {
                let pod = schemas::decode::<PodRecord>(&value).map_err(|e| e.to_string());
                match pod.and_then(|record| PodState::new(record).map_err(|e| e.to_string())) {
                    Ok(pod) => drop(self.pods.insert(pod.record.uid().to_owned(), pod)),
                    Err(reason) => {
                        whole = false;
                        out.push(unreadable(reason, value));
                    }
                }
            } else if key == tell::STORE_KEY {
                store = schemas::decode(&value).ok();
            } else if key == rewound::KEY {
                self.rewound.restore(&value);
            } else if key == rewound::SAID_KEY {
                self.rewound.restore_said(&value);
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
        // Where a pod's record is lost nobody knows how far its reports were numbered: that counts as another store.
        match store.filter(|_| whole) {
            Some(store) => self.store = store,
            None => {
                let (key, value) = (tell::STORE_KEY.to_owned(), schemas::encode(&self.store));
                out.push(Effect::Save { key, value });
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
