//! Gives each pod its own credential for the node's server, and takes it back; and logins for devices and programs outside
//! pods, for the operator ([`device`]).
//!
//! In: `ew.local.credentials.issue` and `.revoke`, asked by `containers`; `ew.cmd.<node>.credentials.create`, `.list` and
//! `.revoke`, asked by `edgewire creds`. Out: the answer; and, for the hub's audit, what the node's server refused whom
//! (`ew.evt.credentials.Audit`, kept in the node's OUTBOX while it is offline). The credential is made on the node, offline too;
//! it opens the pod's namespace on this node and nothing anywhere else, and it stays the same for the life of the pod, across
//! restarts of everything.

pub mod device;

use std::net::SocketAddr;
use std::sync::Arc;

use bus::connection::Handles;
use bus::flow::Flow;
use bus::identity::Permissions;
use bus::module::{Account, Effect, Input, Message, Module, Rim};
use bus::server::{Denial, LeafServer, ServerError, User};
use schemas::Timestamp;
use schemas::audit::{AuditRecord, Thinned};
use schemas::command::{Refusal, Reply};
use schemas::credential::{Issue, Issued, NewDevice, RevokeDevice, Withdraw};
use schemas::envelope;
use schemas::name::{Namespace, NodeName};
use schemas::subject;
use tokio::sync::mpsc;

/// Name of the module.
pub const NAME: &str = "credentials";

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
}

/// The module. Of credentials it holds nothing: the server's users are the state.
pub struct Credentials {
    node: NodeName,
    refusals: Thinned,
}

impl Credentials {
    /// The module of `node`.
    pub fn new(node: NodeName) -> Self {
        Self { node, refusals: Thinned::default() }
    }

    fn report(&self, record: &AuditRecord) -> Effect<Act> {
        let headers =
            envelope::headers(self.node.as_str(), NAME, subject::EVENT_AUDIT, &record.id, record.at);
        let subject = subject::event(NAME, subject::EVENT_AUDIT);
        Effect::Report { subject, headers, payload: schemas::encode(record) }
    }

    fn asked(&self, message: &Message) -> Result<Act, Refusal> {
        let (asked, body) = (message.clone(), &message.payload);
        let unread = |error| Refusal::new(400, "EW-BAD-REQUEST", format!("{}: {error}", message.subject));
        let of = |verb| message.subject == subject::command(&self.node, NAME, verb);
        if message.subject == subject::local(NAME, "issue") {
            Ok(Act::Put(asked, schemas::decode(body).map_err(unread)?))
        } else if of(device::CREATE) {
            let wanted: NewDevice = schemas::decode(body).map_err(unread)?;
            let rights = device::permissions(&wanted)?;
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
            Input::Done(Done::Denied(denials)) => self.denied(denials, now),
            Input::Done(Done::Answer(message, answer)) => match message.reply {
                Some(to) => vec![Effect::Reply { account: message.account, to, payload: answer }],
                None => Vec::new(),
            },
            _ => Vec::new(),
        }
    }
}

/// What a pod of that namespace may do on its node. Of JetStream it may acknowledge what its namespace is handed out, and nothing
/// else: a pod that may create one stream reads everything, and one that may pull has what it pulls sent to any subject, also
/// another namespace's (measured).
/// The same by MQTT: of `$MQTT.` nobody needs a right, because the server's own MQTT needs none (measured with 2.15.1). Besides it
/// may write to inboxes, as all in WORK.
pub fn permissions(namespace: &Namespace, inbox: &str) -> Permissions {
    let own = |class: &str| format!("{class}.{namespace}.>");
    let mut permissions = Permissions {
        // Its own inbox too: what it says there comes back after any refusal of what it said before, and by that the door
        // for HTTP knows that a word was taken.
        publish_allow: vec![
            own("app"),
            own("up"),
            own("bulk"),
            own("local"),
            format!("$JS.ACK.{}.{namespace}.>", subject::STREAM_DOWN),
            format!("{inbox}.>"),
        ],
        subscribe_allow: vec![
            own("app"),
            own("down"),
            own("local"),
            subject::stored(namespace),
            format!("{inbox}.>"),
        ],
    };
    // An MQTT client that listens to `app/<namespace>/#` asks for the subject above as well.
    permissions.subscribe_allow.extend(["app", "down", "local"].map(|class| format!("{class}.{namespace}")));
    permissions
}

fn user_name(uid: &str) -> String {
    format!("pod-{}", subject::token(uid))
}

/// The rim: the node's server.
pub struct CredentialsRim {
    /// The server.
    pub server: Arc<LeafServer>,
    /// Where the door for HTTP is, if there is one.
    pub http: Option<SocketAddr>,
}

impl CredentialsRim {
    async fn put(&self, issue: &Issue) -> Reply<Issued> {
        let name = user_name(&issue.uid);
        let inbox = subject::inbox(&name);
        let allowed = permissions(&issue.namespace, &inbox);
        let user = match self.server.user(&name).await {
            Some(user) if user.permissions == allowed => user,
            known => {
                // One of an earlier version's keeps its password: the pod's other containers go on with it.
                let user = match known {
                    Some(user) => User { permissions: allowed, ..user },
                    None => User::new(&name, Account::Work, allowed),
                };
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
    fn a_pod_reaches_its_namespace_and_no_jetstream() {
        let allowed = permissions(&Namespace::new("demo").unwrap(), "_INBOX.pod-1");
        let may =
            |list: &[String], subject: &str| list.iter().any(|filter| subject::matches(filter, subject));
        for (subject, publish, hear) in [
            ("app.demo.temp", true, true),
            ("up.demo.temp", true, false),
            ("bulk.demo.temp", true, false),
            ("bulk.other.temp", false, false),
            ("down.demo.temp", false, true),
            ("local.demo.a.b", true, true),
            ("app.other.temp", false, false),
            ("up.other.temp", false, false),
            ("stored.demo", false, true),
            ("stored.other", false, false),
            ("$JS.ACK.DOWN.demo.1.2.3.4.5", true, false),
            ("$JS.ACK.DOWN.other.1.2.3.4.5", false, false),
            ("$JS.API.CONSUMER.MSG.NEXT.DOWN.demo", false, false),
            ("_down.demo.temp", false, false),
            ("$JS.API.STREAM.CREATE.X", false, false),
            ("$JS.API.INFO", false, false),
            ("_INBOX.pod-1.x", true, true),
            ("_INBOX.pod-2.x", false, false),
            ("stored.demo", false, true),
            ("stored.other", false, false),
            ("$JS.ACK.DOWN.demo.1.2.3.4.5", true, false),
            ("$JS.ACK.DOWN.other.1.2.3.4.5", false, false),
            ("_down.demo.x", false, false),
            ("app.demo", false, true),
            ("app.other", false, false),
            ("down", false, false),
            ("$MQTT.sub.x", false, false),
            ("$MQTT.msgs.app.demo.temp", false, false),
            ("ew.cmd.n.x", false, false),
        ] {
            assert_eq!(may(&allowed.publish_allow, subject), publish, "publish {subject}");
            assert_eq!(may(&allowed.subscribe_allow, subject), hear, "subscribe {subject}");
        }
    }

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
}
