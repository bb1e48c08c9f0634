//! Pure: one pod, and what to do for it next. All of the rules about starting, restarting and stopping stand here.
//!
//! At most one act of a pod is under way at a time, so what containerd says is never older than what was decided. A
//! container's attempt is saved before it is started, and its ID follows from it: after a crash the same start is asked
//! for again and finds what it left.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod};
use schemas::Timestamp;
use schemas::object::{Object, ObjectError};
use sha2::{Digest, Sha256};

use crate::record::{ContainerRecord, Ended, Origin, Phase, PodRecord, Removal};
use crate::referenced::Names;
use crate::runtime::container::{ContainerState, Exit, FoundContainer, container_id};
use crate::runtime::image::data_hex;

/// First pause before a container that ended is started again (the very first restart is at once).
pub const BACKOFF_MIN_MS: u64 = 10_000;
/// Longest pause.
pub const BACKOFF_MAX_MS: u64 = 300_000;
/// A container that ran for so long begins anew.
pub const BACKOFF_RESET_MS: u64 = 600_000;
/// First and longest pause after a start that failed.
const RETRY_MIN_MS: u64 = 1_000;
const RETRY_MAX_MS: u64 = 30_000;
/// Seconds between SIGTERM and SIGKILL when the pod says nothing.
const GRACE_DEFAULT_SECONDS: i64 = 30;

/// Begins every hash; to be changed with what goes into it.
const HASH_VERSION: &str = "1";

/// Why a container is not started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Kubernetes' word.
    pub reason: String,
    /// For people.
    pub message: String,
    /// When to try again.
    pub retry_at: Timestamp,
    /// How often in a row.
    pub count: u32,
}

/// A pod as this process knows it.
#[derive(Debug)]
pub struct PodState {
    /// What is saved.
    pub record: PodRecord,
    /// Its typed view.
    pub spec: Pod,
    /// An act for it is under way.
    pub busy: bool,
    /// IDs of which containerd said that they ended, not yet reaped.
    pub exited: BTreeSet<String>,
    /// Containers whose start failed.
    pub failures: BTreeMap<String, Failure>,
    /// A stop that failed, of the pod or of a container that is to be replaced, is tried again then.
    pub stop_retry_at: Timestamp,
    /// The files of its ConfigMaps and Secrets are behind.
    pub volumes_behind: bool,
    /// When it last changed by an act, in the module's own count: what containerd said before that is old.
    pub changed_at: u64,
    /// The ConfigMaps and Secrets it refers to.
    pub names: Names,
    /// What was saved last, as a hash: the same is not saved twice.
    pub saved: String,
    hashes: BTreeMap<String, String>,
}

/// What to do for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Take in how this container ended.
    Reap(String),
    /// Start this container with this attempt.
    Start {
        /// Its name.
        container: String,
        /// Which start it is.
        attempt: u32,
    },
    /// Stop this container: it will be started anew from a changed spec.
    Replace {
        /// Its name.
        container: String,
        /// Its ID.
        id: String,
    },
    /// Stop the pod for good.
    Stop,
    /// Write the files of its ConfigMaps and Secrets.
    Volumes,
    /// Forget it.
    Forget,
}

impl PodState {
    /// A pod from its record. Fails when the object is not a pod.
    pub fn new(record: PodRecord) -> Result<Self, ObjectError> {
        let spec: Pod = record.object.view()?;
        Ok(Self {
            names: Names::of(&spec),
            hashes: hashes_of(&spec),
            changed_at: 0,
            saved: String::new(),
            record,
            spec,
            busy: false,
            exited: BTreeSet::new(),
            failures: BTreeMap::new(),
            stop_retry_at: Timestamp(0),
            volumes_behind: false,
        })
    }

