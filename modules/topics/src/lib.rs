//! Topics on a node: the streams that namespaces declare, made, kept and removed on the node's own server.
//!
//! In: bucket local `topics.>`. Out: streams `T_<namespace>_<name>` in WORK with their consumers, and what there is to tell as
//! events. It works with no hub: a Topic that was taken is kept. A stream goes only when its Topic's tombstone is there (somebody
//! deleted it, or it no longer selects this node); one whose Topic is missing without a trace stays, and so does every
//! stream that no Topic made.
//!
//! * [`plan`] decides what is to be done; this file when, and what is told

pub mod plan;

use std::collections::{BTreeMap, BTreeSet};

use bus::connection::Handles;
use bus::declared::{self, DeclareError, Declared};
use bus::flow::Flow;
use bus::module::{Account, Effect, Entry, EntryValue, Input, Module, Rim};
use schemas::Timestamp;
use schemas::desired::{Content, Local};
use schemas::fault;
use schemas::name::NodeName;
use schemas::object::Object;
use schemas::report::{EventReport, Severity};
use schemas::subject::{self, BUCKET_LOCAL, DesiredKey};
use schemas::topic::Topic;

use plan::{Plan, Wish};

/// Name of the module.
pub const NAME: &str = "topics";
/// The entries of Topics in the local bucket.
pub const FILTER: &str = "topics.>";
/// How often the streams are looked at when nothing changes: a server can come back without one.
pub const LOOK_INTERVAL_MS: u64 = 15_000;
/// How long after something failed it is tried again.
pub const RETRY_MS: u64 = 2_000;
/// An act that was not answered for so long is taken as failed.
pub const ACT_TIMEOUT_MS: u64 = 120_000;

/// All that the module reads and writes.
pub fn flows() -> Vec<Flow> {
    vec![
        Flow::watch(BUCKET_LOCAL, FILTER, "Local"),
        Flow::declare().in_work(),
        Flow::report(subject::event(NAME, "*"), "EventReport"),
    ]
}

/// What only the rim can do.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Look which streams of Topics there are.
    Look,
    /// Do this.
    Keep(Plan),
}

/// What the rim tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    /// The streams that Topics made.
    Found(Result<Vec<Declared>, DeclareError>),
    /// What became of each Topic of a [`Plan`].
    Kept {
        /// Streams that were to be removed.
        removed: Vec<(plan::Removal, Result<(), DeclareError>)>,
        /// Topics whose streams were to be made or changed.
        declared: Vec<(Topic, Result<declared::Done, DeclareError>)>,
    },
}

/// The module.
pub struct Topics {
    node: NodeName,
    current: bool,
    wishes: BTreeMap<DesiredKey, Wish>,
    /// UIDs of Topics that are proven to be gone.
    gone: BTreeSet<String>,
    /// An act is under way since then.
    busy: Option<Timestamp>,
    /// Look again when this time has come.
    due: Timestamp,
    /// Something changed while an act was under way.
    changed: bool,
    /// Why a Topic is not as it should be, as it was told last.
    told: BTreeMap<String, String>,
}

type Effects = Vec<Effect<Act>>;

