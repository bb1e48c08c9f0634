//! The node's module: takes what rules name from stream RULES to UPLINK, hands over what the hub sends, and serves the
//! service bus.
//!
//! | in / out | what |
//! |---|---|
//! | bucket local `rules.…`, `ruleendpoints.…` | the rules |
//! | RULES | messages that rules name, one by one, acknowledged when they stand in UPLINK |
//! | `$MQTT_msgs` | what MQTT clients said at QoS 1 or 2 on the same subjects: taken to RULES |
//! | `up._rule.<ns>.<rule>.<uid>` | the same, on their way to the hub |
//! | `ew.cmd.<node>.router.deliver` | a [`Deliver`]: publish, or call a service on loopback |
//! | `ew.req.<node>.router.call` | a [`Call`]: of the service bus, for the hub to carry out |

mod entrusted;
mod rim;
mod service_bus;

use std::collections::BTreeMap;
use std::sync::Arc;

use bus::acknowledgement;
use bus::flow::Flow;
use bus::module::{Account, Delivery, Effect, Entry, EntryValue, Input, Message, Module};
use bus::relay;
use schemas::Timestamp;
use schemas::command::{Refusal, Reply};
use schemas::desired::{Content, Local};
use schemas::envelope::Headers;
use schemas::name::NodeName;
use schemas::object::Object;
use schemas::report::{EventReport, Severity};
use schemas::routing::{BODY_MAX_BYTES, Deliver, Delivered, header};
use schemas::rule::{self, RuleEndpointSpec};
use schemas::subject::{self, BUCKET_LOCAL, DesiredKey, RULES_ENTRUSTED, STREAM_MQTT_MESSAGES, STREAM_RULES};
use sha2::{Digest, Sha256};

use crate::table::{Name, Route, Table};
use crate::work::Made;
use crate::{CALL, DELIVER, NAME};

pub use rim::RouterRim;

/// Plural names of the kinds, as keys have them.
const PLURALS: [&str; 2] = ["rules", "ruleendpoints"];
/// What the node's server captures is compared so often with what it has to.
const CAPTURE_INTERVAL_MS: u64 = 15_000;
/// Dropped messages are told so often at most.
const MISSED_INTERVAL_MS: u64 = 10_000;
/// Messages of the hub that are handed over at once; more are refused.
const DELIVERIES_MAX: usize = 64;
/// Of a message that cannot be carried, so much is kept with the reason.
const DEAD_MAX_BYTES: usize = 64 * 1024;
/// How many hex digits tell one message's content from another's.
const DIGEST_CHARS: usize = 16;

/// All that the module reads and writes.
pub fn flows(node: &NodeName) -> Vec<Flow> {
    vec![
        Flow::watch(BUCKET_LOCAL, filter(PLURALS[0]), "Local (Rule)"),
        Flow::watch(BUCKET_LOCAL, filter(PLURALS[1]), "Local (RuleEndpoint)"),
        Flow::consume(STREAM_RULES, NAME, ">", "any").one_by_one().in_work(),
        Flow::capture(STREAM_RULES).in_work(),
        Flow::manage(STREAM_MQTT_MESSAGES, "what MQTT clients said").in_work(),
        Flow::report(RULES_ENTRUSTED, "any").in_work(),
        Flow::report("up._rule.>", "any").in_work(),
        // What rules give: any topic of MQTT's, except what `table::givable` refuses.
        Flow::publish(">", "any").in_work(),
        Flow::respond(subject::command(node, NAME, DELIVER), "Deliver -> Reply<Delivered>"),
        Flow::request(subject::request(node, CALL), "Call -> Reply<Delivered>"),
        Flow::report(subject::event(NAME, "*"), "EventReport"),
    ]
}

fn filter(plural: &str) -> String {
    format!("{plural}.*.*.*")
}

/// What only the rim can do.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// From now on this is the table.
    Follow(Arc<Table>),
    /// Have the node's server keep what comes on these, and what MQTT clients entrust to it there.
    Capture(Vec<String>),
    /// Hand this over, and answer.
    Deliver(Message, Deliver),
}

/// What the rim tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    /// What the server captures is what it has to; the error is the server's.
    Captured(Result<(), String>),
    /// The answer to a question of the hub's.
    Answer(Message, Vec<u8>),
}

/// The module.
pub struct Router {
    node: NodeName,
    rules: BTreeMap<DesiredKey, Object>,
    endpoints: BTreeMap<DesiredKey, (Name, RuleEndpointSpec)>,
    table: Arc<Table>,
    /// Of which kinds all that was there at the start has been told.
    current: [bool; 2],
    captured_at: Timestamp,
    /// What was told of a capture that failed.
    refused: Option<String>,
    delivering: usize,
    last_sequence: Option<u64>,
    missed: u64,
    missed_at: Timestamp,
}

type Effects = Vec<Effect<Act>>;

