//! What is granted and what is refused: join tokens, and the way from a request to its answer. Pure. What concerns nodes
//! stands in [`crate::nodes`].

use std::collections::BTreeMap;

use bus::module::{Effect, EntryValue, Expect, Input, Message, Module, WriteError};
use bus::server::Denial;
use schemas::Timestamp;
use schemas::audit::Thinned;
use schemas::command::{Refusal, Reply};
use schemas::credential::{Enroll, Heard, NewToken, NodeRecord, TokenRecord};
use schemas::subject;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::NAME;
use crate::authority::{Authorities, Change, Facts};

/// The longest life of a token.
const TTL_MAX_S: u64 = 30 * 24 * 3600;
/// The most uses of a token.
const USES_MAX: u32 = 10_000;
/// Tokens at once.
const TOKENS_MAX: usize = 10_000;

/// What the HTTP API answers.
pub type Answer = Reply<Value>;

/// What only the rim can do.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Make a secret for this token.
    MakeToken(Message, TokenRecord),
    /// Sign the node's credentials.
    Sign(Message, Box<Enroll>),
    /// Sign a tool's credentials.
    Bus(Message),
    /// Shut out the keys that this node had before, and answer when somebody asked.
    Retire(Option<(Message, Heard)>, Box<NodeRecord>),
    /// Shut this node's keys out, and answer when somebody asked for it.
    Revoke(Option<Message>, NodeRecord),
    /// Change the authorities or the certificate; nobody asked when it is by age.
    Change(Option<Message>, Change),
}

/// What the rim tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    /// A token with its secret's hash, and what its maker is told once it is stored.
    Token(Message, TokenRecord, Value),
    /// Answer this.
    Answer(Message, Answer),
    /// What the hub's server refused.
    Denied(Vec<Denial>),
    /// A node's old keys are shut out; the answer for the node that asked.
    Retired(Option<(Message, Answer)>, Box<NodeRecord>),
    /// What became of an [`Act::Change`], and how the files stand now.
    Changed(Option<Message>, Change, Result<(), Refusal>, Box<Facts>),
}

/// What waits for a write.
#[derive(Debug)]
pub(crate) enum Waiting {
    Answer(Message, Value),
    UseOf(Message, Box<Enroll>),
    NodeOf(Message, Box<Enroll>),
    Revoked(Message, NodeRecord),
    Promoted(Message, Box<NodeRecord>, Heard),
}

/// The module.
#[derive(Default)]
pub struct Identity {
    pub(crate) tokens: BTreeMap<String, (TokenRecord, u64)>,
    pub(crate) nodes: BTreeMap<String, (NodeRecord, u64)>,
    current: bool,
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
    refusals: Thinned,
    /// Nodes that were told to renew their keys, and who waits for it until when.
    pub(crate) rotating: BTreeMap<String, (Message, Timestamp)>,
    pub(crate) authorities: Authorities,
}

pub(crate) type Effects = Vec<Effect<Act>>;

fn refuse(status: u16, code: &str, message: impl Into<String>) -> Answer {
    Err(Refusal::new(status, code, message))
}

pub(crate) fn body<T: DeserializeOwned>(message: &Message) -> Result<T, Refusal> {
    let bad =
        |error: &dyn std::fmt::Display| Refusal::new(400, "EW-BAD-REQUEST", format!("request body: {error}"));
    let value: Value = schemas::decode(&message.payload).map_err(|error| bad(&error))?;
    serde_json::from_value(value).map_err(|error| bad(&error))
}

impl Identity {
    pub(crate) fn put(
        &mut self,
        key: String,
        value: Vec<u8>,
        expect: Expect,
        waiting: Waiting,
        effects: &mut Effects,
    ) {
        self.next += 1;
        self.waiting.insert(self.next, waiting);
        effects.push(Effect::put(subject::BUCKET_IDENTITY, key, value, expect, self.next));
    }

