//! Who may join and who may look: join tokens, enrolment of nodes, the hub's authorities, and the operator's own credential
//! for the bus.
//!
//! In: `ew.local.identity.<verb>` ([`VERBS`]), asked by `api`, body and answer as the HTTP
//! API has them. State: bucket `identity` (`token.<id>`, `node.<name>`), written under compare-and-set, so that a token is
//! never used more often than it may be, whatever happens at once. Secrets are kept as hashes; nodes' keys never come here.
//!
//! * [`decide`] the module and its tokens; [`nodes`] enrolling and revoking; [`authority`] authorities and certificates; this
//!   file: its rim, which signs; [`keeper`] the certificates' files and who hears of a change
//! * [`edge`] the node's end

pub mod authority;
pub mod decide;
pub mod edge;
pub mod keeper;
mod nodes;

use std::sync::Arc;

use base64::Engine;
use bus::connection::Handles;
use bus::flow::Flow;
use bus::identity::{HubKeys, Permissions, node_permissions};
use bus::module::{Account, Rim};
use bus::server::HubServer;
use schemas::command::Refusal;
use schemas::credential::{Enrolled, JoinToken, NodeKeys, TokenRecord};
use schemas::name::NodeName;
use schemas::subject;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use decide::{Act, Answer, Done, Identity};
use keeper::Keeper;

/// Name of the module.
pub const NAME: &str = "identity";
/// The verbs it answers.
pub const VERBS: [&str; 13] = [
    "enroll",
    "token.create",
    "token.list",
    "token.delete",
    "node.list",
    "node.revoke",
    "node.rotate",
    "ca.list",
    "ca.roll",
    "ca.finish",
    "certificate.list",
    "certificate.renew",
    "bus",
];

/// All that the module reads and writes.
pub fn flows() -> Vec<Flow> {
    let mut flows: Vec<Flow> =
        VERBS.iter().map(|verb| Flow::respond(subject::local(NAME, verb), "JSON -> Reply<JSON>")).collect();
    flows.push(Flow::watch(subject::BUCKET_IDENTITY, "*.*", "TokenRecord, NodeRecord"));
    flows.push(Flow::write(subject::BUCKET_IDENTITY, "*.*", "TokenRecord, NodeRecord"));
    flows.push(Flow::report(subject::audit_filter(false), "AuditRecord"));
    flows.push(Flow::report(subject::audit_filter(true), "AuditRecord"));
    flows.push(Flow::respond("ew.req.*.identity.renew", "NodeKeys -> Reply<Enrolled>"));
    flows.push(Flow::respond("ew.req.*.identity.holding", "Holding -> Reply<Heard>"));
    flows.push(Flow::publish(format!("ew.cmd.*.{}.renew", edge::NAME), "()"));
    flows.push(Flow::publish(format!("ew.cmd.*.{}.say", edge::NAME), "()"));
    flows
}

/// Where others reach this hub.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// `https://host:port` of the API.
    pub api: Vec<String>,
    /// `tls://host:port` and `wss://host:port` for leafs.
    pub leafs: Vec<String>,
    /// `tls://host:port` for tools.
    pub bus: String,
}

/// The rim: keys and randomness.
pub struct IdentityRim {
    /// The hub's keys.
    pub keys: Arc<HubKeys>,
    /// The hub's server, which ends the connections of what is revoked.
    pub server: Arc<HubServer>,
    /// The hub's authorities and certificate.
    pub keeper: Arc<Keeper>,
    /// Where others reach this hub.
    pub addresses: Addresses,
}