impl Router {
    /// The module of `node`.
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            rules: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            table: Arc::default(),
            current: [false; 2],
            captured_at: Timestamp::default(),
            refused: None,
            delivering: 0,
            last_sequence: None,
            missed: 0,
            missed_at: Timestamp::default(),
        }
    }

    fn entry(&mut self, entry: &Entry, now: Timestamp) -> Effects {
        let Some(key) = DesiredKey::parse_local(&entry.key) else { return Vec::new() };
        let object = match &entry.value {
            EntryValue::Put(bytes) => match schemas::decode::<Local>(bytes) {
                Ok(Local { desired, .. }) => match desired.content {
                    Content::Object(object) => Some(object),
                    Content::Tombstone => None,
                },
                Err(error) => {
                    let reason = format!("{}: {error}", entry.key);
                    return vec![Effect::Dead { subject: entry.key.clone(), payload: bytes.clone(), reason }];
                }
            },
            EntryValue::Removed(_) => None,
        };
        let changed = match (key.plural.as_str(), object) {
            ("rules", Some(object)) => {
                // A status that the hub wrote changes nothing here.
                let before = self.rules.insert(key, object.clone());
                before.is_none_or(|before| {
                    before.get(&["spec"]) != object.get(&["spec"]) || object.is_deleting()
                })
            }
            ("rules", None) => self.rules.remove(&key).is_some(),
            ("ruleendpoints", Some(object)) => match rule::read_endpoint(&object) {
                Ok(spec) => {
                    let name = (object.namespace().to_owned(), object.name().to_owned());
                    let next = (name, spec);
                    self.endpoints.insert(key, next.clone()) != Some(next)
                }
                Err(_) => self.endpoints.remove(&key).is_some(),
            },
            ("ruleendpoints", None) => self.endpoints.remove(&key).is_some(),
            _ => false,
        };
        if changed { self.follow(now) } else { Vec::new() }
    }

    /// Reads the rules anew. Before all are known nothing is done: a stream that captured less for a moment would miss what
    /// comes in it.
    fn follow(&mut self, now: Timestamp) -> Effects {
        if self.current != [true; 2] {
            return Vec::new();
        }
        let endpoints = self.endpoints.values().cloned().collect();
        let table = Table::compile(self.rules.values(), &endpoints);
        if *self.table == table && self.captured_at != Timestamp::default() {
            return Vec::new();
        }
        self.table = Arc::new(table);
        self.captured_at = now;
        vec![Effect::Act(Act::Follow(self.table.clone())), self.capture()]
    }

    fn capture(&self) -> Effect<Act> {
        Effect::Act(Act::Capture(self.table.sources(&self.node)))
    }

    fn captured(&mut self, outcome: Result<(), String>, now: Timestamp) -> Effects {
        let before = std::mem::replace(&mut self.refused, outcome.err());
        match &self.refused {
            Some(why) if before.as_ref() != Some(why) => {
                let text = format!(
                    "the node's server does not keep what rules name: {why}; is it a Topic's already?"
                );
                vec![self.event("RuleSourcesRefused", text, now)]
            }
            _ => Vec::new(),
        }
    }

    fn delivered(&mut self, delivery: Delivery, now: Timestamp) -> Effects {
        if self.current != [true; 2] {
            // Of the rules that are not read yet one may want it: acknowledged now it would be gone.
            return vec![Effect::Later];
        }
        self.count(delivery.sequence, now);
        let on = match subject::entrusted_on(&delivery.subject) {
            Some(on) => on.to_owned(),
            // It is taken from where the server keeps it.
            None if relay::is_entrusted(&delivery.headers) => return Vec::new(),
            None => delivery.subject.clone(),
        };
        let routes = self.table.on_node(&self.node, &on);
        if !routes.is_empty() && acknowledgement::is_one(&delivery.headers, &delivery.payload) {
            // Whoever asked had it put there, and may be of another namespace.
            let reason = "no workload said it: it is an answer of the node's own server".to_owned();
            return vec![Effect::Dead { subject: on, payload: delivery.payload, reason }];
        }
        if delivery.payload.len() > BODY_MAX_BYTES {
            let size = delivery.payload.len();
            let reason = format!("a rule carries at most {BODY_MAX_BYTES} bytes, this has {size}");
            let payload = delivery.payload.get(..DEAD_MAX_BYTES).unwrap_or_default().to_vec();
            return vec![Effect::Dead { subject: on, payload, reason }];
        }
        let id = message_id(&delivery);
        let payload = bytes::Bytes::from(delivery.payload);
        routes.into_iter().filter_map(|route| carry(route, &on, &delivery.headers, &payload, &id)).collect()
    }

    /// A hole in the stream's numbers is what it dropped, because it was full.
    fn count(&mut self, sequence: u64, now: Timestamp) {
        if let Some(last) = self.last_sequence
            && sequence > last
        {
            if self.missed == 0 {
                self.missed_at = now;
            }
            self.missed += sequence - last - 1;
        }
        self.last_sequence = Some(self.last_sequence.unwrap_or(0).max(sequence));
    }

    fn tick(&mut self, now: Timestamp) -> Effects {
        let mut effects = Vec::new();
        if self.current == [true; 2] && now.since_ms(self.captured_at) >= CAPTURE_INTERVAL_MS {
            self.captured_at = now;
            effects.push(self.capture());
        }
        if self.missed > 0 && now.since_ms(self.missed_at) >= MISSED_INTERVAL_MS {
            let text =
                format!("{} messages for rules were dropped: stream {STREAM_RULES} was full", self.missed);
            self.missed = 0;
            effects.push(self.event("RuleMessagesDropped", text, now));
        }
        effects
    }

    fn event(&self, reason: &str, message: String, now: Timestamp) -> Effect<Act> {
        let digest = Sha256::digest(format!("{reason} {message} {}", now.0));
        let id = hex(&digest).get(..DIGEST_CHARS * 2).unwrap_or_default().to_owned();
        let severity = Severity::Warning;
        Effect::event(&EventReport::of_node(&id, &self.node, NAME, now, severity, reason, message))
    }

    fn asked(&mut self, message: Message) -> Effects {
        let refuse = |refusal: Refusal| {
            let answer: Reply<Delivered> = Err(refusal);
            Effect::reply(&message, &answer).into_iter().collect::<Effects>()
        };
        let deliver = match schemas::decode::<Deliver>(&message.payload) {
            Ok(deliver) => deliver,
            Err(error) => {
                return refuse(Refusal::new(400, "EW-BAD-REQUEST", format!("{}: {error}", message.subject)));
            }
        };
        if self.delivering >= DELIVERIES_MAX {
            let text = format!("node {} hands over {DELIVERIES_MAX} messages already; try again", self.node);
            return refuse(Refusal::new(503, "EW-NODE-BUSY", text));
        }
        self.delivering += 1;
        vec![Effect::Act(Act::Deliver(message, deliver))]
    }
}

