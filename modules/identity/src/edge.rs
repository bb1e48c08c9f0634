//! The node's end: its keys are renewed over the link, at the hub's word or when they are old, without joining again.
//!
//! New keys are made here and asked to be signed ([`NodeKeys`]); what comes back replaces the credentials on disk. Then the
//! node says which keys it *holds*, until the hub has heard it: the hub makes them the node's own and shuts the old ones out,
//! which ends the link; the node's server makes it anew with what is on disk. Nothing is remembered: the node says what it
//! holds at every start, so whatever dies in between ends with one set of keys on both sides.
//!
//! Keys that are renewed for their age end no link: what lies on disk is used when the link is next made, for whatever reason,
//! and until then the node holds what its link was made with (see [`Deferral`]). A link that stands for as long again is then
//! made anew. At the hub's word, and where the old keys may too little, it is made anew at once.
//!
//! With its keys it says whom it trusts, and is told the hub's authorities when they are others; the hub asks it to say so
//! (`say`) while it knows of a difference. It trusts what it is told when its server has read it: only then it says so.
//!
//! In: `ew.cmd.<node>.membership.{renew,say}`. Out: `ew.req.<node>.identity.{renew,holding}`. Pure but for [`MembershipRim`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bus::connection::Handles;
use bus::flow::Flow;
use bus::identity::deferral::Deferral;
use bus::identity::membership::{self, Keys};
use bus::identity::{IdentityError, fingerprints};
use bus::module::{Effect, Input, Module, Rim};
use bus::server::LeafServer;
use schemas::Timestamp;
use schemas::command::Reply;
use schemas::credential::{Enrolled, Heard, Holding, NodeKeys};
use schemas::name::NodeName;
use schemas::report::{EventReport, Severity};
use schemas::subject;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;

/// Name of the module.
pub const NAME: &str = "membership";
/// Keys older than this are renewed by themselves.
pub const RENEW_AFTER_MS: u64 = 30 * 24 * 3_600_000;
/// A question is asked again after so long without an answer.
const RETRY_MS: u64 = 5_000;
/// How long an answer is waited for.
const TIMEOUT_MS: u64 = 4_000;
/// What the node holds is said again so often: a hub that was restored from a backup knows older keys, and could not shut out
/// the present ones.
const LOOK_MS: u64 = 600_000;
/// Keys are not renewed by themselves more often, whatever a clock that jumped says of their age.
const RENEWALS_MS: u64 = 24 * 3_600_000;

/// The file of the hub's authorities is looked at so often.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(5);

const RENEW: u64 = 1;
const HOLDING: u64 = 2;

/// What only the rim can do.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Read which keys the credentials on disk stand for, and since when.
    Look,
    /// Make new keys, beside those that are used.
    MakeKeys,
    /// Replace the credentials on disk by these, of the new keys.
    Adopt {
        /// The credentials.
        enrolled: Box<Enrolled>,
        /// Have the link made anew; otherwise they wait for its next beginning.
        at_once: bool,
    },
    /// Have the link made anew with what lies on disk.
    Use,
    /// Trust these authorities (PEM) and no others.
    Trust(String),
}

/// What the credentials on disk stand for.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The keys that the link was made with, and whom the node's server trusts.
    pub holding: Holding,
    /// Others lie on disk, for the link's next beginning.
    pub is_deferred: bool,
    /// Since when those on disk are.
    pub issued: Timestamp,
    /// They may not do all that this version of the node does.
    pub is_outdated: bool,
}

/// What the rim tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    /// What the credentials on disk stand for and whom the node's server trusts; `None` before the node has joined.
    Holding(Option<Found>),
    /// The new keys' public halves.
    Made(Result<NodeKeys, String>),
    /// The credentials on disk are the new ones, or not.
    Adopted(Result<(), String>),
    /// The node's server trusts other authorities, or does not.
    Trusts(Result<(), String>),
}

/// What is under way.
#[derive(Debug, Clone, PartialEq)]
enum Stage {
    /// Nothing.
    Idle,
    /// Keys are made and signed.
    Renewing {
        /// And the link is made anew with them.
        at_once: bool,
    },
    /// The hub is told what the node holds.
    Telling(Holding),
}

