//! topicmap: gives what is said on a node a second name, as TopicMap objects say. So a device's own topics reach a delivery
//! class, and what comes down reaches a device's own topics.
//!
//! | subject | | what |
//! |---|---|---|
//! | KV `local` `topicmaps.*.*.*` | in | the maps that the node must have |
//! | stream `$MQTT_msgs` | in | what MQTT clients said at QoS 1 or 2: taken in order, acknowledged last |
//! | whatever the maps name | in, out | what nobody was promised is heard live; the new name is said in its own class |
//! | `ew.evt.topicmap.<Reason>` | out | a map that is not run, a message that could not be passed on |
//!
//! [`plan`] decides which maps run (pure: none that feed each other in a circle), [`route`] is one running map, [`publisher`] the
//! MQTT client through which a message reaches MQTT sessions that are away.

pub mod plan;
mod publisher;
mod route;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bus::connection::Handles;
use bus::flow::Flow;
use bus::module::{Effect, EntryValue, Input, Module, Rim};
use bus::relay::Relay;
use bus::server::LeafServer;
use schemas::Timestamp;
use schemas::desired::{Content, Local};
use schemas::name::NodeName;
use schemas::object::new_uid;
use schemas::report::{EventReport, Severity};
use schemas::subject::{self, DesiredKey};
use schemas::topic_map::TopicMap;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use plan::{Plan, Route, plan};
use publisher::Publisher;
use route::Tools;

/// Name of the module.
pub const NAME: &str = "topicmap";
/// The plural of its objects.
const PLURAL: &str = "topicmaps";

/// All that the module reads and writes.
pub fn flows() -> Vec<Flow> {
    vec![
        Flow::watch(subject::BUCKET_LOCAL, format!("{PLURAL}.*.*.*"), "Local (TopicMap)"),
        Flow::manage(subject::STREAM_MQTT_MESSAGES, "what MQTT clients said").in_work(),
        Flow::named(">", "what the maps read").in_work(),
        Flow::publish(">", "what the maps write").in_work(),
        Flow::report(subject::event(NAME, "*"), "EventReport"),
    ]
}

/// What only the rim can do.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Run these, and nothing else.
    Run(Plan),
    /// An object is gone for good: nothing is kept for its maps any more.
    Forget(String),
}

/// What the rim tells.
#[derive(Debug)]
pub enum Done {
    /// A message that has no legal name under a map.
    Dead {
        /// The subject it came on.
        subject: String,
        /// Its body.
        payload: Vec<u8>,
        /// Why.
        reason: String,
    },
    /// A message could not be passed on; if it was promised, it waits.
    Waits {
        /// Whose.
        route: String,
        /// Of which object.
        object: String,
        /// Why.
        why: String,
    },
}

/// A map whose messages wait is told so often.
const WAITS_INTERVAL_MS: u64 = 60_000;

/// The module.
pub struct TopicMaps {
    node: NodeName,
    maps: BTreeMap<String, TopicMap>,
    current: bool,
    running: Option<Plan>,
    /// What was told of maps that do not run.
    told: BTreeSet<(String, String)>,
    /// When it was last told that a map's messages wait.
    waits: BTreeMap<String, Timestamp>,
}

