//! Nodes: how one is enrolled, listed, and shut out. Pure.
//!
//! A node's name belongs to its keys from the first enrolment on. Revoking shuts those keys out for good, and frees the name
//! for a machine with new ones: the pods that the name stands for are waiting for it.

use bus::module::{Effect, Expect, Message};
use schemas::Timestamp;
use schemas::command::Refusal;
use schemas::credential::{Enroll, NodeRecord};
use schemas::subject;
use serde_json::{Value, json};

use crate::decide::{Act, Effects, Identity, Waiting, body};
use crate::sha256_hex;

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
                   "revoked": node.revoked.map(Timestamp::rfc3339)})
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

    /// What is recorded as revoked is shut out, whatever died in between.
    pub(crate) fn revoke_again(&self, effects: &mut Effects) {
        let revoked = self.nodes.values().filter(|(node, _)| node.revoked.is_some());
        effects.extend(revoked.map(|(node, _)| Effect::Act(Act::Revoke(None, node.clone()))));
    }
}