    /// Init containers, in order.
    pub fn init_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten())
    }

    /// The pod's containers, in order.
    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.spec.iter().flat_map(|spec| spec.containers.iter())
    }

    fn container(&self, name: &str) -> Option<&Container> {
        self.init_containers().chain(self.containers()).find(|container| container.name == name)
    }

    /// What is known of a container.
    pub fn record_of(&self, name: &str) -> Option<&ContainerRecord> {
        self.record.containers.get(name)
    }

    /// `restartPolicy` for a container: an init container with `Always` is a sidecar.
    pub fn restarts(&self, name: &str, code: i32) -> bool {
        let policy =
            self.spec.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
        match self.init_containers().find(|container| container.name == name) {
            Some(init) if is_sidecar(init) => true,
            Some(_) => code != 0 && policy != "Never",
            None => match policy {
                "Never" => false,
                "OnFailure" => code != 0,
                _ => true,
            },
        }
    }

    /// Seconds that its containers get to end.
    pub fn grace_ms(&self) -> u64 {
        let asked = self.spec.metadata.deletion_grace_period_seconds;
        let own = self.spec.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        u64::try_from(asked.or(own).unwrap_or(GRACE_DEFAULT_SECONDS)).unwrap_or(0).saturating_mul(1000)
    }

    /// The object was edited: it is what counts from now on.
    pub fn accept(&mut self, object: Object, origin: Origin) -> Result<(), ObjectError> {
        let spec: Pod = object.view()?;
        (self.names, self.hashes, self.spec) = (Names::of(&spec), hashes_of(&spec), spec);
        (self.record.object, self.record.origin) = (object, origin);
        Ok(())
    }

    /// Hash of everything that a container is made from: a running one with another hash is replaced.
    pub fn spec_hash(&self, container: &Container) -> &str {
        self.hashes.get(&container.name).map_or("", String::as_str)
    }

    /// What to do next; `None`: nothing now.
    pub fn next(&self, now: Timestamp) -> Option<Step> {
        if self.busy {
            return None;
        }
        if let Some(id) = self.exited.first() {
            return Some(Step::Reap(id.clone()));
        }
        if self.record.removal != Removal::None {
            return match (self.record.stopped, self.record.removal) {
                (true, Removal::Gone) => Some(Step::Forget),
                (true, _) => None,
                (false, _) => (self.stop_retry_at <= now).then_some(Step::Stop),
            };
        }
        if self.volumes_behind {
            return Some(Step::Volumes);
        }
        if self.is_finished() {
            return None;
        }
        for container in self.init_containers() {
            let done = match self.record_of(&container.name).map(|record| &record.phase) {
                Some(Phase::Ended(ended)) => ended.code == 0 && !is_sidecar(container),
                Some(Phase::Running { .. }) => is_sidecar(container),
                _ => false,
            };
            if let Some(step) = self.next_of(container, now) {
                return Some(step);
            }
            if !done {
                return None;
            }
        }
        self.containers().find_map(|container| self.next_of(container, now))
    }

    fn next_of(&self, container: &Container, now: Timestamp) -> Option<Step> {
        let name = &container.name;
        let fresh = ContainerRecord::default();
        let record = self.record_of(name).unwrap_or(&fresh);
        let start = |attempt| Step::Start { container: name.clone(), attempt };
        match &record.phase {
            Phase::Running { .. } if differ(&record.spec_hash, self.spec_hash(container)) => {
                (self.stop_retry_at <= now)
                    .then(|| Step::Replace { container: name.clone(), id: record.id.clone() })
            }
            Phase::Running { .. } => None,
            Phase::Waiting => {
                let due = self.failures.get(name).is_none_or(|failure| failure.retry_at <= now);
                due.then(|| start(record.attempt))
            }
            Phase::Ended(ended) => {
                let restart = record.replaced || self.restarts(name, ended.code);
                // An end that is still to come was told by a clock that has been set back since.
                let set_back = ended.finished_at.since_ms(now) > BACKOFF_MIN_MS;
                let due = record.replaced || set_back || self.restart_at(record, ended) <= now;
                let retried = self.failures.get(name).is_none_or(|failure| failure.retry_at <= now);
                (restart && due && retried).then(|| start(record.attempt.saturating_add(1)))
            }
        }
    }

    /// When a container that ended is due again.
    pub fn restart_at(&self, record: &ContainerRecord, ended: &Ended) -> Timestamp {
        ended.finished_at.plus_ms(record.backoff_ms)
    }

    /// All has ended and nothing will be started again.
    pub fn is_finished(&self) -> bool {
        let over = |container: &Container| match self.record_of(&container.name) {
            Some(ContainerRecord { phase: Phase::Ended(ended), replaced, .. }) => {
                !replaced && !self.restarts(&container.name, ended.code)
            }
            _ => false,
        };
        let init_failed = self.init_containers().any(|container| {
            over(container) && matches!(self.record_of(&container.name).map(|r| &r.phase), Some(Phase::Ended(e)) if e.code != 0)
        });
        init_failed || (self.containers().next().is_some() && self.containers().all(over))
    }

    /// A start is decided: what is to be saved before it is done.
    pub fn starting(&mut self, name: &str, attempt: u32) {
        let Some(container) = self.container(name) else { return };
        let (hash, uid) = (self.spec_hash(container).to_owned(), self.record.uid().to_owned());
        let record = self.record.containers.entry(name.to_owned()).or_default();
        if let Phase::Ended(ended) = std::mem::take(&mut record.phase) {
            record.backoff_ms = match record.backoff_ms {
                0 if ended.reason == LOST => 0,
                0 => BACKOFF_MIN_MS,
                n => n.saturating_mul(2).min(BACKOFF_MAX_MS),
            };
            record.last = Some(ended);
        }
        record.replaced = false;
        record.attempt = attempt;
        record.id = container_id(&uid, name, attempt);
        record.spec_hash = hash;
        self.busy = true;
    }

    /// A start succeeded.
    pub fn started(&mut self, name: &str, image: String, image_id: String, since: Timestamp) {
        self.failures.remove(name);
        if let Some(record) = self.record.containers.get_mut(name) {
            (record.image, record.image_id) = (image, image_id);
            record.phase = Phase::Running { since };
        }
    }

    /// A start failed. Says whether this is news.
    pub fn start_failed(&mut self, name: &str, reason: String, message: String, now: Timestamp) -> bool {
        let old = self.failures.get(name);
        let count = old.map_or(0, |failure| failure.count).saturating_add(1);
        let news = old.is_none_or(|old| (&old.reason, &old.message) != (&reason, &message));
        let pause = (RETRY_MIN_MS << u64::from(count - 1).min(8)).min(RETRY_MAX_MS);
        self.failures
            .insert(name.to_owned(), Failure { reason, message, retry_at: now.plus_ms(pause), count });
        news
    }

    /// A container ended. Gives its name; `None` when that attempt is not the one that runs.
    pub fn ended(&mut self, id: &str, exit: Option<Exit>, now: Timestamp) -> Option<String> {
        self.exited.remove(id);
        let (name, record) = self.record.containers.iter_mut().find(|(_, record)| record.id == id)?;
        let started_at = match &record.phase {
            Phase::Running { since } => *since,
            Phase::Waiting => now,
            Phase::Ended(_) => return None,
        };
        let ended = match exit {
            None => {
                Ended { id: id.to_owned(), code: 137, reason: LOST.to_owned(), started_at, finished_at: now }
            }
            Some(exit) => Ended {
                id: id.to_owned(),
                code: exit.code,
                reason: if exit.oom_killed {
                    "OOMKilled"
                } else if exit.code == 0 {
                    "Completed"
                } else {
                    "Error"
                }
                .to_owned(),
                started_at,
                finished_at: exit.finished_at,
            },
        };
        // What a reboot ended did not crash; what ran for long enough has proved itself.
        if exit.is_none() || ended.finished_at.since_ms(started_at) >= BACKOFF_RESET_MS {
            record.backoff_ms = 0;
        }
        record.phase = Phase::Ended(ended);
        Some(name.clone())
    }

    /// Takes in what containerd says of this pod's containers. Not to be called while an act is under way.
    pub fn observe(&mut self, found: &[&FoundContainer], now: Timestamp) -> Observed {
        let mut out = Observed::default();
        let uid = self.record.uid().to_owned();
        let names: Vec<String> =
            self.init_containers().chain(self.containers()).map(|container| container.name.clone()).collect();
        for name in names {
            let newest = found.iter().filter(|f| f.container == name).max_by_key(|f| f.attempt);
            let record = self.record.containers.entry(name.clone()).or_default();
            let Some(newest) = newest else {
                if matches!(record.phase, Phase::Running { .. }) {
                    out.lost.push(record.id.clone());
                }
                continue;
            };
            let newer = newest.attempt > record.attempt || record.id.is_empty();
            if newest.attempt < record.attempt {
                // The attempt that the record speaks of was never made, or is gone.
                if matches!(record.phase, Phase::Running { .. }) {
                    out.lost.push(record.id.clone());
                }
                continue;
            }
            if newer {
                // Containerd knows more than the record (its store was lost): take it over.
                record.attempt = newest.attempt;
                record.id.clone_from(&newest.id);
                record.phase = Phase::Waiting;
            }
            if newest.state != ContainerState::Created {
                record.spec_hash.clone_from(&newest.spec_hash);
                record.image.clone_from(&newest.image);
                record.image_id.clone_from(&newest.image_id);
            }
            // Its start was asked for, and the answer did not come.
            let unanswered = !newer && record.phase == Phase::Waiting;
            match newest.state {
                ContainerState::Running => {
                    self.failures.remove(&name);
                    out.started.extend(unanswered.then(|| name.clone()));
                    if !matches!(record.phase, Phase::Running { .. }) {
                        record.phase = Phase::Running { since: newest.started_at };
                    }
                    self.record.ip.clone_from(&newest.pod_ip);
                    out.taken_over |= newer;
                    out.running.push(name);
                }
                ContainerState::Exited(_) => {
                    self.failures.remove(&name);
                    out.started.extend(unanswered.then(|| name.clone()));
                    if record.phase == Phase::Waiting {
                        record.phase = Phase::Running { since: newest.started_at };
                    }
                    if !matches!(record.phase, Phase::Ended(_)) {
                        self.exited.insert(newest.id.clone());
                    }
                }
                // Nobody knows how far it came, and it is no end of its own: as kubelet does with a container that was
                // made and not started, the next attempt follows at once, whatever `restartPolicy` says.
                // One that failed with an answer left this, and is tried again under the same ID.
                ContainerState::Lost if unanswered && self.failures.contains_key(&name) => {}
                ContainerState::Lost if unanswered => {
                    record.attempt = record.attempt.saturating_add(1);
                    record.id = container_id(&uid, &name, record.attempt);
                    out.cut_short.push(name);
                }
                ContainerState::Lost => {
                    if !matches!(record.phase, Phase::Ended(_)) {
                        out.lost.push(newest.id.clone());
                    }
                }
                ContainerState::Created => {}
            }
        }
        for id in &out.lost {
            self.ended(id, None, now);
        }
        out
    }
}

