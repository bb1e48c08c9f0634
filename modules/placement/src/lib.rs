//! Placement: what each node must have, and what each node says of its pods.
//!
//! **Down:** for every pod with a node it keeps one entry in bucket `desired`, one for each ConfigMap and Secret that the
//! node's pods reference, and one for each Topic, TopicMap, Rule and RuleEndpoint that selects the node; nothing else. What is gone or no longer referenced becomes a tombstone *entry*
//! (nothing replicates a removal). **Up:** a pod's reported status is merged into its object, guarded by UID and the
//! report's sequence; a deleting pod that its node reports stopped is removed.
//!
//! Absence is never deletion: an entry becomes a tombstone only when there is proof (the object's own tombstone,
//! another UID under its name, or a newer version of the object that is elsewhere). An entry whose object is missing
//! without a trace stays, is counted as an orphan, and waits for a person.
//!
//! | in / out | what |
//! |---|---|
//! | bucket objects `=.pods.*.*`, and of each resource in [`subject::TOLD`] | read; pods also written (status) and removed |
//! | bucket objects `=.nodes.=.*` | read: which nodes there are, and their labels |
//! | bucket desired `*.*.*.*.*`, `_lineage` | read; entries written |
//! | UP `ew.in.*.state.ew.rep.containers.pod.>` | pod reports |
//! | `ew.req.*.desired.list`, `ew.req.*.desired.get` | answered: see [`answer`] |
//! | `ew.local.placement.release` | a person has a node drop what the hub does not have |
//!
//! Tombstone entries stay for ever for now: about 150 bytes for each pod that ever was. A later compaction may drop
//! those older than every node's position.
//!
//! * [`known`] the objects; [`relevant`] which part of them matters to a node; [`selected`] which nodes they are for;
//!   [`entries`] what the nodes are told
//! * [`status`] merging reports; [`answer`] a node's questions; [`state`] all of it together

pub mod answer;
pub mod entries;
pub mod known;
pub mod relevant;
pub mod selected;
pub mod state;
pub mod status;

pub use state::Placement;

use bus::flow::Flow;
use schemas::subject::{self, BUCKET_DESIRED, BUCKET_OBJECTS, KEY_LINEAGE, STREAM_UP};

/// What the module reads and writes.
pub fn flows() -> Vec<Flow> {
    let mut flows = vec![
        Flow::watch(BUCKET_OBJECTS, objects_filter("pods"), "Pod"),
        Flow::watch(BUCKET_OBJECTS, objects_filter("configmaps"), "ConfigMap"),
        Flow::watch(BUCKET_OBJECTS, objects_filter("secrets"), "Secret"),
        Flow::watch(BUCKET_OBJECTS, objects_filter("topics"), "Topic"),
        Flow::watch(BUCKET_OBJECTS, objects_filter("topicmaps"), "TopicMap"),
        Flow::watch(BUCKET_OBJECTS, objects_filter("rules"), "Rule"),
        Flow::watch(BUCKET_OBJECTS, objects_filter("ruleendpoints"), "RuleEndpoint"),
        Flow::watch(BUCKET_OBJECTS, NODES, "Node"),
        Flow::watch(BUCKET_DESIRED, DESIRED_FILTER, "Desired"),
        Flow::watch(BUCKET_DESIRED, KEY_LINEAGE, "Lineage"),
        Flow::consume(STREAM_UP, "placement", subject::raised_reports("containers", "pod"), "PodReport"),
        Flow::write(BUCKET_OBJECTS, objects_filter("pods"), "Pod"),
        Flow::write(BUCKET_DESIRED, DESIRED_FILTER, "Desired"),
    ];
    flows.push(Flow::respond("ew.req.*.desired.list", "ListRequest -> Reply<ListPage>"));
    flows.push(Flow::respond(subject::local(NAME, RELEASE), "Release -> Reply<()>"));
    flows.push(Flow::respond("ew.req.*.desired.get", "GetRequest -> Reply<GetPage>"));
    flows
}

/// Name of the module.
pub const NAME: &str = "placement";
/// A person's wish that a node drops what the hub does not have.
pub(crate) const RELEASE: &str = "release";

/// Every entry; the lineage has one token and does not match.
pub(crate) const DESIRED_FILTER: &str = "*.*.*.*.*";

/// The nodes.
pub(crate) const NODES: &str = "=.nodes.=.*";

pub(crate) fn objects_filter(plural: &str) -> String {
    subject::objects_filter(&subject::told(plural), None)
}