impl TopicMaps {
    /// The module of `node`.
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            maps: BTreeMap::new(),
            current: false,
            running: None,
            told: BTreeSet::new(),
            waits: BTreeMap::new(),
        }
    }

    fn event(&self, reason: &str, message: String, now: Timestamp) -> Effect<Act> {
        Effect::event(&EventReport {
            id: new_uid(),
            node: self.node.to_string(),
            module: NAME.to_owned(),
            at: now,
            severity: Severity::Warning,
            reason: reason.to_owned(),
            message,
            regarding: ("Node".to_owned(), String::new(), self.node.to_string(), String::new()),
        })
    }

    fn entry(&mut self, key: &str, value: EntryValue) -> Vec<Effect<Act>> {
        let EntryValue::Put(bytes) = value else { return self.gone(key) };
        let dead = |reason: String, payload: Vec<u8>| {
            vec![Effect::Dead { subject: subject::kv(subject::BUCKET_LOCAL, key), payload, reason }]
        };
        let local: Local = match schemas::decode(&bytes) {
            Ok(local) => local,
            Err(error) => return dead(error.to_string(), bytes),
        };
        match local.desired.content {
            Content::Tombstone => self.gone(key),
            Content::Object(object) => match TopicMap::read(&object) {
                Ok(map) => {
                    self.maps.insert(key.to_owned(), map);
                    Vec::new()
                }
                Err(faults) => dead(format!("{faults:?}"), bytes),
            },
        }
    }

    fn gone(&mut self, key: &str) -> Vec<Effect<Act>> {
        self.maps.remove(key);
        let uid = DesiredKey::parse_local(key).map(|key| key.uid);
        uid.map(|uid| Effect::Act(Act::Forget(uid))).into_iter().collect()
    }

    fn settle(&mut self, now: Timestamp) -> Vec<Effect<Act>> {
        if !self.current {
            return Vec::new();
        }
        let (plan, left) = plan(&self.maps);
        let mut effects = Vec::new();
        let now_left: BTreeSet<_> =
            left.iter().map(|left| (left.key.clone(), left.message.clone())).collect();
        for left in left {
            if !self.told.contains(&(left.key, left.message.clone())) {
                effects.push(self.event(left.reason, left.message, now));
            }
        }
        self.told = now_left;
        if self.running.as_ref() != Some(&plan) {
            self.running = Some(plan.clone());
            effects.push(Effect::Act(Act::Run(plan)));
        }
        effects
    }

    fn waits(&mut self, route: String, object: &str, why: &str, now: Timestamp) -> Vec<Effect<Act>> {
        let due = self.waits.get(&route).is_none_or(|at| now.since_ms(*at) >= WAITS_INTERVAL_MS);
        if !due {
            return Vec::new();
        }
        if self.waits.len() > plan::ROUTES_MAX {
            self.waits.clear();
        }
        self.waits.insert(route, now);
        vec![self.event("TopicMapWaits", format!("{object}: {why}"), now)]
    }
}

impl Module for TopicMaps {
    type Act = Act;
    type Done = Done;

    fn apply(&mut self, input: Input<Done>, now: Timestamp) -> Vec<Effect<Act>> {
        let mut effects = match input {
            Input::Entry(entry) => self.entry(&entry.key, entry.value),
            Input::Current { .. } => {
                self.current = true;
                Vec::new()
            }
            Input::Done(Done::Dead { subject, payload, reason }) => {
                return vec![Effect::Dead { subject, payload, reason }];
            }
            Input::Done(Done::Waits { route, object, why }) => return self.waits(route, &object, &why, now),
            _ => return Vec::new(),
        };
        effects.extend(self.settle(now));
        effects
    }
}

/// The rim: the running maps.
pub struct TopicMapRim {
    server: Arc<LeafServer>,
    user: String,
    plans: watch::Sender<Plan>,
}

impl TopicMapRim {
    /// On that server; `user` is the module's own login in WORK.
    pub fn new(server: Arc<LeafServer>, user: String) -> Self {
        Self { server, user, plans: watch::Sender::new(Plan::default()) }
    }
}

impl Rim<TopicMaps> for TopicMapRim {
    async fn act(&self, bus: &Handles, act: Act) -> Option<Done> {
        match act {
            Act::Run(plan) => {
                self.plans.send_replace(plan);
            }
            Act::Forget(uid) => {
                let prefix = plan::prefix(&uid);
                let Some(work) = &bus.work else { return None };
                if let Err(error) = Relay::new(work).forget(|name| !name.starts_with(&prefix)).await {
                    tracing::warn!(%error, uid, "what was kept for a map stays until it is too old");
                }
            }
        }
        None
    }

