//! Nodes: how one is enrolled, listed, and shut out. Pure.
//!
//! A node's name belongs to its keys from the first enrolment on. Revoking shuts those keys out for good, and frees the name
//! for a machine with new ones: the pods that the name stands for are waiting for it.

use bus::module::{Account, Effect, Expect, Message};
use schemas::Timestamp;
use schemas::audit::AuditRecord;
use schemas::command::Refusal;
use schemas::credential::{Enroll, Holding, NodeRecord};
use schemas::name::NodeName;
use schemas::subject;
use serde_json::{Value, json};

use crate::decide::{Act, Answer, Effects, Identity, Waiting, body};
use crate::{NAME, edge, sha256_hex};

/// A node that was told to renew its keys has so long.
const ROTATION_TIMEOUT_MS: u64 = 8_000;

impl Identity {
    pub(crate) fn enroll(
        &mut self,
        message: Message,
        now: Timestamp,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
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
        match self.nodes.get(enroll.node.as_str()) {
            Some((node, _)) if node.revoked.is_some() && node.has_key(&enroll) => {
                let text = format!(
                    "the keys of node {} were revoked; if this machine may come back, join with `--new-keys`",
                    enroll.node
                );
                return Err(Refusal::new(403, "EW-NODE-REVOKED", text));
            }
            Some((node, _)) if node.revoked.is_some() => {}
            Some((node, _)) if node.control_key == enroll.control_key && node.work_key == enroll.work_key => {
                // The same machine again: its answer was lost.
                effects.push(Effect::Act(Act::Sign(message, Box::new(enroll))));
                return Ok(());
            }
            Some(_) => {
                let text = format!(
                    "node name {} belongs to another machine's key; choose another name with --name, or first shut that machine out: `edgewire node revoke {}`",
                    enroll.node, enroll.node
                );
                return Err(Refusal::new(409, "EW-NODE-TAKEN", text));
            }
            None => {}
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

    /// The token is used; now the name is taken.
    pub(crate) fn enter(
        &mut self,
        message: Message,
        enroll: Box<Enroll>,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        let record = NodeRecord {
            node: enroll.node.clone(),
            control_key: enroll.control_key.clone(),
            work_key: enroll.work_key.clone(),
            enrolled: now,
            revoked: None,
            next: None,
            retired: None,
            trusts: Vec::new(),
        };
        let expect = match self.nodes.get(enroll.node.as_str()) {
            Some((node, revision)) if node.revoked.is_some() => Expect::Revision(*revision),
            _ => Expect::Absent,
        };
        let key = format!("node.{}", enroll.node);
        self.put(key, schemas::encode(&record), expect, Waiting::NodeOf(message, enroll), effects);
    }

    pub(crate) fn list_nodes(&self) -> Value {
        let rows = self.nodes.values().map(|(node, _)| {
            json!({"node": node.node, "enrolled": node.enrolled.rfc3339(),
                   "revoked": node.revoked.map(Timestamp::rfc3339), "trusts": node.trusts})
        });
        json!({"nodes": rows.collect::<Vec<_>>()})
    }

    /// Recorded first, shut out then: a hub that dies in between shuts out at its next start ([`Self::revoke_again`]).
    pub(crate) fn revoke_node(
        &mut self,
        message: Message,
        now: Timestamp,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let body: Value = body(&message)?;
        let name = body.get("id").and_then(Value::as_str).unwrap_or("");
        let Some((record, revision)) = self.nodes.get(name) else {
            let text = format!("no node {name:?} has joined; `edgewire node ls` lists those that have");
            return Err(Refusal::new(404, "EW-NODE-UNKNOWN", text));
        };
        let (mut record, revision) = (record.clone(), *revision);
        if record.revoked.is_some() {
            effects.push(Effect::Act(Act::Revoke(Some(message), record)));
            return Ok(());
        }
        record.revoked = Some(now);
        let key = format!("node.{name}");
        let value = schemas::encode(&record);
        self.put(key, value, Expect::Revision(revision), Waiting::Revoked(message, record), effects);
        Ok(())
    }

    /// What is recorded as revoked or retired is shut out, whatever died in between.
    pub(crate) fn revoke_again(&self, effects: &mut Effects) {
        for (node, _) in self.nodes.values() {
            if node.revoked.is_some() {
                effects.push(Effect::Act(Act::Revoke(None, node.clone())));
            }
            if node.retired.is_some() {
                effects.push(Effect::Act(Act::Retire(None, Box::new(node.clone()))));
            }
        }
    }

    /// Tells a node to renew its keys. Answered when it holds the new ones and the old ones are shut out.
    pub(crate) fn rotate_node(
        &mut self,
        message: Message,
        now: Timestamp,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let body: Value = body(&message)?;
        let name = body.get("id").and_then(Value::as_str).unwrap_or("");
        let known = self.nodes.get(name).filter(|(node, _)| node.revoked.is_none());
        let Some((record, _)) = known else {
            let text = format!("no node {name:?} has joined; `edgewire node ls` lists those that have");
            return Err(Refusal::new(404, "EW-NODE-UNKNOWN", text));
        };
        if self.rotating.contains_key(name) {
            return Err(Refusal::new(409, "EW-BUSY", format!("node {name} is renewing its keys already")));
        }
        effects.push(Effect::Publish {
            account: Account::Control,
            subject: subject::command(&record.node, edge::NAME, "renew"),
            headers: Default::default(),
            payload: Vec::new(),
        });
        self.rotating.insert(name.to_owned(), (message, now.plus_ms(ROTATION_TIMEOUT_MS)));
        Ok(())
    }

    pub(crate) fn give_up_rotations(&mut self, now: Timestamp, effects: &mut Effects) {
        self.rotating.retain(|name, (message, until)| {
            if *until > now {
                return true;
            }
            let text = format!("node {name} did not renew its keys in time; is it connected (`edgewire nodes`)? it may still do so");
            let refusal: Answer = Err(Refusal::new(504, "EW-NODE-UNREACHABLE", text));
            effects.extend(Effect::reply(message, &refusal));
            false
        });
    }

    /// A node's own question. Its name stands in the subject, and only it may ask there.
    pub(crate) fn asked_by_node(
        &mut self,
        node: &NodeName,
        verb: &str,
        message: Message,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let holding: Holding = body(&message)?;
        let keys = holding.keys.clone();
        let known = self.nodes.get(node.as_str()).filter(|(node, _)| node.revoked.is_none());
        let Some((record, revision)) = known else {
            return Err(Refusal::new(404, "EW-NODE-UNKNOWN", format!("node {node} has not joined")));
        };
        let (mut record, expect) = (record.clone(), Expect::Revision(*revision));
        let (own, next) = (record.keys() == keys, record.next.as_ref() == Some(&keys));
        let key = format!("node.{node}");
        match verb {
            "renew" => {
                let (node, control_key, work_key) =
                    (node.clone(), keys.control_key.clone(), keys.work_key.clone());
                let enroll = Box::new(Enroll {
                    id: String::new(),
                    secret: String::new(),
                    node,
                    control_key,
                    work_key,
                });
                if own || next {
                    effects.push(Effect::Act(Act::Sign(message, enroll)));
                } else {
                    record.next = Some(keys);
                    self.put(
                        key,
                        schemas::encode(&record),
                        expect,
                        Waiting::NodeOf(message, enroll),
                        effects,
                    );
                }
            }
            "holding" if own || next => {
                let heard = self.heard(&holding);
                let same = own && holding.trusts.as_ref().is_none_or(|trusts| *trusts == record.trusts);
                record.trusts = holding.trusts.unwrap_or(record.trusts);
                if same {
                    effects.extend(Effect::reply(&message, &Answer::Ok(json!(heard))));
                } else if own {
                    let waiting = Waiting::Answer(message, json!(heard));
                    self.put(key, schemas::encode(&record), expect, waiting, effects);
                } else {
                    record.retired = Some(record.keys());
                    record.next = None;
                    (record.control_key, record.work_key) = (keys.control_key, keys.work_key);
                    let value = schemas::encode(&record);
                    self.put(
                        key,
                        value,
                        expect,
                        Waiting::Promoted(message, Box::new(record), heard),
                        effects,
                    );
                }
            }
            "holding" => {
                let text = "these keys are neither the node's own nor its next ones; renew them";
                return Err(Refusal::new(409, "EW-NODE-KEYS", text));
            }
            other => return Err(Refusal::new(404, "EW-BAD-REQUEST", format!("no verb {other:?}"))),
        }
        Ok(())
    }

    /// The old keys are out: who waited for it is told.
    pub(crate) fn retired(&mut self, record: &NodeRecord, effects: &mut Effects) {
        if let Some((message, _)) = self.rotating.remove(record.node.as_str()) {
            let answer: Answer = Ok(json!({"node": record.node, "control_key": record.control_key}));
            effects.extend(Effect::reply(&message, &answer));
        }
    }
}

/// A node's keys are others now: on record whoever wanted it, because a thief of the old ones can do it too.
pub(crate) fn renewed(record: &NodeRecord, now: Timestamp) -> Effect<Act> {
    let audit = AuditRecord {
        id: format!("hub-{NAME}-{}-{}", record.node, record.control_key),
        at: now,
        node: subject::DOMAIN_HUB.to_owned(),
        user: record.node.to_string(),
        verb: "node.renew".to_owned(),
        object: format!("nodes/{}", record.node),
        code: 200,
        count: 1,
        detail: format!("its keys are {} and {} now", record.control_key, record.work_key),
    };
    let (subject, headers) = bus::audit::addressed(&audit, NAME);
    Effect::Report { subject, headers, payload: schemas::encode(&audit) }
}

/// Who asks what, of a question of a node's own.
pub(crate) fn asked_by(subject: &str) -> Option<(NodeName, String)> {
    let (node, rest) = subject.strip_prefix("ew.req.")?.split_once('.')?;
    Some((NodeName::new(node).ok()?, rest.strip_prefix("identity.")?.to_owned()))
}
