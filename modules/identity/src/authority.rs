//! The hub's authorities and its certificate: when a certificate is made anew, how one authority follows another, and which
//! nodes know it. Pure; files and servers are [`crate::keeper`]'s.
//!
//! A roll has three steps. *Roll*: another authority is made and trusted beside the present one; servers show a certificate by
//! it that the present one vouches for, so that whoever was away gets in. *Telling*: every node is asked what it trusts, told
//! the authorities when they are others, and says so again when its server has them ([`Holding`]). *Finish*: only when every
//! node has said so, or when forced: then the old authority is worth nothing. Nothing of it is kept here: the authorities'
//! files say whether a roll is under way, the nodes' records whom each trusts.

use bus::identity::{AuthorityFacts, CertificateFacts, Tls, fingerprints};
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
    /// The authorities (PEM).
    pub ca_pem: String,
}

impl Facts {
    /// Of these files.
    pub fn of(tls: &Tls) -> Self {
        let Tls { present, next, certificate, ca_pem, .. } = tls.clone();
        Self { present, next, certificate, ca_pem }
    }

    /// Does a node that trusts these know what the hub wants it to, and nothing else?
    fn is_known_to(&self, trusts: &[String]) -> bool {
        let mut wanted = fingerprints(&self.ca_pem).unwrap_or_default();
        let mut trusts = trusts.to_vec();
        wanted.sort();
        trusts.sort();
        wanted == trusts
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
        let by = facts.next.as_ref().map_or(&facts.present, |next| next);
        Ok(json!({"certificates": [{
            "ports": ["api", "bus", "leafs"], "names": sans, "sha256": fingerprint, "made": made.rfc3339(),
            "renewed_after": made.plus_ms(self.authorities.renew_after_ms).rfc3339(), "authority": by.fingerprint,
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