    fn request(&mut self, message: Message, now: Timestamp, effects: &mut Effects) -> Result<(), Refusal> {
        if !self.current {
            return Err(Refusal::new(503, "EW-NOT-READY", "the hub is starting; try again"));
        }
        if let Some((node, verb)) = crate::nodes::asked_by(&message.subject) {
            return self.asked_by_node(&node, &verb, message, effects);
        }
        let verb = message.subject.strip_prefix(&subject::local(NAME, "")).unwrap_or_default().to_owned();
        match verb.as_str() {
            "token.create" => {
                let new: NewToken = body(&message)?;
                if new.ttl_s == 0 || new.ttl_s > TTL_MAX_S || new.uses == 0 || new.uses > USES_MAX {
                    let text = format!("a token lives 1 to {TTL_MAX_S} s and has 1 to {USES_MAX} uses");
                    return Err(Refusal::new(400, "EW-TOKEN-BOUNDS", text));
                }
                if self.tokens.len() >= TOKENS_MAX {
                    return Err(Refusal::new(429, "EW-TOKEN-BOUNDS", "too many tokens; revoke some"));
                }
                let record = TokenRecord {
                    id: String::new(),
                    secret_sha256: String::new(),
                    node: new.node,
                    uses: new.uses,
                    expires: now.plus_ms(new.ttl_s * 1000),
                };
                effects.push(Effect::Act(Act::MakeToken(message, record)));
            }
            "token.list" => {
                let list: Vec<Value> = self
                    .tokens
                    .values()
                    .map(|(token, _)| {
                        json!({"id": token.id, "node": token.node, "uses": token.uses,
                               "expires": token.expires.rfc3339(), "expired": token.expires <= now})
                    })
                    .collect();
                effects.extend(Effect::reply(&message, &Answer::Ok(json!({"tokens": list}))));
            }
            "token.delete" => {
                let body: Value = body(&message)?;
                let id = body.get("id").and_then(Value::as_str).unwrap_or("");
                let Some((_, revision)) = self.tokens.get(id) else {
                    return Err(Refusal::new(404, "EW-TOKEN-UNKNOWN", format!("there is no token {id:?}")));
                };
                self.next += 1;
                self.waiting.insert(self.next, Waiting::Answer(message, json!({"id": id})));
                effects.push(Effect::Remove {
                    bucket: subject::BUCKET_IDENTITY.to_owned(),
                    key: format!("token.{id}"),
                    value: Vec::new(),
                    expect: Expect::Revision(*revision),
                    token: self.next,
                });
            }
            "enroll" => self.enroll(message, now, effects)?,
            "node.list" => {
                effects.extend(Effect::reply(&message, &Answer::Ok(self.list_nodes())));
            }
            "node.revoke" => self.revoke_node(message, now, effects)?,
            "node.rotate" => self.rotate_node(message, now, effects)?,
            "ca.list" => effects.extend(Effect::reply(&message, &Answer::Ok(self.list_authorities()?))),
            "ca.roll" => self.change(Change::Roll, message, effects)?,
            "ca.finish" => self.change(Change::Finish, message, effects)?,
            "certificate.list" => {
                effects.extend(Effect::reply(&message, &Answer::Ok(self.list_certificates()?)));
            }
            "certificate.renew" => self.change(Change::Renew, message, effects)?,
            "bus" => effects.push(Effect::Act(Act::Bus(message))),
            other => return Err(Refusal::new(404, "EW-BAD-REQUEST", format!("no verb {other:?}"))),
        }
        Ok(())
    }

