//! Allow-lists. What is not on them is refused by the server, so a forgotten subject is closed, not open.
//!
//! A module's answers need no entry: it may answer what it hears, a few times and for a while ([`RESPONSES_MAX`],
//! [`RESPONSES_TTL`]). Across a leaf this does not hold (measured with 2.15.1: the node's server drops the answer), so the
//! hub asks a node with a reply subject among the node's own (`ew.str.<node>.`), and no node may write to another's inbox.
//!
//! Nobody else has that right. The server does not look at the reply subject of what somebody publishes, so two who may talk
//! to each other (or one, to itself) could give each other the right to publish anything (measured: a pod had UPLINK deleted
//! so). Who answers in WORK may write to inboxes instead, all of them: nobody hears another's, and their names are made by
//! chance.

use std::time::Duration;

use schemas::name::NodeName;
use schemas::subject::{self, Lane};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::module::Account;

/// How many answers one request allows.
pub const RESPONSES_MAX: u32 = 16;
/// How long after a request it may be answered.
pub const RESPONSES_TTL: Duration = Duration::from_secs(120);

/// Everybody's inboxes.
const INBOXES: &str = "_INBOX.>";

/// What a user may publish to and subscribe to. An empty list allows nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permissions {
    /// Subjects (with wildcards) it may publish to.
    pub publish_allow: Vec<String>,
    /// Subjects (with wildcards) it may subscribe to.
    pub subscribe_allow: Vec<String>,
}

impl Permissions {
    /// Everything in its account: for the hub's own provisioning and for tests.
    pub fn full() -> Self {
        Self { publish_allow: vec![">".to_owned()], subscribe_allow: vec![">".to_owned()] }
    }

    /// As claims of a user's token; with `answers`, it may answer what it hears.
    pub(super) fn claims(&self, answers: bool) -> Vec<(String, Value)> {
        let mut claims = vec![
            ("pub".to_owned(), list(&self.publish_allow)),
            ("sub".to_owned(), list(&self.subscribe_allow)),
        ];
        if answers {
            let ttl_ns = u64::try_from(RESPONSES_TTL.as_nanos()).unwrap_or(u64::MAX);
            claims.push(("resp".to_owned(), json!({"max": RESPONSES_MAX, "ttl": ttl_ns})));
        }
        claims
    }

    /// As the `permissions` block of a user of that account in a server's configuration.
    pub(crate) fn config(&self, account: Account) -> Value {
        let subscribe = list(&self.subscribe_allow);
        match account {
            Account::Control => json!({
                "publish": list(&self.publish_allow),
                "subscribe": subscribe,
                "allow_responses": {"max": RESPONSES_MAX, "expires": format!("{}s", RESPONSES_TTL.as_secs())},
            }),
            Account::Work => {
                let publish = [self.publish_allow.as_slice(), &[INBOXES.to_owned()]].concat();
                json!({"publish": list(&publish), "subscribe": subscribe})
            }
        }
    }
}

/// NATS reads an empty allow-list as "everything", so nothing allowed is spelt as everything denied.
fn list(allow: &[String]) -> Value {
    if allow.is_empty() { json!({"deny": [">"]}) } else { json!({"allow": allow}) }
}

