//! What hub and node ask each other for a rule ([`crate::rule`]): to deliver a message on the node, and to call a rule's
//! target at the hub.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Of a message's bound ([`crate::MESSAGE_MAX_BYTES`]) so much is kept for headers and names: a body may have the rest.
pub const BODY_MAX_BYTES: usize = crate::MESSAGE_MAX_BYTES - 128 * 1024;
/// All headers of a message together, names and values.
pub const HEADERS_MAX_BYTES: usize = 64 * 1024;

/// Names of the headers that a rule's messages carry.
pub mod header {
    /// On the bus: the subject that a message came on, on its node.
    pub const SUBJECT: &str = "ew-rule-subject";
    /// On the bus: what tells one message of a node from the next, the same when it is carried again.
    pub const MESSAGE: &str = "ew-rule-message";
    /// On the bus: why the rule's expression could not be evaluated on it.
    pub const FAILURE: &str = "ew-rule-failure";
    /// To a rule's target: the message, the same when it is sent again.
    pub const HTTP_MESSAGE: &str = "edgewire-message-id";
    /// To a rule's target: the node that it came from.
    pub const HTTP_NODE: &str = "edgewire-node";
    /// To a rule's target: the subject that it came on.
    pub const HTTP_SUBJECT: &str = "edgewire-subject";
    /// To a rule's target: the rule, as `namespace/name`.
    pub const HTTP_RULE: &str = "edgewire-rule";
}

/// Hands a message over on the node. Request `ew.cmd.<node>.router.deliver`, answered with `Reply<Delivered>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deliver {
    /// To whom.
    pub to: Destination,
    /// The message's headers that go with it.
    pub headers: Vec<(String, String)>,
    /// The message.
    pub body: Bytes,
}

/// To whom a message goes on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// Who listens on that subject in WORK, MQTT clients among them.
    Publish {
        /// The subject.
        subject: String,
    },
    /// A service on the node's loopback.
    Call {
        /// Its port.
        port: u16,
        /// HTTP's.
        method: String,
        /// Path and query, with the slash.
        path: String,
    },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    /// The service's status; 200 for what was published.
    pub status: u16,
    /// Its headers.
    pub headers: Vec<(String, String)>,
    /// Its answer.
    pub body: Bytes,
}

/// Calls the target of a rule whose source is a node's service bus. Request `ew.req.<node>.router.call`, answered with
/// `Reply<Delivered>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// UID of the rule.
    pub uid: String,
    /// The message.
    pub body: Bytes,
}
