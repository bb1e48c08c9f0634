//! Router: KubeEdge's rules. What comes to one kind of endpoint goes on to another, between a node and the hub.
//!
//! | from | to | how it goes |
//! |---|---|---|
//! | `eventbus` (MQTT topic `<ns>/<topic>` of a node), `nats` on a node | `rest` (a URL), `nats` at the hub | stored on the node, exactly once and in order to the hub, which calls |
//! | `rest` (the hub's REST entry) | `eventbus`, `servicebus`, `nats` on a node | live: the caller waits for what the node says |
//! | `servicebus` (a node's service bus) | `rest` | live, as above, the other way |
//! | `nats` at the hub (`from.…`) | `rest`, `nats` at the hub | from the hub's stream FROM |
//!
//! **Up.** A message that a rule names has to outlive this module, so it is not merely heard: the node's server keeps it, in
//! stream RULES, whose subjects are those of the node's rules. [`edge`] takes one after the other, stores it in UPLINK as
//! `up._rule.<ns>.<rule>.<uid>`, and acknowledges last. From there it is carried as every `up.` message is, so there is one way
//! up and not two; no namespace is called `_rule`, so no pod may say it. At the hub [`hub`] has a consumer and a task for
//! each rule: a slow target holds up its own rule and no other.
//!
//! **Exactly once** holds from the node's server to the call: what is taken from RULES again, because we fell between storing
//! and acknowledging, is known by its `ew-rule-message` and dropped. The call itself is made again when the hub fell before it
//! could write down that it was answered: `edgewire-message-id` is then the same. When RULES is full, the oldest goes, and the
//! node says how many.
//!
//! * [`table`] rules and endpoints as a routing table: pure; [`work`] what a rule makes of a message
//! * [`edge`] the node's module; [`hub`] the hub's; [`listener`] how both listen for HTTP; [`caller`] how both call

pub mod caller;
pub mod edge;
pub mod hub;
pub mod listener;
pub mod table;
pub mod work;

/// Name of the module, at the hub and on nodes.
pub const NAME: &str = "router";

/// Verb of the hub's question to a node.
pub const DELIVER: &str = "deliver";
/// Verb of a node's question to the hub, in `ew.req.<node>.router.<verb>`.
pub const CALL: &str = "router.call";
