//! Gives each pod its own credential for the node's server, and takes it back; and logins for devices and programs outside
//! pods, for the operator ([`device`]).
//!
//! In: `ew.local.credentials.issue` and `.revoke`, asked by `containers`; `ew.cmd.<node>.credentials.create`, `.list` and
//! `.revoke`, asked by `edgewire creds`; and the node's Topics, because a pod may consume those of its namespace ([`rights`]):
//! when they change, the logins that are there change with them. Out: the answer; and, for the hub's audit, what the node's
//! server refused whom (`ew.evt.credentials.Audit`, kept in the node's OUTBOX while it is offline). The credential is made on the
//! node, offline too; it opens the pod's namespace on this node and nothing anywhere else, and it stays the same for the
//! life of the pod, across restarts of everything.

pub mod device;
pub mod rights;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bus::connection::Handles;
use bus::flow::Flow;
use bus::identity::Permissions;
use bus::module::{Account, Effect, Entry, EntryValue, Input, Message, Module, Rim};
use bus::server::{Denial, LeafServer, ServerError, User};
use schemas::Timestamp;
use schemas::audit::{AuditRecord, Thinned};
use schemas::command::{Refusal, Reply};
use schemas::credential::{Issue, Issued, NewDevice, RevokeDevice, Withdraw};
use schemas::desired::{Content, Local};
use schemas::envelope;
use schemas::name::NodeName;
use schemas::subject::{self, BUCKET_LOCAL, DesiredKey};
use schemas::topic::Topic;
use tokio::sync::{Mutex, mpsc};

use rights::{Declared, POD, namespace_of, permissions};

/// Name of the module.
pub const NAME: &str = "credentials";

/// The entries of Topics in the local bucket.
const TOPICS: &str = "topics.>";

/// All that the module reads and writes.
pub fn flows(node: &NodeName) -> Vec<Flow> {
    vec![
        Flow::respond(subject::command(node, NAME, device::CREATE), "NewDevice -> Reply<DeviceLogin>"),
        Flow::respond(subject::command(node, NAME, device::LIST), "() -> Reply<Devices>"),
        Flow::respond(subject::command(node, NAME, device::REVOKE), "RevokeDevice -> Reply<()>"),
        // The answers to those: a reload of the server's users forgets whom one may answer (measured).
        Flow::publish(subject::stream_up(node, "*"), "Reply"),
        Flow::respond(subject::local(NAME, "issue"), "Issue -> Issued"),
        Flow::respond(subject::local(NAME, "revoke"), "Withdraw -> ()"),
        Flow::watch(BUCKET_LOCAL, TOPICS, "Local"),
        Flow::report(subject::event(NAME, subject::EVENT_AUDIT), "AuditRecord"),
    ]
}

/// What only the rim can do.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Make the user, or find it.
    Put(Message, Issue),
    /// Remove the user.
    Remove(Message, Withdraw),
    /// From now on pods may consume these Topics, and no others: those that are there, and those to come.
    Grant(Declared),
    /// Make a device's user, with these rights.
    Create(Message, NewDevice, Permissions),
    /// Tell the devices.
    List(Message),
    /// Remove a device's user.
    Revoke(Message, RevokeDevice),
}

/// What the rim tells.
#[derive(Debug)]
pub enum Done {
    /// The answer to one question.
    Answer(Message, Vec<u8>),
    /// What the server refused.
    Denied(Vec<Denial>),
    /// What became of an [`Act::Grant`].
    Granted(Result<(), String>),
}

/// The module. Of credentials it holds nothing: the server's users are the state.
pub struct Credentials {
    node: NodeName,
    refusals: Thinned,
    current: bool,
    topics: BTreeMap<DesiredKey, Topic>,
    /// The Topics changed since the last grant that is under way or done.
    changed: bool,
    granting: bool,
}

