//! Names of what namespaces declare for their messages: Topics, TopicMaps and rules.

use super::{Resource, domain_edge, token};
use crate::name::NodeName;

/// Edge stream of messages that rules carry to the hub, as they came, in WORK. Its subjects follow the rules.
pub const STREAM_RULES: &str = "RULES";
/// What [`STREAM_RULES`] captures besides what the rules name: no login may say it but the router's own.
pub const RULES_ENTRUSTED: &str = "_rules.mqtt.>";
const ENTRUSTED: &str = "_rules.mqtt.";

/// What an MQTT client said on `subject` at QoS 1 or 2, as it stands in [`STREAM_RULES`].
pub fn entrusted(subject: &str) -> String {
    format!("{ENTRUSTED}{subject}")
}

/// The subject that it was said on; `None` when it is none of those.
pub fn entrusted_on(subject: &str) -> Option<&str> {
    subject.strip_prefix(ENTRUSTED)
}

/// API group of Edgewire's own kinds.
pub const GROUP_EDGEWIRE: &str = "edgewire.io";
/// API group of KubeEdge's rules.
pub const GROUP_RULES: &str = "rules.kubeedge.io";

/// The resources that nodes are told of, by their plural: no two groups have the same one.
pub const TOLD: [(&str, &str); 7] = [
    ("", "pods"),
    ("", "configmaps"),
    ("", "secrets"),
    (GROUP_EDGEWIRE, "topics"),
    (GROUP_EDGEWIRE, "topicmaps"),
    (GROUP_RULES, "rules"),
    (GROUP_RULES, "ruleendpoints"),
];

/// The resource that nodes are told of under that plural; of a plural that they are not told of, the core group's.
pub fn told(plural: &str) -> Resource {
    let group = TOLD.iter().find(|(_, told)| *told == plural).map_or("", |(group, _)| group);
    Resource { group: group.to_owned(), plural: plural.to_owned() }
}

/// The stream of a Topic, on its node in WORK. No Kubernetes name has a `_`, so no two are the same.
pub fn topic_stream(namespace: &str, name: &str) -> String {
    format!("{TOPIC_STREAM}{}_{}", token(namespace), token(name))
}

/// What whoever consumes a Topic's stream publishes to, in both spellings of the API's prefix: what there is, the next
/// messages, acknowledgements. Nothing of it makes or changes anything; the stream has no consumers but the declared ones.
pub fn consume_topic(node: &NodeName, stream: &str) -> Vec<String> {
    let verbs = ["STREAM.INFO.{}", "CONSUMER.INFO.{}.*", "CONSUMER.MSG.NEXT.{}.*"];
    let verbs = verbs.map(|verb| verb.replace("{}", stream));
    let prefixes = ["$JS.API".to_owned(), format!("$JS.{}.API", domain_edge(node))];
    let api = prefixes.iter().flat_map(|prefix| verbs.iter().map(move |verb| format!("{prefix}.{verb}")));
    api.chain([format!("$JS.ACK.{stream}.>")]).collect()
}

/// How the streams of Topics begin.
pub const TOPIC_STREAM: &str = "T_";

/// A message that a rule carries, in the edge's UPLINK. No namespace is called `_rule`, so no pod may say it.
pub fn ruled(namespace: &str, rule: &str, uid: &str) -> String {
    format!("up._rule.{}.{}.{}", token(namespace), token(rule), token(uid))
}

/// The same in FROM, of any node: a consumer's filter.
pub fn raised_ruled(namespace: &str, rule: &str, uid: &str) -> String {
    format!("from.*._rule.{}.{}.{}", token(namespace), token(rule), token(uid))
}

/// The durable consumer in FROM of the rule with this UID.
pub fn rule_consumer(uid: &str) -> String {
    format!("{RULE_CONSUMERS}{}", token(uid))
}

/// How every rule's consumer begins.
pub const RULE_CONSUMERS: &str = "rule_";
