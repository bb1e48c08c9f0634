//! The hub's end: a stream for each node's messages, what waits in it for a node that asks, and a word to the node when
//! something came. Pure but for [`DownlinkRim`].
//!
//! | in / out | what |
//! |---|---|
//! | bucket identity `node.*`, bucket objects `=.nodes.=.*` | which nodes there are |
//! | `to.>`, live | something was sent: the node is called |
//! | `ew.req.*.downlink.look` | [`Look`], answered with [`Waiting`] |
//! | `ew.cmd.<node>.sync.arrived` | the call; one that is lost is made up for by the node's own looks |

use std::collections::BTreeMap;

use bus::connection::Handles;
use bus::downlink;
use bus::flow::Flow;
use bus::module::{Account, Effect, Input, Message, Module, Rim};
use schemas::Timestamp;
use schemas::command::{Refusal, Reply};
use schemas::downlink::{Look, Waiting};
use schemas::name::NodeName;
use schemas::subject;

use crate::edge;
use crate::known::{self, Known};

/// Name of the module.
pub const NAME: &str = "downlink";
/// What a node asks.
pub const LOOK: &str = "downlink.look";
/// The call.
pub const ARRIVED: &str = "arrived";
/// Streams are looked for so often: one that was lost is made again by then.
const ENSURE_INTERVAL_MS: u64 = 15_000;
/// A node is called at once, and not again within so long: then once more, for what came meanwhile and for what was not
/// stored yet when it was heard.
const CALL_INTERVAL_MS: u64 = 1_000;

/// All that the module reads and writes.
pub fn flows() -> Vec<Flow> {
    let own = [
        Flow::subscribe("to.>", "any"),
        Flow::node_streams("to.<node>.>", "a node's messages"),
        Flow::respond(format!("ew.req.*.{LOOK}"), "Look -> Waiting"),
        Flow::publish(format!("ew.cmd.*.{}.{ARRIVED}", edge::NAME), "()"),
    ];
    known::flows().into_iter().chain(own).collect()
}

/// What only the rim can do.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Make the streams of those that have none; the second: bring all to their present bounds.
    Ensure(Vec<NodeName>, bool),
    /// Look for that node, and answer.
    Look(Message, NodeName, Look),
}

/// What the rim tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    /// What was found, for who asked.
    Looked(Message, Reply<Waiting>),
    /// Not all streams are there: the first reason.
    NotMade(String),
}

/// The module.
#[derive(Default)]
pub struct Downlinks {
    nodes: Known,
    ensured_at: Option<Timestamp>,
    /// When a node was called last, and whether it is to be called again.
    called: BTreeMap<NodeName, (Timestamp, bool)>,
    not_made: Option<String>,
}

impl Downlinks {
    fn call(node: &NodeName) -> Effect<Act> {
        Effect::Publish {
            account: Account::Control,
            subject: subject::command(node, edge::NAME, ARRIVED),
            headers: Default::default(),
            payload: Vec::new(),
        }
    }

    fn came(&mut self, node: NodeName, now: Timestamp) -> Vec<Effect<Act>> {
        if !self.nodes.contains(&node) {
            return Vec::new();
        }
        match self.called.get_mut(&node) {
            Some((_, again)) => {
                *again = true;
                Vec::new()
            }
            None => {
                let call = Self::call(&node);
                self.called.insert(node, (now, true));
                vec![call]
            }
        }
    }

    fn tick(&mut self, now: Timestamp) -> Vec<Effect<Act>> {
        let mut effects = Vec::new();
        if self.ensured_at.is_none_or(|at| now.since_ms(at) >= ENSURE_INTERVAL_MS) {
            let all = self.ensured_at.replace(now).is_none();
            effects.push(Effect::Act(Act::Ensure(self.nodes.iter().cloned().collect(), all)));
        }
        self.called.retain(|node, (at, again)| {
            if now.since_ms(*at) < CALL_INTERVAL_MS {
                return true;
            }
            let calls = std::mem::take(again);
            if calls {
                *at = now;
                effects.push(Self::call(node));
            }
            calls
        });
        effects
    }

    fn asked(message: Message) -> Vec<Effect<Act>> {
        let node = message.subject.strip_prefix("ew.req.").and_then(|rest| rest.split('.').next());
        let node = node.and_then(|name| NodeName::new(name).ok());
        match (node, schemas::decode::<Look>(&message.payload)) {
            (Some(node), Ok(look)) => vec![Effect::Act(Act::Look(message, node, look))],
            (_, Err(error)) => {
                let text = format!("{}: {error}", message.subject);
                Effect::reply(&message, &Reply::<Waiting>::Err(Refusal::new(400, "EW-BAD-REQUEST", text)))
                    .into_iter()
                    .collect()
            }
            (None, _) => Vec::new(),
        }
    }
}

impl Module for Downlinks {
    type Act = Act;
    type Done = Done;

