//! The hub's authorities and its certificate: when a certificate is made anew, how one authority follows another, and which
//! nodes know it. Pure; files and servers are [`crate::keeper`]'s.
//!
//! A roll has three steps. *Roll*: another authority is made and trusted beside the present one; servers show a certificate by
//! it that the present one vouches for, so that whoever was away gets in. *Telling*: every node is asked what it trusts, told
//! the authorities when they are others, and says so again when its server has them ([`Holding`]). *Finish*: only when every
//! node has said so, or when forced: then the old authority is worth nothing. Nothing of it is kept here: the authorities'
//! files say whether a roll is under way, the nodes' records whom each trusts.

use bus::identity::{AuthorityFacts, CertificateFacts, Tls};
use bus::module::{Account, Effect, Message};
use schemas::Timestamp;
use schemas::audit::AuditRecord;
use schemas::command::Refusal;
use schemas::credential::{Heard, Holding, NodeRecord};
use schemas::subject;
use serde_json::{Value, json};

use crate::decide::{Act, Answer, Effects, Identity, body};
use crate::{NAME, edge};

/// A certificate older than this is made anew, unless it is configured.
pub const RENEW_AFTER_DAYS: u64 = 90;
const DAY_MS: u64 = 24 * 3_600_000;
/// Nodes whose authorities are others than the hub's are asked to say what they hold this often.
const TELL_MS: u64 = 15_000;
/// Names of nodes in a refusal.
const NAMES_MAX: usize = 20;

/// What stands on the hub's disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// The authority.
    pub present: AuthorityFacts,
    /// The one that takes its place, while a roll is under way.
    pub next: Option<AuthorityFacts>,
    /// What the servers show.
    pub certificate: CertificateFacts,
    /// Fingerprint of the authority that signed it.
    pub signer: String,
    /// The authorities (PEM).
    pub ca_pem: String,
    /// Their fingerprints, sorted.
    pub trusted: Vec<String>,
}

impl Facts {
    /// Of these files.
    pub fn of(tls: &Tls) -> Self {
        let Tls { present, next, certificate, fingerprint: signer, ca_pem, .. } = tls.clone();
        let mut trusted: Vec<String> =
            [Some(&present), next.as_ref()].into_iter().flatten().map(|of| of.fingerprint.clone()).collect();
        trusted.sort();
        Self { present, next, certificate, signer, ca_pem, trusted }
    }

    /// Does a node that trusts these know what the hub wants it to, and nothing else?
    fn is_known_to(&self, trusts: &[String]) -> bool {
        let mut trusts = trusts.to_vec();
        trusts.sort();
        self.trusted == trusts
    }
}

/// What changes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Another certificate for the servers.
    Renew,
    /// Another authority beside the present one.
    Roll,
    /// The other one alone.
    Finish,
}

/// What is remembered of them.
#[derive(Debug, Default)]
pub(crate) struct Authorities {
    pub facts: Option<Facts>,
    renew_after_ms: u64,
    /// A change is under way.
    changing: bool,
    renewed_at: Option<Timestamp>,
    told_at: Option<Timestamp>,
    records: u64,
}

/// Is it time for another certificate? One from the future is of a clock that was wrong then or is wrong now.
fn is_due(made: Timestamp, renew_after_ms: u64, now: Timestamp) -> bool {
    now.since_ms(made) > renew_after_ms || made.since_ms(now) > DAY_MS
}

fn not_ready() -> Refusal {
    Refusal::new(503, "EW-NOT-READY", "the hub is starting; try again")
}

impl Identity {
    /// The module, with what stands on disk, and after how long a certificate is made anew.
    pub fn new(facts: Facts, renew_after_ms: u64) -> Self {
        let mut this = Self::default();
        this.authorities = Authorities { facts: Some(facts), renew_after_ms, ..Authorities::default() };
        this
    }

    /// Nodes that may connect and do not know this authority.
    fn without(&self, fingerprint: &str) -> Vec<&NodeRecord> {
        let in_use = self.nodes.values().map(|(node, _)| node).filter(|node| node.revoked.is_none());
        in_use.filter(|node| !node.trusts.iter().any(|known| known == fingerprint)).collect()
    }

