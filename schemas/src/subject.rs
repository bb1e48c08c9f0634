//! Every subject, stream, bucket, key and consumer name that Edgewire uses. They are built here and nowhere else.
//!
//! A subject is tokens joined by dots. A Kubernetes name may hold dots (`a.b`) and, in RBAC, characters that
//! NATS refuses, so one codec turns any text into one token and back: letters, digits, `-` and `_` stand for
//! themselves, everything else is `=XX` (two upper case hex digits a byte). `=` is legal in subjects and in KV keys;
//! the empty text (no namespace, the core API group) is the single token `=`.

mod audit;
mod declared;
mod down;
mod mqtt;

pub use audit::*;
pub use declared::*;
pub use down::*;
pub use mqtt::*;

use crate::name::{Namespace, NodeName};

/// Account of Edgewire's own traffic.
pub const ACCOUNT_CONTROL: &str = "CONTROL";
/// Account of workloads and devices.
pub const ACCOUNT_WORK: &str = "WORK";
/// Account of the hub's own streams and modules, which call it CONTROL: nodes end in another of that name.
pub const ACCOUNT_HUB: &str = "HUB";
/// The server's own account.
pub const ACCOUNT_SYS: &str = "SYS";

/// Bucket of the API's objects, at the hub. `resourceVersion` is its stream sequence.
pub const BUCKET_OBJECTS: &str = "objects";
/// Bucket of what each node must have, at the hub.
pub const BUCKET_DESIRED: &str = "desired";
/// Bucket of the node's copy of its part of `desired`, at the edge.
pub const BUCKET_LOCAL: &str = "local";
/// Bucket of join tokens and enrolled nodes, at the hub.
pub const BUCKET_IDENTITY: &str = "identity";
/// Key inside [`BUCKET_DESIRED`] that holds its lineage (see [`crate::desired::Lineage`]).
pub const KEY_LINEAGE: &str = "_lineage";

/// Hub stream of everything that came up from nodes in CONTROL.
pub const STREAM_UP: &str = "UP";
/// Hub stream of workload messages that came up (`from.>`), in WORK.
pub const STREAM_FROM: &str = "FROM";
/// Edge stream of reports and events waiting to go up, in CONTROL.
pub const STREAM_OUTBOX: &str = "OUTBOX";
/// Edge stream of workload messages waiting to go up (`up.>`), in WORK.
pub const STREAM_UPLINK: &str = "UPLINK";
/// Edge stream of telemetry waiting to go up (`bulk.>`), in WORK: not synced before it is acknowledged, and the oldest goes
/// when it is full.
pub const STREAM_BULK: &str = "BULK";
/// Stream of what could not be decoded or applied, with payload and reason. One on each server.
pub const STREAM_DEAD: &str = "DEAD";

/// JetStream domain of the hub.
pub const DOMAIN_HUB: &str = "hub";

/// JetStream domain of a node: unique, so that every client can say which one it means.
pub fn domain_edge(node: &NodeName) -> String {
    format!("edge-{node}")
}

/// The stream behind a KV bucket.
pub fn bucket_stream(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// The subject of a key in a KV bucket.
pub fn kv(bucket: &str, key: &str) -> String {
    format!("$KV.{bucket}.{key}")
}

/// The durable consumer through which a node pulls its part of `desired`.
pub fn desired_consumer(node: &NodeName) -> String {
    format!("node_{node}")
}

/// The prefix of a node's inboxes. Only its own modules may listen there. The hub's is `inbox("hub")`.
pub fn inbox(node: &str) -> String {
    format!("_INBOX.{node}")
}

/// The prefix of the inboxes of one module (or tool) on a node or at the hub.
pub fn module_inbox(node: &str, module: &str) -> String {
    format!("_INBOX.{node}.{module}")
}

/// The prefix of a pod's inboxes. Those of a namespace stand together, so that its pods may answer each other; no node's name
/// begins with `_`, so they are nobody else's.
pub fn pod_inbox(namespace: &Namespace, user: &str) -> String {
    format!("{}.{user}", pod_inboxes(namespace))
}

/// What the inboxes of a namespace's pods begin with.
pub fn pod_inboxes(namespace: &Namespace) -> String {
    format!("_INBOX._ns.{namespace}")
}

/// One text as one token. See the module's words for the form.
pub fn token(text: &str) -> String {
    if text.is_empty() {
        return "=".to_owned();
    }
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("={byte:02X}"));
        }
    }
    out
}

