//! containers: runs a node's pods on containerd, whatever the hub says or does not say.
//!
//! | subject | | what |
//! |---|---|---|
//! | KV `local` `>` | in | pods, ConfigMaps and Secrets that the node must have |
//! | `ew.cmd.<node>.containers.logs` `.exec` | in | byte streams of logs and programs |
//! | `ew.local.credentials.issue` `.revoke` | out | every container's credential for the node's bus |
//! | `ew.rep.containers.pod.<ns>.<name>.<uid>` | out | what a pod does |
//! | `ew.evt.containers.<Reason>` | out | what happened to it |
//!
//! [`state`] decides (with [`pod`] for one pod and [`status`] for what is told of it), [`record`] is what is kept,
//! [`effects`] and [`runtime`] do it. It starts from what it has on disk and from what containerd says; the hub is never
//! needed. A pod stops only by its own `deletionTimestamp` or a tombstone of its UID.

mod credential;
pub mod effects;
pub mod env;
pub mod input;
pub mod pod;
pub mod record;
pub mod referenced;
pub mod runtime;
mod session;
pub mod state;
pub mod status;
pub mod volumes;

use bus::flow::Flow;
use schemas::name::NodeName;
use schemas::subject;

pub use effects::ContainersRim;
pub use state::Containers;

/// Name of the module.
pub const MODULE: &str = "containers";
/// All that this module reads and writes on `node`.
pub fn flows(node: &NodeName) -> Vec<Flow> {
    vec![
        Flow::watch(subject::BUCKET_LOCAL, ">", "schemas::desired::Local"),
        Flow::respond(subject::command(node, MODULE, "logs"), "schemas::command::OpenLogs"),
        Flow::respond(subject::command(node, MODULE, "exec"), "schemas::command::OpenExec"),
        Flow::stream("schemas::command::Frame"),
        Flow::request(subject::local("credentials", "issue"), "schemas::credential::Issue"),
        Flow::request(subject::local("credentials", "revoke"), "schemas::credential::Withdraw"),
        Flow::report("ew.rep.containers.pod.>", "schemas::report::PodReport"),
        Flow::report("ew.evt.containers.*", "schemas::report::EventReport"),
    ]
}

/// What decoders are tried with: the file needs nothing but std, and stands with the tests of all crates.
#[cfg(test)]
#[path = "../../../tests/src/fuzz.rs"]
mod fuzz;