impl Topics {
    /// The module of `node`.
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            current: false,
            wishes: BTreeMap::new(),
            gone: BTreeSet::new(),
            busy: None,
            due: Timestamp::default(),
            changed: false,
            told: BTreeMap::new(),
        }
    }

    fn entry(&mut self, entry: &Entry, now: Timestamp) -> Effects {
        let Some(key) = DesiredKey::parse_local(&entry.key) else { return Vec::new() };
        let dead = |payload: &[u8], reason: String| {
            let subject = subject::kv(BUCKET_LOCAL, &entry.key);
            vec![Effect::Dead { subject, payload: payload.to_vec(), reason }]
        };
        let mut effects = Vec::new();
        match &entry.value {
            // The tombstone has done its work at the hub. What it proved is remembered while this process lives.
            EntryValue::Removed(_) => return effects,
            EntryValue::Put(bytes) => match schemas::decode::<Local>(bytes) {
                Err(error) => return dead(bytes, error.to_string()),
                Ok(Local { desired, revision }) => match desired.content {
                    Content::Tombstone => {
                        self.wishes.remove(&key);
                        self.told.remove(&key.uid);
                        self.gone.insert(key.uid);
                    }
                    Content::Object(object) => match wish(&key, &object, revision) {
                        Ok(wish) => {
                            self.gone.remove(&key.uid);
                            self.wishes.insert(key, wish);
                        }
                        // What was made of an earlier version stays.
                        Err(why) => effects = dead(bytes, why),
                    },
                },
            },
        }
        self.changed = true;
        effects.extend(self.look(now));
        effects
    }

    /// Looks at the streams, when nothing else is under way.
    fn look(&mut self, now: Timestamp) -> Option<Effect<Act>> {
        if !self.current || self.busy.is_some() || !(self.changed || now >= self.due) {
            return None;
        }
        self.changed = false;
        self.busy = Some(now);
        self.due = now.plus_ms(LOOK_INTERVAL_MS);
        Some(Effect::Act(Act::Look))
    }

    fn found(&mut self, found: Result<Vec<Declared>, DeclareError>, now: Timestamp) -> Effects {
        self.busy = None;
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "the streams of topics are looked at again");
                self.due = now.plus_ms(RETRY_MS);
                return Vec::new();
            }
        };
        let decided = plan::decide(self.wishes.values(), &self.gone, &found);
        let mut effects = Vec::new();
        for (topic, why) in &decided.unmade {
            effects.extend(self.unmade(topic, why, now));
        }
        if decided.plan.is_empty() {
            // Whatever was wrong with the others is right now.
            self.told.retain(|uid, _| decided.unmade.iter().any(|(topic, _)| topic.uid == *uid));
            effects.extend(self.look(now));
        } else {
            self.busy = Some(now);
            effects.push(Effect::Act(Act::Keep(decided.plan)));
        }
        effects
    }

    fn kept(
        &mut self,
        removed: Vec<(plan::Removal, Result<(), DeclareError>)>,
        declared: Vec<(Topic, Result<declared::Done, DeclareError>)>,
        now: Timestamp,
    ) -> Effects {
        self.busy = None;
        let mut effects = Vec::new();
        for (plan::Removal { stream, uid }, outcome) in removed {
            match outcome {
                Ok(()) => tracing::info!(stream, uid, "topic is gone, and its stream with it"),
                Err(error) => {
                    tracing::warn!(stream, %error, "the stream of a topic that is gone stays for now");
                    self.due = now.plus_ms(RETRY_MS);
                }
            }
        }
        for (topic, outcome) in declared {
            match outcome {
                Ok(done) => {
                    let was_unmade = self.told.remove(&topic.uid).is_some();
                    if done == declared::Done::Made || was_unmade {
                        let text =
                            format!("stream {} of {} bytes is there", topic.stream(), topic.size_max_bytes);
                        effects.push(self.event(&topic, Severity::Normal, "TopicMade", text, now));
                    }
                }
                Err(error) => {
                    self.due = now.plus_ms(if error.is_passing() { RETRY_MS } else { LOOK_INTERVAL_MS });
                    if !error.is_passing() {
                        effects.extend(self.unmade(&topic, &error.to_string(), now));
                    }
                }
            }
        }
        effects.extend(self.look(now));
        effects
    }

    /// Tells, once, why a Topic is not (or no longer) made as it says.
    fn unmade(&mut self, topic: &Topic, why: &str, now: Timestamp) -> Option<Effect<Act>> {
        if self.told.get(&topic.uid).is_some_and(|told| told == why) {
            return None;
        }
        self.told.insert(topic.uid.clone(), why.to_owned());
        Some(self.event(topic, Severity::Warning, "TopicUnmade", why.to_owned(), now))
    }

    fn event(
        &self,
        topic: &Topic,
        severity: Severity,
        reason: &str,
        message: String,
        now: Timestamp,
    ) -> Effect<Act> {
        Effect::event(&EventReport {
            id: format!("{}/{NAME}/{}/{reason}/{}", self.node, topic.uid, now.0),
            node: self.node.to_string(),
            module: NAME.to_owned(),
            at: now,
            severity,
            reason: reason.to_owned(),
            message,
            regarding: (
                "Topic".to_owned(),
                topic.namespace.to_string(),
                topic.name.clone(),
                topic.uid.clone(),
            ),
        })
    }
}

/// Reads an entry's object. The error is for people.
fn wish(key: &DesiredKey, object: &Object, revision: u64) -> Result<Wish, String> {
    let named = (object.namespace(), object.name(), object.uid());
    if named != (key.namespace.as_str(), key.name.as_str(), key.uid.as_str()) {
        return Err(format!("the key says {key:?}, the object {named:?}"));
    }
    let topic = Topic::read(object).map_err(|faults| fault::line(&faults))?;
    let made = object.text(&["metadata", "creationTimestamp"]).to_owned();
    Ok(Wish { topic, revision, made })
}

impl Module for Topics {
    type Act = Act;
    type Done = Done;

    fn apply(&mut self, input: Input<Done>, now: Timestamp) -> Effects {
        match input {
            Input::Entry(entry) => self.entry(&entry, now),
            Input::Current { .. } => {
                self.current = true;
                self.look(now).into_iter().collect()
            }
            Input::Tick => {
                if self.busy.is_some_and(|since| now.since_ms(since) >= ACT_TIMEOUT_MS) {
                    self.busy = None;
                }
                self.look(now).into_iter().collect()
            }
            Input::Done(Done::Found(found)) => self.found(found, now),
            Input::Done(Done::Kept { removed, declared }) => self.kept(removed, declared, now),
            _ => Vec::new(),
        }
    }
}

/// The rim: streams of the node's server.
pub struct TopicsRim;

impl Rim<Topics> for TopicsRim {
    async fn act(&self, bus: &Handles, act: Act) -> Option<Done> {
        let Some(bus) = bus.bus(Account::Work) else {
            let error = DeclareError::Lost("there is no connection in WORK".to_owned());
            return Some(Done::Found(Err(error)));
        };
        match act {
            Act::Look => Some(Done::Found(declared::list(bus).await)),
            Act::Keep(plan) => {
                let (mut removed, mut kept) = (Vec::new(), Vec::new());
                for removal in plan.remove {
                    let outcome = declared::remove(bus, &removal.stream, &removal.uid).await;
                    removed.push((removal, outcome));
                }
                for topic in plan.declare {
                    let outcome = declared::declare(bus, &topic).await;
                    kept.push((topic, outcome));
                }
                Some(Done::Kept { removed, declared: kept })
            }
        }
    }
}