    async fn watch(&self, bus: &Handles, tell: mpsc::Sender<Done>) -> Result<(), String> {
        let work = bus.work.clone().ok_or("no connection in WORK")?;
        let publisher = Publisher::new(self.server.clone(), self.user.clone());
        let tools = Tools { bus: work, publisher, tell: tell.clone() };
        let mut plans = self.plans.subscribe();
        let (mut tasks, mut running) = (JoinSet::new(), BTreeMap::<String, (Route, AbortHandle)>::new());
        loop {
            let plan = plans.borrow_and_update().clone();
            running.retain(|_, (route, task)| {
                let stays = plan.routes.contains(route);
                if !stays {
                    task.abort();
                }
                stays
            });
            for route in plan.routes {
                if !running.contains_key(&route.name) {
                    let task = tasks.spawn(route::run(route.clone(), tools.clone()));
                    running.insert(route.name.clone(), (route, task));
                }
            }
            tokio::select! {
                changed = plans.changed() => if changed.is_err() { return Ok(()) },
                () = tell.closed() => return Ok(()),
                Some(ended) = tasks.join_next() => match ended {
                    Err(error) if error.is_cancelled() => {}
                    ended => return Err(format!("a map ended: {ended:?}")),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bus::module::Entry;
    use schemas::desired::Desired;
    use schemas::object::Object;
    use serde_json::json;

    use super::*;

    fn entry(uid: &str, from: &str, to: &str) -> Input<Done> {
        let mut map = Object::new("edgewire.io/v1alpha1", "TopicMap", "demo", uid);
        map.set(&["metadata", "uid"], uid);
        map.set(&["spec", "maps"], json!([{"from": {"mqtt": from}, "to": {"mqtt": to}}]));
        let content = Content::Object(map);
        let desired = Desired { generation: "g".into(), epoch: "e".into(), resource_version: 1, content };
        put(uid, EntryValue::Put(schemas::encode(&Local { revision: 1, desired })))
    }

    fn put(uid: &str, value: EntryValue) -> Input<Done> {
        let key = format!("topicmaps.demo.{uid}.{uid}");
        Input::Entry(Entry { bucket: subject::BUCKET_LOCAL.into(), key, revision: 1, value })
    }

    fn current() -> Input<Done> {
        Input::Current { bucket: subject::BUCKET_LOCAL.into(), filter: String::new() }
    }

    fn routes(effects: &[Effect<Act>]) -> Option<usize> {
        effects.iter().find_map(|effect| match effect {
            Effect::Act(Act::Run(plan)) => Some(plan.routes.len()),
            _ => None,
        })
    }

    #[test]
    fn maps_run_when_all_are_known_and_end_when_they_are_gone() {
        let mut module = TopicMaps::new(NodeName::new("n1").unwrap());
        assert_eq!(routes(&module.apply(entry("a", "f/+", "g/{1}"), Timestamp(0))), None);
        assert_eq!(routes(&module.apply(current(), Timestamp(0))), Some(1));
        assert_eq!(routes(&module.apply(entry("a", "f/+", "g/{1}"), Timestamp(0))), None, "as before");
        let looped = module.apply(entry("b", "g/+", "f/{1}"), Timestamp(0));
        assert_eq!(routes(&looped), Some(0), "neither runs");
        let told = looped.iter().filter(|effect| matches!(effect, Effect::Report { .. })).count();
        assert_eq!(told, 2);
        let gone = module.apply(put("b", EntryValue::Removed(Vec::new())), Timestamp(0));
        assert!(gone.contains(&Effect::Act(Act::Forget("b".into()))));
        assert_eq!(routes(&gone), Some(1));
    }

    #[test]
    fn rubbish_is_put_aside() {
        let mut module = TopicMaps::new(NodeName::new("n1").unwrap());
        let effects = module.apply(put("x", EntryValue::Put(b"rubbish".to_vec())), Timestamp(0));
        assert!(matches!(effects.as_slice(), [Effect::Dead { .. }]));
    }

    #[test]
    fn a_map_that_waits_is_told_once_a_minute() {
        let mut module = TopicMaps::new(NodeName::new("n1").unwrap());
        let waits =
            || Input::Done(Done::Waits { route: "r".into(), object: "demo/m".into(), why: "full".into() });
        let told: Vec<usize> =
            [0, 1_000, 60_000].map(|at| module.apply(waits(), Timestamp(at)).len()).to_vec();
        assert_eq!(told, [1, 0, 1]);
    }
}