impl Credentials {
    /// The module of `node`.
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            refusals: Thinned::default(),
            current: false,
            topics: BTreeMap::new(),
            changed: true,
            granting: false,
        }
    }

    fn report(&self, record: &AuditRecord) -> Effect<Act> {
        let headers =
            envelope::headers(self.node.as_str(), NAME, subject::EVENT_AUDIT, &record.id, record.at);
        let subject = subject::event(NAME, subject::EVENT_AUDIT);
        Effect::Report { subject, headers, payload: schemas::encode(record) }
    }

    fn entry(&mut self, entry: &Entry) -> Vec<Effect<Act>> {
        let Some(key) = DesiredKey::parse_local(&entry.key) else { return Vec::new() };
        let EntryValue::Put(bytes) = &entry.value else { return Vec::new() };
        // What cannot be read is told by the module that makes the streams; rights stay as they were.
        let Ok(Local { desired, .. }) = schemas::decode::<Local>(bytes) else { return Vec::new() };
        self.changed |= match desired.content {
            Content::Tombstone => self.topics.remove(&key).is_some(),
            Content::Object(object) => match Topic::read(&object) {
                Ok(topic) => self.topics.insert(key, topic.clone()).as_ref() != Some(&topic),
                Err(_) => false,
            },
        };
        self.grant()
    }

    fn grant(&mut self) -> Vec<Effect<Act>> {
        if !self.current || self.granting || !self.changed {
            return Vec::new();
        }
        self.changed = false;
        self.granting = true;
        vec![Effect::Act(Act::Grant(Declared::of(self.topics.values())))]
    }

    fn asked(&self, message: &Message) -> Result<Act, Refusal> {
        let (asked, body) = (message.clone(), &message.payload);
        let unread = |error| Refusal::new(400, "EW-BAD-REQUEST", format!("{}: {error}", message.subject));
        let of = |verb| message.subject == subject::command(&self.node, NAME, verb);
        if message.subject == subject::local(NAME, "issue") {
            Ok(Act::Put(asked, schemas::decode(body).map_err(unread)?))
        } else if of(device::CREATE) {
            let wanted: NewDevice = schemas::decode(body).map_err(unread)?;
            let rights = device::permissions(&self.node, &wanted)?;
            Ok(Act::Create(asked, wanted, rights))
        } else if of(device::LIST) {
            Ok(Act::List(asked))
        } else if of(device::REVOKE) {
            Ok(Act::Revoke(asked, schemas::decode(body).map_err(unread)?))
        } else {
            Ok(Act::Remove(asked, schemas::decode(body).map_err(unread)?))
        }
    }

    fn denied(&mut self, denials: Vec<Denial>, now: Timestamp) -> Vec<Effect<Act>> {
        let mut records = self.refusals.due(now);
        for denial in denials {
            let kind = format!("{} {}", denial.user, denial.verb);
            records.extend(self.refusals.add(&kind, denial.record(self.node.as_str(), now), now));
        }
        records.iter().map(|record| self.report(record)).collect()
    }
}

impl Module for Credentials {
    type Act = Act;
    type Done = Done;

    fn apply(&mut self, input: Input<Done>, now: Timestamp) -> Vec<Effect<Act>> {
        match input {
            Input::Message(message) => match self.asked(&message) {
                Ok(act) => vec![Effect::Act(act)],
                Err(refusal) => Effect::reply(&message, &Reply::<()>::Err(refusal)).into_iter().collect(),
            },
            Input::Entry(entry) => self.entry(&entry),
            Input::Current { .. } => {
                self.current = true;
                self.grant()
            }
            // The next tick tries again what failed.
            Input::Tick => self.grant(),
            Input::Done(Done::Granted(outcome)) => {
                self.granting = false;
                if let Err(error) = outcome {
                    tracing::warn!(error, "pods cannot be given the rights of their topics yet");
                    self.changed = true;
                    return Vec::new();
                }
                self.grant()
            }
            Input::Done(Done::Denied(denials)) => self.denied(denials, now),
            Input::Done(Done::Answer(message, answer)) => match message.reply {
                Some(to) => vec![Effect::Reply { account: message.account, to, payload: answer }],
                None => Vec::new(),
            },
            _ => Vec::new(),
        }
    }
}

fn user_name(uid: &str) -> String {
    format!("{POD}{}", subject::token(uid))
}

/// The rim: the node's server.
pub struct CredentialsRim {
    node: NodeName,
    server: Arc<LeafServer>,
    /// The Topics that were granted last; `None` before the first time. Held while users are changed, so that a login that is
    /// made meanwhile has the same rights as the others.
    declared: Mutex<Option<Declared>>,
    /// Where the door for HTTP is, if there is one.
    http: Option<SocketAddr>,
}

