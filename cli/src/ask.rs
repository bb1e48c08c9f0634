//! Asking somebody on the bus and waiting for the first answer.
//!
//! A node's own server and the hub let a node publish on its own subjects only, so a node cannot answer into an inbox of
//! ours. What is asked of a node (`ew.cmd.<node>.…`) is therefore answered on a stream subject of that node.

use std::time::Duration;

use bus::connection::Bus;
use bus::tool::{Message, ToolError};
use bytes::Bytes;
use futures::StreamExt;
use schemas::command::Reply;
use schemas::envelope::Headers;
use schemas::name::NodeName;
use schemas::subject;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::{Failure, Outcome};

/// What the hub is called among the nodes.
pub const HUB: &str = "hub";

/// What to look at when one does not understand the other.
pub const SAME_VERSION: &str = "are hub and tool of the same version?";

/// The node that a command's subject names; `None` for the hub, which may answer anywhere, and for other subjects.
fn commanded(subject: &str) -> Option<NodeName> {
    let node = subject.strip_prefix("ew.cmd.")?.split('.').next()?;
    NodeName::new(node).ok().filter(|node| node.as_str() != HUB)
}

/// Sends and waits for the first answer.
pub async fn ask(
    bus: &Bus,
    subject: &str,
    headers: &Headers,
    payload: Bytes,
    timeout: Duration,
) -> Result<Message, ToolError> {
    let Some(node) = commanded(subject) else {
        return bus.ask(subject, headers, payload, timeout).await;
    };
    let reply = subject::stream_up(&node, &bus::stream::new_session());
    let mut answers = bus.listen(&reply).await?;
    bus.say(subject, headers, payload, Some(reply)).await?;
    match tokio::time::timeout(timeout, answers.next()).await {
        Ok(Some(answer)) if answer.no_responders => {
            Err(ToolError::NoResponders { subject: subject.to_owned() })
        }
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(ToolError::Failed {
            subject: subject.to_owned(),
            cause: "the connection was closed".to_owned(),
        }),
        Err(_) => Err(ToolError::Timeout { subject: subject.to_owned(), timeout_ms: timeout.as_millis() }),
    }
}

/// What a module of the hub answers to `question`. `refused` is what to try when it refuses.
pub async fn ask_hub<T: DeserializeOwned>(
    bus: &Bus,
    subject: &str,
    question: &impl Serialize,
    timeout: Duration,
    refused: &str,
) -> Outcome<T> {
    let body = schemas::encode(question).into();
    let answer = ask(bus, subject, &Headers::new(), body, timeout).await.map_err(|error| {
        Failure::new("EW-NO-ANSWER", error, "does the hub run? see `edgewire modules --node hub`")
    })?;
    match schemas::decode::<Reply<T>>(&answer.payload) {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(refusal)) => Err(Failure::new(&refusal.code, refusal.message, refused)),
        Err(error) => Err(Failure::new("EW-HUB-FAILED", error, SAME_VERSION)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_nodes_command_is_answered_on_the_nodes_subject() {
        let node = |subject| commanded(subject).map(|node| node.to_string());
        assert_eq!(node("ew.cmd.edge-a.host.modules").as_deref(), Some("edge-a"));
        assert_eq!(node("ew.cmd.hub.host.modules"), None);
        assert_eq!(node("app.demo.ask"), None);
    }
}