/// The module.
pub struct Membership {
    node: NodeName,
    stage: Stage,
    looked_at: Option<Timestamp>,
    looks: u64,
    ask_at: Option<Timestamp>,
    events: u64,
    /// It was told that the hub's authorities are not in force here, and why.
    distrust_told: bool,
    /// New keys were asked for because the present ones may not do all of it.
    outgrown: bool,
    /// New keys lie on disk, for the link's next beginning.
    is_deferred: bool,
}

type Effects = Vec<Effect<Act>>;

/// All that the module reads and writes.
pub fn flows(node: &NodeName) -> Vec<Flow> {
    vec![
        Flow::subscribe(subject::command(node, NAME, "renew"), "()"),
        Flow::subscribe(subject::command(node, NAME, "say"), "()"),
        Flow::request(subject::request(node, "identity.renew"), "NodeKeys -> Reply<Enrolled>"),
        Flow::request(subject::request(node, "identity.holding"), "Holding -> Reply<Heard>"),
        Flow::report(format!("ew.evt.{NAME}.*"), "EventReport"),
    ]
}

impl Membership {
    /// The module of `node`.
    pub fn new(node: NodeName) -> Self {
        let stage = Stage::Idle;
        Self {
            node,
            stage,
            looked_at: None,
            looks: 0,
            ask_at: None,
            events: 0,
            distrust_told: false,
            outgrown: false,
            is_deferred: false,
        }
    }

    fn ask<T: Serialize>(&self, verb: &str, body: &T, token: u64) -> Effect<Act> {
        // As the API's bodies go to the hub's module: JSON in MessagePack.
        let body = serde_json::to_value(body).unwrap_or_default();
        Effect::Request {
            subject: subject::request(&self.node, verb),
            payload: schemas::encode(&body),
            timeout_ms: TIMEOUT_MS,
            token,
        }
    }

    fn is_renewing(&self) -> bool {
        matches!(self.stage, Stage::Renewing { .. })
    }

    fn begin(&mut self, at_once: bool) -> Effects {
        if self.is_renewing() {
            return Vec::new();
        }
        self.stage = Stage::Renewing { at_once };
        // Those that wait are new to everybody but the hub.
        vec![Effect::Act(if self.is_deferred { Act::Use } else { Act::MakeKeys })]
    }

    fn failed(&mut self, why: &str, now: Timestamp) -> Effects {
        self.stage = Stage::Idle;
        let text = format!("the node's keys were not renewed: {why}; the present ones stay");
        vec![self.tell(Severity::Warning, "RenewFailed", text, now)]
    }

    fn tell(&mut self, severity: Severity, reason: &str, message: String, now: Timestamp) -> Effect<Act> {
        self.events += 1;
        let id = format!("{}-{}", now.0, self.events);
        Effect::event(&EventReport::of_node(&id, &self.node, NAME, now, severity, reason, message))
    }

    fn holding(&mut self, found: Found, now: Timestamp) -> Effects {
        self.is_deferred = found.is_deferred;
        if self.is_renewing() {
            return Vec::new();
        }
        let Found { holding: held, issued, is_outdated, .. } = found;
        // Once: a hub that is older than the node signs no more than it knows.
        if is_outdated && !std::mem::replace(&mut self.outgrown, true) {
            return self.begin(true);
        }
        // By looks that were taken, not by the clock that the age is judged with; never at a start.
        if self.looks.is_multiple_of(RENEWALS_MS / LOOK_MS)
            && self.looks > 1
            && now.since_ms(issued) > RENEW_AFTER_MS
        {
            return self.begin(false);
        }
        self.stage = Stage::Telling(held);
        self.ask_at = Some(now);
        Vec::new()
    }

    fn tick(&mut self, now: Timestamp) -> Effects {
        let mut effects = Vec::new();
        if self.looked_at.is_none_or(|at| now.since_ms(at) >= LOOK_MS) {
            self.looked_at = Some(now);
            self.looks += 1;
            effects.push(Effect::Act(Act::Look));
        }
        if let (Stage::Telling(held), true) = (&self.stage, self.ask_at.is_some_and(|at| at <= now)) {
            effects.push(self.ask("identity.holding", held, HOLDING));
            self.ask_at = Some(now.plus_ms(RETRY_MS));
        }
        effects
    }

