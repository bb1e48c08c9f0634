//! What a pod may do on its node: its namespace's subjects, the inboxes of its namespace, and consuming its namespace's
//! Topics. Pure.
//!
//! The same by NATS and by MQTT: of `$MQTT.` nobody needs a right, because the server's own MQTT needs none (measured with 2.15.1).
//!
//! No raw JetStream: a pod that may create one stream or one consumer reads everything. A right to consume names the
//! Topic's stream, and opens what stands there already.

use std::collections::BTreeMap;

use bus::identity::Permissions;
use schemas::name::{Namespace, NodeName};
use schemas::subject;
use schemas::topic::{NAMESPACE_TOPICS_MAX, Topic};

/// How the names of pods' users begin.
pub const POD: &str = "pod-";

/// The Topics of a node, by their namespace.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Declared(BTreeMap<Namespace, Vec<Topic>>);

impl Declared {
    /// These. Of one namespace at most as many as a node makes, whichever the first by name are.
    pub fn of<'a>(topics: impl Iterator<Item = &'a Topic>) -> Self {
        let mut by_namespace: BTreeMap<Namespace, Vec<Topic>> = BTreeMap::new();
        for topic in topics {
            let list = by_namespace.entry(topic.namespace.clone()).or_default();
            if list.len() < NAMESPACE_TOPICS_MAX {
                list.push(topic.clone());
            }
        }
        Self(by_namespace)
    }

    /// Those of one namespace.
    pub fn in_namespace(&self, namespace: &Namespace) -> &[Topic] {
        self.0.get(namespace).map_or(&[], Vec::as_slice)
    }
}

/// What a pod of that namespace may do, with that inbox.
pub fn permissions(node: &NodeName, namespace: &Namespace, inbox: &str, topics: &[Topic]) -> Permissions {
    let own = |class: &str| format!("{class}.{namespace}.>");
    let mut publish = vec![own("app"), own("up"), own("bulk"), own("local")];
    // Of what waits in DOWN it may acknowledge what its namespace is handed out; it may not pull there: what is pulled goes to
    // any subject that the asker names (measured).
    publish.push(format!("$JS.ACK.{}.{namespace}.>", subject::STREAM_DOWN));
    // What it says to its own inbox comes back after any refusal of what it said before, and by that the door for HTTP knows
    // that a word was taken.
    publish.push(format!("{inbox}.>"));
    // Answers: to its namespace's pods, and to whoever asks on this node under an inbox that nobody can guess.
    publish.push(format!("{}.>", subject::pod_inboxes(namespace)));
    publish.push(format!("{}.>", subject::inbox(node.as_str())));
    let mut subscribe =
        vec![own("app"), own("down"), own("local"), subject::stored(namespace), format!("{inbox}.>")];
    // An MQTT client that listens to `app/<namespace>/#` asks for the subject above as well.
    subscribe.extend(["app", "down", "local"].map(|class| format!("{class}.{namespace}")));
    for topic in topics {
        publish.extend(subject::consume_topic(node, &topic.stream()));
        // Its plain subjects are the namespace's once a Topic says so.
        let plain = topic
            .subjects
            .iter()
            .filter(|subject| !["app", "local"].iter().any(|class| is_of(class, subject)));
        for subject in plain {
            publish.push(subject.clone());
            subscribe.push(subject.clone());
        }
    }
    Permissions { publish_allow: publish, subscribe_allow: subscribe }
}

fn is_of(class: &str, subject: &str) -> bool {
    subject.split('.').next() == Some(class)
}

/// The namespace of a pod's user, read off what it may do.
pub fn namespace_of(permissions: &Permissions) -> Option<Namespace> {
    let own = permissions.publish_allow.iter().find_map(|allowed| allowed.strip_prefix("app."));
    Namespace::new(own?.strip_suffix(".>")?).ok()
}

