//! Asking a module on a node, from the hub.
//!
//! The answer comes on a subject among the node's own (`ew.str.<node>.`): no node may write to an inbox of the hub's (see
//! [`crate::identity`]). The asker's flows need [`crate::flow::Flow::stream`] for it.
//!
//! Every command has a reply subject, also one that nobody waits for the answer of: by it a node knows that it is the hub's.
//! A node that is not to be trusted can have the hub's server put what it stored, as it likes, to another node's subjects,
//! by naming them as the reply subject when it reads it (measured with 2.15.1: its own cursor, without the server's headers).
//! Such a message has no reply subject, or an acknowledgement's ([`is_genuine`]).

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use schemas::command::{Refusal, Reply};
use schemas::name::NodeName;
use schemas::subject;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::connection::Bus;
use crate::stream::new_session;

/// Is that the subject of a command?
pub(crate) fn is_one(subject: &str) -> bool {
    subject.starts_with("ew.cmd.")
}

/// Can a message that came on a command's subject be the hub's?
pub(crate) fn is_genuine(reply: Option<&str>) -> bool {
    reply.is_some_and(|reply| reply.starts_with("ew.str.") || reply.starts_with("_INBOX."))
}

/// Asks, and waits for the answer. A node that is not there is told at once if its link is known to be down, otherwise by
/// the time.
pub async fn ask<T: Serialize, A: DeserializeOwned>(
    bus: &Bus,
    node: &NodeName,
    module: &str,
    verb: &str,
    question: &T,
    timeout: Duration,
) -> Reply<A> {
    let lost = |cause: &dyn std::fmt::Display| {
        Refusal::new(503, "EW-NODE-UNREACHABLE", format!("node {node} was not asked: {cause}; try again"))
    };
    let body = schemas::encode(question);
    if body.len() > schemas::MESSAGE_MAX_BYTES {
        return Err(Refusal::new(
            413,
            "EW-PAYLOAD-TOO-LARGE",
            format!("a question of {} bytes is over the bound", body.len()),
        ));
    }
    let reply = subject::stream_up(node, &new_session());
    let mut answers = bus.client.subscribe(reply.clone()).await.map_err(|error| lost(&error))?;
    let to = subject::command(node, module, verb);
    bus.client.publish_with_reply(to, reply, Bytes::from(body)).await.map_err(|error| lost(&error))?;
    let answer = match tokio::time::timeout(timeout, answers.next()).await {
        Ok(Some(answer)) => answer,
        Ok(None) => return Err(lost(&"the subscription ended")),
        Err(_) => {
            let text = format!(
                "node {node} did not answer within {} s; whether it was done is unknown",
                timeout.as_secs()
            );
            return Err(Refusal::new(504, "EW-NODE-SILENT", text));
        }
    };
    if answer.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
        let text = format!("node {node} is not connected; is its link up? see `edgewire nodes`");
        return Err(Refusal::new(503, "EW-NODE-UNREACHABLE", text));
    }
    let bad = |error| Refusal::new(502, "EW-BAD-ANSWER", format!("the answer of node {node}: {error}"));
    schemas::decode::<Reply<A>>(&answer.payload).map_err(bad)?
}