impl CredentialsRim {
    /// Of the server of `node`, whose door for HTTP is at `http`, if there is one.
    pub fn new(node: NodeName, server: Arc<LeafServer>, http: Option<SocketAddr>) -> Self {
        Self { node, server, declared: Mutex::new(None), http }
    }

    async fn put(&self, issue: &Issue) -> Reply<Issued> {
        let name = user_name(&issue.uid);
        let declared = self.declared.lock().await;
        let topics = declared.as_ref().map(|declared| declared.in_namespace(&issue.namespace));
        let found = self.server.user(&name).await;
        let inbox = found.as_ref().and_then(|user| rights::inbox_of(&user.permissions));
        let inbox = inbox.unwrap_or_else(|| subject::pod_inbox(&issue.namespace, &name));
        let allowed = permissions(&self.node, &issue.namespace, &inbox, topics.unwrap_or_default());
        let user = match found {
            // Before the Topics are known it keeps what it has.
            Some(user) if user.permissions == allowed || topics.is_none() => user,
            found => {
                let mut user = User::new(&name, Account::Work, allowed);
                if let Some(found) = found {
                    user.password = found.password;
                }
                self.server.put_users(vec![user.clone()]).await.map_err(|error| {
                    Refusal::new(500, "EW-CREDENTIAL", format!("no credential for the pod: {error}"))
                })?;
                user
            }
        };
        Ok(self.doors(user, inbox).await)
    }

    /// The doors that a user has.
    async fn doors(&self, user: User, inbox: String) -> Issued {
        let at =
            |scheme: &str, address: &str| format!("{scheme}://{}:{}@{address}", user.name, user.password);
        let mqtt = self.server.mqtt().await.map(|address| at("mqtt", &address.to_string()));
        let url = at("nats", self.server.url().trim_start_matches("nats://"));
        let http = self.http.map(|address| at("http", &address.to_string()));
        Issued { url, inbox, http_url: http, mqtt_url: mqtt, user: user.name, password: user.password }
    }

    async fn remove(&self, name: String) -> Result<(), ServerError> {
        // A pod that wanted no login has none: no reload for that.
        match self.server.user(&name).await {
            Some(_) => self.server.remove_users(&[name]).await,
            None => Ok(()),
        }
    }

    /// Gives every pod's login the rights that follow from the Topics; one reload for all, none when nothing changes.
    async fn grant(&self, topics: Declared) -> Result<(), String> {
        let mut declared = self.declared.lock().await;
        let mut changed = Vec::new();
        for user in self.server.users().await {
            let pod = user.account == Account::Work && user.name.starts_with(POD);
            let Some(namespace) = namespace_of(&user.permissions).filter(|_| pod) else { continue };
            let Some(inbox) = rights::inbox_of(&user.permissions) else { continue };
            let allowed = permissions(&self.node, &namespace, &inbox, topics.in_namespace(&namespace));
            if user.permissions != allowed {
                changed.push(User { permissions: allowed, ..user });
            }
        }
        if !changed.is_empty() {
            self.server.put_users(changed).await.map_err(|error| error.to_string())?;
        }
        *declared = Some(topics);
        Ok(())
    }
}

impl Rim<Credentials> for CredentialsRim {
    async fn act(&self, _bus: &Handles, act: Act) -> Option<Done> {
        Some(match act {
            Act::Put(message, issue) => {
                let issued = self.put(&issue).await;
                Done::Answer(message, schemas::encode(&issued))
            }
            Act::Remove(message, withdraw) => {
                let removed: Reply<()> = self.remove(user_name(&withdraw.uid)).await.map_err(|error| {
                    Refusal::new(500, "EW-CREDENTIAL", format!("the credential stays: {error}"))
                });
                Done::Answer(message, schemas::encode(&removed))
            }
            Act::Grant(topics) => Done::Granted(self.grant(topics).await),
            Act::Create(message, wanted, rights) => {
                Done::Answer(message, schemas::encode(&self.create(wanted, rights).await))
            }
            Act::List(message) => Done::Answer(message, schemas::encode(&self.list().await)),
            Act::Revoke(message, revoke) => {
                Done::Answer(message, schemas::encode(&self.revoke(&revoke).await))
            }
        })
    }

