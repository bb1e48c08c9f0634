//! Gives each pod its own credential for the node's server, and takes it back.
//!
//! In: `ew.local.credentials.issue` and `.revoke`, asked by `containers`. Out: the answer; and, for the hub's audit, what the
//! node's server refused whom (`ew.evt.credentials.Audit`, kept in the node's OUTBOX while it is offline). The credential is made on the
//! node, offline too; it opens the pod's namespace on this node and nothing anywhere else, and it stays the same for the
//! life of the pod, across restarts of everything.

use std::net::SocketAddr;
use std::sync::Arc;

use bus::connection::Handles;
use bus::flow::Flow;
use bus::identity::Permissions;
use bus::module::{Account, Effect, Input, Message, Module, Rim};
use bus::server::{Denial, LeafServer, User};
use schemas::Timestamp;
use schemas::audit::{AuditRecord, Thinned};
use schemas::command::{Refusal, Reply};
use schemas::credential::{Issue, Issued, Withdraw};
use schemas::envelope;
use schemas::name::{Namespace, NodeName};
use schemas::subject;
use tokio::sync::mpsc;

/// Name of the module.
pub const NAME: &str = "credentials";

/// All that the module reads and writes.
pub fn flows() -> Vec<Flow> {
    vec![
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
            Input::Message(message) => {
                let act = if message.subject == subject::local(NAME, "issue") {
                    schemas::decode(&message.payload).map(|issue| Act::Put(message.clone(), issue))
                } else {
                    schemas::decode(&message.payload).map(|withdraw| Act::Remove(message.clone(), withdraw))
                };
                match act {
                    Ok(act) => vec![Effect::Act(act)],
                    Err(error) => {
                        let refusal: Reply<()> =
                            Err(Refusal::new(400, "EW-BAD-REQUEST", format!("{}: {error}", message.subject)));
                        Effect::reply(&message, &refusal).into_iter().collect()
                    }
                }
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

/// What a pod of that namespace may do on its node; besides it may write to inboxes, as all in WORK. No raw JetStream: a pod
/// that may create one stream reads everything.
pub fn permissions(namespace: &Namespace, inbox: &str) -> Permissions {
    let own = |class: &str| format!("{class}.{namespace}.>");
    Permissions {
        // Its own inbox too: what it says there comes back after any refusal of what it said before, and by that the door
        // for HTTP knows that a word was taken.
        publish_allow: vec![own("app"), own("up"), own("bulk"), own("local"), format!("{inbox}.>")],
        subscribe_allow: vec![own("app"), own("down"), own("local"), format!("{inbox}.>")],
    }
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
        let address = self.server.url().trim_start_matches("nats://");
        let url = format!("nats://{}:{}@{address}", user.name, user.password);
        let http_url = self.http.map(|http| format!("http://{}:{}@{http}", user.name, user.password));
        Ok(Issued { url, inbox, http_url })
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
                let removed: Reply<()> =
                    self.server.remove_users(&[user_name(&withdraw.uid)]).await.map_err(|error| {
                        Refusal::new(500, "EW-CREDENTIAL", format!("the credential stays: {error}"))
                    });
                Done::Answer(message, schemas::encode(&removed))
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
            ("$JS.API.STREAM.CREATE.X", false, false),
            ("$JS.API.INFO", false, false),
            ("_INBOX.pod-1.x", true, true),
            ("_INBOX.pod-2.x", false, false),
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
