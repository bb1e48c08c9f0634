//! Every type of event that Edgewire tells, in one table: `docs/events.md` is generated from it, and a test holds it
//! against the modules' sources both ways.
//!
//! An event is a CloudEvent (see [`crate::envelope`]): type `io.edgewire.<module>.<reason>`, stored in the node's OUTBOX as
//! `ew.evt.<module>.<reason>` and carried to the hub exactly once. To tell a new one, tell it and add its row here.

use crate::report::Severity::{self, Normal, Warning};

/// Who tells an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Teller {
    /// A module of the hub.
    Hub,
    /// A module of each node.
    Node,
}

/// What an event's data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// [`crate::report::EventReport`]: becomes a Kubernetes Event.
    Report,
    /// [`crate::audit::AuditRecord`]: goes to the hub's audit.
    Audit,
}

/// One type of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventType {
    /// Where it is told.
    pub teller: Teller,
    /// The module.
    pub module: &'static str,
    /// The last word of its type.
    pub reason: &'static str,
    /// The severities that it is told with.
    pub severity: &'static [Severity],
    /// What its data is.
    pub data: Data,
    /// What happened.
    pub meaning: &'static str,
}

const fn node(
    module: &'static str,
    reason: &'static str,
    severity: &'static [Severity],
    meaning: &'static str,
) -> EventType {
    EventType { teller: Teller::Node, module, reason, severity, data: Data::Report, meaning }
}

const fn hub(
    module: &'static str,
    reason: &'static str,
    severity: &'static [Severity],
    meaning: &'static str,
) -> EventType {
    EventType { teller: Teller::Hub, module, reason, severity, data: Data::Report, meaning }
}