/// Hex of SHA-256.
pub fn sha256_hex(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn random_hex(bytes: usize) -> Result<String, Refusal> {
    let mut buffer = vec![0u8; bytes];
    getrandom::fill(&mut buffer)
        .map_err(|error| Refusal::new(500, "EW-RANDOM", format!("no randomness: {error}")))?;
    Ok(buffer.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn signing(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(500, "EW-SIGNING", format!("the hub cannot sign: {error}"))
}

impl IdentityRim {
    /// Makes the secret, and the string that holds it; the record holds its hash.
    fn token(&self, mut record: TokenRecord) -> Result<(TokenRecord, Value), Refusal> {
        let secret = random_hex(20)?;
        record.id = random_hex(5)?;
        record.secret_sha256 = sha256_hex(&secret);
        let token = JoinToken {
            hubs: self.addresses.api.clone(),
            ca_sha256: self.keeper.tls().fingerprint,
            id: record.id.clone(),
            secret,
            leafs: self.addresses.leafs.clone(),
        };
        let json = serde_json::to_vec(&token).map_err(signing)?;
        let text = format!("ew1.{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json));
        let answer = json!({
            "token": text, "id": record.id, "expires": record.expires.rfc3339(), "uses": record.uses, "node": record.node,
        });
        Ok((record, answer))
    }

    fn enrolled(&self, enroll: &schemas::credential::Enroll) -> Result<Value, Refusal> {
        // The name may be another one, or the record be long replaced: a key that was revoked once stays out.
        let revoked = self.keys.is_revoked(Account::Control, &enroll.control_key)
            || self.keys.is_revoked(Account::Work, &enroll.work_key);
        if revoked {
            let text = "this machine's keys were revoked; if it may come back, join with `--new-keys`";
            return Err(Refusal::new(403, "EW-NODE-REVOKED", text));
        }
        let (control, work) = node_permissions(&enroll.node);
        let sign = |account, key: &str, permissions: &Permissions| {
            self.keys.user(account, key, enroll.node.as_str(), permissions, None).map_err(|error| {
                Refusal::new(400, "EW-ENROLL-KEY", format!("the node's key is refused: {error}"))
            })
        };
        let (wss_urls, leaf_urls) =
            self.addresses.leafs.iter().cloned().partition(|url| url.starts_with("wss://"));
        let enrolled = Enrolled {
            control_jwt: sign(Account::Control, &enroll.control_key, &control)?,
            work_jwt: sign(Account::Work, &enroll.work_key, &work)?,
            leaf_urls,
            wss_urls,
            ca_pem: self.keeper.tls().ca_pem,
        };
        serde_json::to_value(enrolled).map_err(signing)
    }

    async fn revoke(&self, keys: &NodeKeys) -> Result<(), Refusal> {
        for (account, key) in [(Account::Control, &keys.control_key), (Account::Work, &keys.work_key)] {
            self.server.revoke(account, key).await.map_err(|error| {
                let text =
                    format!("{error}; the revocation is kept, but may not be in force yet: say it again");
                Refusal::new(503, "EW-REVOKE", text)
            })?;
        }
        Ok(())
    }

    /// As [`Self::revoke`], for what a former life may have done already.
    async fn revoke_again(&self, node: &NodeName, keys: &NodeKeys) {
        let out = self.keys.is_revoked(Account::Control, &keys.control_key)
            && self.keys.is_revoked(Account::Work, &keys.work_key);
        if out {
            return;
        }
        if let Err(refusal) = self.revoke(keys).await {
            tracing::warn!(%node, error = refusal.message, "keys that are revoked are not shut out yet");
        }
    }

    fn bus(&self) -> Result<Value, Refusal> {
        let login = |account| -> Result<Value, Refusal> {
            let (jwt, seed) = self.keys.mint(account, "operator", &Permissions::full()).map_err(signing)?;
            Ok(json!({"jwt": jwt, "seed": seed}))
        };
        Ok(json!({
            "url": self.addresses.bus,
            "ca_pem": self.keeper.tls().ca_pem,
            "control": login(Account::Control)?,
            "work": login(Account::Work)?,
            "inbox": subject::module_inbox(subject::DOMAIN_HUB, &format!("tool-{}", random_hex(8)?)),
        }))
    }
}

impl Rim<Identity> for IdentityRim {
    async fn act(&self, _bus: &Handles, act: Act) -> Option<Done> {
        Some(match act {
            Act::MakeToken(message, record) => match self.token(record) {
                Ok((record, answer)) => Done::Token(message, record, answer),
                Err(refusal) => Done::Answer(message, Answer::Err(refusal)),
            },
            Act::Sign(message, enroll) => Done::Answer(message, self.enrolled(&enroll)),
            Act::Bus(message) => Done::Answer(message, self.bus()),
            Act::Revoke(None, record) => {
                self.revoke_again(&record.node, &record.keys()).await;
                return None;
            }
            Act::Revoke(Some(message), record) => {
                let revoked = self.revoke(&record.keys()).await;
                let at = record.revoked.map(schemas::Timestamp::rfc3339);
                Done::Answer(message, revoked.map(|()| json!({"node": record.node, "revoked": at})))
            }
            Act::Retire(None, record) => {
                if let Some(keys) = &record.retired {
                    self.revoke_again(&record.node, keys).await;
                }
                return None;
            }
            Act::Retire(Some((message, heard)), record) => {
                let retired = match &record.retired {
                    Some(keys) => self.revoke(keys).await,
                    None => Ok(()),
                };
                Done::Retired(Some((message, retired.map(|()| json!(heard)))), record)
            }
            Act::Change(message, change) => {
                let outcome = self.keeper.change(change).await;
                Done::Changed(message, change, outcome, Box::new(self.keeper.facts()))
            }
        })
    }

    async fn watch(&self, _bus: &Handles, tell: mpsc::Sender<Done>) -> Result<(), String> {
        if let Err(refusal) = self.keeper.put_in_force().await {
            tracing::error!(error = refusal.message, "the hub's certificate is not in force");
        }
        let mut denials = self.server.denials();
        while tell.send(Done::Denied(denials.next().await)).await.is_ok() {}
        Ok(())
    }
}