    fn answered(&mut self, token: u64, outcome: Result<Vec<u8>, String>, now: Timestamp) -> Effects {
        let reply =
            outcome.and_then(|bytes| schemas::decode::<Reply<Value>>(&bytes).map_err(|e| e.to_string()));
        match (token, reply) {
            (RENEW, reply) => {
                let Stage::Renewing { at_once } = self.stage else { return Vec::new() };
                let read =
                    |value| serde_json::from_value(value).map_err(|e| format!("the hub's answer: {e}"));
                match reply.and_then(|reply| reply.map_err(|refusal| refusal.message)).and_then(read) {
                    Ok(enrolled) => vec![Effect::Act(Act::Adopt { enrolled: Box::new(enrolled), at_once })],
                    Err(why) => self.failed(&why, now),
                }
            }
            (HOLDING, Ok(Ok(value))) if !self.is_renewing() => {
                self.stage = Stage::Idle;
                let heard: Heard = serde_json::from_value(value).unwrap_or_default();
                heard.ca_pem.map(|pem| Effect::Act(Act::Trust(pem))).into_iter().collect()
            }
            // Half of the credentials were replaced when the machine fell: the new keys are still there, ask again.
            (HOLDING, Ok(Err(refusal))) if refusal.code == "EW-NODE-KEYS" => self.begin(true),
            // Not heard: asked again.
            _ => Vec::new(),
        }
    }
}

impl Module for Membership {
    type Act = Act;
    type Done = Done;

    fn apply(&mut self, input: Input<Done>, now: Timestamp) -> Effects {
        match input {
            Input::Message(message) if message.subject.ends_with(".say") => vec![Effect::Act(Act::Look)],
            Input::Message(_) => self.begin(true),
            Input::Tick => self.tick(now),
            Input::Answered { token, outcome } => self.answered(token, outcome, now),
            Input::Done(Done::Holding(Some(found))) => self.holding(found, now),
            Input::Done(Done::Made(Ok(keys))) => vec![self.ask("identity.renew", &keys, RENEW)],
            Input::Done(Done::Made(Err(why)) | Done::Adopted(Err(why))) => self.failed(&why, now),
            Input::Done(Done::Adopted(Ok(()))) => {
                let text = match std::mem::replace(&mut self.stage, Stage::Idle) {
                    Stage::Renewing { at_once: false } if !std::mem::take(&mut self.is_deferred) => {
                        "the node has new keys; its link is made with them when it is made anew"
                    }
                    _ => "the node has new keys; its link is made anew with them",
                };
                let text = text.to_owned();
                vec![self.tell(Severity::Normal, "KeysRenewed", text, now), Effect::Act(Act::Look)]
            }
            Input::Done(Done::Trusts(Ok(()))) => {
                self.distrust_told = false;
                let text = "the node trusts the hub's authorities as they are now".to_owned();
                vec![self.tell(Severity::Normal, "AuthoritiesChanged", text, now), Effect::Act(Act::Look)]
            }
            // Tried again when the hub asks; told once.
            Input::Done(Done::Trusts(Err(why))) if !self.distrust_told => {
                self.distrust_told = true;
                let text = format!("the hub's authorities are not in force here: {why}; it is tried again");
                vec![self.tell(Severity::Warning, "AuthoritiesNotChanged", text, now)]
            }
            _ => Vec::new(),
        }
    }
}

/// The rim: what enrolment left on disk.
pub struct MembershipRim {
    node: NodeName,
    data_dir: PathBuf,
    server: Arc<LeafServer>,
    deferral: Deferral,
}

impl MembershipRim {
    /// The rim of `node`, which keeps its membership in `data_dir` and whose `server` connects to the hub.
    pub fn new(node: NodeName, data_dir: PathBuf, server: Arc<LeafServer>) -> Self {
        let deferral = Deferral::new(&data_dir, &server);
        Self { node, data_dir, server, deferral }
    }

    /// What the node holds: what its server has read and its link was made with, not what lies on disk.
    async fn look(&self) -> Result<Option<Found>, String> {
        let held = membership::holding(&self.data_dir).map_err(|error| error.to_string())?;
        let Some(held) = held else { return Ok(None) };
        let trusts = self.server.authorities().await.map_err(|error| error.to_string());
        let trusts = trusts.and_then(|pem| fingerprints(&pem).map_err(|error| error.to_string()))?;
        let in_use = self.deferral.in_use(&self.server).await;
        let is_deferred = in_use.is_some();
        let keys = in_use.unwrap_or(NodeKeys { control_key: held.control, work_key: held.work });
        let holding = Holding { keys, trusts: Some(trusts) };
        Ok(Some(Found { holding, is_deferred, issued: held.issued, is_outdated: held.is_outdated }))
    }