/// The inbox of a pod's user: its containers were told it, so it stays.
pub fn inbox_of(permissions: &Permissions) -> Option<String> {
    let inbox = permissions.subscribe_allow.iter().find(|allowed| is_of("_INBOX", allowed));
    inbox?.strip_suffix(".>").map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::topic::Class;

    fn topic(namespace: &str, name: &str, subject: &str) -> Topic {
        Topic {
            namespace: namespace.parse().unwrap(),
            name: name.into(),
            uid: "u".into(),
            subjects: vec![subject.into()],
            class: Class::Durable,
            size_max_bytes: 1,
            age_max_ms: None,
            consumers: Vec::new(),
        }
    }

    #[test]
    fn a_pod_reaches_its_namespace_and_its_topics_and_no_other_jetstream() {
        let (node, demo) = (NodeName::new("n1").unwrap(), Namespace::new("demo").unwrap());
        let topics = [topic("demo", "x", "demo.x.>"), topic("other", "y", "other.y.>")];
        let declared = Declared::of(topics.iter());
        let inbox = subject::pod_inbox(&demo, "pod-1");
        let allowed = permissions(&node, &demo, &inbox, declared.in_namespace(&demo));
        assert_eq!((namespace_of(&allowed), inbox_of(&allowed)), (Some(demo), Some(inbox)));
        let may =
            |list: &[String], subject: &str| list.iter().any(|filter| subject::matches(filter, subject));
        for (subject, publish, hear) in [
            ("app.demo.temp", true, true),
            ("up.demo.temp", true, false),
            ("bulk.demo.temp", true, false),
            ("bulk.other.temp", false, false),
            ("down.demo.temp", false, true),
            ("local.demo.a.b", true, true),
            ("demo.x.1", true, true),
            ("demo.y", false, false),
            ("other.y.1", false, false),
            ("app.other.temp", false, false),
            ("up.other.temp", false, false),
            ("stored.demo", false, true),
            ("stored.other", false, false),
            ("$JS.ACK.DOWN.demo.1.2.3.4.5", true, false),
            ("$JS.ACK.DOWN.other.1.2.3.4.5", false, false),
            ("$JS.API.CONSUMER.MSG.NEXT.DOWN.demo", false, false),
            ("_down.demo.temp", false, false),
            ("$JS.API.STREAM.CREATE.X", false, false),
            ("$JS.API.STREAM.CREATE.T_demo_x", false, false),
            ("$JS.API.STREAM.DELETE.T_demo_x", false, false),
            ("$JS.API.STREAM.PURGE.T_demo_x", false, false),
            ("$JS.API.STREAM.INFO.T_demo_x", true, false),
            ("$JS.API.STREAM.INFO.T_other_y", false, false),
            ("$JS.API.STREAM.INFO.UPLINK", false, false),
            ("$JS.API.CONSUMER.CREATE.T_demo_x.c", false, false),
            ("$JS.API.CONSUMER.DELETE.T_demo_x.c", false, false),
            ("$JS.API.CONSUMER.INFO.T_demo_x.c", true, false),
            ("$JS.API.CONSUMER.MSG.NEXT.T_demo_x.c", true, false),
            ("$JS.edge-n1.API.CONSUMER.MSG.NEXT.T_demo_x.c", true, false),
            ("$JS.hub.API.CONSUMER.MSG.NEXT.T_demo_x.c", false, false),
            ("$JS.API.CONSUMER.MSG.NEXT.T_other_y.c", false, false),
            ("$JS.API.CONSUMER.MSG.NEXT.UPLINK.c", false, false),
            ("$JS.API.DIRECT.GET.T_demo_x", false, false),
            ("$JS.ACK.T_demo_x.c.1.1.1.1.0", true, false),
            ("$JS.ACK.T_other_y.c.1.1.1.1.0", false, false),
            ("$JS.API.INFO", false, false),
            ("_INBOX._ns.demo.pod-1.x", true, true),
            ("_INBOX._ns.demo.pod-2.x", true, false),
            ("_INBOX._ns.other.pod-2.x", false, false),
            ("_INBOX.n1.http.x", true, false),
            ("_INBOX.n2.http.x", false, false),
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
    fn rights_are_bounded() {
        let many: Vec<Topic> = (0..100).map(|n| topic("demo", &n.to_string(), "app.demo.x")).collect();
        let declared = Declared::of(many.iter());
        assert_eq!(declared.in_namespace(&"demo".parse().unwrap()).len(), NAMESPACE_TOPICS_MAX);
        assert!(declared.in_namespace(&"other".parse().unwrap()).is_empty());
    }
}
