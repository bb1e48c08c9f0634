//! Heartbeats: which one is news, and what silence means for a Node object.
//!
//! The hub's clock alone counts: a node's own may be anything. Within a boot the sequence must rise, and a boot that
//! was followed by another one is over, so a heartbeat that was long on its way does not make a silent node look alive.

use std::collections::VecDeque;

use schemas::Timestamp;
use schemas::object::Object;
use schemas::report::{Heartbeat, NODE_GRACE_MS};
use serde_json::{Value, json};

use crate::told::Heard;

/// Boots of a node that are remembered as over.
pub const PAST_BOOTS_MAX: usize = 8;
/// The taint of a node that cannot be heard, with effect `NoSchedule`.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// What was last heard of a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Beat {
    /// The boot that is running.
    pub boot_id: String,
    /// Its highest sequence.
    pub sequence: u64,
    /// When, by the hub's clock.
    pub heard: Timestamp,
    /// What waited on the node then.
    pub waiting: Heard,
    past: VecDeque<String>,
}

impl Beat {
    /// The first heartbeat of a node.
    pub fn new(heartbeat: &Heartbeat, now: Timestamp) -> Self {
        Self {
            boot_id: heartbeat.boot_id.clone(),
            sequence: heartbeat.sequence,
            heard: now,
            waiting: Heard::of(heartbeat),
            past: VecDeque::new(),
        }
    }

    /// Takes a heartbeat; `false` when it is an old one.
    pub fn hear(&mut self, heartbeat: &Heartbeat, now: Timestamp) -> bool {
        if heartbeat.boot_id == self.boot_id {
            if heartbeat.sequence <= self.sequence {
                return false;
            }
        } else {
            if self.past.contains(&heartbeat.boot_id) {
                return false;
            }
            self.past.push_back(std::mem::replace(&mut self.boot_id, heartbeat.boot_id.clone()));
            if self.past.len() > PAST_BOOTS_MAX {
                self.past.pop_front();
            }
        }
        self.sequence = heartbeat.sequence;
        self.heard = now;
        self.waiting = Heard::of(heartbeat);
        true
    }
}

/// Sets `Ready` and the taint by what was heard; says whether anything changed. `since` is when the hub began to
/// listen: before a full grace has passed nobody is called silent.
pub fn judge(object: &mut Object, heard: Option<Timestamp>, since: Timestamp, now: Timestamp) -> bool {
    let silent = |from: Timestamp| now.since_ms(from) > NODE_GRACE_MS;
    match heard {
        Some(heard) if !silent(heard) => {
            let changed = object.set_condition(
                "Ready",
                "True",
                "EdgewireReady",
                "the node sends heartbeats and hears their answers",
                now,
            );
            set_unreachable(object, None) | changed
        }
        _ if silent(heard.map_or(since, |heard| heard.max(since))) => {
            let changed = object.set_condition(
                "Ready",
                "Unknown",
                "NodeStatusUnknown",
                "the node's heartbeats stopped: its pods go on; look at its link and at edge-runtime there",
                now,
            );
            set_unreachable(object, Some(now)) | changed
        }
        _ if object.condition("Ready").is_none() => {
            object.set_condition("Ready", "Unknown", "NodeStatusNeverUpdated", "no heartbeat came yet", now)
        }
        _ => false,
    }
}

/// Adds the taint, or removes it; other taints stay.
fn set_unreachable(object: &mut Object, since: Option<Timestamp>) -> bool {
    let mut taints = object.get(&["spec", "taints"]).and_then(Value::as_array).cloned().unwrap_or_default();
    let ours = |taint: &Value| {
        taint.get("key").and_then(Value::as_str) == Some(UNREACHABLE)
            && taint.get("effect").and_then(Value::as_str) == Some("NoSchedule")
    };
    match since {
        Some(now) if !taints.iter().any(ours) => {
            taints.push(json!({"key": UNREACHABLE, "effect": "NoSchedule", "timeAdded": now.rfc3339()}));
        }
        None if taints.iter().any(ours) => taints.retain(|taint| !ours(taint)),
        _ => return false,
    }
    if taints.is_empty() {
        object.remove(&["spec", "taints"]);
    } else {
        object.set(&["spec", "taints"], taints);
    }
    true
}