    pub(crate) fn list_authorities(&self) -> Result<Value, Refusal> {
        let facts = self.authorities.facts.as_ref().ok_or_else(not_ready)?;
        let in_use = self.nodes.values().filter(|(node, _)| node.revoked.is_none()).count();
        let row = |of: &AuthorityFacts, role: &str| {
            let without: Vec<&str> =
                self.without(&of.fingerprint).iter().map(|node| node.node.as_str()).collect();
            json!({"authority": role, "sha256": of.fingerprint, "made": of.made.map(Timestamp::rfc3339),
                   "nodes": in_use, "unknown_to": without})
        };
        let rows = [Some((&facts.present, "present")), facts.next.as_ref().map(|next| (next, "next"))];
        let rows: Vec<Value> = rows.into_iter().flatten().map(|(of, role)| row(of, role)).collect();
        Ok(json!({"authorities": rows}))
    }

    pub(crate) fn list_certificates(&self) -> Result<Value, Refusal> {
        let facts = self.authorities.facts.as_ref().ok_or_else(not_ready)?;
        let CertificateFacts { fingerprint, sans, made } = &facts.certificate;
        Ok(json!({"certificates": [{
            "ports": ["api", "bus", "leafs"], "names": sans, "sha256": fingerprint, "made": made.rfc3339(),
            "renewed_after": made.plus_ms(self.authorities.renew_after_ms).rfc3339(), "authority": facts.signer,
        }]}))
    }

    /// An operator asks for a change.
    pub(crate) fn change(
        &mut self,
        change: Change,
        message: Message,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let facts = self.authorities.facts.as_ref().ok_or_else(not_ready)?;
        let refused = |status, code: &str, text: String| Err(Refusal::new(status, code, text));
        if self.authorities.changing {
            return refused(409, "EW-BUSY", "another change is under way; try again".to_owned());
        }
        match (change, &facts.next) {
            (Change::Renew, _) | (Change::Roll, None) => {}
            (Change::Roll, Some(_)) => {
                let text = "a roll is under way already: see `edgewire ca ls`, then `edgewire ca finish`";
                return refused(409, "EW-CA-ROLLING", text.to_owned());
            }
            (Change::Finish, None) => {
                let text = "no roll is under way: begin with `edgewire ca roll`";
                return refused(409, "EW-CA-NOT-ROLLING", text.to_owned());
            }
            (Change::Finish, Some(next)) => {
                let body: Value = body(&message)?;
                let forced = body.get("force").and_then(Value::as_bool).unwrap_or(false);
                let without = self.without(&next.fingerprint);
                if !forced && !without.is_empty() {
                    let names: Vec<&str> =
                        without.iter().take(NAMES_MAX).map(|node| node.node.as_str()).collect();
                    let more = without.len().saturating_sub(names.len());
                    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
                    let text = format!(
                        "these nodes do not know the next authority yet: {}{more}; it is told to them when they connect. \
                         Revoke those that will not come back, or finish with `--force`: they then have to join again",
                        names.join(", ")
                    );
                    return refused(409, "EW-CA-UNCONFIRMED", text);
                }
            }
        }
        self.authorities.changing = true;
        effects.push(Effect::Act(Act::Change(Some(message), change)));
        Ok(())
    }

