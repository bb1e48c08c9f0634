//! Which nodes are there: those whose heartbeat was heard lately.
//!
//! A link that is cut in silence is noticed by NATS after 10 to 15 seconds; until then a question to the node would hang. Who
//! calls the REST entry shall not wait for that.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use schemas::name::NodeName;
use schemas::report::HEARTBEAT_INTERVAL_MS;
use tokio::time::Instant;

/// A node that was not heard for so long is away: two heartbeats are missing.
pub const AWAY_AFTER: Duration = Duration::from_millis(HEARTBEAT_INTERVAL_MS * 3);

/// When each node was heard.
#[derive(Debug, Default)]
pub struct Presence(Mutex<BTreeMap<NodeName, Instant>>);

impl Presence {
    /// It was heard just now.
    pub fn heard(&self, node: NodeName) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node, Instant::now());
    }

    /// Until when it is held to be there; `None` when it is away.
    pub fn until(&self, node: &NodeName) -> Option<Instant> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(node).copied()?;
        Some(heard + AWAY_AFTER).filter(|until| *until > Instant::now())
    }

    /// Returns when the node is away.
    pub async fn gone(&self, node: &NodeName) {
        while let Some(until) = self.until(node) {
            tokio::time::sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_is_there_for_as_long_as_it_is_heard() {
        let (presence, node) = (Presence::default(), NodeName::new("n1").unwrap());
        assert!(presence.until(&node).is_none(), "never heard");
        presence.heard(node.clone());
        tokio::time::advance(AWAY_AFTER / 2).await;
        presence.heard(node.clone());
        let before = Instant::now();
        presence.gone(&node).await;
        assert!(before.elapsed() >= AWAY_AFTER);
        assert!(presence.until(&node).is_none());
    }
}