    async fn watch(&self, _bus: &Handles, tell: mpsc::Sender<Done>) -> Result<(), String> {
        let mut denials = self.server.denials().await;
        while tell.send(Done::Denied(denials.next().await)).await.is_ok() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rubbish_is_answered() {
        let message = Message {
            account: Account::Control,
            subject: subject::local(NAME, "issue"),
            headers: Default::default(),
            payload: b"rubbish".to_vec(),
            reply: Some("r".into()),
        };
        let effects =
            Credentials::new(NodeName::new("n1").unwrap()).apply(Input::Message(message), Timestamp(0));
        assert!(matches!(effects.as_slice(), [Effect::Reply { .. }]));
    }

    #[test]
    fn a_pod_that_knocks_all_the_time_is_one_record_and_its_number() {
        let mut module = Credentials::new(NodeName::new("n1").unwrap());
        let denial = Denial { user: "pod-x".into(), verb: "publish", subject: "b.c".into(), count: 1 };
        let mut told = Vec::new();
        for ms in (0..1_300_000).step_by(2_000) {
            let effects = module.apply(Input::Done(Done::Denied(vec![denial.clone()])), Timestamp(ms));
            told.extend(effects.into_iter().map(|effect| match effect {
                Effect::Report { payload, .. } => schemas::decode::<AuditRecord>(&payload).unwrap(),
                other => panic!("{other:?}"),
            }));
        }
        let counts: Vec<u64> = told.iter().map(|record| record.count).collect();
        assert_eq!(counts, [1, 299, 300]);
        let first = told.first().unwrap();
        assert_eq!((first.user.as_str(), first.object.as_str(), first.refused()), ("pod-x", "b.c", true));
    }

    fn topic(name: &str, content: Content) -> Input<Done> {
        let uid = format!("u-{name}");
        let key = DesiredKey { plural: "topics".into(), namespace: "demo".into(), name: name.into(), uid };
        let desired = schemas::desired::Desired {
            generation: "g".into(),
            epoch: "e".into(),
            resource_version: 1,
            content,
        };
        Input::Entry(Entry {
            bucket: BUCKET_LOCAL.into(),
            key: key.local_key(),
            revision: 1,
            value: EntryValue::Put(schemas::encode(&Local { revision: 1, desired })),
        })
    }

    fn object(name: &str) -> Content {
        let mut object = schemas::object::Object::new(schemas::topic::API_VERSION, "Topic", "demo", name);
        object.set(&["metadata", "uid"], format!("u-{name}"));
        object.set(&["spec", "subjects"], vec![format!("app.demo.{name}")]);
        Content::Object(object)
    }

    #[test]
    fn topics_become_rights_one_grant_at_a_time() {
        let mut module = Credentials::new(NodeName::new("n1").unwrap());
        let granted = |effects: Vec<Effect<Act>>| -> Option<usize> {
            match effects.into_iter().next() {
                Some(Effect::Act(Act::Grant(declared))) => {
                    Some(declared.in_namespace(&"demo".parse().unwrap()).len())
                }
                None => None,
                Some(other) => panic!("{other:?}"),
            }
        };
        let mut apply = |input| granted(module.apply(input, Timestamp(0)));
        let current = || Input::Current { bucket: BUCKET_LOCAL.into(), filter: TOPICS.into() };
        assert_eq!(apply(topic("a", object("a"))), None, "not before all are known");
        assert_eq!(apply(current()), Some(1));
        assert_eq!(apply(topic("b", object("b"))), None, "one at a time");
        assert_eq!(apply(Input::Done(Done::Granted(Ok(())))), Some(2));
        assert_eq!(apply(topic("a", Content::Tombstone)), None);
        assert_eq!(apply(Input::Done(Done::Granted(Err("away".into())))), None);
        assert_eq!(apply(Input::Tick), Some(1), "what failed is tried again");
        assert_eq!(apply(Input::Done(Done::Granted(Ok(())))), None);
        assert_eq!(apply(topic("b", object("b"))), None, "nothing new");
        assert_eq!(apply(Input::Tick), None);
    }
}
