//! What is granted and what is refused. Pure.

use std::collections::BTreeMap;

use bus::module::{Effect, EntryValue, Expect, Input, Message, Module, WriteError};
use schemas::Timestamp;
use schemas::command::{Refusal, Reply};
use schemas::credential::{Enroll, NewToken, NodeRecord, TokenRecord};
use schemas::subject;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{NAME, sha256_hex};

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
}

/// What the rim tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    /// A token with its secret's hash, and what its maker is told once it is stored.
    Token(Message, TokenRecord, Value),
    /// Answer this.
    Answer(Message, Answer),
}

/// What waits for a write.
#[derive(Debug)]
enum Waiting {
    Answer(Message, Value),
    UseOf(Message, Box<Enroll>),
    NodeOf(Message, Box<Enroll>),
}

/// The module.
#[derive(Default)]
pub struct Identity {
    tokens: BTreeMap<String, (TokenRecord, u64)>,
    nodes: BTreeMap<String, (NodeRecord, u64)>,
    current: bool,
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
}

type Effects = Vec<Effect<Act>>;

fn refuse(status: u16, code: &str, message: impl Into<String>) -> Answer {
    Err(Refusal::new(status, code, message))
}

fn body<T: DeserializeOwned>(message: &Message) -> Result<T, Refusal> {
    let bad =
        |error: &dyn std::fmt::Display| Refusal::new(400, "EW-BAD-REQUEST", format!("request body: {error}"));
    let value: Value = schemas::decode(&message.payload).map_err(|error| bad(&error))?;
    serde_json::from_value(value).map_err(|error| bad(&error))
}

impl Identity {
    fn put(&mut self, key: String, value: Vec<u8>, expect: Expect, waiting: Waiting, effects: &mut Effects) {
        self.next += 1;
        self.waiting.insert(self.next, waiting);
        effects.push(Effect::put(subject::BUCKET_IDENTITY, key, value, expect, self.next));
    }

    fn request(&mut self, message: Message, now: Timestamp, effects: &mut Effects) -> Result<(), Refusal> {
        let verb = message.subject.strip_prefix(&subject::local(NAME, "")).unwrap_or_default().to_owned();
        if !self.current {
            return Err(Refusal::new(503, "EW-NOT-READY", "the hub is starting; try again"));
        }
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
            "bus" => effects.push(Effect::Act(Act::Bus(message))),
            other => return Err(Refusal::new(404, "EW-BAD-REQUEST", format!("no verb {other:?}"))),
        }
        Ok(())
    }

    fn enroll(&mut self, message: Message, now: Timestamp, effects: &mut Effects) -> Result<(), Refusal> {
        let enroll: Enroll = body(&message)?;
        let refused = |text: String| Err(Refusal::new(401, "EW-JOIN-TOKEN", text));
        // One answer for unknown and wrong: nobody learns which tokens there are.
        let known = self
            .tokens
            .get(&enroll.id)
            .filter(|(token, _)| token.secret_sha256.as_bytes() == sha256_hex(&enroll.secret).as_bytes());
        let Some((token, revision)) = known else {
            return refused("the token is not valid; make a new one with `edgewire token create`".to_owned());
        };
        if token.expires <= now {
            let when = token.expires.rfc3339();
            return refused(format!(
                "the token expired at {when}; make a new one with `edgewire token create`"
            ));
        }
        if let Some(node) = token.node.as_ref().filter(|node| **node != enroll.node) {
            return refused(format!("the token is for node {node}, not {}", enroll.node));
        }
        if enroll.node.as_str() == subject::DOMAIN_HUB {
            return Err(Refusal::new(400, "EW-NODE-NAME", "\"hub\" is the hub's own name; choose another"));
        }
        let (mut token, revision) = (token.clone(), *revision);
        if let Some((node, _)) = self.nodes.get(enroll.node.as_str()) {
            if node.control_key != enroll.control_key || node.work_key != enroll.work_key {
                let text = format!(
                    "node name {} belongs to another machine's key; choose another name with --name",
                    enroll.node
                );
                return Err(Refusal::new(409, "EW-NODE-TAKEN", text));
            }
            // The same machine again: its answer was lost.
            effects.push(Effect::Act(Act::Sign(message, Box::new(enroll))));
            return Ok(());
        }
        if token.uses == 0 {
            return refused(
                "the token was used already; make a new one with `edgewire token create`".to_owned(),
            );
        }
        token.uses -= 1;
        let key = format!("token.{}", token.id);
        let waiting = Waiting::UseOf(message, Box::new(enroll));
        self.put(key, schemas::encode(&token), Expect::Revision(revision), waiting, effects);
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
            (Waiting::UseOf(message, enroll), Ok(_)) => {
                let record = NodeRecord {
                    node: enroll.node.clone(),
                    control_key: enroll.control_key.clone(),
                    work_key: enroll.work_key.clone(),
                    enrolled: now,
                };
                let key = format!("node.{}", enroll.node);
                let waiting = Waiting::NodeOf(message, enroll);
                self.put(key, schemas::encode(&record), Expect::Absent, waiting, effects);
            }
            (Waiting::NodeOf(message, enroll), Ok(_)) => {
                effects.push(Effect::Act(Act::Sign(message, enroll)))
            }
            (
                Waiting::Answer(message, _) | Waiting::UseOf(message, _) | Waiting::NodeOf(message, _),
                Err(_),
            ) => effects.extend(Effect::reply(&message, &busy())),
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
                if let Ok(node) = schemas::decode(&bytes) {
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
            Input::Current { .. } => self.current = true,
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
            Input::Wrote { token, outcome } => self.wrote(token, &outcome, now, &mut effects),
            Input::Delivery(_) | Input::Answered { .. } | Input::Tick => {}
        }
        effects
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let record = NodeRecord {
            node: "n1".parse().unwrap(),
            control_key: "K".into(),
            work_key: "K".into(),
            enrolled: Timestamp(0),
        };
        hub.apply(entry("node.n1", 7, &record), Timestamp(0));
        assert_eq!(refusal(&hub.apply(join("s", "n1", "L"), Timestamp(5))).as_deref(), Some("EW-NODE-TAKEN"));
        let again = hub.apply(join("s", "n1", "K"), Timestamp(5));
        assert!(matches!(again.as_slice(), [Effect::Act(Act::Sign(..))]), "the same machine may ask again");
    }
}
