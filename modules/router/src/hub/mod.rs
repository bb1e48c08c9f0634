//! The hub's module: serves the REST entry, calls rules' targets, and writes what came of it into the rules' status.
//!
//! | in / out | what |
//! |---|---|
//! | bucket objects, Rules and RuleEndpoints | the rules |
//! | FROM `from.*._rule.<ns>.<rule>.<uid>` | messages that a rule carries up: a consumer for each rule, in [`worker`] |
//! | `ew.hb.*` | which nodes are there ([`presence`]) |
//! | HTTPS, `ew.cmd.<node>.router.deliver` | calls of the REST entry ([`rest`]), and what a node is asked for them |
//! | `ew.req.*.router.call` | calls of a node's service bus |
//! | bucket objects, Rules | their status, every few seconds at most |
//! | `ew.dead.router` | what could not be delivered, with its reason |

mod presence;
mod rest;
mod rim;
mod status;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bus::flow::Flow;
use bus::module::{Effect, Entry, EntryValue, Expect, Input, Message, Module};
use schemas::Timestamp;
use schemas::command::{Refusal, Reply};
use schemas::name::NodeName;
use schemas::object::Object;
use schemas::routing::{Call, Delivered};
use schemas::rule::{self, RuleEndpointSpec};
use schemas::subject::{self, BUCKET_OBJECTS, GROUP_RULES, ObjectKey, Resource, STREAM_FROM};

use crate::table::{Name, Table};
use status::Count;

pub use rest::Authorize;
pub use rim::{Rest, RouterRim};

/// A rule's status is written so often at most.
const STATUS_INTERVAL_MS: u64 = 3_000;
/// Calls of service buses that are carried out at once; more are refused.
const CALLS_MAX: usize = 64;

fn resource(plural: &str) -> Resource {
    Resource { group: GROUP_RULES.to_owned(), plural: plural.to_owned() }
}

fn filter(plural: &str) -> String {
    subject::objects_filter(&resource(plural), None)
}

const RULES: &str = "rules";
const ENDPOINTS: &str = "ruleendpoints";

/// All that the module reads and writes.
pub fn flows() -> Vec<Flow> {
    vec![
        Flow::watch(BUCKET_OBJECTS, filter(RULES), "Rule"),
        Flow::watch(BUCKET_OBJECTS, filter(ENDPOINTS), "RuleEndpoint"),
        Flow::write(BUCKET_OBJECTS, filter(RULES), "Rule (status)"),
        Flow::take(STREAM_FROM, "from.>", "any"),
        Flow::publish("app.>", "any").in_work(),
        Flow::subscribe("ew.hb.*", "Heartbeat"),
        Flow::request("ew.cmd.*.router.deliver", "Deliver -> Reply<Delivered>"),
        Flow::stream("Reply<Delivered>"),
        Flow::respond("ew.req.*.router.call", "Call -> Reply<Delivered>"),
    ]
}

/// What only the rim can do.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// From now on this is the table; and the last message of each rule that was dealt with.
    Follow(Arc<Table>, BTreeMap<String, String>),
    /// This node was heard.
    Heard(NodeName),
    /// Call the target of a rule for a node's service bus, and answer.
    Call(Message, NodeName, Call),
}

/// What the rim tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    /// A message of the rule with this UID was dealt with.
    Counted {
        /// The rule's.
        uid: String,
        /// What tells the message from the next, where it has such.
        message: Option<String>,
        /// Why it was not delivered.
        outcome: Result<(), String>,
    },
    /// The answer to a service bus, and what came of the rule with that UID.
    Answer(Message, Vec<u8>, Option<(String, Result<(), String>)>),
}

/// The module.
#[derive(Default)]
pub struct Router {
    rules: BTreeMap<ObjectKey, (u64, Object)>,
    endpoints: BTreeMap<Name, RuleEndpointSpec>,
    table: Arc<Table>,
    followed: bool,
    current: BTreeSet<String>,
    counts: BTreeMap<String, Count>,
    /// The last message of each rule, by UID.
    last: BTreeMap<String, String>,
    calling: usize,
    next_token: u64,
}

type Effects = Vec<Effect<Act>>;

fn last_key(uid: &str) -> String {
    format!("last.{uid}")
}

impl Router {
    fn entry(&mut self, entry: Entry) -> Effects {
        let Some(key) = ObjectKey::parse(&entry.key) else { return Vec::new() };
        let object = match &entry.value {
            EntryValue::Removed(_) => None,
            EntryValue::Put(bytes) => match Object::from_bytes(bytes, entry.revision) {
                Ok(object) => Some(object),
                Err(error) => {
                    let reason = format!("{}: {error}", entry.key);
                    return vec![Effect::Dead { subject: entry.key, payload: bytes.clone(), reason }];
                }
            },
        };
        let mut effects = Vec::new();
        let changed = if key.resource.plural == RULES {
            let uid = object.as_ref().map(|object| object.uid().to_owned());
            let before = match object {
                Some(object) => self.rules.insert(key.clone(), (entry.revision, object)),
                None => self.rules.remove(&key),
            };
            let before = before.map(|(_, object)| object);
            if let Some(gone) = before
                .as_ref()
                .map(|before| before.uid().to_owned())
                .filter(|gone| Some(gone) != uid.as_ref())
            {
                self.counts.remove(&gone);
                self.last.remove(&gone);
                effects.push(Effect::Forget { key: last_key(&gone) });
            }
            // What we wrote into its status changes nothing.
            let of = |object: &Object| {
                (object.get(&["spec"]).cloned(), object.uid().to_owned(), object.is_deleting())
            };
            before.as_ref().map(of) != self.rules.get(&key).map(|(_, now)| of(now))
        } else {
            let name = (key.namespace.clone(), key.name.clone());
            match object.map(|object| rule::read_endpoint(&object)) {
                Some(Ok(spec)) => self.endpoints.insert(name, spec.clone()) != Some(spec),
                _ => self.endpoints.remove(&name).is_some(),
            }
        };
        if changed {
            effects.extend(self.follow());
        }
        effects
    }