    /// A change is done, or was not: how the files stand now.
    pub(crate) fn changed(
        &mut self,
        asked: Option<Message>,
        change: Change,
        outcome: Result<(), Refusal>,
        facts: Facts,
        now: Timestamp,
    ) -> Effects {
        self.authorities.changing = false;
        self.authorities.told_at = None;
        let fingerprint = facts.certificate.fingerprint.clone();
        self.authorities.facts = Some(facts);
        let Some(message) = asked else {
            // By itself: who asked is told and recorded by the API.
            self.authorities.records += 1;
            let (code, detail) = match outcome {
                Ok(()) => (200, format!("by age; its SHA-256 is {fingerprint}")),
                Err(refusal) => (refusal.status, refusal.message),
            };
            let record = AuditRecord {
                id: format!("hub-{NAME}-{}-{}", now.0, self.authorities.records),
                at: now,
                node: subject::DOMAIN_HUB.to_owned(),
                user: NAME.to_owned(),
                verb: "certificate.renew".to_owned(),
                object: "certificate".to_owned(),
                code,
                count: 1,
                detail: schemas::audit::text(&detail),
            };
            let (subject, headers) = bus::audit::addressed(&record, NAME);
            return vec![Effect::Report { subject, headers, payload: schemas::encode(&record) }];
        };
        let said = match change {
            Change::Renew => self.list_certificates(),
            Change::Roll | Change::Finish => self.list_authorities(),
        };
        let answer: Answer = outcome.and(said);
        Effect::reply(&message, &answer).into_iter().collect()
    }

    /// Time passed: a certificate may be old, and nodes may not have been told.
    pub(crate) fn tend(&mut self, now: Timestamp, effects: &mut Effects) {
        let Some(facts) = self.authorities.facts.clone() else { return };
        // By the age of the last try too: whatever a clock that jumped says, once a day at most while it stands.
        let tried = self.authorities.renewed_at;
        let rested = tried.is_none_or(|at| now.since_ms(at).max(at.since_ms(now)) > DAY_MS);
        if is_due(facts.certificate.made, self.authorities.renew_after_ms, now)
            && rested
            && !self.authorities.changing
        {
            self.authorities.renewed_at = Some(now);
            self.authorities.changing = true;
            effects.push(Effect::Act(Act::Change(None, Change::Renew)));
        }
        let told = self.authorities.told_at;
        if told.is_some_and(|at| now.since_ms(at).max(at.since_ms(now)) < TELL_MS) {
            return;
        }
        self.authorities.told_at = Some(now);
        let nodes = self.nodes.values().map(|(node, _)| node);
        for node in nodes.filter(|node| node.revoked.is_none() && !facts.is_known_to(&node.trusts)) {
            effects.push(Effect::Publish {
                account: Account::Control,
                subject: subject::command(&node.node, edge::NAME, "say"),
                headers: Default::default(),
                payload: Vec::new(),
            });
        }
    }