    fn wrote(
        &mut self,
        token: u64,
        outcome: &Result<u64, WriteError>,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        let Some(waiting) = self.waiting.remove(&token) else { return };
        let busy =
            || refuse(503, "EW-BUSY", "another request was first or the store did not answer; try again");
        match (waiting, outcome) {
            (Waiting::Answer(message, answer), Ok(_)) => {
                effects.extend(Effect::reply(&message, &Answer::Ok(answer)));
            }
            (Waiting::UseOf(message, enroll), Ok(_)) => self.enter(message, enroll, now, effects),
            (Waiting::NodeOf(message, enroll), Ok(_)) => {
                effects.push(Effect::Act(Act::Sign(message, enroll)))
            }
            (Waiting::Revoked(message, record), Ok(_)) => {
                effects.push(Effect::Act(Act::Revoke(Some(message), record)));
            }
            (Waiting::Promoted(message, record, heard), Ok(_)) => {
                effects.push(crate::nodes::renewed(&record, now));
                effects.push(Effect::Act(Act::Retire(Some((message, heard)), record)));
            }
            (
                Waiting::Answer(message, _)
                | Waiting::UseOf(message, _)
                | Waiting::NodeOf(message, _)
                | Waiting::Promoted(message, ..)
                | Waiting::Revoked(message, _),
                Err(_),
            ) => effects.extend(Effect::reply(&message, &busy())),
        }
    }

    /// A key that a node enrolled with is shown by the node's name.
    fn denied(&mut self, denials: Vec<Denial>, now: Timestamp, effects: &mut Effects) {
        let mut records = self.refusals.due(now);
        for mut denial in denials {
            let node = self
                .nodes
                .values()
                .find(|(node, _)| [&node.control_key, &node.work_key].contains(&&denial.user));
            if let Some((node, _)) = node {
                denial.user = node.node.to_string();
            }
            let kind = format!("{} {}", denial.user, denial.verb);
            records.extend(self.refusals.add(&kind, denial.record(subject::DOMAIN_HUB, now), now));
        }
        for record in records {
            let (subject, headers) = bus::audit::addressed(&record, NAME);
            effects.push(Effect::Report { subject, headers, payload: schemas::encode(&record) });
        }
    }

    fn entry(&mut self, key: &str, revision: u64, value: EntryValue) {
        let Some((kind, name)) = key.split_once('.') else { return };
        match (kind, value) {
            ("token", EntryValue::Put(bytes)) => {
                if let Ok(token) = schemas::decode(&bytes) {
                    self.tokens.insert(name.to_owned(), (token, revision));
                }
            }
            ("node", EntryValue::Put(bytes)) => {
                if let Ok(node) = schemas::decode::<NodeRecord>(&bytes) {
                    self.nodes.insert(name.to_owned(), (node, revision));
                }
            }
            ("token", EntryValue::Removed(_)) => {
                self.tokens.remove(name);
            }
            ("node", EntryValue::Removed(_)) => {
                self.nodes.remove(name);
            }
            _ => {}
        }
    }
}

impl Module for Identity {
    type Act = Act;
    type Done = Done;