/// All of them, by module and reason.
pub const EVENTS: &[EventType] = &[
    node("containers", "Adopted", &[Normal], "containers that ran already were taken over after a restart"),
    node(
        "containers",
        "BackOff",
        &[Warning],
        "a container ended again and waits longer before it is started again",
    ),
    node("containers", "ContainerdAway", &[Warning], "containerd does not answer; containers run on"),
    node("containers", "Created", &[Normal], "a container was created"),
    node("containers", "Failed", &[Warning], "a container could not be started; the message says why"),
    node("containers", "FailedKillPod", &[Warning], "a pod could not be stopped; it is tried again"),
    node("containers", "FailedMount", &[Warning], "a volume could not be made ready"),
    node("containers", "Killing", &[Normal], "a container is being stopped"),
    node("containers", "Started", &[Normal], "a container was started"),
    node(
        "containers",
        "Unclaimed",
        &[Warning],
        "containers of ours whose pod nobody knows; they are left alone",
    ),
    EventType {
        teller: Teller::Node,
        module: "credentials",
        reason: "Audit",
        severity: &[Warning],
        data: Data::Audit,
        meaning: "the node's server refused somebody something; the same is told once in ten minutes, with its number",
    },
    node("door", "HttpDoorOpen", &[Normal], "the bus by HTTP listens again"),
    node(
        "door",
        "HttpDoorShut",
        &[Warning],
        "the bus by HTTP cannot listen: another program has its port; it is tried again",
    ),
    node("identity", "AuthoritiesChanged", &[Normal], "the node trusts the hub's present authorities"),
    node(
        "identity",
        "AuthoritiesNotChanged",
        &[Warning],
        "it could not take them, and keeps those that it has",
    ),
    node("identity", "KeysRenewed", &[Normal], "the node has new keys"),
    node(
        "identity",
        "RenewFailed",
        &[Warning],
        "the node's keys could not be renewed; the present ones stay",
    ),
    hub("nodes", "LinkDown", &[Warning], "the hub hears a node no more; what runs there runs on"),
    hub(
        "nodes",
        "LinkUp",
        &[Normal],
        "the hub hears a node again; the message says after how long, and what waits",
    ),
    node(
        "router",
        "RuleMessagesDropped",
        &[Warning],
        "messages that waited for a rule were given up; the message says how many and why",
    ),
    node(
        "router",
        "RuleSourcesRefused",
        &[Warning],
        "the node's server does not keep what the rules name: another stream does",
    ),
    node("sync", "ClockAgrees", &[Normal], "the node's clock and the hub's agree again"),
    node("sync", "ClockDiffers", &[Warning], "the node's clock and the hub's differ"),
    node("sync", "CursorBehind", &[Warning], "the hub has less of the node's messages than it had confirmed"),
    node(
        "sync",
        "CursorMissing",
        &[Warning],
        "the hub lost the place up to which it had taken the node's messages",
    ),
    node("sync", "CursorRefused", &[Warning], "the place cannot be written at the hub; the lane waits"),
    node("sync", "CursorUnreadable", &[Warning], "the place cannot be read at the hub; the lane waits"),
    node(
        "sync",
        "DeadLetter",
        &[Warning],
        "one message could not be carried; it was put aside with its reason",
    ),
    node(
        "sync",
        "DesiredDiverged",
        &[Warning],
        "the hub's history is not the one that the node followed; nothing stops",
    ),
    node("sync", "DiskFreed", &[Normal], "the node's disk has room again"),
    node("sync", "DiskFull", &[Warning], "the node's disk is full: `up.` is refused"),
    node("sync", "DiskNearlyFull", &[Warning], "the node's disk is nearly full: telemetry is dropped"),
    node(
        "sync",
        "DownlinkReplaced",
        &[Warning],
        "the hub's messages for this node are of another stream than the last one; the message says what is taken",
    ),
    node("sync", "LinkDown", &[Warning], "the hub does not answer"),
    node(
        "sync",
        "LinkMoved",
        &[Normal, Warning],
        "the link goes another way now; a warning when it is the second best",
    ),
    node("sync", "LinkRebuilt", &[Warning], "the link stood, but nothing came over it: it was made anew"),
    node("sync", "LinkRefused", &[Warning], "the hub does not take the node's credentials"),
    node("sync", "LinkUntrusted", &[Warning], "the node does not trust what the hub shows"),
    node(
        "sync",
        "LinkUp",
        &[Normal],
        "the hub answers again; the message says after how long, and what waited",
    ),
    node("sync", "MessagesDropped", &[Warning], "messages were given up; the message says how many and why"),
    node(
        "sync",
        "MessagesLost",
        &[Warning],
        "messages from the hub that nobody had acknowledged are gone with the node's store",
    ),
    node("sync", "MqttPortTaken", &[Warning], "another program has the port of MQTT; all else runs"),
    node("sync", "OutboxReplaced", &[Warning], "the node's stream is another one; it starts over"),
    node("sync", "ServerRestarted", &[Warning], "the node's server had stopped trying: it was started anew"),
    node("sync", "StoreRepaired", &[Warning], "entries that the node had lost were fetched again"),
    node("sync", "StoreReplaced", &[Warning], "a damaged store was moved aside and began anew"),
    node(
        "sync",
        "TooManyReaders",
        &[Warning],
        "messages came for more namespaces than can have them wait on a node; the others' are heard live",
    ),
    node("topicmap", "TopicMapLoop", &[Warning], "maps would feed each other; those do not run"),
    node("topicmap", "TopicMapTooMany", &[Warning], "the node runs as many maps as it can already"),
    node(
        "topicmap",
        "TopicMapWaits",
        &[Warning],
        "a map's goal does not take its messages: what was acknowledged waits, the rest is dropped",
    ),
];

impl EventType {
    /// CloudEvents `type`.
    pub fn kind(&self) -> String {
        format!("io.edgewire.{}.{}", self.module, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_each_type_stands_once() {
        assert!(EVENTS.is_sorted_by_key(|event| (event.module, event.reason, event.teller)));
        let mut types: Vec<_> = EVENTS.iter().map(|event| (event.kind(), event.teller)).collect();
        types.dedup();
        assert_eq!(types.len(), EVENTS.len());
        assert!(EVENTS.iter().all(|event| !event.severity.is_empty() && !event.meaning.is_empty()));
    }
}