/// The text behind a token; `None` when it is not one that [`token`] makes.
pub fn untoken(token: &str) -> Option<String> {
    if token == "=" {
        return Some(String::new());
    }
    let mut out = Vec::with_capacity(token.len());
    let mut bytes = token.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'=' => {
                let hex = [bytes.next()?, bytes.next()?];
                let text = std::str::from_utf8(&hex).ok()?;
                if text.bytes().any(|b| b.is_ascii_lowercase()) {
                    return None;
                }
                let value = u8::from_str_radix(text, 16).ok()?;
                if value.is_ascii_alphanumeric() || value == b'-' || value == b'_' {
                    return None;
                }
                out.push(value);
            }
            b if b.is_ascii_alphanumeric() || b == b'-' || b == b'_' => out.push(b),
            _ => return None,
        }
    }
    if out.is_empty() { None } else { String::from_utf8(out).ok() }
}

/// A group and the plural name of a resource in it, such as `("", "pods")`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Resource {
    /// API group; empty for core.
    pub group: String,
    /// Plural, lower case.
    pub plural: String,
}

impl Resource {
    /// A resource of the core group.
    pub fn core(plural: &str) -> Self {
        Self { group: String::new(), plural: plural.to_owned() }
    }
}

/// The key of one object in [`BUCKET_OBJECTS`]: `<group>.<resource>.<ns>.<name>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct ObjectKey {
    /// Group and plural.
    pub resource: Resource,
    /// Namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// Name, as the object has it.
    pub name: String,
}

impl ObjectKey {
    /// A key in the core group.
    pub fn core(plural: &str, namespace: &str, name: &str) -> Self {
        Self { resource: Resource::core(plural), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The KV key.
    pub fn key(&self) -> String {
        format!(
            "{}.{}.{}.{}",
            token(&self.resource.group),
            token(&self.resource.plural),
            token(&self.namespace),
            token(&self.name)
        )
    }

    /// Reads a KV key.
    pub fn parse(key: &str) -> Option<Self> {
        let mut parts = key.split('.').map(untoken);
        let this = Self {
            resource: Resource { group: parts.next()??, plural: parts.next()?? },
            namespace: parts.next()??,
            name: parts.next()??,
        };
        parts.next().is_none().then_some(this)
    }

    /// `namespace/name`, or `name` for cluster-scoped objects: how people write it.
    pub fn display(&self) -> String {
        if self.namespace.is_empty() {
            self.name.clone()
        } else {
            format!("{}/{}", self.namespace, self.name)
        }
    }
}

/// KV filter for all objects of a resource, in one namespace or in all.
pub fn objects_filter(resource: &Resource, namespace: Option<&str>) -> String {
    let namespace = namespace.map_or_else(|| "*".to_owned(), token);
    format!("{}.{}.{namespace}.*", token(&resource.group), token(&resource.plural))
}

/// The key of one entry in [`BUCKET_DESIRED`] (`<node>.<resource>.<ns>.<name>.<uid>`). In [`BUCKET_LOCAL`] the same
/// without the node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct DesiredKey {
    /// Plural name of the resource: one of [`TOLD`].
    pub plural: String,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// UID of the object: a re-created object is another entry.
    pub uid: String,
}

impl DesiredKey {
    /// The KV key at the edge, in [`BUCKET_LOCAL`].
    pub fn local_key(&self) -> String {
        format!(
            "{}.{}.{}.{}",
            token(&self.plural),
            token(&self.namespace),
            token(&self.name),
            token(&self.uid)
        )
    }

    /// The KV key at the hub, in [`BUCKET_DESIRED`].
    pub fn desired_key(&self, node: &NodeName) -> String {
        format!("{node}.{}", self.local_key())
    }

    /// Reads a KV key of [`BUCKET_LOCAL`].
    pub fn parse_local(key: &str) -> Option<Self> {
        let mut parts = key.split('.').map(untoken);
        let this = Self {
            plural: parts.next()??,
            namespace: parts.next()??,
            name: parts.next()??,
            uid: parts.next()??,
        };
        parts.next().is_none().then_some(this)
    }

    /// Reads a KV key of [`BUCKET_DESIRED`].
    pub fn parse_desired(key: &str) -> Option<(NodeName, Self)> {
        let (node, rest) = key.split_once('.')?;
        Some((NodeName::new(node).ok()?, Self::parse_local(rest)?))
    }
}

/// KV filter for all of one node's entries in [`BUCKET_DESIRED`].
pub fn desired_filter(node: &NodeName) -> String {
    format!("{node}.>")
}

/// Order and cursor are per (node, lane): a lane never reorders, lanes do not wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Reports: pod status, node status.
    State,
    /// Events.
    Events,
    /// Workload messages (`up.`), in WORK.
    Workload,
    /// Telemetry (`bulk.`), in WORK.
    Bulk,
}