/// What [`PodState::observe`] found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Names of those that run.
    pub running: Vec<String>,
    /// IDs of those that ran and are gone.
    pub lost: Vec<String>,
    /// Names of those whose start was carried out though its answer never came.
    pub started: Vec<String>,
    /// Names of those of whose start nothing is left and no answer came.
    pub cut_short: Vec<String>,
    /// Some run of which the record knew nothing: it was lost.
    pub taken_over: bool,
}

/// Reason of a container that ended without a word.
pub const LOST: &str = "ContainerStatusUnknown";

/// Were these made from different specs? Hashes of another version of ours say nothing: nothing is restarted for them.
fn differ(one: &str, other: &str) -> bool {
    let version = |hash: &str| hash.split('-').next().map(str::to_owned);
    one != other && version(one) == version(other)
}

fn hashes_of(pod: &Pod) -> BTreeMap<String, String> {
    let Some(spec) = &pod.spec else { return BTreeMap::new() };
    let hash = |container: &Container| {
        let parts = serde_json::json!([
            container,
            spec.host_network,
            spec.host_pid,
            spec.host_ipc,
            spec.security_context,
        ]);
        let hash = data_hex(&Sha256::digest(parts.to_string()));
        (container.name.clone(), format!("{HASH_VERSION}-{}", hash.get(..16).unwrap_or(&hash)))
    };
    spec.init_containers.iter().flatten().chain(&spec.containers).map(hash).collect()
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}