/// What a node's leaf credentials may do at the hub, in CONTROL and in WORK. `publish` is what the node sends to the hub,
/// `subscribe` what it may hear from there (measured, see `tests/server.rs`). A node that bears the hub's own name would
/// hear the hub's answers: it may do nothing.
pub fn node_permissions(node: &NodeName) -> (Permissions, Permissions) {
    if node.as_str() == subject::DOMAIN_HUB {
        return (Permissions::default(), Permissions::default());
    }
    let api = |verb: &str| format!("$JS.{}.API.{verb}", subject::DOMAIN_HUB);
    let inbox = format!("{}.>", subject::inbox(node.as_str()));
    let desired = subject::bucket_stream(subject::BUCKET_DESIRED);
    let consumer = subject::desired_consumer(node);

    let mut control = Permissions {
        publish_allow: vec![
            subject::request(node, ">"),
            subject::heartbeat(node),
            subject::stream_up(node, ">"),
            subject::module_state(node.as_str(), "*"),
            api(&format!("CONSUMER.MSG.NEXT.{desired}.{consumer}")),
            // Both forms of an acknowledgement; the longer one names the stream's domain and account hash.
            format!("$JS.ACK.{desired}.{consumer}.>"),
            format!("$JS.ACK.{}.*.{desired}.{consumer}.>", subject::DOMAIN_HUB),
        ],
        subscribe_allow: vec![format!("ew.cmd.{node}.>"), inbox.clone()],
    };
    let mut work = Permissions {
        publish_allow: vec!["app.>".to_owned()],
        subscribe_allow: vec!["app.>".to_owned(), inbox],
    };
    // A read of the node's own stream, whatever its body says: no other node's message stands in it.
    work.publish_allow.push(api(&format!("DIRECT.GET.{}", subject::to_stream(node))));
    for lane in Lane::ALL {
        let permissions = if lane.is_alone() { &mut work } else { &mut control };
        let (stream, cursor) = (lane.hub_stream(), subject::cursor(node, lane));
        permissions.publish_allow.extend(subject::raised(node, lane, lane.filter()));
        // The form with the subject in the subject: the form with it in the body would open every node's messages.
        permissions.publish_allow.push(api(&format!("DIRECT.GET.{stream}.{cursor}")));
        permissions.publish_allow.push(cursor);
    }
    (control, work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_allowed_is_everything_denied() {
        assert_eq!(Permissions::default().config(Account::Control)["publish"], json!({"deny": [">"]}));
        assert_eq!(Permissions::full().config(Account::Control)["publish"], json!({"allow": [">"]}));
    }

    #[test]
    fn nobody_but_a_module_gets_rights_by_being_asked() {
        let nothing = Permissions::default();
        assert!(nothing.config(Account::Control).get("allow_responses").is_some());
        let in_work = nothing.config(Account::Work);
        assert_eq!(in_work.get("allow_responses"), None);
        assert_eq!(in_work["publish"], json!({"allow": ["_INBOX.>"]}));
        for answers in [true, false] {
            assert_eq!(nothing.claims(answers).iter().any(|(name, _)| name == "resp"), answers);
        }
    }

    #[test]
    fn no_node_is_the_hub() {
        let nothing = (Permissions::default(), Permissions::default());
        assert_eq!(node_permissions(&NodeName::new("hub").unwrap()), nothing);
    }

    #[test]
    fn a_node_may_touch_its_own_and_nothing_else() {
        let (control, work) = node_permissions(&NodeName::new("n1").unwrap());
        let allows = |list: &[String], subject: &str| list.iter().any(|f| subject::matches(f, subject));
        for (subject, publish, hear) in [
            ("ew.in.n1.state.ew.rep.containers.pod.a", true, false),
            ("ew.in.n1._cursor.events", true, false),
            ("ew.in.n2.state.ew.rep.containers.pod.a", false, false),
            ("ew.req.n1.desired.list", true, false),
            ("ew.req.n2.desired.list", false, false),
            ("ew.hb.n1", true, false),
            ("ew.str.n1.abc", true, false),
            ("ew.cmd.n1.containers.logs", false, true),
            ("ew.cmd.n1._stream.abc", false, true),
            ("ew.cmd.n2.containers.logs", false, false),
            ("_INBOX.hub.api.x", false, false),
            ("_INBOX.n1.x", false, true),
            ("_INBOX.n2.x", false, false),
            ("$JS.hub.API.CONSUMER.MSG.NEXT.KV_desired.node_n1", true, false),
            ("$JS.hub.API.CONSUMER.MSG.NEXT.KV_desired.node_n2", false, false),
            ("$JS.hub.API.CONSUMER.CREATE.KV_desired", false, false),
            ("$JS.hub.API.DIRECT.GET.UP", false, false),
            ("$JS.hub.API.DIRECT.GET.UP.ew.in.n1._cursor.state", true, false),
            ("$JS.hub.API.DIRECT.GET.UP.ew.in.n2._cursor.state", false, false),
            ("app.default.x", false, false),
        ] {
            assert_eq!(allows(&control.publish_allow, subject), publish, "publish {subject}");
            assert_eq!(allows(&control.subscribe_allow, subject), hear, "hear {subject}");
        }
        for (subject, publish, hear) in [
            ("app.default.x", true, true),
            ("from.n1.default.x", true, false),
            ("from.n2.default.x", false, false),
            ("from-bulk.n1.default.x", true, false),
            ("from-bulk.n2.default.x", false, false),
            ("bulk.default.x", false, false),
            ("_cursor.n1.bulk", true, false),
            ("_cursor.n2.bulk", false, false),
            ("_cursor.n1.workload", true, false),
            ("_cursor.n2.workload", false, false),
            ("up.default.x", false, false),
            ("local.default.x", false, false),
            ("$MQTT.msgs.app.default.x", false, false),
            ("$MQTT.rmsgs.app.default.x", false, false),
            ("$MQTT.sess.edge-n1.x", false, false),
            ("factory.line1.temp", false, false),
            ("to.n1.default.x", false, false),
            ("down.default.x", false, false),
            ("_down.default.x", false, false),
            ("$JS.hub.API.DIRECT.GET.TO_n1", true, false),
            ("$JS.hub.API.DIRECT.GET.TO_n2", false, false),
            ("$JS.hub.API.STREAM.PURGE.TO_n1", false, false),
            ("$JS.hub.API.CONSUMER.CREATE.TO_n1", false, false),
            ("$JS.hub.API.DIRECT.GET.FROM._cursor.n1.workload", true, false),
            ("ew.hb.n1", false, false),
        ] {
            assert_eq!(allows(&work.publish_allow, subject), publish, "publish {subject}");
            assert_eq!(allows(&work.subscribe_allow, subject), hear, "hear {subject}");
        }
    }
}