    /// Reads the rules anew; not before all are known, so that none is taken for gone.
    fn follow(&mut self) -> Effects {
        if self.current.len() < 2 {
            return Vec::new();
        }
        let table = Table::compile(self.rules.values().map(|(_, object)| object), &self.endpoints);
        if *self.table == table && self.followed {
            return Vec::new();
        }
        self.followed = true;
        self.table = Arc::new(table);
        for (_, object) in self.rules.values() {
            let name = (object.namespace().to_owned(), object.name().to_owned());
            let count = self.counts.entry(object.uid().to_owned()).or_insert_with(|| Count::of(object));
            count.set_broken(self.table.broken.get(&name));
        }
        vec![Effect::Act(Act::Follow(self.table.clone(), self.last.clone()))]
    }

    fn counted(
        &mut self,
        uid: &str,
        message: Option<String>,
        outcome: Result<(), String>,
        now: Timestamp,
    ) -> Effects {
        // The rule may be gone meanwhile.
        let Some(count) = self.counts.get_mut(uid) else { return Vec::new() };
        count.add(outcome, now);
        match message {
            Some(message) => {
                let value = schemas::encode(&message);
                self.last.insert(uid.to_owned(), message);
                vec![Effect::Save { key: last_key(uid), value }]
            }
            None => Vec::new(),
        }
    }

    /// Writes what was counted, over the revision that is known; who is second counts on, and writes later.
    fn write(&mut self, now: Timestamp) -> Effects {
        let mut effects = Vec::new();
        for (key, (revision, object)) in &self.rules {
            let Some(count) = self.counts.get_mut(object.uid()) else { continue };
            if !count.is_due(now, STATUS_INTERVAL_MS) {
                continue;
            }
            self.next_token += 1;
            let written = count.write(object, self.next_token, now);
            let expect = Expect::Revision(*revision);
            effects.push(Effect::put(BUCKET_OBJECTS, key.key(), written.to_bytes(), expect, self.next_token));
        }
        effects
    }

    fn asked(&mut self, message: Message) -> Effects {
        let node = message.subject.split('.').nth(2).and_then(|name| NodeName::new(name).ok());
        let Some(node) = node else { return Vec::new() };
        if message.subject.starts_with("ew.hb.") {
            return vec![Effect::Act(Act::Heard(node))];
        }
        let refuse = |refusal: Refusal| {
            let answer: Reply<Delivered> = Err(refusal);
            Effect::reply(&message, &answer).into_iter().collect::<Effects>()
        };
        match schemas::decode::<Call>(&message.payload) {
            Err(error) => {
                refuse(Refusal::new(400, "EW-BAD-REQUEST", format!("{}: {error}", message.subject)))
            }
            Ok(_) if self.calling >= CALLS_MAX => {
                let text = format!("the hub carries out {CALLS_MAX} calls of nodes already; try again");
                refuse(Refusal::new(503, "EW-BUSY", text))
            }
            Ok(call) => {
                self.calling += 1;
                vec![Effect::Act(Act::Call(message, node, call))]
            }
        }
    }
}

impl Module for Router {
    type Act = Act;
    type Done = Done;

    fn restore(&mut self, saved: Vec<(String, Vec<u8>)>, _: Timestamp) -> Effects {
        for (key, value) in saved {
            if let (Some(uid), Ok(message)) = (key.strip_prefix("last."), schemas::decode(&value)) {
                self.last.insert(uid.to_owned(), message);
            }
        }
        Vec::new()
    }

    fn apply(&mut self, input: Input<Done>, now: Timestamp) -> Effects {
        match input {
            Input::Entry(entry) => self.entry(entry),
            Input::Current { filter, .. } => {
                self.current.insert(filter);
                self.follow()
            }
            Input::Message(message) => self.asked(message),
            Input::Wrote { token, outcome } => {
                for count in self.counts.values_mut() {
                    count.wrote(token, outcome.is_ok());
                }
                Vec::new()
            }
            Input::Done(Done::Counted { uid, message, outcome }) => self.counted(&uid, message, outcome, now),
            Input::Done(Done::Answer(message, payload, counted)) => {
                self.calling = self.calling.saturating_sub(1);
                if let Some((uid, outcome)) = counted {
                    self.counted(&uid, None, outcome, now);
                }
                let reply = message.reply.map(|to| Effect::Reply { account: message.account, to, payload });
                reply.into_iter().collect()
            }
            Input::Tick => self.write(now),
            Input::Delivery(_) | Input::Answered { .. } => Vec::new(),
        }
    }
}