    /// What a node is answered that said what it holds: the authorities, when it trusts others. One that does not tell whom it
    /// trusts could not take them.
    pub(crate) fn heard(&self, holding: &Holding) -> Heard {
        let other = |facts: &&Facts| holding.trusts.as_ref().is_some_and(|trusts| !facts.is_known_to(trusts));
        Heard { ca_pem: self.authorities.facts.as_ref().filter(other).map(|facts| facts.ca_pem.clone()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::Done;
    use bus::identity::fingerprints;
    use bus::module::{Entry, EntryValue, Input, Module};
    use std::collections::BTreeSet;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn pem(name: &str) -> String {
        format!("-----BEGIN CERTIFICATE-----\n{name}\n-----END CERTIFICATE-----\n")
    }

    fn print(name: &str) -> String {
        fingerprints(&pem(name)).unwrap().remove(0)
    }

    fn facts(all: &[&str], made: Timestamp) -> Facts {
        let authority = |name: &&str| AuthorityFacts { fingerprint: print(name), made: Some(NOW) };
        let certificate = CertificateFacts { fingerprint: "c".into(), sans: vec!["hub.test".into()], made };
        Facts {
            present: authority(&all[0]),
            next: all.get(1).map(authority),
            certificate,
            signer: print(all.last().unwrap()),
            ca_pem: all.iter().map(|name| pem(name)).collect(),
            trusted: BTreeSet::from_iter(all.iter().map(|name| print(name))).into_iter().collect(),
        }
    }

    /// A hub with these authorities and nodes: name, what each trusts, whether it was revoked.
    fn hub(all: &[&str], nodes: &[(&str, &[&str], bool)]) -> Identity {
        let mut hub = Identity::new(facts(all, NOW), RENEW_AFTER_DAYS * DAY_MS);
        for (revision, (name, trusts, revoked)) in nodes.iter().enumerate() {
            let record = NodeRecord {
                node: name.parse().unwrap(),
                control_key: "C".into(),
                work_key: "W".into(),
                enrolled: NOW,
                revoked: revoked.then_some(NOW),
                next: None,
                retired: None,
                trusts: trusts.iter().map(|name| print(name)).collect(),
            };
            let value = EntryValue::Put(schemas::encode(&record));
            let (bucket, key) = ("identity".to_owned(), format!("node.{name}"));
            hub.apply(Input::Entry(Entry { bucket, key, revision: revision as u64 + 1, value }), NOW);
        }
        hub.apply(Input::Current { bucket: "identity".into(), filter: "*.*".into() }, NOW);
        hub
    }

    fn message(subject: String, body: Value) -> Message {
        let (headers, payload) = (Default::default(), schemas::encode(&body));
        Message { account: Account::Control, subject, headers, payload, reply: Some("r".into()) }
    }

    fn ask(hub: &mut Identity, verb: &str, body: Value) -> Effects {
        hub.apply(Input::Message(message(subject::local(NAME, verb), body)), NOW)
    }

    fn answer(effects: &Effects) -> Option<Answer> {
        effects.iter().find_map(|effect| match effect {
            Effect::Reply { payload, .. } => Some(schemas::decode(payload).unwrap()),
            _ => None,
        })
    }

    fn change(effects: &Effects) -> Option<Change> {
        effects.iter().find_map(|effect| match effect {
            Effect::Act(Act::Change(_, change)) => Some(*change),
            _ => None,
        })
    }

    #[test]
    fn a_roll_is_finished_when_every_node_knows_the_next_authority_or_when_forced() {
        let (none, force) = (json!({}), json!({"force": true}));
        type Nodes<'a> = &'a [(&'a str, &'a [&'a str], bool)];
        let told: Nodes = &[("a", &["old0", "new0"], false), ("b", &["new0"], false)];
        let away: Nodes = &[("a", &["old0", "new0"], false), ("b", &["old0"], false), ("c", &[], false)];
        let shut_out: Nodes = &[("a", &["old0", "new0"], false), ("b", &["old0"], true)];
        for (name, all, nodes, verb, body, want) in [
            ("begin", &["old0"][..], told, "ca.roll", &none, Ok(Change::Roll)),
            ("begin twice", &["old0", "new0"], told, "ca.roll", &none, Err("EW-CA-ROLLING")),
            ("nothing to finish", &["old0"], told, "ca.finish", &force, Err("EW-CA-NOT-ROLLING")),
            ("all know it", &["old0", "new0"], told, "ca.finish", &none, Ok(Change::Finish)),
            ("two do not", &["old0", "new0"], away, "ca.finish", &none, Err("EW-CA-UNCONFIRMED")),
            ("forced", &["old0", "new0"], away, "ca.finish", &force, Ok(Change::Finish)),
            (
                "not waited for who is out",
                &["old0", "new0"],
                shut_out,
                "ca.finish",
                &none,
                Ok(Change::Finish),
            ),
            ("renew at any time", &["old0", "new0"], away, "certificate.renew", &none, Ok(Change::Renew)),
        ] {
            let mut hub = hub(all, nodes);
            let effects = ask(&mut hub, verb, body.clone());
            let code = answer(&effects).and_then(Result::err).map(|refusal| refusal.code);
            assert_eq!((change(&effects), code.as_deref()), (want.ok(), want.err()), "{name}");
            if want.is_ok() {
                let again = answer(&ask(&mut hub, verb, body.clone())).unwrap().unwrap_err();
                assert_eq!(again.code, "EW-BUSY", "{name}: one change at a time");
            }
        }
        let refused =
            answer(&ask(&mut hub(&["old0", "new0"], away), "ca.finish", none)).unwrap().unwrap_err();
        assert!(
            refused.message.contains("b, c;") || refused.message.contains("b, c."),
            "{}",
            refused.message
        );
    }

    #[test]
    fn nodes_that_trust_others_are_asked_until_they_say_the_same() {
        let nodes: &[(&str, &[&str], bool)] =
            &[("a", &["new0", "old0"], false), ("b", &["old0"], false), ("c", &[], false), ("d", &[], true)];
        let mut hub = hub(&["old0", "new0"], nodes);
        let asked = |hub: &mut Identity, at: Timestamp| -> Vec<String> {
            let effects = hub.apply(Input::Tick, at);
            effects
                .into_iter()
                .filter_map(|effect| match effect {
                    Effect::Publish { subject, .. } => Some(subject),
                    _ => None,
                })
                .collect()
        };
        let both = ["ew.cmd.b.membership.say", "ew.cmd.c.membership.say"];
        assert_eq!(asked(&mut hub, NOW), both);
        assert!(asked(&mut hub, NOW.plus_ms(TELL_MS - 1)).is_empty());
        assert_eq!(asked(&mut hub, NOW.plus_ms(TELL_MS)), both);
        assert_eq!(asked(&mut hub, Timestamp(0)), both, "a clock that went back stops nothing");
        // Who says that it trusts others is told the hub's, and recorded as it said.
        let say = |trusts: Option<Vec<String>>| {
            let body = json!({"control_key": "C", "work_key": "W", "trusts": trusts});
            Input::Message(message("ew.req.b.identity.holding".into(), body))
        };
        let heard =
            |answer: Option<Answer>| -> Heard { serde_json::from_value(answer.unwrap().unwrap()).unwrap() };
        let whole = Some(pem("old0") + &pem("new0"));
        let same = heard(answer(&hub.apply(say(Some(vec![print("old0")])), NOW)));
        assert_eq!(same.ca_pem, whole);
        let effects = hub.apply(say(Some(vec![print("old0"), print("new0")])), NOW);
        let [Effect::Put { value, token, .. }] = effects.as_slice() else { panic!("{effects:?}") };
        let record: NodeRecord = schemas::decode(value).unwrap();
        assert_eq!(record.trusts, [print("old0"), print("new0")]);
        let effects = hub.apply(Input::Wrote { token: *token, outcome: Ok(9) }, NOW);
        assert_eq!(heard(answer(&effects)).ca_pem, None, "it is right, and nothing is to be told");
        let effects = hub.apply(say(None), NOW);
        assert_eq!(heard(answer(&effects)).ca_pem, None, "one that does not tell could not take it");
    }

    #[test]
    fn a_certificate_is_renewed_by_age_and_a_wrong_clock_does_it_once_a_day_at_most() {
        let after = RENEW_AFTER_DAYS * DAY_MS;
        let at = |days: i64| Timestamp(NOW.0 + days * DAY_MS as i64);
        for (name, made, now, want) in [
            ("new", NOW, NOW, false),
            ("89 days", NOW, at(89), false),
            ("91 days", NOW, at(91), true),
            ("made an hour ahead", NOW.plus_ms(3_600_000), NOW, false),
            ("made in years to come: that clock was wrong, or this one", at(1_800), NOW, true),
            ("a hub in 1970", NOW, Timestamp(0), true),
        ] {
            assert_eq!(is_due(made, after, now), want, "{name}");
        }
        let mut hub = hub(&["old0"], &[]);
        let mut renewed = 0;
        for hour in 0..3 * 24 {
            let now = at(1_800).plus_ms(hour * 3_600_000);
            let effects = hub.apply(Input::Tick, now);
            if change(&effects) == Some(Change::Renew) {
                renewed += 1;
                // However new it is, this clock finds it old.
                let stands = Box::new(facts(&["old0"], NOW));
                let done = hub.apply(Input::Done(Done::Changed(None, Change::Renew, Ok(()), stands)), now);
                let [Effect::Report { subject, .. }] = done.as_slice() else { panic!("{done:?}") };
                assert!(subject.contains("audit"), "what nobody asked for is on record: {subject}");
            }
        }
        assert_eq!(renewed, 3);
    }
}