    fn apply(&mut self, input: Input<Done>, now: Timestamp) -> Effects {
        let mut effects = Vec::new();
        match input {
            Input::Entry(entry) => self.entry(&entry.key, entry.revision, entry.value),
            Input::Current { .. } => {
                self.current = true;
                self.revoke_again(&mut effects);
            }
            Input::Message(message) => {
                if let Err(refusal) = self.request(message.clone(), now, &mut effects) {
                    effects.extend(Effect::reply(&message, &Answer::Err(refusal)));
                }
            }
            Input::Done(Done::Token(message, record, answer)) => {
                let key = format!("token.{}", record.id);
                let waiting = Waiting::Answer(message, answer);
                self.put(key, schemas::encode(&record), Expect::Absent, waiting, &mut effects);
            }
            Input::Done(Done::Answer(message, answer)) => effects.extend(Effect::reply(&message, &answer)),
            Input::Done(Done::Retired(asked, record)) => {
                self.retired(&record, &mut effects);
                effects.extend(asked.and_then(|(message, answer)| Effect::reply(&message, &answer)));
            }
            Input::Done(Done::Denied(denials)) => self.denied(denials, now, &mut effects),
            Input::Wrote { token, outcome } => self.wrote(token, &outcome, now, &mut effects),
            Input::Done(Done::Changed(asked, change, outcome, facts)) => {
                effects.extend(self.changed(asked, change, outcome, *facts, now));
            }
            Input::Tick => {
                self.give_up_rotations(now, &mut effects);
                if self.current {
                    self.tend(now, &mut effects);
                }
            }
            Input::Delivery(_) | Input::Answered { .. } => {}
        }
        effects
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sha256_hex;
    use bus::module::{Account, Entry};

    fn ask(verb: &str, body: Value) -> Input<Done> {
        Input::Message(Message {
            account: Account::Control,
            subject: subject::local(NAME, verb),
            headers: Default::default(),
            payload: schemas::encode(&body),
            reply: Some("r".into()),
        })
    }

    fn refusal(effects: &[Effect<Act>]) -> Option<String> {
        effects.iter().find_map(|effect| match effect {
            Effect::Reply { payload, .. } => {
                schemas::decode::<Answer>(payload).unwrap().err().map(|r| r.code)
            }
            _ => None,
        })
    }

    fn entry<T: serde::Serialize>(key: &str, revision: u64, value: &T) -> Input<Done> {
        let value = EntryValue::Put(schemas::encode(value));
        Input::Entry(Entry { bucket: "identity".into(), key: key.into(), revision, value })
    }

    fn hub(uses: u32, node: Option<&str>) -> Identity {
        let mut hub = Identity::default();
        let token = TokenRecord {
            id: "t".into(),
            secret_sha256: sha256_hex("s"),
            node: node.map(|node| node.parse().unwrap()),
            uses,
            expires: Timestamp(1_000),
        };
        hub.apply(entry("token.t", 4, &token), Timestamp(0));
        hub.apply(Input::Current { bucket: "identity".into(), filter: "*.*".into() }, Timestamp(0));
        hub
    }

    fn join(secret: &str, node: &str, key: &str) -> Input<Done> {
        ask("enroll", json!({"id": "t", "secret": secret, "node": node, "control_key": key, "work_key": key}))
    }

    #[test]
    fn a_join_uses_the_token_under_compare_and_set_before_anything_is_signed() {
        let mut hub = hub(1, None);
        let effects = hub.apply(join("s", "n1", "K"), Timestamp(5));
        let [Effect::Put { key, expect: Expect::Revision(4), token, .. }] = effects.as_slice() else {
            panic!("{effects:?}")
        };
        assert_eq!(key, "token.t");
        let effects = hub.apply(Input::Wrote { token: *token, outcome: Ok(5) }, Timestamp(5));
        let [Effect::Put { key, expect: Expect::Absent, token, .. }] = effects.as_slice() else { panic!() };
        assert_eq!(key, "node.n1");
        let effects = hub.apply(Input::Wrote { token: *token, outcome: Ok(6) }, Timestamp(5));
        assert!(matches!(effects.as_slice(), [Effect::Act(Act::Sign(..))]));
    }

    #[test]
    fn a_lost_race_signs_nothing() {
        let mut hub = hub(1, None);
        let effects = hub.apply(join("s", "n1", "K"), Timestamp(5));
        let [Effect::Put { token, .. }] = effects.as_slice() else { panic!() };
        let conflict = Input::Wrote { token: *token, outcome: Err(WriteError::Conflict) };
        assert_eq!(refusal(&hub.apply(conflict, Timestamp(5))).as_deref(), Some("EW-BUSY"));
    }

    #[test]
    fn what_is_refused_and_how() {
        for (name, uses, only, input, at, code) in [
            ("wrong secret", 1, None, join("x", "n1", "K"), 5, "EW-JOIN-TOKEN"),
            ("expired", 1, None, join("s", "n1", "K"), 1_000, "EW-JOIN-TOKEN"),
            ("used up", 0, None, join("s", "n1", "K"), 5, "EW-JOIN-TOKEN"),
            ("another node's", 1, Some("n2"), join("s", "n1", "K"), 5, "EW-JOIN-TOKEN"),
            ("the hub's name", 1, None, join("s", "hub", "K"), 5, "EW-NODE-NAME"),
            ("no such verb", 1, None, ask("what", json!({})), 5, "EW-BAD-REQUEST"),
            ("bad name", 1, None, join("s", "A.b", "K"), 5, "EW-BAD-REQUEST"),
            ("no uses", 1, None, ask("token.create", json!({"uses": 0})), 5, "EW-TOKEN-BOUNDS"),
            ("unknown token", 1, None, ask("token.delete", json!({"id": "z"})), 5, "EW-TOKEN-UNKNOWN"),
        ] {
            let effects = hub(uses, only).apply(input, Timestamp(at));
            assert_eq!(refusal(&effects).as_deref(), Some(code), "{name}");
        }
        let early = Identity::default().apply(join("s", "n1", "K"), Timestamp(5));
        assert_eq!(refusal(&early).as_deref(), Some("EW-NOT-READY"));
    }

    #[test]
    fn a_name_belongs_to_its_key() {
        let mut hub = hub(1, None);
        hub.apply(entry("node.n1", 7, &enrolled(None)), Timestamp(0));
        assert_eq!(refusal(&hub.apply(join("s", "n1", "L"), Timestamp(5))).as_deref(), Some("EW-NODE-TAKEN"));
        let again = hub.apply(join("s", "n1", "K"), Timestamp(5));
        assert!(matches!(again.as_slice(), [Effect::Act(Act::Sign(..))]), "the same machine may ask again");
    }

    fn enrolled(revoked: Option<Timestamp>) -> NodeRecord {
        let (control_key, work_key) = ("K".to_owned(), "K".to_owned());
        NodeRecord {
            node: "n1".parse().unwrap(),
            control_key,
            work_key,
            enrolled: Timestamp(0),
            revoked,
            next: None,
            retired: None,
            trusts: vec![],
        }
    }

    #[test]
    fn a_revocation_is_recorded_before_it_is_done_and_done_again_after_a_crash() {
        let mut hub = hub(1, None);
        hub.apply(entry("node.n1", 7, &enrolled(None)), Timestamp(0));
        let effects = hub.apply(ask("node.revoke", json!({"id": "n1"})), Timestamp(9));
        let [Effect::Put { key, value, expect: Expect::Revision(7), token, .. }] = effects.as_slice() else {
            panic!("{effects:?}")
        };
        let record: NodeRecord = schemas::decode(value).unwrap();
        assert_eq!((key.as_str(), record.revoked), ("node.n1", Some(Timestamp(9))));
        let effects = hub.apply(Input::Wrote { token: *token, outcome: Ok(8) }, Timestamp(9));
        assert!(matches!(effects.as_slice(), [Effect::Act(Act::Revoke(Some(_), _))]));

        let mut next_life = Identity::default();
        next_life.apply(entry("node.n1", 8, &record), Timestamp(0));
        let effects =
            next_life.apply(Input::Current { bucket: "identity".into(), filter: "*.*".into() }, Timestamp(0));
        assert_eq!(effects, [Effect::Act(Act::Revoke(None, record))]);
        let unknown = next_life.apply(ask("node.revoke", json!({"id": "n2"})), Timestamp(9));
        assert_eq!(refusal(&unknown).as_deref(), Some("EW-NODE-UNKNOWN"));
    }

    #[test]
    fn revoked_keys_stay_out_and_their_name_is_free_for_others() {
        let mut hub = hub(1, None);
        hub.apply(entry("node.n1", 7, &enrolled(Some(Timestamp(3)))), Timestamp(0));
        let same = hub.apply(join("s", "n1", "K"), Timestamp(5));
        assert_eq!(refusal(&same).as_deref(), Some("EW-NODE-REVOKED"));
        let effects = hub.apply(join("s", "n1", "L"), Timestamp(5));
        let [Effect::Put { key, token, .. }] = effects.as_slice() else { panic!("{effects:?}") };
        assert_eq!(key, "token.t", "a token is used as for any other join");
        let effects = hub.apply(Input::Wrote { token: *token, outcome: Ok(9) }, Timestamp(5));
        let [Effect::Put { key, value, expect: Expect::Revision(7), .. }] = effects.as_slice() else {
            panic!("{effects:?}")
        };
        let record: NodeRecord = schemas::decode(value).unwrap();
        assert_eq!((key.as_str(), record.control_key.as_str(), record.revoked), ("node.n1", "L", None));
    }
}
