//! What a node says of itself, of its pods and of what happened. All of it goes up in lanes (see `subject::Lane`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Timestamp;
use crate::desired::Position;
use crate::name::NodeName;
use crate::subject::Lane;

/// A node's heartbeat, every [`HEARTBEAT_INTERVAL_MS`], on `subject::heartbeat`. Kept in memory at the hub only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Changes with every start of the node's runtime.
    pub boot_id: String,
    /// Counts up within a boot: an older heartbeat that comes late is told by it.
    pub sequence: u64,
    /// The node's own clock.
    pub at: Timestamp,
    /// How far the node has followed `desired`; `None` before the first contact.
    pub desired: Option<Position>,
    /// Messages waiting in each lane. State and events stand in one stream: both count all of it.
    pub waiting: BTreeMap<Lane, u64>,
    /// Their bytes.
    #[serde(default)]
    pub waiting_bytes: BTreeMap<Lane, u64>,
}

/// The hub's answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeartbeatAck {
    /// The heartbeat's own.
    pub sequence: u64,
    /// The hub's clock.
    pub at: Timestamp,
    /// Is there a Node object? When not, the node sends its [`NodeReport`] again.
    pub known: bool,
    /// Changes with every start of the hub: the node then lists and repairs.
    pub hub_boot_id: String,
}

/// How often a node sends its heartbeat.
pub const HEARTBEAT_INTERVAL_MS: u64 = 2_000;
/// A node silent for longer is `Unknown`.
pub const NODE_GRACE_MS: u64 = 10_000;

/// What a node is: becomes the Node object. Report `ew.rep.sync.node.<node>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Name of the node.
    pub node: String,
    /// Changes with every start of the node's runtime.
    pub boot_id: String,
    /// Counts up for each report of this node, across boots (kept on disk).
    pub sequence: u64,
    /// `status.nodeInfo` as Kubernetes has it (kernelVersion, osImage, architecture, ...).
    pub node_info: Value,
    /// `status.capacity`, such as `{"cpu": "2", "memory": "1Gi", "pods": "110"}`.
    pub capacity: BTreeMap<String, String>,
    /// `status.allocatable`.
    pub allocatable: BTreeMap<String, String>,
    /// `status.addresses` as (type, address).
    pub addresses: Vec<(String, String)>,
    /// Labels that the node starts with.
    pub labels: BTreeMap<String, String>,
    /// Conditions the node sees itself, by type: (status, reason, message). `Ready` is the hub's.
    pub conditions: BTreeMap<String, (String, String, String)>,
}

/// What a pod does on its node. Report `ew.rep.containers.pod.<ns>.<name>.<uid>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodReport {
    /// Name of the node.
    pub node: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod: a report about another UID is never merged.
    pub uid: String,
    /// Counts up for each report of this pod UID out of the same [`store`](Self::store), across restarts of everything.
    pub sequence: u64,
    /// `status` as Kubernetes has it (phase, conditions, containerStatuses, podIP, ...): replaces the object's.
    pub status: Value,
    /// The pod has been stopped for good and nothing of it is left on the node: the object may go.
    pub stopped: bool,
    /// ID of the node's own store, made with it: another one counts anew. Empty from nodes that do not say it yet.
    #[serde(default)]
    pub store: String,
}

/// Something that happened, for people: becomes a Kubernetes Event. Event subject `ew.evt.<module>.<reason>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventReport {
    /// Unique: the same happening told twice has the same ID.
    pub id: String,
    /// Name of the node.
    pub node: String,
    /// The module that says it.
    pub module: String,
    /// When.
    pub at: Timestamp,
    /// `Normal` or `Warning`.
    pub severity: Severity,
    /// Short CamelCase word: `Started`, `BackOff`, `LinkUp`.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// About what: (kind, namespace, name, uid). A node's own event names the node.
    pub regarding: (String, String, String, String),
}

impl EventReport {
    /// One about the node itself. `id` tells it from every other of that node and module.
    pub fn of_node(
        id: &str,
        node: &NodeName,
        module: &str,
        at: Timestamp,
        severity: Severity,
        reason: &str,
        message: String,
    ) -> Self {
        let name = node.to_string();
        Self {
            id: format!("{name}-{module}-{id}"),
            node: name.clone(),
            module: module.to_owned(),
            at,
            severity,
            reason: reason.to_owned(),
            message,
            regarding: ("Node".to_owned(), String::new(), name.clone(), name),
        }
    }
}

/// Kubernetes' two types of Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Severity {
    /// Expected.
    Normal,
    /// Somebody should look.
    Warning,
}

impl Severity {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        }
    }
}

/// Life-cycle of a module, on `subject::module_state`, at every change and when asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModuleReport {
    /// Node, or `hub`.
    pub node: String,
    /// Module.
    pub module: String,
    /// What it does now.
    pub state: ModuleState,
    /// How often it was restarted since its host started.
    pub restarts: u32,
    /// Since when it is in that state.
    pub since: Timestamp,
    /// Why it failed last; empty when it never did.
    pub last_error: String,
    /// Its flows, as they stand in `docs/flows.md`.
    pub flows: Vec<String>,
}

/// State of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModuleState {
    /// Connecting, provisioning, reading its store.
    Starting,
    /// Serving.
    Running,
    /// Failed; waits to be started again.
    BackOff,
    /// Stopped because it was told to.
    Stopped,
}