impl Lane {
    /// All lanes, most urgent first.
    pub const ALL: [Lane; 4] = [Lane::State, Lane::Events, Lane::Workload, Lane::Bulk];

    /// The token that names the lane in subjects.
    pub fn as_str(self) -> &'static str {
        match self {
            Lane::State => "state",
            Lane::Events => "events",
            Lane::Workload => "workload",
            Lane::Bulk => "bulk",
        }
    }

    /// The lane of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Lane::ALL.into_iter().find(|lane| lane.as_str() == name)
    }

    /// What the lane takes from the edge's stream.
    pub fn filter(self) -> &'static str {
        match self {
            Lane::State => "ew.rep.>",
            Lane::Events => "ew.evt.>",
            Lane::Workload => "up.>",
            Lane::Bulk => "bulk.>",
        }
    }

    /// The node's stream that it takes from. State and events share one.
    pub fn edge_stream(self) -> &'static str {
        match self {
            Lane::State | Lane::Events => STREAM_OUTBOX,
            Lane::Workload => STREAM_UPLINK,
            Lane::Bulk => STREAM_BULK,
        }
    }

    /// The hub's stream that it carries to.
    pub fn hub_stream(self) -> &'static str {
        match self {
            Lane::State | Lane::Events => STREAM_UP,
            Lane::Workload | Lane::Bulk => STREAM_FROM,
        }
    }

    /// Does the lane have its stream for itself? Then each of the stream's sequences is one of its messages.
    pub fn is_alone(self) -> bool {
        matches!(self, Lane::Workload | Lane::Bulk)
    }
}

/// Subject of a report in the edge's OUTBOX: `ew.rep.<module>.<kind>.<part>…`; parts are encoded.
pub fn report(module: &str, kind: &str, parts: &[&str]) -> String {
    let mut subject = format!("ew.rep.{module}.{kind}");
    for part in parts {
        subject.push('.');
        subject.push_str(&token(part));
    }
    subject
}

/// Subject of an event in the edge's OUTBOX: `ew.evt.<module>.<Type>`.
pub fn event(module: &str, kind: &str) -> String {
    format!("ew.evt.{module}.{kind}")
}

/// What a message of the edge is called at the hub. `None` when `subject` has no place in that lane.
pub fn raised(node: &NodeName, lane: Lane, subject: &str) -> Option<String> {
    match lane {
        Lane::State => subject.starts_with("ew.rep.").then(|| format!("ew.in.{node}.state.{subject}")),
        Lane::Events => subject.starts_with("ew.evt.").then(|| format!("ew.in.{node}.events.{subject}")),
        Lane::Workload => subject.strip_prefix("up.").map(|rest| format!("from.{node}.{rest}")),
        Lane::Bulk => subject.strip_prefix("bulk.").map(|rest| format!("from-bulk.{node}.{rest}")),
    }
}

/// Whose message in UP or FROM is it, and in which lane? The second is true for a cursor.
pub fn carried(subject: &str) -> Option<(NodeName, Lane, bool)> {
    let mut parts = subject.split('.');
    let (node, lane, is_cursor) = match parts.next()? {
        "from" => (parts.next()?, Lane::Workload, false),
        "from-bulk" => (parts.next()?, Lane::Bulk, false),
        "_cursor" => (parts.next()?, Lane::parse(parts.next()?)?, true),
        "ew" if parts.next()? == "in" => {
            let node = parts.next()?;
            match parts.next()? {
                "_cursor" => (node, Lane::parse(parts.next()?)?, true),
                lane => (node, Lane::parse(lane)?, false),
            }
        }
        _ => return None,
    };
    Some((NodeName::new(node).ok()?, lane, is_cursor))
}

/// A message in stream UP, read back: who sent it, in which lane, and its subject at the edge.
pub fn lowered(subject: &str) -> Option<(NodeName, Lane, &str)> {
    let rest = subject.strip_prefix("ew.in.")?;
    let (node, rest) = rest.split_once('.')?;
    let (lane, original) = rest.split_once('.')?;
    let lane = match lane {
        "state" => Lane::State,
        "events" => Lane::Events,
        _ => return None,
    };
    Some((NodeName::new(node).ok()?, lane, original))
}