/// What tells the message from the one before it, also after the stream was made anew: the number alone would not.
fn message_id(delivery: &Delivery) -> String {
    let mut digest = Sha256::new();
    digest.update(delivery.subject.as_bytes());
    digest.update([0]);
    digest.update(&delivery.payload);
    let content = hex(&digest.finalize());
    format!("{}-{}", delivery.sequence, content.get(..DIGEST_CHARS).unwrap_or_default())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The message on its way to the hub; `None` when the rule does not want it. One that an expression fails on goes as it came:
/// the hub counts it, and keeps it with the reason.
fn carry(
    route: &Route,
    on: &str,
    headers: &Headers,
    payload: &bytes::Bytes,
    id: &str,
) -> Option<Effect<Act>> {
    let (payload, failure) = match route.make(payload, on, headers) {
        Ok(Made::Unwanted) => return None,
        Ok(Made::Message(made)) if made.len() <= BODY_MAX_BYTES => (made, None),
        Ok(Made::Message(made)) => {
            (payload.clone(), Some(format!("map: made {} bytes, too many", made.len())))
        }
        Err(why) => (payload.clone(), Some(why)),
    };
    let mut carried: Headers = [
        ("Nats-Msg-Id", format!("rule-{}-{id}", route.uid)),
        (header::SUBJECT, on.to_owned()),
        (header::MESSAGE, id.to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    if let Some(why) = failure {
        carried
            .insert(header::FAILURE.to_owned(), why.chars().filter(|c| !c.is_control()).take(500).collect());
    }
    Some(Effect::Store {
        account: Account::Work,
        subject: subject::ruled(&route.namespace, &route.name, &route.uid),
        headers: carried,
        payload: payload.to_vec(),
    })
}

impl Module for Router {
    type Act = Act;
    type Done = Done;

    fn apply(&mut self, input: Input<Done>, now: Timestamp) -> Effects {
        match input {
            Input::Entry(entry) => self.entry(&entry, now),
            Input::Current { filter: of, .. } => {
                for (current, plural) in self.current.iter_mut().zip(PLURALS) {
                    *current |= of == filter(plural);
                }
                self.follow(now)
            }
            Input::Delivery(delivery) => self.delivered(delivery, now),
            Input::Message(message) => self.asked(message),
            Input::Done(Done::Captured(outcome)) => self.captured(outcome, now),
            Input::Done(Done::Answer(message, payload)) => {
                self.delivering = self.delivering.saturating_sub(1);
                let reply = message.reply.map(|to| Effect::Reply { account: message.account, to, payload });
                reply.into_iter().collect()
            }
            Input::Tick => self.tick(now),
            Input::Wrote { .. } | Input::Answered { .. } => Vec::new(),
        }
    }
}