    async fn found(&self) -> Done {
        Done::Holding(self.look().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "what the node holds cannot be read");
            None
        }))
    }

    async fn adopt(&self, enrolled: Enrolled, at_once: bool) -> Result<(), IdentityError> {
        let dir = &self.data_dir;
        let keys = Keys::load_or_create(dir, true)?;
        let proxy = membership::load(dir)?.and_then(|(present, _)| present.proxy);
        match membership::holding(dir)?.filter(|_| !at_once) {
            Some(held) => {
                let in_use = NodeKeys { control_key: held.control, work_key: held.work };
                self.deferral.begin(in_use, &self.server).await?;
            }
            None => self.deferral.end().await?,
        }
        membership::save(dir, self.node.clone(), &keys, enrolled, proxy)
    }

    async fn trust(&self, pem: &str) -> Result<(), String> {
        membership::trust(&self.data_dir, pem).map_err(|error| error.to_string())?;
        self.server.authorities().await.map(drop).map_err(|error| error.to_string())
    }
}

impl Rim<Membership> for MembershipRim {
    async fn act(&self, _bus: &Handles, act: Act) -> Option<Done> {
        let dir = &self.data_dir;
        let keys = |keys: &Keys| NodeKeys {
            control_key: keys.control.public_key(),
            work_key: keys.work.public_key(),
        };
        Some(match act {
            Act::Look => self.found().await,
            Act::Trust(pem) => Done::Trusts(self.trust(&pem).await),
            Act::MakeKeys => Done::Made(
                Keys::load_or_create(dir, true).map(|made| keys(&made)).map_err(|error| error.to_string()),
            ),
            Act::Adopt { enrolled, at_once } => {
                Done::Adopted(self.adopt(*enrolled, at_once).await.map_err(|error| error.to_string()))
            }
            Act::Use => Done::Adopted(self.deferral.end().await.map_err(|error| error.to_string())),
        })
    }