/// The cursor of a (node, lane), stored beside what it counts.
pub fn cursor(node: &NodeName, lane: Lane) -> String {
    match lane {
        // Outside `from.>`, so that trimming that never takes a cursor away.
        Lane::Workload | Lane::Bulk => format!("_cursor.{node}.{}", lane.as_str()),
        Lane::State | Lane::Events => format!("ew.in.{node}._cursor.{}", lane.as_str()),
    }
}

/// UP's messages of one module and kind, from all nodes: a consumer's filter.
pub fn raised_reports(module: &str, kind: &str) -> String {
    format!("ew.in.*.state.ew.rep.{module}.{kind}.>")
}

/// UP's events, from all nodes.
pub fn raised_events() -> String {
    "ew.in.*.events.ew.evt.>".to_owned()
}

/// UP's subject of an event that a module of the hub itself tells.
pub fn raised_at_hub(module: &str, kind: &str) -> String {
    format!("ew.in.{DOMAIN_HUB}.events.{}", event(module, kind))
}

/// A node asks the hub.
pub fn request(node: &NodeName, verb: &str) -> String {
    format!("ew.req.{node}.{verb}")
}

/// The hub asks a module on a node.
pub fn command(node: &NodeName, module: &str, verb: &str) -> String {
    format!("ew.cmd.{node}.{module}.{verb}")
}

/// Frames of a byte stream from the hub to the node.
pub fn stream_down(node: &NodeName, session: &str) -> String {
    format!("ew.cmd.{node}._stream.{session}")
}

/// Frames of a byte stream from the node to the hub.
pub fn stream_up(node: &NodeName, session: &str) -> String {
    format!("ew.str.{node}.{session}")
}

/// A node's heartbeat: a request, so that its answer proves both directions.
pub fn heartbeat(node: &NodeName) -> String {
    format!("ew.hb.{node}")
}

/// What could not be decoded or applied by a module.
pub fn dead(module: &str) -> String {
    format!("ew.dead.{module}")
}

/// A call between modules of one process group (identity, credentials): never crosses the leaf.
pub fn local(module: &str, verb: &str) -> String {
    format!("ew.local.{module}.{verb}")
}

/// Life-cycle of a module on the server it runs on. `node` is `hub` at the hub.
pub fn module_state(node: &str, module: &str) -> String {
    format!("ew.mod.{node}.{module}")
}

/// In which account a tool that tails or publishes `subject` must be; `None` when its first token is a wildcard: in both.
pub fn account_of(subject: &str) -> Option<&'static str> {
    match subject.split('.').next().unwrap_or("") {
        "*" | ">" => None,
        "ew" | "$KV" | "$JS" | "$O" | "from" | "from-bulk" | "_cursor" | "to" => Some(ACCOUNT_CONTROL),
        _ => Some(ACCOUNT_WORK),
    }
}