    fn apply(&mut self, input: Input<Done>, now: Timestamp) -> Vec<Effect<Act>> {
        match input {
            Input::Entry(entry) => {
                let node = self.nodes.entry(&entry);
                node.map(|node| Effect::Act(Act::Ensure(vec![node], false))).into_iter().collect()
            }
            Input::Message(message) if message.subject.starts_with("to.") => {
                subject::sent_to(&message.subject).map(|node| self.came(node, now)).unwrap_or_default()
            }
            Input::Message(message) => Self::asked(message),
            Input::Done(Done::Looked(message, reply)) => {
                Effect::reply(&message, &reply).into_iter().collect()
            }
            Input::Done(Done::NotMade(why)) => {
                if self.not_made.as_ref() != Some(&why) {
                    tracing::warn!(
                        why,
                        "not every node has its stream of messages: what is sent to the others is refused"
                    );
                    self.not_made = Some(why);
                }
                Vec::new()
            }
            Input::Tick => self.tick(now),
            _ => Vec::new(),
        }
    }
}

/// The rim: the nodes' streams.
pub struct DownlinkRim;

impl Rim<Downlinks> for DownlinkRim {
    async fn act(&self, bus: &Handles, act: Act) -> Option<Done> {
        match act {
            Act::Ensure(nodes, all) => {
                let made = downlink::ensure(&bus.control, &nodes, all).await;
                made.err().map(|error| Done::NotMade(error.to_string()))
            }
            Act::Look(message, node, look) => {
                let found = downlink::waiting(&bus.control, &node, look.taken).await;
                let failed =
                    |error: bus::link::LinkError| Refusal::new(503, "EW-NOT-READY", error.to_string());
                Some(Done::Looked(message, found.map_err(failed)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bus::module::{Entry, EntryValue};

    const NOW: Timestamp = Timestamp(1_000_000);

    fn node() -> NodeName {
        NodeName::new("n1").unwrap()
    }

    fn sent(subject: &str) -> Input<Done> {
        Input::Message(Message {
            account: Account::Control,
            subject: subject.into(),
            headers: Default::default(),
            payload: Vec::new(),
            reply: Some("_INBOX.x".into()),
        })
    }

    fn calls(effects: &[Effect<Act>]) -> usize {
        let is_call = |e: &&Effect<Act>| matches!(e, Effect::Publish { subject, .. } if subject == "ew.cmd.n1.sync.arrived");
        effects.iter().filter(is_call).count()
    }

    fn with_node() -> Downlinks {
        let mut module = Downlinks::default();
        let value = EntryValue::Put(Vec::new());
        let entry =
            Entry { bucket: subject::BUCKET_IDENTITY.into(), key: "node.n1".into(), revision: 1, value };
        let effects = module.apply(Input::Entry(entry), NOW);
        assert_eq!(effects, [Effect::Act(Act::Ensure(vec![node()], false))], "before anything is sent to it");
        module
    }

    #[test]
    fn a_node_is_called_at_once_once_more_and_not_for_each_message() {
        let mut module = with_node();
        assert_eq!(calls(&module.apply(sent("to.n1.demo.a"), NOW)), 1);
        for ms in 0..900 {
            assert_eq!(calls(&module.apply(sent("to.n1.demo.a"), NOW.plus_ms(ms))), 0);
        }
        assert_eq!(calls(&module.apply(Input::Tick, NOW.plus_ms(900))), 0);
        assert_eq!(
            calls(&module.apply(Input::Tick, NOW.plus_ms(1_000))),
            1,
            "what was not stored at the first call is now"
        );
        assert_eq!(calls(&module.apply(Input::Tick, NOW.plus_ms(1_500))), 0);
        assert_eq!(calls(&module.apply(Input::Tick, NOW.plus_ms(2_000))), 0);
        assert_eq!(calls(&module.apply(sent("to.n1.demo.a"), NOW.plus_ms(2_100))), 1);
        for other in ["to.n2.demo.a", "to.n1", "to.>.x"] {
            assert!(module.apply(sent(other), NOW.plus_ms(9_000)).is_empty(), "{other}");
        }
    }

    #[test]
    fn streams_are_made_at_the_start_and_looked_for_again() {
        let mut module = with_node();
        let all = |all| vec![Effect::Act(Act::Ensure(vec![node()], all))];
        assert_eq!(module.apply(Input::Tick, NOW), all(true));
        assert!(module.apply(Input::Tick, NOW.plus_ms(1_000)).is_empty());
        assert_eq!(module.apply(Input::Tick, NOW.plus_ms(ENSURE_INTERVAL_MS)), all(false));
    }

    #[test]
    fn a_node_asks_for_its_own_stream_and_is_answered() {
        let asks = |subject: &str, payload: Vec<u8>| {
            let account = Account::Control;
            let reply = Some("_INBOX.n1.sync.1".into());
            let headers = Default::default();
            let message = Message { account, subject: subject.into(), headers, payload, reply };
            Downlinks::default().apply(Input::Message(message), NOW)
        };
        let look = Look { taken: None };
        let effects = asks("ew.req.n1.downlink.look", schemas::encode(&look));
        let [Effect::Act(Act::Look(message, of, asked))] = effects.as_slice() else { panic!("{effects:?}") };
        assert_eq!((of, asked), (&node(), &look));
        let done = Done::Looked(message.clone(), Ok(Waiting::default()));
        let effects = Downlinks::default().apply(Input::Done(done), NOW);
        assert!(matches!(effects.as_slice(), [Effect::Reply { to, .. }] if to == "_INBOX.n1.sync.1"));
        assert!(matches!(
            asks("ew.req.n1.downlink.look", b"rubbish".to_vec()).as_slice(),
            [Effect::Reply { .. }]
        ));
    }
}