    /// Who joins again while the node runs has given it authorities too: its server reads them without being asked. And keys
    /// that waited for the link's next beginning are told when it was.
    async fn watch(&self, _bus: &Handles, tell: mpsc::Sender<Done>) -> Result<(), String> {
        let mut was_deferred = self.deferral.in_use(&self.server).await.is_some();
        while tokio::time::timeout(FOLLOW_INTERVAL, tell.closed()).await.is_err() {
            let is_deferred = self.deferral.in_use(&self.server).await.is_some();
            if std::mem::replace(&mut was_deferred, is_deferred) && !is_deferred {
                let _ = tell.send(self.found().await).await;
            }
            if let Err(error) = self.server.authorities().await {
                tracing::warn!(%error, "the hub's authorities are not in force; tried again");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::command::Refusal;

    const NOW: Timestamp = Timestamp(1_000_000_000_000);

    fn keys(name: &str) -> NodeKeys {
        NodeKeys { control_key: format!("C{name}"), work_key: format!("W{name}") }
    }

    fn module() -> Membership {
        let mut module = Membership::new(NodeName::new("n1").unwrap());
        assert_eq!(module.apply(Input::Tick, NOW), [Effect::Act(Act::Look)]);
        module
    }

    fn held(name: &str) -> Holding {
        Holding { keys: keys(name), trusts: Some(vec!["ca".into()]) }
    }

    fn found(holding: Holding, issued: Timestamp) -> Found {
        Found { holding, is_deferred: false, issued, is_outdated: false }
    }

    fn asks(effects: &Effects) -> Option<(&str, NodeKeys)> {
        effects.iter().find_map(|effect| match effect {
            Effect::Request { subject, payload, .. } => {
                let body: Value = schemas::decode(payload).unwrap();
                Some((subject.rsplit('.').next().unwrap(), serde_json::from_value(body).unwrap()))
            }
            _ => None,
        })
    }

    fn answer(module: &mut Membership, token: u64, reply: Reply<Value>) -> Effects {
        module.apply(Input::Answered { token, outcome: Ok(schemas::encode(&reply)) }, NOW)
    }

    fn enrolled() -> Value {
        serde_json::json!({"control_jwt": "c", "work_jwt": "w", "leaf_urls": [], "ca_pem": ""})
    }

    #[test]
    fn what_it_holds_is_said_at_every_start_until_it_is_heard() {
        let mut module = module();
        module.apply(Input::Done(Done::Holding(Some(found(held("1"), NOW)))), NOW);
        assert_eq!(asks(&module.apply(Input::Tick, NOW)), Some(("holding", keys("1"))));
        module.apply(Input::Answered { token: HOLDING, outcome: Err("no responders".into()) }, NOW);
        assert_eq!(asks(&module.apply(Input::Tick, NOW)), None, "not at once");
        assert_eq!(asks(&module.apply(Input::Tick, NOW.plus_ms(RETRY_MS))), Some(("holding", keys("1"))));
        answer(&mut module, HOLDING, Ok(Value::Null));
        assert_eq!(asks(&module.apply(Input::Tick, NOW.plus_ms(9 * RETRY_MS))), None, "until the next look");
    }

    #[test]
    fn the_hubs_authorities_are_trusted_and_it_is_said_when_they_are_in_force() {
        let mut module = module();
        let mut say = command();
        say.subject = "ew.cmd.n1.membership.say".into();
        assert_eq!(module.apply(Input::Message(say), NOW), [Effect::Act(Act::Look)], "no new keys");
        module.apply(Input::Done(Done::Holding(Some(found(held("1"), NOW)))), NOW);
        module.apply(Input::Tick, NOW);
        let other = answer(&mut module, HOLDING, Ok(serde_json::json!({"ca_pem": "others"})));
        assert_eq!(other, [Effect::Act(Act::Trust("others".into()))]);
        assert_eq!(asks(&module.apply(Input::Tick, NOW)), None, "nothing is said of what is not in force");
        let failed =
            |module: &mut Membership| module.apply(Input::Done(Done::Trusts(Err("full".into()))), NOW);
        assert_eq!((failed(&mut module).len(), failed(&mut module).len()), (1, 0), "told once");
        let done = module.apply(Input::Done(Done::Trusts(Ok(()))), NOW);
        assert!(matches!(done.as_slice(), [Effect::Report { .. }, Effect::Act(Act::Look)]));
        module.apply(Input::Done(Done::Holding(Some(found(held("1"), NOW)))), NOW);
        assert_eq!(asks(&module.apply(Input::Tick, NOW)), Some(("holding", keys("1"))));
    }

    #[test]
    fn keys_are_made_signed_adopted_and_told_in_this_order() {
        let mut module = module();
        let begun = module.apply(Input::Message(command()), NOW);
        assert_eq!(begun, [Effect::Act(Act::MakeKeys)]);
        assert!(module.apply(Input::Message(command()), NOW).is_empty(), "one renewal at a time");
        let asked = module.apply(Input::Done(Done::Made(Ok(keys("2")))), NOW);
        assert_eq!(asks(&asked), Some(("renew", keys("2"))));
        let adopt = answer(&mut module, RENEW, Ok(enrolled()));
        assert!(matches!(adopt.as_slice(), [Effect::Act(Act::Adopt { at_once: true, .. })]));
        assert_eq!(
            asks(&module.apply(Input::Tick, NOW)),
            None,
            "nothing is said of keys that are not on disk"
        );
        let adopted = module.apply(Input::Done(Done::Adopted(Ok(()))), NOW);
        assert!(adopted.contains(&Effect::Act(Act::Look)));
        module.apply(Input::Done(Done::Holding(Some(found(held("2"), NOW)))), NOW);
        assert_eq!(asks(&module.apply(Input::Tick, NOW)), Some(("holding", keys("2"))));
    }

    #[test]
    fn a_failure_keeps_the_present_keys_and_half_an_adoption_is_finished() {
        let mut module = module();
        module.apply(Input::Message(command()), NOW);
        let refused = answer(&mut module, RENEW, Err(Refusal::new(503, "EW-BUSY", "try again")));
        assert!(
            matches!(refused.as_slice(), [Effect::Report { subject, .. }] if subject.ends_with("RenewFailed"))
        );
        module.apply(Input::Done(Done::Holding(Some(found(held("half"), NOW)))), NOW);
        module.apply(Input::Tick, NOW);
        let again = answer(&mut module, HOLDING, Err(Refusal::new(409, "EW-NODE-KEYS", "neither")));
        assert_eq!(again, [Effect::Act(Act::MakeKeys)]);
    }

    #[test]
    fn keys_that_the_node_has_outgrown_are_renewed_once() {
        let mut module = Membership::new(NodeName::new("n1").unwrap());
        let outgrown = || Done::Holding(Some(Found { is_outdated: true, ..found(held("1"), NOW) }));
        assert_eq!(module.apply(Input::Done(outgrown()), NOW), [Effect::Act(Act::MakeKeys)]);
        module.apply(Input::Done(Done::Adopted(Ok(()))), NOW);
        assert_eq!(
            module.apply(Input::Done(outgrown()), NOW),
            [],
            "an older hub signs no more than it knows"
        );
        assert_eq!(asks(&module.apply(Input::Tick, NOW)), Some(("holding", keys("1"))));
    }

    #[test]
    fn old_keys_are_renewed_by_themselves_and_a_wrong_clock_does_it_once_a_day_at_most() {
        let mut module = Membership::new(NodeName::new("n1").unwrap());
        let (mut renewed, mut told) = (0, 0);
        for minute in 0..3 * 24 * 60u64 {
            let now = NOW.plus_ms(minute * 60_000);
            for effect in module.apply(Input::Tick, now) {
                match effect {
                    // However new they are, this clock finds them old.
                    Effect::Act(Act::Look) => {
                        let held = Done::Holding(Some(found(held("1"), Timestamp(0))));
                        renewed += module.apply(Input::Done(held), now).len();
                        module.apply(Input::Answered { token: RENEW, outcome: Err("cut".into()) }, now);
                    }
                    Effect::Request { .. } => {
                        told += 1;
                        answer(&mut module, HOLDING, Ok(Value::Null));
                    }
                    _ => {}
                }
            }
        }
        assert_eq!(renewed, 3);
        assert!(
            (400..=432).contains(&told),
            "what it holds is said every ten minutes, not {told} times in three days"
        );
    }

    #[test]
    fn keys_renewed_for_their_age_wait_for_the_links_next_beginning_and_no_longer_than_they_are_good_for() {
        let mut module = module();
        let text = |effects: &Effects| match effects.first() {
            Some(Effect::Report { payload, .. }) => {
                schemas::decode::<EventReport>(payload).map(|event| event.message).unwrap_or_default()
            }
            _ => String::new(),
        };
        let of_link = |issued| Done::Holding(Some(Found { is_deferred: true, ..found(held("1"), issued) }));
        let due = |module: &mut Membership, done: Done| {
            module.looks = RENEWALS_MS / LOOK_MS;
            module.apply(Input::Done(done), NOW.plus_ms(2 * RENEW_AFTER_MS))
        };
        let old = Done::Holding(Some(found(held("1"), NOW)));
        assert_eq!(due(&mut module, old), [Effect::Act(Act::MakeKeys)]);
        module.apply(Input::Done(Done::Made(Ok(keys("2")))), NOW);
        let adopt = answer(&mut module, RENEW, Ok(enrolled()));
        assert!(matches!(adopt.as_slice(), [Effect::Act(Act::Adopt { at_once: false, .. })]));
        let adopted = module.apply(Input::Done(Done::Adopted(Ok(()))), NOW);
        assert!(text(&adopted).ends_with("with them when it is made anew"), "{adopted:?}");
        // Young, and not in use: what the link was made with is said.
        module.apply(Input::Done(of_link(NOW.plus_ms(2 * RENEW_AFTER_MS))), NOW);
        assert_eq!(asks(&module.apply(Input::Tick, NOW)), Some(("holding", keys("1"))));
        // As old as the others were, and the link has never broken: no third ones, these.
        assert_eq!(due(&mut module, of_link(NOW)), [Effect::Act(Act::Use)]);
        let used = module.apply(Input::Done(Done::Adopted(Ok(()))), NOW);
        assert!(text(&used).ends_with("its link is made anew with them"), "{used:?}");
        module.apply(Input::Done(Done::Holding(Some(found(held("2"), NOW)))), NOW);
        assert_eq!(asks(&module.apply(Input::Tick, NOW)), Some(("holding", keys("2"))));
    }

    #[test]
    fn at_the_hubs_word_keys_that_wait_are_used_at_once() {
        let mut module = module();
        module.apply(
            Input::Done(Done::Holding(Some(Found { is_deferred: true, ..found(held("1"), NOW) }))),
            NOW,
        );
        assert_eq!(module.apply(Input::Message(command()), NOW), [Effect::Act(Act::Use)]);
    }

    fn command() -> bus::module::Message {
        bus::module::Message {
            account: bus::module::Account::Control,
            subject: "ew.cmd.n1.membership.renew".into(),
            headers: Default::default(),
            payload: Vec::new(),
            reply: None,
        }
    }
}