/// Does `subject` match `filter` (`*` one token, `>` the rest)? NATS' own rule.
pub fn matches(filter: &str, subject: &str) -> bool {
    let mut have = subject.split('.');
    let mut want = filter.split('.');
    loop {
        match (want.next(), have.next()) {
            (Some(">"), Some(_)) => return want.next().is_none(),
            (Some("*"), Some(_)) => {}
            (Some(a), Some(b)) if a == b => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

/// A subject that somebody may publish to: no empty token, no wildcard, no space or control character.
pub fn is_publishable(subject: &str) -> bool {
    !subject.is_empty()
        && subject.len() <= 4096
        && subject.split('.').all(|t| {
            !t.is_empty() && t != "*" && t != ">" && !t.chars().any(|c| c.is_whitespace() || c.is_control())
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_survives_the_codec(text in ".*") {
            let token = token(&text);
            prop_assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_=".contains(&b)));
            prop_assert_eq!(untoken(&token), Some(text));
        }

        #[test]
        fn a_token_has_one_spelling(token_text in "[-_=A-Za-z0-9]{0,12}") {
            if let Some(text) = untoken(&token_text) {
                prop_assert_eq!(token(&text), token_text);
            }
        }

        #[test]
        fn keys_survive(group in ".{0,9}", plural in ".{0,9}", namespace in ".{0,9}", name in ".{0,20}") {
            let key = ObjectKey { resource: Resource { group, plural }, namespace, name };
            prop_assert_eq!(ObjectKey::parse(&key.key()), Some(key));
        }
    }

    #[test]
    fn keys_have_the_form_that_the_docs_give() {
        assert_eq!(ObjectKey::core("pods", "default", "web.1").key(), "=.pods.default.web=2E1");
        assert_eq!(ObjectKey::core("nodes", "", "edge-a").key(), "=.nodes.=.edge-a");
        assert_eq!(ObjectKey::parse("=.pods.default"), None);
        assert_eq!(ObjectKey::parse("=.pods.default.a.b"), None);
        let node = NodeName::new("edge-a").unwrap();
        let key = DesiredKey {
            plural: "pods".into(),
            namespace: "default".into(),
            name: "a.b".into(),
            uid: "11-22".into(),
        };
        assert_eq!(key.desired_key(&node), "edge-a.pods.default.a=2Eb.11-22");
        assert_eq!(DesiredKey::parse_desired(&key.desired_key(&node)), Some((node, key)));
    }

    #[test]
    fn no_subject_is_captured_at_both_ends() {
        let node = NodeName::new("n1").unwrap();
        let edge = Lane::ALL.map(Lane::filter);
        for (lane, subject) in [
            (Lane::State, "ew.rep.containers.pod.default.a"),
            (Lane::Events, "ew.evt.sync.LinkUp"),
            (Lane::Workload, "up.default.temp"),
            (Lane::Bulk, "bulk.default.temp"),
        ] {
            let hub = raised(&node, lane, subject).unwrap();
            assert_eq!(carried(&hub), Some((node.clone(), lane, false)));
            assert_eq!(carried(&cursor(&node, lane)), Some((node.clone(), lane, true)));
            assert!(edge.iter().all(|filter| !matches(filter, &hub)), "{hub}");
            assert!(matches(lane.filter(), subject));
            assert_eq!(raised(&node, lane, "other.subject"), None);
        }
        let raised = raised(&node, Lane::State, "ew.rep.containers.pod.a").unwrap();
        assert_eq!(lowered(&raised), Some((node.clone(), Lane::State, "ew.rep.containers.pod.a")));
        assert_eq!(lowered(&cursor(&node, Lane::State)), None);
    }

    #[test]
    fn what_the_hub_sends_to_a_node_has_another_name_there() {
        let node = NodeName::new("n1").unwrap();
        let arriving =
            |subject: &str| arriving(&node, subject).map(|(namespace, to)| (namespace.to_string(), to));
        let there = Some(("demo".to_owned(), "_down.demo.a.b".to_owned()));
        assert_eq!(arriving("to.n1.demo.a.b"), there);
        for other in [
            "to.n1.demo",
            "to.n1",
            "to.n2.demo.a",
            "to.n11.demo.a",
            "to.n1._cursor.a",
            "to.n1.Demo.a",
            "to.n1.demo.a..b",
        ] {
            assert_eq!(arriving(other), None, "{other}");
        }
        assert_eq!(sent_to("to.n1.demo.a"), Some(node.clone()));
        assert_eq!((sent_to("to.n1"), sent_to("to._.a"), sent_to("from.n1.a")), (None, None, None));
        assert!(matches(&to_filter(&node), "to.n1.demo.a") && !matches(&to_filter(&node), "to.n2.demo.a"));
        // Captured once on its way: not at both ends, not by the node's other streams, and not heard before it is stored.
        let (sent, written, heard) = ("to.n1.demo.a", "_down.demo.a", "down.demo.a");
        assert!(matches(ARRIVING, written) && !matches(ARRIVING, sent) && !matches(ARRIVING, heard));
        assert!(
            Lane::ALL.iter().all(|lane| [sent, written, heard].iter().all(|s| !matches(lane.filter(), s)))
        );
        assert!(
            matches(ARRIVED_HEARD, heard) && !matches(ARRIVED_HEARD, TAKEN[1]) && matches(ARRIVING, TAKEN[0])
        );
        assert!(!matches(&arrived_filter(&Namespace::new("a").unwrap()), TAKEN[1]));
    }

    #[test]
    fn matching_follows_nats() {
        for (filter, subject, want) in [
            ("a.*.c", "a.b.c", true),
            ("a.>", "a", false),
            ("a.>", "a.b.c", true),
            (">", "a", true),
            ("a.*", "a.b.c", false),
            ("a", "a.b", false),
        ] {
            assert_eq!(matches(filter, subject), want, "{filter} {subject}");
        }
        assert!(is_publishable("app.default.temp"));
        for bad in ["", "a..b", "a.*", "a.>", "a b", "a.\n"] {
            assert!(!is_publishable(bad), "{bad:?}");
        }
    }
}
